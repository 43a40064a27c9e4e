"""One input file and how to read it, and what a reader gives. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from sft.data.columns import USUAL_COLUMNS, Columns
from sft.data.encodings import usual_name
from sft.data.tagging import Tagging
from sft.errors import RowError

NumberedRow = tuple[int, bytes | str, dict | RowError]  # line number from 1, the line in the file, what it says

# What a file physically is, and so which reader reads it.
Container = Literal[
    "lines", "json_lines", "document", "columnar", "table", "sheet", "tagged", "marked", "brat", "classes", "texts"
]


class UsualRow(NamedTuple):
    """What the rows of a table have in common, by which a line is known to be one.

    Attributes:
        width: how many cells it has.
        column: the column that tells most: its values occur again and again, or are numbers. None if there is none.
        values: those that occur; None for any number.
    """

    width: int
    column: int | None = None
    values: frozenset[str] | None = None


class TableLayout(NamedTuple):
    """How a CSV or TSV is written.

    Attributes:
        delimiter: what separates the cells.
        quoted: whether quotation marks enclose cells; if not, they are ordinary characters.
        names: the names of the columns if the file has no header: ``1``, ``2``, …
        lines_above: how many lines stand above the header or the first row: Excel's ``sep=;``.
        titles: how many rows that are not blank stand above the header.
        usual: of a CSV or TSV with more than one column.
    """

    delimiter: str = ","
    quoted: bool = True
    names: tuple[str, ...] | None = None
    lines_above: int = 0
    titles: int = 0
    usual: UsualRow | None = None


@dataclass(frozen=True)
class Source:
    """One input file and how to read it; `sft.data.formats.recognise` makes it.

    Attributes:
        answers: what the task's answers are, ``label`` or ``entities``.
        format: the name of the format, as ``--format`` and the summary say it.
        container: what the file physically is.
        encoding: a name that Python knows; of brat, whose files may differ, ``auto`` unless the user says it.
        table: of a table.
        tagging: of a tagged file.
        columns: the columns or fields that the user names, or that a table without a header has.
        has_options: whether the first rows have options of their own.
        ccfbdci_labels: whether nine of ten entities in the first rows of a CCFBDCI file have one of its four labels.
        taken: what was decided by evidence, in Chinese, for the summary.
        classes: of a folder of classes, each label with the source of its texts.
    """

    path: Path
    answers: str
    format: str
    container: Container
    encoding: str
    table: TableLayout | None = None
    tagging: Tagging | None = None
    columns: Columns = USUAL_COLUMNS
    has_options: bool = False
    ccfbdci_labels: bool = False
    taken: tuple[str, ...] = ()
    classes: tuple[tuple[str, Source], ...] = ()

    def describe(self) -> str:
        """Format, encoding and what was decided by evidence, for the summary."""
        encoding = "UTF-8（有 BOM）" if self.encoding == "utf-8-sig" else usual_name(self.encoding).upper()
        details = "，".join(filter(None, (self.tagging and self.tagging.describe(), *self.taken)))
        return f"{self.format}{f'（{details}）' if details else ''}{'' if encoding == 'AUTO' else f'，{encoding}'}"
