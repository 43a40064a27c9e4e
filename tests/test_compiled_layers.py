"""Compiled layers train as the others do, and only training uses them."""

from __future__ import annotations

import copy

import torch

from sft.engine.batches import EncodedRow, PrefixTreeBatching
from sft.engine.compiled_layers import compile_layers
from sft.engine.lora_node import adapters_copied, one_node_layers, use_lora_node
from sft.engine.loss import supervised_loss
from tests.models import tiny_model, with_random_lora

ROWS = [EncodedRow([1, 2, 3, 4], [5, 6], 1), EncodedRow([1, 2, 7], [8], 2)]


def test_compiled_layers_give_the_same_gradients_in_one_graph_and_evaluation_runs_without_them():
    model = with_random_lora(tiny_model("qwen2"))
    use_lora_node(model)
    compiled, graphs = copy.deepcopy(model), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile_layers(compiled, backend)
    gradients = []
    for each in (model, compiled):
        with torch.no_grad():
            each.eval()
            supervised_loss(each, PrefixTreeBatching().collate(ROWS), 3)
        assert graphs == []
        each.train()
        for _ in range(2):  # with copies of the LoRA matrices that are new in each step, as in training
            each.zero_grad()
            with adapters_copied(one_node_layers(each)):
                supervised_loss(each, PrefixTreeBatching().collate(ROWS), 3).backward()
        gradients.append([parameter.grad for parameter in each.parameters() if parameter.requires_grad])
    for found, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert 1 <= len(graphs) <= 2  # a break, such as in the node of a LoRA layer, would make many
