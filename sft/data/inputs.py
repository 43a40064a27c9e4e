"""Rows to predict: a file in any format that the transfer scripts read, lines of text, or a stream.

Rows need no gold. A row that cannot be read comes as a `RowError` in its place. Imports no torch.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

from sft.console import say_once
from sft.data.arguments import ReadOptions
from sft.data.columnar import is_columnar, parts_of
from sft.data.encodings import SAMPLE_BYTES, encoding_of, is_surely_utf8, usual_name
from sft.data.formats import recognise, recognise_sample, sample_lines
from sft.data.readers import in_shape, numbered_lines, rows_in_shape, rows_of_lines
from sft.data.source import Source
from sft.errors import InputError, RowError
from sft.files import file_hash

logger = logging.getLogger(__name__)

STANDARD_INPUT = "标准输入"

_STREAM_SAMPLE_LINES = 200


def open_file(path: Path, answers: str, options: ReadOptions | None = None) -> Source:
    """Recognise a file of rows to predict, and say what it was taken for if it is not plain.

    Args:
        answers: what the task's answers are, ``label`` or ``entities`` (``task.answers``).
        options: what the user says about the file.

    Raises:
        InputError: see `sft.data.formats.recognise`.
    """
    source = recognise(path, answers, options, gold=False)
    if source.container not in ("lines", "json_lines"):
        logger.info("%s：%s", path, source.describe())
    _say_encoding(path, source.encoding)
    return source


def read_file(path: Path, answers: str, options: ReadOptions | None = None) -> Iterator[dict | RowError]:
    """Rows of a file in order, in the task's original shape (see `sft.data.shapes`).

    Args:
        answers: what the task's answers are, ``label`` or ``entities`` (``task.answers``).
        options: what the user says about the file.

    Raises:
        InputError: at once, if the file cannot be read, is not text, or its text column cannot be recognised; later,
            if reading fails halfway.
    """
    return rows_of(open_file(path, answers, options))


def rows_of(source: Source) -> Iterator[dict | RowError]:
    """The rows of a recognised file in order, in the task's original shape.

    Raises:
        InputError: reading fails halfway.
    """
    number = 0
    try:
        for number, _, row in rows_in_shape(source):
            yield row if source.container == "tagged" else _with_line_number(row, number)
    except UnicodeDecodeError as error:
        where = f"第 {number} 行之后" if source.container in ("lines", "json_lines") else "往后"
        yield RowError("", f"{where}不是完整的 {usual_name(source.encoding)}（{error.reason}）")
    except InputError as error:
        if source.container not in ("table", "document"):
            raise
        yield RowError("", str(error))  # a quotation mark or a bracket is never closed: the rows before it are good
    except OSError as error:
        raise InputError(f"{source.path}：读到一半出错（{error.strerror}）") from error


def count_rows(source: Source, limit: int | None) -> int:
    """How many rows a file has, at most ``limit``. It counts about 100,000 rows a second."""
    return sum(1 for _ in islice(rows_of(source), limit))


def input_hash(path: Path) -> str:
    """`file_hash` of a file of rows; of a folder, or of a data set in several files, one over all their hashes.

    Raises:
        InputError: a part of a data set is missing.
    """
    files = parts_of(path) if is_columnar(path) else [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    if files == [path]:
        return file_hash(path)
    folder = path if path.is_dir() else path.parent
    listed = "".join(f"{file.relative_to(folder).as_posix()}\0{file_hash(file)}\0" for file in files)
    return hashlib.sha256(os.fsencode(listed)).hexdigest()


def read_stream(file: IO[bytes], answers: str, options: ReadOptions | None = None) -> Iterator[dict | RowError]:
    """Rows of a stream, recognised by its first lines like a file.

    Lines of text and of JSON are read as they come. Anything else is first kept in a temporary file.

    Raises:
        InputError: see `read_file`.
    """
    options = options or ReadOptions()
    lines = _lines_of_stream(file, options.encoding)
    first: list[tuple[int, bytes | str]] = []
    try:
        first.extend(islice(lines, _STREAM_SAMPLE_LINES))
    except UnicodeDecodeError as error:  # the lines before it are good
        lines = _cut_off(error)
    sample = sample_lines(line if isinstance(line, str) else line.decode("utf-8", "replace") for _, line in first)
    source = Source(Path(STANDARD_INPUT), answers, "lines", "lines", "utf-8")
    if sample:
        source = recognise_sample(source, sample, options, gold=False)
    if source.container in ("lines", "json_lines", "marked"):
        return _rows_of_lines(chain(first, lines), source)
    logger.info("%s：%s", STANDARD_INPUT, source.describe())
    return _spooled((line for _, line in chain(first, lines)), source, options)


def _lines_of_stream(file: IO[bytes], encoding: str) -> Iterator[tuple[int, bytes | str]]:
    """The numbered lines of a stream, each as soon as it is there; only to judge an encoding are more lines read.

    Raises:
        InputError: `encoding_of` refuses the stream.
    """
    number, line = 0, b""
    if encoding == "auto":
        for number, line in enumerate(file, start=1):
            if not line.isascii() or 0 in line or line.count(b"\r") > 1:
                break
            yield number, line
        else:
            return
        if is_surely_utf8(line):
            encoding = "utf-8"
    if line.count(b"\r") > 1 and b"\n" not in line:
        encoding_of(line, STANDARD_INPUT)  # refuses line ends of CR only
    ahead = [line] if line else []
    if encoding == "utf-8":
        encoding = "utf-8-sig" if number <= 1 else "utf-8"
    else:
        ahead += file.readlines(SAMPLE_BYTES)
        encoding = encoding_of(b"".join(ahead), STANDARD_INPUT, encoding)
        _say_encoding(STANDARD_INPUT, encoding)
    whole = encoding.startswith("utf-16")  # its lines are not cut at a byte
    lines = io.BytesIO(b"".join([*ahead, *file])) if whole else chain(ahead, file)
    first = max(number, 1)
    for offset, line in numbered_lines(lines, encoding):
        yield first + offset - 1, line


def _cut_off(error: UnicodeDecodeError) -> Iterator[tuple[int, bytes | str]]:
    raise error
    yield


def _say_encoding(where: object, encoding: str) -> None:
    if encoding != "auto" and not encoding.startswith("utf-8"):
        say_once(logger, f"{where}：按 {usual_name(encoding).upper()} 编码读；不对的话请用 --encoding 指明")


def _rows_of_lines(lines: Iterator[tuple[int, bytes | str]], source: Source) -> Iterator[dict | RowError]:
    number = 0
    try:
        for number, _, row in in_shape(rows_of_lines(lines, source), source):
            yield _with_line_number(row, number)
    except UnicodeDecodeError as error:
        yield RowError("", f"第 {number} 行之后不是完整的 {usual_name(error.encoding)}（{error.reason}）")


def _spooled(lines: Iterator[bytes | str], source: Source, options: ReadOptions) -> Iterator[dict | RowError]:
    """The rows of a stream that has to be read as a file."""
    with NamedTemporaryFile(suffix=".txt", delete=False) as file:
        file.writelines(line if isinstance(line, bytes) else line.encode() for line in lines)
    try:
        given = options._replace(encoding="utf-8", format=source.format)
        yield from rows_of(recognise(Path(file.name), source.answers, given, gold=False))
    finally:
        Path(file.name).unlink()


def _with_line_number(row: dict | RowError, number: int) -> dict | RowError:
    return row if isinstance(row, dict) else RowError(row.field, f"第 {number} 行：{row.reason}", row.kind)
