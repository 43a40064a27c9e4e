"""The one attention function that is registered with transformers, and what its three kernels share.

A packed forward pass puts many sequences into one flat row of tokens. The model computes that row as usual; only
attention knows which token may see which. A `Layout` tells it; the model is given one as the keyword ``layout``.
Without a layout (generation, padded batches) this function is transformers' own SDPA attention, so a model is
switched once, when it is loaded, and never back.

There is one function but three layouts, each with its own kernel, because they need different things:

- training (`sft.engine.prefix_tree`) needs gradients, and few large calls: branches of similar length together;
- scoring options (`sft.engine.option_tree`) needs a mask for the options of each row, and rows of similar length
  together;
- decoding (`sft.engine.ragged`) needs the keys and values that earlier passes have kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from peft import PeftModel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sft.engine.transfer import copied_together

NAME = "packed"  # under which transformers finds `packed_attention`
# What some models ask of attention that no layout computes, by the name of the argument; told to the user.
NOT_IN_LAYOUTS = {"softcap": "注意力的分数有上限", "s_aux": "注意力有汇点（sink）"}
QUERY_BLOCK = 512  # queries under one mask: a mask for all of a long row would grow with the square of its length
KEPT_MASK_NUMBERS = 1 << 24  # masks are kept from layer to layer up to this size, 64 MB in float32
ALIGNMENT = 8  # a fused kernel copies a mask whose rows are no multiple of so many numbers
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
        window: int | None,
    ) -> torch.Tensor:
        """Attention of one layer.

        Args:
            query: (1, heads, tokens, head size).
            key: (1, key heads, tokens, head size); the number of heads is a multiple of the number of key heads.
            value: the same shape as ``key``.
            scaling: of the scores; None for one over the square root of the head size.
            dropout: of the attention weights.
            layer: the number of the layer, for a layout that keeps keys and values.
            window: how many positions a token sees, its own included, counted in its own sequence; None for all.

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
        settings: what else transformers passes on, such as ``scaling``, ``dropout`` and ``sliding_window``.

    Returns:
        (1, tokens, heads, head size), and None in place of the attention weights.

    Raises:
        NotImplementedError: the model asks for what no layout computes; `sft.engine.trial` finds that at the start.
    """
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    for name, meaning in NOT_IN_LAYOUTS.items():
        if settings.get(name) is not None:
            raise NotImplementedError(meaning)
    if key.shape[3] != value.shape[3]:
        raise NotImplementedError("注意力的键和值大小不同")
    scaling, dropout, window = settings.get("scaling"), settings.get("dropout", 0.0), settings.get("sliding_window")
    return layout.attend(query, key, value, scaling, dropout, module.layer_idx, window), None


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


class MaskedQueries:
    """Queries of several rows, padded to one width, that see some of the keys of their own row. Made for one pass.

    Query heads that share keys stand side by side, as if they were more queries. So no key is copied, and every fused
    kernel takes them. The indices and masks are made in the first layer and kept for the others.

    Args:
        flat: (rows, width) where the queries stand in the flat row; a shorter row repeats its last one.
        sees: called with a slice of the width, a window and ``indices``; gives (rows or 1, slice, keys), true where a
            query sees a key. Keys at the end that none of the slice sees may be left out. The number of keys is a
            multiple of `ALIGNMENT`, and each query sees at least one.
        longest: the length of the longest row. A window that is not shorter hides nothing, and is left out.
        indices: tensors that ``sees`` needs, on the same device as ``flat``.
    """

    def __init__(
        self, flat: torch.Tensor, sees: Callable[..., torch.Tensor], longest: int, *indices: torch.Tensor
    ) -> None:
        self.tensors = [flat, *indices]
        self._sees, self._longest = sees, longest
        self._made: dict[tuple, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def attend(
        self,
        query: torch.Tensor,
        result: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> None:
        """Attention of these queries, written to their places in ``result``.

        Args:
            query: (tokens, heads, head size), contiguous, of the whole flat row.
            result: like ``query``.
            keys: (rows, key heads, keys, head size); ``values`` alike.
            window: see `Layout`.
        """
        window = None if window is None or window >= self._longest else window
        heads, size = keys.shape[1], keys.shape[3]
        repeats = query.shape[1] // heads
        query, result = query.view(-1, repeats * size), result.view(-1, repeats, size)
        for at, mask in self._blocks(heads, repeats, window, query.dtype):
            queries = query.index_select(0, at.flatten()).view(*at.shape[:2], -1, size)
            seen = mask.shape[-1]
            attended = scaled_dot_product_attention(
                queries, keys[:, :, :seen], values[:, :, :seen], attn_mask=mask, scale=scaling
            )
            result[at] = attended.unflatten(2, (-1, repeats))

    def _blocks(
        self, heads: int, repeats: int, window: int | None, dtype: torch.dtype
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        kind = heads, repeats, window, dtype
        if kind in self._made:
            yield from self._made[kind]
            return
        made, numbers = [], 0
        for block in self._make_blocks(heads, repeats, window, dtype):
            yield block
            numbers += block[1].numel()
            if numbers <= KEPT_MASK_NUMBERS:
                made.append(block)
        if numbers <= KEPT_MASK_NUMBERS:
            self._made[kind] = made

    def _make_blocks(
        self, heads: int, repeats: int, window: int | None, dtype: torch.dtype
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """For a part of the width at a time: (rows, key heads, part) where the queries of one key head stand, counted
        in key heads; and (rows or 1, 1, part × repeats, keys), what is added to their scores."""
        flat, *indices = self.tensors
        head = torch.arange(heads, device=flat.device)[:, None]
        step = max(1, QUERY_BLOCK // repeats)
        for start in range(0, flat.shape[1], step):
            part = slice(start, min(start + step, flat.shape[1]))
            sees = self._sees(part, window, *indices)
            mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, -torch.inf)
            mask = mask[:, :, None].expand(-1, -1, repeats, -1).flatten(1, 2)
            yield flat[:, None, part] * heads + head, mask[:, None]


def move_together(
    queries: Sequence[MaskedQueries], tensors: Sequence[torch.Tensor], device: torch.device
) -> list[torch.Tensor]:
    """Move what a pass needs to ``device`` in one copy: ``queries``, changed in place, and ``tensors``, returned."""
    own = [tensor for some in queries for tensor in some.tensors]
    moved = iter(copied_together([*own, *tensors], device))
    for some in queries:
        some.tensors = [next(moved) for _ in some.tensors]
    return list(moved)


def aligned(length: int) -> int:
    """``length`` rounded up to a multiple of `ALIGNMENT`."""
    return -(-length // ALIGNMENT) * ALIGNMENT


def by_token(states: torch.Tensor) -> torch.Tensor:
    """(1, heads, tokens, size) as (tokens, heads, size), contiguous. Projections come that way: nothing is copied."""
    return states[0].transpose(0, 1).contiguous()


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
