"""Read a JSON document, whose rows are not one on each line. Imports no torch. What the document may be:

- an array of objects, indented or not, also with a comma after the last one
- an array of pairs ``[text, {"entities": [[start, end, label]]}]`` or ``[text, {"cats": {label: 1}}]``, as spaCy 2 has
- an object with one list of those: ``{"version": "1", "data": [...]}``
- objects one after the other, with or without commas between them
- a table as pandas writes it: by index ``{"0": {"text": …}}``, by column ``{"text": {"0": …}}`` or ``{"text": […]}``,
  or split ``{"columns": […], "data": [[…]]}``

Each row is found by its brackets and then read like a JSON line (`sft.data.json_rows`). So a row that cannot be read
is one bad row, while brackets that do not match end the reading.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple

import orjson

from sft.data.columns import ENTITY_COLUMNS, TEXT_COLUMNS
from sft.data.json_rows import json_row
from sft.data.source import NumberedRow
from sft.errors import InputError, RowError

_STRING = rb'"[^"\\\n]*(?:\\[^\n][^"\\\n]*)*"'
_BRACKETS = re.compile(_STRING + rb'|["\[\]{}]')
_BLANK = re.compile(rb"[ \t\r\n]*")
_BLANK_AND_COMMAS = re.compile(rb"[ \t\r\n,]*")
_KEY = re.compile(rb"(" + _STRING + rb")[ \t\r\n]*:[ \t\r\n]*")
_SCALAR = re.compile(_STRING + rb'|[^\s,:"\[\]{}]+')
_PARTNERS = {b"[": b"]", b"{": b"}"}

_ARRAY_OF_ROWS = re.compile(r'\[\s*(\{\s*["}]|\[\s*(["{\[]|\d+\s*,))')  # the beginning of one
_ARRAY = re.compile(r'\[\s*(["\[{\]]|$)')
_EMPTY = re.compile(rb"\[\s*\]")
_PAIRS = re.compile(rb'\[\s*(null\s*,\s*)*\[\s*"')  # the beginning of a list of pairs; null where one was skipped
# Fields that one row has and a document has not.
_FIELDS_OF_A_ROW = ("annotations", "completions", "predictions", "conversations", "messages", "tokens", "history")


class _Member(NamedTuple):
    """One value in a container: where it begins and ends in the document, and its key as written."""

    key: bytes | None
    start: int
    end: int


class _Broken(Exception):
    """The document's brackets do not match.

    Attributes:
        at: the offset of the place.
    """

    def __init__(self, at: int, reason: str) -> None:
        super().__init__(reason)
        self.at = at


class _NoRows(Exception):
    """The rows of a whole document cannot be told."""


# ---- Recognition ----


def is_document(sample: Sequence[str], ending: str) -> bool:
    """Whether a file is one JSON document or several indented ones, and not one JSON object (or a text) on each line.

    Args:
        sample: the first lines of the file, without blank ones.
        ending: of its name, such as ``json``; ``""`` for a stream. With ``json`` or ``jsonl`` any array is a document;
            in other files it must begin like one with rows, because a text may begin with a bracket.
    """
    lines = [line.strip(" \t\r\n\ufeff") for line in sample]
    if not lines:
        return False
    first, second = lines[0], lines[1] if len(lines) > 1 else ""
    if first.startswith("["):
        pattern = _ARRAY if ending.lower() in ("json", "jsonl") else _ARRAY_OF_ROWS
        return pattern.match("\n".join(lines[:3])) is not None
    if not first.startswith("{"):
        return False
    if not second and _holds_rows(first.encode("utf-8", "surrogateescape")):
        return True
    if second and _is_object(first):
        return False
    if first.endswith(",") and _is_object(first[:-1]):
        return True
    # The beginning of an indented object, or a broken line? What the next line begins with can go on with it or not.
    if first.endswith(("[", ":")):
        return second.startswith(("{", "[", '"', "]"))
    return second.startswith(('"', "}") if first.endswith(("{", ",")) else (",", "}", "]"))


def _is_object(line: str) -> bool:
    return isinstance(json_row(line), dict)


def _holds_rows(data: bytes) -> bool:
    """Whether an object is a document of rows, and not one row. It may be long, so it is not parsed as a whole."""
    try:
        if _value_end(data, 0) != len(data):
            return False
        rows = list(islice(_rows_of_object(data, 0), 2))
    except _Broken:
        return False
    except _NoRows:
        return True  # reading it says what is wrong
    return len(rows) != 1 or rows[0][1] != data


# ---- Reading ----


def read_document(file: IO[bytes], encoding: str, name: Path | str) -> Iterator[NumberedRow]:
    """The rows of a document, each with the number of the line where it begins.

    The whole document is in memory as UTF-8, and its rows one at a time: as much as the file has bytes; in another
    encoding, and for a table by index, up to three times as much.

    Args:
        file: the file or stream, opened for bytes.
        encoding: a name that Python knows.
        name: of the file, for errors.

    Raises:
        InputError: a bracket or a quotation mark is never closed, the document has no rows or several lists of rows,
            or its columns do not fit together. Rows before the place may have come already.
    """
    data = _utf8(file, encoding, name)
    number, counted, row = 1, 0, None
    try:
        for start, line in _rows(data):
            number += data.count(b"\n", counted, start)
            counted = start
            row = _row(line)
            yield number, line, row
        if row is None:
            raise _NoRows("里面没有一行数据；请检查下载是否完整")
    except _Broken as error:
        before = data[data.rfind(b"\n", 0, error.at) + 1 : error.at]
        column = len(before.decode("utf-8", "replace")) + 1
        number = data.count(b"\n", 0, error.at) + 1
        raise InputError(f"{name}:{number}:{column}：{error}；请检查文件是否完整") from error
    except _NoRows as error:
        raise InputError(f"{name}：{error}") from error


def _utf8(file: IO[bytes], encoding: str, name: Path | str) -> bytes:
    """The content in UTF-8. Bytes that do not decode stay, so that their rows are rejected."""
    if encoding in ("utf-8", "utf-8-sig"):
        return file.read().removeprefix(codecs.BOM_UTF8)
    errors = "strict" if encoding.startswith("utf-16") else "surrogateescape"
    decoder, data = codecs.getincrementaldecoder(encoding)(errors), bytearray()
    try:
        while chunk := file.read(1 << 20):
            data += decoder.decode(chunk).encode("utf-8", "surrogateescape")
        data += decoder.decode(b"", final=True).encode("utf-8", "surrogateescape")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}：不是完整的 {encoding}（{error.reason}）；请另存为 UTF-8") from error
    return bytes(data)


def _rows(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Where each row begins, and the row as JSON."""
    start = _BLANK_AND_COMMAS.match(data).end()
    if data[start : start + 1] == b"[":
        yield from _whole(data, _members(data, start, is_root=True))
        return
    end = _value_end(data, start)
    if _BLANK_AND_COMMAS.match(data, end).end() == len(data):
        yield from _rows_of_object(data, start)
        return
    while start < len(data):
        end = _value_end(data, start)
        yield start, data[start:end]
        start = _BLANK_AND_COMMAS.match(data, end).end()


def _rows_of_object(data: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """The rows of a document that is one object; the object itself if it is a row."""
    members = {}
    for member in _members(data, start):
        name = _name(member)
        if name in members:
            return _itself(data, start)  # as a row with the same key twice, which will be rejected
        members[name] = member
    firsts = {name: data[member.start : member.start + 1] for name, member in members.items()}
    kinds = set(firsts.values())
    if firsts.get("columns") == firsts.get("data") == b"[":
        return _split_rows(data, members["columns"], members["data"])
    if kinds == {b"{"}:
        return _rows_of_objects(data, members) or _itself(data, start)
    usual = {name.strip().lower(): first for name, first in firsts.items()}
    if "annotations" in members and _PAIRS.match(data, members["annotations"].start):  # spaCy's, beside "classes"
        return _whole(data, _members(data, members["annotations"].start))
    if any(name in usual for name in _FIELDS_OF_A_ROW) or any(usual.get(name) == b'"' for name in TEXT_COLUMNS):
        return _itself(data, start)
    if kinds == {b"["} and _has_text_column(members):
        return _rows_of_columns(data, members)
    lists = [name for name, member in members.items() if _is_list_of_rows(data, member)]
    lists = [name for name in lists if not _EMPTY.match(data, members[name].start)] or lists[:1]
    if len(lists) > 1:
        raise _NoRows(f"有几个列表都像数据（{'、'.join(lists)[:80]}）；请把要用的一个单独存成文件")
    if not lists or lists[0].strip().lower() in ENTITY_COLUMNS:
        return _itself(data, start)
    return _whole(data, _members(data, members[lists[0]].start))


def _itself(data: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    yield start, data[start : _value_end(data, start)]


def _rows_of_objects(data: bytes, members: dict[str, _Member]) -> Iterator[tuple[int, bytes]] | None:
    """The rows of an object of objects, by index or by column. An only member that is neither is looked into."""
    first = next(iter(members.values()))
    inner = [_name(member) for member in _members(data, first.start)]
    outer_is_index, inner_is_index = all(map(str.isdigit, members)), all(map(str.isdigit, inner))
    if _has_text_column(inner) or (outer_is_index and not inner_is_index):
        return _whole(data, members.values())
    if _has_text_column(members) or (inner_is_index and not outer_is_index):
        return _rows_of_columns(data, members)
    if len(members) == 1 and inner:
        return _rows_of_object(data, first.start)
    return None


def _rows_of_columns(data: bytes, members: dict[str, _Member]) -> Iterator[tuple[int, bytes]]:
    """The rows of a table whose columns are lists, or objects by index; a row's place is that of its first cell."""
    columns = [_members(data, member.start) for member in members.values()]
    names = [member.key for member in members.values()]
    try:
        for cells in zip(*columns, strict=True):
            if len({cell.key for cell in cells}) > 1:
                raise _NoRows("各列的索引不一样；请用 pandas 的 to_json(orient='records') 另存")
            yield cells[0].start, _object(names, [data[cell.start : cell.end] for cell in cells])
    except ValueError as error:
        raise _NoRows("各列的行数不一样；请用 pandas 的 to_json(orient='records') 另存") from error


def _split_rows(data: bytes, columns: _Member, rows: _Member) -> Iterator[tuple[int, bytes]]:
    names = [data[name.start : name.end] for name in _members(data, columns.start)]
    for row in _members(data, rows.start):
        if data[row.start : row.start + 1] != b"[":
            raise _Broken(row.start, "这里应是一行的各列 [")
        cells = [data[cell.start : cell.end] for cell in _members(data, row.start)]
        if len(cells) != len(names):
            raise _Broken(row.start, f"这一行有 {len(cells)} 列，columns 有 {len(names)} 列")
        yield row.start, _object(names, cells)


def _object(names: list[bytes], cells: list[bytes]) -> bytes:
    return b"{" + b", ".join(name + b": " + cell for name, cell in zip(names, cells, strict=True)) + b"}"


def _whole(data: bytes, members: Iterable[_Member]) -> Iterator[tuple[int, bytes]]:
    return ((member.start, data[member.start : member.end]) for member in members)


def _name(member: _Member) -> str:
    try:
        return orjson.loads(member.key)
    except orjson.JSONDecodeError as error:
        raise _Broken(member.start, f"前面的键 {member.key[:40].decode('utf-8', 'replace')} 读不出来") from error


def _has_text_column(names: Sequence[str] | dict) -> bool:
    return any(name.strip().lower() in TEXT_COLUMNS for name in names)


def _is_list_of_rows(data: bytes, member: _Member) -> bool:
    """Whether a member is a list of objects, or of pairs that begin with a text; an empty list, too."""
    return re.compile(rb'\[\s*(\{|\[\s*"|\])').match(data, member.start) is not None


# ---- Rows ----


def _row(line: bytes) -> dict | RowError:
    return _spacy_row(line) if line.startswith(b"[") else json_row(line)


def _spacy_row(line: bytes) -> dict | RowError:
    """A pair of a text and its annotations, in the form that spaCy 2 is trained with."""
    members = list(_members(line, 0))
    if len(members) != 2 or not line.startswith((b'"', b"{"), members[0].start) or line[members[1].start] != ord("{"):
        return RowError("", '应是一个 JSON 对象，或 [文本, {"entities": [[起, 止, 标签]]}]')
    row = json_row(b'{"text": ' + line[members[0].start : members[0].end] + b"}")
    annotations = json_row(line[members[1].start : members[1].end])
    if isinstance(row, RowError) or isinstance(annotations, RowError):
        return row if isinstance(row, RowError) else annotations
    if "entities" not in annotations and type(annotations.get("cats")) is not dict:
        return RowError("entities", "缺少这个字段")
    if "entities" in annotations:
        row["entities"] = annotations["entities"]
    if type(annotations.get("cats")) is dict:
        labels = [label for label, value in annotations["cats"].items() if value and value >= 0.5]
        if len(labels) > 1:
            return RowError("label", f"有 {len(labels)} 个标签（{'、'.join(labels)[:60]}），是 multi-label（多标签）")
        row["label"] = labels[0] if labels else None
    return row


# ---- Brackets ----


def _members(data: bytes, start: int, *, is_root: bool = False) -> Iterator[_Member]:
    """The values in the array or object that begins at ``start``. A comma after the last one is allowed.

    Raises:
        _Broken: it is not closed, its values are not divided by commas, or something follows a root.
    """
    is_object = data[start : start + 1] == b"{"
    closing = b"}" if is_object else b"]"
    at = _BLANK.match(data, start + 1).end()
    while data[at : at + 1] != closing:
        if at == len(data):
            raise _Broken(start, f"从这里开始的 {data[start : start + 1].decode()} 没有结尾")
        key = None
        if is_object:
            if (found := _KEY.match(data, at)) is None:
                raise _Broken(at, '这里应是一个键，如 "text":')
            key, at = found[1], found.end()
        end = _value_end(data, at)
        yield _Member(key, at, end)
        at = _BLANK.match(data, end).end()
        if data[at : at + 1] == b",":
            at = _BLANK.match(data, at + 1).end()
        elif data[at : at + 1] not in (closing, b""):
            raise _Broken(at, f"这里应是逗号或 {closing.decode()}")
    if is_root and (rest := _BLANK_AND_COMMAS.match(data, at + 1).end()) < len(data):
        raise _Broken(rest, "整个数组之后还有内容")


def _value_end(data: bytes, start: int) -> int:
    """Where the value that begins at ``start`` ends.

    Raises:
        _Broken: there is no value, or its brackets or quotation marks do not match.
    """
    if data[start : start + 1] not in _PARTNERS:
        if (scalar := _SCALAR.match(data, start)) is None:
            raise _Broken(start, "这里应是一个值")
        return scalar.end()
    open_brackets: list[bytes] = []
    for token in _BRACKETS.finditer(data, start):
        bracket = token[0]
        if bracket in _PARTNERS:
            open_brackets.append(_PARTNERS[bracket])
        elif bracket == b'"':
            raise _Broken(token.start(), "从这里开始的引号没有结尾")
        elif len(bracket) == 1:
            if open_brackets.pop() != bracket:
                raise _Broken(token.start(), f"括号 {bracket.decode()} 对不上")
            if not open_brackets:
                return token.end()
    raise _Broken(start, f"从这里开始的 {data[start : start + 1].decode()} 没有结尾")
