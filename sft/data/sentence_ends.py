"""Tagged files without one blank line: their sentences end where a full stop stands. Imports no torch.

Many scripts write one character and its tag a line, document after document, and nothing between. Such a file has no
sentences but those of its punctuation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

from sft.data.tagging import BLANKS, Tagging, token_and_tag, with_tab

MOST_SENTENCE_LINES = 100_000
_FEWEST_LINES = 200  # fewer may be one sentence
_FEWEST_SENTENCES = 3
_ENDS = frozenset("。！？!?")
_AFTER_END = frozenset("。！？!?…”’」』）)\"'")  # belongs to the sentence before


def with_sentence_ends(tagging: Tagging, lines: Iterable[str]) -> Tagging:
    """The layout, divided at full stops if the lines have nothing else that divides them, and have full stops.

    Args:
        lines: those of the file; as many are read as a sentence may have.
    """
    if tagging.sentence_a_line or tagging.divides:
        return tagging
    some = []
    for line in islice(lines, MOST_SENTENCE_LINES):
        if not line.strip(BLANKS) or line.startswith("-DOCSTART-"):
            return tagging
        some.append(with_tab(line) if tagging.commas else line)
    sentences = 1 + sum(line == "\n" for _, line in divided_at_ends(enumerate(some), tagging))
    enough = len(some) >= _FEWEST_LINES and sentences >= _FEWEST_SENTENCES
    return replace(tagging, divides="ends") if enough else tagging


def divided_at_ends(numbered: Iterable[tuple[int, str]], tagging: Tagging) -> Iterator[tuple[int, str]]:
    """The lines, with a blank one after each mark outside of entities that ends a sentence."""
    ended = False
    for number, line in numbered:
        token, tag = token_and_tag(line, tagging) if line.strip(BLANKS) else ("", "")
        is_outside = tag in ("O", "o")
        if ended and not (is_outside and token in _AFTER_END):
            yield number, "\n"
            ended = False
        ended = is_outside and (token[-1:] in _ENDS or ended)
        yield number, line
