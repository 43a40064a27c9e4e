"""95 % bootstrap intervals of scores, over rows (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).

Scores depend only on counts summed over rows, so rows with the same counts are drawn together: one resample is one
multinomial draw over the distinct kinds of row. The distribution is the same, and this is much faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 1000
_DRAWS_AT_ONCE = 1 << 22  # 32 MB of counts

# Counts of shape (resamples, kinds of row) → scores by name, each of shape (resamples,)
Scores = Callable[["np.ndarray"], "dict[str, np.ndarray]"]


class Estimate(NamedTuple):
    """A score and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def with_intervals(rows: Sequence[int], scores: Scores, seed: int = 42) -> dict[str, Estimate]:
    """Each score of the given rows, with its 2.5th and 97.5th percentile over resamples.

    Args:
        rows: the number of rows of each kind; at least one row in total.
        scores: computes the scores from counts.
    """
    import numpy as np

    counts = np.asarray(rows, dtype=np.int64)
    values = scores(counts[None, :])
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // len(counts))
    resampled: dict[str, list[np.ndarray]] = {name: [] for name in values}
    for start in range(0, RESAMPLES, at_once):
        size = min(at_once, RESAMPLES - start)
        draws = generator.multinomial(counts.sum(), counts / counts.sum(), size=size)
        for name, drawn in scores(draws).items():
            resampled[name].append(drawn)
    ends = {name: np.percentile(np.concatenate(drawn), (2.5, 97.5)) for name, drawn in resampled.items()}
    return {name: Estimate(float(values[name][0]), *map(float, ends[name])) for name in values}


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole``, and 0 where ``whole`` is 0; for precision, recall and F1."""
    import numpy as np

    return np.divide(part, whole, out=np.zeros(np.broadcast_shapes(part.shape, whole.shape)), where=whole > 0)


def mean_over(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Mean of the ``counted`` values over the last axis, 0 where none is counted; for macro averages."""
    return ratio((values * counted).sum(-1), counted.sum(-1))
