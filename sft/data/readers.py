"""Read what people have into raw rows of the two original shapes, each with its line number.

Classification: ``{"text", "category"?, "output"}`` (zh_cls_fudan-news). NER: ``{"text", "entities": [{"start_idx",
"end_idx", "entity_text", "entity_label"}]}`` (CCFBDCI), ends exclusive, in code points. Rows are read one at a time;
a row that cannot be read comes as a ``RowError`` in its place. Nothing here imports torch.
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

from sft.errors import InputError, RowError
from sft.text import read_literal, shown

TAG = re.compile(r"O|[BIEMS][-_].+")
_MOST_SENTENCE_LINES = 100_000

Row = tuple[int, bytes | str, dict | RowError]  # line number from 1, the line as it stands, what it says


@dataclass(frozen=True)
class Source:
    """One input file and how it is to be read.

    Attributes:
        task: ``classification`` or ``ner``.
        format: fudan, jsonl, csv, tsv; ccfbdci, spans, doccano, cluener, conll.
        detail: what else was recognised, for the summary: the tag scheme of CoNLL, unquoted TSV.
        text_column, label_column: the names of the two columns or fields.
        options_column: where classification rows bring options of their own, ``""`` if they do not.
        ccfbdci_labels: nine of ten entities in the first rows of a CCFBDCI file have one of its four labels.
    """

    path: Path
    task: str
    format: str
    encoding: str
    detail: str = ""
    text_column: str = "text"
    label_column: str = "output"
    options_column: str = ""
    ccfbdci_labels: bool = False

    def describe(self) -> str:
        """Format and encoding, for the summary."""
        encoding = "UTF-8（有 BOM）" if self.encoding == "utf-8-sig" else self.encoding.upper()
        return f"{self.format}{f'（{self.detail}）' if self.detail else ''}，{encoding}"


def read_rows(source: Source) -> Iterator[Row]:
    """Every row of a file in the original shapes; blank lines are no rows.

    Raises:
        InputError: the file cannot be read to its end.
    """
    if source.format == "conll":
        rows = read_conll(source)
    elif source.format in ("csv", "tsv"):
        rows = read_csv(source)
    else:
        rows = _read_json_lines(source)
    as_they_are = source.format in ("fudan", "conll") or (
        source.format == "ccfbdci" and (source.text_column, source.label_column) == ("text", "entities")
    )
    if not as_they_are:
        rows = _in_original_shape(rows, source)
    try:
        yield from rows
    except UnicodeDecodeError as error:
        raise InputError(f"{source.path}：不是完整的 {source.encoding}（{error.reason}）；请另存为 UTF-8") from error
    except OSError as error:
        raise InputError(f"{source.path}：读到一半出错（{error.strerror}）") from error


def _in_original_shape(rows: Iterator[Row], source: Source) -> Iterator[Row]:
    for number, line, row in rows:
        if type(row) is dict:
            try:
                row = _entity_row(source, row) if source.task == "ner" else _label_row(source, row)
            except RowError as error:
                row = error
        yield number, line, row


def _label_row(source: Source, row: dict) -> dict:
    options = row.get(source.options_column) if source.options_column else None
    return {"text": row.get(source.text_column), "category": options, "output": row.get(source.label_column)}


def _entity_row(source: Source, row: dict) -> dict:
    """A CCFBDCI row from CLUENER's, doccano's or span notation; in a CSV, notation stands in the cell as a string."""
    text, value = row.get(source.text_column), row.get(source.label_column)
    if source.format in ("csv", "tsv"):
        value = entities_in_cell(value, source.label_column)
    return {"text": text, "entities": raw_entities(value, source.label_column) if type(text) is str else value}


def entities_in_cell(cell: str, column: str) -> object:
    """What a cell of a table has as entities; an empty one has none.

    Raises:
        RowError: it is neither JSON nor a Python literal.
    """
    try:
        return read_literal(cell) if cell.strip() else []
    except ValueError:
        raise RowError(column, "应是 JSON 或 Python 写法的实体列表") from None


def raw_entities(value: object, column: str) -> object:
    """Entities in any known notation as CCFBDCI has them; a value of a type that does not fit, as it is.

    Raises:
        RowError: an item in no known notation.
    """
    if type(value) is dict:
        return list(_cluener_entities(value, column))
    if type(value) is list:
        return [_span_entity(item, column) for item in value]
    return value  # the task will say so


def _span_entity(item: object, field: str) -> dict:
    if type(item) is dict:
        if "start_idx" in item:
            return item
        start, end = item.get("start", item.get("start_offset")), item.get("end", item.get("end_offset"))
        return {"start_idx": start, "end_idx": end, "entity_text": item.get("text"), "entity_label": item.get("label")}
    if type(item) in (list, tuple) and len(item) == 3:
        return {"start_idx": item[0], "end_idx": item[1], "entity_label": item[2]}
    raise RowError(field, f"认不出的实体 {shown(item)}；应如 [起, 止, 标签]")


def _cluener_entities(value: dict, field: str) -> Iterator[dict]:
    """CLUENER: ``{label: {surface: [[start, last], …]}}``, the last character included."""
    for label, surfaces in value.items():
        if type(surfaces) is not dict:
            raise RowError(field, f"{label} 应是 {{实体: [[起, 止]]}}，实际是 {shown(surfaces)}")
        for surface, places in surfaces.items():
            for place in places if type(places) is list else [None]:
                if type(place) is not list or len(place) != 2 or not all(type(edge) is int for edge in place):
                    raise RowError(field, f"{surface} 的位置应是 [[起, 止]]，实际是 {shown(places)}")
                start, last = place
                yield {"start_idx": start, "end_idx": last + 1, "entity_text": surface, "entity_label": label}


# ---- JSON lines ----


def _read_json_lines(source: Source) -> Iterator[Row]:
    loads = orjson.loads
    for number, line in _lines_of(source):
        try:
            row = loads(line)
        except orjson.JSONDecodeError as error:
            if not line.isspace():
                yield number, line, why_not_json(line, error)
            continue
        if type(row) is not dict:
            row = RowError("", f"应是一个 JSON 对象，实际是 {type(row).__name__}")
        elif line.count(b":" if type(line) is bytes else ":") != len(
            row
        ):  # nested, or colons in the text, or repeated
            row = repeated_key(line, row) or row
        yield number, line, row


def _lines_of(source: Source) -> Iterator[tuple[int, bytes | str]]:
    with source.path.open("rb", buffering=1 << 20) as file:
        yield from numbered_lines(file, source.encoding)


def numbered_lines(file: IO[bytes], encoding: str) -> Iterator[tuple[int, bytes | str]]:
    """Lines end at LF alone: U+2028 and its like may stand in a text. UTF-8 stays bytes, for orjson reads those.

    ``utf-8-sig`` takes a byte order mark off where there is one.
    """
    if encoding == "utf-16":
        yield from enumerate(io.TextIOWrapper(file, "utf-16", newline="\n", errors="surrogatepass"), start=1)
        return
    lines = enumerate(file, start=1)
    if encoding == "utf-8-sig":
        for number, line in islice(lines, 1):
            yield number, line.removeprefix(codecs.BOM_UTF8)
    for number, line in lines:
        if encoding == "gb18030":
            with suppress(UnicodeDecodeError):  # as bytes it goes on to be rejected
                line = line.decode("gb18030")
        yield number, line


def repeated_key(line: bytes | str, row: dict) -> RowError | None:
    """The error of a key that stands twice in one object with different values; orjson would keep the last."""
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
        return None  # orjson has read it; what only this parser dislikes is no fault of the row
    return RowError(repeated[0], "同一个键出现两次，值不相同") if repeated else None


def _key_count(row: dict) -> int:
    """How many keys a row has, two levels deep. Where the line shows another number it is worth a closer look."""
    count = len(row)
    for value in row.values():
        if type(value) is list:
            count += sum([len(item) for item in value if type(item) is dict])
        elif type(value) is dict:
            count += len(value) + sum([len(item) for item in value.values() if type(item) is dict])
    return count


def why_not_json(line: bytes | str, error: orjson.JSONDecodeError) -> RowError:
    """What is wrong with a line, by the slower parser that tells more."""
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


def csv_reader(lines: Iterator[str], format: str, detail: str) -> Iterator[list[str]]:
    """Cells of a CSV or TSV; with a ``detail`` its quotation marks are characters like any other."""
    csv.field_size_limit(1 << 30)
    quoting = csv.QUOTE_NONE if detail else csv.QUOTE_MINIMAL
    return csv.reader(lines, delimiter="\t" if format == "tsv" else ",", quoting=quoting, strict=True)


def read_csv(source: Source) -> Iterator[Row]:
    with source.path.open(encoding=source.encoding, newline="", errors="surrogateescape") as file:
        reader = csv_reader(file, source.format, source.detail)
        header = next(reader)
        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "end of data" in str(error):  # the rest of the file has become one cell: not a row to skip quietly
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
    """Whether no byte of the text was left undecoded ("surrogateescape")."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- CoNLL ----


def read_conll(source: Source) -> Iterator[Row]:
    """Sentences of one character (or token) and its tag a line, parted by blank lines."""
    with source.path.open(encoding=source.encoding, newline="\n", errors="surrogateescape") as file:
        numbered = enumerate(file, start=1)
        while sentence := list(islice(_sentence(numbered), _MOST_SENTENCE_LINES)):
            if len(sentence) == _MOST_SENTENCE_LINES:
                raise InputError(f"{source.path}:{sentence[0][0]}：一句话超过 {len(sentence)} 行；句子之间应有空行")
            try:
                row = _from_tags(sentence, source.detail)
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
    """First and last column; a line that begins with a blank has the blank itself as its character."""
    columns = line.rstrip(" \t\r\n").split("\t" if "\t" in line else " ")
    return (columns[0] or " ", columns[-1]) if len(columns) > 1 else (columns[0], "")


def _from_tags(sentence: list[tuple[int, str]], scheme: str) -> dict:
    """A CCFBDCI row from a sentence's lines.

    In BIO an ``I-`` that continues nothing begins an entity, as conlleval and seqeval read it. In BIOES and BMES a
    broken transition is an error: those tags say where an entity ends, and a guess would invent a boundary.

    Raises:
        RowError: a tag that is none of the scheme's, or a broken transition.
    """
    text, spans, strict = "", [], scheme != "BIO"  # spans: [start, end, label]
    inside = False  # the last span goes on
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
