"""One training in two connected processes (gloo, on the CPU), without a launcher that would end what hangs.

A fork server imports torch once. accelerate shards nothing on a CPU; here it is told that it may.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from stopped_runs import TRACEBACK, Done, server

MOST_SECONDS = 120  # for a whole run, which takes a few of them where the cores are free
HUNG = 98  # in place of an exit code


class Fault(NamedTuple):
    """What happens to one of the processes.

    Attributes:
        rank: which process.
        step: when, counted from 1.
        what: ``begin`` (SIGTERM before the step), ``end`` (SIGTERM when the processes have agreed on what to do after
            the step), ``nan`` (in a gradient), ``input`` (an `InputError`) or ``memory`` (none is left).
    """

    rank: int
    step: int
    what: str


def run(
    script: str, arguments: list[str], folder: Path, *faults: Fault, environment: dict[str, str] | None = None
) -> list[Done]:
    """Run a training script in two processes; how each ended.

    Args:
        script: the module.
        folder: for their logs.
        environment: as a launcher would set it; ``ACCELERATE_USE_FSDP`` shards the model.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    logs = [folder / f"log{rank}.txt" for rank in range(2)]
    processes = []
    for rank, log in enumerate(logs):
        log.unlink(missing_ok=True)
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | (environment or {})
        mine = [fault for fault in faults if fault.rank == rank]
        processes.append(server().Process(target=_train, args=(script, arguments, mine, own, log)))
        processes[-1].start()
    deadline = time.monotonic() + MOST_SECONDS
    codes = []
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        codes.append(HUNG if process.exitcode is None else process.exitcode)
        process.kill()
    return [Done(code, log.read_text(encoding="utf-8")) for code, log in zip(codes, logs, strict=True)]


def _train(script: str, arguments: list[str], faults: list[Fault], environment: dict[str, str], log: Path) -> None:
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    with log.open("a", encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        _shard_on_cpus()
        for fault in faults:
            _plant(fault)
        try:
            code = __import__(script).main(arguments)
        except Exception:
            traceback.print_exc()
            code = TRACEBACK
    os._exit(code)


def _shard_on_cpus() -> None:
    """Let accelerate, which looks for FSDP only among kinds of GPUs, and this project do it on CPUs too."""
    import accelerate.state
    from accelerate.utils import DistributedType

    from sft.training import sharding

    plugins = []
    original = accelerate.state.AcceleratorState.__init__

    def init(self, *arguments, fsdp_plugin=None, **keywords):
        original(self, *arguments, fsdp_plugin=fsdp_plugin, **keywords)
        if fsdp_plugin is not None:
            plugins.append(fsdp_plugin)
        if plugins:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugins[0]

    accelerate.state.AcceleratorState.__init__ = init
    sharding.accelerate_shards_on = lambda device_type: True


def _plant(fault: Fault) -> None:
    import torch

    from sft.errors import InputError
    from sft.training.callbacks import StopOnSignal
    from sft.training.trainer import SftTrainer

    def at(owner: type, method: str, action, *, after: bool = False) -> None:
        original = getattr(owner, method)

        def patched(self, args, state, control, **keywords):
            due = state.global_step + (not after) == fault.step
            if due and not after:
                action(self)
            original(self, args, state, control, **keywords)
            if due and after:
                action(self)

        setattr(owner, method, patched)

    def terminate(_) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def no_input(_) -> None:
        raise InputError("data.jsonl：没有这个文件")

    if fault.what == "begin":
        StopOnSignal.on_step_begin = lambda self, args, state, control, **_: None
        at(StopOnSignal, "on_step_begin", terminate)
    elif fault.what == "end":
        at(StopOnSignal, "on_step_end", terminate, after=True)
    elif fault.what == "input":
        StopOnSignal.on_step_begin = lambda self, args, state, control, **_: None
        at(StopOnSignal, "on_step_begin", no_input)
    elif fault.what == "nan":
        clip = SftTrainer._clip_grad_norm

        def not_a_number(self, *arguments):
            if self.state.global_step + 1 == fault.step:
                self.adapter[0].grad.mul_(float("nan"))
            return clip(self, *arguments)

        SftTrainer._clip_grad_norm = not_a_number
    elif fault.what == "memory":
        original = SftTrainer.compute_loss

        def compute_loss(self, *arguments, **keywords):
            if self.state.global_step + 1 == fault.step:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return original(self, *arguments, **keywords)

        SftTrainer.compute_loss = compute_loss
