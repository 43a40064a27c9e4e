"""The loss: the output layer runs only at supervised positions, one chunk of them at a time.

With a vocabulary of 150,000 tokens, the logits are the largest tensor of a training step. Here they exist for one
chunk of supervised positions, and are turned at once into the gradient at the hidden states (as in Liger Kernel, arXiv
2410.10989, and Cut Cross-Entropy, arXiv 2411.09009). So the memory of the loss does not grow with prompts or answers.
"""

from __future__ import annotations

import torch
from accelerate.utils import extract_model_from_parallel
from torch.nn.functional import cross_entropy, linear, pad

from sft.engine.attention import at_least_float32, use_packed_attention
from sft.engine.served import PLAIN, Logits, served_by
from sft.engine.sizes import compiles_each_size, filled_up

CHUNK_LOGITS = 2**25  # logits of one chunk: 220 positions with Qwen2.5's vocabulary, 0.3 GB with their gradient


def supervised_loss(
    model: torch.nn.Module, batch: dict[str, object], supervised_tokens: torch.Tensor | int
) -> torch.Tensor:
    """Cross-entropy summed over the supervised tokens of a batch, divided by ``supervised_tokens``.

    Args:
        model: with or without an adapter; may be compiled or wrapped for several processes.
        batch: from `sft.engine.batches.Batching.collate`, on the model's device.
        supervised_tokens: the number of them in the whole optimizer step.

    Returns:
        A scalar, float32 or wider.
    """
    inputs, kept, labels = batch["inputs"], batch["kept"], batch["labels"]
    if batch["layout"] is not None:
        use_packed_attention(extract_model_from_parallel(model))
        inputs = inputs | {"layout": batch["layout"]}
    head = frozen_head(model)
    if head is None:
        loss = plain_loss(model(**inputs, use_cache=False).logits[kept], labels)
    else:
        logits = served_by(extract_model_from_parallel(model)).logits
        loss = chunked_loss(hidden_states(model, head, **inputs, use_cache=False)[kept], head, labels, logits)
    return loss / supervised_tokens


def frozen_head(model: torch.nn.Module) -> torch.nn.Linear | None:
    """The output layer, if the loss may run it instead of the model.

    Returns:
        None if the layer is trained (an adapter on ``lm_head``), and where `plain_head` is.
    """
    head = plain_head(extract_model_from_parallel(model))
    trained = head is not None and any(parameter.requires_grad for parameter in head.parameters())
    return None if trained else head


def plain_head(model: torch.nn.Module) -> torch.nn.Linear | None:
    """The output layer, if it may be run by itself.

    Returns:
        None if it is more than a linear layer (an adapter), if the model does more than scale and cap its output to
        make logits, and if the model is compiled.
    """
    if isinstance(model, torch._dynamo.OptimizedModule) or served_by(model).logits is None:
        return None
    head = model.get_output_embeddings()
    return head if type(head) is torch.nn.Linear else None


def hidden_states(model: torch.nn.Module, head: torch.nn.Linear, **inputs) -> torch.Tensor:
    """The input of ``head``: (rows, kept positions, hidden size). ``head`` itself gets an empty tensor.

    The whole model is called, so that DistributedDataParallel and autocast see an ordinary forward pass.
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


def chunked_loss(
    states: torch.Tensor, head: torch.nn.Linear, targets: torch.Tensor, logits: Logits | None = None
) -> torch.Tensor:
    """Summed cross-entropy of ``head`` at ``states`` (tokens, hidden size); ``head`` gets no gradient.

    Args:
        logits: how the logits come from what ``head`` gives; None: they are what it gives.
    """
    return _ChunkedLoss.apply(states.to(head.weight.dtype), head.weight, head.bias, targets, logits or PLAIN)


def plain_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy of ``logits`` (tokens, vocabulary), in float32 or wider."""
    return cross_entropy(at_least_float32(logits), targets, reduction="sum")


class _ChunkedLoss(torch.autograd.Function):
    """The loss in chunks; the forward pass also computes the gradient at the hidden states."""

    @staticmethod
    def forward(ctx, states, weight, bias, targets, rule):
        loss = at_least_float32(states.new_zeros(()))
        gradient = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        most = max(1, CHUNK_LOGITS // len(weight))
        chunks = max(1, -(-len(states) // most))
        size = -(-len(states) // chunks) or 1  # chunks of equal size: fewer logits at once than a full one and a rest
        for start in range(0, len(states), size):
            part = slice(start, start + size)
            here = len(states[part])
            inputs, right = states[part], targets[part, None]
            if compiles_each_size(states.device, states.dtype):
                unused = min(most, filled_up(here)) - here
                inputs, right = (pad(tensor, (0, 0, 0, unused)) for tensor in (inputs, right))
            logits = rule.of(at_least_float32(linear(inputs, weight, bias)))
            slope = None if gradient is None or rule == PLAIN else rule.slope(logits)
            normaliser = logits.logsumexp(-1, keepdim=True)
            loss += (normaliser - logits.gather(-1, right))[:here].sum()
            if gradient is not None:
                probabilities = logits.sub_(normaliser).exp_()
                probabilities.scatter_add_(-1, right, torch.full_like(normaliser, -1))
                if slope is not None:
                    probabilities.mul_(slope)
                gradient[part] = (probabilities.to(weight.dtype) @ weight)[:here]
                del probabilities
            del logits  # before the next chunk has its own
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, outer):
        (gradient,) = ctx.saved_tensors
        return (gradient * outer).to(gradient.dtype), None, None, None, None
