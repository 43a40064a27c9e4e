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
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from sft.engine.attention import at_least_float32, common_prefix_tokens, grouped_query_attention, use_packed_attention
from sft.engine.forward import hidden_states_at
from sft.engine.served import served_by

HEAD_BLOCK_TOKENS = 256  # places whose logits exist at a time: 256 × 151,936 in float32 are 156 MB
LEAST_OPTION_TOKENS = 256  # room for options in a pass, however long the prompt is
PADDED_SEQUENCES = 16  # sequences in one batch of the padded path


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


class OptionTree(NamedTuple):
    """The layout of a pass: all units see the first ``prefix_tokens``; apart from that each unit sees only itself.

    Attributes:
        prefix_tokens: how many tokens all prompts begin with; 0 for none.
        units: for each unit its flat positions (the rest of the prompt, then the nodes) and a mask of shape
            (nodes, nodes): true where the column is an ancestor of the row or the same node.
    """

    prefix_tokens: int
    units: list[tuple[range, torch.Tensor]]

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, *_
    ) -> torch.Tensor:
        """See `sft.engine.attention.Layout`. Ignores ``dropout``."""
        shared = self.prefix_tokens
        parts = []
        if shared:
            prefix = (states[:, :, :shared] for states in (query, key, value))
            parts.append(grouped_query_attention(*prefix, scaling, is_causal=True))
        for places, sees in self.units:
            own = slice(places.start, places.stop)
            unit_query, unit_key, unit_value = (
                torch.cat((states[:, :, :shared], states[:, :, own]), dim=2) for states in (query, key, value)
            )
            prompt = unit_key.shape[2] - len(sees)
            # The queries of the prefix run again with each prompt: whole prompts need no mask, only is_causal.
            of_prompt = (states[:, :, :prompt] for states in (unit_query, unit_key, unit_value))
            parts.append(grouped_query_attention(*of_prompt, scaling, is_causal=True)[:, :, shared:])
            if len(sees):
                mask = torch.cat((sees.new_ones((len(sees), prompt)), sees), dim=1)
                nodes = unit_query[:, :, prompt:]
                parts.append(grouped_query_attention(nodes, unit_key, unit_value, scaling, attn_mask=mask))
        return torch.cat(parts, dim=2).transpose(1, 2)


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
            unit = Unit(row, prompt, _trie(portion))
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


def _trie(branches: Sequence[Sequence[int]]) -> Trie:
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
    laid_out: list[tuple[range, torch.Tensor]] = []
    predicted: list[list[list[tuple[int, int]]]] = []  # for each unit and option: (flat place that predicts, token)
    for unit in units:
        start = len(input_ids)
        rest, (token_ids, parents, branches) = unit.prompt[shared:], unit.trie
        input_ids += [*rest, *token_ids]
        sees, depths = _ancestry(parents)
        position_ids += [*range(shared, len(unit.prompt)), *(len(unit.prompt) + depth for depth in depths)]
        laid_out.append((range(start, len(input_ids)), sees.to(base.device)))
        nodes = start + len(rest)  # the place of node 0; the prompt's last token, node -1, is the one before
        predicted.append([[(nodes + node, token_id) for node, token_id in branch] for branch in branches])
    pairs = torch.tensor([pair for branches in predicted for branch in branches for pair in branch])
    places, index = pairs[:, 0].unique(return_inverse=True)
    hidden = hidden_states_at(base, input_ids, position_ids, OptionTree(shared, laid_out), places.tolist())
    values = _log_probabilities(base, hidden, index, pairs[:, 1])
    found = iter(values.split([len(branch) for branches in predicted for branch in branches]))
    return [torch.stack([next(found).sum() for _ in branches]) for branches in predicted]


def _ancestry(parents: Sequence[int]) -> tuple[torch.Tensor, list[int]]:
    """The mask (nodes, nodes) of `OptionTree`, and the depth of each node; a parent comes before its children."""
    sees = torch.eye(len(parents), dtype=torch.bool)
    depths = []
    for node, parent in enumerate(parents):
        if parent >= 0:
            sees[node] |= sees[parent]
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
    return sees, depths


def _log_probabilities(
    base: PreTrainedModel, hidden: torch.Tensor, index: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """Log-probability, over the whole vocabulary, of each token: (tokens,) on the CPU.

    Args:
        hidden: (places, hidden size).
        index: (tokens,) the row of ``hidden`` that predicts the token.
        tokens: (tokens,) token ids.
    """
    head, rule = base.get_output_embeddings(), served_by(base).logits
    parts, order = [], []
    for start in range(0, len(hidden), HEAD_BLOCK_TOKENS):  # in blocks, because the logits of all places are large
        inside = ((index >= start) & (index < start + HEAD_BLOCK_TOKENS)).nonzero()[:, 0]
        log_probabilities = rule.of(at_least_float32(head(hidden[start : start + HEAD_BLOCK_TOKENS]))).log_softmax(-1)
        at = (index[inside] - start).to(hidden.device), tokens[inside].to(hidden.device)
        parts.append(log_probabilities[at].cpu())
        order.append(inside)
    return torch.cat(parts)[torch.cat(order).argsort()]


@torch.no_grad()
def _score_padded(model: PreTrainedModel, prompt: list[int], branches: Sequence[list[int]]) -> torch.Tensor:
    """Log-probability of each option from its own full sequence, padded: for models that no layout can express."""
    scores = []
    for start in range(0, len(branches), PADDED_SEQUENCES):
        batch = branches[start : start + PADDED_SEQUENCES]
        width, kept = max(map(len, batch)) - 1 + len(prompt), max(map(len, batch))
        input_ids = torch.zeros((len(batch), width), dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        for row, branch in enumerate(batch):
            ids = torch.tensor([*prompt, *branch[:-1]])
            input_ids[row, width - len(ids) :] = ids
            attention_mask[row, width - len(ids) :] = 1
        logits = model(
            input_ids=input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            position_ids=(attention_mask.cumsum(-1) - 1).clamp_(min=0).to(model.device),
            logits_to_keep=kept,
            use_cache=False,
        ).logits
        for row, branch in enumerate(batch):
            log_probabilities = at_least_float32(logits[row, kept - len(branch) :]).log_softmax(-1).cpu()
            scores.append(log_probabilities[range(len(branch)), branch].sum())
    return torch.stack(scores)
