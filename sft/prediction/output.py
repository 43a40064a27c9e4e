"""Where predictions are written: to a stream, or to a file that grows window by window and can be resumed.

Beside ``predictions.jsonl`` there is ``predictions.jsonl.progress.json``. It keeps how many rows and bytes are
finished, their hash, the counts for the metrics, the identity of the run (input, adapter, settings), and a hash of
itself. It is replaced as a whole after each window is on the disk. Anything in the output file beyond the finished
bytes was left by a run that was killed, and is cut off when the run is resumed. One process at a time writes there.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO

import orjson

from sft.errors import InputError, RunError
from sft.files import differences, locked, read_json, refuse_folder, whole_file
from sft.tasks.evaluation import Tally

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
SEAL = "own_sha256"
PROGRESS_KINDS = {
    "format_version": int, "run": dict, "complete": bool, "rows": int, "bytes": int, "sha256": str, "tally": dict,
}  # fmt: skip


def progress_path(path: Path) -> Path:
    """``predictions.jsonl`` → ``predictions.jsonl.progress.json``."""
    return path.with_name(f"{path.name}.progress.json")


@contextmanager
def own_output(path: Path | None) -> Iterator[None]:
    """No other process writes the output at ``path`` inside the ``with`` block. A stream has no owner.

    Raises:
        InputError: another process is writing it.
    """
    path_is_no_file = path is None or (path.exists() and not path.is_file())
    if path_is_no_file or not os.access(path.parent, os.W_OK):  # `check_output` refuses what cannot be written
        yield
        return
    refusal = f"{path}：另一个 predict.py 正在写它；请等它写完，或换一个 --output_file"
    with locked(path.with_name(f".{path.name}.lock"), refusal):
        yield


def check_output(path: Path, input_file: Path | None, *, resume: bool, overwrite: bool) -> None:
    """Check that ``path`` can be written and nothing is lost, before the model is loaded. No file is changed.

    The complete output of an earlier run may be replaced, like with ``>`` in a shell. An unfinished output, or a file
    that `predict.py` did not write, needs ``overwrite``.

    Raises:
        InputError: says what is there and what to do.
    """
    refuse_folder(path, str(path / "predictions.jsonl"))
    _check_place(path)
    refuse_input(path, input_file)
    if not path.exists() or not path.is_file() or overwrite:
        return
    progress = _read_progress(path)
    if resume:
        if progress is None and path.stat().st_size:
            raise InputError(
                f"{path}：旁边没有 {progress_path(path).name}，不知道写到了哪里；"
                "请换一个 --output_file，或加 --overwrite 重来"
            )
    elif progress is None and path.stat().st_size:
        raise not_written_here(path)
    elif progress is not None and not progress["complete"] and progress["rows"]:
        raise InputError(
            f"{path}：上次写到第 {progress['rows']} 行没有写完；请加 --resume 接着跑，或加 --overwrite 重来"
        )


def refuse_input(path: Path, input_file: Path | None) -> None:
    """Refuse to write over the rows to predict.

    Raises:
        InputError: ``path`` is ``input_file``.
    """
    if input_file is not None and path.exists() and input_file.exists() and path.samefile(input_file):
        raise InputError(f"{path}：既是输入又是输出，会把数据盖掉；请换一个 --output_file")


def not_written_here(path: Path) -> InputError:
    """The error of an output file that is there already and is from somewhere else."""
    return InputError(f"{path}：已经有这个文件，不是 predict.py 写的；请换一个 --output_file，或加 --overwrite 盖掉它")


def _check_place(path: Path) -> None:
    folder = next((folder for folder in path.absolute().parents if folder.exists()), None)  # None: no such drive
    writable = (
        folder is not None
        and folder.is_dir()
        and os.access(folder, os.W_OK)
        and (not path.exists() or os.access(path, os.W_OK))
    )
    if not writable:
        raise InputError(f"{path}：无法写入；请换一个可写的路径")


def _read_progress(path: Path) -> dict | None:
    where = progress_path(path)
    if not where.exists():
        return None
    progress = read_json(where)
    known = isinstance(progress, dict) and progress.get("format_version") == FORMAT_VERSION
    if not known or progress.keys() - {SEAL} != PROGRESS_KINDS.keys():
        raise InputError(f"{where}：不是这个版本的进度文件；请删去它和 {path.name} 重来，或换一个 --output_file")
    wrong = next((name for name, kind in PROGRESS_KINDS.items() if type(progress[name]) is not kind), None)
    if wrong or min(progress["rows"], progress["bytes"]) < 0 or progress.get(SEAL, _seal(progress)) != _seal(progress):
        raise InputError(f"{where}：损坏了或被改过，不知道写到了哪里；请加 --overwrite 重来，或换一个 --output_file")
    return progress


def _seal(progress: dict) -> str:
    """The hash of the progress, its own seal left out. Older versions wrote none."""
    rest = {name: value for name, value in progress.items() if name != SEAL}
    return hashlib.sha256(orjson.dumps(rest, option=orjson.OPT_SORT_KEYS)).hexdigest()


def finished_lines(path: Path | None, rows: int) -> Iterator[bytes]:
    """The first ``rows`` lines of an output, as an earlier run wrote them."""
    if path is not None and rows:
        with path.open("rb") as file:
            yield from islice(file, rows)


class Stream:
    """Writes JSON lines to a stream and adds up their counts. A stream cannot be resumed.

    Args:
        file: the stream.
        shape: what is written for a line, without the newline at its end; by default the line itself.
    """

    def __init__(self, file: IO[str], shape: Callable[[bytes], str] = bytes.decode) -> None:
        self.file, self.shape = file, shape
        self.rows, self.tally = 0, Tally()

    def add(self, lines: Sequence[bytes], tally: Tally) -> None:
        """Write the lines of one window.

        Raises:
            RunError: they cannot be written.
        """
        try:
            self.file.writelines(self.shape(line) + "\n" for line in lines)
            self.file.flush()
        except BrokenPipeError:  # the reader has stopped reading, as `head` does
            raise
        except OSError as error:
            if sys.platform == "win32" and error.errno == errno.EINVAL:  # what Windows says in that case
                raise BrokenPipeError from error
            raise RunError(f"结果写不出去（{error.strerror}）") from error
        self.rows += len(lines)
        self.tally.add(tally)

    def finish(self) -> None:
        """All lines are written; nothing is left to do."""

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to do: every window has been flushed."""


class GrowingFile:
    """Writes JSON lines to a file, safely up to the end of each window, and adds up their counts.

    Used as a context manager. If the run fails, it logs how many rows are kept.

    Args:
        path: the output file.
        run: the identity of the run, everything that decides the output: input, adapter, settings.
        resume: continue after the finished rows of an earlier run; without any, start from the beginning.

    Attributes:
        rows: number of finished rows.
        tally: their counts.

    Raises:
        InputError: the file belongs to another run or was changed since, or it cannot be written.
    """

    def __init__(self, path: Path, run: dict, *, resume: bool) -> None:
        self.path, self.run = path, run
        self.rows, self.tally, self.complete = 0, Tally(), False
        self._hash = hashlib.sha256()
        self._bytes = 0
        progress = _read_progress(path) if resume else None
        if progress is not None:
            self._take_up(progress)
        elif resume:
            logger.info("%s：还没有可以接着跑的结果，从头开始", path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for leftover in path.parent.glob(f".{glob.escape(progress_path(path).name)}.*.tmp"):
                leftover.unlink()
            self._save()  # before the file is cut: what it holds now does not belong to this run
            self._file = path.open("r+b" if progress is not None and path.exists() else "wb")
            if progress is not None:
                self._file.truncate(self._bytes)
                self._file.seek(self._bytes)
        except OSError as error:
            raise InputError(f"{path}：无法写入（{error.strerror}）；请换一个可写的路径") from error

    def _take_up(self, progress: dict) -> None:
        if changed := differences(progress["run"], self.run):
            raise InputError(
                f"{self.path}：与上次运行不一致（{changed}），不能接着跑；请改回原来的设置，或加 --overwrite 重来"
            )
        if progress["bytes"]:
            self._rehash(progress)
        self.rows, self._bytes, self.complete = progress["rows"], progress["bytes"], progress["complete"]
        try:
            self.tally = Tally.from_json(progress["tally"])
        except KeyError as error:
            raise InputError(
                f"{progress_path(self.path)}：是旧版本写的进度，缺少 {error}，不能接着跑；请加 --overwrite 重来"
            ) from error
        except ValueError as error:
            raise InputError(f"{progress_path(self.path)}：计数读不出（{error}）；请加 --overwrite 重来") from error

    def _rehash(self, progress: dict) -> None:
        """Hash the finished part of the file again, and check that nobody has changed it."""
        left = progress["bytes"]
        if self.path.exists():
            with self.path.open("rb") as file:
                while left and (piece := file.read(min(left, 1 << 20))):
                    self._hash.update(piece)
                    left -= len(piece)
        if left or self._hash.hexdigest() != progress["sha256"]:
            raise InputError(
                f"{self.path}：前 {progress['rows']} 行与上次写下的不同，不能接着跑；请加 --overwrite 重来"
            )

    def add(self, lines: Sequence[bytes], tally: Tally) -> None:
        """Write the lines of one window. Afterwards they survive a crash and a power cut.

        Raises:
            RunError: they cannot be written.
        """
        content = b"".join(line + b"\n" for line in lines)
        try:
            self._file.write(content)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RunError(f"{self.path}：写不下去（{error.strerror}）；腾出空间后加 --resume 接着跑") from error
        self._hash.update(content)
        self._bytes += len(content)
        self.rows += len(lines)
        self.tally.add(tally)
        self._save()

    def finish(self) -> None:
        """Mark the output as complete."""
        self.complete = True
        self._save()

    def _save(self) -> None:
        progress = {
            "format_version": FORMAT_VERSION,
            "run": self.run,
            "complete": self.complete,
            "rows": self.rows,
            "bytes": self._bytes,
            "sha256": self._hash.hexdigest(),
            "tally": self.tally.to_json(),
        }
        progress = orjson.loads(orjson.dumps(progress))  # as it will be read: tuples as lists
        progress[SEAL] = _seal(progress)
        try:
            with whole_file(progress_path(self.path)) as file:
                file.write(orjson.dumps(progress, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        except OSError as error:
            raise RunError(f"{self.path}：写不下去（{error.strerror}）；腾出空间后加 --resume 接着跑") from error

    def __enter__(self) -> GrowingFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with suppress(OSError):  # `add` has already reported what could not be written
            self._file.close()
        if kind is not None and self.run.get("input_file"):
            kept = _read_progress(self.path)  # not self.rows: they may not be saved yet
            logger.warning("%s：已写好 %d 行；原来的命令加 --resume 接着跑", self.path, kept["rows"] if kept else 0)
