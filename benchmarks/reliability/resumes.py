"""E1: a run resumed at every step. E2: a run interrupted again and again."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from benchmarks.reliability import preload
from benchmarks.reliability.matrix import Family, Job, Outcome
from benchmarks.reliability.runs import (
    KILLED,
    LOSSES,
    RESUME,
    World,
    case,
    flags,
    losses_after,
    record_losses,
    require,
    require_same,
    require_told,
    run,
    undisturbed,
)
from sft.files import checkpoint_folder
from sft.training import manifests
from tests.stopped_runs import Stop, stop_at

STEPS = 40
SAVE_EACH = ("--save_steps", "1", "--save_total_limit", str(STEPS))
SAVE_LAST = ("--save_steps", str(STEPS), "--save_total_limit", str(STEPS))


def settings_of_resumes(accumulation: int, batching: str, workers: int, logging_steps: int) -> tuple[str, ...]:
    """Forty steps of four rows in three epochs."""
    return (
        *("--max_train_samples", "56", "--num_train_epochs", "3", "--max_steps", str(STEPS), "--eval_steps", "9"),
        *("--per_device_train_batch_size", str(4 // accumulation)),
        *("--gradient_accumulation_steps", str(accumulation), "--batching", batching),
        *("--dataloader_num_workers", str(workers), "--logging_steps", str(logging_steps)),
    )


def resume_jobs(world: World, short: bool) -> Iterator[Job]:
    for chosen in product((1, 4), ("prefix_tree", "padded"), (0, 2), (1, 7)):
        if not short:
            yield Job(resumes, (chosen, range(1, STEPS)))
        elif chosen == (4, "prefix_tree", 2, 7):
            yield Job(resumes, (chosen, (14, 30)))  # the end of an epoch, and the middle of one


def resumes(world: World, folder: Path, chosen: tuple, steps: range) -> Iterator[Outcome]:
    more = settings_of_resumes(*chosen)
    reference = undisturbed(world, *more, *SAVE_EACH)
    for step in steps:
        yield case(folder, f"E1 {chosen} 第 {step} 步", resume_at, world, reference, more, step)


def resume_at(folder: Path, world: World, reference: Path, more: tuple[str, ...], step: int) -> None:
    """Go on from one checkpoint. The log of the whole run is there, as if the kill had come much later."""
    source = checkpoint_folder(reference, step)
    for needed in {step, manifests.best_step_of(source) or step}:
        name = f"checkpoint-{needed}"
        shutil.copytree(reference / name, folder / "run" / name)
    shutil.copy(reference / "metrics.jsonl", folder / "run")
    arguments = [*flags(world, folder / "run", *more, *SAVE_LAST), *RESUME]
    done = run(arguments, folder, record_losses(folder / LOSSES))
    require(done.code == 0, "续跑失败", done)
    expected = losses_after(reference.parent / LOSSES, step)
    require(losses_after(folder / LOSSES, 0) == expected, "之后各步的损失或数据不同")
    require_same(folder / "run", reference, checkpoint=STEPS)


CHAINS = (
    (),
    ("--save_total_limit", "1", "--batching", "padded"),
    ("--save_steps", "1", "--eval_steps", "1", "--save_total_limit", "2"),
    ("--save_steps", "3", "--logging_steps", "4", "--dataloader_num_workers", "2"),
    ("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4", "--eval_strategy", "epoch"),
)
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def chain_jobs(world: World, short: bool) -> Iterator[Job]:
    return (Job(chains, (seed,)) for seed in ((2,) if short else range(50)))


def chains(world: World, folder: Path, seed: int) -> Iterator[Outcome]:
    yield case(folder, f"E2 第 {seed} 串", interrupt_five_times, world, seed)


def interrupt_five_times(folder: Path, world: World, seed: int) -> None:
    draw, more = random.Random(seed), CHAINS[seed % len(CHAINS)]
    arguments = [*flags(world, folder / "run", *more), *RESUME]
    for _ in range(5):
        number = draw.choice(SIGNALS)
        if draw.random() < 0.5 and hasattr(preload.ctypes.CDLL(None), "watch_files"):
            mode = preload.KILL_HALFWAY if number == signal.SIGKILL else preload.SIGNAL
            hook = preload.watch(folder / "run", mode, draw.randint(1, 120), signal=number)
        else:
            stop = Stop("step", draw.randint(1, 6), number)
            hook = lambda stop=stop: stop_at(stop)  # noqa: E731
        done = run(arguments, folder, hook)
        require_told(done, {0, KILLED, 130, 128 + number, -number})
    done = run(arguments, folder)
    require(done.code == 0, "续跑失败", done)
    require_same(folder / "run", undisturbed(world, *more))


FAMILIES = (
    Family(
        "E1",
        "在 40 步的每一步续跑（累积 1、4；前缀树、补齐；读数据的进程 0、2；每 1、7 步记录；LoRA dropout 0.05）",
        "之后每步的损失、样本顺序、权重、Adam、学习率、随机数状态逐位相同，metrics.jsonl 除时间外相同",
        resume_jobs,
    ),
    Family("E2", "同一次训练随机打断五次（杀死、信号、写到一半）", "结果与没有打断的逐位相同", chain_jobs),
)
