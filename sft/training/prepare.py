"""The records of a training run: the task they are of, and which are trained on, validated on, tested on."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sft.data.records import read_task_records
from sft.engine.batches import EncodedRow
from sft.errors import InputError
from sft.tasks.settings import TaskSettings, settings_path
from sft.tasks.task import Task
from sft.training.arguments import Arguments

logger = logging.getLogger(__name__)

Numbered = list[tuple[int, dict]]  # records with their line numbers


class Splits(NamedTuple):
    """The records of a run."""

    train: Numbered
    validation: Numbered
    test: Numbered


def read_task(task_type: type[Task], train_file: Path) -> Task:
    """The task as conversion wrote it beside the training records.

    Raises:
        InputError: there is no such file, or it is another task's or of another format version.
    """
    path = settings_path(train_file)
    if not train_file.is_file():
        raise InputError(f"{train_file}：没有这个文件；请先运行 transfer_*.py，或用 --train_file 指定")
    task = TaskSettings.read(path).task
    if task.name != task_type.name:
        raise InputError(f"{path}：这是 {task.name} 的数据，这个脚本训练 {task_type.name}；请换脚本或换数据")
    return task


def read_splits(task: Task, arguments: Arguments) -> Splits:
    """Training, validation and test records with their line numbers; a text is in training or validation, not both."""
    data, training = arguments.data, arguments.training
    train = read_task_records(Path(data.train_file), task)[: data.max_train_samples]
    if training.eval_strategy == "no":
        validation = []
    elif data.validation_file is not None:
        validation = read_task_records(Path(data.validation_file), task)
    else:
        train, validation = hold_out(train, data.validation_ratio, data.max_validation_rows, training.seed)
    test_file = find_test_file(data.test_file, Path(data.train_file))
    test = read_task_records(test_file, task) if test_file else []
    logger.info("训练 %d 条，验证 %d 条，测试 %d 条（%s）", len(train), len(validation), len(test), test_file or "无")
    return Splits(train, validation, test)


def hold_out(train: Numbered, ratio: float, most: int, seed: int) -> tuple[Numbered, Numbered]:
    """A slice of ``train``, by text, for validation; the same for the same seed whatever the order of the rows."""
    texts = sorted({record["text"] for _, record in train})
    count = min(most, int(len(texts) * ratio))
    held = set(random.Random(seed).sample(texts, count))
    return (
        [(line, record) for line, record in train if record["text"] not in held],
        [(line, record) for line, record in train if record["text"] in held],
    )


def find_test_file(test_file: str | None, train_file: Path) -> Path | None:
    """``--test_file``, ``none`` for none, or ``test_cls.jsonl`` beside ``train_cls.jsonl`` where there is one."""
    if test_file is not None:
        return None if test_file.lower() == "none" else Path(test_file)
    beside = train_file.with_name(train_file.name.replace("train", "test"))
    return beside if beside != train_file and beside.is_file() else None


def require_supervision(rows: Sequence[EncodedRow], train_file: str) -> None:
    """Every row must teach something, and there must be rows.

    Raises:
        InputError: no rows, or a row without supervised tokens.
    """
    if not rows:
        raise InputError(f"{train_file}：没有训练数据；请检查转换结果，或减小 --validation_ratio")
    for row in rows:
        if not row.answer_ids:
            raise InputError(f"{train_file}:{row.line}：没有任何需要学习的词元；请重新转换数据")
