"""Checkpoints with a manifest: it is written last, and has the hash of every file and the identity of the run.

transformers writes checkpoints in place and resumes from any that it finds (transformers issues 27925, 35782). Here
a checkpoint is used (resumed, loaded as the best, counted when old ones are deleted) only if every file has the hash
in its manifest, and only by the same run. It is found by its step, so a folder can be moved.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import orjson
from safetensors import SafetensorError

import sft
from sft.errors import InputError, RunError, is_out_of_memory, one_line
from sft.files import (
    ADAPTER_FILE,
    METRICS_FILE,
    PAUSES_SECONDS,
    RATE_SEARCH_FILE,
    STATE_FILE,
    differences,
    file_hash,
    named_checkpoints,
    patiently,
    read_json,
    step_in_name,
    sync_folder,
    write_json,
)

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PROGRESS = "progress.json"  # see `sft.training.progress`
MICRO_BATCH = "max_tokens_per_micro_batch"
FORMAT = 2  # of the manifest; 1 had only "run" and "files"
FIRST_FORMAT = {"run", "files"}
NEEDED = (ADAPTER_FILE, STATE_FILE)  # to be the best checkpoint
RESUMABLE = (*NEEDED, "optimizer.pt", "scheduler.pt", PROGRESS)  # to be resumed
READ_BY_LIBRARIES = {".pt", ".pth", ".bin", ".safetensors", ".json"}  # transformers and PEFT look for some of these
LIBRARIES = ("torch", "transformers", "peft", "accelerate")
# Of `whole_file`, and of safetensors, which writes a file under such a name first.
TEMPORARY = re.compile(r"\.\w+\.(json|jsonl|html|png|md|safetensors)\.\d+\.tmp|\.tmp[0-9A-Za-z]{6}")


class Checkpoint(NamedTuple):
    """A folder called ``checkpoint-<step>``; nothing says that it is whole."""

    step: int
    folder: Path


# ---- the manifest ----


def write_manifest(folder: Path, run: dict) -> None:
    """Flush every file of ``folder`` to disk, and write the manifest last.

    Args:
        run: the identity of the run and its micro-batch, for `saved_run`.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("r+b") as file:  # Windows flushes only what is open for writing
                os.fsync(file.fileno())
            files[path.relative_to(folder).as_posix()] = {"sha256": file_hash(path), "bytes": path.stat().st_size}
    manifest = {"format": FORMAT, "versions": versions(), "run": run, "files": files}
    write_json(folder / MANIFEST, manifest | {"sha256": _own_hash(manifest)})


def versions() -> dict[str, str]:
    """The versions of this package and of the libraries that compute a run."""
    found = {"chinese-llm-sft": sft.__version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "?"
    return found


def _is_sealed(manifest: Mapping[str, object]) -> bool:
    """Whether the manifest has its own right hash."""
    try:
        return manifest.get("sha256") == _own_hash(manifest)
    except orjson.JSONEncodeError:  # nested too deeply: not written here
        return False


def _own_hash(manifest: Mapping[str, object]) -> str:
    """The hash of a manifest without its own entry ``sha256``: a flipped bit must not look like another run."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _read_manifest(folder: Path) -> dict | None:
    """The manifest as it is on disk; None if it cannot be read or is no JSON object."""
    try:
        manifest = orjson.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def is_of_other_format(folder: Path) -> bool:
    """Whether another version of this package wrote the checkpoint, and it is not merely damaged."""
    manifest = _read_manifest(folder)
    if manifest is None or manifest.get("format") == FORMAT:
        return False
    return manifest.keys() == FIRST_FORMAT or _is_sealed(manifest)


def problem(folder: Path, needed: Collection[str] = NEEDED) -> str | None:
    """What is wrong with a checkpoint, in Chinese; None if it is whole.

    Args:
        needed: files that it must have.
    """
    manifest = _read_manifest(folder)
    if manifest is None:
        return f"没有完整的 {MANIFEST}"
    if is_of_other_format(folder):
        return "是本工具的另一个版本写的"
    if manifest.get("format") != FORMAT or not _is_sealed(manifest):
        return f"{MANIFEST} 已损坏"
    files = manifest.get("files")
    parts = (manifest.get("run"), manifest.get("versions"), files)
    if not all(isinstance(part, dict) for part in parts) or not all(map(_is_inside, files)):
        return f"{MANIFEST} 的内容不对"
    if type(manifest["run"].get(MICRO_BATCH, 1)) is not int or manifest["run"].get(MICRO_BATCH, 1) < 1:
        return f"{MANIFEST} 里的 {MICRO_BATCH} 不对"
    for name in (*files, *needed):
        if reason := _problem_of_file(folder / name, files.get(name), name):
            return reason
    for path in folder.iterdir():
        if path.suffix in READ_BY_LIBRARIES and path.name not in files and path.name != MANIFEST:
            return f"多出一个不属于它的 {path.name}"
    return _problem_of_step(folder)


def _is_inside(name: str) -> bool:
    return not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts


def _problem_of_file(path: Path, entry: object, name: str) -> str | None:
    if not path.is_file():
        return f"缺少 {name}"
    if not isinstance(entry, dict):
        return f"{MANIFEST} 里没有 {name}"
    try:
        same = path.stat().st_size == entry.get("bytes") and file_hash(path) == entry.get("sha256")
    except OSError as error:
        return f"读不出 {name}（{error.strerror}）"
    return None if same else f"{name} 已损坏"


def _problem_of_step(folder: Path) -> str | None:
    try:
        step = step_of(folder)
    except InputError:
        return f"{STATE_FILE} 的内容不对"
    return f"里面是第 {step} 步的内容，与名字不符" if step_in_name(folder) not in (None, step) else None


def how_to_go_on(output_dir: Path) -> str:
    """The advice for someone who wants more epochs, or new data, on a finished run."""
    return f"要在它上面接着训练，用 --init_adapter {output_dir} 和新的 --output_dir"


def saved_run(checkpoint: Path) -> dict:
    """The ``run`` that `write_manifest` saved in a whole checkpoint."""
    return dict(read_json(checkpoint / MANIFEST)["run"])


def identity_of(checkpoint: Path) -> dict:
    """The identity of the run that saved a whole checkpoint."""
    run = saved_run(checkpoint)
    run.pop(MICRO_BATCH, None)  # it changes only rounding; `open_run` uses the saved value
    return run


def changed_versions(checkpoint: Path) -> str:
    """What differs between the versions that saved a whole checkpoint and those now, as text; ``""`` if nothing."""
    return differences(read_json(checkpoint / MANIFEST)["versions"], versions())


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was saved.

    Raises:
        InputError: its state does not say so.
    """
    step = state_of(checkpoint).get("global_step")
    if type(step) is not int or step < 1:
        raise InputError(f"{checkpoint / STATE_FILE}：没有 global_step")
    return step


def best_step_of(checkpoint: Path) -> int | None:
    """The step of the best evaluation so far, as the state of a whole checkpoint says; None if there is none."""
    step = state_of(checkpoint).get("best_global_step")
    return step if type(step) is int else None


def state_of(checkpoint: Path) -> dict:
    """transformers' state in a checkpoint. It can have NaN and infinity, which JSON does not know.

    Raises:
        InputError: it cannot be read, or is no JSON object.
    """
    try:
        state = json.loads((checkpoint / STATE_FILE).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{checkpoint / STATE_FILE}：读不出（{one_line(error)}）") from error
    if not isinstance(state, dict):
        raise InputError(f"{checkpoint / STATE_FILE}：不是 JSON 对象")
    return state


# ---- the checkpoints of a folder ----


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
