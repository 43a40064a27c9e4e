"""A folder whose names are the labels: one folder for each class with a text in each file, or one file for each class
with a text in each line or row (``pos.txt``, ``neg.txt``).

Imports no torch. `sft.data.formats` recognises each class by itself, so that its file may be a table or JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sft.data.arguments import COLUMNAR_FORMATS, TABLE_FORMATS
from sft.data.encodings import BYTE_ORDER_MARK, encoding_of, is_decoded
from sft.data.source import NumberedRow
from sft.errors import InputError, RowError

CLASS_FOLDER = "一个类别一个文件的（如 pos.txt、neg.txt），请单独放进一个目录，--input_file 给出目录"
_ENDINGS = (".txt", ".json", ".jsonl", *(f".{format}" for format in (*TABLE_FORMATS, *COLUMNAR_FORMATS)))
_PART_OF_DATA = re.compile(
    r"(?<![a-z])(train|test|dev|va?l|valid(ation)?|eval)(?![a-z])|训练|测试|验证", re.IGNORECASE
)
_NO_TEXTS = re.compile(r"stop_?words?|停用词|词表|说明", re.IGNORECASE)
_NO_CLASS = re.compile(
    r"(all|data|datasets?|corpus|class(es)?|labels?|vocab|readme|requirements|raw|samples?|results?|output|predict\w*)",
    re.IGNORECASE,
)
MOST_UNDECODED = 0.01  # of the characters of a text
_UNDECODED = re.compile("[\udc80-\udcff]")  # how Python keeps a byte that does not decode
_LEFT_OUT = "有个别解不开的字节，只去掉这些字节"
_SAMPLE_FILES, _SAMPLE_BYTES = 200, 1 << 13  # of a folder of texts, whose encoding is judged by all of them together


def classes_in(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Each label with the folder or the file of its texts, and the names of what is not read.

    Raises:
        InputError: the folder has no classes, or what is in it looks like something else.
    """
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith((".", "_"))]
    folders = [path for path in entries if path.is_dir()]
    files = [path for path in entries if path.is_file() and path.suffix.lower() in _ENDINGS]
    found = folders if len(folders) > 1 else files
    classes = {path.name if path.is_dir() else path.stem: path for path in found}
    others = [path.name for path in entries if path not in found]
    if len(found) < 2:
        example = folders[0] if folders else folder / (files[0].name if files else "train.jsonl")
        raise InputError(f"{folder}：是一个目录；请给出其中的文件，如 {example}")
    for path in found:
        if _PART_OF_DATA.search(path.stem) or _NO_TEXTS.search(path.stem) or _NO_CLASS.fullmatch(path.stem):
            what = f"里面有 {path.name}，不是一个类别一个文件或文件夹的"
            raise InputError(f"{folder}：是一个目录，{what}；请给出其中的一个，如 {path}")
        if path.is_dir():
            _check_texts(path)
    if len(classes) < len(found):
        raise InputError(f"{folder}：有的文件只有扩展名不同；请一个类别只留一个文件")
    return classes, others


def _check_texts(folder: Path) -> None:
    """Check that a folder may be a class with a text in each file.

    Raises:
        InputError: there is no text in it, or its files are the parts of a data set.
    """
    texts = list(texts_in(folder))
    if not texts:
        raise InputError(f"{folder}：里面没有 .txt；一个类别一个文件夹时，每个文件夹里是 .txt，一个文件一条文本")
    if part := next((path for path in texts if _PART_OF_DATA.fullmatch(path.stem)), None):
        raise InputError(f"{folder}：里面有 {part.name}，不像一个文件一条文本；请给出其中的一个文件，如 {part}")


def texts_in(folder: Path) -> Iterator[Path]:
    """The texts of a class, each in a file, in the order of their names."""
    return (path for path in sorted(folder.glob("*.txt")) if path.is_file() and not path.name.startswith("."))


def encoding_of_texts(folder: Path, chosen: str) -> str:
    """`encoding_of` the texts of a folder: of one of them by itself there may be too little to judge.

    Raises:
        InputError: `encoding_of` refuses them.
    """
    paths = list(texts_in(folder))
    sample = b""
    for path in paths[:: max(1, len(paths) // _SAMPLE_FILES)]:
        with path.open("rb") as file:
            lines = file.read(_SAMPLE_BYTES)
        sample += lines[: lines.rfind(b"\n") + 1 or None] + b"\n"  # no character is cut
    return encoding_of(sample, folder, chosen)


def read_texts(folder: Path, encoding: str) -> Iterator[NumberedRow]:
    """The text in each file of a folder; the number is that of the file.

    A long text with a few bytes that do not decode, as old corpora have them, is read without these, which is noted.
    """
    for number, path in enumerate(texts_in(folder), start=1):
        text = path.read_bytes().decode(encoding, "surrogateescape").removeprefix(BYTE_ORDER_MARK)
        left = text if is_decoded(text) else _UNDECODED.sub("", text)
        if len(text) - len(left) > MOST_UNDECODED * len(text):
            yield number, text, RowError("", f"{path.name}：有解不开的字节", "有解不开的字节")
        else:
            yield number, text, {"text": left, "notes": [_LEFT_OUT] if left != text else []}
