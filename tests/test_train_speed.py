"""The benchmark of training says in one line what it lacks, and this project's part of it runs."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import train_speed

ROOT = Path(__file__).resolve().parents[1]


def refusal(tmp_path: Path, monkeypatch, capsys, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["train_speed.py", "--data_dir", str(tmp_path), *words])
    with pytest.raises(SystemExit) as stop:
        train_speed.main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_it_lacks_is_named_in_one_line(tmp_path, monkeypatch, capsys):
    words = ("--tokenizer", str(tmp_path), "--trl_python", str(tmp_path / "no_python"), "--rows", "ner")
    assert "train_ner.jsonl: missing" in refusal(tmp_path, monkeypatch, capsys, *words)
    (tmp_path / "train_ner.jsonl").touch()
    for more in ((), ("--only", "TRL"), ("--only", "packing 1024"), ("--only", "original", "--measure", "memory")):
        assert "no_python: no TRL" in refusal(tmp_path, monkeypatch, capsys, *words, *more)


@pytest.mark.parametrize("only, needed", [("original", False), ("HF Trainer", False), ("TRL", True), (None, True)])
def test_trl_is_needed_only_where_it_takes_part(only, needed):
    assert train_speed.needs_trl(argparse.Namespace(measure=["speed"], only=only)) is needed


@pytest.mark.slow
def test_this_projects_contestant_trains(tmp_path):
    base = train_speed.save_base(tmp_path / "base", train_speed.SMALL, "bfloat16")
    rows = [{"prompt_ids": list(range(2, 40)), "answer_ids": [5, 6, 7]}] * 16
    path = train_speed.write_rows(tmp_path / "rows", rows, 3640)
    job = {"library": "ours", "arguments": train_speed.OURS.arguments, **train_speed.OURS.job, "rows": str(path)}
    job |= {"base": str(base), "dtype": "bfloat16", "passes": 1, "output_dir": str(tmp_path)}
    lines = json.dumps(job) + "\ngo\n"
    done = subprocess.run([sys.executable, train_speed.WORKER], input=lines, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    one_pass, end = map(json.loads, done.stdout.splitlines())
    assert one_pass["steps"] == 1
    assert one_pass["tokens"] < 16 * 40
    assert end["first_loss"] > 0
