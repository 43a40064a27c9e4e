"""Variable-length attention without gradients: for decoding, with a cache, and for the prompts of scoring.

It needs no mask and no padding: one kernel attends to all rows. It runs on GPUs from Ampere on, in half precision.
Where it does not, `sft.engine.attention.MaskedQueries` does the same.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import PreTrainedModel

from sft.engine.prefix_tree import CAUSAL, agrees_with_groups, vectors_agree

logger = logging.getLogger(__name__)

_tried: dict[tuple, bool] = {}


class CachedSegments(NamedTuple):
    """New tokens of some rows, which see what the cache keeps of their row up to themselves.

    Attributes:
        query_offsets: (rows + 1,) int32: where each row begins among the new tokens.
        key_offsets: (rows + 1,) int32: where each row's slot begins in the cache, and where the last one ends.
        seen: (rows,) int32: how many tokens each row has, the new ones included.
        longest_queries: the most new tokens of a row.
        longest_keys: the largest number in ``seen``.
    """

    query_offsets: torch.Tensor
    key_offsets: torch.Tensor
    seen: torch.Tensor
    longest_queries: int
    longest_keys: int

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None, window: int | None
    ) -> torch.Tensor:
        """Attention of the new tokens.

        Args:
            query: (tokens, heads, head size), contiguous.
            keys: (slots × capacity, key heads, head size); ``values`` alike.
            window: see `sft.engine.attention.Layout`.

        Returns:
            The shape of ``query``.
        """
        hides = window is not None and window < self.longest_keys
        return varlen_attn(
            query,
            keys,
            values,
            self.query_offsets,
            self.key_offsets,
            self.longest_queries,
            self.longest_keys,
            scale=scaling,
            window_size=(window - 1, 0) if hides else CAUSAL,
            enable_gqa=keys.shape[1] != query.shape[1],
            seqused_k=self.seen,
        )


def cached_segments(
    slots: Sequence[int], places: Sequence[int], counts: Sequence[int], capacity: int
) -> CachedSegments:
    """The segments, on the CPU, of ``counts`` new tokens from ``places`` on in ``slots``, which ascend."""
    seen = [place + count for place, count in zip(places, counts, strict=True)]
    keys = [*(slot * capacity for slot in slots), (slots[-1] + 1) * capacity]
    offsets = (torch.tensor(numbers, dtype=torch.int32) for numbers in ([0, *accumulate(counts)], keys, seen))
    return CachedSegments(*offsets, max(counts), max(seen))


def segments_work(base: PreTrainedModel) -> bool:
    """Whether variable-length attention is right for this model on its device: tried once, and only on a GPU."""
    device = base.device
    if device.type != "cuda":
        return False
    config = base.config.get_text_config()
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    window = getattr(config, "sliding_window", None)
    kind = device, base.dtype, heads, key_heads, size, window is None
    if kind not in _tried:
        _tried[kind] = agrees_with_groups(base, device) and _agrees_with_a_cache(
            *kind[:5], windowed=window is not None
        )
    return _tried[kind]


@torch.no_grad()
def _agrees_with_a_cache(
    device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, size: int, windowed: bool
) -> bool:
    """Whether two rows in slots 0 and 2 of three get what plain attention in float32 gives them."""
    capacity, slots, places, counts = 24, (0, 2), (9, 3), (1, 6)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn((sum(counts), heads, size), generator=generator)
    kept = torch.randn((2, 3 * capacity, key_heads, size), generator=generator)
    segments = cached_segments(slots, places, counts, capacity)
    there = [tensor.to(device) for tensor in segments[:3]]
    segments = CachedSegments(*there, *segments[3:])
    for window in (None, 4) if windowed else (None,):
        try:
            keys, values = kept.to(device, dtype)
            found = segments.attend(query.to(device, dtype), keys, values, size**-0.5, window).float().cpu()
        except (RuntimeError, ValueError) as error:
            logger.debug("变长注意力：%s", error)
            return False
        right = []
        for slot, place, own in zip(slots, places, query.split(counts), strict=True):
            seen = place + len(own)
            keys, values = (
                states[slot * capacity :][:seen].transpose(0, 1).repeat_interleave(heads // key_heads, 0)
                for states in kept
            )
            scores = own.transpose(0, 1) @ keys.mT * size**-0.5
            later = torch.arange(seen) - torch.arange(place, seen)[:, None]
            hidden = later > 0 if window is None else (later > 0) | (later <= -window)
            right.append((scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values).transpose(0, 1))
        if not vectors_agree(found, torch.cat(right)):
            return False
    return True
