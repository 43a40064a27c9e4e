"""A tracker that hangs, exits or raises anything costs the curve, never the training."""

from __future__ import annotations

import sys
import threading
import time

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from sft.tracking import swanlab
from sft.tracking.callbacks import TrackingCallback
from sft.tracking.charts import Charts
from sft.tracking.swanlab import Tracking


class Faulty:
    """Stands for SwanLab; each call goes wrong in the same way."""

    def __init__(self, fault) -> None:
        self.fault, self.calls = fault, 0

    def call(self) -> None:
        self.calls += 1
        self.fault()


def raise_(error: BaseException):
    def fault() -> None:
        raise error

    return fault


RAISED = {
    "SystemExit": raise_(SystemExit(3)),
    "sys.exit": lambda: sys.exit("logged out"),
    "KeyboardInterrupt": raise_(KeyboardInterrupt()),
    "GeneratorExit": raise_(GeneratorExit()),
    "MemoryError": raise_(MemoryError()),
    "OSError": raise_(OSError(28, "no space left")),
    "recursion": raise_(RecursionError()),
}


def tracked(tmp_path, fault) -> tuple[Tracking, Faulty]:
    tracking, faulty = Tracking("offline", tmp_path), Faulty(fault)
    charts = Charts(lambda *_: faulty.call(), lambda *_: faulty.call())
    tracking.callback = TrackingCallback(charts, tracking.attempt, tmp_path / "metrics.jsonl")
    return tracking, faulty


def run_steps(tracking: Tracking, tmp_path, steps: int = 5) -> None:
    arguments = TrainingArguments(str(tmp_path), report_to=[])
    state, control = TrainerState(), TrainerControl()
    tracking.callback.on_train_begin(arguments, state, control)
    for state.global_step in range(1, steps):
        tracking.callback.on_log(arguments, state, control, logs={"loss": 1.0})


@pytest.mark.parametrize("fault", RAISED)
def test_whatever_it_raises_the_training_goes_on_and_it_is_not_called_again(fault, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(swanlab, "_finish", lambda *_: None)
    tracking, faulty = tracked(tmp_path, RAISED[fault])
    run_steps(tracking, tmp_path)
    tracking.log_texts("samples", [("a", "b")], 5)
    tracking.finish()
    assert faulty.calls == 1 and not tracking.is_logging
    assert caplog.text.count("SwanLab 出错") == 1


def test_one_that_hangs_is_left_behind_once(tmp_path, caplog, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(swanlab, "LOG_SECONDS", 0.2)
    monkeypatch.setattr(swanlab, "_finish", lambda *_: pytest.fail("waited for the thread that hangs"))
    tracking, faulty = tracked(tmp_path, released.wait)
    started = time.monotonic()
    run_steps(tracking, tmp_path, steps=50)
    tracking.finish("aborted")
    assert time.monotonic() - started < 5
    assert faulty.calls == 1 and caplog.text.count("没有反应") == 1
    released.set()


def test_one_that_exits_while_it_is_finished_ends_nothing(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(swanlab, "_finish", lambda *_: sys.exit(3))
    tracking, _ = tracked(tmp_path, lambda: None)
    run_steps(tracking, tmp_path)
    tracking.finish()
    assert "没能正常收尾" in caplog.text


def test_one_that_works_is_called_at_every_step_and_costs_little(tmp_path):
    tracking, faulty = tracked(tmp_path, lambda: None)
    started = time.monotonic()
    run_steps(tracking, tmp_path, steps=200)
    assert faulty.calls == 199
    assert (time.monotonic() - started) / 199 < 0.02
