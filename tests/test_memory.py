"""The estimate of memory agrees with counted bytes, and decides by itself whether activations are recomputed."""

from __future__ import annotations

import functools
import logging
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from benchmarks.memory_table import shape_by_config
from sft import processes
from sft.engine.batches import EncodedRow, PaddedBatching, PrefixTreeBatching
from sft.training import checkpointing
from sft.training.arguments import parse_arguments
from sft.training.checkpointing import settle_checkpointing, step_tokens
from sft.training.memory import (
    ADAPTER_BYTES,
    FIXED_SHARE,
    GROWING_SHARE,
    MICRO_BATCH_TOKENS,
    ModelShape,
    StepKind,
    estimate_memory_bytes,
    largest_micro_batch_tokens,
    tokens_that_fit,
    weight_bytes,
)
from sft.training.preview import training_seconds
from tests.live_bytes import Counted, count_step

QWEN_1_5B = Qwen2Config(vocab_size=151_936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
                        num_attention_heads=12, num_key_value_heads=2, tie_word_embeddings=True)  # fmt: skip
SHORT_1_5B = Qwen2Config.from_dict(QWEN_1_5B.to_dict() | {"num_hidden_layers": 8, "layer_types": None})
QWEN3 = Qwen3Config(vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=6,
                    num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True)  # fmt: skip
LLAMA = LlamaConfig(vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=5,
                    num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=True)  # fmt: skip
SHAPE = ModelShape(1_543_714_304, 28, 1536, 8960, 151_936, 1_310_195_712, 1_154_048, 1536, 256)
PLAIN = StepKind(2, recompute=False, whole_head=False)


def rows_of(count: int, own_tokens: int, shared: int = 105) -> list[EncodedRow]:
    return [EncodedRow([*range(shared), *[1000 + row] * own_tokens], [7] * 6, row) for row in range(count)]


CASES = {
    "1.5B, Ampere": (QWEN_1_5B, PLAIN, 16, 36),
    "1.5B, Turing": (SHORT_1_5B, PLAIN._replace(grouped=True), 16, 36),
    "1.5B, recomputed": (QWEN_1_5B, PLAIN._replace(recompute=True), 16, 36),
    "1.5B, float32": (SHORT_1_5B, PLAIN._replace(itemsize=4, grouped=True), 16, 36),
    "1.5B, dropout": (SHORT_1_5B, PLAIN._replace(one_node=False, dropout=True), 16, 36),
    "Qwen3, long": (QWEN3, PLAIN, 8, 600),
    "Llama": (LLAMA, PLAIN, 12, 100),
    "Llama, adapter on the output layer": (LLAMA, PLAIN._replace(whole_head=True), 60, 30),
}


@functools.cache
def counted_step(case: str) -> Counted:
    config, kind, count, own_tokens = CASES[case]
    lora = {"lora_dropout": 0.1} if kind.dropout else {}
    if kind.whole_head:
        lora["lora_target_modules"] = ["q_proj", "v_proj", "lm_head"]
    dtype = torch.bfloat16 if kind.itemsize == 2 else torch.float32
    batching = PrefixTreeBatching(varlen=not kind.grouped)
    return count_step(config, dtype, rows_of(count, own_tokens), batching, recompute=kind.recompute, **lora)


def moments_bytes(shape: ModelShape) -> float:
    """Of Adam, which the counted steps do not have."""
    return ADAPTER_BYTES / 2 * 8 * shape.linear_width


@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_within_a_tenth_of_the_counted_bytes(case):
    """A step with gradients and moments. With an adapter on the output layer, the other layers have fewer."""
    config, kind, *_ = CASES[case]
    counted, shape = counted_step(case), shape_by_config(config)
    estimated = estimate_memory_bytes(shape, kind, counted.tokens, counted.supervised_tokens)
    assert estimated == pytest.approx(counted.peak + moments_bytes(shape) * (not kind.whole_head), rel=0.1)


@pytest.mark.parametrize(("case", "most_bytes"), [("1.5B, Ampere", 5.5e9), ("1.5B, recomputed", 3.6e9)])
def test_the_step_of_the_full_model_stays_small(case, most_bytes):
    """28 layers, 16 rows of NER, 761 tokens."""
    counted = counted_step(case)
    assert counted.peak + moments_bytes(SHAPE) < most_bytes
    assert counted.stored / counted.tokens / 28 < 105_000


# ---- how many tokens fit ----


def kinds():
    flags = st.booleans()
    return st.builds(
        StepKind, itemsize=st.sampled_from([2, 4]), recompute=flags, whole_head=flags, grouped=flags, one_node=flags,
        dropout=flags, quantized=flags, lora_r=st.integers(1, 64),
    )  # fmt: skip


@given(kinds(), st.floats(1e9, 1e11), st.sampled_from([FIXED_SHARE, GROWING_SHARE]))
def test_what_is_said_to_fit_is_estimated_to_fit(kind, free_bytes, share):
    tokens = largest_micro_batch_tokens(free_bytes, SHAPE, kind, share)
    if tokens >= 1024:  # the logits of a chunk are full
        needed = estimate_memory_bytes(SHAPE, kind, int(tokens), int(tokens) // 4)
        left = free_bytes - weight_bytes(SHAPE, kind)
        assert needed - weight_bytes(SHAPE, kind) <= share * left * 1.001
        more = estimate_memory_bytes(SHAPE, kind, int(1.1 * tokens), int(1.1 * tokens) // 4)
        assert more - weight_bytes(SHAPE, kind) > share * left
    chosen = tokens_that_fit(free_bytes, SHAPE, kind, share)
    assert MICRO_BATCH_TOKENS[0] <= chosen <= MICRO_BATCH_TOKENS[1]


@given(kinds(), st.floats(1e9, 1e11))
def test_recomputing_and_four_bits_never_need_more(kind, free_bytes):
    def fit(**changes) -> float:
        return largest_micro_batch_tokens(free_bytes, SHAPE, kind._replace(**changes), FIXED_SHARE)

    if free_bytes > weight_bytes(SHAPE, kind):
        assert fit(recompute=True) >= fit(recompute=False)
    assert weight_bytes(SHAPE, kind._replace(quantized=True)) <= weight_bytes(SHAPE, kind._replace(quantized=False))


# ---- how long it takes ----


@pytest.mark.parametrize(
    ("rows", "rows_a_second", "tokens_a_second"), [(16, 63.6, 3224), (128, 318.6, 14328)], ids=["16 rows", "128 rows"]
)
def test_the_time_of_a_step_on_a_gpu_is_near_what_was_measured(rows, rows_a_second, tokens_a_second):
    """On the H100 of docs/gpu.md (2026-11-26). Its matrix products alone would take a twentieth of 16 rows' step."""
    seconds = rows / rows_a_second
    estimated = training_seconds(SHAPE, PLAIN, tokens_a_second * seconds, 1, 762.1e12)
    assert estimated == pytest.approx(seconds, rel=0.2)


# ---- checkpointing by itself ----


def settled(monkeypatch, gigabytes: float, *words: str, tokens: int = 761, growing: bool = True) -> SimpleNamespace:
    """What a run with these flags does on a card of the Ampere generation with so much free memory."""
    arguments = parse_arguments("", words)
    device = SimpleNamespace(type="cuda")
    training = SimpleNamespace(
        gradient_checkpointing=arguments.training.gradient_checkpointing,
        activation_checkpointing=arguments.training.activation_checkpointing,
        device=device,
    )
    monkeypatch.setattr(checkpointing, "shape_of", lambda folder: SHAPE)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(gigabytes * 1e9), int(gigabytes * 1e9)))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", processes.GROWING if growing else "")
    settle_checkpointing(arguments._replace(training=training), None, torch.bfloat16, tokens)
    return training


@pytest.mark.parametrize(
    ("gigabytes", "words", "on"),
    [
        (5.6, (), True),
        (7.6, (), False),
        (11.6, (), False),
        (11.6, ("--gradient_checkpointing",), True),
        (5.6, ("--gradient_checkpointing", "false"), False),
        (5.6, ("--no_gradient_checkpointing",), False),
        (5.6, ("--activation_checkpointing", "false"), False),
        (6.4, (), True),
        (6.4, ("--quantization", "nf4"), False),
    ],
)
def test_a_small_card_recomputes_unless_the_user_says_otherwise(gigabytes, words, on, monkeypatch, caplog):
    with caplog.at_level(logging.INFO):
        training = settled(monkeypatch, gigabytes, *words)
    assert training.gradient_checkpointing is training.activation_checkpointing is on
    told = [record.getMessage() for record in caplog.records if "打开 --gradient_checkpointing" in record.getMessage()]
    assert len(told) == (on and not words)
    assert all("761" in line and "--gradient_checkpointing false" in line for line in told)


def test_long_rows_recompute_on_a_card_on_which_short_ones_need_not(monkeypatch):
    assert settled(monkeypatch, 15.6).gradient_checkpointing is False
    assert settled(monkeypatch, 15.6, tokens=8000).gradient_checkpointing is True


def test_a_card_that_holds_not_even_the_model_is_told_what_helps(monkeypatch, caplog):
    settled(monkeypatch, 3.0)
    assert "连模型本身也放不下" in caplog.text and "--quantization nf4" in caplog.text
    caplog.clear()
    settled(monkeypatch, 4.5, "--gradient_checkpointing", "false")
    assert "估计很紧" in caplog.text and "加 --gradient_checkpointing" in caplog.text


def test_on_a_cpu_nothing_is_switched_on(caplog):
    arguments = parse_arguments("", ["--use_cpu"])
    settle_checkpointing(arguments, None, torch.bfloat16, 10**6)
    assert not arguments.training.gradient_checkpointing and not caplog.records


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=40), st.integers(1, 16))
def test_the_tokens_to_fit_are_a_batch_or_a_row(lengths, batch_rows):
    rows = [EncodedRow([number] * length, [7], number) for number, length in enumerate(lengths)]
    tokens = step_tokens(rows, PaddedBatching(0), SimpleNamespace(per_device_train_batch_size=batch_rows))
    assert max(lengths) + 1 <= tokens <= max(max(lengths) + 1, MICRO_BATCH_TOKENS[0])


# ---- blocks that can grow ----


@pytest.mark.parametrize(
    ("set_by_user", "supported", "system", "expected"),
    [
        ({}, 1, "linux", processes.GROWING),
        ({}, 0, "linux", None),
        ({}, 1, "win32", None),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, 1, "linux", "max_split_size_mb:64"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"}, 1, "linux", None),
    ],
)
def test_blocks_grow_where_the_driver_can_and_the_user_has_said_nothing(
    set_by_user, supported, system, expected, monkeypatch
):
    class Driver:
        def cuInit(self, flags):
            return 0

        def cuDeviceGetCount(self, count):
            count._obj.value = 2
            return 0

        def cuDeviceGetAttribute(self, value, attribute, device):
            value._obj.value = supported
            return 0

    for name in processes.ALLOCATOR_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in set_by_user.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes.sys, "platform", system)
    monkeypatch.setattr(processes.ctypes, "CDLL", lambda name: Driver())
    processes.let_segments_grow()
    assert processes.os.environ.get("PYTORCH_ALLOC_CONF") == expected
    assert processes.segments_grow() == (expected == processes.GROWING)


def test_without_a_driver_nothing_is_set(monkeypatch):
    def missing(name):
        raise OSError(name)

    for name in processes.ALLOCATOR_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(processes.ctypes, "CDLL", missing)
    processes.let_segments_grow()
    assert not processes.segments_grow()
