"""Which checkpoint a run resumes: the newest whole one of this run, or the one that the user names."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from sft.errors import InputError
from sft.files import ALL_RESULTS_FILE, checkpoint_folder, differences
from sft.training import checkpoints
from sft.training.manifests import (
    RESUMABLE,
    best_step_of,
    changed_versions,
    identity_of,
    is_of_other_format,
    problem,
    step_of,
)

logger = logging.getLogger(__name__)

NEWEST, NEVER = ("true", "1", "yes"), ("false", "no", "0")
KEEPS_BEST = "load_best_model_at_end"  # in an identity: the run needs the weights of its best step at the end


def to_resume(resume_from_checkpoint: str, output_dir: Path, identity: dict, *, replaces: bool = False) -> Path | None:
    """The checkpoint for ``--resume_from_checkpoint``, checked against this run.

    Args:
        resume_from_checkpoint: the flag: a checkpoint folder, or ``true`` for the newest complete checkpoint.
        identity: what decides the result of this run, see `sft.training.run.run_identity`.
        replaces: whether a checkpoint that is named may take the place of another run in the output folder.

    Returns:
        None if the flag is ``true`` and there is no complete checkpoint: the run was killed before its first one and
        starts over. A warning is logged.

    Raises:
        InputError: the checkpoint is damaged, or it belongs to other data, another model or other settings.
    """
    if resume_from_checkpoint.lower() in NEWEST:
        checkpoint = newest_of_run(output_dir, identity)
        if checkpoint is None:
            logger.warning("%s：还没有完整的检查点，从头开始训练", output_dir)
            return None
    else:
        checkpoint = Path(resume_from_checkpoint)
        refuse_unusable(checkpoint, identity)
        if not replaces:
            refuse_runs_mixed(checkpoint, output_dir, identity)
    if changed := changed_versions(checkpoint):
        logger.warning("%s 是用别的版本存的（%s），续跑的结果可能略有不同", checkpoint, changed)
    return checkpoint


def newest_of_run(output_dir: Path, identity: dict) -> Path | None:
    """The whole checkpoint of this run with the most steps, or None. Others are logged and passed over.

    Raises:
        InputError: there are checkpoints, but of another run, of another format, or behind symbolic links.
    """
    refused: str | None = None
    for _, folder in checkpoints.checkpoints_in(output_dir):
        reason = problem(folder, RESUMABLE)
        if reason is None and (changed := differences(identity_of(folder), identity)):
            reason = f"与这次运行不一致（{changed}）"
            refused = refused or f"{folder}：{reason}；{_advice(output_dir)}"
        elif is_of_other_format(folder):
            refused = refused or f"{folder}：{reason}，不能续跑；请用原来的版本，或加 --overwrite_output_dir 从头开始"
        reason = reason or _problem_of_best(folder, identity)
        if reason is None:
            return folder
        logger.warning("%s：%s，跳过", folder, reason)
    for link in checkpoints.links_in(output_dir):
        logger.warning("%s：是符号链接，跳过", link)
        refused = refused or f"{link}：是符号链接，不会自动使用；要从它续跑请写 --resume_from_checkpoint {link}"
    if refused:
        raise InputError(refused)
    return None


def how_to_go_on(output_dir: Path) -> str:
    """The advice for someone who wants more epochs, or new data, on a finished run."""
    return f"要在它上面接着训练，用 --init_adapter {output_dir} 和新的 --output_dir"


def _advice(output_dir: Path) -> str:
    """What to do if the settings are not those of the run in ``output_dir``."""
    if (output_dir / ALL_RESULTS_FILE).is_file():
        return f"这次训练已经完成，{how_to_go_on(output_dir)}"
    return "请改回原来的设置，或去掉续跑，加 --overwrite_output_dir 从头开始"


def _problem_of_best(checkpoint: Path, identity: dict) -> str | None:
    """What is wrong with the best checkpoint that a whole one refers to: its weights are needed at the end."""
    step = best_step_of(checkpoint)
    if not identity[KEEPS_BEST] or step is None or step == step_of(checkpoint):
        return None
    best = checkpoint_folder(checkpoint.parent, step)
    reason = problem(best)
    if reason is None and identity_of(best) != identity:
        reason = "属于另一次训练"
    return reason and f"它之前最好的检查点 {best.name} {reason}"


def refuse_unusable(checkpoint: Path, identity: dict) -> None:
    """Check a checkpoint that the user names.

    Raises:
        InputError: it is damaged, or belongs to another run.
    """
    if not checkpoint.is_dir():
        raise InputError(f"{checkpoint}：没有这个检查点；用 --resume_from_checkpoint true 选最新的完整检查点")
    reason = problem(checkpoint, RESUMABLE)
    if reason is None and (changed := differences(identity_of(checkpoint), identity)):
        raise InputError(f"{checkpoint}：与这次运行不一致（{changed}）；{_advice(checkpoint.parent)}")
    reason = reason or _problem_of_best(checkpoint, identity)
    if reason:
        raise InputError(f"{checkpoint}：{reason}，不能续跑；用 --resume_from_checkpoint true 选最新的完整检查点")


def refuse_runs_mixed(checkpoint: Path, output_dir: Path, identity: dict) -> None:
    """Refuse to go on with a run in the output folder of another one.

    Raises:
        InputError: the output folder has checkpoints of another run.
    """
    if checkpoint.resolve().parent != output_dir.resolve():
        for folder in of_other_runs(output_dir, identity):
            raise InputError(
                f"{folder}：是另一次训练的检查点，不能在它的文件夹里续跑 {checkpoint}；"
                "请换一个 --output_dir，或加 --overwrite_output_dir 删掉那次训练的检查点"
            )


def of_other_runs(output_dir: Path, identity: dict) -> list[Path]:
    """The whole checkpoints in a folder that another run saved."""
    folders = [folder for _, folder in checkpoints.checkpoints_in(output_dir) if problem(folder) is None]
    return [folder for folder in folders if identity_of(folder) != identity]


def bring_best(checkpoint: Path, output_dir: Path) -> None:
    """Copy the best checkpoint of a run that goes on in another folder: that folder must be complete in itself."""
    step = best_step_of(checkpoint)
    if step is None:
        return
    here = step_of(checkpoint) == step
    source = checkpoint if here else checkpoint_folder(checkpoint.parent, step)
    final = checkpoint_folder(output_dir, step)
    if source.resolve() == final.resolve() or not source.is_dir():
        return
    if final.is_dir() and problem(final) is None:
        return
    temporary = output_dir / f".saving-{final.name}"
    with checkpoints.told_if_not_written(final):
        shutil.copytree(source, temporary)
        checkpoints.put_in_place(temporary, final)


def is_finished(output_dir: Path, identity: dict) -> bool:
    """Whether this run has been trained to its end in ``output_dir``, so that there is nothing to resume.

    Raises:
        InputError: a finished run is there, but it is another one, or nothing is left to tell.
    """
    if not (output_dir / ALL_RESULTS_FILE).is_file():
        return False
    if newest_of_run(output_dir, identity) is None:
        raise InputError(
            f"{output_dir}：已有训练完成的结果，但没有完整的检查点可以核对是不是这次训练；"
            "请换一个 --output_dir，或去掉续跑，加 --overwrite_output_dir 覆盖"
        )
    return True
