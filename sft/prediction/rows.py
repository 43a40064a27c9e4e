"""Between a user's row and a record, and between a result and the line that goes out; what the metrics are made of.

``text`` and offsets that go out are the user's own: those from before normalisation.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sft.data.shapes import shape_by_column_names
from sft.errors import RowError
from sft.text import clean_text, shifted_offsets

if TYPE_CHECKING:
    from sft.model.encoding import Task


@dataclass(frozen=True)
class RowSettings:
    """How rows are taken and results given; as by default, nothing is chosen.

    Attributes:
        text_column, label_column: where text and gold stand; None: by the usual names.
        options: the options of every row, instead of its own.
        threshold: labels and entities less probable than this are not given.
        with_answer: the model's answer goes out as it was.
    """

    text_column: str | None = None
    label_column: str | None = None
    options: tuple[str, ...] | None = None
    threshold: float | None = None
    with_answer: bool = False


DEFAULT = RowSettings()


def to_record(row: dict | RowError, task: Task, settings: RowSettings = DEFAULT) -> dict | RowError:
    """The record of a raw row, a record, or a row with only a text; ``original`` keeps the user's text.

    Gold is taken along where it is usable; a row without it, or with a broken one, is still predicted.
    """
    if isinstance(row, RowError):
        return row
    try:
        row = shape_by_column_names(row, task.answers, settings.text_column, settings.label_column)
        record = {"text": clean_text(row), "original": row["text"]}
        record["text"].encode()  # a lone surrogate has no tokens
    except RowError as error:
        return error
    except UnicodeEncodeError:
        return RowError("text", "不是 UTF-8 编码，或含有残缺的代理项字符（lone surrogate）")
    with suppress(RowError):  # of its gold
        record = task.known_fields(row) | record
    return record | {"options": settings.options} if settings.options else record


def to_output(
    record: dict | RowError,
    prediction: dict,
    task: Task,
    settings: RowSettings = DEFAULT,
) -> dict:
    """What is written for a row: its own text, the result, and gold under ``gold``; or why there is no result."""
    if isinstance(record, RowError):
        return {"error": str(record)}
    if "error" in prediction:
        return {"text": record["original"], "error": prediction["error"]}
    output = {"text": record["original"], **_in_original(prediction, record)}
    if settings.with_answer and "answer" in prediction:
        output["answer"] = prediction["answer"]
    gold = task.gold(record)
    return output | {"gold": _in_original(gold, record)} if gold is not None else output


def _in_original(result: dict, record: dict) -> dict:
    """The public part of a result, its entities' text and offsets those of the user's own text."""
    if "entities" not in result:
        return {name: result[name] for name in ("label", "score", "scores") if name in result}
    entities = [dict(entity) for entity in result["entities"]]
    original = record["original"]
    if original != record["text"]:
        starts = [start for start, _ in shifted_offsets(original)]
        for entity in entities:
            start = bisect_left(starts, starts[bisect_right(starts, entity["start"]) - 1])
            end = bisect_left(starts, entity["end"])
            entity |= {"start": start, "end": end, "text": original[start:end]}
    return {"entities": entities}


@dataclass
class Tally:
    """What metrics are made of, as counts: those of any number of rows take no more room, and they add up.

    Attributes:
        rows: how many are ``read``, in ``error``, ``predicted``, with ``gold``, ``judged`` (gold and no error), and
            of the judged ``unparsable``.
        answers: the task's own counts of gold and predictions.
        problems: what was wrong with answers, over all predicted rows.
    """

    rows: Counter[str] = field(default_factory=Counter)
    answers: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, task: Task, golds: Sequence[dict | None], predictions: Sequence[dict]) -> Tally:
        """The counts of some rows; None is no gold, and a prediction may be an ``error``."""
        pairs = list(zip(golds, predictions, strict=True))
        judged = [(gold, result) for gold, result in pairs if gold is not None and "error" not in result]
        tally = cls()
        tally.rows["read"] = len(pairs)
        tally.rows["error"] = sum("error" in result for result in predictions)
        tally.rows["gold"] = sum(gold is not None for gold in golds)
        tally.rows["judged"] = len(judged)
        tally.rows["unparsable"] = sum(result["unparsable"] for _, result in judged)
        if judged:
            tally.answers = task.count(*zip(*judged, strict=True))
        for result in predictions:
            if "error" not in result:
                tally.problems.update(task.problems(result))
        return tally

    def add(self, other: Tally) -> None:
        """Count more rows."""
        self.rows.update(other.rows)
        self.answers.update(other.answers)
        self.problems.update(other.problems)

    def metrics(self, task: Task) -> dict[str, float] | None:
        """The task's metrics and the share of unparsable answers, over the judged rows; None without any."""
        if not self.rows["judged"]:
            return None
        return task.scores(self.answers) | {"unparsable": self.rows["unparsable"] / self.rows["judged"]}

    def to_json(self) -> dict:
        """For `from_json`."""
        answers = [[*key, count] for key, count in self.answers.items()]
        return {"rows": self.rows, "answers": answers, "problems": self.problems}

    @classmethod
    def from_json(cls, value: dict) -> Tally:
        """What `to_json` gave."""
        answers = {(left, right): count for left, right, count in value["answers"]}
        return cls(Counter(value["rows"]), Counter(answers), Counter(value["problems"]))


def at_least(task: Task, predictions: Sequence[dict], threshold: float | None) -> list[dict]:
    """The predictions without what is less probable than ``threshold``; all of them if it is None."""
    if threshold is None:
        return list(predictions)
    return [result if "error" in result else task.at_least(result, threshold) for result in predictions]


def best_threshold(task: Task, golds: Sequence[dict | None], predictions: Sequence[dict]) -> float | None:
    """The task's best threshold for rows with gold and without an error; None where there is none to choose."""
    pairs = zip(golds, predictions, strict=True)
    judged = [(gold, result) for gold, result in pairs if gold is not None and "error" not in result]
    return task.best_threshold(*zip(*judged, strict=True)) if judged else None


def score_predictions(
    task: Task, golds: Sequence[dict | None], predictions: Sequence[dict]
) -> dict[str, float] | None:
    """The task's metrics and the share of unparsable answers, over the rows with gold and without an error.

    None when there are none.
    """
    return Tally.of(task, golds, predictions).metrics(task)
