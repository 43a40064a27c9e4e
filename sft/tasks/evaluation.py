"""Predictions against gold, over any number of rows: counts that add up, thresholds, metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sft.tasks.task import Task


@dataclass
class Tally:
    """The counts that metrics are computed from. Tallies of different rows can be added up.

    Attributes:
        rows: how many rows were ``read``, gave an ``error``, have ``gold``, are ``judged`` (gold and no error), and
            how many of the judged ones are ``unparsable``.
        answers: the task's own counts of gold and predictions.
        problems: what was wrong with the answers of all rows without an error, by kind.
    """

    rows: Counter[str] = field(default_factory=Counter)
    answers: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, task: Task, golds: Sequence[dict | None], predictions: Sequence[dict]) -> Tally:
        """The counts of some rows. A gold of None means no gold; a prediction may be ``{"error"}``."""
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
        """The task's metrics and the share of unparsable answers, over the judged rows; None if there are none."""
        if not self.rows["judged"]:
            return None
        return task.metrics(self.answers) | {"unparsable": self.rows["unparsable"] / self.rows["judged"]}

    def to_json(self) -> dict:
        """The counts as JSON values, for `from_json`."""
        answers = [[*key, count] for key, count in self.answers.items()]
        return {"rows": self.rows, "answers": answers, "problems": self.problems}

    @classmethod
    def from_json(cls, value: dict) -> Tally:
        """The tally that `to_json` was called on."""
        answers = {(left, right): count for left, right, count in value["answers"]}
        return cls(Counter(value["rows"]), Counter(answers), Counter(value["problems"]))


def at_least(task: Task, predictions: Sequence[dict], threshold: float | None) -> list[dict]:
    """The predictions without what scores below ``threshold``; unchanged if it is None."""
    if threshold is None:
        return list(predictions)
    return [result if "error" in result else task.at_least(result, threshold) for result in predictions]


def best_threshold(task: Task, golds: Sequence[dict | None], predictions: Sequence[dict]) -> float | None:
    """The task's best threshold for the rows with gold and without an error; None if there is none."""
    pairs = zip(golds, predictions, strict=True)
    judged = [(gold, result) for gold, result in pairs if gold is not None and "error" not in result]
    return task.best_threshold(*zip(*judged, strict=True)) if judged else None


def metrics_of_predictions(
    task: Task, golds: Sequence[dict | None], predictions: Sequence[dict]
) -> dict[str, float] | None:
    """The task's metrics and the share of unparsable answers, over the rows with gold and without an error.

    None if there are no such rows.
    """
    return Tally.of(task, golds, predictions).metrics(task)
