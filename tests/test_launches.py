"""What decoding and scoring ask of a GPU, counted on a pretend one: launches, waits, and the results of the CPU."""

from __future__ import annotations

import statistics
from typing import NamedTuple

import pytest
import torch
from models import CONFIGS, SIZES, with_random_lora
from pretend_gpu import PretendGpu
from test_constrained import LABELS, prompts_of, some_texts
from test_decoding import some_prompts
from transformers import AutoModelForCausalLM

from sft.decoding.constrained import Bounds, decode
from sft.decoding.decode import score_options
from sft.decoding.vocabulary import vocabulary_of
from sft.engine import attention
from sft.engine.lora_node import adapters_copied, one_node_layers, use_lora_node
from sft.engine.ragged import GROWTH_TOKENS, rows_at_once
from sft.engine.served import Served, assume

OPTIONS = ("体育", "体育新闻", "军事", "经济")
CARDS = {"ampere": ((8, 0), torch.bfloat16), "turing": ((7, 5), torch.float16), "float32": ((8, 0), torch.float32)}


def three_layers(dtype: torch.dtype):
    """A random model with a layer that is neither the first, which makes masks, nor the last, which skips tokens."""
    kind, special = CONFIGS["qwen2"]
    torch.manual_seed(0)
    config = kind(**SIZES | special | {"num_hidden_layers": 3, "bos_token_id": None, "eos_token_id": None})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
    model = with_random_lora(model).eval()
    use_lora_node(model)
    return model


class Counted(NamedTuple):
    results: list
    launches: float  # of the second layer, in the middle of all passes
    waits: float  # a pass


def counted(action, model, capability: tuple[int, int], monkeypatch) -> Counted:
    """What ``action`` gives on a pretend GPU, and what it asks of it."""
    with PretendGpu(capability=capability) as gpu:
        model.to("cuda")
        action()  # what is tried once
        original, unfused, found = attention.scaled_dot_product_attention, [0], []

        def fused(*states, **settings):  # one kernel on a GPU; the pretend one does its parts
            before = gpu.launches.total()
            attended = original(*states, **settings)
            unfused[0] += gpu.launches.total() - before - 1
            return attended

        monkeypatch.setattr(attention, "scaled_dot_product_attention", fused)
        layer = model.get_base_model().model.layers[1]
        layer.register_forward_pre_hook(lambda *_: found.append(unfused[0] - gpu.launches.total()))
        layer.register_forward_hook(lambda *_: found.append(found.pop() + gpu.launches.total() - unfused[0]))
        gpu.reset()
        results = action()
        return Counted(results, statistics.median(found), sum(gpu.waits().values()) / len(found))


@pytest.mark.parametrize(("card", "most"), [("ampere", 56), ("turing", 61), ("float32", 61)])
def test_decoding_launches_few_kernels_and_waits_once_a_pass(card, most, tokenizer, monkeypatch):
    capability, dtype = CARDS[card]
    model, texts = three_layers(dtype), some_texts(7)
    vocabulary, prompts = vocabulary_of(tokenizer), prompts_of(texts, tokenizer)

    def action():
        return decode(model, vocabulary, LABELS, texts, prompts, Bounds(5, 12))

    expected = action()
    found = counted(action, model, capability, monkeypatch)
    assert found.waits <= 1
    assert found.launches <= most
    if dtype == torch.float32:
        assert [answer.text for answer in found.results] == [answer.text for answer in expected]


@pytest.mark.parametrize(("card", "most"), [("ampere", 90), ("turing", 108), ("float32", 108)])
def test_scoring_launches_few_kernels_and_waits_once_a_pass(card, most, tokenizer, monkeypatch):
    capability, dtype = CARDS[card]
    model, prompts = three_layers(dtype), some_prompts(tuple(range(20, 100, 5)))

    def action():
        return score_options(model, tokenizer, prompts, [OPTIONS] * len(prompts))

    expected = action()
    found = counted(action, model, capability, monkeypatch)
    assert found.waits <= 1
    assert found.launches <= most
    if dtype == torch.float32:
        torch.testing.assert_close(found.results, expected, rtol=1e-5, atol=1e-5)


def test_padded_scoring_waits_as_often_for_many_options_as_for_few(tokenizer):
    model, prompts = three_layers(torch.float32).get_base_model(), some_prompts((20,))
    assume(model, Served(False, None))
    waits = []
    for options in (OPTIONS[:2], OPTIONS):
        expected = score_options(model, tokenizer, prompts, [options])
        with PretendGpu() as gpu:
            found = score_options(model.to("cuda"), tokenizer, prompts, [options])
            waits.append(gpu.waits().total())
            model.to("cpu")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert len(OPTIONS) > 2 and waits[0] == waits[1]


def test_more_rows_run_together_on_a_gpu_as_memory_allows():
    model = three_layers(torch.float32)
    assert rows_at_once(model.get_base_model(), 16, 100) == 16
    a_row = (2 * 3 * 2 * 8 + 3 * 48 + 8 * 32) * 4 * (104 + GROWTH_TOKENS)
    for rows in (1, 10, 64, 1000):
        with PretendGpu(memory_bytes=10**9) as gpu:
            base = model.get_base_model().to("cuda")
            gpu.memory_bytes = gpu.allocated_bytes + 2 * rows * a_row + 9
            assert rows_at_once(base, 16, 100) == min(64, rows)
            assert rows_at_once(base, 1, 100) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_of_the_adapters_change_no_number_and_end_with_the_block(dtype):
    model = three_layers(dtype)
    layer = one_node_layers(model)[0]
    inputs = torch.randn((5, layer.in_features), dtype=dtype)
    with torch.no_grad():
        before = layer(inputs)
        with adapters_copied(one_node_layers(model)):
            assert torch.equal(layer(inputs), before)
            with model.disable_adapter():
                assert torch.equal(layer(inputs), layer.base_layer(inputs))
        next(iter(layer.lora_B.values())).weight.mul_(2)
        after = layer(inputs)
        with adapters_copied(one_node_layers(model)):
            assert torch.equal(layer(inputs), after)
    assert not torch.equal(after, before)
