"""Files that could be read as something they are not: they are refused with advice that works, or read rightly.

Run: pytest tests/test_look_alikes.py
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest

import transfer_classification_data
import transfer_ner_data
from sft.data.arguments import ReadOptions
from sft.data.formats import recognise
from sft.data.inputs import read_file, read_stream
from sft.data.readers import read_rows
from sft.errors import InputError, RowError

ROWS = (
    ("房间很干净，服务也好", "好"),
    ("早餐太差了，再也不来", "差"),
    ("位置不错，离地铁近", "好"),
    ("隔音不好", "差"),
)
CSV = "text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS)
TAGGED = "".join(
    f"{character},{tag}\n"
    for character, tag in zip("赵一到青湖", ["B-PER", "I-PER", "O", "B-LOC", "I-LOC"], strict=True)
)


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8", newline="")
    return path


def read(path: Path, **options: str) -> list[tuple[str, str | None]]:
    rows = read_file(path, "label", ReadOptions(**options))
    return [("", row.reason) if isinstance(row, RowError) else (row["text"], row.get("output")) for row in rows]


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
        ("<!DOCTYPE html>\n<html><body>404</body></html>\n", "重新下载"),
        ("#FORMAT=WebAnno TSV 3.2\n\n#Text=赵一\n1-1\t0-1\t赵\t_\n", "CoNLL 2002"),
        ("| text | label |\n|---|:-:|\n| 房间好 | 好 |\n", "另存为 CSV"),
        (f"酒店评论,2024\n{CSV}", "删掉它上面的行"),
        (f"# 导出于 2024,赵一\n{CSV}", "删掉它上面的行"),
        (TAGGED, ".conll"),
        ("字,序号\n" + TAGGED, ".conll"),
    ],
    ids=["lfs", "html", "webanno", "markdown", "title", "comment", "tags", "tags with a header"],
)
@pytest.mark.parametrize("name", ["rows.csv", "rows.txt"])
@pytest.mark.parametrize("gold", [True, False])
def test_what_is_no_table_is_refused_with_what_to_do(tmp_path, name, content, advice, gold):
    with pytest.raises(InputError, match=advice):
        recognise(written(tmp_path, name, content), "label", gold=gold)


@pytest.mark.parametrize(
    "content",
    [
        "text,label,,\n" + "".join(f"{text},{label},,\n" for text, label in ROWS),
        "text,label,\n" + "".join(f"{text},{label}\n" for text, label in ROWS),
        "text,label\n" + "".join(f"{text},{label},,\n" for text, label in ROWS),
        "sep=;\ntext;label\n" + "".join(f"{text};{label}\n" for text, label in ROWS),
        ",text,label\n" + "".join(f"{number},{text},{label}\n" for number, (text, label) in enumerate(ROWS)),
    ],
    ids=["empty columns", "comma after the header", "commas after the rows", "sep=", "an index"],
)
@pytest.mark.parametrize("name", ["rows.csv", "rows.txt"])
def test_what_excel_and_pandas_add_to_a_table_changes_nothing(tmp_path, name, content):
    assert read(written(tmp_path, name, content)) == list(ROWS)


def test_the_line_numbers_count_the_line_above_the_header(tmp_path):
    path = written(tmp_path, "rows.csv", "sep=;\ntext;label\n甲;好;多\n")
    assert [str(row) for row in read_file(path, "label")] == ["第 3 行：有 3 列，表头有 2 列"]


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_the_header_of_a_table_that_was_put_behind_another_is_no_row(tmp_path, delimiter):
    table = CSV.replace(",", delimiter)
    *first, again, text, label, third, fourth = read(written(tmp_path, "rows.csv", table * 2))
    assert first == [text, label, third, fourth] == list(ROWS)
    assert again == ("", "第 6 行：又是一遍表头")


@pytest.mark.parametrize("again", ["\ufefftext,label", "text, label", " Text,Label", "text,label,,", '"text","label"'])
def test_the_header_again_is_known_however_it_is_written(tmp_path, again):
    path = written(tmp_path, "rows.csv", "\ufeff" + CSV + CSV.replace("text,label", again))
    assert read(path, encoding="utf-8") == [*ROWS, ("", "第 6 行：又是一遍表头"), *ROWS]


def test_files_of_lines_that_were_put_together_have_their_marks_inside(tmp_path):
    for name, one in {"rows.jsonl": '{"text": "甲", "label": "好"}\n', "rows.txt": "甲\n", "a.csv": "甲,好\n"}.items():
        path = written(tmp_path, name, f"\ufeff{one}{one}\ufeff{one}")
        assert [text for text, _ in read(path, **({} if name != "a.csv" else {"text_column": "1"}))] == ["甲"] * 3
        options = ReadOptions(text_column="text" if name == "rows.jsonl" else None)
        rows = read_stream(io.BytesIO(f"{one}{one}\ufeff{one}".encode() * 2), "label", options)
        assert name == "a.csv" or [row["text"] for row in rows] == ["甲"] * 6


@pytest.mark.parametrize("value", ["#REF!", "#NAME?", "#N/A", "#DIV/0!", "#VALUE!"])
@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_the_error_values_of_a_spreadsheet_are_neither_texts_nor_labels(tmp_path, value, delimiter):
    content = f"id,text,label\n1,{value},好\n2,乙,{value}\n{value},丙,好\n4,{value} 出错了,差\n".replace(
        ",", delimiter
    )
    path = written(tmp_path, "rows.csv", content)
    bad, unlabelled, other, about = [row for _, _, row in read_rows(recognise(path, "label"))]
    assert (bad.field, bad.reason) == ("text", f"单元格是错误值 {value}")
    assert unlabelled["text"] == "乙"
    assert unlabelled["output"] is None or unlabelled["output"].reason == bad.reason
    assert (other["text"], about["text"]) == ("丙", f"{value} 出错了"), "in a column that is not used, or in a text"


@pytest.mark.parametrize("value", ["nan", "NaN", "<NA>", "NaT"])
def test_what_pandas_writes_for_a_missing_text_is_no_text_and_short_texts_are_some(tmp_path, value):
    short = ["None", "null", "nan 是什么", "NA", "无", "Nan", "#1", "0"]
    content = "text,label\n" + "".join(f"{text},好\n" for text in (value, *short))
    first, *others = read(written(tmp_path, "rows.csv", content))
    assert "空值" in first[1]
    assert [text for text, _ in others] == short


def test_a_second_header_with_its_columns_in_another_order_is_refused(tmp_path):
    path = written(tmp_path, "rows.csv", CSV + "label,text\n好,也好\n")
    assert "第一遍不同" in read(path)[-1][1]
    with pytest.raises(InputError, match=r"rows\.csv:6：又是一遍表头"):
        list(read_rows(recognise(path, "label")))


def test_a_nameless_column_with_values_is_no_empty_cell(tmp_path):
    assert read(written(tmp_path, "rows.csv", "text,label,\n甲,好,多\n乙,差,\n")) == [
        ("", "第 2 行：有 3 列，表头有 2 列"),
        ("乙", "差"),
    ]


@pytest.mark.parametrize(
    "title", ["酒店评论,", "酒店评论", "# 导出于 2024", "酒店评论\n\n2024 年", '"酒店评论\n2024"']
)
@pytest.mark.parametrize("name", ["rows.csv", "rows.txt"])
@pytest.mark.parametrize("delimiter", [",", ";"])
def test_a_title_above_the_header_is_left_out_and_named(tmp_path, title, name, delimiter):
    path = written(tmp_path, name, f"{title}\n{CSV}".replace(",", delimiter))
    assert read(path) == list(ROWS)
    assert "行没有用：" in recognise(path, "label").describe()


UNUSUAL = CSV.replace("text,label", "客户留言,问题类别")
NAMED = {"text_column": "客户留言", "label_column": "问题类别"}
NUMBERED = {"text_column": "1", "label_column": "2"}


@pytest.mark.parametrize("title", ["2024年客服数据\n", "2024年客服数据,\n导出人：赵一,\n"])
def test_what_is_advised_for_a_title_above_unusual_names_works(tmp_path, title):
    path = written(tmp_path, "rows.csv", title + UNUSUAL)
    with pytest.raises(InputError, match=r"有 '客户留言、问题类别'.*--text_column") as told:
        recognise(path, "label")
    assert "没有 --text_column" not in str(told.value)
    for options in (NAMED, NUMBERED):
        assert read(path, **options) == list(ROWS)


def test_the_names_that_the_user_gives_say_which_row_is_the_header(tmp_path):
    path = written(tmp_path, "rows.csv", f"客服数据,2024\n导出人,赵一\n{UNUSUAL}")
    assert read(path, **NAMED) == list(ROWS)


@pytest.mark.parametrize(
    "content",
    ["房间好,\n早餐差,差\n位置好,好\n隔音差,差\n房间大,好\n", "text\n甲,乙\n丙,丁\n"],
    ids=["a first row without a label", "a text with commas"],
)
def test_a_first_row_with_one_cell_is_not_always_a_title(tmp_path, content):
    source = recognise(written(tmp_path, "rows.csv", content), "label", ReadOptions(text_column="1"), gold=False)
    assert "没有用" not in source.describe()


TWO_READINGS = {
    "tsv": [
        "房间很脏\t差\n早餐太差了\t差\n位置不错\t好\n",
        "text\n房间很干净\n早餐太差了\n",
        "# 注释\n1\t赵\tNOUN\n2\t一\tNOUN\n",
    ],
    "csv": [
        "1,房间很干净\n0,早餐太差了\n1,位置不错\n0,隔音不好\n",
        "房间很干净|好\n早餐太差了|差\n位置不错|好\n隔音差|差\n",
    ],
    "conll": ["赵 B-PER\n一 I-PER\n到 O\n青 B-LOC\n湖 I-LOC\n\n他 O\nend\n"],
}


@pytest.mark.parametrize(
    ("format", "content"), [(name, content) for name in TWO_READINGS for content in TWO_READINGS[name]]
)
@pytest.mark.parametrize("from_stream", [False, True])
def test_lines_to_predict_that_could_be_a_table_are_asked_about_and_both_answers_work(
    tmp_path, format, content, from_stream
):
    answers = "entities" if format == "conll" else "label"

    def rows(options: ReadOptions) -> list:
        if from_stream:
            return list(read_stream(io.BytesIO(content.encode()), answers, options))
        return list(read_file(written(tmp_path, "rows.txt", content), answers, options))

    with pytest.raises(InputError, match=f"--format {format}，每行是一段文本请加 --format lines"):
        rows(ReadOptions())
    assert [row["text"] for row in rows(ReadOptions(format="lines"))] == content.splitlines()
    if not content.startswith("#"):
        assert any(isinstance(row, dict) for row in rows(ReadOptions(format=format)))


@pytest.mark.parametrize(
    "content",
    [
        "今天好,明天也好\n后天,不知道\n再说,吧\n走,了\n",
        "第一\t段\n第二段\n第三段\n",
        "他说 O\n维生素 B-12\n",
        "text\n",
    ],
    ids=["a comma in each line", "one tab", "tags at the end", "one word"],
)
def test_texts_are_not_asked_about(tmp_path, content):
    assert [text for text, _ in read(written(tmp_path, "rows.txt", content))] == content.splitlines()


def converted(script, tmp_path: Path, capsys, *lines: str) -> tuple[int, str]:
    path = written(tmp_path, "rows.jsonl", "".join(lines))
    code = script.main([f"--input_file={path}", f"--output_file={tmp_path}/out_train.jsonl", "--test_ratio=0.3"])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["昨天,赢了\r比赛\n今天,又输\n", "一,二\n" + "长" * 200_000 + ",三\n", "__label_\r_好 的\n我们\n"]
)
@pytest.mark.parametrize("answers", ["label", "entities"])
def test_lines_that_no_table_can_have_are_read_or_refused_in_one_line(tmp_path, content, answers):
    path = tmp_path / "rows.txt"
    path.write_text(content, encoding="utf-8", newline="")
    for gold in (True, False):
        try:
            assert recognise(path, answers, gold=gold)
        except InputError as error:
            assert "\n" not in str(error)


def test_rows_with_a_label_each_are_no_classification(tmp_path, capsys):
    lines = [f'{{"text": "第{n}句", "output": "人名：赵{n}"}}\n' for n in range(30)]
    code, said = converted(transfer_classification_data, tmp_path, capsys, *lines)
    assert code == 2
    assert "30 种标签" in said
    lines = [f'{{"text": "第{n}句", "output": "第{n % 10}类"}}\n' for n in range(30)]
    assert converted(transfer_classification_data, tmp_path, capsys, *lines)[0] == 0


@pytest.mark.parametrize("joined", ["体育|财经", "体育#财经", "体育、财经"])
def test_a_label_that_joins_a_known_one_with_another_is_several_labels(tmp_path, capsys, joined):
    labels = ["体育", joined, "军事"] * 4
    lines = [f'{{"text": "第{n}句", "label": "{label}"}}\n' for n, label in enumerate(labels)]
    code, said = converted(transfer_classification_data, tmp_path, capsys, *lines)
    assert (code, "multi-label" in said) == (2, True)


def test_a_list_of_entities_beside_relations_is_not_a_group_of_a_label(tmp_path, capsys):
    entities = '{"entities": [{"label": "PER", "start_offset": 0, "end_offset": 2}], "relations": []}'
    lines = [f'{{"text": "赵一第{n}次来", "label": {entities}}}\n' for n in range(4)]
    code, said = converted(transfer_ner_data, tmp_path, capsys, *lines)
    assert (code, "PER 4" in said) == (0, True)
    lines = [line.replace('"entities"', '"groups"').replace(', "relations": []', "") for line in lines]
    code, said = converted(transfer_ner_data, tmp_path, capsys, *lines)
    assert code == 2
    assert "却放在 'groups' 下面" in said


@pytest.mark.parametrize(
    ("format", "content", "advice"),
    [
        ("xlsx", '{"text": "甲"}\n', "不是 Excel"),
        ("brat", '{"text": "甲"}\n', "不是 brat"),
        ("jsonl", "甲\n乙\n", "不像 JSON"),
        ("doccano", "text,label\n甲,好\n", "不像 JSON"),
        ("csv", '{"text": "甲", "label": "好"}\n', "不是表格"),
        ("conll", '{"text": "甲"}\n', "不像带标记"),
    ],
)
def test_a_format_that_the_file_is_not_in_is_refused(tmp_path, format, content, advice):
    with pytest.raises(InputError, match=advice):
        recognise(written(tmp_path, "rows.jsonl", content), "entities", ReadOptions(format=format), gold=False)


def test_a_text_may_begin_with_a_brace(tmp_path):
    content = "{{PER:赵一}}走了\n{好}\n{\n"
    rows = list(read_file(written(tmp_path, "rows.txt", content), "label", ReadOptions(format="lines")))
    assert [row["text"] for row in rows[:2]] == ["{{PER:赵一}}走了", "{好}"]
    assert isinstance(rows[2], RowError), "it may be the beginning of an indented object"


def test_a_number_names_a_column_and_the_header_stays_a_header(tmp_path):
    path = written(tmp_path, "rows.tsv", "label\ttext_a\n好\t房间很干净\n差\t早餐太差了\n")
    assert read(path, text_column="2", label_column="1") == [("房间很干净", "好"), ("早餐太差了", "差")]


def test_a_table_of_characters_is_refused_even_if_its_columns_are_named(tmp_path):
    path = written(tmp_path, "rows.csv", "id,Word,Tag\n" + "".join(f"1,{line}\n" for line in TAGGED.splitlines()))
    with pytest.raises(InputError, match=r"\.conll"):
        recognise(path, "entities", ReadOptions(text_column="Word", label_column="Tag"))
    codes = written(tmp_path, "codes.csv", "text,label\n甲,B-12\n乙,S-3\n丙,B-12\n")
    assert read(codes, text_column="text") == [("甲", "B-12"), ("乙", "S-3"), ("丙", "B-12")], "or codes of classes"


def test_names_of_columns_with_line_breaks_in_them_are_told_on_one_line(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('"a\nb",文本,"a\nb"\n1,甲队赢了比赛,体育\n2,乙股涨了一成,财经\n', encoding="utf-8")
    with pytest.raises(InputError, match="重名") as told:
        read(path)
    assert len(str(told.value).splitlines()) == 1
