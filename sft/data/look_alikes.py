"""Files that are not what a reader would take them for: the question or the advice for the user. Imports no torch.

A page of HTML saved as data, a table whose header is not its first line, a table among texts to predict: each of them
could be read, and wrongly. `sft.data.formats` asks here before it decides.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence

from sft.data.columns import ENTITY_COLUMNS, MORE_ENTITY_COLUMNS
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
_ENTITIES_ONLY = (
    "每行是一个实体（原文、起、止、标签），没有句子：句子在另一个文件里（如 CCKS 2017 的 ….txtoriginal.txt）；"
    '请把两个文件并成 JSON 行，如 {"text": "句子", "label": [[起, 止, "标签"]]}'
)
_OTHER_DELIMITERS = (",", ";", "|", "\x01")
_TAGS_ONLY = re.compile(r"(O|[BIEMSLU][-_]\S+)( (O|[BIEMSLU][-_]\S+))*")
_CHARACTERS_ONLY = re.compile(r"\S( +\S)+")
_TWO_FILES = "请逐行用制表符接起来（paste {} > all.tsv），再转换 all.tsv"
# Rows of which each asks for one kind of entity only: what is not asked is not marked, so no row is whole.
_ONE_QUESTION_A_ROW = (
    (
        {"content", "result_list", "prompt"},
        "是 PaddleNLP UIE 的训练数据：一行只问一个 prompt，同一句话的实体散在几行；"
        "请用转换前从 doccano 导出的文件（doccano_ext.json）",
    ),
    (
        {"context", "query", "start_position", "end_position"},
        "是阅读理解（MRC）写法的数据：一行只问一类实体，同一句话的实体散在几行；请用转换前的文件，或自己并成一句一行",
    ),
)
_OF_RELATIONS = ({"spo_list"}, {"h", "t", "relation"})
_FEWEST_ROWS = 10  # of a table that nobody calls one
_LINES_FORMAT = "每行是一段文本请加 --format lines"


def foreign(first_line: str) -> str:
    """What a file is that begins with this line, if it is no data; else ``""``."""
    return next((what for begins, what in _FOREIGN if begins.match(first_line)), "")


def half_of_two_files(sample: Sequence[str], name: str) -> str:
    """What to do with lines of tags whose characters are in another file, or the other way round; else ``""``.

    Args:
        sample: the first lines of the file, without blank ones.
        name: of the file.
    """
    lines = [line.strip() for line in sample]
    if all(map(_TAGS_ONLY.fullmatch, lines)) and any(" " in line for line in lines):
        both = _TWO_FILES.format(f"sentences.txt {name}")
        return f"每行只有标记，没有字；字在另一个文件里（如 sentences.txt）时，{both}"
    characters = sum(_CHARACTERS_ONLY.fullmatch(line) is not None and not line.isascii() for line in lines)
    if characters >= 0.9 * len(lines):  # others hold a number or a Latin word
        both = _TWO_FILES.format(f"{name} tags.txt")
        return f"每行只有空格隔开的字，没有标记；标记在另一个文件里（如 tags.txt）时，{both}"
    return ""


def without_entities(rows: Sequence[dict], *, named: bool) -> str:
    """Why rows of JSON have no whole entities, or none at all, if their fields say so; else ``""``.

    Args:
        named: whether the user says which field has the entities.
    """
    first = rows[0].keys() if rows else set()
    for fields, what in _ONE_QUESTION_A_ROW:
        if first >= fields:
            return what
    others = {*ENTITY_COLUMNS, *MORE_ENTITY_COLUMNS}
    if not named and not others & first and any(first >= fields for fields in _OF_RELATIONS):
        return "是关系抽取的数据（三元组），没有单独标出实体；请换有实体和位置的数据"
    return ""


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
    if rows and all(map(_is_entity, rows)):
        return _ENTITIES_ONLY
    if header := header_below(rows):
        return f"第 1 行不像表头，后面的一行（{'、'.join(header)[:80]}）才像；请删掉它上面的行"
    return ""


def _is_entity(cells: Sequence[str]) -> bool:
    """Whether a row is an entity, its offsets, and its label, as CCKS 2017 writes them beside a file with the text."""
    return (
        len(cells) == 4
        and cells[1].isdecimal()
        and cells[2].isdecimal()
        and len(cells[0]) - int(cells[2]) + int(cells[1]) in (0, 1)
    )


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


def is_certainly_table(sample: Sequence[str]) -> bool:
    """Whether all of at least ten lines have as many tabs, and between these are a text and one of a few labels."""
    rows = [line.rstrip("\r\n").split("\t") for line in sample]
    if len(rows) < _FEWEST_ROWS or any(len(row) != len(rows[0]) or len(row) == 1 for row in rows):
        return False
    text, label = text_and_label(rows)
    return text is not None and label is not None and len({row[label] for row in rows}) <= len(rows) // 2


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
