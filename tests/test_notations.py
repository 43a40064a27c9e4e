"""The same row in the notation of every tool: conversion and prediction both read the same text and the same gold.

Run: pytest tests/test_notations.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import transfer_ner_data
from sft.data.columns import Columns
from sft.data.formats import recognise
from sft.data.inputs import read_file
from sft.data.readers import read_rows
from sft.data.records import make_record
from sft.data.sample_rows import notation_of, remarks_on
from sft.data.shapes import GOLD_FIELDS, shape_row
from sft.errors import NotAnnotated, RowError
from sft.prediction.rows import RowSettings, to_record
from sft.tasks.classification import Classification
from sft.tasks.entity_lines import NO_ENTITY, entity_line
from sft.tasks.ner import Ner

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="../shared/cases is not there")

SPAN_LABELS = ("LOC", "PER", "组织")
NER = Ner.with_labels(SPAN_LABELS)
CLS = Classification(labels=("好评", "差评", "0", "1", "true", "false"))
Spans = list[tuple[int, int, str]]


def utf16(text: str, offset: int) -> int:
    return len(text[:offset].encode("utf-16-le")) // 2


def region(start: int, end: int, label: str, **more: object) -> dict:
    return {"from_name": "label", "to_name": "text", "type": "labels",
            "value": {"start": start, "end": end, "labels": [label], **more}}  # fmt: skip


PART = {"type": "choices", "from_name": "x", "value": {"start": 0, "end": 1, "text": "很", "choices": ["正面"]}}


def label_studio(text: str, *results: list[dict], **annotation: object) -> dict:
    return {"id": 1, "data": {"text": text}, "annotations": [{"result": result} | annotation for result in results]}


def bio(text: str, spans: Spans) -> list[str]:
    tags = ["O"] * len(text)
    for start, end, label in spans:
        tags[start:end] = [f"B-{label}", *[f"I-{label}"] * (end - start - 1)]
    return tags


def objects(text: str, spans: Spans, *names: str, inclusive: bool = False) -> list[dict]:
    """Each span as an object with these names for start, end, text and label; ``""`` leaves one out."""
    values = [(start, end - inclusive, text[start:end], label) for start, end, label in spans]
    return [{name: value for name, value in zip(names, row, strict=True) if name} for row in values]


def cluener(text: str, spans: Spans) -> dict:
    labels: dict = {}
    for start, end, label in spans:
        labels.setdefault(label, {}).setdefault(text[start:end], []).append([start, end - 1])
    return labels


# Notations with offsets: name → (what `notation_of` calls it, the row).
WITH_OFFSETS: dict[str, tuple[str, Callable[[str, Spans], dict]]] = {
    "ccfbdci": ("ccfbdci",
     lambda t, s: {"text": t, "entities": objects(t, s, "start_idx", "end_idx", "entity_text", "entity_label")}),
    "spans": ("spans", lambda t, s: {"text": t, "entities": objects(t, s, "start", "end", "text", "label")}),
    "inclusive ends": ("spans",
     lambda t, s: {"text": t, "entities": objects(t, s, "start", "end", "text", "label", inclusive=True)}),
    "CMeEE": ("spans",
     lambda t, s: {"text": t, "entities": objects(t, s, "start_idx", "end_idx", "entity", "type", inclusive=True)}),
    "CCKS": ("spans",
     lambda t, s: {"originalText": t,
      "entities": [o | {"overlap": 0} for o in objects(t, s, "start_pos", "end_pos", "", "label_type")]}),
    "begin and tag": ("spans",
     lambda t, s: {"sentence": t, "entities": objects(t, s, "begin", "end", "mention", "tag")}),
    "from and to": ("spans", lambda t, s: {"text": t, "entities": objects(t, s, "from", "to", "surface", "category")}),
    "offset and length": ("spans",
     lambda t, s: {"text": t, "entities": [{"offset": a, "length": b - a, "type": x} for a, b, x in s]}),
    "text and its start": ("spans",
     lambda t, s: {"text": t, "entity_list": objects(t, s, "start_index", "", "text", "type")}),
    "beg and end": ("spans", lambda t, s: {"text": t, "entity_list": objects(t, s, "beg", "end", "", "entity_type")}),
    "numbered lists": ("doccano",
     lambda t, s: {"id": 0, "text": t, "labels": [[f"T{i}", x, a, b, t[a:b]] for i, (a, b, x) in enumerate(s)]}),
    "place": ("spans", lambda t, s: {"text": t, "entities": [{"span": [a, b], "type": x} for a, b, x in s]}),
    "pipeline": ("spans", lambda t, s: {"text": t, "entities": objects(t, s, "start", "end", "word", "entity_group")}),
    "text, start, end, label": ("doccano", lambda t, s: {"text": t, "entities": [[t[a:b], a, b, x] for a, b, x in s]}),
    "label, start, end": ("doccano", lambda t, s: {"text": t, "entities": [[x, a, b] for a, b, x in s]}),
    "doccano": ("doccano", lambda t, s: {"id": 1, "text": t, "label": [list(x) for x in s], "Comments": []}),
    "old doccano": ("doccano", lambda t, s: {"id": 1, "data": t, "label": [list(x) for x in s]}),
    "doccano with relations": ("spans", lambda t, s: {"id": 1, "text": t, "relations": [], "entities": [
        {"id": 5} | o for o in objects(t, s, "start_offset", "end_offset", "", "label")]}),
    "cluener": ("cluener", lambda t, s: {"text": t, "label": cluener(t, s)}),
    "a string": ("doccano", lambda t, s: {"text": t, "entities": json.dumps(s, ensure_ascii=False)}),
    "a Python literal": ("doccano", lambda t, s: {"text": t, "entities": repr(s)}),
    "Prodigy": ("prodigy",
     lambda t, s: {"text": t, "spans": objects(t, s, "start", "end", "", "label"), "answer": "accept"}),
    "Label Studio": ("label_studio", lambda t, s: label_studio(t, [region(a, b, x, text=t[a:b]) for a, b, x in s])),
    "Label Studio, before 2021": ("label_studio", lambda t, s: label_studio(t, [
        region(utf16(t, a), utf16(t, b), x, text=t[a:b]) for a, b, x in s])),
    "Label Studio, agreed": ("label_studio", lambda t, s: label_studio(
        t, [region(a, b, x, text=t[a:b]) for a, b, x in s],
        [region(a, b, x, text=t[a:b]) for a, b, x in reversed(s)])),
    "Label Studio, completions": ("label_studio", lambda t, s: {"data": {"id": "7", "content": t}, "completions": [
        {"result": [region(a, b, x, text=t[a:b]) for a, b, x in s]}]}),
    "Label Studio, JSON-MIN": ("spans", lambda t, s: {"id": 1, "text": t, "label": [
        {"start": a, "end": b, "text": t[a:b], "labels": [x]} for a, b, x in s]}),
    "tokens": ("tokens", lambda t, s: {"tokens": list(t), "ner_tags": bio(t, s)}),
    "tokens with their text": ("tokens", lambda t, s: {"text": t, "tokens": list(t), "tags": bio(t, s)}),
    "our record": ("records",
     lambda t, s: make_record(NER, {"text": t, "entities": objects(t, s, "start", "end", "text", "label")})),
}  # fmt: skip
# Of these, those that leave out the text of an entity: there, entities behind emoji can speak for the wrong reading.
TEXTLESS = {
    "CCKS", "offset and length", "beg and end", "place", "label, start, end", "doccano", "old doccano",
    "doccano with relations", "a string", "a Python literal", "Prodigy",
}  # fmt: skip
# Notations without offsets, which leave the place to the task's own rule.
WITHOUT_OFFSETS: dict[str, tuple[str, Callable[[str, Spans], dict]]] = {
    "alpaca with our lines": ("alpaca", lambda t, s: {"instruction": "抽取实体", "input": t, "output": "\n".join(
        entity_line(t[a:b], x) for a, b, x in s) or NO_ENTITY}),
    "alpaca with a list": ("alpaca", lambda t, s: {"instruction": "抽取实体", "input": t, "output": json.dumps(
        objects(t, s, "", "", "text", "label"), ensure_ascii=False)}),
    "alpaca without an input": ("alpaca", lambda t, s: {"instruction": t, "input": "", "output": json.dumps(
        objects(t, s, "", "", "entity", "type"), ensure_ascii=False)}),
    "messages": ("messages", lambda t, s: {"messages": [
        {"role": "system", "content": "抽取实体"}, {"role": "user", "content": t},
        {"role": "assistant", "content": "```json\n" + json.dumps(
            objects(t, s, "", "", "entity_text", "entity_label")) + "\n```"}]}),
    "ShareGPT": ("messages",
     lambda t, s: {"conversations": [{"from": "human", "value": t}, {"from": "gpt", "value": repr(
        [(t[a:b], x) for a, b, x in s if x not in t]) if all(x not in t for _, _, x in s) else "\n".join(
        entity_line(t[a:b], x) for a, b, x in s)}]}),
    "our prompt": ("messages", lambda t, s: {"messages": make_record(
        NER, {"text": t, "entities": objects(t, s, "start", "end", "text", "label")})["messages"]}),
    "prompt and completion": ("alpaca", lambda t, s: {"prompt": t, "completion": "\n".join(
        entity_line(t[a:b], x) for a, b, x in s)}),
}  # fmt: skip

CHARACTER = st.sampled_from("青湖红山赵一钱二在到见了，。😀𠮷")


@st.composite
def annotated(draw) -> tuple[str, Spans]:
    """A text of spans and gaps that is neither blank nor without a gap at the end."""
    text, spans = "", []
    for _ in range(draw(st.integers(0, 4))):
        text += draw(st.text(CHARACTER, max_size=3))
        surface = draw(st.text(CHARACTER, min_size=1, max_size=3))
        spans.append((len(text), len(text) + len(surface), draw(st.sampled_from(SPAN_LABELS))))
        text += surface
    return text + draw(st.text(CHARACTER, min_size=1, max_size=3)), spans


def as_file(rows: Iterable[dict], task: Classification | Ner) -> tuple[list, list]:
    """The rows of a file in their original shape, as conversion reads them, and their records, as prediction does."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        shapes = [row for _, _, row in read_rows(recognise(path, task.answers))]
        return shapes, [to_record(row, task) for row in read_file(path, task.answers)]


def spans_of(record: dict) -> Spans:
    return [(entity["start"], entity["end"], entity["label"]) for entity in record["entities"]]


@pytest.mark.parametrize("name", WITH_OFFSETS)
@given(st.lists(annotated(), min_size=1, max_size=4))
def test_entities_with_offsets_read_back_to_the_same_spans(name, sentences):
    called, write = WITH_OFFSETS[name]
    if name == "Label Studio, before 2021":  # where both ways of counting fit the text, today's is taken
        assume(not any(text[utf16(text, start) : utf16(text, end)] == text[start:end] and utf16(text, start) > start
                       for text, spans in sentences for start, end, _ in spans))  # fmt: skip
    if name in TEXTLESS:  # two texts in favour of the wrong one are evidence, if all is made up
        assume(sum(max(text, default="") > "\uffff" for text, _ in sentences) < 2)
    rows = [write(text, spans) for text, spans in sentences]
    shapes, records = as_file(rows, NER)
    for (text, spans), raw, record in zip(sentences, shapes, records, strict=True):
        fields = Ner.convert(raw)
        assert (fields["text"], spans_of(fields)) == (text, spans)
        assert (record["text"], record["entities"]) == (text, fields["entities"])
    if any(spans for _, spans in sentences):
        assert notation_of(rows, "entities") == called


@pytest.mark.parametrize("name", WITHOUT_OFFSETS)
@given(annotated())
def test_entities_without_offsets_are_where_the_task_would_find_them(name, sentence):
    called, write = WITHOUT_OFFSETS[name]
    text, spans = sentence
    answer = "\n".join(entity_line(text[start:end], label) for start, end, label in spans) or NO_ENTITY
    expected = NER.parse(answer, {"text": text})
    row = write(text, spans)
    assert sum(expected["problems"].values()) == 0
    (raw,), (record,) = as_file([row], NER)
    assert spans_of(Ner.convert(raw)) == spans_of(expected) == spans_of(record)
    assert record["text"] == text
    assert notation_of([row], "entities") == called


def test_entities_grouped_by_label_are_each_at_their_leftmost_free_place():
    row = {
        "instruction": "抽取",
        "input": "赵一到青湖见赵一",
        "output": '{"LOC": ["青湖"], "PER": ["赵一"], "组织": []}',
    }
    assert spans_of(Ner.convert(shape_row(row, "entities"))) == [(0, 2, "PER"), (3, 5, "LOC")]


def test_a_map_of_surfaces_is_told_from_a_map_of_labels_by_the_text():
    for output in ('{"青湖": "LOC"}', '{"LOC": "青湖"}'):
        row = {"instruction": "抽取", "input": "在青湖", "output": output}
        assert spans_of(Ner.convert(shape_row(row, "entities"))) == [(1, 3, "LOC")]


@pytest.mark.parametrize("nothing", ["没有找到任何实体", "[]", "", "{}", "无", "没有实体。", '{"LOC": [], "PER": ""}'])
def test_a_sentence_without_entities_has_none(nothing):
    row = {"instruction": "抽取", "input": "今天没课", "output": nothing}
    assert Ner.convert(shape_row(row, "entities"))["entities"] == []


# ---- Labels ----

LABELLED: dict[str, tuple[dict, str]] = {
    "fudan": ({"text": "很好", "category": "['好评', '差评']", "output": "好评"}, "好评"),
    "doccano": ({"id": 1, "text": "很好", "label": ["好评"]}, "好评"),
    "a list in a string": ({"text": "很好", "label": "['好评']"}, "好评"),
    "a number": ({"text": "很好", "label": 1}, "1"),
    "a number of pandas": ({"text": "很好", "label": 1.0}, "1"),
    "true": ({"text": "很好", "label": True}, "true"),
    "alpaca": ({"instruction": "判断情感", "input": "很好", "output": "好评"}, "好评"),
    "alpaca without an input": ({"instruction": "很好", "input": "", "output": "好评"}, "好评"),
    "messages": (
     {"messages": [{"role": "user", "content": "很好"}, {"role": "assistant", "content": "好评"}]}, "好评"),
    "messages in parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "很好"}]},
                                        {"role": "assistant", "content": "好评"}]}, "好评"),
    "ShareGPT": ({"conversations": [{"from": "system", "value": "判断"}, {"from": "human", "value": "很好"},
                                    {"from": "gpt", "value": "好评"}]}, "好评"),
    "alpaca's whole prompt": ({"instruction": "判断", "output": "好评", "input": "很好",
                               "text": "### Instruction:\n判断\n### Input:\n很好"}, "好评"),
    "an instruction beside a text": ({"instruction": "判断", "text": "很好", "output": "好评"}, "好评"),
    "input and label": ({"input": "很好", "label": "好评"}, "好评"),
    "tokens and a label": ({"tokens": ["很", "好"], "label": "好评"}, "好评"),
    "our record": (make_record(CLS, {"text": "很好", "options": ["好评", "差评"], "label": "好评"}), "好评"),
    "our prompt": ({"messages": make_record(
        CLS, {"text": "很好", "options": ["好评", "差评"], "label": "好评"})["messages"]}, "好评"),
    "our prompt in alpaca": (
     {"instruction": "选", "input": "类型选项：好评、差评\n文本：很好", "output": "好评"}, "好评"),
    "Label Studio": (label_studio("很好", [{"type": "choices", "value": {"choices": ["好评"]}}]), "好评"),
    "Label Studio, JSON-MIN": ({"id": 1, "text": "很好", "sentiment": "好评", "annotator": 1}, "好评"),
    "Label Studio, beside choices of parts": (
        label_studio("很好", [PART, {"type": "choices", "from_name": "y", "value": {"choices": ["好评"]}}]), "好评"),
    "Label Studio, JSON-MIN choices": ({"id": 1, "text": "很好", "sentiment": {"choices": ["好评"]}}, "好评"),
    "Prodigy": ({"text": "很好", "label": "好评", "answer": "accept"}, "好评"),
    "Prodigy's choice": ({"text": "很好", "options": [{"id": "好评", "text": "好"}, {"id": "差评", "text": "差"}],
                          "accept": ["好评"], "answer": "accept"}, "好评"),
    "TNEWS": ({"label": "103", "label_desc": "好评", "sentence": "很好", "keywords": ""}, "好评"),
    "IFLYTEK": ({"label": "103", "label_des": "好评", "sentence": "很好"}, "好评"),
    "Chinese names": ({"评论": "很好", "情感": "好评"}, "好评"),
    "a title": ({"标题": "很好", "分类": "好评"}, "好评"),
    "text_a": ({"text_a": "很好", "label": "好评"}, "好评"),
    "a microblog": ({"微博id": "4", "微博中文内容": "很好", "情感倾向": "好评"}, "好评"),
    "options, category and output": (
     {"text": "很好", "options": ["好评", "差评"], "category": ["x"], "output": "好评"}, "好评"),
}  # fmt: skip


@pytest.mark.parametrize("name", LABELLED)
def test_a_label_reads_the_same_in_every_notation(name):
    row, label = LABELLED[name]
    (raw,), (record,) = as_file([row], CLS)
    assert Classification.convert(raw)["label"] == record["label"] == label
    assert raw["text"] == record["text"] == "很好"
    if name in ("fudan", "our record", "our prompt", "our prompt in alpaca", "Prodigy's choice"):
        assert list(Classification.convert(raw)["options"]) == list(record["options"]) == ["好评", "差评"]


def test_a_field_inside_others_is_named_by_a_path():
    row = {"fact": "某人取走物品", "meta": {"accusation": ["盗窃"]}}
    columns = Columns("fact", "meta.accusation")
    assert shape_row(row, "label", columns) == {"text": "某人取走物品", "category": None, "output": "盗窃"}
    record = to_record(row, CLS, RowSettings(columns=columns))
    assert record["label"] == "盗窃"


def test_a_list_in_category_is_options_unless_the_user_says_that_it_is_the_label():
    row = {"text": "很好", "category": ["好评"]}
    assert shape_row(row, "label") == {"text": "很好", "category": ["好评"], "output": None}
    assert shape_row(row, "label", Columns(label="category")) == {"text": "很好", "category": None, "output": "好评"}


def test_what_is_taken_is_told():
    tnews = [LABELLED["TNEWS"][0]]
    assert remarks_on(tnews, "label") == ["标签取自 label_desc（label 是它的编号）"]
    assert remarks_on(tnews, "label", Columns(label="label")) == []
    varied = [{"instruction": ask, "input": "很好", "output": "好评"} for ask in ("判断情感", "好还是差")]
    assert "2 种" in remarks_on(varied, "label")[0]
    assert remarks_on(varied[:1], "label") == []


# ---- What is refused ----

# The text is good but the gold is not: conversion rejects the row with this reason, prediction predicts it without.
UNUSABLE: list[tuple[str, str, dict, str]] = [
    ("multi-label", "label", {"text": "很好", "label": ["体育", "交通"]}, "multi-label"),
    ("multi-label in a string", "label", {"text": "很好", "labels": "['体育', '交通']"}, "multi-label"),
    ("multi-label choices", "label",
     label_studio("很好", [{"type": "choices", "value": {"choices": ["a", "b"]}}]), "multi-label"),
    ("a score", "label", {"text": "很好", "label": 0.5}, "小数"),
    ("two labels", "label", {"text": "很好", "标签": "好评", "分类": "体育"}, "--label_column"),
    ("two choices", "label", label_studio("很好", [
        {"type": "choices", "from_name": name, "value": {"choices": ["a"]}} for name in "xy"]), "--label_column"),
    ("rejected in Prodigy", "entities", {"text": "很好", "spans": [], "answer": "reject"}, "reject"),
    ("ignored in Prodigy", "label", {"text": "很好", "label": "好评", "answer": "ignore"}, "ignore"),
    ("choices of parts of the text", "label", label_studio("很好", [region(0, 1, "方面", text="很"), PART]),
     "一部分"),
    ("choices of parts alone", "label", label_studio("很好", [PART]), "一部分"),
    ("choices of parts, JSON-MIN", "label", {"id": 1, "text": "很好", "sentiment": [PART["value"]]}, "一部分"),
    ("choices of parts in a cell", "label", {"text": "很好", "sentiment": json.dumps([PART["value"]])},
     "一部分"),
    ("cancelled", "entities", label_studio("很好", [], was_cancelled=True), "was_cancelled"),
    ("annotators differ", "entities", label_studio("很好", [], [region(0, 1, "LOC", text="很")]), "不一致"),
    ("emoji without its text", "entities", label_studio("😀很好", [region(1, 3, "LOC")]), "UTF-16"),
    ("HTML", "entities", label_studio("很好", [{"type": "hypertextlabels", "value": {}}]), "<Text>"),
    ("an entity with two labels", "entities",
     {"text": "很好", "label": [{"start": 0, "end": 1, "labels": ["A", "B"]}]}, "几个标签"),
    ("ends that could be inclusive", "entities",
     {"text": "很好", "entities": [{"start_idx": 0, "end_idx": 1, "type": "A"}]}, "end_idx"),
    ("fields that differ", "entities",
     {"text": "很好", "entities": [{"start": 0, "end": 1, "type": "A", "label": "B"}]}, "type"),
    ("an entity that is not there", "entities",
     {"instruction": "", "input": "很好", "output": '[["青湖", "LOC"]]'}, ""),
    ("an invented entity", "entities",
     {"instruction": "x", "input": "很好", "output": entity_line("青湖", "LOC")}, "不在文本里"),
    ("free words", "entities", {"instruction": "x", "input": "很好", "output": "青湖是地点"}, "实体列表"),
    ("numbers for tags", "entities", {"tokens": ["很", "好"], "ner_tags": [0, 1]}, "int2str"),
    ("tokens of another text", "entities", {"text": "很好", "tokens": ["很", "差"], "ner_tags": ["O", "O"]}, "对不上"),
    ("choices for entities", "entities",
     label_studio("很好", [{"type": "choices", "value": {"choices": ["a"]}}]), "choices"),
    ("too few tags", "entities", {"tokens": ["很", "好"], "ner_tags": ["O"]}, "一一对应"),
    ("a tag of no scheme", "entities", {"tokens": ["很", "好"], "ner_tags": ["O", "X"]}, "'X'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "row", "reason"), [case[1:] for case in UNUSABLE], ids=[case[0] for case in UNUSABLE]
)
def test_gold_that_cannot_be_used_is_told_and_the_text_is_predicted_without_it(answers, row, reason):
    task = NER if answers == "entities" else CLS
    problem = shape_row(row, answers)[GOLD_FIELDS[answers]]
    assert isinstance(problem, RowError) and reason in str(problem) and "\n" not in str(problem)
    record = to_record(row, task)
    assert record["text"].strip("😀") == "很好"
    assert task.gold(record) is None


# Neither conversion nor prediction may take these rows.
REFUSED: list[tuple[str, str, dict, str]] = [
    ("two questions", "label",
     {"messages": [{"role": role, "content": "x"} for role in ("user", "assistant") * 2]}, "multi-turn"),
    ("history", "label", {"instruction": "x", "input": "", "output": "y", "history": [["a", "b"]]}, "multi-turn"),
    ("no question", "label", {"messages": [{"role": "assistant", "content": "x"}]}, "user"),
    ("a tool", "label", {"messages": [{"role": "user", "content": "x"}, {"role": "tool", "content": "y"}]}, "tool"),
    ("a record of NER", "label", make_record(NER, {"text": "很好", "entities": []}), "命名实体识别"),
    ("a record of classification", "entities", make_record(CLS, {"text": "很好", "label": "好评"}), "文本分类"),
    ("our prompt for labels", "entities",
     {"messages": make_record(CLS, {"text": "很好", "label": "好评"})["messages"]}, "文本分类"),
    ("our answer with entities", "label",
     {"messages": make_record(NER, {"text": "很好", "entities": []})["messages"]}, "实体识别"),
    ("spans for labels", "label", {"text": "很好", "label": [[0, 1, "LOC"]]}, "实体识别"),
    ("entities for labels", "label",
     {"text": "很好", "entities": [{"start": 0, "end": 1, "label": "LOC"}]}, "实体识别"),
    ("Label Studio's spans for labels", "label", label_studio("很好", [region(0, 1, "LOC")]), "实体识别"),
    ("fudan for entities", "entities", {"text": "很好", "category": "['好评']", "output": "好评"}, "文本分类"),
    ("two texts in a task", "entities", {"data": {"a": "很好", "b": "很差"}, "annotations": []}, "--text_column"),
    ("a pair of texts", "label", {"text_a": "很好", "text_b": "很差", "label": "1"}, "text_b"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "row", "reason"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_a_row_that_is_not_for_the_task_is_refused_by_both(answers, row, reason):
    with pytest.raises(RowError) as raised:
        shape_row(row, answers)
    assert reason in str(raised.value) and "\n" not in str(raised.value)
    assert str(to_record(row, NER if answers == "entities" else CLS)) == str(raised.value)


def test_predictions_of_a_model_are_no_gold():
    row = {"data": {"text": "在青湖"}, "predictions": [{"result": [region(1, 3, "LOC", text="青湖")]}]}
    assert isinstance(shape_row(row, "entities")["entities"], NotAnnotated)
    assert to_record(row, NER) == {"text": "在青湖", "original": "在青湖"}  # an ordinary row without gold
    assert to_record(row, CLS).get("gold_error") is None


@pytest.mark.parametrize("annotated", [20, 0])
def test_tasks_without_annotation_or_skipped_are_left_out_and_named(tmp_path, capsys, annotated):
    tasks = [label_studio(f"在青湖{index}", [region(1, 3, "LOC", text="青湖")]) for index in range(annotated)]
    tasks += [label_studio(f"到赤水{index}") for index in range(15)]  # far more than bad rows may be
    tasks += [label_studio("跳过", [], was_cancelled=True)]
    (tmp_path / "export.json").write_text(json.dumps(tasks), encoding="utf-8")
    code = transfer_ner_data.main(
        ["--input_file", str(tmp_path / "export.json"), "--output_file", str(tmp_path / "train.jsonl")]
    )
    told = capsys.readouterr().err
    assert "还没有标注 15" in told and "标注时跳过了（was_cancelled） 1" in told
    assert code == (0 if annotated else 2)
    if annotated:
        assert "读入 36 = 转换 20 + 拒绝 0 + 合并重复 0 + 没有要的 16" in told


def test_the_ground_truth_decides_between_annotators():
    row = label_studio("在青湖", [], [region(1, 3, "LOC", text="青湖")])
    row["annotations"][1]["ground_truth"] = True
    assert len(shape_row(row, "entities")["entities"]) == 1


def test_overlapping_entities_are_called_nested():
    with pytest.raises(RowError, match="nested"):
        Ner.convert(shape_row({"text": "在青湖路", "label": [[1, 3, "LOC"], [1, 4, "LOC"]]}, "entities"))


NAMES = st.sampled_from(
    [
        "text",
        "label",
        "entities",
        "data",
        "annotations",
        "result",
        "value",
        "start",
        "end",
        "labels",
        "messages",
        "role",
        "content",
        "task",
        "conversations",
        "instruction",
        "input",
        "output",
        "tokens",
        "ner_tags",
        "spans",
        "answer",
        "accept",
        "options",
        "category",
        "start_idx",
        "end_idx",
        "entity_text",
        "entity_label",
        "predictions",
        "type",
        "choices",
        "span",
        "length",
        "offset",
    ]
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 5)
    | st.floats()
    | st.sampled_from(["text", "青湖", "[]", "{", "LOC", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(NAMES, JSON, max_size=5), st.sampled_from(["label", "entities"]))
def test_any_object_is_a_row_or_a_row_error(row, answers):
    before = json.dumps(row)
    try:
        shape_row(row, answers)
    except RowError as error:
        assert "\n" not in str(error)
    assert json.dumps(row) == before, "the row is not changed"
    assert isinstance(to_record(row, NER if answers == "entities" else CLS), dict | RowError)
    notation_of([row], answers)
    remarks_on([row], answers)


# ---- The cases that people reported ----

CASE_GOLD = {
    "12-doccano-cls.jsonl": ("label", {"差评": 5, "好评": 5}),
    "13-int-label.jsonl": ("label", {"0": 5, "1": 5}),
    "14b-label-studio-min.jsonl": ("entities", {"LOC": 6}),
    "18-hf-tokens.jsonl": ("entities", {"LOC": 1}),
    "20-cmeee.jsonl": ("entities", {"dis": 2}),
    "21-ccks.jsonl": ("entities", {"疾病": 2}),
    "22-prodigy.jsonl": ("entities", {"LOC": 1}),
    "27-tnews.json": ("label", {"news_sports": 6, "news_car": 6}),
    "32-alpaca.jsonl": ("label", {"差评": 5, "好评": 5}),
    "33-sharegpt.jsonl": ("label", {"差评": 5, "好评": 5}),
    "36-subset-of-labels.jsonl": ("entities", {"LOC": 2, "PER": 3}),
}


def _converted(rows: list, task: Classification | Ner) -> Iterator[dict]:
    for row in rows:
        with suppress(RowError):
            yield task.convert(row)


@needs_cases
@pytest.mark.parametrize("name", CASE_GOLD)
def test_a_reported_file_has_the_right_gold_in_conversion_and_prediction(name):
    answers, expected = CASE_GOLD[name]
    task = Ner.with_labels(expected) if answers == "entities" else Classification(labels=tuple(expected))
    counts: dict[str, list[int]] = {label: [0, 0] for label in expected}
    converted = [row for _, _, row in read_rows(recognise(CASES / name, answers))]
    fields = list(_converted(converted, task))
    for side, records in enumerate([fields, [to_record(row, task) for row in read_file(CASES / name, answers)]]):
        for record in records:
            found = [e["label"] for e in record.get("entities", [])] if answers == "entities" else [record["label"]]
            for label in found:
                counts[label][side] += 1
    assert counts == {label: [count, count] for label, count in expected.items()}


@pytest.mark.parametrize(
    ("written", "label"),
    [("1.0", "1"), ("-1.00", "-1"), ("1.0.2", "1.0.2"), ("nan", None), ("<NA>", None), ("None", "None"),
     ("{x}", "{x}"), ('{"choices": ["好"]}', "好"), ("第 1.5 版", "第 1.5 版")],
)  # fmt: skip
def test_a_label_in_a_cell_reads_as_in_json(written, label):
    assert shape_row({"text": "甲", "label": written}, "label")["output"] == label


@pytest.mark.parametrize(
    "written", ["0.35", '{"PER": ["赵一"]}', '{"label": "好"}', "-0.5", "['a', 'b']", "<think>\n嗯\n</think>\n好"]
)
def test_a_score_an_object_or_several_lines_are_no_label(written):
    assert isinstance(shape_row({"text": "甲", "label": written}, "label")["output"], RowError)


@pytest.mark.parametrize(
    ("place", "missing"), [({"start": 0, "last": 2}, "认不出终点"), ({"first": 0, "end": 2}, "认不出起点")]
)
def test_a_start_without_an_end_is_told_with_the_fields_there_are(place, missing):
    row = shape_row({"text": "赵一到青湖", "entities": [{"type": "PER", **place}]}, "entities")
    assert isinstance(row["entities"], RowError)
    assert missing in row["entities"].reason
    assert "type" in row["entities"].reason
