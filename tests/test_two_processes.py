"""Two processes that train together end together, whatever happens to one; FSDP2 computes what DDP computes."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
import two_processes
from safetensors.torch import load_file
from two_processes import HUNG, Fault

from sft.training import checkpoints, manifests
from tests.models import save_model, tiny_model
from tests.test_training import articles, write_records

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send")

SCRIPT = "train_qwen2_classification"
RESUME = ("--resume_from_checkpoint", "true")
FSDP2 = {  # what `accelerate launch --use_fsdp --fsdp_version 2` sets
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true", "FSDP_SYNC_MODULE_STATES": "true",
}  # fmt: skip
PIECES = ("--max_tokens_per_micro_batch", "160")  # in most steps one process needs more passes than the other
TIMED = re.compile(r"time|second|peak_memory")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    from sft.tasks.classification import Classification

    folder = tmp_path_factory.mktemp("data")
    write_records(folder / "train.jsonl", Classification(("体育", "军事", "经济")), articles(30, 0))
    return folder / "train.jsonl"


@pytest.fixture(scope="module")
def flags(tokenizer, data, tmp_path_factory):
    """Six steps of eight rows in two epochs; an evaluation before, after each epoch, and at the end.

    The processes evaluate four rows and three, one at a time.
    """
    base = save_model(tiny_model("qwen2"), tokenizer, tmp_path_factory.mktemp("base") / "tiny")

    def of(output_dir: Path, *more: str) -> list[str]:
        return [
            *("--model_name_or_path", str(base), "--train_file", str(data), "--dtype", "float32"),
            *("--output_dir", str(output_dir), "--swanlab_mode", "disabled", "--disable_tqdm", "true"),
            *("--per_device_train_batch_size", "4", "--num_train_epochs", "2", "--validation_ratio", "0.25"),
            *("--per_device_eval_batch_size", "1"),
            *("--logging_steps", "1", "--learning_rate", "2e-2", "--lora_r", "2", "--test_file", "none", *more),
        ]

    return of


def train(flags, folder: Path, *more: str, faults=(), environment=None):
    return two_processes.run(SCRIPT, flags(folder / "run", *more), folder, *faults, environment=environment)


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "run" / "adapter_model.safetensors")


def logged(folder: Path) -> list[dict]:
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if not TIMED.search(name)} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(flags, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    assert [done.code for done in train(flags, folder)] == [0, 0]
    return folder


def assert_same_run(ours: Path, theirs: Path) -> None:
    assert adapter(ours).keys() == adapter(theirs).keys()
    for name, weights in adapter(theirs).items():
        assert torch.equal(adapter(ours)[name], weights), name
    assert logged(ours) == logged(theirs)


class TestSignals:
    @pytest.mark.parametrize(
        "faults",
        [
            pytest.param((Fault(1, 2, "begin"),), marks=pytest.mark.slow),
            pytest.param((Fault(0, 2, "end"), Fault(1, 3, "end")), marks=pytest.mark.slow),
            (Fault(0, 3, "begin"), Fault(1, 3, "end")),  # on both sides of the end of an epoch's last step
            pytest.param((Fault(1, 6, "end"),), marks=pytest.mark.slow),  # after the last step of all
        ],
    )
    def test_both_stop_after_the_same_step_and_go_on_as_if_undisturbed(self, faults, flags, undisturbed, tmp_path):
        done = train(flags, tmp_path, faults=faults)
        assert [process.code for process in done] == [128 + signal.SIGTERM] * 2, done
        (newest, *_) = checkpoints.checkpoints_in(tmp_path / "run")
        assert manifests.problem(newest.folder, manifests.RESUMABLE) is None
        assert [process.code for process in train(flags, tmp_path, *RESUME)] == [0, 0]
        assert_same_run(tmp_path, undisturbed)


class TestFailures:
    @pytest.mark.parametrize(
        ("what", "code", "words"),
        [
            ("nan", 1, "NaN"),
            pytest.param("input", 2, "没有这个文件", marks=pytest.mark.slow),
            pytest.param("memory", 1, "显存不够", marks=pytest.mark.slow),
        ],
    )
    def test_when_one_fails_the_other_ends_too_and_says_so(self, what, code, words, flags, tmp_path):
        done = train(flags, tmp_path, faults=[Fault(1, 2, what)])
        assert done[1].code == code, done
        assert done[0].code == 1, done
        assert HUNG not in (done[0].code, done[1].code)
        assert "另一个进程先停了" in done[0].errors
        assert words in done[1].errors
        assert not any("Traceback" in process.errors for process in done)


def distance(ours: Path, theirs: Path) -> float:
    """Of the adapters, relative to the length of the second one."""
    ours, theirs = (
        torch.cat([weights.flatten() for weights in adapter(folder).values()]) for folder in (ours, theirs)
    )
    return (torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs)).item()


class TestFsdp2:
    """Shares of the weights are added up in another order than whole ones, so numbers are equal but for rounding."""

    @pytest.fixture(scope="class")
    def sharded(self, flags, tmp_path_factory) -> Path:
        folder = tmp_path_factory.mktemp("fsdp2")
        done = train(flags, folder, *PIECES, environment=FSDP2)
        assert [process.code for process in done] == [0, 0], done
        groups = re.search(r"(\d+) 组权重分在 2 个进程里", done[0].errors)
        assert groups and int(groups[1]) > 2  # each of the two layers is one
        return folder

    def test_losses_gradient_norms_metrics_and_adapter_are_those_of_ddp(self, sharded, undisturbed):
        assert distance(sharded, undisturbed) <= 1e-3
        for ours, theirs in zip(logged(sharded), logged(undisturbed), strict=True):
            for computed in ("executed_tokens", "total_flos"):  # more passes
                ours.pop(computed, None), theirs.pop(computed, None)
            assert ours == pytest.approx(theirs, rel=1e-4)

    def test_a_checkpoint_has_the_files_of_one_of_ddp(self, sharded, undisturbed):
        files = [
            {path.name for path in (folder / "run" / "checkpoint-6").iterdir()} for folder in (sharded, undisturbed)
        ]
        assert files[0] == files[1]

    def test_a_stopped_run_goes_on_as_if_undisturbed(self, flags, sharded, tmp_path):
        done = train(flags, tmp_path, *PIECES, faults=[Fault(1, 2, "begin")], environment=FSDP2)
        assert [process.code for process in done] == [128 + signal.SIGTERM] * 2, done
        assert [process.code for process in train(flags, tmp_path, *PIECES, *RESUME, environment=FSDP2)] == [0, 0]
        assert_same_run(tmp_path, sharded)

    @pytest.mark.slow
    @pytest.mark.parametrize(("first", "then"), [(FSDP2, None), (None, FSDP2)])
    def test_a_stopped_run_goes_on_with_or_without_it(self, first, then, flags, sharded, tmp_path):
        train(flags, tmp_path, *PIECES, faults=[Fault(1, 2, "begin")], environment=first)
        done = train(flags, tmp_path, *PIECES, *RESUME, environment=then)
        assert [process.code for process in done] == [0, 0], done
        assert distance(tmp_path, sharded) <= 1e-3

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "more",
        [
            ("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"),
            ("--gradient_checkpointing", "true"),
            ("--batching", "padded", "--max_tokens_per_micro_batch", "200"),
            ("--lora_target_modules", "q_proj", "lm_head"),
        ],
    )
    def test_however_a_step_is_computed_it_ends_at_the_adapter_of_ddp(self, more, flags, undisturbed, tmp_path):
        done = train(flags, tmp_path, *more, environment=FSDP2)
        assert [process.code for process in done] == [0, 0], done
        if "lm_head" in more:
            (tmp_path / "ddp").mkdir()
            train(flags, tmp_path / "ddp", *more)
            undisturbed = tmp_path / "ddp"
        assert distance(tmp_path, undisturbed) <= 1e-3

    @pytest.mark.slow
    def test_no_number(self, flags, tmp_path):
        done = train(flags, tmp_path, faults=[Fault(1, 2, "nan")], environment=FSDP2)
        assert all("NaN" in process.errors and process.code == 1 for process in done), done
