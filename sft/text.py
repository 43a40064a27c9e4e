"""Text as the tokenizer will see it: which encoding a file has, and NFC with offsets that move along.

Qwen's tokenizer applies NFC, so a gold span that is not NFC could never be generated. Nothing here imports torch.
"""

from __future__ import annotations

import ast
import unicodedata
import warnings

import orjson

from sft.errors import RowError


def clean_text(raw: dict) -> str:
    """The row's ``text`` in NFC.

    Raises:
        RowError: there is none, it is no string, or nothing but white space.
    """
    text = raw.get("text")
    if type(text) is not str:
        raise RowError("text", "缺少这个字段" if text is None else f"应是字符串，实际是 {type(text).__name__}")
    if not text or text.isspace():
        raise RowError("text", "文本是空的")
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def shown(value: object) -> str:
    """A value in an error message, cut; of a list or an object only its type, for it may be deep."""
    return repr(value)[:60] if value is None or isinstance(value, str | int | float) else type(value).__name__


def read_literal(text: str) -> object:
    """What a cell of a table says in JSON or, as pandas writes lists, in Python.

    Raises:
        ValueError: it is neither.
    """
    if '"' not in text and "\\" not in text:  # a Python list of plain strings, forty times faster than literal_eval
        text = text.replace("'", '"')
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        with warnings.catch_warnings():  # a "\\d" in the literal would warn on stderr
            warnings.simplefilter("ignore")
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError("neither JSON nor a Python literal") from None


def shifted_offsets(text: str) -> list[tuple[int, int]]:
    """Where each offset of ``text`` (0 to its length, included) goes when the text is normalised to NFC.

    An offset inside a group of characters that composes into something else has no place of its own; each entry is
    ``(as a start, as an end)``, the nearest edge outwards, so that a span never loses part of a character.

    Raises:
        RowError: the groups cannot be told apart; no such text is known.
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
    """``text`` cut where normalising the parts and the whole is the same thing."""
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


def _independent(left: str, right: str) -> bool:
    normalize = unicodedata.normalize
    if unicodedata.combining(normalize("NFD", right)[0]):  # U+0F73 is no mark itself but made of marks
        return False
    return normalize("NFC", left + right) == normalize("NFC", left) + normalize("NFC", right)
