"""One forward pass of the base model over a flat row of tokens, without gradients: for scoring and decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from sft.engine.attention import NO_MASK, Layout


@torch.no_grad()
def hidden_states_at(
    base: PreTrainedModel,
    token_ids: Sequence[int],
    position_ids: Sequence[int],
    layout: Layout,
    places: Sequence[int],
) -> torch.Tensor:
    """Last hidden states at some places of a flat row: (places, hidden size).

    Args:
        base: after `sft.engine.attention.use_packed_attention`.
        position_ids: of each token, its position in its own sequence.
        layout: which token sees which.
        places: indices into ``token_ids``; none is allowed.
    """
    device = base.device
    # One place at least: bitsandbytes' kernels for a CPU end the process on a tensor without rows.
    wanted = torch.tensor(places or [0], dtype=torch.long, device=device)
    with last_layer_at(base, wanted):
        hidden = base.base_model(
            input_ids=torch.tensor([token_ids], device=device),
            position_ids=torch.tensor([position_ids], device=device),
            attention_mask=NO_MASK.to(device),
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
    layer = base.base_model.layers[-1]
    hooks = [layer.register_forward_pre_hook(note_total, with_kwargs=True)]
    for module in (layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp):
        hooks += [module.register_forward_pre_hook(only_there), module.register_forward_hook(zero_elsewhere)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
