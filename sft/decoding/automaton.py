"""Which answers about a text are well-formed, byte by byte and token by token. No model is used here.

An answer is either the fixed sentence for "no entity", or one JSON object a line. The text of an entity is a part of
the source that starts after the end of the previous entity, at its leftmost occurrence there; its label is one of the
task's. So every answer can be parsed, every span exists in the source, and its offsets are known.

Why not a grammar library: in llguidance and XGrammar a substring rule accepts any part of the whole source, so a
grammar would need one rule for each place where an entity may end. And the score of an entity needs the exact set of
allowed tokens at each step.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from sft.decoding.vocabulary import Node, Vocabulary
from sft.tasks.entity_lines import NO_ENTITY, entity_line

CLOSING_QUOTE = ord('"')


class Begin(NamedTuple):
    """The answer is still empty."""

    entities: int = 0


class Literal(NamedTuple):
    """Inside fixed words, of which ``written`` bytes are written. ``entities`` is the number of finished entities."""

    words: bytes
    written: int
    then: State

    @property
    def entities(self) -> int:
        return self.then.entities


class Text(NamedTuple):
    """Before an entity's text, which must start at byte ``cursor`` of the source or later."""

    cursor: int
    entities: int


class Run(NamedTuple):
    """Inside an entity's text. ``places``: byte offsets in the source where the bytes so far may end, ascending."""

    places: tuple[int, ...]
    entities: int


class Label(NamedTuple):
    """Inside a label, of which ``written`` is written; the entity's text ended at byte ``cursor``."""

    written: bytes
    cursor: int
    entities: int


class After(NamedTuple):
    """After a finished entity: another one may follow, or the end."""

    cursor: int
    entities: int


class Nothing(NamedTuple):
    """After the sentence for "no entity", or after the terminator: nothing may follow."""

    entities: int


State = Begin | Literal | Text | Run | Label | After | Nothing


class AnswerFormat(NamedTuple):
    """The fixed words of an answer, as bytes.

    Attributes:
        opening: before an entity's text.
        between: between its text and its label.
        closing: after its label.
        nothing: the sentence for "no entity".
        labels: the labels as an answer writes them.
    """

    opening: bytes
    between: bytes
    closing: bytes
    nothing: bytes
    labels: tuple[bytes, ...]


@lru_cache(maxsize=16)
def answer_format(labels: Sequence[str]) -> AnswerFormat:
    """The format of `sft.tasks.entity_lines.entity_line` for a label set."""
    opening, rest = entity_line("甲", "乙").split("甲")
    between, closing = rest.split("乙")
    return AnswerFormat(
        opening.encode(), between.encode(), closing.encode(), NO_ENTITY.encode(), tuple(map(escaped, labels))
    )


def can_write(form: AnswerFormat, vocabulary: Vocabulary) -> bool:
    """Whether the vocabulary can write the words of the format."""
    return all(map(vocabulary.can_write, (*form[:4], *form.labels, b"\n")))


def escaped(text: str) -> bytes:
    """``text`` as an answer writes it between quotes."""
    return entity_line("", text).removeprefix(entity_line("", "").removesuffix('"}')).removesuffix('"}').encode()


class Automaton:
    """The well-formed answers about one text.

    Args:
        text: the source.
        form: the fixed words of an answer.
        vocabulary: the tokens; an entity holds no character that they cannot write.

    Attributes:
        source: the bytes of the text, as an answer writes them.
        begin: the state before the first token.
        most_tokens: see `sft.decoding.rules.Rules`.
    """

    most_tokens = None

    def __init__(self, text: str, form: AnswerFormat, vocabulary: Vocabulary) -> None:
        self._form, self._vocabulary = form, vocabulary
        characters = [escaped(character) for character in text] if _needs_escape(text) else list(map(str.encode, text))
        self.source = b"".join(characters)
        self._starts: list[int] = []  # byte offsets of the characters that can be written
        self._edges = {len(self.source)}  # byte offsets of all characters, and the end
        place = 0
        for character in characters:
            self._edges.add(place)
            if vocabulary.can_write(character):
                self._starts.append(place)
            place += len(character)
        self._writable = frozenset(self._starts)
        self.begin = Literal(vocabulary.lead, 0, Begin()) if vocabulary.lead else Begin()

    def accepts(self, state: State) -> bool:
        """Whether an answer may end here."""
        return type(state) in (After, Nothing)

    def allowed(self, state: State, more: bool = True) -> dict[int, State]:
        """Every token that may come next, with the state after it; the terminator leads to `Nothing`.

        Args:
            more: whether another entity may begin; false once the answer is long enough.
        """
        found: dict[int, State] = {self._vocabulary.end: Nothing(state.entities)} if self.accepts(state) else {}
        stack: list[tuple[Node, State]] = [(self._vocabulary.root, state)]
        while stack:
            node, before = stack.pop()
            for byte, after in self.moves(before, more):
                child = node.child(byte)
                if child is not None:
                    for token_id in child.ids:
                        found[token_id] = after
                    stack.append((child, after))
        return found

    def scored(self, state: State) -> bool:
        """True: every token of an answer belongs to one of its lines, and so to an entity."""
        return True

    def moves(self, state: State, more: bool = True) -> Iterator[tuple[int, State]]:
        """Every byte that may come next, with the state after it."""
        kind = type(state)
        if kind is Literal:
            words, written, then = state
            yield words[written], (then if written + 1 == len(words) else Literal(words, written + 1, then))
        elif kind is Run:
            yield from self._moves_in_run(state)
        elif kind is Label:
            yield from self._moves_in_label(state)
        elif kind is Text:
            yield from self._moves_into_run(state)
        elif kind is After:
            if more and self._has_text_after(state.cursor):
                yield ord("\n"), Literal(self._form.opening, 0, Text(state.cursor, state.entities))
        elif kind is Begin:
            nothing, opening = self._form.nothing, self._form.opening
            yield nothing[0], Literal(nothing, 1, Nothing(0))
            if self._starts:
                yield opening[0], Literal(opening, 1, Text(0, 0))

    def _has_text_after(self, cursor: int) -> bool:
        return bool(self._starts) and self._starts[-1] >= cursor

    def _moves_into_run(self, state: Text) -> Iterator[tuple[int, State]]:
        places = defaultdict(list)
        for start in self._starts[bisect_left(self._starts, state.cursor) :]:
            places[self.source[start]].append(start + 1)
        for byte, after in places.items():
            yield byte, Run(tuple(after), state.entities)

    def _moves_in_run(self, state: Run) -> Iterator[tuple[int, State]]:
        places = state.places
        # Either all places are at an edge or none is: the same bytes lead to all of them, starting at an edge.
        at_edge = places[0] in self._edges
        if at_edge:
            yield CLOSING_QUOTE, Literal(self._form.between, 1, Label(b"", places[0], state.entities))
        if len(places) == 1:
            (place,) = places
            if not at_edge or place in self._writable:
                yield self.source[place], Run((place + 1,), state.entities)
            return
        following = defaultdict(list)
        for place in places:
            if not at_edge or place in self._writable:
                following[self.source[place]].append(place + 1)
        for byte, after in following.items():
            yield byte, Run(tuple(after), state.entities)

    def _moves_in_label(self, state: Label) -> Iterator[tuple[int, State]]:
        written, cursor, entities = state
        if written in self._form.labels:
            yield CLOSING_QUOTE, Literal(self._form.closing, 1, After(cursor, entities + 1))
        going_on = {
            label[len(written)] for label in self._form.labels if label.startswith(written) and label != written
        }
        for byte in going_on:
            yield byte, Label(written + bytes((byte,)), cursor, entities)


def _needs_escape(text: str) -> bool:
    return escaped(text) != text.encode()
