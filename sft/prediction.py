"""Between a user's rows and records: what comes in (JSON lines, CSV, plain lines), and what goes out, line for line.

``text`` and offsets that go out are the user's own: those from before normalisation.
"""

from __future__ import annotations

import csv
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import orjson

from sft.records import InputError, RowError
from sft.text import clean_text, detect_encoding, shifted_offsets

if TYPE_CHECKING:
    from sft.encoding import Task

TEXT_COLUMNS = ("text", "content", "sentence", "文本", "内容", "正文")


def read_file(path: Path) -> Iterator[dict | RowError]:
    """Rows of a file in order: JSON lines, CSV or TSV with a header, else one text a line.

    Raises:
        InputError: at once, if it cannot be read, is not UTF-8, or is a table without a text column.
    """
    try:
        encoding = detect_encoding(path)
        if not encoding.startswith("utf-8"):
            raise InputError(
                f"{path}：像是 {encoding} 编码；请先转成 UTF-8：iconv -f {encoding} -t utf-8 {path} > 新文件"
            )
        if path.suffix.lower() in (".csv", ".tsv"):
            return _read_table(path)
        return read_lines(path.open("rb"))
    except OSError as error:
        raise InputError(f"{path}：无法读取（{error.strerror}）；请检查 --input_file") from error


def read_lines(file: IO[bytes]) -> Iterator[dict | RowError]:
    """Rows of an open file: a line that begins with ``{`` is a JSON object, any other a text; empty lines are none."""
    for number, line in enumerate(file, start=1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if line.strip():
            yield _read_line(line)


def _read_line(line: bytes) -> dict | RowError:
    if line.lstrip().startswith(b"{"):
        try:
            return orjson.loads(line)
        except orjson.JSONDecodeError as error:
            return RowError("", f"不是合法的 JSON（{error}）")
    try:
        return {"text": line.decode("utf-8").rstrip("\r\n")}
    except UnicodeDecodeError:
        return RowError("", "不是 UTF-8 编码")


def _read_table(path: Path) -> Iterator[dict | RowError]:
    csv.field_size_limit(1 << 30)  # an article may be longer than the usual 128 KiB
    with path.open(encoding="utf-8-sig", newline="", errors="replace") as file:
        header = next(csv.reader(file, delimiter=_delimiter(path)), [])
    column = next((name for name in TEXT_COLUMNS if name in header), None)
    if column is None:
        raise InputError(f"{path}:1：没有文本列（{'、'.join(TEXT_COLUMNS)} 之一），只有 {'、'.join(header)}")
    return _table_rows(path, ["text" if name == column else name for name in header])


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _table_rows(path: Path, header: list[str]) -> Iterator[dict | RowError]:
    with path.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as file:
        rows = csv.reader(file, delimiter=_delimiter(path))
        next(rows)
        for cells in rows:
            if not cells:  # an empty line
                continue
            if len(cells) == len(header):
                yield dict(zip(header, cells, strict=True))
            else:
                found = f"第 {rows.line_num} 行有 {len(cells)} 列，表头有 {len(header)} 列"
                yield RowError("", f"{found}；正文里有分隔符时要用双引号括起来")


def to_record(row: dict | RowError, task: Task) -> dict | RowError:
    """The record of a raw row, a record, or a row with only a text; ``original`` keeps the user's text.

    Gold is taken along where it is usable; a row without it, or with a broken one, is still predicted.
    """
    if isinstance(row, RowError):
        return row
    try:
        record = {"text": clean_text(row), "original": row["text"]}
        record["text"].encode()  # a lone surrogate has no tokens
    except RowError as error:
        return error
    except UnicodeEncodeError:
        return RowError("text", "不是 UTF-8 编码，或含有残缺的代理项字符（lone surrogate）")
    try:
        return task.known_fields(row) | record
    except RowError:
        return record


def to_output(record: dict | RowError, prediction: dict, task: Task) -> dict:
    """What is written for a row: its own text, the result, and gold under ``gold``; or why there is no result."""
    if isinstance(record, RowError):
        return {"error": str(record)}
    if "error" in prediction:
        return {"text": record["original"], "error": prediction["error"]}
    result = _in_original(prediction, record)
    gold = task.gold(record)
    output = {"text": record["original"], **result}
    return output | {"gold": _in_original(gold, record)} if gold is not None else output


def _in_original(result: dict, record: dict) -> dict:
    """The public part of a result, its entities' text and offsets those of the user's own text."""
    if "entities" not in result:
        return {name: result[name] for name in ("label", "score", "scores") if name in result}
    entities = [dict(entity) for entity in result["entities"]]
    original = record["original"]
    if original != record["text"]:
        starts = [start for start, _ in shifted_offsets(original)]
        for entity in entities:
            start = bisect_left(starts, starts[bisect_right(starts, entity["start"]) - 1])
            end = bisect_left(starts, entity["end"])
            entity |= {"start": start, "end": end, "text": original[start:end]}
    return {"entities": entities}


def score_predictions(
    task: Task, golds: Sequence[dict | None], predictions: Sequence[dict]
) -> dict[str, float] | None:
    """The task's metrics and the share of unparsable answers, over the rows with gold and without an error.

    None when there are none.
    """
    judged = [
        (gold, prediction)
        for gold, prediction in zip(golds, predictions, strict=True)
        if gold is not None and "error" not in prediction
    ]
    if not judged:
        return None
    metrics = task.score(*zip(*judged, strict=True))
    return metrics | {"unparsable": sum(prediction["unparsable"] for _, prediction in judged) / len(judged)}
