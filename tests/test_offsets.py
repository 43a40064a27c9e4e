"""Offsets of entities in every field and unit: what they mean is shown by the data, or said, or refused."""

from __future__ import annotations

import json

import pytest

from sft.data.inputs import read_file
from sft.data.shapes import shape_row
from sft.errors import RowError
from sft.prediction.rows import to_record
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


class TestEnds:
    """Whether ends are inclusive, in a file without the entities' texts: the whole file shows it."""

    @staticmethod
    def one(notation: str, start: int, end: int) -> tuple[str, object]:
        """The column of an entity and how it is written."""
        return {
            "span": ("entities", {"start": start, "end": end, "label": "LOC"}),
            "doccano": ("label", [start, end, "LOC"]),
            "plain": ("entities", {"start_idx": start, "end_idx": end, "entity_label": "LOC"}),
            "place": ("entities", {"span": [start, end], "type": "LOC"}),
        }[notation]

    def rows(self, notation: str, count: int = 9) -> list[dict]:
        field, entity = self.one(notation, 5, 6)
        return rows_with("第*天我去北京出差", entity, field, count)

    def row(self, notation: str, text: str, start: int, end: int) -> dict:
        field, entity = self.one(notation, start, end)
        return {"text": text, field: [entity]}

    @pytest.mark.parametrize("notation", ["span", "doccano", "plain", "place"])
    def test_an_entity_whose_start_is_its_end_shows_inclusive_ends_for_all(self, folder, notation):
        rows = [*self.rows(notation), self.row(notation, "他在京工作", 2, 2)]
        code, said = folder.convert("ner", lines(rows), name="raw.jsonl")
        assert code == 0 and "终点按含最后一个字读（如第 10 行）" in said and folder.report()["rejected"] == 0
        assert found(folder) == {(5, "北京"), (2, "京")}

    def test_a_table_shows_it_too(self, folder):
        cells = [f'第{n}天我去北京出差,"[[5, 6, ""LOC""]]"\n' for n in range(9)] + ['他在京工作,"[[2, 2, ""LOC""]]"\n']
        code, said = folder.convert("ner", "text,entities\n" + "".join(cells))
        assert code == 0 and "含最后一个字" in said and found(folder) == {(5, "北京"), (2, "京")}

    def test_prediction_reads_the_file_as_conversion_does(self, tmp_path):
        path = tmp_path / "raw.jsonl"
        path.write_text(lines([*self.rows("span"), self.row("span", "他在京工作", 2, 2)]), encoding="utf-8")
        task = Ner.with_labels(["LOC"])
        records = [to_record(row, task) for row in read_file(path, "entities")]
        assert [record["entities"][0]["text"] for record in records] == ["北京"] * 9 + ["京"]

    def test_it_may_stand_far_down_in_the_file(self, folder):
        rows = [{"text": f"{n}天我去北京出差", "label": [[7, 8, "LOC"]]} for n in range(1000, 3000)]
        rows.append(self.row("doccano", "他在京工作", 2, 2))
        code, said = folder.convert("ner", lines(rows), name="raw.jsonl")
        assert code == 0 and "（如第 2001 行）" in said and found(folder) == {(7, "北京"), (2, "京")}

    @pytest.mark.parametrize(
        "exclusive", [("我爱北京", 2, 4), ("在北京，", 1, 3)], ids=["at the end", "before a comma"]
    )
    def test_rows_that_contradict_each_other_are_refused(self, folder, exclusive):
        rows = [*self.rows("span"), self.row("span", "他在京工作", 2, 2), self.row("span", *exclusive)]
        code, said = folder.convert("ner", lines(rows), name="raw.jsonl")
        assert code == 2 and "第 10 行的起止相同" in said and "第 11 行的终点" in said and "加上原文" in said

    def test_a_slip_among_exclusive_ends_is_a_slip(self, folder):
        rows = [
            {"text": f"第{n}天去北京", "label": [[4 if n < 10 else 5, 6 if n < 10 else 7, "LOC"]]} for n in range(30)
        ]
        rows.append(self.row("doccano", "他在京工作", 2, 2))
        code, said = folder.convert("ner", lines(rows), name="raw.jsonl")
        assert code == 0 and "含最后一个字" not in said and folder.report()["rejected"] == 1
        assert {text for _, text in found(folder)} == {"北京"}

    def test_the_test_file_is_read_like_the_training_file(self, folder):
        (folder.path / "other.jsonl").write_text(lines(self.rows("span")), encoding="utf-8")
        rows = [self.row("span", f"他在京工作{n}", 2, 2) for n in range(9)]
        test = ["--input_test_file", str(folder.path / "other.jsonl")]
        code, said = folder.convert("ner", lines(rows), *test, name="raw.jsonl")
        assert code == 0 and "终点和 raw.jsonl 一样含最后一个字" in said and found(folder) == {(2, "京"), (5, "北京")}


class TestEmojiInTheWholeFile:
    """Names that are known from other rows show whether an emoji counts as two."""

    PLAIN = rows_with("我在深圳*", [2, 4, "X"], "label")

    @pytest.mark.parametrize(("start", "end", "said_so"), [(6, 8, "按 UTF-16 读"), (4, 6, "位置按字数读")])
    def test_known_names_settle_it(self, folder, start, end, said_so):
        rows = self.PLAIN + rows_with("😂👍人在深圳真热*", [start, end, "X"], "label")
        code, said = folder.convert("ner", lines(rows), name="raw.jsonl")
        assert code == 0 and said_so in said and "若是按" not in said
        assert found(folder) == {(2, "深圳"), (4, "深圳")}

    def test_offsets_outside_of_the_text_settle_it(self, folder):
        rows = rows_with("*😂👍人在深圳", [7, 9, "X"], "label")
        code, said = folder.convert("ner", lines(rows), name="raw.jsonl")
        assert code == 0 and "按 UTF-16 读" in said and found(folder) == {(5, "深圳")}
