"""Tensors to a GPU, all in one copy.

A copy from ordinary memory makes the host wait until the GPU has done everything before it, so fifteen small index
tensors are fifteen waits. From pinned memory the host need not wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

ALIGNED_BYTES = 8  # where a tensor begins in the copy: a multiple of the largest number


def copied_together(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """CPU tensors on ``device``, in order, with their shapes and dtypes; on a GPU the host does not wait.

    They share one block of memory there. Tensors that are on ``device`` already are returned as they are.
    """
    if all(tensor.device.type == device.type for tensor in tensors):
        return list(tensors)
    flat = [tensor.contiguous().flatten().view(torch.uint8) for tensor in tensors]
    sizes = [-(-len(part) // ALIGNED_BYTES) * ALIGNED_BYTES for part in flat]
    starts = [0, *accumulate(sizes)]
    packed = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    for start, part in zip(starts, flat, strict=False):
        packed[start : start + len(part)] = part
    packed = packed.to(device, non_blocking=device.type == "cuda")
    return [
        packed[start : start + len(part)].view(tensor.dtype).view(tensor.shape)
        for start, part, tensor in zip(starts, flat, tensors, strict=False)
    ]
