"""The value of a label, as tables and annotation tools write it. Imports no torch."""

from __future__ import annotations

import math
import re

from sft.data.columns import OF_PARTS, OtherTask
from sft.errors import RowError
from sft.tasks.classification import multi_label_error
from sft.tasks.entity_lines import NO_ENTITY, read_entity
from sft.text import read_literal

_OPENING = ("[", "{")
MISSING = ("nan", "NaN", "<NA>", "#N/A", "NaT")  # as pandas and Excel write an empty cell
_FRACTION = re.compile(r"[-+]?(\d+)\.(\d+)")


def label_value(value: object, field: str) -> str | None:
    """A label as a string; None if there is none.

    A list of one is its element (doccano, CAIL), ``{"choices": [...]}`` is its choices (Label Studio), a whole number
    is written without a fraction (pandas writes 1.0), and true and false as JSON writes them.

    Raises:
        OtherTask: the value is a list of entities.
        RowError: there are several labels, or it is no label.
    """
    if is_plain_label(value):
        return value
    if type(value) is str:
        value = _in_string(value, field)
    if type(value) is dict and set(value) == {"choices"}:
        value = value["choices"]
    if type(value) is list:
        return _only_label(value, field)
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is float:
        if math.isnan(value):
            return None  # an empty cell of pandas
        if not value.is_integer():
            raise RowError(field, f"标签应是类别，实际是小数 {value}")
        value = int(value)
    if type(value) is int:
        return str(value)
    if value is None or type(value) is str:
        return value
    raise RowError(field, f"标签应是字符串，实际是 {type(value).__name__}")


def is_plain_label(value: object) -> bool:
    """Whether a value is a label just as it is written: a string of one line that is no number, list or object."""
    if type(value) is not str or value[:1] in _OPENING or value in MISSING or "\n" in value:
        return False
    return value.strip() != NO_ENTITY and not ("." in value and _FRACTION.fullmatch(value.strip()))


def _in_string(value: str, field: str) -> object:
    """What a string that is no plain label says."""
    if value in MISSING:
        return None
    if value.strip() == NO_ENTITY:
        raise OtherTask("output", f"答案是“{NO_ENTITY}”，这一行是实体识别的数据，不是文本分类的；请换数据或任务")
    if value.startswith("{") and read_entity(value.split("\n")[0]):
        raise OtherTask("output", "答案是实体，这一行是实体识别的数据，不是文本分类的；请换数据或任务")
    if "\n" in value.strip() and value[:1] not in _OPENING:
        raise RowError(field, f"标签里有换行（{value.strip()!r:.40}），不是一个标签")
    if number := _FRACTION.fullmatch(value.strip()):
        return float(value) if number[2].strip("0") else value.strip().partition(".")[0]
    try:
        read = read_literal(value)
    except ValueError:
        return value
    if type(read) is dict and set(read) != {"choices"}:
        raise RowError(field, f"标签应是字符串，实际是一个对象 {value!r:.40}；实体识别的数据请换任务")
    return read if isinstance(read, list | dict) else value


def _only_label(items: list, field: str) -> str | None:
    if items and isinstance(items[0], dict) and "choices" in items[0]:  # Label Studio's JSON-MIN and CSV
        raise RowError(field, OF_PARTS)
    if items and isinstance(items[0], dict | list | tuple):
        raise OtherTask(field, "是实体的列表，这一行是实体识别的数据，不是文本分类的；请换数据或任务")
    if len(items) > 1 and all(type(item) in (int, float) and item in (0, 1) for item in items):
        shown = "、".join(f"{item:g}" for item in items[:8])
        reason = "是几个 0、1 的列表，像 one-hot 向量，不是一个标签；请用 --label_column 指明类别的列"
        raise RowError(field, f"{reason}（{shown}）", f"{field}：{reason}")
    labels = list(dict.fromkeys(label_value(item, field) for item in items))
    if len(labels) > 1:
        raise multi_label_error(labels, field)
    return labels[0] if labels else None
