"""The manifest of a checkpoint: it is written last, and has the hash of every file and the identity of the run.

transformers writes checkpoints in place and resumes from any that it finds (transformers issues 27925, 35782). Here
a checkpoint is used (resumed, loaded as the best, counted when old ones are deleted) only if every file has the hash
in its manifest, and only by the same run. It is found by its step, so a folder can be moved.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

import orjson

import sft
from sft.errors import InputError, one_line
from sft.files import ADAPTER_FILE, STATE_FILE, differences, file_hash, read_json, step_in_name, write_json

MANIFEST = "manifest.json"
PROGRESS = "progress.json"  # see `sft.training.progress`
MICRO_BATCH = "max_tokens_per_micro_batch"
FORMAT = 2  # of the manifest; 1 had only "run" and "files"
FIRST_FORMAT = {"run", "files"}
NEEDED = (ADAPTER_FILE, STATE_FILE)  # to be the best checkpoint
RESUMABLE = (*NEEDED, "optimizer.pt", "scheduler.pt", PROGRESS)  # to be resumed
READ_BY_LIBRARIES = {".pt", ".pth", ".bin", ".safetensors", ".json"}  # transformers and PEFT look for some of these
LIBRARIES = ("torch", "transformers", "peft", "accelerate")


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


# ---- what a checkpoint says ----


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
    """transformers' state in a checkpoint, or in the folder of a finished run.

    It can have NaN and infinity, which JSON does not know.

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
