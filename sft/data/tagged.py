"""Read CoNLL: one character or token and its tag on each line, a blank line after each sentence. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from sft.data.encodings import is_decoded
from sft.data.source import NumberedRow, Source
from sft.errors import InputError, RowError

TAG = re.compile(r"O|[BIEMS][-_].+")
_MOST_SENTENCE_LINES = 100_000


def read_tagged(source: Source) -> Iterator[NumberedRow]:
    """Sentences with one character (or token) and its tag on each line; blank lines separate sentences."""
    with source.path.open(encoding=source.encoding, newline="\n", errors="surrogateescape") as file:
        numbered = enumerate(file, start=1)
        while sentence := list(islice(_sentence(numbered), _MOST_SENTENCE_LINES)):
            if len(sentence) == _MOST_SENTENCE_LINES:
                raise InputError(f"{source.path}:{sentence[0][0]}：一句话超过 {len(sentence)} 行；句子之间应有空行")
            try:
                row = _from_tags(sentence, source.tag_scheme)
            except RowError as error:
                row = error
            yield sentence[0][0], "".join(line for _, line in sentence), row


def _sentence(numbered: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """The lines of the next sentence; none at the end of the file."""
    begun = False
    for number, line in numbered:
        if line.strip(" \t\r\n") and not line.startswith("-DOCSTART-"):
            begun = True
            yield number, line
        elif begun:
            return


def split_tag(line: str) -> tuple[str, str]:
    """The first and the last column of a line. If the line begins with a blank, its character is that blank."""
    columns = line.rstrip(" \t\r\n").split("\t" if "\t" in line else " ")
    return (columns[0] or " ", columns[-1]) if len(columns) > 1 else (columns[0], "")


def _from_tags(sentence: list[tuple[int, str]], scheme: str) -> dict:
    """The row of a sentence, in CCFBDCI's shape.

    In BIO an ``I-`` that continues no entity begins one, as conlleval and seqeval do. BIOES and BMES mark the end of
    an entity, so there such a tag is an error: to guess would be to invent a boundary.

    Raises:
        RowError: a tag is not of the scheme, or cannot follow the one before it.
    """
    text, spans, strict = "", [], scheme != "BIO"  # spans: [start, end, label]
    inside = False  # whether the last span may go on
    for number, line in sentence:
        token, tag = split_tag(line)
        if not is_decoded(line):
            raise RowError("", f"第 {number} 行有解不开的字节（文件若是 GBK，请加 --encoding gb18030）")
        if not TAG.fullmatch(tag) or (tag[0] in "EMS" and not strict):
            raise RowError("tag", f"第 {number} 行的标记 {tag!r} 不属于 {scheme}")
        prefix, label = tag[0], tag[2:]
        goes_on = inside and prefix in "IME" and label == spans[-1][2]
        if strict and not goes_on and (inside or prefix in "IME"):
            raise RowError("tag", f"第 {number} 行的标记 {tag!r} 接不上前一行")
        if goes_on:
            spans[-1][1] += len(token)
        elif prefix != "O":
            spans.append([len(text), len(text) + len(token), label])
        text += token
        inside = prefix in "BIM"
    if strict and inside:
        raise RowError("tag", f"第 {sentence[-1][0]} 行：句子结束了，实体 {spans[-1][2]} 还没有结束")
    entities = [
        {"start_idx": start, "end_idx": end, "entity_text": text[start:end], "entity_label": label}
        for start, end, label in spans
    ]
    return {"text": text, "entities": entities}
