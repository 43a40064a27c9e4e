"""Checkpoints with a manifest: it is written last, and has the hash of every file and the identity of the run.

transformers writes checkpoints in place and resumes from any that it finds (transformers issues 27925, 35782). Here
a checkpoint is used only if every file has the hash in its manifest, and only for the same run.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path

import orjson

from sft.errors import InputError
from sft.files import ALL_RESULTS_FILE, METRICS_FILE, differences, file_hash, read_json, write_json

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
MICRO_BATCH = "max_tokens_per_micro_batch"


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
    write_json(folder / MANIFEST, {"run": run, "files": files})


def problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in Chinese; None if it is complete."""
    try:
        manifest = orjson.loads((folder / MANIFEST).read_bytes())
        files = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"没有完整的 {MANIFEST}"
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            return f"缺少 {name}"
        if path.stat().st_size != entry["bytes"] or file_hash(path) != entry["sha256"]:
            return f"{name} 已损坏"
    return None


def newest_whole(output_dir: Path) -> Path | None:
    """The complete checkpoint with the most steps, or None. Damaged checkpoints are logged and skipped."""
    found = [(int(match[1]), path) for path in output_dir.glob("checkpoint-*") if (match := _step(path))]
    for _, path in sorted(found, reverse=True):
        reason = problem(path)
        if reason is None:
            return path
        logger.warning("%s：%s，跳过", path, reason)
    return None


def _step(path: Path) -> re.Match | None:
    return re.fullmatch(r"checkpoint-(\d+)", path.name)


def to_resume(resume_from_checkpoint: str, output_dir: Path, identity: dict) -> Path | None:
    """The checkpoint for ``--resume_from_checkpoint``, checked against this run.

    Args:
        resume_from_checkpoint: the flag: a checkpoint folder, or ``true`` for the newest complete checkpoint.
        identity: what decides the result of this run, see `sft.training.run.run_identity`.

    Returns:
        None if the flag is ``true`` and there is no complete checkpoint: the run was killed before its first one and
        starts over. A warning is logged.

    Raises:
        InputError: the checkpoint is damaged, or it belongs to other data, another model or other settings.
    """
    if resume_from_checkpoint.lower() in ("true", "1", "yes"):
        checkpoint = newest_whole(output_dir)
        if checkpoint is None:
            logger.warning("%s：还没有完整的检查点，从头开始训练", output_dir)
            return None
    else:
        checkpoint = Path(resume_from_checkpoint)
        reason = problem(checkpoint)
        if reason is not None:
            raise InputError(f"{checkpoint}：{reason}，不能续训；用 --resume_from_checkpoint true 选最新的完整检查点")
    saved = saved_run(checkpoint)
    saved.pop(MICRO_BATCH, None)  # it changes only rounding; `open_run` uses the saved value
    if changed := differences(saved, identity):
        finished = (output_dir / ALL_RESULTS_FILE).is_file()
        raise InputError(
            f"{checkpoint}：与这次运行不一致（{changed}）；"
            + (f"这次训练已经完成，{how_to_go_on(output_dir)}" if finished else "请改回原来的设置，或去掉续训从头开始")
        )
    return checkpoint


def how_to_go_on(output_dir: Path) -> str:
    """The advice for someone who wants more epochs, or new data, on a finished run."""
    return f"要在它上面接着训练，用 --init_adapter {output_dir} 和新的 --output_dir"


def saved_run(checkpoint: Path) -> dict:
    """The ``run`` that `write_manifest` saved in the checkpoint."""
    return read_json(checkpoint / MANIFEST)["run"]


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was saved."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def remove_leftovers(output_dir: Path) -> None:
    """Delete the temporary folders of saves that were killed before they finished."""
    for path in output_dir.glob(".saving-*"):
        shutil.rmtree(path)


def remove_all(output_dir: Path) -> None:
    """Delete the checkpoints and results of an earlier run, so that they are not taken for those of this run."""
    for path in output_dir.glob("checkpoint-*"):
        if _step(path):
            shutil.rmtree(path)
    for path in output_dir.glob("*_results.json"):
        path.unlink()
    (output_dir / METRICS_FILE).unlink(missing_ok=True)
