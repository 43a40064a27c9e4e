"""Rows of tokens and tags in every way that people write them. Run: pytest tests/test_token_rows.py"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.data.arguments import ReadOptions
from sft.data.columns import Columns
from sft.data.formats import recognise
from sft.data.readers import read_rows
from sft.data.sample_rows import notation_of
from sft.data.shapes import shape_row
from sft.errors import RowError
from tests.test_formats import annotated, tags

TEXT, TAGS = "赵一到青湖", ["B-PER", "I-PER", "O", "B-LOC", "I-LOC"]
PLACES = [(0, 2, "PER"), (3, 5, "LOC")]


def places(row: dict) -> list[tuple[int, int, str]]:
    return [(entity["start_idx"], entity["end_idx"], entity["entity_label"]) for entity in row["entities"]]


@pytest.mark.parametrize(
    "row",
    [
        {"tokens": list(TEXT), "ner_tags": TAGS},
        {"tokens": str(list(TEXT)), "ner_tags": str(TAGS)},
        {"text": list(TEXT), "labels": TAGS},
        {"text": TEXT, "labels": TAGS},
        {"sentence": TEXT, "BIO_label": " ".join(TAGS)},
        {"text": " ".join(TEXT), "label": " ".join(TAGS)},
        {"text_a": "x", "text": "\x02".join(TEXT), "label": "\x02".join(TAGS)},
        {"text": TEXT, "ner": json.dumps(TAGS)},
        {"text": TEXT, "tokens": list(TEXT), "tags": TAGS},
    ],
    ids=[
        "lists",
        "cells",
        "text as list",
        "text and tags",
        "IMCS",
        "blanks",
        "x02",
        "JSON in a cell",
        "text and tokens",
    ],
)
def test_tokens_and_tags_become_a_text_with_entities(row):
    shaped = shape_row(row, "entities")
    assert (shaped["text"], places(shaped)) == (TEXT, PLACES)
    assert notation_of([row], "entities") == "tokens"
    gold = shape_row(row, "label").get("output")
    assert gold is None or isinstance(gold, RowError), "tags are no label"


@given(annotated(), st.sampled_from(["BIO", "BIOES", "BMES"]), st.booleans(), st.booleans())
def test_any_sentence_reads_the_same_from_all_of_them(sentence, scheme, as_list, in_string):
    text, spans = sentence
    written = tags(text, spans, scheme)
    row = {"text": list(text) if as_list else text, "labels": " ".join(written) if in_string else written}
    if text.split() == [text] and not (len(written) == 1 and in_string):
        shaped = shape_row(row, "entities")
        assert (shaped["text"], places(shaped)) == (text, spans)


def test_the_column_of_the_tokens_can_be_named():
    row = {"tokens": list(TEXT), "ner_tags": TAGS}
    shaped = shape_row(row, "entities", Columns("tokens", "ner_tags"))
    assert (shaped["text"], places(shaped)) == (TEXT, PLACES)


def test_tags_that_are_not_as_many_as_the_characters_are_not_guessed_at():
    gold = shape_row({"text": TEXT, "labels": TAGS[:3]}, "entities")["entities"]
    assert str(gold) == "labels: 有 3 个标记，文本有 5 个字，应当一样多"


def test_what_label_studio_leaves_out_is_no_entity_only_in_its_own_rows():
    row = {"text": TEXT, "id": 1, "annotation_id": 1, "annotator": 1, "lead_time": 2.5}
    assert shape_row(row, "entities")["entities"] == []
    assert shape_row({"text": TEXT, "id": 1}, "entities")["entities"] is None


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["1", "8", "岁", "进", "NBA"], "18岁进NBA"),
        (["买", "iPhone", "1", "5"], "买iPhone15"),
        (["买", "iPhone", "15"], "买iPhone 15"),
        (["G", "D", "P", "和", "CPI"], "GDP和CPI"),
        (["Blue", "Lake", "'s", "do", "n't"], "Blue Lake's don't"),
        (["Москва", "река"], "Москва река"),
        (["New", " ", "York"], "New York"),
    ],
)
def test_the_same_tokens_are_the_same_text_in_a_row_and_in_a_tagged_file(tokens, text, tmp_path):
    tags = ["B-X", *["O"] * (len(tokens) - 1)]
    shaped = shape_row({"tokens": tokens, "ner_tags": tags}, "entities")
    path = tmp_path / "raw.conll"
    path.write_text("".join(f"{token}\t{tag}\n" for token, tag in zip(tokens, tags, strict=True)), encoding="utf-8")
    ((_, _, tagged),) = read_rows(recognise(path, "entities", ReadOptions(format="conll")))
    assert shaped["text"] == tagged["text"] == text
    assert places(shaped) == places(tagged) == [(0, len(tokens[0]), "X")]


# ---- The quick way of rows in the original shape ----

ENTITY = st.fixed_dictionaries(
    {},
    optional={
        "start_idx": st.integers(-1, 3) | st.none(),
        "end_idx": st.integers(-1, 6),
        "entity_label": st.sampled_from(["LOC", "", 3]),
        "entity_text": st.sampled_from(["赵", "赵一", "湖", None, 1]),
        "type": st.just("PER"),
    },
)
FIELDS = {
    "text": st.sampled_from([TEXT, "", None, 3]),
    "entities": st.lists(ENTITY | st.just([0, 1, "LOC"]), max_size=3) | st.sampled_from([None, "[]", 3, {}]),
    "output": st.sampled_from(
        ["体育", "1.0", "0.5", "[体育]", '["体育"]', "nan", "没有找到任何实体", None, 1, "", " 体育 "]
    ),
    "category": st.sampled_from(["['体育']", ["体育"], "体育", None]),
    "label": st.sampled_from(["体育", "军事", None, TAGS]),
    "Category": st.just("体育"),
    "options": st.sampled_from([None, ["体育"]]),
    "data": st.sampled_from([{"text": "甲"}, "甲"]),
    "messages": st.just([{"role": "user", "content": "甲"}]),
    "instruction": st.sampled_from(["甲", None]),
    "answer": st.sampled_from(["accept", "reject", "甲"]),
    "tokens": st.just(list(TEXT)),
    "ner_tags": st.just(TAGS),
    "id": st.just(1),
}


@given(st.fixed_dictionaries({}, optional=FIELDS), st.sampled_from(["label", "entities"]))
def test_a_row_in_the_original_shape_reads_the_same_the_quick_way(row, answers):
    def shaped(quick: bool) -> object:
        with pytest.MonkeyPatch.context() as patch:
            if not quick:
                patch.setattr("sft.data.shapes._is_original", lambda fields, answers: False)
            try:
                return {name: str(value) for name, value in shape_row(row, answers).items()}
            except RowError as error:
                return str(error)

    assert shaped(True) == shaped(False)


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"text": list("赵一到"), "marks": ["B-PER", "I-PER", "O"]}, Columns(label="marks")),
        ({"hanzi": list("赵一到"), "marks": ["B-PER", "I-PER", "O"]}, Columns(text="hanzi", label="marks")),
        ({"hanzi": list("赵一到"), "tags": ["B-PER", "I-PER", "O"]}, Columns(text="hanzi")),
        ({"hanzi": "赵 一 到", "marks": "B-PER I-PER O"}, Columns(text="hanzi", label="marks")),
        ({"hanzi": "赵 一 到", "bio": "B-PER I-PER O", "text": "别的"}, Columns(text="hanzi")),
        ({"sentence": "赵 一 到", "bio": "B-PER I-PER O"}, Columns(text="sentence", label="bio")),
        ({"hanzi": "赵一到", "marks": "B-PER I-PER O"}, Columns(text="hanzi", label="marks")),
    ],
)
def test_columns_of_any_name_are_read_if_they_are_named(row, columns):
    shaped = shape_row(row, "entities", columns)
    assert shaped["text"] == "赵一到"
    assert [(e["start_idx"], e["end_idx"], e["entity_label"]) for e in shaped["entities"]] == [(0, 2, "PER")]


def test_bios_marks_single_characters_and_no_ends():
    marks = ["B-PER", "I-PER", "O", "S-LOC", "S-LOC"]
    row = shape_row({"tokens": list("赵一到沪京"), "ner_tags": marks}, "entities")
    assert places(row) == [(0, 2, "PER"), (3, 4, "LOC"), (4, 5, "LOC")]


ENTITIES_BY_TOKEN = {
    "SpERT": ("tokens", "entities", [{"type": "PER", "start": 0, "end": 2}, {"type": "LOC", "start": 3, "end": 5}]),
    "W2NER": ("sentence", "ner", [{"index": [0, 1], "type": "PER"}, {"index": [3, 4], "type": "LOC"}]),
    "lists": ("words", "spans", [[0, 2, "PER"], [3, 5, "LOC"]]),
}


@pytest.mark.parametrize("name", ENTITIES_BY_TOKEN)
def test_entities_of_characters_in_a_list_are_counted_by_the_character(name):
    tokens, field, entities = ENTITIES_BY_TOKEN[name]
    row = shape_row({tokens: list(TEXT), field: entities, "relations": []}, "entities")
    assert row["text"] == TEXT
    assert places(row) == PLACES
    assert shape_row({tokens: list(TEXT), field: []}, "entities")["entities"] == []
    assert shape_row({"tokens": list(TEXT), "ner_tags": []}, "entities")["entities"] is None, "no tags are no entities"


def test_inclusive_places_of_characters_in_a_list_are_seen_in_the_whole_file(tmp_path):
    rows = [
        {
            "tokens": list(TEXT),
            "entities": [{"type": "PER", "start": 0, "end": 1}, {"type": "LOC", "start": 3, "end": 4}],
        },
        {"tokens": list("去沪吧"), "entities": [{"type": "LOC", "start": 1, "end": 1}]},
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    assert places(next(row for _, _, row in read_rows(recognise(path, "entities")))) == PLACES


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"tokens": ["赵一", "到"], "entities": [{"type": "PER", "start": 0, "end": 1}]}, "不止一个字"),
        ({"sentence": list(TEXT), "ner": [{"index": [0, 3], "type": "PER"}]}, "不相连"),
    ],
)
def test_entities_of_words_or_in_pieces_are_rejected(row, reason):
    assert reason in shape_row(row, "entities")["entities"].reason
