"""A text longer than those of training is read in spans: where they begin and end, and whose entities count.

A model finds few entities in a text that is much longer than those it was trained on. So a long text is cut into spans
at the ends of sentences, else of clauses, else anywhere. Neighbouring spans can share a little text, so that what
stands at a cut is seen whole at least once. Every entity of the shared text is taken from one of the two spans only:
from the one in which it stands farther from the cut. All offsets count characters of the whole text.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

SENTENCE_END = re.compile(r"[。！？!?…\n]+[”’」』）)\"']*")
CLAUSE_END = re.compile(r"[，,；;、：:\s]+")
TOGETHER = 2  # several sentences fill a span up to the most tokens divided by this: most texts of training are shorter
SHARED = 3  # the tokens of a span divided by this, at most, are shared with the span after it


class Span(NamedTuple):
    """Characters of a text: from ``start`` up to, but not including, ``end``."""

    start: int
    end: int


class Ends(NamedTuple):
    """Where sentences end in a text, and where clauses do (every sentence ends a clause); ascending offsets."""

    sentences: list[int]
    clauses: list[int]


def ends_in(text: str) -> Ends:
    """The ends of sentences and clauses of a text; its own end is one of them."""
    sentences = {match.end() for match in SENTENCE_END.finditer(text)} | {len(text)}
    clauses = {match.end() for match in CLAUSE_END.finditer(text)} | sentences
    return Ends(sorted(sentences), sorted(clauses))


def spans_to_read(text: str, token_starts: Sequence[int], most_tokens: int) -> list[Span]:
    """The spans in which a text is read: together they cover it, each character is in one or two of them.

    A span has as many whole sentences as fit into half of ``most_tokens``, at least one. A sentence of more than
    ``most_tokens`` is cut at the ends of clauses in the same way, and what has none is cut anywhere.

    The next span begins there, or earlier: after a sentence, with that sentence; inside a sentence, with the clauses
    before. The shared text is at most a third of a span.

    Args:
        token_starts: the offset at which each token of the text begins, ascending.
        most_tokens: of a span, at least 1. A character that is several tokens may have more.
    """
    ends = ends_in(text)
    usual_tokens = max(1, most_tokens // TOGETHER)
    spans: list[Span] = []
    start = read = 0  # ``read``: everything before it is in a span
    while read < len(text):
        usual = _after_tokens(token_starts, start, usual_tokens, text)
        most = _after_tokens(token_starts, start, most_tokens, text)
        end = _end(ends.sentences, read, usual, most) or _end(ends.clauses, read, usual, most) or max(usual, read + 1)
        spans.append(Span(start, end))
        first_shared = max(0, bisect_left(token_starts, end) - usual_tokens // SHARED)
        earliest = token_starts[first_shared] if first_shared < len(token_starts) else end
        start, read = _shared_from(ends, max(earliest, read, start + 1), end), end
    return spans


def _after_tokens(token_starts: Sequence[int], start: int, tokens: int, text: str) -> int:
    """The offset after so many tokens from ``start`` on."""
    index = bisect_left(token_starts, start) + tokens
    return token_starts[index] if index < len(token_starts) else len(text)


def _end(ends: Sequence[int], read: int, usual: int, most: int) -> int | None:
    """The last of the ``ends`` between ``read`` and ``usual``; if there is none, the first one up to ``most``."""
    index = bisect_right(ends, read)
    if index == len(ends) or ends[index] > most:
        return None
    return ends[max(index, bisect_right(ends, usual) - 1)]


def _last(ends: Sequence[int], after: int, most: int) -> int | None:
    """The last of the ``ends`` that is greater than ``after`` and at most ``most``."""
    index = bisect_right(ends, most) - 1
    return ends[index] if index >= 0 and ends[index] > after else None


def _shared_from(ends: Ends, earliest: int, end: int) -> int:
    """Where the span after one that ends at ``end`` begins."""
    kind = ends.sentences if _last(ends.sentences, end - 1, end) else ends.clauses
    between = kind[bisect_left(kind, earliest) : bisect_left(kind, end)]
    if kind is ends.sentences:
        return between[-1] if between else end
    return between[0] if between else min(earliest, end)


def place_to_go_on(text: str, entities: Sequence[dict]) -> int | None:
    """Where to read on in a text whose answer was cut after ``entities``: after the last of them.

    That is where the sentence there begins, else the clause, else the next word: the first of these that names no
    entity again. None if no letter, ideograph or digit is left.
    """
    done = max(entity["end"] for entity in entities)
    word = next((place for place in range(done, len(text)) if text[place].isalnum()), None)
    if word is None:
        return None
    for ends in ends_in(text):
        begin = _last(ends, 0, word)
        if begin is not None and begin >= done:
            return begin
    return word


def merged(spans: Sequence[Span], entities_of: Sequence[Sequence[dict]]) -> list[dict]:
    """The entities of a whole text from those of its spans, ascending, each place and label once.

    An entity in shared text counts in the span in which it stands farther from the cut, in the earlier one if it is
    in the middle. Where the two spans still contradict each other, the entity farther from its cut stays. Entities of
    one span are never compared with each other.

    Args:
        entities_of: of each span, with offsets in the whole text.
    """
    kept: list[list[dict]] = [list(entities) for entities in entities_of]
    for number, (left, right) in enumerate(pairwise(spans)):
        shared = Span(right.start, left.end)
        before = [entity for entity in kept[number] if _room_after(entity, shared) >= _room_before(entity, shared)]
        after = [entity for entity in kept[number + 1] if _room_before(entity, shared) > _room_after(entity, shared)]
        kept[number], kept[number + 1] = _without_contradictions(before, after, shared)
    return [entity for entities in kept for entity in entities]


def _room_before(entity: dict, shared: Span) -> int:
    """Characters between the beginning of the later span and the entity."""
    return entity["start"] - shared.start


def _room_after(entity: dict, shared: Span) -> int:
    """Characters between the entity and the end of the earlier span."""
    return shared.end - entity["end"]


def _without_contradictions(before: list[dict], after: list[dict], shared: Span) -> tuple[list[dict], list[dict]]:
    """The entities of two neighbouring spans without those that overlap one of the other that is farther from its cut.

    Only an entity that crosses the middle of the shared text overlaps one of the other span.
    """
    lost: set[int] = set()
    for entity in [entity for entity in before if entity["end"] > shared.start]:
        for other in after:
            if entity["start"] < other["end"] and other["start"] < entity["end"]:
                nearer = entity if _room_after(entity, shared) <= _room_before(other, shared) else other
                lost.add(id(nearer))
    return tuple([one for one in side if id(one) not in lost] for side in (before, after))
