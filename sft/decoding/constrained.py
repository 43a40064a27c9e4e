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
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from sft.decoding.automaton import Automaton, Label, answer_format
from sft.decoding.drafts import Drafter, source_tokens
from sft.decoding.rules import Drafts, Rules, State
from sft.decoding.vocabulary import Vocabulary
from sft.engine.attention import at_least_float32, common_prefix_tokens, use_packed_attention
from sft.engine.lora_copies import adapters_copied_once
from sft.engine.ragged import Cache, Feed, rows_at_once, run, run_and_send
from sft.engine.served import served_by

OVERRUN_TOKENS = 64  # room after the last token that may begin an entity, for finishing it


class Answer(NamedTuple):
    """An answer.

    Attributes:
        text: what the model says.
        scores: for each entity of ``text``, in its order, the probability of its span and label, given the answer
            before it.
        cut: whether the model would go on with another entity, but the answer is long enough.
    """

    text: str
    scores: list[float]
    cut: bool = False


@dataclass
class Row:
    """One unfinished answer.

    Attributes:
        copies: the source's own token at each byte offset where one begins.
        unread: tokens that no pass has read yet: first the prompt, later the last chosen token.
        state: the state of the rules after ``answer``.
        read: number of tokens in the row's slot of the cache.
        done: the answer is finished.
        cut: see `Answer`.
        answer: the chosen tokens, without the terminator.
        scores: log-probability of each finished entity.
        pending: log-probability of the tokens chosen since the last entity was finished.
    """

    rules: Rules
    copies: dict[int, int]
    unread: list[int]
    state: State
    slot: int = 0
    read: int = 0
    done: bool = False
    cut: bool = False
    answer: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    pending: float = 0.0


@dataclass
class Decision:
    """A place where a token is chosen: the allowed tokens, and later their probabilities and the choice."""

    state: State
    allowed: dict[int, State]
    ids: list[int]  # the allowed tokens, ascending
    last: bool = False  # the answer ends here, whatever is chosen
    log_probabilities: torch.Tensor | None = None  # (ids,) normalised over ``ids``; None if only one is allowed
    chosen: int = -1


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
    return decode_by(automata, Drafter(vocabulary, labels), model, vocabulary, prompts, bounds)


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
    copies = source_tokens([rule.source.decode() for rule in rules], vocabulary)
    rows = [
        Row(rule, tokens, list(prompt), rule.begin)
        for rule, tokens, prompt in zip(rules, copies, prompts, strict=True)
    ]
    room = bounds.answer_tokens + OVERRUN_TOKENS
    known = served_by(model)
    together = [row for row in rows if known.expresses(len(row.unread) + room)]
    alone = [row for row in rows if not known.expresses(len(row.unread) + room)]
    if together:
        longest = max(len(row.unread) for row in together) + room
        base = use_packed_attention(model)
        with adapters_copied_once(base):
            _decode_ragged(base, vocabulary, drafts, together, longest, bounds)
    _decode_padded(model, vocabulary, alone, bounds)
    lead = len(vocabulary.lead)
    return [
        Answer(
            vocabulary.join(row.answer)[lead:].decode(errors="replace"),
            [min(1.0, math.exp(score)) for score in row.scores],
            row.cut,
        )
        for row in rows
    ]


def _decode_ragged(
    base: PreTrainedModel, vocabulary: Vocabulary, drafts: Drafts, rows: list[Row], longest: int, bounds: Bounds
) -> None:
    """Finish all rows; at most as many at a time as fit into memory, the next one as soon as one is done."""
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
        _advance(base, cache, vocabulary, drafts, active, bounds)
        free = sorted(free + [row.slot for row in active if row.done])
        active = [row for row in active if not row.done]


def _advance(
    base: PreTrainedModel, cache: Cache, vocabulary: Vocabulary, drafts: Drafts, rows: Sequence[Row], bounds: Bounds
) -> None:
    """One pass: every row gets at least one token further."""
    drafted, decisions_of, feeds, places, start = [], [], [], [], 0
    for row in rows:
        draft, decisions = _draft(row, drafts, vocabulary, bounds)
        feeds.append(Feed(row.slot, row.read, row.unread + draft))
        start += len(row.unread)
        places.append(range(start - 1, start + len(draft)))
        start += len(draft)
        drafted.append(draft)
        decisions_of.append(decisions)
    open_places, open_decisions = _choose_forced(places, decisions_of)
    asked = _ask(open_decisions)
    hidden, (ids, *indices) = run_and_send(base, cache, feeds, open_places, [asked.ids, *asked.indices])
    if open_decisions:
        _choose(open_decisions, _logits(base, hidden, ids), asked.widest, *indices)
    for row, draft, decisions in zip(rows, drafted, decisions_of, strict=True):
        row.read += len(row.unread)
        for place, decision in enumerate(decisions):
            drafts.learn(decision.state, decision.chosen)
            _settle(row, decision, vocabulary)
            agreed = place < len(draft) and draft[place] == decision.chosen
            if not agreed:
                break
            row.read += 1
        row.unread = row.answer[-1:]


def _draft(row: Row, drafts: Drafts, vocabulary: Vocabulary, bounds: Bounds) -> tuple[list[int], list[Decision]]:
    """Draft tokens, and the decisions that they need: one after the chosen tokens, one after each draft token."""
    draft: list[int] = []
    state, copied = row.state, 0
    decisions = [_decision(row, state, bounds, 0)]
    while (token_id := drafts.guess(state, row.copies, copied)) in decisions[-1].allowed:
        if token_id == vocabulary.end or decisions[-1].last:  # nothing follows it
            break
        draft.append(token_id)
        copied += drafts.copying(state)
        state = decisions[-1].allowed[token_id]
        decisions.append(_decision(row, state, bounds, len(draft)))
    return draft, decisions


def _decision(row: Row, state: State, bounds: Bounds, drafted: int) -> Decision:
    more = len(row.answer) + drafted < bounds.answer_tokens
    last = not more and row.rules.accepts(state)  # the model is still asked, to know whether the answer is cut
    allowed = row.rules.allowed(state, more or last)
    return Decision(state, allowed, sorted(allowed), last)


def _choose_forced(places: Sequence[range], decisions_of: list[list[Decision]]) -> tuple[list[int], list[Decision]]:
    """Choose the token where only one is allowed. Returns the other decisions, and their places."""
    open_places, open_decisions = [], []
    for row_places, decisions in zip(places, decisions_of, strict=True):
        for place, decision in zip(row_places, decisions, strict=True):
            if len(decision.ids) == 1:
                decision.chosen = decision.ids[0]
            else:
                open_places.append(place)
                open_decisions.append(decision)
    return open_places, open_decisions


class Asked(NamedTuple):
    """What is asked of the logits: made on the CPU before the pass, so that nobody waits for the GPU to tell.

    Attributes:
        ids: (ids,) all tokens that some decision allows, ascending.
        indices: three tensors with a number for every allowed token, decision after decision: its decision, its place
            among the decision's tokens, and its column among ``ids``.
        widest: the most tokens that a decision allows.
    """

    ids: torch.Tensor
    indices: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    widest: int


def _ask(decisions: Sequence[Decision]) -> Asked:
    all_ids = torch.tensor([token_id for decision in decisions for token_id in decision.ids], dtype=torch.long)
    ids, columns = all_ids.unique(return_inverse=True)
    counts = torch.tensor([len(decision.ids) for decision in decisions], dtype=torch.long)
    rows = torch.arange(len(decisions)).repeat_interleave(counts)
    within = torch.arange(len(rows)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return Asked(ids, (rows, within, columns), max((len(decision.ids) for decision in decisions), default=0))


def _logits(base: PreTrainedModel, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """(places, ids) logits in float32 or wider. Only the rows of the head for ``ids`` are computed."""
    head = base.get_output_embeddings()
    if type(head) is torch.nn.Linear:
        logits = torch.nn.functional.linear(hidden, head.weight[ids], None if head.bias is None else head.bias[ids])
    else:  # with an adapter on it
        logits = head(hidden)[:, ids]
    return served_by(base).logits.of(at_least_float32(logits))


def _choose(
    decisions: Sequence[Decision],
    logits: torch.Tensor,
    widest: int,
    rows: torch.Tensor,
    within: torch.Tensor,
    columns: torch.Tensor,
) -> None:
    """Choose the most probable allowed token of each decision. The host waits once, for one small table.

    Args:
        logits: (decisions, tokens).
        widest, rows, within, columns: see `Asked`; ``columns`` are those of ``logits``.
    """
    table = logits.new_full((len(decisions), widest), -torch.inf)
    table[rows, within] = logits[rows, columns]
    chosen = table.argmax(-1, keepdim=True)  # of the logits: two that differ may have the same probability
    found = torch.cat((table.log_softmax(-1), chosen.to(table.dtype)), dim=1).cpu()
    for row, (decision, place) in enumerate(zip(decisions, found[:, -1].tolist(), strict=True)):
        decision.chosen = decision.ids[int(place)]
        decision.log_probabilities = found[row, : len(decision.ids)]


def _settle(row: Row, decision: Decision, vocabulary: Vocabulary) -> None:
    """Add the chosen token to the row's answer and scores."""
    if decision.last or decision.chosen == vocabulary.end:
        row.done, row.cut = True, decision.chosen != vocabulary.end
        return
    after = decision.allowed[decision.chosen]
    row.answer.append(decision.chosen)
    row.state = after
    if decision.log_probabilities is None:
        chosen_score = 0.0
    else:
        chosen_score = decision.log_probabilities[decision.ids.index(decision.chosen)].item()
    if after.entities == decision.state.entities:
        row.pending += chosen_score
        return
    # The token that ends a label may also say whether another entity follows; that part belongs to the next score.
    finishing = _finishing_score(decision, vocabulary)
    row.scores.append(row.pending + finishing)
    row.pending = chosen_score - finishing


def _finishing_score(decision: Decision, vocabulary: Vocabulary) -> float:
    """Log-probability of ending the label as the chosen token does, summed over all ways to continue after it."""
    if decision.log_probabilities is None:
        return 0.0
    if type(decision.state) is not Label:  # one token holds the whole label
        return decision.log_probabilities[decision.ids.index(decision.chosen)].item()
    rest = vocabulary.spelling[decision.chosen].split(b'"')[0]
    same = [
        index
        for index, token_id in enumerate(decision.ids)
        if decision.allowed[token_id].entities > decision.state.entities
        and vocabulary.spelling[token_id].split(b'"')[0] == rest
    ]
    return decision.log_probabilities[same].logsumexp(0).item()


def _decode_padded(model: PreTrainedModel, vocabulary: Vocabulary, rows: Sequence[Row], bounds: Bounds) -> None:
    """Plain constrained greedy decoding in padded batches: for models whose attention cannot be ragged."""
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
                    decision = _decision(row, row.state, bounds, 0)
                    asked = _ask([decision])
                    _choose([decision], logits[index : index + 1, asked.ids], asked.widest, *asked.indices)
                    _settle(row, decision, vocabulary)
            input_ids = torch.tensor([[(row.answer or [vocabulary.end])[-1]] for row in batch])
            attention_mask = torch.cat((attention_mask, attention_mask.new_ones((len(batch), 1))), dim=1)
