"""Predictions against gold, over any number of rows: counts that add up, calibration, thresholds, metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sft.errors import InputError
from sft.tasks import calibration
from sft.tasks.calibration import Calibration, Reliability
from sft.tasks.task import Task

# To choose a threshold by. The F1 of n gold entities has a standard error of about sqrt(F1 (1 - F1) / n): 6 points at
# 50, more than a threshold gains.
LEAST_GOLD_ENTITIES = 50
MOST_GOLD_PROBLEMS, SHOWN_GOLD_PROBLEMS = 200, 5  # that are counted apart, and in a message


@dataclass
class Tally:
    """The counts that metrics are computed from. Tallies of different rows can be added up.

    Attributes:
        rows: how many rows were ``read``, gave an ``error``, have ``gold``, are ``judged`` (gold and no error), and
            how many of the judged ones are ``unparsable``; in how many ``unusable_gold`` cannot be used; and how many
            were ``cut``: not read or answered to the end.
        answers: the task's own counts of gold and predictions.
        problems: what was wrong with the answers of all rows without an error, by kind.
        gold_problems: why gold cannot be used → how many rows, and the number of the first, from 1.
        reliability: the answers of the judged rows by their score; None if some of the rows were counted by a
            version that did not look at scores.
    """

    rows: Counter[str] = field(default_factory=Counter)
    answers: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    gold_problems: dict[str, tuple[int, int]] = field(default_factory=dict)
    reliability: Reliability | None = field(default_factory=Reliability)

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
        if cut := sum(result.get("cut", False) for result in predictions):
            tally.rows["cut"] = cut
        if judged:
            tally.answers = task.count(*zip(*judged, strict=True))
        for gold, result in judged:
            tally.reliability.judge(gold, result)
        for result in predictions:
            if "error" not in result:
                tally.problems.update(task.problems(result))
        return tally

    def add_unusable_gold(self, kind: str, row: int) -> None:
        """Count a row whose gold cannot be used.

        Args:
            kind: why; after ``MOST_GOLD_PROBLEMS`` different ones the rest are counted together.
            row: its number among the rows of this tally, from 1.
        """
        self.rows["unusable_gold"] += 1
        self._add_gold_problem(kind, 1, row)

    def _add_gold_problem(self, kind: str, rows: int, first: int) -> None:
        if kind not in self.gold_problems and len(self.gold_problems) >= MOST_GOLD_PROBLEMS:
            kind = "其他原因"
        known, first_known = self.gold_problems.get(kind, (0, first))
        self.gold_problems[kind] = known + rows, first_known

    def describe_gold_problems(self) -> str:
        """Why gold cannot be used, the most frequent reasons first, in one line."""
        problems = sorted(self.gold_problems.items(), key=lambda problem: -problem[1][0])
        reasons = [f"{kind} {rows:,}（如第 {first:,} 行）" for kind, (rows, first) in problems]
        more = f" …… 共 {len(reasons)} 种原因" if len(reasons) > SHOWN_GOLD_PROBLEMS else ""
        return "，".join(reasons[:SHOWN_GOLD_PROBLEMS]) + more

    def add(self, other: Tally) -> None:
        """Count more rows, which come after those counted so far."""
        for kind, (rows, first) in other.gold_problems.items():
            self._add_gold_problem(kind, rows, self.rows["read"] + first)
        self.rows.update(other.rows)
        self.answers.update(other.answers)
        self.problems.update(other.problems)
        if self.reliability is None or other.reliability is None:
            self.reliability = None
        else:
            self.reliability.add(other.reliability)

    def metrics(self, task: Task) -> dict[str, float] | None:
        """The task's metrics and the share of unparsable answers, over the judged rows; None if there are none.

        ``ece`` is the expected calibration error of their scores, see `sft.tasks.calibration`, if there are any.

        Raises:
            InputError: the counts contradict each other: somebody changed the file that they were read from.
        """
        if not self.rows["judged"]:
            return None
        try:
            found = task.metrics(self.answers)
        except ValueError as error:  # from scikit-learn: there is no answer, though rows were judged
            raise InputError("接着跑之前的计数互相矛盾，进度文件改过；请加 --overwrite 重来") from error
        error = self.reliability and self.reliability.expected_error()
        found["unparsable"] = self.rows["unparsable"] / self.rows["judged"]
        return found if error is None else found | {"ece": error}

    def to_json(self) -> dict:
        """The counts as JSON values, for `from_json`."""
        answers = [[*key, count] for key, count in self.answers.items()]
        gold_problems = [[kind, rows, first] for kind, (rows, first) in self.gold_problems.items()]
        counts = {"rows": self.rows, "answers": answers, "problems": self.problems, "gold_problems": gold_problems}
        return counts if self.reliability is None else counts | {"reliability": self.reliability.to_json()}

    @classmethod
    def from_json(cls, value: dict) -> Tally:
        """The tally that `to_json` was called on.

        Raises:
            KeyError: an earlier version wrote it, which counted less.
            ValueError: it is something else.
        """
        parts = [value[name] for name in ("rows", "answers", "problems", "gold_problems")]
        rows, answers, problems, gold_problems = parts
        if not isinstance(answers, list) or not isinstance(gold_problems, list):
            raise ValueError("应是列表")
        for item in (*answers, *gold_problems):
            if not isinstance(item, list) or len(item) != 3 or type(item[2]) is not int:
                raise ValueError(f"应是三项的列表：{str(item)[:60]}")
            if not isinstance(item[0], str) or not isinstance(item[1], str | int | None):
                raise ValueError(f"类型不对：{str(item)[:60]}")
        for counts in (rows, problems):
            if not isinstance(counts, dict) or any(type(count) is not int for count in counts.values()):
                raise ValueError(f"应是计数：{str(counts)[:60]}")
        if any(type(rows_of_kind) is not int for _, rows_of_kind, _ in gold_problems):
            raise ValueError("应是计数")
        return cls(
            Counter(rows),
            Counter({(left, right): count for left, right, count in answers}),
            Counter(problems),
            {kind: (count, first) for kind, count, first in gold_problems},
            Reliability.from_json(value["reliability"]) if "reliability" in value else None,
        )


def calibrated(predictions: Sequence[dict], found: Calibration | None) -> list[dict]:
    """The predictions with calibrated scores; unchanged if ``found`` is None. Thresholds are applied afterwards.

    This is the only place where scores are calibrated: training evaluates through it, and prediction answers.
    """
    if found is None:
        return list(predictions)
    return [result if "error" in result else calibration.calibrated(result, found) for result in predictions]


def best_calibration(task: Task, golds: Sequence[dict | None], predictions: Sequence[dict]) -> Calibration | None:
    """The calibration for the scores of the rows with gold and without an error; None if there is none that helps."""
    pairs = zip(golds, predictions, strict=True)
    judged = [(gold, result) for gold, result in pairs if gold is not None and "error" not in result]
    scored = [
        answer for row, (gold, result) in enumerate(judged) for answer in calibration.scored_answers(gold, result, row)
    ]
    return calibration.best_calibration(scored, with_bias=task.answers == "entities")


def at_least(task: Task, predictions: Sequence[dict], threshold: float | None) -> list[dict]:
    """The predictions without what scores below ``threshold``; unchanged if it is None."""
    if threshold is None:
        return list(predictions)
    return [result if "error" in result else task.at_least(result, threshold) for result in predictions]


def best_threshold(task: Task, golds: Sequence[dict | None], predictions: Sequence[dict]) -> float | None:
    """The task's best threshold for the rows with gold and without an error; None if there is none.

    Nor is there one if the rows have too few entities to choose it by.
    """
    pairs = zip(golds, predictions, strict=True)
    judged = [(gold, result) for gold, result in pairs if gold is not None and "error" not in result]
    if not judged or too_few_entities(task, [gold for gold, _ in judged]):
        return None
    return task.best_threshold(*zip(*judged, strict=True))


def too_few_entities(task: Task, golds: Sequence[dict | None]) -> bool:
    """Whether a threshold for entities would be chosen by less than ``LEAST_GOLD_ENTITIES`` of them."""
    return task.answers == "entities" and gold_entities(golds) < LEAST_GOLD_ENTITIES


def gold_entities(golds: Sequence[dict | None]) -> int:
    """How many entities there are in all."""
    return sum(len(gold["entities"]) for gold in golds if gold is not None)


def metrics_of_predictions(
    task: Task, golds: Sequence[dict | None], predictions: Sequence[dict]
) -> dict[str, float] | None:
    """The task's metrics and the share of unparsable answers, over the rows with gold and without an error.

    None if there are no such rows.
    """
    return Tally.of(task, golds, predictions).metrics(task)
