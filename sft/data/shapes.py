"""One raw row, whatever tool wrote it, in the original shape of its task. Imports no torch.

Labels: ``{"text", "category", "output"}``, as in zh_cls_fudan-news; ``category`` has the options and may be None.
Entities: ``{"text", "entities": [{"start_idx", "end_idx", "entity_text", "entity_label"}]}``, as in CCFBDCI; offsets
count code points, and ``end_idx`` is exclusive.

`shape_row` takes each row by itself, and conversion and prediction both call it: they cannot read a row differently.
A row with a shape of its own (a dialogue, an annotation tool's export) is known by its fields, see `whole_row_reader`;
any other row has a column of text and a column of gold, see `sft.data.columns`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from sft.data.columns import (
    LABEL_COLUMNS,
    USUAL_COLUMNS,
    Columns,
    OtherTask,
    Written,
    plain_row,
)
from sft.data.dialogues import is_alpaca, is_dialogue, is_record, read_alpaca, read_dialogue, read_record
from sft.data.entity_notations import are_plain_entities, raw_entities
from sft.data.label_values import is_plain_label, label_value
from sft.data.token_rows import TAG_COLUMNS, column_of_tokens, is_tokens, read_tokens
from sft.data.tool_exports import is_label_studio, is_prodigy, read_label_studio, read_prodigy
from sft.errors import RowError

# Fields that a row with a shape of its own has (see `whole_row_reader`), and rows in the original shape have not.
_FIELDS_OF_WHOLE_ROWS = frozenset(
    ("data", "messages", "conversations", "tokens", "words", "chars", "answer", "instruction", *TAG_COLUMNS)
)
GOLD_FIELDS = {"label": "output", "entities": "entities"}

Reader = Callable[[dict, str, Columns], Written]


def shape_row(row: dict, answers: str, columns: Columns = USUAL_COLUMNS) -> dict:
    """A row in the original shape of its task. The row is not changed; a row in this shape comes back as it is.

    Gold that the row does not have is None. In place of gold that is there but cannot be read is the `RowError` that
    says why: conversion rejects such a row, prediction predicts it. ``notes``, if there, say how the gold was read.

    Args:
        answers: what the task's answers are, ``label`` or ``entities`` (``task.answers``).
        columns: the columns to take; None takes those with the usual names.

    Raises:
        RowError: there is no text, it could be several columns, or the row is another task's.
    """
    if columns == USUAL_COLUMNS and _is_original(tuple(row), answers):
        value, text = row[GOLD_FIELDS[answers]], row["text"]
        if answers == "label" and is_plain_label(value):
            return {"text": text, "category": row["category"], "output": value}
        if answers == "entities" and type(text) is str and type(value) is list and are_plain_entities(value, text):
            return {"text": text, "entities": value}
    reader = whole_row_reader(row, columns)
    written = (reader or plain_row)(row, answers, columns)
    shape, notes = {**written.kept, "text": written.text}, []
    if answers == "label":
        shape["category"] = written.options
    try:
        shape[GOLD_FIELDS[answers]] = _gold(written, answers, notes, columns.offsets)
    except OtherTask:
        raise
    except RowError as error:
        shape[GOLD_FIELDS[answers]] = type(error)(error.field, error.reason, error.given_kind)
    return {**shape, "notes": notes} if notes else shape


@lru_cache(maxsize=1000)
def _is_original(fields: tuple[str, ...], answers: str) -> bool:
    """Whether a row with these fields can only be in the original shape, as most rows are."""
    if "text" not in fields or not _FIELDS_OF_WHOLE_ROWS.isdisjoint(fields):
        return False
    if answers == "entities":
        return "entities" in fields
    labels = [field for field in fields if field.strip().lower() in LABEL_COLUMNS]
    return sorted(labels) == ["category", "output"] and "options" not in fields


def _gold(written: Written, answers: str, notes: list[str], offsets: str) -> object:
    if written.problem is not None:
        raise written.problem
    if isinstance(written.gold, RowError):  # it was shaped before
        return written.gold
    if answers == "entities":
        return raw_entities(written.gold, written.text, written.field, notes, offsets)
    return label_value(written.gold, written.field)


def whole_row_reader(row: dict, columns: Columns = USUAL_COLUMNS) -> Reader | None:
    """The reader of a row with a shape of its own; None if it has a column of text and a column of gold.

    If the user has named the column of the text, it is taken, except in a Label Studio task, whose texts are in
    ``data``, and if it is a list of tokens, or has a blank between any two and as many tags.
    """
    if is_label_studio(row) and (columns.text is None or columns.text not in row):
        return read_label_studio
    if columns.text is not None:
        return read_tokens if column_of_tokens(row, columns) == columns.text else None
    if is_record(row):
        return read_record
    if is_dialogue(row):
        return read_dialogue
    if is_tokens(row, columns):
        return read_tokens
    if is_prodigy(row):
        return read_prodigy
    return read_alpaca if is_alpaca(row) else None
