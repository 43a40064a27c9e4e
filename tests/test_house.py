"""Who may import whom (CONTRIBUTING.md): checks the import statements of all modules."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "sft"
GROUND = {"errors", "files", "cli", "text", "console", "network", "processes", "terminal"}
ROOMS = {
    "tasks": set(),
    "data": {"tasks"},
    "engine": set(),
    "model": {"engine", "tasks"},
    "tracking": set(),
    "decoding": {"model", "engine", "tasks"},
    "report": {"tracking", "data", "tasks"},
    "training": {"decoding", "report", "tracking", "model", "engine", "data", "tasks"},
    "prediction": {"data", "decoding", "model", "tasks"},
    "export": {"decoding", "model", "engine", "tasks"},
}
PAGE_OF_PREDICTIONS = "sft.report.page"  # the one part of a run's report that predictions have too
MOST_ARGUMENTS = 7


def imports_of(path: Path) -> Iterator[str]:
    """The modules of this package that a file imports, late and type-only ones included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "sft")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sft":
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                is_module = (PACKAGE.parent / inside.replace(".", "/")).with_suffix(".py").is_file()
                yield inside if is_module else node.module


def all_imports() -> Iterator[tuple[str, str]]:
    """``(importer, imported)`` for every import of one module of the package by another."""
    for path in PACKAGE.rglob("*.py"):
        importer = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        yield from ((importer, imported) for imported in imports_of(path))


def room_of(module: str) -> str:
    """``sft.data.formats`` → ``data``; ``sft.errors`` → ``errors``."""
    return [*module.split("."), ""][1]


def broken_rules() -> set[tuple[str, str]]:
    broken = set()
    for importer, imported in all_imports():
        room, other = room_of(importer), room_of(imported)
        allowed = other in GROUND | {"", room} or other in ROOMS.get(room, ())
        if not allowed and not (room == "prediction" and imported == PAGE_OF_PREDICTIONS):
            broken.add((importer, imported))
    return broken


def test_no_room_imports_itself_back_through_others() -> None:
    imports: dict[str, set[str]] = {}
    for importer, imported in all_imports():
        imports.setdefault(room_of(importer), set()).add(room_of(imported))
    for room in ROOMS:
        reached, waiting = set(), list(imports.get(room, set()) - {room})
        while waiting:
            other = waiting.pop()
            if other not in reached:
                reached.add(other)
                waiting += imports.get(other, ())
        assert room not in reached, room


def test_rooms_import_only_what_lies_below_them() -> None:
    assert broken_rules() == set()


def test_benchmarks_run_from_the_repository_alone() -> None:
    """pytest finds the modules of ``tests`` by their bare names; ``python -m benchmarks.…`` does not."""
    only_for_pytest = {path.stem for path in (PACKAGE.parent / "tests").glob("*.py")}
    for path in (PACKAGE.parent / "benchmarks").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        assert not names & only_for_pytest, path


def test_every_module_is_in_a_room_or_on_the_ground() -> None:
    names = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir()} - {"__init__", "__pycache__"}
    assert names <= GROUND | ROOMS.keys()


def test_rooms_without_torch_import_none() -> None:
    """Neither these modules nor what they import at the top."""
    patterns = ["*.py", "tasks/*.py", "data/*.py", "report/*.py", "*/arguments.py", "training/flags.py"]
    paths = [path.relative_to(PACKAGE.parent) for pattern in patterns for path in PACKAGE.glob(pattern)]
    modules = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]
    probe = f"import sys, {', '.join(modules)}; print({{'torch', 'transformers', 'peft'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", probe], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_argument_lists_stay_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            names = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
            assert len(names) <= MOST_ARGUMENTS, f"{node.name} takes {len(names)} arguments"
