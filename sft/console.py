"""What a person watches while a script works: log lines and progress bars on stderr, no bars where nobody looks."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sft.processes import is_first_process

if TYPE_CHECKING:
    from tqdm import tqdm
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Window = TypeVar("Window", bound=tuple[Sequence, object])
BAR_AFTER_SECONDS = 2
ONLY_IF_LONG = {"delay": BAR_AFTER_SECONDS, "leave": False}  # work that is done sooner shows no bar, and none remains
SECONDS_BETWEEN_LINES = 30.0


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send log lines from ``level`` on to stderr, as they are; without what libraries tell each other."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="(transformers|peft)")
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)


def log_level(training: TrainingArguments) -> int:
    """The level that ``--log_level`` asks for; left alone it is INFO for the first process, WARNING for others."""
    if training.log_level == "passive" and training.should_log:
        return logging.INFO
    return training.get_process_log_level()


@lru_cache(maxsize=64)
def say_once(logger: logging.Logger, message: str) -> None:
    """Warn of something that is true of a whole run."""
    logger.warning(message)


def is_watched() -> bool:
    """Whether stderr is a terminal and this is the first of several processes."""
    return sys.stderr.isatty() and is_first_process()


def quiet_libraries() -> None:
    """Where nobody watches, the bars of libraries stay away too; call this before they are imported.

    For a process of one's own only: a notebook's kernel belongs to its user.
    """
    if not is_watched():
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def progress(
    items: Iterable[Item], what: str, unit: str = "条", total: int | None = None, hidden: bool = False
) -> Iterator[Item]:
    """Yield ``items`` under a bar that tells how many are done, how many a second, and the time left.

    Args:
        what: what is being done, as the bar's title.
        unit: what one item is called.
        total: how many items there will be, where ``items`` does not know.
        hidden: show none, whoever watches (``--disable_tqdm``).
    """
    return iter(_bar(what, unit, items, total=total, disable=hidden or not is_watched(), **ONLY_IF_LONG))


class ConversionProgress:
    """A bar over the lines of each raw file that takes long."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._bar = None

    def __enter__(self) -> ConversionProgress:
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, path: Path, line: int) -> None:
        """``line`` lines of ``path`` have been read."""
        if not is_watched():
            return
        if path != self._path:
            self.__exit__()
            self._path, self._bar = path, _bar(f"转换 {path.name}", "行", **ONLY_IF_LONG)
        if self._bar.total is None and self._bar.format_dict["elapsed"] > BAR_AFTER_SECONDS:
            self._bar.total = count_lines(path)
        self._bar.update(line - self._bar.n)


def with_progress(windows: Iterable[Window], done: int, total: int | None) -> Iterator[Window]:
    """Pass ``(rows, …)`` windows on, telling how many rows are through, how fast, and how long the rest will take.

    Args:
        done: rows that an earlier run has finished; they do not count into the speed.
        total: rows in all; None where that is not known.
    """
    if not is_watched():
        yield from _in_lines(windows, done, total)
        return
    with _bar("预测", "条", total=total, initial=done, disable=total == 1) as bar:
        for window in windows:
            yield window
            bar.update(len(window[0]))


def _in_lines(windows: Iterable[Window], done: int, total: int | None) -> Iterator[Window]:
    started = told = time.monotonic()
    predicted = 0
    for window in windows:
        yield window
        predicted += len(window[0])
        now = time.monotonic()
        if now - told >= SECONDS_BETWEEN_LINES:
            told = now
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


def clock(seconds: float) -> str:
    """``3725`` → ``1:02:05``."""
    hours, minutes, seconds = _hours_minutes_seconds(seconds)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _hours_minutes_seconds(seconds: float) -> tuple[int, int, int]:
    minutes, seconds = divmod(round(seconds), 60)
    return *divmod(minutes, 60), seconds


def count_lines(path: Path) -> int:
    """Line ends in a file; about a second for two gigabytes."""
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))


def _bar(what: str, unit: str, items: Iterable | None = None, **options) -> tqdm:
    """A progress bar on stderr; ``options`` are tqdm's."""
    from tqdm import tqdm

    return tqdm(items, desc=what, unit=unit, file=sys.stderr, dynamic_ncols=True, **options)
