"""The small library that counts a process's writes (`preload.c`): compiled here, loaded before Python starts."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.reliability.matrix import Skipped

SOURCE = Path(__file__).with_name("preload.c")
COUNT, KILL, KILL_HALFWAY, FULL, SIGNAL, BROKEN = range(1, 7)
CHANGE, CREATION, WRITING = range(3)


class Event(NamedTuple):
    """One change to the files of a run: its kind, and in words."""

    kind: int
    words: str


def start_again_with_library(folder: Path, arguments: list[str]) -> None:
    """Compile the library, and start this program again with it. Does nothing without a C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return
    library = folder / "preload.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, SOURCE, "-ldl"], check=True)
    preloaded = " ".join(filter(None, [str(library), os.environ.get("LD_PRELOAD")]))
    environment = os.environ | {"LD_PRELOAD": preloaded, "RELIABILITY_FOLDER": str(folder)}
    os.execve(sys.executable, [sys.executable, "-m", "benchmarks.reliability", *arguments], environment)


def require_library() -> None:
    """Skip the family where the library could not be loaded.

    Raises:
        Skipped: there is no compiler, or this is not Linux.
    """
    if not hasattr(ctypes.CDLL(None), "watch_files"):
        raise Skipped("没有 C 编译器（或不是 Linux），数不到每一次写")


def watch(folder: Path, mode: int, number: int = 0, *, log: Path | None = None, signal: int = 0) -> Callable[[], None]:
    """A hook that acts at the given event, from 1, among all changes to files below ``folder``."""

    def prepare() -> None:
        descriptor = -1
        if log is not None:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        library = ctypes.CDLL(None)
        library.watch_files(os.fsencode(folder.resolve()), mode, ctypes.c_long(number), descriptor, signal)

    return prepare


def events_in(log: Path) -> list[Event]:
    """What `COUNT` wrote."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [Event(int(line[0]), line[2:]) for line in lines]
