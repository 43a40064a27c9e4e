"""A LoRA layer as one node computes what PEFT's layer computes, and leaves to PEFT what it does not compute."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from torch.utils._python_dispatch import TorchDispatchMode

from sft.engine.batches import PaddedBatching, PrefixTreeBatching
from sft.engine.lora_node import OneNodeLinear, adapters_copied, one_node_layers, use_lora_node
from sft.engine.loss import supervised_loss
from sft.model.encoding import encode_rows
from sft.model.lora import add_lora
from tests.models import tiny_model, with_random_lora
from tests.test_prefix_tree import in_float64

RECORDS = [
    (line, {"text": text, "entities": [{"text": name, "label": "人名"}]})
    for line, (text, name) in enumerate(
        [
            ("张伟昨天到了上海。", "张伟"),
            ("埃斯特拉达见到了张伟，在南京大学。", "张伟"),
            ("菲律宾总统是李明。", "李明"),
        ],
        1,
    )
]


def layers_of(model: torch.nn.Module) -> list[LoraLinear]:
    return [module for module in model.modules() if isinstance(module, LoraLinear)]


def one_layer(
    inputs: int, outputs: int, bias: bool = True, dtype: torch.dtype = torch.float64, **config
) -> LoraLinear:
    """PEFT's layer on a linear layer, with random weights; the adapter of a 16-bit base is float32."""
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(inputs, outputs, bias=bias, dtype=dtype))
    model = get_peft_model(base, LoraConfig(**{"target_modules": ["0"], "r": 4, "lora_alpha": 12} | config))
    layer = layers_of(model)[0]
    for parameter in (layer.lora_A["default"].weight, layer.lora_B["default"].weight):
        torch.nn.init.normal_(parameter)
        if dtype == torch.float64:
            parameter.data = parameter.data.double()
    return layer


def as_node(layer: torch.nn.Module) -> torch.nn.Module:
    copied = copy.deepcopy(layer)
    use_lora_node(copied)
    return copied


def results(layer: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The output at ``x``, and the gradients of ``x`` (if it has one), A and B."""
    layer.zero_grad()
    x = x.detach().requires_grad_(x.requires_grad)
    output = layer(x)
    (output * torch.arange(1, output.shape[-1] + 1, dtype=output.dtype)).square().sum().backward()
    gradients = [parameter.grad for parameter in layer.parameters() if parameter.requires_grad]
    return [output.detach(), *([x.grad] if x.requires_grad else []), *gradients]


def calls_of_the_node(layer: torch.nn.Module, x: torch.Tensor) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(x)
    return sum(event.count for event in profile.key_averages() if event.key == "_LoraNode")


@settings(max_examples=25)
@given(
    shape=st.lists(st.integers(1, 7), max_size=2),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    bias=st.booleans(),
    wants_input=st.booleans(),
    rslora=st.booleans(),
)
def test_output_and_gradients_equal_those_of_peft(shape, inputs, outputs, bias, wants_input, rslora):
    layer = one_layer(inputs, outputs, bias, use_rslora=rslora)
    x = torch.randn(*shape, inputs, dtype=torch.float64, requires_grad=wants_input)
    ours = as_node(layer)
    assert type(ours) is OneNodeLinear
    for mine, theirs in zip(results(ours, x), results(layer, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12 * theirs.abs().max().item())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_gradients_of_a_whole_model_equal_those_of_peft_and_follow_every_update(checkpointing, ner, tokenizer):
    """Two steps: what the second computes must come from the weights that the first has changed."""
    theirs = in_float64(with_random_lora(tiny_model("qwen2")))
    ours = copy.deepcopy(theirs)
    use_lora_node(ours)
    rows = encode_rows(RECORDS, ner, tokenizer, 1024)[0]
    batch = PrefixTreeBatching().collate(rows)
    for model in (theirs, ours):
        model.train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for last in (False, True):
            for _ in range(2):  # accumulated
                supervised_loss(model, batch, 20).backward()
            if not last:
                optimizer.step()
                optimizer.zero_grad()
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    found = {name: p.grad for name, p in ours.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-12 * gradient.abs().max().item())


def test_in_bfloat16_it_is_as_near_to_float64_as_peft(ner, real_tokenizer):
    """On rows of real text: the distances of all gradients together, and no gradient is left in 16 bits."""
    rows = encode_rows(RECORDS, ner, real_tokenizer, 1024)[0]
    for row in rows:  # the tiny model has a tiny vocabulary
        row.prompt_ids, row.answer_ids = ([token % 500 for token in ids] for ids in (row.prompt_ids, row.answer_ids))
    near, far = [], []
    for seed in range(4):
        base = with_random_lora(tiny_model("qwen2", torch.bfloat16, seed), seed)
        for layer in layers_of(base):  # a tenth of the base's own output, more than training makes it
            layer.lora_B["default"].weight.data *= 0.1
        gradients = []
        for model in (in_float64(copy.deepcopy(base)), copy.deepcopy(base), base):
            if model is base:
                use_lora_node(model)
            supervised_loss(model, PaddedBatching(0).collate(rows), 20).backward()
            kept = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
            assert model.dtype == torch.float64 or {gradient.dtype for gradient in kept} == {torch.float32}
            gradients.append(torch.cat([gradient.double().flatten() for gradient in kept]))
        truth, theirs, ours = gradients
        far.append(((theirs - truth).norm() / truth.norm()).item())
        near.append(((ours - truth).norm() / truth.norm()).item())
    assert 0 < sum(near) <= 1.15 * sum(far), (near, far)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_made_together_change_no_bit_of_loss_and_gradients(dtype, checkpointing, ner, tokenizer):
    model = with_random_lora(tiny_model("qwen2", dtype)).train()
    use_lora_node(model)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    batch = PrefixTreeBatching().collate(encode_rows(RECORDS, ner, tokenizer, 1024)[0])
    layers, found = one_node_layers(model), []
    for block in (nullcontext(), adapters_copied(layers)):
        model.zero_grad()
        with block:
            copied = [layer.copied is not None for layer in layers]
            loss = supervised_loss(model, batch, 20)
            loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    assert all(copied)  # in the second
    assert all(torch.equal(apart, together) for apart, together in zip(*found, strict=True))
    assert not any(layer.copied for layer in layers)


def test_copies_lead_gradients_to_the_layers_that_ran_and_to_no_other():
    ran, idle = (as_node(one_layer(5, 4)) for _ in range(2))
    x = torch.randn(3, 5, dtype=torch.float64)
    with adapters_copied([ran, idle]):
        ran(x).sum().backward()
    assert [p.grad is not None for p in ran.parameters() if p.requires_grad] == [True, True]
    assert [p.grad is not None for p in idle.parameters() if p.requires_grad] == [False, False]


def test_copies_made_without_gradients_are_not_used_where_gradients_are_computed():
    layer = as_node(one_layer(5, 4))
    x = torch.randn(3, 5, dtype=torch.float64)
    expected = results(layer, x)
    with torch.no_grad(), adapters_copied([layer]), torch.enable_grad():
        found = results(layer, x)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


class Float32Tokens(TorchDispatchMode):
    """Counts results in float32 that are as long as the input."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens, self.found = tokens, 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **keywords or {})
        if isinstance(result, torch.Tensor) and self.tokens in result.shape and result.dtype == torch.float32:
            self.found += 1
        return result


def test_no_tensor_as_long_as_the_tokens_is_float32():
    layer = one_layer(8, 6, dtype=torch.bfloat16)
    x = torch.randn(37, 8).bfloat16().requires_grad_()
    counted = []
    for each in (layer, as_node(layer)):
        with Float32Tokens(37) as mode:
            each(x).sum().backward()
        counted.append(mode.found)
    assert counted[0] > 0
    assert counted[1] == 0


def _second_adapter(layer: LoraLinear) -> None:
    layer.update_layer("other", 2, lora_alpha=2, config=LoraConfig(r=2))
    layer.set_adapter(["default", "other"])


def _hook(layer: LoraLinear) -> None:
    layer.lora_A["default"].register_forward_hook(lambda module, inputs, output: output * 2)


LEFT_TO_PEFT = {
    "dropout": ({"lora_dropout": 0.5}, lambda layer: layer.train()),
    "DoRA": ({"use_dora": True}, None),
    "a bias of its own": ({"lora_bias": True}, None),
    "off": ({}, lambda layer: layer.enable_adapters(False)),
    "merged": ({}, lambda layer: layer.merge()),
    "several adapters": ({}, _second_adapter),
    "a trained bias": ({}, lambda layer: layer.base_layer.bias.requires_grad_()),
    "a hook inside": ({}, _hook),
}


@pytest.mark.parametrize("case", LEFT_TO_PEFT)
def test_what_the_node_does_not_compute_is_left_to_peft(case):
    config, change = LEFT_TO_PEFT[case]
    layer = one_layer(5, 4, dtype=torch.float32, **config).eval()
    if change is not None:
        change(layer)
    ours, x = as_node(layer), torch.randn(3, 5)
    torch.manual_seed(1)
    expected = layer(x)
    torch.manual_seed(1)
    assert torch.equal(ours(x), expected)
    assert calls_of_the_node(ours, x) == 0
    plain = as_node(one_layer(5, 4, dtype=torch.float32, lora_dropout=0.5).eval())
    assert calls_of_the_node(plain, x) == 1  # dropout does nothing here, so the count above can see the node


def test_under_autocast_of_another_dtype_it_is_left_to_peft():
    layer = one_layer(5, 4, dtype=torch.float32)
    ours, x = as_node(layer), torch.randn(3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x), layer(x))


def test_saving_loading_and_merging_are_peft_s(tmp_path):
    flags = {"lora_r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "lora_target_modules": ["q_proj", "down_proj"]}
    model = add_lora(tiny_model("qwen2"), **flags, use_rslora=False)
    assert {type(layer) for layer in layers_of(model)} == {OneNodeLinear}
    torch.nn.init.normal_(layers_of(model)[0].lora_B["default"].weight)
    model.save_pretrained(tmp_path)
    theirs = PeftModel.from_pretrained(tiny_model("qwen2"), tmp_path)
    assert {type(layer) for layer in layers_of(theirs)} == {LoraLinear}
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids).logits, theirs(ids).logits)
        merged = theirs.merge_and_unload()(ids).logits
        assert torch.equal(model.merge_and_unload()(ids).logits, merged)
