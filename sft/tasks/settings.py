"""``*.task.json``: what conversion, training and prediction have to agree on.

Only this module interprets and writes it.

Conversion writes it beside the records: the task. Training checks it, adds the base model, numbers and lengths, and
puts it into the adapter's folder; prediction needs nothing else.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, fields, replace
from pathlib import Path
from typing import Self

from sft.errors import InputError
from sft.files import json_bytes, read_json, whole_file
from sft.tasks import TASKS
from sft.tasks.task import Task

FORMAT_VERSION = 1


@dataclass(frozen=True)
class TaskSettings:
    """A task, and what training adds to it; None before training.

    Attributes:
        base_model: folder or hub id of the base model.
        dtype: the numbers it was trained in, such as ``bfloat16``.
        max_length: tokens of a row at most, prompt and answer.
        max_new_tokens: tokens of an answer at most.
        version: of this package.
        threshold: entities that score less are left out; chosen on the validation rows.
        base_hash: the hash of the base model's config and weights; None in files of older versions.
        end_token: the token that ends an answer, such as ``<|im_end|>``.
        prompt_date: the day that the chat template shows as today, such as ``2024-07-26``; None if it shows none.
    """

    task: Task
    base_model: str | None = None
    dtype: str | None = None
    max_length: int | None = None
    max_new_tokens: int | None = None
    version: str | None = None
    threshold: float | None = None
    base_hash: str | None = None
    end_token: str | None = None
    prompt_date: str | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a ``*.task.json``.

        Raises:
            InputError: it cannot be read, is of another format version or an unknown task, or a field is missing or
                of another type.
        """
        content = read_json(path)
        name = content.get("task") if isinstance(content, dict) else content
        if not isinstance(name, str) or name not in TASKS:
            raise InputError(f"{path}：不认识任务 {str(name)[:60]!r}；应是 {'、'.join(TASKS)} 之一")
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise InputError(f"{path}：格式版本是 {version}，应是 {FORMAT_VERSION}；请重新转换或训练")
        added = {field.name: content[field.name] for field in _added_fields() if field.name in content}
        try:
            settings = cls(TASKS[name].from_settings(content), **added)
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}：缺少字段或类型不对（{error}）；请重新转换或训练") from error
        settings._check_types(path)
        return settings

    def _check_types(self, path: Path) -> None:
        wanted = {"base_model": str, "base_hash": str, "dtype": str, "max_length": int, "max_new_tokens": int}
        wanted |= {"threshold": int | float, "end_token": str, "prompt_date": str}
        for name, kind in wanted.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
                raise InputError(f"{path}：{name} 的类型不对（{str(value)[:60]!r}）；请重新转换或训练")

    def to_json(self) -> dict:
        """The content of the file; what training has not set yet is left out."""
        added = {field.name: getattr(self, field.name) for field in _added_fields()}
        known = {name: value for name, value in added.items() if value is not None}
        return {"format_version": FORMAT_VERSION, **self.task.settings(), **known}

    def to_bytes(self) -> bytes:
        """The file as bytes."""
        return json_bytes(self.to_json())

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            InputError: the place cannot be written.
        """
        with whole_file(path) as file:
            file.write(self.to_bytes())

    def replace(self, **changes: object) -> Self:
        """The same with other values."""
        return replace(self, **changes)


def settings_path(records_path: Path) -> Path:
    """``data/train_cls.jsonl`` → ``data/train_cls.task.json``: the task's settings beside its records."""
    return records_path.with_name(f"{records_path.stem}.task.json")


def _added_fields() -> tuple[Field, ...]:
    return fields(TaskSettings)[1:]
