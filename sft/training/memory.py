"""How much memory this process has taken at most."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import torch


def peak_memory_bytes(device: torch.device) -> int:
    """The most that tensors took on a CUDA device, or the process on a CPU, since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    status = Path("/proc/self/status")  # Linux: of this program only; getrusage counts the one it was started from
    if status.is_file():
        for line in status.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
