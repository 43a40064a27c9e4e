"""Read a recognised file row by row, each row with its line number. Imports no torch.

A row that cannot be read comes as a `RowError` in its place.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import IO

from sft.data.brat import read_brat
from sft.data.class_folders import read_texts
from sft.data.columnar import read_columnar
from sft.data.documents import read_document
from sft.data.encodings import BYTE_ORDER_MARK
from sft.data.json_rows import json_row
from sft.data.marked import marked_row
from sft.data.shapes import GOLD_FIELDS, shape_row
from sft.data.sheets import read_sheet
from sft.data.source import NumberedRow, Source
from sft.data.tables import read_table, without_error_values
from sft.data.tagged import read_tagged
from sft.errors import InputError, RowError

# Readers whose rows already have the task's original shape.
IN_SHAPE = ("tagged", "marked", "brat", "classes", "texts")


def read_rows(source: Source) -> Iterator[NumberedRow]:
    """Every row of a file to convert; see `rows_in_shape`.

    Raises:
        InputError: the file cannot be read to its end.
    """
    try:
        yield from rows_in_shape(source)
    except UnicodeDecodeError as error:
        raise InputError(f"{source.path}：不是完整的 {source.encoding}（{error.reason}）；请另存为 UTF-8") from error
    except OSError as error:
        raise InputError(f"{source.path}：读到一半出错（{error.strerror}）") from error


def rows_in_shape(source: Source) -> Iterator[NumberedRow]:
    """Every row of a file in the task's original shape (see `sft.data.shapes`).

    Blank lines are skipped, except in a file of texts, where each line is a row.

    Raises:
        InputError: a quotation mark is never closed, or a CoNLL sentence never ends.
        UnicodeDecodeError: a UTF-16 file ends inside a character.
        OSError: the file cannot be read to its end.
    """
    return in_shape(rows_as_written(source), source)


def rows_as_written(source: Source) -> Iterator[NumberedRow]:
    """Every row with the columns or fields it has; those of ``IN_SHAPE`` in the task's original shape."""
    match source.container:
        case "tagged":
            return read_tagged(source)
        case "table":
            return read_table(source.path, source.encoding, source.table)
        case "sheet":
            return read_sheet(source.path, source.table.names, source.table.titles)
        case "columnar":
            return read_columnar(source.path)
        case "brat":
            return read_brat(source.path, source.encoding)
        case "document":
            return _read_document(source)
        case "texts":
            return read_texts(source.path, source.encoding)
        case "classes":
            return _read_classes(source)
    return _read_lines(source)


def _read_classes(source: Source) -> Iterator[NumberedRow]:
    """The rows of every class with the name of its file or folder as their label."""
    for label, texts in source.classes:
        for number, line, row in rows_in_shape(texts):
            if isinstance(row, RowError):
                yield number, line, RowError(row.field, f"{texts.path.name}：{row.reason}", row.given_kind)
            elif texts.container != "lines" or row["text"].strip():
                notes = {"notes": row["notes"]} if row.get("notes") else {}
                yield number, line, {"text": row["text"], "category": None, "output": label, **notes}


def _read_document(source: Source) -> Iterator[NumberedRow]:
    with source.path.open("rb") as file:
        yield from read_document(file, source.encoding, source.path)


def in_shape(rows: Iterator[NumberedRow], source: Source) -> Iterator[NumberedRow]:
    """Rows as they are written, in the task's original shape."""
    return rows if source.container in IN_SHAPE else _shape_rows(rows, source)


def _shape_rows(rows: Iterator[NumberedRow], source: Source) -> Iterator[NumberedRow]:
    is_table = source.container in ("table", "sheet")
    for number, line, row in rows:
        if type(row) is dict:
            try:
                row = shape_row(row, source.answers, source.columns)
                row = without_error_values(row, GOLD_FIELDS[source.answers]) if is_table else row
            except RowError as error:
                row = error
        yield number, line, row


# ---- Lines ----


def _read_lines(source: Source) -> Iterator[NumberedRow]:
    with source.path.open("rb", buffering=1 << 20) as file:
        lines = numbered_lines(file, source.encoding, with_marks=source.format == "chip")
        yield from rows_of_lines(lines, source)


def rows_of_lines(lines: Iterable[tuple[int, bytes | str]], source: Source) -> Iterator[NumberedRow]:
    """The rows of a file or stream that has one row on each line. A blank line is a row only of a file of texts."""
    for number, line in lines:
        if source.container == "lines":
            yield number, line, text_row(line)
        elif not line.isspace():
            row = json_row(line) if source.container == "json_lines" else _marked_row(line, source.format)
            yield number, line, row


def _marked_row(line: bytes | str, format: str) -> dict | RowError:
    text = _decoded(line)
    return text if isinstance(text, RowError) else marked_row(format, text)


def numbered_lines(file: IO[bytes], encoding: str, *, with_marks: bool = False) -> Iterator[tuple[int, bytes | str]]:
    """The lines of a file or stream with their numbers from 1.

    Only LF ends a line, because a text may hold U+2028 and the like. Lines of UTF-8 stay bytes, which orjson reads.
    A byte order mark before a line is left out: files that were put together have them inside.

    Args:
        with_marks: whether only the one before the first line is left out: offsets on the line may count the others.
    """
    if encoding.startswith("utf-16"):
        lines = io.TextIOWrapper(file, encoding, newline="\n", errors="surrogatepass")
        yield from enumerate((line.removeprefix(BYTE_ORDER_MARK) for line in lines), start=1)
        return
    if encoding.startswith("utf-8"):
        for number, line in enumerate(file, start=1):
            yield number, line if with_marks and number > 1 else line.removeprefix(codecs.BOM_UTF8)
        return
    for number, line in enumerate(file, start=1):
        with suppress(UnicodeDecodeError):  # it stays bytes and is rejected later
            line = line.decode(encoding).removeprefix(BYTE_ORDER_MARK)
        yield number, line


def text_row(line: bytes | str) -> dict | RowError:
    """A line to predict: a JSON object if it begins like one (``{"`` or ``{}``), else a text."""
    if line.lstrip()[:1] in (b"{", "{") and line.lstrip()[1:].lstrip()[:1] in (b'"', '"', b"}", "}", b"", ""):
        return json_row(line)
    line = _decoded(line)
    return line if isinstance(line, RowError) else {"text": line.rstrip("\r\n")}


def _decoded(line: bytes | str) -> str | RowError:
    if isinstance(line, str):
        return line
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return RowError("", "不是 UTF-8 编码（若是 GBK，请加 --encoding gb18030）")
