"""Command lines: a parser whose errors are one line in Chinese, and the exit code for each kind of error.

Imports only the standard library, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from sft.errors import InputError, RunError, Stopped
from sft.processes import is_first_on_machine

logger = logging.getLogger(__name__)

DONE, FAILED, WRONG_INPUT, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141

# argparse writes its messages in English. These are the common ones in Chinese.
TRANSLATIONS = (
    (r"argument (\S+): expected one argument", r"\1 后面要有一个值"),
    (r"argument (\S+): expected at least one argument", r"\1 后面至少要有一个值"),
    (r"argument (\S+): invalid choice: (.+) \(choose from (.+)\)", r"\1 不能是 \2，可选的有 \3"),
    (r"argument (\S+): invalid (\w+) value: (.+)", r"\1 应是 \2，实际是 \3"),
    (r"argument (\S+): not allowed with argument (\S+)", r"\1 和 \2 只能给一个"),
    (r"the following arguments are required: (.+)", r"缺少参数 \1"),
    (r"argument (\S+): (.+)", r"\1 \2"),
)


class OneLineErrors:
    """Mixin for ``argparse.ArgumentParser``: a wrong command line gives one line in Chinese and exit code 2."""

    prog: str

    def error(self, message: str) -> NoReturn:
        """Write ``message`` to stderr and exit with 2."""
        self.exit(WRONG_INPUT, f"{self.prog}：{_in_chinese(message)}；全部参数见 --help\n")


class Parser(OneLineErrors, argparse.ArgumentParser):
    """The parser of a script; flags cannot be abbreviated."""

    def __init__(self, **keywords) -> None:
        super().__init__(allow_abbrev=False, **keywords)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Like ``parser.parse_args``, but the message for an unknown flag suggests the closest known flag.

    Exits with 2 if the command line is wrong.
    """
    arguments, unknown = parser.parse_known_args(argv)
    refuse_unknown(parser, unknown)
    return arguments


def refuse_unknown(
    parser: argparse.ArgumentParser, unknown: Sequence[str], renamed: Mapping[str, str] | None = None
) -> None:
    """Exit with 2 if there are unknown words on the command line; the message suggests a flag for the first one.

    Args:
        unknown: the words that ``parser`` does not know.
        renamed: flags of other tools (without dashes) and the flag to use instead.
    """
    if not unknown:
        return
    flag = unknown[0].partition("=")[0]
    name = flag.lstrip("-").replace("-", "_")
    if renamed and name in renamed:
        parser.error(f"{flag} 已改名，请用 {renamed[name]}")
    known = [option for action in parser._actions for option in action.option_strings]
    close = difflib.get_close_matches(flag, known, n=1, cutoff=0.7)
    parser.error(f"不认识的参数 {flag}" + (f"（是不是 {close[0]}？）" if close else ""))


@dataclass
class Outcome:
    """How a script's work ended.

    Attributes:
        code: the exit code for the process.
    """

    code: int = DONE


@contextmanager
def one_line_errors(interrupted: str = "已中断", *, piped: bool = False) -> Iterator[Outcome]:
    """Run a script's work; an error that a user can cause becomes one line on stderr and an exit code.

    Exit codes: 0 done, 1 failed, 2 wrong usage or input, 130 Ctrl-C, 141 the reader of stdout has gone, 128 + n
    stopped by signal n. Any other error is a bug in the program and is raised.

    Args:
        interrupted: the line to print after Ctrl-C.
        piped: stdout may go to a program that stops reading early, such as ``head``.

    Yields:
        The outcome. Its exit code is set when the ``with`` block ends.
    """
    outcome = Outcome()
    try:
        yield outcome
    except InputError as error:
        outcome.code = WRONG_INPUT
        if is_first_on_machine():  # the other processes of this machine have the same error
            _print_error(error)
    except RunError as error:
        outcome.code = FAILED
        _print_error(error)
    except Stopped as stop:
        outcome.code = 128 + stop.signal_number
        _print_error(stop)
    except KeyboardInterrupt:
        outcome.code = INTERRUPTED
        _print_error(interrupted)
    except BrokenPipeError:
        if not piped:
            raise
        outcome.code = PIPE_CLOSED
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk, a file that went away
        if error.errno is None or isinstance(error, ConnectionError | TimeoutError):  # not about a file
            raise
        outcome.code = FAILED
        logger.debug("", exc_info=True)
        where = f"{error.filename}：" if error.filename else ""
        _print_error(f"{where}{error.strerror}；请检查磁盘空间和权限")


def _in_chinese(message: str) -> str:
    for english, chinese in TRANSLATIONS:
        if match := re.fullmatch(english, message):
            return match.expand(chinese)
    return message


def _print_error(line: object) -> None:
    sys.stderr.write(f"{line}\n")
