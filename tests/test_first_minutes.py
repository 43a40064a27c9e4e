"""The first minutes: packages that are not there, flags without a value, and what quickstart.sh ends with."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from checkout import REPOSITORY, copy_checkout, stranger
from hypothesis import given
from hypothesis import strategies as st
from test_readme import with_fake_python

from sft.terminal import display_width
from sft.training.steps import LEAST_POINTS, fitting_logging_steps

SCRIPTS = {
    "predict.py": ["--adapter", "output/x", "--text", "今天下雨。"],
    "train_qwen2_classification.py": [],
    "train_qwen2_ner.py": ["--dry_run"],
    "transfer_classification_data.py": ["--input_file", "data/sample/news_test.jsonl"],
    "transfer_ner_data.py": ["--input_file", "data/sample/ner_test.jsonl"],
}


# ---- packages that are not there ----


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> tuple[Path, Path]:
    """A checkout, and a Python without any packages."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder / "python", with_pip=False)
    scripts = "Scripts" if os.name == "nt" else "bin"
    return copy_checkout(folder / "我的 clone"), folder / "python" / scripts / "python"


def said_by(python: Path, script: Path, *words: str, cwd: Path) -> str:
    """What a script says that cannot find its packages: one line, and exit code 2."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), str(script), *words], cwd=cwd, env=environment, capture_output=True, encoding="utf-8"
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr[-2000:]
    return done.stderr.strip()


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_packages_a_script_says_what_to_type(bare, script):
    clone, python = bare
    (clone / ".venv/bin").mkdir(parents=True, exist_ok=True)
    (clone / ".venv/bin/activate").touch()
    said = said_by(python, clone / script, *SCRIPTS[script], cwd=clone)
    assert re.fullmatch(r"没有装 \w+（用的是 .*python）；请先运行 source .venv/bin/activate", said)
    elsewhere = said_by(python, clone / script, *SCRIPTS[script], cwd=clone / "docs")
    assert elsewhere.endswith("请先运行 source ../.venv/bin/activate")
    shutil.rmtree(clone / ".venv")
    said = said_by(python, clone / script, *SCRIPTS[script], cwd=clone)
    assert "python -m pip install -r requirements.txt" in said


@pytest.mark.parametrize("script", [script for script in SCRIPTS if not script.startswith("train")])
def test_help_needs_no_packages(bare, script):
    clone, python = bare
    done = subprocess.run([str(python), str(clone / script), "--help"], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {script}")


# ---- how often the loss is logged ----


@given(st.integers(1, 10**6))
def test_any_run_has_twenty_points_of_its_loss_or_one_for_each_step(steps):
    every = fitting_logging_steps(steps)
    assert steps // every >= min(steps, LEAST_POINTS)
    assert every <= 10, "never less often than before"
    assert fitting_logging_steps(357) == 10


# ---- the last lines of quickstart.sh ----


def commands_at_the_end(output: str) -> list[str]:
    """What the last lines tell the reader to type, from the activation on."""
    lines = output.replace(" \\\n", " ").splitlines()
    commands = [" ".join(line.split()) for line in lines if line.startswith("    ")]
    return commands[commands.index("source .venv/bin/activate") :]


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> str:
    """What quickstart.sh prints at its end, with a python that only pretends."""
    folder, _ = with_fake_python(tmp_path_factory.mktemp("quickstart") / "clone")
    return subprocess.run(["bash", "quickstart.sh"], cwd=folder, check=True, capture_output=True).stdout.decode()


def test_quickstart_ends_with_the_activation_and_commands_of_real_sentences(told):
    commands = commands_at_the_end(told)
    assert commands[0] == "source .venv/bin/activate"
    assert r".venv\Scripts\activate" in told
    assert [line for line in told.splitlines() if display_width(line) > 80] == []
    for task, name in (("ner", "ner_test"), ("cls", "news_test")):
        command = next(command for command in commands if f"--adapter output/quickstart/{task} " in command)
        sentence = re.search(r"--text '(.+)'$", command)[1]
        rows = (REPOSITORY / f"data/sample/{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert any(json.loads(row)["text"].startswith(sentence) for row in rows)


def test_quickstart_called_from_elsewhere_says_where_to_go(tmp_path):
    folder, _ = with_fake_python(tmp_path / "my clone")
    done = subprocess.run(["bash", str(folder / "quickstart.sh")], cwd=tmp_path, check=True, capture_output=True)
    assert f"    cd {str(folder).replace(' ', chr(92) + ' ')}\n    source .venv/bin/activate" in done.stdout.decode()


def test_quickstart_refuses_arguments_before_it_sets_anything_up(tmp_path):
    folder = copy_checkout(tmp_path / "clone")
    for words in (["--help"], ["--num_train_epochs", "5"]):
        done = subprocess.run(["bash", "quickstart.sh", *words], cwd=folder, capture_output=True, check=False)
        assert (done.returncode, done.stdout) == (2, b"")
        assert f"不收参数（收到 {' '.join(words)}）" in done.stderr.decode()
    assert not (folder / ".venv").exists()


@pytest.mark.slow
def test_the_last_lines_of_quickstart_run_in_a_fresh_shell(tmp_path, told):
    """The predictions, after a short training with quickstart's own folders; the rest needs the network."""
    folder, environment = copy_checkout(tmp_path / "clone"), stranger(tmp_path / "home")
    (folder / ".venv").mkdir()
    (folder / ".venv/bin").symlink_to(Path(sys.executable).parent)
    for task, kind, name in (("ner", "ner", "ner"), ("cls", "classification", "news")):
        train = [f"train_qwen2_{kind}.py", "--model_name_or_path", "qwen/demo", "--max_steps", "1"]
        train += ["--train_file", f"data/quickstart/train_{task}.jsonl", "--output_dir", f"output/quickstart/{task}"]
        train += ["--test_file", "none", "--eval_strategy", "no", "--swanlab_mode", "local"]
        convert = [f"transfer_{kind}_data.py", "--input_file", f"data/sample/{name}_train.jsonl"]
        convert += ["--output_file", f"data/quickstart/train_{task}.jsonl"]
        for command in (convert, train):
            subprocess.run([sys.executable, *command], cwd=folder, env=environment, check=True, capture_output=True)
    commands = commands_at_the_end(told)
    fresh = environment | {"PATH": os.defpath}  # no python of ours before the activation
    for command in (command for command in commands if command.startswith("python predict.py")):
        typed = f"{commands[0]}\n{command}\n"
        done = subprocess.run(["bash"], input=typed.encode(), cwd=folder, env=fresh, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        assert json.loads(done.stdout.decode())["text"] in command
    training = next(command for command in commands if command.startswith("python train_"))
    typed = f"{commands[0]}\n{training} --dry_run --model_name_or_path qwen/demo\n"
    done = subprocess.run(["bash"], input=typed.encode(), cwd=folder, env=fresh, capture_output=True)
    assert "检查通过" in done.stdout.decode(), done.stderr.decode()[-2000:]
    watching = next(command for command in commands if command.startswith("swanlab watch"))
    assert (folder / watching.split()[-1]).is_dir(), "what the dashboard shows"
