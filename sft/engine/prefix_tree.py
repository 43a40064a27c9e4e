"""A batch as a prefix tree: what all rows begin with once, then one branch a row, laid out as one flat row of tokens.

All rows of a task share the system prompt; computing it once per batch is exact, for causal attention gives it the
same hidden states in every row, and its gradient is the sum over the rows (Prefix Grouper, arXiv 2506.05433; Tree
Training, arXiv 2511.00413). Nothing here knows about models.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch

from sft.model.encoding import EncodedRow

# Branches of like length are padded to one width and attended together; wider than this share, a new group begins.
GROUP_WASTE = 1.25
GROUP_SLACK_TOKENS = 8


class Segments(NamedTuple):
    """The same tree as sequences one after the other, for attention of variable length: the prefix, then each branch.

    The queries of a branch are its own tokens, its keys the prefix and itself; causal from the lower right corner.

    Attributes:
        keys: flat positions of all keys, (keys,).
        query_offsets, key_offsets: (sequences + 1,), int32: where each sequence begins among queries and keys.
        longest_queries, longest_keys: of any sequence.
    """

    keys: torch.Tensor
    query_offsets: torch.Tensor
    key_offsets: torch.Tensor
    longest_queries: int
    longest_keys: int


class PrefixTree(NamedTuple):
    """Who attends to whom, for tokens laid out flat: the prefix, then the branches one after the other.

    Attributes:
        prefix_tokens: how many tokens the prefix has.
        groups: one tensor of shape (branches, width) a group: flat positions of each branch's tokens; a shorter
            branch repeats its last position. A branch sees the prefix and, causally, itself.
        order: (tokens,): where each flat token stands in prefix + groups, concatenated and flattened.
        segments: the fields of a `Segments`, plain like these.
    """

    prefix_tokens: int
    groups: list[torch.Tensor]
    order: torch.Tensor
    segments: tuple = ()


def common_prefix_tokens(rows: Sequence[EncodedRow]) -> int:
    """How many tokens all prompts begin with together; 0 for a single row, which has nothing to share."""
    if len(rows) < 2:
        return 0
    first, last = min(row.prompt_ids for row in rows), max(row.prompt_ids for row in rows)
    shared = 0  # of sorted sequences, the first and the last differ earliest
    for left, right in zip(first, last, strict=False):
        if left != right:
            break
        shared += 1
    return shared


def tree_tokens(rows: Sequence[EncodedRow]) -> int:
    """How many tokens the tree of ``rows`` has; an answer's last token is predicted, never read."""
    shared = common_prefix_tokens(rows)
    return shared + sum(len(row) - shared - 1 for row in rows)


def collate_tree(rows: Sequence[EncodedRow]) -> dict[str, object]:
    """The flat row of a batch and its tree.

    Returns:
        ``input_ids``, ``position_ids``: (1, tokens); ``tree``: the fields of a `PrefixTree`; ``sources``:
        (supervised,) the flat position whose logits predict each supervised token; ``labels``, ``shift_labels``:
        (1, supervised) those tokens; ``lines``: (rows,) the line of each row in its file.
    """
    shared = common_prefix_tokens(rows)
    input_ids = list(rows[0].prompt_ids[:shared])
    position_ids = list(range(shared))
    branches: list[range] = []
    sources: list[int] = []
    targets: list[int] = []
    for row in rows:
        start = len(input_ids)
        input_ids += row.prompt_ids[shared:]
        input_ids += row.answer_ids[:-1]
        branches.append(range(start, len(input_ids)))
        position_ids += range(shared, shared + len(branches[-1]))
        # A prompt that ends with the shared prefix is answered from the prefix's last token.
        answered_from = start + len(row.prompt_ids) - shared - 1 if len(row.prompt_ids) > shared else shared - 1
        sources += [answered_from, *range(len(input_ids) - len(row.answer_ids) + 1, len(input_ids))]
        targets += row.answer_ids
    return {
        "input_ids": torch.tensor([input_ids]),
        "position_ids": torch.tensor([position_ids]),
        "tree": tuple(build_tree(shared, branches)),  # plain, so that it is moved to the device like the rest
        "sources": torch.tensor(sources),
        "labels": torch.tensor([targets]),
        "shift_labels": torch.tensor([targets]),
        "lines": torch.tensor([row.line for row in rows]),
    }


def build_tree(prefix_tokens: int, branches: Sequence[range]) -> PrefixTree:
    """The tree of a prefix at positions 0 to ``prefix_tokens`` and branches at the flat positions given, in order."""
    total = branches[-1].stop if branches else prefix_tokens
    order = torch.arange(total)
    groups: list[torch.Tensor] = []
    place = prefix_tokens
    for members in _group_by_length([branch for branch in branches if len(branch)]):
        width = len(members[-1])
        group = torch.empty((len(members), width), dtype=torch.long)
        for row, branch in enumerate(members):
            group[row] = branch[-1]
            group[row, : len(branch)] = torch.arange(branch.start, branch.stop)
            order[branch.start : branch.stop] = place + row * width + torch.arange(len(branch))
        groups.append(group)
        place += group.numel()
    return PrefixTree(prefix_tokens, groups, order, tuple(_segments(prefix_tokens, branches)))


def _segments(prefix_tokens: int, branches: Sequence[range]) -> Segments:
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


def _group_by_length(branches: Sequence[range]) -> list[list[range]]:
    """Branches sorted by length, cut where padding to the longest would waste more than a quarter."""
    groups: list[list[range]] = []
    for branch in sorted(branches, key=len):
        if not groups or len(branch) > GROUP_WASTE * len(groups[-1][0]) + GROUP_SLACK_TOKENS:
            groups.append([])
        groups[-1].append(branch)
    return groups
