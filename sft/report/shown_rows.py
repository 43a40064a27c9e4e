"""Which rows of a long stream a report shows. Memory is bounded, and the choice is deterministic."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

MOST_KEPT = 4000  # rows of each group in memory
WRONG, RIGHT, UNJUDGED = "wrong", "right", "unjudged"
_SHARE_OF_WRONG = 0.85  # of the bytes, if both groups have more rows than fit


class ShownRows:
    """Keeps at most ``MOST_KEPT`` rows of each group: those with the highest priority, or a random sample."""

    def __init__(self, seed: int = 42) -> None:
        self._random = random.Random(seed)
        self._kept: dict[str, list[tuple[float, int, list]]] = {WRONG: [], RIGHT: [], UNJUDGED: []}
        self.seen = dict.fromkeys(self._kept, 0)

    def add(self, group: str, row: list, priority: float | None = None) -> None:
        """Add one row. Without ``priority`` every row of the group is equally likely to be kept."""
        self.seen[group] += 1
        entry = (self._random.random() if priority is None else priority, -sum(self.seen.values()), row)
        kept = self._kept[group]
        if len(kept) < MOST_KEPT:
            heapq.heappush(kept, entry)
        else:
            heapq.heappushpop(kept, entry)

    def chosen(self, budget_bytes: int, size_bytes: Callable[[list], int]) -> tuple[list[list], dict[str, dict]]:
        """The rows to show, in the order of the stream, and ``{group: {"seen", "shown"}}``.

        Args:
            budget_bytes: the most that all rows together may take.
            size_bytes: the size of one row.
        """
        chosen: list[tuple[int, list]] = []
        shown = {}
        left = budget_bytes
        for group, entries in self._kept.items():
            room = left * _SHARE_OF_WRONG if group == WRONG else left
            taken = _fitting(sorted(entries, reverse=True), room, size_bytes)
            left -= sum(size for size, _, _ in taken)
            chosen += [(order, row) for _, order, row in taken]
            shown[group] = {"seen": self.seen[group], "shown": len(taken)}
        return [row for _, row in sorted(chosen, key=lambda entry: -entry[0])], shown


def _fitting(entries: list, room: float, size_bytes: Callable[[list], int]) -> list[tuple[int, int, list]]:
    """The first entries whose sizes add up to at most ``room``, as ``(size, order, row)``."""
    taken = []
    for _, order, row in entries:
        size = size_bytes(row)
        room -= size
        if room < 0:
            break
        taken.append((size, order, row))
    return taken
