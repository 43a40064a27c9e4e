"""Predict rows window by window: in one process, or in several that take turns.

Process r of n predicts windows r, n + r, 2n + r, …, each whole, so that its numbers are those of one process alone;
the first process has all results, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch.distributed

from sft.decoding.decode import in_groups, rows_per_window
from sft.errors import RowError, RunError
from sft.prediction.predictor import Predictor, metrics_of, predict_window
from sft.processes import process_count, process_index
from sft.tasks.evaluation import Tally


def predict_rows(
    predictor: Predictor, rows: Iterable[dict | RowError]
) -> tuple[Iterator[bytes], Callable[[], dict[str, float] | None]]:
    """Predict a user's rows in this process alone.

    Returns:
        The output lines in order, as JSON without newlines; and a function that gives the metrics (see `metrics_of`),
        to be called after the last line.
    """
    total = Tally()

    def lines() -> Iterator[bytes]:
        for outputs, tally in predict_in_turns(predictor, rows, None):
            total.add(tally)
            yield from outputs

    return lines(), lambda: metrics_of(predictor, total)


def predict_in_turns(
    predictor: Predictor, rows: Iterable[dict | RowError], group: torch.distributed.ProcessGroup | None
) -> Iterator[tuple[list[bytes], Tally]]:
    """Each window's output lines and counts, in order, in the first process; the others yield nothing."""
    count, index = (1, 0) if group is None else (process_count(), process_index())
    windows = in_groups(rows, rows_per_window(predictor.limits))
    for turn in in_groups(windows, count):
        mine = predict_window(predictor, turn[index]) if index < len(turn) else None
        if group is None:
            yield mine
            continue
        results = [None] * count if index == 0 else None
        try:
            torch.distributed.gather_object(mine, results, dst=0, group=group)
        except RuntimeError as error:
            raise RunError("另一个进程已经退出；原因见它的报错") from error
        if index == 0:
            yield from results[: len(turn)]
