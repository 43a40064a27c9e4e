"""Read a tagged file: CoNLL and everything of its kind. Imports no torch.

Usually there is one character or token and its tag on each line, and a blank line after each sentence; or each line is
a sentence. `sft.data.tagged_layout.tagging_of` says how a file is laid out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import NamedTuple

from sft.data.encodings import is_decoded
from sft.data.joining import joined
from sft.data.sentence_ends import MOST_SENTENCE_LINES, divided_at_ends
from sft.data.source import NumberedRow, Source
from sft.data.tagged_layout import is_heading
from sft.data.tagging import (
    BLANKS,
    Tagging,
    columns_of,
    divides_at,
    take_off_index,
    token_and_tag,
    tokens_of,
    with_tab,
)
from sft.errors import InputError, RowError

_Lines = list[tuple[int, str]]  # with their numbers from 1


class _Tokens(NamedTuple):
    """The tokens of a sentence, their tags, and the numbers of their lines: three of one length."""

    texts: Sequence[str]
    tags: Sequence[str]
    line_numbers: Sequence[int]


def read_tagged(source: Source) -> Iterator[NumberedRow]:
    """The sentences of a tagged file in CCFBDCI's shape, each with the number of its first line.

    Raises:
        InputError: the layout is in doubt, or a sentence never ends.
    """
    tagging = source.tagging
    if tagging is None or tagging.doubt:
        raise InputError(f"{source.path}：{tagging.doubt if tagging else '看不出标记在哪一列'}")
    read_tag = _TagReader(tagging)
    with source.path.open(encoding=source.encoding, newline="\n", errors="surrogateescape") as file:
        numbered = _divided(_with_tabs(enumerate(file, start=1), tagging), tagging)
        numbered = divided_at_ends(numbered, tagging) if tagging.divides == "ends" else numbered
        sentences = _line_by_line(numbered, tagging) if tagging.sentence_a_line else _sentences(numbered, source)
        for lines in sentences:
            try:
                row = _row(lines, read_tag)
            except RowError as error:
                row = error
            yield lines[0][0], "".join([line for _, line in lines]), row


def _with_tabs(numbered: Iterator[tuple[int, str]], tagging: Tagging) -> Iterator[tuple[int, str]]:
    return ((number, with_tab(line)) for number, line in numbered) if tagging.commas else numbered


def _divided(numbered: Iterator[tuple[int, str]], tagging: Tagging) -> Iterator[tuple[int, str]]:
    """The lines, with a blank one where a running number, or the byte order mark of a further file, says so.

    A byte order mark alone in its column is a token.
    """
    before = ""
    for number, line in numbered:
        if line[0] == "\ufeff" and line[1:2] not in (" ", "\t"):
            yield number, "\n"
            line = line[1:]
        if tagging.divides in ("changes", "restarts"):
            last, before = before, columns_of(line.lstrip(BLANKS))[0]
            if divides_at(last, before, tagging.divides):
                yield number, "\n"
        yield number, line


def _line_by_line(numbered: Iterable[tuple[int, str]], tagging: Tagging) -> Iterator[_Lines]:
    waits_for_header = tagging.header
    for number, line in numbered:
        if not line.strip(BLANKS) or is_heading(line, tagging):
            continue
        if not waits_for_header:
            yield [(number, line)]
        waits_for_header = False


def _sentences(numbered: Iterator[tuple[int, str]], source: Source) -> Iterator[_Lines]:
    """The lines of each sentence.

    Raises:
        InputError: a sentence is too long to be one.
    """
    if source.tagging.header:
        next((line for _, line in numbered if line.strip(BLANKS)), None)
    while lines := list(islice(_sentence(numbered, source.tagging), MOST_SENTENCE_LINES)):
        if len(lines) == MOST_SENTENCE_LINES:
            raise InputError(f"{source.path}:{lines[0][0]}：一句话超过 {len(lines)} 行；句子之间应有空行")
        yield lines


def _sentence(numbered: Iterator[tuple[int, str]], tagging: Tagging) -> Iterator[tuple[int, str]]:
    """The lines of the next sentence; none at the end of the file."""
    begun = False
    for number, line in numbered:
        if line.strip(BLANKS) and not line.startswith("-DOCSTART-"):
            if begun or not is_heading(line, tagging):
                begun = True
                yield number, line
        elif begun:
            return


# ---- One sentence ----


class _TagReader(dict):
    """``tag -> (role, label)`` of a file: `Tagging.read_tag`, asked once for each different tag."""

    def __init__(self, tagging: Tagging) -> None:
        super().__init__()
        self.tagging = tagging

    def __missing__(self, tag: str) -> tuple[str, str] | None:
        self[tag] = read = self.tagging.read_tag(tag)
        return read


def _row(lines: _Lines, read_tag: _TagReader) -> dict:
    """The row of a sentence.

    Raises:
        RowError: a byte cannot be decoded, a tag is not of the scheme, it cannot follow the one before it, or there
            are not as many tokens as tags.
    """
    tagging = read_tag.tagging
    if not is_decoded("".join([line for _, line in lines])):
        number = next(number for number, line in lines if not is_decoded(line))
        raise RowError("", f"第 {number} 行有解不开的字节（文件若是 GBK，请加 --encoding gb18030）")
    if tagging.sentence_a_line:
        tokens = _tokens_on_line(*lines[0], tagging)
    else:
        texts, tags = zip(*[token_and_tag(line, tagging) for _, line in lines], strict=True)
        tokens = _Tokens(texts, tags, [number for number, _ in lines])
    if tagging.first_index is not None:
        tokens = tokens._replace(texts=_without_index(tokens, tagging.first_index))
    text, starts = _joined(tokens.texts, tagging)
    entities = [
        {"start_idx": start, "end_idx": end, "entity_text": text[start:end], "entity_label": label}
        for start, end, label in _spans(tokens, starts, read_tag)
    ]
    return {"text": text, "entities": entities}


def _tokens_on_line(number: int, line: str, tagging: Tagging) -> _Tokens:
    if tagging.pair_separator:
        pairs = [item.rpartition(tagging.pair_separator) for item in line.strip(BLANKS).split(" ")]
        return _Tokens([token or " " for token, _, _ in pairs], [tag for _, _, tag in pairs], [number] * len(pairs))
    cells = line.rstrip("\r\n").split("\t")
    if len(cells) != tagging.columns:
        raise RowError("", f"第 {number} 行有 {len(cells)} 列，别的行有 {tagging.columns} 列")
    tags = cells[tagging.tag_column].strip(" ").split(tagging.tag_separator)
    texts = tokens_of(cells[tagging.text_column], len(tags), tagging)
    if len(texts) != len(tags):
        raise RowError("tag", f"第 {number} 行有 {len(texts)} 个字（词）、{len(tags)} 个标记，应当一样多")
    return _Tokens(texts, tags, [number] * len(tags))


def _without_index(tokens: _Tokens, first: int) -> list[str]:
    texts, last = [], None
    for number, token in zip(tokens.line_numbers, tokens.texts, strict=True):
        taken = take_off_index(token, last, first)
        if taken is None:
            raise RowError("text", f"第 {number} 行的 {token!r} 后面没有接得上的序号")
        text, last = taken
        texts.append(text)
    return texts


def _joined(tokens: Sequence[str], tagging: Tagging) -> tuple[str, Sequence[int]]:
    """The text of a sentence, and where each token begins in it."""
    if tagging.blank_tokens:
        return "".join(tokens), list(accumulate(map(len, tokens[:-1]), initial=0))
    return joined(tokens, short_words=tagging.short_words)


def _spans(tokens: _Tokens, starts: Sequence[int], read_tag: _TagReader) -> list[tuple[int, int, str]]:
    """``(start, end, label)`` of each entity.

    In BIO an ``I-`` that continues no entity begins one, as conlleval and seqeval do. A strict scheme marks the end of
    an entity, so there such a tag is an error: to guess would be to invent a boundary.

    Raises:
        RowError: a tag is not of the scheme, or cannot follow the one before it.
    """
    spans, strict = [], read_tag.tagging.is_strict
    label, is_open = "", False  # of the last span, and whether it may go on
    for index, tag in enumerate(tokens.tags):
        read = read_tag[tag]
        if read is None:
            number = tokens.line_numbers[index]
            raise RowError("tag", f"第 {number} 行的标记 {tag!r} 不属于 {read_tag.tagging.scheme}")
        role, new_label = read
        goes_on = is_open and role in "IE" and new_label == label
        if strict and not goes_on and (is_open or role in "IE"):
            raise RowError("tag", f"第 {tokens.line_numbers[index]} 行的标记 {tag!r} 接不上前一个")
        if role != "O":
            start = spans.pop()[0] if goes_on else starts[index]
            spans.append((start, starts[index] + len(tokens.texts[index]), new_label))
        label, is_open = new_label, role in "BI"
    if strict and is_open:
        raise RowError("tag", f"第 {tokens.line_numbers[-1]} 行：句子结束了，实体 {label} 还没有结束")
    return spans
