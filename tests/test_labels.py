"""What becomes of labels in conversion: renamed, unwanted, forgotten, several in one row."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import transfer_classification_data
import transfer_ner_data
from sft.data.places import path_of_test, path_of_train
from sft.data.rejections import joined_labels
from sft.errors import InputError, RowError
from sft.tasks.classification import Classification
from sft.tasks.ner import CCFBDCI_LABELS, Ner
from sft.tasks.options import options_from_flag
from sft.tasks.settings import TaskSettings
from sft.training.prepare import find_test_file

SCRIPTS = {"cls": transfer_classification_data.main, "ner": transfer_ner_data.main}
CASES = Path(__file__).resolve().parents[2] / "shared/cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="the cases of ../shared/cases are not there")


class Folder:
    """Runs the transfer scripts in a folder and reads what they write."""

    def __init__(self, path: Path, capsys) -> None:
        self.path, self._capsys = path, capsys

    def convert(self, task: str, raw: Path | str, *flags: str, name: str = "raw.csv") -> tuple[int, str]:
        """Convert a file or its content; returns exit code and what was said. A refused file leaves nothing behind."""
        if isinstance(raw, str):
            (self.path / name).write_text(raw, encoding="utf-8")
            raw = self.path / name
        train = self.path / "out/train.jsonl"
        code = SCRIPTS[task](["--input_file", str(raw), "--output_file", str(train), "--test_ratio", "0.34", *flags])
        said = self._capsys.readouterr().err
        if code == 2:
            assert said.count("\n") == 1
            assert not train.parent.exists() or not list(train.parent.iterdir())
        else:
            report = self.report()
            parts = ("converted", "rejected", "merged", "leaked", "left_out")
            assert report["read"] == sum(report[part] for part in parts)
            assert report["converted"] == len(self.records())
            assert report["rejected"] == sum(reason["rows"] for reason in report["rejected_reasons"])
        return code, said

    def report(self) -> dict:
        return json.loads((self.path / "out/train.report.json").read_bytes())

    def task(self) -> dict:
        return json.loads((self.path / "out/train.task.json").read_bytes())

    def records(self) -> list[dict]:
        files = [self.path / f"out/{side}.jsonl" for side in ("train", "test")]
        return [orjson.loads(line) for file in files for line in file.read_bytes().splitlines()]


@pytest.fixture
def folder(tmp_path, capsys) -> Folder:
    return Folder(tmp_path, capsys)


def table(labels: list[str]) -> str:
    return "text,label\n" + "".join(f"第{number}条,{label}\n" for number, label in enumerate(labels))


def fudan(options: list[str], labels: list[str]) -> str:
    rows = [{"text": f"第{n}条", "category": options, "output": label} for n, label in enumerate(labels)]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def sentences(*labels: list[str]) -> str:
    """Sentences with one entity for each label, side by side."""
    rows = []
    for number, row_labels in enumerate(labels):
        entities = [{"start": 2 * place, "end": 2 * place + 2, "label": name} for place, name in enumerate(row_labels)]
        rows.append({"text": "甲乙" * len(row_labels) + f"第{number}句", "entities": entities})
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


class TestRenaming:
    @needs_cases
    def test_numbers_get_names(self, folder):
        code, _ = folder.convert("cls", CASES / "03-labels-rename.csv", "--labels", "1=好评,0=差评")
        assert code == 0
        assert folder.report()["labels"] == {"好评": 5, "差评": 5}
        assert {tuple(record["options"]) for record in folder.records()} == {("好评", "差评")}
        assert folder.task()["names"] == {"1": "好评", "0": "差评"}

    def test_a_rows_own_options_are_renamed_with_its_label(self, folder):
        raw = fudan(["pos", "neg", "neutral"], ["pos", "neg", "neutral"] * 4)
        assert folder.convert("cls", raw, "--labels", "pos=好,neg=坏", name="raw.jsonl")[0] == 0
        for record in folder.records():
            assert list(record["options"]) == ["好", "坏", "neutral"]
            assert record["messages"][-1]["content"] == record["label"] in record["options"]

    def test_several_labels_may_get_one_name(self, folder):
        raw = table(["1", "2", "4", "5"] * 5)
        assert folder.convert("cls", raw, "--labels", "1=差评,2=差评,4=好评,5=好评")[0] == 0
        assert folder.report()["labels"] == {"差评": 10, "好评": 10}
        assert folder.task()["labels"] == ["差评", "好评"]

    def test_two_labels_may_exchange_their_names(self, folder):
        assert folder.convert("cls", table(["0"] * 6 + ["1"] * 3), "--labels", "0=1,1=0")[0] == 0
        assert folder.report()["labels"] == {"1": 6, "0": 3}

    def test_a_label_of_the_flag_that_the_data_lack_is_named(self, folder):
        code, said = folder.convert("cls", table(["好", "坏"] * 6), "--labels", "好,坏,中")
        assert code == 0 and "--labels 里的 中 在数据里一次也没有出现" in said

    def test_ccfbdci_keeps_its_names(self, folder):
        raw = sentences(["GPE", "PER"], ["GPE"], ["LOC", "ORG"], [], ["GPE"], [])
        raw = raw.replace('"start"', '"start_idx"').replace('"end"', '"end_idx"').replace('"label"', '"entity_label"')
        assert folder.convert("ner", raw, name="raw.jsonl")[0] == 0
        assert folder.task()["names"] == CCFBDCI_LABELS

    @pytest.mark.parametrize(
        "task", [Classification(("甲",), names={"a": "甲"}), Ner.with_labels(["甲"], {"a": "甲"})]
    )
    def test_names_are_kept_in_the_task_file_and_one_without_them_can_be_read(self, task, tmp_path):
        path = tmp_path / "x.task.json"
        TaskSettings(task).write(path)
        assert TaskSettings.read(path).task == task
        content = json.loads(path.read_bytes())
        del content["names"], content["sha256"]  # as an older version wrote it
        path.write_text(json.dumps(content), encoding="utf-8")
        assert TaskSettings.read(path).task.labels == ("甲",)
        for broken in ([], {"a": 1}, "a=甲"):
            path.write_text(json.dumps(content | {"names": broken}), encoding="utf-8")
            with pytest.raises(InputError, match="names"):
                TaskSettings.read(path)


class TestForgotten:
    def test_a_label_missing_from_the_flag_is_an_error_with_the_reasons_counted(self, folder):
        raw = sentences(*[["PROD"]] * 50, *[["FAULT", "BRAND"]] * 20, *[[]] * 10)
        code, said = folder.convert("ner", raw, "--labels", "FAULT=故障,BRAND=品牌", name="raw.jsonl")
        assert code == 2
        assert "80 行里有 50 行不能用（超过 20%），跳过它们只剩 30 行" in said
        assert "标签 'PROD' 不在 --labels 里 50 行（如第 1 行）" in said and "--other_labels drop" in said

    def test_reasons_come_with_the_most_frequent_first(self, folder):
        raw = table(["丙"] * 2 + ["甲", "乙"] * 3 + ["丁"] * 5)
        code, said = folder.convert("cls", raw, "--labels", "甲,乙")
        assert code == 2
        assert said.index("标签 '丁' 不在 --labels 里 5 行（如第 10 行）") < said.index(
            "标签 '丙' 不在 --labels 里 2 行"
        )

    def test_a_fifth_may_be_bad_and_is_counted_by_reason(self, folder):
        code, said = folder.convert("cls", table(["甲", "乙"] * 8 + ["丙"] * 3 + [""]), "--labels", "甲,乙")
        assert code == 0
        reasons = [(reason["reason"], reason["rows"]) for reason in folder.report()["rejected_reasons"]]
        assert reasons == [("标签 '丙' 不在 --labels 里", 3), ("标签是空的", 1)]
        assert "标签 '丙' 不在 --labels 里 3 行（如 " in said and "raw.csv:18）" in said

    def test_of_many_rows_only_one_in_a_hundred_may_be_bad(self, folder):
        code, said = folder.convert("cls", table(["甲", "乙"] * 500 + ["丙"] * 20), "--labels", "甲,乙")
        assert code == 2 and "超过 1%" in said

    @pytest.mark.parametrize("labels", ["甲", "甲,乙"])
    def test_one_class_left_is_refused_and_says_where_the_others_went(self, folder, labels):
        rows = ["甲"] * 20 + ["丙"] * 3
        code, said = folder.convert("cls", table(rows), "--labels", labels)
        assert code == 2 and "只有 '甲' 一类" in said and "标签 '丙' 不在 --labels 里 3 行" in said

    def test_data_of_one_class_or_without_entities_teach_nothing(self, folder):
        code, said = folder.convert("cls", table(["甲"] * 20))
        assert code == 2 and "只有 '甲' 一类" in said and "--labels 里" not in said
        code, said = folder.convert("ner", sentences(*[[]] * 20), "--labels", "甲", name="raw.jsonl")
        assert code == 2 and "没有一个实体" in said

    def test_no_entity_left_is_refused_with_what_was_dropped(self, folder):
        flags = ("--labels", "PER=人名", "--other_labels", "drop")
        code, said = folder.convert("ner", sentences(*[["LOC"]] * 6), *flags, name="raw.jsonl")
        assert code == 2 and "没有一个实体" in said and "LOC 6" in said

    def test_an_official_test_file_may_have_one_class(self, folder, tmp_path):
        test = tmp_path / "official.csv"
        test.write_text("text,label\n另一条,甲\n", encoding="utf-8")
        assert folder.convert("cls", table(["甲", "乙"] * 5), "--input_test_file", str(test))[0] == 0

    def test_a_training_file_of_one_class_is_not_saved_by_the_official_test_file(self, folder, tmp_path):
        test = tmp_path / "official.csv"
        test.write_text("text,label\n另一条,甲\n又一条,乙\n", encoding="utf-8")
        code, said = folder.convert("cls", table(["甲"] * 10), "--input_test_file", str(test))
        assert code == 2 and "raw.csv" in said and "只有 '甲' 一类" in said


class TestSubset:
    @needs_cases
    def test_entities_of_other_labels_are_dropped_and_their_sentences_stay(self, folder):
        raw = CASES / "36-subset-of-labels.jsonl"
        code, said = folder.convert("ner", raw, "--labels", "PER=人名", "--other_labels", "drop")
        assert code == 0 and "LOC 2" in said
        assert len(folder.records()) == 6
        assert folder.report()["labels"] == {"人名": 3} and folder.report()["dropped_labels"] == {"LOC": 2}

    def test_a_dropped_entity_is_in_nobodys_way(self, folder):
        """Nested in a wanted one, or past the end of the text: only what is wanted has to be right."""
        row = {"text": "南京大学在哪", "entities": [
            {"start": 0, "end": 4, "label": "ORG"}, {"start": 0, "end": 2, "label": "LOC"},
            {"start": 5, "end": 99, "label": "LOC"},
        ]}  # fmt: skip
        raw = json.dumps(row, ensure_ascii=False) + "\n" + sentences(["ORG"], [], ["LOC"], [])
        flags = ("--labels", "ORG=组织", "--other_labels", "drop")
        assert folder.convert("ner", raw, *flags, name="raw.jsonl")[0] == 0
        assert folder.report()["rejected"] == 0 and folder.report()["dropped_labels"] == {"LOC": 3}

    def test_rows_of_other_classes_are_left_out_and_counted_not_rejected(self, folder):
        flags = ("--labels", "1=好评,0=差评", "--other_labels", "drop")
        code, said = folder.convert("cls", table(["0", "1", "2"] * 5 + ["3"]), *flags)
        assert code == 0 and "没有要的 6" in said and "2 5，3 1" in said
        report = folder.report()
        assert (report["read"], report["converted"], report["rejected"], report["left_out"]) == (16, 10, 0, 6)

    def test_unwanted_options_of_a_row_go_with_them(self, folder):
        raw = fudan(["甲", "乙", "丙"], ["甲", "乙", "丙"] * 4)
        assert folder.convert("cls", raw, "--labels", "甲,乙", "--other_labels", "drop", name="raw.jsonl")[0] == 0
        assert {tuple(record["options"]) for record in folder.records()} == {("甲", "乙")}
        assert folder.report()["left_out"] == 4

    @pytest.mark.parametrize("task", SCRIPTS)
    def test_it_needs_to_know_the_wanted_ones(self, folder, task):
        raw = {"cls": table(["甲", "乙"] * 5), "ner": sentences(*[["甲"]] * 9)}[task]
        name = {"cls": "raw.csv", "ner": "raw.jsonl"}[task]
        code, said = folder.convert(task, raw, "--other_labels", "drop", name=name)
        assert code == 2 and "--labels" in said


class TestSeveralLabels:
    @needs_cases
    def test_labels_joined_in_a_cell(self, folder):
        for flags in ((), ("--labels", "体育,交通"), ("--labels", "体育,交通", "--other_labels", "drop")):
            code, said = folder.convert("cls", CASES / "26-multi.csv", *flags)
            assert code == 2 and "6 行有几个标签（多标签 multi-label" in said
            assert "第 2 行" in said or "26-multi.csv:2 的 '体育|交通'" in said

    @pytest.mark.parametrize(
        "separator", ["|", ";", "；", "/", "、", "，", " ", " | ", "; ", "┋", "+", "＋", "&", " & "]
    )
    def test_any_usual_separator(self, folder, separator):
        code, said = folder.convert("cls", table(["甲", "乙", f"甲{separator}乙", f"乙{separator}甲"] * 3))
        assert code == 2 and "6 行有几个标签（多标签 multi-label" in said

    def test_the_column_and_the_labels_are_named(self, folder):
        rows = [
            {"fact": f"第{at}人进店拿走手机", "meta": {"charge": ["盗窃", "抢劫"][: at % 2 + 1]}} for at in range(9)
        ]
        code, said = folder.convert("cls", json.dumps(rows), "--label_column=meta.charge", name="raw.json")
        assert code == 2 and "4 行有几个标签" in said and " meta.charge：盗窃、抢劫）" in said
        code, said = folder.convert("cls", json.dumps(rows), name="raw.json")
        assert code == 2 and "请用 --label_column 指明，meta 里面有 charge，写成 meta.charge" in said

    @pytest.mark.parametrize("vectors", [[[0, 0, 0], [0, 1, 0]], ["[0, 0, 0]", "[0, 0, 0]"], [[0.0, 0.0], [1.0, 1.0]]])
    def test_a_vector_is_no_label(self, folder, vectors):
        """Only zeros were the label 0."""
        rows = [{"text": f"第{at}句话", "toxic": at % 2, "target": vectors[at % 2]} for at in range(10)]
        code, said = folder.convert("cls", json.dumps(rows), name="raw.json")
        assert code == 2 and "target：是几个 0、1 的列表，像 one-hot 向量" in said
        assert folder.convert("cls", json.dumps(rows), "--label_column=toxic", name="raw.json")[0] == 0

    def test_rows_that_all_have_several_labels(self, folder):
        code, said = folder.convert("cls", table(["甲|乙", "乙|丙", "丙|甲"] * 3))
        assert code == 2 and "9 行有几个标签（多标签 multi-label" in said

    @pytest.mark.parametrize(
        "labels",
        [
            ["家居/床品", "家居/厨具", "服装/女装"],
            ["New York", "New Delhi", "Rome"],
            ["科技|手机", "科技|电脑"],
            ["A+", "A", "B+"],
            ["C++", "C#", "C"],
            ["AT&T", "AT", "R&D"],
            ["母婴+玩具", "母婴&玩具", "服装"],
        ],
    )
    def test_a_name_with_a_separator_is_one_label(self, folder, labels):
        assert folder.convert("cls", table(labels * 5))[0] == 0
        assert folder.report()["labels"] == dict.fromkeys(sorted(labels), 5)
        assert folder.report()["corrected_labels"] == []

    def test_a_joined_name_that_the_flag_lists_is_one_label(self, folder):
        assert folder.convert("cls", table(["甲", "乙", "甲/乙"] * 4), "--labels", "甲,乙,甲/乙")[0] == 0
        assert folder.report()["labels"]["甲/乙"] == 4

    def test_too_many_joined_labels_are_told_from_a_wrong_column(self, folder):
        names = [f"类{number}" for number in range(40)]
        code, said = folder.convert("cls", table(names + [f"{a}|{b}" for a in names for b in names if a != b]))
        assert code == 2 and "multi-label" in said

    @pytest.mark.parametrize("end", [";", "；", "、", "，", "┋", "; "])
    def test_a_cell_that_ends_with_its_separator(self, folder, end):
        """Microsoft Forms writes one so after each label."""
        code, said = folder.convert("cls", table([f"甲{end}", f"乙{end}", f"甲{end}乙{end}", f"乙{end}甲{end}"] * 3))
        assert code == 2 and "6 行有几个标签（多标签 multi-label" in said

    def test_lists_of_labels(self, folder):
        rows = [{"text": f"第{n}条", "output": ["甲", "乙"] if n % 3 == 0 else "甲"} for n in range(9)]
        raw = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        code, said = folder.convert("cls", raw, name="raw.jsonl")
        assert code == 2 and "3 行有几个标签（多标签 multi-label" in said

    def test_one_text_in_several_rows(self, folder):
        raw = table(["甲"] * 10) + "".join(f"第{number}条,乙\n" for number in range(4))
        code, said = folder.convert("cls", raw)
        assert code == 2 and "4 行有几个标签（多标签 multi-label" in said and "10 段不同的文本里有 4 段" in said

    def test_a_few_contradictions_are_kept_and_shown(self, folder):
        raw = table(["甲", "乙"] * 10) + "第0条,乙\n第1条,甲\n第2条,乙\n"
        code, said = folder.convert("cls", raw)
        assert code == 0 and "同一文本标注不同的有 3 行" in said

    @given(st.sets(st.text("甲乙丙丁", min_size=1, max_size=2), min_size=2, max_size=6), st.sampled_from("|;；/、,，"))
    def test_every_pair_of_labels_is_found_and_no_label_alone(self, labels, separator):
        names = sorted(labels)
        pairs = [f"{left}{separator}{right}" for left in names for right in names if left < right]
        assert sorted(joined_labels(dict.fromkeys(names + pairs, 1))) == sorted(pairs)
        assert joined_labels(dict.fromkeys(names, 1)) == []


class TestCorrected:
    @pytest.mark.parametrize("unseen", ["\u200b", "\ufeff", "\u2060", "\u200d", "\u200e", "\xad"])
    def test_labels_that_look_the_same_are_one(self, folder, unseen):
        labels = ["甲", "乙", f"{unseen}甲", f"乙{unseen}", "甲"] * 4
        code, said = folder.convert("cls", table(labels))
        assert code == 0 and folder.report()["labels"] == {"甲": 12, "乙": 8} == count_of(folder, "label")
        assert f"标签里去掉了看不见的字符或末尾的分隔符：{unseen + '甲'!r} → 甲 4，{'乙' + unseen!r} → 乙 4" in said
        raw = sentences(*[[label] for label in labels])
        code, said = folder.convert("ner", raw, name="raw.jsonl")
        assert code == 0 and folder.report()["labels"] == {"甲": 12, "乙": 8}
        assert f"{'乙' + unseen!r} → 乙 4" in said
        assert folder.task()["labels"] == ["甲", "乙"]

    @pytest.mark.parametrize("end", [";", "；", "、", "，", "|", "┋", " ; "])
    def test_a_separator_after_a_label_is_no_part_of_it(self, folder, end):
        code, said = folder.convert("cls", table(["甲", "乙", f"甲{end}"] * 4))
        assert code == 0 and folder.report()["labels"] == {"甲": 8, "乙": 4}
        assert "末尾的分隔符" in said

    def test_the_flag_and_a_rows_options_are_cleaned_alike(self, folder):
        raw = fudan(["甲\u200b", "乙;"], ["甲", "乙"] * 6)
        assert folder.convert("cls", raw, "--labels", "甲\ufeff=好,乙=坏", name="raw.jsonl")[0] == 0
        assert folder.report()["labels"] == {"好": 6, "坏": 6}

    def test_emoji_and_punctuation_stay_what_they_are(self, folder):
        labels = ["👨\u200d👩", "👨👩", "，", "、", "C++"]
        code, said = folder.convert("cls", table([f'"{label}"' for label in labels] * 4))
        assert code == 0 and folder.report()["labels"] == dict.fromkeys(sorted(labels), 4)
        assert "去掉" not in said


def count_of(folder: Folder, field: str) -> dict[str, int]:
    return Counter(record[field] for record in folder.records())


class TestFlag:
    """Labels on the command line, and what separates them."""

    @pytest.mark.parametrize(
        "labels", ["甲,乙", "甲，乙", "甲、乙", "甲;乙", "甲； 乙", '["甲", "乙"]', "['甲', '乙']"]
    )
    def test_the_usual_separators(self, folder, labels):
        assert folder.convert("cls", table(["甲", "乙"] * 6), "--labels", labels)[0] == 0
        assert folder.task()["labels"] == list(options_from_flag(labels)) == ["甲", "乙"]

    @pytest.mark.parametrize("labels", ["PER=人,LOC=地", "PER=人、LOC=地", "PER＝人；LOC＝地", '["PER=人", "LOC=地"]'])
    def test_names_too(self, folder, labels):
        raw = sentences(*[["PER"], ["LOC"]] * 6)
        assert folder.convert("ner", raw, "--labels", labels, name="raw.jsonl")[0] == 0
        assert folder.task()["names"] == {"PER": "人", "LOC": "地"}

    @pytest.mark.parametrize("labels", ["甲,乙,丙、丁", '["甲", "乙", "丙、丁"]'])
    def test_a_label_may_hold_a_separator(self, folder, labels):
        assert folder.convert("cls", table(["甲", "乙", "丙、丁"] * 6), "--labels", labels)[0] == 0
        assert folder.task()["labels"] == ["甲", "乙", "丙、丁"]

    def test_in_doubt_the_user_is_asked(self, folder):
        with pytest.raises(InputError, match="看不出 '丙、丁' 是一个标签还是几个"):
            options_from_flag("甲,丙、丁")
        assert options_from_flag('["甲", "丙、丁"]') == ("甲", "丙、丁")
        raw = sentences(*[["PER"], ["LOC"]] * 6)
        for labels in ("PER=人 LOC=地", "PER=人、LOC", "[PER", '["PER", 1]'):
            code, said = folder.convert("ner", raw, "--labels", labels, name="raw.jsonl")
            assert code == 2 and "--labels：" in said and "标签" in said, labels

    @pytest.mark.parametrize("task", SCRIPTS)
    @pytest.mark.parametrize("labels", ["甲 乙", "丙,甲、乙"])
    def test_a_label_that_was_not_separated_is_named(self, folder, task, labels):
        raw = {"cls": table(["甲", "乙"] * 5), "ner": sentences(*[["甲"], ["乙"]] * 5)}[task]
        name = {"cls": "raw.csv", "ner": "raw.jsonl"}[task]
        code, said = folder.convert(task, raw, "--labels", labels, name=name)
        whole = labels.removeprefix("丙,")
        assert code == 2 and f"标签 '甲' 不在 --labels 里（{whole!r} 在那里是一个标签；几个标签之间要用逗号）" in said


class TestNested:
    NESTED = '{"text": "南京大学在哪", "entities": [[0, 4, "ORG"], [0, 2, "LOC"]]}\n'.replace("entities", "label")
    CROSSING = '{"text": "上海南京大学", "label": [[0, 4, "LOC"], [2, 6, "ORG"]]}\n'
    PLAIN = "".join(f'{{"text": "到上海{n}", "label": [[1, 3, "LOC"]]}}\n' for n in range(10))

    @pytest.mark.parametrize("row", [NESTED, CROSSING], ids=["nested", "crossing"])
    def test_too_many_are_refused_by_name_with_their_count(self, folder, row):
        rows = "".join(row.replace("在哪", f"在{n}").replace("上海", f"上{n}", 1) for n in range(4))
        code, said = folder.convert("ner", rows + self.PLAIN, name="raw.jsonl")
        assert code == 2 and "实体重叠（嵌套 nested） 4 行" in said and "只剩 10 行" in said

    def test_a_few_are_rejected_and_counted_by_name(self, folder):
        code, said = folder.convert("ner", self.NESTED + self.PLAIN, name="raw.jsonl")
        assert code == 0 and "实体重叠（嵌套 nested） 1 行" in said

    @pytest.mark.parametrize(("kept", "entities"), [("outer", ["南京大学"]), ("inner", ["南京"])])
    def test_the_flag_of_the_advice_keeps_the_outer_or_the_inner_ones(self, folder, kept, entities):
        rows = "".join(self.NESTED.replace("在哪", f"在{n}") for n in range(4))
        assert f"--nested {kept}" in folder.convert("ner", rows + self.PLAIN, name="raw.jsonl")[1]
        code, said = folder.convert("ner", rows + self.PLAIN, "--nested", kept, name="raw.jsonl")
        assert code == 0 and "拒绝 0" in said and f"只留{'外' if kept == 'outer' else '内'}层：4 行" in said
        found = [[e["text"] for e in record["entities"]] for record in folder.records() if "南京" in record["text"]]
        assert found == [entities] * 4

    def test_two_labels_of_the_same_characters_are_an_error_with_the_flag_too(self, folder):
        row = '{"text": "南京大学在哪", "label": [[0, 4, "ORG"], [0, 4, "LOC"], [0, 2, "LOC"]]}\n'
        code, said = folder.convert("ner", row + self.PLAIN, "--nested", "outer", name="raw.jsonl")
        assert code == 0 and "同一个实体有两个标签 1 行" in said


class TestRepeated:
    """An entity that is written twice is one entity; the same characters with two labels are a mistake."""

    ONCE = '{"start": 0, "end": 2, "label": "PER"}'

    def rows(self, *entities: str) -> str:
        return "".join(f'{{"text": "张三走了{n}", "entities": [{", ".join(entities)}]}}\n' for n in range(9))

    @pytest.mark.parametrize("between", ["", '{"start": 2, "end": 3, "label": "V"}'], ids=["alone", "with another"])
    def test_is_taken_once_and_counted(self, folder, between):
        written = [self.ONCE, *filter(None, [between]), self.ONCE]
        code, said = folder.convert("ner", self.rows(*written), name="raw.jsonl")
        assert code == 0 and f"只留一个：9 行（如 {folder.path / 'raw.jsonl'}:1）" in said
        assert all(
            [e["text"] for e in row["entities"]] == ["张三", *["走"][: bool(between)]] for row in folder.records()
        )

    def test_is_taken_once_in_brat_too(self, folder):
        (folder.path / "raw.txt").write_text("张三走了\n李四来了\n王五\n", encoding="utf-8")
        marks = [
            f"T{n}\tPER {at} {at + 2}\t{name}\n"
            for n, (at, name) in enumerate([(0, "张三"), (0, "张三"), (5, "李四")])
        ]
        (folder.path / "raw.ann").write_text("".join(marks), encoding="utf-8")
        code, said = folder.convert("ner", folder.path / "raw.txt")
        assert code == 0 and "只留一个：1 行" in said and folder.report()["labels"] == {"PER": 2}

    def test_with_two_labels_it_is_refused_and_the_advice_fits(self, folder):
        rows = self.rows(self.ONCE, self.ONCE.replace("PER", "PERSON"))
        code, said = folder.convert("ner", rows, "--labels", "PER=人名,PERSON=人", name="raw.jsonl")
        assert code == 2 and "同一个实体有两个标签 9 行" in said and "请先只留一个" in said and "最外层" not in said

    def test_a_row_that_repeats_nothing_is_not_counted(self, folder):
        code, said = folder.convert("ner", self.rows(self.ONCE), name="raw.jsonl")
        assert code == 0 and "只留一个" not in said and folder.report()["notes"] == []


class TestKinds:
    def test_particulars_do_not_make_another_kind(self):
        assert RowError("a", "第 3 个 'x' 不对").kind == RowError("a", "第 17 个 'yy' 不对").kind
        assert RowError("a", "不对").kind != RowError("b", "不对").kind

    def test_what_is_advised_is_shown_whole(self, folder):
        """The 18030 of an encoding is no particular of a row."""
        rows = [json.dumps({"text": f"第{n}条", "label": "甲乙"[n % 2]}, ensure_ascii=False) for n in range(12)]
        raw = folder.path / "raw.jsonl"
        raw.write_bytes("\n".join(rows).encode() + b"\n" + rows[0].replace("第0", "第一").encode("gb18030"))
        code, said = folder.convert("cls", raw)
        assert code == 0 and "请加 --encoding gb18030" in said and "…" not in said
        assert "个字节解不开" in said

    def test_reasons_that_differ_in_particulars_are_shown_by_the_first(self, folder):
        code, said = folder.convert("ner", table(["甲", "乙"] * 6))
        assert code == 2 and "实际是 '甲' 等 12 行（如第 2 行）" in said
        code, said = folder.convert("ner", table(["甲"] * 12))
        assert code == 2 and "实际是 '甲' 12 行（如第 2 行）" in said
        code, said = folder.convert("cls", table(["甲", "乙"] * 6) + '一条,"甲"乙\n')
        assert code == 0 and "行（如 " in said and "…" not in said

    @pytest.mark.parametrize("name", ["gb18030", "utf-8", "utf-16", "shift_jis_2004", "cp1252", "x2"])
    def test_a_number_in_a_name_is_no_particular(self, name):
        assert name in RowError("", f"第 3 行，请加 --encoding {name}").kind


class TestPlaces:
    @pytest.mark.parametrize(
        ("train", "test"),
        [
            ("orders_train.jsonl", "orders_test.jsonl"), ("train.jsonl", "test.jsonl"),
            ("train_cls.jsonl", "test_cls.jsonl"), ("Train.JSONL", "Test.JSONL"),
            ("constraint_train.jsonl", "constraint_test.jsonl"), ("orders.jsonl", "orders.test.jsonl"),
        ],
    )  # fmt: skip
    def test_training_finds_what_conversion_writes_beside_it(self, folder, tmp_path, train, test):
        (tmp_path / "raw.csv").write_text(table(["甲", "乙"] * 6), encoding="utf-8")
        files = {path.name: path for path in (tmp_path / "raw.csv", tmp_path / train)}
        code = SCRIPTS["cls"]([f"--input_file={files['raw.csv']}", f"--output_file={tmp_path / train}"])
        assert code == 0 and (tmp_path / test).is_file()
        assert find_test_file(None, tmp_path / train) == tmp_path / test

    @given(
        st.lists(st.sampled_from(["train", "test", "Train", "TEST", "a", "_", ".", "订单"]), min_size=1, max_size=5)
    )
    def test_the_two_are_never_one_file_and_lead_to_each_other(self, parts):
        path = Path("x") / f"{''.join(parts)}.jsonl"
        assert path_of_test(path) != path
        back = path_of_train(path)
        assert back is None or path_of_test(back) == path

    def test_the_test_file_alone_says_where_the_training_file_goes(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        Path("raw.csv").write_text(table(["甲", "乙"] * 6), encoding="utf-8")
        assert SCRIPTS["cls"](["--input_file=raw.csv", "--test_file=out/orders_test.jsonl"]) == 0
        assert Path("out/orders_train.jsonl").is_file() and not Path("data").exists()
        assert SCRIPTS["cls"](["--input_file=raw.csv", "--test_file=out/held_out.jsonl"]) == 2
        assert "--output_file" in capsys.readouterr().err

    def test_another_tasks_test_file_is_left_alone(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("raw.csv").write_text(table(["甲", "乙"] * 6), encoding="utf-8")
        Path("data").mkdir()
        Path("data/test_cls.jsonl").write_text("another task's", encoding="utf-8")
        assert SCRIPTS["cls"](["--input_file=raw.csv", "--output_file=data/orders.jsonl"]) == 0
        assert Path("data/test_cls.jsonl").read_text(encoding="utf-8") == "another task's"
