"""Offsets of entities in every field and unit: what they mean is shown by the data, or said, or refused."""

from __future__ import annotations

import json

import pytest

from sft.data.shapes import shape_row
from sft.errors import RowError
from sft.tasks.ner import Ner
from tests.test_labels import Folder


@pytest.fixture
def folder(tmp_path, capsys) -> Folder:
    return Folder(tmp_path, capsys)


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def rows_with(text: str, entity: object, field: str = "entities", count: int = 9) -> list[dict]:
    """Rows with one entity each; ``*`` in the text is the number of the row."""
    return [{"text": text.replace("*", str(number)), field: [entity]} for number in range(1, count + 1)]


def found(folder: Folder) -> set[tuple[int, str]]:
    """Where each entity begins, and its text."""
    return {(entity["start"], entity["text"]) for row in folder.records() for entity in row["entities"]}


class TestOtherNames:
    """Numbers that say where an entity is are understood by their names, or by the text that stands there."""

    @pytest.mark.parametrize(
        "place",
        [
            {"start_char": 7, "end_char": 9},
            {"char_span": [7, 9]},
            {"token_begin": 4, "anfang": 7, "ende": 9},
            {"first": 7, "last": 8},
            {"where": [7, 9]},
            {"where": {"from": 7, "till": 9}},
            {"id": 3, "score": 1, "position": {"start": 7, "end": 9}},
        ],
        ids=str,
    )
    def test_an_entity_is_where_its_numbers_say(self, folder, place):
        rows = rows_with("上海人第*次去上海玩", {"text": "上海", "type": "LOC", **place})
        code, said = folder.convert("ner", lines(rows), name="raw.jsonl")
        assert code == 0 and found(folder) == {(7, "上海")} and "没有用" not in said

    def test_offsets_without_texts_have_these_names_too(self, folder):
        rows = rows_with("上海人第*次去上海玩", {"type": "LOC", "start_char": 7, "end_char": 9})
        assert folder.convert("ner", lines(rows), name="raw.jsonl")[0] == 0
        assert found(folder) == {(7, "上海")}

    def test_numbers_that_nobody_understands_are_told_where_they_could_matter(self, folder):
        entity = {"text": "上海", "type": "LOC", "row": 40, "column": 70}
        code, said = folder.convert("ner", lines(rows_with("上海人第*次去上海玩", entity)), name="raw.jsonl")
        assert (
            code == 0 and f"认不出是不是位置，没有用；原文出现不止一次的，放在最左边：9 行（如 {folder.path}" in said
        )
        code, said = folder.convert("ner", lines(rows_with("我第*次去上海玩", entity)), name="raw.jsonl")
        assert code == 0 and "没有用" not in said

    @pytest.mark.parametrize("more", [{"id": 7, "score": 9}, {"id": 7, "doc_id": 9}, {"confidence": 0.9, "rank": 1}])
    def test_ids_and_scores_are_no_places(self, folder, more):
        rows = rows_with("上海人第*次去上海玩", {"text": "上海", "type": "LOC", **more})
        code, said = folder.convert("ner", lines(rows), name="raw.jsonl")
        assert code == 0 and found(folder) == {(0, "上海")} and "没有用" not in said

    def test_an_entity_without_a_place_is_taken_once_if_it_is_written_twice(self, folder):
        row = {"text": "张三走了", "entities": [{"text": "张三", "label": "PER"}] * 2}
        raw = shape_row(row, "entities")
        assert len(Ner.convert(raw)["entities"]) == 1 and "只留一个" in raw["notes"][0]
        other = shape_row({"text": "张三走了", "entities": [["张三", "PER"], ["张三", "LOC"]]}, "entities")
        assert isinstance(other["entities"], RowError)


class TestEmptyCells:
    def test_an_empty_cell_is_no_entity_and_is_told(self, folder):
        cell = '"[{""start"": 4, ""end"": 6, ""label"": ""LOC""}]"'
        rows = [f"第{number}天去上海玩,{cell if number % 2 else ''}\n" for number in range(10)]
        code, said = folder.convert("ner", "text,entities\n" + "".join(rows))
        assert (
            code == 0
            and f"格子是空的，当作没有实体；没标过的行请先去掉：5 行（如 {folder.path / 'raw.csv'}:2）" in said
        )
        assert folder.report()["notes"][0]["rows"] == 5

    def test_words_that_say_so_are_not_told(self, folder):
        rows = rows_with("第*天去上海玩", {"start": 4, "end": 6, "label": "LOC"})
        rows += [{"text": f"第{number}天", "entities": nothing} for number, nothing in enumerate(["[]", [], "无"])]
        code, said = folder.convert("ner", lines(rows), name="raw.jsonl")
        assert code == 0 and "空的" not in said


class TestUnits:
    """Offsets without the entities' texts, in texts whose characters can be counted in two ways."""

    EMOJI = "😂👍人在深圳真热*"
    CRLF = "第一行\r\n张三去了*次北京。"

    @pytest.mark.parametrize(
        ("text", "start", "end", "told"),
        [
            (EMOJI, 4, 6, "表情符号算一个字"),
            (CRLF, 5, 7, "CRLF 算两个字"),
            ("今天 张三来了*", 2, 5, "头尾是空格或换行"),
        ],
    )
    @pytest.mark.parametrize("notation", ["span", "doccano", "plain"])
    def test_what_one_row_cannot_show_is_told(self, folder, text, start, end, told, notation):
        entity = {"span": {"start": start, "end": end, "label": "X"}, "doccano": [start, end, "X"],
                  "plain": {"start_idx": start, "end_idx": end, "entity_label": "X"}}[notation]  # fmt: skip
        rows = rows_with(text, entity, "label" if notation == "doccano" else "entities")
        code, said = folder.convert("ner", lines(rows), name="raw.jsonl")
        assert code == 0 and told in said and "：9 行（如 " in said
        assert found(folder) == {(start, text[start:end])}

    def test_nothing_is_told_of_entities_before_these_characters_or_with_their_texts(self, folder):
        rows = rows_with("深圳真热😂\r\n真的*", {"start": 0, "end": 2, "label": "X"})
        rows += rows_with("😂\r\n深圳真热*", {"start": 3, "end": 5, "label": "X", "text": "深圳"})
        code, said = folder.convert("ner", lines(rows), name="raw.jsonl")
        assert code == 0 and "算" not in said

    @pytest.mark.parametrize(("text", "start", "end", "doubt"), [
        (CRLF, 4, 6, "CRLF"), (EMOJI.replace("真", " "), 5, 7, "UTF-16")])  # fmt: skip
    def test_where_a_blank_stands_at_the_edge_as_well_the_row_is_rejected(self, folder, text, start, end, doubt):
        rows = rows_with("我在深圳*", {"start": 2, "end": 4, "label": "X"}, count=20)
        rows += rows_with(text, {"start": start, "end": end, "label": "X"}, count=2)
        code, said = folder.convert("ner", lines(rows), name="raw.jsonl")
        assert code == 0 and folder.report()["rejected"] == 2 and doubt in said and "看不出" in said
