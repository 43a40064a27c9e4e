"""``*.task.json``: what conversion, training and prediction have to agree on.

Only this module interprets and writes it.

Conversion writes it beside the records: the task. Training checks it, adds the base model, numbers and lengths, and
puts it into the adapter's folder; prediction needs nothing else. Hashes in it say whether it, and the files beside it,
are still what was written (`sft.tasks.sealed`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Self

from sft.errors import InputError, one_line
from sft.files import TASK_FILE, read_json, whole_file
from sft.tasks import TASKS
from sft.tasks.calibration import LEAST_TEMPERATURE, MOST_BIAS, MOST_TEMPERATURE, Calibration
from sft.tasks.sealed import CONVERSION, FILES, hashes_beside, is_sealed, pair_id, sealed_bytes
from sft.tasks.task import Task

FORMAT_VERSION = 1
NEWER_FORMAT = 2  # of what a version that knows only the first would read wrongly, and must refuse
MOST_TOKENS = 1 << 31
DTYPES = ("bfloat16", "float16", "float32")
USER_PROMPT = "user_prompt"
CHOSEN = ("threshold", "temperature", "score_bias")  # on the validation records, after training
NF4 = "nf4"  # the base's linear layers in 4 bits, quantised while it is loaded


@dataclass(frozen=True)
class TaskSettings:
    """A task, and what training adds to it; None before training.

    Attributes:
        base_model: folder or hub id of the base model.
        dtype: the numbers it was trained in, such as ``bfloat16``.
        max_length: tokens of a row at most, prompt and answer.
        max_new_tokens: tokens of an answer at most.
        usual_text_tokens: of the texts of training, 95 % have no more tokens; for a task with entities, which reads a
            longer text in pieces. None in files of older versions.
        version: of this package.
        threshold: entities that score less are left out; chosen on the validation rows.
        temperature, score_bias: of the scores, see `sft.tasks.calibration`; fitted on the validation rows. None if
            none helped; labels have no bias.
        base_hash: the hash of the base model's config and weights; None in files of older versions.
        end_token: the token that ends an answer, such as ``<|im_end|>``.
        quantization: ``nf4`` if the base was quantised while it was loaded; None for a base as it is.
        prompt_date: the day that the chat template shows as today, such as ``2024-07-26``; None if it shows none.
        files: the hashes of the files beside an adapter's ``task.json``, by name. `write` takes them anew.
        conversion: of the settings beside records: the ``id`` of the conversion, and ``with``, the other file of
            records that it wrote, as seen from this one.
    """

    task: Task
    base_model: str | None = None
    dtype: str | None = None
    max_length: int | None = None
    max_new_tokens: int | None = None
    usual_text_tokens: int | None = None
    version: str | None = None
    threshold: float | None = None
    base_hash: str | None = None
    end_token: str | None = None
    prompt_date: str | None = None
    quantization: str | None = None
    temperature: float | None = None
    score_bias: float | None = None
    files: Mapping[str, str] | None = field(default=None, compare=False)
    conversion: Mapping[str, str] | None = field(default=None, compare=False)

    @classmethod
    def read(cls, path: Path, *, verify: bool = True) -> Self:
        """Read a ``*.task.json``.

        Args:
            verify: refuse a file that was changed after it was written.

        Raises:
            InputError: it cannot be read, is of another format version or an unknown task, a field is missing or of
                another type, or it was changed.
        """
        content = read_json(path)
        name = content.get("task") if isinstance(content, dict) else content
        if not isinstance(name, str) or name not in TASKS:
            raise InputError(f"{path}：不认识任务 {str(name)[:60]!r}；应是 {'、'.join(TASKS)} 之一")
        version = content.get("format_version")
        if version not in (FORMAT_VERSION, NEWER_FORMAT):
            raise InputError(f"{path}：格式版本是 {str(version)[:60]}，应是 {FORMAT_VERSION}；请重新转换或训练")
        added = {field.name: content[field.name] for field in _added_fields() if field.name in content}
        try:
            settings = cls(TASKS[name].from_settings(content), **added)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path}：缺少字段或类型不对（{one_line(error)}）；请重新转换或训练") from error
        _check_labels(path, content)
        settings._check_types(path)
        if version != (wanted := settings.format_version):
            raise InputError(f"{path}：格式版本是 {version}，应是 {wanted}；请重新转换或训练")
        if USER_PROMPT in content and content[USER_PROMPT] != user_turn(settings.task).get(USER_PROMPT):
            raise InputError(
                f"{path}：用户消息写作 {str(content[USER_PROMPT])[:60]!r}，与这个版本的不同；"
                f"请用写它的版本（{settings.version or '见 git 记录'}），或重新转换、训练"
            )
        if verify and not is_sealed(content):
            raise InputError(f"{path}：写好之后被改过或损坏了（sha256 不符）；{_how_to_change(path)}")
        return settings

    @property
    def format_version(self) -> int:
        """Of the file: a newer one for inline answers, and where both ends of a long text are read."""
        newer = self.task.answer_format == "inline" or self.task.long_text == "ends"
        return NEWER_FORMAT if newer else FORMAT_VERSION

    @property
    def has_older_scores(self) -> bool:
        """Whether an older version trained it, in which an entity's score was its share among the allowed tokens."""
        return self.task.answers == "entities" and self.usual_text_tokens is None

    def _check_types(self, path: Path) -> None:
        wanted = {"base_model": str, "base_hash": str, "dtype": str, "max_length": int, "max_new_tokens": int}
        wanted |= {"threshold": int | float, "end_token": str, "prompt_date": str, "version": str}
        wanted |= {"quantization": str, "temperature": int | float, "score_bias": int | float}
        wanted |= {"usual_text_tokens": int}
        wanted |= {FILES: dict, CONVERSION: dict}
        for name, kind in wanted.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
                raise InputError(f"{path}：{name} 的类型不对（{str(value)[:60]!r}）；请重新转换或训练")
        for name in ("max_length", "max_new_tokens", "usual_text_tokens"):
            if getattr(self, name) is not None and not 1 <= getattr(self, name) < MOST_TOKENS:
                raise InputError(f"{path}：{name} 应不小于 1，实际是 {getattr(self, name)}；请重新训练")
        if self.dtype not in (None, *DTYPES):
            raise InputError(f"{path}：dtype 应是 {'、'.join(DTYPES)} 之一，实际是 {self.dtype[:60]!r}；请重新训练")
        if self.quantization not in (None, NF4):
            found = f"{self.quantization[:60]!r}"
            raise InputError(f"{path}：quantization 应是 {NF4}，实际是 {found}；请升级，或重新训练")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError(f"{path}：threshold 应在 0 与 1 之间，实际是 {self.threshold}；请重新训练")
        ranges = {"temperature": (LEAST_TEMPERATURE, MOST_TEMPERATURE), "score_bias": (-MOST_BIAS, MOST_BIAS)}
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise InputError(f"{path}：{name} 应在 {least:g} 与 {most:g} 之间，实际是 {value}；请重新训练")
        if self.score_bias is not None and (self.temperature is None or self.task.answers != "entities"):
            raise InputError(f"{path}：score_bias 只用于实体，并且要有 temperature；请重新训练")
        for name in (FILES, CONVERSION):
            if not all(isinstance(value, str) for value in (getattr(self, name) or {}).values()):
                raise InputError(f"{path}：{name} 应是 {{名字: 字符串}}；请重新转换或训练")

    @property
    def calibration(self) -> Calibration | None:
        """What training fitted for the scores; None for the model's own scores."""
        return None if self.temperature is None else Calibration(self.temperature, self.score_bias)

    def to_json(self) -> dict:
        """The content of the file; what training has not set yet is left out."""
        added = {field.name: getattr(self, field.name) for field in _added_fields()}
        known = {name: value for name, value in added.items() if value is not None}
        return {"format_version": self.format_version, **self.task.settings(), **user_turn(self.task), **known}

    def to_bytes(self) -> bytes:
        """The file as bytes, with its seal."""
        return sealed_bytes(self.to_json())

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all. An adapter's ``task.json`` gets the hashes of the files beside it.

        So it is written after them.

        Raises:
            InputError: the place cannot be written.
        """
        beside = hashes_beside(path) if path.name == TASK_FILE else {}
        with whole_file(path) as file:
            file.write(self.replace(files=beside or None).to_bytes())

    def replace(self, **changes: object) -> Self:
        """The same with other values."""
        return replace(self, **changes)


def _check_labels(path: Path, content: Mapping[str, object]) -> None:
    labels, prompt = content.get("labels", []), content.get("system_prompt", "")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise InputError(f"{path}：labels 应是标签的列表，实际是 {str(labels)[:60]!r}；请重新转换或训练")
    if len(set(labels)) < len(labels):
        raise InputError(f"{path}：labels 里有重复的标签；请重新转换或训练")
    if not isinstance(prompt, str):
        raise InputError(f"{path}：system_prompt 应是字符串，实际是 {str(prompt)[:60]!r}；请重新转换或训练")


def user_turn(task: Task) -> dict[str, str]:
    """How the user message is made, for programs that have only ``task.json``.

    Returns:
        ``user_prompt``, where ``{text}`` and ``{options}`` stand for a row's own, and ``options_separator``, with
        which the options are joined: what the task itself writes. Empty if that needs more than text and options.
    """
    try:
        prompt = task.prompt({"text": "{text}", "options": ("{options}",)})[-1]["content"]
        two = task.prompt({"text": "{text}", "options": ("{options}", "{options}")})[-1]["content"]
    except (KeyError, TypeError, AttributeError):
        return {}
    if prompt.count("{text}") != 1:
        return {}
    between = two.split("{options}")
    return {USER_PROMPT: prompt} | ({"options_separator": between[1]} if len(between) == 3 else {})


def settings_path(records_path: Path) -> Path:
    """``data/train_cls.jsonl`` → ``data/train_cls.task.json``: the task's settings beside its records."""
    return records_path.with_name(f"{records_path.stem}.task.json")


def converted_settings(task: Task, written: Mapping[Path, Path]) -> list[TaskSettings]:
    """The settings beside the two files of records that one conversion writes, with what marks them as a pair.

    Args:
        written: where each file of records will be → where its content is now.
    """
    pair = pair_id(TaskSettings(task).to_json(), *written.values())
    one, other = written
    return [
        TaskSettings(task, conversion={"id": pair, "with": _as_seen_from(here, there)})
        for here, there in ((one, other), (other, one))
    ]


def _as_seen_from(path: Path, other: Path) -> str:
    try:
        return Path(os.path.relpath(other, path.parent)).as_posix()
    except ValueError:  # another drive of Windows
        return other.name


def require_pair(records_path: Path, settings: TaskSettings) -> None:
    """Refuse records whose conversion was killed while its files were put in their places.

    The first file and the last file that come to their places are the two ``*.task.json``, so that an unfinished
    conversion can be seen in them.

    Args:
        settings: those beside ``records_path``.

    Raises:
        InputError: the other file of records is there, and it is of another conversion.
    """
    if settings.conversion is None:  # of an older version, or not written by a conversion
        return
    other = records_path.parent / settings.conversion.get("with", "")
    if not other.is_file():
        return
    path = settings_path(other)
    found = TaskSettings.read(path).conversion if path.is_file() else None
    if found is None or found.get("id") != settings.conversion.get("id"):
        raise InputError(
            f"{records_path} 和 {other}：不是同一次转换写出的（转换中断过，或其中一个后来又转换过）；"
            f"请重新转换；确实要分开用，就把 {other.name} 移到别处"
        )


def _how_to_change(path: Path) -> str:
    if path.name == TASK_FILE:
        return (
            "请从备份恢复或重新训练；只想改阈值，用 predict.py 的 --threshold；"
            "确实要用改过的，predict.py 加 --no_verify，训练则先删去其中的 sha256 和 files 两项"
        )
    return "请重新转换；确实要用改过的，先删去其中的 sha256 和 conversion 两项"


def _added_fields() -> tuple[Field, ...]:
    return fields(TaskSettings)[1:]
