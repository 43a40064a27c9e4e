"""Greedy inline answers with guesses of their next tokens: mostly the text itself. See `sft.decoding.rules.Drafts`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from sft.decoding.inline import Copy, InlineRules, Inside, Label, Nothing, State
from sft.decoding.rules import Source
from sft.decoding.vocabulary import Vocabulary
from sft.tasks.entity_lines import NO_ENTITY
from sft.tasks.entity_marks import marked

COPY_TOKENS = 16  # copied in one draft outside of marks, where the text nearly always goes on
ENTITY_TOKENS = 3  # copied in one draft inside of a mark; an entity has about as many


class InlineDrafter:
    """Guesses the source's own tokens, and in labels what was chosen most often in the same place of other answers.

    At the beginning it guesses the sentence for "no entity" as long as most answers have begun with it.

    Args:
        labels: the task's labels.
    """

    def __init__(self, vocabulary: Vocabulary, labels: Sequence[str]) -> None:
        self._chosen: dict[Hashable, Counter[int]] = defaultdict(Counter)
        self._begun: Counter[bool] = Counter()  # how many answers begin with the sentence for "no entity"
        self._nothing = 0  # its first token
        examples = [NO_ENTITY, *(marked("甲", label) for label in labels)]
        rules = InlineRules("甲", labels, vocabulary)
        for token_ids in vocabulary.encode(examples):
            state = rules.begin
            for token_id in token_ids:
                allowed = rules.allowed(state)
                if token_id not in allowed:
                    break
                self.learn(state, token_id)
                state = allowed[token_id]
                if type(state) is Nothing and not self._nothing:
                    self._nothing = token_id
        self._begun = Counter({True: 1})

    def learn(self, state: State, token_id: int, source: Source | None = None) -> None:
        """Count a token that was chosen in a state."""
        if _is_begin(state):
            self._begun[token_id == self._nothing] += 1
        elif (place := _common_place(state)) is not None:
            self._chosen[place][token_id] += 1

    def guess(self, state: State, source: Source, copied: int) -> int | None:
        """The likely next token in a state; None without any clue."""
        if _is_begin(state) and self._begun[True] >= self._begun[False]:
            return self._nothing
        if self.copying(state):
            most = ENTITY_TOKENS if type(state) is Inside else COPY_TOKENS
            return source.tokens.get(state.place) if copied < most else None
        chosen = self._chosen.get(_common_place(state))
        return chosen.most_common(1)[0][0] if chosen else None

    def copying(self, state: State) -> bool:
        """Whether a guess in this state is a token of the source."""
        return type(state) in (Copy, Inside)


def _is_begin(state: State) -> bool:
    return type(state) is Copy and state.nothing == 0


def _common_place(state: State) -> Hashable | None:
    """The part of a state that is the same for all texts; None where the text goes on."""
    if type(state) is Label:
        return state.written
    return None if type(state) in (Copy, Inside) else state
