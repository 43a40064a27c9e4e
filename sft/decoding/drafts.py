"""Guess the next tokens of an answer; one forward pass checks them all.

A wrong guess costs time but never changes an answer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from sft.decoding.automaton import After, Automaton, Begin, Label, Literal, Run, State, answer_format
from sft.decoding.vocabulary import Vocabulary
from sft.tasks.entity_lines import NO_ENTITY, entity_line

COPY_TOKENS = 3  # tokens copied from the source in one draft; an entity has about as many


class Drafter:
    """Guesses what was chosen most often in the same place of other answers.

    Only places that all texts share are counted: the fixed words, the labels, and whether another entity follows.
    Two example answers give the first counts.

    Args:
        labels: the task's labels.
    """

    def __init__(self, vocabulary: Vocabulary, labels: Sequence[str]) -> None:
        self._chosen: dict[Hashable, Counter[int]] = defaultdict(Counter)
        source = "甲" * len(labels)
        example = Automaton(source, answer_format(tuple(labels)), vocabulary)
        lines = "\n".join(entity_line("甲", label) for label in labels)
        for token_ids in vocabulary.encode([NO_ENTITY, lines]):
            state = example.begin
            for token_id in token_ids:
                allowed = example.allowed(state)
                if token_id not in allowed:
                    break
                self.learn(state, token_id)
                state = allowed[token_id]

    def learn(self, state: State, token_id: int) -> None:
        """Count a token that was chosen in a state."""
        if (place := _common_place(state)) is not None:
            self._chosen[place][token_id] += 1

    def guess(self, state: State, copies: dict[int, int], copied: int) -> int | None:
        """The likely next token in a state; None without any clue.

        Args:
            copies: the source's own token at each byte offset where one begins.
            copied: how many tokens of this draft are already copied from the source.
        """
        if self.copying(state):
            return copies.get(state.places[0]) if copied < COPY_TOKENS else None
        chosen = self._chosen.get(_common_place(state))
        return chosen.most_common(1)[0][0] if chosen else None

    def copying(self, state: State) -> bool:
        """Whether a guess in this state is a token of the source."""
        return type(state) is Run


def source_tokens(texts: Sequence[str], vocabulary: Vocabulary) -> list[dict[int, int]]:
    """For each escaped text: byte offset → the token that begins there when the text is encoded."""
    found = []
    for token_ids in vocabulary.encode(list(texts)):
        at, place = {}, -len(vocabulary.lead)
        for token_id in token_ids:
            at[place] = token_id
            place += len(vocabulary.join([token_id]))
        found.append(at)
    return found


def _common_place(state: State) -> Hashable | None:
    """The part of a state that is the same for all texts; None inside an entity's text."""
    kind = type(state)
    if kind is Literal:
        return state.words, state.written
    if kind is Label:
        return state.written
    return kind if kind in (Begin, After) else None
