"""Passes over many rows at once, each with as many new tokens as it has, against keys and values kept from before.

The new tokens of all rows stand in one flat row, so that no matrix is multiplied with padding; attention alone knows
which row they belong to. Registered with transformers under the name ``ragged``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from sft.engine.attention import grouped_query_attention, in_order, take
from sft.engine.forward import hidden_states_at

QUERY_BLOCK_TOKENS = 512  # of a long row at a time: no mask is the square of a row
GROWTH_TOKENS = 64


class Feed(NamedTuple):
    """New tokens of one row: ``token_ids`` go to the places from ``place`` on, in the row's slot of the cache."""

    slot: int
    place: int
    token_ids: Sequence[int]

    @property
    def places(self) -> range:
        """Of all new tokens."""
        return range(self.place, self.place + len(self.token_ids))


class Group(NamedTuple):
    """Rows with like many new tokens, attended together.

    Attributes:
        slots: which slots of the cache, a slice where they stand side by side.
        take: (rows, width) flat positions of the new tokens; a shorter row repeats its last one.
        places: (rows, width) their places.
        seen: how many places of the cache any of them sees.
    """

    slots: slice | torch.Tensor
    take: torch.Tensor
    places: torch.Tensor
    seen: int


class RaggedPass(NamedTuple):
    """One pass: where each flat token is kept, who attends together, and how the result is put in order again."""

    cache: Cache
    slots: torch.Tensor  # (tokens,)
    places: torch.Tensor  # (tokens,)
    groups: list[Group]
    order: torch.Tensor  # (tokens,) where each flat token stands in the groups, flattened and concatenated

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        dropout: float,
        layer: int,
    ) -> torch.Tensor:
        """See `sft.engine.attention.Layout`: each new token sees what its row has kept and, causally, the new ones.

        Without dropout.
        """
        kept = self.cache.write(layer, self, key, value)
        parts = []
        for group in self.groups:
            keys, values = kept[:, group.slots, :, : group.seen]
            parts.append(_attend_in_blocks(take(query, group.take), keys, values, group.places, scaling))
        return in_order(parts, self.order)


class Cache:
    """Keys and values of ``slots`` rows, up to ``capacity`` tokens each; places written twice keep the last."""

    def __init__(self, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, capacity
        self.layers: dict[int, torch.Tensor] = {}  # of a layer: (2, slots, heads, capacity, head size)

    def write(self, layer: int, step: RaggedPass, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Keep keys and values of shape (1, heads, tokens, head size); all that is kept of the layer."""
        if layer not in self.layers:
            shape = (2, self.slots, key.shape[1], self.capacity, key.shape[3])
            self.layers[layer] = key.new_zeros(shape)
        kept = self.layers[layer]
        kept[0][step.slots, :, step.places] = key[0].transpose(0, 1)
        kept[1][step.slots, :, step.places] = value[0].transpose(0, 1)
        return kept

    def share(self, tokens: int) -> None:
        """Give every slot the first ``tokens`` of slot 0."""
        for kept in self.layers.values():
            kept[:, 1:, :, :tokens] = kept[:, :1, :, :tokens]

    def reserve(self, capacity: int) -> None:
        """Make room for ``capacity`` tokens a slot, and some to grow into."""
        if capacity > self.capacity:
            capacity += GROWTH_TOKENS
            for layer, kept in self.layers.items():
                wider = kept.new_zeros((*kept.shape[:3], capacity, kept.shape[4]))
                wider[:, :, :, : self.capacity] = kept
                self.layers[layer] = wider
            self.capacity = capacity


def run(base: PreTrainedModel, cache: Cache, feeds: Sequence[Feed], places: Sequence[int]) -> torch.Tensor:
    """Last hidden states at flat ``places`` of all new tokens in the order of ``feeds``: (places, hidden size).

    ``base``: after `sft.engine.attention.use_packed_attention`.
    """
    cache.reserve(max(feed.place + len(feed.token_ids) for feed in feeds))
    token_ids = [token_id for feed in feeds for token_id in feed.token_ids]
    position_ids = [place for feed in feeds for place in feed.places]
    return hidden_states_at(base, token_ids, position_ids, _lay_out(cache, feeds, base.device), places)


def _lay_out(cache: Cache, feeds: Sequence[Feed], device: torch.device) -> RaggedPass:
    slots, places, start = [], [], 0
    by_width: dict[int, list[tuple[int, Feed]]] = defaultdict(list)
    for feed in feeds:
        count = len(feed.token_ids)
        slots += [feed.slot] * count
        places += feed.places
        by_width[(count - 1).bit_length()].append((start, feed))
        start += count
    order = torch.empty(start, dtype=torch.long)
    groups, offset = [], 0
    for members in by_width.values():
        width = max(len(feed.token_ids) for _, feed in members)
        take = torch.empty((len(members), width), dtype=torch.long)
        for row, (first, feed) in enumerate(members):
            count = len(feed.token_ids)
            take[row] = torch.arange(first, first + width).clamp_(max=first + count - 1)
            order[first : first + count] = torch.arange(offset, offset + count)
            offset += width
        at = torch.tensor(places)[take]
        chosen = _slots([feed.slot for _, feed in members], device)
        groups.append(Group(chosen, take.to(device), at.to(device), int(at.max()) + 1))
    return RaggedPass(
        cache, torch.tensor(slots, device=device), torch.tensor(places, device=device), groups, order.to(device)
    )


def _slots(slots: Sequence[int], device: torch.device) -> slice | torch.Tensor:
    if list(slots) == list(range(slots[0], slots[0] + len(slots))):
        return slice(slots[0], slots[0] + len(slots))  # a view instead of a copy
    return torch.tensor(slots, device=device)


def _attend_in_blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, places: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """(rows, heads, width, head size): each query sees the keys up to its own place."""
    blocks = []
    for start in range(0, query.shape[2], QUERY_BLOCK_TOKENS):
        block = slice(start, start + QUERY_BLOCK_TOKENS)
        mask = torch.arange(key.shape[2], device=key.device) <= places[:, None, block, None]
        blocks.append(grouped_query_attention(query[:, :, block], key, value, scaling, attn_mask=mask))
    return torch.cat(blocks, dim=2)
