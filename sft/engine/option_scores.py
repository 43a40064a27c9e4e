"""Scoring options: the log-probability of every option as the answer to every prompt.

The prompts and options of a pass are one tree (`sft.engine.option_tree`). For a model whose attention no layout can
express, each option is computed in its own full sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from sft.engine.attention import at_least_float32, common_prefix_tokens, use_packed_attention
from sft.engine.forward import hidden_states_at
from sft.engine.lora_node import adapters_copied, one_node_layers
from sft.engine.option_tree import Laid, ancestry, lay_out, move
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
    token_ids, positions, laid = _flat_row(shared, units)
    predicted = [  # for each option of each unit: (flat place that predicts, token)
        [(nodes[node] if node >= 0 else prompt[-1], token_id) for node, token_id in branch]
        for unit, (prompt, nodes, _) in zip(units, laid, strict=True)
        for branch in unit.trie.branches
    ]
    pairs = torch.tensor([pair for branch in predicted for pair in branch])
    places, index = pairs[:, 0].unique(return_inverse=True)
    order = index.argsort(stable=True)  # the head runs at one block of places after the other
    asked = [token_ids, positions, places, index[order], pairs[:, 1][order]]
    layout, (token_ids, positions, places, at, tokens) = move(lay_out(shared, laid, base), asked, base.device)
    hidden = hidden_states_at(base, token_ids, positions, layout, places)
    values = _log_probabilities(base, hidden, at, tokens, index[order])
    found = iter(values[order.argsort()].split([len(branch) for branch in predicted]))
    return [torch.stack([next(found).sum() for _ in unit.trie.branches]) for unit in units]


def _flat_row(shared: int, units: Sequence[Unit]) -> tuple[torch.Tensor, torch.Tensor, list[Laid]]:
    """Token ids and position ids of a pass, (tokens,) both, on the CPU, and where each unit stands in it.

    Args:
        shared: how many tokens all prompts begin with; they stand first, once. Then come the rests of all prompts,
            and the nodes of all units.
    """
    token_ids, positions = list(units[0].prompt[:shared]), list(range(shared))
    prompts, laid = [], []
    for unit in units:
        prompts.append(range(len(token_ids), len(token_ids) + len(unit.prompt) - shared))
        token_ids += unit.prompt[shared:]
        positions += range(shared, len(unit.prompt))
    for unit, prompt in zip(units, prompts, strict=True):
        sees, depths = ancestry(tuple(unit.trie.parents))
        laid.append((prompt, range(len(token_ids), len(token_ids) + len(depths)), sees))
        token_ids += unit.trie.token_ids
        positions += (len(unit.prompt) + depth for depth in depths)
    return torch.tensor(token_ids), torch.tensor(positions), laid


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
