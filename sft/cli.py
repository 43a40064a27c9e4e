"""Command lines: a parser whose errors are one line in Chinese, and the exit code for each kind of error.

Imports only the standard library, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import io
import logging
import os
import re
import shlex
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

from sft import __version__
from sft.errors import InputError, RunError, Stopped, is_lost_process, is_out_of_memory, memory_name, printable
from sft.processes import is_first_on_machine, process_count
from sft.terminal import shown_path

logger = logging.getLogger(__name__)

OLDEST_PYTHON = (3, 11)
OWN_ERROR_SECONDS = 10  # then an error is this process's own, and told
DONE, FAILED, WRONG_INPUT, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141

# argparse writes its messages in English. These are the common ones in Chinese.
TRANSLATIONS = (
    (r"argument (\S+): expected one argument", r"\1 后面要有一个值"),
    (r"argument (\S+): expected at least one argument", r"\1 后面至少要有一个值"),
    (r"argument (\S+): invalid choice: (.+) \(choose from (.+)\)", r"\1 不能是 \2，可选的有 \3"),
    (r"argument (\S+): invalid (\w+) value: (.+)", r"\1 应是 \2，实际是 \3"),
    (r"argument (\S+): not allowed with argument (\S+)", r"\1 和 \2 只能给一个"),
    (r"argument (\S+): ignored explicit argument (.+)", r"\1 后面不能有值，实际是 \2"),
    (r"the following arguments are required: (.+)", r"缺少参数 \1"),
    (r"argument (\S+): (.+)", r"\1 \2"),
)

# What the value of a flag for yes or no can be, in any case; those of YAML and of transformers' parser.
YES, NO = ("true", "yes", "y", "t", "1", "on"), ("false", "no", "n", "f", "0", "off")

# What a Chinese input method, a word processor or a web page makes of a minus sign.
LOOKALIKES = "‐‑‒–—―−﹘﹣－"


class OneLineErrors:
    """Mixin for ``argparse.ArgumentParser``: a wrong command line gives one line in Chinese and exit code 2."""

    prog: str

    def error(self, message: str) -> NoReturn:
        """Write ``message`` to stderr and exit with 2."""
        self.exit(WRONG_INPUT, printable(f"{self.prog}：{_in_chinese(message)}；全部参数见 --help") + "\n")


class Parser(OneLineErrors, argparse.ArgumentParser):
    """The parser of a script; flags cannot be abbreviated."""

    def __init__(self, **keywords) -> None:
        super().__init__(allow_abbrev=False, **keywords)
        self.add_argument(
            "--version", action="version", version=f"chinese-llm-sft {__version__}", help="打印版本，然后退出"
        )


def boolean(value: str) -> bool:
    """The value of a flag for yes or no.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    if value.lower() not in (*YES, *NO):
        raise argparse.ArgumentTypeError(f"应是 true 或 false，实际是 {value}")
    return value.lower() in YES


def add_boolean(parser: argparse._ActionsContainer, flag: str, help: str, *, default: bool = False) -> None:
    """Add a flag for yes or no: ``--flag``, ``--flag true``, ``--flag=false`` and ``--no_flag``."""
    action = parser.add_argument(flag, type=boolean, default=default, help=help, metavar="{true,false}")
    settle_boolean(parser, action)


def settle_boolean(parser: argparse._ActionsContainer, action: argparse.Action) -> None:
    """Let a flag for yes or no stand alone, and give it the opposite ``--no_flag`` if it has none."""
    action.type, action.nargs, action.const = boolean, "?", True
    name = action.dest
    if not name.startswith("no_") and f"--no_{name}" not in parser._option_string_actions:
        parser.add_argument(
            f"--no_{name}", action="store_false", dest=name, default=action.default, help=argparse.SUPPRESS
        )


def positive(value: str) -> int:
    """What a flag's word says, a whole number from 1 on."""
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"应是不小于 1 的整数，实际是 {value}")
    return int(value)


def probability(value: str) -> float:
    """What a flag's word says, a number from 0 to 1."""
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"应在 0 与 1 之间，实际是 {value}")
    return number


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str], renamed: Mapping[str, str] | None = None
) -> argparse.Namespace:
    """Like ``parser.parse_args``, but a mistyped flag is named first, with the flag that was probably meant.

    Exits with 2 if the command line is wrong. The arguments are those of `refuse_slips`.
    """
    refuse_slips(parser, argv, renamed)
    arguments, unknown = parser.parse_known_args(argv)
    refuse_unknown(parser, unknown)
    return arguments


def refuse_slips(
    parser: argparse.ArgumentParser, argv: Sequence[str], renamed: Mapping[str, str] | None = None
) -> None:
    """Exit with 2 at the first mistyped flag. Called before argparse, which would name a missing flag first.

    Args:
        argv: the words of the command line.
        renamed: flags of other tools (without dashes) and the flag to use instead.
    """
    known, words = _flags_of(parser), ["", *argv, ""]
    for index, word in enumerate(argv):
        before, after = words[index], words[index + 2]
        is_value = _takes_one_value(known.get(before))
        flag = word.partition("=")[0]
        if word == "--":
            if f"--{after}" not in known:
                return  # argparse: all other words are values
            parser.error(f"-- 和 {after} 之间有空格；请写成 --{after}")
        if flag in known:
            if word == f"{flag}=" and after and not after.startswith("-"):
                parser.error(f"{word} 后面有空格；请写成 {flag} {after}")
        elif _reads_as(word) in known:  # even as a value: nobody looks for the text "—adapter"
            parser.error(f"不认识的参数 {word.strip()}（是不是 {_reads_as(word)}？{_slip_in(word)}）")
        elif _is_flag(word) or (not is_value and _is_flag(_ascii_dashes(word))):
            _refuse_flag(parser, word, after, renamed, before if is_value else "")


def refuse_unknown(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> None:
    """Exit with 2 if argparse left words over: values without a flag."""
    if not unknown:
        return
    word = unknown[0]
    if _reads_as(f"--{word}") in _flags_of(parser):
        parser.error(f"不认识的词 {word}（是不是 {_reads_as(f'--{word}')}？）")
    parser.error(f"不认识的词 {word}；值里有空格就用引号括起来")


def _flags_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {option: action for action in parser._actions for option in action.option_strings}


def _takes_one_value(action: argparse.Action | None) -> bool:
    return action is not None and action.nargs is None and not isinstance(action, argparse._AppendAction)


def _is_flag(word: str) -> bool:
    """Whether argparse takes a word for a flag, known or not: not a lone dash, a number or a text with blanks."""
    if re.fullmatch(r"-\S+", word) is None:
        return False
    try:
        float(word)
    except ValueError:
        return True
    return False


def _ascii_dashes(word: str) -> str:
    """A word whose dashes were typed with a Chinese input method, with ASCII ones: ``—lr`` → ``--lr``."""
    match = re.match(rf"[{LOOKALIKES}-]+(?=[A-Za-zＡ-Ｚａ-ｚ])", word)
    return f"--{unicodedata.normalize('NFKC', word[match.end() :])}" if match else word


def _reads_as(word: str) -> str:
    """The flag that a word reads as for a person: ``－－Learning-rate ＝1`` → ``--learning_rate``; ``""`` for none."""
    if len(word.split()) > 1 and "=" not in unicodedata.normalize("NFKC", word):
        return ""  # a text
    name = _ascii_dashes(word.strip()).partition("=")[0].strip()
    return f"--{_name_of(name)}" if name.startswith("-") else ""


def _name_of(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_").casefold()


def _slip_in(word: str) -> str:
    if word.strip()[0] in LOOKALIKES or word.strip()[1:2] in set(LOOKALIKES):
        return "开头要用两个英文减号"
    if any(character.isspace() for character in word.partition("=")[0]):
        return "里面多了空格"
    return ""


def _refuse_flag(
    parser: argparse.ArgumentParser, word: str, after: str, renamed: Mapping[str, str] | None, before: str
) -> NoReturn:
    """Exit with 2 because of an unknown flag.

    Args:
        after: the next word; it may be the second half of the flag.
        before: a flag whose value this word may be; ``""`` for none.
    """
    flag = word.partition("=")[0]
    name = _name_of(_ascii_dashes(flag))
    if renamed and name in renamed:
        parser.error(f"不认识的参数 {flag}，请用 {renamed[name]}")
    known = [option for option in _flags_of(parser) if "-" not in option[2:]]
    longer = [option for option in known if len(name) > 2 and option.startswith(f"--{name}")]
    close = difflib.get_close_matches(f"--{name}", known, n=1, cutoff=0.7)
    if (joined := f"--{name}_{after}") in known:
        parser.error(f"不认识的参数 {flag} {after}（是不是 {joined}？）")
    if len(longer) == 1 or close:
        parser.error(f"不认识的参数 {flag}（是不是 {longer[0] if len(longer) == 1 else close[0]}？）")
    parser.error(f"不认识的参数 {flag}" + (f"；如果它是 {before} 的值，请写成 {before}={word}" if before else ""))


def readable_streams() -> None:
    """Let stdout and stderr take every text. Only for a script, whose streams are its own.

    A pipe or a file gets the code page of Windows, in which Chinese (1252) or emoji (936) may not exist. A stream
    that has no Chinese becomes UTF-8; in the others, what cannot be encoded becomes a question mark.

    A closed stream (``>&-``) leads to nowhere; a file that is opened later must not get its number.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):  # closed, or not there, as under pythonw
            continue
        try:
            "中".encode(stream.encoding)
        except UnicodeEncodeError:
            stream.reconfigure(encoding="utf-8")
        else:
            if stream is sys.stdout:  # stderr writes an escape by itself
                stream.reconfigure(errors="replace")


def run_script(main: Callable[[], int]) -> NoReturn:
    """Run a script's ``main`` and exit with its code. A package that is not installed is one line and exit code 2."""
    if sys.version_info < OLDEST_PYTHON:
        _print_error(f"需要 Python 3.11 以上，这里是 {sys.version.split()[0]}；{how_to_get_packages()}")
        sys.exit(WRONG_INPUT)
    try:
        code = main()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package == __package__ or _is_installed(package):
            raise  # a bug in this program or in that package
        _print_error(f"没有装 {package}（用的是 {sys.executable}）；{how_to_get_packages()}")
        code = WRONG_INPUT
    sys.exit(code)


def _is_installed(package: str) -> bool:
    from importlib.util import find_spec  # slow to import

    return find_spec(package) is not None


def how_to_get_packages() -> str:
    """What to type so that Python finds the packages: activate ``.venv``, or install them."""
    folder = Path(__file__).resolve().parents[1]
    venv = folder / ".venv"
    if Path(sys.prefix).resolve() != venv.resolve():
        if (venv / "bin/activate").is_file():
            return f"请先运行 source {shlex.quote(shown_path(venv / 'bin/activate'))}"
        if (venv / "Scripts/activate").is_file():
            return f"请先运行 {shown_path(venv / 'Scripts' / 'activate')}"
    pip = f"{Path(sys.executable).name} -m pip install -r {shlex.quote(shown_path(folder / 'requirements.txt'))}"
    return f"请先运行 {pip}，或 bash {shlex.quote(shown_path(folder / 'quickstart.sh'))}"


def is_closed(stream: TextIO | None) -> bool:
    """Whether what is written to a standard stream is lost because the stream was closed."""
    return stream is None or stream.closed or (sys.__stdout__ is None and getattr(stream, "name", "") == os.devnull)


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
        if not is_first_on_machine():  # the first one most likely has the same error: it says it, and all are ended
            time.sleep(OWN_ERROR_SECONDS)
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
        _print_error(f"{where}{error.strerror}；{_advice(error)}")
    except (MemoryError, RuntimeError) as error:
        if process_count() > 1 and is_lost_process(error):
            outcome.code = FAILED
            logger.debug("", exc_info=True)
            _print_error("另一个进程先停了，这个进程也停下；原因见那个进程的报错")
            return
        if not is_out_of_memory(error):
            raise
        outcome.code = FAILED
        logger.debug("", exc_info=True)
        advice = "请减小批的大小（--per_device_train_batch_size、--batch_size）或长度，或换小一些的模型"
        _print_error(f"{memory_name(error)}不够：{advice}")


def _advice(error: OSError) -> str:
    if isinstance(error, PermissionError) and sys.platform == "win32":
        return "请检查权限，并关掉正打开着它的程序（Excel、杀毒软件等）"
    return "请检查磁盘空间和权限"


def _in_chinese(message: str) -> str:
    for english, chinese in TRANSLATIONS:
        if match := re.fullmatch(english, message):
            return match.expand(chinese)
    return message


def _print_error(line: object) -> None:
    sys.stderr.write(f"{printable(str(line))}\n")
