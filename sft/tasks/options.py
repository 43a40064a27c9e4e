"""Lists of answer options, as rows and the command line write them."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from sft.errors import InputError, RowError
from sft.text import read_literal


def options_from_flag(value: str) -> tuple[str, ...]:
    """The labels of ``体育,军事``; the separator may be ``、``, and a JSON list is also accepted.

    Raises:
        InputError: a label is empty or given twice.
    """
    try:
        parts = read_literal(value) if value.lstrip().startswith("[") else re.split("[,，、]", value)
        options = _clean_options(parts)
    except (RowError, ValueError) as error:
        raise InputError(f"--options：读不出选项 {value[:60]!r}；应如 体育,军事,经济") from error
    if len(options) < len(parts):
        raise InputError("--options：有重复的标签；应如 体育,军事,经济")
    return options


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
    except TypeError:
        raise RowError("category", "列表里应只有字符串") from None
    if not cleaned or "" in cleaned:
        raise RowError("category", "选项是空的")
    return cleaned


@lru_cache(maxsize=4096)
def clean_label(label: str) -> str:
    """A label in NFC, without white space around it."""
    return unicodedata.normalize("NFC", label).strip()
