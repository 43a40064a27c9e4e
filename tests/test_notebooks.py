"""The notebooks: committed with small outputs and without logic of their own; when run, they train and predict."""

from __future__ import annotations

import ast
import base64
import json
import os
import re
import resource
from pathlib import Path

import nbformat
import pytest
from checkout import REPOSITORY, copy_checkout, shorten_samples, stranger

from tests.notebooks import NOTEBOOKS, execute

SMALL = """ROWS, STEPS, TEST_ROWS = 24, 2, 8"""
LARGEST_PICTURE_BYTES = 200_000


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(REPOSITORY / name, as_version=nbformat.NO_CONVERT)


def code_of(name: str) -> list[str]:
    return [cell.source for cell in read(name).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_committed_with_small_outputs_of_one_run(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    assert notebook.metadata.kernelspec.name == "python3"
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert_readable(outputs)
    assert (REPOSITORY / name).stat().st_size < 400_000
    written = json.dumps(outputs, ensure_ascii=False)
    assert not re.search(r"/(tmp|root|home|work)/", written), "no paths of the machine it ran on"
    assert sum("text/html" in output.get("data", {}) for output in outputs) >= 3


def assert_readable(outputs: list) -> None:
    """No errors, nothing on red ground, pictures that are not too large, and the tables and marked sentences."""
    assert not any(output.output_type == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
    shown = {kind for output in outputs for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= shown, "the loss curve, tables and marked sentences"
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert all(len(base64.b64decode(picture)) < LARGEST_PICTURE_BYTES for picture in pictures)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_cells_are_short_and_each_has_its_words(name):
    assert all(len(source.splitlines()) <= 12 for source in code_of(name))
    kinds = [cell.cell_type for cell in read(name).cells]
    assert kinds[0] == "markdown"
    assert kinds.count("markdown") * 1.5 > kinds.count("code")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_package_does_the_work(name):
    """No functions, classes, prompts or training loop in the notebook: it makes the same calls as the scripts."""
    source = "\n".join(code_of(name))
    kinds = {type(node) for node in ast.walk(ast.parse(source))}
    assert not kinds & {ast.FunctionDef, ast.ClassDef, ast.While, ast.For, ast.Try}
    assert "你是" not in source
    imported = {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    assert {"sft.model.encoding", "sft.prediction.predictor", "sft.training.preview"} <= imported
    assert not imported & {"transformers", "peft", "torch", "datasets"}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_another_model_takes_one_changed_cell(name):
    """Only the first code cell names the model, its settings and the size of the run."""
    first, *rest = code_of(name)[1:]  # after the commented installation
    assigned = {target.id for node in ast.parse(first).body for target in node.targets}
    assert {"MODEL", "DTYPE", "LEARNING_RATE", "ROWS", "STEPS"} <= assigned
    assert all("qwen/demo" not in source and "data/sample" not in source for source in rest)
    reassigned = {node.id for node in ast.walk(ast.parse("\n".join(rest))) if stores(node)}
    assert not assigned & reassigned


def stores(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


@pytest.fixture
def new_user(tmp_path, monkeypatch) -> None:
    """The environment of a user who is logged in nowhere."""
    environment = stranger(tmp_path / "home")
    for variable in os.environ.keys() - environment.keys():
        monkeypatch.delenv(variable)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)


@pytest.mark.parametrize(("name", "cwd"), [(NOTEBOOKS[0], "docs"), (NOTEBOOKS[1], "..")])
def test_runs_from_top_to_bottom_in_any_folder(name, cwd, tmp_path, new_user):
    folder = copy_checkout(tmp_path / "clone")
    shorten_samples(folder, 40)
    notebook, report = execute(folder / name, folder / cwd, SMALL)
    assert_readable([output for cell in notebook.cells for output in cell.get("outputs", [])])
    assert len(report["predictions"]) == 8
    texts = [[row["text"] for row in report[when]] for when in ("before", "predictions")]
    assert texts[0] == texts[1], "the same rows before and after"
    assert report["metrics"]["rows"] == 8
    right = report["metrics"].get("accuracy", report["metrics"].get("f1"))
    assert (report["errors"] == 0) == (right == 1)
    (output_dir,) = (folder / "output").glob("notebook_*")
    rows = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2
    assert (output_dir / "adapter_model.safetensors").is_file()
    assert_loss_was_learned_from(output_dir)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "metric", "least"), [(NOTEBOOKS[0], "accuracy", 0.8), (NOTEBOOKS[1], "f1", 0.5)])
def test_as_committed_it_learns_the_task_within_four_minutes_of_two_cores(name, metric, least, tmp_path, new_user):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    folder = copy_checkout(tmp_path / "clone")
    _, report = execute(folder / name, folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert report["metrics"][metric] > least
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2 * 240


def assert_loss_was_learned_from(output_dir: Path) -> None:
    """LoRA's B matrices start as zeros; after a step they are not."""
    from safetensors.torch import load_file

    weights = load_file(output_dir / "adapter_model.safetensors")
    assert all(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)
