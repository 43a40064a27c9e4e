"""Several processes share the windows of one input in turns.

Process r of n predicts windows r, n + r, 2n + r, …, each whole, so that its numbers are those of one process alone;
the first process has all results, in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch.distributed

from sft.decoding.decode import groups
from sft.errors import RowError, RunError
from sft.prediction.predictor import Loaded, predict_window, rows_per_window
from sft.processes import process_count, process_index
from sft.tasks.evaluation import Tally


def predict_in_turns(
    loaded: Loaded, rows: Iterable[dict | RowError], group: torch.distributed.ProcessGroup | None
) -> Iterator[tuple[list[bytes], Tally]]:
    """Each window's output lines and counts, in order, in the first process; the others yield nothing."""
    count, index = process_count(), process_index()
    windows = groups(rows, rows_per_window(loaded.limits))
    for turn in groups(windows, count):
        mine = predict_window(loaded, turn[index]) if index < len(turn) else None
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
