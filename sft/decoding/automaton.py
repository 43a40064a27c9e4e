"""Which answers about a text are well-formed, byte by byte and token by token. Nothing here knows about models.

An answer is the sentence that says there is nothing, or one JSON object a line: an entity's text is a run of the
source found, leftmost, after the end of the entity before; its label is one of the task's. So every answer parses,
every span exists, and offsets follow.

Own code: a grammar for llguidance or XGrammar cannot say where the last entity ended (its substring rule takes any run
of the whole source), so it would need one rule for each place an entity may end at; and an entity's score needs the
very set of tokens that were allowed.
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
    """Nothing said yet."""

    entities: int = 0


class Literal(NamedTuple):
    """Inside words that are always the same; ``entities`` counts the finished ones, as everywhere."""

    words: bytes
    said: int
    then: State

    @property
    def entities(self) -> int:
        return self.then.entities


class Text(NamedTuple):
    """Before an entity's text; it is to be found from byte ``cursor`` of the source on."""

    cursor: int
    entities: int


class Run(NamedTuple):
    """In an entity's text: every place of the source that its bytes so far may end at, in order; never empty."""

    places: tuple[int, ...]
    entities: int


class Label(NamedTuple):
    """In a label, ``said`` of it so far; the entity's text ended at ``cursor``."""

    said: bytes
    cursor: int
    entities: int


class After(NamedTuple):
    """After a finished entity: the next one, or the end."""

    cursor: int
    entities: int


class Nothing(NamedTuple):
    """After the sentence that says there is nothing, or after the terminator: nothing more."""

    entities: int


State = Begin | Literal | Text | Run | Label | After | Nothing


class AnswerFormat(NamedTuple):
    """The words of an answer, as bytes: what stands before, between and after an entity's text and its label."""

    opening: bytes
    between: bytes
    closing: bytes
    nothing: bytes
    labels: tuple[bytes, ...]


@lru_cache(maxsize=16)
def answer_format(labels: Sequence[str]) -> AnswerFormat:
    """The format that `sft.tasks.entity_lines.entity_line` writes, for a label set."""
    opening, rest = entity_line("甲", "乙").split("甲")
    between, closing = rest.split("乙")
    return AnswerFormat(
        opening.encode(), between.encode(), closing.encode(), NO_ENTITY.encode(), tuple(map(escaped, labels))
    )


def can_write(form: AnswerFormat, vocabulary: Vocabulary) -> bool:
    """Whether the vocabulary can write the words of the format."""
    return all(map(vocabulary.can_write, (*form[:4], *form.labels, b"\n")))


def escaped(text: str) -> bytes:
    """``text`` as it stands between the quotes of an answer."""
    return entity_line("", text).removeprefix(entity_line("", "").removesuffix('"}')).removesuffix('"}').encode()


class Automaton:
    """The well-formed answers about one text.

    Args:
        text: the source.
        form: the words of the format.
        vocabulary: what can be written; characters it cannot write are part of no entity.

    Attributes:
        source: the text's bytes, as an answer writes them.
    """

    def __init__(self, text: str, form: AnswerFormat, vocabulary: Vocabulary) -> None:
        self._form, self._vocabulary = form, vocabulary
        characters = [escaped(character) for character in text] if _needs_escape(text) else list(map(str.encode, text))
        self.source = b"".join(characters)
        self._starts: list[int] = []  # where the characters begin that can be written
        self._edges = {len(self.source)}  # where any begins, and the end
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
        """Every token that stays inside the language, and where it leads; the terminator leads to `Nothing`.

        Args:
            more: whether another entity may begin; false once an answer is long enough.
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

    def moves(self, state: State, more: bool = True) -> Iterator[tuple[int, State]]:
        """Every byte that may come next, and where it leads."""
        kind = type(state)
        if kind is Literal:
            words, said, then = state
            yield words[said], (then if said + 1 == len(words) else Literal(words, said + 1, then))
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
        at_edge = places[0] in self._edges  # all are or none is: they spell the same bytes from edges on
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
        said, cursor, entities = state
        if said in self._form.labels:
            yield CLOSING_QUOTE, Literal(self._form.closing, 1, After(cursor, entities + 1))
        going_on = {label[len(said)] for label in self._form.labels if label.startswith(said) and label != said}
        for byte in going_on:
            yield byte, Label(said + bytes((byte,)), cursor, entities)


def _needs_escape(text: str) -> bool:
    return escaped(text) != text.encode()
