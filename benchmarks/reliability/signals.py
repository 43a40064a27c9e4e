"""E4: SIGTERM, SIGINT and SIGHUP, once and twice, at every stage of a run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

from benchmarks.reliability import preload
from benchmarks.reliability.matrix import Family, Job, Outcome, Skipped
from benchmarks.reliability.runs import (
    World,
    case,
    flags,
    require,
    require_resumable,
    require_told,
    require_whole,
    run,
)
from benchmarks.reliability.writes import ROTATED, events_of_a_run, sample, shares
from sft.training import checkpoints

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STAGES = ("读入和编码", "加载模型", "微调前的验证", "第 2 步的验证", "写最后的结果")


def signal_jobs(world: World, short: bool) -> Iterator[Job]:
    cases: list[tuple] = []
    for number, twice in product(SIGNALS, (False, True)):
        cases += [("步", step, number, twice) for step in range(1, 7)]
        cases += [("阶段", stage, number, twice) for stage in range(len(STAGES))]
    try:
        saves = [n for n, event in enumerate(events_of_a_run(world), 1) if "/.saving-checkpoint-" in event.words]
        cases += [("写", n, number, False) for number in SIGNALS for n in sample(saves, 12)]
    except Skipped:
        pass
    yield from shares(signals, sample(cases, 5) if short else cases)


def signals(world: World, folder: Path, cases: list[tuple]) -> Iterator[Outcome]:
    for where, place, number, twice in cases:
        name = signal.Signals(number).name + (" 两次" if twice else "")
        shown = STAGES[place] if where == "阶段" else f"{where} {place}"
        yield case(folder, f"E4 {name}，{shown}", send, world, where, place, number, twice)


def send(folder: Path, world: World, where: str, place: int, number: int, twice: bool) -> None:
    def act() -> None:
        for _ in range(1 + twice):
            os.kill(os.getpid(), number)

    hook: Callable[[], object]
    if where == "写":
        hook = preload.watch(folder / "run", preload.SIGNAL, place, signal=number)
    elif where == "步":
        hook = lambda: at_step(place, act)  # noqa: E731
    else:
        hook = lambda: at_stage(place, act)  # noqa: E731
    done = run(flags(world, folder / "run", *ROTATED), folder, hook)
    require_told(done, {128 + number} if where != "阶段" and not twice else {128 + number, -number, 130})
    if (folder / "run").exists():
        require_whole(folder / "run")
    if where != "阶段" and not twice:  # between two steps: nothing is lost
        newest = checkpoints.checkpoints_in(folder / "run")[0].step
        require(where != "步" or newest == place, f"检查点是第 {newest} 步的", done)
        require("--resume_from_checkpoint true" in done.errors, "没有说怎样续跑", done)
    require_resumable(world, folder, ROTATED)


def at_step(step: int, act: Callable[[], None]) -> None:
    """Act right before a step."""
    from sft.training.callbacks import StopOnSignal

    def on_step_begin(self, args, state, control, **keywords):
        if state.global_step + 1 == step:
            act()

    StopOnSignal.on_step_begin = on_step_begin


def at_stage(stage: int, act: Callable[[], None]) -> None:
    """Act in one of `STAGES`."""
    from sft.training import evaluation, fine_tune

    owner, name, nth = (
        (fine_tune, "prepare", 1),
        (fine_tune, "load_base", 1),
        (evaluation.Evaluator, "choose_threshold", 1),
        (evaluation.Evaluator, "choose_threshold", 2),
        (fine_tune, "save_adapter", 1),
    )[stage]
    function, calls = getattr(owner, name), []

    def patched(*arguments, **keywords):
        calls.append(1)
        if len(calls) == nth:
            act()
        return function(*arguments, **keywords)

    setattr(owner, name, patched)


FAMILIES = (
    Family(
        "E4",
        "SIGTERM、SIGINT、SIGHUP，一次和两次：每一步，读入编码、加载、验证、存检查点、写结果时",
        "退出码 128+n（两次或还没开始训练就是立即停止），检查点是这一步的，没有 traceback，续跑逐位相同",
        signal_jobs,
    ),
)
