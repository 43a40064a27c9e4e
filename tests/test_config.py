"""``--config``: flags from a YAML or JSON file mean what they mean on the command line, which counts for more."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from test_training import base, data, flags, train  # noqa: F401  base and data are fixtures

import train_qwen2_ner
from sft.training.arguments import Arguments, parse_arguments

YAML = """\
# a comment
learning_rate: 1e-4
num_train_epochs: 3
eval_strategy: no        # YAML would read this as false
save_strategy: "no"
overwrite_output_dir: true
gradient_checkpointing: yes
lora_target_modules: [q_proj, v_proj]
seed: 007
test_file: ~
validation_file:
lr_scheduler_type: cosine_with_restarts
lr_scheduler_kwargs: {num_cycles: 2}
output_dir: output/第一次
"""
WORDS = [
    *("--learning_rate", "1e-4", "--num_train_epochs", "3", "--eval_strategy", "no", "--save_strategy", "no"),
    *("--overwrite_output_dir", "true", "--gradient_checkpointing", "yes", "--seed", "7"),
    *("--lora_target_modules", "q_proj", "v_proj", "--lr_scheduler_type", "cosine_with_restarts"),
    *("--lr_scheduler_kwargs", '{"num_cycles": 2}', "--output_dir", "output/第一次"),
]
JSON = {
    "learning_rate": 1e-4,
    "num_train_epochs": 3,
    "eval_strategy": "no",
    "save_strategy": "no",
    "overwrite_output_dir": True,
    "gradient_checkpointing": True,
    "lora_target_modules": ["q_proj", "v_proj"],
    "seed": 7,
    "test_file": None,
    "lr_scheduler_type": "cosine_with_restarts",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "output_dir": "output/第一次",
}


def written(tmp_path: Path, name: str, text: str) -> str:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def values(arguments: Arguments) -> dict:
    """All flags but ``--config`` itself."""
    training = arguments.training.to_dict()
    return {**asdict(arguments.model), **asdict(arguments.lora), **asdict(arguments.data), **training, "config": None}


@pytest.mark.parametrize(("name", "text"), [("run.yaml", YAML), ("run.YML", YAML), ("run.json", json.dumps(JSON))])
def test_a_file_means_the_same_as_the_command_line(tmp_path, name, text):
    from_file = parse_arguments("", ["--config", written(tmp_path, name, text)])
    typed = parse_arguments("", WORDS)
    assert values(from_file) == values(typed)
    assert typed.given <= from_file.given


def test_the_command_line_counts_for_more(tmp_path):
    path = written(tmp_path, "run.yaml", YAML)
    words = ["--learning_rate", "5e-4", f"--config={path}", "--lora_target_modules", "o_proj"]
    arguments = parse_arguments("", words, learning_rate=1.0)
    assert arguments.training.learning_rate == 5e-4
    assert arguments.lora.lora_target_modules == ["o_proj"]
    assert arguments.training.num_train_epochs == 3
    assert arguments.data.config == path


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("run.yaml", "learning_rat: 1e-4", "不认识的键 learning_rat（是不是 learning_rate？）"),
        ("run.yaml", "lr: 1e-4", "不认识的键 lr，请用 learning_rate"),
        ("run.yaml", "训练:\n  learning_rate: 1e-4", "不认识的键 训练；键是参数的名字"),
        ("run.yaml", "config: other.yaml", "不认识的键 config"),
        ("run.yaml", "help_all: true", "不认识的键 help_all"),
        ("run.yaml", "seed: 1\nseed: 2", "seed 给了两次"),
        ("run.json", '{"seed": 1, "seed": 2}', "seed 给了两次"),
        ("run.yaml", "seed: [1, 2]", "seed 只能有一个值"),
        ("run.yaml", "- seed", "应是“参数: 值”"),
        ("run.yaml", "seed: [1", "不是合法的 YAML"),
        ("run.json", "[1]", "应是一个对象"),
        ("run.json", "{", "不是合法的 JSON"),
        ("run.json", "[" * 100_000, "不是合法的 JSON"),
        ("run.yaml", "seed: " + "[" * 10_000, "不是合法的 YAML"),
        ("run.yaml", "seed: !!python/object/apply:os.getcwd []", "seed 只能有一个值"),
        ("run.yaml", "lr_scheduler_kwargs: !!python/object:x.Y {a: 1}", "不是合法的 YAML"),
        ("run.toml", "seed = 1", "应是 .yaml、.yml 或 .json 文件"),
        ("run.yaml", "learning_rate: fast", "应是 float 或 auto，实际是 'fast'"),
        ("run.yaml", "batching: fast", "--batching 不能是 'fast'"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, capsys, name, text, said):
    with pytest.raises(SystemExit) as stop:
        train_qwen2_ner.main(["--config", written(tmp_path, name, text)])
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1


def test_two_files_or_none_are_refused(tmp_path, capsys):
    path = written(tmp_path, "run.yaml", "seed: 1")
    for words, said in ((["--config", path, "--config", path], "只能给一个"), (["--config", "no.yaml"], "无法读取")):
        with pytest.raises(SystemExit) as stop:
            train_qwen2_ner.main(words)
        assert stop.value.code == 2
        assert said in capsys.readouterr().err


def test_an_empty_file_changes_nothing(tmp_path):
    assert values(parse_arguments("", ["--config", written(tmp_path, "run.yaml", "# nothing\n")])) == values(
        parse_arguments("", [])
    )


def test_a_run_from_a_file_is_the_same_run_and_its_report_names_the_file(base, data, tmp_path, capsys):  # noqa: F811
    """Resuming compares every flag: a finished run is the same run, and with another rate it is not."""
    words = flags(base, data, tmp_path / "out", "--max_steps", "2")
    pairs = dict(zip([word.removeprefix("--") for word in words[::2]], words[1::2], strict=True))
    path = written(tmp_path, "run.json", json.dumps(pairs))
    assert train(["--config", path]) == 0
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8").replace("<wbr>", "")
    assert "<dt><code>config</code></dt><dd>run.json</dd>" in page
    capsys.readouterr()
    assert train([*words, "--resume_from_checkpoint", "true"]) == 0
    assert train(["--config", path, "--learning_rate", "1e-3", "--resume_from_checkpoint", "true"]) == 2
    assert "learning_rate" in capsys.readouterr().err
