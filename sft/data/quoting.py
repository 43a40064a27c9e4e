"""Quotation marks in a table: which enclose a cell, and which are part of a text. Imports no torch.

A quotation mark that encloses nothing hides every row up to the next one. So a row that goes on over several lines is
looked at again: if these lines are rows of their own, by their width and by what is in the column that tells most,
only the line with the odd mark is rejected, and the others are read for themselves.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from sft.data.encodings import BYTE_ORDER_MARK
from sft.data.source import TableLayout, UsualRow
from sft.errors import RowError

NumberedCells = tuple[int, str, list[str] | RowError]  # line number from 1, the row in the file, its cells
NUMBER = re.compile(r"[-+]?\d+([.,]\d+)?")
_JUDGED_LINES = 5000  # of the sample, to know a usual row
_RECENT_ROWS = 1000
_LEAST_SHARE = 0.5  # of the rows whose value in a column occurs again, for the column to tell a row from other lines
_SOME = 0.3
_LONG = 10  # lines, from which one in ten need not be a row of its own, and the lines are evidence of their values
_FEWEST_SINGLE = 0.2  # of the lines, that are rows of one line, for these alone to say what is usual
_FEW_LINES = 5  # fewer lines that are like rows only by their width, or by a number, may be part of a text


class OpenQuote(Exception):
    """A quotation mark is open at the end of the file.

    Attributes:
        number: the line on which the row begins.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


# ---- Whether quotation marks enclose cells ----


def is_quoted(sample: Sequence[str], delimiter: str) -> bool:
    """Whether a table uses CSV's quoting. Many TSVs do not, and have quotation marks in their texts.

    That reading is taken in which fewer lines are out of place; if it makes no difference, that with quoting.
    """
    if delimiter != "\t":
        return True
    tabs = [line.count("\t") for line in sample]
    width = _usual_width(tabs)
    return _misplaced_lines(sample, width) <= sum(count != width for count in tabs)


def _misplaced_lines(sample: Sequence[str], width: int) -> int:
    """How many lines of a TSV are no row, or are hidden in one, if quotation marks enclose cells.

    Args:
        width: how many tabs most of the lines have.
    """
    hidden, widths, lines = 0, [], _Lines(sample, 1)
    reader = csv.reader(lines, "excel-tab", strict=True)
    while True:
        lines.begin_row()
        try:
            tabs = len(next(reader)) - 1
        except StopIteration:
            usual = _usual_width(widths)
            return hidden + sum(tabs != usual for tabs in widths)
        except csv.Error as error:
            tabs = width if "end of data" in str(error) else -1  # the sample may end inside a cell
        alike = [line.count("\t") == width for line in lines.of_row]
        if len(alike) > 1 and _nearly_all(alike):
            hidden += len(alike)
        else:
            widths.append(tabs)


def _usual_width(tabs: Iterable[int]) -> int:
    """How many tabs most lines or rows have, of those that have any."""
    counts = Counter(count for count in tabs if count > 0)
    return counts.most_common(1)[0][0] if counts else 0


# ---- Rows ----


def rows_of_table(lines: Iterable[str], layout: TableLayout, first: int = 1) -> Iterator[NumberedCells]:
    """The cells of each row with the number of its first line; ``lines`` begins with line ``first``.

    Raises:
        OpenQuote: a quotation mark is never closed.
    """
    given = _Lines(lines, first)
    reader = csv_reader(given, layout)
    judge = _Judge(layout) if layout.quoted and layout.usual else None
    while True:
        number = given.begin_row()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "end of data" in str(error):
                raise OpenQuote(number) from error
            cells = RowError("", f"不是合法的 CSV（{error}）")
        if judge and len(given.of_row) == 1 and type(cells) is list and judge.is_usual(cells):  # nearly every row
            yield number, layout.delimiter.join(cells), cells
            continue
        last = number + len(given.of_row) - 1
        verdict = judge.verdict(cells, given.of_row) if judge else None
        if verdict == "rows":
            cells = _odd_quote(f"下一个引号在第 {last} 行，中间的行各自成行，已照常读")
            given.give_back()
        elif verdict == "doubt":
            cells = _odd_quote(f"到第 {last} 行才有下一个引号，其间每行都像单独的一行，分不清，都没有用")
        elif verdict == "rest":
            cells = _odd_quote("像是上面那一行的后半截")
        elif isinstance(cells, RowError) and last > number:
            cells = RowError("", f"{cells.reason}，从这一行到第 {last} 行连在了一起", cells.kind)
        yield number, "".join(given.of_row) if isinstance(cells, RowError) else layout.delimiter.join(cells), cells


def csv_reader(lines: Iterator[str], layout: TableLayout) -> Iterator[list[str]]:
    """The cells of each row of a CSV or TSV."""
    csv.field_size_limit(1 << 30)
    quoting = csv.QUOTE_MINIMAL if layout.quoted else csv.QUOTE_NONE
    return csv.reader(lines, delimiter=layout.delimiter, quoting=quoting, strict=True)


class _Lines:
    """The lines of a table, of which those after the first one of a row can be given back.

    A byte order mark before a row is left out: files that were put together have them inside.

    Attributes:
        of_row: the lines of the row that is being read.
    """

    def __init__(self, lines: Iterable[str], first: int) -> None:
        self._lines = iter(lines)
        self._next_number = first
        self._waiting: deque[str] = deque()
        self.of_row: list[str] = []

    def begin_row(self) -> int:
        """Forget the lines of the row before; returns the number of the next line."""
        self._next_number += len(self.of_row)
        self.of_row = []
        return self._next_number

    def give_back(self) -> None:
        """Read the lines of this row again, all but the first."""
        self._waiting.extendleft(reversed(self.of_row[1:]))
        del self.of_row[1:]

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._waiting.popleft() if self._waiting else next(self._lines)
        if not self.of_row:
            line = line.removeprefix(BYTE_ORDER_MARK)
        self.of_row.append(line)
        return line


def _odd_quote(seen: str) -> RowError:
    what = "有一个引号没有配对，请去掉它或补上另一个"
    return RowError("", f"{what}（{seen}）", what)


# ---- Lines that are rows of their own ----


def usual_row(sample: Sequence[str], delimiter: str) -> UsualRow | None:
    """What the rows of a table have in common by its first lines; None if no line has the delimiter."""
    lines = sample[:_JUDGED_LINES]
    rows = _single_lines(lines, delimiter)
    few = len(rows) < _FEWEST_SINGLE * len(lines)
    rows = [_cells_of_line(line, delimiter) for line in lines] if few else rows
    widths = Counter(len(cells) for cells in rows if len(cells) > 1)
    if not widths:
        return None
    width = widths.most_common(1)[0][0]
    columns = list(zip(*(cells for cells in rows if len(cells) == width), strict=True))
    repeated = [_repeated(column) for column in columns]
    again = [sum(cell in values for cell in column) for column, values in zip(columns, repeated, strict=True)]
    best = max(range(width), key=lambda at: (again[at], -len(repeated[at])))
    if again[best] >= _LEAST_SHARE * len(columns[best]):
        return UsualRow(width, best, repeated[best] if few else frozenset(filter(None, columns[best])))
    numbered = (at for at, column in enumerate(columns) if _nearly_all(list(map(_is_number, column[1:]))))
    return UsualRow(width, next(numbered, None))


def _single_lines(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    """The cells of the rows that are one line each, so that nothing hidden in a cell counts."""
    rows, given = [], _Lines(lines, 1)
    reader = csv_reader(given, TableLayout(delimiter))
    while True:
        given.begin_row()
        try:
            cells = next(reader)
        except StopIteration:
            return rows
        except csv.Error:
            continue
        if len(given.of_row) == 1:
            rows.append([cell.strip() for cell in cells])


class _Judge:
    """Tells the rows of a table that its quotation marks keep together from those that they hide.

    Attributes:
        layout: of the table; it has a usual row.
        recent: what the rows before have in the column that tells most.
        after_broken: whether the rest of a row that could not be read may still come.
    """

    def __init__(self, layout: TableLayout) -> None:
        self.layout, self.recent, self.after_broken = layout, deque(maxlen=_RECENT_ROWS), False

    def is_usual(self, cells: list[str]) -> bool:
        """Whether a row of one line is what it seems, without another look at the line."""
        width, column, _ = self.layout.usual
        if self.after_broken or len(cells) != width:
            return False
        if column is not None:
            self.recent.append(cells[column].strip())
        return True

    def verdict(self, cells: list[str] | RowError, lines: Sequence[str]) -> Literal["rows", "doubt", "rest"] | None:
        """What is wrong with a row that was read from these lines; None if nothing is, or only what its error says.

        ``rows``: each line is a row, and there is a quotation mark too many or too few in the first. ``doubt``: this
        may be so. ``rest``: it is the end of the row before, which could not be read.
        """
        broken, after_broken = isinstance(cells, RowError), self.after_broken
        self.after_broken = broken
        if len(lines) > 1:
            verdict = self._verdict_on_many(lines, broken=broken)
            self.after_broken = broken and verdict is None
            return verdict
        if broken or len(cells) != self.layout.usual.width:
            self.after_broken = broken or after_broken
            return None
        return "rest" if after_broken and lines[0].count('"') % 2 else None

    def _verdict_on_many(self, lines: Sequence[str], *, broken: bool) -> Literal["rows", "doubt"] | None:
        """`verdict` on a row of several lines."""
        width, column, values = self.layout.usual
        rows = [cells if len(cells) == width else None for cells in (_split(line, self.layout) for line in lines)]
        if broken:  # the mark in the last line may open a cell that goes on, or stand in one that ends
            rows.pop()
        alike = _nearly_all([cells is not None for cells in rows])
        # A whole cell: its text goes on into the last line, or has marks of its own, which are doubled.
        if not broken and (not alike or rows[-1] is None or any('""' in line for line in lines)):
            return None
        found = [cells[column] for cells in rows if cells is not None] if column is not None else []
        is_usual = _is_number if values is None else self._known(found).__contains__
        usual = sum(map(is_usual, found))
        if broken:  # nothing is lost by reading the lines again
            return "rows" if 2 * usual >= len(rows) or (alike and len(rows) >= _FEW_LINES) else None
        if column is None:
            return "doubt" if len(rows) >= _LONG else None
        if usual < (0.9 if len(rows) >= _LONG else 1) * len(rows):
            return None
        in_words = values is not None and not all(map(_is_number, found))
        return "rows" if in_words or len(rows) >= _FEW_LINES else "doubt"

    def _known(self, found: Sequence[str]) -> frozenset[str]:
        """The values that occur in the first rows and in those before.

        Of many lines that have such values, a few other values that they have again and again are known, too: in a
        table that is sorted by its labels, each comes as something new.
        """
        known = self.layout.usual.values.union(self.recent)
        own = _repeated(found)
        some = sum(value in known for value in found) >= _SOME * len(found)
        return known | own if some and len(found) >= _LONG and len(own) <= len(found) // 5 else known


def _split(line: str, layout: TableLayout) -> list[str]:
    """The cells of a line by itself: at each delimiter if that makes a row, even if a quotation mark is open."""
    cells = [cell.strip().strip('"') for cell in line.strip("\r\n").split(layout.delimiter)]
    return cells if len(cells) == layout.usual.width else _cells_of_line(line, layout.delimiter)


def _cells_of_line(line: str, delimiter: str) -> list[str]:
    """The cells of a line by itself, where quotation marks may enclose them."""
    cells = next(csv.reader([line.strip("\r\n").replace("\r", " ")], delimiter=delimiter), [])
    return [cell.strip() for cell in cells]


def _is_number(cell: str) -> bool:
    return NUMBER.fullmatch(cell) is not None


def _repeated(values: Iterable[str]) -> frozenset[str]:
    return frozenset(value for value, count in Counter(values).items() if value and count > 1)


def _nearly_all(alike: Sequence[bool]) -> bool:
    return sum(alike) >= (0.9 * len(alike) if len(alike) >= _LONG else len(alike))
