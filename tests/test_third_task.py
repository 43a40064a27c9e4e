"""A third task, written by CONTRIBUTING's table alone, goes from raw rows through training and prediction to a report.

Nothing in ``sft`` knows it: what has to be said about a task is in its members.
"""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

import predict
from sft.data.arguments import Conversion, ReadOptions
from sft.data.conversion import convert_files
from sft.data.formats import recognise
from sft.data.recipes import Recipe
from sft.decoding.decode import predict as predict_records
from sft.decoding.limits import Limits
from sft.errors import RowError
from sft.tasks import TASKS
from sft.tasks.classification import Classification
from sft.tasks.ner import Ner
from sft.tasks.task import Task
from sft.text import clean_text
from sft.training.arguments import parse_arguments
from sft.training.fine_tune import fine_tune
from tests.models import save_model, tiny_model

CONTRIBUTING = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"


@dataclass(frozen=True)
class Rating:
    """How many stars a review gives: labels that are numbers, so an answer can be nearly right."""

    name: ClassVar[str] = "rating"
    title: ClassVar[str] = "评分"
    answers: ClassVar[str] = "label"
    metric: ClassVar[str] = "near"
    answer_format: ClassVar[str] = "label"
    long_text: ClassVar[None] = None

    labels: tuple[str, ...]

    @classmethod
    def from_settings(cls, settings: dict) -> Rating:
        return cls(tuple(settings["labels"]))

    def settings(self) -> dict:
        return {"task": self.name, "labels": list(self.labels)}

    def known_fields(self, row: dict) -> dict:
        stars = row.get("stars", row.get("output"))
        return {"stars": stars} if stars in self.labels else {}

    def prompt(self, record: dict) -> list[dict[str, str]]:
        return [
            {"role": "system", "content": "这条评论给几颗星？"},
            {"role": "user", "content": record["text"]},
        ]

    def options(self, record: dict) -> tuple[str, ...]:
        return self.labels

    def answer(self, record: dict) -> str:
        return record["stars"]

    def pieces(self, record: dict, length_tokens, max_length: int) -> list[dict]:
        text = record["text"]
        while text and length_tokens(record | {"text": text}) > max_length:
            text = text[:-1]
        if not text:
            raise RowError("text", "放不下")
        return [record | {"text": text}]

    def merge(self, pieces: list[dict], results: list[dict]) -> dict:
        return results[0]

    def parse(self, answer: str, record: dict) -> dict:
        known = answer in self.labels
        return {"label": answer if known else None, "unparsable": not known}

    def problems(self, result: dict) -> dict[str, int]:
        return {"no_stars": int(result["label"] is None)}

    def gold(self, record: dict) -> dict | None:
        return {"label": record["stars"]} if "stars" in record else None

    def show(self, result: dict) -> str:
        return f"{result['label']} 星"

    def best_threshold(self, golds: list[dict], predictions: list[dict]) -> None:
        return None

    def at_least(self, result: dict, threshold: float) -> dict:
        return result | {"label": None} if result["score"] < threshold else result

    def count(self, golds: list[dict], predictions: list[dict]) -> Counter:
        return Counter((gold["label"], result["label"]) for gold, result in zip(golds, predictions, strict=True))

    def metrics(self, counts: Counter) -> dict[str, float]:
        near = sum(rows for (gold, given), rows in counts.items() if given and abs(int(gold) - int(given)) <= 1)
        return {"near": near / counts.total()}


def members(kind: type) -> set[str]:
    """The public names of a class and its annotations."""
    return {name for name in {*vars(kind), *kind.__annotations__} if not name.startswith("_")}


def documented_members(language: str) -> set[str]:
    """The members in CONTRIBUTING's table on how to add a task."""
    text = CONTRIBUTING.read_text(encoding="utf-8")
    heading = {"chinese": "### 加一个任务", "english": "### Adding a task"}[language]
    table = text[text.index(heading) :].split("\n### ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`(\w+)", cell)}


@pytest.mark.parametrize("language", ["chinese", "english"])
def test_the_table_names_every_member_of_a_task_and_no_other(language):
    assert documented_members(language) == members(Task) == members(Rating)


@pytest.mark.parametrize("task_type", [Classification, Ner])
def test_the_two_tasks_have_every_member_with_the_same_arguments(task_type):
    for name in members(Task):
        assert hasattr(task_type, name) or name in task_type.__annotations__, name
        member = vars(Task).get(name)
        if inspect.isfunction(member):
            expected = list(inspect.signature(member).parameters)
            assert list(inspect.signature(getattr(task_type, name)).parameters) == expected, name


class FreeRating(Rating):
    """The same, but the model may say what it likes."""

    def options(self, record: dict) -> None:
        return None


def test_a_label_may_be_an_answer_in_free_text(tokenizer):
    limits = Limits(max_length=200, max_new_tokens=4, batch_size=2)
    (result,) = predict_records(tiny_model("qwen2"), tokenizer, FreeRating(("1", "2")), [{"text": "很好"}], limits)
    assert result["label"] is None and result["unparsable"]
    assert 0 <= result["score"] <= 1 and isinstance(result["answer"], str)


def convert(raw: dict) -> dict:
    """The fields of a record, from a raw row in the original shape."""
    if raw.get("output") is None:
        raise RowError("output", "没有星数")
    return {"text": clean_text(raw), "stars": raw["output"]}


def test_a_third_task_goes_from_raw_rows_to_a_report(tmp_path, tokenizer, monkeypatch, capsys):
    monkeypatch.setitem(TASKS, "rating", Rating)
    raw = tmp_path / "raw.csv"
    rows = [f"第{n}次来，{'很好' if n % 3 else '一般'},{1 + n % 3}" for n in range(40)]
    raw.write_text("\n".join(["text,label", *rows, "没有星数的,"]) + "\n", encoding="utf-8")
    recipe = Recipe(
        task=None,
        with_labels=lambda seen: Rating(tuple(sorted(seen))),
        convert=convert,
        gold=lambda fields: (fields["stars"], (fields["stars"],), fields["stars"].encode()),
    )
    train_file, test_file = tmp_path / "train_rating.jsonl", tmp_path / "test_rating.jsonl"
    source = recognise(raw, Rating.answers, ReadOptions())
    report = convert_files(recipe, [source], Conversion(train_file, test_file, test_ratio=0.2))
    assert report["converted"] >= 40 and set(report["labels"]) >= {"1", "2", "3"}

    base = save_model(tiny_model("qwen2"), tokenizer, tmp_path / "base")
    words = ["--model_name_or_path", str(base), "--train_file", str(train_file), "--output_dir", str(tmp_path / "run")]
    words += ["--dtype", "float32", "--swanlab_mode", "disabled", "--max_steps", "2", "--validation_ratio", "0.2"]
    arguments = parse_arguments("", [*words, "--metric_for_best_model", "eval_near", "--disable_tqdm", "true"])
    results = fine_tune(Rating, arguments)
    assert 0 <= results["test_near"] <= 1

    capsys.readouterr()
    page, output = tmp_path / "page.html", tmp_path / "predictions.jsonl"
    words = ["--adapter", str(tmp_path / "run"), "--input_file", str(test_file), "--output_file", str(output)]
    assert predict.main([*words, "--report", str(page)]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["near"] == pytest.approx(results["test_near"])
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == metrics["rows"]
    assert all(line["label"] in "123" and line["gold"]["label"] in "123" for line in lines)
    for html in (page, tmp_path / "run/report.html"):
        text = html.read_text(encoding="utf-8")
        assert lines[0]["text"] in text
        assert "评分" in text and "文本分类</" not in text
        head = text.split('class="scores"')[1].split("</table>")[0]
        assert re.search(r'<th scope="row"><span>near</span></th>', head), "its own metric, first in the table"
        assert f"<b>{metrics['near']:.3f}</b>" in head
    curves = (tmp_path / "run/report.html").read_text(encoding="utf-8").split('id="curves"')[1].split("</section>")[0]
    assert "<span>near</span>" in curves
