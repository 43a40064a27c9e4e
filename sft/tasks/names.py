"""The labels in a user's data and their names for the model; labels that are several labels in one string."""

from __future__ import annotations

import re
from collections.abc import Mapping

SEPARATORS = r"[|｜;；/、,，#]|\s+"


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
