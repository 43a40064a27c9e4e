"""Whole training runs end at the same adapter, however a step is computed.

Steps may use prefix trees or padding, any micro-batch size, one or two processes, and may run out of memory.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Gemma2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2Model

import train_qwen2_ner
from sft.console import say_once
from sft.tasks.ner import Ner
from sft.training import manifests
from sft.training.memory import fastest_on_cpu_tokens
from tests.models import SIZES, save_model, tiny_model
from tests.test_training import write_records

REPOSITORY = Path(__file__).resolve().parents[1]
STEPS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    sentences = []
    for n in range(48):
        text = "张伟昨天到了上海。" + "国家队赢了比赛。" * (n % 5)
        sentences.append({"text": f"{text}{n}", "entities": [{"start": 0, "end": 2, "text": "张伟", "label": "人名"}]})
    return write_records(folder / "train_ner.jsonl", Ner.with_labels(["人名", "地点"]), sentences)


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer) -> Path:
    return save_model(tiny_model("qwen2"), tokenizer, tmp_path_factory.mktemp("base") / "tiny")


def flags(base: Path, data: Path, output_dir: Path, *more: str) -> list[str]:
    """Six AdamW steps of eight rows in float32."""
    return [
        *("--model_name_or_path", str(base), "--train_file", str(data), "--output_dir", str(output_dir)),
        *("--dtype", "float32", "--swanlab_mode", "disabled", "--disable_tqdm", "true", "--max_steps", str(STEPS)),
        *("--eval_strategy", "no", "--validation_ratio", "0", "--save_strategy", "steps", "--save_steps", "6"),
        *("--learning_rate", "1e-2", "--logging_steps", "1", "--test_file", "none", "--lr_scheduler_type", "constant"),
        *more,
    ]


def adapter(output_dir: Path) -> torch.Tensor:
    weights = load_file(output_dir / "adapter_model.safetensors")
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


def results(output_dir: Path) -> dict:
    return json.loads((output_dir / "train_results.json").read_text())


def distance(ours: Path, theirs: Path) -> float:
    ours, theirs = adapter(ours), adapter(theirs)
    return (torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs)).item()


@pytest.fixture(scope="module")
def padded(base, data, tmp_path_factory) -> Path:
    """The reference run: one process, one padded batch of eight rows for each step."""
    output_dir = tmp_path_factory.mktemp("padded") / "run"
    more = ("--batching", "padded", "--per_device_train_batch_size", "8")
    assert train_qwen2_ner.main(flags(base, data, output_dir, *more)) == 0
    return output_dir


@pytest.mark.parametrize(
    "more",
    [
        ("--per_device_train_batch_size", "8"),
        ("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4"),
        ("--per_device_train_batch_size", "8", "--max_tokens_per_micro_batch", "100"),
        ("--per_device_train_batch_size", "8", "--gradient_checkpointing", "true"),
    ],
)
def test_trees_end_at_the_adapter_of_padded_batches(more, padded, base, data, tmp_path):
    assert train_qwen2_ner.main(flags(base, data, tmp_path / "run", "--batching", "prefix_tree", *more)) == 0
    assert distance(tmp_path / "run", padded) <= 1e-3
    assert results(tmp_path / "run")["logical_tokens"] == results(padded)["logical_tokens"]


def test_two_processes_end_at_the_adapter_of_one(padded, base, data, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["train_qwen2_ner.py", *flags(base, data, tmp_path / "run", "--per_device_train_batch_size", "4")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert distance(tmp_path / "run", padded) <= 1e-3
    assert results(tmp_path / "run")["logical_tokens"] == results(padded)["logical_tokens"]


# ---- out of memory ----


def out_of_memory() -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.fixture
def forward_that_fits(monkeypatch):
    """A function that makes the model's forward run out of memory above a given number of tokens."""
    forward = Qwen2Model.forward

    def limit(most_tokens: int) -> None:
        def limited(self, input_ids=None, **keywords):
            if input_ids.numel() > most_tokens:
                raise out_of_memory()
            return forward(self, input_ids=input_ids, **keywords)

        monkeypatch.setattr(Qwen2Model, "forward", limited)

    return limit


@pytest.mark.parametrize("batching", ["prefix_tree", "padded"])
def test_out_of_memory_halves_the_pieces_and_changes_nothing_else(
    batching, forward_that_fits, padded, base, data, tmp_path, caplog
):
    """The second batch of a step fails when the gradients of the first are already there."""
    forward_that_fits(300)
    more = ("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2", "--batching", batching)
    with caplog.at_level(logging.WARNING):
        assert train_qwen2_ner.main(flags(base, data, tmp_path / "run", *more)) == 0
    assert "显存不够" in caplog.text
    assert distance(tmp_path / "run", padded) <= 1e-3
    assert results(tmp_path / "run")["logical_tokens"] == results(padded)["logical_tokens"]
    manifest = json.loads((tmp_path / "run" / f"checkpoint-{STEPS}" / manifests.MANIFEST).read_text())
    assert manifest["run"][manifests.MICRO_BATCH] <= 300


def test_gradients_of_a_backward_that_broke_off_are_taken_back(padded, base, data, tmp_path, monkeypatch):
    """In a step's second batch, memory runs out in the first layer, after the last layer added its gradients."""
    forward, backwards = Qwen2Attention.forward, []

    def breaks(self, hidden_states, **keywords):
        def fail(gradient: torch.Tensor) -> None:
            if self.layer_idx == 0:
                backwards.append(gradient.shape)
                if len(backwards) == 2:
                    raise out_of_memory()

        output, weights = forward(self, hidden_states, **keywords)
        if output.requires_grad:
            output.register_hook(fail)
        return output, weights

    monkeypatch.setattr(Qwen2Attention, "forward", breaks)
    more = ("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2")
    assert train_qwen2_ner.main(flags(base, data, tmp_path / "run", *more)) == 0
    assert len(backwards) > 2 * STEPS and distance(tmp_path / "run", padded) <= 1e-3


def test_a_row_that_does_not_fit_alone_ends_the_run_with_advice(forward_that_fits, base, data, tmp_path, capsys):
    forward_that_fits(20)
    assert train_qwen2_ner.main(flags(base, data, tmp_path / "run")) == 1
    error = capsys.readouterr().err
    assert "显存不够" in error and "--max_length" in error and "Traceback" not in error


@pytest.mark.parametrize(("said", "used"), [((), 300), (("--max_tokens_per_micro_batch", "200"), 200)])
def test_a_resumed_run_keeps_its_piece_size_unless_told_another(said, used, padded, base, data, tmp_path):
    arguments = flags(base, data, tmp_path / "run", "--per_device_train_batch_size", "8", "--save_steps", "3")
    assert train_qwen2_ner.main([*arguments, "--max_tokens_per_micro_batch", "300"]) == 0
    last = tmp_path / "run" / f"checkpoint-{STEPS}"
    shutil.rmtree(last)
    (tmp_path / "run" / "all_results.json").unlink()
    assert train_qwen2_ner.main([*arguments, *said, "--resume_from_checkpoint", "true"]) == 0
    assert json.loads((last / manifests.MANIFEST).read_text())["run"][manifests.MICRO_BATCH] == used
    assert distance(tmp_path / "run", padded) <= 1e-3


# ---- choosing the batching ----


def test_a_model_that_trees_cannot_express_is_padded_and_said_once(data, tmp_path, tokenizer, caplog):
    config = Gemma2Config(**SIZES, head_dim=8, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    capped = save_model(AutoModelForCausalLM.from_config(config), tokenizer, tmp_path / "capped")
    say_once.cache_clear()
    with caplog.at_level(logging.INFO):
        assert train_qwen2_ner.main(flags(capped, data, tmp_path / "run", "--max_steps", "1")) == 0
    assert caplog.text.count("前缀树") == 1
    assert "gemma2：注意力的分数有上限，不能用前缀树" in caplog.text
    assert train_qwen2_ner.main(flags(capped, data, tmp_path / "again", "--batching", "prefix_tree")) == 2


def test_rows_longer_than_a_models_window_are_not_padded(data, tmp_path, tokenizer, caplog):
    sliding = save_model(tiny_model("sliding_mistral"), tokenizer, tmp_path / "sliding")  # 12 tokens
    asked = flags(sliding, data, tmp_path / "run", "--max_steps", "1", "--batching", "prefix_tree")
    assert train_qwen2_ner.main(asked) == 0
    assert "补齐" not in caplog.text


def test_a_dry_run_says_what_sharing_saves(base, data, tmp_path, capsys):
    shares = {}
    for batching in ("prefix_tree", "padded"):
        assert train_qwen2_ner.main(flags(base, data, tmp_path, "--batching", batching, "--dry_run")) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("批处理"))
        shares[batching] = int(line.split("token 是数据的 ")[1].split("%")[0])
    assert shares["prefix_tree"] < 50 and shares["padded"] >= 100


@pytest.mark.parametrize("intermediate", [64, 1493, 4864, 8960, 18944])
def test_on_a_cpu_pieces_stay_so_small_that_memory_is_used_again(intermediate):
    tokens = fastest_on_cpu_tokens(intermediate)
    assert tokens == 1024 or (1024 < tokens <= 4096 and 4 * tokens * intermediate <= 2**25)


@pytest.mark.slow
def test_a_compiled_model_trains_to_the_same_adapter(padded, base, data, tmp_path):
    more = ("--per_device_train_batch_size", "8", "--torch_compile", "true")
    assert train_qwen2_ner.main(flags(base, data, tmp_path / "run", *more)) == 0
    assert distance(tmp_path / "run", padded) <= 1e-3


@pytest.mark.slow
def test_a_bfloat16_loss_curve_stays_within_what_batch_layout_does_to_it(base, data, tmp_path):
    """Over 50 steps, trees differ from padded batches no more than two layouts of padded batches do."""
    layouts = {
        "whole": ("--batching", "padded"),
        "pieces": ("--batching", "padded", "--max_tokens_per_micro_batch", "600"),
        "small": ("--batching", "padded", "--max_tokens_per_micro_batch", "200"),
        "tree": ("--batching", "prefix_tree"),
    }
    curves = {}
    for name, more in layouts.items():
        more += ("--dtype", "bfloat16", "--max_steps", "50", "--num_train_epochs", "10")
        assert (
            train_qwen2_ner.main(flags(base, data, tmp_path / name, "--per_device_train_batch_size", "8", *more)) == 0
        )
        rows = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        curves[name] = torch.tensor([row["loss"] for row in rows if "loss" in row])
    assert all(len(curve) == 50 for curve in curves.values())
    plain = [curve for name, curve in curves.items() if name != "tree"]
    spread = max((one - other).abs().mean() for one in plain for other in plain)
    assert min((curves["tree"] - curve).abs().mean() for curve in plain) <= 1.5 * spread
