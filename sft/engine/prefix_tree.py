"""The layout of a training batch: what all rows begin with once, then one branch a row.

All rows of a task share the system prompt. Computing it once per batch is exact: causal attention gives it the same
hidden states in every row, and its gradient is the sum over the rows (Prefix Grouper, arXiv 2506.05433; Tree Training,
arXiv 2511.00413).

Attention over the tree has two implementations. By groups, everywhere: branches of similar length are padded to one
width and attended together. By segments, on GPUs where it works: one call of variable-length attention.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple, TypeVar

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from sft.engine.attention import at_least_float32, grouped_query_attention, in_order, take
from sft.engine.transfer import copied_together

logger = logging.getLogger(__name__)
Member = TypeVar("Member")

# A new group begins with a branch that is longer than the group's shortest times the first, plus the second.
GROUP_WASTE = 1.25
GROUP_SLACK_TOKENS = 8
# In bfloat16 on a CPU the backward pass of the fused kernel is slow: up to this many keys, plain matrix products win.
SHORT_KEYS = 384
SHORT_DTYPES = [torch.bfloat16]
CAUSAL = (-1, 0)  # a window for variable-length attention: everything before, nothing after
CLOSE = 0.05  # a vector may be off by this much of the vectors' usual length; bfloat16 rounds by less than a hundredth


class How(NamedTuple):
    """What a layer asks of attention; see `sft.engine.attention.Layout.attend`."""

    scaling: float | None
    dropout: float
    window: int | None


class Segments(NamedTuple):
    """The tree as sequences for variable-length attention: the prefix, then each branch.

    The queries of a branch are its own tokens; its keys are the prefix and its own tokens. The causal mask is aligned
    at the lower right corner.

    Attributes:
        keys: (keys,) flat positions of the keys of all sequences.
        query_offsets: (sequences + 1,) int32: where each sequence begins among the queries.
        key_offsets: (sequences + 1,) int32: where each sequence begins in ``keys``.
        longest_queries: the number of queries of the longest sequence.
        longest_keys: the number of keys of the longest sequence.
    """

    keys: torch.Tensor
    query_offsets: torch.Tensor
    key_offsets: torch.Tensor
    longest_queries: int
    longest_keys: int


@dataclass(frozen=True, eq=False)  # not a NamedTuple: the Trainer would take it apart to move the tensors
class PrefixTree:
    """A flat row of tokens: the prefix, then the branches one after the other. A branch sees the prefix and itself.

    Attributes:
        prefix_tokens: the length of the prefix; 0 for none.
        groups: flat positions of the tokens of each branch, one tensor of shape (branches, width) for a group of
            branches of similar length; a shorter branch repeats its last position.
        order: (tokens,) where each flat token stands in the prefix and the groups, flattened and concatenated.
        segments: None for attention by groups.
    """

    prefix_tokens: int
    groups: list[torch.Tensor]
    order: torch.Tensor
    segments: Segments | None = None

    def tensors(self) -> list[torch.Tensor]:
        """All tensors of the layout, for `with_tensors`."""
        return [self.order, *self.groups, *(self.segments[:3] if self.segments else ())]

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> PrefixTree:
        """The same layout with these tensors, such as copies on another device."""
        order, groups, of_segments = tensors[0], tensors[1 : len(self.groups) + 1], tensors[len(self.groups) + 1 :]
        segments = self.segments and Segments(*of_segments, *self.segments[3:])
        return replace(self, groups=list(groups), order=order, segments=segments)

    def to(self, device: torch.device) -> PrefixTree:
        """The same on ``device``."""
        return self.with_tensors(copied_together(self.tensors(), device))

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        dropout: float = 0.0,
        layer: int = 0,
        window: int | None = None,
    ) -> torch.Tensor:
        """See `sft.engine.attention.Layout`. Dropout, which few models have, needs attention by groups."""
        how = How(scaling, dropout, window)
        if self.segments is not None and not dropout:
            return attend_by_segments(self.segments, query, key, value, how)
        return _attend_by_groups(self, query, key, value, how)


def build_tree(
    prefix_tokens: int, branches: Sequence[range], varlen: bool = False, multiple_of: int = 1
) -> PrefixTree:
    """The tree of a prefix at positions 0 to ``prefix_tokens`` and of branches at these flat positions, in order.

    Args:
        varlen: with segments, for variable-length attention.
        multiple_of: the width of each group is filled up to a multiple of this.
    """
    total = branches[-1].stop if branches else prefix_tokens
    order = torch.arange(total)
    groups: list[torch.Tensor] = []
    place = prefix_tokens
    for members in group_by_length([branch for branch in branches if len(branch)]):
        width = -(-len(members[-1]) // multiple_of) * multiple_of
        group = torch.empty((len(members), width), dtype=torch.long)
        for row, branch in enumerate(members):
            group[row] = branch[-1]
            group[row, : len(branch)] = torch.arange(branch.start, branch.stop)
            order[branch.start : branch.stop] = place + row * width + torch.arange(len(branch))
        groups.append(group)
        place += group.numel()
    return PrefixTree(prefix_tokens, groups, order, segments_of(prefix_tokens, branches) if varlen else None)


def group_by_length(
    members: Iterable[Member], length: Callable[[Member], int] = len, waste: float = GROUP_WASTE
) -> list[list[Member]]:
    """What is laid out together: sorted by length, divided where the longest is ``waste`` times the shortest."""
    groups: list[list[Member]] = []
    for member in sorted(members, key=length):
        if not groups or length(member) > waste * length(groups[-1][0]) + GROUP_SLACK_TOKENS:
            groups.append([])
        groups[-1].append(member)
    return groups


def segments_of(prefix_tokens: int, branches: Sequence[range]) -> Segments:
    prefix = torch.arange(prefix_tokens)
    sequences = [range(prefix_tokens), *branches] if prefix_tokens else branches
    sequences = [sequence for sequence in sequences if len(sequence)]
    queries = [len(sequence) for sequence in sequences]
    keys = [sequence.stop if sequence.start == 0 else prefix_tokens + len(sequence) for sequence in sequences]
    positions = []
    for sequence in sequences:
        positions += [] if sequence.start == 0 else [prefix]
        positions.append(torch.arange(sequence.start, sequence.stop))
    return Segments(torch.cat(positions), _offsets(queries), _offsets(keys), max(queries), max(keys))


def _offsets(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


# ---- attention by groups ----


def _attend_by_groups(
    tree: PrefixTree, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, how: How
) -> torch.Tensor:
    shared = tree.prefix_tokens
    parts = []
    if shared:
        parts.append(_attend_last(*(states[:, :, :shared] for states in (query, key, value)), how))
    # The first key that a branch can see. Keys before it are left out here, so no mask has to hide them.
    first = 0 if how.window is None else max(0, shared - how.window + 1)
    prefix_key, prefix_value = key[:, :, first:shared], value[:, :, first:shared]
    for group in tree.groups:
        branch_query, branch_key, branch_value = (take(states, group) for states in (query, key, value))
        keys = torch.cat((prefix_key.expand(len(group), -1, -1, -1), branch_key), dim=2)
        values = torch.cat((prefix_value.expand(len(group), -1, -1, -1), branch_value), dim=2)
        parts.append(_attend_last(branch_query, keys, values, how))
    return in_order(parts, tree.order)


def _attend_last(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, how: How) -> torch.Tensor:
    """Causal attention of the last ``width`` of ``length`` positions.

    Args:
        queries: (rows, heads, width, head size).
        keys: (rows, key heads, length, head size); ``values`` alike.
    """
    width, length = queries.shape[2], keys.shape[2]
    scaling, dropout, window = how
    if window is not None and window >= length:  # it hides nothing
        window = None
    on_cpu = queries.device.type == "cpu"
    if on_cpu and length <= SHORT_KEYS and queries.dtype in SHORT_DTYPES and not dropout:
        return _short_attention(queries, keys, values, scaling, window)
    if (
        2 * width > length and window is None
    ):  # with a mask the kernel skips nothing: unused queries in front cost less
        queries = pad(queries, (0, 0, length - width, 0))
        attended = grouped_query_attention(queries, keys, values, scaling, dropout, is_causal=True)
        return attended[:, :, length - width :]
    mask = ~_hidden(width, length, window, queries.device)
    return grouped_query_attention(queries, keys, values, scaling, dropout, attn_mask=mask)


def _short_attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None, window: int | None
) -> torch.Tensor:
    """`_attend_last` by plain matrix products; scores in float32 or wider, as inside the fused kernels."""
    rows, heads, width, size = queries.shape
    queries = at_least_float32(queries) * (size**-0.5 if scaling is None else scaling)
    queries = queries.unflatten(1, (keys.shape[1], -1)).flatten(2, 3)  # heads that share keys, side by side
    scores = (queries @ at_least_float32(keys).mT).unflatten(2, (-1, width))
    scores = scores.masked_fill_(_hidden(width, keys.shape[2], window, queries.device), -torch.inf)
    weights = scores.softmax(-1).to(values.dtype).flatten(2, 3)
    return (weights @ values).view(rows, heads, width, size)


def _hidden(width: int, length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """(width, length): true where a key comes after the query or before its window, for the last ``width`` positions.

    That also hides the padding of shorter branches, which stands at their ends.
    """
    all_true = torch.ones((width, length), dtype=torch.bool, device=device)
    after = all_true.triu(length - width + 1)
    return after if window is None else after | all_true.tril(length - width - window)


# ---- attention by segments ----


def attend_by_segments(
    segments: Segments, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, how: How
) -> torch.Tensor:
    hides = how.window is not None and how.window < segments.longest_keys
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    attended = varlen_attn(
        query.contiguous(),
        key.index_select(0, segments.keys),
        value.index_select(0, segments.keys),
        segments.query_offsets,
        segments.key_offsets,
        segments.longest_queries,
        segments.longest_keys,
        scale=how.scaling,
        window_size=(how.window - 1, 0) if hides else CAUSAL,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return attended[None]


def varlen_works(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether to use attention by segments for ``model`` on ``device``: only on a GPU, if it is right there."""
    if device.type != "cuda":
        return False
    works = agrees_with_groups(model, device)
    logger.info("前缀树注意力：%s", "变长 FlashAttention" if works else "SDPA（这张卡或这个模型用不了变长的）")
    return works


@torch.enable_grad()
def agrees_with_groups(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether attention by segments equals attention by groups, forward and backward, on a small tree.

    It is tried, not looked up: it depends on the card, the dtype, the head size, and on how torch was built. A model
    with windows is tried with and without one.
    """
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    tree = build_tree(5, [range(5, 6), range(6, 15), range(15, 22)], varlen=True).to(device)
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn((1, count, 22, size), generator=generator) for count in (heads, kv_heads, kv_heads)]
    results: tuple[list, list] = [], []
    windows = (None,) if getattr(config, "sliding_window", None) is None else (None, 4)
    for window in windows:
        for layout, found in zip((replace(tree, segments=None), tree), results, strict=True):
            inputs = [state.to(device, model.dtype).requires_grad_() for state in states]
            try:
                attended = layout.attend(*inputs, scaling=size**-0.5, window=window)
                found += [attended, *torch.autograd.grad(attended.square().sum(), inputs)]
            except (RuntimeError, ValueError) as error:
                logger.debug("变长注意力：%s", error)
                return False
    return all(vectors_agree(ours, theirs) for theirs, ours in zip(*results, strict=True))


def vectors_agree(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether each vector, of one head and token, is off by no more than `CLOSE` of the vectors' root mean square.

    Not number by number: a gradient is a sum of large products, and where it is near zero by chance, 16 bits are off
    by more than all of it, in bfloat16 by up to 0.5 on an H100. A wrong mask changes whole vectors.
    """
    found, expected = found.float(), expected.float()
    off = torch.linalg.vector_norm(found - expected, dim=-1)
    usual = torch.linalg.vector_norm(expected, dim=-1).square().mean().sqrt()
    return bool((off <= CLOSE * usual).all())
