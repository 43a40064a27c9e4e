"""Read an Excel file (``.xlsx``) row by row as the text that a table would hold. Imports no torch.

Needs openpyxl (``requirements-excel.txt``), which is imported only here and only when such a file is read.

A file with one sheet that has data is read; of several it is not guessed which one is meant. Formulas count with the
value that Excel last saved. Cells become text as in a CSV: a whole number without ``.0``, a date in ISO form, an empty
cell as ``""``.
"""

from __future__ import annotations

import datetime
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree.ElementTree import ParseError

from sft.data.source import NumberedRow
from sft.data.tables import ERROR_CELL, column_names, header_again
from sft.errors import InputError, RowError, one_line

if TYPE_CHECKING:
    from openpyxl.cell import Cell
    from openpyxl.workbook import Workbook
    from openpyxl.worksheet.worksheet import Worksheet

_ENDINGS = (".xlsx", ".xlsm")
_ESCAPED_CONTROL = re.compile(r"_x(00[01][0-9A-Fa-f])_")  # Excel writes a carriage return in a cell as _x000D_


def is_sheet(path: Path) -> bool:
    """Whether it is an Excel file of the kind that can be read, by its name."""
    return path.suffix.lower() in _ENDINGS


def sheet_header(path: Path, titles: int = 0) -> list[str]:
    """The names of the columns: the first row that has data. A column without a name is called by its number.

    Args:
        titles: how many rows that have data stand above it.

    Raises:
        InputError: two columns have the same name; else see `sheet_cells`.
    """
    return _names(path, *next(islice(sheet_cells(path), titles, None)))


def read_sheet(path: Path, names: Sequence[str] | None = None, titles: int = 0) -> Iterator[NumberedRow]:
    """Each row as a dict by the names of the columns, with its number in the sheet. Empty rows are skipped.

    A row with more cells than there are columns, or with an error such as ``#N/A`` in a cell, is a `RowError`.

    Args:
        names: the names of the columns if the sheet has no header.
        titles: how many rows that have data stand above the header.

    Raises:
        InputError: see `sheet_header` and `header_again`.
    """
    rows = islice(sheet_cells(path), titles, None)
    first = None if names else next(rows)
    header = names or _names(path, *first)
    for number, cells in rows:
        if isinstance(cells, RowError):
            yield number, "", cells
        elif first is not None and (again := header_again(cells, first[1], f"{path}:{number}")):
            yield number, ",".join(cells), again
        elif len(cells) > len(header):
            yield number, ",".join(cells), RowError("", f"有 {len(cells)} 列，表头有 {len(header)} 列")
        else:
            padded = cells + [""] * (len(header) - len(cells))
            yield number, ",".join(padded), dict(zip(header, padded, strict=True))


def _names(path: Path, number: int, header: list[str] | RowError) -> list[str]:
    if isinstance(header, RowError):
        raise InputError(f"{path}:{number}：表头的 {header.field} 列：{header.reason}；请改成文字")
    names = column_names(header)
    if len(set(names)) < len(names):
        raise InputError(f"{path}:{number}：表头有重名的列（{one_line('、'.join(names))}）；请改成不同的名字")
    return names


def sheet_cells(path: Path) -> Iterator[tuple[int, list[str] | RowError]]:
    """The cells of each row that is not empty, without empty ones at its end, and its number in the sheet from 1.

    Raises:
        InputError: openpyxl is not installed, the file cannot be read, no sheet has data, or several have.
    """
    with _workbook(path) as workbook:
        sheet = _only_sheet(path, workbook)
        for number, row in enumerate(sheet.iter_rows(), start=1):
            cells = [_as_text(cell) for cell in row]
            while cells and not cells[-1]:
                cells.pop()
            error = next((cell for cell in row if cell.data_type == "e"), None)
            if error is not None:
                yield number, RowError(error.column_letter, f"{ERROR_CELL} {error.value}")
            elif any(cell.strip() for cell in cells):
                yield number, cells


@contextmanager
def _workbook(path: Path) -> Iterator[Workbook]:
    try:
        import openpyxl
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError as error:
        raise InputError(
            f"{path}：读 Excel 需要 openpyxl；请运行 pip install -r requirements-excel.txt，或另存为 CSV UTF-8"
        ) from error
    warnings.filterwarnings("ignore", category=UserWarning, module="openpyxl")  # of styles and the like: not used
    workbook = None
    try:
        workbook = openpyxl.load_workbook(path, read_only=True, data_only=True)
        yield workbook
    except FileNotFoundError as error:
        raise InputError(f"{path}：没有这个文件；请检查路径") from error
    except OSError as error:
        raise InputError(f"{path}：无法读取（{error.strerror}）；请先在 Excel 里关闭它") from error
    except (zipfile.BadZipFile, zlib.error, InvalidFileException, ParseError, KeyError, ValueError) as error:
        raise InputError(f"{path}：Excel 文件读不出来（损坏，或有密码）；请用 Excel 打开后另存为 CSV UTF-8") from error
    finally:
        if workbook is not None:
            workbook.close()


def _only_sheet(path: Path, workbook: Workbook) -> Worksheet:
    """The only visible sheet with data; if none is visible, the only hidden one."""
    filled = []
    for sheet in workbook.worksheets:
        sheet.reset_dimensions()  # some programs write wrong ones
        if any(cell.value is not None for row in sheet.iter_rows() for cell in row):
            filled.append(sheet)
    sheets = [sheet for sheet in filled if sheet.sheet_state == "visible"] or filled
    if not sheets:
        raise InputError(f"{path}：文件是空的；请检查下载是否完整")
    if len(sheets) > 1:
        names = one_line("、".join(sheet.title for sheet in sheets))
        raise InputError(f"{path}：有几个工作表都有数据（{names}）；请把要用的一个单独另存为一个文件")
    return sheets[0]


def _as_text(cell: Cell) -> str:
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    text = _ESCAPED_CONTROL.sub(lambda code: chr(int(code[1], 16)), str(value))
    return text.replace("\r\n", "\n").replace("\r", "\n")
