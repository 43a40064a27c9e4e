"""Which format a raw file has: by its name, its first lines, and its columns. Nothing here imports torch."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import orjson

from sft.data.readers import TAG, Source, csv_reader, split_tag
from sft.errors import InputError
from sft.tasks.ner import CCFBDCI_LABELS
from sft.text import detect_encoding

TEXT_COLUMNS = ("text", "content", "sentence", "文本", "内容", "正文", "句子")
LABEL_COLUMNS = ("output", "label", "category", "class", "标签", "类别", "分类")
ENTITY_COLUMNS = ("entities", "label", "labels", "实体", "标签")
_SAMPLE_CHARACTERS = 1 << 20


def classification_source(
    path: Path,
    *,
    format: str = "auto",
    encoding: str = "auto",
    text_column: str | None = None,
    label_column: str | None = None,
) -> Source:
    """How to read a classification file.

    Raises:
        InputError: it cannot be read, is in no known format, or its columns cannot be told.
    """
    encoding = file_encoding(path, encoding)
    sample = sample_lines(path, encoding)
    if format == "auto":
        format = _delimited(path, sample) or "jsonl"
    delimited = format in ("csv", "tsv")
    detail = "引号按原文" if format == "tsv" and not is_quoted(sample) else ""
    columns = csv_header(path, sample, format, detail) if delimited else _fields(path, sample)
    columns = columns or ["text", "category", "output"]  # no line is JSON: each will be rejected with its reason

    text_column = find_column(path, columns, text_column, TEXT_COLUMNS, "--text_column", "文本")
    # In fudan's rows `category` is the list of options; elsewhere it is the label.
    label_names = ("output",) if {"category", "output"} <= set(columns) else LABEL_COLUMNS
    label_column = find_column(path, columns, label_column, label_names, "--label_column", "标签")
    options_column = "options" if "options" in columns else ""
    if "category" in columns and label_column == "output":
        options_column = "category"
    if not delimited and (text_column, label_column, options_column) == ("text", "output", "category"):
        format = "fudan"
    elif format == "fudan":
        format = "jsonl"
    return Source(path, "classification", format, encoding, detail, text_column, label_column, options_column)


def ner_source(
    path: Path,
    *,
    format: str = "auto",
    encoding: str = "auto",
    text_column: str | None = None,
    label_column: str | None = None,
) -> Source:
    """How to read a NER file.

    Raises:
        InputError: it cannot be read, is in no known format, or its columns cannot be told.
    """
    encoding = file_encoding(path, encoding)
    sample = sample_lines(path, encoding)
    if format == "conll" or (format == "auto" and is_tagged(path, sample)):
        return Source(path, "ner", "conll", encoding, tag_scheme(sample))
    if format == "auto":
        format = _delimited(path, sample) or "auto"
    delimited = format in ("csv", "tsv")
    detail = "引号按原文" if format == "tsv" and not is_quoted(sample) else ""
    columns = csv_header(path, sample, format, detail) if delimited else _fields(path, sample)
    columns = columns or ["text", "entities"]  # no line is JSON: each will be rejected with its reason

    text_column = find_column(path, columns, text_column, TEXT_COLUMNS, "--text_column", "文本")
    label_column = find_column(path, columns, label_column, ENTITY_COLUMNS, "--label_column", "实体")
    if format == "auto":
        format = _entity_notation(sample, label_column)
    four = format == "ccfbdci" and _has_ccfbdci_labels(sample)
    return Source(path, "ner", format, encoding, detail, text_column, label_column, ccfbdci_labels=four)


def file_encoding(path: Path, encoding: str) -> str:
    try:
        if path.is_dir():
            raise InputError(f"{path}：是一个目录；请给出其中的文件，如 {path / 'train.jsonl'}")
        if path.exists() and not path.is_file():
            raise InputError(f"{path}：不是普通文件；请先把数据存成文件")
        return detect_encoding(path, encoding)
    except FileNotFoundError as error:
        raise InputError(f"{path}：没有这个文件；请检查路径") from error
    except OSError as error:
        raise InputError(f"{path}：无法读取（{error.strerror}）") from error


def sample_lines(path: Path, encoding: str) -> list[str]:
    """The first lines that are not blank, about a megabyte of them, as far as they decode.

    Raises:
        InputError: there are none; a file may hold a byte order mark and nothing else.
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


def _delimited(path: Path, sample: list[str]) -> str | None:
    """``csv`` or ``tsv`` by the file's name, else by its first line; None when that line begins like JSON."""
    ending = path.suffix.lower()[1:]
    first = sample[0].strip()
    if ending in ("csv", "tsv"):
        return ending
    if first.startswith("[") or first == "{":
        raise InputError(f"{path}:1：需要每行一个 JSON 对象；可以这样转换：jq -c '.[]?' {path} > 新文件.jsonl")
    if first.startswith("{") or ending in ("json", "jsonl"):
        return None
    if "\t" in first or "," in first:
        return "tsv" if "\t" in first else "csv"
    raise InputError(f"{path}:1：认不出格式（第一行是 {first[:40]!r}）；请用 --format 指明")


def is_quoted(sample: list[str]) -> bool:
    """Whether a TSV uses CSV's quoting. Many do not, and have quotation marks in their texts."""
    widths = {line.count("\t") for line in sample}
    try:
        return len(widths) > 1 or {len(cells) - 1 for cells in csv.reader(sample, "excel-tab", strict=True)} == widths
    except csv.Error:
        return False


def csv_header(path: Path, sample: list[str], format: str, detail: str) -> list[str]:
    try:
        header = next(csv_reader(iter(sample), format, detail), [])
    except csv.Error as error:
        raise InputError(f"{path}:1：表头读不出来（{error}）；请检查引号") from error
    if len(set(header)) < len(header):
        raise InputError(f"{path}:1：表头有重名的列（{'、'.join(header)}）；请改成不同的名字")
    return header


def _fields(path: Path, sample: list[str]) -> list[str]:
    """The fields that most of the first rows have."""
    fields = Counter(tuple(row) for row in _sample_objects(sample))
    return list(fields.most_common(1)[0][0]) if fields else []


def _sample_objects(sample: Iterable[str]) -> Iterator[dict]:
    for line in sample:
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue  # it will be rejected when it is read
        if type(row) is dict:
            yield row


def find_column(
    path: Path, columns: Sequence[str], chosen: str | None, names: tuple[str, ...], flag: str, what: str
) -> str:
    """The one column that is ``chosen``, or that has one of the usual names."""
    found = [column for column in columns if column == chosen or (not chosen and column.strip().lower() in names)]
    if len(found) == 1:
        return found[0]
    listed = "、".join(columns[:20])
    if chosen:
        raise InputError(f"{path}:1：没有 {flag} 给出的列 {chosen!r}；有的列是 {listed}")
    problem = f"有几列都像{what}（{'、'.join(found)}）" if found else f"认不出哪一列是{what}（有 {listed[:200]!r}）"
    raise InputError(f"{path}:1：{problem}；请用 {flag} 指明")


def _entity_notation(sample: list[str], column: str) -> str:
    for row in _sample_objects(sample):
        value = row.get(column)
        if type(value) is dict:
            return "cluener"
        if type(value) is list and value:
            if type(value[0]) is not dict:
                return "doccano"
            return "ccfbdci" if "start_idx" in value[0] else "spans"
    return "ccfbdci"


def _has_ccfbdci_labels(sample: list[str]) -> bool:
    """A mistyped label must not turn the four into a set of raw ones, hence nine of ten."""
    labels = []
    for row in _sample_objects(sample):
        entities = row.get("entities")
        items = entities if type(entities) is list else ()
        labels += [str(item.get("entity_label")) for item in items if type(item) is dict]
    return sum(label.strip() in CCFBDCI_LABELS for label in labels) >= 0.9 * len(labels)


def is_tagged(path: Path, sample: list[str]) -> bool:
    """Whether nine of ten of the first lines end in a BIO, BIOES or BMES tag."""
    lines = sample[:200]
    tagged = sum(bool(TAG.fullmatch(split_tag(line)[1])) for line in lines)
    return path.suffix.lower() not in (".csv", ".tsv") and tagged > 0.9 * len(lines)


def tag_scheme(sample: list[str]) -> str:
    prefixes = {split_tag(line)[1][:1] for line in sample}
    if "M" in prefixes:
        return "BMES"
    return "BIOES" if prefixes & {"E", "S"} else "BIO"
