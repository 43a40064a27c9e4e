"""N1: NaN and infinity at every step. O1: out of memory in random micro-batches. I: however a step is computed."""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.reliability.matrix import Family, Job, Outcome
from benchmarks.reliability.runs import (
    LOSSES,
    RESUME,
    World,
    case,
    flags,
    losses_after,
    record_losses,
    require,
    require_resumable,
    require_told,
    require_whole,
    run,
    undisturbed,
)
from benchmarks.reliability.writes import shares
from sft.files import checkpoint_folder
from tests.stopped_runs import rows

ROOT = Path(__file__).resolve().parents[2]
LARGEST_DIFFERENCE, MEAN_DIFFERENCE = 1e-5, 1e-6
TWENTY = ("--max_train_samples", "56", "--num_train_epochs", "3", "--max_steps", "20", "--eval_steps", "7")
KINDS = ("损失 NaN", "损失 Inf", "梯度 NaN", "梯度 Inf")


# ---- N1 ----


def not_finite_jobs(world: World, short: bool) -> Iterator[Job]:
    cases = list(product(range(1, 21), KINDS))
    yield from shares(not_finite, [(2, KINDS[0]), (5, KINDS[3])] if short else cases)


def not_finite(world: World, folder: Path, cases: Sequence[tuple[int, str]]) -> Iterator[Outcome]:
    for step, kind in cases:
        yield case(folder, f"N1 第 {step} 步 {kind}", spoil, world, step, kind)


class Spoiled(torch.autograd.Function):
    """Passes a loss on, and multiplies its gradient by NaN or infinity."""

    @staticmethod
    def forward(context, loss: torch.Tensor, factor: float) -> torch.Tensor:
        context.factor = factor
        return loss.clone()

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * context.factor, None


def spoil(folder: Path, world: World, step: int, kind: str) -> None:
    done = run(flags(world, folder / "run", *TWENTY), folder, lambda: spoil_step(step, kind))
    require_told(done, {1})
    require(
        f"第 {step} 步" in done.errors and "行" in done.errors.rpartition("训练集第")[2], "没有说哪一步哪些行", done
    )
    require_whole(folder / "run")
    for path in (folder / "run").rglob("*.safetensors"):
        finite = all(torch.isfinite(tensor).all() for tensor in load_file(path).values())
        require(finite, f"{path} 里有 NaN 或 Inf")
    require_resumable(world, folder, TWENTY)


def spoil_step(step: int, kind: str) -> None:
    """Make the loss or the gradients of a step NaN or infinite."""
    from sft.training import trainer

    supervised_loss, factor = trainer.supervised_loss, float("nan" if kind.endswith("NaN") else "inf")
    current = [0]
    training_step = trainer.SftTrainer.training_step

    def counted(self, *arguments, **keywords):
        current[0] = self.state.global_step + 1
        return training_step(self, *arguments, **keywords)

    def spoiled(*arguments):
        loss = supervised_loss(*arguments)
        if current[0] != step or not loss.requires_grad:
            return loss
        return loss * factor if kind.startswith("损失") else Spoiled.apply(loss, factor)

    trainer.SftTrainer.training_step, trainer.supervised_loss = counted, spoiled


# ---- O1 ----

FIFTY = (
    *("--max_train_samples", "56", "--num_train_epochs", "9", "--max_steps", "50", "--lora_dropout", "0"),
    *("--eval_strategy", "no", "--save_steps", "50", "--learning_rate", "1e-3", "--batching", "padded"),
)
OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
)


def memory_jobs(world: World, short: bool) -> Iterator[Job]:
    undisturbed(world, *FIFTY)
    yield from shares(memory_gone, range(1 if short else 50))


def memory_gone(world: World, folder: Path, seeds: Sequence[int]) -> Iterator[Outcome]:
    for seed in seeds:
        yield case(folder, f"O1 随机 {seed}", lose_memory, world, seed)


def lose_memory(folder: Path, world: World, seed: int) -> None:
    draw = random.Random(seed)
    fails = {draw.randint(1, 50) for _ in range(draw.randint(1, 3))}
    error = OUT_OF_MEMORY[seed % 2]
    record = record_losses(folder / LOSSES)

    def prepare() -> None:
        record()
        out_of_memory_at(fails, error)

    done = run(flags(world, folder / "run", *FIFTY), folder, prepare)
    require(done.code == 0 and "存不够：每次前向改为" in done.errors, "没有减半重算", done)
    require_close(folder / "run", undisturbed(world, *FIFTY))
    require_rows_in_order(folder / LOSSES, undisturbed(world, *FIFTY).parent / LOSSES)


def out_of_memory_at(calls: set[int], error: Exception) -> None:
    """Let the forward passes with these numbers (from 1) run out of memory, if they have more than one row."""
    from transformers.models.qwen2.modeling_qwen2 import Qwen2Model

    forward, made = Qwen2Model.forward, []

    def limited(self, *arguments, **keywords):
        if self.training:
            made.append(1)
            several = keywords.get("layout") is not None or len(keywords["input_ids"]) > 1
            if len(made) in calls and several:
                raise error
        return forward(self, *arguments, **keywords)

    Qwen2Model.forward = limited


def require_rows_in_order(ours: Path, theirs: Path) -> None:
    """Require that every step had the same rows. A step that was computed again has some of them twice."""

    def lines(path: Path) -> dict[int, set[int]]:
        found: dict[int, set[int]] = {}
        for step, numbers, _ in losses_after(path, 0):
            found.setdefault(step, set()).update(numbers)
        return found

    require(lines(ours) == lines(theirs), "各步的数据不同")


def require_close(output_dir: Path, reference: Path) -> None:
    """Require the same loss at each step, up to rounding."""
    ours, theirs = (
        {row["step"]: row["loss"] for row in rows(folder) if "loss" in row} for folder in (output_dir, reference)
    )
    require(ours.keys() == theirs.keys(), f"记录的步不同：{sorted(ours)}")
    differences = [ours[step] - theirs[step] for step in theirs]
    largest, mean = max(map(abs, differences)), abs(statistics.mean(differences))
    require(largest <= LARGEST_DIFFERENCE, f"损失最大相差 {largest:.2e}")
    require(mean <= MEAN_DIFFERENCE, f"损失平均相差 {mean:.2e}")


# ---- I ----

TREE = ("--batching", "prefix_tree")  # of a flag given twice, the last value counts
ACCUMULATED = ("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4")
CHECKPOINTING = ("--gradient_checkpointing", "true")
RESUMED_AT = (13, 25, 41)


def invariant_jobs(world: World, short: bool) -> Iterator[Job]:
    undisturbed(world, *FIFTY)
    ways = {
        "前缀树": TREE,
        "补齐，累积 4": ACCUMULATED,
        "前缀树，累积 4，重算激活": (*TREE, *ACCUMULATED, *CHECKPOINTING),
        "补齐，重算激活": CHECKPOINTING,
        "前缀树，小块": (*TREE, "--max_tokens_per_micro_batch", "300"),
        "补齐，小块": ("--max_tokens_per_micro_batch", "300"),
        "前缀树，累积 4": (*TREE, *ACCUMULATED),
        "前缀树，重算激活": (*TREE, *CHECKPOINTING),
        "补齐，累积 4，重算激活": (*ACCUMULATED, *CHECKPOINTING),
    }
    for name, more in list(ways.items())[: 3 if short else None]:
        yield Job(invariant, (name, trained_so, more))
    for more in ((), TREE):
        yield Job(invariant, ("显存不够减半", memory_halved, more))
        for step in RESUMED_AT[:1] if short else RESUMED_AT:
            yield Job(invariant, (f"第 {step} 步续跑", resumed_so, (step, *more)))
        if short:
            break
        for accumulated in (("--per_device_train_batch_size", "4"), ("--per_device_train_batch_size", "2", *TWICE)):
            yield Job(invariant, ("两个进程", in_two_processes, (*more, *accumulated)))


TWICE = ("--gradient_accumulation_steps", "2")


def invariant(world: World, folder: Path, name: str, check: Callable[..., None], more: tuple) -> Iterator[Outcome]:
    yield case(folder, f"I {name} {more}", check, world, *more)


def trained_so(folder: Path, world: World, *more: str) -> None:
    done = run(flags(world, folder / "run", *FIFTY, *more), folder)
    require(done.code == 0, "训练失败", done)
    require_close(folder / "run", undisturbed(world, *FIFTY))


def memory_halved(folder: Path, world: World, *more: str) -> None:
    hook = lambda: out_of_memory_at({7, 20}, OUT_OF_MEMORY[0])  # noqa: E731
    done = run(flags(world, folder / "run", *FIFTY, *more), folder, hook)
    require(done.code == 0 and "存不够：每次前向改为" in done.errors, "没有减半重算", done)
    require_close(folder / "run", undisturbed(world, *FIFTY))


def resumed_so(folder: Path, world: World, step: int, *more: str) -> None:
    arguments = [*flags(world, folder / "run", *FIFTY, *more), "--save_steps", str(step)]
    from tests.stopped_runs import Stop, stop_at

    run(arguments, folder, lambda: stop_at(Stop("step", step + 2)))
    require(checkpoint_folder(folder / "run", step).is_dir(), f"没有第 {step} 步的检查点")
    done = run([*arguments, *RESUME], folder)
    require(done.code == 0, "续跑失败", done)
    require_close(folder / "run", undisturbed(world, *FIFTY))


def in_two_processes(folder: Path, world: World, *more: str) -> None:
    words = flags(world, folder / "run", *FIFTY, *more)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "train_qwen2_classification.py", *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    require(done.returncode == 0, f"训练失败：{done.stderr[-1500:]}")
    require_close(folder / "run", undisturbed(world, *FIFTY))
    shutil.rmtree(folder / "run")


FAMILIES = (
    Family(
        "N1",
        "第 1 到 20 步的每一步：损失或梯度变成 NaN 或 Inf",
        "立即停止，说出步和数据的行；磁盘上没有 NaN；去掉原因后续跑，结果逐位相同",
        not_finite_jobs,
    ),
    Family(
        "O1",
        "在随机的前向里显存（或内存）不够，一次训练一到三次",
        "减半重算，数据和顺序不变，每步损失相差不超过 1e-5，平均不超过 1e-6",
        memory_jobs,
    ),
    Family(
        "I",
        "同样的 50 步换一种算法：前缀树、补齐，累积 1、4，1、2 个进程，重算激活，小块，三处续跑，显存不够减半",
        "每步损失相差不超过 1e-5，平均不超过 1e-6",
        invariant_jobs,
    ),
)
