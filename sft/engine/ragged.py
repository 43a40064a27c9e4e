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

from sft.engine.attention import MaskedQueries, aligned, by_token, move_together
from sft.engine.forward import hidden_states_at
from sft.engine.segments import CachedSegments, cached_segments, segments_work
from sft.engine.transfer import copied_together

GPU_WASTE_TOKENS = 256  # on a GPU, padding that costs about as much as the kernels of one more group
GPU_ROWS = 4  # on a GPU, so many times as many rows are decoded together: 64 by default
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
        queries: their new tokens.
        seen: the number of places in the cache that at least one of the new tokens sees, aligned.
    """

    slots: slice | torch.Tensor
    queries: MaskedQueries
    seen: int


class RaggedPass(NamedTuple):
    """One pass.

    Attributes:
        cache: the keys and values of all rows.
        rows: how many rows have new tokens.
        kept_at: (tokens,) where the cache keeps each flat token: its slot × the capacity + its place in its row.
        groups: the rows of the pass, by the number of new tokens; none where there are segments.
        segments: the rows of the pass for variable-length attention; None where it does not work.
    """

    cache: Cache
    rows: int
    kept_at: torch.Tensor
    groups: list[Group]
    segments: CachedSegments | None = None

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
        kept = self.cache.write(layer, self.kept_at, key, value)
        query = by_token(query)
        if self.segments is not None:
            return self.segments.attend(query, *kept.flatten(1, 2), scaling, window)[None]
        result = torch.empty_like(query)
        for group in self.groups:
            keys, values = kept[:, group.slots, : group.seen].transpose(2, 3)
            group.queries.attend(query, result, keys, values, scaling, window)
        return result[None]


class Cache:
    """Keys and values of ``slots`` rows, up to ``capacity`` tokens each.

    Writing to a place again replaces what was there: this is how rejected draft tokens disappear.
    """

    def __init__(self, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, aligned(capacity)
        self.layers: dict[int, torch.Tensor] = {}  # of each layer (2, slots, capacity, key heads, head size)

    def write(self, layer: int, kept_at: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Store the keys and values of one layer and pass, both of shape (1, key heads, tokens, head size).

        Args:
            kept_at: see `RaggedPass`.

        Returns:
            Everything stored for the layer: (2, slots, capacity, key heads, head size), keys first.
        """
        if layer not in self.layers:
            shape = (2, self.slots, self.capacity, key.shape[1], key.shape[3])
            self.layers[layer] = key.new_zeros(shape)
        kept = self.layers[layer]
        for states, new in zip(kept.flatten(1, 2), (key, value), strict=True):
            states.index_copy_(0, kept_at, new[0].transpose(0, 1))
        return kept

    def share(self, tokens: int) -> None:
        """Copy the first ``tokens`` of slot 0 to every slot."""
        for kept in self.layers.values():
            kept[:, 1:, :tokens] = kept[:, :1, :tokens]

    def reserve(self, capacity: int) -> None:
        """Make room for at least ``capacity`` tokens a slot."""
        if capacity > self.capacity:
            capacity = aligned(capacity + GROWTH_TOKENS)
            for layer, kept in self.layers.items():
                wider = kept.new_zeros((*kept.shape[:2], capacity, *kept.shape[3:]))
                wider[:, :, : self.capacity] = kept
                self.layers[layer] = wider
            self.capacity = capacity


def rows_at_once(base: PreTrainedModel, rows: int, longest_tokens: int) -> int:
    """How many rows to decode together where ``rows`` are asked for; each has at most ``longest_tokens``.

    A pass over few tokens costs a GPU about the same, however few they are: there `GPU_ROWS` times as many run, if
    half of the free memory holds their keys, values and activations. A single row stays one.
    """
    if base.device.type != "cuda" or rows == 1:
        return rows
    config = base.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kept = 2 * config.num_hidden_layers * heads * size  # numbers a token
    at_once = 3 * getattr(config, "intermediate_size", config.hidden_size) + 8 * config.hidden_size
    bytes_a_row = (kept + at_once) * base.dtype.itemsize * aligned(longest_tokens + GROWTH_TOKENS)
    unused = torch.cuda.memory_reserved(base.device) - torch.cuda.memory_allocated(base.device)
    free = torch.cuda.mem_get_info(base.device)[0] + unused
    return max(1, min(GPU_ROWS * rows, free // 2 // bytes_a_row))


def run(base: PreTrainedModel, cache: Cache, feeds: Sequence[Feed], places: Sequence[int]) -> torch.Tensor:
    """One pass over the new tokens: last hidden states at some of them, (places, hidden size).

    Args:
        base: after `sft.engine.attention.use_packed_attention`.
        places: indices into the new tokens of all ``feeds``, concatenated in order.
    """
    return run_and_send(base, cache, feeds, places, [])[0]


def run_and_send(
    base: PreTrainedModel, cache: Cache, feeds: Sequence[Feed], places: Sequence[int], also: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """`run`, and the CPU tensors ``also`` on the model's device: they go there in the pass's own copy."""
    cache.reserve(max(feed.place + len(feed.token_ids) for feed in feeds))
    token_ids = torch.tensor([token_id for feed in feeds for token_id in feed.token_ids])
    position_ids = torch.tensor([place for feed in feeds for place in feed.places])
    wanted = torch.tensor(places, dtype=torch.long)
    laid_out = _lay_out_segments if segments_work(base) else _lay_out_groups
    layout, moved = laid_out(cache, feeds, [token_ids, position_ids, wanted, *also], base.device)
    token_ids, position_ids, wanted, *also = moved
    return hidden_states_at(base, token_ids, position_ids, layout, wanted), also


def _lay_out_segments(
    cache: Cache, feeds: Sequence[Feed], tensors: Sequence[torch.Tensor], device: torch.device
) -> tuple[RaggedPass, list[torch.Tensor]]:
    """The layout for variable-length attention, and ``tensors``, on ``device``, in one copy. Slots ascend."""
    slots, places, counts = zip(*((feed.slot, feed.place, len(feed.token_ids)) for feed in feeds), strict=True)
    segments = cached_segments(slots, places, counts, cache.capacity)
    at, *moved = copied_together([_kept_at(cache, feeds), *segments[:3], *tensors], device)
    segments = CachedSegments(*moved[:3], *segments[3:])
    return RaggedPass(cache, len(feeds), at, [], segments), moved[3:]


def _lay_out_groups(
    cache: Cache, feeds: Sequence[Feed], tensors: Sequence[torch.Tensor], device: torch.device
) -> tuple[RaggedPass, list[torch.Tensor]]:
    """The layout for masked attention, and ``tensors``, on ``device``, in one copy."""
    groups = [_group(members) for members in _by_width(feeds, 0 if device.type == "cpu" else GPU_WASTE_TOKENS)]
    slots = [group.slots for group in groups if isinstance(group.slots, torch.Tensor)]
    sent = [_kept_at(cache, feeds), *slots, *tensors]
    at, *moved = move_together([group.queries for group in groups], sent, device)
    slots, moved = iter(moved[: len(slots)]), moved[len(slots) :]
    groups = [
        group._replace(slots=next(slots)) if isinstance(group.slots, torch.Tensor) else group for group in groups
    ]
    return RaggedPass(cache, len(feeds), at, groups), moved


def _by_width(feeds: Sequence[Feed], waste_tokens: int) -> list[list[tuple[int, Feed]]]:
    """The feeds with the flat position of each one's first token, divided by how many tokens they have.

    Groups are merged, the shorter ones first, as long as that adds no more than ``waste_tokens`` of padding.
    """
    start = 0
    by_width: dict[int, list[tuple[int, Feed]]] = defaultdict(list)
    for feed in feeds:
        by_width[(len(feed.token_ids) - 1).bit_length()].append((start, feed))
        start += len(feed.token_ids)
    groups: list[list[tuple[int, Feed]]] = []
    before = 0
    for _, members in sorted(by_width.items()):
        width = max(len(feed.token_ids) for _, feed in members)
        if groups and len(groups[-1]) * (width - before) <= waste_tokens:
            groups[-1] = sorted(groups[-1] + members, key=lambda member: member[1].slot)
        else:
            groups.append(members)
        before = width
    return groups


def _kept_at(cache: Cache, feeds: Sequence[Feed]) -> torch.Tensor:
    """See `RaggedPass.kept_at`."""
    return torch.tensor([feed.slot * cache.capacity + place for feed in feeds for place in feed.places])


def _group(members: Sequence[tuple[int, Feed]]) -> Group:
    """The group of these rows, on the CPU; each comes with the flat position of its first new token."""
    starts, firsts, counts = torch.tensor([(start, feed.place, len(feed.token_ids)) for start, feed in members]).T
    steps = torch.minimum(torch.arange(int(counts.max())), counts[:, None] - 1)
    places = firsts[:, None] + steps
    seen = [aligned(place + 1) for place in places.amax(0).tolist()]  # of each new token, at most; ascending

    def sees(part: slice, window: int | None, places: torch.Tensor) -> torch.Tensor:
        kept, own = torch.arange(seen[part.stop - 1], device=places.device), places[:, part, None]
        return kept <= own if window is None else (kept <= own) & (kept > own - window)

    queries = MaskedQueries(starts[:, None] + steps, sees, int(places.max()) + 1, places)
    return Group(_slots([feed.slot for _, feed in members]), queries, seen[-1])


def _slots(slots: Sequence[int]) -> slice | torch.Tensor:
    if list(slots) == list(range(slots[0], slots[0] + len(slots))):
        return slice(slots[0], slots[0] + len(slots))  # indexing by a slice copies nothing
    return torch.tensor(slots)
