"""Read CSV and TSV row by row. Imports no torch."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from sft.data.encodings import is_decoded
from sft.data.source import NumberedRow, Source
from sft.errors import InputError, RowError


def csv_reader(lines: Iterator[str], source: Source) -> Iterator[list[str]]:
    """The cells of each row of a CSV or TSV."""
    csv.field_size_limit(1 << 30)
    quoting = csv.QUOTE_MINIMAL if source.quoted else csv.QUOTE_NONE
    return csv.reader(lines, delimiter="\t" if source.format == "tsv" else ",", quoting=quoting, strict=True)


def read_table(source: Source) -> Iterator[NumberedRow]:
    """Each row as a dict by the names of the columns. Blank rows are skipped.

    Raises:
        InputError: a quotation mark is never closed.
    """
    with source.path.open(encoding=source.encoding, newline="", errors="surrogateescape") as file:
        reader = csv_reader(file, source)
        header = next(reader)
        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "end of data" in str(error):  # the rest of the file is in this cell: too much to skip as one row
                    raise InputError(f"{source.path}:{number}：引号没有闭合，一直到文件末尾；请补上引号") from error
                yield number, "", RowError("", f"不是合法的 CSV（{error}）")
                continue
            line = ",".join(cells)
            if not is_decoded(line):
                yield number, line, RowError("", "有解不开的字节（文件若是 GBK，请加 --encoding gb18030）")
            elif len(cells) == len(header):
                yield number, line, dict(zip(header, cells, strict=True))
            elif cells:
                yield number, line, RowError("", f"有 {len(cells)} 列，表头有 {len(header)} 列")
