"""A LoRA layer as one node of autograd: the same function as PEFT's, with fewer and smaller tensors.

PEFT keeps the adapter in float32. Its layer copies the input to float32, multiplies there, scales, adds into a float32
result and copies that back, each time over all tokens; and autograd keeps the float32 copies for the backward pass.
At 16 bits these copies cost about as much as the model's own matrix products. Here only the two small matrices A and B
are copied, to the dtype of the base, and the low-rank part is added into the base's own output by one matrix product.

The copies of all layers are made together, in a few operations, inside `adapters_copied`; outside it each layer makes
its own in each pass. Gradients are in the dtype of A and B, float32, as with PEFT.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch.nn.functional import linear


class Copied(NamedTuple):
    """The matrices of one adapter of a layer, as the node computes with them.

    Attributes:
        name: of the adapter.
        low: A, (rank, inputs), in the dtype of the base.
        scaled_high: B times the scaling, (outputs, rank), in the dtype of the base.
    """

    name: str
    low: torch.Tensor
    scaled_high: torch.Tensor


def use_lora_node(model: torch.nn.Module) -> None:
    """Let the ordinary LoRA layers of ``model`` run as one node; does nothing to a layer that has been switched.

    Parameters, their names, saving, loading and merging stay PEFT's. Layers on a quantised base are other classes of
    PEFT's and stay as they are.
    """
    for module in model.modules():
        if type(module) is LoraLinear:
            module.__class__ = OneNodeLinear


class OneNodeLinear(LoraLinear):
    """PEFT's LoRA layer; where it is one plain linear layer with one plain adapter, it runs as one node.

    Attributes:
        copied: the matrices of its adapter inside `adapters_copied`, None outside.
    """

    copied: Copied | None = None

    def forward(self, x: torch.Tensor, *arguments, **keywords) -> torch.Tensor:
        """The base layer and the adapter at ``x`` (…, inputs). Returns (…, outputs), in the dtype of the base."""
        name = None if arguments or keywords else plain_adapter(self)
        if name is None or not _one_dtype(x, self.base_layer):
            return super().forward(x, *arguments, **keywords)
        copied = self.copied if _is_of_use(self.copied, name, x) else _copies([(self, name)])[0]
        base = self.base_layer
        if torch.is_grad_enabled():
            return _LoraNode.apply(x, base.weight, base.bias, copied.low, copied.scaled_high)
        result = linear(x, base.weight, base.bias)
        _add_low_rank(result, x.reshape(-1, x.shape[-1]), copied.low, copied.scaled_high)
        return result


@contextmanager
def adapters_copied(layers: Sequence[OneNodeLinear]) -> Iterator[None]:
    """Inside the block ``layers`` share copies of their matrices, all made at its beginning.

    The block is one step of training, forward and backward pass, or any number of passes without gradients. In it the
    adapters must not change. Outside it, a third of the launches of a layer in a step of training are for copies.

    Args:
        layers: from `one_node_layers`.
    """
    adapters = [(layer, name) for layer in layers if (name := plain_adapter(layer)) is not None]
    for (layer, _), copied in zip(adapters, _copies(adapters), strict=True):
        layer.copied = copied
    try:
        yield
    finally:
        for layer, _ in adapters:
            layer.copied = None


def one_node_layers(model: torch.nn.Module) -> list[OneNodeLinear]:
    """The layers of ``model`` that can run as one node."""
    return [module for module in model.modules() if type(module) is OneNodeLinear]


def _is_of_use(copied: Copied | None, name: str, x: torch.Tensor) -> bool:
    """Whether the copies are of this adapter and dtype, and lead gradients to it where gradients are computed."""
    if copied is None or copied.name != name or copied.low.dtype != x.dtype:
        return False
    return copied.scaled_high.requires_grad or not torch.is_grad_enabled()


def _copies(adapters: Sequence[tuple[OneNodeLinear, str]]) -> list[Copied]:
    """The copies for adapters, each a layer with the name of its adapter; in the dtype of the first one's base."""
    if not adapters:
        return []
    names = [name for _, name in adapters]
    lows = [layer.lora_A[name].weight for layer, name in adapters]
    highs = [layer.lora_B[name].weight for layer, name in adapters]
    scalings = [layer.scaling[name] for layer, name in adapters]
    made = _Copies.apply(adapters[0][0].base_layer.weight.dtype, scalings, *lows, *highs)
    return list(map(Copied, names, made[: len(lows)], made[len(lows) :]))


def plain_adapter(layer: LoraLinear) -> str | None:
    """The name of the layer's adapter if the node computes all that PEFT's forward would; None if it does not.

    It does not for adapters that are off, merged, several, or of another kind (DoRA and its like, a bias of its own),
    for dropout in training, for a base that is trained or not a plain linear layer, and where somebody hooks into
    the modules inside, whose forward the node does not call.
    """
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1 or layer.fan_in_fan_out:
        return None
    name = layer.active_adapters[0]
    if name not in layer.lora_A or name in layer.lora_variant or not getattr(layer, "cast_input_dtype_enabled", True):
        return None
    base, low, high, dropout = layer.base_layer, layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    if not (_is_plain(base) and _is_plain(low) and _is_plain(high)) or low.bias is not None or high.bias is not None:
        return None
    if not isinstance(dropout, torch.nn.Identity) and dropout.training and getattr(dropout, "p", 1.0) > 0:
        return None
    if base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad):
        return None
    return name


def _is_plain(module: torch.nn.Module) -> bool:
    """Whether ``module`` is a linear layer and calling it does nothing else."""
    hooked = module._forward_pre_hooks or module._forward_hooks or module._backward_hooks or module._backward_pre_hooks
    return type(module) is torch.nn.Linear and not hooked and "forward" not in vars(module)


def _one_dtype(x: torch.Tensor, base: torch.nn.Linear) -> bool:
    """Whether input and base have one floating-point dtype, and autocast would not change it."""
    if x.dtype != base.weight.dtype or not x.is_floating_point():
        return False
    kind = x.device.type
    return not torch.is_autocast_enabled(kind) or torch.get_autocast_dtype(kind) == x.dtype


def _add_low_rank(
    result: torch.Tensor, rows: torch.Tensor, low: torch.Tensor, scaled_high: torch.Tensor
) -> torch.Tensor:
    """Add the low-rank part at ``rows`` (tokens, inputs) into ``result`` (…, outputs), in place.

    Returns:
        ``rows`` times Aᵀ, (tokens, rank).
    """
    inner = rows @ low.T
    result.view(-1, result.shape[-1]).addmm_(inner, scaled_high.T)
    return inner


class _Copies(torch.autograd.Function):
    """The matrices A of some layers, in one dtype, and their matrices B times the scalings, in that dtype.

    All are copied in a few operations, and so are their gradients on the way back.
    """

    @staticmethod
    def forward(ctx, dtype, scalings, *matrices):
        ctx.set_materialize_grads(False)  # a layer may not have run
        ctx.scalings, ctx.dtypes = scalings, [matrix.dtype for matrix in matrices]
        count = len(scalings)
        lows, scaled_highs = list(matrices[:count]), torch._foreach_mul(matrices[count:], scalings)
        return tuple(_all_in([*lows, *scaled_highs], [dtype] * len(matrices)))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *gradients):
        there = [index for index, gradient in enumerate(gradients) if gradient is not None]
        found = _all_in([gradients[index] for index in there], [ctx.dtypes[index] for index in there])
        count = len(ctx.scalings)
        highs = [
            (gradient, ctx.scalings[index - count])
            for index, gradient in zip(there, found, strict=True)
            if index >= count
        ]
        if highs:
            torch._foreach_mul_([gradient for gradient, _ in highs], [scaling for _, scaling in highs])
        result = dict(zip(there, found, strict=True))
        return None, None, *(result.get(index) for index in range(len(gradients)))


def _all_in(tensors: Sequence[torch.Tensor], dtypes: Sequence[torch.dtype]) -> list[torch.Tensor]:
    """Copies of ``tensors`` in ``dtypes``."""
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor, dtype in zip(tensors, dtypes, strict=True)]
    if copies:
        torch._foreach_copy_(copies, tensors)
    return copies


class _LoraNode(torch.autograd.Function):
    """y = x Wᵀ + bias + (x Aᵀ) Bᵀ, where only x, A and B have gradients; the scaling is in B.

    x: (…, inputs), W: (outputs, inputs), A: (rank, inputs), B: (outputs, rank). All are of one dtype.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, low, scaled_high):
        result = linear(x, weight, bias)
        rows = x.reshape(-1, x.shape[-1])
        inner = _add_low_rank(result, rows, low, scaled_high)
        ctx.save_for_backward(rows, inner, weight, low, scaled_high)
        ctx.shape = x.shape
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        rows, inner, weight, low, scaled_high = ctx.saved_tensors
        gradient = gradient.reshape(-1, gradient.shape[-1])
        wants_input, _, _, wants_low, wants_high = ctx.needs_input_grad
        of_inner = gradient @ scaled_high
        of_input = (gradient @ weight).addmm_(of_inner, low).view(ctx.shape) if wants_input else None
        of_low = of_inner.T @ rows if wants_low else None
        of_high = gradient.T @ inner if wants_high else None
        return of_input, None, None, of_low, of_high
