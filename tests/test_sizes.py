"""A tree that is filled up to one of few sizes gives the same loss and gradients, and there are few sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.engine import loss as head
from sft.engine.batches import PrefixTreeBatching, batch_tokens
from sft.engine.loss import chunked_loss
from sft.engine.sizes import filled_up
from tests.models import tiny_model, with_random_lora
from tests.test_prefix_tree import TREE, assert_equal, batches, in_float64, loss_and_gradients

FEW = PrefixTreeBatching(few_sizes=True)


@given(st.integers(1, 10**6))
def test_a_size_grows_by_at_most_a_sixteenth_and_is_its_own_next_size(count):
    assert count <= filled_up(count) <= count * 17 / 16
    assert filled_up(filled_up(count)) == filled_up(count)


@pytest.mark.parametrize("start", [64, 500, 4000])
def test_there_are_sixteen_sizes_between_two_doublings(start):
    assert len({filled_up(count) for count in range(start + 1, 2 * start + 1)}) <= 17


@settings(max_examples=12)
@given(rows=batches(longest=60))
def test_what_fills_a_tree_up_changes_neither_loss_nor_gradients(rows):
    model = in_float64(with_random_lora(tiny_model("qwen2")))
    filled, plain = (loss_and_gradients(model, [way.collate(rows)], 7) for way in (FEW, TREE))
    assert_equal(filled, plain, 1e-10)
    assert batch_tokens(FEW.collate(rows)) == FEW.tokens(rows) == filled_up(TREE.tokens(rows))


@settings(max_examples=15)
@given(tokens=st.integers(1, 90), chunk=st.integers(1, 60))
def test_a_chunk_of_the_loss_that_is_filled_up_gives_the_same_in_bfloat16(tokens, chunk):
    torch.manual_seed(tokens)
    layer = torch.nn.Linear(8, 20).bfloat16().requires_grad_(False)
    states = torch.randn(tokens, 8).bfloat16().requires_grad_()
    targets = torch.randint(20, (tokens,))
    expected = torch.nn.functional.cross_entropy(layer(states).float(), targets, reduction="sum")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "CHUNK_LOGITS", 20 * chunk)
        loss = chunked_loss(states, layer, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    found, right = (torch.autograd.grad(value, states)[0] for value in (loss, expected))
    torch.testing.assert_close(found, right, rtol=0.02, atol=0.02)


def test_only_bfloat16_on_a_cpu_is_filled_up():
    cpu = torch.device("cpu")
    assert TREE.for_model(tiny_model("qwen2", torch.bfloat16), cpu).few_sizes
    assert not TREE.for_model(tiny_model("qwen2"), cpu).few_sizes
