"""Attention over a prefix tree, registered with transformers under the name ``prefix_tree``.

The model computes everything else as ever on one flat row of tokens; only attention knows that the row is a tree.
Without a tree (generation, scoring) it is transformers' own SDPA attention.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sft.head import ARCHITECTURES
from sft.tree import PrefixTree

NAME = "prefix_tree"
# A mask with four dimensions is passed on as it is, so none is built; the attention below does not read it.
NO_MASK = torch.zeros((1, 1, 1, 1), dtype=torch.bool)


def use_tree_attention(model: PreTrainedModel) -> None:
    """Register the attention and switch ``model`` to it."""
    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def can_express(model: PreTrainedModel, length_tokens: int) -> bool:
    """Whether a tree says all there is to say about the model's attention, and the model takes one."""
    return model.config.model_type in ARCHITECTURES and sees_everything(model, length_tokens)


def sees_everything(model: PreTrainedModel, length_tokens: int) -> bool:
    """Whether every layer attends to all of ``length_tokens``; a window that no row exceeds is full attention."""
    kinds = set(getattr(model.config, "layer_types", None) or ())
    window = getattr(model.config, "sliding_window", None)
    if not kinds and window is not None:  # Mistral names no kinds
        kinds = {"sliding_attention"}
    return kinds <= {"full_attention"} or (
        kinds <= {"full_attention", "sliding_attention"} and length_tokens <= window
    )


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    tree: PrefixTree | None = None,
    **keywords,
) -> tuple[torch.Tensor, None]:
    """Attention of each token to the prefix and to its own branch.

    Args:
        query: (1, heads, tokens, head size); ``key`` and ``value`` with as many or fewer heads.
        tree: how the tokens hang together; None for ordinary attention.

    Returns:
        (1, tokens, heads, head size), and no weights.
    """
    if tree is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **keywords
        )
    repeats = query.shape[1] // key.shape[1]
    settings = {"dropout_p": dropout, "scale": scaling}
    shared = tree.prefix_tokens
    prefix_key, prefix_value = repeat_kv(key[:, :, :shared], repeats), repeat_kv(value[:, :, :shared], repeats)
    parts = []
    if shared:
        attended = scaled_dot_product_attention(
            query[:, :, :shared], prefix_key, prefix_value, is_causal=True, **settings
        )
        parts.append(attended.transpose(1, 2).flatten(0, 1))
    for group in tree.groups:
        rows, width = group.shape
        branch_query = _take(query, group)
        branch_key, branch_value = repeat_kv(_take(key, group), repeats), repeat_kv(_take(value, group), repeats)
        attended = scaled_dot_product_attention(
            branch_query,
            torch.cat((prefix_key.expand(rows, -1, -1, -1), branch_key), dim=2),
            torch.cat((prefix_value.expand(rows, -1, -1, -1), branch_value), dim=2),
            attn_mask=_branch_mask(width, shared, query.device),
            **settings,
        )
        parts.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts).index_select(0, tree.order)[None], None


def _take(states: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """(1, heads, tokens, size) at the positions of (branches, width): (branches, heads, width, size)."""
    taken = states[0].transpose(0, 1).index_select(0, group.flatten())
    return taken.unflatten(0, group.shape).transpose(1, 2)


def _branch_mask(width: int, shared: int, device: torch.device) -> torch.Tensor:
    """(width, shared + width): all of the prefix, and of the branch what is not after; padding is after all."""
    causal = torch.ones((width, width), dtype=torch.bool, device=device).tril()
    return torch.cat((torch.ones((width, shared), dtype=torch.bool, device=device), causal), dim=1)
