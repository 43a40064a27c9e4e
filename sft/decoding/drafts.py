"""Guess the next tokens of an answer; one forward pass checks them all.

A wrong guess costs time but never changes an answer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from sft.decoding.automaton import (
    CLOSING_QUOTE,
    After,
    Automaton,
    Begin,
    Label,
    Literal,
    Run,
    SoFar,
    State,
    Text,
    answer_format,
)
from sft.decoding.names import HEAD_BYTES, PASSED_OVER, Names
from sft.decoding.rules import Source
from sft.decoding.vocabulary import Vocabulary
from sft.tasks.entity_lines import NO_ENTITY, entity_line

COPY_TOKENS = 3  # tokens of unknown names copied in one draft; an entity has about as many
EMPTY = Source(b"", {}, ())


class Drafter:
    """Guesses what was chosen most often in the same place of other answers, by the most telling clue that was seen.

    A name that other answers found ends where it did there, and gets the same label; a new one gets the label of names
    with the same first and last character. Two example answers give the first counts.

    Args:
        labels: the task's labels.
        bold: guess more, and be wrong more often: where names begin that other answers found, or that begin alike, and
            that a new name ends at a usual length. It saves a fifth of the passes for a sixth more tokens. Meant for a
            GPU, where a pass costs its launches more than its tokens; on a CPU it costs its tokens.
    """

    def __init__(self, vocabulary: Vocabulary, labels: Sequence[str], bold: bool = False) -> None:
        self._bold = bold
        form = answer_format(tuple(labels))
        self._spelling, self._labels = vocabulary.spelling, frozenset(form.labels)
        self._names = Names()
        self._chosen: dict[Hashable, Counter[int]] = defaultdict(Counter)
        self._closing: Counter[int] = Counter()  # tokens that ended a name
        self._ended: Counter[int] = Counter()  # bytes of a name → how often it ended there; going on counts against it
        example = Automaton("甲" * len(labels), form, vocabulary)
        lines = "\n".join(entity_line("甲", label) for label in labels)
        for token_ids in vocabulary.encode([NO_ENTITY, lines]):
            state = example.begin
            for token_id in token_ids:
                allowed = example.allowed(state)
                if token_id not in allowed:
                    break
                if type(state) not in (Run, Text):  # its names tell nothing
                    self._count(state, token_id, EMPTY)
                state = allowed[token_id]

    def learn(self, state: State, token_id: int, source: Source) -> None:
        """Count a token that was chosen in a state."""
        kind = type(state)
        if kind is Text:
            if self._bold:
                self._names.learn_beginning(source, state.so_far.cursor, token_id)
        elif kind is Run:
            ended = self._spelling.get(token_id, b"")[:1] == bytes((CLOSING_QUOTE,))
            self._ended[state.written] += 1 if ended else -PASSED_OVER
            if ended:
                self._closing[token_id] += 1
        else:
            if kind is Label and not state.written and (name := _last_name(state.so_far, source)):
                self._names.learn(name)
            if self._bold and kind is After and token_id not in self._spelling:  # the terminator
                self._names.learn_end(source, state.so_far.cursor)
            self._count(state, token_id, source)

    def guess(self, state: State, source: Source, copied: int) -> int | None:
        """The likely next token in a state; None without any clue."""
        kind = type(state)
        if kind is Text:
            place = self._names.next_place(source, state.so_far.cursor) if self._bold else None
            return None if place is None else source.tokens[place]
        if kind is Run:
            return self._guess_in_name(state, source, copied)
        for clues in self._clues(state, source):
            seen = [self._chosen[clue] for clue in clues if clue in self._chosen]
            if seen:
                return sum(seen[1:], seen[0]).most_common(1)[0][0]
        return None

    def copying(self, state: State) -> bool:
        """Whether a guess in this state is a token of the source."""
        return type(state) is Run

    def _guess_in_name(self, state: Run, source: Source, copied: int) -> int | None:
        place = state.places[0]
        name = self._names.at(source.text, place - state.written)
        known = name is not None and len(name) >= state.written
        usual = self._bold and self._ended[state.written] > 0
        if len(name) == state.written if known else usual:
            return self._closing.most_common(1)[0][0] if self._closing else None
        return source.tokens.get(place) if known or copied < COPY_TOKENS else None

    def _count(self, state: State, token_id: int, source: Source) -> None:
        for clues in self._clues(state, source):
            for clue in clues:
                self._chosen[clue][token_id] += 1

    def _clues(self, state: State, source: Source) -> list[tuple[Hashable, ...]]:
        """What tells the next token, the most telling first; what stands together is added up."""
        kind = type(state)
        if kind is Literal:
            return [((state.words, state.written),)]
        if kind is Label and state.written not in self._labels:
            clues: list[tuple[Hashable, ...]] = [((state.written,),)]
            if name := _last_name(state.so_far, source):
                head, tail = name[:HEAD_BYTES], name[-HEAD_BYTES:]
                clues = [((state.written, name),), ((state.written, head, ""), (state.written, "", tail)), *clues]
            return clues
        if kind not in (Begin, After, Label):
            return []
        if not self._bold:
            return [((kind,),)]
        cursor = 0 if kind is Begin else state.so_far.cursor
        return [((kind, self._names.next_place(source, cursor) is not None),), ((kind,),)]


def _last_name(so_far: SoFar, source: Source) -> bytes | None:
    """The entity whose label comes next, if it has a place."""
    if not so_far.taken or so_far.unplaced:
        return None
    start, end = so_far.taken[-1]
    return source.text[start:end]


def sources_of(texts: Sequence[bytes], vocabulary: Vocabulary) -> list[Source]:
    """Each escaped text with its tokens."""
    found = []
    for text, token_ids in zip(texts, vocabulary.encode([text.decode() for text in texts]), strict=True):
        at, place = {}, -len(vocabulary.lead)
        for token_id in token_ids:
            at[place] = token_id
            place += len(vocabulary.join([token_id]))
        found.append(Source(text, at, tuple(at)))
    return found
