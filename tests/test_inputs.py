"""Rows to predict in every format: prediction finds the same text and gold as conversion, or a row without gold."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.data.arguments import ReadOptions
from sft.data.formats import recognise
from sft.data.inputs import count_rows, open_file, read_file, read_stream, rows_of
from sft.data.readers import read_rows
from sft.data.recipes import classification_recipe, ner_recipe
from sft.data.source import Columns
from sft.errors import RowError
from sft.prediction.rows import RowSettings, to_record
from sft.tasks.classification import Classification
from sft.tasks.ner import Ner
from tests.test_formats import annotated, cluener, tags

TEXT = "张伟到上海"
NER = Ner.with_labels(("人名", "地点"))
CLS = Classification(labels=("体育", "军事"))
PLACES = [(0, 2, "人名"), (3, 5, "地点")]
ENTITIES = [{"start": start, "end": end, "text": TEXT[start:end], "label": label} for start, end, label in PLACES]


def line(**row: object) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


NER_FORMS = {
    "ccfbdci.jsonl": line(
        text=TEXT,
        entities=[
            {"start_idx": start, "end_idx": end, "entity_text": TEXT[start:end], "entity_label": label}
            for start, end, label in PLACES
        ],
    ),
    "spans.jsonl": line(text=TEXT, entities=[{"start": s, "end": e, "label": label} for s, e, label in PLACES]),
    "doccano.jsonl": line(text=TEXT, label=[list(place) for place in PLACES]),
    "cluener.json": line(text=TEXT, label={"人名": {"张伟": [[0, 1]]}, "地点": {"上海": [[3, 4]]}}),
    "table.csv": 'text,entities\n张伟到上海,"[[0, 2, ""人名""], [3, 5, ""地点""]]"\n',
    "python.tsv": "正文\t实体\n张伟到上海\t[(0, 2, '人名'), (3, 5, '地点')]\n",
    "tags.txt": "张 B-人名\n伟 I-人名\n到 O\n上 B-地点\n海 I-地点\n\n",
    "spacy.json": json.dumps([[TEXT, {"entities": PLACES}]]),
    "bmes.conll": "张\tB-人名\n伟\tE-人名\n到\tO\n上\tB-地点\n海\tE-地点\n",
}
CLS_FORMS = {
    "fudan.jsonl": line(text="赢了", category="['体育', '军事']", output="体育"),
    "label.jsonl": line(sentence="赢了", label="体育"),
    "options.jsonl": line(content="赢了", options=["体育", "军事"], label="体育"),
    "category.jsonl": line(text="赢了", category="体育"),
    "fasttext.txt": "__label__体育 赢 了\n",
    "toutiao.txt": "1_!_2_!_体育_!_赢了_!_词\n",
    "array.txt": '[\n {"text": "赢了", "label": "体育"}\n]\n',
    "table.csv": "id,内容,标签\n1,赢了,体育\n",
    "table.tsv": "label\ttext\n体育\t赢了\n",
}


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize("name", NER_FORMS)
def test_every_notation_of_entities_has_the_same_text_and_gold(tmp_path, name):
    path = written(tmp_path, name, NER_FORMS[name])
    (record,) = [to_record(row, NER) for row in read_file(path, Ner.answers)]
    assert (record["text"], record["entities"]) == (TEXT, ENTITIES)
    (raw,) = [row for _, _, row in read_rows(recognise(path, Ner.answers))]
    assert ner_recipe([], "人名,地点").convert(raw) == {"text": TEXT, "entities": ENTITIES}, "as conversion reads it"


@pytest.mark.parametrize("name", CLS_FORMS)
def test_every_notation_of_a_label_has_the_same_text_and_gold(tmp_path, name):
    path = written(tmp_path, name, CLS_FORMS[name])
    (record,) = [to_record(row, CLS) for row in read_file(path, CLS.answers)]
    assert (record["text"], record["label"], list(CLS.options(record))) == ("赢了", "体育", ["体育", "军事"])
    (raw,) = [row for _, _, row in read_rows(recognise(path, Classification.answers))]
    assert classification_recipe([], "体育,军事").convert(raw)["label"] == "体育", "as conversion reads it"


def test_a_converted_record_is_read_as_it_is():
    fields = {"text": TEXT, "entities": ENTITIES}
    record = {"messages": [], "task": "ner", **fields}
    assert to_record(record, NER) == fields | {"original": TEXT}
    fields = {"text": "赢了", "options": ["体育", "军事"], "label": "体育"}
    record = to_record({"messages": [], "task": "classification", **fields}, CLS)
    assert (record["label"], list(record["options"])) == ("体育", ["体育", "军事"])


def test_rows_of_one_file_may_differ_and_need_no_gold(tmp_path):
    lines = [
        line(text="甲"),
        line(text="乙", output="体育"),
        line(sentence="丙", label="军事"),
        line(text="丁", label=3),
    ]
    records = [to_record(row, CLS) for row in read_file(written(tmp_path, "rows.jsonl", "".join(lines)), CLS.answers)]
    assert [record["text"] for record in records] == ["甲", "乙", "丙", "丁"]
    assert [record.get("label") for record in records] == [None, "体育", "军事", "3"]


def test_options_alone_are_taken_and_are_no_gold():
    record = to_record({"text": "甲", "category": "['左', '右']"}, CLS)
    assert list(CLS.options(record)) == ["左", "右"]
    assert CLS.gold(record) is None


def test_columns_can_be_named():
    row = {"text": "题目", "body": "正文", "label": "军事", "kind": "体育"}
    record = to_record(row, CLS, RowSettings(columns=Columns("body", "kind")))
    assert (record["text"], record["label"]) == ("正文", "体育")
    missing = to_record({"text": "题目"}, CLS, RowSettings(columns=Columns("body")))
    assert str(missing) == "body: 缺少这个字段"


def test_two_columns_like_a_text_are_asked_about():
    error = to_record({"sentence": "甲", "content": "乙"}, CLS)
    assert isinstance(error, RowError)
    assert "sentence、content" in str(error)
    assert "--text_column" in str(error)
    assert to_record({"text": "甲", "content": "乙"}, CLS)["text"] == "甲", "the usual name needs no asking"


def test_options_of_the_command_line_replace_a_rows_own():
    record = to_record({"text": "甲", "category": ["左", "右"]}, CLS, RowSettings(options=("上", "下")))
    assert CLS.options(record) == ("上", "下")


@pytest.mark.parametrize(
    "text", ["他的血型是 O", "维生素 B-12", "逗号,分隔", "制表\t符", "[注] 甲", '"引号"'], ids=lambda text: text
)
def test_a_line_of_text_is_a_text_whatever_it_looks_like(tmp_path, text):
    path = written(tmp_path, "one.txt", f"{text}\n")
    assert [row["text"] for row in read_file(path, CLS.answers)] == [text]


@pytest.mark.parametrize("content", ['[{"text": "甲"}]', '[\n{"text": "甲"}\n]', '{\n"text": "甲"\n}'])
@pytest.mark.parametrize("name", ["rows.json", "rows.txt"])
def test_a_json_document_holds_its_rows_whatever_its_name(tmp_path, name, content):
    (row,) = read_file(written(tmp_path, name, content), CLS.answers)
    assert row["text"] == "甲"


def test_in_a_jsonl_file_a_line_that_is_not_json_is_an_error_in_its_place(tmp_path):
    rows = list(
        read_file(written(tmp_path, "rows.jsonl", f"{line(text='甲')}乙\n[1]\n{line(text='丙')}"), CLS.answers)
    )
    assert [isinstance(row, RowError) for row in rows] == [False, True, True, False]
    assert str(rows[1]).startswith("第 2 行：不是合法的 JSON")


def test_an_open_quote_costs_the_rest_of_a_table_but_not_what_came_before(tmp_path):
    rows = list(read_file(written(tmp_path, "rows.csv", 'text\n甲\n"乙\n丙\n'), CLS.answers))
    assert rows[0]["text"] == "甲"
    assert [isinstance(row, RowError) for row in rows] == [False, True]
    assert "引号没有闭合" in str(rows[1])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_a_stream_is_read_in_the_encoding_it_has(encoding):
    content = f"张伟\n\n{line(text='上海')}".encode(encoding)
    rows = read_stream(
        io.BytesIO(content), CLS.answers, ReadOptions(encoding="auto" if encoding == "utf-8-sig" else encoding)
    )
    assert [row["text"] for row in rows] == ["张伟", "", "上海"], "one row a line"


def test_a_stream_is_read_no_further_than_it_is_used():
    class Endless(io.RawIOBase):
        read_bytes = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer) -> int:
            buffer[:4] = "甲\n".encode()
            self.read_bytes += 4
            return 4

    source = Endless()
    rows = read_stream(io.BufferedReader(source), CLS.answers)
    assert [next(rows)["text"] for _ in range(3)] == ["甲"] * 3
    assert source.read_bytes < 100_000


def test_rows_are_counted_as_they_are_read(tmp_path):
    path = written(tmp_path, "rows.csv", 'text\n"一\n二"\n\n三\n四\n')
    source = open_file(path, CLS.answers)
    assert count_rows(source, None) == len(list(rows_of(source))) == 3
    assert count_rows(source, 2) == 2


# ---- What conversion reads, prediction reads too ----

CELL = st.text(st.characters(blacklist_categories=["Cs", "Cc"])) | st.sampled_from(
    ["逗号,分隔", '他说"好"', '"引号"', "两\n行", "制表\t符", " 空白 ", "Cafe\u0301", "[注]", '{"text": 1}', "O"]
)
LABEL = st.sampled_from(["体育", "军事", " 体育 ", "[体育]", "体育,军事", "财经", "", " "])
OPTIONS = st.sampled_from([["体育", "军事"], ["体育", "[体育]"], ["军事"], []])
UTF8 = ReadOptions(encoding="utf-8")  # a few strange characters do not show an encoding
SPAN_LABELS = ("LOC", "PER-x", "组织")  # the labels that `annotated` draws


def table(columns: list[str], rows: list[list[str]], delimiter: str) -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows([columns, *rows])
    return file.getvalue()


def assert_read_the_same(name: str, content: str, task: Classification | Ner, convert: Callable[[dict], dict]) -> None:
    """The same texts and gold both ways; a row that conversion rejects has no gold in prediction."""
    with TemporaryDirectory() as folder:
        path = written(Path(folder), name, content)
        raw_rows = [row for _, _, row in read_rows(recognise(path, task.answers, UTF8))]
        records = [to_record(row, task) for row in read_file(path, task.answers, UTF8)]
    assert_same(raw_rows, records, task, convert)


def assert_same(raw_rows: list, records: list, task: Classification | Ner, convert: Callable[[dict], dict]) -> None:
    assert len(records) == len(raw_rows)
    for raw, record in zip(raw_rows, records, strict=True):
        try:
            if isinstance(raw, RowError):
                raise raw
            fields = convert(raw)
        except RowError:
            assert isinstance(record, RowError) or task.gold(record) is None
        else:
            assert {field: record.get(field) for field in fields} == fields


@given(
    st.lists(st.tuples(CELL, LABEL, OPTIONS), min_size=1, max_size=5),
    st.sampled_from(["text", "content", "Sentence", "文本", "内容", "正文", "句子"]),
    st.sampled_from(["output", "label", "category", "Class", "标签", "类别", "分类"]),
    st.sampled_from(["", "category", "options"]),
    st.sampled_from(["jsonl", "csv", "tsv"]),
)
def test_conversion_and_prediction_read_the_same_labels(rows, text_name, label_name, options_name, ending):
    if options_name == "category":
        label_name = "output"  # next to another label column, `category` would be a second label column
    if (
        options_name == "options" and ending == "jsonl"
    ):  # prediction treats empty `options` as missing, conversion rejects the row
        rows = [(text, label, options or ["军事"]) for text, label, options in rows]
    columns = [text_name, label_name, *([options_name] if options_name else [])]
    values = [list(row[: len(columns)]) for row in rows]
    if ending == "jsonl":
        content = "".join(line(**dict(zip(columns, row, strict=True))) for row in values)
    else:
        content = table(columns, [[str(cell) for cell in row] for row in values], "," if ending == "csv" else "\t")
    assert_read_the_same(f"rows.{ending}", content, CLS, Classification.convert)


@given(
    st.lists(annotated(), min_size=1, max_size=5),
    st.sampled_from(["ccfbdci", "spans", "doccano", "cluener"]),
    st.sampled_from(["entities", "Label", "labels", "实体", "标签"]),
    st.sampled_from(["jsonl", "csv", "tsv"]),
    st.integers(0, 1),
)
def test_conversion_and_prediction_read_the_same_entities(sentences, notation, name, ending, too_far):
    def entities(text: str, spans: list[tuple[int, int, str]]) -> object:
        spans = [
            (start, end + too_far, label) for start, end, label in spans
        ]  # one too far: some spans overlap or leave the text
        if notation == "cluener":
            return cluener(text, spans)
        if notation == "doccano":
            return spans
        start_name, end_name, label_name = (
            ("start_idx", "end_idx", "entity_label") if notation == "ccfbdci" else ("start", "end", "label")
        )
        return [{start_name: start, end_name: end, label_name: label} for start, end, label in spans]

    rows = [[text, entities(text, spans)] for text, spans in sentences]
    if ending == "jsonl":
        content = "".join(line(**{"text": text, name: value}) for text, value in rows)
    else:
        cells = [[text, json.dumps(value, ensure_ascii=False)] for text, value in rows]
        content = table(["text", name], cells, "," if ending == "csv" else "\t")
    task = Ner.with_labels(SPAN_LABELS)
    assert_read_the_same(f"rows.{ending}", content, task, ner_recipe([], ",".join(SPAN_LABELS)).convert)


@given(
    st.lists(annotated(), min_size=1, max_size=5), st.sampled_from(["BIO", "BIOES", "BMES"]), st.sampled_from(" \t")
)
def test_conversion_and_prediction_read_the_same_tags(sentences, scheme, separator):
    sentences = [("北京市", [(0, 3, "LOC")]), *sentences]  # a file without an entity is text for prediction
    content = "\n".join(
        "".join(f"{token}{separator}{tag}\n" for token, tag in zip(text, tags(text, spans, scheme), strict=True))
        for text, spans in sentences
    )
    task = Ner.with_labels(SPAN_LABELS)
    assert_read_the_same("rows.txt", content, task, ner_recipe([], ",".join(SPAN_LABELS)).convert)
