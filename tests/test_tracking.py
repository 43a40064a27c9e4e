"""SwanLab and ``metrics.jsonl``: real SwanLab runs of a real Trainer, and what happens when the tracker fails."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import swanlab
import torch
import yaml
from transformers import (
    ProgressCallback,
    Qwen2Config,
    Qwen2ForCausalLM,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from sft.errors import InputError, RunError
from sft.tracking import replay as replay_metrics
from sft.tracking import swanlab as tracking
from sft.tracking.callbacks import MetricsLog
from sft.tracking.metrics_log import keep_rows, plain_metrics, read_metrics
from sft.tracking.swanlab import Tracking, resolve_mode, start_tracking

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No settings, login or run of the user; ``RANK`` unset."""
    for name in [name for name in os.environ if name.startswith("SWANLAB_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("SWANLAB_ROOT", str(tmp_path / "swanlab_home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(tracking, "PROBE_SECONDS", 1)
    monkeypatch.chdir(tmp_path)
    yield
    if swanlab.has_run():
        swanlab.finish()
    for name in [name for name in os.environ if name.startswith("SWANLAB_")]:  # a run renames what it reads
        del os.environ[name]


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """All name look-ups, connections and listening sockets of this process."""
    seen: list[object] = []

    def spy(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def recorded(*args, **kwargs):
            seen.append((name, args))
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, recorded)

    spy(socket, "getaddrinfo")
    spy(socket, "create_connection")
    spy(socket.socket, "listen")
    return seen


@pytest.fixture
def refusing_server():
    """The address of a server that answers every request with 401."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_HEAD = do_GET

        def log_message(self, *arguments) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def begin(mode: str, folder: Path, **kwargs) -> Tracking:
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"project": "test", "experiment": "实验/一", "config": {"lr": 0.1, "nested": {"labels": ["体育"]}}}
    return start_tracking(
        mode=mode, log_dir=folder / "swanlog", metrics_path=folder / "metrics.jsonl", **settings | kwargs
    )


def train(
    folder: Path,
    tracked: Tracking,
    steps: int = 4,
    resume_from: int | None = None,
    extra: TrainerCallback | None = None,
) -> Trainer:
    """Train a two-layer model for a few steps: a log every step, an evaluation and a checkpoint every second one."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    rows = [{"input_ids": torch.arange(i, i + 8) % 32, "labels": torch.arange(i, i + 8) % 32} for i in range(16)]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=2,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        learning_rate=0.01,
        report_to="none",
        logging_nan_inf_filter=False,
        use_cpu=True,
    )
    log = MetricsLog(folder / "metrics.jsonl", resume_from)
    callbacks = [log, tracked.callback, *([extra] if extra else [])]
    trainer = Trainer(Qwen2ForCausalLM(config), arguments, None, rows, rows[:4], callbacks=callbacks)
    trainer.remove_callback(ProgressCallback)  # it writes to stdout
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{resume_from}") if resume_from else None)
    return trainer


def curves(log_dir: Path) -> dict[str, list[tuple[int, object]]]:
    """The curves of the newest run in the local dashboard: name → (step, value)."""
    with sqlite3.connect(log_dir / "runs.swanlab") as database:
        newest, run = database.execute("SELECT id, run_id FROM experiment ORDER BY id DESC").fetchone()
        tags = database.execute("SELECT name, folder FROM tag WHERE experiment_id = ?", [newest]).fetchall()
    drawn = {}
    for name, folder in tags:
        lines = (log_dir / run / "logs" / folder / "1000.log").read_text(encoding="utf-8").splitlines()
        drawn[name] = sorted((row["index"], row["data"]) for row in map(json.loads, lines))
    return drawn


def settings(log_dir: Path) -> dict[str, object]:
    """What the newest run shows beside its curves."""
    newest = max(log_dir.glob("run-*/files/config.yaml"))
    return {name: entry["value"] for name, entry in yaml.safe_load(newest.read_text(encoding="utf-8")).items()}


def titles(log_dir: Path) -> list[str]:
    """The charts of the newest run, in the order of the dashboard."""
    with sqlite3.connect(log_dir / "runs.swanlab") as database:
        (newest,) = database.execute("SELECT max(id) FROM experiment").fetchone()
        names = database.execute("SELECT name FROM chart WHERE experiment_id = ? ORDER BY id", [newest])
        return [name for (name,) in names]


def statuses(log_dir: Path) -> list[int]:
    """0 running, 1 finished, -1 crashed."""
    with sqlite3.connect(log_dir / "runs.swanlab") as database:
        return [status for (status,) in database.execute("SELECT status FROM experiment ORDER BY id")]


def reported(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(row["step"], row[name]) for row in read_metrics(folder / "metrics.jsonl") if row.get(name) is not None]


def log_in(host: str, home: Path) -> None:
    """Write the login file of ``swanlab login``."""
    home.mkdir(parents=True, exist_ok=True)
    (home / ".netrc").write_text(f"machine {host}\n\tlogin {host}\n\tpassword {'k' * 21}\n")


# Which mode


def test_auto_is_local_for_someone_who_is_not_logged_in(tmp_path: Path) -> None:
    assert resolve_mode("auto") == ("local", "")
    assert "swanlab watch swanlog" in Tracking("local", Path("swanlog")).where


@pytest.mark.parametrize("how", ["key", "netrc"])
def test_auto_is_cloud_for_someone_who_is_logged_in(
    how: str, refusing_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWANLAB_API_HOST", refusing_server)
    if how == "key":
        monkeypatch.setenv("SWANLAB_API_KEY", "k" * 21)
    else:
        log_in(refusing_server, tmp_path / "swanlab_home")
    assert resolve_mode("auto")[0] == "cloud"


def test_cloud_without_login_is_local_and_says_how_to_log_in() -> None:
    mode, reason = resolve_mode("cloud")
    assert mode == "local"
    assert "swanlab login" in reason


@pytest.mark.parametrize("configured", ["offline", "disabled", "local"])
def test_auto_respects_what_swanlab_was_told(configured: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWANLAB_MODE", configured)
    monkeypatch.setenv("SWANLAB_API_KEY", "k" * 21)
    assert resolve_mode("auto")[0] == configured


@pytest.mark.parametrize("network", ["refused", "silent", "no such name"])
def test_cloud_without_network_is_local_within_the_probes_time(
    network: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:  # accepts no connection, so a client waits
        port = listening.getsockname()[1]
        host = {"refused": "127.0.0.1:9", "silent": f"127.0.0.1:{port}", "no such name": "swanlab.invalid"}[network]
        monkeypatch.setenv("SWANLAB_API_HOST", f"http://{host}")
        monkeypatch.setenv("SWANLAB_API_KEY", "k" * 21)
        started = time.monotonic()
        mode, reason = resolve_mode("cloud")
    assert time.monotonic() - started < 3
    assert mode == "local"
    assert "连不上" in reason
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("installed", [None, "0.1.6"])
def test_local_without_the_right_dashboard_is_offline(installed: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    real_version = metadata.version

    def version(name: str) -> str:
        if name != "swanboard":
            return real_version(name)
        if installed is None:
            raise metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(metadata, "version", version)
    mode, reason = resolve_mode("local")
    assert mode == "offline"
    assert "swanlab[dashboard]" in reason


def test_a_mistyped_mode_or_project_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="auto、cloud"):
        begin("clouds", tmp_path)
    with pytest.raises(InputError, match="项目名"):
        begin("local", tmp_path, project="我的项目")


def test_only_the_first_of_several_processes_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert begin("local", tmp_path).mode == "disabled"
    assert not (tmp_path / "swanlog").exists()


def test_importing_is_light_and_disabled_never_imports_swanlab(tmp_path: Path) -> None:
    code = """
import sys, pathlib, sft.report.curves
from sft.tracking.swanlab import start_tracking
print([m for m in ("torch", "transformers", "swanlab", "matplotlib") if m in sys.modules])
tracked = start_tracking(mode="disabled", project="p", experiment=None, log_dir=pathlib.Path("swanlog"),
    config={}, metrics_path=pathlib.Path("m"))
tracked.log_texts("样例", [("对", "一")], 1); tracked.replay([{"step": 1, "loss": 1.0}]); tracked.finish("crashed")
print("swanlab" in sys.modules, pathlib.Path("swanlog").exists())
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["[]", "False False"]


# A run


def test_the_local_curve_is_what_was_reported(
    tmp_path: Path, capfd: pytest.CaptureFixture, connections: list[object]
) -> None:
    tracked = begin("local", tmp_path)
    assert tracked.mode == "local"
    trainer = train(tmp_path, tracked)
    trainer.log({"eval_f1": np.float32(0.5)})
    tracked.log_texts("样例预测", [("对", "句子：他在北京。\n预测：北京"), ("错", "二")], 4)
    tracked.finish()

    drawn = curves(tmp_path / "swanlog")
    assert drawn["train/loss"] == reported(tmp_path, "loss")
    assert [step for step, _ in drawn["train/loss"]] == [1, 2, 3, 4]
    assert drawn["eval/loss"] == reported(tmp_path, "eval_loss")
    assert drawn["eval/f1"] == [(4, 0.5)]
    assert drawn["样例预测"] == [(4, ["句子：他在北京。\n预测：北京", "二"])]
    assert statuses(tmp_path / "swanlog") == [1]
    assert capfd.readouterr().out == "", "stdout is for results"
    assert connections == [], "nothing is looked up, connected to or listened on"


def rows_of_a_run(labels: int = 4, evaluations: int = 3) -> list[dict]:
    """What training logs: an evaluation before the first step, losses, more evaluations, results."""
    by_label = {f"eval_{name}_{number}": 0.5 for number in range(labels) for name in ("precision", "recall", "f1")}
    scores = {
        "eval_f1": 0.1,
        "eval_precision": 0.2,
        "eval_recall": 0.3,
        "eval_macro_f1": 0.4,
        **by_label,
        "eval_ece": 0.1,
    }
    noise = {"eval_unparsable": 0.0, "eval_threshold": 0.35, "eval_temperature": 1.5, "epoch": 1.0}
    rows = [{"step": 40 * number, **scores, **noise, "eval_loss": 3.0 - number} for number in range(evaluations)]
    tokens = {"executed_tokens": 10, "logical_tokens": 20, "tokens_per_second": 5.0}
    rows += [
        {"step": step, "loss": 2.0, "grad_norm": 1.0, "learning_rate": 1e-4, "epoch": 0.1, **tokens}
        for step in range(1, 90, 10)
    ]
    rows = sorted(rows, key=lambda row: row["step"])
    rows.append({"step": 90, "train_runtime": 9.0, "train_loss": 1.0, "total_flos": 1e9, "epoch": 1.5, **tokens})
    return [*rows, {"step": 90, "test_f1": 0.7, **{f"test_f1_{n}": 0.5 for n in range(labels)}}]


def test_the_charts_are_few_and_those_that_people_watch_come_first(tmp_path: Path) -> None:
    tracked = begin("local", tmp_path)
    tracked.log_texts("预测样例", [("对", "一")], 0, on_top=True)
    tracked.replay(rows_of_a_run(labels=200))
    tracked.finish()
    assert titles(tmp_path / "swanlog") == [
        *("预测样例", "train/loss", "eval/loss", "eval/f1", "eval/precision", "eval/recall", "eval/macro_f1"),
        "eval/ece",
        *("train/learning_rate", "train/grad_norm", "train/tokens_per_second"),
    ]
    drawn = curves(tmp_path / "swanlog")
    assert [step for step, _ in drawn["eval/f1"]] == [0, 40, 80]
    assert min(len(points) for name, points in drawn.items() if "/" in name) > 1, "no chart of a single point"
    shown = settings(tmp_path / "swanlog")
    assert shown["test_f1"] == 0.7 and shown["logical_tokens"] == 20 and shown["train_loss"] == 1.0
    assert not {"test_f1_7", "total_flos", "epoch", "tokens_per_second"} & set(shown)


def test_a_task_with_many_metrics_of_its_own_has_at_most_twelve_charts(tmp_path: Path) -> None:
    own = {f"eval_near_{number}": 0.5 for number in range(50)}
    tracked = begin("local", tmp_path)
    tracked.log_texts("预测样例", [("对", "一")], 0, on_top=True)
    tracked.replay([row | own if "eval_loss" in row else row for row in rows_of_a_run()])
    tracked.finish()
    assert len(titles(tmp_path / "swanlog")) <= 12


def test_one_evaluation_is_a_figure_beside_the_settings_and_no_chart(tmp_path: Path) -> None:
    tracked = begin("local", tmp_path)
    tracked.replay([row for row in rows_of_a_run() if row["step"] != 0 and row["step"] != 80])
    tracked.finish()
    assert not [name for name in titles(tmp_path / "swanlog") if name.startswith("eval/")]
    assert settings(tmp_path / "swanlog").items() >= {("eval_f1", 0.1), ("eval_loss", 2.0)}


def test_offline_keeps_every_loss_on_disk(
    tmp_path: Path, capfd: pytest.CaptureFixture, connections: list[object]
) -> None:
    tracked = begin("offline", tmp_path)
    train(tmp_path, tracked)
    tracked.finish()
    (store,) = (tmp_path / "swanlog").glob("run-*/run-*.swanlab")
    assert stored_scalars(store)["train/loss"] == reported(tmp_path, "loss")
    assert capfd.readouterr().out == ""
    assert connections == []


def stored_scalars(store: Path) -> dict[str, list[tuple[int, float]]]:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    reader = DataStoreReader()
    reader.open(str(store))
    scalars: dict[str, list[tuple[int, float]]] = {}
    for content in reader:
        record = Record()
        record.ParseFromString(content)
        if record.WhichOneof(record.DESCRIPTOR.oneofs[0].name) == "scalar":
            scalar = record.scalar
            scalars.setdefault(scalar.key, []).append((scalar.step, scalar.value.number))
    return scalars


def test_nan_is_null_in_the_rows_and_never_sent(tmp_path: Path) -> None:
    tracked = begin("local", tmp_path)
    trainer = train(tmp_path, tracked, steps=1)
    trainer.log({"test_f1": math.nan, "test_accuracy": np.int64(1)})
    trainer.log({"loss": math.nan, "eval_f1": np.float64("inf"), "eval_accuracy": torch.tensor(0.25)})
    tracked.finish()
    assert read_metrics(tmp_path / "metrics.jsonl")[-1].items() >= {
        ("loss", None),
        ("eval_f1", None),
        ("eval_accuracy", 0.25),
    }
    drawn = curves(tmp_path / "swanlog")
    assert drawn["eval/accuracy"] == [(1, 0.25)]
    assert not {"eval/f1", "test/f1"} & set(drawn)
    assert settings(tmp_path / "swanlog").items() >= {("test_accuracy", 1)}
    assert "test_f1" not in settings(tmp_path / "swanlog")
    assert all(math.isfinite(value) for name in drawn for _, value in drawn[name])


def test_the_dashboard_serves_the_run(tmp_path: Path) -> None:
    """One NaN in the curves would make SwanLab's dashboard answer with HTTP 500."""
    tracked = begin("local", tmp_path)
    tracked.replay([{"step": step, "loss": loss} for step, loss in enumerate([2.0, math.nan, 1.0])])
    tracked.finish()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        Path(sys.executable).with_name("swanlab"),
        "watch",
        "swanlog",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    dashboard = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}/api/v1"
        assert ask(f"{address}/experiment/1/tag/train/loss")["data"]["list"][-1]["data"] == 1.0
        for page in ("project", "project/summaries", "project/charts", "experiment/1/summary"):
            assert ask(f"{address}/{page}")["code"] == 0
    finally:
        dashboard.terminate()
        dashboard.wait(10)


def ask(address: str) -> dict:
    for attempt in range(100):
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                return json.load(answer)
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError:  # not started yet
            if attempt == 99:
                raise
            time.sleep(0.1)
    raise AssertionError


def test_a_resumed_run_shows_the_whole_curve(tmp_path: Path) -> None:
    whole = begin("disabled", tmp_path / "whole")
    train(tmp_path / "whole", whole, steps=6)

    first = begin("local", tmp_path / "run")
    train(tmp_path / "run", first, steps=6, extra=StopAfter(3))
    first.finish("aborted")
    assert [step for step, _ in reported(tmp_path / "run", "loss")] == [1, 2, 3]
    second = begin("local", tmp_path / "run")
    train(tmp_path / "run", second, steps=6, resume_from=2)
    second.finish()

    assert reported(tmp_path / "run", "loss") == reported(tmp_path / "whole", "loss")
    drawn = curves(tmp_path / "run/swanlog")
    assert drawn["train/loss"] == reported(tmp_path / "whole", "loss")
    assert drawn["eval/loss"] == reported(tmp_path / "whole", "eval_loss")
    assert statuses(tmp_path / "run/swanlog") == [-1, 1]


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            control.should_training_stop = True


@pytest.mark.parametrize(("state", "status"), [("success", 1), ("crashed", -1), ("aborted", -1)])
def test_the_end_of_a_run_is_marked_once(state: str, status: int, tmp_path: Path) -> None:
    tracked = begin("local", tmp_path)
    tracked.replay([{"step": 1, "loss": 1.0}])
    tracked.finish(state)
    tracked.finish("success")
    tracked.replay([{"step": 2, "loss": 2.0}])
    assert statuses(tmp_path / "swanlog") == [status]
    assert curves(tmp_path / "swanlog")["train/loss"] == [(1, 1.0)]


def test_a_second_run_in_one_process_closes_the_first(tmp_path: Path) -> None:
    """As in a notebook whose training cell was interrupted and is run again."""
    begin("local", tmp_path).replay([{"step": 1, "loss": 1.0}])
    second = begin("local", tmp_path)
    second.replay([{"step": 1, "loss": 2.0}])
    second.finish()
    assert statuses(tmp_path / "swanlog") == [1, 1]
    assert curves(tmp_path / "swanlog")["train/loss"] == [(1, 2.0)]


def test_signal_handlers_and_stdout_are_left_alone(tmp_path: Path) -> None:
    def handler(number, frame) -> None: ...

    before = signal.signal(signal.SIGINT, handler)
    try:
        write = sys.stdout.write
        tracked = begin("local", tmp_path)
        assert signal.getsignal(signal.SIGINT) is handler
        assert sys.stdout.write == write
        tracked.finish()
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_sigterm_leaves_no_row_behind(tmp_path: Path) -> None:
    """As in training: the signal handler raises, and ``finally`` ends the run."""
    code = """
import pathlib, signal, sys, time
from sft.tracking.swanlab import start_tracking
def stop(number, frame): raise SystemExit(143)
signal.signal(signal.SIGTERM, stop)
tracked = start_tracking(mode="local", project="p", experiment="e", log_dir=pathlib.Path("swanlog"), config={},
    metrics_path=pathlib.Path("m"))
state = "aborted"
try:
    for step in range(50):
        tracked.replay([{"step": step, "loss": 1 / (step + 1)}])
    print("logged", flush=True)
    time.sleep(30)
finally:
    tracked.finish(state)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"logged\n"
    process.terminate()
    assert process.wait(60) == 143
    assert len(curves(tmp_path / "swanlog")["train/loss"]) == 50
    assert statuses(tmp_path / "swanlog") == [-1]


# A tracker that fails


def test_a_tracker_that_raises_changes_nothing_but_one_line_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = train(tmp_path / "plain", begin("disabled", tmp_path / "plain"))

    tracked = begin("local", tmp_path / "run")
    monkeypatch.setattr(swanlab, "log", raises(ValueError("磁盘满了")))
    trainer = train(tmp_path / "run", tracked)
    tracked.log_texts("样例", [("对", "一")], 4)
    tracked.finish()

    assert [record.message for record in caplog.records if "SwanLab 出错" in record.message] == [
        "SwanLab 出错，此后不再记录（训练继续，指标照常写入 metrics.jsonl）：ValueError：磁盘满了"
    ]
    assert reported(tmp_path / "run", "loss") == reported(tmp_path / "plain", "loss")
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, plain.model.state_dict()[name])


def raises(error: Exception):
    def action(*args, **kwargs):
        raise error

    return action


@pytest.mark.parametrize("broken", ["init", "Settings", "finish"])
def test_each_call_of_swanlabs_may_fail(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swanlab, broken, raises(OSError("No space left on device")))
    tracked = begin("local", tmp_path)
    train(tmp_path, tracked, steps=1)
    tracked.finish()
    assert tracked.mode == ("local" if broken == "finish" else "disabled")
    assert reported(tmp_path, "loss")
    monkeypatch.undo()


def test_a_log_folder_that_cannot_be_written_costs_only_the_curve(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "swanlog").write_text("a file")
    tracked = begin("local", tmp_path)
    assert tracked.mode == "disabled"
    assert "只记 metrics.jsonl" in caplog.text
    train(tmp_path, tracked, steps=1)
    tracked.finish()


def test_a_login_the_cloud_refuses_falls_back_to_local(
    refusing_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture,
) -> None:
    monkeypatch.setenv("SWANLAB_API_HOST", refusing_server)
    monkeypatch.setenv("SWANLAB_API_KEY", "k" * 21)
    tracked = begin("cloud", tmp_path)
    tracked.replay([{"step": 1, "loss": 1.0}])
    tracked.finish()
    assert tracked.mode == "local"
    assert "启动失败（cloud）" in caplog.text
    assert curves(tmp_path / "swanlog")["train/loss"] == [(1, 1.0)]
    assert capfd.readouterr().out == ""


def test_a_run_for_the_cloud_without_network_is_recorded_here_and_costs_no_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWANLAB_API_HOST", "http://127.0.0.1:9")
    monkeypatch.setenv("SWANLAB_API_KEY", "k" * 21)
    started = time.monotonic()
    tracked = begin("cloud", tmp_path)
    train(tmp_path, tracked)
    tracked.finish()
    assert time.monotonic() - started < 30
    assert tracked.mode == "local"
    assert curves(tmp_path / "swanlog")["train/loss"] == reported(tmp_path, "loss")


@pytest.mark.parametrize("stuck", ["init", "finish"])
def test_a_tracker_that_hangs_is_left_behind(
    stuck: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()
    tracked = begin("offline", tmp_path) if stuck == "finish" else None
    with monkeypatch.context() as patch:
        patch.setattr(swanlab, stuck, lambda *args, **kwargs: release.wait(30))
        patch.setattr(tracking, "START_SECONDS", 0.5)
        patch.setattr(tracking, "FINISH_SECONDS", 0.5)
        started = time.monotonic()
        tracked = tracked or begin("offline", tmp_path)
        tracked.finish()
        assert time.monotonic() - started < 5
    release.set()
    assert "秒内没有" in caplog.text
    assert tracked.mode == ("offline" if stuck == "finish" else "disabled")


def test_replaying_says_what_is_wrong_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert replay_metrics.main([str(tmp_path)]) == 2
    (tmp_path / "metrics.jsonl").write_text("")
    assert replay_metrics.main([str(tmp_path)]) == 2
    (tmp_path / "metrics.jsonl").write_text('{"step":1,"loss":2.0}\n')
    (tmp_path / "swanlog").write_text("a file")
    assert replay_metrics.main([str(tmp_path), "--swanlab_mode", "offline"]) == 1
    with pytest.raises(SystemExit) as stop:
        replay_metrics.main([str(tmp_path), "--swanlab_mode", "disabled"])
    assert stop.value.code == 2
    path = str(tmp_path / "metrics.jsonl")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(path)]
    assert [line.split("：")[1] for line in lines] == [
        "没有这个文件；请给出训练脚本的 --output_dir",
        "里面没有指标；请给出训练脚本的 --output_dir",
        "没能记进 SwanLab，原因见上",
    ]


# metrics.jsonl


def state(step: int, first_process: bool = True) -> TrainerState:
    return TrainerState(global_step=step, epoch=step / 10, is_world_process_zero=first_process)


def test_rows_are_on_disk_as_soon_as_they_are_reported(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(1, 4):
        log.on_log(None, state(step), None, logs={"loss": 1.5})
        rows = read_metrics(tmp_path / "metrics.jsonl")
        assert len(rows) == step
        assert rows[-1].items() >= {("step", step), ("epoch", step / 10), ("loss", 1.5)}


def test_a_new_run_starts_empty_and_a_resumed_one_drops_what_it_will_repeat(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for run, resumed_step, expected in [(0, None, [1, 2, 3]), (1, 2, [1, 2, 3]), (2, None, [3]), (3, 0, [3])]:
        log = MetricsLog(path, resumed_step)
        for step in [1, 2, 3] if run == 0 else [3]:
            log.on_log(None, state(step), None, logs={"loss": run})
        assert [row["step"] for row in read_metrics(path)] == expected
        assert read_metrics(path)[-1]["loss"] == run


def test_a_row_cut_by_a_kill_is_skipped_and_gone_after_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step":1,"loss":2.0}\n{"step":2,"lo')
    assert [row["step"] for row in read_metrics(path)] == [1]
    keep_rows(path, 5)
    assert path.read_bytes() == b'{"step":1,"loss":2.0}\n'


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.on_log(None, state(1, first_process=False), None, logs={"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_cannot_be_written_is_told_with_its_path(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.on_log(None, state(1), None, logs={"loss": 1.0})
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match=r"metrics\.jsonl"):
        log.on_log(None, state(2), None, logs={"loss": 1.0})


def test_scalars_of_every_library_become_plain_numbers() -> None:
    metrics = {
        "float": 1.5,
        "int": 3,
        "float32": np.float32(0.5),
        "int64": np.int64(7),
        "tensor": torch.tensor(2.5, dtype=torch.bfloat16),
        "nan": math.nan,
        "inf": torch.tensor(math.inf),
        "flag": True,
        "text": "文字",
        "none": None,
        "list": [1, 2],
    }
    assert plain_metrics(metrics) == {
        "float": 1.5,
        "int": 3,
        "float32": 0.5,
        "int64": 7,
        "tensor": 2.5,
        "nan": None,
        "inf": None,
        "flag": True,
        "text": "文字",
        "none": None,
        "list": "[1, 2]",
    }


def test_another_mode_than_was_asked_for_is_told_in_one_chinese_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for mode, expected in [
        ("offline", []),
        ("cloud", ["SwanLab：没有登录（要上云请先运行 swanlab login），改为 local"]),
    ]:
        caplog.clear()
        begin(mode, tmp_path).finish()
        assert [record.getMessage() for record in caplog.records if record.name == "sft.tracking.swanlab"] == expected


# What the environment says


def drawn_under(folder: Path) -> tuple[str, str, int]:
    """Project, experiment and number of curves of the newest run in the local dashboard."""
    with sqlite3.connect(folder / "swanlog" / "runs.swanlab") as database:
        ((project, experiment),) = database.execute(
            "SELECT project.name, experiment.name FROM experiment JOIN project ON project.id = experiment.project_id "
            "ORDER BY experiment.id DESC LIMIT 1"
        )
    return project, experiment, len(curves(folder / "swanlog"))


def tracked_run(folder: Path, **names: str | None) -> Tracking:
    tracked = begin("auto", folder, **{"project": None, "experiment": None, "default_experiment": "folder"} | names)
    tracked.replay([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}])
    tracked.finish()
    return tracked


@pytest.mark.parametrize(
    ("variables", "project", "experiment"),
    [
        ({"SWANLAB_PROJECT": "mine"}, "mine", "folder"),
        ({"SWANLAB_PROJ_NAME": "mine"}, "mine", "folder"),
        ({"SWANLAB_PROJECT_NAME": "mine"}, "mine", "folder"),
        ({"SWANLAB_PROJECT": '{"name": "mine"}'}, "mine", "folder"),
        ({"SWANLAB_EXPERIMENT": "first"}, tracking.PROJECT, "first"),
        ({"SWANLAB_EXP_NAME": "first", "SWANLAB_PROJECT": "mine"}, "mine", "first"),
        ({}, tracking.PROJECT, "folder"),
    ],
    ids=str,
)
def test_names_in_the_environment_are_obeyed(variables, project, experiment, tmp_path, monkeypatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert tracked_run(tmp_path).mode == "local"
    assert drawn_under(tmp_path)[:2] == (project, experiment)
    assert "train/loss" in curves(tmp_path / "swanlog")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SWANLAB_MODE", "auto"),
        ("SWANLAB_MODE", "clouds"),
        ("SWANLAB_PROBE", "1"),
        ("SWANLAB_RUN", "x"),
        ("SWANLAB_INTERACTIVE", "perhaps"),
        ("SWANLAB_CORE", "[]"),
        ("SWANLAB_PROJECT", "我的项目"),
        ("SWANLAB_LOG_DIR", "/etc/hostname"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named_and_costs_no_curve(
    name, value, tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("SWANLAB_EXPERIMENT_NAME", "kept")
    assert tracked_run(tmp_path).mode == "local"
    assert drawn_under(tmp_path)[:2] == (tracking.PROJECT, "kept")
    assert "train/loss" in curves(tmp_path / "swanlog")
    said = [record.getMessage() for record in caplog.records if "不用" in record.getMessage()]
    assert len(said) == 1 and (name in said[0] or value in said[0])


def test_a_file_of_settings_that_cannot_be_read_costs_no_curve(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setitem(swanlab.Settings.model_config, "env_file", ".env")
    (tmp_path / ".env").write_text("SWANLAB_PROJECT=mine\n")
    assert tracked_run(tmp_path).mode == "local"
    assert "train/loss" in curves(tmp_path / "swanlog")
    assert ".env 文件读不懂" in caplog.text


def test_a_flag_counts_for_more_than_the_environment_and_says_so(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("SWANLAB_PROJECT", "theirs")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    tracked = begin("local", tmp_path, project="mine", experiment="first")
    tracked.replay([{"step": 1, "loss": 1.0}])
    tracked.finish()
    assert drawn_under(tmp_path)[:2] == ("mine", "first")
    for flag in ("--swanlab_project", "--swanlab_mode"):
        assert f"以 {flag} 为准" in caplog.text
