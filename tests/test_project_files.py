"""The files that tell other people and tools about the project agree with it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import sft
from demo import make_guide_data

REPOSITORY = Path(__file__).resolve().parents[1]
TEMPLATES = sorted(path for path in (REPOSITORY / ".github/ISSUE_TEMPLATE").iterdir() if path.name != "config.yml")


def text_of(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def test_the_newest_released_version_is_that_of_the_package():
    versions = re.findall(r"^## \[(\d[^\]]*)\] - \d{4}-\d\d-\d\d$", text_of("CHANGELOG.md"), re.MULTILINE)
    assert versions[0] == sft.__version__
    assert yaml.safe_load(text_of("CITATION.cff"))["version"] == sft.__version__


def test_the_changelog_has_only_the_headings_of_keep_a_changelog():
    kinds = set(re.findall(r"^### \S+ · (\w+)$", text_of("CHANGELOG.md"), re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert len(kinds) == len(set(re.findall(r"^### .*$", text_of("CHANGELOG.md"), re.MULTILINE)))


def test_the_package_needs_what_requirements_txt_pins():
    project = tomllib.loads(text_of("pyproject.toml"))
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}
    assert {"version", "dependencies"} <= set(project["project"]["dynamic"])
    for path in (REPOSITORY / "sft").rglob("*.*"):
        if path.suffix not in (".py", ".pyc"):
            assert f"*{path.suffix}" in project["tool"]["setuptools"]["package-data"]["*"], path


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_an_issue_template_asks_each_question_once(path):
    template = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert template["name"]
    assert template["description"]
    questions = [question["id"] for question in template["body"]]
    assert questions
    assert len(set(questions)) == len(questions)


def test_the_container_copies_files_that_exist_and_runs_quickstart():
    dockerfile = text_of("Dockerfile")
    for names in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE):
        assert all((REPOSITORY / name).exists() for name in names.split())
    assert 'CMD ["bash", "quickstart.sh"]' in dockerfile


def test_what_git_keeps_of_the_data_folders_the_container_gets():
    kept = {line for line in text_of(".gitignore").splitlines() if line.startswith("!")}
    assert {line.replace("!/", "!").rstrip("/") for line in kept} == {
        line for line in text_of(".dockerignore").splitlines() if line.startswith("!")
    }


def test_the_data_of_the_guide_is_what_its_script_writes():
    assert text_of("data/sample/reviews.csv") == make_guide_data.reviews()
    assert text_of("data/sample/orders.jsonl") == make_guide_data.orders()
