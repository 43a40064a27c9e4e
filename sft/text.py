"""Normalise text and the offsets into it to NFC, and read lists written in table cells. Imports no torch.

Qwen's tokenizer applies NFC, so the model could never generate a gold span that is not in NFC.
"""

from __future__ import annotations

import ast
import re
import unicodedata
import warnings

import orjson

from sft.errors import RowError

# Characters that come along with copied text and show nothing: soft hyphens, zero-width blanks, marks of direction,
# byte order marks. The two joiners count only where they join: emoji, and letters of Arabic and Indic scripts.
_INVISIBLE = re.compile(
    r"[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]"
    r"|(?<![\u0590-\u1fff\u2190-\u2bff\ufe0f\U0001f000-\U0001faff])[\u200c\u200d]|[\u200c\u200d]\Z"
)


def clean_text(raw: dict) -> str:
    """The row's ``text`` in NFC.

    Raises:
        RowError: it is missing, is not a string, or shows nothing.
    """
    text = raw.get("text")
    if type(text) is not str:
        raise RowError("text", "缺少这个字段" if text is None else f"应是字符串，实际是 {type(text).__name__}")
    if not compared(text):
        raise RowError("text", "文本是空的", "文本是空的")  # the column may have any name
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def visible(text: str) -> str:
    """A text without the characters that show nothing."""
    return text if text.isprintable() else _INVISIBLE.sub("", text)


def compared(text: str) -> str:
    """What two texts that look the same have in common: all but invisible characters and blanks at the edges."""
    return visible(text).strip()


def shown(value: object) -> str:
    """A value for an error message, at most 60 characters. Of a list or object, which can be deep, only the type."""
    return repr(value)[:60] if value is None or isinstance(value, str | int | float) else type(value).__name__


def read_literal(text: str) -> object:
    """The value of a table cell written in JSON, or in Python as pandas writes lists.

    Raises:
        ValueError: the cell is neither.
    """
    if '"' not in text and "\\" not in text:  # a Python list of plain strings: 40 times faster than literal_eval
        text = text.replace("'", '"')
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        with warnings.catch_warnings():  # a "\\d" in the literal would print a warning on stderr
            warnings.simplefilter("ignore")
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError("neither JSON nor a Python literal") from None


def shifted_offsets(text: str) -> list[tuple[int, int]]:
    """The new value of each offset into ``text`` (0 to its length, inclusive) after normalisation to NFC.

    Each entry is ``(new offset of a start, new offset of an end)``. The two differ only for an offset inside a group
    of characters that NFC changes together: a start moves to the beginning of the group and an end to its end, so that
    a span never loses part of a character.

    Raises:
        RowError: the text cannot be cut into such groups; no such text is known.
    """
    offsets: list[tuple[int, int]] = []
    position = 0
    for segment in _segments(text):
        composed = unicodedata.normalize("NFC", segment)
        after = position + len(composed)
        if composed == segment:
            offsets += [(position + index, position + index) for index in range(len(segment))]
        else:
            offsets += [(position, position), *[(position, after)] * (len(segment) - 1)]
        position = after
    return [*offsets, (position, position)]


def _segments(text: str) -> list[str]:
    """``text`` cut into parts; normalising each part gives the same as normalising the whole text."""
    segments: list[str] = []
    segment = ""
    for character in text:
        if segment and (character < "\u0300" or _independent(segment, character)):
            segments.append(segment)
            segment = ""
        segment += character
    segments.append(segment)
    if "".join(unicodedata.normalize("NFC", segment) for segment in segments) != unicodedata.normalize("NFC", text):
        raise RowError("text", "NFC 规范化之后无法对应标注的位置")
    return segments


def three_digits(number: float) -> str:
    """``45.6``, ``2,860``: at least three digits, and no exponent for what is large."""
    return f"{number:,.0f}" if number >= 999.5 else f"{number:.3g}"


def with_count(name: str, count: str) -> str:
    """``体育 12``, but ``5：12`` where the name ends in a digit, which would read like a part of the number."""
    return f"{name}{'：' if name[-1:].isdigit() else ' '}{count}"


def _independent(left: str, right: str) -> bool:
    """Whether ``right`` stays separate from ``left`` under NFC."""
    normalize = unicodedata.normalize
    # Decompose first: U+0F73 is not a combining mark itself, but decomposes into some.
    if unicodedata.combining(normalize("NFD", right)[0]):
        return False
    return normalize("NFC", left + right) == normalize("NFC", left) + normalize("NFC", right)
