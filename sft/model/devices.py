"""Whether this machine's GPU is used, whether it works, and whether float16 is wide enough; each told in one line."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.utils.memory import should_reduce_batch_size
from peft import PeftModel
from transformers import PreTrainedModel

from sft.errors import InputError, RunError, one_line
from sft.processes import is_first_process, process_count

logger = logging.getLogger(__name__)

NVIDIA_DRIVER = Path("/proc/driver/nvidia")  # Linux, and Linux in Windows
NVIDIA_DEVICE = Path("/dev/nvidiactl")  # missing in a container that was not given the GPU
DRIVER_VERSION = re.compile(r"Kernel Module.*?\s(\d+)\.\d+")
LEAST_DRIVERS = {"12": 525, "13": 580}  # for each CUDA, the oldest driver
HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
TRIED_SIZE = 16  # of the matrix product that is tried: what tensor cores take


def check_device(device: torch.device, dtype: torch.dtype, *, on_purpose: bool = False) -> None:
    """Say which GPUs are left unused, and try the one that is used.

    Args:
        device: what the program will compute on.
        on_purpose: the user asked for the CPU.

    Raises:
        InputError: torch cannot compute on ``device``.
        RunError: its memory is full.
    """
    if device.type == "cpu" and not on_purpose and (reason := unused_gpu()) and is_first_process():
        logger.warning("%s；现在用 CPU，会慢得多", reason)
    if device.type != "cpu" and process_count() == 1 and (count := torch.accelerator.device_count()) > 1:
        logger.info("有 %d 张卡，只用第一张；都用上请用 torchrun --nproc_per_node %d", count, count)
    require_working(device, dtype)


def unused_gpu() -> str | None:
    """Why torch cannot use this machine's GPU, and the cure; None if it can, if there is none, or if it is hidden.

    A GPU is hidden by an environment variable such as ``CUDA_VISIBLE_DEVICES=-1``.
    """
    if torch.accelerator.is_available() or any(os.environ.get(name) in ("", "-1") for name in HIDING):
        return None
    if not (NVIDIA_DRIVER / "version").is_file() and shutil.which("nvidia-smi") is None:
        return None
    if torch.version.cuda is None:
        return f"这台机器有 NVIDIA 显卡，装的 torch {torch.__version__} 却不带 CUDA；请{_replaced_by('带 CUDA 的')}"
    driver, least = _driver_version(), LEAST_DRIVERS.get(torch.version.cuda.partition(".")[0])
    if driver and least and driver < least:
        return (
            f"NVIDIA 显卡的驱动 {driver} 太旧，torch {torch.__version__} 的 CUDA {torch.version.cuda} "
            f"要 {least} 以上；"
            f"请更新驱动，或{_replaced_by('CUDA 版本低一些的')}"
        )
    if driver and not NVIDIA_DEVICE.exists():
        return "这台机器有 NVIDIA 显卡，这个容器里却用不到；请在 docker run 时加 --gpus all"
    return f"torch 用不了这台机器的 NVIDIA 显卡（{_cuda_problem()}）；请先让 nvidia-smi 运行正常，再重试"


def _replaced_by(build: str) -> str:
    """How to get another build of torch. Its version is the same, so pip would say that it is installed already."""
    version = torch.__version__.partition("+")[0]
    return f"先 pip uninstall -y torch，再按 pytorch.org 的说明装{build} torch {version}"


def _driver_version() -> int | None:
    """The first number of the NVIDIA driver's version; None if it is not known."""
    path = NVIDIA_DRIVER / "version"
    found = DRIVER_VERSION.search(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
    return int(found[1]) if found else None


def _cuda_problem() -> str:
    """What CUDA says when it is started."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        return one_line(error)
    return "CUDA 没有找到可用的卡"


def require_working(device: torch.device, dtype: torch.dtype) -> None:
    """Compute something small on ``device``; a CPU is not tried.

    Raises:
        InputError: it cannot, for example because torch has no kernels for this card.
        RunError: its memory is full.
    """
    if device.type == "cpu":
        return
    try:
        square = torch.ones((TRIED_SIZE, TRIED_SIZE), device=device, dtype=dtype)
        (square @ square).sum().item()
    except RuntimeError as error:
        if should_reduce_batch_size(error):
            raise RunError("显存已经占满，连一个小矩阵也放不下；请先结束占着它的程序（nvidia-smi 会列出）") from error
        raise InputError(
            f"{_card(device)}用不了装的 torch {torch.__version__}（{one_line(error)}）；"
            f"请{_replaced_by('支持这张卡的')}，或设 CUDA_VISIBLE_DEVICES=-1 改用 CPU"
        ) from error


def _card(device: torch.device) -> str:
    """The name of a card, and what torch was built for if that can be told."""
    if device.type != "cuda":
        return f"{device.type.upper()} "
    major, minor = torch.cuda.get_device_capability(device)
    built = "、".join(torch.cuda.get_arch_list())
    return f"{torch.cuda.get_device_name(device)}（sm_{major}{minor}{f'，torch 支持 {built}' if built else ''}）"


@torch.no_grad()
def require_finite(model: PreTrainedModel | PeftModel, token_ids: Sequence[int], where: str) -> None:
    """For a model in float16: compute one row, and see that no number is out of range.

    Args:
        token_ids: a real row of the user's.
        where: where the row is, for the message.

    Raises:
        InputError: a hidden state is NaN or Inf.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if base.dtype != torch.float16:
        return
    states = base.base_model(input_ids=torch.tensor([token_ids], device=base.device), use_cache=False)
    if not torch.isfinite(states.last_hidden_state).all():
        raise InputError(f"{where}：这个模型用 float16 算出了 NaN 或 Inf，超出了它的范围；请加 --dtype float32")
