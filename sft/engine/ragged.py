"""The layout of a decoding pass: any number of new tokens for each of many rows, with a cache of keys and values.

The new tokens of all rows stand in one flat row, so nothing is computed for padding. Only attention knows which row a
token belongs to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from sft.engine.attention import grouped_query_attention, in_order, take
from sft.engine.forward import hidden_states_at

QUERY_BLOCK_TOKENS = 512  # queries computed at a time: a mask for all of them would grow with the square of the row
GROWTH_TOKENS = 64  # extra room when the cache grows, so that it does not grow in every pass


class Feed(NamedTuple):
    """The new tokens of one row.

    Attributes:
        slot: the row's slot in the cache.
        place: the position of the first new token in the row; the others follow.
        token_ids: at least one.
    """

    slot: int
    place: int
    token_ids: Sequence[int]

    @property
    def places(self) -> range:
        """The positions of the new tokens in the row."""
        return range(self.place, self.place + len(self.token_ids))


class Group(NamedTuple):
    """Rows with a similar number of new tokens, whose attention is computed together.

    Attributes:
        slots: their slots in the cache: a slice where the slots are consecutive, else a tensor of shape (rows,).
        flat: (rows, width) flat positions of the new tokens; a shorter row repeats its last one.
        places: (rows, width) their positions in their rows.
        seen: the number of places in the cache that at least one of the new tokens sees.
    """

    slots: slice | torch.Tensor
    flat: torch.Tensor
    places: torch.Tensor
    seen: int


class RaggedPass(NamedTuple):
    """One pass.

    Attributes:
        cache: the keys and values of all rows.
        slots: (tokens,) the slot of each flat token's row.
        places: (tokens,) the position of each flat token in its row.
        groups: the rows of the pass, by the number of new tokens.
        order: (tokens,) where each flat token stands in the groups, flattened and concatenated.
    """

    cache: Cache
    slots: torch.Tensor
    places: torch.Tensor
    groups: list[Group]
    order: torch.Tensor

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
        """See `sft.engine.attention.Layout`. A new token sees all of its row up to itself. Ignores ``dropout``."""
        kept = self.cache.write(layer, self, key, value)
        parts = []
        for group in self.groups:
            keys, values = kept[:, group.slots, :, : group.seen]
            parts.append(_attend_in_blocks(take(query, group.flat), keys, values, group.places, scaling))
        return in_order(parts, self.order)


class Cache:
    """Keys and values of ``slots`` rows, up to ``capacity`` tokens each.

    Writing to a place again replaces what was there: this is how rejected draft tokens disappear.
    """

    def __init__(self, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, capacity
        self.layers: dict[int, torch.Tensor] = {}  # of each layer (2, slots, key heads, capacity, head size)

    def write(self, layer: int, step: RaggedPass, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Store the keys and values of one layer and pass, both of shape (1, key heads, tokens, head size).

        Returns:
            Everything stored for the layer: (2, slots, key heads, capacity, head size), keys first.
        """
        if layer not in self.layers:
            shape = (2, self.slots, key.shape[1], self.capacity, key.shape[3])
            self.layers[layer] = key.new_zeros(shape)
        kept = self.layers[layer]
        kept[0][step.slots, :, step.places] = key[0].transpose(0, 1)
        kept[1][step.slots, :, step.places] = value[0].transpose(0, 1)
        return kept

    def share(self, tokens: int) -> None:
        """Copy the first ``tokens`` of slot 0 to every slot."""
        for kept in self.layers.values():
            kept[:, 1:, :, :tokens] = kept[:, :1, :, :tokens]

    def reserve(self, capacity: int) -> None:
        """Make room for at least ``capacity`` tokens a slot."""
        if capacity > self.capacity:
            capacity += GROWTH_TOKENS
            for layer, kept in self.layers.items():
                wider = kept.new_zeros((*kept.shape[:3], capacity, kept.shape[4]))
                wider[:, :, :, : self.capacity] = kept
                self.layers[layer] = wider
            self.capacity = capacity


def run(base: PreTrainedModel, cache: Cache, feeds: Sequence[Feed], places: Sequence[int]) -> torch.Tensor:
    """One pass over the new tokens: last hidden states at some of them, (places, hidden size).

    Args:
        base: after `sft.engine.attention.use_packed_attention`.
        places: indices into the new tokens of all ``feeds``, concatenated in order.
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
        flat = torch.empty((len(members), width), dtype=torch.long)
        for row, (first, feed) in enumerate(members):
            count = len(feed.token_ids)
            flat[row] = torch.arange(first, first + width).clamp_(max=first + count - 1)
            order[first : first + count] = torch.arange(offset, offset + count)
            offset += width
        at = torch.tensor(places)[flat]
        chosen = _slots([feed.slot for _, feed in members], device)
        groups.append(Group(chosen, flat.to(device), at.to(device), int(at.max()) + 1))
    return RaggedPass(
        cache, torch.tensor(slots, device=device), torch.tensor(places, device=device), groups, order.to(device)
    )


def _slots(slots: Sequence[int], device: torch.device) -> slice | torch.Tensor:
    if list(slots) == list(range(slots[0], slots[0] + len(slots))):
        return slice(slots[0], slots[0] + len(slots))  # indexing by a slice copies nothing
    return torch.tensor(slots, device=device)


def _attend_in_blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, places: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Attention of each query to the keys up to its own place: (rows, heads, width, head size)."""
    blocks = []
    for start in range(0, query.shape[2], QUERY_BLOCK_TOKENS):
        block = slice(start, start + QUERY_BLOCK_TOKENS)
        mask = torch.arange(key.shape[2], device=key.device) <= places[:, None, block, None]
        blocks.append(grouped_query_attention(query[:, :, block], key, value, scaling, attn_mask=mask))
    return torch.cat(blocks, dim=2)
