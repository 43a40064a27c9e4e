"""Notice rows of another task before a model answers them with nonsense. Imports no torch."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice

from sft.data.readers import rows_as_written
from sft.data.shapes import GOLD_FIELDS, shape_row
from sft.data.source import Source
from sft.errors import InputError, RowError
from sft.tasks import TASKS
from sft.tasks.entity_lines import NO_ENTITY
from sft.tasks.task import Task

FIRST_ROWS = 50  # how many are looked at
LONGEST_LABEL = 40  # characters; what is longer is a text
KINDS = {"label": "一个标签（分类）", "entities": "实体列表（实体识别）"}


def refuse_rows_of_another_task(source: Source, task: Task) -> None:
    """Look at the first rows of a file, as they are written.

    A converted row says its task. Raw rows are of another task if all that have gold have it in the other task's
    shape. Rows without gold are of any task.

    Raises:
        InputError: the rows are of another task.
    """
    first: list[dict | RowError] = []
    with suppress(UnicodeDecodeError, InputError):  # reported when the row is read
        first.extend(row for _, _, row in islice(rows_as_written(source), FIRST_ROWS))
    for number, row in enumerate(first, start=1):
        if (other := task_of_record(row)) not in (None, task.name):
            raise InputError(
                f"{source.path}：第 {number} 条是 {other} 的数据，适配器的任务是 {task.name}；请换适配器或换数据"
            )
    kinds = [kind for row in first if isinstance(row, dict) and (kind := gold_kind(row)) is not None]
    if kinds and task.answers in KINDS and task.answers not in kinds:
        raise InputError(
            f"{source.path}：前 {len(first)} 条里有 {len(kinds)} 条的答案是{KINDS[kinds[0]]}，"
            f"适配器的任务是 {task.name}；请换适配器或换数据；只想用其中的文本，加 --text_column 指明文本那一列"
        )


def task_of_record(row: dict | RowError) -> str | None:
    """The task of a converted row; None for any other row."""
    if not isinstance(row, dict) or "messages" not in row:
        return None
    name = row.get("task")
    return name if isinstance(name, str) and name in TASKS else None


def gold_kind(row: dict) -> str | None:
    """``label`` or ``entities``: the shape of a raw row's gold; None for no gold, or both, or neither."""
    entities, label = _gold(row, "entities"), _gold(row, "label")
    has_entities = type(entities) is list and any(map(_has_place, entities))
    has_label = type(label) is str and _is_label(label)
    return None if has_entities == has_label else "entities" if has_entities else "label"


def _gold(row: dict, answers: str) -> object:
    """What the row has as the gold of a task with such answers; None if it is of another task."""
    try:
        return shape_row(row, answers)[GOLD_FIELDS[answers]]
    except RowError:
        return None


def _has_place(entity: object) -> bool:
    return isinstance(entity, dict) and all(type(entity.get(edge)) is int for edge in ("start_idx", "end_idx"))


def _is_label(value: str) -> bool:
    value = value.strip()
    is_short = 0 < len(value) <= LONGEST_LABEL and "\n" not in value
    return is_short and value != NO_ENTITY and not value.startswith(("[", "{"))
