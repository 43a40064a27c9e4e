"""The real Qwen2.5-1.5B tokenizer and config, but only two layers: the steps of a user with the real weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import predict
import train_qwen2_classification
import train_qwen2_ner
import transfer_classification_data
import transfer_ner_data

SHARED = Path(__file__).resolve().parents[2] / "shared"
REAL = SHARED / "qwen" / "Qwen2.5-1.5B-Instruct"
DATA = SHARED / "data"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not REAL.is_dir() or not DATA.is_dir(), reason=f"no real tokenizer and data in {SHARED}"),
]


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory) -> Path:
    """The real config and vocabulary with two layers of random weights."""
    folder = tmp_path_factory.mktemp("real") / "Qwen2.5-2-layers"
    shutil.copytree(REAL, folder)
    config = AutoConfig.from_pretrained(REAL)
    config.num_hidden_layers, config.layer_types = 2, ["full_attention"] * 2
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def first_rows(source: Path, count: int, target: Path) -> Path:
    with source.open(encoding="utf-8") as rows:
        target.write_text("".join(next(rows) for _ in range(count)), encoding="utf-8")
    return target


@pytest.mark.parametrize(
    ("transfer", "train", "raw"),
    [
        (transfer_ner_data, train_qwen2_ner, DATA / "ner" / "ccfbdci.jsonl"),
        (transfer_classification_data, train_qwen2_classification, DATA / "classification" / "court_train.jsonl"),
    ],
    ids=["ner", "classification"],
)
def test_real_rows_train_and_predict_with_the_full_vocabulary(transfer, train, raw, two_layers, tmp_path, capsys):
    rows = first_rows(raw, 60, tmp_path / "raw.jsonl")
    records, test_records = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    assert (
        transfer.main(["--input_file", str(rows), "--output_file", str(records), "--test_file", str(test_records)])
        == 0
    )
    flags = [
        "--model_name_or_path",
        str(two_layers),
        "--train_file",
        str(records),
        "--output_dir",
        str(tmp_path / "run"),
    ]
    flags += ["--max_steps", "2", "--logging_steps", "1", "--swanlab_mode", "disabled", "--test_file", "none"]
    flags += ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--eval_strategy", "no"]
    assert train.main(flags) == 0
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[:2]]
    assert all(10 < loss < 14 for loss in losses)  # a uniform guess among 151,936 tokens has loss ln 151,936 = 11.93
    capsys.readouterr()
    row = json.loads(rows.read_text(encoding="utf-8").splitlines()[0])
    arguments = ["--adapter", str(tmp_path / "run"), "--text", row["text"], "--max_new_tokens", "4"]
    assert predict.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["text"] == row["text"]
