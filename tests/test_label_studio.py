"""Predictions as Label Studio's tasks: its own judge takes them, they read back the same, and a killed run goes on.

Run: pytest tests/test_label_studio.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import save_adapter

import predict
from sft.data.shapes import shape_row
from sft.errors import NotAnnotated
from sft.prediction.label_studio import labelling_interface, rows_path, task_of, write_tasks
from sft.prediction.output import GrowingFile, progress_path
from sft.tasks.classification import Classification
from sft.tasks.ner import Ner
from tests.test_notations import SPAN_LABELS, annotated

LABELS = ("体育", "军事", "经济")


@pytest.fixture(scope="module")
def adapter(tokenizer, tmp_path_factory) -> Path:
    """The folder of a classification adapter as training writes it."""
    return save_adapter(tokenizer, tmp_path_factory.mktemp("output"), LABELS)


def output_row(text: str, spans: list[tuple[int, int, str]], draw: random.Random) -> dict:
    return {
        "text": text,
        "entities": [
            {"start": start, "end": end, "text": text[start:end], "label": label, "score": draw.random()}
            for start, end, label in spans
        ],
    }


def accepted(task: dict) -> dict:
    """The task as Label Studio exports it when a person has accepted its first prediction."""
    return task | {"id": 1, "annotations": [{"id": 1, "result": task["predictions"][0]["result"]}]}


@given(annotated(), st.randoms())
def test_predicted_entities_that_a_person_accepts_read_back_the_same(sentence, draw):
    text, spans = sentence
    task = task_of(output_row(text, spans, draw), "v1")
    fields = Ner.convert(shape_row(accepted(task), "entities"))
    assert fields["text"] == text
    assert [(entity["start"], entity["end"], entity["label"]) for entity in fields["entities"]] == spans
    unseen = shape_row(task, "entities")["entities"]
    assert isinstance(unseen, NotAnnotated), "what nobody has looked at is no gold"


def test_a_thousand_tasks_go_out_and_come_back_the_same(tmp_path):
    draw, rows = random.Random(0), []
    for number in range(1000):
        text = "".join(draw.choices("青湖红山赵一在到见了，。😀\n\"'", k=draw.randint(2, 40)))
        edges = sorted(draw.sample(range(len(text) + 1), 2 * draw.randint(0, min(3, (len(text) + 1) // 2))))
        spans = [(s, e, draw.choice(SPAN_LABELS)) for s, e in zip(edges[::2], edges[1::2], strict=True)]
        rows.append(
            output_row(f"{number}{text}", [(s + len(str(number)), e + len(str(number)), x) for s, e, x in spans], draw)
        )
    path = tmp_path / "tasks.json"
    rows_path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert write_tasks(path, "v1")[:3] == (1000, 0, 0)
    back = [Ner.convert(shape_row(accepted(task), "entities")) for task in json.loads(path.read_bytes())]
    for row, fields in zip(rows, back, strict=True):
        without_score = [
            {name: entity[name] for name in ("start", "end", "text", "label")} for entity in row["entities"]
        ]
        assert fields == {"text": row["text"], "entities": without_score}


def test_label_studios_own_judge_takes_the_tasks_and_the_interface():
    reason = "label-studio-sdk is not installed (with what it needs it is larger than 100 MB)"
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason=reason).LabelInterface
    draw = random.Random(0)
    entities = task_of(output_row("在青湖", [(1, 3, "LOC")], draw), "v1")
    label = task_of({"text": "很好", "label": '好"评', "score": 0.9, "scores": {}}, "v1")
    for answers, labels, task in [("entities", SPAN_LABELS, entities), ("label", ['好"评', "差&评<"], label)]:
        judge = interface(labelling_interface(answers, labels))
        judge.validate()
        assert judge.validate_prediction(task["predictions"][0], return_errors=True) == []
        assert sorted(judge.get_control("label").labels) == sorted(labels)
        other = interface(labelling_interface(answers, ["别的"]))
        assert other.validate_prediction(task["predictions"][0], return_errors=True), "it does judge"


@pytest.fixture
def rows_file(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"text": f"第{number}场赢了", "output": LABELS[number % 3]}) for number in range(90)]
    lines[10] = '{"text": '
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(adapter: Path, rows_file: Path, output: Path, *more: str) -> int:
    files = ["--adapter", str(adapter), "--input_file", str(rows_file), "--output_file", str(output)]
    return predict.main([*files, "--output_format", "label_studio", "--batch_size", "2", *more])


def test_a_run_writes_a_json_array_of_tasks_with_scores_and_says_how_to_import_it(
    adapter, rows_file, tmp_path, capsys
):
    assert run(adapter, rows_file, tmp_path / "tasks.json") == 0
    said = capsys.readouterr()
    assert '<Choice value="军事"/>' in said.err
    assert "1 行读不出文本" in said.err
    assert "accuracy" in json.loads(said.out), "the metrics stay"
    tasks = json.loads((tmp_path / "tasks.json").read_bytes())
    assert [task["data"]["text"] for task in tasks] == [f"第{number}场赢了" for number in range(90) if number != 10]
    for task in tasks:
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == adapter.name
        assert 0 < prediction["score"] == prediction["result"][0]["score"] <= 1
        assert Classification.convert(shape_row(accepted(task), "label"))["label"] in LABELS


def test_a_run_that_stopped_is_resumed_and_gives_the_same_tasks(adapter, rows_file, tmp_path, monkeypatch):
    assert run(adapter, rows_file, tmp_path / "whole.json") == 0
    output, add = tmp_path / "tasks.json", GrowingFile.add

    def fail_later(self, lines, tally):
        if self.rows:
            raise KeyboardInterrupt
        add(self, lines, tally)

    with monkeypatch.context() as patch:
        patch.setattr(GrowingFile, "add", fail_later)
        assert run(adapter, rows_file, output) == 130
    assert not output.exists(), "half an array is no JSON"
    assert json.loads(progress_path(rows_path(output)).read_bytes())["rows"] > 0
    assert run(adapter, rows_file, output) == 2, "what is finished is not thrown away unasked"
    assert run(adapter, rows_file, output, "--resume") == 0
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_a_file_of_someone_elses_is_not_replaced(adapter, rows_file, tmp_path, capsys):
    output = tmp_path / "tasks.json"
    output.write_text("[1]", encoding="utf-8")
    assert run(adapter, rows_file, output) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert output.read_text(encoding="utf-8") == "[1]"
    assert run(adapter, rows_file, output, "--overwrite") == 0
    assert run(adapter, rows_file, rows_file) == 2, "the input is not written over"


def test_tasks_cannot_go_to_standard_output(adapter, rows_file, capsys):
    with pytest.raises(SystemExit) as stopped:
        predict.main(["--adapter", str(adapter), "--input_file", str(rows_file), "--output_format", "label_studio"])
    assert stopped.value.code == 2
    assert "--output_file" in capsys.readouterr().err
