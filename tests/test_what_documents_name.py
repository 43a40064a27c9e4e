"""All documents: links and anchors lead somewhere, and commands name scripts and flags that exist."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from checkout import REPOSITORY

LISTING = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
TRACKED = subprocess.run(LISTING, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split()
DOCUMENTS = [name for name in TRACKED if name.endswith((".md", ".ipynb"))]
DOCSTRINGS = [name for name in TRACKED if re.fullmatch(r"(benchmarks|demo)/.*\.py|\w+\.py", name)]
TRAINING = "train_qwen2_ner.py"  # the flags of both training scripts are the same
COMMAND = re.compile(r"\bpython (-m )?([\w./]+)((?: [^`\n#]*)?)")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose_of(name: str) -> str:
    """What a person reads: of a notebook the text between the cells of code, of a module its docstring."""
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    if name.endswith(".py"):
        return ast.get_docstring(ast.parse(text)) or ""
    if name.endswith(".ipynb"):
        cells = json.loads(text)["cells"]
        return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return text


@cache
def anchors_of(name: str) -> frozenset[str]:
    """The anchors that GitHub makes of the headings of a document."""
    text = re.sub(r"^```.*?^```", "", prose_of(name), flags=re.DOTALL | re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE))
    return frozenset(heading.strip().replace(" ", "-") for heading in plain)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_anchors_lead_somewhere(name):
    for target in LINK.findall(prose_of(name)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = (REPOSITORY / name).parent / file if file else REPOSITORY / name
        assert path.exists(), target
        assert not anchor or anchor in anchors_of(path.resolve().relative_to(REPOSITORY).as_posix()), target


def script_of(module: str, name: str) -> Path | None:
    """The file that a command runs; None if it is not one of this repository's."""
    if not module:
        return REPOSITORY / name if name.endswith(".py") and name in TRACKED else None
    if name.partition(".")[0] not in ("benchmarks", "demo", "tests", "sft"):
        return None
    path = REPOSITORY / name.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def flags_of(script: Path) -> frozenset[str]:
    """The flags that a script knows: those in its source, but of the scripts that users run, those of its help."""
    text = script.read_text(encoding="utf-8")
    if script.parent == REPOSITORY:
        words = ["--help_all" if script.name.startswith("train_") else "--help"]
        done = subprocess.run([sys.executable, script, *words], capture_output=True, encoding="utf-8", check=True)
        text = done.stdout.replace("--", '"--').replace("\n", " ")
    return frozenset(re.findall(r'"(--\w+)', text))


@pytest.mark.parametrize("name", DOCUMENTS + DOCSTRINGS)
def test_commands_name_scripts_and_flags_that_exist(name):
    for module, called, rest in COMMAND.findall(prose_of(name).replace("\\\n", " ")):
        script = script_of(module, called)
        if script is None:
            continue
        assert script.is_file(), called
        own, _, passed_on = rest.partition(" -- ")
        for words, reader in ((own, script), (passed_on, REPOSITORY / TRAINING)):
            given = [word for word in shlex.split(words.replace("'", "")) if word.startswith("--")]
            assert not given or set(given) <= flags_of(reader), f"{called} {words}"
