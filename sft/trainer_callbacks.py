"""What the Trainer reports to: ``metrics.jsonl`` and SwanLab. Imports transformers, so import this late."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from transformers import TrainerCallback

from sft.metrics_log import append_row, keep_rows, plain_metrics, read_rows
from sft.records import whole_file


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

    Args:
        swanlab_callback: SwanLab's callback for the Trainer.
        attempt: calls a function of SwanLab's and never raises.
        metrics_path: ``metrics.jsonl``, whose rows a resumed run shows again, for SwanLab starts a new curve.
    """

    def __init__(self, swanlab_callback: TrainerCallback, attempt: Callable[..., None], metrics_path: Path) -> None:
        self._swanlab = swanlab_callback
        self._attempt = attempt
        self._metrics_path = metrics_path

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._attempt(self._swanlab.on_train_begin, args, state, control, **kwargs)
        if state.global_step > 0:
            self._attempt(self._replay, args, state, control)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        self._attempt(self._swanlab.on_log, args, state, control, logs=finite_numbers(logs or {}), **kwargs)

    def on_predict(self, args, state, control, metrics, **kwargs) -> None:
        self._attempt(self._swanlab.on_predict, args, state, control, metrics=finite_numbers(metrics or {}), **kwargs)

    def _replay(self, args, state, control) -> None:
        for row in read_rows(self._metrics_path):
            if row["step"] <= state.global_step:
                logs = {name: value for name, value in row.items() if name not in ("step", "time")}
                self._swanlab.on_log(args, replace(state, global_step=row["step"]), control, logs=finite_numbers(logs))


def finite_numbers(metrics) -> dict[str, int | float]:
    """The numbers SwanLab can draw: one NaN makes its local dashboard answer with an error."""
    plain = plain_metrics(metrics)
    return {name: value for name, value in plain.items() if isinstance(value, int | float)}
