"""What a task wants of a conversion. Imports no torch.

A task of your own needs a `Recipe` of its own; it may stand in the script that converts the data:

    sources = [recognise(path, MyTask.answers, options)]
    recipe = Recipe(task=None, with_labels=MyTask, convert=convert, gold=label_gold)
    convert_files(recipe, sources, Conversion(output_file, test_file))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import orjson

from sft.data.source import Source
from sft.errors import InputError, RowError
from sft.tasks.classification import Classification
from sft.tasks.ner import CCFBDCI_LABELS, Ner
from sft.tasks.task import Task

Gold = tuple[str, Sequence[str], bytes]  # the stratum, the labels, the annotation as bytes


def _unchanged(_: Task, fields: dict) -> dict:
    return fields


@dataclass(frozen=True)
class Recipe:
    """What a task wants of a conversion.

    Attributes:
        task: the task that renders the messages; None if its labels are first to be learned from the data.
        with_labels: makes the task for the labels in the data, which come with the most frequent first. It is also
            called if ``task`` has no labels.
        convert: turns a raw row in its original shape (see `sft.data.shapes`) into the fields of a record; raises
            `RowError` if it cannot be used. Field ``text`` is required.
        gold: gives of a record's fields the name of its stratum (the split keeps the share of each stratum), its
            labels, and bytes that differ from those of any other annotation of the same text.
        complete: the fields of a record once the labels are known; used only if ``task`` is None.
    """

    task: Task | None
    with_labels: Callable[[Iterable[str]], Task]
    convert: Callable[[dict], dict]
    gold: Callable[[dict], Gold]
    complete: Callable[[Task, dict], dict] = _unchanged


def classification_recipe(sources: Iterable[Source], labels: str | None) -> Recipe:
    """How to convert classification rows. Rows without options get ``labels``, or else every label in the data.

    Args:
        labels: the options, as in ``体育,军事``.

    Raises:
        InputError: ``labels`` is not a list of different names.
    """
    options = tuple(_split_labels(labels)) if labels else ()
    known = bool(options) or all(source.columns.options for source in sources)

    def convert(raw: dict) -> dict:
        fields = Classification.convert(raw)
        if "options" in fields or not known:
            return fields
        if not options:
            raise RowError("category", "没有选项；可以用 --labels 给出")
        if fields["label"] not in options:
            raise RowError("output", f"标签 {fields['label']!r} 不在 --labels 里")
        return _with_options(fields, options)

    return Recipe(
        task=Classification(labels=options) if known else None,
        with_labels=lambda seen: Classification(labels=tuple(seen)),
        convert=convert,
        gold=label_gold,
        complete=lambda task, fields: fields if "options" in fields else _with_options(fields, task.labels),
    )


def ner_recipe(sources: Iterable[Source], labels: str | None) -> Recipe:
    """How to convert NER rows. The label set is ``labels``, or CCFBDCI's four, or every label in the data.

    Args:
        labels: the labels in the data with their names for the model, as in ``GPE=地理实体,LOC``.

    Raises:
        InputError: ``labels`` is not a list of different names.
    """
    names = _split_labels(labels) if labels else None
    if names is None and all(source.ccfbdci_labels for source in sources):
        names = CCFBDCI_LABELS
    return Recipe(
        task=Ner.with_labels(dict.fromkeys(names.values())) if names else None,
        with_labels=Ner.with_labels,
        convert=partial(Ner.convert, names=names),
        gold=entity_gold,
    )


def label_gold(fields: dict) -> Gold:
    """`Recipe.gold` for records with a ``label``: one stratum for each label."""
    label = fields["label"]
    return label, (label,), label.encode()


def entity_gold(fields: dict) -> Gold:
    """`Recipe.gold` for records with ``entities``: one stratum with entities, one without."""
    entities = fields["entities"]
    if not entities:
        return "无实体", (), b"[]"
    return "有实体", [entity["label"] for entity in entities], orjson.dumps(entities)


def _with_options(fields: dict, options: Sequence[str]) -> dict:
    return {"text": fields["text"], "options": options, "label": fields["label"]}


def _split_labels(labels: str) -> dict[str, str]:
    """``GPE=地理实体,LOC`` → ``{"GPE": "地理实体", "LOC": "LOC"}``."""
    names: dict[str, str] = {}
    for part in labels.replace("，", ",").split(","):
        label, _, name = (side.strip() for side in part.partition("="))
        if not label or label in names:
            raise InputError(
                f"--labels：{'重复的标签 ' + label if label else '有空的标签'}；应如 GPE=地理实体,LOC=地点"
            )
        names[label] = name or label
    return names
