"""The two original shapes of a raw row, and what other data sets call and write the same things. Imports no torch.

Labels: ``{"text", "category", "output"}``, as in zh_cls_fudan-news; ``category`` has the options and may be None.
Entities: ``{"text", "entities": [{"start_idx", "end_idx", "entity_text", "entity_label"}]}``, as in CCFBDCI; offsets
count code points, and ``end_idx`` is exclusive.

`shape_row` brings a row into one of them, for conversion and prediction alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sft.data.source import ANY_COLUMNS, Columns
from sft.errors import RowError
from sft.text import read_literal, shown

# The usual names of columns and JSON fields, in lower case.
TEXT_COLUMNS = ("text", "content", "sentence", "文本", "内容", "正文", "句子")
LABEL_COLUMNS = ("output", "label", "category", "class", "标签", "类别", "分类")
ENTITY_COLUMNS = ("entities", "label", "labels", "实体", "标签")


def notation_of(rows: Sequence[dict], answers: str) -> str:
    """The notation of JSON rows, by the first one that shows it."""
    if answers == "label":
        fudan = any({"text", "category", "output"} <= row.keys() for row in rows)
        return "fudan" if fudan else "jsonl"
    for row in rows:
        column = _only_column(row, ENTITY_COLUMNS, first=("entities",))
        value = row.get(column)
        if type(value) is dict:
            return "cluener"
        if type(value) is list and value:
            if type(value[0]) is not dict:
                return "doccano"
            return "ccfbdci" if "start_idx" in value[0] else "spans"
    return "ccfbdci"


def shape_row(row: dict, answers: str, columns: Columns = ANY_COLUMNS) -> dict:
    """A row in its original shape, whatever its columns are called; a record stays as it is.

    Gold that cannot be read comes as a `RowError` in its place: a row to predict needs none.

    Args:
        answers: what the task's answers are, ``label`` or ``entities`` (``task.answers``).
        columns: the columns to take. The gold of a row that lacks the label column is found by the usual names.

    Raises:
        RowError: there is no text column, or several could be it.
    """
    if "messages" in row and columns.text is None:
        return row
    text = row.get(_text_column(row, columns.text))
    if answers == "entities":
        return {"text": text, "entities": _entities(row, text, columns.label)}
    name = columns.label if columns.label in row else _only_column(row, LABEL_COLUMNS, first=("output", "label"))
    options = row.get(columns.options) if columns.options else row.get("options")
    if columns.label is None and name == "category" and _is_list(row["category"]):
        name = None  # a list of options, not a label
    if options is None and name != "category":
        options = row.get("category")
    return {"text": text, "category": options, "output": row.get(name)}


def _text_column(row: dict, chosen: str | None) -> str:
    if chosen is not None:
        if chosen not in row:
            raise RowError(chosen, "缺少这个字段")
        return chosen
    column = _only_column(row, TEXT_COLUMNS, first=("text",))
    if column is None:
        found = [name for name in row if name.strip().lower() in TEXT_COLUMNS]
        raise RowError(
            "text", f"有几个字段都像文本（{'、'.join(found)}）；请用 --text_column 指明" if found else "缺少这个字段"
        )
    return column


def _only_column(row: dict, names: tuple[str, ...], first: tuple[str, ...]) -> str | None:
    """The first name of ``first`` that the row has, else its only column with one of the usual ``names``."""
    for name in first:
        if name in row:
            return name
    found = [column for column in row if column.strip().lower() in names]
    return found[0] if len(found) == 1 else None


def _is_list(value: object) -> bool:
    if type(value) is not str:
        return type(value) is list
    try:
        return type(read_literal(value)) is list
    except ValueError:
        return False


def _entities(row: dict, text: object, label_column: str | None) -> object:
    """A row's entities as CCFBDCI has them; None if it has none, an error in their place if they cannot be read."""
    column = label_column if label_column in row else _only_column(row, ENTITY_COLUMNS, first=("entities",))
    value = row.get(column) if column is not None else None
    if type(text) is not str or value is None:
        return value
    try:
        value = entities_in_cell(value, column) if type(value) is str else value
        return raw_entities(value, column)
    except RowError as error:
        return error


# ---- Notations of entities ----


def entities_in_cell(cell: str, column: str) -> object:
    """The entities in a cell of a table; an empty cell has none.

    Raises:
        RowError: the cell is neither JSON nor a Python literal.
    """
    try:
        return read_literal(cell) if cell.strip() else []
    except ValueError:
        raise RowError(column, "应是 JSON 或 Python 写法的实体列表") from None


def raw_entities(value: object, column: str) -> object:
    """Entities in any known notation (CCFBDCI's, CLUENER's, doccano's, spans) as CCFBDCI has them.

    A value that is neither a list nor an object stays as it is: the task reports it.

    Raises:
        RowError: an item is in no known notation.
    """
    if type(value) is dict:
        return list(_cluener_entities(value, column))
    if type(value) is list:
        return [_span_entity(item, column) for item in value]
    return value


def _span_entity(item: object, column: str) -> dict:
    """An entity as an object with ``start`` and ``end``, or doccano's ``[start, end, label]``."""
    if type(item) is dict:
        if "start_idx" in item:
            return item
        start, end = item.get("start", item.get("start_offset")), item.get("end", item.get("end_offset"))
        return {"start_idx": start, "end_idx": end, "entity_text": item.get("text"), "entity_label": item.get("label")}
    if type(item) in (list, tuple) and len(item) == 3:
        return {"start_idx": item[0], "end_idx": item[1], "entity_label": item[2]}
    raise RowError(column, f"认不出的实体 {shown(item)}；应如 [起, 止, 标签]")


def _cluener_entities(value: dict, column: str) -> Iterator[dict]:
    """CLUENER: ``{label: {surface: [[start, last], …]}}``; ``last`` is inclusive."""
    for label, surfaces in value.items():
        if type(surfaces) is not dict:
            raise RowError(column, f"{label} 应是 {{实体: [[起, 止]]}}，实际是 {shown(surfaces)}")
        for surface, places in surfaces.items():
            for place in places if type(places) is list else [None]:
                if type(place) is not list or len(place) != 2 or not all(type(edge) is int for edge in place):
                    raise RowError(column, f"{surface} 的位置应是 [[起, 止]]，实际是 {shown(places)}")
                start, last = place
                yield {"start_idx": start, "end_idx": last + 1, "entity_text": surface, "entity_label": label}
