"""What stops a run: a number that is not finite, or a signal."""

from __future__ import annotations

import logging
import math
import os
import signal
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

import torch
from transformers import TrainerCallback, TrainerControl

from sft.errors import RunError
from sft.processes import control_group, largest
from sft.training.progress import EPOCH, STEP

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

logger = logging.getLogger(__name__)

MOST_LINES_NAMED = 20
MOST_SKIPPED_STEPS = 20  # in a row; the scale of the loss is then a millionth of what it was
HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none


class NotFinite(RunError):
    """The loss or the gradients of a run are NaN or Inf."""


class StopOnNonFinite:
    """Stops a run before a NaN or Inf reaches the weights; the message names the file lines of the step's rows.

    It looks once a step, at losses and gradients together: to look is to wait for the GPU.

    With float16, gradients beyond its range are normal: the loss scaler leaves such a step out and scales less. A
    loss beyond it is not, and neither are many such steps in a row.

    Args:
        scales: whether a loss scaler is at work.

    Attributes:
        skipped_steps: how many steps in a row the loss scaler left out.
    """

    def __init__(self, *, scales: bool) -> None:
        self._scales = scales
        self._losses: list[tuple[torch.Tensor, Sequence[int]]] = []  # of the micro-batches of this step so far
        self.skipped_steps = 0

    def note(self, loss: torch.Tensor, lines: Sequence[int]) -> None:
        """Remember the loss of a micro-batch, a scalar, and the file lines of its rows, until `check`."""
        self._losses.append((loss.detach(), lines))

    def check(self, norm: torch.Tensor, step: int) -> None:
        """Check a step before its gradients change the weights.

        Args:
            norm: of all gradients, a scalar, without the scale of the loss.
            step: the number of the step, from 1.

        Raises:
            NotFinite: a loss is NaN or Inf; or the gradients are, and no loss scaler leaves this step out; or it has
                left out too many.
        """
        noted, self._losses = self._losses, []
        numbers = torch.stack([number.float().reshape(()) for number in (*(loss for loss, _ in noted), norm)])
        *losses, norm = numbers.tolist()
        advice = "可试 --dtype float32" + (" 或更小的 --learning_rate" if not self._scales else "")
        for loss, (_, lines) in zip(losses, noted, strict=True):
            if not math.isfinite(loss):
                raise NotFinite(
                    f"第 {step} 步的损失是 {loss}，已停止；这一批是训练集第 {_numbers(lines)} 行；{advice}"
                )
        if math.isfinite(norm):
            self.skipped_steps = 0
            return
        lines = [line for _, lines in noted for line in lines]
        if not self._scales:
            raise NotFinite(
                f"第 {step} 步的梯度出现 NaN 或 Inf，已停止；这一步是训练集第 {_numbers(lines)} 行；{advice}"
            )
        self.skipped_steps += 1
        if self.skipped_steps >= MOST_SKIPPED_STEPS:
            raise NotFinite(
                f"连续 {self.skipped_steps} 步的梯度超出 float16 的范围，这些步什么也没有学，已停止；"
                f"第 {step} 步是训练集第 {_numbers(lines)} 行；{advice}"
            )
        logger.info("第 %d 步的梯度超出 float16 的范围：跳过这一步，缩小损失的倍数", step)


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

    Args:
        then: what happens after a signal, for the message.

    Attributes:
        received: the number of the signal that this process got; None if there was none.
        stage: where in the training loop the run is, for `sft.training.progress.Progress`.
        postponed: what was due when the signal stopped the run.
        group: connects the processes; None for one alone.
    """

    def __init__(self, then: str = "完成这一步并保存检查点后停止") -> None:
        self._then = then
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
        logger.warning("收到 %s：%s", signal.Signals(number).name, self._then)

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
