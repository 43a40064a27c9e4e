"""What a whole file shows of offsets that stand without the entities' texts. Imports no torch.

One row cannot show whether ends are inclusive, or whether an emoji counts as two; many rows can. An entity whose start
is its end shows inclusive ends, one that ends with its text or before a comma shows exclusive ones. The first rows
decide; where they show nothing, the others are read, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from sft.data.columns import plain_row
from sft.data.entity_notations import entities_in_string, mentions_in
from sft.data.offsets import (
    CODE_POINTS,
    INCLUSIVE,
    UTF16,
    Mention,
    agree,
    from_utf16,
    is_after_wide,
    with_inclusive_ends,
)
from sft.data.readers import IN_SHAPE, rows_as_written
from sft.data.shapes import whole_row_reader
from sft.data.source import Source
from sft.data.token_rows import tags_in
from sft.errors import InputError, RowError

_EXCLUSIVE = "exclusive"
_ROWS = 1000  # decide, if they show something
_CLEAR = 10  # times as much evidence for one reading as for the other
_FEWEST_IN_UNITS = 2  # entities; one may be known by chance
_AFTER_ENTITIES = frozenset("，。、；：！？,;:!? \t\r\n")  # hardly the last character of an entity
_TAKEN = {
    INCLUSIVE: "没有原文的实体，终点按含最后一个字读（如第 {line} 行）",
    UTF16: "没有原文的实体，位置按 UTF-16 读，表情符号算两个（如第 {line} 行）",
    CODE_POINTS: "位置按字数读，表情符号算一个",
}


@dataclass
class _Evidence:
    """How many entities show each reading, and the line of the first that does.

    Attributes:
        textless: how many entities have only offsets.
        known: the texts of entities whose place is not in doubt.
        in_doubt: of each entity behind an emoji its line, and its text in code points and in UTF-16 units.
    """

    textless: int = 0
    shown: Counter[str] = field(default_factory=Counter)
    first_lines: dict[str, int] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    in_doubt: list[tuple[int, str, str]] = field(default_factory=list)

    def show(self, reading: str, line: int) -> None:
        self.shown[reading] += 1
        self.first_lines.setdefault(reading, line)

    def offsets(self) -> str:
        """What the evidence shows; ``""`` if it shows nothing, or two readings alike."""
        if not self.textless:
            return ""
        shown = self.shown
        if shown[INCLUSIVE] and shown[INCLUSIVE] >= _CLEAR * shown[_EXCLUSIVE]:
            return INCLUSIVE
        for units, others in ((UTF16, CODE_POINTS), (CODE_POINTS, UTF16)):
            if shown[units] >= max(_FEWEST_IN_UNITS, _CLEAR * shown[others]):
                return units
        return ""

    def are_ends_in_doubt(self) -> bool:
        """Whether some entities show inclusive ends, and too many others exclusive ones."""
        inclusive, exclusive = self.shown[INCLUSIVE], self.shown[_EXCLUSIVE]
        return self.textless > 0 and 0 < inclusive < _CLEAR * exclusive and exclusive < _CLEAR * inclusive


def with_offsets(source: Source, *, gold: bool) -> Source:
    """The source with what its rows show of offsets without texts.

    Args:
        gold: whether rows need gold; if not, entities that contradict each other are no reason to refuse a file.

    Raises:
        InputError: it is open whether ends are inclusive.
    """
    if source.answers != "entities" or source.container in (*IN_SHAPE, "lines"):
        return source
    evidence = _evidence_of(source)
    if gold and evidence.are_ends_in_doubt():
        lines = evidence.first_lines
        raise InputError(
            f"{source.path}：看不出实体的终点含不含最后一个字：第 {lines[INCLUSIVE]} 行的起止相同，应是含；"
            f"第 {lines[_EXCLUSIVE]} 行的终点在句末或标点前，应是不含；请给每个实体加上原文，或改成同一种"
        )
    return _with(source, evidence.offsets(), evidence.first_lines)


def with_same_offsets(sources: Sequence[Source]) -> list[Source]:
    """The files of one data set: where one shows nothing of its ends, another one's are inclusive, they are, too."""
    inclusive = [source for source in sources if source.columns.offsets == INCLUSIVE]
    if not inclusive or len(inclusive) == len(sources):
        return list(sources)
    settled = []
    for source in sources:
        evidence = _evidence_of(source) if source.columns.offsets != INCLUSIVE else None
        if evidence and evidence.textless and not evidence.shown[_EXCLUSIVE]:
            taken = (*source.taken, f"没有原文的实体，终点和 {inclusive[0].path.name} 一样含最后一个字")
            source = replace(source, columns=source.columns._replace(offsets=INCLUSIVE), taken=taken)
        settled.append(source)
    return settled


def _with(source: Source, offsets: str, lines: dict[str, int]) -> Source:
    if not offsets:
        return source
    taken = (*source.taken, _TAKEN[offsets].format(line=lines[offsets]))
    return replace(source, columns=source.columns._replace(offsets=offsets), taken=taken)


def _evidence_of(source: Source) -> _Evidence:
    """The evidence in the first rows, or in all rows if those have entities without texts that show nothing."""
    evidence = _Evidence()
    with suppress(InputError, UnicodeDecodeError, OSError):  # the reader will say so
        for count, (line, mentions, text) in enumerate(_annotated(source), start=1):
            _add_ends(evidence, line, mentions, text)
            _add_units(evidence, line, mentions, text)
            if count >= _ROWS and (evidence.shown or not evidence.textless):
                break
    for line, code_points, units in evidence.in_doubt:
        fits = [_plausible(surface, evidence.known) for surface in (code_points, units)]
        if fits[0] != fits[1]:
            evidence.show(CODE_POINTS if fits[0] > fits[1] else UTF16, line)
    return evidence


def _annotated(source: Source) -> Iterator[tuple[int, list[Mention], str]]:
    """Line, entities as written and text of each row whose entities can be read."""
    for line, _, row in rows_as_written(source):
        mentions, text = [], ""
        with suppress(RowError):
            if type(row) is dict:
                reader = whole_row_reader(row, source.columns) or plain_row
                written = reader(row, source.answers, source.columns)
                mentions = _mentions_of(written.gold, written.text, written.field)
                text = written.text if mentions else ""
        yield line, mentions, text


def _mentions_of(value: object, text: object, field: str) -> list[Mention]:
    if value is None or type(text) is not str or tags_in(value):
        return []
    value = entities_in_string(value, field) if type(value) is str else value
    return mentions_in(value, text, field)


def _add_ends(evidence: _Evidence, line: int, mentions: list[Mention], text: str) -> None:
    alone = [mention for mention in mentions if mention.has_only_offsets()]
    evidence.textless += len(alone)
    starts = {mention.start for mention in alone if mention.start < mention.end}
    for start, end, *_ in alone:
        if start == end < len(text):
            evidence.show(INCLUSIVE, line)
        elif start < end and (end == len(text) or end in starts or text[end : end + 1] in _AFTER_ENTITIES):
            evidence.show(_EXCLUSIVE, line)
    if len(alone) < len(mentions) and all(type(mention.end) is int for mention in mentions):
        if agree(mentions, text):
            evidence.show(_EXCLUSIVE, line)
        elif agree(with_inclusive_ends(mentions), text):
            evidence.show(INCLUSIVE, line)


def _add_units(evidence: _Evidence, line: int, mentions: list[Mention], text: str) -> None:
    units = from_utf16(mentions, text) if text and is_after_wide(text, len(text)) else mentions
    for mention, in_units in zip(mentions, units, strict=True):
        if not mention.has_only_offsets():
            evidence.known.add(str(mention.surface))
        elif not is_after_wide(text, mention.end):
            evidence.known.add(text[mention.start : mention.end])
        else:
            evidence.in_doubt.append((line, _cut(text, mention), _cut(text, in_units)))


def _cut(text: str, mention: Mention) -> str:
    return text[mention.start : mention.end] if 0 <= mention.start < mention.end <= len(text) else ""


def _plausible(surface: str, known: set[str]) -> int:
    """2 for what is an entity elsewhere, too, 0 for what is no text, else 1. One character may be one by chance."""
    return 2 if len(surface) > 1 and surface in known else min(len(surface), 1)
