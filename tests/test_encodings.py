"""Encodings: real text in any of them is read right or the user is asked; never another text with exit 0."""

from __future__ import annotations

import io
import json
import logging
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from checkout import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

import transfer_classification_data
from sft.console import say_once
from sft.data.arguments import ENCODINGS, ReadOptions, conversion_parser
from sft.data.encodings import SAMPLE_BYTES, detect_encoding, encoding_of, usual_name
from sft.data.formats import recognise
from sft.data.inputs import read_file, read_stream
from sft.data.readers import read_rows
from sft.errors import InputError

CASES = REPOSITORY.parent / "shared" / "cases"
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

SENTENCES = {
    "simplified": [
        "这家酒店的位置很好，离地铁站只有五分钟，早餐也不错。",
        "昨天他们坐火车到北京去看了一场足球比赛，回来得很晚。",
        "手机用了三个月就坏了，客服说不在保修范围内，太失望了！",
        "患者三天前开始发热，伴有咳嗽和胸闷，既往有高血压病史。",
        "法院认为，被告未按合同约定支付货款，应当承担违约责任。",
        "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
    ],
    "traditional": [
        "這家餐廳的牛肉麵很好吃，可是服務態度不太好，等了很久。",
        "昨天他們坐捷運到臺北去看了一場棒球比賽，回來得很晚。",
        "手機用了三個月就壞了，客服說不在保固範圍內，太失望了！",
        "政府宣布從下個月開始調整電價，工商團體表示無法接受。",
        "老師在課堂上講解這篇文章的時候，學生都聽得很認真。",
        "房間很乾淨，離車站又近，下次還會再來住。",
    ],
    "japanese": [
        "このホテルは駅から近くて、朝ごはんもとてもおいしかったです。",
        "昨日、友達と一緒に東京へ行って野球の試合を見ました。",
        "商品の説明と実際の色が違うので、返品したいと思います。",
        "会議は午後三時から始まりますので、資料を準備してください。",
    ],
    "korean": [
        "이 호텔은 역에서 가깝고 아침 식사도 아주 맛있었습니다.",
        "어제 친구와 함께 서울에 가서 야구 경기를 보았습니다.",
        "배송이 너무 늦고 상품의 품질도 설명과 달라서 실망했어요.",
        "회의는 오후 세 시에 시작하니 자료를 준비해 주세요.",
    ],
}
# How files of each language come, by the name that --encoding takes and by Python's.
WRITTEN = {
    "simplified": {"gb18030": "gb18030", "utf-8": "utf-8"},
    "traditional": {"big5": "cp950", "gb18030": "gb18030", "utf-8": "utf-8"},
    "japanese": {"shift_jis": "cp932", "euc_jp": "euc_jp", "utf-8": "utf-8"},
    "korean": {"euc_kr": "cp949", "utf-8": "utf-8"},
}
KINDS = [(language, name) for language in WRITTEN for name in WRITTEN[language]]


def written(tmp_path: Path, content: bytes, name: str = "a.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def read_or_asked(content: bytes) -> str | None:
    """The text of a file's bytes; None if the user is asked."""
    try:
        encoding = encoding_of(content, "文件")
    except InputError as error:
        assert "\n" not in str(error)
        assert "--encoding" in str(error)
        return None
    return content.decode(encoding, errors="replace")


# ---- Never silently wrong ----


@pytest.mark.parametrize(("language", "name"), KINDS)
def test_a_short_file_of_real_sentences_is_read_right(language, name):
    text = "".join(sentence + "\n" for sentence in SENTENCES[language][:3])
    content = text.encode(WRITTEN[language][name])
    assert content.decode(encoding_of(content, "文件")) == text
    assert usual_name(encoding_of(content, "文件")) == name


@given(st.data())
def test_any_piece_of_real_text_is_read_right_or_asked_about(data):
    """Pieces of four characters and more, alone, in JSON lines and among English: the fewer bytes, the more doubt."""
    language, name = data.draw(st.sampled_from(KINDS))
    pieces = []
    for sentence in data.draw(st.lists(st.sampled_from(SENTENCES[language]), min_size=1, max_size=4)):
        start = data.draw(st.integers(0, len(sentence) - 4))
        pieces.append(sentence[start : data.draw(st.integers(start + 4, len(sentence)))])
    frame = data.draw(
        st.sampled_from(["{}\n", '{{"text": "{}", "label": "good"}}\r\n', "OK,{},the product is fine\n"])
    )
    text = "".join(map(frame.format, pieces))
    assert read_or_asked(text.encode(WRITTEN[language][name])) in (text, None)


@given(st.text(st.sampled_from([chr(code) for code in range(0x4E00, 0x9FA6)]), min_size=1))
def test_any_ideographs_are_read_right_or_asked_about(text):
    for encoding in ("utf-8", "gb18030"):
        assert read_or_asked(f'{{"text": "昨天他们到北京去了{text}"}}\n'.encode(encoding)) in (
            f'{{"text": "昨天他们到北京去了{text}"}}\n',
            None,
        )


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\r\x1b", min_codepoint=1)))
def test_any_text_with_chinese_in_utf8_is_utf8(text):
    assert encoding_of(f"北京\n{text}\n上海\n".encode(), "文件") == "utf-8"


@pytest.mark.shared
@pytest.mark.parametrize("encoding", ["gb18030", "utf-16-le", "utf-16-be", "utf-8"])
@pytest.mark.parametrize(
    ("name", "fewest_read"), [("ner/ccfbdci.jsonl", 0.99), ("classification/court_test.jsonl", 1.0)]
)
def test_three_lines_of_real_data_are_read_and_never_wrong(name, fewest_read, encoding):
    if not (SHARED_DATA / name).is_file():
        pytest.skip(f"no real data in {SHARED_DATA}")
    with (SHARED_DATA / name).open(encoding="utf-8", newline="") as file:
        lines = list(islice(file, 900))
    texts = ["".join(lines[start : start + 3]) for start in range(0, 900, 3)]
    read = [read_or_asked(text.encode(encoding)) for text in texts]
    assert {"wrong" if found not in (text, None) else "" for found, text in zip(read, texts, strict=True)} == {""}
    assert sum(found is not None for found in read) >= fewest_read * len(texts)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Отличный товар, быстрая доставка, всем советую.\n", "cp1251"),
        ("Отличный товар, быстрая доставка, всем советую.\n", "koi8-r"),
        ("สินค้าดีมาก ส่งเร็ว คุณภาพดี ราคาไม่แพง แนะนำเลยครับ\n", "tis-620"),
        ("Le café était fermé à cause de la grève.\n", "cp1252"),
        ("Das Frühstück war gut, aber das Zimmer zu klein für fünf Gäste.\n", "cp1252"),
        ("El niño comió una manzana en el jardín de su tía.\n", "cp1252"),
        ("Zażółć gęślą jaźń, źródło świeże\n", "cp1250"),
    ],
)
def test_other_alphabets_are_never_read_as_chinese(text, encoding):
    assert read_or_asked(text.encode(encoding)) is None


def test_random_bytes_are_no_text():
    assert read_or_asked(bytes(byte * 7919 % 128 + 128 for byte in range(1, 2000))) is None


def test_in_doubt_the_question_shows_both_readings(tmp_path):
    path = written(tmp_path, "試驗".encode("big5"))
    with pytest.raises(InputError) as error:
        detect_encoding(path)
    assert "試驗" in str(error.value) and "按 BIG5 是" in str(error.value)
    assert detect_encoding(path, "big5") == "cp950"


# ---- UTF-8 ----


def test_a_gbk_text_that_happens_to_be_valid_utf8_is_asked_about_or_read_right():
    assert "一些".encode("gbk").decode("utf-8") == "һЩ"  # Cyrillic
    assert read_or_asked("一些\n".encode("gbk")) in ("一些\n", None)
    assert read_or_asked("一些学生和一些老师\n一些\n".encode("gbk")) == "一些学生和一些老师\n一些\n"


@pytest.mark.parametrize("text", ["café", "A·B", "5 × 3", "Ünïcödé", "10 °C", "«да»", "Привет, мир", "¡", "\x85"])
def test_a_few_two_byte_characters_of_utf8_are_utf8(text):
    assert encoding_of(f"id,text\n1,{text}\n".encode(), "文件") == "utf-8"


def test_a_file_of_utf8_and_gbk_lines_is_refused(tmp_path):
    lines = [sentence.encode("gb18030") for sentence in SENTENCES["simplified"]]
    lines[1] = SENTENCES["simplified"][1].encode()
    with pytest.raises(InputError, match="有的行是 UTF-8，有的行是 GB18030"):
        detect_encoding(written(tmp_path, b"\n".join(lines)))


def test_quotation_marks_of_windows_in_english_are_no_chinese():
    content = "It’s “fine” – really…\n".encode("cp1252")
    assert content.decode(encoding_of(content, "文件")) == "It’s “fine” – really…\n"


# ---- Long files ----


def test_chinese_after_a_megabyte_of_ascii_is_found(tmp_path):
    english = b"id,text\n" + b"1,all of this is English\n" * 60_000
    assert len(english) > SAMPLE_BYTES
    for name, encoding in (("gb18030", "gb18030"), ("big5", "cp950")):
        language = "simplified" if name == "gb18030" else "traditional"
        chinese = "".join(f"2,{sentence}\n" for sentence in SENTENCES[language]).encode(encoding)
        assert detect_encoding(written(tmp_path, english + chinese, "a.csv")) == encoding
    assert detect_encoding(written(tmp_path, english, "a.csv")) == "utf-8"


def test_one_chinese_line_that_begins_in_the_megabyte_before_is_found(tmp_path):
    start = b'{"text": "' + b"x" * (SAMPLE_BYTES - 5)
    path = written(tmp_path, start + SENTENCES["traditional"][0].encode("cp950") + b'"}\n')
    assert detect_encoding(path) == "cp950"


def test_detection_takes_no_time(tmp_path):
    for encoding, limit_seconds in (("gb18030", 0.3), ("utf-8", 0.1)):
        text = "".join(f"{number},{sentence}\n" for number in range(8_000) for sentence in SENTENCES["simplified"])
        path = written(tmp_path, text.encode(encoding))
        seconds = []
        for _ in range(3):
            started = time.process_time()
            assert detect_encoding(path) == encoding
            seconds.append(time.process_time() - started)
        assert min(seconds) < limit_seconds


# ---- UTF-16 ----


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16"])
@pytest.mark.parametrize("chosen", ["auto", "utf-16"])
@pytest.mark.parametrize("language", SENTENCES)
def test_utf16_is_read_with_a_mark_and_without(tmp_path, encoding, chosen, language):
    texts = SENTENCES[language]
    table = written(tmp_path, ("text,label\n" + "".join(f"{text},A\n" for text in texts)).encode(encoding), "a.csv")
    rows = [row for _, _, row in read_rows(recognise(table, "label", ReadOptions(encoding=chosen)))]
    assert [row["text"] for row in rows] == texts
    lines = written(tmp_path, "".join(f"{text}\n" for text in texts).encode(encoding))
    assert [row["text"] for row in read_file(lines, "label", ReadOptions(encoding=chosen))] == texts
    stream = io.BytesIO(lines.read_bytes())
    assert [row["text"] for row in read_stream(stream, "label", ReadOptions(encoding=chosen))] == texts


def test_utf32_without_a_mark_is_refused(tmp_path):
    with pytest.raises(InputError, match="UTF-32"):
        detect_encoding(written(tmp_path, "text,label\n很好,A\n".encode("utf-32-le")))


# ---- What the user says ----


@pytest.mark.parametrize(("language", "name"), KINDS)
def test_the_advice_in_every_message_about_encodings_works(tmp_path, language, name):
    """A file that is asked about is read right with the flag that the message names."""
    for sentence in SENTENCES[language]:
        for start in range(0, len(sentence) - 1, 2):
            text = sentence[start : start + 2]
            content = text.encode(WRITTEN[language][name])
            path = written(tmp_path, content)
            if read_or_asked(content) is None:
                assert content.decode(detect_encoding(path, name)) == text


def test_other_names_of_the_encodings_are_understood():
    parser = conversion_parser("x", "", formats=(), output_file="a", labels="", other_labels="")
    names = {"GBK": "gb18030", "gb2312": "gb18030", "cp936": "gb18030", "Big5": "big5", "big5-hkscs": "big5"}
    names |= {"cp950": "big5", "UTF8": "utf-8", "UTF-16LE": "utf-16", "sjis": "shift_jis", "Shift-JIS": "shift_jis"}
    names |= {"EUC-KR": "euc_kr", "cp949": "euc_kr", "euc-jp": "euc_jp", "latin1": "cp1252"}
    for written_name, meant in names.items():
        assert parser.parse_args(["--encoding", written_name]).encoding == meant
    for name in ENCODINGS:
        assert parser.parse_args(["--encoding", name]).encoding == name


def test_an_encoding_that_is_certainly_wrong_is_refused(tmp_path):
    utf8 = written(tmp_path, "\n".join(SENTENCES["simplified"]).encode())
    for wrong in ("gb18030", "big5", "shift_jis", "euc_kr", "cp1252"):
        with pytest.raises(InputError, match="不是") as error:
            detect_encoding(utf8, wrong)
        assert "utf-8" in str(error.value)
    marked = written(tmp_path, "text\n很好\n".encode("utf-8-sig"))
    with pytest.raises(InputError, match="BOM"):
        detect_encoding(marked, "gb18030")


def test_characters_of_hong_kong_are_read_with_big5(tmp_path):
    text = "呢間餐廳啲嘢真係好好食，下次一定再嚟，仲會介紹俾朋友。\n"
    path = written(tmp_path, text.encode("big5hkscs"))
    assert detect_encoding(path) == detect_encoding(path, "big5") == "big5hkscs"
    assert [row["text"] for row in read_file(path, "label")] == [text.rstrip()]


def test_symbols_of_windows_big5_stay_the_usual_ones(tmp_path):
    text = "約翰‧藍儂很有名～他的歌我都會唱，真的很好聽。\n"
    path = written(tmp_path, text.encode("cp950"))
    assert [row["text"] for row in read_file(path, "label")] == [text.rstrip()]


# ---- In the scripts ----


def big5_table(tmp_path: Path) -> Path:
    rows = [f"{text},{'好評' if number % 2 else '差評'}\n" for number, text in enumerate(SENTENCES["traditional"])]
    return written(tmp_path, ("text,label\n" + "".join(rows).replace("，", " ")).encode("cp950"), "reviews.csv")


@pytest.fixture(params=["own", "case"])
def table(request, tmp_path) -> Path:
    if request.param == "own":
        return big5_table(tmp_path)
    if not (CASES / "35-big5.csv").is_file():
        pytest.skip(f"no cases in {CASES}")
    return CASES / "35-big5.csv"


def test_a_big5_table_is_converted_to_its_labels(table, tmp_path, capsys):
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    flags = ["--input_file", table, "--output_file", train, "--test_file", test, "--test_ratio", "0.34"]
    assert transfer_classification_data.main(list(map(str, flags))) == 0
    rows = [json.loads(line) for path in (train, test) for line in path.read_text(encoding="utf-8").splitlines()]
    assert Counter(row["label"] for row in rows) == {"好評": 3, "差評": 3}
    assert "BIG5" in capsys.readouterr().err


def test_prediction_reads_a_big5_table_and_says_so_once(table, caplog):
    say_once.cache_clear()
    with caplog.at_level(logging.INFO):
        rows = list(read_file(table, "label"))
        list(read_file(table, "label"))
    assert Counter(row["output"] for row in rows) == {"好評": 3, "差評": 3}
    assert sum("按 BIG5 编码读" in message for message in caplog.messages) == 1


def test_prediction_says_nothing_about_utf8(tmp_path, caplog):
    list(read_file(written(tmp_path, "很好\n".encode()), "label"))
    assert caplog.messages == []


@pytest.mark.parametrize(("language", "name"), KINDS)
def test_standard_input_is_read_in_the_encoding_it_is_in(language, name):
    texts = ["plain English first", *SENTENCES[language]]
    stream = io.BytesIO("".join(f"{text}\n" for text in texts).encode(WRITTEN[language][name]))
    assert [row["text"] for row in read_stream(stream, "label")] == texts


def test_rows_of_standard_input_keep_their_numbers():
    stream = io.BytesIO(b"plain\n\n" + '{"text": \n你好，今天的天气很好。\n'.encode("gb18030"))
    first, _, error, last = read_stream(stream, "label")
    assert (first["text"], last["text"]) == ("plain", "你好，今天的天气很好。")
    assert "第 3 行" in str(error)


@pytest.mark.parametrize("chosen", ["auto", "utf-8"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_standard_input_in_utf8_loses_its_mark_and_keeps_its_numbers(chosen, mark):
    first, error = read_stream(io.BytesIO(mark + '你好\n{"text": \n'.encode()), "label", ReadOptions(encoding=chosen))
    assert first["text"] == "你好"
    assert "第 2 行" in str(error)


def test_utf16_on_standard_input_that_is_cut_off_is_an_error_in_its_place():
    stream = io.BytesIO("你好\n再见".encode("utf-16")[:-1])
    first, error = read_stream(stream, "label")
    assert first["text"] == "你好"
    assert "不是完整的 utf-16" in str(error)


def test_a_megabyte_of_short_lines_on_standard_input_is_judged_at_once():
    content = "".join(f"{sentence}\n" for sentence in SENTENCES["simplified"] * 10_000).encode("gb18030")
    started = time.process_time()
    assert next(read_stream(io.BytesIO(content), "label"))["text"] == SENTENCES["simplified"][0]
    assert time.process_time() - started < 1
