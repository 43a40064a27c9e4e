"""Trainer callbacks that write logs to ``metrics.jsonl`` and SwanLab.

This module imports transformers, which is slow: import it late.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from transformers import TrainerCallback, TrainerState

from sft.files import whole_file
from sft.tracking.metrics_log import append_row, keep_rows, log_row, plain_metrics, read_metrics, restore_rows

OF_ONE_LABEL = re.compile(r"(eval|test)_(precision|recall|f1)_")


class MetricsLog(TrainerCallback):
    """Writes all logs of the Trainer, evaluations included, to ``metrics.jsonl`` (process 0 only).

    Args:
        path: the file. A new run empties it.
        resumed_step: the step that a resumed run continues from: rows up to it are kept, later ones dropped. None
            for a new run.
        logged: everything that was logged when the checkpoint was saved; None if only the step is known.
    """

    def __init__(
        self, path: Path, resumed_step: int | None = None, logged: Sequence[Mapping[str, object]] | None = None
    ) -> None:
        self._path = path
        self._resumed_step = resumed_step
        self._logged = logged
        self._ready = False

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if state.is_world_process_zero and not self._ready:
            self._prepare()

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        self._write(state, logs)

    def _write(self, state, metrics) -> None:
        if not metrics or not state.is_world_process_zero:
            return
        if not self._ready:
            self._prepare()
        append_row(self._path, log_row(state.global_step, state.epoch, round(time.time(), 3), metrics))

    def _prepare(self) -> None:
        """Empty or cut the file. Not done in ``__init__``: only now is it known which process is process 0."""
        if self._resumed_step is None:
            with whole_file(self._path):
                pass
        elif self._logged is not None:
            restore_rows(self._path, self._logged)
        else:
            keep_rows(self._path, self._resumed_step)
        self._ready = True


class TrackingCallback(TrainerCallback):
    """Passes the Trainer's logs on to SwanLab's own callback, with finite numbers only; it never raises.

    The local dashboard shows charts in the order in which they arrive, so the training loss is sent first.

    Args:
        swanlab_callback: SwanLab's callback for the Trainer.
        attempt: calls a function of SwanLab and never raises.
        metrics_path: ``metrics.jsonl``. A resumed run sends its rows again, because SwanLab starts a new experiment.
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
        else:  # an evaluation before the first step waits for the first loss
            self._held.append(row)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self._loss_is_first = True
        rows, self._held = self._held, []
        self._attempt(replay_rows, self._swanlab, rows)


def replay_rows(swanlab_callback: TrainerCallback, rows: Sequence[dict]) -> None:
    """Send rows of ``metrics.jsonl`` to SwanLab's callback, each at its own step; a row with the loss goes first."""
    with_loss = next((row for row in rows if "loss" in row), None)
    others = [row for row in rows if row is not with_loss]
    for row in others if with_loss is None else [with_loss, *others]:
        logs = {name: value for name, value in row.items() if name not in ("step", "time")}
        state = TrainerState(global_step=row["step"])
        swanlab_callback.on_log(None, state, None, logs=headline_first(finite_numbers(logs)))


def headline_first(metrics: dict[str, int | float]) -> dict[str, int | float]:
    """The same metrics in the order of the dashboard: losses, scores over all labels, scores of each label."""
    names = sorted(metrics, key=lambda name: (OF_ONE_LABEL.match(name) is not None, "loss" not in name))
    return {name: metrics[name] for name in names}


def finite_numbers(metrics) -> dict[str, int | float]:
    """The finite numbers among ``metrics``: one NaN makes SwanLab's local dashboard answer with an error."""
    plain = plain_metrics(metrics)
    return {name: value for name, value in plain.items() if isinstance(value, int | float)}
