"""What a person sees while a run trains: one short line for each log and each validation, and a progress bar."""

from __future__ import annotations

import logging
import time

from transformers import ProgressCallback, TrainerCallback, TrainerState
from transformers.trainer_callback import TrainerControl

from sft.console import bar, time_left
from sft.tasks.metrics import METRIC_NAMES

logger = logging.getLogger(__name__)

NAMES = {name: chinese for name, (chinese, _) in METRIC_NAMES.items()} | {"f1": "F1"}
ALWAYS_SHOWN = ("loss", "accuracy", "f1")  # of a validation, besides the metric that chooses the best checkpoint


class LogLines(TrainerCallback):
    """Writes one line for each training loss and each validation, with the time that is left."""

    def __init__(self) -> None:
        self._steps, self._seconds, self._began = 0, 0.0, time.monotonic()  # of the steps of this process so far

    def on_step_begin(self, args, state: TrainerState, control: TrainerControl, **_) -> None:
        self._began = time.monotonic()

    def on_step_end(self, args, state: TrainerState, control: TrainerControl, **_) -> None:
        self._steps += 1
        self._seconds += time.monotonic() - self._began

    def on_log(self, args, state: TrainerState, control, logs: dict | None = None, **_) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            left = self._seconds / self._steps * (state.max_steps - state.global_step) if self._steps else None
            logger.info("%s", training_line(state, logs, left))
        elif "eval_loss" in logs:
            logger.info("%s", validation_line(state, logs, args.metric_for_best_model or ""))


class ProgressOnStderr(ProgressCallback):
    """transformers' progress bar with rows per second. It writes no lines: `LogLines` does."""

    def on_train_begin(self, args, state: TrainerState, control, **kwargs) -> None:
        self.current_step = state.global_step  # not 0 if resumed
        if state.is_world_process_zero:
            # It does not stay: the lines have said it all.
            self.training_bar = bar("训练", "步", total=state.max_steps, initial=state.global_step, leave=False)

    def on_step_end(self, args, state: TrainerState, control, **kwargs) -> None:
        if self.training_bar is not None:
            steps_a_second = self.training_bar.format_dict["rate"] or 0
            rows_a_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            self.training_bar.set_postfix_str(f"{steps_a_second * rows_a_step:.1f}条/s", refresh=False)
        super().on_step_end(args, state, control, **kwargs)

    def on_log(self, args, state: TrainerState, control, logs: dict | None = None, **_) -> None:
        """Nothing: the bar is only a bar."""


def training_line(state: TrainerState, logs: dict[str, float], left_seconds: float | None) -> str:
    """``[120/357] 损失 0.089  学习率 1.3e-4  3,250 token/秒  剩 2 分``.

    Args:
        left_seconds: until the last step; None if unknown.
    """
    parts = [f"损失 {logs['loss']:.3g}"]
    if "learning_rate" in logs:
        parts.append(f"学习率 {short_exponent(logs['learning_rate'])}")
    if "tokens_per_second" in logs:
        parts.append(f"{logs['tokens_per_second']:,.0f} token/秒")
    if left_seconds is not None and state.global_step < state.max_steps:
        parts.append(f"剩 {time_left(left_seconds)}")
    return f"[{state.global_step}/{state.max_steps}] " + "  ".join(parts)


def validation_line(state: TrainerState, logs: dict[str, float], best_metric: str) -> str:
    """``验证 损失 0.49  F1 0.37``; the one before the first step says so.

    Args:
        best_metric: the metric that chooses the best checkpoint, such as ``eval_f1``.
    """
    shown = dict.fromkeys([*ALWAYS_SHOWN, best_metric.removeprefix("eval_")])
    parts = [
        f"{NAMES.get(name, name)} {logs[f'eval_{name}']:.3g}" for name in shown if logs.get(f"eval_{name}") is not None
    ]
    return f"{'训练前验证' if state.global_step == 0 else '验证'} {'  '.join(parts)}"


def short_exponent(number: float) -> str:
    """``0.00013`` → ``1.3e-4``: two digits, and no zeros in the exponent."""
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}" if number else "0"
