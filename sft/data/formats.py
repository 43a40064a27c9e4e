"""Recognise a person's file: its encoding, format and columns. Imports no torch.

`recognise` is the only entrance, for conversion and for prediction alike. To add a format, add a step to `_format_of`,
add its columns in `recognise`, and its reader in `sft.data.readers`.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import orjson

from sft.data.arguments import ReadOptions
from sft.data.encodings import file_encoding
from sft.data.shapes import ENTITY_COLUMNS, LABEL_COLUMNS, TEXT_COLUMNS
from sft.data.source import TABLES, Source
from sft.data.tables import csv_reader
from sft.data.tagged import TAG, split_tag
from sft.errors import InputError
from sft.tasks.ner import CCFBDCI_LABELS

JSON_ENDINGS = ("json", "jsonl")
_SAMPLE_CHARACTERS = 1 << 20
_TAGGED_SAMPLE_LINES = 200


def recognise(path: Path, answers: str | None, options: ReadOptions | None = None) -> Source:
    """How to read a file.

    Args:
        answers: what the task's answers are, ``label`` or ``entities`` (``task.answers``). None for rows to predict:
            they need no gold, and a file in no known format has one text on each line.
        options: what the user says about the file.

    Raises:
        InputError: the file cannot be read, is in no known format, or its columns cannot be recognised.
    """
    options = options or ReadOptions()
    encoding = file_encoding(path, options.encoding)
    sample = _sample_lines(path, encoding)
    format = options.format if options.format != "auto" else _format_of(path, sample, answers)
    source = Source(path, answers, format, encoding)
    if format == "conll":
        return replace(source, tag_scheme=_tag_scheme(sample))
    if format == "tsv":
        source = replace(source, quoted=_is_quoted(sample))
    columns = _header(source, sample) if format in TABLES else _common_fields(sample)
    if answers == "label":
        return _with_label_columns(source, columns, options)
    if answers == "entities":
        return _with_entity_columns(source, columns, options, sample)
    if format in TABLES:  # other rows to predict may each have fields of their own
        _check_text_column(source, columns, options)
    return source


def _sample_lines(path: Path, encoding: str) -> list[str]:
    """About a million characters of the first lines that are not blank. Bytes that do not decode are replaced.

    Raises:
        InputError: there is no such line; the file may hold only a byte order mark.
    """
    lines, size = [], 0
    with path.open(encoding=encoding, newline="\n", errors="replace") as file:
        for line in file:
            if line.strip(" \t\r\n"):
                lines.append(line)
            size += len(line)
            if size > _SAMPLE_CHARACTERS:
                break
    if not lines:
        raise InputError(f"{path}：文件是空的；请检查下载是否完整")
    return lines


# ---- Format ----


def _format_of(path: Path, sample: list[str], answers: str | None) -> str:
    """The format by the first step that fits: csv, tsv, conll, jsonl, or lines (of rows to predict).

    ``jsonl`` is any JSON lines; their columns show which kind.

    Raises:
        InputError: no step fits, or the whole file is one JSON document.
    """
    ending = path.suffix.lower()[1:]
    first = sample[0].strip()
    if ending in TABLES:
        return ending
    if _is_conll(sample, answers):
        return "conll"
    if _is_json_document(first, ending, answers):
        raise InputError(f"{path}:1：需要每行一个 JSON 对象；可以这样转换：jq -c '.[]?' {path} > 新文件.jsonl")
    if ending in JSON_ENDINGS:
        return "jsonl"
    if answers is None:
        return "lines"
    if first.startswith("{"):
        return "jsonl"
    if "\t" in first:
        return "tsv"
    if "," in first:
        return "csv"
    raise InputError(f"{path}:1：认不出格式（第一行是 {first[:40]!r}）；请用 --format 指明")


def _is_conll(sample: list[str], answers: str | None) -> bool:
    """Whether more than nine of ten of the first lines end in a BIO, BIOES or BMES tag."""
    if answers == "label":
        return False
    lines = sample[:_TAGGED_SAMPLE_LINES]
    tagged = sum(bool(TAG.fullmatch(split_tag(line)[1])) for line in lines)
    if tagged <= 0.9 * len(lines):
        return False
    if answers is None:  # one text alone may end in " O" or " B-12", and several texts in " O"
        return len(sample) > 1 and any(split_tag(line)[1] != "O" for line in sample)
    return True


def _is_json_document(first: str, ending: str, answers: str | None) -> bool:
    """Whether the file is one JSON document: an array, or an object on several lines."""
    if answers is None:  # a text to predict may begin with a bracket
        return ending in JSON_ENDINGS and first[:2] in ("[", "[{", "{")
    return first.startswith("[") or first == "{"


def _tag_scheme(sample: list[str]) -> str:
    prefixes = {split_tag(line)[1][:1] for line in sample}
    if "M" in prefixes:
        return "BMES"
    return "BIOES" if prefixes & {"E", "S"} else "BIO"


def _is_quoted(sample: list[str]) -> bool:
    """Whether a TSV uses CSV's quoting. Many do not, and have quotation marks in their texts."""
    widths = {line.count("\t") for line in sample}
    try:
        return len(widths) > 1 or {len(cells) - 1 for cells in csv.reader(sample, "excel-tab", strict=True)} == widths
    except csv.Error:
        return False


# ---- Columns ----


def _header(source: Source, sample: list[str]) -> list[str]:
    """The columns of a table."""
    try:
        header = next(csv_reader(iter(sample), source), [])
    except csv.Error as error:
        raise InputError(f"{source.path}:1：表头读不出来（{error}）；请检查引号") from error
    if len(set(header)) < len(header):
        raise InputError(f"{source.path}:1：表头有重名的列（{'、'.join(header)}）；请改成不同的名字")
    return header


def _common_fields(sample: list[str]) -> list[str]:
    """The JSON fields that most of the first rows have; none if no line is a JSON object."""
    fields = Counter(tuple(row) for row in _json_objects(sample))
    return list(fields.most_common(1)[0][0]) if fields else []


def _json_objects(sample: Iterable[str]) -> Iterator[dict]:
    for line in sample:
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue  # the reader will reject it
        if type(row) is dict:
            yield row


def _with_label_columns(source: Source, columns: Sequence[str], options: ReadOptions) -> Source:
    columns = columns or ["text", "category", "output"]  # no line is JSON: the reader will reject each with its reason
    text_column = _find_column(source.path, columns, options.text_column, TEXT_COLUMNS, "--text_column", "文本")
    # In fudan's rows `category` is the list of options; elsewhere it is the label.
    label_names = ("output",) if {"category", "output"} <= set(columns) else LABEL_COLUMNS
    label_column = _find_column(source.path, columns, options.label_column, label_names, "--label_column", "标签")
    options_column = "options" if "options" in columns else ""
    if "category" in columns and label_column == "output":
        options_column = "category"
    format = source.format
    if format not in TABLES:
        is_fudan = (text_column, label_column, options_column) == ("text", "output", "category")
        format = "fudan" if is_fudan else "jsonl"
    return replace(
        source, format=format, text_column=text_column, label_column=label_column, options_column=options_column
    )


def _with_entity_columns(source: Source, columns: Sequence[str], options: ReadOptions, sample: list[str]) -> Source:
    columns = columns or ["text", "entities"]  # no line is JSON: the reader will reject each with its reason
    text_column = _find_column(source.path, columns, options.text_column, TEXT_COLUMNS, "--text_column", "文本")
    label_column = _find_column(source.path, columns, options.label_column, ENTITY_COLUMNS, "--label_column", "实体")
    format = _entity_notation(sample, label_column) if source.format == "jsonl" else source.format
    four = format == "ccfbdci" and _has_ccfbdci_labels(sample)
    return replace(source, format=format, text_column=text_column, label_column=label_column, ccfbdci_labels=four)


def _check_text_column(source: Source, columns: Sequence[str], options: ReadOptions) -> None:
    names = ("text",) if "text" in columns else TEXT_COLUMNS  # gold is optional, so other columns may have any name
    _find_column(source.path, columns, options.text_column, names, "--text_column", "文本")


def _find_column(
    path: Path, columns: Sequence[str], chosen: str | None, names: tuple[str, ...], flag: str, what: str
) -> str:
    """The one column that is ``chosen``, or without a choice the one that has one of the usual ``names``.

    Raises:
        InputError: there is no such column, or more than one.
    """
    found = [column for column in columns if column == chosen or (not chosen and column.strip().lower() in names)]
    if len(found) == 1:
        return found[0]
    listed = "、".join(columns[:20])
    if chosen:
        raise InputError(f"{path}:1：没有 {flag} 给出的列 {chosen!r}；有的列是 {listed}")
    problem = f"有几列都像{what}（{'、'.join(found)}）" if found else f"认不出哪一列是{what}（有 {listed[:200]!r}）"
    raise InputError(f"{path}:1：{problem}；请用 {flag} 指明")


def _entity_notation(sample: list[str], column: str) -> str:
    """ccfbdci, spans, doccano or cluener, by the first row that has entities."""
    for row in _json_objects(sample):
        value = row.get(column)
        if type(value) is dict:
            return "cluener"
        if type(value) is list and value:
            if type(value[0]) is not dict:
                return "doccano"
            return "ccfbdci" if "start_idx" in value[0] else "spans"
    return "ccfbdci"


def _has_ccfbdci_labels(sample: list[str]) -> bool:
    """Whether the labels are CCFBDCI's four. Requires 90 %, so that one mistyped label does not switch label sets."""
    labels = []
    for row in _json_objects(sample):
        entities = row.get("entities")
        items = entities if type(entities) is list else ()
        labels += [str(item.get("entity_label")) for item in items if type(item) is dict]
    return sum(label.strip() in CCFBDCI_LABELS for label in labels) >= 0.9 * len(labels)
