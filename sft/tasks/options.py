"""Lists of answer options, as rows and the command line write them."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from sft.errors import InputError, RowError
from sft.text import read_literal, visible

EQUALS = re.compile("[=＝]")  # in a flag, between a label and what it gets
_COMMAS, _OTHER_SEPARATORS = "[,，]", "[、;；]"  # between the labels of a flag
_AFTER_A_LABEL = "|｜┋;；、,， \t"  # Microsoft Forms ends each label with a semicolon


def options_from_flag(value: str) -> tuple[str, ...]:
    """The labels of ``--options``; see `split_flag`.

    Raises:
        InputError: a label is empty or given twice, or commas and other separators are mixed.
    """
    try:
        parts = split_flag(value)
        options = _clean_options(parts)
    except (RowError, ValueError) as error:
        raise InputError(f"--options：读不出选项 {value[:60]!r}；应如 体育,军事,经济") from error
    if len(parts) > 1 and not _is_literal(value) and (mixed := _with_other_separator(parts)):
        raise InputError(
            f"--options：看不出 {mixed[:60]!r} 是一个标签还是几个；几个就都用逗号分开，一个就写成 JSON 列表"
        )
    if len(options) < len(parts):
        raise InputError("--options：有重复的标签；应如 体育,军事,经济")
    return options


def split_flag(value: str) -> list:
    """The parts of ``体育,军事``, or of a JSON list. ``、`` and semicolons separate only where there is no comma.

    Raises:
        ValueError: it begins like a list and is none.
    """
    if not _is_literal(value):
        return re.split(_COMMAS if re.search(_COMMAS, value) else _OTHER_SEPARATORS, value)
    parts = read_literal(value)
    if type(parts) is not list:
        raise ValueError("no list")
    return parts


def _is_literal(value: str) -> bool:
    return value.lstrip().startswith("[")


def _with_other_separator(parts: list[str]) -> str | None:
    return next((part for part in parts if re.search(_OTHER_SEPARATORS, part)), None)


def read_options(category: object) -> tuple[str, ...]:
    """The options of a row: a list, or a list written as a string.

    Raises:
        RowError: it is no list of labels.
    """
    return _options_in_string(category) if type(category) is str else _clean_options(category)


@lru_cache(maxsize=1 << 16)  # few labels, many orders: 1,427 lists in 4,000 rows of court data
def _options_in_string(category: str) -> tuple[str, ...]:
    """The options of a JSON list or a Python list in a string, for example ``"['Military', 'Space']"``."""
    try:
        return _clean_options(read_literal(category))
    except ValueError:
        raise RowError("category", f"不是列表：{category[:60]!r}") from None


def _clean_options(options: object) -> tuple[str, ...]:
    if type(options) is not list:
        raise RowError("category", f"应是列表，实际是 {type(options).__name__}")
    try:
        cleaned = tuple(dict.fromkeys(map(clean_label, options)))
    except (TypeError, AttributeError):
        raise RowError("category", "列表里应只有字符串") from None
    if not cleaned or "" in cleaned:
        raise RowError("category", "选项是空的")
    return cleaned


@lru_cache(maxsize=4096)
def clean_label(label: str) -> str:
    """A label in NFC, without invisible characters, white space around it, and separators after it."""
    cleaned = unicodedata.normalize("NFC", visible(label)).strip()
    return cleaned.rstrip(_AFTER_A_LABEL) or cleaned


@lru_cache(maxsize=4096)
def is_corrected(label: str) -> bool:
    """Whether a clean label lacks more than white space: something invisible, or a separator after it."""
    return clean_label(label) != unicodedata.normalize("NFC", label).strip()
