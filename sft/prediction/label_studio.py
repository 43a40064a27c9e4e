"""Predictions as pre-annotations for Label Studio: a JSON array of tasks, which its import page takes.

Label Studio takes no JSON lines. The lines of a run therefore grow beside the array, in ``NAME.rows.jsonl``, where a
run can be resumed; the array is written from them at the end, whole. Offsets count code points, as Label Studio does
since 2021, and each region has its text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import quoteattr

import orjson

from sft.errors import InputError
from sft.files import whole_file
from sft.prediction.output import not_written_here, refuse_input

FROM_NAME, TO_NAME = "label", "text"  # the names of the tags in the labelling interface


class Exported(NamedTuple):
    """What was written: tasks, those of them without a prediction, rows left out because their text is unknown."""

    tasks: int
    without_prediction: int
    left_out: int
    labels: list[str]


def rows_path(path: Path) -> Path:
    """``tasks.json`` → ``tasks.rows.jsonl``: where the lines of the run grow."""
    return path.with_name(f"{path.stem}.rows.jsonl")


def check_tasks_path(path: Path, input_file: Path | None, *, overwrite: bool) -> None:
    """Before the model is loaded, refuse to replace a file that is not from an earlier run.

    Raises:
        InputError: says what is there and what to do.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path}：--output_format label_studio 要写成一个普通文件；请换一个 --output_file")
    refuse_input(path, input_file)
    if path.exists() and path.stat().st_size and not rows_path(path).exists() and not overwrite:
        raise not_written_here(path)


def write_tasks(path: Path, model_version: str) -> Exported:
    """Write the tasks of the finished rows beside ``path``.

    Raises:
        InputError: ``path`` cannot be written.
    """
    tasks = without = left_out = 0
    labels: dict[str, None] = {}
    with rows_path(path).open("rb") as lines, whole_file(path) as file:
        file.write(b"[")
        for line in lines:
            row = orjson.loads(line)
            if "text" not in row:
                left_out += 1
                continue
            task = task_of(row, model_version)
            labels |= dict.fromkeys(_labels_in(task))
            without += not task["predictions"]
            file.write((b",\n" if tasks else b"\n") + orjson.dumps(task))
            tasks += 1
        file.write(b"\n]\n")
    return Exported(tasks, without, left_out, list(labels))


def task_of(row: dict, model_version: str) -> dict:
    """The task of one output line. A row without a result has no prediction; the lowest score is the prediction's."""
    task = {"data": {TO_NAME: row["text"]}, "predictions": []}
    if "error" in row or ("entities" not in row and row.get("label") is None):
        return task
    found = row["entities"] if "entities" in row else [{"label": row["label"], "score": row.get("score")}]
    kind = "labels" if "entities" in row else "choices"
    prediction = {
        "model_version": model_version,
        "result": [_region(item, kind, number) for number, item in enumerate(found)],
    }
    scores = [item["score"] for item in found if item.get("score") is not None]
    task["predictions"] = [prediction | ({"score": min(scores)} if scores else {})]
    return task


def _region(item: dict, kind: str, number: int) -> dict:
    value = {name: item[name] for name in ("start", "end", "text") if name in item} | {kind: [item["label"]]}
    score = {} if item.get("score") is None else {"score": item["score"]}
    return {
        "id": f"r{number}",
        "from_name": FROM_NAME,
        "to_name": TO_NAME,
        "type": kind,
        "value": value | score if kind == "labels" else value,
        **score,
    }


def _labels_in(task: dict) -> Iterator[str]:
    for prediction in task["predictions"]:
        for region in prediction["result"]:
            yield from region["value"][region["type"]]


def labelling_interface(answers: str, labels: Iterable[str]) -> str:
    """The labelling interface that the tasks need, in Label Studio's XML.

    Args:
        answers: what the task's answers are, ``label`` or ``entities``.
        labels: the labels to choose from.
    """
    outer, inner = ("Labels", "Label") if answers == "entities" else ("Choices", "Choice")
    choices = "".join(f"<{inner} value={quoteattr(label)}/>" for label in dict.fromkeys(labels))
    tags = f'<{outer} name="{FROM_NAME}" toName="{TO_NAME}">{choices}</{outer}>'
    return f'<View>\n  <Text name="{TO_NAME}" value="${TO_NAME}"/>\n  {tags}\n</View>'


def described(path: Path, exported: Exported, answers: str, labels: Sequence[str]) -> Iterator[str]:
    """What was written, for a person, line by line."""
    without = f"，其中 {exported.without_prediction:,} 条没有预测" if exported.without_prediction else ""
    left_out = f"；{exported.left_out:,} 行读不出文本，没有写" if exported.left_out else ""
    yield f"写好了 {path}：{exported.tasks:,} 条 Label Studio 任务{without}{left_out}"
    yield "Label Studio 项目的标注界面（Settings → Labeling Interface → Code）："
    yield from labelling_interface(answers, [*labels, *exported.labels]).split("\n")
