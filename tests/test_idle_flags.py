"""Flags of training that do nothing beside the others are told; what cannot be done is refused in a dry run, too."""

from __future__ import annotations

import json
import logging
import sqlite3
from contextlib import closing

import pytest

from sft.errors import InputError
from sft.tasks.classification import Classification
from sft.tasks.ner import Ner
from sft.training.evaluation import require_metric
from tests.models import save_model, tiny_model
from tests.test_training import LABELS, articles, train, write_records

SPLIT = ["--validation_ratio", "0.5"]
NONE = ["--validation_ratio", "0"]


@pytest.fixture(scope="module")
def small(tmp_path_factory, tokenizer) -> list[str]:
    """Flags for a run on twelve rows; ``dev.jsonl`` beside them has four others."""
    folder = tmp_path_factory.mktemp("small")
    for name, count in (("train", 12), ("dev", 4)):
        write_records(folder / f"{name}.jsonl", Classification(LABELS), articles(count, len(name)))
    base = save_model(tiny_model("qwen2"), tokenizer, folder / "base")
    return [
        *("--model_name_or_path", str(base), "--train_file", str(folder / "train.jsonl"), "--dtype", "float32"),
        *("--swanlab_mode", "disabled", "--disable_tqdm", "true", "--lora_r", "2"),
        *("--output_dir", str(folder / "run")),
    ]


@pytest.fixture
def said(small, caplog):
    """Makes a dry run with more flags; gives its warnings, without those that such short runs have."""

    def warnings(*more: str) -> list[str]:
        caplog.clear()
        dev = small[small.index("--train_file") + 1].replace("train.jsonl", "dev.jsonl")
        files = {"DEV": dev, "TRAIN": dev.replace("dev.jsonl", "train.jsonl")}
        assert train([*small, "--dry_run", *(files.get(word, word) for word in more)]) == 0
        lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        of_few_rows = ("步才学得会", "训练数据只有", "学不到")
        return [line for line in lines if not any(words in line for words in of_few_rows)]

    return warnings


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--eval_strategy", "no", "--early_stopping_patience", "3"], "--early_stopping_patience 没有用上"),
        (["--eval_strategy", "no", "--metric_for_best_model", "accuracy"], "--metric_for_best_model 没有用上"),
        ([*NONE, "--eval_strategy", "steps", "--eval_steps", "5"], "没有验证数据：--eval_steps、--eval_strategy"),
        ([*NONE, "--load_best_model_at_end"], "没有验证数据：--load_best_model_at_end"),
        (["--validation_ratio", "0.01"], "12 条里分不出一条，不验证"),
        (["--validation_file", "DEV", *SPLIT, "--max_validation_rows", "3"], "、--validation_ratio 没有用上"),
        ([*SPLIT, "--eval_steps", "1"], "--eval_steps 1 没有用上：--eval_strategy 是 epoch"),
        (["--save_steps", "1"], "请加 --save_strategy steps"),
        (["--logging_strategy", "epoch", "--logging_steps", "1"], "请加 --logging_strategy steps"),
        ([*SPLIT, "--eval_strategy", "steps", "--eval_steps", "50"], "训练中一次也不验证"),
        (["--max_steps", "3", "--num_train_epochs", "5"], "--num_train_epochs 5 没有用上"),
        (["--allow_other_base"], "它只用于 --init_adapter"),
        (["--sample_predictions", "3"], "请给 --test_file"),
        (["--hub_model_id", "a/b"], "没有 --push_to_hub：--hub_model_id"),
        (["--optim", "adafactor", "--optim_args", "a=1"], "--optim_args 没有用上"),
        (["--project", "p"], "请用 --swanlab_project"),
        (["--lr_scheduler_type", "constant", "--warmup_steps", "1"], "请用 --lr_scheduler_type constant_with_warmup"),
        (["--warmup_steps", "50"], "--warmup_steps 50：这次训练只有 2 步"),
    ],
)  # fmt: skip
def test_a_flag_that_does_nothing_is_told_in_one_line(said, more, told):
    (line,) = said(*more)
    assert told in line


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--eval_strategy", "no", "--no_eval_on_start", "--load_best_model_at_end", "false"],
        ["--validation_file", "DEV", "--early_stopping_patience", "3", "--metric_for_best_model", "eval_accuracy"],
        [*SPLIT, "--eval_strategy", "steps", "--eval_steps", "1", "--max_validation_rows", "3"],
        ["--save_strategy", "steps", "--save_steps", "1", "--logging_steps", "1", "--num_train_epochs", "5"],
        ["--test_file", "DEV", "--sample_predictions", "3"],
        ["--warmup_steps", "0.1", "--lr_scheduler_type", "constant_with_warmup"],
        ["--optim", "sgd", "--optim_args", "momentum=0.9"],
        ["--lr_scheduler_type", "warmup_stable_decay", "--lr_scheduler_kwargs", '{"num_decay_steps": 10}'],
    ],
)
def test_flags_that_do_something_are_not_told(said, more):
    assert said(*more) == []


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([*NONE, "--save_strategy", "best"], "用 --save_strategy epoch"),
        ([*NONE, "--lr_scheduler_type", "reduce_lr_on_plateau"], "没有验证数据"),
        (["--lr_scheduler_type", "cosine_with_min_lr"], """--lr_scheduler_kwargs '{"min_lr_rate": 0.1}'"""),
        (["--lr_scheduler_type", "warmup_stable_decay"], """--lr_scheduler_kwargs '{"num_decay_steps": 10}'"""),
        (["--lr_scheduler_kwargs", '{"num_cycles": 2}'], "请改正或去掉 --lr_scheduler_kwargs"),
        ([*SPLIT, "--metric_for_best_model", "acuracy"], "可选的有 accuracy、ece、loss、macro_f1、unparsable"),
        (["--swanlab_project", "我的项目"], "--swanlab_project"),
        (["--dataloader_drop_last"], "12 条不够每张卡一批 16 条"),
    ],
)
def test_what_would_fail_later_fails_in_a_dry_run(small, capsys, more, told):
    assert train([*small, "--dry_run", *more]) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--validation_file", "DEV", "--test_file", "DEV"], [("测试集", 4, 4, "验证集")]),
        (["--validation_file", "TRAIN", "--test_file", "DEV"], [("验证集", 12, 12, "训练集")]),
        (["--test_file", "TRAIN", *SPLIT], [("测试集", 12, 6, "训练集"), ("测试集", 12, 6, "验证集")]),
        (["--test_file", "DEV", *SPLIT], []),
    ],
)
def test_texts_that_two_splits_share_are_told(said, more, told):
    """The scores on them are those of texts that the model, or the choice of its best step, has seen."""
    assert [line.partition("：")[0] for line in said(*more)] == [
        f"{scored}的 {rows} 条里，有 {shared} 条的文本{seen}里也有" for scored, rows, shared, seen in told
    ]


def test_the_advice_for_a_schedule_works_when_it_is_typed(small, capsys):
    for kind in ("cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay"):
        words = [*small, "--dry_run", "--lr_scheduler_type", kind]
        assert train(words) == 2
        advised = capsys.readouterr().err.split("--lr_scheduler_kwargs '")[1].partition("'")[0]
        assert train([*words, "--lr_scheduler_kwargs", advised]) == 0


def test_steps_are_those_of_whole_batches_where_others_are_dropped(small, capsys):
    words = [*small, "--dry_run", "--per_device_train_batch_size", "5", "--num_train_epochs", "1"]
    for more, steps in (([], 3), (["--dataloader_drop_last"], 2)):
        assert train([*words, *more]) == 0
        assert f"步数      {steps}（" in capsys.readouterr().out


def test_a_row_that_does_not_fit_is_told_with_its_file(small, tmp_path, capsys):
    path = write_records(tmp_path / "long.jsonl", Classification(LABELS), articles(3, 0))
    words = [*small, "--dry_run", "--max_length", "5", "--test_file", str(path)]
    assert train(words) == 2
    assert "train.jsonl 第 1 行" in capsys.readouterr().err.splitlines()[-1]


def test_preview_and_dry_run_show_both(small, capsys):
    assert train([*small, "--preview", "1", "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert "── 第 1 行" in shown
    assert "检查通过，没有开始训练" in shown


def test_the_metrics_to_choose_from_are_those_that_an_evaluation_has():
    records = [{"text": "张伟", "entities": [{"start": 0, "end": 2, "label": "人名"}]}]
    for name in ("f1", "eval_f1", "eval_loss", "ece", "f1_人名", None):
        require_metric(Ner.with_labels(["人名"]), records, name)
    with pytest.raises(InputError, match="没有 f1_地名 这个指标"):
        require_metric(Ner.with_labels(["人名"]), records, "f1_地名")


def test_the_name_of_the_run_is_that_of_the_experiment(small, tmp_path, monkeypatch):
    """As transformers says of ``--run_name``; ``--swanlab_experiment`` counts for more."""
    monkeypatch.setenv("SWANLAB_ROOT", str(tmp_path / "home"))
    log = tmp_path / "swanlog"
    local = ["--swanlab_mode", "local", "--swanlab_logdir", str(log), "--max_steps", "1", "--eval_strategy", "no"]
    for number, more in enumerate((["--run_name", "a"], ["--run_name", "a", "--swanlab_experiment", "b"], [])):
        assert train([*small, *local, "--output_dir", str(tmp_path / f"run{number}"), *more]) == 0
    with closing(sqlite3.connect(log / "runs.swanlab")) as database:
        names = [name for (name,) in database.execute("SELECT name FROM experiment ORDER BY id")]
    assert names == ["a", "b", "run2"]


def test_the_advice_about_a_checkpoint_of_other_settings_works_when_it_is_typed(small, tmp_path, capsys, caplog):
    words = [*small, "--output_dir", str(tmp_path / "run"), "--max_steps", "1", "--eval_strategy", "no"]
    assert train(words) == 0
    (tmp_path / "run" / "all_results.json").unlink()  # as if it had been killed after its checkpoint
    other = [*words, "--seed", "7"]
    capsys.readouterr()
    assert train([*other, "--resume_from_checkpoint", "true"]) == 2
    assert "去掉续跑，加 --overwrite_output_dir 从头开始" in capsys.readouterr().err.splitlines()[-1]
    assert train([*other, "--overwrite_output_dir"]) == 0
    assert json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert train([*other, "--overwrite_output_dir", "--resume_from_checkpoint", "true"]) == 0
    assert "--overwrite_output_dir 没有用上" in caplog.text
