"""Recognise a tagged file and its layout by the lines at its beginning. Imports no torch.

Everything is decided by evidence over the whole sample. Where two readings fit, `Tagging.doubt` says so: the file is
then refused, and the user says which it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, pairwise, product
from typing import NamedTuple

from sft.data.joining import has_short_words, is_blank_between
from sft.data.tagging import (
    BLANKS,
    DIGITS,
    LETTER_AND_LABEL,
    Reading,
    Tagging,
    columns_of,
    divides_at,
    is_token_comma_tag,
    reading_of,
    take_off_index,
    token_and_tag,
    tokens_of,
    with_tab,
)
from sft.errors import InputError

_CJK = re.compile("[\u2e80-\ud7ff\uf900-\ufaff\ufe30-\uffef\U00020000-\U0003ffff]")
# Names of columns that people write into the first line.
_TEXT_NAMES = (
    "text",
    "text_a",
    "tokens",
    "token",
    "words",
    "word",
    "chars",
    "char",
    "sentence",
    "字",
    "词",
    "文本",
    "句子",
)
_TAG_NAMES = ("label", "labels", "tag", "tags", "ner", "ner_tag", "ner_tags", "标签", "标记")
_HEADER_NAMES = frozenset([*_TEXT_NAMES, *_TAG_NAMES, "pos", "id", "index", "序号"])
_CHUNKS = frozenset(["NP", "VP", "PP", "ADVP", "SBAR", "ADJP", "PRT", "CONJP", "INTJ", "LST", "UCP"])  # of CoNLL-2003
_SEPARATORS = ("\x02", " ", ",")  # in a cell with a whole sentence
_PICTURE = re.compile(r"IMGID:\S+\s*")  # above each sentence of multimodal data (Twitter-2015 and the like)
_FEW_LINES = 100
_EVIDENCE_LINES = 20_000
_SHORTEST_MEAN_SENTENCE = 3  # tokens; words of Chinese have two characters on average
_MOST_COLUMNS = 50


class _Named(NamedTuple):
    """The columns that the user names: numbers from 1, or names in the first line."""

    text: str | None
    tag: str | None

    def is_header(self, cells: Sequence[str]) -> bool:
        """Whether the first line names the columns."""
        usual = len(cells) > 1 and all(cell.strip(BLANKS).lower() in _HEADER_NAMES for cell in cells)
        return usual or bool({self.text, self.tag} & set(cells))

    def into(self, layout: Tagging, cells: Sequence[str]) -> Tagging:
        """The layout with the columns that are named, given the cells of the first line."""
        if self.text is not None:
            layout = replace(layout, text_column=_column(self.text, "--text_column", layout, cells))
        if self.tag is not None:
            layout = replace(layout, tag_column=_column(self.tag, "--label_column", layout, cells))
        return layout


def _column(named: str, flag: str, layout: Tagging, cells: Sequence[str]) -> int:
    if layout.header and named in cells:
        return cells.index(named)
    if not (named.isdecimal() and 1 <= int(named) <= layout.columns):
        raise InputError(f"{flag}：这个带标记的文件没有列 {named!r}；请写第几列（1 到 {layout.columns}）")
    return int(named) - 1


def tagging_of(
    sample: Sequence[str], *, text_column: str | None = None, tag_column: str | None = None, told: bool = False
) -> Tagging | None:
    """The layout of a tagged file; None if it is not one.

    Args:
        sample: the lines at the beginning of the file, without blank lines.
        text_column, tag_column: the columns that the user names: numbers from 1, or names in the first line. The
            text of a named column is taken as it is.
        told: whether the user says that the file is tagged. Half of the lines with a tag are then enough.

    Raises:
        InputError: the file is tagged, and a named column is not there.
    """
    lines = [line for line in sample if not line.startswith("-DOCSTART-")]
    body = [line for line in lines if line[0] != "#" and not _PICTURE.fullmatch(line)]
    if not body:
        return None
    named = _Named(text_column, tag_column)
    some = body[:_EVIDENCE_LINES]
    tagging = _sentence_a_line(some, named) or _pairs_on_a_line(some)
    if tagging is None:
        tagging = _token_a_line(body, named, told=told)
    if tagging is None and has_commas(body):
        tagging = _token_a_line(list(map(with_tab, body)), named, told=told)
        tagging = tagging and replace(tagging, commas=True)
    if tagging is None:
        return None
    comments = any(_is_comment(line, tagging) for line in lines if line[0] == "#")
    return replace(tagging, comments=comments, pictures=any(map(_PICTURE.fullmatch, lines)))


def has_commas(lines: Sequence[str]) -> bool:
    """Whether the first lines are a token, a comma and a tag; the very first may be a header."""
    return len(lines) > 1 and all(map(is_token_comma_tag, lines[1:_FEW_LINES]))


def is_heading(line: str, tagging: Tagging) -> bool:
    """Whether a line before a sentence is none of its tokens: a comment, or the name of its picture."""
    if tagging.pictures and _PICTURE.fullmatch(line):
        return True
    return tagging.comments and _is_comment(line, tagging)


def _is_comment(line: str, tagging: Tagging) -> bool:
    """Whether a line before a sentence is a comment: it begins with ``#`` and has no tag where the others have one."""
    if line[0] != "#" or len(line.strip(BLANKS)) == 1:
        return False
    if tagging.sentence_a_line:
        return not tagging.pair_separator and line.count("\t") + 1 != tagging.columns
    if len([column for column in columns_of(line.rstrip(BLANKS)) if column]) != tagging.columns:
        return True
    tag = token_and_tag(line, tagging)[1]
    return tagging.read_tag(tag) is None and not LETTER_AND_LABEL.fullmatch(tag)


# ---- One token a line ----


def _token_a_line(body: list[str], named: _Named, *, told: bool) -> Tagging | None:
    cells = columns_of(body[0].rstrip(BLANKS))
    header = len(body) > 1 and named.is_header(cells)
    body = body[1:] if header else body
    columns, usual = _width(body[:1000])
    if not 2 <= columns <= _MOST_COLUMNS or (not told and usual < 0.9):
        return None
    layout = Tagging(columns=columns, header=header)
    found = _tag_column(body, layout, share=0.5 if told else 0.9)
    if named.tag is not None:
        layout = named.into(layout, cells)
        reading = reading_of(_tags(body, layout), share=0.5)
        found = reading and (layout, reading)
    if not found:
        return None
    layout, reading = found
    layout = _with_text_column(body, layout) if named.text is None else named.into(layout, cells)
    layout = _with_tags(layout, reading)
    layout = _with_divider(body[:_EVIDENCE_LINES], layout) if layout.numbered else layout
    pairs = [token_and_tag(line, layout) for line in body[:_EVIDENCE_LINES]]
    tokens = [token for token, _ in pairs]
    if not told and not _are_tokens(tokens, [layout.read_tag(tag) or ("?", "") for _, tag in pairs], reading):
        return None
    if named.text is None:
        layout = _with_glued_index(tokens, layout)
    if layout.first_index is not None:
        tokens = [token.rstrip(DIGITS) for token in tokens]
    return _with_join_rule(tokens, layout)


def _with_tags(layout: Tagging, reading: Reading) -> Tagging:
    return replace(layout, scheme=reading.scheme, label_first=reading.label_first, glued=reading.glued)


def _width(body: Sequence[str]) -> tuple[int, float]:
    """How many columns most lines have, and the part of the lines that have as many. A blank may be a token."""
    widths = Counter(len([column for column in columns_of(line.strip(BLANKS)) if column]) for line in body)
    columns, usual = widths.most_common(1)[0]
    blank_tokens = sum(line[0] in " \t" or line.rstrip("\r\n")[-1] in " \t" for line in body)
    return columns, (usual + min(blank_tokens, widths[columns - 1])) / len(body)


def _tags(body: Sequence[str], layout: Tagging) -> Counter[str]:
    if layout.tag_column == -1:  # the usual case, quickly
        return Counter([line.rstrip(BLANKS).rpartition("\t" if "\t" in line else " ")[2] for line in body])
    return Counter(token_and_tag(line, layout)[1] for line in body)


def _tag_column(body: list[str], layout: Tagging, *, share: float) -> tuple[Tagging, Reading] | None:
    """The layout with its column of tags: the last, the first or, if it is the only one, another one."""
    last = reading_of(_tags(body, layout), share=share)
    others = []
    some = body[:1000]
    for column in range(layout.columns - 1):
        other = replace(layout, tag_column=column, text_column=int(column == 0))
        reading = reading_of(_tags(some, other), share=share)
        if reading and reading.labels and reading.scheme != "IO" and not reading.labels <= _CHUNKS:
            others.append((other, reading))
    if last and not (last.scheme == "IO" and others):
        if others and others[0][0].tag_column > 0:
            where = "、".join(str(other.tag_column + 1) for other, _ in others)
            doubt = (
                f"第 {where} 列和第 {layout.columns} 列都是标记；请用 --label_column 说明用第几列，如 --label_column "
            )
            layout = replace(layout, doubt=f"{doubt}{others[0][0].tag_column + 1}")
        return layout, last
    return others[0] if len(others) == 1 else None


def _with_text_column(body: Sequence[str], layout: Tagging) -> Tagging:
    """The layout with its column of text: the first, or the second if the first holds running numbers."""
    if layout.columns < 3 or layout.tag_column == 0:
        return layout
    second = replace(layout, text_column=1)
    rows = [(token_and_tag(line, layout)[0], token_and_tag(line, second)[0]) for line in body[:_EVIDENCE_LINES]]
    numbers = [int(first) for first, _ in rows if first.isascii() and first.isdecimal() and len(first) < 10]
    first_cjk = sum(bool(_CJK.search(first)) for first, _ in rows)
    second_cjk = sum(bool(_CJK.search(token)) for _, token in rows)
    if len(numbers) >= 0.95 * len(rows):
        # They count tokens, or sentences, which come in order.
        if numbers == sorted(numbers):
            return replace(second, numbered=True, divides="changes" if len(set(numbers)) < len(numbers) else "")
        if _run_share(numbers) >= 0.95:
            return replace(second, numbered=True, divides="restarts")
        doubt = "第 1 列都是数：是序号请加 --text_column 2，是文本请加 --text_column 1"
        return replace(layout, doubt=layout.doubt or doubt)
    if not first_cjk and second_cjk > 0.5 * len(rows):
        doubt = "第 1 列没有汉字，第 2 列有：文本是第几列，请用 --text_column 1 或 --text_column 2 说明"
        return replace(layout, doubt=layout.doubt or doubt)
    return layout


def _run_share(numbers: Sequence[int]) -> float:
    """The part of the numbers that go on counting, or begin again with 0 or 1; 0.0 if none goes on."""
    goes_on = sum(after == before + 1 for before, after in pairwise(numbers))
    begins = sum(after in (0, 1) and after != before + 1 for before, after in pairwise(numbers))
    return (goes_on + begins + 1) / len(numbers) if goes_on else 0.0


def _with_divider(body: Sequence[str], layout: Tagging) -> Tagging:
    """The layout without ``divides`` if what the number would divide are no sentences.

    Sentences are longer than words, and no name goes on from one to the next.
    """
    numbers = [token_and_tag(line, replace(layout, text_column=0))[0] for line in body]
    tags = [layout.read_tag(token_and_tag(line, layout)[1]) or ("O", "") for line in body]
    begins = [at for at in range(1, len(body)) if divides_at(numbers[at - 1], numbers[at], layout.divides)]
    cut = sum(tags[at][0] in "IE" and tags[at - 1] in (("B", tags[at][1]), ("I", tags[at][1])) for at in begins)
    are_sentences = begins and len(body) >= _SHORTEST_MEAN_SENTENCE * (len(begins) + 1) and 50 * cut <= len(begins)
    return layout if are_sentences else replace(layout, divides="")


def _are_tokens(tokens: list[str], tags: list[tuple[str, str]], reading: Reading) -> bool:
    """Whether a column holds tokens and not texts, and the tags ``(role, label)`` follow each other as tags do.

    A list of texts may end in " O" or " B-12", and the labels of a table may look like tags.
    """
    count = len(tokens)
    if sum(" " in token for token in tokens if token != " ") > 0.05 * count:
        return False
    cores = [token.rstrip(DIGITS) or token[:1] for token in tokens]
    cjk_lengths = [len(core) for core in cores if _CJK.search(core)]
    single = sum(len(core) == 1 for core in cores)
    outside = sum(role == "O" for role, _ in tags)
    inside = [(before, after) for before, after in pairwise(tags) if after[0] in "IE"]
    goes_on = sum(before[0] in "BI" and before[1] == after[1] for before, after in inside)
    texts_likely = cjk_lengths and not outside and single < 0.2 * count
    if goes_on and 2 * goes_on >= len(inside) and reading.scheme != "IO" and not texts_likely:
        return sum(cjk_lengths) <= 6 * len(cjk_lengths)
    if count < 2 or outside < 0.2 * count:
        return False
    if not cjk_lengths:
        return count > 2
    most = 0.9 if reading.scheme == "IO" else 0.5
    return sum(cjk_lengths) <= 2 * len(cjk_lengths) and single >= most * count


def _with_glued_index(tokens: list[str], layout: Tagging) -> Tagging:
    """The layout, with ``first_index`` if a number is glued to nearly every character."""
    numbered = [token for token in tokens if len(token) > 1 and token[-1] in DIGITS]
    characters = sum(len(token.rstrip(DIGITS)) == 1 and bool(_CJK.match(token)) for token in numbered)
    doubt = "很多字后面有数字：是序号请先去掉，是原文请加 --text_column " + str(layout.text_column + 1)
    if len(numbered) < 0.9 * len(tokens):
        return replace(layout, doubt=layout.doubt or doubt) if characters > 0.5 * len(tokens) else layout
    runs = {first: _index_run(tokens, first) for first in (0, 1)}
    first = max(runs, key=lambda first: runs[first][0])
    share, goes_on = runs[first]
    if share > 0.95 and characters > 0.3 * len(tokens):
        return replace(layout, first_index=first)
    in_doubt = characters > 0.3 * len(tokens) or (share > 0.95 and goes_on)
    return replace(layout, doubt=layout.doubt or doubt) if in_doubt else layout


def _index_run(tokens: list[str], first: int) -> tuple[float, bool]:
    """The part of the tokens that end in the number of a word's character, and whether one ends in a later number."""
    fits, last, goes_on = 0, None, False
    for token in tokens:
        taken = take_off_index(token, first - 1 if last is None else last, first)
        last = taken[1] if taken else None
        fits += taken is not None
        goes_on = goes_on or last not in (None, first)
    return fits / len(tokens), goes_on


def _with_join_rule(tokens: Sequence[str], layout: Tagging) -> Tagging:
    """The layout, with what is known of blanks between Latin words."""
    layout = replace(layout, blank_tokens=any(map(str.isspace, tokens)), short_words=has_short_words(tokens))
    joins = not layout.blank_tokens and any(
        is_blank_between(left, right, short_words=layout.short_words) for left, right in pairwise(tokens)
    )
    return replace(layout, joins_words=joins)


# ---- One sentence a line ----


def _sentence_a_line(body: list[str], named: _Named) -> Tagging | None:
    """The layout if each line has a cell of tokens and a cell of as many tags."""
    rows = [line.rstrip("\r\n").split("\t") for line in body]
    cells = rows[0]
    header = len(rows) > 1 and named.is_header(cells)
    rows = rows[1:] if header else rows
    columns, count = Counter(map(len, rows)).most_common(1)[0]
    if not 2 <= columns <= _MOST_COLUMNS or count < 0.9 * len(rows):
        return None
    rows = [row for row in rows if len(row) == columns]
    usual = Tagging(columns=columns, header=header, sentence_a_line=True)
    tag_columns = [columns - 1, 0] if named.tag is None else [named.into(usual, cells).tag_column]
    for tag_column, separator in product(tag_columns, _SEPARATORS):
        tags = [row[tag_column].strip(" ").split(separator) for row in rows]
        reading = reading_of(Counter(chain.from_iterable(tags)))
        if reading and _are_mostly_several(tags):
            layout = replace(usual, tag_column=tag_column, tag_separator=separator)
            layout = _with_tags(layout, reading)
            text_columns = [column for column in range(columns) if column != tag_column]
            if named.text is not None:
                text_columns = [named.into(layout, cells).text_column]
            if layout := _with_text_cell(rows, list(map(len, tags)), layout, text_columns):
                return layout
    return None


def _are_mostly_several(rows: Sequence[Sequence[str]]) -> bool:
    """Whether most tags stand beside others on their line: a few sentences of one character do not matter."""
    return 2 * sum(len(row) for row in rows if len(row) > 1) >= sum(map(len, rows))


def _with_text_cell(
    rows: list[list[str]], lengths: list[int], layout: Tagging, text_columns: Sequence[int]
) -> Tagging | None:
    """The layout with the cell that most often has as many tokens as there are tags; None if there is none."""
    layouts = [
        replace(layout, text_column=column, token_separator=separator)
        for column, separator in product(text_columns, (*_SEPARATORS, ""))
    ]
    best, agreeing, best_tokens = layout, 0.5 * len(rows), []
    for layout in layouts:
        tokens = [tokens_of(row[layout.text_column], count, layout) for row, count in zip(rows, lengths, strict=True)]
        agree = sum(len(row_tokens) == count for row_tokens, count in zip(tokens, lengths, strict=True))
        if agree > agreeing:
            best, agreeing, best_tokens = layout, agree, tokens
    return _with_join_rule(list(chain.from_iterable(best_tokens)), best) if best_tokens else None


def _pairs_on_a_line(body: list[str]) -> Tagging | None:
    """The layout if each line is a sentence of tokens with their tags: ``青/B-LOC 湖/I-LOC 很/O``."""
    items = [line.strip(BLANKS).split(" ") for line in body]
    for separator in "/|":
        pairs = [item.rpartition(separator) for row in items for item in row]
        reading = reading_of(Counter(tag if found else "" for _, found, tag in pairs))
        if _are_mostly_several(items) and reading and reading.labels and reading.scheme != "IO":
            layout = _with_tags(Tagging(sentence_a_line=True, pair_separator=separator), reading)
            return _with_join_rule([token or " " for token, _, _ in pairs], layout)
    return None
