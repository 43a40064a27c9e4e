"""Whole runs on a pretend GPU: nothing is on the wrong device, the host hardly waits, float16 has its loss scaler.

What the pretend GPU itself notices is in `tests.test_pretend_gpu`.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import gpu_faults
import pytest
import rehearsed_runs
import torch
from rehearsed_runs import AMPERE, TURING, Card, Rehearsed
from safetensors.torch import load_file

from sft.tasks.classification import Classification
from sft.tasks.ner import Ner
from tests.models import save_model, tiny_model
from tests.test_training import write_records

STEPS = 4
WAITS_A_STEP = 2
UNSCALES = "_amp_foreach_non_finite_check_and_unscale_"  # the loss scaler, once a step
NER, CLASSIFICATION = "train_qwen2_ner", "train_qwen2_classification"


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer) -> Path:
    return save_model(tiny_model("qwen2"), tokenizer, tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    folder, entity = tmp_path_factory.mktemp("data"), {"start": 0, "end": 2, "text": "张伟", "label": "人名"}
    texts = [f"张伟昨天到了上海。{'国家队赢了比赛。' * (n % 4)}{n}" for n in range(36)]
    ner, classification = Ner.with_labels(["人名", "地点"]), Classification(("体育", "军事"))
    answers = [{"text": text, "label": "体育", "options": ["体育", "军事"]} for text in texts]
    return {
        NER: write_records(folder / "ner.jsonl", ner, [{"text": text, "entities": [entity]} for text in texts]),
        CLASSIFICATION: write_records(folder / "classification.jsonl", classification, answers),
    }


def flags(script: str, base: Path, data: dict[str, Path], output_dir: Path, *more: str) -> list[str]:
    """Four steps of eight rows, with four validation rows; nothing is logged within the steps."""
    return [
        *("--model_name_or_path", str(base), "--train_file", str(data[script]), "--output_dir", str(output_dir)),
        *("--max_steps", str(STEPS), "--per_device_train_batch_size", "8", "--max_validation_rows", "4"),
        *("--validation_ratio", "0.2", "--test_file", "none", "--logging_steps", "50", "--max_length", "320"),
        *("--swanlab_mode", "disabled", "--disable_tqdm", "true", "--learning_rate", "1e-3", *more),
    ]


SHORT = ("--eval_strategy", "no", "--validation_ratio", "0", "--save_strategy", "no")


def train(script, base, data, folder: Path, *more: str, card: Card = AMPERE, fault=None) -> Rehearsed:
    return rehearsed_runs.run(script, flags(script, base, data, folder / "run", *more), folder, card, fault)


def problems(done: Rehearsed, card: Card, steps: int = STEPS) -> list[str]:
    """What is wrong with a training run."""
    found = [f"exit code {done.code}: {done.errors[-600:]}"] if done.code else []
    if done.waits["step"].total() > WAITS_A_STEP * steps:
        found.append(f"waits: {done.waits['step'].most_common(5)}")
    wanted = steps if card.capability < (8, 0) else 0
    if done.launches[UNSCALES] != wanted:
        found.append(f"scaler: {done.launches[UNSCALES]} steps of {wanted}")
    return found


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


# ---- runs that are right ----


class TestWholeRuns:
    """The fewest runs in which every way to compute meets both kinds of cards."""

    def test_ampere_accumulates_evaluates_and_loads_the_best_checkpoint(self, base, data, tmp_path):
        more = ("--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "4", "--save_strategy", "steps")
        more += ("--eval_strategy", "steps", "--eval_steps", "2", "--save_steps", "2")
        done = train(NER, base, data, tmp_path, *more)
        assert problems(done, AMPERE) == []
        assert done.launches["_varlen_attn_backward"] >= 2 * STEPS * 2  # micro-batches, layers
        assert (tmp_path / "run/checkpoint-2").is_dir()
        self.predict(tmp_path, AMPERE, "张伟到了上海。", "entities")

    def test_turing_recomputes_padded_batches(self, base, data, tmp_path):
        more = ("--batching", "padded", "--gradient_checkpointing", "true")
        done = train(CLASSIFICATION, base, data, tmp_path, *more, card=TURING)
        assert problems(done, TURING) == []
        self.predict(tmp_path, TURING, "国家队赢了比赛。", "label")

    def test_ampere_recomputes_with_a_trained_head_and_a_second_card(self, base, data, tmp_path):
        more = (*SHORT, "--gradient_checkpointing", "true", "--lora_target_modules", "q_proj", "down_proj", "lm_head")
        done = train(CLASSIFICATION, base, data, tmp_path, *more, "--lora_dropout", "0.1", card=Card(count=2))
        assert problems(done, AMPERE) == []
        (line,) = [line for line in done.errors.splitlines() if "torchrun" in line]
        assert line.startswith("有 2 张卡，只用第一张")

    def predict(self, folder: Path, card: Card, text: str, key: str) -> None:
        words = ["--adapter", str(folder / "run"), "--text", text]
        done = rehearsed_runs.run("predict", words, folder / "predict", card)
        assert done.code == 0, done.errors
        assert key in json.loads(done.output)
        assert done.launches["embedding"]  # on the card


# ---- float16 ----


class TestFloat16:
    def test_a_step_that_overflows_is_skipped_and_a_resumed_run_ends_at_the_same_bits(self, base, data, tmp_path):
        more = ("--lora_target_modules", "q_proj", "lm_head", "--save_strategy", "steps", "--save_steps", "3")
        more += ("--eval_strategy", "no", "--validation_ratio", "0", "--lr_scheduler_type", "linear")
        fault = gpu_faults.gradients_overflow_in_step_2
        done = train(NER, base, data, tmp_path, *more, card=TURING, fault=fault)
        assert problems(done, TURING) == []
        assert done.errors.count("第 2 步的梯度超出 float16 的范围") == 1
        weights = adapter(tmp_path / "run")
        assert all(torch.isfinite(weight).all() for weight in weights.values())
        shutil.copytree(tmp_path / "run/checkpoint-3", tmp_path / "resumed/checkpoint-3")
        scale = torch.load(tmp_path / "resumed/checkpoint-3/scaler.pt", weights_only=True)["scale"]
        assert scale < 65536  # what a new scaler begins with
        words = flags(NER, base, data, tmp_path / "resumed", *more, "--resume_from_checkpoint", "true")
        resumed = rehearsed_runs.run(NER, words, tmp_path, TURING)
        assert problems(resumed, TURING, STEPS - 3) == []
        again = adapter(tmp_path / "resumed")
        assert again.keys() == weights.keys()
        assert all(torch.equal(again[name], weight) for name, weight in weights.items())

    def test_twenty_skipped_steps_in_a_row_stop_the_run_with_advice(self, base, data, tmp_path):
        fault, more = gpu_faults.gradients_overflow_always, ("--max_steps", "40", "--per_device_train_batch_size", "1")
        done = train(NER, base, data, tmp_path, *SHORT, *more, card=TURING, fault=fault)
        assert done.code == 1
        assert re.search(r"连续 20 步.*第 20 步是训练集第 \d+ 行；可试 --dtype float32$", done.errors.splitlines()[-1])

    @pytest.mark.slow
    def test_a_run_whose_rate_was_searched_is_the_one_with_that_rate_by_hand(self, base, data, tmp_path):
        """Each trial has a loss scaler of its own, and leaves nothing of it behind."""
        more = ("--max_steps", "50", "--per_device_train_batch_size", "2", "--eval_strategy", "epoch")
        more += ("--save_strategy", "no", "--load_best_model_at_end", "false", "--learning_rate")
        searched = train(NER, base, data, tmp_path / "searched", *more, "auto", card=TURING)
        trials = 7 * 4 + 3 * 8
        assert problems(searched, TURING, 50 + trials) == []
        rate = searched.results["learning_rate"]
        by_hand = train(NER, base, data, tmp_path / "by hand", *more, str(rate), card=TURING)
        assert problems(by_hand, TURING, 50) == []
        weights, again = adapter(tmp_path / "searched/run"), adapter(tmp_path / "by hand/run")
        assert all(torch.equal(again[name], weight) for name, weight in weights.items())

    @pytest.mark.parametrize("card", [AMPERE, TURING], ids=["bfloat16", "float16"])
    def test_a_loss_that_is_not_a_number_stops_naming_the_rows_of_its_own_step(self, card, base, data, tmp_path):
        more = (*SHORT, "--per_device_train_batch_size", "2", "--save_strategy", "steps", "--save_steps", "1")
        done = train(NER, base, data, tmp_path, *more, card=card, fault=gpu_faults.loss_of_step_2_is_nan)
        assert done.code == 1
        assert re.search(r"第 2 步的损失是 nan，已停止；这一批是训练集第 \d+、\d+ 行", done.errors.splitlines()[-1])
        weights = adapter(tmp_path / "run/checkpoint-1")
        assert all(torch.isfinite(weight).all() for weight in weights.values())

    def test_a_model_beyond_its_range_is_refused_before_training_and_before_predicting(
        self, data, tokenizer, tmp_path
    ):
        model = tiny_model("qwen2")
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight.mul_(1e6)
        base = save_model(model, tokenizer, tmp_path / "large")
        done = train(NER, base, data, tmp_path, *SHORT, card=TURING)
        assert done.code == 2
        assert "--dtype float32" in done.errors.splitlines()[-1]
        words = [
            "--base_only",
            "--model_name_or_path",
            str(base),
            "--task_file",
            str(data[NER].with_suffix(".task.json")),
        ]
        done = rehearsed_runs.run("predict", [*words, "--text", "张伟到了上海。"], tmp_path, TURING)
        assert done.code == 2
        assert "--dtype float32" in done.errors.splitlines()[-1]


# ---- faults that the rehearsal must find ----


@pytest.mark.parametrize(
    "fault, card, more, found",
    [
        (gpu_faults.mask_left_on_the_cpu, TURING, (), r"MixedDevices: aten\.\w+.* at sft/engine/"),
        (gpu_faults.scaler_missing, TURING, (), r"^scaler: 0 steps of 4$"),
        (gpu_faults.item_in_the_layer_loop, AMPERE, (), r"^waits: .*_local_scalar_dense gpu_faults\.py:"),
    ],
)
def test_a_planted_fault_is_found(fault, card, more, found, base, data, tmp_path):
    done = train(NER, base, data, tmp_path, *SHORT, *more, card=card, fault=fault)
    (problem, *_) = problems(done, card)
    assert re.search(found, problem, re.DOTALL), problem


# ---- the wider grid ----


@pytest.mark.slow
@pytest.mark.parametrize("script", [NER, CLASSIFICATION])
@pytest.mark.parametrize("card", [AMPERE, TURING], ids=["ampere", "turing"])
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--batching", "padded"),
        ("--gradient_checkpointing", "true"),
        ("--lora_target_modules", "q_proj", "lm_head", "--lora_dropout", "0.1"),
        ("--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "4"),
        ("--max_grad_norm", "0"),
        ("--optim", "adamw_torch"),
        ("--max_tokens_per_micro_batch", "200"),
        ("--full_determinism",),
    ],
    ids=" ".join,
)
def test_every_way_to_compute_on_every_card(more, card, script, base, data, tmp_path):
    done = train(script, base, data, tmp_path, *more, card=card)
    assert problems(done, card) == []


@pytest.mark.slow
def test_in_float32_the_pretend_gpu_trains_to_the_adapter_of_the_cpu(base, data, tmp_path):
    import train_qwen2_ner

    done = train(NER, base, data, tmp_path, *SHORT, "--dtype", "float32")
    assert problems(done, AMPERE) == []
    words = flags(NER, base, data, tmp_path / "cpu", *SHORT, "--dtype", "float32")
    assert train_qwen2_ner.main(words) == 0
    ours, theirs = adapter(tmp_path / "run"), adapter(tmp_path / "cpu")
    for name, weight in theirs.items():
        assert torch.allclose(ours[name], weight, rtol=1e-3, atol=1e-5), name
