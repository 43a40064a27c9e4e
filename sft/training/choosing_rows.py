"""Which rows of the training file are trained on, and which are held out for validation."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from sft.tasks.task import Task

logger = logging.getLogger(__name__)

Numbered = list[tuple[int, dict]]  # records with their line numbers
Row = TypeVar("Row")


def chosen_rows(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """At most ``count`` rows at random, the same for the same seed; fewer are the first ones of more."""
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    return [rows[index] for index in order[:count]]


def sample(records: Numbered, most: int | None, seed: int) -> Numbered:
    """At most ``most`` records (None: all) at random, in the order of the file.

    Not the first ones: many files are sorted by label, and their beginning knows only one.
    """
    if most is None or most >= len(records):
        return records
    logger.info("--max_train_samples：从 %d 条里随机取 %d 条（由 --seed 决定）", len(records), most)
    return sorted(chosen_rows(records, most, seed), key=lambda record: record[0])  # by line


def hold_out(train: Numbered, count: int, seed: int) -> tuple[Numbered, Numbered]:
    """Split ``train`` into training and validation records, so that no text is in both.

    The choice depends on the texts and the seed, not on the order of the rows.

    Args:
        count: different texts for validation.
    """
    texts = sorted({record["text"] for _, record in train})
    held_out = set(random.Random(seed).sample(texts, count))
    return (
        [(line, record) for line, record in train if record["text"] not in held_out],
        [(line, record) for line, record in train if record["text"] in held_out],
    )


def warn_of_labels_without_rows(task: Task, train: Numbered, train_file: Path) -> None:
    """Say in one line which labels of the task no training row has: the model will hardly ever answer them."""
    seen = {label for _, record in train for label in _labels(task, record)}
    missing = [label for label in task.labels if label not in seen]
    if missing:
        shown = "、".join(missing[:10]) + (f" 等 {len(missing)} 个" if len(missing) > 10 else "")
        what = "一条也没有" if task.answers == "label" else "一个也没有"
        logger.warning("%s：训练用的 %d 条里，这些标签%s，学不到：%s", train_file, len(train), what, shown)


def _labels(task: Task, record: dict) -> Iterable[str]:
    gold = task.gold(record) or {}
    return (gold["label"],) if "label" in gold else (entity["label"] for entity in gold.get("entities", ()))
