"""The columns of a table: where its header is, what is taken if there is none. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from sft.data.arguments import ReadOptions
from sft.data.class_folders import CLASS_FOLDER
from sft.data.columns import Columns
from sft.data.look_alikes import has_tag_column, table_problem
from sft.data.sample_rows import is_usual_name, with_columns
from sft.data.sheets import sheet_cells, sheet_header
from sft.data.source import Source, TableLayout
from sft.data.tables import (
    column_names,
    column_numbers,
    first_rows,
    is_data,
    layout_of,
    looks_like_labels,
    separator_line,
    text_and_label,
    titles_above,
)
from sft.errors import InputError, one_line

_SAMPLE_ROWS = 1000  # of a sheet


def as_table(source: Source, sample: list[str], options: ReadOptions, gold: bool) -> Source:
    """``source``, a CSV or TSV, with its layout and the columns to take.

    Args:
        sample: the first lines that are not blank.
        gold: see `sft.data.formats.recognise`.

    Raises:
        InputError: it is no table, or its columns cannot be recognised.
    """
    told = separator_line(sample[0])
    sample = sample[1:] if told else sample
    if not sample:
        raise InputError(f"{source.path}：没有一行数据；请检查文件")
    layout = layout_of(sample, source.format, told)._replace(lines_above=int(told is not None))
    taken = () if layout.quoted else ("引号按原文",)
    if layout.delimiter != ("\t" if source.format == "tsv" else ","):
        taken += (f"列之间是{'制表符' if layout.delimiter == chr(9) else f' {layout.delimiter} '}",)
    source, rows = _below_titles(replace(source, table=layout, taken=taken), first_rows(sample, layout), options)
    _refuse_look_alikes(source, sample, rows, options)
    return _with_header(source, rows, options, gold)


def as_sheet(source: Source, options: ReadOptions, gold: bool) -> Source:
    """``source``, an Excel file, with the columns to take; see `as_table`."""
    cells = (cells for _, cells in sheet_cells(source.path) if type(cells) is list)
    rows = list(islice(cells, _SAMPLE_ROWS))
    width = max(map(len, rows), default=0)  # of a row, the cells after the last one with a value are missing
    rows = [row + [""] * (width - len(row)) for row in rows]
    source, rows = _below_titles(replace(source, table=TableLayout()), rows, options)
    if rows and not all(rows[0]):
        rows[0] = sheet_header(source.path, source.table.titles)
    _refuse_look_alikes(source, (), rows, options)
    return _with_header(source, rows, options, gold)


def _below_titles(source: Source, rows: list[list[str]], options: ReadOptions) -> tuple[Source, list[list[str]]]:
    """The source and its first rows without what stands above the header."""
    titles = titles_above(rows, (options.text_column, options.label_column))
    if not titles:
        return source, rows
    shown = "、".join(next(filter(str.strip, row), "") for row in rows[:titles])
    taken = (*source.taken, f"表头上面的 {titles} 行没有用：{one_line(shown)[:40]}")
    return replace(source, table=source.table._replace(titles=titles), taken=taken), rows[titles:]


def _refuse_look_alikes(
    source: Source, sample: Sequence[str], rows: Sequence[Sequence[str]], options: ReadOptions
) -> None:
    """Refuse what is no table, unless the user has named its columns; tags of characters are never entities."""
    is_told = options.text_column or options.label_column
    problem = table_problem(sample, rows)
    are_tags = source.answers == "entities" and has_tag_column(rows)
    if are_tags and is_told and source.format == "tsv":  # a tagged file, but without the columns that are named
        problem = f"没有 --text_column、--label_column 给出的列；有的列是 {one_line('、'.join(rows[0])[:80])}"
    if problem and (not is_told or are_tags):
        raise InputError(f"{source.path}：{problem}")


def _with_header(source: Source, rows: list[list[str]], options: ReadOptions, gold: bool) -> Source:
    """The source with the columns of a table, whose first rows are given, with or without a header."""
    if not rows:
        raise InputError(f"{source.path}:1：表头读不出来；请检查引号")
    header = rows[0]
    numbers = column_numbers(len(header))
    has_header = source.table.titles > 0 or any(map(is_usual_name, header))
    options = _with_names(options, header, numbers) if has_header else options
    if _lacks_header(header, rows, options, numbers):
        columns = _columns_by_number(source.path, rows, options, gold)
        taken = (*source.taken, _describe_numbers(columns))
        return replace(source, table=source.table._replace(names=numbers), columns=columns, taken=taken)
    names = column_names(header)
    if len(set(names)) < len(names):
        raise InputError(f"{source.path}:1：表头有重名的列（{one_line('、'.join(names))}）；请改成不同的名字")
    sample = [dict(zip(names, row, strict=False)) for row in rows[1:]] or [dict.fromkeys(names, "")]
    return with_columns(source, sample, Columns(options.text_column, options.label_column), gold)


def _with_names(options: ReadOptions, header: list[str], numbers: Sequence[str]) -> ReadOptions:
    """The options with the names of columns instead of their numbers, unless the header is data."""
    if is_data(header, [header]):
        return options
    names = dict(zip(numbers, header, strict=True))
    text, label = (names.get(str(column), column) for column in (options.text_column, options.label_column))
    return options._replace(text_column=text, label_column=label)


def _lacks_header(header: list[str], rows: list[list[str]], options: ReadOptions, numbers: Sequence[str]) -> bool:
    chosen = [column for column in (options.text_column, options.label_column) if column]
    if chosen:
        return not set(chosen) <= set(header) and set(chosen) <= set(numbers)
    return not any(map(is_usual_name, header)) and is_data(header, rows)


def _columns_by_number(path: Path, rows: list[list[str]], options: ReadOptions, gold: bool) -> Columns:
    """The columns of a table without a header, as the user says or as the cells show.

    Raises:
        InputError: the cells do not show which columns to take.
    """
    text, label = text_and_label(rows)
    names = column_numbers(len(rows[0]))
    text_column = options.text_column or (None if text is None else names[text])
    label_column = options.label_column or (None if label is None else names[label])
    if text_column is None or (gold and label_column is None) or text_column == label_column:
        raise InputError(f"{path}:1：没有表头，{_missing(rows, text_column, label_column)}")
    return Columns(text_column, label_column)


def _missing(rows: list[list[str]], text_column: str | None, label_column: str | None) -> str:
    """Which column is missing, with flags that could name it: for a user who looks at the first row."""
    names = column_numbers(len(rows[0]))
    shown = "，".join(f"{name} {cell[:20]!r}" for name, cell in zip(names, rows[0], strict=False))
    if len(names) == 1:
        return f"只有一列（第一行：{shown}），没有标签；请补上标签列；{CLASS_FOLDER}"
    what = "文本" if text_column is None else "标签"
    text = text_column or next(name for name in reversed(names) if name != label_column)
    columns = dict(zip(names, zip(*rows, strict=False), strict=False))
    alike = sorted(
        filter(lambda name: looks_like_labels(columns[name]), columns), key=lambda name: _kinds(columns[name])
    )
    label = next(name for name in (*filter(None, [label_column]), *alike, *names) if name != text)
    return (
        f"认不出哪一列是{what}（第一行：{shown}）；"
        f"请用 --text_column、--label_column 给出列号，如 --text_column {text} --label_column {label}，"
        "或在第一行写上列名"
    )


def _kinds(column: Sequence[str]) -> float:
    """How many different values there are; a column with only one is hardly the label."""
    return len(set(column)) if len(set(column)) > 1 else float("inf")


def _describe_numbers(columns: Columns) -> str:
    label = "" if columns.label is None else f"、第 {columns.label} 列作标签"
    return f"没有表头：第 {columns.text} 列作文本{label}"
