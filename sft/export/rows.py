"""The rows with which an export is compared: those that training kept, or a file of records. Imports no torch."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import orjson

from sft.errors import InputError, RowError
from sft.files import CHECK_ROWS_FILE, step_in_name
from sft.text import clean_text

if TYPE_CHECKING:
    from sft.export.source import Source

logger = logging.getLogger(__name__)


class Rows(NamedTuple):
    """Records to compare, with the ids of their prompts.

    Attributes:
        records: in the order of the file.
        path: where they come from.
    """

    records: tuple[dict, ...]
    path: Path


def rows_to_compare(path: Path, source: Source, most: int) -> Rows:
    """The first ``most`` rows of a file of records, or of the rows that training kept in the folder ``path``.

    Raises:
        InputError: there are none, or a row is not one of this task.
    """
    if path.is_dir():
        path /= CHECK_ROWS_FILE
        if not path.is_file() and step_in_name(path.parent) is not None:
            path = path.parent.parent / CHECK_ROWS_FILE
        if not path.is_file():
            raise InputError(
                f"{path}：没有这个文件（旧版本训练的没有它）；请用 --rows 给出转换后的数据，如 data/test_ner.jsonl"
            )
    try:
        with path.open("rb") as file:
            lines = list(islice((line for line in enumerate(file, start=1) if line[1].strip()), most))
    except OSError as error:
        raise InputError(f"{path}：无法读取（{error.strerror}）；请用 --rows 给出转换后的数据") from error
    records = tuple(_record(line, f"{path}:{number}", source) for number, line in lines)
    if not records:
        raise InputError(f"{path}：文件是空的，没有数据对照导出的答得是否一样；请用 --rows 给出转换后的数据")
    return Rows(records, path)


def _record(line: bytes, where: str, source: Source) -> dict:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InputError(
            f"{where}：不是合法的 JSON（{error}）；--rows 要转换后的 jsonl（transfer_*.py 写的）"
        ) from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise InputError(f"{where}：没有 text；--rows 要转换后的 jsonl（transfer_*.py 写的）")
    if row.get("task", source.task.name) != source.task.name:
        raise InputError(f"{where}：这是 {row['task']} 的数据，适配器的任务是 {source.task.name}")
    try:
        text = clean_text(row)
        fields = source.task.known_fields({"messages": []} | row | {"text": text})
    except RowError as error:
        raise InputError(f"{where}：{error}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{where}：不是这个任务的数据（{type(error).__name__}）；请用 transfer_*.py 重新转换"
        ) from error
    if "gold_error" in fields:
        fields = {name: value for name, value in fields.items() if name not in ("gold_error", "label")}
    return {"text": text} | fields
