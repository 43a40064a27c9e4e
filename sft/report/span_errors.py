"""Kinds of error in predicted spans, and how predicted spans are paired with gold ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from sft.tasks.metrics import Span, span_of

# Spans are paired in this order; a span is in at most one pair.
PAIRED_KINDS = (
    "wrong_label",  # the same ends, another label
    "wrong_boundary",  # the same label, overlapping with other ends
    "wrong_both",  # overlapping, with other ends and another label
)
MISSED, INVENTED = "missed", "invented"  # a gold span and a predicted span without a pair
KINDS = (MISSED, INVENTED, *PAIRED_KINDS)


class SpanError(NamedTuple):
    """One error; ``gold`` is None for an invented span, ``predicted`` is None for a missed one."""

    kind: str
    gold: Span | None
    predicted: Span | None


def spans_of(result: dict) -> list[Span]:
    """The spans of a result from left to right, each once."""
    return sorted({span_of(entity) for entity in result["entities"]})


def span_errors(gold: Sequence[Span], predicted: Sequence[Span]) -> list[SpanError]:
    """The errors of one row, from left to right. A predicted span with gold ends and label is right.

    The remaining spans are paired: first those with the same ends, then overlapping ones with the same label, then
    other overlapping ones. Within a kind, the larger overlap comes first, then the leftmost. Every span counts once:
    gold = right + pairs + missed, predicted = right + pairs + invented.
    """
    right = set(gold) & set(predicted)
    gold_left = sorted(set(gold) - right)
    predicted_left = sorted(set(predicted) - right)
    candidates = [
        (PAIRED_KINDS.index(kind), -overlap, ours, theirs)
        for ours, theirs in product(gold_left, predicted_left)
        if (overlap := min(ours[1], theirs[1]) - max(ours[0], theirs[0])) > 0
        for kind in [_kind(ours, theirs)]
    ]
    errors = []
    free = set(gold_left), set(predicted_left)
    for kind, _, ours, theirs in sorted(candidates):
        if ours in free[0] and theirs in free[1]:
            free[0].remove(ours)
            free[1].remove(theirs)
            errors.append(SpanError(PAIRED_KINDS[kind], ours, theirs))
    errors += [SpanError(MISSED, span, None) for span in free[0]]
    errors += [SpanError(INVENTED, None, span) for span in free[1]]
    return sorted(errors, key=lambda error: (error.gold or error.predicted, error.kind))


def _kind(gold: Span, predicted: Span) -> str:
    if gold[:2] == predicted[:2]:
        return "wrong_label"
    return "wrong_boundary" if gold[2] == predicted[2] else "wrong_both"
