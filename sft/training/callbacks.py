"""This project's callbacks for the Trainer that stop a run."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence
from types import FrameType
from typing import NamedTuple

import torch
from torch.distributed import ProcessGroup
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sft.errors import RunError
from sft.processes import control_group, largest
from sft.training.progress import EPOCH, STEP
from sft.training.sharding import whole

logger = logging.getLogger(__name__)

MOST_LINES_NAMED = 20
HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none


class StopOnNonFinite(TrainerCallback):
    """Stops the run before a NaN or Inf reaches the weights; the message names the file lines of the step's rows.

    Args:
        adapter: the trained parameters.
    """

    def __init__(self, adapter: Sequence[torch.nn.Parameter]) -> None:
        self._adapter = adapter
        self._lines: list[int] = []  # of the rows in this step so far

    def check_loss(self, loss: torch.Tensor, lines: Sequence[int], step: int) -> None:
        """Check the loss of a micro-batch.

        Args:
            loss: a scalar.
            lines: the file lines of its rows.
            step: the number of the current step, from 1.

        Raises:
            RunError: it is NaN or Inf.
        """
        self._lines += lines
        if not torch.isfinite(loss):
            raise RunError(
                f"第 {step} 步的损失是 {loss.item()}，已停止；"
                f"这一批是训练集第 {_numbers(lines)} 行；可试 --dtype float32 或更小的 --learning_rate"
            )

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_
    ) -> None:
        lines, self._lines = self._lines, []
        if args.fp16:
            return  # with fp16, Inf is normal: the loss scaler skips such a step
        gradients = [parameter.grad for parameter in self._adapter if parameter.grad is not None]
        if not torch.isfinite(whole(torch.nn.utils.get_total_norm(gradients))):
            raise RunError(
                f"第 {state.global_step + 1} 步的梯度出现 NaN 或 Inf，已停止；这一步是训练集第 {_numbers(lines)} 行；"
                "可试 --dtype float32 或更小的 --learning_rate"
            )


def _numbers(lines: Sequence[int]) -> str:
    return "、".join(str(line) for line in sorted(set(lines))[:MOST_LINES_NAMED])


class Postponed(NamedTuple):
    """What was due when a signal stopped the run; it is done when the run is resumed.

    Attributes:
        evaluate: an evaluation.
        stop: the end of the training.
    """

    evaluate: bool
    stop: bool


class StopOnSignal(TrainerCallback):
    """After SIGTERM, Ctrl-C or SIGHUP (a closed terminal), finishes the step, saves a checkpoint and stops.

    A second signal kills as usual. Under ``nohup`` a SIGHUP is ignored. Several processes stop together, after the
    same step, even if the signal reached only one of them, or some before a step's end and others after it.

    Attributes:
        received: the number of the signal that this process got; None if there was none.
        stage: where in the training loop the run is, for `sft.training.progress.Progress`.
        postponed: what was due when the signal stopped the run.
        group: connects the processes; None for one alone.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.stage = STEP
        self.postponed: Postponed | None = None
        self._terminals: list[int] = []
        self.group: ProcessGroup | None = None

    def agreed(self) -> int | None:
        """The number of the signal that any process got; None if none did. Every process must call this."""
        return largest(self.received or 0, self.group) or None

    def on_train_begin(self, args, state, control, **_) -> None:
        self.group = control_group()
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        for number in (signal.SIGTERM, signal.SIGINT, HANGUP):
            if number is not None and not (number == HANGUP and signal.getsignal(number) == signal.SIG_IGN):
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._kill_from_now_on(number)
        if number == HANGUP:
            self._write_nowhere()
        logger.warning("收到 %s：完成这一步并保存检查点后停止", signal.Signals(number).name)

    def _kill_from_now_on(self, number: int) -> None:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def _write_nowhere(self) -> None:
        """The terminal is gone: a progress bar that writes to it would raise before the checkpoint is saved."""
        for descriptor in self._terminals:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)

    def on_step_end(self, args, state, control: TrainerControl, **_) -> None:
        self._reach(STEP, control)

    def on_epoch_end(self, args, state, control: TrainerControl, **_) -> None:
        self._reach(EPOCH, control)

    def _reach(self, stage: str, control: TrainerControl) -> None:
        if self.postponed is not None:  # at the end of the step that was saved; this will be done after resuming
            control.should_log = control.should_evaluate = control.should_save = False
            return
        self.stage = stage
        if self.agreed() is not None:
            self.postponed = Postponed(control.should_evaluate, control.should_training_stop)
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_train_end(self, args, state, control, **_) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, HANGUP):
            if number is not None and signal.getsignal(number) == self._receive:
                self._kill_from_now_on(number)
