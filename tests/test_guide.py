"""docs/guide.md as a new user follows it: its data, its commands in order, its memory tables."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import REPOSITORY
from test_readme import Workspace, all_commands, fenced_commands, flag_value, hub, workspace  # noqa: F401  fixtures

GUIDE = REPOSITORY / "docs/guide.md"
CONFIG = REPOSITORY.parent / "shared/qwen/Qwen2.5-1.5B-Instruct"
COMMANDS = fenced_commands(GUIDE, "bash")
DOWNLOAD = next(command for command in all_commands(GUIDE) if command.startswith("modelscope download"))


def files_of_the_guide() -> dict[str, str]:
    """The files that the guide tells the reader to save: name → content."""
    text = GUIDE.read_text(encoding="utf-8")
    return dict(re.findall(r"^存为 `(data/\S+?)`.*?：\n\n```\w+\n(.*?)^```", text, re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def followed(workspace: Workspace) -> Workspace:  # noqa: F811
    files = files_of_the_guide()
    assert set(files) == {"data/reviews.csv", "data/orders.jsonl"}
    for name, content in files.items():
        workspace.path(name).write_text(content, encoding="utf-8")
    return workspace


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("python transfer_")])
def test_its_data_converts_without_a_rejected_row(followed, command):
    rows = len(files_of_the_guide()[flag_value(command, "--input_file")].splitlines()) - ("csv" in command)
    followed.run(command)
    report = json.loads(followed.path(flag_value(command, "--output_file")).with_suffix(".report.json").read_text())
    assert (report["read"], report["converted"]) == (rows, rows)


@pytest.mark.slow
def test_its_commands_lead_from_the_data_to_predictions(followed):
    followed.run(DOWNLOAD)
    done = {command: followed.run(command) for command in COMMANDS}
    shown = next(done[command].stdout for command in COMMANDS if "--text" in command)
    assert set(json.loads(shown)["scores"]) == {"好评", "中评", "差评"}
    last = COMMANDS[-1]
    assert followed.path(flag_value(last, "--report")).stat().st_size > 0
    predictions = followed.path(flag_value(last, "--output_file")).read_text(encoding="utf-8").splitlines()
    assert {entity["label"] for line in predictions for entity in json.loads(line)["gold"]["entities"]} <= {
        "产品",
        "故障",
    }
    replay = next(command for command in all_commands(GUIDE) if "sft.tracking.replay" in command)
    assert "SwanLab 记录在本机" in followed.run(replay).stderr


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
    """For table rows that begin with a number: first cell → the numbers in the next two cells."""
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and re.fullmatch(r"[\d,]+( GB)?", cells[0]) and len(cells) >= 3:
            rows[cells[0]] = [float(re.match(r"[\d,.]+", cell)[0].replace(",", "")) for cell in cells[1:3]]
    return rows


def test_every_command_of_the_guide_is_one_of_those(tmp_path: Path):
    """Otherwise a command in the running text could become wrong without any test noticing."""
    elsewhere = (r"modelscope download .*", r"swanlab watch swanlog", r"bash quickstart\.sh")
    elsewhere += (r"python -m benchmarks\.memory_table \S+", r"python -m sft\.tracking\.replay output/reviews")
    for command in all_commands(GUIDE):
        assert command in COMMANDS or any(re.fullmatch(pattern, command) for pattern in elsewhere), command


def test_its_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)\s]+)\)", GUIDE.read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not (GUIDE.parent / target.split("#")[0]).exists()] == []
