"""A LoRA layer as one node of autograd: the same function as PEFT's, with fewer and smaller tensors.

PEFT keeps the adapter in float32. Its layer copies the input to float32, multiplies there, scales, adds into a float32
result and copies that back, each time over all tokens; and autograd keeps the float32 copies for the backward pass.
At 16 bits these copies cost about as much as the model's own matrix products. Here only the two small matrices A and B
are copied, to the dtype of the base, and the low-rank part is added into the base's own output by one matrix product.

A and B are copied in each forward pass, not kept from pass to pass. They are small, and so nothing can be out of date:
not after an optimizer step, not after a checkpoint was read, not where several processes share the weights (FSDP).
Their gradients are in their own dtype, float32, as with PEFT.
"""

from __future__ import annotations

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch.nn.functional import linear


def use_lora_node(model: torch.nn.Module) -> None:
    """Let the ordinary LoRA layers of ``model`` run as one node; does nothing to a layer that has been switched.

    Parameters, their names, saving, loading and merging stay PEFT's. Layers on a quantised base are other classes of
    PEFT's and stay as they are.
    """
    for module in model.modules():
        if type(module) is LoraLinear:
            module.__class__ = OneNodeLinear


class OneNodeLinear(LoraLinear):
    """PEFT's LoRA layer; where it is one plain linear layer with one plain adapter, it runs as one node."""

    def forward(self, x: torch.Tensor, *arguments, **keywords) -> torch.Tensor:
        """The base layer and the adapter at ``x`` (…, inputs). Returns (…, outputs), in the dtype of the base."""
        name = None if arguments or keywords else plain_adapter(self, x)
        if name is None:
            return super().forward(x, *arguments, **keywords)
        base, low, high = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
        return _LoraNode.apply(x, base.weight, base.bias, low, high, self.scaling[name])


def plain_adapter(layer: LoraLinear, x: torch.Tensor) -> str | None:
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
    return name if _one_dtype(x, base) else None


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


def add_low_rank(
    result: torch.Tensor, rows: torch.Tensor, low: torch.Tensor, scaled_high: torch.Tensor
) -> torch.Tensor:
    """Add the low-rank part at ``rows`` (tokens, inputs) into ``result`` (…, outputs), in place.

    Returns:
        ``rows`` times Aᵀ, (tokens, rank).
    """
    inner = rows @ low.T
    result.view(-1, result.shape[-1]).addmm_(inner, scaled_high.T)
    return inner


class _LoraNode(torch.autograd.Function):
    """y = x Wᵀ + bias + scaling · (x Aᵀ) Bᵀ, where only x, A and B have gradients.

    x: (…, inputs), W: (outputs, inputs), A: (rank, inputs), B: (outputs, rank). The scaling is multiplied into the
    copy of B, so no tensor as long as the tokens is scaled.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, low, high, scaling):
        result = linear(x, weight, bias)
        rows = x.reshape(-1, x.shape[-1])
        low_copy = low.to(x.dtype)
        scaled_high = torch.mul(high, scaling, out=torch.empty_like(high, dtype=x.dtype))
        inner = add_low_rank(result, rows, low_copy, scaled_high)
        ctx.save_for_backward(rows, inner, weight, low_copy, scaled_high)
        ctx.shape, ctx.scaling, ctx.dtypes = x.shape, scaling, (low.dtype, high.dtype)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        rows, inner, weight, low, scaled_high = ctx.saved_tensors
        gradient = gradient.reshape(-1, gradient.shape[-1])
        wants_input, _, _, wants_low, wants_high, _ = ctx.needs_input_grad
        of_inner = gradient @ scaled_high
        of_input = of_low = of_high = None
        if wants_input:
            of_input = (gradient @ weight).addmm_(of_inner, low).view(ctx.shape)
        if wants_low:
            of_low = (of_inner.T @ rows).to(ctx.dtypes[0])
        if wants_high:
            of_high = (gradient.T @ inner).to(ctx.dtypes[1]).mul_(ctx.scaling)
        return of_input, None, None, of_low, of_high, None
