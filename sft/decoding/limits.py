"""How much is read, answered and computed at a time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """How long prompts and answers may be, in tokens, and how many rows run together.

    Attributes:
        max_length: tokens of a row at most, prompt and answer.
        max_new_tokens: tokens of a free-text answer at most; in a constrained answer, no entity begins after so many.
        batch_size: rows at a time.
        constrained: allow only well-formed answers; if false, the model answers freely and the answer is parsed.
        max_tokens: tokens in memory at the same time, at most. None: whatever ``batch_size`` rows need, and
            ``batch_size`` × ``max_length`` for rows with options.
        piece_tokens: a text with entities is read in pieces of at most so many tokens; None: as ``max_length`` allows.
    """

    max_length: int
    max_new_tokens: int
    batch_size: int
    constrained: bool = True
    max_tokens: int | None = None
    piece_tokens: int | None = None
