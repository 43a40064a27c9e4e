"""When memory runs out in evaluation or prediction, the passes shrink and the results stay the same."""

from __future__ import annotations

import json
import random

import pytest
import rehearsed_runs
import torch
from accelerate import Accelerator
from models import save_model, tiny_model
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2Model

import predict as predict_script
import train_qwen2_ner
from sft.decoding.decode import predict
from sft.decoding.limits import Limits
from sft.decoding.room import Room
from sft.engine.batches import PaddedBatching, PrefixTreeBatching
from sft.errors import RunError, is_out_of_memory, memory_name
from sft.model.encoding import encode_rows
from sft.tasks.classification import Classification
from sft.tasks.ner import Ner
from sft.tasks.settings import TaskSettings
from sft.training.evaluation import Evaluator, Examples
from tests.test_training import write_records

TEXTS = [f"{'张伟昨天到了上海。' * (1 + n % 4)}{n}" for n in range(13)]
NER = Ner(labels=("地理实体", "人名"), system_prompt="请提取实体。")
CHOICE = Classification(labels=tuple(f"选项{n}" for n in range(12)), system_prompt="请选出类型。")
WAYS = {
    "entities": (NER, Limits(400, 6, 8)),
    "options": (CHOICE, Limits(400, 6, 8)),
    "raw": (NER, Limits(400, 4, 8, constrained=False)),
    "bounded": (NER, Limits(400, 6, 8, max_tokens=1600)),
}
# As torch and the libraries below it say it (taken from reports of users), and which memory is meant.
SAID = [
    ("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 5.79 GiB", "显存"),
    ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", "显存"),
    ("HIP out of memory. Tried to allocate 48.00 MiB", "显存"),
    ("XPU out of memory. Tried to allocate 4.00 GiB", "显存"),
    ("UR error: UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY", "显存"),
    ("level_zero backend failed with error: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)", "显存"),
    ("MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1 GB, max allowed: 9.07 GB)", "显存"),
    ("Invalid buffer size: 14.19 GB", "显存"),
    ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "显存"),
    ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "显存"),
    ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", "显存"),
    ("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`", "显存"),
    ("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory", "内存"),
    ("DefaultCPUAllocator: not enough memory: you tried to allocate 40960000000 bytes.", "内存"),
    ("std::bad_alloc", "内存"),
]
NOT_SAID = [
    "CUDA error: device-side assert triggered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "expected scalar type Half but found Float",
    "CUDA error: an illegal memory access was encountered",
    "NCCL error: unhandled system error",
]


@pytest.mark.parametrize(("message", "name"), SAID)
def test_every_way_to_say_that_memory_is_used_up_is_understood(message, name):
    assert is_out_of_memory(RuntimeError(message))
    assert memory_name(RuntimeError(message)) == name
    assert not is_out_of_memory(ValueError(message))


@pytest.mark.parametrize("message", NOT_SAID)
def test_other_errors_of_a_device_are_not_taken_for_it(message):
    assert not is_out_of_memory(RuntimeError(message))


class Memory:
    """Pretends that memory runs out: always above so many tokens, and in the second layer of some passes.

    Attributes:
        most_tokens: what fits.
        failing: the numbers of the passes that fail, from 1.
        passes: how many there were.
        largest: the tokens of the largest pass.
    """

    def __init__(self, monkeypatch) -> None:
        self.most_tokens, self.failing, self.passes, self.largest = 1 << 30, set(), 0, 0
        self.breaks = False
        forward, attend = Qwen2Model.forward, Qwen2Attention.forward

        def limited(model, input_ids=None, **keywords):
            self.passes, self.largest = self.passes + 1, max(self.largest, input_ids.numel())
            if input_ids.numel() > self.most_tokens:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            self.breaks = self.passes in self.failing
            return forward(model, input_ids=input_ids, **keywords)

        def limited_layer(layer, *arguments, **keywords):
            if self.breaks and layer.layer_idx == 1:  # the first layer has written to the cache
                self.breaks = False
                raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
            return attend(layer, *arguments, **keywords)

        monkeypatch.setattr(Qwen2Model, "forward", limited)
        monkeypatch.setattr(Qwen2Attention, "forward", limited_layer)


@pytest.fixture
def memory(monkeypatch) -> Memory:
    return Memory(monkeypatch)


def without_scores(results: list[dict]) -> list[dict]:
    """The results as text; labels keep their order."""
    return json.loads(json.dumps(results, ensure_ascii=False), parse_float=lambda number: 0.0)


def scores_of(results: list[dict]) -> list[float]:
    numbers = []
    json.loads(json.dumps(results), parse_float=lambda number: numbers.append(float(number)))
    return numbers


def results_of(way: str, tokenizer, room: Room | None = None) -> list[dict]:
    task, limits = WAYS[way]
    records = [{"text": text} for text in TEXTS]
    return list(predict(tiny_model("qwen2", torch.float64), tokenizer, task, records, limits, room))


@pytest.mark.parametrize("way", WAYS)
def test_predictions_do_not_change_when_memory_is_short(way, tokenizer, memory, caplog):
    expected = results_of(way, tokenizer)
    memory.most_tokens, memory.passes, room = memory.largest // 2, 0, Room()
    assert_same(results_of(way, tokenizer, room), expected)
    assert caplog.text.count("显存不够") == 1
    divisor = room.divisor
    assert divisor > 1
    assert_same(results_of(way, tokenizer, room), expected)
    assert room.divisor == divisor  # the next window does not try the large pass again
    assert caplog.text.count("显存不够") == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(2))
def test_predictions_do_not_change_when_memory_runs_out_at_a_random_pass(way, seed, tokenizer, memory):
    """At two of them: eight rows at a time are halved twice, so a single row never fails.

    Entities are cut here and read on, at last a single row: that comes in the later passes.
    """
    expected = results_of(way, tokenizer)
    most = memory.passes // 3 if way in ("entities", "bounded") else memory.passes
    memory.failing, memory.passes = set(random.Random(seed).sample(range(1, most + 1), 2)), 0
    room = Room()
    assert_same(results_of(way, tokenizer, room), expected)
    assert room.divisor in (2, 4)


def test_of_a_long_text_only_a_part_is_read_again_when_memory_runs_out_at_its_end(tokenizer, memory):
    model, limits = tiny_model("qwen2", torch.float64), Limits(400, 6, 2, piece_tokens=20)
    records = [{"text": "张伟昨天到了上海。菲律宾总统也到了。" * 60}]
    expected = list(predict(model, tokenizer, NER, records, limits))
    passes, memory.passes = memory.passes, 0
    memory.failing = {passes // 2}
    assert_same(list(predict(model, tokenizer, NER, records, limits)), expected)
    assert passes > 100
    assert memory.passes < 1.8 * passes  # half of them by two rows, half by one; all over again by one would be 2.5


def assert_same(found: list[dict], expected: list[dict]) -> None:
    """Everything equal, and scores as far as the order of additions lets them be."""
    assert without_scores(found) == without_scores(expected)
    assert scores_of(found) == pytest.approx(scores_of(expected), rel=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_a_row_that_does_not_fit_alone_is_one_line_with_advice(way, tokenizer, memory):
    memory.most_tokens = 0
    with pytest.raises(RunError, match=r"^显存不够，预测时一条也放不下：请减小 --max_length") as told:
        results_of(way, tokenizer)
    assert "\n" not in str(told.value)


def test_another_error_is_raised_as_it_is(tokenizer, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(Qwen2Model, "forward", fails)
    with pytest.raises(RuntimeError, match="device-side assert"):
        results_of("entities", tokenizer)


@pytest.mark.parametrize("padded", [False, True])
def test_the_loss_of_an_evaluation_does_not_change_when_memory_runs_out(padded, ner, tokenizer, memory, caplog):
    records = [{"text": text, "entities": []} for text in TEXTS]
    rows, _ = encode_rows(list(enumerate(records)), ner, tokenizer, 400)
    batching = PaddedBatching(tokenizer.pad_token_id) if padded else PrefixTreeBatching()
    model, accelerator = tiny_model("qwen2", torch.float64).train(), Accelerator(cpu=True)

    def evaluated(evaluator: Evaluator) -> float:
        examples, settings = Examples(records[:2], rows), TaskSettings(ner)
        return evaluator.evaluate(model, examples, 4000, accelerator, settings).metrics["loss"]

    expected = evaluated(Evaluator(ner, tokenizer, Limits(400, 8, 1), batching, quiet=True))
    memory.most_tokens, evaluator = (
        memory.largest // 5,
        Evaluator(ner, tokenizer, Limits(400, 8, 1), batching, quiet=True),
    )
    assert evaluated(evaluator) == pytest.approx(expected, rel=1e-12)
    tried, memory.passes = memory.passes, 0
    assert evaluated(evaluator) == pytest.approx(expected, rel=1e-12)
    assert memory.passes < tried  # nothing is tried that has failed before
    assert caplog.text.count("显存不够：验证改为每次少算几条") == 1
    assert model.training


@pytest.mark.slow
def test_a_whole_run_and_its_predictions_survive_evaluation_without_memory(tokenizer, tmp_path, memory, caplog):
    """The first evaluation comes before training has shrunk anything."""
    base = save_model(tiny_model("qwen2"), tokenizer, tmp_path / "base")
    task = Ner.with_labels(["人名"])
    data = write_records(tmp_path / "train.jsonl", task, [{"text": text, "entities": []} for text in TEXTS])
    words = ["--model_name_or_path", str(base), "--train_file", str(data), "--swanlab_mode", "disabled"]
    words += ["--dtype", "float32", "--max_steps", "2", "--validation_ratio", "0.5", "--disable_tqdm"]

    def run(name: str) -> tuple[dict, list[str]]:
        output = tmp_path / name
        assert train_qwen2_ner.main([*words, "--output_dir", str(output)]) == 0
        source = tmp_path / "texts.jsonl"
        source.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS), encoding="utf-8")
        lines = tmp_path / f"{name}.jsonl"
        arguments = ["--adapter", str(output), "--input_file", str(source), "--output_file", str(lines)]
        assert predict_script.main(arguments) == 0
        results = json.loads((output / "all_results.json").read_text(encoding="utf-8"))
        return results, [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]

    expected, wanted = run("plenty")
    memory.most_tokens = 250
    caplog.clear()
    found, lines = run("scarce")
    assert found["eval_f1"] == expected["eval_f1"]
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-4)
    assert without_scores(lines) == without_scores(wanted)
    assert "验证改为每次少算几条" in caplog.text


@pytest.mark.parametrize(("most", "divisor", "at_once"), [(16, 1, 16), (16, 4, 4), (16, 32, 1), (1, 2, 1)])
def test_at_least_one_row_runs(most, divisor, at_once):
    room = Room()
    room.divisor = divisor
    assert room.of(most) == at_once


def test_a_card_that_is_too_small_gives_the_results_of_a_large_one(tokenizer, tmp_path):
    """On a pretend GPU that counts live bytes: recomputed by itself, and evaluation shrinks."""
    base = save_model(tiny_model("qwen2"), tokenizer, tmp_path / "base")
    task, records = Ner.with_labels(["人名"]), [{"text": text, "entities": []} for text in 2 * TEXTS]
    data = write_records(tmp_path / "train.jsonl", task, records)
    words = ["--model_name_or_path", str(base), "--train_file", str(data), "--swanlab_mode", "disabled"]
    words += ["--max_steps", "2", "--validation_ratio", "0.5"]

    def run(name: str, memory_bytes: int) -> rehearsed_runs.Rehearsed:
        folder, card = tmp_path / name, rehearsed_runs.Card((8, 0), memory_bytes)
        return rehearsed_runs.run("train_qwen2_ner", [*words, "--output_dir", str(folder / "run")], folder, card)

    large = run("large", 24 * 10**9)
    small = run("small", large.peak_bytes * 5 // 10)
    assert (large.code, small.code) == (0, 0), small.errors
    assert small.peak_bytes <= large.peak_bytes * 5 // 10
    assert "打开 --gradient_checkpointing" in small.errors and "显存不够" in small.errors
    assert "显存" not in large.errors
    assert small.results["eval_f1"] == large.results["eval_f1"]
    for name in ("train_loss", "eval_loss"):
        assert small.results[name] == pytest.approx(large.results[name], rel=1e-3)
