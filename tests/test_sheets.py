"""Excel files become the rows that the same table has as a CSV."""

from __future__ import annotations

import datetime
import re
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import transfer_classification_data
from sft.data.arguments import ReadOptions
from sft.data.formats import recognise
from sft.data.readers import read_rows
from sft.data.sheets import is_sheet, read_sheet, sheet_cells, sheet_header
from sft.errors import InputError, RowError

openpyxl = pytest.importorskip("openpyxl", reason="needs requirements-excel.txt")

HEADER = ["text", "label"]
SHEET = "xl/worksheets/sheet1.xml"
# What XML can hold; openpyxl refuses control characters, and "_x000D_" is how Excel writes one.
CELL = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="_=#\ufffe\uffff"), min_size=1)


def workbook(path: Path, *sheets: list[list[object]], hidden: tuple[int, ...] = ()) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for at, rows in enumerate(sheets):
        sheet = book.create_sheet(f"表{at + 1}")
        for row in rows:
            sheet.append(row)
        if at in hidden:
            sheet.sheet_state = "hidden"
    book.save(path)
    return path


def change_part(path: Path, part: str, change: Callable[[bytes], bytes | None]) -> None:
    """Change one of the files in a workbook; None leaves it out."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts[part] = change(parts[part])
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            if content is not None:
                archive.writestr(name, content)


def rows_of(path: Path) -> list:
    return [(number, row) for number, _, row in read_sheet(path)]


def test_rows_are_named_by_the_header_and_numbered_as_in_the_sheet(tmp_path):
    path = workbook(tmp_path / "a.xlsx", [HEADER, ["很好", "好评"], [None, " "], ["太差", "差评"], [None, None]])
    assert is_sheet(path) and sheet_header(path) == HEADER
    assert rows_of(path) == [(2, {"text": "很好", "label": "好评"}), (4, {"text": "太差", "label": "差评"})]


def test_rows_above_the_header_may_be_empty(tmp_path):
    path = workbook(tmp_path / "a.xlsx", [[], [], HEADER, ["很好", "好评"]])
    assert sheet_header(path) == HEADER and rows_of(path) == [(4, {"text": "很好", "label": "好评"})]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"), (1.0, "1"), (-3.0, "-3"), (0.5, "0.5"), (12345678901, "12345678901"), (True, "TRUE"), (None, ""),
        (datetime.date(2024, 5, 1), "2024-05-01"), (datetime.datetime(2024, 5, 1, 8, 30), "2024-05-01T08:30:00"),
        (datetime.time(8, 30), "08:30:00"), ("001", "001"), (" 前后有空 ", " 前后有空 "),
        ("两行\n的文本", "两行\n的文本"),
        ("两行_x000D_\n的文本", "两行\n的文本"), ("NaN", "NaN"), ("@某人", "@某人"),
    ],
)  # fmt: skip
def test_a_cell_is_the_text_that_a_csv_would_have(tmp_path, value, text):
    path = workbook(tmp_path / "a.xlsx", [HEADER, ["很好", value]])
    assert rows_of(path) == [(2, {"text": "很好", "label": text})]


@settings(max_examples=30)
@given(st.lists(st.tuples(CELL.filter(str.strip), CELL), min_size=1, max_size=4))
def test_any_table_of_texts_is_read_back(table):
    with TemporaryDirectory() as folder:
        path = workbook(Path(folder) / "a.xlsx", [HEADER, *map(list, table)])
        assert [row for _, row in rows_of(path)] == [{"text": text, "label": label} for text, label in table]


def test_a_formula_counts_with_its_last_value_and_is_empty_without_one(tmp_path):
    path = workbook(tmp_path / "a.xlsx", [HEADER, ["很好", "=A2"], ["太差", "=A3"]])
    saved = '<c r="B2" t="str"><f>A2</f><v>好评</v></c>'.encode()
    change_part(path, SHEET, lambda xml: re.sub(rb'<c r="B2">.*?</c>', saved, xml))
    assert [row["label"] for _, row in rows_of(path)] == ["好评", ""]


def test_an_error_value_rejects_its_row_and_names_the_column(tmp_path):
    path = workbook(tmp_path / "a.xlsx", [HEADER, ["很好", "#N/A"], ["太差", "差评"]])
    (_, bad), (_, good) = rows_of(path)
    assert isinstance(bad, RowError) and (bad.field, bad.reason) == ("B", "单元格是错误值 #N/A")
    assert good == {"text": "太差", "label": "差评"}


def test_short_rows_are_filled_and_long_ones_rejected(tmp_path):
    short, long = rows_of(workbook(tmp_path / "a.xlsx", [HEADER, ["很好"], ["太差", "差评", "备注"]]))
    assert short[1] == {"text": "很好", "label": ""}
    assert "有 3 列，表头有 2 列" in long[1].reason


def test_columns_without_a_name_are_called_by_their_number(tmp_path):
    path = workbook(tmp_path / "a.xlsx", [[None, "text", None, "label", None], [0, "很好", "甲", "好评", None]])
    assert rows_of(path) == [(2, {"第 1 列": "0", "text": "很好", "第 3 列": "甲", "label": "好评"})]


def test_rows_without_a_header_can_be_had_as_cells(tmp_path):
    path = workbook(tmp_path / "a.xlsx", [["很好", 1], [None, 0]])
    assert list(sheet_cells(path)) == [(1, ["很好", "1"]), (2, ["", "0"])]


# ---- Which sheet ----


def test_empty_and_hidden_sheets_do_not_count(tmp_path):
    table = [HEADER, ["很好", "好评"]]
    for at, sheets, hidden in ((0, ([], table, []), ()), (1, ([["选项"]], table), (0,))):
        path = workbook(tmp_path / f"{at}.xlsx", *sheets, hidden=hidden)
        assert rows_of(path) == [(2, {"text": "很好", "label": "好评"})]


def test_of_several_sheets_with_data_none_is_guessed(tmp_path):
    path = workbook(tmp_path / "a.xlsx", [HEADER, ["很好", "好评"]], [], [HEADER, ["太差", "差评"]])
    with pytest.raises(InputError, match=r"a\.xlsx：有几个工作表都有数据（表1、表3）；请把要用的一个单独另存"):
        sheet_header(path)


def test_the_size_that_a_program_wrote_wrongly_is_not_believed(tmp_path):
    path = workbook(tmp_path / "a.xlsx", [HEADER, ["很好", "好评"], ["太差", "差评"]])
    change_part(path, SHEET, lambda xml: xml.replace(b'<dimension ref="A1:B3" />', b'<dimension ref="A1"/>'))
    with zipfile.ZipFile(path) as archive:
        assert b'<dimension ref="A1"/>' in archive.read(SHEET)
    assert len(rows_of(path)) == 2


# ---- What is refused ----


@pytest.mark.parametrize("content", [b"text,label\n", b"PK\x03\x04 cut off", b"\xd0\xcf\x11\xe0 with a password", b""])
def test_a_file_that_is_no_workbook_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "a.xlsx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.xlsx：Excel 文件读不出来") as error:
        list(read_sheet(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["xl/worksheets/sheet1.xml", "xl/workbook.xml", "[Content_Types].xml"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_workbook_is_refused_in_one_line(tmp_path, part, damage):
    path = workbook(tmp_path / "a.xlsx", [HEADER, ["很好", "好评"]])
    change_part(path, part, lambda xml: None if damage == "missing" else xml[: len(xml) // 2])
    with pytest.raises(InputError, match=r"a\.xlsx："):
        list(read_sheet(path))


def test_missing_and_empty_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="没有这个文件"):
        sheet_header(tmp_path / "none.xlsx")
    with pytest.raises(InputError, match="文件是空的"):
        sheet_header(workbook(tmp_path / "a.xlsx", [], [[None]]))


@pytest.mark.parametrize(
    ("header", "said"), [(["text", "text"], "表头有重名的列（text、text）"), (["text", "#REF!"], "#REF!")]
)
def test_a_header_that_cannot_be_used_is_refused(tmp_path, header, said):
    with pytest.raises(InputError, match=r"a\.xlsx:2：表头") as error:
        sheet_header(workbook(tmp_path / "a.xlsx", [[], header, ["很好", "好评"]]))
    assert said in str(error.value)


def test_without_openpyxl_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    path = workbook(tmp_path / "a.xlsx", [HEADER])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(InputError, match=r"pip install -r requirements-excel\.txt"):
        sheet_header(path)


def test_names_of_other_files_are_no_sheets():
    assert [is_sheet(Path(f"a.{ending}")) for ending in ("xlsx", "XLSX", "xlsm", "xls", "csv")] == [True] * 3 + [
        False
    ] * 2


def test_warnings_about_what_is_not_read_stay_away(tmp_path, recwarn):
    path = workbook(tmp_path / "a.xlsx", [HEADER, ["很好", "好评"]])
    change_part(path, "xl/styles.xml", lambda xml: re.sub(rb"<cellStyles.*?</cellStyles>", b"", xml))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        openpyxl.load_workbook(path).close()
    assert seen, "openpyxl has nothing to warn of"
    assert rows_of(path) == [(2, {"text": "很好", "label": "好评"})]
    assert not recwarn.list


def test_the_header_again_is_no_row(tmp_path):
    path = workbook(tmp_path / "b.xlsx", [["文本", "标签"], ["房间好", "好"], ["文本 ", "标签"], ["早餐差", "差"]])
    rows = [str(row) if isinstance(row, RowError) else row["文本"] for _, row in rows_of(path)]
    assert rows == ["房间好", "又是一遍表头", "早餐差"]


@pytest.mark.parametrize("titles", [[["客服数据 2024"]], [["客服数据"], [], ["导出人：赵一", None]]])
@pytest.mark.parametrize("header", [["文本", "标签"], ["客户留言", "问题类别"], ["客户留言", "问题类别", None]])
def test_a_title_above_the_header_is_left_out_and_what_is_advised_works(tmp_path, titles, header):
    table = [header, *([f"退货{n}", "售后"] for n in range(3)), ["发货", "物流"]]
    path = workbook(tmp_path / "a.xlsx", [*titles, *table])
    ways = [("1", "2"), tuple(header[:2])]
    if header[0] == "文本":
        ways.append((None, None))
    else:
        with pytest.raises(InputError, match="有 '客户留言、问题类别'"):
            recognise(path, "label")
    for text, label in ways:
        source = recognise(path, "label", ReadOptions(text_column=text, label_column=label))
        assert "行没有用：客服数据" in source.describe()
        rows = [(number, row["text"], row["output"]) for number, _, row in read_rows(source)]
        first = len(titles) + 2
        assert rows == [(first + at, *row) for at, row in enumerate(map(tuple, table[1:]))]


def test_of_a_row_with_the_names_of_the_user_nothing_above_counts(tmp_path):
    rows = [["单位", "甲"], ["客户留言", "问题类别"], ["退货", "售后"]]
    path = workbook(tmp_path / "a.xlsx", rows)
    source = recognise(path, "label", ReadOptions(text_column="客户留言", label_column="问题类别"))
    assert [row["text"] for _, _, row in read_rows(source)] == ["退货"]


def test_empty_cells_are_told_without_a_column_that_the_table_does_not_have(tmp_path, capsys):
    rows = [f"订单{index}还没有到,{'物流' if index % 2 else '退款'}" for index in range(20)]
    path = tmp_path / "工单.csv"
    path.write_text("\n".join(["正文,分类", *rows, ",物流", "想退货,"]) + "\n", encoding="utf-8")
    code = transfer_classification_data.main(
        ["--input_file", str(path), "--output_file", str(tmp_path / "train.jsonl")]
    )
    told = capsys.readouterr().err
    assert code == 0
    assert "文本是空的 1 行" in told and "标签是空的 1 行" in told
    assert "output" not in told.split("拒绝的行：")[1].split("全部行号")[0] and "text：" not in told
