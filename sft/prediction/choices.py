"""What the user chooses: the model, the limits, and with them the task. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sft.errors import InputError
from sft.files import TASK_FILE
from sft.model.adapter import settings_of_adapter
from sft.tasks.classification import ENDS
from sft.tasks.settings import TaskSettings, settings_path

WAIVER = "加 --no_verify"


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
        quantization: ``none`` or ``nf4``.
        allow_other_base: accept another base model than the one that the adapter was trained on.
        verify: refuse an adapter whose files are not those that training wrote.
    """

    adapter: Path | None = None
    base_only: bool = False
    task_file: Path | None = None
    input_file: Path | None = None
    model_name_or_path: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    allow_other_base: bool = False
    verify: bool = True


@dataclass(frozen=True)
class LimitChoice:
    """How the model answers; None means as in training. The fields are those of `Limits`."""

    max_length: int | None = None
    max_new_tokens: int | None = None
    batch_size: int = 16
    constrained: bool = True
    max_tokens: int | None = None
    piece_tokens: int | None = None


AS_TRAINED = LimitChoice()


def read_settings(choice: ModelChoice) -> TaskSettings:
    """The task, and what training has added to it; ``--task_file`` replaces only the task of an adapter.

    Raises:
        InputError: there is no such file, it or a file beside it was changed, or it belongs to another task than the
            adapter.
    """
    path = choice.task_file
    if path is None and choice.adapter is None:
        if choice.input_file is None:
            raise InputError("不知道是什么任务：请用 --task_file 给出 data/*.task.json，或用 --adapter")
        path = settings_path(choice.input_file)
    if path is None:
        return settings_of_adapter(choice.adapter, verify=choice.verify, waiver=WAIVER)
    if not path.is_file():
        raise InputError(f"{path}：没有这个文件；请用 --task_file 给出 data/*.task.json")
    settings = TaskSettings.read(path, verify=choice.verify)
    if choice.adapter is None and settings.version is None:  # of a conversion: read as training does by default
        return _with_long_text(settings, ENDS)
    if choice.adapter is None or not (choice.adapter / TASK_FILE).is_file():
        return settings
    trained = settings_of_adapter(choice.adapter, verify=choice.verify, waiver=WAIVER)
    if trained.task.name != settings.task.name:
        raise InputError(
            f"{path}：这是 {settings.task.name} 的任务，{choice.adapter} 训练的是 {trained.task.name}；"
            "请去掉 --task_file，或换适配器"
        )
    return _with_long_text(trained.replace(task=settings.task), trained.task.long_text)


def _with_long_text(settings: TaskSettings, long_text: str | None) -> TaskSettings:
    """With a task that reads long texts so: training chooses that, settings beside records do not know it."""
    if settings.task.long_text in (None, long_text):
        return settings
    return settings.replace(task=replace(settings.task, long_text=long_text))
