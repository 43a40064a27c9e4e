"""Greedy answers under the constraint of an `Automaton`, many rows at a time, in a few passes each.

The input of a pass is, for every row, the tokens that no pass has read yet, and a draft of the tokens that may follow:
words that are always the same, the tokens of the source inside an entity, the most frequent label. At each drafted
place the pass shows the most probable allowed token, which is the one that plain constrained greedy decoding takes.
The draft is kept up to the first place where it differs. So the answer is the same, token by token (speculative
decoding, Leviathan et al., arXiv 2211.17192, with prompt lookup as the drafter). When a row is finished, the next row
takes its slot.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from sft.decoding.automaton import Automaton, answer_format
from sft.decoding.choosing import Asked, Chooser, Decision, ask, decision_at, in_order
from sft.decoding.drafts import Drafter, sources_of
from sft.decoding.rules import Drafts, Rules, Source, State
from sft.decoding.vocabulary import Vocabulary
from sft.engine.attention import at_least_float32, common_prefix_tokens, use_packed_attention
from sft.engine.lora_node import adapters_copied, one_node_layers
from sft.engine.ragged import Cache, Feed, rows_at_once, run, run_and_send
from sft.engine.served import served_by

LEAST = sys.float_info.min  # a probability that is 0 in float64
OVERRUN_TOKENS = 64  # room after the last token that may begin an entity, for finishing it


class Answer(NamedTuple):
    """An answer.

    Attributes:
        text: what the model says.
        scores: for each entity of ``text``, in its order, the probability of its span and label, given the answer
            before it.
        cut: whether the model would go on with another entity, but the answer is long enough.
        overruled: the numbers of the entities of ``text`` in which the model would rather have written other text than
            the rules allow.
    """

    text: str
    scores: list[float]
    cut: bool = False
    overruled: frozenset[int] = frozenset()


@dataclass
class Row:
    """One unfinished answer.

    Attributes:
        source: the text.
        unread: tokens that no pass has read yet: first the prompt, later the last chosen token.
        state: the state of the rules after ``answer``.
        read: number of tokens in the row's slot of the cache.
        done: the answer is finished.
        cut: see `Answer`.
        answer: the chosen tokens, without the terminator.
        scores: log-probability of each finished entity.
        pending: log-probability of the tokens chosen since the last entity was finished.
        overruled: see `Answer`.
    """

    rules: Rules
    source: Source
    unread: list[int]
    state: State
    slot: int = 0
    read: int = 0
    done: bool = False
    cut: bool = False
    answer: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    pending: float = 0.0
    overruled: set[int] = field(default_factory=set)


class Bounds(NamedTuple):
    """How many rows are decoded at the same time, and how long an answer can be.

    Attributes:
        rows: rows at the same time, at most; on a GPU more of them (see `sft.engine.ragged.rows_at_once`).
        answer_tokens: after so many tokens of an answer, no entity begins.
        max_tokens: tokens in memory at the same time, at most; None: no limit.
    """

    rows: int
    answer_tokens: int
    max_tokens: int | None = None


def decode(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    labels: Sequence[str],
    texts: Sequence[str],
    prompts: Sequence[list[int]],
    bounds: Bounds,
) -> list[Answer]:
    """The greedy well-formed answer in JSON lines to each prompt about its text."""
    form = answer_format(tuple(labels))
    automata = [Automaton(text, form, vocabulary) for text in texts]
    drafter = Drafter(vocabulary, labels, bold=model.device.type != "cpu")
    return decode_by(automata, drafter, model, vocabulary, prompts, bounds)


@torch.no_grad()
def decode_by(
    rules: Sequence[Rules],
    drafts: Drafts,
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    prompts: Sequence[list[int]],
    bounds: Bounds,
) -> list[Answer]:
    """The greedy answer to each prompt that is well-formed by its rules.

    Args:
        drafts: guesses for all of the rows.
    """
    sources = sources_of([rule.source for rule in rules], vocabulary)
    rows = [
        Row(rule, source, list(prompt), rule.begin)
        for rule, source, prompt in zip(rules, sources, prompts, strict=True)
    ]
    known = served_by(model)
    together = [row for row in rows if known.expresses(_tokens_at_most(row, bounds))]
    alone = [row for row in rows if not known.expresses(_tokens_at_most(row, bounds))]
    if together:
        longest = max(_tokens_at_most(row, bounds) for row in together)
        base = use_packed_attention(model)
        with adapters_copied(one_node_layers(base)):
            _decode_ragged(Chooser(base, vocabulary), drafts, together, longest, bounds)
    _decode_padded(model, vocabulary, alone, bounds)
    lead = len(vocabulary.lead)
    return [
        Answer(
            vocabulary.join(row.answer)[lead:].decode(errors="replace"),
            [min(1.0, math.exp(score)) for score in row.scores],
            row.cut,
            frozenset(row.overruled),
        )
        for row in rows
    ]


def _most_tokens(row: Row, bounds: Bounds) -> int:
    """After so many tokens of the answer, no entity begins."""
    return min(bounds.answer_tokens, row.rules.most_tokens or bounds.answer_tokens)


def _tokens_at_most(row: Row, bounds: Bounds) -> int:
    """The prompt and the answer."""
    return len(row.unread) + _most_tokens(row, bounds) + OVERRUN_TOKENS


def _decode_ragged(chooser: Chooser, drafts: Drafts, rows: list[Row], longest: int, bounds: Bounds) -> None:
    """Finish all rows; at most as many at a time as fit into memory, the next one as soon as one is done."""
    base = chooser.model
    slots = min(rows_at_once(base, bounds.rows, longest), len(rows))
    if bounds.max_tokens is not None:
        slots = max(1, min(slots, bounds.max_tokens // longest))
    cache = Cache(slots, max(len(row.unread) for row in rows) + OVERRUN_TOKENS)
    shared = common_prefix_tokens([row.unread for row in rows], own=1)
    if shared:
        run(base, cache, [Feed(0, 0, rows[0].unread[:shared])], [])
        cache.share(shared)
    waiting, free, active = deque(rows), list(range(slots)), []
    while waiting or active:
        while waiting and free:
            row = waiting.popleft()
            row.slot, row.read, row.unread = free.pop(0), shared, row.unread[shared:]
            active.append(row)
        active.sort(key=lambda row: row.slot)
        _advance(chooser, cache, drafts, active, bounds)
        free = sorted(free + [row.slot for row in active if row.done])
        active = [row for row in active if not row.done]


def _advance(chooser: Chooser, cache: Cache, drafts: Drafts, rows: Sequence[Row], bounds: Bounds) -> None:
    """One pass: every row gets at least one token further."""
    drafted, decisions_of, feeds, places, start = [], [], [], [], 0
    for row in rows:
        draft, decisions = draft_of(row, drafts, chooser.vocabulary, bounds)
        feeds.append(Feed(row.slot, row.read, row.unread + draft))
        start += len(row.unread)
        places += range(start - 1, start + len(draft))
        start += len(draft)
        drafted.append(draft)
        decisions_of.append(decisions)
    asked_at = zip(places, (decision for decisions in decisions_of for decision in decisions), strict=True)
    unsettled = [(place, decision) for place, decision in asked_at if decision.chosen < 0]
    unsettled.sort(key=lambda found: in_order(found[1]))
    unsettled_places, unsettled_decisions = [place for place, _ in unsettled], [decision for _, decision in unsettled]
    hidden, asked = run_and_send(chooser.model, cache, feeds, unsettled_places, ask(unsettled_decisions))
    if unsettled:
        chooser.choose(unsettled_decisions, hidden, Asked(*asked))
    for row, draft, decisions in zip(rows, drafted, decisions_of, strict=True):
        row.read += len(row.unread)
        for place, decision in enumerate(decisions):
            drafts.learn(decision.state, decision.chosen, row.source)
            _settle(row, decision, chooser.vocabulary)
            agreed = place < len(draft) and draft[place] == decision.chosen
            if not agreed:
                break
            row.read += 1
        row.unread = row.answer[-1:]


def draft_of(row: Row, drafts: Drafts, vocabulary: Vocabulary, bounds: Bounds) -> tuple[list[int], list[Decision]]:
    """The draft of a row, and the decisions that it needs: one after the chosen tokens, one after each draft token."""
    draft: list[int] = []
    state, copied = row.state, 0
    decisions = [_decision(row, state, vocabulary, bounds, 0)]
    while (token_id := drafts.guess(state, row.source, copied)) in decisions[-1].allowed:
        if token_id == vocabulary.end or decisions[-1].last:  # nothing follows it
            break
        draft.append(token_id)
        copied += drafts.copying(state)
        state = decisions[-1].allowed[token_id]
        decisions.append(_decision(row, state, vocabulary, bounds, len(draft)))
    return draft, decisions


def _decision(row: Row, state: State, vocabulary: Vocabulary, bounds: Bounds, drafted: int) -> Decision:
    return decision_at(row.rules, state, len(row.answer) + drafted < _most_tokens(row, bounds), vocabulary)


def _settle(row: Row, decision: Decision, vocabulary: Vocabulary) -> None:
    """Add the chosen token to the row's answer and scores."""
    if decision.last or decision.chosen == vocabulary.end:
        row.done, row.cut = True, decision.chosen != vocabulary.end
        return
    before, spelt = decision.state, vocabulary.spelling[decision.chosen]
    after = decision.allowed.get(decision.chosen) or row.rules.after(before, spelt)
    row.answer.append(decision.chosen)
    row.state = after
    if decision.overruled:
        row.overruled.add(before.entities)
    if after.entities == before.entities:
        row.pending = row.pending + decision.log_probability if row.rules.scored(after) else 0.0
        return
    # The token that finishes an entity may also say whether another one follows; that belongs to the next score.
    finishing = _finishing_score(row.rules, decision, vocabulary)
    row.scores.append(row.pending + finishing)
    row.pending = decision.log_probability - finishing if row.rules.scored(after) else 0.0


def _finishing_score(rules: Rules, decision: Decision, vocabulary: Vocabulary) -> float:
    """Log-probability of finishing the entity as the chosen token does, summed over all ways to go on after it."""
    if decision.log_probabilities is None:
        return 0.0
    before, spelt = decision.state, vocabulary.spelling[decision.chosen]
    ends = (spelt[:count] for count in range(1, len(spelt)))
    rest = next((part for part in ends if rules.after(before, part).entities > before.entities), spelt)
    return math.log(
        math.fsum(
            math.exp(log_probability)
            for token_id, log_probability in zip(decision.ids, decision.log_probabilities, strict=True)
            if vocabulary.spelling.get(token_id, b"").startswith(rest)
        )
        or LEAST
    )


def _decode_padded(model: PreTrainedModel, vocabulary: Vocabulary, rows: Sequence[Row], bounds: Bounds) -> None:
    """Plain constrained greedy decoding in padded batches: for models whose attention cannot be ragged."""
    chooser = Chooser(model, vocabulary)
    for start in range(0, len(rows), bounds.rows):
        batch = rows[start : start + bounds.rows]
        width = max(len(row.unread) for row in batch)
        input_ids = torch.full((len(batch), width), vocabulary.end)
        attention_mask = torch.zeros((len(batch), width), dtype=torch.long)
        for index, row in enumerate(batch):
            input_ids[index, width - len(row.unread) :] = torch.tensor(row.unread)
            attention_mask[index, width - len(row.unread) :] = 1
        past = None
        while not all(row.done for row in batch):
            output = model(
                input_ids=input_ids.to(model.device),
                attention_mask=attention_mask.to(model.device),
                position_ids=(attention_mask.cumsum(-1) - 1).clamp_(min=0)[:, -input_ids.shape[1] :].to(model.device),
                past_key_values=past,
                use_cache=True,
                logits_to_keep=1,
            )
            past = output.past_key_values
            logits = at_least_float32(output.logits[:, -1]).cpu()
            for index, row in enumerate(batch):
                if not row.done:
                    decision = _decision(row, row.state, vocabulary, bounds, 0)
                    if decision.chosen < 0:
                        chooser.choose_from(decision, logits[index])
                    _settle(row, decision, vocabulary)
            input_ids = torch.tensor([[(row.answer or [vocabulary.end])[-1]] for row in batch])
            attention_mask = torch.cat((attention_mask, attention_mask.new_ones((len(batch), 1))), dim=1)
