"""What the offsets of entities mean: where each entity is in its text. Imports no torch.

An entity's own text decides. All entities of a row must agree with their texts in one way: end exclusive, end
inclusive (CMeEE), or in UTF-16 units (tools written in JavaScript). Offsets without texts are code points with an
exclusive end, unless the whole file shows something else (`sft.data.offset_evidence`). What one row cannot show is
said, and where such an entity begins or ends with a blank, too, its row is rejected: two doubts are one too many.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

from sft.errors import RowError

# What the whole file shows of offsets without texts. "" if nothing.
INCLUSIVE, UTF16, CODE_POINTS = "inclusive", "utf16", "code_points"

UTF16_DOUBT = "文本里有表情符号一类的字，标注却没有原文（text），看不出位置是按字数还是按 UTF-16 数的；请给出原文"
_CRLF_DOUBT = "文本里有 CRLF 换行，标注却没有原文（text），看不出换行算一个字还是两个；请给出原文"
_WIDE_NOTE = "位置前面有表情符号一类的字，又没有实体的原文：表情符号算一个字；若是按 UTF-16 数的（算两个），请给出原文"
_CRLF_NOTE = "位置前面有 CRLF 换行，又没有实体的原文：CRLF 算两个字；若算一个，请先把换行换成 LF"
_BLANK_NOTE = "实体的头尾是空格或换行，位置可能不对，请核对"
_WIDE = re.compile("[\U00010000-\U0010ffff]")
_NO_PLACE = re.compile(r"(^|_)(id|ids|no|score|conf\w*|prob\w*|weight|rank|count|freq\w*|page)$|Id$", re.IGNORECASE)


class Mention(NamedTuple):
    """An entity as it is written. Without offsets ``start`` and ``end`` are None; without its text, ``surface``.

    Attributes:
        pairs: the pairs of whole numbers in fields whose names say nothing, of an entity without offsets.
    """

    start: object
    end: object
    surface: object
    label: object
    pairs: tuple[tuple[int, int], ...] = ()

    def has_only_offsets(self) -> bool:
        """Whether it has offsets that could be right, and no text of its own."""
        return self.surface is None and type(self.start) is type(self.end) is int and self.start >= 0


def settled(mentions: list[Mention], text: str, notes: list[str], offsets: str = "") -> list[Mention]:
    """The mentions with exclusive ends in code points, as their texts show, or else the whole file.

    If the texts agree with no reading, the offsets stay, and the task reports the first that is wrong.

    Args:
        notes: takes what there is to say of the row.
        offsets: what the whole file shows.

    Raises:
        RowError: there are no texts, and two things speak against the offsets.
    """
    if all(mention.surface is None for mention in mentions):
        return _settled_by_file(mentions, text, notes, offsets)
    if agree(mentions, text):
        return mentions
    readings = [with_inclusive_ends(mentions)]
    if _WIDE.search(text):
        readings.append(from_utf16(mentions, text))
    # At most one fits: with an inclusive end a span is shorter than its text, in UTF-16 it is not.
    return next((reading for reading in readings if agree(reading, text)), mentions)


def with_inclusive_ends(mentions: Sequence[Mention]) -> list[Mention]:
    """The mentions with exclusive ends, if theirs are inclusive."""
    return [mention._replace(end=mention.end + 1) if type(mention.end) is int else mention for mention in mentions]


def agree(mentions: Sequence[Mention], text: str) -> bool:
    """Whether each mention that has a text has the one at its offsets."""
    return all(mention.surface is None or _is_at(mention, text) for mention in mentions)


def _is_at(mention: Mention, text: str) -> bool:
    start, end, surface = mention[:3]
    if type(start) is not int or type(end) is not int or type(surface) is not str or not 0 <= start < end <= len(text):
        return False
    return text[start:end] == surface or _composed(text[start:end]) == _composed(surface)


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def from_utf16(mentions: Sequence[Mention], text: str) -> list[Mention]:
    """The mentions with offsets in UTF-16 units turned into code points; an offset inside a character becomes -1."""
    code_points, units = {0: 0}, 0
    for index, character in enumerate(text, start=1):
        units += 2 if character > "\uffff" else 1
        code_points[units] = index
    return [
        mention._replace(start=code_points.get(mention.start, -1), end=code_points.get(mention.end, -1))
        if type(mention.start) is type(mention.end) is int
        else mention
        for mention in mentions
    ]


# ---- Offsets without texts ----


def _settled_by_file(mentions: list[Mention], text: str, notes: list[str], offsets: str) -> list[Mention]:
    if offsets == INCLUSIVE:
        mentions = with_inclusive_ends(mentions)
    elif offsets == UTF16:
        mentions = from_utf16(mentions, text)
    last = max((mention.end for mention in mentions if mention.has_only_offsets()), default=0)
    wide = offsets not in (UTF16, CODE_POINTS) and is_after_wide(text, last)
    crlf = 0 <= text.find("\r\n") < last
    blank = any(
        mention.has_only_offsets() and has_blank_edge(text[mention.start : mention.end]) for mention in mentions
    )
    if blank and (wide or crlf):
        raise doubtful(UTF16_DOUBT if wide else _CRLF_DOUBT)
    notes += [note for note, holds in ((_WIDE_NOTE, wide), (_CRLF_NOTE, crlf), (_BLANK_NOTE, blank)) if holds]
    return mentions


def doubtful(doubt: str) -> RowError:
    """The error of a row whose offsets could mean two things."""
    return RowError("start", doubt, doubt)


def is_after_wide(text: str, offset: int) -> bool:
    """Whether an offset is behind a character that UTF-16 counts as two, such as an emoji."""
    found = _WIDE.search(text)
    return found is not None and found.start() < offset


def has_blank_edge(surface: str) -> bool:
    """Whether an entity's text begins or ends with a blank or a line break, as hardly an entity does."""
    return surface != surface.strip()


# ---- Offsets under other names ----


def number_pairs(item: dict, named: frozenset[str]) -> tuple[tuple[int, int], ...]:
    """The pairs of whole numbers in an entity that could be its offsets, whatever their names; no ids, no scores.

    Args:
        named: the fields that are something else.
    """
    pairs, single = [], []
    for name, value in item.items():
        if name in named or _NO_PLACE.search(str(name)):
            continue
        values = list(value.values()) if type(value) is dict else value if type(value) is list else [value]
        if not all(type(number) is int for number in values):
            continue
        if len(values) == 2:
            pairs.append((values[0], values[1]))
        single += values if len(values) == 1 else ()
    return (*pairs, *combinations(single, 2))


def with_offsets_of_pairs(mentions: Sequence[Mention], text: str) -> list[Mention] | None:
    """The mentions with the offsets of their pairs, if there each has its text; else None."""
    found = [next(_places_of_pairs(mention, text), None) for mention in mentions]
    return None if None in found else found


def _places_of_pairs(mention: Mention, text: str) -> Iterator[Mention]:
    if type(mention.surface) is str and mention.surface:
        for start, last in mention.pairs:
            end = start + len(mention.surface)
            if end in (last, last + 1) and _is_at(mention._replace(start=start, end=end), text):
                yield mention._replace(start=start, end=end)
