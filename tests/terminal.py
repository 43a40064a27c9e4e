"""Run a command on a pseudo-terminal, and see its screen as a person does."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from typing import NamedTuple

from sft.terminal import display_width

ESCAPE = re.compile(r"\x1b\[([\d;]*)([A-Za-z])")


def on_a_terminal(command: list[str], columns: int = 120, code: int = 0, **keywords) -> bytes:
    """The output of a command on a terminal of so many columns, stdout and stderr together."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, **keywords)
    os.close(theirs)
    written = b""
    while True:
        try:
            written += os.read(ours, 1 << 16)
        except OSError:  # the process has closed the terminal
            break
    os.close(ours)
    assert process.wait(60) == code, written[-3000:].decode("utf-8", "replace")
    return written


class Screen(NamedTuple):
    """What is on a terminal when a command has ended, with everything that has scrolled away.

    Attributes:
        lines: as written, each up to its newline.
        too_long: those that were wider than the terminal at any time.
        colours: whether there were any colours.
    """

    lines: list[str]
    too_long: list[str]
    colours: bool


def screen_of(written: str, columns: int) -> Screen:
    """Follow the cursor: carriage returns write over a line, and ``ESC [ A`` goes up to the line above."""
    rows: list[list[str]] = [[]]
    row = column = at = 0
    too_long, colours = [], False
    while at < len(written):
        if escape := ESCAPE.match(written, at):
            at = escape.end()
            if escape[2] == "A":
                row = max(0, row - int(escape[1] or 1))
            elif escape[2] == "K":
                del rows[row][column:]
            colours |= escape[2] == "m"
            continue
        character, at = written[at], at + 1
        if character == "\r":
            column = 0
        elif character == "\n":
            row, column = row + 1, 0
            rows += [[]] * 0 if row < len(rows) else [[]]
        else:
            width = display_width(character)
            cells = rows[row]
            cells += [" "] * (column + width - len(cells))
            if width:
                cells[column : column + width] = [character, *[""] * (width - 1)]
            column += width
            if column > columns:
                too_long.append("".join(cells))
    return Screen(["".join(cells).rstrip() for cells in rows], too_long, colours)
