"""The labels in a user's data and their names for the model; labels that are several labels in one string."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# What joins several labels in one string: 问卷星 writes ┋, Microsoft Forms ends each label with a semicolon.
SEPARATORS = r"[|｜┋;；/／、,，#+＋&＆]|\s+"
IN_NAMES = "/／+＋&＆ "  # those that also stand inside ordinary names


def read_names(value: object) -> dict[str, str]:
    """The ``names`` of a ``*.task.json``: label in the data → its name for the model.

    Raises:
        TypeError: it is no object of strings.
    """
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value.values()):
        raise TypeError("names 应是 {数据里的标签: 给模型看的名字}")
    return dict(value)


def parts_of(label: str) -> list[str]:
    """``体育|交通`` → ``["体育", "交通"]``; one part if no separator joins several."""
    return [part.strip() for part in re.split(SEPARATORS, label) if part.strip()]


def not_listed(label: str, names: Iterable[str]) -> str:
    """That a label is not among those of ``--labels``, and why if it is a part of one there."""
    whole = next((name for name in names if label in parts_of(name)), None)
    hint = f"（{whole!r} 在那里是一个标签；几个标签之间要用逗号）" if whole else ""
    return f"标签 {label!r} 不在 --labels 里{hint}"
