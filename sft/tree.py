"""A batch as a prefix tree: what all rows begin with once, then one branch a row, laid out as one flat row of tokens.

All rows of a task share the system prompt; computing it once per batch is exact, for causal attention gives it the
same hidden states in every row, and its gradient is the sum over the rows (Prefix Grouper, arXiv 2506.05433; Tree
Training, arXiv 2511.00413). Nothing here knows about models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from sft.encoding import EncodedRow

# Branches of like length are padded to one width and attended together; wider than this share, a new group begins.
GROUP_WASTE = 1.25
GROUP_SLACK_TOKENS = 8


class PrefixTree(NamedTuple):
    """Who attends to whom, for tokens laid out flat: the prefix, then the branches one after the other.

    Attributes:
        prefix_tokens: how many tokens the prefix has.
        groups: one tensor of shape (branches, width) a group: flat positions of each branch's tokens; a shorter
            branch repeats its last position. A branch sees the prefix and, causally, itself.
        order: (tokens,): where each flat token stands in prefix + groups, concatenated and flattened.
    """

    prefix_tokens: int
    groups: list[torch.Tensor]
    order: torch.Tensor


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
        (1, supervised) those tokens; ``rows``: (rows,) the line of each row in its file.
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
        "rows": torch.tensor([row.row for row in rows]),
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
    return PrefixTree(prefix_tokens, groups, order)


def _group_by_length(branches: Sequence[range]) -> list[list[range]]:
    """Branches sorted by length, cut where padding to the longest would waste more than a quarter."""
    groups: list[list[range]] = []
    for branch in sorted(branches, key=len):
        if not groups or len(branch) > GROUP_WASTE * len(groups[-1][0]) + GROUP_SLACK_TOKENS:
            groups.append([])
        groups[-1].append(branch)
    return groups
