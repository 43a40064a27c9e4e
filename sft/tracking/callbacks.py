"""What the Trainer reports to: ``metrics.jsonl``, SwanLab, the terminal. Imports transformers, so import this late."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import ProgressCallback, TrainerCallback, TrainerState

from sft.files import whole_file
from sft.tracking.metrics_log import append_row, keep_rows, plain_metrics, read_metrics

logger = logging.getLogger(__name__)

OF_ONE_LABEL = re.compile(r"(eval|test)_(precision|recall|f1)_")


class MetricsLog(TrainerCallback):
    """Writes every report of the Trainer's, evaluations included, to ``metrics.jsonl`` (process 0 only).

    Args:
        path: the file. A new run empties it.
        resumed_step: the step a resumed run goes on from; rows up to it are kept, later ones dropped.
    """

    def __init__(self, path: Path, resumed_step: int | None = None) -> None:
        self._path = path
        self._resumed_step = resumed_step
        self._ready = False

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        self._write(state, logs)

    def on_predict(self, args, state, control, metrics, **kwargs) -> None:
        self._write(state, metrics)

    def _write(self, state, metrics) -> None:
        if not metrics or not state.is_world_process_zero:
            return
        if not self._ready:
            self._prepare()
        row = {"step": state.global_step, "epoch": state.epoch, "time": round(time.time(), 3)}
        append_row(self._path, row | plain_metrics(metrics))

    def _prepare(self) -> None:
        """Only now is it known which process is process 0."""
        if self._resumed_step is None:
            with whole_file(self._path):
                pass
        else:
            keep_rows(self._path, self._resumed_step)
        self._ready = True


class TrackingCallback(TrainerCallback):
    """Hands the Trainer's reports to SwanLab's own callback: guarded, and with finite numbers only.

    The local dashboard shows charts in the order in which they came, so the training loss is made to come first.

    Args:
        swanlab_callback: SwanLab's callback for the Trainer.
        attempt: calls a function of SwanLab's and never raises.
        metrics_path: ``metrics.jsonl``, whose rows a resumed run shows again, for SwanLab starts a new curve.
    """

    def __init__(self, swanlab_callback: TrainerCallback, attempt: Callable[..., None], metrics_path: Path) -> None:
        self._swanlab = swanlab_callback
        self._attempt = attempt
        self._metrics_path = metrics_path
        self._loss_is_first = False
        self._held: list[dict] = []

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._attempt(self._swanlab.on_train_begin, args, state, control, **kwargs)
        if state.global_step > 0:
            rows = [row for row in read_metrics(self._metrics_path) if row["step"] <= state.global_step]
            self._attempt(replay_rows, self._swanlab, rows)
            self._loss_is_first = True

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        row = {"step": state.global_step, **(logs or {})}
        if self._loss_is_first or "loss" in row:
            self._loss_is_first = True
            rows, self._held = [row, *self._held], []
            self._attempt(replay_rows, self._swanlab, rows)
        else:  # an evaluation before the first step
            self._held.append(row)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self._loss_is_first = True
        rows, self._held = self._held, []
        self._attempt(replay_rows, self._swanlab, rows)

    def on_predict(self, args, state, control, metrics, **kwargs) -> None:
        self._attempt(self._swanlab.on_predict, args, state, control, metrics=finite_numbers(metrics or {}), **kwargs)


def replay_rows(swanlab_callback: TrainerCallback, rows: Sequence[dict]) -> None:
    """Report rows of ``metrics.jsonl`` to SwanLab's callback, each at its own step, one with the loss first."""
    with_loss = next((row for row in rows if "loss" in row), None)
    others = [row for row in rows if row is not with_loss]
    for row in others if with_loss is None else [with_loss, *others]:
        logs = {name: value for name, value in row.items() if name not in ("step", "time")}
        state = TrainerState(global_step=row["step"])
        swanlab_callback.on_log(None, state, None, logs=headline_first(finite_numbers(logs)))


def headline_first(metrics: dict[str, int | float]) -> dict[str, int | float]:
    """Losses, then scores over all labels, then those of each label."""
    names = sorted(metrics, key=lambda name: (OF_ONE_LABEL.match(name) is not None, "loss" not in name))
    return {name: metrics[name] for name in names}


def finite_numbers(metrics) -> dict[str, int | float]:
    """The numbers SwanLab can draw: one NaN makes its local dashboard answer with an error."""
    plain = plain_metrics(metrics)
    return {name: value for name, value in plain.items() if isinstance(value, int | float)}


class LogLines(TrainerCallback):
    """One line on the log for every report of the Trainer's."""

    def on_log(self, args, state: TrainerState, control, logs: dict | None = None, **_) -> None:
        if state.is_world_process_zero and logs:
            logger.info("%s", log_line(state, logs))


class ProgressOnStderr(ProgressCallback):
    """transformers' progress bar, with rows a second, and the reports above it on stderr: stdout is for results."""

    def on_train_begin(self, args, state: TrainerState, control, **kwargs) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("训练", refresh=False)
            self.training_bar.unit = "步"
            self.training_bar.initial = self.training_bar.n = self.current_step = state.global_step  # when resumed

    def on_step_end(self, args, state: TrainerState, control, **kwargs) -> None:
        if self.training_bar is not None:
            steps_a_second = self.training_bar.format_dict["rate"] or 0
            rows_a_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            self.training_bar.set_postfix_str(f"{steps_a_second * rows_a_step:.1f}条/s", refresh=False)
        super().on_step_end(args, state, control, **kwargs)

    def on_log(self, args, state: TrainerState, control, logs: dict | None = None, **_) -> None:
        if self.training_bar is not None and logs and logger.isEnabledFor(logging.INFO):
            self.training_bar.write(log_line(state, logs), file=sys.stderr)


def log_line(state: TrainerState, logs: dict[str, float]) -> str:
    """A report of the Trainer's for a person, without the figures of each label."""
    told = {name: value for name, value in logs.items() if not OF_ONE_LABEL.match(name) and name != "total_flos"}
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in told.items()}
    return f"[{state.global_step}/{state.max_steps}] " + "  ".join(f"{name} {value}" for name, value in shown.items())
