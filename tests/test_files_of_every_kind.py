"""Whole files of every container, encoding and notation: conversion and prediction read the same texts and gold.

Run: pytest tests/test_files_of_every_kind.py
"""

# ruff: noqa: E501

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.data.formats import recognise
from sft.data.inputs import read_file, read_stream
from sft.data.readers import read_rows
from sft.data.recipes import ner_recipe
from sft.prediction.rows import to_record
from sft.tasks.classification import Classification
from sft.tasks.ner import Ner
from tests.test_formats import tags
from tests.test_inputs import CLS, assert_same, line


@pytest.fixture(autouse=True, scope="module")
def quiet():
    """What a file was taken for is said for each; here it only fills the log."""
    logging.getLogger("sft.data.inputs").setLevel(logging.ERROR)
    yield
    logging.getLogger("sft.data.inputs").setLevel(logging.NOTSET)


WORDS = st.text("昨晚主队客场取胜高铁新线下月通车", min_size=4, max_size=12)
NAMES = ("PER", "LOC", "ORG")


def pandas_of(rows: list[dict]) -> dict[str, object]:
    columns = list(rows[0])
    return {
        "records": rows,
        "index": {str(at): row for at, row in enumerate(rows)},
        "columns": {name: {str(at): row[name] for at, row in enumerate(rows)} for name in columns},
        "lists": {name: [row[name] for row in rows] for name in columns},
        "split": {"columns": columns, "index": list(range(len(rows))), "data": [list(row.values()) for row in rows]},
        "wrapped": {"version": "1", "meta": [], "data": rows},
    }


def label_files(rows: list[tuple[str, str]]) -> dict[str, str]:
    """Contents of files with these texts and labels, by name."""
    plain = [{"text": text, "label": label} for text, label in rows]
    turns = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": label}]}
        for text, label in rows
    ]
    studio = [
        {
            "data": {"text": text},
            "annotations": [{"result": [{"type": "choices", "from_name": "l", "value": {"choices": [label]}}]}],
        }
        for text, label in rows
    ]
    return {
        **{f"{orient}.json": json.dumps(value, ensure_ascii=False) for orient, value in pandas_of(plain).items()},
        "indented.txt": json.dumps(plain, ensure_ascii=False, indent=2),
        "turns.jsonl": "".join(line(**row) for row in turns),
        "alpaca.json": json.dumps(
            [{"instruction": "分类", "input": t, "output": g} for t, g in rows], ensure_ascii=False
        ),
        "swift.jsonl": "".join(line(system="分类", query=text, response=label) for text, label in rows),
        "studio.json": json.dumps(studio, ensure_ascii=False),
        "cats.json": json.dumps([[text, {"cats": {label: 1, "别的": 0}}] for text, label in rows], ensure_ascii=False),
        "prodigy.jsonl": "".join(line(text=text, accept=[label], answer="accept") for text, label in rows),
        "fasttext.txt": "".join(f"__label__{label} {' '.join(text)}\n" for text, label in rows),
        "toutiao.txt": "".join(f"1_!_2_!_{label}_!_{text}_!_词\n" for text, label in rows),
        "table.txt": "内容\t标签\r\n" + "".join(f"{text}\t{label}\r\n" for text, label in rows),
        "excel.csv": "sep=;\n内容;标签;\n" + "".join(f"{text};{label};\n" for text, label in rows),
        "headless.tsv": "".join(f"{label}\t{text}，{text}\n" for text, label in rows),
    }


def entity_files(rows: list[tuple[str, list[tuple[int, int, str]]]]) -> dict[str, str]:
    """Contents of files with these texts and entities, by name."""
    tagged = [(text, tags(text, spans, "BIO")) for text, spans in rows]
    spans_of = [
        [{"start": s, "end": e, "label": label, "text": text[s:e]} for s, e, label in spans] for text, spans in rows
    ]
    texts = [text for text, _ in rows]
    return {
        "weibo.txt": "\n".join("".join(f"{c}{at}\t{t}\n" for at, (c, t) in enumerate(zip(*row, strict=True))) for row in tagged),
        "commas.conll": "\n".join("# 注释\n" + "".join(f"{c} {t}\n" for c, t in zip(*row, strict=True)) for row in tagged),
        "hf.json": "".join(line(tokens=list(text), ner_tags=row_tags) for text, row_tags in tagged),
        "imcs.jsonl": "".join(line(sentence=text, BIO_label=" ".join(row_tags)) for text, row_tags in tagged),
        "waybill.tsv": "text_a\tlabel\n" + "".join("\x02".join(text) + "\t" + "\x02".join(row) + "\n" for text, row in tagged),
        "spacy.json": json.dumps([[text, {"entities": spans}] for text, spans in rows], ensure_ascii=False),
        "annotator.json": json.dumps({"classes": NAMES, "annotations": [[t, {"entities": s}] for t, s in rows]}, ensure_ascii=False),
        "lighttag.json": json.dumps(
            {"relations": [], "examples": [{"content": t, "annotations": s} for t, s in zip(texts, spans_of, strict=True)]},
            ensure_ascii=False,
        ),
        "min.json": json.dumps(
            [{"text": t, "annotation_id": 1, "annotator": 1} | ({"label": s} if s else {}) for t, s in zip(texts, spans_of, strict=True)],
            ensure_ascii=False,
        ),
        "alpaca.jsonl": "".join(line(instruction="抽取", input=t, output=json.dumps(s)) for t, s in zip(texts, spans_of, strict=True)),
        "cmeee.json": json.dumps(
            [{"text": t, "entities": [{"start_idx": a, "end_idx": b - 1, "type": g, "entity": t[a:b]} for a, b, g in s]} for t, s in rows],
            ensure_ascii=False,
        ),
    }  # fmt: skip


def assert_file_reads_the_same(name: str, content: bytes, task: Classification | Ner, gold: list) -> None:
    """Conversion and prediction read these texts and gold, prediction also from a stream."""
    convert = Classification.convert if task.answers == "label" else ner_recipe([], ",".join(task.labels)).convert
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        raw_rows = [row for _, _, row in read_rows(recognise(path, task.answers))]
        records = [to_record(row, task) for row in read_file(path, task.answers)]
    assert_same(raw_rows, records, task, convert)
    assert [(record["text"], task.gold(record)) for record in records] == gold
    if not name.startswith(("headless", "waybill", "cats", "spacy")):  # a stream has no name that says what it is
        streamed = [to_record(row, task) for row in read_stream(io.BytesIO(content), task.answers)]
        assert streamed == records


ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "gb18030", "utf-16"])
FIRST = "昨天晚上主队在客场取得了胜利"  # enough to show an encoding


@given(st.lists(st.tuples(WORDS, st.sampled_from(["体育", "军事"])), min_size=3, max_size=6), ENCODINGS, st.data())
def test_files_of_every_kind_with_labels_read_the_same_in_any_encoding(rows, encoding, data):
    rows = [(FIRST, "体育"), (FIRST[2:], "军事"), *rows]
    name, content = data.draw(st.sampled_from(sorted(label_files(rows).items())))
    gold = [(f"{text}，{text}" if name == "headless.tsv" else text, {"label": label}) for text, label in rows]
    assert_file_reads_the_same(name, content.encode(encoding), CLS, gold)


@given(
    st.lists(st.tuples(WORDS, st.sampled_from(NAMES), st.integers(0, 2)), min_size=2, max_size=5), ENCODINGS, st.data()
)
def test_files_of_every_kind_with_entities_read_the_same_in_any_encoding(rows, encoding, data):
    sentences = [(FIRST, [(4, 6, "ORG")]), *((text, [(at, at + 2, name)]) for text, name, at in rows), (FIRST[2:], [])]
    name, content = data.draw(st.sampled_from(sorted(entity_files(sentences).items())))
    gold = [
        (text, {"entities": [{"start": s, "end": e, "text": text[s:e], "label": label} for s, e, label in spans]})
        for text, spans in sentences
    ]
    assert_file_reads_the_same(name, content.encode(encoding), Ner.with_labels(NAMES), gold)
