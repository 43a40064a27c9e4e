"""The benchmark for GPUs, rehearsed on the CPU: every part runs and ends up on the page; one that fails ends alone."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_report, gpu_rows

PAGE = Path(__file__).resolve().parents[1] / "docs" / "gpu.md"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    for name in ("CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM"):  # the benchmark sets them
        monkeypatch.setenv(name, "1")


def test_a_rehearsal_runs_every_part_and_writes_nothing(capsys):
    before = PAGE.read_bytes()
    assert gpu.main(["--rehearse"]) == 0, capsys.readouterr()
    page = capsys.readouterr().out
    for heading in ("## 检查", "## 训练", "## 预测", "## 一步训练要多少显存"):
        assert heading in page
    assert "没有测成的" not in page
    for kind in gpu_report.KIND_NAMES.values():
        assert re.search(rf"\| {re.escape(kind)} \| 本项目[^|]* \| [\d.]+ \| [\d,]+ \| 1.00 \|", page)
    assert "装得下" in page
    assert PAGE.read_bytes() == before


def test_what_fails_is_one_line_and_the_other_parts_go_on(tmp_path):
    broken = gpu_rows.TINY | {"num_attention_heads": 3}  # 64 is no multiple of it
    benchmark = gpu.Benchmark(replace(gpu.REHEARSAL, shape=broken, steps=0), tmp_path)
    benchmark.run(["machine", "checks", "prediction"])
    assert benchmark.found["machine"]
    assert [found["check"] for found in benchmark.found["checks"]] == ["varlen", "fp16", "nf4"]
    assert any(problem.startswith("检查 varlen") for problem in benchmark.problems)
    assert any(problem.startswith("prediction：") for problem in benchmark.problems)
    assert not any("\n" in problem for problem in benchmark.problems)
    page = gpu_report.report(benchmark.found, benchmark.problems, broken, ("2026-01-01", "", ""))
    assert "## 没有测成的" in page


def test_a_part_without_time_is_left_out_and_named(tmp_path):
    benchmark = gpu.Benchmark(replace(gpu.REHEARSAL, patience=1), tmp_path, seconds=3)
    benchmark.run(["checks", "memory"])
    assert benchmark.problems == ["checks：没有时间了，没有测", "memory：没有时间了，没有测"]


def test_large_steps_and_other_libraries_take_part_where_there_is_room():
    names = [peer.name for peer in gpu.contestants("bfloat16", 80)]
    assert names[0] == "本项目" and f"本项目，每步 {gpu.ROWS_A_STEP} 条" in names
    assert f"本项目，每步 {gpu.ROWS_A_STEP} 条" not in [peer.name for peer in gpu.contestants("bfloat16", 16)]
    for peer in gpu.contestants("float16", 80):  # Turing has no bfloat16
        assert peer.arguments.get("fp16") and not peer.arguments.get("bf16")
