"""Columns of plain rows that were not taken and could be the text or the label: what a user should know of them.

Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sft.data.columns import (
    ALL_LABEL_COLUMNS,
    ALL_TEXT_COLUMNS,
    DESCRIPTION_COLUMNS,
    ENTITY_COLUMNS,
    LABEL_COLUMNS,
    MORE_ENTITY_COLUMNS,
    SECOND_TEXT_COLUMNS,
    TEXT_COLUMNS,
    Columns,
    columns_named,
    gold_value,
)
from sft.errors import one_line

_USUAL_NAMES = frozenset(
    (*ALL_TEXT_COLUMNS, *ALL_LABEL_COLUMNS, *ENTITY_COLUMNS, *MORE_ENTITY_COLUMNS, *SECOND_TEXT_COLUMNS, "options")
)
_MUCH_LONGER = 1.5  # times as long as the texts that are taken
_FEWEST_LETTERS = 4  # of a text
_CHINESE_OR_WORDS = re.compile(r"[\u3400-\u9fff\u3040-\u30ff\uac00-\ud7af]|\w\s+\w")  # no hash, number or date
_ADDRESS = re.compile(r"://|^www\.|^[\[{]|\S@\S", re.IGNORECASE)  # and JSON
_FEWEST_ROWS, _MOST_LABELS, _ROWS_A_LABEL, _LABEL_CHARACTERS = 6, 50, 2, 20
_DATE_OR_FRACTION = re.compile(r"\d{4}\s*[-/.年]|\d*[.:%]\d*|\d+%")
_LABEL_NAME = re.compile(
    r"类|标签|等级|级别|评级|星级|倾向|情感|情绪|意图|label|class|categ|type|level|grade|rating|sentiment|intent",
    re.IGNORECASE,
)


def unused_columns(rows: Sequence[dict], answers: str, columns: Columns) -> list[str]:
    """A remark for the text and one for the label, if more than one column of these plain rows could be it.

    Raises:
        RowError: the first row does not say which column has its label.
    """
    others = [name for name in dict.fromkeys(name for row in rows for name in row) if _is_unusual(name, columns)]
    remarks = [_unused_texts(rows, others)] if columns.text is None else []
    if answers == "label" and columns.label is None:
        remarks.append(_unused_labels(rows, others, columns))
    return [remark for remark in remarks if remark]


def _is_unusual(name: str, columns: Columns) -> bool:
    return name.strip().lower() not in _USUAL_NAMES and name not in columns


def _unused_texts(rows: Sequence[dict], others: Iterable[str]) -> str:
    row = rows[0]
    texts = [name for name in columns_named(row, ALL_TEXT_COLUMNS) if isinstance(row[name], str) and row[name].strip()]
    taken = "text" if "text" in row else (columns_named(row, TEXT_COLUMNS) or columns_named(row, ALL_TEXT_COLUMNS))[0]
    longer = [name for name in others if _is_longer_text(rows, name, taken)]
    unused = [name for name in texts if name != taken] + longer
    advice = f"（像是更长的正文，要用就加 --text_column {one_line(longer[0])}）" if longer else ""
    return f"文本取自 {taken}，没有用 {one_line('、'.join(unused))}{advice}" if unused else ""


def _is_longer_text(rows: Sequence[dict], name: str, taken: str) -> bool:
    """Whether most values of a column are different texts, much longer than those that are taken."""
    values = _strings(rows, name)
    texts = [value for value in values if _is_text(value)]
    if 2 * len(texts) < len(rows) or 2 * len(set(texts)) <= len(texts) or len(set(texts)) < 2:
        return False
    return _mean_length(values) > _MUCH_LONGER * _mean_length(_strings(rows, taken))


def _is_text(value: str) -> bool:
    letters = sum(map(str.isalpha, value))
    if letters < max(_FEWEST_LETTERS, len(value) / 2):
        return False
    return bool(_CHINESE_OR_WORDS.search(value)) and not _ADDRESS.search(value.strip())


def _strings(rows: Sequence[dict], name: str) -> list[str]:
    return [row[name] for row in rows if type(row.get(name)) is str and row[name].strip()]


def _mean_length(values: Sequence[str]) -> float:
    return sum(map(len, values)) / len(values) if values else 0.0


def _unused_labels(rows: Sequence[dict], others: Iterable[str], columns: Columns) -> str:
    row = rows[0]
    _, taken = gold_value(row, "label", columns)
    if taken not in row or taken in DESCRIPTION_COLUMNS:
        return ""
    usual = [name for name in columns_named(row, ALL_LABEL_COLUMNS) if name != taken and row[name] not in (None, "")]
    usual = [] if "output" in (taken, *usual) else usual
    certain = taken.strip().lower() in LABEL_COLUMNS
    alike = [name for name in others if (_LABEL_NAME.search(name) or not certain) and _holds_labels(rows, name, taken)]
    advice = f"（要用就加 --label_column {one_line(alike[0])}）" if alike else ""
    return f"标签取自 {taken}，没有用 {one_line('、'.join(usual + alike))}{advice}" if usual or alike else ""


def _holds_labels(rows: Sequence[dict], name: str, taken: str) -> bool:
    """Whether a column has few different short values. Numbers are labels only in a column that is called so."""
    values = [str(row[name]) for row in rows if type(row.get(name)) in (str, int) and str(row[name]).strip()]
    different = set(values)
    if len(values) < max(_FEWEST_ROWS, 0.8 * len(rows)):
        return False
    if not 2 <= len(different) <= min(_MOST_LABELS, len(values) / _ROWS_A_LABEL):
        return False
    if any(len(value) > _LABEL_CHARACTERS or _is_no_label(value, name) for value in different):
        return False
    return values != [str(row.get(taken)) for row in rows]


def _is_no_label(value: str, name: str) -> bool:
    number = value.strip().lstrip("+-").isdecimal() and not _LABEL_NAME.search(name)
    return number or bool(_DATE_OR_FRACTION.match(value.strip()) or _ADDRESS.search(value.strip()))
