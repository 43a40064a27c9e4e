"""The encoding of a person's file or stream. Imports no torch."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from pathlib import Path

from sft.data.plausibility import Reading, readings
from sft.errors import InputError

SAMPLE_BYTES = 1 << 20
BYTE_ORDER_MARK = "\ufeff"  # decoded
_EVIDENCE_BYTES = 1 << 16  # enough for any judgement, and judged in 20 milliseconds
_MARGIN_BITS = 12.0  # the likelier reading must be 4,000 times as likely, else the user is asked
_FOR_UTF8_BITS = 4.0
_FREQUENT_BITS_A_BYTE, _WORDS_BITS_A_BYTE = 6.0, 7.2
_WRONG_CHOICE_BITS = 100.0
_BINARY = (b"PK\x03\x04", b"PAR1", b"\x1f\x8b", b"\xd0\xcf\x11\xe0")  # zip and xlsx, parquet, gzip, xls
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, ""),  # must come before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, ""),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LONG_UTF8 = re.compile(rb"[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")  # other texts hardly have that
_UTF8_RUN = re.compile(rb"(?:[\xe3-\xe9][\x80-\xbf]{2}){4}")  # four characters of Chinese, Japanese or Korean
_WINDOWS_QUOTES = re.compile(rb"[\x00-\x7f\x85\x91-\x97]*")  # … ‘ ’ “ ” • – — in every Windows code page of one byte
_UTF16 = ("utf-16-le", "utf-16-be")
_LEGACY = ("gb18030", "big5", "shift_jis", "euc_jp", "euc_kr", "cp1252")
# The names that a user knows, and the fullest set of characters that Python reads under each.
_CODECS = {"shift_jis": "cp932", "euc_kr": "cp949"}
_USUAL_NAMES = {
    "cp932": "shift_jis",
    "cp949": "euc_kr",
    "cp950": "big5",
    "big5hkscs": "big5",
    **dict.fromkeys(_UTF16, "utf-16"),
}


def file_encoding(path: Path, chosen: str = "auto") -> str:
    """`detect_encoding` of a file, after checking that the file can be read.

    Raises:
        InputError: the path is missing, is not an ordinary file, cannot be read, or `detect_encoding` refuses it.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path}：是一个目录；请给出其中的文件，如 {path / 'train.jsonl'}")
        if path.exists() and not path.is_file():
            raise InputError(f"{path}：不是普通文件；请先把数据存成文件")
        return detect_encoding(path, chosen)
    except FileNotFoundError as error:
        raise InputError(f"{path}：没有这个文件；请检查路径") from error
    except OSError as error:
        raise InputError(f"{path}：无法读取（{error.strerror}）") from error


def detect_encoding(path: Path, chosen: str = "auto") -> str:
    """A name that Python knows, for the encoding in ``chosen`` or the one that the file's first megabyte shows.

    If the first megabyte is pure ASCII, the first one that is not is judged.

    Raises:
        InputError: `encoding_of` refuses the file, or it is empty.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        sample = file.read(SAMPLE_BYTES)
        if not sample.strip():
            raise InputError(f"{path}：文件是空的；请检查下载是否完整")
        piece = sample
        while chosen == "auto" and piece.isascii() and 0 not in piece and len(piece) == SAMPLE_BYTES:
            piece = file.read(SAMPLE_BYTES)
    if piece is sample or not piece:
        return encoding_of(sample, path, chosen)
    encoding_of(sample, path)  # refuses what is not text
    return encoding_of(piece + b"\n", path)  # no character lies across the edge: what is before it is ASCII


def encoding_of(sample: bytes, where: object, chosen: str = "auto") -> str:
    """A name that Python knows, for the encoding in ``chosen`` or the one that the sample shows.

    A few lines that are not UTF-8 do not make a file GB18030: the majority of the lines that are not ASCII decides.
    Otherwise the encoding in which the bytes are language is taken, see `sft.data.plausibility`.

    Args:
        where: names the file or stream in messages.
        chosen: one of `sft.data.arguments.ENCODINGS`.

    Raises:
        InputError: it is not text, is UTF-32, ends its lines with CR only, has lines in two encodings, or two
            encodings are plausible. Or ``chosen`` is certainly wrong.
    """
    if sample.startswith(_BINARY):
        if sample.startswith(b"PAR1"):
            raise InputError(f"{where}：像是 Parquet；请把文件名改成以 .parquet 结尾的")
        raise InputError(f"{where}：不是文本文件（像是压缩包或 Excel）；请先解压，或导出为 CSV、JSONL")
    for mark, encoding in _BYTE_ORDER_MARKS:
        if sample.startswith(mark):
            return _marked(encoding, where, chosen)
    if chosen == "utf-16" or (chosen == "auto" and 0 in sample):
        if encoding := _without_mark(sample, certain=chosen == "utf-16"):
            return encoding
        if sample.count(0) > len(sample) // 10:
            raise InputError(f"{where}：不是文本文件，或是没有 BOM 的 UTF-32；请先另存为 UTF-8")
    if b"\r" in sample and b"\n" not in sample:
        raise InputError(
            f"{where}：行尾只有 CR（旧 Mac 格式），分不出行；请在编辑器（VS Code、Notepad++）里改成 LF 行尾再存"
        )
    if b"\x1b$" in sample:
        raise InputError(f"{where}：像是 ISO-2022（邮件里的日文、韩文、中文）；请先另存为 UTF-8")
    lines = [line for line in sample.split(b"\n") if not line.isascii()]
    if chosen != "auto":
        return _chosen(chosen, lines, where)
    return _judged(lines, where)


def usual_name(encoding: str) -> str:
    """The name that a user knows and that ``--encoding`` takes: ``cp950`` → ``big5``."""
    return _USUAL_NAMES.get(encoding, encoding)


def is_decoded(text: str) -> bool:
    """Whether every byte of the text was decoded ("surrogateescape" turns the others into lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- Unicode ----


def _marked(encoding: str, where: object, chosen: str) -> str:
    if not encoding:
        raise InputError(f"{where}：是 UTF-32 编码；请先另存为 UTF-8")
    if chosen not in ("auto", encoding.removesuffix("-sig")):
        raise InputError(
            f"{where}：开头有 {encoding.removesuffix('-sig').upper()} 的 BOM，不是 {chosen}；请去掉 --encoding"
        )
    return encoding


def _without_mark(sample: bytes, *, certain: bool) -> str | None:
    """UTF-16 in one of its two byte orders, or None if the sample is not UTF-16.

    Args:
        certain: it is UTF-16; only the byte order is unknown.
    """
    evidence = sample[: min(_EVIDENCE_BYTES, len(sample) // 2 * 2)]
    best, other = readings(evidence, _UTF16)
    plausible = best.is_language() and other.bits - best.bits > _MARGIN_BITS and "\0" not in best.text
    if certain or plausible:
        return best.encoding
    return None


def is_surely_utf8(line: bytes) -> bool:
    """Whether a line is UTF-8 and hardly anything else: a few two-byte characters could also be GB18030."""
    return _decodes(line, "utf-8") and _LONG_UTF8.search(line) is not None


def _decodes(line: bytes, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        decoder.decode(line)  # not final: the sample may end in the middle of a character
    except UnicodeDecodeError:
        return False
    return True


# ---- Older encodings ----


def _judged(lines: Sequence[bytes], where: object) -> str:
    """The encoding of the lines that are not ASCII.

    Raises:
        InputError: no encoding is plausible, or more than one is.
    """
    utf8 = [line for line in lines if _decodes(line, "utf-8")]
    if 2 * len(utf8) >= len(lines) and (not lines or any(map(_LONG_UTF8.search, utf8))):
        return "utf-8"
    evidence = b"\n".join(lines)[:_EVIDENCE_BYTES]
    if _WINDOWS_QUOTES.fullmatch(evidence):
        return "cp1252"
    best, *others = candidates = _candidates(evidence)
    if 2 * len(utf8) >= len(
        lines
    ):  # a few characters of two bytes: UTF-8, unless another encoding makes words of them
        unicode = next(reading for reading in candidates if reading.encoding == "utf-8")
        several = len(evidence) - sum(byte < 0x80 for byte in evidence) > 2
        words = best.bits_a_byte < (_WORDS_BITS_A_BYTE if several else _FREQUENT_BITS_A_BYTE)
        if "\ufffd" not in unicode.text and (unicode.bits - best.bits < _FOR_UTF8_BITS or not words):
            return "utf-8"
    rivals = list({reading.text: reading for reading in reversed(others) if reading.text != best.text}.values())[::-1]
    if not best.is_language():
        raise InputError(f"{where}：认不出编码（{_shown([best, *rivals[:1]])}）；请另存为 UTF-8，或用 --encoding 指明")
    close = [rival for rival in rivals if rival.bits - best.bits < _MARGIN_BITS]
    # Other code pages of one byte look the same: Russian read as Western European has accents on vowels, too.
    if close or best.encoding == "cp1252":
        doubtful = [best, *(close or rivals[:1])]
        names = "、".join(usual_name(reading.encoding) for reading in doubtful)
        raise InputError(f"{where}：看不准编码（{_shown(doubtful)}）；请用 --encoding 指明，可选 {names} 等")
    if best.encoding != "utf-8" and any(map(_UTF8_RUN.search, utf8)):
        raise InputError(f"{where}：有的行是 UTF-8，有的行是 {usual_name(best.encoding).upper()}；请统一后再用")
    return best.encoding


def _chosen(chosen: str, lines: Sequence[bytes], where: object) -> str:
    """Python's name for what the user chose.

    Raises:
        InputError: the lines are nonsense in it, and language in another encoding.
    """
    evidence = b"\n".join(lines)[:_EVIDENCE_BYTES]
    encoding = _codec(chosen, evidence)
    if chosen == "utf-8" or not lines:
        return encoding
    taken, best = readings(evidence, (encoding,))[0], _candidates(evidence)[0]
    if best.is_language() and not taken.is_language() and taken.bits - best.bits > _WRONG_CHOICE_BITS:
        raise InputError(
            f"{where}：不是 {chosen}（{_shown([taken, best])}）；请去掉 --encoding，或改为 {usual_name(best.encoding)}"
        )
    return encoding


def _candidates(evidence: bytes) -> list[Reading]:
    return readings(evidence, ("utf-8", *(_codec(name, evidence) for name in _LEGACY)))


def _codec(name: str, evidence: bytes) -> str:
    """Python's name for an encoding that a user names.

    Windows' Big5 (code page 950) and Hong Kong's differ in a few symbols: Hong Kong's is taken if the other has not
    all the characters.
    """
    if name == "big5":
        return "cp950" if _decodes(evidence, "cp950") else "big5hkscs"
    return _CODECS.get(name, name)


def _shown(candidates: Sequence[Reading]) -> str:
    """How the first text that is not ASCII reads in each encoding, for a message."""
    return "，".join(
        f"按 {usual_name(reading.encoding).upper()} 是「{_excerpt(reading.text)}」" for reading in candidates
    )


def _excerpt(text: str) -> str:
    start = next((index for index, char in enumerate(text) if char > "\x7f"), 0)
    line = text[start : start + 20].partition("\n")[0]
    return "".join(char if char.isprintable() else "\ufffd" for char in line)
