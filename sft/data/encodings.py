"""The encoding of a person's file. Imports no torch."""

from __future__ import annotations

import codecs
from pathlib import Path

from sft.errors import InputError

_SAMPLE_BYTES = 1 << 20
_BINARY = (b"PK\x03\x04", b"PAR1", b"\x1f\x8b", b"\xd0\xcf\x11\xe0")  # zip and xlsx, parquet, gzip, xls
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, ""),  # must come before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, ""),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


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
    """``utf-8``, ``utf-8-sig``, ``utf-16`` or ``gb18030``: the one in ``chosen``, or the one its first megabyte shows.

    Almost any bytes are valid GB18030, so a few lines that are not UTF-8 must not make the file GB18030. The majority
    of the lines that are not pure ASCII decides.

    Raises:
        InputError: the file is empty, is not text, is UTF-16 without a byte order mark, is UTF-32, or ends its lines
            with CR only.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        sample = file.read(_SAMPLE_BYTES)
    if not sample.strip():
        raise InputError(f"{path}：文件是空的；请检查下载是否完整")
    if sample.startswith(_BINARY):
        raise InputError(f"{path}：不是文本文件（像是压缩包、Excel 或 parquet）；请先解压，或导出为 CSV、JSONL")
    for mark, encoding in _BYTE_ORDER_MARKS:
        if sample.startswith(mark) and chosen in ("auto", encoding.removesuffix("-sig")):
            if not encoding:
                raise InputError(f"{path}：是 UTF-32 编码；请先另存为 UTF-8")
            return encoding
    if chosen != "auto":
        return chosen
    if sample.count(0) > len(sample) // 10:
        raise InputError(f"{path}：像是没有 BOM 的 UTF-16；请先另存为 UTF-8，或加 --encoding utf-16")
    if b"\r" in sample and b"\n" not in sample:
        raise InputError(f"{path}：行尾只有 CR（旧 Mac 格式），分不出行；请先转换：tr '\\r' '\\n' < 原文件 > 新文件")

    lines = [line for line in sample.split(b"\n") if not line.isascii()]
    utf8 = sum(_decodes(line, "utf-8") for line in lines)
    gb18030 = sum(_decodes(line, "gb18030") for line in lines)
    return "gb18030" if utf8 < len(lines) / 2 and gb18030 > utf8 else "utf-8"


def _decodes(line: bytes, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        decoder.decode(line)  # not final: the sample may end in the middle of a character
    except UnicodeDecodeError:
        return False
    return True


def is_decoded(text: str) -> bool:
    """Whether every byte of the text was decoded ("surrogateescape" turns the others into lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
