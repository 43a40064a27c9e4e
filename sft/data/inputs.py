"""Rows to predict, as people have them: a file in any form that the transfer scripts read, plain lines, or a stream.

Gold is welcome and never needed. A row that cannot be read comes as a ``RowError`` in its place. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

import orjson

from sft.data.formats import (
    ENTITY_COLUMNS,
    LABEL_COLUMNS,
    TEXT_COLUMNS,
    csv_header,
    file_encoding,
    find_column,
    is_quoted,
    is_tagged,
    sample_lines,
    tag_scheme,
)
from sft.data.readers import (
    Source,
    entities_in_cell,
    numbered_lines,
    raw_entities,
    read_conll,
    read_csv,
    repeated_key,
    split_tag,
    why_not_json,
)
from sft.errors import InputError, RowError
from sft.text import read_literal


def read_file(path: Path, *, encoding: str = "auto", text_column: str | None = None) -> Iterator[dict | RowError]:
    """Rows of a file in order: CSV or TSV with a header, CoNLL, JSON lines, else one text a line.

    ``.csv`` and ``.tsv`` are tables, ``.json`` and ``.jsonl`` JSON lines, by name; CoNLL is told by its tags. Of any
    other file a line that begins with ``{`` is a JSON object. Blank lines are no rows.

    Raises:
        InputError: at once, if it cannot be read, is no text, or is a table without a text column; later, if reading
            breaks off.
    """
    encoding = file_encoding(path, encoding)
    sample = sample_lines(path, encoding)
    ending = path.suffix.lower()[1:]
    if ending in ("csv", "tsv"):
        detail = "引号按原文" if ending == "tsv" and not is_quoted(sample) else ""
        header = csv_header(path, sample, ending, detail)
        names = ("text",) if "text" in header else TEXT_COLUMNS
        find_column(path, header, text_column, names, "--text_column", "文本")
        return _table_rows(Source(path, "", ending, encoding, detail))
    if ending in ("json", "jsonl") and sample[0].strip()[:2] in ("[", "[{", "{"):
        raise InputError(f"{path}:1：需要每行一个 JSON 对象；可以这样转换：jq -c '.[]?' {path} > 新文件.jsonl")
    if len(sample) > 1 and is_tagged(path, sample) and any(split_tag(line)[1] != "O" for line in sample):
        return _conll_rows(Source(path, "ner", "conll", encoding, tag_scheme(sample)))
    return _file_lines(path, encoding, only_json=ending in ("json", "jsonl"))


def count_rows(path: Path, limit: int | None, **reading: str | None) -> int:
    """How many rows `read_file` gives, up to ``limit``; a hundred thousand a second."""
    return sum(1 for _ in islice(read_file(path, **reading), limit))


def read_stream(file: IO[bytes], *, encoding: str = "auto") -> Iterator[dict | RowError]:
    """Rows of a stream: a line that begins with ``{`` is a JSON object, any other a text; blank lines are none."""
    encoding = "utf-8-sig" if encoding in ("auto", "utf-8") else encoding
    for number, line in numbered_lines(file, encoding):
        if line.strip():
            yield _line_row(line, number, only_json=False)


def _file_lines(path: Path, encoding: str, *, only_json: bool) -> Iterator[dict | RowError]:
    number = 0
    try:
        with path.open("rb", buffering=1 << 20) as file:
            for number, line in numbered_lines(file, encoding):
                if line.strip():
                    yield _line_row(line, number, only_json=only_json)
    except UnicodeDecodeError as error:
        yield RowError("", f"第 {number + 1} 行起不是完整的 {encoding}（{error.reason}）")
    except OSError as error:
        raise InputError(f"{path}：读到一半出错（{error.strerror}）") from error


def _line_row(line: bytes | str, number: int, *, only_json: bool) -> dict | RowError:
    if only_json or line.lstrip()[:1] in (b"{", "{"):
        row = _json_row(line)
        return row if isinstance(row, dict) else RowError(row.field, f"第 {number} 行：{row.reason}")
    if isinstance(line, bytes):
        try:
            line = line.decode("utf-8")
        except UnicodeDecodeError:
            return RowError("", f"第 {number} 行：不是 UTF-8 编码（若是 GBK，请加 --encoding gb18030）")
    return {"text": line.rstrip("\r\n")}


def _json_row(line: bytes | str) -> dict | RowError:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return why_not_json(line, error)
    if type(row) is not dict:
        return RowError("", f"应是一个 JSON 对象，实际是 {type(row).__name__}")
    return repeated_key(line, row) or row


def _table_rows(source: Source) -> Iterator[dict | RowError]:
    rows = read_csv(source)
    while True:
        try:
            number, _, row = next(rows)
        except StopIteration:
            return
        except InputError as error:  # an open quote has swallowed the rest of the file: what came before stands
            yield RowError("", str(error))
            return
        except UnicodeDecodeError as error:
            yield RowError("", f"往后不是完整的 {source.encoding}（{error.reason}）")
            return
        except OSError as error:
            raise InputError(f"{source.path}：读到一半出错（{error.strerror}）") from error
        yield row if isinstance(row, dict) else RowError(row.field, f"第 {number} 行：{row.reason}")


def _conll_rows(source: Source) -> Iterator[dict | RowError]:
    try:
        for _, _, row in read_conll(source):
            yield row
    except OSError as error:
        raise InputError(f"{source.path}：读到一半出错（{error.strerror}）") from error


def in_original_shape(row: dict, task: str, text_column: str | None, label_column: str | None) -> dict:
    """A row in the original shape of ``task``, whatever its columns are called; a record stays as it is.

    Rows of one file may differ. Gold in no known notation is left out.

    Raises:
        RowError: no text column, or several that could be it.
    """
    if "messages" in row and text_column is None:
        return row
    text = row.get(_text_column(row, text_column))
    if task == "ner":
        return {"text": text, "entities": _entities(row, text, label_column)}
    options = row.get("options") or None
    name = label_column or _only(row, LABEL_COLUMNS, first=("output", "label"))
    if label_column is None and name == "category" and _is_list(row["category"]):
        name = None
    if options is None and name != "category":
        options = row.get("category")
    return {"text": text, "category": options, "output": row.get(name)}


def _text_column(row: dict, chosen: str | None) -> str:
    if chosen is not None:
        if chosen not in row:
            raise RowError(chosen, "缺少这个字段")
        return chosen
    column = _only(row, TEXT_COLUMNS, first=("text",))
    if column is None:
        found = [name for name in row if name.strip().lower() in TEXT_COLUMNS]
        raise RowError(
            "text", f"有几个字段都像文本（{'、'.join(found)}）；请用 --text_column 指明" if found else "缺少这个字段"
        )
    return column


def _only(row: dict, names: tuple[str, ...], first: tuple[str, ...]) -> str | None:
    """The one of ``first`` that a row has, else its only column with one of the usual names."""
    for name in first:
        if name in row:
            return name
    found = [column for column in row if column.strip().lower() in names]
    return found[0] if len(found) == 1 else None


def _is_list(value: object) -> bool:
    if type(value) is not str:
        return type(value) is list
    try:
        return type(read_literal(value)) is list
    except ValueError:
        return False


def _entities(row: dict, text: object, label_column: str | None) -> object:
    column = label_column or _only(row, ENTITY_COLUMNS, first=("entities",))
    value = row.get(column) if column is not None else None
    if type(text) is not str or value is None:
        return None
    try:
        value = entities_in_cell(value, column) if type(value) is str else value
        return raw_entities(value, column)
    except RowError:
        return None
