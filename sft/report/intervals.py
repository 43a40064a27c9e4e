"""95 % intervals of scores: bootstrap over rows (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).

Scores depend only on counts summed over rows, so rows with the same counts are drawn together: one resample is one
multinomial draw over the distinct kinds of row. The distribution is the same, and this is much faster.

Where all rows are alike (all right, all wrong, or a single row), every resample is the same and the bootstrap interval
is one point, which says nothing. There a Wilson interval takes its place (Wilson 1927, JASA 22).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 1000
_SEED = 42
ONE_POINT = 1e-9  # a bootstrap interval narrower than this is one point
_QUANTILE = 1.959964  # of the normal distribution at 97.5 %
_DRAWS_AT_ONCE = 1 << 22  # 32 MB of counts

# Counts of shape (resamples, kinds of row) → scores by name, each of shape (resamples,)
Scores = Callable[["np.ndarray"], "dict[str, np.ndarray]"]


class Interval(NamedTuple):
    """The ends of an interval."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A score and the ends of its 95 % interval; None where there is no interval.

    Attributes:
        is_wilson: the interval is not from the bootstrap.
    """

    value: float
    low: float | None = None
    high: float | None = None
    is_wilson: bool = False


def with_intervals(
    rows: Sequence[int], scores: Scores, wilson_intervals: Mapping[str, Interval]
) -> dict[str, Estimate]:
    """Each score of the given rows, with its 2.5th and 97.5th percentile over resamples.

    Args:
        rows: the number of rows of each kind; at least one row in total.
        scores: computes the scores from counts.
        wilson_intervals: of each score, for those whose bootstrap interval is one point.
    """
    import numpy as np

    counts = np.asarray(rows, dtype=np.int64)
    values = scores(counts[None, :])
    generator = np.random.default_rng(_SEED)
    at_once = max(1, _DRAWS_AT_ONCE // len(counts))
    resampled: dict[str, list[np.ndarray]] = {name: [] for name in values}
    for start in range(0, RESAMPLES, at_once):
        size = min(at_once, RESAMPLES - start)
        draws = generator.multinomial(counts.sum(), counts / counts.sum(), size=size)
        for name, drawn in scores(draws).items():
            resampled[name].append(drawn)
    ends = {name: np.percentile(np.concatenate(drawn), (2.5, 97.5)) for name, drawn in resampled.items()}
    return {
        name: _estimate(float(values[name][0]), Interval(*map(float, ends[name])), wilson_intervals[name])
        for name in values
    }


def _estimate(value: float, bootstrap: Interval, wilson: Interval) -> Estimate:
    if bootstrap.high - bootstrap.low < ONE_POINT:
        return Estimate(value, *wilson, is_wilson=True)
    return Estimate(value, *bootstrap)


def wilson(part: int, whole: int) -> Interval:
    """The Wilson score interval of the share ``part / whole``; from 0 to 1 where ``whole`` is 0."""
    if not whole:
        return Interval(0.0, 1.0)
    share, square = part / whole, _QUANTILE**2
    middle = share + square / (2 * whole)
    reach = _QUANTILE * (share * (1 - share) / whole + square / (4 * whole**2)) ** 0.5
    low, high = ((middle + side * reach) / (1 + square / whole) for side in (-1, 1))
    return Interval(0.0 if part == 0 else low, 1.0 if part == whole else high)


def f1_interval(right: int, predicted: int, gold: int) -> Interval:
    """The harmonic means of the ends of the Wilson intervals of precision and recall: wide rather than narrow."""
    precision, recall = wilson(right, predicted), wilson(right, gold)
    return Interval(*(2 * p * r / (p + r) if p + r else 0.0 for p, r in zip(precision, recall, strict=True)))


def mean_interval(intervals: Sequence[Interval]) -> Interval:
    """The means of the ends, for macro averages; from 0 to 1 without any interval."""
    if not intervals:
        return Interval(0.0, 1.0)
    low, high = (sum(ends) / len(intervals) for ends in zip(*intervals, strict=True))
    return Interval(low, high)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole``, and 0 where ``whole`` is 0; for precision, recall and F1."""
    import numpy as np

    return np.divide(part, whole, out=np.zeros(np.broadcast_shapes(part.shape, whole.shape)), where=whole > 0)


def mean_over(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Mean of the ``counted`` values over the last axis, 0 where none is counted; for macro averages."""
    return ratio((values * counted).sum(-1), counted.sum(-1))
