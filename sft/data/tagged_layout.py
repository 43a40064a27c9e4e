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

from sft.data.tagging import (
    BLANKS,
    DIGITS,
    LATIN,
    Tagging,
    columns_of,
    is_blank_between,
    is_label,
    split_tag,
    take_off_index,
    token_and_tag,
    tokens_of,
)
from sft.errors import InputError

_CJK = re.compile("[\u2e80-\ud7ff\uf900-\ufaff\ufe30-\uffef\U00020000-\U0003ffff]")
_LATIN_WORD = re.compile(rf"[{LATIN}]+")
_PLAIN_LABEL = re.compile(r"[^\W\d_][\w.&/-]*")
_LETTER_AND_LABEL = re.compile(r"[A-Za-z][-_].+")
# Names of columns that people write into the first line.
_HEADER_WORDS = frozenset(
    "text text_a tokens token words word chars char character sentence label labels tag tags ner ner_tag ner_tags"
    " pos id index 字 词 文本 句子 标签 标记 序号".split()
)
_CHUNKS = frozenset("NP VP PP ADVP SBAR ADJP PRT CONJP INTJ LST UCP".split())  # CoNLL-2003's third column
_EVIDENCE_LINES = 20_000
_MOST_LABELS = 100


class _Reading(NamedTuple):
    """How the tags of a column read. ``labels`` is empty if all are O."""

    scheme: str
    label_first: bool
    labels: frozenset[str]


def tagging_of(
    sample: Sequence[str], *, text_column: str | None = None, tag_column: str | None = None, told: bool = False
) -> Tagging | None:
    """The layout of a tagged file; None if it is not one.

    Args:
        sample: the lines at the beginning of the file, without blank lines.
        text_column, tag_column: the columns that the user names, such as ``"2"``, from 1. The text of a named column
            is taken as it is.
        told: whether the user says that the file is tagged. Half of the lines with a tag are then enough.

    Raises:
        InputError: the file is tagged, and a named column is not a number or not there.
    """
    lines = [line for line in sample if not line.startswith("-DOCSTART-")]
    body = [line for line in lines if line[0] != "#"]
    if not body:
        return None
    tagging = _sentence_a_line(body)
    if tagging is None:
        tagging = _token_a_line(body, text_column, tag_column, told=told)
        if tagging is not None:
            tagging = replace(tagging, comments=any(is_comment(line, tagging) for line in lines if line[0] == "#"))
    return tagging


def is_comment(line: str, tagging: Tagging) -> bool:
    """Whether a line before a sentence is a comment: it begins with ``#`` and has no tag where the others have one."""
    if line[0] != "#" or len(line.strip(BLANKS)) == 1:
        return False
    if len([column for column in columns_of(line.rstrip(BLANKS)) if column]) != tagging.columns:
        return True
    tag = token_and_tag(line, tagging)[1]
    return tagging.read_tag(tag) is None and not _LETTER_AND_LABEL.fullmatch(tag)


# ---- Tags ----


def _reading(tags: Counter[str], *, share: float = 0.9) -> _Reading | None:
    """How the tags of a column read; None if they are no tags.

    Args:
        share: the part of the lines that must have a tag.
    """
    total, outside = tags.total(), tags["O"] + tags["o"]
    marked = {tag: count for tag, count in tags.items() if tag not in ("O", "o")}
    if not marked:
        return _Reading("BIO", label_first=False, labels=frozenset()) if outside else None
    readings = []
    for label_first in (False, True):
        letters, labels = Counter[str](), set()
        for tag, count in marked.items():
            letter, label = split_tag(tag, label_first=label_first)
            if is_label(label):
                letters[letter] += count
                labels.add(label)
        # At least half of the marked lines, so that a few "B-12" among other words are no tags.
        if outside + letters.total() > share * total and 2 * letters.total() > total - outside:
            begins = bool(letters.keys() - set("SUW"))
            readings.append((-letters.total(), not begins, len(labels), label_first, letters, frozenset(labels)))
    if readings:
        *_, label_first, letters, labels = min(readings, key=lambda reading: reading[:4])
        return _Reading(_scheme(letters), label_first, labels)
    plain = {tag: count for tag, count in marked.items() if _PLAIN_LABEL.fullmatch(tag)}
    if any(_LETTER_AND_LABEL.fullmatch(tag) for tag in plain) or outside < 0.2 * total:
        return None
    few = len(plain) <= min(_MOST_LABELS, max(1, total // 3))
    return _Reading("IO", False, frozenset(plain)) if few and outside + sum(plain.values()) > share * total else None


def _scheme(letters: Counter[str]) -> str:
    """The scheme with these letters. A letter on fewer than 2 % of the tags is a slip and decides nothing."""
    ends = letters["E"] + letters["M"] + letters["S"] + letters["W"]
    bilou = letters["L"] + letters["U"]
    if ends + bilou <= 0.02 * letters.total():
        return "BIO"
    if bilou > ends:
        return "BILOU"
    if not letters.keys() - {"I", "E"} and letters["I"]:
        return "IOE"
    if letters["W"] > letters["S"]:
        return "BMEWO"
    return "BMES" if letters["M"] > letters["I"] else "BIOES"


# ---- One token a line ----


def _token_a_line(body: list[str], text_column: str | None, tag_column: str | None, *, told: bool) -> Tagging | None:
    header = len(body) > 1 and _is_header(columns_of(body[0]))
    body = body[1:] if header else body
    widths = Counter(len([column for column in columns_of(line.strip(BLANKS)) if column]) for line in body[:1000])
    blank_first = sum(line[0] in " \t" for line in body[:1000])  # a blank token takes one column away
    columns = widths.most_common(1)[0][0]
    if columns < 2 or (not told and widths[columns] + blank_first < 0.9 * widths.total()):
        return None
    layout = Tagging(columns=columns, header=header)
    found = _tag_column(body, layout, share=0.5 if told else 0.9)
    if found is None:
        return None
    layout, reading = found
    if text_column is None:
        layout = _with_text_column(body, layout)
    layout = _with_named_columns(layout, text_column, tag_column)
    if tag_column is not None:
        reading = _reading(_tags(body, layout), share=0.5) or reading
    layout = replace(layout, scheme=reading.scheme, label_first=reading.label_first)
    pairs = [token_and_tag(line, layout) for line in body[:_EVIDENCE_LINES]]
    tokens = [token for token, _ in pairs]
    if not told and not _are_tokens(tokens, pairs, layout, reading):
        return None
    if text_column is None:
        layout = _with_glued_index(tokens, layout)
    if layout.first_index is not None:
        tokens = [token.rstrip(DIGITS) for token in tokens]
    return _with_join_rule(tokens, layout)


def _is_header(columns: list[str]) -> bool:
    return len(columns) > 1 and all(column.strip(BLANKS).lower() in _HEADER_WORDS for column in columns)


def _tags(body: Sequence[str], layout: Tagging) -> Counter[str]:
    if layout.tag_column == -1:  # the usual case, quickly
        return Counter([line.rstrip(BLANKS).rpartition("\t" if "\t" in line else " ")[2] for line in body])
    return Counter(token_and_tag(line, layout)[1] for line in body)


def _tag_column(body: list[str], layout: Tagging, *, share: float) -> tuple[Tagging, _Reading] | None:
    """The layout with its column of tags: the last, the first or, if it is the only one, another one."""
    last = _reading(_tags(body, layout), share=share)
    others = []
    some = body[:_EVIDENCE_LINES]
    for column in range(layout.columns - 1):
        other = replace(layout, tag_column=column, text_column=int(column == 0))
        reading = _reading(_tags(some, other), share=share)
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


def _with_named_columns(layout: Tagging, text_column: str | None, tag_column: str | None) -> Tagging:
    """The layout with the columns that the user names."""
    if text_column is not None:
        layout = replace(layout, text_column=_column(text_column, "--text_column", layout.columns))
    if tag_column is not None:
        layout = replace(layout, tag_column=_column(tag_column, "--label_column", layout.columns), doubt="")
    return layout


def _column(named: str, flag: str, columns: int) -> int:
    if not (named.isdecimal() and 1 <= int(named) <= columns):
        raise InputError(f"{flag}：带标记的文件没有列名，请写第几列（1 到 {columns}），实际是 {named!r}")
    return int(named) - 1


def _with_text_column(body: Sequence[str], layout: Tagging) -> Tagging:
    """The layout with its column of text: the first, or the second if the first holds running numbers."""
    if layout.columns < 3 or layout.tag_column == 0:
        return layout
    second = replace(layout, text_column=1)
    rows = [(token_and_tag(line, layout)[0], token_and_tag(line, second)[0]) for line in body[:_EVIDENCE_LINES]]
    numbers = [int(first) for first, _ in rows if first.isascii() and first.isdecimal()]
    first_cjk = sum(bool(_CJK.search(first)) for first, _ in rows)
    second_cjk = sum(bool(_CJK.search(token)) for _, token in rows)
    if len(numbers) >= 0.95 * len(rows):
        if _run_share(numbers) >= 0.95 or (second_cjk > 0.3 * len(rows) and numbers == sorted(numbers)):
            return replace(second, numbered=True)
        if numbers == sorted(numbers) and len(set(numbers)) < len(numbers):
            return replace(layout, doubt="第 1 列都是数：是序号请加 --text_column 2，是文本请加 --text_column 1")
    if not first_cjk and second_cjk > 0.5 * len(rows):
        doubt = "第 1 列没有汉字，第 2 列有：文本是第几列，请用 --text_column 1 或 --text_column 2 说明"
        return replace(layout, doubt=layout.doubt or doubt)
    return layout


def _run_share(numbers: Sequence[int]) -> float:
    """The part of the numbers that go on counting, or begin again with 0 or 1; 0.0 if none goes on."""
    goes_on = sum(after == before + 1 for before, after in pairwise(numbers))
    begins = sum(after in (0, 1) and after != before + 1 for before, after in pairwise(numbers))
    return (goes_on + begins + 1) / len(numbers) if goes_on else 0.0


def _are_tokens(tokens: list[str], pairs: list[tuple[str, str]], layout: Tagging, reading: _Reading) -> bool:
    """Whether the first column holds tokens and not texts, and the tags follow each other as tags do.

    A list of texts may end in " O" or " B-12", and the labels of a table may look like tags.
    """
    count = len(tokens)
    if sum(" " in token for token in tokens if token != " ") > 0.05 * count:
        return False
    cores = [token.rstrip(DIGITS) or token[:1] for token in tokens]
    long = [len(core) for core in cores if _CJK.search(core)]
    single = sum(len(core) == 1 for core in cores)
    read = [layout.read_tag(tag) or ("?", "") for _, tag in pairs]
    inside = [(before, after) for before, after in pairwise(read) if after[0] in "IE"]
    goes_on = sum(before[0] in "BI" and before[1] == after[1] for before, after in inside)
    if goes_on and 2 * goes_on >= len(inside) and reading.scheme != "IO":
        return not long or sum(long) <= 6 * len(long)
    if count < 2 or sum(role == "O" for role, _ in read) < 0.2 * count:
        return False
    if not long:
        return count > 2
    return sum(long) <= 2 * len(long) and single >= (0.9 if reading.scheme == "IO" else 0.5) * count


def _with_glued_index(tokens: list[str], layout: Tagging) -> Tagging:
    """The layout, with ``first_index`` if a number is glued to nearly every character."""
    numbered = [token for token in tokens if len(token) > 1 and token[-1] in DIGITS and token.isprintable()]
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
    words = [token for token in tokens if _LATIN_WORD.match(token)]
    short = sum(len(word) == 1 for word in words)
    layout = replace(layout, blank_tokens=any(map(str.isspace, tokens)), short_words=len(words) - short >= short)
    joins = not layout.blank_tokens and any(
        is_blank_between(left, right, short_words=layout.short_words) for left, right in pairwise(tokens)
    )
    return replace(layout, joins_words=joins)


# ---- One sentence a line ----


def _sentence_a_line(body: list[str]) -> Tagging | None:
    """The layout if each line has a cell of tokens and a cell of as many tags."""
    body = body[:_EVIDENCE_LINES]
    rows = [line.rstrip("\r\n").split("\t") for line in body]
    header = len(rows) > 1 and _is_header(rows[0])
    rows = rows[1:] if header else rows
    columns = Counter(map(len, rows)).most_common(1)[0][0]
    rows = [row for row in rows if len(row) == columns]
    if columns < 2 or len(rows) < 0.9 * (len(body) - header):
        return None
    layout = Tagging(columns=columns, header=header, sentence_a_line=True)
    for tag_column, separator in product((columns - 1, 0), ("\x02", " ")):
        tags = [row[tag_column].strip(" ").split(separator) for row in rows]
        reading = (
            _reading(Counter(chain.from_iterable(tags))) if 2 * sum(len(of) > 1 for of in tags) >= len(tags) else None
        )
        if reading is None:
            continue
        layouts = [
            replace(
                layout, text_column=text_column, tag_column=tag_column, tag_separator=separator, token_separator=inner
            )
            for text_column, inner in product(range(columns), ("\x02", " ", ""))
            if text_column != tag_column
        ]
        agreeing = [
            sum(
                len(tokens_of(row[of.text_column], of)) == len(row_tags)
                for row, row_tags in zip(rows, tags, strict=True)
            )
            for of in layouts
        ]
        if max(agreeing) > 0.5 * len(rows):
            best = replace(
                layouts[agreeing.index(max(agreeing))], scheme=reading.scheme, label_first=reading.label_first
            )
            return _with_join_rule([token for row in rows for token in tokens_of(row[best.text_column], best)], best)
    return None
