"""Read a recognised file row by row, each row with its line number. Imports no torch.

A row that cannot be read comes as a `RowError` in its place.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

import orjson

from sft.data.shapes import entities_in_cell, raw_entities
from sft.errors import InputError, RowError

TABLES = ("csv", "tsv")
TAG = re.compile(r"O|[BIEMS][-_].+")
_MOST_SENTENCE_LINES = 100_000

NumberedRow = tuple[int, bytes | str, dict | RowError]  # line number from 1, the line in the file, what it says


@dataclass(frozen=True)
class Source:
    """One input file and how to read it; `sft.data.formats.recognise` makes it.

    Attributes:
        answers: what the task's answers are, ``label`` or ``entities``; None for rows to predict, which are read as
            they are.
        format: csv, tsv; fudan, jsonl (labels); ccfbdci, spans, doccano, cluener, conll (entities). Rows to predict:
            csv, tsv, conll, jsonl, or lines, each a text or a JSON object.
        encoding: a name that Python knows.
        quoted: whether quotation marks in a table enclose cells; if not, they are ordinary characters.
        tag_scheme: of CoNLL: BIO, BIOES or BMES.
        text_column, label_column: the names of the two columns or JSON fields.
        options_column: the column with a classification row's own options; ``""`` if there is none.
        ccfbdci_labels: whether nine of ten entities in the first rows of a CCFBDCI file have one of its four labels.
    """

    path: Path
    answers: str | None
    format: str
    encoding: str
    quoted: bool = True
    tag_scheme: str = ""
    text_column: str = "text"
    label_column: str = "output"
    options_column: str = ""
    ccfbdci_labels: bool = False

    def describe(self) -> str:
        """Format and encoding, for the summary."""
        detail = self.tag_scheme or ("" if self.quoted else "引号按原文")
        encoding = "UTF-8（有 BOM）" if self.encoding == "utf-8-sig" else self.encoding.upper()
        return f"{self.format}{f'（{detail}）' if detail else ''}，{encoding}"


def read_rows(source: Source) -> Iterator[NumberedRow]:
    """Every row of a file in the task's original shape (see `sft.data.shapes`). Blank lines are skipped.

    Raises:
        InputError: the file cannot be read to its end.
    """
    rows = rows_as_written(source)
    in_shape = source.format in ("fudan", "conll") or (
        source.format == "ccfbdci" and (source.text_column, source.label_column) == ("text", "entities")
    )
    try:
        yield from rows if in_shape else _shape_rows(rows, source)
    except UnicodeDecodeError as error:
        raise InputError(f"{source.path}：不是完整的 {source.encoding}（{error.reason}）；请另存为 UTF-8") from error
    except OSError as error:
        raise InputError(f"{source.path}：读到一半出错（{error.strerror}）") from error


def rows_as_written(source: Source) -> Iterator[NumberedRow]:
    """Every row of a file with the columns it has; those of CoNLL in CCFBDCI's shape. Blank lines are skipped.

    Raises:
        InputError: a quotation mark is never closed, or a CoNLL sentence never ends.
        UnicodeDecodeError: a UTF-16 file ends inside a character.
        OSError: the file cannot be read to its end.
    """
    if source.format == "conll":
        return _read_conll(source)
    if source.format in TABLES:
        return _read_table(source)
    return _read_lines(source)


def _shape_rows(rows: Iterator[NumberedRow], source: Source) -> Iterator[NumberedRow]:
    shape = _entity_row if source.answers == "entities" else _label_row
    for number, line, row in rows:
        if type(row) is dict:
            try:
                row = shape(source, row)
            except RowError as error:
                row = error
        yield number, line, row


def _label_row(source: Source, row: dict) -> dict:
    options = row.get(source.options_column) if source.options_column else None
    return {"text": row.get(source.text_column), "category": options, "output": row.get(source.label_column)}


def _entity_row(source: Source, row: dict) -> dict:
    text, value = row.get(source.text_column), row.get(source.label_column)
    if source.format in TABLES:
        value = entities_in_cell(value, source.label_column)
    return {"text": text, "entities": raw_entities(value, source.label_column) if type(text) is str else value}


# ---- Lines ----


def _read_lines(source: Source) -> Iterator[NumberedRow]:
    read = text_row if source.format == "lines" else json_row
    with source.path.open("rb", buffering=1 << 20) as file:
        for number, line in numbered_lines(file, source.encoding):
            if not line.isspace():
                yield number, line, read(line)


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
    """The JSON object on a line."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return _why_not_json(line, error)
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
        return None  # orjson has read the row, so it is valid
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


def _why_not_json(line: bytes | str, error: orjson.JSONDecodeError) -> RowError:
    """What is wrong with a line, from Python's slower parser, which says more than orjson."""
    if isinstance(line, bytes):
        try:
            line = line.decode("utf-8")
        except UnicodeDecodeError as undecodable:
            return RowError("", f"第 {undecodable.start + 1} 个字节解不开（文件若是 GBK，请加 --encoding gb18030）")
    try:
        row = json.loads(line, parse_constant=_refuse_constant)
    except json.JSONDecodeError as precise:
        return RowError("", f"不是合法的 JSON（第 {precise.pos + 1} 个字符：{precise.msg}）")
    except ValueError as precise:
        return RowError("", f"不是合法的 JSON（{precise}）")
    except RecursionError:
        return RowError("", "JSON 嵌套太深")
    for field, value in row.items() if type(row) is dict else [("", row)]:
        if type(value) is str and re.search("[\ud800-\udfff]", value):
            return RowError(field, "含有不成对的代理字符（如 \\ud800），不是合法的 Unicode")
    return RowError("", f"不是合法的 JSON（{error.msg}）")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} 不是 JSON 的数")


# ---- CSV and TSV ----


def csv_reader(lines: Iterator[str], source: Source) -> Iterator[list[str]]:
    """The cells of each row of a CSV or TSV."""
    csv.field_size_limit(1 << 30)
    quoting = csv.QUOTE_MINIMAL if source.quoted else csv.QUOTE_NONE
    return csv.reader(lines, delimiter="\t" if source.format == "tsv" else ",", quoting=quoting, strict=True)


def _read_table(source: Source) -> Iterator[NumberedRow]:
    with source.path.open(encoding=source.encoding, newline="", errors="surrogateescape") as file:
        reader = csv_reader(file, source)
        header = next(reader)
        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "end of data" in str(error):  # the rest of the file is in this cell: too much to skip as one row
                    raise InputError(f"{source.path}:{number}：引号没有闭合，一直到文件末尾；请补上引号") from error
                yield number, "", RowError("", f"不是合法的 CSV（{error}）")
                continue
            line = ",".join(cells)
            if not _is_decoded(line):
                yield number, line, RowError("", "有解不开的字节（文件若是 GBK，请加 --encoding gb18030）")
            elif len(cells) == len(header):
                yield number, line, dict(zip(header, cells, strict=True))
            elif cells:
                yield number, line, RowError("", f"有 {len(cells)} 列，表头有 {len(header)} 列")


def _is_decoded(text: str) -> bool:
    """Whether every byte of the text was decoded ("surrogateescape" turns the others into lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- CoNLL ----


def _read_conll(source: Source) -> Iterator[NumberedRow]:
    """Sentences with one character (or token) and its tag on each line; blank lines separate sentences."""
    with source.path.open(encoding=source.encoding, newline="\n", errors="surrogateescape") as file:
        numbered = enumerate(file, start=1)
        while sentence := list(islice(_sentence(numbered), _MOST_SENTENCE_LINES)):
            if len(sentence) == _MOST_SENTENCE_LINES:
                raise InputError(f"{source.path}:{sentence[0][0]}：一句话超过 {len(sentence)} 行；句子之间应有空行")
            try:
                row = _from_tags(sentence, source.tag_scheme)
            except RowError as error:
                row = error
            yield sentence[0][0], "".join(line for _, line in sentence), row


def _sentence(numbered: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """The lines of the next sentence; none at the end of the file."""
    begun = False
    for number, line in numbered:
        if line.strip(" \t\r\n") and not line.startswith("-DOCSTART-"):
            begun = True
            yield number, line
        elif begun:
            return


def split_tag(line: str) -> tuple[str, str]:
    """The first and the last column of a line. If the line begins with a blank, its character is that blank."""
    columns = line.rstrip(" \t\r\n").split("\t" if "\t" in line else " ")
    return (columns[0] or " ", columns[-1]) if len(columns) > 1 else (columns[0], "")


def _from_tags(sentence: list[tuple[int, str]], scheme: str) -> dict:
    """The row of a sentence, in CCFBDCI's shape.

    In BIO an ``I-`` that continues no entity begins one, as conlleval and seqeval do. BIOES and BMES mark the end of
    an entity, so there such a tag is an error: to guess would be to invent a boundary.

    Raises:
        RowError: a tag is not of the scheme, or cannot follow the one before it.
    """
    text, spans, strict = "", [], scheme != "BIO"  # spans: [start, end, label]
    inside = False  # whether the last span may go on
    for number, line in sentence:
        token, tag = split_tag(line)
        if not _is_decoded(line):
            raise RowError("", f"第 {number} 行有解不开的字节（文件若是 GBK，请加 --encoding gb18030）")
        if not TAG.fullmatch(tag) or (tag[0] in "EMS" and not strict):
            raise RowError("tag", f"第 {number} 行的标记 {tag!r} 不属于 {scheme}")
        prefix, label = tag[0], tag[2:]
        goes_on = inside and prefix in "IME" and label == spans[-1][2]
        if strict and not goes_on and (inside or prefix in "IME"):
            raise RowError("tag", f"第 {number} 行的标记 {tag!r} 接不上前一行")
        if goes_on:
            spans[-1][1] += len(token)
        elif prefix != "O":
            spans.append([len(text), len(text) + len(token), label])
        text += token
        inside = prefix in "BIM"
    if strict and inside:
        raise RowError("tag", f"第 {sentence[-1][0]} 行：句子结束了，实体 {spans[-1][2]} 还没有结束")
    entities = [
        {"start_idx": start, "end_idx": end, "entity_text": text[start:end], "entity_label": label}
        for start, end, label in spans
    ]
    return {"text": text, "entities": entities}
