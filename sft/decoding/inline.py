"""Which inline answers about a text are well-formed, byte by byte and token by token. No model is used here.

An answer is either the fixed sentence for "no entity", or the text once more with marks around entities, as
`sft.tasks.entity_marks` writes it. At each byte outside a mark the answer can only go on with the text, or open a mark
where a character begins; inside a mark it goes on with the text, or ends the entity after a character and names one of
the labels. So every answer can be read back, no word of the text is changed, and every offset is certain.

Going on with the text claims nothing, so outside of a mark the model is never made to claim what it does not think.
In a mark it may want to write what is not in the text, or no label of the task. Then it goes on as the rules say,
which keeps its place, and the entity is left out of the result (`sft.decoding.inline_answers.leave_out_overruled`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from sft.decoding.automaton import next_bytes
from sft.decoding.vocabulary import Node, Vocabulary
from sft.tasks.entity_lines import NO_ENTITY
from sft.tasks.entity_marks import BETWEEN, CLOSING, OPENING, escaped

NOTHING = NO_ENTITY.encode()
OPENING_BYTE, BETWEEN_BYTE, CLOSING_BYTE = map(ord, (OPENING, BETWEEN, CLOSING))


class Lead(NamedTuple):
    """Inside what the tokenizer puts before every answer, of which ``written`` bytes are written."""

    written: int
    entities: int = 0


class Copy(NamedTuple):
    """Outside a mark; the text is copied up to byte ``place`` of the source.

    ``nothing``: how many bytes of the sentence for "no entity" are the whole answer so far; None if it is none of its
    beginnings. A text may begin as that sentence does.
    """

    place: int
    nothing: int | None
    entities: int


class Nothing(NamedTuple):
    """Inside the sentence for "no entity", which the text does not begin with; ``written`` bytes are written."""

    written: int
    entities: int = 0


class Inside(NamedTuple):
    """Inside the text of an entity, which began at byte ``start`` and is copied up to byte ``place``."""

    start: int
    place: int
    entities: int


class Label(NamedTuple):
    """Inside a label, of which ``written`` is written; the text is copied up to byte ``place``."""

    written: bytes
    place: int
    entities: int


class End(NamedTuple):
    """After the terminator."""

    entities: int


State = Lead | Copy | Nothing | Inside | Label | End


@lru_cache(maxsize=16)
def label_bytes(labels: Sequence[str]) -> tuple[bytes, ...]:
    """The labels as an answer writes them."""
    return tuple(escaped(label).encode() for label in labels)


def can_write(labels: Sequence[str], vocabulary: Vocabulary) -> bool:
    """Whether the vocabulary can write the marks, the labels and the sentence for "no entity"."""
    return all(
        map(vocabulary.can_write, (*label_bytes(labels), NOTHING, *map(str.encode, (OPENING, BETWEEN, CLOSING))))
    )


class InlineRules:
    """The well-formed inline answers about one text; see `sft.decoding.rules.Rules`.

    The score of an entity is the probability of opening a mark at this place, against going on with the text, times
    those of its end and its label. Not having opened one before belongs to no score.

    Args:
        text: the source.
        labels: the task's labels.
        vocabulary: the tokens; characters that they cannot write are left out of the answer. `whole` puts them back.
        most_tokens: see `sft.decoding.rules.Rules`.

    Attributes:
        source: the bytes of the text, as an answer writes them.
        begin: the state before the first token.
    """

    def __init__(
        self, text: str, labels: Sequence[str], vocabulary: Vocabulary, most_tokens: int | None = None
    ) -> None:
        self.most_tokens = most_tokens
        self._labels, self._vocabulary = label_bytes(tuple(labels)), vocabulary
        self._characters: list[str] = []  # those that can be written
        self._unwritable = [""]  # the others, before each of these and at the end
        self._edges = {0}  # byte offsets where characters begin, and the end
        place = 0
        for character in map(escaped, text):
            if vocabulary.can_write(character.encode()):
                self._characters.append(character)
                self._unwritable.append("")
                place += len(character.encode())
                self._edges.add(place)
            else:
                self._unwritable[-1] += character
        self.source = "".join(self._characters).encode()
        self.begin: State = Lead(0) if vocabulary.lead else Copy(0, 0, 0)

    def accepts(self, state: State) -> bool:
        """Whether an answer may end here, if it is long enough: between two characters outside of a mark."""
        kind = type(state)
        return kind is End or (kind is Nothing and state.written == len(NOTHING)) or self._is_between(state)

    def allowed(self, state: State, more: bool = True) -> dict[int, State]:
        """See `sft.decoding.rules.Rules.allowed`. The terminator comes where the text is finished."""
        found: dict[int, State] = {self._vocabulary.end: End(state.entities)} if self._is_finished(state) else {}
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

    def free(self, state: State, more: bool = True) -> bool:
        """False: there is no free text in an inline answer."""
        return False

    def after(self, state: State, spelt: bytes) -> State:
        """The state after some bytes that are allowed."""
        for byte in spelt:
            state = dict(self.moves(state))[byte]
        return state

    def weighed(self, state: State) -> bool:
        """Inside a mark. Outside, the text is the only other thing that can follow, and nearly every place is such."""
        return type(state) in (Inside, Label)

    def scored(self, state: State) -> bool:
        """Whether the choices that led here, since the last entity, belong to the score of the next one."""
        return type(state) in (Inside, Label)

    def moves(self, state: State, more: bool = True) -> Iterator[tuple[int, State]]:
        """Every byte that may come next, with the state after it."""
        kind = type(state)
        if kind is Copy:
            yield from self._moves_in_copy(state, more)
        elif kind is Inside:
            start, place, entities = state
            if place > start and place in self._edges:
                yield BETWEEN_BYTE, Label(b"", place, entities)
            if place < len(self.source):
                yield self.source[place], Inside(start, place + 1, entities)
        elif kind is Label:
            yield from self._moves_in_label(state)
        elif kind is Nothing and state.written < len(NOTHING):
            yield NOTHING[state.written], Nothing(state.written + 1)
        elif kind is Lead:
            lead, written = self._vocabulary.lead, state.written + 1
            yield lead[state.written], Copy(0, 0, 0) if written == len(lead) else Lead(written)

    def whole(self, answer: str) -> str:
        """The answer with the characters of the text that it lacks: those that no token writes, and the rest of the
        text after an answer that was long enough. At an edge of an entity, what no token writes is outside.
        """
        if answer and NO_ENTITY.startswith(answer):
            return NO_ENTITY
        parts, index, copied, is_filled = [], 0, 0, False
        while index < len(answer):
            if answer[index] == BETWEEN:
                end = _label_end(answer, index)
                parts.append(answer[index:end])
                index = end
                continue
            if not is_filled:
                parts.append(self._unwritable[copied])
            is_filled = answer[index] == OPENING
            if is_filled:
                parts.append(OPENING)
                index += 1
            else:
                parts.append(self._characters[copied])
                index += len(self._characters[copied])
                copied += 1
        for before, character in zip(self._unwritable[copied:], [*self._characters[copied:], ""], strict=True):
            parts += ["" if is_filled else before, character]
            is_filled = False
        return "".join(parts)

    def _is_between(self, state: State) -> bool:
        return type(state) is Copy and (state.place in self._edges or state.nothing == len(NOTHING))

    def _is_finished(self, state: State) -> bool:
        if type(state) is Copy:
            return state.place == len(self.source) or state.nothing == len(NOTHING)
        return type(state) is Nothing and state.written == len(NOTHING)

    def _moves_in_copy(self, state: Copy, more: bool) -> Iterator[tuple[int, State]]:
        place, nothing, entities = state
        going_on = NOTHING[nothing] if nothing is not None and nothing < len(NOTHING) else None
        following = self.source[place] if place < len(self.source) else None
        if following is not None:
            if more and place in self._edges:
                yield OPENING_BYTE, Inside(place, place, entities)
            yield following, Copy(place + 1, nothing + 1 if following == going_on else None, entities)
        if going_on is not None and going_on != following:
            yield going_on, Nothing(nothing + 1)

    def _moves_in_label(self, state: Label) -> Iterator[tuple[int, State]]:
        written, place, entities = state
        if written in self._labels:
            yield CLOSING_BYTE, Copy(place, None, entities + 1)
        for byte in next_bytes(self._labels, written):
            yield byte, Label(written + bytes((byte,)), place, entities)


def _label_end(answer: str, index: int) -> int:
    """Where the label ends that begins after ``index``, with its closing mark."""
    index += 1
    while answer[index] != CLOSING:
        index += 2 if answer[index] == "\\" else 1
    return index + 1
