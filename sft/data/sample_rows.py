"""What the first rows of a file show: their notation, which columns to take, what a user should know. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from sft.data.columns import (
    ALL_LABEL_COLUMNS,
    ALL_TEXT_COLUMNS,
    DESCRIPTION_COLUMNS,
    USUAL_COLUMNS,
    Columns,
    gold_value,
    text_value,
    value_at,
)
from sft.data.dialogues import read_alpaca, read_dialogue, read_record
from sft.data.entity_notations import entity_notation
from sft.data.shapes import shape_row, whole_row_reader
from sft.data.source import Source
from sft.data.tables import looks_like_labels
from sft.data.token_rows import read_tokens
from sft.data.tool_exports import read_label_studio, read_prodigy
from sft.data.unused_columns import unused_columns
from sft.errors import InputError, RowError, one_line

_SHOWN_COLUMNS = 5
_NAMES = {
    read_label_studio: "label_studio",
    read_record: "records",
    read_dialogue: "messages",
    read_tokens: "tokens",
    read_prodigy: "prodigy",
    read_alpaca: "alpaca",
}


def notation_of(rows: Sequence[dict], answers: str, columns: Columns = USUAL_COLUMNS) -> str | None:
    """The name of the notation of a file's first rows, for the summary. None if there are no rows.

    label_studio, records (our own), messages, tokens, prodigy or alpaca; else for entities ccfbdci, spans, doccano,
    cluener or answers (without offsets), and for labels fudan or plain. It is only a name; `shape_row` does without.
    """
    rows = [row for row in rows if type(row) is dict]
    for row in rows:
        if reader := whole_row_reader(row, columns):
            return _NAMES[reader]
    if answers == "entities":
        return next(filter(None, (_entity_notation(row, columns) for row in rows)), "ccfbdci" if rows else None)
    if any("category" in row and "output" in row for row in rows):
        return "fudan"
    return "plain" if rows else None


def _entity_notation(row: dict, columns: Columns) -> str | None:
    try:
        return entity_notation(gold_value(row, "entities", columns)[0])
    except RowError:
        return None


def with_columns(source: Source, rows: Sequence[dict], columns: Columns, gold: bool) -> Source:
    """The source with the columns to take, and what should be said about rows like these.

    Raises:
        InputError: none of the first rows has the columns, or several could be them. Rows to predict need no gold,
            and those of JSON may each have fields of their own.
    """
    is_table = source.container in ("table", "sheet")
    problem = column_problem(rows, source.answers if gold else None, columns)
    if problem is not None:
        usual = columns != USUAL_COLUMNS or any(is_usual_name(name) for row in rows[:1] for name in row)
        without_header = "；没有表头就写列号，如 --text_column 1" if is_table and not usual else ""
        for_labels = problem.startswith("认不出哪一列是标签")
        alike = (_like_labels(rows, columns) or _nested(rows[0])) if for_labels else ""
        raise InputError(f"{source.path}:1：{problem}{alike}{without_header}")
    return replace(
        source,
        columns=columns,
        has_options=source.answers == "label" and any(_has_options(row, columns) for row in rows),
        taken=(*source.taken, *remarks_on(rows, source.answers, columns)),
    )


def _like_labels(rows: Sequence[dict], columns: Columns) -> str:
    """The flag for the only column that has a few values again and again, or the names of several; may be empty."""
    found = [name for name in rows[0] if name != columns.text and name.strip().lower() not in ALL_TEXT_COLUMNS]
    found = [name for name in found if columns.label is None and _has_few_values([row.get(name) for row in rows])]
    if len(found) == 1:
        return f"，如 --label_column {one_line(found[0])}"
    return f"，像标签的有 {one_line('、'.join(found[:_SHOWN_COLUMNS]))}" if found else ""


def _has_few_values(values: Sequence[object]) -> bool:
    written = [str(value) for value in values if type(value) in (str, int, bool)]
    several = 2 <= len(set(written)) <= len(written) // 2
    return several and len(written) == len(values) and looks_like_labels(written)


def column_problem(rows: Sequence[dict], answers: str | None, columns: Columns = USUAL_COLUMNS) -> str | None:
    """Why none of a file's first rows can be read, for want of a column: a message for the user. None if one can.

    Args:
        answers: as in `shape_row`; None if the rows need no gold, but in a column that the user names.
    """
    problem = None
    for row in rows:
        if whole_row_reader(row, columns):
            return None
        problem = _column_problem(row, answers, columns)
        if problem is None:
            return None
    return problem


def _column_problem(row: dict, answers: str | None, columns: Columns) -> str | None:
    listed = "、".join(row)[:200]
    for name, flag in ((columns.text, "--text_column"), (columns.label, "--label_column")):
        if name is not None and value_at(row, name, default=row) is row:
            return f"没有 {flag} 给出的列 {name!r}；有的列是 {listed}"
    try:
        text_value(row, columns)
    except RowError as error:
        missing = f"认不出哪一列是文本（有 {listed!r}）；请用 --text_column 指明"
        return missing if error.reason == "缺少这个字段" else error.reason
    if answers is None or columns.label is not None:
        return None
    what = "实体" if answers == "entities" else "标签"
    try:
        _, field = gold_value(row, answers, columns)
    except RowError as error:
        return error.reason
    return None if field in row else f"认不出哪一列是{what}（有 {listed!r}）；请用 --label_column 指明"


def _nested(row: dict) -> str:
    """How a field inside another is named, if the row has such fields (CAIL's ``meta``)."""
    for name, value in row.items():
        if type(value) is dict and value:
            inside = "、".join(map(str, value))[:80]
            return f"，{name} 里面有 {one_line(inside)}，写成 {one_line(f'{name}.{next(iter(value))}')}"
    return ""


def is_usual_name(cell: str) -> bool:
    """Whether a text or a label usually has this name."""
    return cell.strip().lower() in (*ALL_TEXT_COLUMNS, *ALL_LABEL_COLUMNS)


def _has_options(row: dict, columns: Columns) -> bool:
    """Whether a classification row brings options of its own."""
    try:
        return shape_row(row, "label", columns)["category"] is not None
    except RowError:
        return False


def remarks_on(rows: Iterable[dict], answers: str, columns: Columns = USUAL_COLUMNS) -> list[str]:
    """What a user should know about how rows like these are read, each as part of a line of the summary."""
    rows = [row for row in rows if type(row) is dict]
    remarks = []
    asked = [row for row in rows if whole_row_reader(row, columns) is read_alpaca and row.get("input")]
    instructions = {str(row.get("instruction")) for row in asked}
    if len(instructions) > 1:
        remarks.append(f"instruction 有 {len(instructions)} 种，都没有用：文本是 input，指令用本项目的")
    if answers == "label" and columns.label is None:
        named = {gold_value(row, answers, columns)[1] for row in rows if _is_described(row, columns)}
        remarks += [f"标签取自 {name}（label 是它的编号）" for name in sorted(named)]
    plain = [row for row in rows if whole_row_reader(row, columns) is None]
    with suppress(RowError):  # a first row without a text is reported when it is read
        remarks += unused_columns(plain, answers, columns) if plain and text_value(plain[0], columns) else []
    return remarks


def _is_described(row: dict, columns: Columns) -> bool:
    try:
        return whole_row_reader(row, columns) is None and gold_value(row, "label", columns)[1] in DESCRIPTION_COLUMNS
    except RowError:
        return False
