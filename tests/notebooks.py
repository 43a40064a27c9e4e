"""Run the notebooks as a new user does, and write what they show into the committed files.

python -m tests.notebooks
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TESTS = Path(__file__).resolve().parent
if str(TESTS) not in sys.path:
    sys.path.append(str(TESTS))  # as pytest does

from checkout import REPOSITORY, copy_checkout, stranger  # noqa: E402

NOTEBOOKS = ("qwen_classification.ipynb", "qwen_ner.ipynb")
REPORT = """
figures = {"predictions": predictions, "before": before, "errors": len(errors), "metrics": metrics()}
print(json.dumps(figures))
"""
PLACE_OF_PARAMETERS = "parameters"
ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of an object in memory


def execute(path: Path, cwd: Path, parameters: str | None = None) -> tuple[nbformat.NotebookNode, dict]:
    """Run a notebook from top to bottom; return it with its outputs, and what `REPORT` printed.

    Args:
        cwd: the working directory.
        parameters: code of an extra cell, run after the notebook's parameter cell to change its values.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    extra = [nbformat.v4.new_code_cell(REPORT)]
    if parameters:
        (place,) = [n for n, cell in enumerate(notebook.cells) if PLACE_OF_PARAMETERS in cell.metadata.get("tags", [])]
        extra.append(nbformat.v4.new_code_cell(parameters))
        notebook.cells.insert(place + 1, extra[-1])
    notebook.cells.append(extra[0])
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(cwd)}}).execute()
    report = json.loads(extra[0].outputs[-1].text)
    notebook.cells = [cell for cell in notebook.cells if not any(cell is other for other in extra)]
    return notebook, report


def in_environment(environment: dict[str, str]) -> None:
    """Replace this process's environment, which the kernels inherit."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def clean(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Keep what a reader looks at: no timestamps, no paths of this machine, one stream a cell."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        kept: list[nbformat.NotebookNode] = []
        for output in cell.outputs:
            if kept and output.output_type == "stream" and kept[-1].output_type == "stream":
                kept[-1].text += output.text
            else:
                kept.append(output)
        for output in kept:
            if "text/html" in output.get("data", {}):
                output.data["text/plain"] = ADDRESS.sub("", output.data["text/plain"])
            if output.output_type == "stream":
                output.text = re.sub(r"[^\n]*\r", "", output.text).replace(f"{folder}/", "")
        cell.outputs = kept
    return notebook


def main() -> None:
    """Write the outputs of both notebooks into the repository."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = copy_checkout(Path(temporary) / "chinese-llm-sft")
        in_environment(stranger(Path(temporary) / "home"))
        for name in sys.argv[1:] or NOTEBOOKS:
            notebook, report = execute(folder / name, folder)
            nbformat.write(clean(notebook, folder), REPOSITORY / name)
            scores = {metric: round(value, 3) for metric, value in report["metrics"].items()}
            sys.stdout.write(f"{name} {scores}\n")


if __name__ == "__main__":
    main()
