"""Files that are written completely or not at all, JSON files, hashes, and the names of a run's files. No torch."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import orjson

from sft.errors import InputError

# The files that a training run leaves in its output folder.
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
TASK_FILE = "task.json"
METRICS_FILE = "metrics.jsonl"
RATE_SEARCH_FILE = "learning_rate.json"  # the trials of --learning_rate auto
TRAIN_RESULTS_FILE = "train_results.json"
ALL_RESULTS_FILE = "all_results.json"
SAMPLES_FILE = "sample_predictions.json"
REPORT_FILE = "report.html"
LOSS_CURVE_FILE = "loss.png"
MODEL_CARD_FILE = "README.md"
CHECK_ROWS_FILE = "check_rows.jsonl"  # with which export.py compares
STATE_FILE = "trainer_state.json"  # transformers' own name; each checkpoint has one, too
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")  # transformers' own name, too

PART_BYTES = 1 << 26  # of a large file that one thread hashes
PAUSES_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.6)


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """The checkpoint of a step, whether or not it exists."""
    return output_dir / f"checkpoint-{step}"


def step_in_name(path: Path) -> int | None:
    """The step in a checkpoint's name; None if ``path`` is not named like one."""
    match = _CHECKPOINT.fullmatch(path.name)
    return int(match[1]) if match else None


def named_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """What is named like a checkpoint in a folder, with its step, the lowest first. It may be a file or a link."""
    steps = ((step_in_name(path), path) for path in folder.glob("checkpoint-*"))
    return sorted((step, path) for step, path in steps if step is not None)


@contextmanager
def whole_file(path: Path, *, sync: bool = True) -> Iterator[IO[bytes]]:
    """Write to a temporary file beside ``path`` and rename it at the end, so that ``path`` is never half-written.

    If the ``with`` block raises, ``path`` is not changed.

    Args:
        path: the file; missing parent folders are created.
        sync: wait until the data is on disk, so that it survives a power cut. Skip this for output that is quick to
            regenerate.

    Raises:
        InputError: the temporary file cannot be created.
    """
    if is_device(path):  # it must stay what it is
        with path.open("wb") as file:
            yield file
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The default buffer of 8 KB makes a million records seconds slower.
        file = open(temporary, "wb", buffering=1 << 20, opener=lambda *_: _create(temporary, like=path))  # noqa: SIM115
    except OSError as error:
        raise InputError(f"{path}：无法写入（{error.strerror}）；请换一个可写的路径") from error
    try:
        with file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        patiently(temporary.replace, path)
        if sync:
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def is_device(path: Path) -> bool:
    """Whether ``path`` is neither a file nor a folder: a device such as ``/dev/null``, or a pipe."""
    try:
        return path.exists() and not path.is_file() and not path.is_dir()
    except OSError:  # what it is cannot be seen; to open it says why
        return False


def _create(path: Path, like: Path) -> int:
    """Create a file, and give it the permissions of ``like`` if that exists; returns the open descriptor.

    A link that somebody has put there is removed and never followed.

    Raises:
        OSError: it cannot be created.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    permissions = stat.S_IMODE(like.stat().st_mode) if like.is_file() else None  # also through a link
    first = 0o666 if permissions is None else permissions & 0o666
    try:
        descriptor = os.open(path, flags, first)
    except FileExistsError:  # left behind by a killed process of the same number
        path.unlink()
        descriptor = os.open(path, flags, first)
    if permissions is not None and os.name == "posix":
        os.fchmod(descriptor, permissions)  # the umask has nothing to say about a file that was there before
    return descriptor


def patiently(action: Callable[..., object], *arguments: object) -> None:
    """Call ``action``, which moves or deletes; try again for about two seconds while it is not permitted.

    On Windows a file cannot be replaced while another program has it open, and virus scanners and indexers open every
    new file for a moment. Elsewhere a permission does not change, and the error comes two seconds later.

    Raises:
        PermissionError: it is still not permitted.
    """
    for pause_seconds in PAUSES_SECONDS:
        try:
            action(*arguments)
            return
        except PermissionError:
            time.sleep(pause_seconds)
    action(*arguments)


def sync_folder(folder: Path) -> None:
    """Wait until the names in ``folder`` are on disk, so that a rename survives a power cut. Windows has no need."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        with suppress(OSError):  # some network file systems cannot do this for a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file ``path`` inside the ``with`` block. The lock ends with the process, even if it is killed.

    The file itself is removed at the end. One that a killed process left behind does not hold anybody up.

    Args:
        refusal: the message if another process has the lock.

    Raises:
        InputError: another process has the lock, or the file cannot be created.
    """
    while True:
        try:
            file = path.open("ab")
        except OSError as error:
            raise InputError(f"{path}：无法写入（{error.strerror}）；请换一个可写的路径") from error
        try:
            _lock(file)
        except (BlockingIOError, PermissionError) as error:  # EAGAIN or EACCES, as the system likes
            file.close()
            raise InputError(refusal) from error
        if _is_open_at(file, path):
            break
        file.close()  # the process that had the lock has just removed this file: try again with a new one
    try:
        yield
    finally:
        try:
            path.unlink(missing_ok=True)  # before the lock ends, so that nobody locks a file that is then removed
            removed = True
        except PermissionError:  # on Windows, because it is open
            removed = False
        file.close()
        if not removed:
            with suppress(PermissionError):  # another process has it open
                path.unlink(missing_ok=True)


def _lock(file: IO[Any]) -> None:
    """Lock an open file for this process, without waiting. A system with neither kind of lock has none."""
    with suppress(ModuleNotFoundError):
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: children that outlive a kill would hold it
        return
    with suppress(ModuleNotFoundError):  # Windows
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)


def _is_open_at(file: IO[Any], path: Path) -> bool:
    """Whether ``path`` still names the open ``file``."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented UTF-8 JSON, completely or not at all.

    Raises:
        InputError: ``path`` cannot be written.
    """
    with whole_file(path) as file:
        file.write(json_bytes(value))


def json_bytes(value: object) -> bytes:
    """``value`` as indented UTF-8 JSON with a newline at the end; bytes of a path that are no UTF-8 become ``?``."""
    try:
        return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # orjson writes no surrogates, which stand for such bytes
        return f"{json.dumps(value, ensure_ascii=False, indent=2)}\n".encode("utf-8", "replace")


def read_json(path: Path) -> Any:
    """Read one JSON file.

    Raises:
        InputError: it cannot be read or is not JSON.
    """
    try:
        return orjson.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}：无法读取（{error.strerror}）") from error
    except orjson.JSONDecodeError as error:
        raise InputError(f"{path}：不是合法的 JSON（{error}）") from error


def refuse_folder(path: Path, example: str) -> None:
    """Refuse a folder where the user should have named a file.

    Args:
        example: a correct value, for the message.

    Raises:
        InputError: ``path`` is a folder.
    """
    if path.is_dir():
        raise InputError(f"{path}：是一个目录；请给出文件名，如 {example}")


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths name the same file; on Windows and macOS capitals make no difference in a name."""
    return one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other))


def differences(saved: Mapping[str, object], now: Mapping[str, object]) -> str:
    """The settings that differ between a saved run and this one, as text for the user; ``""`` if there are none.

    Args:
        saved, now: the settings that decide the result, by name.
    """
    changed = sorted(name for name in saved.keys() | now.keys() if saved.get(name) != now.get(name))
    return "；".join(f"{name}：{saved.get(name)} → {now.get(name)}" for name in changed)


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def large_file_hash(path: Path) -> str:
    """A SHA-256 over every byte of a file of gigabytes, on all processor cores: about a second for three gigabytes.

    It is the hash of the hashes of the file's parts; for a file of one part it is `file_hash`.
    """
    size = path.stat().st_size
    if size <= PART_BYTES:
        return file_hash(path)

    def part_hash(start: int) -> bytes:
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            left = min(PART_BYTES, size - start)
            while left and (piece := file.read(min(left, 1 << 20))):
                digest.update(piece)
                left -= len(piece)
        return digest.digest()

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return hashlib.sha256(b"".join(threads.map(part_hash, range(0, size, PART_BYTES)))).hexdigest()
