"""What a user wants the model to be told: another system prompt, and what each label means. Imports no torch.

Both become part of the task's ``system_prompt``, and so of ``*.task.json``, training and prediction.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from sft.data.recipes import Recipe
from sft.errors import InputError, one_line
from sft.tasks.options import EQUALS, clean_label
from sft.tasks.task import Task

# Between two descriptions, but not inside one: what follows is another label and its equals sign.
_BETWEEN = re.compile(r"[;；,，\n]\s*(?=[^=＝;；,，\n]+[=＝])")


def with_instructions(recipe: Recipe, system_prompt: str | None, label_descriptions: str | None) -> Recipe:
    """The recipe whose task has this system prompt, followed by what the labels mean.

    Args:
        system_prompt: the whole prompt, or ``@file``; None for the task's own.
        label_descriptions: as in ``产品=家用电器的名字；故障=哪里坏了``, or ``@file``, one a line; None for none.

    Raises:
        InputError: a file cannot be read, or a text is empty or not of this form.
    """
    prompt = None if system_prompt is None else _text_of("--system_prompt", system_prompt)
    descriptions = {} if label_descriptions is None else read_descriptions(label_descriptions)

    def instructed(task: Task) -> Task:
        named = _by_name(descriptions, task)
        lines = "；".join(f"{label}：{description}" for label, description in named.items())
        meaning = f"各标签的含义：{lines}。" if lines else ""
        return replace(task, system_prompt=(prompt or task.system_prompt) + meaning)

    def with_labels(labels: Iterable[str]) -> Task:
        return instructed(recipe.with_labels(labels))

    return replace(recipe, task=recipe.task and instructed(recipe.task), with_labels=with_labels)


def read_descriptions(value: str) -> dict[str, str]:
    """``产品=家用电器的名字；故障=哪里坏了`` → label → description. A description may have commas, but no equals sign.

    Raises:
        InputError: it is not of this form, or a label comes twice.
    """
    descriptions: dict[str, str] = {}
    for part in _BETWEEN.split(_text_of("--label_descriptions", value)):
        label, *rest = (clean_label(piece) for piece in EQUALS.split(part))
        description = rest[0].strip("。；;，, ") if len(rest) == 1 else ""
        if not label or not description or label in descriptions:
            fault = f"标签 {label} 给了两次" if label in descriptions else f"{part[:40]!r} 不是“标签=说明”"
            raise InputError(
                f"--label_descriptions：{fault}；应如 产品=家用电器的名字；故障=哪里坏了，或 @文件，一行一个"
            )
        descriptions[label] = description
    return descriptions


def _by_name(descriptions: Mapping[str, str], task: Task) -> dict[str, str]:
    """The descriptions by the labels' names for the model; a label may also be given as it is in the data.

    Raises:
        InputError: the task has no such label, or it is described under both of its names.
    """
    names = {**{label: label for label in task.labels}, **task.names}
    named: dict[str, str] = {}
    for label, description in descriptions.items():
        name = names.get(label, label)
        if task.labels and name not in task.labels:  # no labels: they are not known yet
            known = "、".join(task.labels[:20])
            raise InputError(f"--label_descriptions：没有标签 {label}；标签有 {known}")
        if name in named:
            raise InputError(f"--label_descriptions：标签 {name} 给了两次")
        named[name] = description
    return named


def _text_of(flag: str, value: str) -> str:
    """A flag's text, or that of the file that it names with ``@``, without blanks around it."""
    text = value
    if value.startswith("@"):
        path = Path(value.removeprefix("@"))
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{flag}：{path} 无法读取（{one_line(error)}）；应是 UTF-8 的文本") from error
    if not text.strip():
        raise InputError(f"{flag}：是空的")
    return text.strip()
