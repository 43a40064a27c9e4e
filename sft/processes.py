"""Which of several processes this is, as `torchrun` and `accelerate launch` start them, and how they talk.

The launcher sets RANK (which process), WORLD_SIZE (how many) and LOCAL_RANK (which on this machine). Only this module
reads them. torch is imported inside the functions, so that importing this module is cheap.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# How long a process waits for the others. A dead process is noticed by the launcher, which stops them all.
TIMEOUT = timedelta(days=7)


def process_index() -> int:
    """Which of the launched processes this is, from 0; 0 without a launcher."""
    return int(os.environ.get("RANK", "0")) if process_count() > 1 else 0


def process_count() -> int:
    """How many processes were launched; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this is the process that reports to the user; true without a launcher."""
    return os.environ.get("RANK", "0") == "0"


def is_first_on_machine() -> bool:
    """Whether this process is the first on its machine; true without a launcher."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def has_launcher() -> bool:
    """Whether a launcher started this process."""
    return "LOCAL_RANK" in os.environ


def choose_device() -> None:
    """Give each process of a machine its own GPU, if there are GPUs."""
    import torch

    if process_count() > 1 and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


@contextmanager
def process_group() -> Iterator[ProcessGroup | None]:
    """Inside this context the processes can exchange objects; None for one process alone.

    The backend is gloo, over the CPU: results are small.
    """
    if process_count() == 1:
        yield None
        return
    import torch.distributed

    torch.distributed.init_process_group("gloo")
    try:
        yield torch.distributed.new_group(timeout=TIMEOUT)
    finally:
        torch.distributed.destroy_process_group()


def control_group() -> ProcessGroup | None:
    """A second connection of the processes that are connected already; None for one process alone.

    It goes over the CPU, so that small numbers can be exchanged without waiting for a GPU. Every process must call
    this.
    """
    import torch.distributed

    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return torch.distributed.new_group(timeout=TIMEOUT, backend="gloo")


def largest(value: int, group: ProcessGroup | None) -> int:
    """The largest ``value`` of all processes, in every process. Every process of the group must call this."""
    if group is None:
        return value
    import torch.distributed

    tensor = torch.tensor(value)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX, group)
    return int(tensor)


def broadcast(value: int, group: ProcessGroup | None) -> int:
    """The first process's ``value``, in every process."""
    if group is None:
        return value
    import torch.distributed

    values = [value]
    torch.distributed.broadcast_object_list(values, src=0, group=group)
    return values[0]
