"""What the user chooses: the model, the limits, and with them the task. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sft.errors import InputError
from sft.files import TASK_FILE
from sft.tasks.settings import TaskSettings, settings_path


@dataclass(frozen=True)
class ModelChoice:
    """Which model predicts, and for which task; None means as in training.

    Attributes:
        adapter: the folder that a training script wrote.
        base_only: leave the adapter out, to see the model before fine-tuning.
        task_file: the task's settings; by default those in ``adapter``, and without an adapter those beside
            ``input_file``.
        model_name_or_path: folder or hub id of the base model.
        dtype: ``auto``, ``bfloat16``, ``float16`` or ``float32``.
    """

    adapter: Path | None = None
    base_only: bool = False
    task_file: Path | None = None
    input_file: Path | None = None
    model_name_or_path: str | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class LimitChoice:
    """How the model answers; None means as in training. The fields are those of `Limits`."""

    max_length: int | None = None
    max_new_tokens: int | None = None
    batch_size: int = 16
    constrained: bool = True
    max_tokens: int | None = None


AS_TRAINED = LimitChoice()


def read_settings(choice: ModelChoice) -> TaskSettings:
    """The settings of the task, from the file that ``choice`` names.

    Raises:
        InputError: there is no such file, or it is damaged.
    """
    return TaskSettings.read(_task_path(choice))


def _task_path(choice: ModelChoice) -> Path:
    if choice.task_file is not None:
        path = choice.task_file
    elif choice.adapter is not None:
        path = choice.adapter / TASK_FILE
    elif choice.input_file is not None:
        path = settings_path(choice.input_file)
    else:
        raise InputError("不知道是什么任务：请用 --task_file 给出 data/*.task.json，或用 --adapter")
    if not path.is_file():
        raise InputError(
            f"{path}：没有这个文件；请检查 --adapter 是不是训练脚本的 --output_dir，或用 --task_file 指定"
        )
    return path
