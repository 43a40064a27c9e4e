"""Closed streams, names that are not UTF-8, full devices, memory that is used up: one line or none, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sft.cli import FAILED, one_line_errors
from sft.errors import is_out_of_memory

ROOT = Path(__file__).resolve().parents[1]
ROWS = [f'{{"text": "{text} {n}", "output": "{label}"}}\n'
        for n in range(20) for text, label in (("国家队赢了", "体育"), ("坦克演习", "军事"))]  # fmt: skip
RAW = "".join(ROWS)
posix = pytest.mark.skipif(sys.platform == "win32", reason="file descriptors as in a POSIX shell")


def shell(command: str, folder: Path) -> subprocess.CompletedProcess:
    """Run a command line with ``$PY`` and ``$ROOT``; its files are in ``folder``."""
    environment = os.environ | {"PY": sys.executable, "ROOT": str(ROOT), "PYTHONPATH": str(ROOT)}
    return subprocess.run(["sh", "-c", command], cwd=folder, env=environment, capture_output=True, timeout=100)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "raw.jsonl").write_text(RAW, encoding="utf-8")
    (tmp_path / "t.task.json").write_text(
        '{"task": "classification", "format_version": 1, "labels": ["体育", "军事"], "system_prompt": "选"}',
        encoding="utf-8",
    )
    return tmp_path


CONVERT = (
    "$PY $ROOT/transfer_classification_data.py --input_file raw.jsonl --test_ratio 0.3 "
    "--test_file te.jsonl --output_file"
)


@posix
class TestClosed:
    @pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
    def test_a_conversion_does_its_work_and_writes_only_its_own_words_into_its_files(self, closed, folder):
        done = shell(f"{CONVERT} tr.jsonl {closed}", folder)
        assert done.returncode == 0 and b"Traceback" not in done.stderr
        for name in ("tr.jsonl", "te.jsonl"):
            lines = (folder / name).read_bytes().splitlines()
            assert lines and all(line.startswith(b'{"messages"') for line in lines)

    @pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-"])
    def test_an_error_keeps_its_exit_code_without_anywhere_to_say_it(self, closed, folder):
        assert shell(f"$PY $ROOT/transfer_ner_data.py --input_file no.jsonl {closed}", folder).returncode == 2
        assert shell(f"$PY $ROOT/transfer_ner_data.py --no_such_flag {closed}", folder).returncode == 2

    def test_a_prediction_with_nowhere_to_go_is_refused(self, folder):
        flags = "--base_only --task_file t.task.json --text 好 --model_name_or_path no/such"
        done = shell(f"$PY $ROOT/predict.py {flags} >&-", folder)
        assert done.returncode == 2
        assert "标准输出是关着的" in done.stderr.decode() and b"Traceback" not in done.stderr


@posix
class TestNames:
    @pytest.mark.parametrize("name", [r"b\377.jsonl", r"\200\201/x.jsonl"])
    def test_a_name_that_is_not_utf8_is_read_and_told(self, name, folder):
        done = shell(f'n=$(printf "{name}"); mkdir -p "$(dirname "$n")"; cp raw.jsonl "$n"; ' + CONVERT.replace(
            "raw.jsonl", '"$n"') + " tr.jsonl", folder)  # fmt: skip
        assert b"Traceback" not in done.stderr
        assert done.returncode in (0, 2) and done.stderr.strip()

    def test_an_output_of_such_a_name_is_written_or_refused(self, folder):
        done = shell(CONVERT + r' "$(printf "b\377.jsonl")"', folder)
        assert b"Traceback" not in done.stderr and done.returncode in (0, 2)

    @pytest.mark.parametrize("page", ["cp1252", "ascii", "gbk"])
    @pytest.mark.parametrize("script", ["predict.py", "transfer_ner_data.py"])
    def test_help_can_be_read_on_any_code_page(self, script, page, folder):
        done = shell(f"PYTHONIOENCODING={page} $PY $ROOT/{script} --help", folder)
        assert done.returncode == 0 and done.stdout and b"Traceback" not in done.stderr


class TestMemory:
    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"),
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 40960000000 bytes."),
        ],
    )
    def test_memory_that_is_used_up_is_one_line(self, error, capsys):
        assert is_out_of_memory(error)
        with one_line_errors() as outcome:
            raise error
        said = capsys.readouterr().err
        assert outcome.code == FAILED and said.startswith("内存不够") and len(said.splitlines()) == 1

    def test_torch_itself_says_it_so(self):
        import torch

        with pytest.raises(RuntimeError) as caught:
            torch.empty(1 << 60, dtype=torch.uint8)
        assert is_out_of_memory(caught.value)

    def test_another_error_is_still_raised(self):
        with pytest.raises(RuntimeError, match="shape"), one_line_errors():
            raise RuntimeError("shape mismatch")
