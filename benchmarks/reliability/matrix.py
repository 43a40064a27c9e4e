"""Families of faults, the processes that run their cases, and what comes out of each.

A case is one generator step: it yields how many checks passed, or the text of a failure. Cases run in processes forked
from this one, which has imported torch already: a whole training run then takes less than a second.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.reliability.runs import World

Outcome = int | str  # checks that passed, or a failure
PAUSE_SECONDS = 0.02


class Job(NamedTuple):
    """Cases that run one after another in one process: ``function(world, folder, *arguments)`` yields outcomes."""

    function: Callable[..., Iterator[Outcome]]
    arguments: tuple = ()


class Family(NamedTuple):
    """One kind of fault.

    Attributes:
        name: as on the command line.
        fault, promise: in Chinese, for the table.
        jobs: ``jobs(world, short)``; the short form is a small fixed sample.
    """

    name: str
    fault: str
    promise: str
    jobs: Callable[[World, bool], Iterable[Job]]


class Result(NamedTuple):
    """What a family found.

    Attributes:
        cases: how many were tried.
        failures: one text for each that failed.
        seconds: of wall clock.
        cpu_seconds: of all processes.
        skipped: why nothing was tried, in Chinese; empty if something was.
    """

    cases: int
    failures: list[str]
    seconds: float
    cpu_seconds: float
    skipped: str = ""


class Extent(NamedTuple):
    """How much of each family is run.

    Attributes:
        short: only a small fixed sample.
        every: only each n-th job.
    """

    short: bool
    every: int = 1

    @property
    def words(self) -> str:
        """In Chinese, for the table; empty for everything."""
        return "一小份" if self.short else f"每 {self.every} 份取一份" if self.every > 1 else ""


class Skipped(Exception):
    """A family cannot run here; the message says why, in Chinese."""


def run_family(family: Family, world: World, extent: Extent, workers: int) -> Result:
    """Run the cases of a family on ``workers`` processes."""
    started, cpu_before = time.monotonic(), _cpu_seconds()
    try:
        waiting = list(family.jobs(world, extent.short))[:: extent.every]
    except Skipped as reason:
        return Result(0, [], 0.0, 0.0, str(reason))
    outcomes: list[Outcome] = []
    running: dict[int, Path] = {}
    numbers = iter(range(len(waiting)))
    while waiting or running:
        while waiting and len(running) < workers:
            folder = world.folder / "work" / f"{family.name}-{next(numbers)}"
            running[_fork(waiting.pop(0), world, folder)] = folder
        for process, folder in list(running.items()):
            finished, status = os.waitpid(process, os.WNOHANG)
            if finished:
                del running[process]
                outcomes += _outcomes(folder, status)
                shutil.rmtree(folder, ignore_errors=True)
        time.sleep(PAUSE_SECONDS)
    failures = [outcome for outcome in outcomes if isinstance(outcome, str)]
    cases = sum(outcome for outcome in outcomes if isinstance(outcome, int)) + len(failures)
    return Result(cases, failures, time.monotonic() - started, _cpu_seconds() - cpu_before)


def _fork(job: Job, world: World, folder: Path) -> int:
    folder.mkdir(parents=True)
    if process := os.fork():
        return process
    code = 1
    try:
        os.dup2(os.open(folder / "said", os.O_WRONLY | os.O_CREAT, 0o644), 2)  # what is said of each damage
        with (folder / "outcomes").open("a", encoding="utf-8", buffering=1) as file:
            try:
                for outcome in job.function(world, folder, *job.arguments):
                    file.write(json.dumps(outcome) + "\n")
                code = 0
            except BaseException:  # the case itself is wrong, or what it calls
                file.write(json.dumps(f"{job.function.__name__}{job.arguments}：{traceback.format_exc()}") + "\n")
    finally:
        os._exit(code)


def _outcomes(folder: Path, status: int) -> list[Outcome]:
    outcomes = [json.loads(line) for line in (folder / "outcomes").read_text(encoding="utf-8").splitlines()]
    told = outcomes and isinstance(outcomes[-1], str)
    return outcomes if status == 0 or told else [*outcomes, f"{folder.name}：进程退出状态 {status}"]


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
