"""Each format read into raw rows of the original shapes, and encodings. Run: pytest tests/test_formats.py"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sft.data.arguments import ReadOptions
from sft.data.encodings import detect_encoding
from sft.data.formats import recognise
from sft.data.readers import read_rows
from sft.errors import InputError, RowError

CHARACTER = st.characters(
    min_codepoint=0x21, max_codepoint=0x9FFF, blacklist_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]
)


@st.composite
def annotated(draw) -> tuple[str, list[tuple[int, int, str]]]:
    """A text of spans and gaps, with the spans."""
    text, spans = "", []
    for _ in range(draw(st.integers(0, 4))):
        text += draw(st.text(CHARACTER, max_size=3))
        surface = draw(st.text(CHARACTER, min_size=1, max_size=4))
        spans.append((len(text), len(text) + len(surface), draw(st.sampled_from(["LOC", "PER-x", "组织"]))))
        text += surface
    return text + draw(st.text(CHARACTER, min_size=1, max_size=3)), spans


def tags(text: str, spans: list[tuple[int, int, str]], scheme: str) -> list[str]:
    """The spans as tags, one for each character."""
    result = ["O"] * len(text)
    inside, last = {"BIO": "II", "BIOES": "IE", "BMES": "ME"}[scheme]
    for start, end, label in spans:
        result[start:end] = ["B", *inside * (end - start - 2), last][: end - start]
        if end - start == 1 and scheme != "BIO":
            result[start] = "S"
        result[start:end] = [f"{prefix}-{label}" for prefix in result[start:end]]
    return result


def read(name: str, content: str, answers: str, **options: str) -> tuple:
    """The recognised source and the rows of a file with ``content``."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content.encode())
        source = recognise(path, answers, ReadOptions(**{"encoding": "utf-8"} | options))
        return source, list(read_rows(source))


def spans_of(row: dict) -> list[tuple[int, int, str]]:
    assert all(row["text"][item["start_idx"] : item["end_idx"]] == item["entity_text"] for item in row["entities"])
    return [(item["start_idx"], item["end_idx"], item["entity_label"]) for item in row["entities"]]


@settings(deadline=None)
@given(
    st.lists(annotated(), min_size=1, max_size=5), st.sampled_from(["BIO", "BIOES", "BMES"]), st.sampled_from(" \t")
)
def test_conll_reads_back_to_the_same_spans(sentences, scheme, separator):
    # The scheme is recognised by the tags that occur, so the first sentence has one tag of each kind.
    first = {"BIO": ("B", "I", "I"), "BIOES": ("B", "I", "E"), "BMES": ("B", "M", "E")}[scheme]
    opening = "".join(f"字{separator}{prefix}-LOC\n" for prefix in first) + "\n"
    content = opening + "\n".join(
        "".join(
            f"{character}{separator}{tag}\n" for character, tag in zip(text, tags(text, spans, scheme), strict=True)
        )
        for text, spans in sentences
    )
    source, rows = read("a.txt", content, "entities", format="conll")
    assert source.tagging.scheme == scheme
    assert [(row["text"], spans_of(row)) for _, _, row in rows[1:]] == sentences


@settings(deadline=None)
@given(st.lists(annotated(), min_size=1, max_size=5))
def test_json_notations_read_back_to_the_same_spans(sentences):
    notations = {
        "ccfbdci": lambda text, spans: {"entities": [
            {"start_idx": s, "end_idx": e, "entity_text": text[s:e], "entity_label": label} for s, e, label in spans]},
        "spans": lambda text, spans: {"entities": [
            {"start": s, "end": e, "text": text[s:e], "label": label} for s, e, label in spans]},
        "doccano": lambda text, spans: {"label": [list(span) for span in spans]},
        "cluener": lambda text, spans: {"label": cluener(text, spans)},
    }  # fmt: skip
    for format, notation in notations.items():
        lines = [json.dumps({"text": text, **notation(text, spans)}, ensure_ascii=False) for text, spans in sentences]
        source, rows = read("a.jsonl", "\n".join(lines), "entities")
        if any(spans for _, spans in sentences):
            assert source.format == format
        for (text, spans), (_, _, row) in zip(sentences, rows, strict=True):
            found = [(item["start_idx"], item["end_idx"], item["entity_label"]) for item in row["entities"]]
            assert row["text"] == text and sorted(found) == spans


def cluener(text: str, spans: list[tuple[int, int, str]]) -> dict:
    labels: dict = {}
    for start, end, label in spans:
        labels.setdefault(label, {}).setdefault(text[start:end], []).append([start, end - 1])
    return labels


def test_line_numbers_are_those_of_the_file():
    _, rows = read("a.jsonl", '\n{"text": "a", "category": "", "output": "b"}\n\n{\n', "label")
    assert [number for number, _, _ in rows] == [2, 4]
    _, rows = read("a.csv", 'text,label\na,b\n"c\nd",e\nf,g\n', "label")
    assert [number for number, _, _ in rows] == [2, 3, 5]
    _, rows = read("a.txt", "\n一 O\n二 O\n\n\n三 O\n", "entities")
    assert [number for number, _, _ in rows] == [2, 6]


def test_ragged_csv_row_is_one_rejected_row():
    _, rows = read("a.csv", "text,label\na,b\nc\nd,e,f\ng,h\n", "label")
    assert [type(row) for _, _, row in rows] == [dict, RowError, RowError, dict]


@pytest.mark.parametrize(
    "header",
    [
        "text,label",
        "内容,类别",
        "content,category",
        "Text,Output",
        "sentence,标签",
        "inputs,labels",
        "留言详情,一级标签",
    ],
)
def test_usual_column_names_are_known(header):
    _, rows = read("a.csv", f"{header}\n文本,体育\n", "label")
    assert rows[0][2] == {"text": "文本", "category": None, "output": "体育"}


def test_a_label_in_brackets_is_a_label():
    """Only NER reads a cell in brackets as a list of entities."""
    _, rows = read("a.csv", "text,label\n文本,[体育]\n", "label")
    assert rows[0][2]["output"] == "[体育]"


def test_options_of_a_csv_are_read():
    content = "text,category,output\n文本,\"['体育', '军事']\",体育\n"
    _, rows = read("a.csv", content, "label")
    assert rows[0][2]["category"] == "['体育', '军事']"


def test_document_markers_and_middle_columns_of_conll_are_skipped():
    _, rows = read("a.conll", "-DOCSTART- -X- O\n\n北 NR B-LOC\n京 NR I-LOC\n", "entities")
    assert [spans_of(row) for _, _, row in rows] == [[(0, 2, "LOC")]]


def test_a_blank_character_of_conll_stays():
    _, rows = read("a.txt", "北 B-LOC\n  O\n京 O\n", "entities")
    assert rows[0][2]["text"] == "北 京"


def test_a_conll_file_without_blank_lines_is_refused():
    with pytest.raises(InputError, match="空行"):
        read("a.txt", "字 O\n" * 100_001, "entities")


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["a.jsonl", "a.csv", "a.tsv", "a.txt"]))
@example(b"\xef\xbb\xbf", "a.csv")  # a byte order mark and nothing else
@example(b"\xff\xfe\n\x00", "a.csv")
def test_any_bytes_are_rows_or_an_input_error(content, name):
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        for answers in ("label", "entities"):
            try:
                for _, _, row in read_rows(recognise(path, answers)):
                    assert isinstance(row, dict | RowError)
            except InputError as error:
                assert "\n" not in str(error)


@given(
    st.text(st.characters(codec="gb2312", min_codepoint=0x4E00).filter(lambda char: char.encode("gb2312") < b"\xd8"))
)
def test_gb18030_and_utf8_are_told_apart(text):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        for encoding in ("utf-8", "gb18030"):
            path.write_bytes(f'{{"text": "昨天他们到北京去了{text}"}}\n'.encode(encoding))
            assert detect_encoding(path) == encoding


def test_a_few_bad_bytes_do_not_make_utf8_gb18030(tmp_path):
    (tmp_path / "a").write_bytes("北京\n上海\n广州\n".encode() + b"\xb1\xb1\n")
    assert detect_encoding(tmp_path / "a") == "utf-8"


def test_a_character_across_the_edge_of_the_sample_is_no_bad_byte(tmp_path):
    for shift in range(3):
        (tmp_path / "a").write_bytes(b"x" * shift + "长".encode() * 400_000)
        assert detect_encoding(tmp_path / "a") == "utf-8"


def test_a_notation_that_the_summary_names_can_be_said_and_another_is_refused():
    content = json.dumps({"instruction": "判断情感", "input": "很好", "output": "好评"}, ensure_ascii=False) + "\n"
    for format in ("auto", "alpaca"):
        source, rows = read("a.jsonl", content, "label", format=format)
        assert source.format == "alpaca" and rows[0][2]["output"] == "好评"
    for format in ("messages", "fudan"):
        with pytest.raises(InputError, match=f"--format {format}.*alpaca"):
            read("a.jsonl", content, "label", format=format)
