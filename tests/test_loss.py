"""The chunked loss equals the loss over all logits, but only one chunk of logits exists at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from sft.engine import loss as head
from sft.engine.batches import EncodedRow, PaddedBatching
from sft.engine.loss import chunked_loss, frozen_head, plain_loss, supervised_loss
from sft.engine.served import PLAIN, Logits, Served, assume
from tests.models import LINEAR_PROJECTIONS, WHOLE, tiny_model, with_random_lora

VOCABULARY, HIDDEN = 512, 32


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor of logits."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **keywords or {})
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (VOCABULARY,) and HIDDEN not in tensor.shape:
                self.elements = max(self.elements, tensor.numel())
        return result


@settings(max_examples=30)
@given(
    tokens=st.integers(1, 40),
    chunk=st.integers(1, 50),
    bias=st.booleans(),
    seed=st.integers(0, 99),
    rule=st.sampled_from([PLAIN, Logits(1 / 8), Logits(cap=0.7), Logits(0.0625, 3.0)]),
)
def test_loss_and_gradient_are_those_of_all_logits_at_once(tokens, chunk, bias, seed, rule):
    torch.manual_seed(seed)
    layer = torch.nn.Linear(8, 20, bias=bias, dtype=torch.float64).requires_grad_(False)
    states = torch.randn(tokens, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(20, (tokens,))
    expected = cross_entropy(rule.of(layer(states)), targets, reduction="sum") / 7
    (expected_gradient,) = torch.autograd.grad(expected, states)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "CHUNK_LOGITS", 20 * chunk)
        loss = chunked_loss(states, layer, targets, rule) / 7
        (gradient,) = torch.autograd.grad(loss, states)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("answer_tokens", [1, 50, 400])
def test_no_more_logits_exist_than_one_chunk_holds(answer_tokens, monkeypatch):
    monkeypatch.setattr(head, "CHUNK_LOGITS", 10 * VOCABULARY)
    model = with_random_lora(tiny_model("llama"))
    batch = PaddedBatching(0).collate([EncodedRow([1, 2, 3], [7] * answer_tokens, 1)])
    with LargestTensor() as largest:
        supervised_loss(model, batch, 1).backward()
    assert 0 < largest.elements <= 10 * VOCABULARY


def test_half_precision_logits_meet_their_softmax_in_float32():
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 300, bias=False).to(torch.bfloat16).requires_grad_(False)
    states = torch.randn(9, 16).to(torch.bfloat16).requires_grad_()
    targets = torch.randint(300, (9,))
    loss = chunked_loss(states, layer, targets)
    expected = cross_entropy(layer(states).float(), targets, reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, states)[0] for value in (loss, expected)))


@pytest.mark.parametrize("architecture", WHOLE)
def test_an_adapter_on_the_head_is_trained_by_the_models_own_logits(architecture):
    base = tiny_model(architecture, torch.float64)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=[*LINEAR_PROJECTIONS, "lm_head"])
    model = get_peft_model(base, config)
    assert frozen_head(model) is None
    rows = [EncodedRow([1, 2, 3], [4, 5], 1), EncodedRow([6], [7], 2)]
    supervised_loss(model, PaddedBatching(0).collate(rows), 3).backward()
    gradients = [
        parameter.grad for name, parameter in model.named_parameters() if "lm_head" in name and "lora_B" in name
    ]
    assert len(gradients) == 1 and gradients[0].abs().max() > 0


def test_a_head_that_is_more_than_one_frozen_layer_is_left_to_its_model():
    model = tiny_model("qwen2").requires_grad_(False)
    assert frozen_head(model) is model.lm_head
    assert frozen_head(with_random_lora(model)) is model.lm_head
    assume(model, Served(False, None))  # it makes its logits in a way of its own
    assert frozen_head(model) is None
    batch = PaddedBatching(0).collate([EncodedRow([1, 2], [3], 1)])
    logits = model(torch.tensor([[1, 2, 3]])).logits[0, 1:2]
    torch.testing.assert_close(supervised_loss(model, batch, 1), plain_loss(logits, torch.tensor([3])))
    assert frozen_head(tiny_model("llama")) is None  # this head is trainable
