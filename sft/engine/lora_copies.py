"""LoRA layers in decoding: their matrices are copied to the dtype of the base once, not once a pass.

In training the node copies them in every pass, because they change. During one call of decoding they do not, and on a
GPU three small copies a layer cost as much time as its matrix products. The arithmetic is the node's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.functional import linear

from sft.engine.lora_node import OneNodeLinear, add_low_rank, plain_adapter


@contextmanager
def adapters_copied_once(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block, which must not train, layers that run as one node keep the copies of their matrices."""
    switched = []
    for module in model.modules():
        if type(module) is OneNodeLinear and "forward" not in vars(module):
            module.forward = _Kept(module)
            switched.append(module)
    try:
        yield
    finally:
        for module in switched:
            del module.forward


class _Kept:
    """The forward pass of one layer; it makes the copies when it first runs, and again for another dtype."""

    def __init__(self, layer: OneNodeLinear) -> None:
        self._layer, self._made = layer, {}

    def __call__(self, x: torch.Tensor, *arguments, **keywords) -> torch.Tensor:
        layer = self._layer
        name = None if arguments or keywords or torch.is_grad_enabled() else plain_adapter(layer, x)
        if name is None:
            return type(layer).forward(layer, x, *arguments, **keywords)
        if (name, x.dtype) not in self._made:
            low, high = layer.lora_A[name].weight, layer.lora_B[name].weight
            self._made[name, x.dtype] = low.to(x.dtype), torch.mul(high, layer.scaling[name]).to(x.dtype)
        low, high = self._made[name, x.dtype]
        result = linear(x, layer.base_layer.weight, layer.base_layer.bias)
        add_low_rank(result, x.reshape(-1, x.shape[-1]), low, high)
        return result
