"""Texts with their marks on the same line: which files are taken for such, and what their lines say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sft.data.arguments import ReadOptions
from sft.data.formats import recognise, recognise_sample
from sft.data.marked import ANSWERS, marked_row, marks_of
from sft.data.readers import read_rows
from sft.data.source import Source
from sft.errors import InputError, RowError
from sft.tasks.classification import Classification
from sft.tasks.ner import Ner
from tests.test_formats import annotated, spans_of

WORD = st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5), min_size=1, max_size=4)
LATIN = st.from_regex(r"[A-Za-z][A-Za-z0-9]{0,5}", fullmatch=True)

PEOPLES_DAILY = [
    "19980101-01-001-001/m  迈向/v  充满/v  希望/n  的/u  新/a  世纪/n  ——/w  一九九八年/t  新年/t  讲话/n",
    "19980101-01-001-002/m  [青湖/ns  人民/n  电台/n]nt  和/c  江/nr  小白/nr  （/w  图片/n  １/m  张/q  ）/w",
]
FILES = {  # name: (format, lines)
    "fastText, label first": ("fasttext", ["__label__体育 昨晚 主队 取胜", "__label__交通 高铁 新线 通车"]),
    "fastText, label last": ("fasttext", ["昨晚 主队 取胜\t__label__体育", "高铁 新线 通车\t__label__交通"]),
    "fastText, a comma after the label": ("fasttext", ["__label__1 , 昨晚 主队 取胜", "__label__2 , 高铁 新线 通车"]),
    "fastText, English": (
        "fasttext",
        ["__label__sauce How much starch ?", "__label__knife __label__steel Is it sharp"],
    ),
    "toutiao": ("toutiao", [f"65{n}_!_103_!_news_sports_!_第{n}条_!_关键,词" for n in range(9)]),
    "toutiao without keywords": ("toutiao", [f"65{n}_!_103_!_news_sports_!_第{n}条" for n in range(9)]),
    "toutiao, a few bad lines": ("toutiao", [*["651_!_103_!_news_car_!_标题_!_"] * 19, "651_!_103"]),
    "inline": ("inline", ["{{org_name:青湖电视台}}讯", "无", "{{time:4月}}到{{location:青湖}}", "{{time:昨天}}没课"]),
    "YEDDA": ("yedda", ["[@赵一#PER*]到[$青湖#LOC*]", "今天没课", "[@红山#LOC*]下雨"]),
    "CHIP 2020": ("chip", ["赵一到青湖|||0    1    PER|||3    4    LOC|||", "今天没课|||"]),
    "People's Daily": ("words", PEOPLES_DAILY),
    "MSRA": ("words", ["当/o 希望/o 到/o 青湖/ns", "赵一/nr 来/o 了/o"]),
    "jieba": ("words", ["我/r 来到/v 青湖/ns 看/v 5G/eng", "他/r 是/v 赵一/nr", "好/a 的/uj 湖/n"]),
    "own labels": ("words", ["赵一/PER 到/O 了/O 青湖/LOC", "今天/O 没/O 课/O"]),
    "BIO by the word": ("words", ["青/B-LOC 湖/I-LOC 很/O 旧/O"]),
    "LTP": ("words_ltp", ["赵一/nh 昨天/nt 到/v 青湖/ns 。/wp"]),
}
PROSE = {
    "a slash": ["他说和/或都行", "输入/输出 设备", "单位：米/秒"],
    "choices": ["北京/上海 广州/深圳", "红/蓝 黑/白"],
    "English": ["read and/or write the input/output file", "he said yes/no to 3/4 of it"],
    "addresses": ["https://example.com/a", "http://example.com/b/n 见/v 此/r", "https://example.com/c"],
    "paths": ["data/train.txt", "sft/data/a.py", "a/b/c/d"],
    "dates": ["2024/5/1 晴", "2024/5/2 雨"],
    "templates": ["{{ user.name }} 您好：{{ text }}", "{% for x in y %}{{ x }}{% endfor %}", "{{ a | b }}：c"],
    "one line with braces": ["{{a:b}}"],
    "TeX": [r"\frac{{a:b}}{{c}} 与 {{d}}", r"{{x}} + {{y}} = {{z:w}}"],
    "a label in a text": ["他写 __label__ 开头的文件", "fastText 要 __label__体育 这样的 标签 在前面", "好"],
    "separators": ["一_!_二", "他说 _!_ 是分隔符", "三_!_四_!_"],
    "footnotes": ["见[@1]和[#2*]", "又见[3]#*", "[@青湖"],
    "bars": ["甲|||乙|||丙", "甲|||1|||", "a ||| b"],
    "JSON": ['{"text": "a/n b/v"}', '{"text": "{{a:b}}"}'],
    "tags of CoNLL": ["青\tB-LOC", "湖\tI-LOC"],
    "nothing": [],
}


def row(format: str, line: str) -> dict:
    found = marked_row(format, line)
    assert isinstance(found, dict), found
    return found


def labelled(format: str, line: str) -> tuple[str, str | None]:
    found = row(format, line)
    return found["text"], found["output"]


def entities(format: str, line: str) -> tuple[str, list[tuple[int, int, str]]]:
    found = row(format, line)
    return found["text"], spans_of(found)


@pytest.mark.parametrize("name", FILES)
def test_marks_are_recognised_and_refused_for_the_other_task(name):
    format, lines = FILES[name]
    lines = [line + "\n" for line in lines]
    assert marks_of(lines) == format
    (other,) = {"label", "entities"} - {ANSWERS[format]}
    source = Source(Path("raw.txt"), other, "", "lines", "utf-8")
    with pytest.raises(InputError, match=r"raw\.txt：是(分类|实体识别)的数据"):
        recognise_sample(source, lines, ReadOptions(), gold=True)


@pytest.mark.parametrize("name", PROSE)
def test_prose_and_other_formats_are_not_taken_for_marks(name):
    assert marks_of(PROSE[name]) is None


@given(st.lists(st.text(st.characters(exclude_characters="/_{\r\n"), min_size=1), min_size=1))
def test_no_text_without_marks_is_taken_for_marked(lines):
    assert marks_of([line for line in lines if line.strip()]) is None


# ---- fastText ----


@pytest.mark.parametrize(
    ("line", "text", "label"),
    [
        ("__label__体育 昨晚 主队 客场 取胜\r\n", "昨晚主队客场取胜", "体育"),
        ("昨晚 主队 取胜 。\t__label__体育", "昨晚主队取胜。", "体育"),
        ("昨晚 __label__体育 主队 取胜", "昨晚主队取胜", "体育"),
        ("__label__数码 他 买 了 Blue Lake Max 耳机", "他买了Blue Lake Max耳机", "数码"),
        ("__label__news_car , 新线 通车", "新线通车", "news_car"),
        ("__label__体育 比分 是 3 : 2", "比分是3 : 2", "体育"),
        ("__label__sauce How much does it cost ?", "How much does it cost ?", "sauce"),
        (
            "__label__体育 昨天晚上主队赢得很轻松 今天他们在客场休息",
            "昨天晚上主队赢得很轻松 今天他们在客场休息",
            "体育",
        ),
        ("__label__体育 __label__体育 主队 取胜", "主队取胜", "体育"),
        ("昨晚 主队 取胜", "昨晚主队取胜", None),
        ("__label__a-b/c 今天", "今天", "a-b/c"),
        ("提到x__label__y __label__a", "提到x__label__y", "a"),
    ],
)
def test_a_fasttext_line_is_a_text_without_segmentation_and_its_label(line, text, label):
    assert labelled("fasttext", line) == (text, label)


@given(st.lists(WORD, min_size=1), LATIN, st.sampled_from(["{label} {text}", "{text}\t{label}", "{label} , {text}"]))
def test_a_segmented_text_is_put_together_again(words, label, form):
    line = form.format(label=f"__label__{label}", text=" ".join(words))
    assert labelled("fasttext", line) == ("".join(words), label)


def test_several_labels_on_a_line_are_said_to_be_multi_label():
    error = marked_row("fasttext", "__label__体育 __label__财经 俱乐部 上市")
    assert isinstance(error, RowError) and error.field == "output"
    assert "multi-label（多标签）" in error.reason and "体育、财经" in error.reason


def test_a_label_without_a_name_is_rejected():
    assert marked_row("fasttext", "__label__ 今天").field == "output"


@pytest.mark.parametrize(("line", "field"), [("__label__体育", "text"), ("今天", "output")])
def test_conversion_rejects_a_line_without_text_or_label(line, field):
    with pytest.raises(RowError) as error:
        Classification.convert(row("fasttext", line))
    assert error.value.field == field


# ---- toutiao ----


@pytest.mark.parametrize(
    ("line", "text", "label"),
    [
        ("6551700932705387022_!_101_!_news_culture_!_京城最值得去的桥_!_桥,湖\n", "京城最值得去的桥", "news_culture"),
        ("6551_!_101_!_news_culture_!_桥！3_2_1 他说_!_", "桥！3_2_1 他说", "news_culture"),
        ("6551_!_101_!_news_culture_!_桥", "桥", "news_culture"),
        ("101_!_文化_!_桥_!_湖", "桥", "文化"),
        ("文化_!_桥", "桥", "文化"),
        ("1_!_2_!_stock_!_3000点_!_股", "3000点", "stock"),
    ],
)
def test_a_toutiao_line_is_its_title_and_the_name_of_its_class(line, text, label):
    assert labelled("toutiao", line) == (text, label)


@pytest.mark.parametrize(
    "line", ["1_!_2_!_a_!_b_!_c_!_d", "1_!_2", "标题", "1_!_2_!_一个很长很长的标题，没有类别_!_词"]
)
def test_a_toutiao_line_with_other_columns_is_rejected(line):
    assert "应如 编号_!_代码_!_类别_!_标题_!_关键词" in marked_row("toutiao", line).reason


@given(WORD, LATIN, st.sampled_from(["1_!_2_!_{}_!_{}_!_词", "7_!_{}_!_{}_!_", "1_!_2_!_{}_!_{}"]))
def test_whatever_columns_a_toutiao_file_has_label_and_title_are_the_same(title, label, form):
    assert labelled("toutiao", form.format(label, title)) == (title, label)


# ---- {{type:text}} ----


def test_inline_marks_become_entities_and_literal_line_breaks_become_real():
    line = r"{{company_name:青湖在线}}讯\n{{person_name: 赵一 }}说：{{time:12:30}}\r\n完" + "\n"
    text = "青湖在线讯\n 赵一 说：12:30\n完"
    places = [(0, 4, "company_name"), (7, 9, "person_name"), (12, 17, "time")]
    assert entities("inline", line) == (text, places)
    assert len(Ner.convert(row("inline", line))["entities"]) == 3


@given(annotated().filter(lambda pair: not set(pair[0]) & set("{}\\")))
def test_any_entities_written_inline_are_read_back(pair):
    text, spans = pair
    line, end = "", 0
    for start, stop, label in spans:
        line += f"{text[end:start]}{{{{{label}:{text[start:stop]}}}}}"
        end = stop
    assert entities("inline", line + text[end:]) == (text, spans)


@pytest.mark.parametrize(
    "line", ["{{a:{{b:青}}湖}}很旧", "{{a:青湖}}很{{旧", "青湖}}", "{{:青湖}}", "{{a:  }}", "{{青湖}}"]
)
def test_broken_or_nested_braces_reject_the_line(line):
    assert marked_row("inline", line).field == "entities"


# ---- word/tag ----


@pytest.mark.parametrize(
    ("line", "text", "spans"),
    [
        (PEOPLES_DAILY[1], "青湖人民电台和江小白（图片１张）", [(0, 6, "nt"), (7, 10, "nr")]),
        ("青湖/ns 很/o 旧/o", "青湖很旧", [(0, 2, "ns")]),
        ("赵/nr 一/nr 、/w 钱二/nr 到/v", "赵一、钱二到", [(0, 2, "nr"), (3, 5, "nr")]),
        ("记者/n 赵/nr 一/nr 钱/nr 小二/nr 摄/v", "记者赵一钱小二摄", [(2, 4, "nr"), (4, 7, "nr")]),
        ("欧阳/nr 小白/nr 和/c 赵一/nr 钱二/nr", "欧阳小白和赵一钱二", [(0, 4, "nr"), (5, 7, "nr"), (7, 9, "nr")]),
        ("[青湖/ns 同胞/n]l 和/c [大/a 湖/n]/nz", "青湖同胞和大湖", [(0, 2, "ns"), (5, 7, "nz")]),
        ("[[青湖/ns 大学/n]nt 物理/n 系/n]nt", "青湖大学物理系", [(0, 7, "nt")]),
        ("[青湖/ns 大学/n]nt [白山/ns 大学/n]nt", "青湖大学白山大学", [(0, 4, "nt"), (4, 8, "nt")]),
        ("赵一/nrf 青湖/nsf 银行/ntcb 大湖牌/nz 5G/nx", "赵一青湖银行大湖牌5G",
         [(0, 2, "nr"), (2, 4, "ns"), (4, 6, "nt"), (6, 9, "nz")]),
        ("用/v Blue/nx Lake/nx 耳机/n 1/2/m 为{wei4}/p ///w [/w", "用Blue Lake耳机1/2为//[", []),
        ("赵一/PER 到/O 青湖/LOC 白山/LOC", "赵一到青湖白山", [(0, 2, "PER"), (3, 5, "LOC"), (5, 7, "LOC")]),
        ("青/LOC 湖/LOC 很/O 旧/O", "青湖很旧", [(0, 2, "LOC")]),
        ("2/O 3/O 年/O A/ORG I/ORG 部/O", "23年AI部", [(3, 5, "ORG")]),
        ("青湖/B-ORG 银行/I-ORG 白山/B-LOC", "青湖银行白山", [(0, 4, "ORG"), (4, 6, "LOC")]),
        ("青/B-LOC 大/M-LOC 湖/E-LOC 旧/S-LOC", "青大湖旧", [(0, 3, "LOC"), (3, 4, "LOC")]),
        ("张三/人名 去/v", "张三去", [(0, 2, "人名")]),
        ("赵一/NR 到/VV 青湖/NR", "赵一到青湖", []),
        ("Zhao/NNP went/VBD home/NN", "Zhao went home", []),
        ("赵一/NOUN 来/VERB 了/PART", "赵一来了", []),
        ("\u3000/w 青湖/ns", "\u3000青湖", [(1, 3, "ns")]),
    ],
)  # fmt: skip
def test_words_with_tags_become_a_text_and_its_names(line, text, spans):
    assert entities("words", line) == (text, spans)


def test_in_the_tags_of_ltp_nt_is_a_time():
    line = "赵一/nh 昨天/nt 到/v 青湖/ns 大学/ni 。/wp"
    assert entities("words_ltp", line) == ("赵一昨天到青湖大学。", [(0, 2, "nh"), (5, 7, "ns"), (7, 9, "ni")])


@given(
    st.lists(st.tuples(WORD, st.sampled_from(["n", "v", "O", "w", "LOC", "PER-x", "组织", "ns", "nt"])), min_size=1)
)
def test_every_word_with_the_tag_of_a_name_is_an_entity(words):
    text, spans = "二字", []
    for word, tag in words:
        if tag not in ("n", "v", "O", "w"):
            spans.append((len(text), len(text) + len(word), tag))
        text += word
    assert entities("words", "二字/n " + "  ".join(f"{word}/{tag}" for word, tag in words)) == (text, spans)


@pytest.mark.parametrize(
    ("line", "field"),
    [("青湖/ns 很", "tag"), ("[青湖/ns 大学/n", "entities"), ("青湖/ns]nt", "entities"), ("青/n 湖/M-LOC", "tag"),
     ("青/S-LOC 湖/E-LOC", "tag"), ("/n", "tag"), ("青湖/", "tag")],
)  # fmt: skip
def test_a_line_whose_tags_do_not_fit_is_rejected(line, field):
    assert marked_row("words", line).field == field


# ---- YEDDA, CHIP 2020 ----


def test_marks_of_yedda_become_entities():
    line = "[@赵一#PER*] 到[$青湖#LOC*]，[x]#3*"
    assert entities("yedda", line) == ("赵一 到青湖，[x]#3*", [(0, 2, "PER"), (4, 6, "LOC")])


@given(annotated())
def test_any_entities_written_by_yedda_are_read_back(pair):
    text, spans = pair
    marked, end = "", 0
    for start, stop, label in spans:
        marked += text[end:start] + f"[@{text[start:stop]}#{label}*]"
        end = stop
    assume(not any(mark in text for mark in "[]#") and not any(text[a:b] != text[a:b].strip() for a, b, _ in spans))
    assert entities("yedda", marked + text[end:]) == (text, spans)


@pytest.mark.parametrize("line", ["[@赵一到了", "[@[@青湖#LOC*]大学#ORG*]", "赵一#PER*]到了", "[@ #PER*]到了"])
def test_broken_or_nested_marks_of_yedda_reject_the_line(line):
    assert marked_row("yedda", line).field == "entities"


def test_an_annotated_file_of_yedda_is_not_brat(tmp_path):
    path = tmp_path / "a.txt.ann"
    path.write_text("[@赵一#PER*]到[@青湖#LOC*]\n今天没课\n[@红山#LOC*]下雨\n", encoding="utf-8")
    source = recognise(path, "entities")
    assert source.format == "yedda"
    assert [row["text"] for _, _, row in read_rows(source)] == ["赵一到青湖", "今天没课", "红山下雨"]


def test_ends_of_chip_are_inclusive():
    line = "赵一到青湖|||0    1    PER|||3 4 LOC|||"
    assert entities("chip", line) == ("赵一到青湖", [(0, 2, "PER"), (3, 5, "LOC")])
    assert entities("chip", "今天没课|||") == ("今天没课", [])


@given(annotated())
def test_any_entities_written_as_in_chip_are_read_back(pair):
    text, spans = pair
    assume("|" not in text and text == text.strip())
    marks = "".join(f"{start}    {end - 1}    {label}|||" for start, end, label in spans)
    assert entities("chip", f"{text}|||{marks}") == (text, spans)


@pytest.mark.parametrize("line", ["赵一到青湖", "赵一到青湖|||0 PER|||", "赵一到青湖|||0 1 PER"])
def test_a_line_of_chip_without_whole_marks_is_rejected(line):
    assert marked_row("chip", line).field == "entities"


def test_offsets_of_chip_count_a_byte_order_mark_before_a_later_line(tmp_path):
    """The lines of the original data come from files of their own, and its offsets count their marks."""
    path = tmp_path / "train.txt"
    path.write_text("\ufeff今天没课|||\n\ufeff赵一到青湖|||1 2 PER|||4 5 LOC|||\n", encoding="utf-8")
    row = [row for _, _, row in read_rows(recognise(path, "entities"))][1]
    assert [entity["text"] for entity in Ner.convert(row)["entities"]] == ["赵一", "青湖"]
