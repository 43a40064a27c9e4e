"""One forward pass of the base model over a flat row of tokens, without gradients: for scoring and decoding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from sft.engine.attention import Layout


@torch.no_grad()
def hidden_states_at(
    base: PreTrainedModel,
    token_ids: torch.Tensor,
    position_ids: torch.Tensor,
    layout: Layout,
    places: torch.Tensor,
) -> torch.Tensor:
    """Last hidden states at some places of a flat row: (places, hidden size).

    Everything is on the model's device: the host copies nothing and waits for nothing.

    Args:
        base: after `sft.engine.attention.use_packed_attention`.
        token_ids: (tokens,).
        position_ids: (tokens,) of each token, its position in its own sequence.
        layout: which token sees which.
        places: (places,) indices into ``token_ids``; none is allowed.
    """
    no_mask = token_ids.new_zeros((1, 1, 1, 1), dtype=torch.bool)  # see `sft.engine.attention.NO_MASK`
    # One place at least: bitsandbytes' kernels for a CPU end the process on a tensor without rows.
    wanted = places if len(places) else places.new_zeros(1)
    with last_layer_at(base, wanted):
        hidden = base.base_model(
            input_ids=token_ids[None],
            position_ids=position_ids[None],
            attention_mask=no_mask,
            use_cache=False,
            layout=layout,
        ).last_hidden_state[0]
    return hidden.index_select(0, wanted)[: len(places)]


@contextmanager
def last_layer_at(base: PreTrainedModel, places: torch.Tensor) -> Iterator[None]:
    """Inside the block, the last layer runs its query and output projections and its MLP only at ``places``.

    Keys and values are computed for all tokens, because others attend to them. Elsewhere the skipped outputs are zero
    and the layer's output is wrong, so read it only at ``places``. Done with hooks, so that adapters on these modules
    still run.
    """

    def only_there(module: torch.nn.Module, inputs: tuple) -> tuple:
        return (inputs[0].index_select(1, places),)

    def zero_elsewhere(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        everywhere = output.new_zeros((1, total[0], output.shape[2]))
        return everywhere.index_copy_(1, places, output)

    def note_total(module: torch.nn.Module, inputs: tuple, keywords: dict) -> None:
        total.append((inputs[0] if inputs else keywords["hidden_states"]).shape[1])

    total: list[int] = []
    layer, modules = _skippable(base)
    hooks = [layer.register_forward_pre_hook(note_total, with_kwargs=True)] if modules else []
    for module in modules:
        hooks += [module.register_forward_pre_hook(only_there), module.register_forward_hook(zero_elsewhere)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _skippable(base: PreTrainedModel) -> tuple[torch.nn.Module | None, list[torch.nn.Module]]:
    """The last layer and its modules that may run at a few places only; none where layers are built otherwise."""
    layers = getattr(base.base_model, "layers", None)
    layer = layers[-1] if isinstance(layers, torch.nn.ModuleList) and len(layers) else None
    attention = getattr(layer, "self_attn", None)
    modules = [getattr(attention, "q_proj", None), getattr(attention, "o_proj", None), getattr(layer, "mlp", None)]
    return (None, []) if None in modules else (layer, modules)
