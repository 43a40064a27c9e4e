"""Tokens joined to a text: Chinese as it is, and a blank between Latin words. Imports no torch.

The tokens do not say where blanks were. Tagged files and rows with a list of tokens both ask here, so that the same
tokens are the same text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate, pairwise

# Letters and digits of the scripts that write blanks between words; not of CJK, which begins at U+2E80.
_LATIN = "0-9A-Za-z\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02c1\u0370-\u03ff\u0400-\u052f\u1e00-\u1fff"
_LATIN_WORD = re.compile(rf"[{_LATIN}]+")
_WORD_ENDS = re.compile(rf"[{_LATIN}][\u0021-\u2e7f]*$")
_WORD_BEGINS = re.compile(rf"[\u0021-\u2e7f]*?[{_LATIN}]")
_EDGE_CHARACTERS = 50  # of a token, enough to see what stands at its edge
_JOINED_ON = re.compile(r"['’][A-Za-z]|n['’]t$")  # 's, 're, n't


def joined(tokens: Sequence[str], *, short_words: bool) -> tuple[str, Sequence[int]]:
    """The text of tokens, and where each of them begins. If one of them is a blank, none is added.

    Args:
        short_words: see `has_short_words`.
    """
    if max(map(len, tokens)) == 1 or any(map(str.isspace, tokens)):
        return "".join(tokens), list(accumulate(map(len, tokens[:-1]), initial=0))
    text, starts = tokens[0], [0]
    for before, token in pairwise(tokens):
        if is_blank_between(before, token, short_words=short_words):
            text += " "
        starts.append(len(text))
        text += token
    return text, starts


def has_short_words(tokens: Sequence[str]) -> bool:
    """Whether one letter or digit may be a word, as in ``iPhone 6``; if not, it is a part of one.

    That is so if at least half of the Latin tokens are longer.
    """
    words = [token for token in tokens if _LATIN_WORD.match(token)]
    short = sum(len(word) == 1 for word in words)
    return len(words) - short >= short


def is_blank_between(left: str, right: str, *, short_words: bool) -> bool:
    """Whether a blank is to be written between two tokens: both are Latin words, as in ``Blue Lake``."""
    lengths = len(left), len(right)
    if max(lengths) < 2 or (min(lengths) < 2 and not short_words):
        return False
    left, right = left[-_EDGE_CHARACTERS:], right[:_EDGE_CHARACTERS]
    return bool(_WORD_ENDS.search(left) and _WORD_BEGINS.match(right) and not _JOINED_ON.match(right))
