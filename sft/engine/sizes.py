"""Few sizes of matrices, for bfloat16 on a CPU.

There oneDNN compiles a matrix product for each new size, which takes 5 to 50 ms: as long as several products of that
size. Batches of text have another number of tokens each time. So where it is so, tensors are filled up to one of few
sizes; what stands in the filling is computed and never read.
"""

from __future__ import annotations

import torch


def compiles_each_size(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a matrix product of a new size costs much more than one of a size that was there before."""
    return device.type == "cpu" and dtype == torch.bfloat16


def filled_up(count: int) -> int:
    """``count`` rounded up by at most a sixteenth, so that there are sixteen sizes between two doublings."""
    step = max(1, 2 ** (count.bit_length() - 5))
    return -(-count // step) * step
