"""How far a long run is, on stderr: a bar in a terminal, elsewhere a line now and then. No torch here."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from sft.console import duration, is_watched

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0
Window = TypeVar("Window", bound=tuple[Sequence, object])


def watched(windows: Iterable[Window], done: int, total: int | None) -> Iterator[Window]:
    """Pass ``(rows, …)`` windows on, telling how many rows are through, how fast, and how long the rest will take.

    Args:
        done: rows that an earlier run has finished; they do not count into the speed.
        total: rows in all; None where that is not known.
    """
    if not is_watched():
        yield from _in_lines(windows, done, total)
        return
    from tqdm import tqdm

    with tqdm(
        total=total, initial=done, desc="预测", unit="条", disable=total == 1, file=sys.stderr, dynamic_ncols=True
    ) as bar:
        for window in windows:
            yield window
            bar.update(len(window[0]))


def _in_lines(windows: Iterable[Window], done: int, total: int | None) -> Iterator[Window]:
    started = told = time.monotonic()
    predicted = 0
    for window in windows:
        yield window
        predicted += len(window[0])
        now = time.monotonic()
        if now - told >= SECONDS_BETWEEN_LINES:
            told = now
            logger.info("%s", _line(done, predicted, total, now - started))


def _line(done: int, predicted: int, total: int | None, seconds: float) -> str:
    speed = predicted / seconds
    so_far = f"已预测 {done + predicted:,} 条"
    if total is None:
        return f"{so_far}，每秒 {speed:.1f} 条"
    left = (total - done - predicted) / speed
    return f"{so_far}（共 {total:,}），每秒 {speed:.1f} 条，还要约 {duration(left)}"
