"""From a user's row to a record, and from a result to an output line.

``text`` and offsets of an output line refer to the user's own text, before normalisation.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sft.data.columns import USUAL_COLUMNS, Columns
from sft.data.shapes import GOLD_FIELDS, shape_row
from sft.errors import NotAnnotated, RowError
from sft.prediction.other_task import task_of_record
from sft.text import clean_text, shifted_offsets

if TYPE_CHECKING:
    from sft.tasks.calibration import Calibration
    from sft.tasks.task import Task


@dataclass(frozen=True)
class RowSettings:
    """How rows are read and results are written.

    Attributes:
        columns: the columns of text and gold of rows that are not read from a file; see `sft.data.shapes`.
        options: the options of every row, instead of the row's own.
        threshold: leave out labels and entities with a lower probability.
        calibration: of the probabilities, before the threshold; None for the model's own. Training fits it.
        with_answer: also write the model's answer as it was generated.
    """

    columns: Columns = USUAL_COLUMNS
    options: tuple[str, ...] | None = None
    threshold: float | None = None
    with_answer: bool = False
    calibration: Calibration | None = None


DEFAULT_ROW_SETTINGS = RowSettings()


def to_record(row: dict | RowError, task: Task, settings: RowSettings = DEFAULT_ROW_SETTINGS) -> dict | RowError:
    """The record of a row; ``original`` keeps the user's text. An error comes back as it is.

    The row may be a raw row, a record, or only a text. Gold is kept if it is usable; a row without gold, or with
    broken gold, is still predicted. ``gold_error`` says why gold cannot be used.
    """
    if isinstance(row, RowError):
        return row
    other = None if settings.columns.text else task_of_record(row)
    try:
        row = shape_row(row, task.answers, settings.columns)
        if isinstance(row.get(GOLD_FIELDS[task.answers]), NotAnnotated):
            row = row | {GOLD_FIELDS[task.answers]: None}
        record = {"text": clean_text(row), "original": row["text"]}
        record["text"].encode()  # a lone surrogate cannot be tokenised
    except RowError as error:
        return error
    except UnicodeEncodeError:
        return RowError("text", "不是 UTF-8 编码，或含有残缺的代理项字符（lone surrogate）")
    if other not in (None, task.name):
        return RowError("task", f"这一条是 {other} 的数据，适配器的任务是 {task.name}")
    if settings.options:
        row = row | {"options" if "messages" in row else "category": list(settings.options)}
    try:
        record = task.known_fields(row) | record
    except RowError as error:
        record["gold_error"] = error
    return {"options": settings.options} | record if settings.options else record


def usable_gold(record: dict | RowError, task: Task) -> dict | None:
    """The gold of a record; None if it has none, or if it cannot be used."""
    return None if isinstance(record, RowError) or "gold_error" in record else task.gold(record)


def to_output(
    record: dict | RowError,
    prediction: dict,
    task: Task,
    settings: RowSettings = DEFAULT_ROW_SETTINGS,
) -> dict:
    """What is written for a row: its own text, the result, and gold under ``gold``; or the error.

    ``cut`` is only there where it is true.
    """
    if isinstance(record, RowError):
        return {"error": str(record)}
    if "error" in prediction:
        return {"text": record["original"], "error": prediction["error"]}
    output = {
        "text": record["original"],
        **_in_original(prediction, record, task),
        **_what_was_cut(prediction, record),
    }
    if settings.with_answer and "answer" in prediction:
        output["answer"] = prediction["answer"]
    gold = usable_gold(record, task)
    return output | {"gold": _in_original(gold, record, task)} if gold is not None else output


def _in_original(result: dict, record: dict, task: Task) -> dict:
    """The public part of a result; text and offsets of its entities are those of the user's own text."""
    if task.answers == "label":
        return {name: result[name] for name in ("label", "score", "scores") if name in result}
    entities = [dict(entity) for entity in result["entities"]]
    original = record["original"]
    if original != record["text"]:
        starts = [start for start, _ in shifted_offsets(original)]
        for entity in entities:
            start = bisect_left(starts, starts[bisect_right(starts, entity["start"]) - 1])
            end = bisect_left(starts, entity["end"])
            entity |= {"start": start, "end": end, "text": original[start:end]}
    return {"entities": entities}


def _what_was_cut(result: dict, record: dict) -> dict:
    """``cut`` of a result that is not complete, and how many characters of the user's own text were read."""
    if not result.get("cut"):
        return {}
    if "read_characters" not in result:
        return {"cut": True}
    read, at_end, original = result["read_characters"], result.get("read_at_end", 0), record["original"]
    if original != record["text"]:
        offsets = shifted_offsets(original)
        head = bisect_right([end for _, end in offsets], read - at_end) - 1
        at_end = len(original) - bisect_left([start for start, _ in offsets], len(record["text"]) - at_end)
        read = head + at_end
    return {"cut": True, "read_characters": read, **({"read_at_end": at_end} if at_end else {})}
