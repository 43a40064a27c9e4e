"""How a tagged file is laid out, and what its tags say. Imports no torch.

Tagged files are CoNLL and everything of its kind: `sft.data.tagged_layout` finds the layout, `sft.data.tagged` reads.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

_PLAIN_LABEL = re.compile(r"[^\W\d_][\w.&/-]+")
LETTER_AND_LABEL = re.compile(r"[A-Za-z][-_].+")
_MOST_LABELS = 100
BLANKS = " \t\r\n"
# The letters of each scheme. I and M are inside an entity, E and L end one, S, U and W are an entity alone.
SCHEMES = {
    "BIO": "BI",
    "IOE": "IE",
    "BIOS": "BIS",
    "BIOES": "BIES",
    "BMES": "BMIES",
    "BMEWO": "BMIESW",
    "BILOU": "BILU",
    "IO": "",  # a tag is a label and nothing else
}
_LENIENT = ("BIO", "BIOS", "IOE", "IO")  # BIOS marks entities of one token, but no ends
_ROLES = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}
_ROLE_FIRST = re.compile(r"([BIEMSLUW])[-_](.+)", re.IGNORECASE)  # B-LOC
_LABEL_FIRST = re.compile(r"(.+)[-_]([BIEMSLUW])", re.IGNORECASE)  # LOC-B
_GLUED_ROLE_FIRST = re.compile(r"([BIEMSLUW])[.:：]?([^\W\d].*)")  # BLOC, B.LOC
_GLUED_LABEL_FIRST = re.compile(r"([^\W\d].*?)[.:：]?([BIEMSLUW])")  # LOCB
DIGITS = "0123456789"
_DIVIDES = {"": "不用", "ends": "不用", "changes": "变了就另起一句", "restarts": "从头数就另起一句"}
_TOKEN_COMMA_TAG = re.compile(r'(?:[^,"]*|[,"]|"(?:[^"]|"")*"),(?:O|[BIEMSLU][-_][^\s,"]+)\s*')


@dataclass(frozen=True)
class Tagging:
    """How a tagged file is laid out.

    Attributes:
        scheme: one of `SCHEMES`.
        label_first: whether tags are written ``LOC-B`` and not ``B-LOC``.
        glued: whether there is no hyphen in them, as in ``BLOC`` and ``B.LOC``.
        text_column, tag_column: from 0; ``tag_column`` may be -1, the last.
        columns: how many columns most lines have.
        numbered: whether the column before the text is a running number.
        divides: where that number begins a sentence: ``changes``, as one sentence has one number, or ``restarts`` from
            0 or 1, as it counts tokens; ``ends`` if a sentence begins after a mark that ends one, as the file has no
            blank line; ``""`` if only blank lines do.
        commas: whether a comma separates the token from its tag.
        pictures: whether a line before a sentence names its picture: ``IMGID:12``.
        first_index: the first number of a word if a number is glued to each character (``科0 技1``), else None.
        header: whether the first line names the columns.
        comments: whether lines that begin with ``#`` and have no tag, before a sentence, are comments.
        sentence_a_line: whether each line is a sentence: a cell of tokens and a cell of tags.
        token_separator, tag_separator: what separates them in those cells; ``""`` if each character is a token.
        pair_separator: what separates a token from its tag if a line is ``青/B-LOC 湖/I-LOC``, else ``""``.
        blank_tokens: whether blanks are tokens of their own, so that none is to be added.
        joins_words: whether blanks will be added between Latin words.
        short_words: whether a word may be one letter or digit. If not, one letter is a part of a word.
        doubt: why the file must not be read like this, and what to do; ``""`` if nothing is in doubt.
    """

    scheme: str = "BIO"
    label_first: bool = False
    glued: bool = False
    text_column: int = 0
    tag_column: int = -1
    columns: int = 2
    numbered: bool = False
    divides: str = ""
    commas: bool = False
    pictures: bool = False
    first_index: int | None = None
    header: bool = False
    comments: bool = False
    sentence_a_line: bool = False
    token_separator: str = " "
    tag_separator: str = " "
    pair_separator: str = ""
    blank_tokens: bool = False
    joins_words: bool = False
    short_words: bool = True
    doubt: str = ""

    @property
    def is_strict(self) -> bool:
        """Whether tags mark the end of each entity, so that a tag that cannot follow the one before is an error."""
        return self.scheme not in _LENIENT

    def describe(self) -> str:
        """The scheme and what is unusual, for the summary."""
        parts = {
            "标记没有前缀，相邻的同一标签算一个实体": self.scheme == "IO",
            "标签写在前面": self.label_first,
            f"标记里没有连字符，{'LOCB 照 LOC-B' if self.label_first else 'BLOC 照 B-LOC'} 读": self.glued,
            "每行一句": self.sentence_a_line,
            f"标记在 {self.pair_separator} 后面": self.pair_separator != "",
            "第 1 行是表头": self.header,
            f"第 {self.text_column} 列是序号，{_DIVIDES[self.divides]}": self.numbered,
            f"第 {self.text_column + 1} 列是文本": self.text_column > 0 and not self.numbered,
            f"第 {self.tag_column + 1} 列是标记": self.tag_column not in (-1, self.columns - 1),
            "字后面的数字是序号，去掉": self.first_index is not None,
            "# 开头的注释跳过": self.comments,
            "IMGID 行跳过": self.pictures,
            "逗号后面是标记": self.commas,
            "文件里没有空行，在 。！？ 后面分句": self.divides == "ends",
            "英文词之间补空格": self.joins_words,
        }
        return "，".join([self.scheme, *(part for part, holds in parts.items() if holds)])

    def read_tag(self, tag: str) -> tuple[str, str] | None:
        """The role of a token (O, or B, I, E, S as in BIOES) and the label; None if the tag is not of the scheme."""
        if tag in ("O", "o"):
            return "O", ""
        if self.scheme == "IO":
            return ("I", tag) if is_label(tag) else None
        letter, label = split_tag(tag, label_first=self.label_first, glued=self.glued)
        return (_ROLES[letter], label) if letter in SCHEMES[self.scheme] and is_label(label) else None


def split_tag(tag: str, *, label_first: bool, glued: bool = False) -> tuple[str, str]:
    """The letter of a tag, upper case, and its label: ``b-LOC`` → ``("B", "LOC")``; ``("?", "")`` for another tag."""
    role_first, label_before = (_GLUED_ROLE_FIRST, _GLUED_LABEL_FIRST) if glued else (_ROLE_FIRST, _LABEL_FIRST)
    match = (label_before if label_first else role_first).fullmatch(tag)
    if match is None:
        return "?", ""
    letter, label = match.groups()[:: -1 if label_first else 1]
    return letter.upper(), label


def is_label(label: str) -> bool:
    """Whether a text can be a label: there is no blank and no control character in it."""
    return label.isprintable() and label != "" and not any(character.isspace() for character in label)


# ---- What the tags of a file say ----


class Reading(NamedTuple):
    """How the tags of a column read. ``labels`` is empty if all are O; of ``glued`` see `Tagging`."""

    scheme: str
    label_first: bool
    labels: frozenset[str]
    glued: bool = False


def reading_of(tags: Counter[str], *, share: float = 0.9) -> Reading | None:
    """How the tags of a column read; None if they are no tags.

    Args:
        share: the part of the lines that must have a tag.
    """
    total, outside = tags.total(), tags["O"] + tags["o"]
    marked = {tag: count for tag, count in tags.items() if tag not in ("O", "o")}
    if not marked:
        return Reading("BIO", label_first=False, labels=frozenset()) if outside else None
    readings = []
    for label_first in (False, True):
        letters, labels = Counter[str](), set()
        for tag, count in marked.items():
            letter, label = split_tag(tag, label_first=label_first)
            if label:  # one with a blank in it is a tag, too, which the reader rejects
                letters[letter] += count
                labels.add(label)
        # At least half of the marked lines, so that a few "B-12" among other words are no tags.
        if outside + letters.total() > share * total and 2 * letters.total() > total - outside:
            begins = bool(letters.keys() - set("SUW"))
            readings.append((-letters.total(), not begins, len(labels), label_first, letters, frozenset(labels)))
    if readings:
        *_, label_first, letters, labels = min(readings, key=lambda reading: reading[:4])
        return Reading(_scheme(letters), label_first, labels)
    if outside and (reading := _glued_reading(marked)):
        return reading if outside + sum(marked.values()) > share * total else None
    plain = {tag: count for tag, count in marked.items() if _PLAIN_LABEL.fullmatch(tag)}
    if any(LETTER_AND_LABEL.fullmatch(tag) for tag in plain) or outside < 0.2 * total:
        return None
    few = len(plain) <= min(_MOST_LABELS, max(1, total // 3))
    return Reading("IO", False, frozenset(plain)) if few and outside + sum(plain.values()) > share * total else None


def _glued_reading(marked: Mapping[str, int]) -> Reading | None:
    """How tags without a hyphen read, such as ``BPER`` and ``IPER``; None if they are plain labels.

    A label that stands behind B and behind I (or M, E) as well is no chance: most of the tags must have such a label.
    """
    for label_first in (False, True):
        letters, letters_of = Counter[str](), defaultdict[str, Counter[str]](Counter)
        for tag, count in marked.items():
            letter, label = split_tag(tag, label_first=label_first, glued=True)
            letters[letter] += count
            letters_of[label][letter] += count
        del letters["?"]
        paired = [of_label for of_label in letters_of.values() if of_label["B"] and of_label.keys() & set("IME")]
        if 2 * sum(of_label.total() for of_label in paired) > sum(marked.values()):
            return Reading(_scheme(letters), label_first, frozenset(letters_of) - {""}, glued=True)
    return None


def _scheme(letters: Counter[str]) -> str:
    """The scheme with these letters. A letter on fewer than 2 % of the tags is a slip and decides nothing."""
    ends = letters["E"] + letters["M"] + letters["S"] + letters["W"]
    bilou = letters["L"] + letters["U"]
    if ends + bilou <= 0.02 * letters.total():
        return "BIO"
    if letters["E"] + letters["M"] + letters["W"] + bilou <= 0.02 * letters.total() and letters["B"] and letters["I"]:
        return "BIOS"
    if bilou > ends:
        return "BILOU"
    if not letters.keys() - {"I", "E"} and letters["I"]:
        return "IOE"
    if letters["W"] > letters["S"]:
        return "BMEWO"
    return "BMES" if letters["M"] > letters["I"] else "BIOES"


# ---- Columns ----


def columns_of(line: str) -> list[str]:
    """The columns of a line, separated by tabs or, if it has none, by blanks. A line may begin with a blank token."""
    line = line.rstrip("\r\n")
    if "\t" in line:
        return line.split("\t")
    if line[:1] == " ":
        return [" ", *line[1:].lstrip(" ").split(" ")]
    return line.split(" ")


def with_tab(line: str) -> str:
    """A line ``青,B-LOC`` with a tab in place of its last comma; a token in quotation marks (``","``) without them."""
    end = line[len(line.rstrip("\r\n")) :]
    token, comma, tag = line.rstrip("\r\n").rpartition(",")
    if len(token) > 1 and token[0] == token[-1] == '"':
        token = token[1:-1].replace('""', '"')
    return f"{token}\t{tag}{end}" if comma else line


def is_token_comma_tag(line: str) -> bool:
    """Whether a line is ``青,B-LOC`` or the like."""
    return _TOKEN_COMMA_TAG.fullmatch(line) is not None


def token_and_tag(line: str, tagging: Tagging) -> tuple[str, str]:
    """The token and the tag on a line; the tag is ``""`` if the line has too few columns. A blank can be a token."""
    if tagging.tag_column == -1:
        line = line.rstrip(BLANKS)
        if tagging.text_column == 0:  # the usual layout, quickly
            separator = "\t" if "\t" in line else " "
            token, _, others = line.partition(separator)
            return token or " ", others.rpartition(separator)[2]
    columns = columns_of(line)
    if tagging.text_column > 0 and tagging.tag_column != 0 and "\t" not in line:
        columns = [column for column in columns if column]  # blanks may align the columns
        if len(columns) == tagging.columns - 1:
            columns.insert(tagging.text_column, " ")
    if len(columns) < 2 or len(columns) <= max(tagging.text_column, tagging.tag_column):
        return columns[0], ""
    return columns[tagging.text_column] or " ", columns[tagging.tag_column].strip(BLANKS)


def tokens_of(cell: str, count: int, tagging: Tagging) -> list[str]:
    """The tokens of a sentence in a cell. An empty one is a blank; one too many at an edge is none.

    Args:
        count: how many tags there are.
    """
    separator = tagging.token_separator
    if not separator:
        return list(cell)
    tokens = cell.split(separator)
    if len(tokens) != count:
        stripped = cell.strip(separator).split(separator)
        tokens = stripped if len(stripped) == count else tokens
    return [token or " " for token in tokens]


# ---- A running number before each token ----


def divides_at(before: str, number: str, divides: str) -> bool:
    """Whether a sentence begins at a token, given the numbers before the last token and before this one."""
    if not (before.isdecimal() and number.isdecimal()):
        return False
    if divides == "restarts":
        return int(number) in (0, 1) and int(number) != int(before) + 1
    return divides == "changes" and number != before


# ---- A number glued to each character ----


def take_off_index(token: str, last: int | None, first: int) -> tuple[str, int] | None:
    """A token without the number at its end, and that number; None if no number can follow there.

    In ``科0 技1 全0`` the numbers count the characters of a word. ``10`` is the digit 1 at the beginning of a word.

    Args:
        last: the number of the token before; None at the beginning of a sentence.
        first: the number of a word's first character.
    """
    numbers = [first] if last is None else [last + 1, first]
    fitting = [number for number in numbers if token.endswith(str(number)) and len(token) > len(str(number))]
    if fitting:
        # "x10" after 9 is x and 10, not x1 and 0: the one that leaves one character is right.
        number = min(fitting, key=lambda number: len(token) - len(str(number)) > 1)
        return token[: -len(str(number))], number
    rest = token.rstrip(DIGITS)
    if last is None and len(rest) == 1 < len(token) <= 3:  # a sentence that begins inside a word
        return rest, int(token[1:])
    return None
