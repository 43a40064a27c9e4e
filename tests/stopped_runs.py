"""Training runs that are stopped at a chosen point, each in a process of its own. A fork server imports torch once."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

import forked

TRACEBACK = 99  # the exit code if an exception left the script
TIMED = re.compile(r"time|second|peak_memory")  # figures that differ from run to run


class Stop(NamedTuple):
    """When and how a run is stopped.

    Attributes:
        where: ``step`` (before the step with that number), ``write`` (before the write with that number: a rename, a
            deletion, a flush, a file of torch), ``end`` (the training is done, its results are not all written) or
            ``full`` (from that write on, the disk is full).
        number: of the step or the write, from 1.
        signal: what is sent to the process.
    """

    where: str
    number: int = 1
    signal: int = signal.SIGKILL


class Done(NamedTuple):
    code: int
    errors: str


def run(arguments: list[str], folder: Path, stop: Stop | None = None) -> Done:
    """Run the classification training script; it has exit code `TRACEBACK` if it raises."""
    log = folder / "log.txt"
    log.unlink(missing_ok=True)
    process = server().Process(target=_train, args=(arguments, stop, log))
    process.start()
    process.join(280)
    return Done(process.exitcode, log.read_text(encoding="utf-8"))


def server():
    context = forked.server()
    context.set_forkserver_preload(["forked", "stopped_runs", "sft.training.fine_tune", "sklearn.metrics"])
    return context


def _train(arguments: list[str], stop: Stop | None, log: Path) -> None:
    import train_qwen2_classification

    run_here(train_qwen2_classification.main, arguments, log, lambda: stop and stop_at(stop))


def run_here(
    main: Callable[[list[str]], int], arguments: list[str], log: Path, prepare: Callable[[], object]
) -> NoReturn:
    """Run a script in this process, which ends with the script's exit code, or with `TRACEBACK`.

    Args:
        log: what the script writes to stdout and stderr is added to this file.
        prepare: is called before the script.
    """
    import torch

    from sft.console import log_level, log_to_stderr  # noqa: F401

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup, or & in a shell, would have it ignored
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with log.open("a", encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        try:
            prepare()
            code = main(arguments)
        except SystemExit as stop:  # argparse
            code = stop.code
        except Exception:
            traceback.print_exc()
            code = TRACEBACK
    os._exit(code)


def rows(output_dir: Path) -> list[dict]:
    """What ``metrics.jsonl`` says, times left out."""
    read = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in row.items() if not TIMED.search(name)} for row in read]


def result(output_dir: Path) -> dict:
    """What must not depend on interruptions."""
    results = json.loads((output_dir / "all_results.json").read_text(encoding="utf-8"))
    names = ("adapter_model.safetensors", "adapter_config.json")
    return {
        "files": [(output_dir / name).read_bytes() for name in names],
        "best": json.loads((output_dir / "trainer_state.json").read_text(encoding="utf-8"))["best_global_step"],
        "rows": rows(output_dir),
        "results": {name: value for name, value in results.items() if not TIMED.search(name)},
        "hidden": sorted(path.name for path in output_dir.glob(".*")),
    }


def stop_at(stop: Stop) -> None:
    """Change this process so that a run in it is stopped."""
    import torch

    from sft.training import callbacks, fine_tune

    def act() -> None:
        os.kill(os.getpid(), stop.signal)

    if stop.where == "end":
        _before(fine_tune, "write_json", lambda _: act())
    elif stop.where == "step":

        def on_step_begin(self, args, state, control, **keywords):
            if state.global_step + 1 == stop.number:
                act()

        callbacks.StopOnSignal.on_step_begin = on_step_begin
    else:
        writes = [0]

        def count(name: str) -> None:
            writes[0] += 1
            if stop.where == "write" and writes[0] == stop.number:
                act()
            if stop.where == "full" and writes[0] >= stop.number and name not in ("rmtree", "unlink"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

        for owner, name in ((Path, "rename"), (Path, "replace"), (os, "fsync"), (torch, "save"), (shutil, "rmtree")):
            _before(owner, name, count)


def _before(owner: object, name: str, action: Callable[[str], None]) -> None:
    function = getattr(owner, name)

    def patched(*arguments, **keywords):
        action(name)
        return function(*arguments, **keywords)

    setattr(owner, name, patched)
