"""Text for a terminal: how wide it is, where a line may be broken, colours, and commands to copy.

Imports only the standard library. Nothing here prints.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

USUAL_COLUMNS = 80
# A line may not begin with one of these, or end with one of those.
NOT_FIRST = frozenset("，。、；：？！）》〉」』】〕”’…—,.;:?!)]}%")
NOT_LAST = frozenset("（《〈「『【〔“‘([{")
AS_WRITTEN = "    "  # a line that begins so, such as a command, is never broken
RESET = "\x1b[0m"


def display_width(text: str) -> int:
    """How many columns ``text`` takes: a Chinese character takes two, an accent on another character none."""
    if text.isascii():
        return len(text)
    return sum(map(_width, text))


def _width(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def columns_of(stream: IO[str] | None) -> int | None:
    """How many columns the terminal has that ``stream`` writes to; None if it writes to a pipe or a file."""
    if stream is None or not stream.isatty():
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or USUAL_COLUMNS
    except (OSError, ValueError):  # an editor's console that is no real terminal
        return shutil.get_terminal_size((USUAL_COLUMNS, 24)).columns


def terminal_columns() -> int | None:
    """How many columns the terminal has that the program writes to; None if nobody watches."""
    return columns_of(sys.stderr) or columns_of(sys.stdout)


def has_colour(stream: IO[str]) -> bool:
    """Whether to colour what goes to ``stream``: a terminal that can, and the user does not set NO_COLOR."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return sys.platform != "win32" or bool({"WT_SESSION", "ANSICON", "TERM_PROGRAM", "TERM"} & os.environ.keys())


def folds(text: str, columns: int, indent: int = 0, *, split_words: bool = False) -> Iterator[tuple[int, int]]:
    """Where to break one line of text: the ``(start, end)`` of each part; together they are the whole text.

    Between Chinese characters any place will do, except before closing and after opening punctuation. Words and paths
    stay whole, even one that is wider than the terminal.

    Args:
        columns: how wide a part may be.
        indent: columns that are lost in every part after the first.
        split_words: break a word that is wider than the terminal.
    """
    start, end, used, room = 0, 0, 0, columns
    for unit_start, unit_end in _units(text):
        width = display_width(text[unit_start:unit_end])
        if used + display_width(text[unit_start:unit_end].rstrip()) > room and end > start:
            yield start, end
            start, used, room = unit_start, 0, columns - indent
        while split_words and used + width > room:
            cut = _fitting(text, start, unit_end, room)
            yield start, cut
            start, used, room = cut, 0, columns - indent
            width = display_width(text[cut:unit_end])
        used, end = used + width, unit_end
    if end > start or not text:
        yield start, end


def _fitting(text: str, start: int, end: int, room: int) -> int:
    """The end of the longest part from ``start`` that takes at most ``room`` columns, at least one character."""
    used = 0
    for index in range(start, end):
        used += _width(text[index])
        if used > room and index > start:
            return index
    return end


def _units(text: str) -> Iterator[tuple[int, int]]:
    """The ``(start, end)`` of the pieces that are not broken, each with the blanks after it."""
    start = 0
    for index in range(1, len(text)):
        if _may_break(text[index - 1], text[index]):
            yield start, index
            start = index
    if text:
        yield start, len(text)


def _may_break(before: str, after: str) -> bool:
    if after.isspace() or after in NOT_FIRST or before in NOT_LAST or not _width(after):
        return False
    return before.isspace() or _width(before) == 2 or _width(after) == 2


def folded(text: str, columns: int | None, indent: int = 2) -> str:
    """``text`` with its lines broken to ``columns``, the rest of each indented; unchanged if that is None.

    A line that begins with four spaces stays as it is: commands are to be copied.
    """
    if columns is None:
        return text
    lines = []
    for line in text.split("\n"):
        if line.startswith(AS_WRITTEN) or display_width(line) <= columns:
            lines.append(line)
            continue
        parts = [line[start:end].rstrip() for start, end in folds(line, columns, indent)]
        lines += [parts[0], *(" " * indent + part for part in parts[1:])]
    return "\n".join(lines)


def hints_wanted() -> bool:
    """Whether to end with the next command. Not if a shell script runs the next one itself: it sets SFT_HINTS=no."""
    return os.environ.get("SFT_HINTS") != "no"


def script_path(name: str) -> str:
    """How to name a script of this project on a command line in the current folder."""
    path = Path(__file__).resolve().parents[1] / name
    return shown_path(path)


def shown_path(path: Path) -> str:
    """``path`` from the current folder, if it is in or near it; else as it is."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive
        return str(path)
    return relative if len(relative) < len(str(path)) else str(path)


def command(words: Sequence[str | Path], columns: int | None = None) -> str:
    """A command to copy, each word quoted for the shell, indented by four spaces.

    If it is wider than the terminal, it is broken before its flags with backslashes. Windows has no such thing.
    """
    words = [str(word) for word in words]
    if sys.platform == "win32":
        return AS_WRITTEN + subprocess.list2cmdline(words)
    line = AS_WRITTEN + shlex.join(words)
    if columns is None or display_width(line) <= columns:
        return line
    starts = [0, *(index for index, word in enumerate(words) if index and word.startswith("--"))]
    lines = [""]
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        part = shlex.join(words[start:end])
        if lines[-1] and display_width(f"{AS_WRITTEN * 2}{lines[-1]} {part} \\") > columns:
            lines.append(part)
        else:
            lines[-1] = f"{lines[-1]} {part}".lstrip()
    return AS_WRITTEN + f" \\\n{AS_WRITTEN * 2}".join(lines)
