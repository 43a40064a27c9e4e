"""Scoring options over a tree: long documents, very many options, and how many tokens go through the model."""

from __future__ import annotations

import random

import pytest
import torch
from models import WHOLE, tiny_model
from test_decoding import check_scores, scored_alone, some_prompts
from torch.overrides import TorchFunctionMode

from sft.decoding.decode import score_options
from sft.engine import option_scores
from sft.engine.attention import QUERY_BLOCK
from sft.model.encoding import encode_texts

MANY = tuple(f"类型{number}：{'体育新闻'[number % 4]}" for number in range(300))


@pytest.fixture
def widths(monkeypatch) -> list[int]:
    """A list that receives the number of tokens of each forward pass."""
    found: list[int] = []
    original = option_scores._score_pass

    def noted(base, units):
        hook = base.base_model.register_forward_pre_hook(
            lambda module, args, inputs: found.append(inputs["input_ids"].shape[1]), with_kwargs=True
        )
        try:
            return original(base, units)
        finally:
            hook.remove()

    monkeypatch.setattr(option_scores, "_score_pass", noted)
    return found


@pytest.mark.parametrize("architecture", WHOLE)
def test_long_documents_score_as_alone(tokenizer, architecture):
    model = tiny_model(architecture)
    prompts = some_prompts((510, 700, 1300))
    check_scores(model, tokenizer, prompts, [("体育", "体育新闻", "军"), ("经济", "军事"), ("a", "ab", "abc")], 1e-5)


def test_no_mask_is_the_square_of_a_long_row(tokenizer):
    masks = []

    class Noted(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            if func is torch.nn.functional.scaled_dot_product_attention:
                mask = kwargs.get("attn_mask")
                masks.append(0 if mask is None else mask.numel())
            return func(*args, **kwargs)

    with Noted():
        score_options(tiny_model("qwen2"), tokenizer, some_prompts((1500,)), [("体育", "军事")])
    assert 0 < max(masks) <= QUERY_BLOCK * (1500 + 8)


@pytest.mark.parametrize("max_tokens", [None, 400, 1])
def test_hundreds_of_options_score_as_alone_however_many_fit_into_a_pass(tokenizer, widths, max_tokens):
    model = tiny_model("qwen2")
    prompts = some_prompts((20, 33))
    scores = score_options(model, tokenizer, prompts, [MANY, ("体育", "军")], max_tokens)
    sample = random.Random(0).sample(range(len(MANY)), 20)
    expected = scored_alone(model, tokenizer, prompts[0], tuple(MANY[index] for index in sample))
    torch.testing.assert_close(scores[0][sample], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        scores[1], scored_alone(model, tokenizer, prompts[1], ("体育", "军")), rtol=1e-5, atol=1e-5
    )
    assert len(widths) == 1 if max_tokens is None else len(widths) > 1
    assert max_tokens is None or max(widths) <= max(max_tokens, 33 + option_scores.LEAST_OPTION_TOKENS)


def test_what_rows_and_options_begin_with_is_computed_once(tokenizer, widths):
    shared, own = some_prompts((40, 7))
    prompts = [[*shared, *own], [*shared, *own[:3]]]
    options = ("体育新闻", "体育新闻", "体育")
    ids = encode_texts(["体育新闻"], tokenizer)[0]
    assert encode_texts(["体育"], tokenizer)[0] == ids[: len(encode_texts(["体育"], tokenizer)[0])]
    scores_of = score_options(tiny_model("qwen2"), tokenizer, prompts, [options] * 2)
    assert widths == [47 + 1 + 2 * len(ids)]  # first prompt, the second's last token (the rest is shared), options
    assert all(scores[0] == scores[1] for scores in scores_of)


def test_prompts_that_are_the_same_score_the_same(tokenizer):
    model = tiny_model("qwen2")
    prompts = some_prompts((12,)) * 3
    first, *others = score_options(model, tokenizer, prompts, [("体育", "军事")] * 3)
    for scores in others:
        torch.testing.assert_close(scores, first, rtol=1e-6, atol=1e-6)
    check_scores(model, tokenizer, prompts, [("体育", "军事")] * 3, 1e-5)
