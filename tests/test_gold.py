"""Gold in prediction: understood under the names in the user's data, and never left out of the scores unsaid."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import Oracle, save_model, tiny_model

import predict
import transfer_ner_data
from sft.decoding.limits import Limits
from sft.errors import InputError, RowError
from sft.prediction.output import GrowingFile, progress_path
from sft.prediction.predictor import Predictor
from sft.prediction.rows import RowSettings, to_output, to_record, usable_gold
from sft.prediction.turns import predict_rows
from sft.tasks.classification import Classification
from sft.tasks.evaluation import Tally
from sft.tasks.ner import CCFBDCI_LABELS, Ner
from sft.tasks.settings import TaskSettings
from sft.tasks.task import Task

ORDERS = Path(predict.__file__).parent / "data/sample/orders.jsonl"  # those of the guide
NER = Ner.with_labels(["产品", "故障"], {"PROD": "产品", "FAULT": "故障"})
CLS = Classification(("好评", "差评"), names={"1": "好评", "0": "差评"})


def gold_of(row: dict, task: Task, settings: RowSettings | None = None) -> dict | None:
    return usable_gold(to_record(row, task, *([settings] if settings else [])), task)


def why_unusable(row: dict, task: Task, settings: RowSettings | None = None) -> str:
    """The kind of error of a row's gold. The row itself is predicted and shown without gold."""
    record = to_record(row, task, *([settings] if settings else []))
    assert usable_gold(record, task) is None
    result = {"label": "好评"} if task.answers == "label" else {"entities": []}
    assert "gold" not in to_output(record, result, task)
    return record["gold_error"].kind


def span(label: object, start: object = 0, end: object = 2) -> dict:
    return {"start": start, "end": end, "label": label}


class TestNames:
    def test_every_row_of_the_guides_orders_is_judged(self, tmp_path, tokenizer):
        """A model that says what is right has the best scores, whichever names the gold has."""
        labels = "PROD=产品,FAULT=故障,TIME=时间"
        command = [f"--input_file={ORDERS}", f"--labels={labels}", f"--output_file={tmp_path / 'train.jsonl'}"]
        assert transfer_ner_data.main([*command, "--test_ratio=0.2"]) == 0
        task = TaskSettings.read(tmp_path / "train.task.json").task
        rows = [json.loads(line) for line in ORDERS.read_text(encoding="utf-8").splitlines()]
        golds = [gold_of(row, task) for row in rows]
        assert len(golds) == 600 and None not in golds
        assert {entity["label"] for gold in golds for entity in gold["entities"]} == {"产品", "故障", "时间"}
        tally = Tally.of(task, golds, [gold | {"unparsable": False, "problems": {}} for gold in golds])
        assert tally.rows["judged"] == 600 and tally.metrics(task)["f1"] == 1.0

        records = [json.loads(line) for side in ("train", "test") for line in (tmp_path / f"{side}.jsonl").open()]
        assert sorted(map(str, (gold_of(record, task) for record in records))) == sorted(map(str, golds))

    def test_ccfbdcis_four_are_names_like_any_other(self):
        task = Ner.with_labels(CCFBDCI_LABELS.values(), CCFBDCI_LABELS)
        for label, name in [*CCFBDCI_LABELS.items(), *((name, name) for name in CCFBDCI_LABELS.values())]:
            (entity,) = gold_of({"text": "北京", "entities": [span(label)]}, task)["entities"]
            assert entity["label"] == name

    def test_a_task_file_of_an_earlier_version_still_knows_them(self):
        settings = {"task": "ner", "system_prompt": "。", "labels": ["人名", "日期"]}
        task = Ner.from_settings(settings)
        assert gold_of({"text": "张伟", "entities": [span("PER")]}, task)["entities"][0]["label"] == "人名"
        assert "'LOC'" in why_unusable({"text": "张伟", "entities": [span("LOC")]}, task)

    @pytest.mark.parametrize(
        "row",
        [
            {"output": "1"}, {"output": "好评"}, {"output": "1", "category": ["0", "1"]},
            {"output": "1", "category": ["好评", "差评"]}, {"label": "好评", "messages": []},
            {"label": "好评", "options": ["好评", "差评"], "messages": []},
        ],
        ids=str,
    )  # fmt: skip
    def test_a_label_is_known_by_both_names(self, row):
        record = to_record({"text": "很满意"} | row, CLS)
        assert usable_gold(record, CLS) == {"label": "好评"}
        assert set(CLS.options(record)) == {"好评", "差评"}

    def test_a_record_has_its_names_already(self):
        """Two labels that exchange names would otherwise be exchanged twice."""
        task = Classification(("0", "1"), names={"0": "1", "1": "0"})
        assert gold_of({"text": "甲", "label": "0", "messages": []}, task) == {"label": "0"}
        assert gold_of({"text": "甲", "label": "0"}, task) == {"label": "1"}


class TestUnusable:
    @pytest.mark.parametrize(
        ("entities", "kind"),
        [
            ([span("PROD"), span("BRAND", 2, 4)], "标签 'BRAND' 不是这个模型的"),
            ([span("PROD"), span("PROD", 3, 99)], "位置越界或是空的"),
            ([span("PROD", 2, 2)], "位置越界或是空的"),
            ([span("PROD", 0, 3), span("FAULT", 2, 4)], "实体重叠（嵌套 nested）"),
            ([span("PROD") | {"text": "冰箱"}], "实体的文字与位置不符"),
            ([span("PROD", "0", "2")], "位置不是整数"),
            ("空调", "entities：应是 JSON 或 Python 写法的实体列表"), ({"PROD": 3}, "PROD 应是 {实体"),
            (3, "entities：应是实体的列表"),
        ],
        ids=str,
    )  # fmt: skip
    def test_entities(self, entities, kind):
        assert kind in why_unusable({"text": "空调不制冷了", "entities": entities}, NER)

    @pytest.mark.parametrize(
        ("row", "kind"),
        [
            ({"output": "中评"}, "标签 '中评' 不在选项里"),
            ({"output": "1", "category": ["中评", "差评"]}, "标签 '好评' 不在选项里"),
            ({"output": "好评|差评"}, "多标签（multi-label）"),
            ({"output": ["1", "0"]}, "多标签（multi-label）"),
            ({"label": "很好", "options": ["好评", "差评"], "messages": []}, "标签 '很好' 不在选项里"),
        ],
        ids=str,
    )
    def test_labels(self, row, kind):
        assert why_unusable({"text": "很满意"} | row, CLS) == kind

    def test_a_label_outside_the_options_of_the_flag(self):
        settings = RowSettings(options=("好评", "中评"))
        assert why_unusable({"text": "甲", "output": "0"}, CLS, settings) == "标签 '差评' 不在选项里"
        assert gold_of({"text": "甲", "output": "1"}, CLS, settings) == {"label": "好评"}
        assert gold_of({"text": "甲", "output": "1", "category": ["0", "1"]}, CLS, settings) == {"label": "好评"}
        record = {"text": "甲", "label": "差评", "options": ["好评", "差评"], "messages": []}
        assert why_unusable(record, CLS, settings) == "标签 '差评' 不在选项里"

    @pytest.mark.parametrize("row", [{}, {"output": None}, {"output": ""}, {"output": " "}, {"category": ["0", "1"]}])
    def test_a_row_without_a_label_is_not_one_with_an_unusable_label(self, row):
        assert "gold_error" not in to_record({"text": "甲"} | row, CLS)

    @pytest.mark.parametrize("row", [{}, {"entities": None}, {"entities": []}, {"label": None}, {"标签": ""}])
    def test_a_row_without_entities_is_not_one_with_unusable_entities(self, row):
        assert "gold_error" not in to_record({"text": "甲"} | row, NER)


ROWS = [
    {"text": "张伟到上海", "entities": [span("PER")]},
    {"text": "没有", "entities": [span("PER", 0, 9)]},
    {"text": "没有标注"},
    RowError("", "不是合法的 JSON"),
    {"text": "小明来了", "entities": [span("PER"), span("DATE", 2, 4)]},
    {"text": "张伟", "entities": [span("DATE")]},
]


class TestCounted:
    @pytest.mark.parametrize("batch_size", [1, 2, 16])
    def test_metrics_say_how_many_rows_they_leave_out(self, tokenizer, batch_size):
        task = Ner(("人名", "地点"), "请提取实体。", {"PER": "人名"})
        loaded = Predictor(Oracle(tokenizer), tokenizer, task, Limits(512, 400, batch_size))
        lines, metrics = predict_rows(loaded, ROWS * 20)
        outputs = [orjson.loads(line) for line in lines]
        assert [index for index, output in enumerate(outputs[:6]) if "gold" in output] == [0]
        figures = metrics()
        assert (figures["rows"], figures["rows_with_unusable_gold"]) == (20, 60)

    @given(
        kinds=st.lists(st.sampled_from([None, "甲", "乙", "丙"]), max_size=20),
        cuts=st.lists(st.integers(0, 20), max_size=3),
    )
    def test_counts_of_parts_are_those_of_the_whole(self, kinds, cuts):
        """Also over a progress file: the first row of a kind is the first of all rows, not of its window."""
        edges = [0, *sorted(min(cut, len(kinds)) for cut in cuts), len(kinds)]
        total = Tally()
        for start, end in pairwise(edges):
            part = Tally.of(CLS, [None] * (end - start), [{"error": "x"}] * (end - start))
            for number, kind in enumerate(kinds[start:end], start=1):
                if kind:
                    part.add_unusable_gold(kind, number)
            total.add(part)
            total = Tally.from_json(orjson.loads(orjson.dumps(total.to_json())))
        expected = {kind: (kinds.count(kind), kinds.index(kind) + 1) for kind in kinds if kind}
        assert total.gold_problems == expected
        assert total.rows["unusable_gold"] == sum(rows for rows, _ in expected.values())

    def test_reasons_come_with_the_most_frequent_first_and_are_bounded(self):
        tally = Tally()
        for number in range(1, 1001):
            tally.add_unusable_gold("常见" if number % 2 else f"少见{number}", number)
        said = tally.describe_gold_problems()
        assert said.startswith("常见 500（如第 1 行），其他原因 301（如第 400 行），少见2 1（如第 2 行）")
        assert sum(rows for rows, _ in tally.gold_problems.values()) == 1000

    def test_progress_of_an_earlier_version_is_refused_in_one_line(self, tmp_path):
        path = tmp_path / "out.jsonl"
        with GrowingFile(path, {"input_file": "x"}, resume=False) as output:
            output.add([b"{}"], Tally())
        progress = json.loads(progress_path(path).read_bytes())
        del progress["tally"]["gold_problems"]
        progress_path(path).write_text(json.dumps(progress))
        with pytest.raises(InputError, match="--overwrite"):
            GrowingFile(path, {"input_file": "x"}, resume=True)


class TestSaid:
    @pytest.fixture(scope="class")
    def folder(self, tokenizer, tmp_path_factory) -> Path:
        folder = tmp_path_factory.mktemp("gold")
        save_model(tiny_model("qwen2"), tokenizer, folder / "base")
        TaskSettings(CLS, max_length=200, max_new_tokens=8).write(folder / "task.json")
        return folder

    @pytest.fixture
    def run(self, folder, capsys, caplog) -> Callable[..., tuple[dict, str]]:
        return partial(self.predict, folder, capsys, caplog)

    def predict(self, folder: Path, capsys, caplog, labels: list[object], *flags: str) -> tuple[dict, str]:
        """Run predict.py on rows with these labels; returns the metrics and what was logged."""
        rows = [{"text": f"第{number}条", "label": label} for number, label in enumerate(labels)]
        path = folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        command = ["--base_only", f"--model_name_or_path={folder / 'base'}", f"--task_file={folder / 'task.json'}"]
        command += ["--dtype=float32", f"--input_file={path}", f"--output_file={folder / 'out.jsonl'}", "--overwrite"]
        capsys.readouterr()
        assert predict.main([*command, *flags]) == 0
        said = capsys.readouterr().out
        assert len((folder / "out.jsonl").read_bytes().splitlines()) == len(rows)
        return json.loads(said) if said else {}, caplog.text

    def test_in_one_line_with_the_reasons_in_the_metrics_and_on_the_page(self, folder, run):
        page = folder / "page.html"
        metrics, said = run(["1", "0", "2", None, "2", "中"], f"--report={page}")
        assert (metrics["rows"], metrics["rows_with_unusable_gold"]) == (2, 3)
        (line,) = [line for line in said.splitlines() if "标准答案" in line]
        assert "3 行的标准答案用不上" in line and "其余有标准答案的 2 行" in line
        assert "标签 '2' 不在选项里 2（如第 3 行），标签 '中' 不在选项里 1（如第 6 行）" in line
        html = page.read_text(encoding="utf-8")
        assert "有 3 行的标准答案用不上" in html and "不在选项里 2（如第 3 行）" in html

    def test_loudly_if_no_row_can_be_judged(self, folder, run):
        metrics, said = run(["pos", "neg"] * 3)
        assert metrics == {"rows_with_unusable_gold": 6}
        assert "6 行的标准答案用不上" in said and "没有一行能评分" in said

    def test_not_at_all_if_there_is_nothing_to_say(self, folder, run):
        page = folder / "page.html"
        metrics, said = run(["1", None, "好评"], f"--report={page}")
        assert metrics["rows"] == 2 and "rows_with_unusable_gold" not in metrics
        assert "用不上" not in said
        assert "用不上，整行" not in re.sub(r"<script.*?</script>", "", page.read_text("utf-8"), flags=re.DOTALL)
