"""E3: a run killed at every change to its files, and at random. D1: no space, or a broken disk, at every write."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.reliability import preload
from benchmarks.reliability.matrix import Family, Job, Outcome
from benchmarks.reliability.runs import (
    KILLED,
    World,
    case,
    flags,
    require,
    require_resumable,
    require_told,
    require_whole,
    run,
)
from sft.training import checkpoints
from tests.stopped_runs import Done

ROTATED = ("--save_total_limit", "1")  # with saves at steps 2, 4 and 6: rotation deletes, too
SHARE = 5  # cases of one job


def events_of_a_run(world: World) -> list[preload.Event]:
    """Every change to its files that an undisturbed run makes, from the lock to the last result.

    Raises:
        Skipped: nothing can count them.
    """
    preload.require_library()
    folder = world.folder / "counted"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    hook = preload.watch(folder / "run", preload.COUNT, log=folder / "events")
    done = run(flags(world, folder / "run", *ROTATED), folder, hook)
    require(done.code == 0, "没有打扰的训练失败了", done)
    return preload.events_in(folder / "events")


def shares(function: Callable[..., Iterator[Outcome]], items: Sequence[object]) -> Iterator[Job]:
    """Jobs for all items, a few in each."""
    return (Job(function, (items[start : start + SHARE],)) for start in range(0, len(items), SHARE))


def sample(items: Sequence[object], count: int) -> list:
    """Items at even distances."""
    return [items[len(items) * number // count] for number in range(count)] if count < len(items) else list(items)


# ---- E3 ----


def kill_jobs(world: World, short: bool) -> Iterator[Job]:
    events = events_of_a_run(world)
    points = [(number, preload.KILL, event.words) for number, event in enumerate(events, 1)]
    points += [
        (number, preload.KILL_HALFWAY, event.words)
        for number, event in enumerate(events, 1)
        if event.kind == preload.WRITING
    ]
    yield from shares(kills, sample(points, 5) if short else points)
    yield from shares(random_kills, range(1 if short else 200))


def kills(world: World, folder: Path, points: Sequence[tuple[int, int, str]]) -> Iterator[Outcome]:
    for number, mode, words in points:
        how = "写到一半" if mode == preload.KILL_HALFWAY else "之前"
        yield case(folder, f"E3 第 {number} 次（{_short(words)}）{how}", kill_at, world, number, mode)


def kill_at(folder: Path, world: World, number: int, mode: int) -> None:
    hook = preload.watch(folder / "run", mode, number)
    done = run(flags(world, folder / "run", *ROTATED), folder, hook)
    require(done.code == KILLED, "没有被杀死", done)
    require_nothing_lost(folder / "run")
    require_resumable(world, folder, ROTATED)


def require_nothing_lost(output_dir: Path) -> None:
    """Require that the newest checkpoint was not deleted before the next one was whole."""
    require_whole(output_dir)
    log = output_dir / "metrics.jsonl"
    steps = [checkpoint.step for checkpoint in checkpoints.checkpoints_in(output_dir)]
    kept = [path for path in output_dir.glob(".replaced-checkpoint-*") if path.is_dir()]
    trained = log.exists() and any(f'"step":{step},' in log.read_text(encoding="utf-8") for step in (3, 4, 5, 6))
    require(steps or kept or not trained, "没有完整的检查点，虽然早已存过")


def random_kills(world: World, folder: Path, seeds: Sequence[int]) -> Iterator[Outcome]:
    for seed in seeds:
        yield case(folder, f"E3 随机 {seed}", kill_at_random, world, seed)


def kill_at_random(folder: Path, world: World, seed: int) -> None:
    seconds = random.Random(seed).uniform(0.05, 0.9)
    done = run(flags(world, folder / "run", *ROTATED), folder, kill_after_cpu_seconds=seconds)
    require(done.code in (KILLED, 0), "没有被杀死", done)
    if (folder / "run").exists():
        require_nothing_lost(folder / "run")
    require_resumable(world, folder, ROTATED)


# ---- D1 ----


def full_disk_jobs(world: World, short: bool) -> Iterator[Job]:
    events = events_of_a_run(world)
    writes = [
        (number, preload.FULL, event.words) for number, event in enumerate(events, 1) if event.kind != preload.CHANGE
    ]
    broken = [(number, preload.BROKEN, event.words) for number, event in enumerate(events, 1)]
    yield from shares(full_disks, [*sample(writes, 3), *sample(broken, 1)] if short else writes + broken)
    yield Job(small_limits, ((1 << 12,) if short else (0, 1, 1 << 9, 1 << 12, 1 << 14, 1 << 16, 1 << 18),))
    yield Job(odd_folders, (1 if short else len(NAMES),))


def full_disks(world: World, folder: Path, points: Sequence[tuple[int, int, str]]) -> Iterator[Outcome]:
    for number, mode, words in points:
        what = "起磁盘满" if mode == preload.FULL else "读写错误"
        yield case(folder, f"D1 第 {number} 次（{_short(words)}）{what}", starve, world, mode, number)


def starve(folder: Path, world: World, mode: int, number: int) -> None:
    done = run(flags(world, folder / "run", *ROTATED), folder, preload.watch(folder / "run", mode, number))
    require_told_and_resumable(folder, world, done)


def require_told_and_resumable(folder: Path, world: World, done: Done) -> None:
    """Require one line, whole checkpoints, and that the run goes on when there is space again."""
    require_told(done, {0, 1, 2})
    require_whole(folder / "run")
    require_resumable(world, folder, ROTATED)


def small_limits(world: World, folder: Path, limits: Sequence[int]) -> Iterator[Outcome]:
    for limit in limits:
        yield case(folder, f"D1 文件最大 {limit} 字节", limit_size, world, limit)


def limit_size(folder: Path, world: World, limit: int) -> None:
    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  the log has no limit
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    done = run(flags(world, folder / "run", *ROTATED), folder, prepare)
    require_told_and_resumable(folder, world, done)


NAMES = ("有 空格", "中文的文件夹", "😀", "x" * 200, "名" * 85, "-dash", "a'b\"c", "%s{0}", "new\nline", "a\\b")


def odd_folders(world: World, folder: Path, count: int) -> Iterator[Outcome]:
    for name in NAMES[:count]:
        yield case(folder, f"D1 文件夹 {name!r}", train_in, world, name)
    if count > 1:
        yield case(folder, "D1 输出文件夹是一个文件", train_into_file, world)
        yield case(folder, "D1 输出文件夹是符号链接", train_behind_link, world)


def train_in(folder: Path, world: World, name: str) -> None:
    place = folder / name / "run"
    done = run(flags(world, place, *ROTATED), folder)
    require_told(done, {0})
    require((place / "adapter_model.safetensors").is_file(), "没有适配器", done)


def train_into_file(folder: Path, world: World) -> None:
    (folder / "run").write_text("mine", encoding="utf-8")
    require_told(run(flags(world, folder / "run"), folder), {2})
    require((folder / "run").read_text(encoding="utf-8") == "mine", "文件被改了")


def train_behind_link(folder: Path, world: World) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "run").symlink_to(folder / "elsewhere")
    require_told(run(flags(world, folder / "run", *ROTATED), folder), {0})
    require((folder / "run").is_symlink(), "链接被换掉了")


def _short(words: str) -> str:
    name, _, path = words.partition(" ")
    return f"{name} {path.partition('/run/')[2] or path}"


FAMILIES = (
    Family(
        "E3",
        "SIGKILL：存检查点、写结果、轮换时的每一次建立、写（之前和一半）、fsync、改名、删除；另加随机时刻 200 次",
        "完整的检查点一个不少，不用手工收拾就能续跑，结果与没有打断的逐位相同",
        kill_jobs,
    ),
    Family(
        "D1",
        "从每一次写开始磁盘满（ENOSPC）；每一次读写出错（EIO）；文件大小有上限；奇怪的文件夹名",
        "一行说清，已有的检查点都完整，有了空间就能续跑，结果逐位相同",
        full_disk_jobs,
    ),
)
