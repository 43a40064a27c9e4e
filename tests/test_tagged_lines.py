"""Tagged files whose sentences or columns are divided in other ways. Run: pytest tests/test_tagged_lines.py"""

from __future__ import annotations

import pytest

from sft.errors import InputError, RowError
from tests.test_formats import read
from tests.test_tagged import column, texts_and_spans

LAKE = column("赵 一 到 了 青 湖 。", "B-PER I-PER O O B-LOC I-LOC O", " ")
QUOTE = column("他 说 “ 好 ！ ” 红 山 下 雨 ！ ？", "O O O O O O B-LOC I-LOC O O O O", " ")
INSIDE = column("《 去 哪 ？ 青 湖 》 真 好 。", "O B-BOOK I-BOOK I-BOOK I-BOOK I-BOOK O O O O", " ")


# ---- No blank line in the whole file ----


def test_a_file_without_a_blank_line_is_divided_at_full_stops():
    said, rows = texts_and_spans((LAKE + QUOTE + INSIDE) * 10)
    assert "没有空行" in said
    assert rows[:4] == [
        ("赵一到了青湖。", [(0, 2, "PER"), (4, 6, "LOC")]),
        ("他说“好！”", []),
        ("红山下雨！？", [(0, 2, "LOC")]),
        ("《去哪？青湖》真好。", [(1, 6, "BOOK")]),
    ], "a closing mark belongs to the sentence before it, and a mark inside an entity ends none"
    assert len(rows) == 40


def test_lines_that_blank_lines_divide_are_not_divided_at_full_stops():
    two = column("青 湖 。 红 山 。", "B-LOC I-LOC O B-LOC I-LOC O")
    said, rows = texts_and_spans(f"{two}\n" * 60)
    assert "没有空行" not in said
    assert {text for text, _ in rows} == {"青湖。红山。"}


def test_a_few_lines_without_a_blank_one_are_one_sentence():
    _, rows = texts_and_spans(LAKE + QUOTE)
    assert len(rows) == 1


def test_a_byte_order_mark_divides_beside_full_stops():
    content = (LAKE + QUOTE) * 10
    _, rows = texts_and_spans(content + "\ufeff" + content)
    assert len(rows) == 60
    assert rows[30] == rows[0]


# ---- Headings of pictures ----


def test_the_name_of_a_picture_above_a_sentence_is_no_token():
    content = "".join(f"IMGID:{number}\n{sentence}\n" for number, sentence in enumerate([LAKE, QUOTE, INSIDE]))
    said, rows = texts_and_spans(content)
    assert "IMGID 行跳过" in said
    assert [text for text, _ in rows] == ["赵一到了青湖。", "他说“好！”红山下雨！？", "《去哪？青湖》真好。"]


# ---- Commas ----


@pytest.mark.parametrize("name", ["a.txt", "a.csv"])
@pytest.mark.parametrize("header", ["", "text,label\n"])
def test_a_comma_between_token_and_tag(name, header):
    lines = column('赵 一 , 到 " 青 湖', "B-PER I-PER O O O B-LOC I-LOC", ",")
    said, rows = texts_and_spans(f"{header}{lines}\n{lines}", name)
    assert "逗号后面是标记" in said
    assert rows == [('赵一,到"青湖', [(0, 2, "PER"), (5, 7, "LOC")])] * 2


def test_a_token_that_a_table_puts_into_quotation_marks():
    lines = 'text,label\n赵,B-PER\n一,I-PER\n",",O\n"""",O\n到,O\n\n青,B-LOC\n湖,I-LOC\n'
    _, rows = texts_and_spans(lines, "a.csv")
    assert rows == [('赵一,"到', [(0, 2, "PER")]), ("青湖", [(0, 2, "LOC")])]


@pytest.mark.parametrize("line", ["1,{}", "{},x"])
def test_more_columns_between_commas_are_refused(line):
    lines = "".join(f"{line.format(token)},{tag}\n" for token, tag in [("赵", "B-PER"), ("一", "I-PER"), ("到", "O")])
    with pytest.raises(InputError, match="换过来"):
        texts_and_spans(lines * 3, "a.csv")


@pytest.mark.parametrize("separator", [" ", "\t"])
def test_a_tagged_file_may_be_called_csv(separator):
    lines = column("赵 一 到 , 青 湖 了 很 好 看 。", "B-PER I-PER O O B-LOC I-LOC O O O O O", separator)
    _, rows = texts_and_spans(f"{lines}\n" * 3, "a.csv")
    assert rows == [("赵一到,青湖了很好看。", [(0, 2, "PER"), (4, 6, "LOC")])] * 3


# ---- Schemes ----


def test_bios_marks_single_tokens_and_no_ends():
    lines = column("赵 一 到 青 湖 了 沪 好", "B-PER I-PER O B-LOC I-LOC O S-LOC O")
    said, rows = texts_and_spans(f"{lines}\n" * 3)
    assert "BIOS" in said
    assert rows == [("赵一到青湖了沪好", [(0, 2, "PER"), (3, 5, "LOC"), (6, 7, "LOC")])] * 3


def test_a_few_missing_ends_do_not_make_bioes_to_bios():
    lines = column("赵 一 到 青 湖 了 沪 好", "B-PER E-PER O B-LOC I-LOC O S-LOC O")
    source, rows = read("a.txt", f"{lines}\n" * 3 + column("青 湖 好", "B-LOC E-LOC O"), "entities")
    assert "BIOES" in source.describe()
    assert [isinstance(row, RowError) for _, _, row in rows] == [True, True, True, False]
