"""Read a recognised file row by row, each row with its line number. Imports no torch.

A row that cannot be read comes as a `RowError` in its place.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import IO

import orjson

from sft.data.encodings import is_decoded
from sft.data.shapes import shape_row
from sft.data.source import NumberedRow, Source
from sft.data.tables import read_table
from sft.data.tagged import read_tagged
from sft.errors import InputError, RowError


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
    rows = _rows_as_written(source)
    return rows if source.container == "tagged" or _is_original(source) else _shape_rows(rows, source)


def _rows_as_written(source: Source) -> Iterator[NumberedRow]:
    if source.container == "tagged":
        return read_tagged(source)
    if source.container == "table":
        return read_table(source.path, source.encoding, source.table)
    return _read_lines(source)


def _is_original(source: Source) -> bool:
    """Whether the rows already have the original shape, so that shaping would only cost time."""
    usual = {"fudan": ("text", "output", "category"), "ccfbdci": ("text", "entities", None)}
    return source.container == "json_lines" and source.columns == usual.get(source.format)


def _shape_rows(rows: Iterator[NumberedRow], source: Source) -> Iterator[NumberedRow]:
    for number, line, row in rows:
        if type(row) is dict:
            try:
                row = shape_row(row, source.answers, source.columns)
            except RowError as error:
                row = error
        yield number, line, row


# ---- Lines ----


def _read_lines(source: Source) -> Iterator[NumberedRow]:
    is_text = source.container == "lines"
    with source.path.open("rb", buffering=1 << 20) as file:
        for number, line in numbered_lines(file, source.encoding):
            if is_text:
                yield number, line, text_row(line)
            elif not line.isspace():
                yield number, line, json_row(line)


def numbered_lines(file: IO[bytes], encoding: str) -> Iterator[tuple[int, bytes | str]]:
    """The lines of a file or stream with their numbers from 1.

    Only LF ends a line, because a text may hold U+2028 and the like. Lines of UTF-8 stay bytes, which orjson reads.
    ``utf-8-sig`` takes a byte order mark off if there is one.
    """
    if encoding == "utf-16":
        yield from enumerate(io.TextIOWrapper(file, "utf-16", newline="\n", errors="surrogatepass"), start=1)
        return
    lines = enumerate(file, start=1)
    if encoding == "utf-8-sig":
        for number, line in islice(lines, 1):
            yield number, line.removeprefix(codecs.BOM_UTF8)
    if encoding != "gb18030":
        yield from lines
        return
    for number, line in lines:
        with suppress(UnicodeDecodeError):  # it stays bytes and is rejected later
            line = line.decode("gb18030")
        yield number, line


def text_row(line: bytes | str) -> dict | RowError:
    """A line to predict: a JSON object if it begins with ``{``, else a text."""
    if line.lstrip()[:1] in (b"{", "{"):
        return json_row(line)
    if isinstance(line, bytes):
        try:
            line = line.decode("utf-8")
        except UnicodeDecodeError:
            return RowError("", "不是 UTF-8 编码（若是 GBK，请加 --encoding gb18030）")
    return {"text": line.rstrip("\r\n")}


def json_row(line: bytes | str) -> dict | RowError:
    """The JSON object on a line; NaN and the infinities in it become None."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return _read_slowly(line, error)
    return _checked(line, row)


def _checked(line: bytes | str, row: object) -> dict | RowError:
    """The row, if it is an object and no key stands twice in it with different values."""
    if type(row) is not dict:
        return RowError("", f"应是一个 JSON 对象，实际是 {type(row).__name__}")
    # With as many colons as keys nothing is nested, no text has a colon and no key stands twice: most rows end here.
    colons = line.count(b":" if type(line) is bytes else ":")
    return row if colons == len(row) else _repeated_key(line, row) or row


def _repeated_key(line: bytes | str, row: dict) -> RowError | None:
    """The error of a key that one object has twice with different values; orjson keeps the last value silently."""
    if line.count(b'":' if type(line) is bytes else '":') == _key_count(row):
        return None
    repeated = []

    def as_dict(pairs: list[tuple[str, object]]) -> dict:
        result = dict(pairs)
        repeated.extend(key for key, value in pairs if result[key] != value)
        return result

    try:
        json.loads(line, object_pairs_hook=as_dict)
    except (ValueError, RecursionError):
        return None  # the row has been read, so it is valid
    return RowError(repeated[0], "同一个键出现两次，值不相同") if repeated else None


def _key_count(row: dict) -> int:
    """How many keys a row has, two levels deep. Only a line that seems to have another number needs a closer look."""
    count = len(row)
    for value in row.values():
        if type(value) is list:
            for item in value:
                if type(item) is dict:
                    count += len(item)
        elif type(value) is dict:
            count += len(value) + sum([len(item) for item in value.values() if type(item) is dict])
    return count


def _read_slowly(line: bytes | str, error: orjson.JSONDecodeError) -> dict | RowError:
    """What Python's slower parser makes of a line that orjson refuses: a row with NaN or Infinity, or what is wrong.

    pandas writes NaN where a value is missing, so NaN and the infinities become None: a text, label or entities that
    are NaN are missing, and elsewhere nobody looks.
    """
    if isinstance(line, bytes):
        try:
            line = line.decode("utf-8")
        except UnicodeDecodeError as where:
            return RowError("", f"第 {where.start + 1} 个字节解不开（文件若是 GBK，请加 --encoding gb18030）")
    constants = []
    try:
        row = json.loads(line, parse_constant=constants.append)  # `append` gives None
        fields = row.items() if type(row) is dict else [("", row)]
        undecodable = [field for field, value in fields if not is_decoded(json.dumps(value, ensure_ascii=False))]
    except json.JSONDecodeError as precise:
        return RowError("", f"不是合法的 JSON（第 {precise.pos + 1} 个字符：{precise.msg}）")
    except ValueError as precise:
        return RowError("", f"不是合法的 JSON（{precise}）")
    except RecursionError:
        return RowError("", "JSON 嵌套太深")
    if undecodable:
        return RowError(undecodable[0], "含有不成对的代理字符（如 \\ud800），不是合法的 Unicode")
    if not constants:
        return RowError("", f"不是合法的 JSON（{error.msg}）")
    return _checked(line, row)
