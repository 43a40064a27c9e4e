"""The layout of a pass over prompts with their options: a tree of token runs, flattened into one row.

    [ what all prompts begin with ]
       ├─ the rest of prompt 1 ─┬─ 体育 ── 新闻
       │                        └─ 军事
       └─ the rest of prompt 2 ─ …

Each token attends to its ancestors and has the same position id as in its own sequence, so the result is that of a
pass over each full sequence (Tree Training, arXiv 2511.00413). What several options of a prompt begin with is computed
once, too. The last token of an option is only predicted, so it is not part of the tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from sft.engine.attention import MaskedQueries, aligned, by_token, move_together
from sft.engine.prefix_tree import GROUP_WASTE, How, Segments, attend_by_segments, group_by_length, segments_of
from sft.engine.segments import segments_work

GPU_WASTE = 2.0  # on a GPU, a group's longest prompt may be so many times its shortest

# A unit in a pass: the flat positions of its prompt and of its nodes, and (nodes, nodes) which node sees which.
Laid = tuple[range, range, torch.Tensor]


class UnitGroup(NamedTuple):
    """Units with prompts of similar length, which are attended together.

    Attributes:
        units: how many.
        keys: (units × keys,) flat positions of what their tokens may see: prefix, rest of the prompt, nodes.
        queries: the rests of their prompts, and their nodes if there are any.
    """

    units: int
    keys: torch.Tensor
    queries: list[MaskedQueries]


class OptionTree(NamedTuple):
    """The layout of a pass: the prefix, the rests of all prompts, the nodes of all units.

    Attributes:
        prompt_tokens: how many tokens stand before the nodes.
        prefix: what all prompts begin with; None for nothing. All units see it.
        groups: the units. Each sees only the prefix and itself.
        prompts: prefix and prompts for variable-length attention; the other queries are only the nodes then.
    """

    prompt_tokens: int
    prefix: MaskedQueries | None
    groups: list[UnitGroup]
    prompts: Segments | None = None

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
        """See `sft.engine.attention.Layout`. Ignores ``dropout``."""
        by_query, by_key, by_value = map(by_token, (query, key, value))
        result = torch.empty_like(by_query)
        if self.prompts is not None:
            of_prompts = [states[:, :, : self.prompt_tokens] for states in (query, key, value)]
            how = How(scaling, 0.0, window)
            result[: self.prompt_tokens] = attend_by_segments(self.prompts, *of_prompts, how)[0]
        elif self.prefix is not None:
            self.prefix.attend(by_query, result, key, value, scaling, window)
        for group in self.groups:
            keys, values = (
                states.index_select(0, group.keys).unflatten(0, (group.units, -1)).transpose(1, 2)
                for states in (by_key, by_value)
            )
            for queries in group.queries:
                queries.attend(by_query, result, keys, values, scaling, window)
        return result[None]


def lay_out(shared: int, units: Sequence[Laid], base: PreTrainedModel) -> OptionTree:
    """The layout of a pass, on the CPU: by variable-length attention where that works.

    Args:
        shared: how many tokens all prompts begin with.
    """
    return _lay_out_segments(shared, units) if segments_work(base) else _lay_out_groups(shared, units, base.device)


def _lay_out_segments(shared: int, units: Sequence[Laid]) -> OptionTree:
    """Prompts by variable-length attention. The nodes of all units are one group: they are few queries, so padding
    their keys costs less than more kernels.
    """
    prompts = [prompt for prompt, _, _ in units]
    group = _unit_group(shared, units)
    groups = [group._replace(queries=group.queries[1:])] if group.queries[1:] else []
    return OptionTree(prompts[-1].stop, None, groups, segments_of(shared, prompts))


def _lay_out_groups(shared: int, units: Sequence[Laid], device: torch.device) -> OptionTree:
    """Units in groups. On a GPU kernels are dear and padding is cheap: there are fewer groups."""
    first, last = units[0][0], units[-1][0]
    prefix = _causal(torch.arange(shared)[None], 0, [shared], first.stop) if shared else None
    waste = GROUP_WASTE if device.type == "cpu" else GPU_WASTE
    groups = group_by_length(units, lambda unit: len(unit[0]), waste)
    return OptionTree(last.stop, prefix, [_unit_group(shared, members) for members in groups])


def _unit_group(shared: int, units: Sequence[Laid]) -> UnitGroup:
    """The group of these units; each is the flat positions of its prompt and of its nodes, and who sees whom."""
    longest, width = max(len(prompt) for prompt, _, _ in units), max(len(nodes) for _, nodes, _ in units)
    before = aligned(shared + longest + width) - width  # keys before the nodes, some of them for padding
    flat = torch.empty((len(units), longest), dtype=torch.long)
    keys = torch.zeros((len(units), before + width), dtype=torch.long)
    keys[:, :shared] = torch.arange(shared)
    for row, (prompt, own, _) in enumerate(units):
        flat[row] = torch.arange(prompt.start, prompt.start + longest).clamp_(max=prompt[-1])
        keys[row, shared : shared + longest] = flat[row]
        keys[row, before : before + len(own)] = torch.arange(own.start, own.stop)
    queries = [_causal(flat, shared, [len(prompt) for prompt, _, _ in units], before + width)]
    if width:
        queries.append(_nodes(shared, before, width, units))
    return UnitGroup(len(units), keys.flatten(), queries)


def _causal(flat: torch.Tensor, before: int, lengths: Sequence[int], keys: int) -> MaskedQueries:
    """Queries of which each sees the first ``before`` of the ``keys``, and after them its row's queries up to itself.

    Args:
        lengths: queries of each row; what repeats its last one sees what that one sees.
    """
    lasts = torch.tensor(lengths[:1] if len(set(lengths)) == 1 else lengths)[:, None] - 1  # of equal rows, one mask
    places = (before + torch.arange(flat.shape[1]).minimum(lasts))[:, :, None]

    def sees(part: slice, window: int | None, places: torch.Tensor) -> torch.Tensor:
        of_key = torch.arange(min(aligned(before + part.stop), keys), device=places.device)
        own = places[:, part]
        return of_key <= own if window is None else (of_key <= own) & (of_key > own - window)

    return MaskedQueries(flat, sees, before + max(lengths), places)


def _nodes(shared: int, before: int, width: int, units: Sequence[Laid]) -> MaskedQueries:
    """The nodes of the units, padded to ``width``: they see the prompt, which is among the keys ``before``."""
    flat = torch.empty((len(units), width), dtype=torch.long)
    ancestors = torch.zeros((len(units), width, width), dtype=torch.bool)
    for row, (prompt, own, sees) in enumerate(units):
        places = torch.arange(width).clamp_(max=max(0, len(own) - 1))
        flat[row] = places + (own.start if own else prompt[-1])
        ancestors[row, :, : len(own)] = sees[places] if own else False
    ends = torch.tensor([shared + len(prompt) for prompt, _, _ in units])[:, None, None]
    depths = ancestors.sum(2, keepdim=True) - 1  # (units, width, 1): an ancestor is a level higher

    def sees(
        part: slice, window: int | None, ends: torch.Tensor, depths: torch.Tensor, ancestors: torch.Tensor
    ) -> torch.Tensor:
        own, of_prompt = ancestors[:, part], torch.arange(before, device=ends.device)
        prompt = of_prompt < ends
        if window is not None:
            prompt = prompt & (of_prompt > (ends + depths)[:, part] - window)
            own = own & (depths.mT > depths[:, part] - window)
        return torch.cat((prompt.expand(-1, own.shape[1], -1), own), dim=2)

    return MaskedQueries(flat, sees, int((ends + depths).max()) + 1, ends, depths, ancestors)


@lru_cache(maxsize=8)
def ancestry(parents: tuple[int, ...]) -> tuple[torch.Tensor, list[int]]:
    """(nodes, nodes): true where the column is an ancestor of the row or the same node; and the depth of each node.

    A parent comes before its children.
    """
    sees = torch.eye(len(parents), dtype=torch.bool)
    depths = []
    for node, parent in enumerate(parents):
        if parent >= 0:
            sees[node] |= sees[parent]
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
    return sees, depths


def move(
    tree: OptionTree, tensors: Sequence[torch.Tensor], device: torch.device
) -> tuple[OptionTree, list[torch.Tensor]]:
    """The layout and some more tensors on ``device``, in one copy."""
    queries = [some for group in tree.groups for some in group.queries]
    if tree.prefix is not None:
        queries.append(tree.prefix)
    keys = [group.keys for group in tree.groups]
    of_prompts = [] if tree.prompts is None else tree.prompts[:3]
    moved = move_together(queries, [*keys, *of_prompts, *tensors], device)
    groups = [group._replace(keys=found) for group, found in zip(tree.groups, moved, strict=False)]
    moved = moved[len(groups) :]
    if tree.prompts is None:
        return tree._replace(groups=groups), moved
    return tree._replace(groups=groups, prompts=Segments(*moved[:3], *tree.prompts[3:])), moved[3:]
