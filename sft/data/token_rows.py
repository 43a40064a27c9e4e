"""A row of tokens and tags (Hugging Face's ``tokens`` and ``ner_tags``) as a text with entities. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sft.errors import RowError

_TAG = re.compile(r"O|[BIEMSLU][-_].+", re.DOTALL)
_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]{2,}")
_EDGE = re.compile(r"[A-Za-z0-9\u00c0-\u024f]")


def text_of_tokens(tokens: Sequence[str]) -> tuple[str, list[int]]:
    """The text of tokens, and where each begins.

    Chinese tokens are joined as they are. Where a sentence has Latin words, there is a blank between two of its Latin
    tokens: they would else have been one.
    """
    spaced = any(_WORD.search(token) for token in tokens)
    text, starts = "", []
    for token in tokens:
        if spaced and text and _EDGE.match(text[-1]) and _EDGE.match(token):
            text += " "
        starts.append(len(text))
        text += token
    return text, starts


def places_in_text(tokens: Sequence[str], text: str) -> list[int] | None:
    """Where each token begins in a text that is given, too; None if there is more than blanks between them."""
    starts, cursor = [], 0
    for token in tokens:
        start = text.find(token, cursor)
        if start < 0 or text[cursor:start].strip():
            return None
        starts.append(start)
        cursor = start + len(token)
    return None if text[cursor:].strip() else starts


def entities_of_tags(tags: Sequence[str], tokens: Sequence[str], starts: Sequence[int], field: str) -> list[dict]:
    """The entities of BIO, BIOES, BMES or BILOU tags, with their offsets.

    In BIO an ``I-`` that continues no entity begins one, as conlleval and seqeval do. The other schemes mark the end
    of an entity, so there such a tag is an error: to guess would be to invent a boundary.

    Raises:
        RowError: a tag is of no scheme, or cannot follow the one before it.
    """
    strict = any(tag[:1] in "EMSLU" for tag in tags)
    spans: list[list] = []  # [start, end, label]
    inside = False  # whether the last span may go on
    for tag, token, start in zip(tags, tokens, starts, strict=True):
        if not _TAG.fullmatch(tag):
            raise RowError(field, f"认不出的标记 {tag!r:.40}；应如 B-LOC、I-LOC、O")
        prefix, label, end = tag[0], tag[2:], start + len(token)
        goes_on = inside and prefix in "IMEL" and label == spans[-1][2]
        if strict and not goes_on and (inside or prefix in "IMEL"):
            raise RowError(field, f"标记 {tag!r:.40} 接不上前一个")
        if goes_on:
            spans[-1][1] = end
        elif prefix != "O":
            spans.append([start, end, label])
        inside = prefix in "BIM"
    if strict and inside:
        raise RowError(field, f"句子结束了，实体 {spans[-1][2]:.40} 还没有结束")
    return [{"start_idx": start, "end_idx": end, "entity_label": label} for start, end, label in spans]
