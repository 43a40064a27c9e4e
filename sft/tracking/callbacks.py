"""Trainer callbacks that write logs to ``metrics.jsonl`` and SwanLab.

This module imports transformers, which is slow: import it late.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from transformers import TrainerCallback

from sft.files import whole_file
from sft.tracking.charts import Charts
from sft.tracking.metrics_log import append_row, keep_rows, log_row, plain_metrics, read_metrics, restore_rows


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
    """Passes the Trainer's logs on to SwanLab's charts, with finite numbers only; it never raises.

    Args:
        charts: what is sent to SwanLab.
        attempt: calls a function of SwanLab and never raises.
        metrics_path: ``metrics.jsonl``. A resumed run sends its rows again, because SwanLab starts a new experiment.
    """

    def __init__(self, charts: Charts, attempt: Callable[..., None], metrics_path: Path) -> None:
        self._charts = charts
        self._attempt = attempt
        self._metrics_path = metrics_path

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step > 0:
            rows = [row for row in read_metrics(self._metrics_path) if row["step"] <= state.global_step]
            self._attempt(add_rows, self._charts, rows)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if state.is_world_process_zero:
            self._attempt(add_rows, self._charts, [{"step": state.global_step, **(logs or {})}])

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self._attempt(self._charts.end)


def add_rows(charts: Charts, rows: Sequence[dict]) -> None:
    """Add rows of ``metrics.jsonl`` to the charts, each at its own step."""
    for row in rows:
        charts.add(row["step"], finite_numbers(row))


def finite_numbers(metrics) -> dict[str, int | float]:
    """The finite numbers among ``metrics``: one NaN makes SwanLab's local dashboard answer with an error."""
    plain = plain_metrics(metrics)
    return {name: value for name, value in plain.items() if isinstance(value, int | float)}
