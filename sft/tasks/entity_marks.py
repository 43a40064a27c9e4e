"""The inline format of an answer that names entities: the text once more, with a mark around each entity.

``菲律宾总统埃斯特拉达访问上海。`` → ``[菲律宾|地理实体]总统[埃斯特拉达|人名]访问[上海|地点]。``

``[``, ``|``, ``]`` and the backslash get a backslash before them wherever they belong to the text or to a label. So a
mark is never mistaken for text, and what is written is read back exactly, whatever the text. An answer says which
occurrence of a name it means: no offset is lost.

A text without entities is answered with `NO_ENTITY` and not with itself. In most data most rows have none: training
would spend most of its loss on copying them, and prediction many passes where one or two do. A copy without a mark
means the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from sft.tasks.entity_lines import NO_ENTITY

OPENING, BETWEEN, CLOSING = "[|]"

_SPECIAL = re.compile(r"[\[\]|\\]")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
# A character with its backslash, or a mark; `+` and `*` give nothing back, so that no answer takes long to read.
_PART = re.compile(r"\\.|\[((?:\\.|[^\\\[\]|])++)\|((?:\\.|[^\\\[\]|])*+)\]", re.DOTALL)
_CONTEXT = 32  # characters before an entity, looked at to tell its occurrences apart


class Mark(NamedTuple):
    """A mark of an answer: the entity's text, its label, and where the mark begins and ends in the answer."""

    text: str
    label: str
    begin: int
    end: int


def escaped(text: str) -> str:
    """A part of the text, or a label, as an answer writes it."""
    return _SPECIAL.sub(r"\\\g<0>", text)


def unescaped(written: str) -> str:
    """What `escaped` was given. A backslash at the very end stands for itself."""
    return _ESCAPED.sub(r"\1", written)


def marked(text: str, label: str) -> str:
    """One entity with its mark."""
    return f"{OPENING}{escaped(text)}{BETWEEN}{escaped(label)}{CLOSING}"


def marked_text(text: str, entities: Sequence[Mapping]) -> str:
    """The answer for a text.

    Args:
        entities: with ``start``, ``end`` and ``label``; in the order of the text, without overlaps.
    """
    if not entities:
        return NO_ENTITY
    parts, place = [], 0
    for entity in entities:
        parts.append(escaped(text[place : entity["start"]]))
        parts.append(marked(text[entity["start"] : entity["end"]], entity["label"]))
        place = entity["end"]
    return "".join(parts) + escaped(text[place:])


def marks_in(answer: str) -> list[Mark]:
    """The marks of an answer, in its order. What is no whole mark is text."""
    found = _PART.finditer(answer)
    return [Mark(unescaped(part[1]), unescaped(part[2]), *part.span()) for part in found if part[1] is not None]


def entities_in_copy(answer: str, text: str) -> list[tuple[int, int, str, str]]:
    """``(start, end, text, label)`` of each mark, with any label; none unless the answer is the text with marks."""
    parts, found, at, place = [], [], 0, 0
    for mark in marks_in(answer):
        before = unescaped(answer[at : mark.begin])
        start = place + len(before)
        place, at = start + len(mark.text), mark.end
        parts += [before, mark.text]
        found.append((start, place, mark.text, mark.label))
    return found if "".join([*parts, unescaped(answer[at:])]) == text else []


def read_marked(answer: str, text: str, labels: Sequence[str], problems: dict[str, int]) -> list[dict]:
    """The entities of an answer with their offsets in ``text``; each has the number of its mark as ``line``.

    A mark that follows a faithful copy of the text stands where the copy has come to. After a copy that is not
    faithful, an entity stands at the free occurrence of its text that fits what is written before it best; if two fit
    as well, it is left out. Blanks at both ends of the answer may be missing or too many.

    Args:
        problems: what is wrong is added here. ``invalid``: a part of the text that is not copied faithfully, or a mark
            after it whose place cannot be told; ``unknown_label``; ``invented``: the marked text is not in the text;
            ``repeated``: all of its occurrences are taken; ``out_of_order``: it is before the previous entity. Only
            the last kind is kept.
    """
    if answer.strip() == NO_ENTITY:
        return []
    if answer[:1].isspace() and not text[:1].isspace():
        answer = answer.lstrip()
    reading = _Reading(text)
    if not answer.removeprefix(OPENING)[:1].isspace():
        reading.place = len(text) - len(text.lstrip())
    at = 0
    for number, mark in enumerate(marks_in(answer)):
        reading.copy(unescaped(answer[at : mark.begin]), problems)
        at = mark.end
        if reading.goes_on_with(written := answer[mark.begin : mark.end]) and not reading.goes_on_with(mark.text):
            reading.place += len(written)  # the text's own brackets, without their backslashes
        elif mark.label in labels:
            reading.take(mark, number, problems)
        else:
            problems["unknown_label"] += 1
            reading.pass_over(mark.text)
    if reading.sure and text[reading.place :].rstrip() != unescaped(answer[at:]).rstrip():
        problems["invalid"] += 1
    return sorted(reading.entities, key=lambda entity: entity["start"])


class _Reading:
    """How far an answer is read.

    Attributes:
        place: where the copy has come to in the text.
        sure: whether that is certain.
        before: what is written before the next mark.
        entities: those found so far.
    """

    def __init__(self, text: str) -> None:
        self.text, self.place, self.sure, self.before = text, 0, True, ""
        self.entities: list[dict] = []

    def copy(self, words: str, problems: dict[str, int]) -> None:
        """Read a part of the answer that has no mark."""
        self.before = words if self.sure else self.before + words
        if not self.sure:
            return
        self.sure = self.text.startswith(words, self.place)
        if self.sure:
            self.place += len(words)
        else:
            problems["invalid"] += 1

    def goes_on_with(self, words: str) -> bool:
        """Whether these are certainly the next characters of the text."""
        return self.sure and self.text.startswith(words, self.place)

    def pass_over(self, words: str) -> None:
        """Read the text of a mark that is left out."""
        if self.goes_on_with(words):
            self.place += len(words)
        else:
            self.sure, self.before = False, self.before + words

    def take(self, mark: Mark, number: int, problems: dict[str, int]) -> None:
        """Read a mark, and keep its entity if its place can be told."""
        start = self.place if self.goes_on_with(mark.text) else self._best_start(mark.text, problems)
        if start is None:
            self.pass_over(mark.text)
            return
        end = start + len(mark.text)
        problems["out_of_order"] += start < self.place
        self.place, self.sure = max(self.place, end), True
        self.entities.append({"start": start, "end": end, "text": mark.text, "label": mark.label, "line": number})

    def _best_start(self, words: str, problems: dict[str, int]) -> int | None:
        free = [start for start in _starts(words, self.text) if self._is_free(start, start + len(words))]
        ahead = [start for start in free if start >= self.place] or free
        if not ahead:
            problems["repeated" if words in self.text else "invented"] += 1
            return None
        fits = [_common_ending(self.text[:start], self.before) for start in ahead]
        if fits.count(max(fits)) > 1:
            problems["invalid"] += 1
            return None
        return ahead[fits.index(max(fits))]

    def _is_free(self, start: int, end: int) -> bool:
        return all(end <= entity["start"] or entity["end"] <= start for entity in self.entities)


def _starts(words: str, text: str) -> Iterator[int]:
    start = text.find(words)
    while start >= 0:
        yield start
        start = text.find(words, start + 1)


def _common_ending(one: str, other: str) -> int:
    """How many characters two strings have in common at their ends."""
    common = 0
    for left, right in zip(reversed(one[-_CONTEXT:]), reversed(other[-_CONTEXT:]), strict=False):
        if left != right:
            break
        common += 1
    return common
