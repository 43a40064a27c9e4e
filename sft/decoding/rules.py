"""What the decoding loop asks of a format of answers. `sft.decoding.automaton` has one: JSON lines.

A format is a set of rules about one text. The loop begins in the state `Rules.begin`, and goes from state to state,
one token at a time, until the terminator is chosen. States are immutable values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol


class State(Protocol):
    """What the rules must know about the answer so far."""

    @property
    def entities(self) -> int:
        """How many entities of the answer are finished, those that the result will leave out too.

        The token that raises it, by one, finishes the score of this entity. So the scores of an answer are those of
        its entities in the order of the answer.
        """


class Rules(Protocol):
    """Which answers about one text are well-formed.

    Attributes:
        source: the bytes of the text, as an answer writes them.
        begin: the state before the first token.
        most_tokens: after so many tokens no entity begins, if the bounds of the run allow more; None: they decide.
    """

    source: bytes
    begin: State
    most_tokens: int | None

    def accepts(self, state: State) -> bool:
        """Whether an answer may end here."""

    def allowed(self, state: State, more: bool = True) -> Mapping[int, State]:
        """Every token that may come next, with the state after it; the terminator where the answer may end.

        Never empty before the terminator is chosen. Tokens of `free` text need not be among them.

        Args:
            more: whether another entity may begin; false once the answer is long enough. From then on every answer
                must come to its end, whatever is chosen.
        """

    def free(self, state: State, more: bool = True) -> bool:
        """Whether any token of `sft.decoding.vocabulary.Vocabulary.plain` may come next, too."""

    def after(self, state: State, spelt: bytes) -> State:
        """The state after some bytes: those of an allowed token or the beginning of one, or of a free token."""

    def weighed(self, state: State) -> bool:
        """Whether a choice made here is weighed against the whole vocabulary.

        If so, its probability is the one that the model itself gives; it costs the whole output layer at this place.
        If not, it is the share among the allowed tokens.
        """

    def scored(self, state: State) -> bool:
        """Whether the choices that led here, since the last entity was finished, belong to the score of the next one.

        Where not, they are forgotten: there, nothing is said of an entity.
        """


class Source(NamedTuple):
    """The text of a row.

    Attributes:
        text: `Rules.source`.
        tokens: byte offset in ``text`` → the token that begins there when it is encoded.
        places: these offsets, ascending.
    """

    text: bytes
    tokens: Mapping[int, int]
    places: Sequence[int]


class Drafts(Protocol):
    """Guesses the next tokens. A wrong guess costs time but never changes an answer."""

    def learn(self, state: State, token_id: int, source: Source) -> None:
        """Count a token that was chosen in a state of the rules about ``source``."""

    def guess(self, state: State, source: Source, copied: int) -> int | None:
        """The likely next token in a state; None without any clue.

        Args:
            copied: how many tokens of this draft were guessed in a state of `copying`.
        """

    def copying(self, state: State) -> bool:
        """Whether a guess in this state is a token of the source."""
