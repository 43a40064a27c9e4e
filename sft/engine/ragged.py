"""Passes over many rows at once, each with as many new tokens as it has, against keys and values kept from before.

The new tokens of all rows stand in one flat row, so that no matrix is multiplied with padding; attention alone knows
which row they belong to. Registered with transformers under the name ``ragged``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from peft import PeftModel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import sdpa_mask

from sft.engine.attention import NO_MASK

NAME = "ragged"
QUERY_BLOCK_TOKENS = 512  # of a long row at a time: no mask is the square of a row
GROWTH_TOKENS = 64


class Feed(NamedTuple):
    """New tokens of one row: ``token_ids`` go to the places from ``place`` on, in the row's slot of the cache."""

    slot: int
    place: int
    token_ids: Sequence[int]


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
    order: torch.Tensor  # (tokens,) where each flat token stands in the groups, concatenated and flattened


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


@torch.no_grad()
def run(model: PreTrainedModel, cache: Cache, feeds: Sequence[Feed], places: Sequence[int]) -> torch.Tensor:
    """Last hidden states at flat ``places`` of all new tokens in the order of ``feeds``: (places, hidden size).

    ``model`` is the base model, under `attention`.
    """
    cache.reserve(max(feed.place + len(feed.token_ids) for feed in feeds))
    device = model.device
    step = _lay_out(cache, feeds, device)
    input_ids = torch.tensor([[token_id for feed in feeds for token_id in feed.token_ids]], device=device)
    wanted = torch.tensor(places, dtype=torch.long, device=device)
    with last_layer_at(model, wanted):
        hidden = model.base_model(
            input_ids=input_ids,
            position_ids=step.places[None],
            attention_mask=NO_MASK.to(device),
            use_cache=False,
            ragged=step,
        ).last_hidden_state[0]
    return hidden.index_select(0, wanted)


@contextmanager
def last_layer_at(model: PreTrainedModel, places: torch.Tensor) -> Iterator[None]:
    """For as long as the block runs, the last layer computes only at ``places`` what nothing but its output needs.

    Keys and values are for all; queries, the output projection and the feed-forward are for the places (elsewhere
    they are zero, and so is what comes out wrong). Hooks, so that adapters in these modules take part.
    """

    def only_there(module: torch.nn.Module, inputs: tuple) -> tuple:
        return (inputs[0].index_select(1, places),)

    def zero_elsewhere(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        everywhere = output.new_zeros((1, total[0], output.shape[2]))
        return everywhere.index_copy_(1, places, output)

    def note_total(module: torch.nn.Module, inputs: tuple, keywords: dict) -> None:
        total.append((inputs[0] if inputs else keywords["hidden_states"]).shape[1])

    total: list[int] = []
    layer = model.base_model.layers[-1]
    hooks = [layer.register_forward_pre_hook(note_total, with_kwargs=True)]
    for module in (layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp):
        hooks += [module.register_forward_pre_hook(only_there), module.register_forward_hook(zero_elsewhere)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def common_prefix_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, each keeping one of its own; 0 for one alone, which shares nothing."""
    if len(prompts) < 2:
        return 0
    first, last = min(prompts), max(prompts)  # of sorted sequences, these differ earliest
    shared, most = 0, min(map(len, prompts)) - 1
    while shared < most and first[shared] == last[shared]:
        shared += 1
    return shared


@contextmanager
def attention(model: PreTrainedModel, name: str = NAME) -> Iterator[PreTrainedModel]:
    """The base model with the attention ``name`` for as long as the block runs, then with its own again."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    before = base.config._attn_implementation
    base.set_attn_implementation(name)
    try:
        yield base
    finally:
        base.set_attn_implementation(before)


def _lay_out(cache: Cache, feeds: Sequence[Feed], device: torch.device) -> RaggedPass:
    slots, places, start = [], [], 0
    by_width: dict[int, list[tuple[int, Feed]]] = defaultdict(list)
    for feed in feeds:
        count = len(feed.token_ids)
        slots += [feed.slot] * count
        places += range(feed.place, feed.place + count)
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


def ragged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    ragged: RaggedPass | None = None,
    **_,
) -> tuple[torch.Tensor, None]:
    """Attention of each new token to what its row has kept and, causally, to the row's new ones.

    Args:
        query: (1, heads, tokens, head size); ``key`` and ``value`` with as many or fewer heads.

    Returns:
        (1, tokens, heads, head size), and no weights.
    """
    kept = ragged.cache.write(module.layer_idx, ragged, key, value)
    parts = []
    for group in ragged.groups:
        of_rows = kept[:, group.slots, :, : group.seen]
        rows, width = group.take.shape
        states = query[0].transpose(0, 1).index_select(0, group.take.flatten())
        states = states.unflatten(0, (rows, width)).transpose(1, 2)
        parts.append(_attend(states, of_rows[0], of_rows[1], group.places, scaling))
    return torch.cat(parts).index_select(0, ragged.order)[None], None


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, places: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """(rows × width, heads, head size): each query sees the keys up to its own place."""
    blocks = []
    for start in range(0, query.shape[2], QUERY_BLOCK_TOKENS):
        at = places[:, start : start + QUERY_BLOCK_TOKENS]
        mask = torch.arange(key.shape[2], device=key.device) <= at[:, None, :, None]
        blocks.append(attend(query[:, :, start : start + QUERY_BLOCK_TOKENS], key, value, scaling, attn_mask=mask))
    return torch.cat(blocks, dim=2).transpose(1, 2).flatten(0, 1)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, **mask) -> torch.Tensor:
    """torch's attention where several heads of the query share one of the keys."""
    if query.is_cuda:  # the kernels that take a mask there know of no sharing
        repeats = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
    return scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=not query.is_cuda, **mask)


AttentionInterface.register(NAME, ragged_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
