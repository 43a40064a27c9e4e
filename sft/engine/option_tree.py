"""Scoring options: the log-probability of every option as the answer to every prompt, in one pass over a tree.

    [ what all prompts begin with ]
       ├─ the rest of prompt 1 ─┬─ 体育 ── 新闻
       │                        └─ 军事
       └─ the rest of prompt 2 ─ …

Each token attends to its ancestors and has the same position id as in its own sequence, so the result is that of a
pass over each full sequence (Tree Training, arXiv 2511.00413). What several options of a prompt begin with is computed
once, too. The last token of an option is only predicted, so it is not part of the tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from sft.engine.attention import (
    MaskedQueries,
    aligned,
    at_least_float32,
    by_token,
    common_prefix_tokens,
    move_together,
    use_packed_attention,
)
from sft.engine.forward import hidden_states_at
from sft.engine.lora_node import adapters_copied, one_node_layers
from sft.engine.prefix_tree import GROUP_WASTE, How, Segments, attend_by_segments, group_by_length, segments_of
from sft.engine.segments import segments_work
from sft.engine.served import served_by

HEAD_BLOCK_TOKENS = 256  # places whose logits exist at a time: 256 × 151,936 in float32 are 156 MB
LEAST_OPTION_TOKENS = 256  # room for options in a pass, however long the prompt is
GPU_WASTE = 2.0  # on a GPU, a group's longest prompt may be so many times its shortest
PADDED_SEQUENCES = 16  # sequences in one batch of the padded path


# A unit in a pass: the flat positions of its prompt and of its nodes, and (nodes, nodes) which node sees which.
Laid = tuple[range, range, torch.Tensor]


class Trie(NamedTuple):
    """Options as a trie of tokens.

    Attributes:
        token_ids: the token of each node.
        parents: the parent of each node; -1 stands for the prompt's last token.
        branches: for each option, ``(node that predicts it, token)`` for each of its tokens.
    """

    token_ids: list[int]
    parents: list[int]
    branches: list[list[tuple[int, int]]]


class Unit(NamedTuple):
    """The prompt of one row with all of its options, or with as many as fit into a pass."""

    row: int
    prompt: Sequence[int]
    trie: Trie


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


def score(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    branches_of: Sequence[Sequence[list[int]]],
    max_tokens: int | None = None,
) -> list[torch.Tensor]:
    """Log-probability of each option after its prompt.

    Args:
        prompts: token ids, one prompt a row.
        branches_of: for each row the token ids of its options, terminator included.
        max_tokens: the most tokens in one pass, None for no limit. A prompt is never divided, so a pass can be longer;
            the options of a row may be divided over several passes.

    Returns:
        For each row (options,), float32 or wider, on the CPU.
    """
    rows = list(zip(prompts, branches_of, strict=True))
    known = served_by(model)
    together = [row for row, (ids, own) in enumerate(rows) if known.expresses(len(ids) + max(map(len, own)) - 1)]
    scores: list[list[torch.Tensor]] = [[] for _ in rows]
    if together:
        base = use_packed_attention(model)
        with torch.no_grad(), adapters_copied(one_node_layers(base)):
            for units in _passes(*zip(*(rows[row] for row in together), strict=True), max_tokens):
                for unit, unit_scores in zip(units, _score_pass(base, units), strict=True):
                    scores[together[unit.row]].append(unit_scores)
    for row in set(range(len(rows))).difference(together):
        scores[row].append(_score_padded(model, *rows[row]))
    return [torch.cat(parts) for parts in scores]


def _passes(prompts, branches_of, max_tokens: int | None) -> Iterator[list[Unit]]:
    """The rows, or parts of their options, that are computed in one pass."""
    shared = common_prefix_tokens(prompts, own=1)
    units: list[Unit] = []
    total = shared
    for row, (prompt, branches) in enumerate(zip(prompts, branches_of, strict=True)):
        room = None if max_tokens is None else max(max_tokens - len(prompt), LEAST_OPTION_TOKENS)
        for portion in _portions(branches, room):
            unit = Unit(row, prompt, _trie(tuple(map(tuple, portion))))
            tokens = len(prompt) - shared + len(unit.trie.token_ids)
            if units and max_tokens is not None and total + tokens > max_tokens:
                yield units
                units, total = [], shared
            units.append(unit)
            total += tokens
    yield units


def _portions(branches: Sequence[list[int]], room_tokens: int | None) -> Iterator[Sequence[list[int]]]:
    """The options in parts of at most ``room_tokens``, each with at least one option."""
    start = tokens = 0
    for index, branch in enumerate(branches):
        if room_tokens is not None and index > start and tokens + len(branch) > room_tokens:
            yield branches[start:index]
            start, tokens = index, 0
        tokens += len(branch)
    yield branches[start:]


@lru_cache(maxsize=8)  # rows mostly have the same options
def _trie(branches: tuple[tuple[int, ...], ...]) -> Trie:
    token_ids: list[int] = []
    parents: list[int] = []
    known: dict[tuple[int, int], int] = {}
    paths = []
    for branch in branches:
        node, path = -1, []
        for token_id in branch[:-1]:
            path.append((node, token_id))
            if (node, token_id) not in known:
                known[node, token_id] = len(token_ids)
                token_ids.append(token_id)
                parents.append(node)
            node = known[node, token_id]
        paths.append([*path, (node, branch[-1])])
    return Trie(token_ids, parents, paths)


@torch.no_grad()
def _score_pass(base: PreTrainedModel, units: Sequence[Unit]) -> list[torch.Tensor]:
    """Log-probabilities of the options of each unit, from one pass."""
    shared = common_prefix_tokens([unit.prompt for unit in units], own=1)
    input_ids, position_ids = list(units[0].prompt[:shared]), list(range(shared))
    prompts, nodes = [], []  # flat positions: the rest of each prompt, and the nodes of each unit
    for unit in units:
        prompts.append(range(len(input_ids), len(input_ids) + len(unit.prompt) - shared))
        input_ids += unit.prompt[shared:]
        position_ids += range(shared, len(unit.prompt))
    ancestries = []
    for unit in units:
        sees, depths = _ancestry(tuple(unit.trie.parents))
        ancestries.append(sees)
        nodes.append(range(len(input_ids), len(input_ids) + len(depths)))
        input_ids += unit.trie.token_ids
        position_ids += (len(unit.prompt) + depth for depth in depths)
    predicted = [  # for each option of each unit: (flat place that predicts, token)
        [(own[node] if node >= 0 else prompt[-1], token_id) for node, token_id in branch]
        for unit, prompt, own in zip(units, prompts, nodes, strict=True)
        for branch in unit.trie.branches
    ]
    pairs = torch.tensor([pair for branch in predicted for pair in branch])
    places, index = pairs[:, 0].unique(return_inverse=True)
    order = index.argsort(stable=True)  # the head runs at one block of places after the other
    laid = [*zip(prompts, nodes, ancestries, strict=True)]
    layout = _lay_out_segments(shared, laid) if segments_work(base) else _lay_out_groups(shared, laid, base.device)
    asked = [torch.tensor(input_ids), torch.tensor(position_ids), places, index[order], pairs[:, 1][order]]
    layout, (token_ids, positions, places, at, tokens) = _move(layout, asked, base.device)
    hidden = hidden_states_at(base, token_ids, positions, layout, places)
    values = _log_probabilities(base, hidden, at, tokens, index[order])
    found = iter(values[order.argsort()].split([len(branch) for branch in predicted]))
    return [torch.stack([next(found).sum() for _ in unit.trie.branches]) for unit in units]


def _lay_out_segments(shared: int, units: Sequence[Laid]) -> OptionTree:
    """The layout where variable-length attention works, on the CPU. The nodes of all units are one group: few queries,
    so padding of their keys costs less than more kernels."""
    prompts = [prompt for prompt, _, _ in units]
    group = _unit_group(shared, units)
    groups = [group._replace(queries=group.queries[1:])] if group.queries[1:] else []
    return OptionTree(prompts[-1].stop, None, groups, segments_of(shared, prompts))


def _lay_out_groups(shared: int, units: Sequence[Laid], device: torch.device) -> OptionTree:
    """The layout elsewhere, on the CPU. On a GPU kernels are dear and padding is cheap: there are fewer groups."""
    first, last = units[0][0], units[-1][0]
    prefix = _causal(torch.arange(shared)[None], 0, [shared], first.stop) if shared else None
    waste = GROUP_WASTE if device.type == "cpu" else GPU_WASTE
    groups = group_by_length(units, lambda unit: len(unit[0]), waste)
    return OptionTree(last.stop, prefix, [_unit_group(shared, members) for members in groups])


def _move(
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
def _ancestry(parents: tuple[int, ...]) -> tuple[torch.Tensor, list[int]]:
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


def _log_probabilities(
    base: PreTrainedModel, hidden: torch.Tensor, index: torch.Tensor, tokens: torch.Tensor, known: torch.Tensor
) -> torch.Tensor:
    """Log-probability, over the whole vocabulary, of each token: (tokens,) on the CPU, for which the host waits once.

    Args:
        hidden: (places, hidden size).
        index: (tokens,) the row of ``hidden`` that predicts the token, ascending.
        tokens: (tokens,) token ids.
        known: ``index`` on the CPU.
    """
    head, rule = base.get_output_embeddings(), served_by(base).logits
    parts, first = [], 0
    for start in range(0, len(hidden), HEAD_BLOCK_TOKENS):  # in blocks, because the logits of all places are large
        last = int(torch.searchsorted(known, start + HEAD_BLOCK_TOKENS))
        log_probabilities = rule.of(at_least_float32(head(hidden[start : start + HEAD_BLOCK_TOKENS]))).log_softmax(-1)
        parts.append(log_probabilities[index[first:last] - start, tokens[first:last]])
        first = last
    return torch.cat(parts).cpu()


@torch.no_grad()
def _score_padded(model: PreTrainedModel, prompt: list[int], branches: Sequence[list[int]]) -> torch.Tensor:
    """Log-probability of each option from its own full sequence, padded: for models that no layout can express."""
    scores = []
    for start in range(0, len(branches), PADDED_SEQUENCES):
        batch = branches[start : start + PADDED_SEQUENCES]
        kept = max(map(len, batch))
        width = kept - 1 + len(prompt)
        input_ids = torch.zeros((len(batch), width), dtype=torch.long)
        attention_mask, tokens = torch.zeros_like(input_ids), input_ids.new_zeros((len(batch), kept))
        for row, branch in enumerate(batch):
            ids = torch.tensor([*prompt, *branch])
            input_ids[row, width - len(ids) + 1 :] = ids[:-1]
            attention_mask[row, width - len(ids) + 1 :] = 1
            tokens[row, kept - len(branch) :] = ids[len(prompt) :]
        logits = model(
            input_ids=input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            position_ids=(attention_mask.cumsum(-1) - 1).clamp_(min=0).to(model.device),
            logits_to_keep=kept,
            use_cache=False,
        ).logits
        tokens = tokens.to(logits.device)
        found = []
        for row, branch in enumerate(batch):  # one by one, because log-probabilities of the whole vocabulary are large
            own = slice(kept - len(branch), kept)
            log_probabilities = at_least_float32(logits[row, own]).log_softmax(-1)
            found.append(log_probabilities.gather(-1, tokens[row, own, None])[:, 0])
        scores += [part.sum() for part in torch.cat(found).cpu().split(list(map(len, batch)))]
    return torch.stack(scores)
