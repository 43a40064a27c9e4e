"""The checkpoints in a run's folder: put in place whole, deleted when there are too many, and left tidy after a kill.

Whether one is whole and of this run is in its manifest, see `sft.training.manifests`.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError

from sft.errors import InputError, RunError, is_out_of_memory, one_line
from sft.files import (
    METRICS_FILE,
    PAUSES_SECONDS,
    RATE_SEARCH_FILE,
    named_checkpoints,
    patiently,
    step_in_name,
    sync_folder,
)
from sft.training.manifests import identity_of, problem

logger = logging.getLogger(__name__)

# Of `whole_file`, and of safetensors, which writes a file under such a name first.
TEMPORARY = re.compile(r"\.\w+\.(json|jsonl|html|png|md|safetensors)\.\d+\.tmp|\.tmp[0-9A-Za-z]{6}")


class Checkpoint(NamedTuple):
    """A folder called ``checkpoint-<step>``; nothing says that it is whole."""

    step: int
    folder: Path


def checkpoints_in(output_dir: Path) -> list[Checkpoint]:
    """All checkpoint folders, the one with the most steps first. Symbolic links and files are none."""
    return [Checkpoint(step, path) for step, path in reversed(named_checkpoints(output_dir)) if _is_folder(path)]


def links_in(output_dir: Path) -> list[Path]:
    """Symbolic links that are named like checkpoints. They are not followed: what they point to is not this run's."""
    return [path for _, path in named_checkpoints(output_dir) if path.is_symlink()]


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def put_in_place(temporary: Path, final: Path) -> None:
    """Rename a finished checkpoint to its final name. One that was there before is deleted after that."""
    replaced = final.with_name(f".replaced-{final.name}")
    if final.is_symlink():
        logger.warning("%s 是符号链接：换成这次的检查点，它指向的文件夹不动", final)
        final.unlink()
    elif final.exists():
        patiently(final.rename, replaced)
    patiently(temporary.rename, final)
    sync_folder(final.parent)
    _is_gone(replaced)


def rotate(output_dir: Path, limit: int | None, kept_steps: Collection[int], identity: dict) -> None:
    """Delete the oldest checkpoints of this run, until ``limit`` whole ones are left.

    Damaged checkpoints and those of other runs neither count nor are deleted.

    Args:
        limit: None or 0 for no limit.
        kept_steps: steps whose checkpoints stay anyway: the newest and the best.
    """
    if not limit or limit < 0:
        return
    whole = []
    for checkpoint in checkpoints_in(output_dir):
        if reason := problem(checkpoint.folder):
            logger.warning("%s：%s，不算数也不删除", checkpoint.folder, reason)
        elif identity_of(checkpoint.folder) == identity:
            whole.append(checkpoint)
    spare = [checkpoint for checkpoint in whole if checkpoint.step not in kept_steps]
    most_spare = max(limit - (len(whole) - len(spare)), 0)
    for checkpoint in spare[most_spare:]:
        delete(checkpoint.folder)


def delete(folder: Path) -> None:
    """Delete a checkpoint. It loses its name first: one that is half deleted must not look like a checkpoint."""
    if not _is_folder(folder):
        return
    doomed = folder.with_name(f".deleting-{folder.name}")
    if _is_gone(doomed):  # else its place is taken, and the checkpoint waits for the next rotation
        patiently(folder.rename, doomed)
        _is_gone(doomed)


def _is_gone(folder: Path) -> bool:
    """Delete a folder that nobody uses; try again for a while. One that stays is told, and does not stop training."""
    for pause_seconds in (*PAUSES_SECONDS, None):
        try:
            shutil.rmtree(folder)
            return True
        except FileNotFoundError:
            return True
        except OSError as error:
            if pause_seconds is None:
                logger.warning("%s：没有删掉（%s），不影响结果；下次训练开始时再删", folder, one_line(error))
            else:
                time.sleep(pause_seconds)
    return False


def remove_leftovers(output_dir: Path) -> None:
    """Undo what a killed run left half done: saves, replacements, deletions, and temporary files."""
    for path in output_dir.glob(".*"):
        prefix, _, name = path.name.partition("-")
        final = output_dir / name
        if path.is_symlink():
            continue
        if path.is_file() and TEMPORARY.fullmatch(path.name):
            path.unlink()
        elif path.is_dir() and step_in_name(final) is not None and prefix in (".saving", ".replaced", ".deleting"):
            if prefix == ".replaced" and not final.exists():  # killed between the two renames of `put_in_place`
                path.rename(final)
            else:
                _is_gone(path)


def remove_all(output_dir: Path) -> None:
    """Delete the checkpoints and results of an earlier run, so that they are not taken for those of this run.

    Of a symbolic link only the link is deleted.

    Raises:
        InputError: a checkpoint cannot be deleted.
    """
    for link in links_in(output_dir):
        link.unlink()
    for checkpoint in checkpoints_in(output_dir):
        delete(checkpoint.folder)
        if _is_folder(checkpoint.folder):
            raise InputError(f"{checkpoint.folder}：删不掉；请关掉正在用它的程序，或换一个 --output_dir")
    for path in output_dir.glob("*_results.json"):
        path.unlink()
    for name in (METRICS_FILE, RATE_SEARCH_FILE):
        (output_dir / name).unlink(missing_ok=True)


# ---- errors ----


@contextmanager
def told_if_not_written(path: Path) -> Iterator[None]:
    """Inside this block, a file that cannot be written (a full disk, a quota) becomes one line.

    Args:
        path: what is written, for the message.

    Raises:
        RunError: something could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, InputError) as error:  # torch.save raises RuntimeError
        if is_out_of_memory(error):
            raise
        raise RunError(
            f"{path}：没有写成（{one_line(error)}）；之前的检查点都完好，请检查磁盘空间和权限，"
            "再用 --resume_from_checkpoint true 续跑"
        ) from error


@contextmanager
def told_if_not_readable(checkpoint: Path) -> Iterator[None]:
    """Inside this block, a file of a checkpoint with the wrong content becomes one line. No pickled code is run.

    Raises:
        InputError: something could not be read.
    """
    try:
        yield
    except Exception as error:  # unpickling and loading states raise errors of any kind
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"{checkpoint}：文件没有损坏，但内容不是本工具写的（{one_line(error)}）；"
            "请移走这个检查点，再用 --resume_from_checkpoint true 从更早的接着"
        ) from error
