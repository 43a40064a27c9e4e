"""Read texts that carry their marks on the same line: fastText, toutiao, ``{{type:text}}``, YEDDA, ``word/tag`` …

Imports no torch. A row comes in its original shape (see `sft.data.shapes`). The formats:

``fasttext``  ``__label__体育 昨晚 主队 取胜``: the label may stand anywhere. If a line is segmented into words, the
              blanks beside Chinese are removed; blanks between Latin words stay.
``toutiao``   ``id_!_code_!_name_!_title_!_keywords``: the label is the name, the text is the title. The numbers in
              front and the keywords may be missing.
``inline``    ``{{person_name:张三}}到了``: the braces go, a literal ``\\n`` becomes a line break.
``yedda``     ``[@张三#Person*]到了``, as YEDDA writes it; ``[$`` is a suggestion that it exports like the others.
``chip``      ``张三到了|||0    1    per|||``, as in CHIP 2020 and the first CMeEE: ends are inclusive.
``words``, ``words_ltp``  see `sft.data.tagged_words`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from sft.data.tagged_words import are_ltp_words, are_tagged_words, tagged_row
from sft.errors import RowError

ANSWERS = {  # what each format holds
    "fasttext": "label",
    "toutiao": "label",
    "inline": "entities",
    "yedda": "entities",
    "chip": "entities",
    "words": "entities",
    "words_ltp": "entities",
}
_SAMPLE_LINES = 200
_ENOUGH = 0.9  # of the lines must fit

_LABEL = re.compile(r"(?<!\S)__label__(\S*)")
_LABEL_AT_EDGE = re.compile(r"\s*__label__\S|.*\s__label__\S+\s*$")
_COMMA_AFTER_LABEL = re.compile(r"\s*,\s+")
_WIDE = "“”‘’…—\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff"
_HAS_WIDE = re.compile(f"[{_WIDE}]")
_BLANK_BESIDE_WIDE = re.compile(rf"(?<=[{_WIDE}])[ \t]+|[ \t]+(?=[{_WIDE}])")
_LONGEST_MEAN_WORD = 4  # Chinese words have two characters on average, unsegmented clauses ten

_TOUTIAO = re.compile(
    r"(?:\d+_!_){0,2}(?!\d+_!_)([A-Za-z][\w/-]{0,39}|[^\W\d_]{1,8})_!_((?:(?!_!_).)*)(?:_!_((?:(?!_!_).)*))?"
)

_INLINE = re.compile(r"\{\{([^\s{}:/]{1,40}):([^{}]*)\}\}")
_YEDDA = re.compile(r"\[[@$]([^\[\]]*?)#([^#\[\]\s]{1,40}?)\*\]")
_BRACES, _BRACKETS = re.compile(r"\{\{|\}\}"), re.compile(r"\[@|#[^#\s]{1,40}?\*\]")
_CHIP = re.compile(r"((?:(?!\|\|\|).)*)\|\|\|((?:\s*\d+\s+\d+\s+[^\s|]+\s*\|\|\|)*)\s*")


def marks_of(sample: Sequence[str]) -> str | None:
    """The format of a file whose lines carry marks; None if it is plainly none of them.

    Nearly all lines must fit, so that prose with a slash, a URL or a brace is not taken for one.

    Args:
        sample: the first lines of the file, without blank ones.
    """
    lines = [line.strip() for line in sample[:_SAMPLE_LINES]]
    if _share(_LABEL_AT_EDGE.match(line) for line in lines) >= _ENOUGH:
        return "fasttext"
    if _share(_TOUTIAO.fullmatch(line) for line in lines) >= _ENOUGH:
        return "toutiao"
    if _are_inline(lines, _INLINE, "{{"):
        return "inline"
    if _are_inline(lines, _YEDDA, "[@"):
        return "yedda"
    chip = [_CHIP.fullmatch(line) for line in lines]
    if _share(chip) >= _ENOUGH and any(found and found[2] for found in chip):
        return "chip"
    if are_tagged_words(lines, _ENOUGH):
        return "words_ltp" if are_ltp_words(lines) else "words"
    return None


def _share(matches: Iterable[re.Match | None]) -> float:
    fits = [match is not None for match in matches]
    return sum(fits) / len(fits) if fits else 0.0


def _are_inline(lines: list[str], mark: re.Pattern, opening: str) -> bool:
    """Whether at least half of several lines have marks, and nearly all that opens a mark is one."""
    marks = [len(mark.findall(line)) for line in lines]
    opened = sum(line.count(opening) for line in lines)
    return sum(map(bool, marks)) >= max(2, len(lines) / 2) and sum(marks) >= _ENOUGH * opened


def marked_row(format: str, line: str) -> dict | RowError:
    """What a line says, in its original shape; the line end does not belong to the text.

    Args:
        format: one of ``ANSWERS``.
        line: one line, decoded.
    """
    line = line.rstrip("\r\n")
    try:
        if format == "fasttext":
            return _fasttext_row(line)
        if format == "toutiao":
            return _toutiao_row(line)
        if format == "inline":
            return _inline_row(line)
        if format == "yedda":
            return _yedda_row(line)
        if format == "chip":
            return _chip_row(line)
        return tagged_row(line, ltp=format == "words_ltp")
    except RowError as error:
        return error


def _fasttext_row(line: str) -> dict:
    """A line without a label has the label None: it may be a row to predict."""
    labels = list(dict.fromkeys(_LABEL.findall(line)))
    if len(labels) > 1:
        raise RowError(
            "output", f"有 {len(labels)} 个标签（{'、'.join(labels)[:60]}），是 multi-label（多标签）；一行只能有一个"
        )
    if labels == [""]:
        raise RowError("output", "__label__ 后面没有标签")
    text, *after = _LABEL.split(line)[::2]
    if after and not text.strip() and (comma := _COMMA_AFTER_LABEL.match(after[0])):  # "__label__1 , text"
        after[0] = after[0][comma.end() :]
    text = " ".join(part for part in (side.strip() for side in [text, *after]) if part)
    return {"text": _unsegmented(text), "category": None, "output": labels[0] if labels else None}


def _unsegmented(text: str) -> str:
    """The text without the blanks of word segmentation, if it is segmented."""
    words = [word for word in text.split() if _HAS_WIDE.search(word)]
    if not words or sum(map(len, words)) > _LONGEST_MEAN_WORD * len(words):
        return text
    return _BLANK_BESIDE_WIDE.sub("", text)


def _toutiao_row(line: str) -> dict:
    if (found := _TOUTIAO.fullmatch(line.strip())) is None:
        raise RowError("", f"应如 编号_!_代码_!_类别_!_标题_!_关键词，实际有 {line.count('_!_') + 1} 列")
    return {"text": found[2], "category": None, "output": found[1]}


def _inline_row(line: str) -> dict:
    """Literal ``\\n`` (of data with one document on a line) are line breaks."""
    return _row_of_marks([(mark.span(), mark[2], mark[1]) for mark in _INLINE.finditer(line)], line, _plain)


def _yedda_row(line: str) -> dict:
    return _row_of_marks([(mark.span(), mark[1], mark[2]) for mark in _YEDDA.finditer(line)], line, _without_brackets)


def _row_of_marks(marks: Sequence[tuple[tuple[int, int], str, str]], line: str, plain: Callable[[str], str]) -> dict:
    """The row of a line with marks. An entity's blanks at its edges belong to the text, not to the entity.

    Args:
        marks: of each its place in the line, its text and its label.
        plain: the text of a part of the line without marks, or what it raises if a mark there is broken.
    """
    text, entities, end = "", [], 0
    for place, marked, label in marks:
        text += plain(line[end : place[0]])
        surface = plain(marked)
        start = len(text) + len(surface) - len(surface.lstrip())
        name = surface.strip()
        if not name:
            raise RowError("entities", f"{line[slice(*place)]!r} 里没有文字")
        entities.append({"start_idx": start, "end_idx": start + len(name), "entity_text": name, "entity_label": label})
        text += surface
        end = place[1]
    return {"text": text + plain(line[end:]), "entities": entities}


def _plain(text: str) -> str:
    """Text outside of marks, its literal ``\\n`` as line breaks.

    Raises:
        RowError: it has double braces, which are a broken mark.
    """
    if brace := _BRACES.search(text):
        raise RowError("entities", f"花括号不成对，或标注里套着标注（nested，嵌套）：{text[brace.start() :][:30]!r}")
    return text.replace("\\r\\n", "\n").replace("\\n", "\n")


def _without_brackets(text: str) -> str:
    if bracket := _BRACKETS.search(text):
        raise RowError(
            "entities", f"[@ 和 *] 不成对，或标注里套着标注（nested，嵌套）：{text[bracket.start() :][:30]!r}"
        )
    return text


def _chip_row(line: str) -> dict:
    """The offsets count from the beginning of the line, and include the last character."""
    if (found := _CHIP.fullmatch(line)) is None:
        raise RowError("entities", "应如 文本|||起 止 标签|||起 止 标签|||")
    entities = []
    for mark in filter(str.strip, found[2].split("|||")):
        first, last, label = mark.split()
        start, end = int(first), int(last) + 1
        entities.append(
            {"start_idx": start, "end_idx": end, "entity_label": label, "entity_text": found[1][start:end]}
        )
    return {"text": found[1], "entities": entities}
