"""Which rows of the training file are trained on, and which are held out for validation."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable
from pathlib import Path

from sft.tasks.task import Task

logger = logging.getLogger(__name__)

Numbered = list[tuple[int, dict]]  # records with their line numbers


def sample(records: Numbered, most: int | None, seed: int) -> Numbered:
    """At most ``most`` records (None: all) at random, in the order of the file.

    Not the first ones: many files are sorted by label, and their beginning knows only one. The same seed chooses the
    same rows, and fewer of them are a part of more.
    """
    if most is None or most >= len(records):
        return records
    chosen = random.Random(seed).sample(range(len(records)), len(records))[:most]
    logger.info("--max_train_samples：从 %d 条里随机取 %d 条（由 --seed 决定）", len(records), most)
    return [records[index] for index in sorted(chosen)]


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
