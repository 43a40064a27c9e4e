"""Rows to predict: a file in any format that the transfer scripts read, lines of text, or a stream.

Rows need no gold. A row that cannot be read comes as a `RowError` in its place. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

from sft.data.arguments import ReadOptions
from sft.data.formats import recognise
from sft.data.readers import numbered_lines, rows_as_written, text_row
from sft.data.source import TABLES, Source
from sft.errors import InputError, RowError


def read_file(path: Path, *, encoding: str = "auto", text_column: str | None = None) -> Iterator[dict | RowError]:
    """Rows of a file in order: CSV or TSV with a header, CoNLL, JSON lines, else one text on each line.

    ``.csv`` and ``.tsv`` are tables and ``.json`` and ``.jsonl`` are JSON lines, by name; CoNLL is recognised by its
    tags. In any other file a line that begins with ``{`` is a JSON object. Blank lines are skipped.

    Raises:
        InputError: at once, if the file cannot be read, is not text, or is a table without a text column; later, if
            reading fails halfway.
    """
    return _rows(recognise(path, None, ReadOptions(encoding=encoding, text_column=text_column)))


def count_rows(path: Path, limit: int | None, **reading: str | None) -> int:
    """How many rows `read_file` gives, at most ``limit``. It counts about 100,000 rows a second."""
    return sum(1 for _ in islice(read_file(path, **reading), limit))


def read_stream(file: IO[bytes], *, encoding: str = "auto") -> Iterator[dict | RowError]:
    """Rows of a stream: a line that begins with ``{`` is a JSON object, any other a text. Blank lines are skipped."""
    encoding = "utf-8-sig" if encoding in ("auto", "utf-8") else encoding
    for number, line in numbered_lines(file, encoding):
        if line.strip():
            yield _with_line_number(text_row(line), number)


def _rows(source: Source) -> Iterator[dict | RowError]:
    number = 0
    try:
        for number, _, row in rows_as_written(source):
            yield row if source.format == "conll" else _with_line_number(row, number)  # CoNLL's errors have their own
    except UnicodeDecodeError as error:
        where = f"第 {number} 行之后" if source.format in ("jsonl", "lines") else "往后"
        yield RowError("", f"{where}不是完整的 {source.encoding}（{error.reason}）")
    except InputError as error:
        if source.format not in TABLES:
            raise
        yield RowError("", str(error))  # a quotation mark is never closed: the rows before it are good
    except OSError as error:
        raise InputError(f"{source.path}：读到一半出错（{error.strerror}）") from error


def _with_line_number(row: dict | RowError, number: int) -> dict | RowError:
    return row if isinstance(row, dict) else RowError(row.field, f"第 {number} 行：{row.reason}")
