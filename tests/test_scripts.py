"""The six scripts as a user meets them: help, wrong flags, consoles that are not UTF-8, any working directory."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkout import REPOSITORY, first_lines, stranger

QUICK = ("transfer_classification_data.py", "transfer_ner_data.py", "predict.py", "export.py")
TRAINING = ("train_qwen2_classification.py", "train_qwen2_ner.py")
SCRIPTS = QUICK + TRAINING
# Flags in the readme that belong to other programs or older versions, and to which.
OTHERS_FLAGS = {
    "--model": "modelscope",
    "--dataset": "modelscope",
    "--local_dir": "modelscope",
    "--repo": "hf",  # --repo-type
    "--local": "hf",  # --local-dir
    "--rm": "docker",
    "--gpus": "docker",
    "--full_determinism": "the training scripts, in --help_all",
    "--help_all": "the training scripts",
    "--nproc_per_node": "torchrun",
    "--use_fsdp": "accelerate launch",
    "--fsdp_version": "accelerate launch",
    "--num_processes": "accelerate launch",
    "--rehearse": "benchmarks.gpu",
    "--evaluation_strategy": "transformers before 4.46",
    "--all": "test.sh",
}
CONSOLES = {
    "gbk": {"PYTHONIOENCODING": "gbk", "PYTHONUTF8": "0"},
    "C": {"LC_ALL": "C", "LANG": "C"},
}
NOT_IN_GBK = "😀乙\u0301"  # an emoji, and an accent that does not combine with the character before it


def run(script: str, *arguments: str, cwd: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess:
    """Run a script in a new process; its output stays bytes."""
    return subprocess.run(
        [sys.executable, str(REPOSITORY / script), *arguments],
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        timeout=300,
    )


def exit_of(script: str, *arguments: str) -> int:
    """The exit code of a script's ``main``, called in this process so that torch is imported only once."""
    main = __import__(script.removesuffix(".py")).main
    try:
        return main(list(arguments))
    except SystemExit as stop:
        return stop.code


@pytest.fixture(scope="module")
def help_texts() -> dict[str, str]:
    """Each script's ``--help`` text on a GBK console, the one with the fewest characters."""
    done = {script: run(script, "--help", **CONSOLES["gbk"]) for script in SCRIPTS}
    for script, process in done.items():
        assert process.returncode == 0, script
        assert process.stderr == b"", "help is asked for, so it goes to stdout"
    return {script: process.stdout.decode("gbk") for script, process in done.items()}


# ---- help ----


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_flag_of_its_own(help_texts, script):
    text = help_texts[script]
    assert text.startswith(f"usage: {script}")
    assert re.search(r"[\u4e00-\u9fff]{4}", text), "a person reads it in Chinese"
    assert "%(" not in text


def test_help_names_every_flag_of_the_readme(help_texts):
    known = set(re.findall(r"--\w+", "".join(help_texts.values())))
    for name in ("readme.md", "readme_en.md", "docs/guide.md", "docs/guide_en.md"):
        named = set(re.findall(r"--\w+", (REPOSITORY / name).read_text(encoding="utf-8")))
        assert named - known - OTHERS_FLAGS.keys() == set()


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_a_message_advises_exist(help_texts, script):
    """Every ``--flag`` in our messages is a flag of some script."""
    known = set(re.findall(r"--\w+", "".join(help_texts.values())))
    strings = re.findall(r"f?\"[^\"\n]*[\u4e00-\u9fff][^\"\n]*\"", (REPOSITORY / script).read_text(encoding="utf-8"))
    advised = set(re.findall(r"--\w+", re.sub(r"modelscope download[^，；\"]*|curl [^，；\"]*", "", "".join(strings))))
    assert advised - known - OTHERS_FLAGS.keys() - {"--help"} == set()


@pytest.mark.parametrize("script", QUICK)
def test_help_answers_at_once(script):
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        run(script, "--help")
        seconds.append(time.monotonic() - started)
    assert min(seconds) < 0.5


def test_help_of_training_costs_little_more_than_transformers_itself():
    """It takes 3 to 5 seconds on an idle machine, nearly all for importing torch, transformers and peft."""
    floor = processor_seconds("-c", "from transformers import HfArgumentParser, TrainingArguments")
    ours = processor_seconds(str(REPOSITORY / TRAINING[1]), "--help")
    assert ours < 1.3 * floor + 1


def processor_seconds(*arguments: str) -> float:
    """CPU seconds of a python process; other work on the machine hardly changes them."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True, cwd=REPOSITORY)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# ---- wrong flags ----

WRONG = {
    "unknown": ["--no_such_flag", "1"],
    "unknown with a value": ["--no_such_flag=1"],
    "percent sign": ["--100%"],
    "not a flag": ["stray"],
}
ENOUGH = {
    "predict.py": ["--adapter", "output/none"],
    "export.py": ["--adapter", "output/none", "--to", "merged", "--output_dir", "output/none-merged"],
}
ABBREVIATED = {script: ["--input_f", "x.jsonl"] for script in QUICK} | {
    script: ["--train_f", "x"] for script in TRAINING
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("kind", [*WRONG, "abbreviated"])
def test_a_wrong_flag_is_one_line_and_exit_2(script, kind, capsys):
    wrong = ABBREVIATED[script] if kind == "abbreviated" else WRONG[kind]
    enough = ENOUGH.get(script, [])
    assert exit_of(script, *enough, *wrong) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert wrong[0].split("=")[0] in output.err
    assert "--help" in output.err


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("transfer_ner_data.py", ["--test_ratio", "2"]),
        ("transfer_classification_data.py", ["--format", "conll"]),
        ("predict.py", []),
        ("predict.py", ["--adapter", "x", "--batch_size", "0"]),
        ("predict.py", ["--adapter", "x", "--max_rows", "0"]),
        ("predict.py", ["--adapter", "x", "--text", "甲", "--input_file", "x"]),
        ("train_qwen2_ner.py", ["--lora_r", "eight"]),
        ("train_qwen2_ner.py", ["--swanlab_mode", "yes"]),
        ("train_qwen2_ner.py", ["--evaluation_strategy", "epoch"]),
        ("train_qwen2_ner.py", ["--eval_strategy", "100%"]),
    ],
)
def test_a_wrong_value_is_one_line_and_exit_2(script, arguments, capsys):
    assert exit_of(script, *arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("transfer_ner_data.py", ["--input_file", "no_such.jsonl"]),
        ("transfer_classification_data.py", ["--input_file", "no_such.jsonl"]),
        ("predict.py", ["--adapter", "no_such_folder", "--text", "甲"]),
        ("predict.py", ["--adapter", "no_such_folder", "--input_file", "no_such.jsonl"]),
        ("train_qwen2_ner.py", ["--train_file", "no_such.jsonl"]),
        ("train_qwen2_classification.py", ["--train_file", "no_such.jsonl"]),
    ],
)
def test_a_missing_input_is_one_line_that_names_it(script, arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert exit_of(script, *arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert "no_such" in output.err
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("script", SCRIPTS[:2])
def test_with_nothing_downloaded_the_advice_is_what_to_type(script, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert exit_of(script) == 2
    assert re.search(r"modelscope download|curl -L", capsys.readouterr().err)


# ---- consoles and working directories ----


@pytest.fixture(scope="module")
def raw_rows(tmp_path_factory) -> Path:
    """Sample rows of both tasks: some have characters that GBK does not have, and one row of each task is bad."""
    folder = tmp_path_factory.mktemp("原始 数据")
    for name in ("news", "ner"):
        rows = [
            json.loads(line) for line in first_lines(REPOSITORY / f"data/sample/{name}_train.jsonl", 60).splitlines()
        ]
        for row in rows[:6]:
            row["text"] += NOT_IN_GBK
        lines = [json.dumps(row, ensure_ascii=False) for row in rows] + [f'{{"text": "{NOT_IN_GBK}", "bad": ']
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def convert(script: str, raw: Path, folder: Path, task: str, **environment: str) -> subprocess.CompletedProcess:
    outputs = ("--output_file", str(folder / f"train_{task}.jsonl"), "--test_file", str(folder / f"test_{task}.jsonl"))
    return run(script, "--input_file", str(raw), *outputs, "--test_ratio", "0.2", cwd=folder, **environment)


@pytest.fixture(scope="module")
def records(raw_rows, tmp_path_factory) -> Path:
    """The same rows converted, with the scripts started outside the repository's folder."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for script, name, task in (
        ("transfer_classification_data.py", "news", "cls"),
        ("transfer_ner_data.py", "ner", "ner"),
    ):
        assert convert(script, raw_rows / f"{name}.jsonl", folder, task).returncode == 0
    return folder


@pytest.mark.parametrize("script", QUICK)
def test_help_shows_in_the_c_locale(help_texts, script):
    done = run(script, "--help", **CONSOLES["C"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("utf-8").split() == help_texts[script].split()


@pytest.mark.parametrize("console", CONSOLES)
@pytest.mark.parametrize(
    ("script", "name"), [("transfer_classification_data.py", "news"), ("transfer_ner_data.py", "ner")]
)
def test_conversion_speaks_to_any_console(raw_rows, tmp_path, script, name, console):
    done = convert(script, raw_rows / f"{name}.jsonl", tmp_path, "x", **CONSOLES[console])
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    summary = done.stderr.decode("gbk" if console == "gbk" else "utf-8")
    assert "读入 61 = 转换 60 + 拒绝 1" in summary


@pytest.mark.parametrize("console", CONSOLES)
def test_preview_speaks_to_any_console(records, tokenizer_folder, console):
    """A token may be only a part of a character, which no console can show."""
    model = records / "model"
    if not model.exists():
        from models import save_model, tiny_model

        from sft.model.loading import load_tokenizer

        save_model(tiny_model("qwen2"), load_tokenizer(tokenizer_folder), model)
    arguments = [
        "--train_file",
        str(records / "train_ner.jsonl"),
        "--model_name_or_path",
        str(model),
        "--preview",
        "9",
    ]
    done = run("train_qwen2_ner.py", *arguments, cwd=records, **CONSOLES[console])
    assert done.returncode == 0, done.stderr[-2000:]
    assert b"Traceback" not in done.stderr
    assert done.stdout.decode("gbk" if console == "gbk" else "utf-8").count("── 第 ") == 9


def test_prediction_and_training_run_from_another_folder(records, tmp_path):
    """Paths are absolute, and nothing is written to the working directory."""
    here = tmp_path / "here"
    here.mkdir()
    base = str(REPOSITORY / "qwen/demo")
    common = (
        "--train_file",
        str(records / "train_cls.jsonl"),
        "--model_name_or_path",
        base,
        "--swanlab_mode",
        "disabled",
    )
    output_dir = tmp_path / "out put"
    home = stranger(tmp_path / "home")
    steps = ("--max_steps", "1", "--eval_strategy", "no", "--save_strategy", "no", "--test_file", "none")
    done = run(TRAINING[0], *common, *steps, "--output_dir", str(output_dir), cwd=here, **home)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert json.loads(done.stdout)["train_loss"] > 0
    gbk = {**home, **CONSOLES["gbk"]}
    done = run("predict.py", "--adapter", str(output_dir), "--text", f"比赛{NOT_IN_GBK}", cwd=here, **gbk)
    assert done.returncode == 0, done.stderr.decode("gbk")[-2000:]
    assert json.loads(done.stdout.decode("utf-8"))["text"] == f"比赛{NOT_IN_GBK}", "JSON is UTF-8 on every console"
    assert list(here.iterdir()) == []
