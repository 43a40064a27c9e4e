"""docs/guide.md as a new user follows it, in both languages: data, commands in order, what it says comes out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import REPOSITORY
from test_readme import (  # noqa: F401  hub and workspace are fixtures
    Workspace,
    all_commands,
    blocks,
    fenced_commands,
    flag_value,
    hub,
    inline_commands,
    workspace,
)

GUIDE, ENGLISH = REPOSITORY / "docs/guide.md", REPOSITORY / "docs/guide_en.md"
CONFIG = REPOSITORY.parent / "shared/qwen/Qwen2.5-1.5B-Instruct"
COMMANDS = fenced_commands(GUIDE, "bash")
SAMPLES = REPOSITORY / "data/sample"
LEAST = {"output/reviews": ("test_accuracy", 0.8), "output/orders": ("test_f1", 0.6)}


@pytest.fixture(scope="module")
def followed(workspace: Workspace) -> Workspace:  # noqa: F811
    return workspace


@pytest.mark.parametrize("path", [GUIDE, ENGLISH], ids=lambda path: path.name)
def test_the_rows_it_shows_are_in_its_files(path):
    for language, name in (("csv", "reviews.csv"), ("json", "orders.jsonl")):
        rows = (SAMPLES / name).read_text(encoding="utf-8").splitlines()
        assert len(rows) > 200
        shown = blocks(path, language)[0].splitlines()
        assert len(shown) >= 2
        assert [line for line in shown if line not in rows] == []


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("python transfer_")])
def test_converting_prints_what_it_says(followed, command):
    expected = blocks(GUIDE, "text")[0 if "classification" in command else 1]
    assert expected in followed.run(command).stderr


@pytest.mark.slow
def test_its_commands_lead_from_the_data_to_a_model_that_works(followed):
    done = {command: followed.run(command) for command in COMMANDS}
    shown = re.findall(r"^\| (?:分类|NER) \| \S+?(?: F1)? \| ([\d.]+) \|$", GUIDE.read_text("utf-8"), re.MULTILINE)
    for (folder, (metric, least)), figure in zip(LEAST.items(), shown, strict=True):
        result = json.loads(followed.path(f"{folder}/all_results.json").read_text(encoding="utf-8"))[metric]
        assert result >= least
        assert abs(result - float(figure)) < 0.08, "what the guide tells the reader to expect"
    reviews, orders = (json.loads(done[command].stdout) for command in COMMANDS if "--text" in command)
    assert set(reviews["scores"]) == {"价格", "服务", "物流", "质量"}
    assert reviews["label"] == "物流"
    assert without_scores(orders) == without_scores(json.loads(blocks(GUIDE, "json")[-1]))
    last = COMMANDS[-1]
    assert followed.path(flag_value(last, "--report")).stat().st_size > 0
    predictions = followed.path(flag_value(last, "--output_file")).read_text(encoding="utf-8").splitlines()
    assert len(predictions) == 119
    replay = next(command for command in all_commands(GUIDE) if "sft.tracking.replay" in command)
    assert "SwanLab 记录在本机" in followed.run(replay).stderr


def without_scores(result: dict) -> list[tuple]:
    return [(one["start"], one["end"], one["text"], one["label"]) for one in result["entities"]]


def test_both_languages_have_the_same_commands_flags_and_figures():
    for languages in (("bash",), ("text",), ("csv",), ("json",)):
        assert blocks(GUIDE, *languages) == blocks(ENGLISH, *languages)
    chinese, english = (path.read_text(encoding="utf-8") for path in (GUIDE, ENGLISH))
    assert set(inline_commands(GUIDE)) == set(inline_commands(ENGLISH))
    assert set(re.findall(r"--\w+", chinese)) == set(re.findall(r"--\w+", english))
    assert table_rows(chinese) == table_rows(english)


def test_the_readmes_input_and_output_are_the_guides():
    example = blocks(GUIDE, "json")[-1]
    for name in ("readme.md", "readme_en.md"):
        assert blocks(REPOSITORY / name, "json") == [example]
    picture = (REPOSITORY / "img/input_output.svg").read_text(encoding="utf-8")
    for entity in json.loads(example)["entities"]:
        assert f">{entity['text']}</text>" in picture
        assert f">{entity['label']} {entity['score']:.2f}</text>" in picture


def test_its_memory_tables_are_what_the_estimator_says():
    if not (CONFIG / "config.json").is_file():
        pytest.skip(f"no real config in {CONFIG}")
    command = [sys.executable, "-m", "benchmarks.memory_table", str(CONFIG)]
    printed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    guide = table_rows(GUIDE.read_text(encoding="utf-8"))
    rows = table_rows(printed)
    assert len(rows) >= 10
    for name, figures in rows.items():
        assert guide[name] == figures, name


def table_rows(text: str) -> dict[str, list[float]]:
    """For table rows that begin with a number: first cell → the numbers with which the next cells begin."""
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and re.fullmatch(r"[\d,]+( GB)?", cells[0]) and len(cells) >= 3:
            figures = (re.match(r"[\d,.]+", cell) for cell in cells[1:])
            rows[cells[0]] = [float(figure[0].replace(",", "")) for figure in figures if figure]
    return rows


def test_every_command_of_the_guide_is_one_of_those(tmp_path: Path):
    """Otherwise a command in the running text could become wrong without any test noticing."""
    elsewhere = (r"modelscope download .*", r"swanlab watch swanlog", r"bash quickstart\.sh")
    elsewhere += (r"pip install -r requirements-quantization\.txt",)
    elsewhere += (r"python -m benchmarks\.memory_table \S+", r"python -m sft\.tracking\.replay output/reviews")
    for command in all_commands(GUIDE):
        assert command in COMMANDS or any(re.fullmatch(pattern, command) for pattern in elsewhere), command
