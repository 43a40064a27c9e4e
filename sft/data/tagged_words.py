"""Read segmented sentences with a tag after each word, such as ``江/nr 泽民/nr 到/v [中国/ns 银行/n]nt``.

Imports no torch. Which words are entities:

- Tags of parts of speech (People's Daily, ICTCLAS, jieba): ``nr``, ``ns``, ``nt`` and ``nz`` are names and become the
  labels; their kinds (``nrf``, ``nsf``, ``ntc`` …) count as them. All other words are no entities.
- A bracketed compound with one of these tags is one entity; names inside it are parts of it and are left out. In any
  other compound (``]l``) the names inside are entities.
- A Chinese surname and the given name after it, both ``nr``, are one person.
- Any tag that is no part of speech is an entity's label (``李白/PER``), except ``O`` and ``o``. With ``B-``, ``I-``,
  ``M-``, ``E-`` or ``S-`` before it, it marks a part of one. Where all words of a line are single characters,
  neighbours with the same label are one entity.
- LTP writes ``nh``, ``ni``, ``ns`` for persons, organisations and places, and ``nt`` for a time, which is no entity.
- The tags of the Chinese and Penn Treebanks and of Universal Dependencies do not say what a name is the name of: there
  are no entities.

The running number at the beginning of a line (``19980101-01-001-001/m``) and pinyin after a word (``为{wei4}/p``) are
no text. Between two words of Latin letters or digits stays a blank, but not where all words are single characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sft.errors import RowError

_BLANKS = re.compile(r"[ \t\r\n\f\v]+")
_TOKEN = re.compile(r"(\[*)(.+?)/([^\W\d][\w-]*)((?:\]/?[A-Za-z][A-Za-z0-9]*)*)")
_CLOSING = re.compile(r"\]/?([A-Za-z0-9]+)")
_RUNNING_NUMBER = re.compile(r"\d{8}-[\d-]+")
_PINYIN = re.compile(r"(?<=.)\{[a-zü:]+\d?\}$")
_NAME = re.compile(r"(n[rstz])[a-z0-9]*")
_PART_OF_ENTITY = re.compile(r"([BIMES])[-_](.+)")
_LTP_NAMES = ("nh", "ni", "ns")
_LTP_ONLY = ("nh", "ni", "nl", "nd", "wp", "ws")
_PARTS_OF_SPEECH = re.compile(
    # People's Daily, ICTCLAS, jieba, LTP
    r"[a-z]|[ADHKMNQRTV]g|eng|xc|a[dglnq]|b[gl]|cc|d[dfgl]|f[g]|gbc|g[bcgimp]|i[gjnv]|j[gnv]|l[bdgnv]|m[gq]|"
    r"n[bg]|n[bhin][a-z]{1,2}|n[dfhilmnwx]|n[rstz][a-z0-9]*|p(?:ba|bei)|q[egltv]|r[gryz]|r[yz][stv]|[sty]g|tt|"
    r"u[dgjlvz]|ude[123]|u(?:zhe|le|guo|suo|deng|yy|dh|ls|zhi|lian)|v[dfgilnqux]|v(?:shi|you)|"
    r"w[bdfhjmnpstw]|w[ky][yz]|x[egmsux]|z[g]|"
    # Universal Dependencies, the Chinese and the Penn Treebank
    r"ADJ|ADP|ADV|AUX|CCONJ|DET|INTJ|NOUN|NUM|PART|PRON|PROPN|PUNCT|SCONJ|SYM|VERB|"
    r"AD|AS|BA|CC|CD|CS|DE[CGRV]|DT|ETC|FW|IJ|JJ|LB|LC|M|MSP|N[NRT]|OD|ON|P|PN|PU|SB|SP|V[ACEV]|X|"
    r"EX|IN|JJ[RS]|LS|MD|NNS|NNPS?|PDT|POS|PRP\$?|RB[RS]?|RP|TO|UH|VB[DGNPZ]?|WDT|WP\$?|WRB"
)
_LATIN = re.compile(r"[0-9A-Za-z\u00c0-\u024f\u0370-\u052f]")
_TWO_CHARACTER_SURNAMES = re.compile(
    "欧阳|司马|诸葛|上官|夏侯|东方|皇甫|尉迟|公孙|慕容|长孙|宇文|司徒|令狐|端木|百里|南宫|东郭|西门|独孤|轩辕|呼延|司空|"
    "闻人|澹台|公冶|太史|申屠|淳于|单于|钟离|濮阳|万俟|赫连|拓跋|纳兰|完颜"
)


@dataclass
class _Word:
    """A word with its tag.

    Attributes:
        label: of the entity that the word is, or is a part of; None if there is none.
        compound: the number of its first word and the label of the outermost compound with a name around it.
    """

    text: str
    tag: str
    label: str | None
    compound: tuple[int, str] | None = None


def are_tagged_words(lines: Sequence[str], enough: float) -> bool:
    """Whether nearly all lines are words with tags, and at least half of the tags are known ones.

    Args:
        lines: the first lines of a file, without blank ones.
        enough: the share of the lines, and of the words in a line, that must fit.
    """
    tags, fitting = [], 0
    for line in lines:
        words = _split(line)
        found = [token[3] for word in words if "://" not in word and (token := _TOKEN.fullmatch(word))]
        fitting += bool(found) and len(found) >= enough * len(words)
        tags += found
    if fitting < enough * len(lines) or len(tags) < max(3, 2 * len(lines)):
        return False
    return sum(_is_part_of_speech(tag) or bool(_PART_OF_ENTITY.fullmatch(tag)) for tag in tags) >= len(tags) / 2


def are_ltp_words(lines: Sequence[str]) -> bool:
    """Whether the tags are LTP's, where ``nt`` is a time: a tag that only LTP has stands in a fifth of the lines."""
    marked = sum(any(word.rpartition("/")[2] in _LTP_ONLY for word in _split(line)) for line in lines)
    return marked > 0 and marked >= len(lines) / 5


def tagged_row(line: str, *, ltp: bool = False) -> dict:
    """The row of a line of words with tags, in the original shape of entities (see `sft.data.shapes`).

    Args:
        ltp: whether the tags are LTP's.

    Raises:
        RowError: a word has no tag, a bracket has no partner, or an entity's tags do not fit together.
    """
    words = _words(line, ltp)
    between, text, places = "" if _are_characters(words) else " ", "", []
    for word in words:
        if text and _LATIN.match(text[-1]) and _LATIN.match(word.text):
            text += between
        places.append((len(text), len(text) + len(word.text)))
        text += word.text
    entities = []
    for first, last, label in _entities(words):
        start, end = places[first][0], places[last][1]
        entities.append({"start_idx": start, "end_idx": end, "entity_text": text[start:end], "entity_label": label})
    return {"text": text, "entities": entities}


def _words(line: str, ltp: bool) -> list[_Word]:
    words, open_at = [], []  # open_at: the first word of each open bracket
    for number, token in enumerate(_split(line)):
        found = _TOKEN.fullmatch(token)
        if found is None:
            raise RowError("tag", f"{token[:30]!r} 没有标记；应如 词/n")
        brackets, word, tag, closing = found.groups()
        if number == 0 and _RUNNING_NUMBER.fullmatch(word):
            continue
        open_at += [len(words)] * len(brackets)
        words.append(_Word(_PINYIN.sub("", word), tag, _label(tag, ltp)))
        for compound in _CLOSING.findall(closing):
            if not open_at:
                raise RowError("entities", f"{token[:30]!r} 的方括号没有开头")
            first = open_at.pop()
            if label := _label(compound, ltp):
                for part in words[first:]:  # an outer compound is written over the ones inside
                    part.label, part.compound = label, (first, label)
    if open_at:
        raise RowError("entities", f"{words[open_at[-1]].text[:30]!r} 前的方括号没有结尾")
    return words


def _split(line: str) -> list[str]:
    """The words of a line; an ideographic space (U+3000) does not divide words, it may be one."""
    return [word for word in _BLANKS.split(line) if word]


def _label(tag: str, ltp: bool) -> str | None:
    if part := _PART_OF_ENTITY.fullmatch(tag):
        return part[2]
    if ltp:
        return tag if tag in _LTP_NAMES or not _is_part_of_speech(tag) else None
    if name := _NAME.fullmatch(tag):
        return name[1]
    return None if _is_part_of_speech(tag) else tag


def _is_part_of_speech(tag: str) -> bool:
    return tag == "O" or _PARTS_OF_SPEECH.fullmatch(tag) is not None


def _are_characters(words: list[_Word]) -> bool:
    return all(len(word.text) == 1 for word in words)


def _entities(words: list[_Word]) -> Iterator[tuple[int, int, str]]:
    """First word, last word and label of each entity."""
    characters = _are_characters(words)
    entities: list[tuple[int, int, str]] = []
    for at, word in enumerate(words):
        if word.label is None:
            continue
        first, last, _ = entities[-1] if entities else (0, -1, "")
        if entities and last == at - 1 and _goes_on(words[last], word, characters, alone=first == last):
            entities[-1] = (first, at, word.label)
        elif word.compound is None and re.match(r"[ME][-_]", word.tag):
            raise RowError("tag", f"{word.text}/{word.tag} 接不上前一个词")
        else:
            entities.append((at, at, word.label))
    yield from entities


def _goes_on(before: _Word, word: _Word, characters: bool, *, alone: bool) -> bool:
    """Whether a word goes on with the entity of the word before it.

    Args:
        characters: whether all words of the line are single characters.
        alone: whether the entity is so far only that word.
    """
    if before.compound or word.compound:
        return before.compound == word.compound
    if before.label != word.label:
        return False
    if part := _PART_OF_ENTITY.fullmatch(word.tag):
        return part[1] in "IME" and re.match(r"[BIM][-_]", before.tag) is not None
    if word.label == "nr" and _NAME.fullmatch(word.tag):
        return alone and _is_surname(before) and len(word.text) <= 2
    return characters and not _is_part_of_speech(word.tag)


def _is_surname(word: _Word) -> bool:
    return len(word.text) == 1 or word.tag == "nr1" or _TWO_CHARACTER_SURNAMES.fullmatch(word.text) is not None
