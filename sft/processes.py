"""Several processes, as `torchrun` and `accelerate launch` start them, share the windows of one input in turns.

Process r of n predicts windows r, n + r, 2n + r, …, each whole, so that its numbers are those of one process alone;
the first process has all results, in order.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed

from sft.decoding.decode import groups
from sft.errors import RowError, RunError
from sft.prediction.predictor import Loaded, predict_window, rows_per_window
from sft.tasks.evaluation import Tally

Group = torch.distributed.ProcessGroup | None  # None for one process alone
PATIENCE = timedelta(days=7)  # how long a process waits for another's window; a dead one ends all by the launcher


def process_index() -> int:
    """Which of the launched processes this is; 0 without a launcher."""
    return int(os.environ.get("RANK", "0")) if process_count() > 1 else 0


def process_count() -> int:
    """How many processes were launched; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def choose_device() -> None:
    """Give each process of a machine a GPU of its own, where there are GPUs."""
    if process_count() > 1 and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


@contextmanager
def joined() -> Iterator[Group]:
    """Within this the processes can talk; results are small, so they go by gloo, over the CPU."""
    if process_count() == 1:
        yield None
        return
    torch.distributed.init_process_group("gloo")
    try:
        yield torch.distributed.new_group(timeout=PATIENCE)
    finally:
        torch.distributed.destroy_process_group()


def agree_on(value: int, group: Group) -> int:
    """The first process's ``value``, in every process."""
    if group is None:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0, group=group)
    return values[0]


def predict_in_turns(
    loaded: Loaded, rows: Iterable[dict | RowError], group: Group
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
