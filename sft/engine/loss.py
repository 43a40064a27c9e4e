"""The output layer and the loss: only where there is a label, a few rows at a time, with a softmax in float32.

The logits of 150,000 tokens are the largest tensor of a training step. Here they exist for one chunk of supervised
positions only, and become the gradient at the hidden states at once (as in Liger Kernel, arXiv 2410.10989, and Cut
Cross-Entropy, arXiv 2411.09009), so that the memory of the loss grows with neither prompts nor answers.
"""

from __future__ import annotations

import torch
from accelerate.utils import extract_model_from_parallel
from torch.nn.functional import cross_entropy, linear

from sft.engine.attention import ARCHITECTURES, at_least_float32, use_packed_attention

CHUNK_LOGITS = 2**25  # logits that exist at a time: 220 positions of Qwen2.5's vocabulary, a quarter of a gigabyte


def supervised_loss(
    model: torch.nn.Module, batch: dict[str, object], supervised_tokens: torch.Tensor | int
) -> torch.Tensor:
    """Cross-entropy summed over the batch's supervised tokens, divided by ``supervised_tokens`` of the whole step.

    The output layer runs only where a supervised token is predicted; the loss is in float32 or wider.

    Args:
        model: with or without an adapter, also wrapped for several processes or compiled.
        batch: of `sft.engine.batches.Batching.collate`, its tensors on the model's device.
    """
    inputs, kept, labels = batch["inputs"], batch["kept"], batch["labels"]
    if batch["layout"] is not None:
        use_packed_attention(extract_model_from_parallel(model))
        inputs = inputs | {"layout": batch["layout"].to(labels.device)}
    head = frozen_head(model)
    if head is None:
        loss = plain_loss(model(**inputs, use_cache=False).logits[kept], labels)
    else:
        loss = chunked_loss(hidden_states(model, head, **inputs, use_cache=False)[kept], head, labels)
    return loss / supervised_tokens


def frozen_head(model: torch.nn.Module) -> torch.nn.Linear | None:
    """The output layer where the chunked loss can do without the model running it.

    None where it is trained (an adapter on ``lm_head``), where more than it makes the logits, and in a compiled model.
    """
    model = extract_model_from_parallel(model)
    if isinstance(model, torch._dynamo.OptimizedModule) or model.config.model_type not in ARCHITECTURES:
        return None
    head = model.get_output_embeddings()
    trained = any(parameter.requires_grad for parameter in head.parameters())
    return None if trained or type(head) is not torch.nn.Linear else head


def hidden_states(model: torch.nn.Module, head: torch.nn.Linear, **inputs) -> torch.Tensor:
    """What ``model`` would give ``head`` to read, (rows, kept positions, hidden size); ``head`` runs on nothing.

    The whole model is called, so that DistributedDataParallel and autocast see an ordinary forward.
    """
    taken = []

    def take(module: torch.nn.Module, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        taken.append(arguments[0])
        return (arguments[0][:, :0],)

    hook = head.register_forward_pre_hook(take)
    try:
        model(**inputs)
    finally:
        hook.remove()
    return taken[0]


def chunked_loss(states: torch.Tensor, head: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of ``head`` over ``states``, (tokens, hidden size), summed; ``head`` gets no gradient."""
    return _ChunkedLoss.apply(states.to(head.weight.dtype), head.weight, head.bias, targets)


def plain_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of ``logits``, (tokens, vocabulary), summed, in float32 or wider."""
    return cross_entropy(at_least_float32(logits), targets, reduction="sum")


class _ChunkedLoss(torch.autograd.Function):
    """The loss, with its gradient at the hidden states worked out on the way forward."""

    @staticmethod
    def forward(ctx, states, weight, bias, targets):
        loss = at_least_float32(states.new_zeros(()))
        gradient = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        size = max(1, CHUNK_LOGITS // len(weight))
        for start in range(0, len(states), size):
            part = slice(start, start + size)
            logits = at_least_float32(linear(states[part], weight, bias))
            right = targets[part, None]
            normaliser = logits.logsumexp(-1, keepdim=True)
            loss += (normaliser - logits.gather(-1, right)).sum()
            if gradient is not None:
                probabilities = logits.sub_(normaliser).exp_()
                probabilities.scatter_add_(-1, right, torch.full_like(normaliser, -1))
                gradient[part] = probabilities.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, outer):
        (gradient,) = ctx.saved_tensors
        return (gradient * outer).to(gradient.dtype), None, None, None
