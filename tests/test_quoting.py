"""Quotation marks in tables: one too many costs one row, and cells of several lines stay whole.

Run: pytest tests/test_quoting.py
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.data.arguments import ReadOptions
from sft.data.formats import recognise
from sft.data.inputs import read_file
from sft.data.readers import read_rows
from sft.errors import InputError, RowError

LABELS = ("好评", "差评")
ROWS = [(f"第{n}条评论{'不错' if n % 2 else '很差'}", LABELS[n % 2]) for n in range(400)]


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8", newline="")
    return path


def table(rows: list, header: tuple[str, ...] = ("text", "label"), delimiter: str = ",") -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows([header, *rows])
    return file.getvalue()


def read(path: Path, **options: str) -> list[tuple[str, str] | RowError]:
    rows = read_rows(recognise(path, "label", ReadOptions(**{"encoding": "utf-8"} | options)))
    return [row if isinstance(row, RowError) else (row["text"], row["output"]) for _, _, row in rows]


def spoilt(content: str, changes: dict[int, str]) -> str:
    """The table with other lines in place of those with these numbers; ``{}`` stands for the line itself."""
    lines = content.split("\n")
    for number, line in changes.items():
        lines[number - 1] = line.replace("{}", lines[number - 1])
    return "\n".join(lines)


# ---- A quotation mark too many ----


@pytest.mark.parametrize(
    "last", ['"便宜, 但是很差",差评', '走吧",差评', '"第一段\n第二段",差评', '"甲""乙",差评'],
    ids=["a quoted cell", "a closing mark", "a cell of two lines", "marks in a cell"],
)  # fmt: skip
@pytest.mark.parametrize("at", [4, 388])
def test_an_odd_quotation_mark_costs_one_row_however_far_the_next_one_is(tmp_path, last, at):
    lost = at - 2
    rows = read(written(tmp_path, "rows.csv", spoilt(table(ROWS), {at: '"{}', 390: last})))
    (error,) = [row for row in rows if isinstance(row, RowError)]
    assert "引号没有配对" in error.reason
    assert rows.index(error) == lost
    assert rows[:lost] + rows[lost + 1 : 388] == ROWS[:lost] + ROWS[lost + 1 : 388]
    assert rows[388][1] == "差评" and "很差第" not in rows[388][0]
    assert rows[389:] == ROWS[389:]


@pytest.mark.parametrize("delimiter", [",", ";", "|"])
def test_the_column_with_the_odd_mark_and_the_order_of_the_rows_do_not_matter(tmp_path, delimiter):
    in_order = sorted(((label, text, str(n)) for n, (text, label) in enumerate(ROWS)), reverse=True)
    content = table(in_order, ("label", "text", "id"), delimiter)
    content = spoilt(
        content, {300: f'差评{delimiter}"不行{delimiter}7', 320: f'差评{delimiter}"不,；;|好"{delimiter}8'}
    )
    rows = read(written(tmp_path, "rows.csv", content))
    expected = [(text, label) for label, text, _ in in_order]
    assert isinstance(rows[298], RowError)
    assert rows[299:318] == expected[299:318] and rows[318] == ("不,；;|好", "差评")
    assert rows[:298] + rows[319:] == expected[:298] + expected[319:]


def test_labels_that_come_after_the_first_lines_are_known_by_then(tmp_path):
    rows = sorted(((f"{text}，{'长' * 300}", label) for text, label in ROWS * 10), key=lambda row: row[1])
    last = len(rows)
    found = read(written(tmp_path, "rows.csv", spoilt(table(rows), {last - 300: '"{}', last - 3: '走吧",好评'})))
    assert [type(row) for row in found].count(RowError) == 1
    assert len(found) == len(rows)


def test_prediction_reads_the_rows_below_an_odd_mark_too(tmp_path):
    path = written(tmp_path, "rows.csv", spoilt(table(ROWS), {4: '"{}', 390: '走吧",差评'}))
    rows = list(read_file(path, "label"))
    assert [isinstance(row, RowError) for row in rows] == [at == 2 for at in range(400)]
    assert str(rows[2]).startswith("第 4 行：有一个引号没有配对")


def test_numbers_at_the_ends_of_two_lines_are_in_doubt_and_neither_is_kept(tmp_path):
    numbered = [(text, str(n % 2)) for n, (text, _) in enumerate(ROWS)]
    rows = read(written(tmp_path, "rows.csv", spoilt(table(numbered), {4: '"我不去了。,1', 5: '我要回家。",0'})))
    (error,) = [row for row in rows if isinstance(row, RowError)]
    assert "分不清" in error.reason and "第 5 行" in error.reason
    assert rows == [*numbered[:2], error, *numbered[4:]]


def test_a_broken_cell_of_two_lines_is_one_rejected_row_that_says_how_far_it_goes(tmp_path):
    rows = read(written(tmp_path, "rows.csv", spoilt(table(ROWS), {4: '"第一段\n他说"好"吧",差评'})))
    assert "到第 5 行" in rows[2].reason
    assert rows[3:] == ROWS[3:]


def test_the_end_of_a_cell_whose_beginning_is_lost_is_no_row(tmp_path):
    rows = read(written(tmp_path, "rows.csv", spoilt(table(ROWS), {4: '"不清楚', 5: '"第一段\n第二段",差评'})))
    assert [isinstance(row, RowError) for row in rows[2:5]] == [True, True, False]
    assert rows[4:] == ROWS[4:]


@pytest.mark.parametrize("first", ['"text,label', 'text,"label'])
def test_an_odd_mark_in_the_header_is_told(tmp_path, first):
    with pytest.raises(InputError, match="引号"):
        read(written(tmp_path, "rows.csv", spoilt(table(ROWS), {1: first, 9: '"好,吧",差评'})))


# ---- Cells of several lines ----

CELLS = {
    "an address": "北京市,海淀区\n中关村,1 号\n100080",
    "paragraphs": "第一段，很长。\n\n第二段, 也长。\n第三段",
    "a poem": "春眠不觉晓,处处闻啼鸟\n夜来风雨声,花落知多少",
    "a long poem": "\n".join(["春眠不觉晓,处处闻啼鸟", "夜来风雨声,花落知多少"] * 10),
    "a song": "啦啦啦,啦啦啦\n" * 12 + "完",
    "a table": "品名,价格\n" + "".join(f"茶{n},{n}\n" for n in range(20)) + "完",
    "speech": '"我不去了。"\n"为什么,"他问。',
    "a line for each aspect": "优点,好评\n缺点,差评",
}


@pytest.mark.parametrize("text", CELLS.values(), ids=CELLS)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("header", [("text", "label"), ("label", "text")])
def test_a_cell_of_several_lines_stays_whole(tmp_path, text, delimiter, header):
    text = text.replace(",", "," if delimiter == "\t" else delimiter)
    rows = [*ROWS[:20], (text, "好评"), *ROWS[20:40], (text, "差评")]
    cells = rows if header[0] == "text" else [row[::-1] for row in rows]
    assert read(written(tmp_path, "rows.csv", table(cells, header, delimiter))) == rows


PIECES = st.lists(st.sampled_from(["房间", "不错", ",", "，", "。", "\n", '"', ";", "一"]), min_size=1)


@settings(deadline=None)
@given(
    st.lists(st.tuples(PIECES.map("".join).filter(str.strip), st.sampled_from(LABELS)), min_size=1, max_size=30),
    st.sampled_from([",", "\t", ";"]),
)
def test_what_a_csv_writer_writes_is_read_back(tmp_path_factory, rows, delimiter):
    path = written(tmp_path_factory.mktemp("a"), "rows.csv", table(rows, delimiter=delimiter))
    assert read(path) == rows


# ---- Tables without quoting ----


def test_speech_that_goes_on_in_the_next_row_of_a_raw_tsv_stays_two_rows(tmp_path):
    rows = [('"我不去了。', "体育"), ('我要回家。"', "交通"), *((f"赢球{n}", "体育") for n in range(5))]
    content = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows)
    assert read(written(tmp_path, "rows.tsv", content)) == rows
    (error,) = [
        row for row in read(written(tmp_path, "more.tsv", content + "多\t一\t列\n")) if isinstance(row, RowError)
    ]
    assert "有 3 列" in error.reason
    in_commas = read(written(tmp_path, "rows.csv", content.replace("\t", ",") + "堵车,交通\n"))
    assert [row for row in in_commas if not isinstance(row, RowError)] == [*rows[1:], ("堵车", "交通")]


def test_a_row_of_another_width_does_not_turn_the_marks_of_a_raw_tsv_into_quotes(tmp_path):
    rows = [('"好"他说', "好评"), *ROWS]
    content = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows) + "多\t一\t列\n"
    assert read(written(tmp_path, "rows.tsv", content))[:-1] == rows


# ---- What separates the cells ----


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
@pytest.mark.parametrize("text", ["第一段\n第二段", "一{}二"], ids=["a line break", "the delimiter"])
@pytest.mark.parametrize("options", [{}, {"text_column": "文本", "label_column": "标签"}, {"format": "csv"}])
def test_a_quoted_cell_does_not_hide_what_separates_the_cells(tmp_path, delimiter, text, options):
    rows = [*ROWS[:3], (text.replace("{}", delimiter), "好评"), *ROWS[3:10]]
    content = table(rows, ("文本", "标签"), delimiter)
    assert read(written(tmp_path, "rows.csv", content), **options) == rows
    without_header = content.partition("\n")[2]
    numbered = {"text_column": "1", "label_column": "2"}
    assert read(written(tmp_path, "bare.csv", without_header), **numbered) == rows


def test_one_row_with_an_extra_cell_does_not_hide_what_separates_them(tmp_path):
    content = table(ROWS, ("文本", "标签"), ";") + "太;多;了\n"
    *rows, error = read(written(tmp_path, "rows.csv", content))
    assert rows == ROWS and "有 3 列" in error.reason
