"""Files that are not what a reader would take them for: the question or the advice for the user. Imports no torch.

A page of HTML saved as data, a table whose header is not its first line, a table among texts to predict: each of them
could be read, and wrongly. `sft.data.formats` asks here before it decides.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence

from sft.data.json_rows import json_row
from sft.data.tables import HEADER_LINES, has_text_name, is_data, looks_like_labels, text_and_label
from sft.data.tagged_layout import tagging_of
from sft.data.tagging import token_and_tag

_FOREIGN = (  # how a file begins, and what it is
    (
        re.compile(r"version https://git-lfs\.github\.com/spec/"),
        "是 Git LFS 的指针，不是数据；请用 git lfs pull 下载真正的文件",
    ),
    (re.compile(r"<!doctype html|<html\b", re.IGNORECASE), "是网页，不是数据；多半是下载地址不对，请重新下载"),
    (re.compile(r"#FORMAT=WebAnno"), "是 WebAnno（INCEpTION）的 TSV，这里不认；请在那边导出成 CoNLL 2002"),
)
_MARKDOWN_RULE = re.compile(r"\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)+\|?\s*")
_TAG = re.compile(r"[OoBIEMS]|[BIEMSLU][-_]\S+")
_TAG_COLUMN = "像带标记的文件（每行一个字和它的标记），列之间却不是空格或制表符；请换过来，句子之间空一行，存成 .conll"
_OTHER_DELIMITERS = (",", ";", "|", "\x01")
_LINES_FORMAT = "每行是一段文本请加 --format lines"


def foreign(first_line: str) -> str:
    """What a file is that begins with this line, if it is no data; else ``""``."""
    return next((what for begins, what in _FOREIGN if begins.match(first_line)), "")


def table_problem(sample: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Why a file must not be read as a table with its header or data in the first row; ``""`` if it may be.

    Args:
        sample: the first lines of the file, without blank ones; may be empty.
        rows: the cells of the first rows.
    """
    if len(sample) > 1 and "|" in sample[0] and _MARKDOWN_RULE.fullmatch(sample[1].rstrip("\r\n")):
        return "像 Markdown 的表格；请另存为 CSV"
    if sample and isinstance(json_row(sample[0]), dict):
        return "是 JSON，不是表格；请去掉 --format，或把文件名改成 .jsonl"
    if has_tag_column(rows):
        return _TAG_COLUMN
    if header := header_below(rows):
        return f"第 1 行不像表头，后面的一行（{'、'.join(header)[:80]}）才像；请删掉它上面的行"
    return ""


def header_below(rows: Sequence[Sequence[str]]) -> Sequence[str] | None:
    """The row below the first that looks like the header, while the first does not; None if there is none."""
    if not rows or has_text_name(rows[0]):
        return None
    return next(
        (row for row in rows[1:HEADER_LINES] if len(row) > 1 and has_text_name(row) and not is_data(row, [row])), None
    )


def has_tag_column(rows: Sequence[Sequence[str]]) -> bool:
    """Whether nearly all cells of a column are tags such as ``B-LOC`` and ``O``."""
    for column in range(max(map(len, rows), default=0)):
        cells = [cell for row in rows if len(row) > column and (cell := row[column].strip())]
        tags = sum(_TAG.fullmatch(cell) is not None for cell in cells)
        begins = sum(cell[:1] in "BS" and len(cell) > 2 for cell in cells)
        if len(cells) >= 3 and begins and tags >= 0.9 * (len(cells) - 1):
            return True
    return False


def doubt_about_texts(sample: Sequence[str]) -> str:
    """What lines to predict could be besides texts, as a question to the user; ``""`` if nothing else.

    Args:
        sample: the first lines of the file, without blank ones.
    """
    lines = [line for line in sample if line[0] not in "#{"]  # neither comments nor JSON
    if len(lines) < 2:
        return ""
    if has_text_name([lines[0].strip()]):
        return f"第 1 行 {lines[0].strip()!r} 像表头；是表格请加 --format tsv，{_LINES_FORMAT}"
    tabs, count = Counter(line.count("\t") for line in lines).most_common(1)[0]
    if tabs and count >= 0.8 * len(lines):
        return f"每行都有 {tabs} 个制表符，像是没有表头的表格；是表格请加 --format tsv，{_LINES_FORMAT}"
    if _are_mostly_tagged(lines):
        return f"很多行像“字 标记”；是带标记的文件请加 --format conll，{_LINES_FORMAT}"
    for delimiter in _OTHER_DELIMITERS:
        rows = _cells(lines, delimiter)
        if has_tag_column(rows):
            return _TAG_COLUMN
        if _is_table_without_header(rows):
            return f"每行都有 {delimiter!r}，像是没有表头的表格；是表格请加 --format csv，{_LINES_FORMAT}"
    return ""


def _are_mostly_tagged(lines: Sequence[str]) -> bool:
    if len(lines) < 5 or (tagging := tagging_of(lines, told=True)) is None or tagging.sentence_a_line:
        return False
    roles = [tagging.read_tag(token_and_tag(line, tagging)[1]) for line in lines]
    short = sum(len(line.split()[0]) <= 2 for line in lines if line.split())
    return any(role and role[0] != "O" for role in roles) and short >= 0.5 * len(lines)


def _cells(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    """The cells of lines that all have the delimiter, equally often; else none."""
    try:
        rows = list(csv.reader([line.rstrip("\r\n").replace("\0", "") for line in lines], delimiter=delimiter))
    except csv.Error:  # a carriage return inside a line, or a text longer than a cell can be: no table
        return []
    return rows if len(rows[0]) > 1 and all(len(row) == len(rows[0]) for row in rows) else []


def _is_table_without_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether one column is much longer than the others, and another has a few values again and again."""
    if len(rows) < 4 or (text := text_and_label(rows)[0]) is None:
        return False
    columns = enumerate(zip(*rows, strict=True))
    repeated = [column for at, column in columns if at != text and 2 * len(set(column)) <= len(column)]
    return any(map(looks_like_labels, repeated))
