"""Records on disk: JSON lines, and the names of the files beside them. Imports no torch.

A record is a dict in chat format, plus the fields that truncation and scoring need:
``{"messages": [system, user, assistant], "task": ..., "text": ..., ...}``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson

from sft.errors import InputError, one_line
from sft.files import whole_file
from sft.tasks.settings import settings_path
from sft.tasks.task import Task, chat_messages

CHECK_ROWS = 500


def conversion_report_path(records_path: Path) -> Path:
    """``data/train_cls.jsonl`` → ``data/train_cls.report.json``: where the report of the conversion is."""
    return records_path.with_name(f"{records_path.stem}.report.json")


def make_record(task: Task, fields: dict) -> dict:
    """The record of a row's fields, with its messages."""
    return {"messages": chat_messages(task, fields), "task": task.name, **fields}


def write_check_rows(path: Path, task: Task, records: Sequence[dict]) -> None:
    """Keep the first `CHECK_ROWS` records, without their messages: with them `export.py` compares its exports.

    Raises:
        InputError: the file cannot be written.
    """
    with whole_file(path) as file:
        for record in records[:CHECK_ROWS]:
            fields = {name: value for name, value in record.items() if name != "messages"}
            file.write(orjson.dumps({"task": task.name} | fields, option=orjson.OPT_APPEND_NEWLINE))


def read_records(path: Path) -> Iterator[tuple[int, dict]]:
    """Yield ``(line number from 1, record)`` of a record file written by the transfer scripts.

    Raises:
        InputError: there is no such file, it is empty, or a line is not a JSON object.
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


def read_task_records(path: Path, task: Task) -> list[tuple[int, dict]]:
    """``(line number from 1, record)`` of a record file. Each record must be what ``task`` would write today.

    The records come without their messages, which follow from the other fields: more than half of their memory.

    Raises:
        InputError: a record is of another task, lacks a field, or has other messages than ``task`` gives it.
    """
    records, known_options = [], {}
    for line, record in read_records(path):
        if record.get("task") != task.name:
            raise InputError(
                f"{path}:{line}：task 应是 {task.name}，实际是 {record.get('task')!r}；请换成这个任务的数据"
            )
        try:
            messages = chat_messages(task, record)
            if not isinstance(record["text"], str):
                raise TypeError(f"text 应是字符串，实际是 {type(record['text']).__name__}")
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            raise InputError(
                f"{path}:{line}：缺少字段或类型不对（{one_line(error)}）；请用 transfer_*.py 重新生成"
            ) from error
        if messages != record.get("messages"):
            raise InputError(
                f"{path}:{line}：messages 与 {settings_path(path).name} 里的提示对不上；请用 transfer_*.py 重新生成"
            )
        del record["messages"]
        if task.answers == "label" and (options := record.get("options")):
            # Often the same list in each row: one in memory will do.
            record["options"] = known_options.setdefault(tuple(options), options)
        records.append((line, record))
    return records
