"""Which of several processes this is, as `torchrun` and `accelerate launch` start them, and how they talk.

The launcher sets RANK (which process), WORLD_SIZE (how many) and LOCAL_RANK (which on this machine). Only this module
reads them. torch is imported inside the functions, so that importing this module is cheap.

Also here: how the memory of a GPU is handed out, which has to be said before torch starts.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# How long a process waits for the others. A dead process is noticed by the launcher, which stops them all.
TIMEOUT = timedelta(days=7)
ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second is the old name
GROWING = "expandable_segments:True"
VIRTUAL_MEMORY = 102  # CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED


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


def let_segments_grow() -> None:
    """Let the blocks of torch's CUDA allocator grow, so that steps of ever other shapes leave no gaps.

    Call it before torch starts CUDA. Does nothing where the user has set the allocator, and where this cannot work.
    """
    torch = sys.modules.get("torch")
    started = torch is not None and torch.cuda.is_initialized()
    if not started and not any(name in os.environ for name in ALLOCATOR_SETTINGS) and _has_virtual_memory():
        os.environ[ALLOCATOR_SETTINGS[0]] = GROWING


def segments_grow() -> bool:
    """Whether the blocks of torch's CUDA allocator can grow, as its settings say."""
    return any(GROWING in os.environ.get(name, "").replace(" ", "") for name in ALLOCATOR_SETTINGS)


def _has_virtual_memory() -> bool:
    """Whether every GPU of this machine has virtual memory; some virtual GPUs do not. Only asked on Linux itself."""
    if not sys.platform.startswith("linux") or "microsoft" in platform.release().lower():  # the second: WSL
        return False
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:  # no driver
        return False
    count, supported = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return False
    return count.value > 0 and all(
        driver.cuDeviceGetAttribute(ctypes.byref(supported), VIRTUAL_MEMORY, index) == 0 and supported.value == 1
        for index in range(count.value)
    )
