"""The one attention function that is registered with transformers, and what its three kernels share.

A packed forward pass puts many sequences into one flat row of tokens. The model computes that row as usual; only
attention knows which token may see which. A `Layout` tells it; the model is given one as the keyword ``layout``.
Without a layout (generation, padded batches) this function is transformers' own SDPA attention, so a model is
switched once, when it is loaded, and never back.

There is one function but three layouts, each with its own kernel, because they need different things:

- training (`sft.engine.prefix_tree`) needs gradients, and few large calls: branches of similar length together;
- scoring options (`sft.engine.option_tree`) needs a mask, but only for the last few positions of each row: a mask over
  the whole row would grow with the square of its length;
- decoding (`sft.engine.ragged`) needs the keys and values that earlier passes have kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from peft import PeftModel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "packed"  # under which transformers finds `packed_attention`
# Model types that pass ``layout`` on to attention, and whose logits are the output layer's, neither scaled nor capped.
ARCHITECTURES = ("qwen2", "qwen3", "llama", "mistral")
# transformers passes a mask of four dimensions on as it is, so it builds none. No layout reads it.
NO_MASK = torch.zeros((1, 1, 1, 1), dtype=torch.bool)


class Layout(Protocol):
    """Which token of a flat row may see which, and the kernel that computes attention accordingly."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        dropout: float,
        layer: int,
    ) -> torch.Tensor:
        """Attention of one layer.

        Args:
            query: (1, heads, tokens, head size).
            key: (1, key heads, tokens, head size); the number of heads is a multiple of the number of key heads.
            value: the same shape as ``key``.
            scaling: of the scores; None for one over the square root of the head size.
            dropout: of the attention weights.
            layer: the number of the layer, for a layout that keeps keys and values.

        Returns:
            (1, tokens, heads, head size).
        """


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    layout: Layout | None = None,
    **settings,
) -> tuple[torch.Tensor, None]:
    """What ``layout`` computes; transformers' SDPA attention without one.

    Args:
        settings: what else transformers passes on, such as ``scaling`` and ``dropout``.

    Returns:
        (1, tokens, heads, head size), and None in place of the attention weights.
    """
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    scaling, dropout = settings.get("scaling"), settings.get("dropout", 0.0)
    return layout.attend(query, key, value, scaling, dropout, module.layer_idx), None


def mask_without_looking(
    *places, attention_mask: torch.Tensor | None = None, allow_is_causal_skip: bool = True, **settings
) -> torch.Tensor | None:
    """transformers' mask for SDPA, for padded batches.

    transformers looks first whether a mask is needed at all. In training on a GPU that would make the host wait twice
    a batch, so there the mask is always made.
    """
    on_gpu = attention_mask is not None and attention_mask.device.type != "cpu"
    skip = allow_is_causal_skip and not (on_gpu and torch.is_grad_enabled())
    return sdpa_mask(*places, attention_mask=attention_mask, allow_is_causal_skip=skip, **settings)


def use_packed_attention(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Switch a model to `packed_attention`; does nothing if that was done before.

    `sft.model.loading.load_base` calls it. So does everything that hands a layout to a model: a model that was made in
    another way would ignore the layout and compute something else without a word.

    Returns:
        The base model (under the adapter, if there is one).
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if base.config._attn_implementation != NAME:
        AttentionInterface.register(NAME, packed_attention)
        AttentionMaskInterface.register(NAME, mask_without_looking)
        base.set_attn_implementation(NAME)
    return base


def can_express(config: PreTrainedConfig, length_tokens: int) -> bool:
    """Whether a layout describes all of this model's attention, for sequences of up to ``length_tokens``."""
    return config.model_type in ARCHITECTURES and _sees_everything(config, length_tokens)


def _sees_everything(config: PreTrainedConfig, length_tokens: int) -> bool:
    """Whether every layer attends to all of ``length_tokens``; a window that no row exceeds is full attention."""
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if not kinds and window is not None:  # Mistral's config has a window but no layer types
        kinds = {"sliding_attention"}
    return kinds <= {"full_attention"} or (
        kinds <= {"full_attention", "sliding_attention"} and length_tokens <= window
    )


# ---- what the kernels share ----


def common_prefix_tokens(sequences: Sequence[Sequence[int]], own: int = 0) -> int:
    """How many tokens all sequences begin with; 0 for a single sequence, which shares nothing.

    Args:
        own: how many tokens at the end of each sequence never count as shared. Training shares whole prompts (0), as
            each row has an answer to go on with. Scoring and decoding keep one (1), as the answer is predicted from a
            row's own last token.
    """
    if len(sequences) < 2:
        return 0
    first, last = min(sequences), max(sequences)  # of sorted sequences, these two differ first
    shared, most = 0, min(map(len, sequences)) - own
    while shared < most and first[shared] == last[shared]:
        shared += 1
    return shared


def grouped_query_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    dropout: float = 0.0,
    **mask,
) -> torch.Tensor:
    """torch's attention where several query heads share one key head; ``mask``: ``attn_mask`` or ``is_causal``."""
    if query.device.type != "cpu":  # no fused kernel on a GPU takes both grouped heads and a mask
        repeats = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
    grouped = key.shape[1] != query.shape[1]
    return scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, scale=scaling, enable_gqa=grouped, **mask
    )


def take(states: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """(1, heads, tokens, size) at the positions in ``group`` (rows, width): (rows, heads, width, size)."""
    taken = states[0].transpose(0, 1).index_select(0, group.flatten())
    return taken.unflatten(0, group.shape).transpose(1, 2)


def in_order(groups: Sequence[torch.Tensor], order: torch.Tensor) -> torch.Tensor:
    """The reverse of `take`: groups of (rows, heads, width, size) put back in order, (1, tokens, heads, size).

    Args:
        order: (tokens,) where each token stands in the groups, flattened to (rows × width) and concatenated.
    """
    flat = [group.transpose(1, 2).flatten(0, 1) for group in groups]
    return torch.cat(flat).index_select(0, order)[None]


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision as float32; wider numbers as they are. For softmax, which needs the digits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
