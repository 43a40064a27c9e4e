"""Which answers about a text are well-formed, byte by byte and token by token. No model is used here.

An answer is either the fixed sentence for "no entity", or one JSON object a line; its label is one of the task's. So
every answer can be parsed. The text of an entity is what the model says: mostly a part of the source, wherever it is,
but any plain text is allowed. A model that is made to say other words than its own says wrong ones; a name that is not
in the source, or none of whose places is free, is left out of the result instead (see
`sft.tasks.entity_lines.read_lines`). Where such a name is said again and again, without a new entity in between, the
model goes round in circles: the answer ends.

Why not a grammar library: in llguidance and XGrammar a grammar does not know which places of the source are taken. And
drafts copy from the place in the source where the model is.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

from sft.decoding.vocabulary import Node, Vocabulary
from sft.tasks.entity_lines import NO_ENTITY, entity_line

CLOSING_QUOTE = ord('"')
ESCAPE = ord("\\")
ROUNDS = 3  # a weak model may find a new entity after some rounds: with one, CCFBDCI loses 0.6 points of recall


class SoFar(NamedTuple):
    """What the answer has said.

    Attributes:
        entities: the finished entities, those that are left out too.
        cursor: byte of the source where the last of the placed entities ends; the next one is looked for from here.
        taken: bytes of the source where the placed entities begin and end.
        unplaced: the texts without a place that were said since the last placed entity.
        circles: whether one of these was said more than `ROUNDS` times.
    """

    entities: int = 0
    cursor: int = 0
    taken: tuple[tuple[int, int], ...] = ()
    unplaced: tuple[bytes, ...] = ()
    circles: bool = False

    def said(self, text: bytes, starts: Sequence[int]) -> SoFar:
        """After the text of one more entity, which stands at ``starts`` in the source, those from ``cursor`` on first.

        It is placed as `sft.tasks.entity_lines.occurrence` does.
        """
        for start in starts:
            end = start + len(text)
            if start >= self.cursor or all(end <= begin or stop <= start for begin, stop in self.taken):
                return SoFar(self.entities, max(self.cursor, end), (*self.taken, (start, end)))
        return self._replace(unplaced=(*self.unplaced, text), circles=self.unplaced.count(text) >= ROUNDS)


class Begin(NamedTuple):
    """The answer is still empty."""

    entities: int = 0


class Literal(NamedTuple):
    """Inside fixed words, of which ``written`` bytes are written."""

    words: bytes
    written: int
    then: State

    @property
    def entities(self) -> int:
        return self.then.entities


class Text(NamedTuple):
    """Before an entity's text."""

    so_far: SoFar

    @property
    def entities(self) -> int:
        return self.so_far.entities


class Run(NamedTuple):
    """Inside an entity's text, which is a part of the source so far.

    Attributes:
        places: bytes of the source where it may end: first those of parts that begin at the cursor or later, then
            the others, both ascending.
        written: how many bytes it has.
    """

    places: tuple[int, ...]
    written: int
    so_far: SoFar

    @property
    def entities(self) -> int:
        return self.so_far.entities


class Invented(NamedTuple):
    """Inside an entity's text, which is not in the source."""

    text: bytes
    so_far: SoFar

    @property
    def entities(self) -> int:
        return self.so_far.entities


class Label(NamedTuple):
    """Inside a label, of which ``written`` is written."""

    written: bytes
    so_far: SoFar

    @property
    def entities(self) -> int:
        return self.so_far.entities


class After(NamedTuple):
    """After a finished entity: another one may follow, or the end."""

    so_far: SoFar

    @property
    def entities(self) -> int:
        return self.so_far.entities


class Nothing(NamedTuple):
    """After the sentence for "no entity", or after the terminator: nothing may follow."""

    entities: int


State = Begin | Literal | Text | Run | Invented | Label | After | Nothing


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
    """The well-formed answers about one text. See `sft.decoding.rules.Rules` for what its methods mean.

    Args:
        text: the source.
        form: the fixed words of an answer.
        vocabulary: the tokens; a part of the source holds no character that they cannot write.

    Attributes:
        source: the bytes of the text, as an answer writes them.
        begin: the state before the first token.
        most_tokens: see `sft.decoding.rules.Rules`.
        vocabulary: as given.
    """

    most_tokens = None

    def __init__(self, text: str, form: AnswerFormat, vocabulary: Vocabulary) -> None:
        self._form, self.vocabulary = form, vocabulary
        characters = [escaped(character) for character in text] if _needs_escape(text) else list(map(str.encode, text))
        self.source = b"".join(characters)
        self._starts: list[int] = []  # byte offsets of the characters that can be written
        self._edges = {len(self.source)}  # byte offsets of all characters, and the end
        self._escaped: set[int] = set()  # byte offsets inside an escape
        place = 0
        for character in characters:
            self._edges.add(place)
            if vocabulary.can_write(character):
                self._starts.append(place)
            if character[0] == ESCAPE:
                self._escaped.update(range(place + 1, place + len(character)))
            place += len(character)
        self._writable = frozenset(self._starts)
        self.begin = Literal(vocabulary.lead, 0, Begin()) if vocabulary.lead else Begin()

    def accepts(self, state: State) -> bool:
        """See `Rules`."""
        return type(state) in (After, Nothing)

    def weighed(self, state: State) -> bool:
        """See `Rules`: everything that is decided belongs to the score of an entity."""
        return True

    def free(self, state: State, more: bool = True) -> bool:
        """See `Rules`: inside an entity's text, which is never longer than the source."""
        kind = type(state)
        if kind is Run:
            return more and state.places[0] not in self._escaped
        return more and (kind is Text or (kind is Invented and len(state.text) < len(self.source)))

    def allowed(self, state: State, more: bool = True) -> Mapping[int, State]:
        """See `Rules`."""
        if type(state) is Text and self._openings is not None:
            return Openings(self._openings, state, self)
        return self._walked(state, more)

    @cached_property
    def _openings(self) -> dict[int, State] | None:
        """The tokens with which the first entity's text may begin, ascending, with the states after them.

        None if one of them also finishes the entity: what else it holds then depends on what was said before.
        """
        found = self._walked(Text(SoFar()), more=True)
        return None if any(after.entities for after in found.values()) else dict(sorted(found.items()))

    def _walked(self, state: State, more: bool) -> dict[int, State]:
        """What is allowed, found by walking through the tokens and the source together."""
        found: dict[int, State] = {self.vocabulary.end: Nothing(state.entities)} if self.accepts(state) else {}
        stack: list[tuple[Node, State]] = [(self.vocabulary.root, state)]
        while stack:
            node, before = stack.pop()
            for byte, after in self.moves(before, more, node):
                child = node.child(byte)
                if child is not None:
                    for token_id in child.ids:
                        found[token_id] = after
                    stack.append((child, after))
        return found

    def scored(self, state: State) -> bool:
        """True: every token of an answer belongs to one of its lines, and so to an entity."""
        return True

    def after(self, state: State, spelt: bytes) -> State:
        """See `Rules`."""
        for byte in spelt:
            state = dict(self.moves(state)).get(byte) or self._invent(state, byte)
        return state

    def _invent(self, state: State, byte: int) -> Invented:
        if type(state) is Run:
            text = self.source[state.places[0] - state.written : state.places[0]]
        else:
            text = state.text if type(state) is Invented else b""
        return Invented(text + bytes((byte,)), state.so_far)

    def moves(self, state: State, more: bool = True, node: Node | None = None) -> Iterator[tuple[int, State]]:
        """Every byte that may come next, with the state after it. Of free text only what is in the source.

        Args:
            node: where the trie of tokens is; what is costly to find is left out if no token goes on with it.
        """
        kind = type(state)
        if kind is Literal:
            words, written, then = state
            yield words[written], (then if written + 1 == len(words) else Literal(words, written + 1, then))
        elif kind is Run:
            yield from self._moves_in_run(state, node is None or node.child(CLOSING_QUOTE) is not None)
        elif kind is Label:
            yield from self._moves_in_label(state)
        elif kind is Text:
            yield from self._moves_into_run(state)
        elif kind is Invented:
            yield CLOSING_QUOTE, self._between(state.so_far.said(state.text, ()))
        elif kind is After:
            if more and not state.so_far.circles:
                yield ord("\n"), Literal(self._form.opening, 0, Text(state.so_far))
        elif kind is Begin:
            nothing, opening = self._form.nothing, self._form.opening
            yield nothing[0], Literal(nothing, 1, Nothing(0))
            if self._starts:
                yield opening[0], Literal(opening, 1, Text(SoFar()))

    def _between(self, so_far: SoFar) -> Literal:
        return Literal(self._form.between, 1, Label(b"", so_far))

    def _moves_into_run(self, state: Text) -> Iterator[tuple[int, State]]:
        places = defaultdict(list)
        first = bisect_left(self._starts, state.so_far.cursor)
        for starts in (self._starts[first:], self._starts[:first]):
            for start in starts:
                places[self.source[start]].append(start + 1)
        for byte, after in places.items():
            yield byte, Run(tuple(after), 1, state.so_far)

    def _moves_in_run(self, state: Run, may_end: bool) -> Iterator[tuple[int, State]]:
        places, written, so_far = state
        # Either all places are at an edge or none is: the same bytes lead to all of them, starting at an edge.
        at_edge = places[0] in self._edges
        if at_edge and may_end:
            starts = [place - written for place in places]
            yield CLOSING_QUOTE, self._between(so_far.said(self.source[starts[0] : places[0]], starts))
        if len(places) == 1:
            (place,) = places
            if not at_edge or place in self._writable:
                yield self.source[place], Run((place + 1,), written + 1, so_far)
            return
        following = defaultdict(list)
        for place in places:
            if not at_edge or place in self._writable:
                following[self.source[place]].append(place + 1)
        for byte, after in following.items():
            yield byte, Run(tuple(after), written + 1, so_far)

    def _moves_in_label(self, state: Label) -> Iterator[tuple[int, State]]:
        written, so_far = state
        if written in self._form.labels:
            finished = so_far._replace(entities=so_far.entities + 1)
            yield CLOSING_QUOTE, Literal(self._form.closing, 1, After(finished))
        for byte in next_bytes(self._form.labels, written):
            yield byte, Label(written + bytes((byte,)), so_far)


class Openings(Mapping[int, State]):
    """The tokens with which an entity's text may begin, ascending, each with the state after it.

    Which tokens these are depends on the source alone. Their states depend on what was said before; each is made when
    it is asked for, because a text of 500 characters has a thousand of them and an answer takes one.

    Args:
        first: the same for the first entity.
        state: before the text.
    """

    def __init__(self, first: dict[int, State], state: Text, rules: Automaton) -> None:
        self._first, self._state, self._rules = first, state, rules

    def __iter__(self) -> Iterator[int]:
        return iter(self._first)

    def __len__(self) -> int:
        return len(self._first)

    def __contains__(self, token_id: object) -> bool:
        return token_id in self._first

    def __getitem__(self, token_id: int) -> State:
        first, so_far = self._first[token_id], self._state.so_far
        if type(first) is not Run:
            return self._rules.after(self._state, self._rules.vocabulary.spelling[token_id])
        split = bisect_left(first.places, so_far.cursor + first.written)
        return Run(first.places[split:] + first.places[:split], first.written, so_far)


@lru_cache(maxsize=1024)
def next_bytes(labels: tuple[bytes, ...], written: bytes) -> frozenset[int]:
    """The bytes with which labels go on after ``written``."""
    return frozenset(label[len(written)] for label in labels if label.startswith(written) and label != written)


def _needs_escape(text: str) -> bool:
    return escaped(text) != text.encode()
