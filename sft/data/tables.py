"""CSV and TSV: how a table is written, whether it has a header, and its rows. Imports no torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from sft.data.columns import ALL_LABEL_COLUMNS, ALL_TEXT_COLUMNS
from sft.data.encodings import is_decoded
from sft.data.label_values import MISSING
from sft.data.quoting import NUMBER, OpenQuote, is_quoted, rows_of_table, usual_row
from sft.data.source import NumberedRow, TableLayout
from sft.errors import InputError, RowError

DELIMITERS = (",", "\t", ";", "|")
ERROR_CELL = "单元格是错误值"
HEADER_LINES = 4  # where a header may be, below a title, a date, a blank line
_SHOWN_ROWS = 1000  # of the sample, to tell data from a header
# What a spreadsheet shows in place of a value that it cannot calculate.
_ERROR_VALUE = re.compile(
    r"#(NULL|DIV/0|VALUE|REF|NUM|CALC|SPILL|FIELD|BLOCKED|CONNECT|BUSY|UNKNOWN|ERROR)!|#N/A|#NAME\?|#GETTING_DATA"
)
_SENTENCE = re.compile(r"[。！？!?；;，,]|\.$")
_WORDS = re.compile(r"[\u3400-\u9fff]|\w\s+\w")
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # Excel's first line: what separates the cells


def separator_line(first_line: str) -> str | None:
    """The delimiter that Excel's line ``sep=;`` names; None for any other line."""
    found = _SEPARATOR_LINE.fullmatch(first_line)
    return found and found[1]


def layout_of(sample: Sequence[str], ending: str, told: str | None = None) -> TableLayout:
    """How a ``.csv`` or ``.tsv`` is written. What separates its cells is not always what its name says.

    Args:
        told: what separates them, if the file says so.
    """
    usual = told or ("\t" if ending == "tsv" else ",")
    layout = _layout(sample, usual)
    if told or usual in sample[0]:
        return layout
    others = (_layout(sample, other) for other in DELIMITERS if other in "".join(sample[:HEADER_LINES]))
    return next((other for other in others if _is_even(first_rows(sample, other))), layout)


def _layout(sample: Sequence[str], delimiter: str) -> TableLayout:
    return TableLayout(delimiter, is_quoted(sample, delimiter), usual=usual_row(sample, delimiter))


def _is_even(rows: Sequence[Sequence[str]]) -> bool:
    """Whether nearly all rows are as wide as the first, which has several cells, or as a header below a title."""
    titles = titles_above(rows)
    rows = rows[titles:] if titles and has_text_name(rows[titles]) else rows
    width = len(rows[0]) if rows else 0
    return width > 1 and sum(len(row) == width for row in rows) >= 0.9 * len(rows)


def first_rows(sample: Iterable[str], layout: TableLayout) -> list[list[str]]:
    """The cells of the first rows of a sample that can be read; none if the very first cannot."""
    rows: list[list[str] | RowError] = []
    with suppress(OpenQuote):  # the reader will say where
        rows.extend(islice((cells for _, _, cells in rows_of_table(sample, layout) if cells), _SHOWN_ROWS))
    return [] if rows and isinstance(rows[0], RowError) else [cells for cells in rows if type(cells) is list]


def is_data(first: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row of a table, which has no usual column name, is data and not a header.

    A column name is not a number and not a sentence, and does not occur again below itself.
    """
    if any(NUMBER.fullmatch(cell.strip()) or _SENTENCE.search(cell) or len(cell) > 40 for cell in first):
        return True
    below = [row for row in rows[1:] if len(row) == len(first)]
    return any(cell.strip() and any(row[column] == cell for row in below) for column, cell in enumerate(first))


def without_error_values(row: dict, gold_field: str) -> dict:
    """A row of a table in its task's original shape, whose label is a `RowError` if it is a spreadsheet's error value.

    Raises:
        RowError: the text is such a value, or what pandas writes for a missing one.
    """
    if problem := cell_problem(row["text"]):
        raise RowError("text", problem)
    if row["text"] in MISSING:  # None is not among them: it may be what somebody answered
        raise RowError("text", f"单元格是 {row['text']}，是 pandas 写出的空值")
    problem = cell_problem(row.get(gold_field))
    return row | {gold_field: RowError(gold_field, problem)} if problem else row


def cell_problem(value: object) -> str:
    """What is wrong with a cell that has a spreadsheet's error value; ``""`` if it has none."""
    if type(value) is str and value[:1] == "#" and _ERROR_VALUE.fullmatch(value.rstrip()):
        return f"{ERROR_CELL} {value.strip()}"
    return ""


def titles_above(rows: Sequence[Sequence[str]], named: Iterable[str | None] = ()) -> int:
    """How many rows stand above the header of a table: titles, or what is above the names that the user gives.

    A title is alone in its row, while the header and nearly all rows below it have several cells.
    """
    names = {name for name in named if name and not name.isdecimal()}
    for at, row in enumerate(rows[:HEADER_LINES] if names else ()):
        if names <= set(row):
            return at
    titles = next((at for at, row in enumerate(rows[:HEADER_LINES]) if not _is_title(row)), 0)
    if not titles:
        return 0
    header, below = rows[titles], rows[titles + 1 :]
    if sum(_filled(row) > 1 for row in below) < max(1, 0.9 * len(below)) or _filled(header) < 2:
        return 0
    return 0 if is_data(header, [header] if has_text_name(header) else [header, *below]) else titles


def _is_title(row: Sequence[str]) -> bool:
    return (
        _filled(row) == 1 and bool(row[0].strip()) and _as_name(row[0]) not in (*ALL_TEXT_COLUMNS, *ALL_LABEL_COLUMNS)
    )


def _filled(row: Sequence[str]) -> int:
    return sum(bool(cell.strip()) for cell in row)


def has_text_name(cells: Iterable[str]) -> bool:
    """Whether a cell is a usual name for the column of the text."""
    return any(cell.strip().strip('"').lower() in ALL_TEXT_COLUMNS for cell in cells)


def column_names(header: Sequence[str]) -> list[str]:
    """The names in a header without the empty ones at its end; a nameless column is called by its number."""
    width = max((at for at, name in enumerate(header, start=1) if name.strip()), default=0)
    return [name if name.strip() else f"第 {at} 列" for at, name in enumerate(header[:width], start=1)]


def column_numbers(width: int) -> tuple[str, ...]:
    """The names of the columns of a table without a header: ``1``, ``2``, …"""
    return tuple(str(number) for number in range(1, width + 1))


def text_and_label(rows: Sequence[Sequence[str]]) -> tuple[int | None, int | None]:
    """Which columns of a table without a header are the text and the label, from 0; None where it is not plain.

    The text is the only column that has words and is no label, else the one that is longer than every other by half.
    The label is the only other column whose values are few (they repeat, or are short numbers or words) and not a
    running number.
    """
    columns = [list(column) for column in zip(*rows, strict=False)] if rows else []
    if len(columns) == 1:
        return 0, None
    alike = [index for index, column in enumerate(columns) if looks_like_labels(column)]
    worded = [index for index, column in enumerate(columns) if index not in alike and _has_words(column)]
    text = worded[0] if alike and len(worded) == 1 else _longest(columns)  # names of labels may be longer than texts
    labels = [index for index in alike if index != text]
    return text, labels[0] if len(labels) == 1 else None


def _longest(columns: Sequence[Sequence[str]]) -> int | None:
    lengths = [sum(map(len, column)) / len(column) for column in columns]
    order = sorted(range(len(columns)), key=lambda index: -lengths[index])
    return order[0] if columns and lengths[order[0]] >= 1.5 * lengths[order[1]] else None


def _has_words(column: Sequence[str]) -> bool:
    """Whether nearly all cells have Chinese or several words, unlike names of files and identifiers."""
    return sum(_WORDS.search(cell) is not None for cell in column) >= 0.9 * len(column)


def looks_like_labels(column: Sequence[str]) -> bool:
    """Whether the values of a column could be labels: short, and few."""
    values = Counter(cell.strip() for cell in column)
    if "" in values or any(len(value) > 30 or _SENTENCE.search(value) for value in values):
        return False
    if len(values) == len(column) and len(column) > 20:
        return False  # an id: every value once
    return len(values) <= max(20, len(column) // 5)


def read_table(path: Path, encoding: str, layout: TableLayout) -> Iterator[NumberedRow]:
    """Each row as a dict by the names of the columns. Blank rows are skipped, and so are empty cells at a row's end.

    A row that is the header again, as in tables that were put together, is a `RowError`.

    Raises:
        InputError: a quotation mark is never closed, or the header comes again with its columns in another order.
    """
    with path.open(encoding=encoding, newline="", errors="surrogateescape") as file:
        skipped = sum(1 for _ in islice(file, layout.lines_above))
        filled = (row for row in rows_of_table(file, layout, skipped + 1) if row[2])
        rows = islice(filled, layout.titles, None)
        try:
            first = None if layout.names else next(rows)[2]
            if isinstance(first, RowError):
                raise InputError(f"{path}:{skipped + 1}：表头读不出来；请检查引号")
            names = layout.names or column_names(first)
            names_in_header = set(map(_as_name, first or ()))
            for number, line, cells in rows:
                if first and type(cells) is list and _as_name(cells[0]) in names_in_header:
                    cells = header_again(cells, first, f"{path}:{number}") or cells
                yield number, line, cells if isinstance(cells, RowError) else _table_row(cells, names)
        except OpenQuote as error:  # the rest of the file is in this cell: too much to skip as one row
            raise InputError(f"{path}:{error.number}：引号没有闭合，一直到文件末尾；请补上引号") from error


def header_again(cells: Sequence[str], header: Sequence[str], where: str) -> RowError | None:
    """The error of a row that is the header of a table that was put behind the first one; None for any other row.

    Raises:
        InputError: its columns are in another order, and so are those of the rows below.
    """
    names, first = _names_in(cells), _names_in(header)
    if names == first:
        return RowError("", "又是一遍表头")
    if sorted(names) == sorted(first) and len(set(names)) == len(names) > 1:
        raise InputError(f"{where}：又是一遍表头，可是列的顺序和第一遍不同；请分成两个文件，或统一列的顺序")
    return None


def _names_in(cells: Sequence[str]) -> list[str]:
    names = list(map(_as_name, cells))
    while names and not names[-1]:
        names.pop()
    return names


def _as_name(cell: str) -> str:
    return cell.strip().lower()


def _table_row(cells: list[str], names: Sequence[str]) -> dict | RowError:
    if not all(map(is_decoded, cells)):
        return RowError("", "有解不开的字节（文件若是 GBK，请加 --encoding gb18030）")
    while len(cells) > len(names) and not cells[-1].strip():
        cells = cells[:-1]
    if len(cells) == len(names):
        return dict(zip(names, cells, strict=True))
    return RowError("", f"有 {len(cells)} 列，表头有 {len(names)} 列")
