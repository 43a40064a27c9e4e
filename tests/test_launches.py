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

OPTIONS = ("体育", "体育新闻", "军事", "经济")
CARDS = {"ampere": ((8, 0), torch.bfloat16), "turing": ((7, 5), torch.float16), "float32": ((8, 0), torch.float32)}
REST = 79  # launches of a layer without attention in half precision, PEFT's adapters among them; fewer in float32


def three_layers(dtype: torch.dtype):
    """A random model with a layer that is neither the first, which makes masks, nor the last, which skips tokens."""
    kind, special = CONFIGS["qwen2"]
    torch.manual_seed(0)
    config = kind(**SIZES | special | {"num_hidden_layers": 3, "bos_token_id": None, "eos_token_id": None})
    return with_random_lora(AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)).eval()


class Counted(NamedTuple):
    results: list
    launches: float  # of the attention of the second layer, in the middle of all passes
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


@pytest.mark.parametrize(("card", "most"), [("ampere", 4), ("turing", 10), ("float32", 10)])
def test_decoding_launches_few_kernels_and_waits_once_a_pass(card, most, tokenizer, monkeypatch):
    capability, dtype = CARDS[card]
    model, texts = three_layers(dtype), some_texts(7)
    vocabulary, prompts = vocabulary_of(tokenizer), prompts_of(texts, tokenizer)

    def action():
        return decode(model, vocabulary, LABELS, texts, prompts, Bounds(5, 12))

    expected = action()
    found = counted(action, model, capability, monkeypatch)
    assert found.waits <= 1
    assert found.launches <= REST + most
    if dtype == torch.float32:
        assert [answer.text for answer in found.results] == [answer.text for answer in expected]


@pytest.mark.parametrize(("card", "most"), [("ampere", 12), ("turing", 40), ("float32", 40)])
def test_scoring_launches_few_kernels_and_waits_once_a_pass(card, most, tokenizer, monkeypatch):
    capability, dtype = CARDS[card]
    model, prompts = three_layers(dtype), some_prompts(tuple(range(20, 100, 5)))

    def action():
        return score_options(model, tokenizer, prompts, [OPTIONS] * len(prompts))

    expected = action()
    found = counted(action, model, capability, monkeypatch)
    assert found.waits <= 1
    assert found.launches <= REST + most
    if dtype == torch.float32:
        torch.testing.assert_close(found.results, expected, rtol=1e-5, atol=1e-5)
