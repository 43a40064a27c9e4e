"""Tagged files of every layout and scheme read to the right text and spans. Run: pytest tests/test_tagged.py"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.data.formats import recognise
from sft.data.readers import read_rows
from sft.data.tagged_layout import tagging_of
from sft.errors import InputError, RowError
from tests.test_formats import annotated, read, spans_of

CASES = Path(__file__).resolve().parents[1].parent / "shared" / "cases"
Spans = list[tuple[int, int, str]]


def texts_and_spans(content: str, name: str = "a.txt", **options: str) -> tuple[str, list[tuple[str, Spans]]]:
    """What the summary says of a file, and the text and the spans of each of its rows."""
    source, rows = read(name, content, "entities", **options)
    return source.describe(), [(row["text"], spans_of(row)) for _, _, row in rows]


def column(tokens: str, tags: str, separator: str = "\t") -> str:
    """Lines of tokens and tags, both separated by blanks."""
    return "".join(f"{token}{separator}{tag}\n" for token, tag in zip(tokens.split(), tags.split(), strict=True))


# ---- People's files ----


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")
@pytest.mark.parametrize(
    ("name", "said", "expected"),
    [
        ("01-seg-index.conll", "数字是序号，去掉", [
            ("青湖酒店很旧", [(0, 2, "LOC"), (2, 4, "ORG")]), ("我在红山等你", [(2, 4, "LOC")]), ("今天没课", []),
            ("赵一来了", [(0, 2, "PER")])]),
        ("16-comments.conll", "注释跳过", [
            ("青湖很旧", [(0, 2, "LOC")]), ("红山下雨", [(0, 2, "LOC")]), ("赵一来了", [(0, 2, "PER")])]),
        ("17-bilou.conll", "BILOU", [
            ("青湖很旧啊啊啊啊啊啊啊啊", [(0, 2, "LOC")]), ("这里没课，O我等你", []),
            ("沪上空气好得很呢对吧是的", [(0, 1, "LOC")]), ("今天放假", [])]),
        ("19-latin-words.conll", "补空格", [
            ("他买了Blue Lake Max耳机", [(3, 16, "PROD")]), ("我等你", []),
            ("赵一用Blue Lake", [(0, 2, "PER"), (3, 12, "PROD")]), ("今天", [])]),
        ("34-waybill-dev.txt", "每行一句", [
            ("赵一红山路5号", [(0, 2, "P"), (2, 7, "A")]), ("红山路7号钱二", [(0, 5, "A"), (5, 7, "P")]),
            ("李四青湖街1号", [(0, 2, "P"), (2, 7, "A")])]),
    ],
)  # fmt: skip
def test_files_of_people_who_asked(name, said, expected):
    source = recognise(CASES / name, "entities")
    assert said in source.describe()
    assert [(row["text"], spans_of(row)) for _, _, row in read_rows(source)][: len(expected)] == expected


PLACE = [("青湖很旧", [(0, 2, "LOC")])]
LAYOUTS = {
    "number glued to the character, two digits": (
        column("我0 在0 红0 山1 路2 一3 二4 三5 四6 五7 六8 七9 八10 10 11 00", "O " * 15 + "O"),
        "数字是序号，去掉", [("我在红山路一二三四五六七八110", [])]),
    "number glued, from 1": (column("青1 湖2 很1 旧1", "B-LOC I-LOC O O"), "数字是序号，去掉", PLACE),
    "number glued to Latin letters too": (
        column("我0 爱0 吃1 是0 w0 o1 w2 10 11 ！0", "O O O O O O O B-N I-N O"), "数字是序号，去掉",
        [("我爱吃是wow11！", [(7, 9, "N")])]),
    "running number first": ("1\t青\tB-LOC\n2\t湖\tI-LOC\n3\t很\tO\n4\t旧\tO\n", "第 1 列是序号，不用", PLACE),
    "running number, blanks": ("1 青 B-LOC\n2 湖 I-LOC\n3 很 O\n4 旧 O\n", "第 1 列是序号，不用", PLACE),
    "number of the sentence first": ("7\t青\tB-LOC\n7\t湖\tI-LOC\n7\t很\tO\n7\t旧\tO\n", "第 1 列是序号", PLACE),
    "number of the sentence, no blank lines": (
        "".join(f"{n}\t{c}\t{t}\n" for n, (c, t) in zip("000001111", zip("青湖很旧。赵一来了", [
            "B-LOC", "I-LOC", "O", "O", "O", "B-PER", "I-PER", "O", "O"], strict=True), strict=True)),
        "第 1 列是序号，变了就另起一句", [("青湖很旧。", [(0, 2, "LOC")]), ("赵一来了", [(0, 2, "PER")])]),
    "number of the token, no blank lines": (
        "1\t青\tB-LOC\n2\t湖\tI-LOC\n3\t很\tO\n4\t旧\tO\n1\t赵\tB-PER\n2\t一\tI-PER\n3\t在\tO\n4\t这\tO\n",
        "第 1 列是序号，从头数就另起一句", [("青湖很旧", [(0, 2, "LOC")]), ("赵一在这", [(0, 2, "PER")])]),
    "number of a word's character": (
        "0\t我\tO\n0\t在\tO\n0\t红\tB-LOC\n1\t山\tI-LOC\n0\t路\tI-LOC\n0\t等\tO\n0\t你\tO\n1\t们\tO\n",
        "第 1 列是序号，不用", [("我在红山路等你们", [(2, 5, "LOC")])]),
    "number of a paragraph, with names over its end": (
        "".join(f"{n}\t{c}\t{t}\n" for n, (c, t) in zip("00001111", zip("我去红山路等你们", [
            "O", "O", "B-LOC", "I-LOC", "I-LOC", "O", "O", "O"], strict=True), strict=True)),
        "第 1 列是序号，不用", [("我去红山路等你们", [(2, 5, "LOC")])]),
    "files put together, each with a byte order mark": (
        column("青 湖 很 旧", "B-LOC I-LOC O O") + "\ufeff" + column("青 湖 很 旧", "B-LOC I-LOC O O"),
        "BIO", [*PLACE, *PLACE]),
    "a byte order mark that is a token": (
        column("我 去", "O O") + "\ufeff\tO\n" + column("青 湖 很 旧", "B-LOC I-LOC O O"),
        "BIO", [("我去\ufeff青湖很旧", [(3, 5, "LOC")])]),
    "tag first": (column("B-LOC I-LOC O O", "青 湖 很 旧"), "第 1 列是标记", PLACE),
    "tag in the middle": ("青 B-LOC NR\n湖 I-LOC NR\n很 O AD\n旧 O VA\n", "第 2 列是标记", PLACE),
    "header": ("token\ttag\n" + column("青 湖 很 旧", "B-LOC I-LOC O O"), "第 1 行是表头", PLACE),
    "lower-case tags": (column("青 湖 很 旧", "b-LOC i-LOC o o"), "BIO", PLACE),
    "underscore": (column("青 湖 很 旧", "B_LOC I_LOC O O"), "BIO", PLACE),
    "label first": (column("青 湖 很 旧", "LOC-B LOC-I O O"), "标签写在前面", PLACE),
    "no prefix": (column("青 湖 很 旧", "LOC LOC O O"), "IO", PLACE),
    "no hyphen": (column("张 三 在 青 湖", "B人名 I人名 O BLOC ILOC"), "没有连字符，BLOC 照 B-LOC",
                  [("张三在青湖", [(0, 2, "人名"), (3, 5, "LOC")])]),
    "a dot for the hyphen": (column("青 湖 很 旧", "B.LOC I.LOC O O"), "没有连字符", PLACE),
    "no hyphen, label first": (column("青 湖 很 旧", "地名B 地名I O O"), "没有连字符，LOCB 照 LOC-B",
                               [("青湖很旧", [(0, 2, "地名")])]),
    "no hyphen, BMES": (column("中 国 国 籍 ， 沪", "BCONT MCONT MCONT ECONT O SLOC"), "BMES",
                        [("中国国籍，沪", [(0, 4, "CONT"), (5, 6, "LOC")])]),
    "no hyphen, a sentence a line": ("青 湖 很 旧\tBLOC ILOC O O\n今 天\tO O\n", "没有连字符",
                                     [*PLACE, ("今天", [])]),
    "labels that begin like roles": (
        column("青 湖 很 旧 书 也 是", "BRIDGE BRIDGE O O ITEM O O"), "IO",
        [("青湖很旧书也是", [(0, 2, "BRIDGE"), (4, 5, "ITEM")])]),
    "BMEWO": (column("青 湖 很 沪 中 科 院", "B-LOC E-LOC O W-LOC B-ORG M-ORG E-ORG"), "BMEWO",
              [("青湖很沪中科院", [(0, 2, "LOC"), (3, 4, "LOC"), (4, 7, "ORG")])]),
    "BMES": (column("中 国 国 籍 ， 沪", "B-CONT M-CONT M-CONT E-CONT O S-LOC"), "BMES",
             [("中国国籍，沪", [(0, 4, "CONT"), (5, 6, "LOC")])]),
    "IOB1": (column("青 湖 红 山 很 旧", "I-LOC I-LOC B-LOC I-LOC O O"), "BIO",
             [("青湖红山很旧", [(0, 2, "LOC"), (2, 4, "LOC")])]),
    "IOE2": (column("青 湖 沪 很", "I-LOC E-LOC E-LOC O"), "IOE", [("青湖沪很", [(0, 2, "LOC"), (2, 3, "LOC")])]),
    "CoNLL-2003": (
        "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\nGerman JJ B-NP B-MISC\nlamb NN I-NP O\n"
        ". . O O\n-DOCSTART- -X- -X- O\nPeter NNP B-NP B-PER\nBlackburn NNP I-NP I-PER\n", "补空格",
        [("EU rejects German lamb.", [(0, 2, "ORG"), (11, 17, "MISC")]), ("Peter Blackburn", [(0, 15, "PER")])]),
    "WNUT 17": (
        column("@paul It 's the view I do n't like . Empire State", "O O O O O O O O O O B-LOC I-LOC"), "补空格",
                [("@paul It's the view I don't like.Empire State", [(33, 45, "LOC")])]),
    "comments and a token #": (
        "# id 1\tdomain=zh\n# _ _ O\n青 _ _ B-LOC\n湖 _ _ I-LOC\n# _ _ O\n\n# id 2\n很 _ _ O\n",
                               "注释跳过", [("#青湖#", [(1, 3, "LOC")]), ("很", [])]),
    "a comment that ends like a tag": (
        "# text = vitamin B-12\n" + column("青 湖 很 旧", "B-LOC I-LOC O O"), "注释跳过", PLACE),
    "hash signs that are tokens": (column("# 青 湖 # 很", "O B-LOC I-LOC O O"), "BIO",
        [("#青湖#很", [(1, 3, "LOC")])]),
    "digits that are tokens": (column("2 0 1 9 年 ２ 0 月 张 三", "O O O O O O O O B-PER I-PER", " "), "BIO",
                               [("2019年２0月张三", [(8, 10, "PER")])]),
    "tokens with a digit": (column("A1 和 A2 都 好", "B-M O B-M O O"), "BIO",
                            [("A1和A2都好", [(0, 2, "M"), (3, 5, "M")])]),
    "words": (column("赵一 在 北京 大学 读书 。", "B-PER O B-ORG I-ORG O O"), "BIO",
              [("赵一在北京大学读书。", [(0, 2, "PER"), (3, 7, "ORG")])]),
    "labels that are numbers": (column("手 机 很 旧", "B-40 I-40 O O"), "BIO", [("手机很旧", [(0, 2, "40")])]),
    "one letter a token": (column("B l u e 好 1 2", "B-P I-P I-P I-P O O O"), "BIO", [("Blue好12", [(0, 4, "P")])]),
    "letters, with blanks as tokens": ("B B-P\nl I-P\n  I-P\nMax I-P\nPro O\n", "BIO", [("Bl MaxPro", [(0, 6, "P")])]),
    "tags that are all O": (column("我 爱 你", "O O O"), "BIO", [("我爱你", [])]),
    "a sentence a line": ("青 湖 很 旧\tB-LOC I-LOC O O\n今 天\tO O\n", "每行一句", [*PLACE, ("今天", [])]),
    "a text and its tags a line": ("青湖很旧\tB-LOC I-LOC O O\n今天\tO O\n", "每行一句", [*PLACE, ("今天", [])]),
    "a sentence a line, blanks at the edges, a comment": (
        "# id\n青 湖 很 旧 \tB-LOC I-LOC O O \n今 天 \tO O \n", "注释跳过", [*PLACE, ("今天", [])]),
    "an id before the sentence": ("1\t青 湖 很 旧\tB-LOC I-LOC O O\n2\t今 天\tO O\n", "每行一句",
        [*PLACE, ("今天", [])]),
    "waybills with the label first": (
        "text_a\tlabel\n青\x02湖\x02很\tA1-B\x02A1-I\x02O\n张\x02三\x021\tP-B\x02P-I\x02T-B\n",
                                      "每行一句", [("青湖很", [(0, 2, "A1")]), ("张三1", [(0, 2, "P"), (2, 3, "T")])]),
    "pairs": ("青/B-LOC 湖/I-LOC 很/O 旧/O\n//O 天/O\n", "每行一句", [*PLACE, ("/天", [])]),
    "words of a sentence a line": ("用 Blue Lake 耳机\tO B-P I-P O\n今天 好\tO O\n", "补空格",
                                   [("用Blue Lake耳机", [(1, 10, "P")]), ("今天好", [])]),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_reads_to_its_text_and_spans(layout):
    content, said, expected = LAYOUTS[layout]
    summary, rows = texts_and_spans(content)
    assert rows == expected
    assert said in summary


@pytest.mark.parametrize("name", ["a.tsv", "a.conll", "a.bio", "a.txt"])
def test_the_name_of_a_tagged_file_does_not_matter(name):
    for tags in ("B-LOC I-LOC O O", "O O O O"):
        assert texts_and_spans(column("青 湖 很 旧", tags), name)[1][0][0] == "青湖很旧"


@pytest.mark.parametrize(
    "lines",
    [
        ["他的血型是 O", "我的血型是 O", "血型也是 O"],
        ["维生素 B-12"],
        ["这种药是 B-12", "那种药是 S-3", "都买 O"],
        ["电池型号\tB-12", "灯泡型号\tB-12", "另一种灯泡\tI-12"],
        ["p001\tA-1", "p002\tB-1", "p003\tB-2"],
        ["p001\tA", "p002\tO", "p003\tB", "p004\tO", "p005\tA", "p006\tB"],
        ["血型 O", "血型 A", "血型 B", "血型 O"],
        ["6551700932705387022_!_101_!_news_culture_!_京城最值得你来场文化之旅_!_", "655_!_102_!_news_x_!_题目_!_"],
        ["__label__体育 今天 赢 了", "__label__军事 演 习"],
        ["text,label", "今天赢了,体育"],
        ["text\tlabel", "今天赢了\t体育", "演习\t军事"],
        ["How are you", "I am O", "Type B-1"],
        ["迈向/v 充满/v 希望/n", "新华社/nt 北京/ns"],
        ["# 标题", "# 又一个"],
        ['{"text": "一"}', '{"text": "二 O"}'],
        ["B-A " * 50_000],  # looking at each of its columns would take minutes
    ],
    ids=lambda lines: lines[0][:30],
)
def test_texts_and_tables_are_no_tagged_files(lines):
    assert tagging_of([f"{line}\n" for line in lines]) is None


# ---- In doubt ----


@pytest.mark.parametrize(
    ("content", "flag"),
    [
        (column("青7 湖2 很5 旧3", "B-LOC I-LOC O O"), "--text_column 1"),
        (column("A0 B1 C2 D0 E1", "B-M I-M I-M O O"), "--text_column 1"),
        ("doc1\t青\tB-LOC\ndoc1\t湖\tI-LOC\ndoc1\t很\tO\n", "--text_column 2"),
        ("5\ta\tB-LOC\n3\tb\tI-LOC\n9\tc\tO\n", "--text_column 2"),
        ("# x\n1\tBerlin\tB-LOC\tO\n2\tSuper\tB-OTH\tB-LOC\n3\tYorker\tI-OTH\tO\n", "--label_column 3"),
    ],
)
def test_a_layout_in_doubt_is_refused_and_the_flag_it_names_settles_it(content, flag):
    with pytest.raises(InputError, match=flag) as refusal:
        read("a.txt", content, "entities")
    assert "\n" not in str(refusal.value)
    name, number = flag.removeprefix("--").split()
    _, rows = texts_and_spans(content, **{name: number})
    first = [line.split("\t") for line in content.splitlines() if not line.startswith("#")]
    text = "".join(cells[int(number) - 1 if name == "text_column" else 1] for cells in first)
    assert [row[0].replace(" ", "") for row in rows] == [text]
    assert rows[0][1]


def test_a_named_column_may_be_a_name_in_the_header():
    content = "raw\tmark\n" + column("青 湖 很 旧", "B-LOC I-LOC O O")
    assert texts_and_spans(content, text_column="raw", label_column="mark")[1] == PLACE
    with pytest.raises(InputError, match=r"--text_column.*raw、mark"):
        read("a.txt", content, "entities", text_column="other")


def test_a_file_that_is_said_to_be_tagged_and_is_not_is_refused():
    with pytest.raises(InputError, match="不像带标记的文件"):
        read("a.txt", "今天赢了\n又输了\n", "entities", format="conll")


@pytest.mark.parametrize(
    ("rows", "field", "reason"),
    [
        ("青\tB-地 点\n湖\tI-地 点\n", "tag", "第 5 行的标记 'B-地 点'"),
        ("青\tB-地\x07点\n湖\tI-地\x07点\n", "tag", "第 5 行"),
        ("青\tE-LOC\n", "tag", "不属于 BIO"),
    ],
)
def test_a_label_that_cannot_be_one_is_a_rejected_row(rows, field, reason):
    good = column("青 湖 很", "B-LOC I-LOC O") + "\n"
    _, [_, (number, _, row), *_] = read("a.txt", good + rows + "\n" + good * 40, "entities")
    assert type(row) is RowError and row.field == field and reason in row.reason
    assert number == 5


def test_cells_of_different_length_are_a_rejected_row_with_the_line_of_the_file():
    content = "text_a\tlabel\n\n青 湖\tB-LOC I-LOC\n很 旧\tO\n今 天\tO O\n"
    _, rows = read("a.txt", content, "entities")
    assert [(number, type(row)) for number, _, row in rows] == [(3, dict), (4, RowError), (5, dict)]
    assert "2 个字（词）、1 个标记" in rows[1][2].reason


def test_a_glued_number_that_does_not_go_on_is_a_rejected_row():
    good = column("青0 湖1 很0 旧0", "B-LOC I-LOC O O") + "\n"
    _, rows = read("a.txt", good * 20 + column("红0 山5 很0", "O O O"), "entities")
    assert type(rows[-1][2]) is RowError and "'山5'" in rows[-1][2].reason


def test_one_slip_does_not_change_the_scheme():
    good = column("青 湖 很 旧", "B-LOC I-LOC O O") + "\n"
    source, rows = read("a.txt", good * 40 + column("沪 好", "S-LOC O"), "entities")
    assert source.tagging.scheme == "BIO"
    assert [type(row) for _, _, row in rows] == [dict] * 40 + [RowError]


# ---- Any sentences, any layout, any scheme ----

SCHEMES = {  # the letters of the first, the inner and the last character, and of an entity of one character
    "BIO": "BIIB", "BIOES": "BIES", "BMES": "BMES", "BMEWO": "BMEW", "BILOU": "BILU",
}  # fmt: skip


def tags_of(text: str, spans: Spans, scheme: str, *, label_first: bool = False) -> list[str]:
    begin, inside, end, single = SCHEMES[scheme]
    tags = ["O"] * len(text)
    for start, stop, label in spans:
        letters = single if stop - start == 1 else begin + inside * (stop - start - 2) + end
        tags[start:stop] = [f"{label}-{letter}" if label_first else f"{letter}-{label}" for letter in letters]
    return tags


def lines_of(cells: list[list[str]], separator: str) -> str:
    return "".join(separator.join(row) + "\n" for row in cells) + "\n"


def glued(text: str) -> list[str]:
    """Words of one, two, three … characters, each character with its number in the word."""
    numbers = itertools.chain.from_iterable(range(length) for length in itertools.count(1))
    return [f"{character}{number}" for character, number in zip(text, numbers, strict=False)]


WRITERS = {
    "tabs": lambda text, tags: lines_of([*map(list, zip(text, tags, strict=True))], "\t"),
    "blanks": lambda text, tags: lines_of([*map(list, zip(text, tags, strict=True))], " "),
    "columns between": lambda text, tags: lines_of(
        [[c, "_", "_", tag] for c, tag in zip(text, tags, strict=True)], " "),
    "comments": lambda text, tags: "# id 1\tdomain=zh\n" + lines_of(
        [[c, "_", "_", tag] for c, tag in zip(text, tags, strict=True)], " "),
    "running number": lambda text, tags: lines_of(
        [[str(number), c, tag] for number, (c, tag) in enumerate(zip(text, tags, strict=True), 1)], "\t"),
    "glued": lambda text, tags: lines_of([*map(list, zip(glued(text), tags, strict=True))], "\t"),
    "tag first": lambda text, tags: lines_of([[tag, c] for c, tag in zip(text, tags, strict=True)], "\t"),
    "sentence, \\x02": lambda text, tags: "\x02".join(text) + "\t" + "\x02".join(tags) + "\n",
    "sentence, blanks": lambda text, tags: " ".join(text) + "\t" + " ".join(tags) + "\n",
    "text and tags": lambda text, tags: text + "\t" + " ".join(tags) + "\n",
    "pairs": lambda text, tags: " ".join(f"{c}/{tag}" for c, tag in zip(text, tags, strict=True)) + "\n",
}  # fmt: skip
OPENING = (
    "他从青湖红山路来沪" * 30,
    [(n * 9 + a, n * 9 + b, "LOC") for n in range(30) for a, b in ((2, 4), (4, 7), (8, 9))],
)


@pytest.mark.parametrize("layout", WRITERS)
@settings(deadline=None, max_examples=40)
@given(st.lists(annotated(), min_size=1, max_size=5), st.sampled_from(sorted(SCHEMES)), st.booleans())
def test_any_sentences_read_back_from_any_layout_and_scheme(layout, sentences, scheme, label_first):
    sentences = [OPENING, *sentences]  # the layout is decided by what most lines show
    write = WRITERS[layout]
    content = "".join(write(text, tags_of(text, spans, scheme, label_first=label_first)) for text, spans in sentences)
    source, rows = read("a.txt", content, "entities")
    assert source.tagging.scheme == scheme
    assert [(row["text"], spans_of(row)) for _, _, row in rows] == sentences


WORD = st.text("abcXYZ019", min_size=2, max_size=4).filter(lambda word: not word.isdecimal())
UNITS = st.lists(WORD | st.sampled_from(["手", "机", "，", "。"]), min_size=1, max_size=8)


@settings(deadline=None)
@given(st.lists(UNITS, min_size=1, max_size=4), st.data())
def test_latin_words_are_joined_with_one_blank_and_nothing_else_is(sentences, data):
    lines, expected = column("他 买 了 Blue Lake 耳 机", "O O O B-P I-P O O") + "\n", []
    for units in sentences:
        start = data.draw(st.integers(0, len(units) - 1))
        tags = ["O"] * start + ["B-P"] + ["I-P"] * (len(units) - start - 1)
        lines += "".join(f"{unit}\t{tag}\n" for unit, tag in zip(units, tags, strict=True)) + "\n"
        text = units[0]
        begins = [0]
        for before, unit in itertools.pairwise(units):
            text += " " if before.isascii() and unit.isascii() else ""
            begins.append(len(text))
            text += unit
        expected.append((text, [(begins[start], len(text), "P")]))
    assert texts_and_spans(lines)[1][1:] == expected


@settings(deadline=None, max_examples=300)
@given(st.text("BIOES-_ \t\t\n\n#\x02/0129青湖LAx\x07'", max_size=80), st.sampled_from(["auto", "conll"]))
def test_whatever_looks_like_tags_is_rows_with_good_labels_or_one_line(content, format):
    try:
        source, rows = read("a.txt", content, "entities", format=format)
    except InputError as error:
        assert "\n" not in str(error)
        return
    for number, _, row in rows:
        assert 1 <= number <= content.count("\n") + 1
        if source.format == "conll" and type(row) is dict:
            assert all(label.isprintable() and not label.isspace() and " " not in label for *_, label in spans_of(row))
