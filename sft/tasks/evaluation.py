"""Predictions against gold, over any number of rows: counts that add up, thresholds, metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sft.tasks.task import Task


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
        return task.metrics(self.answers) | {"unparsable": self.rows["unparsable"] / self.rows["judged"]}

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
