"""One input file and how to read it, and what a reader gives. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sft.errors import RowError

TABLES = ("csv", "tsv")

NumberedRow = tuple[int, bytes | str, dict | RowError]  # line number from 1, the line in the file, what it says


@dataclass(frozen=True)
class Source:
    """One input file and how to read it; `sft.data.formats.recognise` makes it.

    Attributes:
        answers: what the task's answers are, ``label`` or ``entities``; None for rows to predict, which are read as
            they are.
        format: csv, tsv; fudan, jsonl (labels); ccfbdci, spans, doccano, cluener, conll (entities). Rows to predict:
            csv, tsv, conll, jsonl, or lines, each a text or a JSON object.
        encoding: a name that Python knows.
        quoted: whether quotation marks in a table enclose cells; if not, they are ordinary characters.
        tag_scheme: of CoNLL: BIO, BIOES or BMES.
        text_column, label_column: the names of the two columns or JSON fields.
        options_column: the column with a classification row's own options; ``""`` if there is none.
        ccfbdci_labels: whether nine of ten entities in the first rows of a CCFBDCI file have one of its four labels.
    """

    path: Path
    answers: str | None
    format: str
    encoding: str
    quoted: bool = True
    tag_scheme: str = ""
    text_column: str = "text"
    label_column: str = "output"
    options_column: str = ""
    ccfbdci_labels: bool = False

    def describe(self) -> str:
        """Format and encoding, for the summary."""
        detail = self.tag_scheme or ("" if self.quoted else "引号按原文")
        encoding = "UTF-8（有 BOM）" if self.encoding == "utf-8-sig" else self.encoding.upper()
        return f"{self.format}{f'（{detail}）' if detail else ''}，{encoding}"
