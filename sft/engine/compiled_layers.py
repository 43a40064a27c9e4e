"""Decoder layers compiled one by one, for training with variable-length attention."""

from __future__ import annotations

import torch

from sft.engine.attention import use_packed_attention


def compile_layers(model: torch.nn.Module, backend: str = "inductor") -> None:
    """Compile the forward pass of every decoder layer for any number of tokens; the first step takes minutes.

    Only training uses what is compiled: evaluation hooks into the last layer, and its shapes differ at each pass. The
    model as a whole is not compiled, so the loss still runs the output layer in chunks. Without variable-length
    attention each batch would be compiled anew, because its groups have other shapes.

    Args:
        model: with or without an adapter.
        backend: of `torch.compile`.
    """
    for layer in use_packed_attention(model).base_model.layers:
        layer.forward = _in_training(layer, torch.compile(layer.forward, dynamic=True, backend=backend))


def _in_training(layer: torch.nn.Module, compiled):
    plain = layer.forward

    def forward(*arguments, **keywords):
        now = compiled if layer.training and torch.is_grad_enabled() else plain
        return now(*arguments, **keywords)

    return forward
