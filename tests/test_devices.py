"""A GPU that is not used, or that does not work, is said in one line with the cure."""

from __future__ import annotations

import logging

import pytest
import torch

from sft.errors import InputError, RunError
from sft.model import devices
from sft.model.devices import check_device, unused_gpu
from sft.model.loading import default_device, resolve_dtype
from sft.training.prepare import warn_of_mixed_precision
from tests.pretend_gpu import PretendGpu

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
VERSIONS = {  # how drivers of both kinds call themselves
    535: "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 2023\nGCC version: 12.2\n",
    570: "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs-builder)\n",
    580: "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.65.06  Release Build  (root@host)\n",
}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that gives this machine an NVIDIA GPU with a driver, which torch does not see."""
    for name in devices.HIDING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(devices, "NVIDIA_DRIVER", tmp_path / "driver")
    monkeypatch.setattr(devices, "NVIDIA_DEVICE", tmp_path / "nvidiactl")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)

    def give(driver: int | None = None, cuda: str | None = "13.0", *, device: bool = True, smi: bool = False) -> None:
        monkeypatch.setattr("torch.version.cuda", cuda)
        if driver:
            (tmp_path / "driver").mkdir()
            (tmp_path / "driver/version").write_text(VERSIONS[driver], encoding="utf-8")
        if device:
            (tmp_path / "nvidiactl").touch()
        if smi:
            (tmp_path / "bin").mkdir()
            (tmp_path / "bin/nvidia-smi").write_text("#!/bin/sh\n")
            (tmp_path / "bin/nvidia-smi").chmod(0o755)

    return give


# Without the first command pip keeps the torch that is there: its version is the one that is asked for.
VERSION = torch.__version__.partition("+")[0]
REPLACED = f"先 pip uninstall -y torch，再按 pytorch.org 的说明装带 CUDA 的 torch {VERSION}"


@pytest.mark.parametrize(
    "given, cause, cure",
    [
        ({"driver": 580, "cuda": None}, "不带 CUDA", REPLACED),
        ({"smi": True, "cuda": None, "device": False}, "不带 CUDA", REPLACED),  # Windows
        ({"driver": 535}, "驱动 535 太旧", "要 580 以上；请更新驱动"),
        ({"driver": 570}, "驱动 570 太旧", "要 580 以上；请更新驱动"),
        ({"driver": 580, "device": False}, "容器", "--gpus all"),
        ({"driver": 570, "cuda": "12.8"}, "用不了", "nvidia-smi"),  # new enough: something else is wrong
        ({"smi": True}, "用不了", "nvidia-smi"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_said_in_one_line_with_the_cure(given, cause, cure, machine, caplog):
    machine(**given)
    caplog.set_level(logging.INFO)
    check_device(CPU, torch.float32)
    (record,) = caplog.records
    line = record.getMessage()
    assert record.levelno == logging.WARNING
    assert cause in line
    assert cure in line
    assert "\n" not in line


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_gpu_that_the_user_hides_is_not_mentioned(hidden, machine, monkeypatch):
    machine(driver=580)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert unused_gpu() is None


def test_nothing_is_said_where_the_cpu_was_asked_for_or_there_is_no_gpu(machine, caplog):
    assert unused_gpu() is None
    machine(driver=535)
    check_device(CPU, torch.float32, on_purpose=True)
    assert not caplog.records


def test_a_gpu_that_works_is_not_mentioned(caplog):
    caplog.set_level(logging.INFO)
    with PretendGpu():
        assert default_device() == CUDA
        check_device(default_device(), torch.bfloat16)
    assert not caplog.records


def test_of_two_gpus_the_first_is_used_and_torchrun_is_named(caplog):
    caplog.set_level(logging.INFO)
    with PretendGpu(count=2):
        check_device(CUDA, torch.bfloat16)
    (line,) = caplog.messages
    assert line == "有 2 张卡，只用第一张；都用上请用 torchrun --nproc_per_node 2"


@pytest.mark.parametrize(
    "error, kind, said",
    [
        (
            RuntimeError("CUDA error: no kernel image is available for execution on the device\nhints"),
            InputError,
            "sm_70",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ARCH_MISMATCH when calling `cublasCreate(handle)`"),
            InputError,
            "sm_70",
        ),
        (RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable"), InputError, "busy"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB"), RunError, "nvidia-smi"),
    ],
)
def test_a_card_that_cannot_multiply_is_refused_in_one_line(error, kind, said, monkeypatch):
    def refuse(self, other):
        raise error

    with PretendGpu(capability=(7, 0)):
        monkeypatch.setattr(torch.Tensor, "__matmul__", refuse)
        with pytest.raises(kind) as refused:
            check_device(CUDA, torch.float16)
        monkeypatch.undo()
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_prediction_takes_the_device_that_training_takes(kind, monkeypatch):
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: torch.device(kind))
    assert default_device() == torch.device(kind)


def test_without_an_accelerator_it_is_the_cpu(monkeypatch):
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: None)
    assert default_device() == CPU


def test_auto_on_a_mac_is_float32_and_on_an_xpu_what_it_computes_in(monkeypatch):
    assert resolve_dtype("auto", torch.device("mps")) == torch.float32
    for supported, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr("torch.xpu.is_bf16_supported", lambda answer=supported: answer)
        assert resolve_dtype("auto", torch.device("xpu")) == dtype


@pytest.mark.parametrize(
    "asked, dtype, said",
    [
        ("fp16", torch.bfloat16, "fp16 不起作用"),
        ("bf16", torch.float32, "--dtype"),
        ("fp8", torch.bfloat16, "fp8"),
        ("bf16", torch.bfloat16, None),
        ("fp16", torch.float16, None),
        ("no", torch.bfloat16, None),
    ],
)
def test_mixed_precision_of_accelerate_launch_is_answered_where_it_contradicts(
    asked, dtype, said, monkeypatch, caplog
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    warn_of_mixed_precision(dtype)
    assert [said in line for line in caplog.messages] == ([True] if said else [])
