"""Run a script under the rules of Windows, as far as Linux can impose them: `python windows.py SCRIPT [flags]`.

- fsync needs a handle that may write; a folder cannot be opened.
- What this process has open or mapped into memory cannot be renamed, replaced or deleted, nor a folder around it.
- A rename does not replace a file.
- Names have none of ``<>:"|?*`` and do not end in a dot or a blank.
- No symbolic links. For this project's modules, no SIGHUP, SIGKILL and the like, no fcntl, resource, pwd.
- Worker processes are spawned, not forked.
- Where this project opens a text file without naming the encoding, it would get the code page: an error.

The console is the caller's to choose, with PYTHONIOENCODING.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

OURS = re.compile(r"sft(\..*)?|__main__|__mp_main__|predict|train_qwen2_\w+|transfer_\w+")
NOT_ON_WINDOWS = ("fcntl", "resource", "pwd", "grp", "termios", "pty")
SIGNALS_OF_WINDOWS = ("SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIGBREAK")
FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f]|[. ]$')


def impose() -> None:
    """Make this process obey the rules."""
    os.fsync = _fsync
    os.rename = _rename
    sys.addaudithook(_on_event)
    shutil._use_fd_functions = False  # rmtree by names, as on Windows
    tempfile.TemporaryFile = tempfile.NamedTemporaryFile  # as tempfile itself does on Windows
    builtins.__import__ = _import
    multiprocessing.set_start_method("spawn")
    warnings.filterwarnings("error", category=EncodingWarning, module=OURS.pattern)


def open_paths() -> Iterator[str]:
    """The files that this process has open or mapped."""
    for number in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the handle of the listing itself
            continue
    for line in Path("/proc/self/maps").read_bytes().splitlines():
        if b" /" in line:
            yield os.fsdecode(line[line.index(b" /") + 1 :])


_signal_of_windows = ModuleType("signal")
_signal_of_windows.__dict__.update(
    {
        name: value
        for name, value in vars(signal).items()
        if name in SIGNALS_OF_WINDOWS or not re.match("SIG[A-Z]", name)
    }
)
_real_fsync, _real_rename, _real_import = os.fsync, os.rename, builtins.__import__


def _fsync(handle) -> None:
    number = handle if isinstance(handle, int) else handle.fileno()
    if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    _real_fsync(number)


def _rename(source, target, **keywords) -> None:
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", os.fspath(target))
    _real_rename(source, target, **keywords)


def _import(name, module_globals=None, *arguments, **keywords):
    is_ours = OURS.fullmatch((module_globals or {}).get("__name__") or "")
    if name in NOT_ON_WINDOWS and is_ours:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    module = _real_import(name, module_globals, *arguments, **keywords)
    return _signal_of_windows if module is signal and is_ours else module


def _on_event(event: str, arguments: tuple) -> None:
    if event == "open":
        _check_open(*arguments)
    elif event in ("os.rename", "os.remove", "os.rmdir"):
        for path in arguments[: 2 if event == "os.rename" else 1]:
            _check_free(path)
        if event == "os.rename":
            _check_name(arguments[1])
    elif event == "os.mkdir":
        _check_name(arguments[0])
    elif event == "os.symlink":
        raise OSError(errno.EPERM, "A required privilege is not held by the client")


def _check_open(path, mode: str | None, flags: int) -> None:
    if not isinstance(path, str | bytes):
        return
    if mode is None and os.path.isdir(path):  # by os.open; open() itself says that it is a folder
        raise PermissionError(errno.EACCES, "Permission denied", path)
    if flags & os.O_CREAT:
        _check_name(path)


def _check_name(path) -> None:
    name = os.path.basename(os.fsdecode(path).rstrip("/"))
    if FORBIDDEN.search(name) and name not in (".", ".."):
        raise OSError(errno.EINVAL, "Invalid argument", os.fsdecode(path))


def _check_free(path) -> None:
    place = os.path.realpath(os.fsdecode(path))
    for other in open_paths():
        if other == place or other.startswith(place + "/"):
            raise PermissionError(
                errno.EACCES, "The process cannot access the file because it is being used by another process", place
            )


if __name__ == "__main__":
    impose()
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.getcwd())
    runpy.run_path(sys.argv[0], run_name="__main__")
