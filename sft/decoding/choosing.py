"""Choose the tokens of a pass: the most probable ones that the rules allow, with the probability the model gives them.

A probability is one under the model's free distribution: a softmax over the whole output layer. That layer is large
(a quarter of Qwen2.5-0.5B, most of Gemma 3 270M), so it runs only where something is decided. Where fixed words go
on, which may only be cut into tokens in several ways, its rows for the allowed tokens are enough to choose one; such a
choice is no part of a score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn.functional import linear
from transformers import PreTrainedModel

from sft.decoding.rules import Rules, State
from sft.decoding.vocabulary import Vocabulary
from sft.engine.attention import at_least_float32
from sft.engine.served import served_by
from sft.engine.transfer import copied_together

CHUNK_LOGITS = 2**24  # logits over the whole vocabulary at once: 64 MB in float32
NARROW_TOKENS = 32  # where an entity may begin hundreds of tokens are allowed, elsewhere mostly fewer than ten


@dataclass
class Decision:
    """A place where a token is chosen: what may be chosen, and later the choice and its probability.

    Attributes:
        allowed: each allowed token with the state after it.
        ids: the allowed tokens, ascending.
        free: whether any plain text may be chosen, too.
        last: the answer ends here, whatever is chosen.
        decides: whether there is anything to decide: fixed words that go on decide nothing.
        weighed: whether that is weighed against the whole vocabulary (see `Rules.weighed`).
        overruled: whether the model would rather have written other plain text, which is not allowed here.
        log_probability: of the chosen token; 0 where nothing is decided.
        log_probabilities: of the allowed tokens, in the order of ``ids``; None where nothing is decided.
    """

    state: State
    allowed: Mapping[int, State]
    ids: list[int]
    free: bool
    last: bool
    decides: bool
    weighed: bool
    chosen: int = -1
    overruled: bool = False
    log_probability: float = 0.0
    log_probabilities: Sequence[float] | None = None


def decision_at(rules: Rules, state: State, more: bool, vocabulary: Vocabulary) -> Decision:
    """The decision of a state; where only one token is possible, it is chosen already.

    Args:
        more: whether another entity may begin. If not, the model is asked for one all the same where the answer may
            end, to know whether it is cut.
    """
    last = not more and rules.accepts(state)
    allowed = rules.allowed(state, more or last)
    ids = sorted(allowed)
    free = rules.free(state, more)
    decides = free or _say_different_things(ids, vocabulary)
    decision = Decision(state, allowed, ids, free, last, decides, decides and rules.weighed(state))
    if len(ids) == 1 and not free:
        decision.chosen = ids[0]
    return decision


def _say_different_things(ids: Sequence[int], vocabulary: Vocabulary) -> bool:
    """Whether some tokens are more than ways to begin the same words."""
    if len(ids) == 1:
        return False
    spellings = [vocabulary.spelling.get(token_id) for token_id in ids]
    if None in spellings:  # the terminator
        return True
    longest = max(spellings, key=len)
    return not all(map(longest.startswith, spellings))


class Asked(NamedTuple):
    """What is asked of the logits: made on the CPU before the pass, so that nobody waits for the GPU to tell.

    The decisions come in the order of `in_order`.

    Attributes:
        narrow_ids: (weighed decisions of few tokens, most tokens) the allowed tokens; a shorter row repeats its first.
        wide_ids: (weighed decisions of many tokens, most tokens) the same.
        free: (weighed decisions, 1) whether any plain text may be chosen, too.
        ids: (ids,) all tokens that some other decision allows, ascending.
        columns: (other decisions, most tokens) the allowed tokens as indices into ``ids``; -1 fills a shorter row.
    """

    narrow_ids: torch.Tensor
    wide_ids: torch.Tensor
    free: torch.Tensor
    ids: torch.Tensor
    columns: torch.Tensor


def in_order(decision: Decision) -> int:
    """The key by which decisions are sorted: first those weighed against the whole vocabulary, of few tokens first."""
    return 2 if not decision.weighed else int(len(decision.ids) > NARROW_TOKENS)


def ask(decisions: Sequence[Decision]) -> Asked:
    """What to ask for some decisions, which are sorted by `in_order`."""
    whole = [decision for decision in decisions if decision.weighed]
    narrow = sum(len(decision.ids) <= NARROW_TOKENS for decision in whole)
    others = [decision.ids for decision in decisions if not decision.weighed]
    ids = sorted({token_id for row in others for token_id in row})
    column = {token_id: index for index, token_id in enumerate(ids)}
    return Asked(
        _table([decision.ids for decision in whole[:narrow]], None),
        _table([decision.ids for decision in whole[narrow:]], None),
        torch.tensor([[decision.free] for decision in whole], dtype=torch.bool).view(-1, 1),
        torch.tensor(ids, dtype=torch.long),
        _table([[column[token_id] for token_id in row] for row in others], -1),
    )


def _table(rows: Sequence[list[int]], fill: int | None) -> torch.Tensor:
    """Lists of numbers as a tensor; shorter ones are filled up, with their first number where ``fill`` is None."""
    width = max(map(len, rows), default=0)
    filled = [row + [row[0] if fill is None else fill] * (width - len(row)) for row in rows]
    return torch.tensor(filled, dtype=torch.long).view(len(rows), width)


class Chooser:
    """Chooses the most probable possible token of each decision.

    Args:
        model: the base model, perhaps with an adapter in it.
    """

    def __init__(self, model: PreTrainedModel, vocabulary: Vocabulary) -> None:
        self.model, self.vocabulary = model, vocabulary
        self._not_plain: torch.Tensor | None = None  # (vocabulary of the model,) bool, on its device

    def choose(self, decisions: Sequence[Decision], hidden: torch.Tensor, asked: Asked) -> None:
        """Choose from the last hidden states at the places of the decisions. The host waits once, for one small table.

        Args:
            decisions: sorted by `in_order`.
            hidden: (decisions, hidden size).
            asked: on the model's device.
        """
        head, rule = self.model.get_output_embeddings(), served_by(self.model).logits
        narrow, weighed = len(asked.narrow_ids), len(asked.free)
        size = max(1, CHUNK_LOGITS // self.model.config.get_text_config().vocab_size)
        found = []
        for start in range(0, weighed, size):
            stop = min(start + size, weighed)
            logits = rule.of(at_least_float32(head(hidden[start:stop])))
            for ids, begin in ((asked.narrow_ids, 0), (asked.wide_ids, narrow)):
                first, last = max(start, begin), min(stop, begin + len(ids))
                if first < last:
                    part = logits[first - start : last - start]
                    found.append(self._weigh(part, ids[first - begin : last - begin], asked.free[first:last]))
        if weighed < len(decisions):
            if type(head) is torch.nn.Linear:  # only some of its rows
                bias = None if head.bias is None else head.bias[asked.ids]
                logits = linear(hidden[weighed:], head.weight[asked.ids], bias)
            else:  # with an adapter on it
                logits = head(hidden[weighed:])[:, asked.ids]
            found.append(_share(rule.of(at_least_float32(logits)), asked.columns))
        numbers = torch.cat([table.flatten() for table in found]).cpu().tolist()
        end = 0
        for index, decision in enumerate(decisions):
            ids = asked.narrow_ids if index < narrow else asked.wide_ids
            start, end = end, end + (ids.shape[1] + 3 if index < weighed else asked.columns.shape[1] + 1)
            (_note_weighed if index < weighed else _note_share)(decision, numbers[start:end])

    def choose_from(self, decision: Decision, logits: torch.Tensor) -> None:
        """Choose from the (vocabulary,) logits of one decision, in float32 or wider, which are used up."""
        asked = Asked(*copied_together(ask([decision]), logits.device))
        if decision.weighed:
            ids = asked.narrow_ids if len(asked.narrow_ids) else asked.wide_ids
            _note_weighed(decision, self._weigh(logits[None], ids, asked.free)[0].cpu().tolist())
        else:
            _note_share(decision, _share(logits[None, asked.ids], asked.columns)[0].cpu().tolist())

    def _weigh(self, logits: torch.Tensor, ids: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
        """For each decision the log-probabilities of its allowed tokens, whether other plain text is more probable but
        may not be chosen, the log-probability of the choice, and the choice.

        The choice is a token of free text, or -1 - the index of an allowed token, which is taken if both are equal.

        Args:
            logits: (decisions, vocabulary); overwritten.

        Returns:
            (decisions, most tokens + 3).
        """
        normaliser = logits.logsumexp(-1, keepdim=True)
        table = logits.gather(1, ids)
        best, index = table.max(-1, keepdim=True)
        other, token = logits.masked_fill_(self._not_plain_of(logits), -torch.inf).max(-1, keepdim=True)
        is_better = other > best  # of the logits: two that differ may have the same probability
        leaves = free & is_better
        chosen, choice = torch.where(leaves, other, best), torch.where(leaves, token, -1 - index)
        flags = [(is_better & ~free).to(table.dtype), chosen - normaliser, choice.to(table.dtype)]
        return torch.cat((table - normaliser, *flags), dim=1)

    def _not_plain_of(self, logits: torch.Tensor) -> torch.Tensor:
        if self._not_plain is None:
            not_plain = torch.ones(logits.shape[-1], dtype=torch.bool)
            not_plain[self.vocabulary.plain] = False
            (self._not_plain,) = copied_together([not_plain], logits.device)
        return self._not_plain


def _share(logits: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """For each decision the log-probabilities of its allowed tokens among themselves, and the index of the choice.

    Returns:
        (decisions, most tokens + 1).
    """
    table = logits.gather(1, columns.clamp(min=0)).masked_fill_(columns < 0, -torch.inf)
    return torch.cat((table.log_softmax(-1), table.argmax(-1, keepdim=True).to(table.dtype)), dim=1)


def _note_weighed(decision: Decision, numbers: Sequence[float]) -> None:
    overruled, log_probability, choice = numbers[-3:]
    decision.overruled = bool(overruled)
    # A shorter row repeats its first token.
    index = -1 - int(choice)
    decision.chosen = int(choice) if choice >= 0 else decision.ids[index if index < len(decision.ids) else 0]
    decision.log_probability = log_probability
    decision.log_probabilities = numbers[: len(decision.ids)]


def _note_share(decision: Decision, numbers: Sequence[float]) -> None:
    index = int(numbers[-1])
    decision.chosen = decision.ids[index]
    if decision.decides:
        decision.log_probabilities = numbers[: len(decision.ids)]
        decision.log_probability = decision.log_probabilities[index]
