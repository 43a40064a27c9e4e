"""Log lines and progress bars on stderr while a script runs. Bars are shown only on a terminal."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sft.errors import printable
from sft.processes import is_first_process
from sft.terminal import columns_of, folded

if TYPE_CHECKING:
    from tqdm import tqdm
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Window = TypeVar("Window", bound=tuple[Sequence, object])
BAR_AFTER_SECONDS = 2
ONLY_IF_LONG = {"delay": BAR_AFTER_SECONDS, "leave": False}  # quick work shows no bar, and a finished bar disappears
SECONDS_BETWEEN_LINES = 30.0


class LinesOnStderr(logging.StreamHandler):
    """Writes messages as they are. On a terminal, long lines are broken, and bars stand below the messages."""

    def format(self, record: logging.LogRecord) -> str:
        return folded(super().format(record), columns_of(self.stream))

    def emit(self, record: logging.LogRecord) -> None:
        with bars_cleared():
            super().emit(record)


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send log messages of at least ``level`` to stderr without a prefix, and hide FutureWarnings of libraries."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="(transformers|peft)")
    handler = LinesOnStderr(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


class PrintableFormatter(logging.Formatter):
    """Messages quote labels and texts of a user's data; a terminal must not obey what is in them."""

    def format(self, record: logging.LogRecord) -> str:
        """The message as `printable` gives it."""
        return printable(super().format(record))


def say(line: str) -> None:
    """Write a line for a person to stderr. On a terminal it is broken where it is too long."""
    sys.stderr.write(folded(printable(line), columns_of(sys.stderr)) + "\n")


@contextmanager
def bars_cleared() -> Iterator[None]:
    """Inside this context no bar is on the terminal, so that something else can be written; then they come back."""
    if "tqdm" not in sys.modules:
        yield
        return
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stderr):
        yield


def log_level(training: TrainingArguments) -> int:
    """The level of ``--log_level``; by default INFO for the first process and WARNING for the others."""
    if training.log_level == "passive" and training.should_log:
        return logging.INFO
    return training.get_process_log_level()


@lru_cache(maxsize=64)
def say_once(logger: logging.Logger, message: str) -> None:
    """Log a warning once, however often this is called with the same message."""
    logger.warning(message)


def is_watched() -> bool:
    """Whether stderr is a terminal and this is the first of several processes."""
    return sys.stderr.isatty() and is_first_process()


def quiet_libraries() -> None:
    """Switch off what libraries write besides this project's own lines. Call this before importing them.

    Their bars go unless stderr is a terminal; warnings for programmers go always (TRANSFORMERS_VERBOSITY=warning
    brings those of transformers back). Only for a script: in a notebook these settings belong to the user.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="(transformers|peft|accelerate|datasets)")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on a CPU it recommends a package at each import
    logging.getLogger("liger_kernel").setLevel(logging.ERROR)  # it names every chip it has no code for
    if not is_watched():
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def progress(
    items: Iterable[Item], what: str, unit: str = "条", total: int | None = None, hidden: bool = False
) -> Iterator[Item]:
    """Yield ``items`` and show a bar with the number done, the rate, and the time left.

    Args:
        what: the bar's title.
        unit: the name of one item.
        total: the number of items, if ``items`` has no length.
        hidden: show no bar, even on a terminal (``--disable_tqdm``).
    """
    return iter(bar(what, unit, items, total=total, disable=hidden or not is_watched(), **ONLY_IF_LONG))


class ConversionProgress:
    """A bar over the lines of each raw file, shown if it takes long."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._bar = None

    def __enter__(self) -> ConversionProgress:
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, path: Path, line: int) -> None:
        """Show that ``line`` lines of ``path`` have been read."""
        if not is_watched():
            return
        if path != self._path:
            self.__exit__()
            self._path, self._bar = path, bar(f"转换 {printable(path.name)}", "行", **ONLY_IF_LONG)
        if self._bar.total is None and self._bar.format_dict["elapsed"] > BAR_AFTER_SECONDS:
            self._bar.total = count_lines(path)
        self._bar.update(line - self._bar.n)


def with_progress(windows: Iterable[Window], done: int, total: int | None) -> Iterator[Window]:
    """Yield ``(rows, …)`` windows and show the number of rows done, the rate, and the time left.

    Without a terminal, a log line every ``SECONDS_BETWEEN_LINES`` takes the place of the bar.

    Args:
        done: rows that an earlier run finished; they do not count towards the rate.
        total: rows in total; None if unknown.
    """
    if not is_watched():
        yield from _in_lines(windows, done, total)
        return
    with bar("预测", "条", total=total, initial=done, disable=total == 1, leave=False) as shown:
        for window in windows:
            with bars_cleared():  # its rows may go to the same terminal
                yield window
            shown.update(len(window[0]))


def _in_lines(windows: Iterable[Window], done: int, total: int | None) -> Iterator[Window]:
    started = last_line = time.monotonic()
    predicted = 0
    for window in windows:
        yield window
        predicted += len(window[0])
        now = time.monotonic()
        if now - last_line >= SECONDS_BETWEEN_LINES:
            last_line = now
            logger.info("%s", _progress_line(done, predicted, total, now - started))


def _progress_line(done: int, predicted: int, total: int | None, seconds: float) -> str:
    speed = predicted / seconds
    so_far = f"已预测 {done + predicted:,} 条"
    if total is None:
        return f"{so_far}，每秒 {speed:.1f} 条"
    left = (total - done - predicted) / speed
    return f"{so_far}（共 {total:,}），每秒 {speed:.1f} 条，还要约 {duration(left)}"


def duration(seconds: float) -> str:
    """``3725`` → ``1 小时 2 分``."""
    hours, minutes, seconds = _hours_minutes_seconds(seconds)
    if hours:
        return f"{hours} 小时 {minutes} 分"
    return f"{minutes} 分 {seconds} 秒" if minutes else f"{seconds} 秒"


def time_left(seconds: float) -> str:
    """``100`` → ``2 分``: rounded up, in the largest unit that says enough."""
    if math.ceil(seconds) < 60:
        return f"{max(1, math.ceil(seconds))} 秒"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"{hours} 小时 {minutes} 分" if hours else f"{minutes} 分"


def clock(seconds: float) -> str:
    """``3725`` → ``1:02:05``."""
    hours, minutes, seconds = _hours_minutes_seconds(seconds)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _hours_minutes_seconds(seconds: float) -> tuple[int, int, int]:
    minutes, seconds = divmod(round(seconds), 60)
    return *divmod(minutes, 60), seconds


def count_lines(path: Path) -> int | None:
    """The number of line ends in a file; takes about a second for two gigabytes. None of what has no lines."""
    if path.is_dir():
        return None
    with path.open("rb") as file:
        if b"\0" in file.read(1 << 12):  # Excel, Parquet; UTF-16 goes without a total, too
            return None
        file.seek(0)
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))


def bar(what: str, unit: str, items: Iterable | None = None, **options) -> tqdm:
    """A progress bar on stderr; ``options`` are tqdm's."""
    from tqdm import tqdm

    return tqdm(items, desc=what, unit=unit, file=sys.stderr, dynamic_ncols=True, **options)
