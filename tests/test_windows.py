"""Windows, as far as Linux can impose its rules (see `windows.py`): scripts run to their end; what fails, says why."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import REPOSITORY, first_lines, stranger

from sft import files
from sft.cli import one_line_errors
from sft.errors import InputError
from sft.files import same_file, whole_file
from sft.prediction.output import Stream, check_output
from sft.tasks.evaluation import Tally

UNDER_WINDOWS = REPOSITORY / "tests" / "windows.py"
CONSOLE = {"PYTHONIOENCODING": "cp936", "PYTHONUTF8": "0", "PYTHONWARNDEFAULTENCODING": "1"}
# Quickstart's tasks: the scripts, the sample files, and the flags of training.
TASKS = {
    "cls": ("classification", "news", ["--learning_rate", "3e-3", "--num_train_epochs", "2", "--max_length", "256"]),
    "ner": ("ner", "ner", ["--learning_rate", "2e-3", "--num_train_epochs", "1.5"]),
}
SHORT = ["--max_steps", "4", "--save_steps", "2", "--eval_steps", "2", "--dataloader_num_workers", "2"]


def run(home: Path, *command: str, code: int = 0) -> str:
    """Run a script under the rules, on a GBK console. Returns stdout."""
    done = subprocess.run(
        [sys.executable, str(UNDER_WINDOWS), *command],
        cwd=REPOSITORY,
        env=stranger(home) | CONSOLE,
        capture_output=True,
        timeout=1200,
    )
    told = done.stderr.decode("gbk")
    assert done.returncode == code, told[-3000:]
    assert "Traceback" not in told
    return done.stdout.decode("utf-8")


def quickstart(folder: Path, task: str, *, rows: int | None, flags: list[str]) -> None:
    """Quickstart's commands for one task: conversion, prediction before, training, prediction after with a report."""
    name, sample, training = TASKS[task]
    raw = {}
    for part in ("train", "test"):
        raw[part] = folder / f"raw_{part}.jsonl"
        raw[part].write_text(
            first_lines(REPOSITORY / "data" / "sample" / f"{sample}_{part}.jsonl", rows), encoding="utf-8"
        )
    train, test, adapter = folder / "train.jsonl", folder / "test.jsonl", folder / "adapter"
    home, base = folder / "home", ["--model_name_or_path", "qwen/demo", "--dtype", "float32"]
    made = ["--output_file", train, "--test_file", test]
    run(home, f"transfer_{name}_data.py", "--input_file", raw["train"], "--input_test_file", raw["test"], *made)
    if rows is None:
        before = ["--input_file", test, "--output_file", folder / "before.jsonl", "--overwrite"]
        run(home, "predict.py", "--base_only", *base, *before)
    tracked = ["--swanlab_mode", "local", "--swanlab_logdir", folder / "swanlog"]
    trained = [*base, "--train_file", train, "--output_dir", adapter, "--overwrite_output_dir", *tracked]
    results = json.loads(run(home, f"train_qwen2_{name}.py", *trained, *training, *flags))
    assert {"adapter_model.safetensors", "task.json", "report.html", "loss.png"} <= {
        path.name for path in adapter.iterdir()
    }
    assert not list(adapter.glob(".*"))
    assert "test_loss" in results
    after = ["--input_file", test, "--output_file", folder / "after.jsonl", "--report", folder / "report.html"]
    for _ in range(2):  # the second time over the first one's files
        run(home, "predict.py", "--adapter", adapter, *after)
        assert len((folder / "after.jsonl").read_bytes().splitlines()) == len(test.read_bytes().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_quickstart_runs_to_its_end(tmp_path, task):
    quickstart(tmp_path, task, rows=None, flags=["--lora_r", "16"])


def test_a_short_quickstart_with_worker_processes_runs_to_its_end(tmp_path):
    quickstart(tmp_path, "ner", rows=40, flags=SHORT)


# ---- The rules themselves ----

BREAKS_EACH_RULE = """
import os, shutil, sys, tempfile
from pathlib import Path

def refused(action, *arguments):
    try:
        action(*arguments)
    except OSError as error:
        return type(error).__name__
    return "allowed"

os.chdir(sys.argv[1])
for name in ("open", "free", "target"):
    Path(name).write_bytes(b"x")
Path("folder").mkdir()
Path("folder/inside").write_bytes(b"x")
held, inside = open("open", "rb"), open("folder/inside", "rb")
print(refused(os.fsync, held.fileno()))
print(refused(os.replace, "free", "open"), refused(os.replace, "open", "free"), refused(os.remove, "open"))
print(refused(os.rename, "free", "target"), refused(os.rename, "folder", "moved"), refused(shutil.rmtree, "folder"))
print(refused(Path("a:b").write_bytes, b""), refused(Path("what?").mkdir), refused(os.open, "folder", os.O_RDONLY))
print(refused(os.replace, "free", "target"), refused(tempfile.TemporaryFile().write, b"x"))
import signal
print(hasattr(signal, "SIGHUP"), hasattr(signal, "SIGTERM"))
try:
    import fcntl
except ImportError:
    print("no fcntl")
try:
    Path("target").read_text()
except EncodingWarning:
    print("no encoding")
"""


def test_the_rules_of_windows_are_imposed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(BREAKS_EACH_RULE, encoding="utf-8")
    (tmp_path / "here").mkdir()
    assert run(tmp_path / "home", str(script), str(tmp_path / "here")).split("\n") == [
        "OSError",
        "PermissionError PermissionError PermissionError",
        "FileExistsError PermissionError PermissionError",
        "OSError OSError PermissionError",
        "allowed allowed",
        "False True",
        "no fcntl",
        "no encoding",
        "",
    ]


# ---- Files that other programs have open ----


def held_by_another_program(monkeypatch, times: int) -> None:
    """The next ``times`` replacements fail, as while a virus scanner reads the new file."""
    real, left = Path.replace, [times]

    def replace(self, target):
        if left[0] > 0:
            left[0] -= 1
            raise PermissionError(errno.EACCES, "另一个程序正在使用此文件，进程无法访问。", str(self))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(files, "PAUSES_SECONDS", (0.0, 0.0, 0.0))


def test_a_file_that_a_virus_scanner_holds_for_a_moment_is_still_replaced(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    held_by_another_program(monkeypatch, 3)
    with whole_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_stays_open_elsewhere_is_one_line_and_keeps_its_content(tmp_path, monkeypatch, capsys):
    path = tmp_path / "a.csv"
    path.write_bytes(b"old")
    held_by_another_program(monkeypatch, 100)
    monkeypatch.setattr(sys, "platform", "win32")
    with one_line_errors() as outcome, whole_file(path) as file:
        file.write(b"new")
    told = capsys.readouterr().err
    assert outcome.code == 1
    assert told.count("\n") == 1 and "关掉正打开着它的程序" in told
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_one_file_under_two_names_is_one_file(tmp_path):
    """As with capitals on Windows and macOS; here a hard link."""
    (tmp_path / "data.jsonl").write_bytes(b"x")
    os.link(tmp_path / "data.jsonl", tmp_path / "DATA.jsonl")
    assert same_file(tmp_path / "data.jsonl", tmp_path / "DATA.jsonl")
    assert not same_file(tmp_path / "data.jsonl", tmp_path / "other.jsonl")


def test_a_drive_that_does_not_exist_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda self: False)  # not even the root
    with pytest.raises(InputError, match="无法写入"):
        check_output(tmp_path / "predictions.jsonl", None, resume=False, overwrite=False)


# ---- Consoles and pipes ----


def test_a_closed_pipe_of_windows_is_a_closed_pipe(monkeypatch):
    class Closed:
        def writelines(self, lines):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(BrokenPipeError):
        Stream(Closed()).add([b"{}"], Tally())


@pytest.mark.parametrize("script", ["transfer_ner_data.py", "transfer_classification_data.py", "predict.py"])
@pytest.mark.parametrize("page", ["cp1252", "cp936", "ascii"])
def test_help_and_errors_can_be_read_on_any_code_page(script, page):
    readable = "gbk" if page == "cp936" else "utf-8"
    environment = os.environ | {"PYTHONIOENCODING": page, "PYTHONUTF8": "0"}

    def told(*flags: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(REPOSITORY / script), *flags]
        return subprocess.run(command, env=environment, capture_output=True, timeout=60)

    asked, wrong = told("--help"), told("--input_fil", "x")
    assert (asked.returncode, asked.stderr) == (0, b"")
    assert "编码" in asked.stdout.decode(readable)
    assert wrong.returncode == 2
    assert "不认识的参数" in wrong.stderr.decode(readable)


def test_standard_input_that_is_not_there_is_one_line():
    """As under pythonw, or closed in a shell."""
    command = [sys.executable, str(REPOSITORY / "predict.py"), "--adapter", "nowhere"]
    done = subprocess.run(command, preexec_fn=lambda: os.close(0), capture_output=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.decode().count("\n") == 1 and "标准输入" in done.stderr.decode()
