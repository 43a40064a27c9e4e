"""The value of a label, as tables and annotation tools write it. Imports no torch."""

from __future__ import annotations

import math

from sft.data.columns import OtherTask
from sft.errors import RowError
from sft.tasks.classification import multi_label_error
from sft.tasks.entity_lines import NO_ENTITY, read_entity
from sft.text import read_literal


def label_value(value: object, field: str) -> str | None:
    """A label as a string; None if there is none.

    A list of one is its element (doccano, CAIL), ``{"choices": [...]}`` is its choices (Label Studio), a whole number
    is written without a fraction (pandas writes 1.0), and true and false as JSON writes them.

    Raises:
        OtherTask: the value is a list of entities.
        RowError: there are several labels, or it is no label.
    """
    if type(value) is dict and set(value) == {"choices"}:
        value = value["choices"]
    if type(value) is str:
        value = _in_string(value)
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


def _in_string(value: str) -> object:
    """The list in a string, if it is one; else the string."""
    if value.startswith("{") and read_entity(value.split("\n")[0]):
        raise OtherTask("output", "答案是实体，这一行是实体识别的数据，不是文本分类的；请换数据或任务")
    if value.strip() == NO_ENTITY:
        raise OtherTask("output", f"答案是“{NO_ENTITY}”，这一行是实体识别的数据，不是文本分类的；请换数据或任务")
    if value[:1] != "[" or value[-1:] != "]":
        return value
    try:
        items = read_literal(value)
    except ValueError:
        return value
    return items if type(items) is list else value


def _only_label(items: list, field: str) -> str | None:
    if items and isinstance(items[0], dict | list | tuple):
        raise OtherTask(field, "是实体的列表，这一行是实体识别的数据，不是文本分类的；请换数据或任务")
    labels = list(dict.fromkeys(label_value(item, field) for item in items))
    if len(labels) > 1:
        raise multi_label_error(labels)
    return labels[0] if labels else None
