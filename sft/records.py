"""Records on disk: JSON lines, the task's settings beside them, and files that appear whole or not at all.

A record is a dict in chat form plus what truncation and scoring need:
``{"messages": [system, user, assistant], "task": ..., "text": ..., ...}``. Nothing here imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import orjson

FORMAT_VERSION = 1


class InputError(Exception):
    """A mistake in what the user gave (a file, a flag); the scripts print it as one line and exit with 2."""


class RunError(Exception):
    """A run that could not go on (NaN, no memory); the scripts print it as one line and exit with 1."""


class RowError(Exception):
    """One raw row that cannot be used.

    Attributes:
        field: the field at fault, ``""`` when the row as a whole is.
        reason: what is wrong with it, for a person.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


def settings_path(records_path: Path) -> Path:
    """``data/train_cls.jsonl`` → ``data/train_cls.task.json``: the task's settings beside its records."""
    return records_path.with_name(f"{records_path.stem}.task.json")


def conversion_report_path(records_path: Path) -> Path:
    """``data/train_cls.jsonl`` → ``data/train_cls.report.json``: what conversion did to make the records."""
    return records_path.with_name(f"{records_path.stem}.report.json")


@contextmanager
def whole_file(path: Path, mode: str = "wb", *, sync: bool = True) -> Iterator[IO[Any]]:
    """Write beside ``path`` and rename at the end, so that ``path`` is never half-written.

    Args:
        sync: wait until it is on the disk, so that it outlives a power cut; what a minute makes again needs not.

    Raises:
        InputError: the place cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
        file = beside.open(mode, buffering=1 << 20, **text)  # the default 8 KB costs a million small records seconds
    except OSError as error:
        raise InputError(f"{path}：无法写入（{error.strerror}）；请换一个可写的路径") from error
    try:
        with file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented UTF-8 JSON, whole or not at all."""
    with whole_file(path) as file:
        file.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def read_json(path: Path) -> Any:
    """Read one JSON file.

    Raises:
        InputError: it is missing or is not JSON.
    """
    try:
        return orjson.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}：无法读取（{error.strerror}）") from error
    except orjson.JSONDecodeError as error:
        raise InputError(f"{path}：不是合法的 JSON（{error}）") from error


def read_records(path: Path) -> Iterator[tuple[int, dict]]:
    """Yield ``(line number from 1, record)`` of a record file written by the transfer scripts.

    Raises:
        InputError: no such file, a line that is not a JSON object, or no record at all.
    """
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    record = orjson.loads(line)
                except orjson.JSONDecodeError as error:
                    raise InputError(f"{path}:{number}：不是合法的 JSON（{error}）") from error
                if not isinstance(record, dict):
                    raise InputError(f"{path}:{number}：应是一个 JSON 对象，实际是 {type(record).__name__}")
                yield number, record
    except OSError as error:
        raise InputError(f"{path}：无法读取（{error.strerror}）；请先运行 transfer_*.py 生成它") from error
    if number == 0:
        raise InputError(f"{path}：文件是空的")


def read_task_records(path: Path, task: Any) -> list[tuple[int, dict]]:
    """``(line number, record)`` of a record file, each one checked to be what ``task`` would write today.

    Raises:
        InputError: a record of another task, without a field, or whose messages ``task`` does not render the same.
    """
    records = []
    for line, record in read_records(path):
        if record.get("task") != task.name:
            raise InputError(
                f"{path}:{line}：task 应是 {task.name}，实际是 {record.get('task')!r}；请换成这个任务的数据"
            )
        try:
            messages = [*task.prompt(record), {"role": "assistant", "content": task.answer(record)}]
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}:{line}：缺少字段或类型不对（{error}）；请用 transfer_*.py 重新生成") from error
        if messages != record.get("messages"):
            raise InputError(
                f"{path}:{line}：messages 与 {settings_path(path).name} 里的提示对不上；请用 transfer_*.py 重新生成"
            )
        records.append((line, record))
    return records
