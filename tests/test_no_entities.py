"""Files for other tasks, or for half of one, are refused with what to do. Run: pytest tests/test_no_entities.py"""

from __future__ import annotations

import json

import pytest

from sft.data.arguments import ReadOptions
from sft.data.formats import recognise
from sft.data.readers import read_rows
from sft.errors import InputError

SENTENCES, TAGS = "赵 一 到 青 湖\n今 天 没 课\n", "B-PER I-PER O B-LOC I-LOC\nO O O O\n"
UIE = {"content": "赵一到青湖", "result_list": [{"text": "赵一", "start": 0, "end": 2}], "prompt": "人名"}
MRC = {"context": "赵 一 到 青 湖", "query": "找出人名", "start_position": [0], "end_position": [1]}


@pytest.mark.parametrize(
    ("row", "advice"),
    [
        (UIE, "doccano_ext"),
        (MRC, "并成一句一行"),
        ({"text": "赵一到青湖", "spo_list": [{"subject": "赵一", "predicate": "到", "object": "青湖"}]}, "关系抽取"),
        ({"text": "赵一到青湖", "h": {"pos": [0, 2]}, "t": {"pos": [3, 5]}, "relation": "到"}, "关系抽取"),
    ],
    ids=["UIE", "MRC", "triples", "pairs"],
)
@pytest.mark.parametrize("name", ["rows.txt", "rows.json"])
def test_rows_without_whole_entities_are_refused(tmp_path, row, advice, name):
    path = tmp_path / name
    path.write_text(f"{json.dumps(row, ensure_ascii=False)}\n" * 3, encoding="utf-8")
    with pytest.raises(InputError, match=advice):
        recognise(path, "entities")
    recognise(path, "entities", ReadOptions(text_column=next(iter(row))), gold=False)


def test_rows_of_one_question_are_refused_even_if_their_field_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(UIE, ensure_ascii=False)}\n" * 3, encoding="utf-8")
    with pytest.raises(InputError, match="散在几行"):
        recognise(path, "entities", ReadOptions(label_column="result_list"))


def test_triples_beside_entities_do_not_matter(tmp_path):
    row = {
        "text": "赵一到青湖",
        "entity_list": [{"text": "赵一", "type": "PER", "start": 0, "end": 2}],
        "spo_list": [],
    }
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(row, ensure_ascii=False)}\n" * 3, encoding="utf-8")
    assert [row["entities"][0]["entity_text"] for _, _, row in read_rows(recognise(path, "entities"))] == ["赵一"] * 3


def test_sentences_and_tags_in_two_files_are_read_when_they_are_put_together_as_advised(tmp_path):
    for name, content in (("sentences.txt", SENTENCES), ("tags.txt", TAGS)):
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=r"paste sentences\.txt tags\.txt > all\.tsv"):
            recognise(tmp_path / name, "entities")
    together = zip(SENTENCES.splitlines(), TAGS.splitlines(), strict=True)
    path = tmp_path / "all.tsv"
    path.write_text("".join(f"{characters}\t{tags}\n" for characters, tags in together), encoding="utf-8")
    rows = [row for _, _, row in read_rows(recognise(path, "entities"))]
    assert [row["text"] for row in rows] == ["赵一到青湖", "今天没课"]
    assert [entity["entity_text"] for entity in rows[0]["entities"]] == ["赵一", "青湖"]


@pytest.mark.parametrize("last", [1, 0], ids=["inclusive", "exclusive"])
def test_entities_without_their_sentences_are_refused_with_how_to_put_them_together(tmp_path, last):
    path = tmp_path / "病史-1.txt"
    entities = [("青湖", 3, 5 - last, "地点"), ("赵一", 0, 2 - last, "人名"), ("沪", 9, 10 - last, "地点")]
    path.write_text("".join("\t".join(map(str, entity)) + "\n" for entity in entities), encoding="utf-8")
    with pytest.raises(InputError, match="并成 JSON 行"):
        recognise(path, "entities")
