"""The reliability matrix finds nothing: a small fixed sample of every family here, the whole of it with ``--all``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FAMILIES = ["E1", "E2", "E3", "E4", "C1", "C2", "D1", "N1", "O1", "B1", "B2", "S1", "T1", "M1", "I"]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="forks processes and sends signals")


def matrix(*words: str) -> str:
    """What the command says; it fails if anything failed."""
    command = [sys.executable, "-m", "benchmarks.reliability", *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_a_sample_of_every_family_of_faults_breaks_no_promise():
    page = REPOSITORY / "docs" / "reliability.md"
    before = page.read_bytes()
    said = matrix("--short").splitlines()
    assert [line.split("：")[0] for line in said] == FAMILIES
    assert page.read_bytes() == before, "a sample is no measurement"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_no_case_of_a_family_breaks_its_promise(family):
    matrix(family, "--no-page")


def test_a_failure_is_counted_told_and_makes_the_command_fail(tmp_path):
    """Without the check of hashes, damage is not noticed, and the matrix says so."""
    sitecustomize = (
        "import sft.tasks.sealed as sealed\nimport sft.model.adapter as adapter\n"
        "adapter.check_files = sealed.check_files = lambda *_: None\n"
    )
    (tmp_path / "broken.py").write_text(sitecustomize)
    code = "import broken, runpy, sys; sys.argv[1:] = ['C1', '--short']; "
    code += "runpy.run_module('benchmarks.reliability', run_name='__main__', alter_sys=True)"
    environment = os.environ | {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}",
        "RELIABILITY_FOLDER": str(tmp_path / "work"),
    }
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr[-2000:]
    assert "adapter_model.safetensors 翻转一位：没有发现" in done.stdout


def test_damages_are_damages():
    from benchmarks.reliability.damage import damages, same_content  # not on Windows

    kinds = dict(damages(b'{"a": 1}', b'{"a": 2}', 1, "x"))
    assert kinds["删除"] is None and kinds["截到 4 字节"] == b'{"a"' and kinds["换成另一步的"] == b'{"a": 2}'
    assert not any(same_content(content, b'{"a": 1}') for what, content in kinds.items() if what != "多一个字节")
    assert same_content(kinds["多一个字节"], b'{"a": 1}')  # a newline more says the same
