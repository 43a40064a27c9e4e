"""What a report says about predicted labels: scores, confusions, calibration, and the rows themselves."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from sft.report.intervals import (
    Estimate,
    Interval,
    f1_interval,
    mean_interval,
    mean_over,
    ratio,
    wilson,
    with_intervals,
)
from sft.report.shown_rows import RIGHT, UNJUDGED, WRONG, ShownRows
from sft.tasks.calibration import Reliability
from sft.tasks.metrics import precision_recall_f1

if TYPE_CHECKING:
    import numpy as np

MOST_CONFUSED = 20  # labels in the confusion matrix; the rest share one row and column
MOST_CHARACTERS = 800  # of an article are shown
_PROBABILITIES_SHOWN = 4


class LabelFindings:
    """Collects predictions row by row; memory does not grow with the number of rows.

    Args:
        labels: the task's labels, in the order of the page; labels that only appear in the data come after them.
        title: the task's name for people.
    """

    kind = "labels"

    def __init__(self, labels: tuple[str, ...] = (), title: str = "") -> None:
        self.title = title
        self.numbers = {label: number for number, label in enumerate(labels)}
        self.rows = self.failed = 0
        self.pairs: Counter[tuple[int, int]] = Counter()  # (gold, predicted) → rows; -1 for no label
        self.reliability = Reliability()
        self.shown = ShownRows()

    @staticmethod
    def labels_of(gold: dict) -> list[str]:
        """The labels that a gold answer counts for."""
        return [gold["label"]]

    def add(self, text: str, gold: dict | None, prediction: dict) -> None:
        """Add one row.

        Args:
            gold: ``{"label"}``, None if unknown.
            prediction: ``{"label", "score"?, "scores"?}``, or ``{"error"}``.
        """
        self.rows += 1
        if "error" in prediction:
            self.failed += 1
            return
        predicted = self._number(prediction["label"])
        right = self._number(gold["label"]) if gold is not None else -1
        score = _finite(prediction.get("score"))
        chances = {
            label: chance for label, chance in prediction.get("scores", {}).items() if _finite(chance) is not None
        }
        most_likely = sorted(chances, key=lambda label: -chances[label])[:_PROBABILITIES_SHOWN]
        likely = [[self._number(label), round(chances[label], 4)] for label in most_likely]
        shown_score = score and round(score, 4)
        row = [self.rows, text[:MOST_CHARACTERS], len(text), right, predicted, shown_score, likely, gold is not None]
        if gold is None:
            self.shown.add(UNJUDGED, row)
            return
        self.pairs[right, predicted] += 1
        self.reliability.judge(gold, prediction)
        if right == predicted:
            self.shown.add(RIGHT, row)
        else:
            self.shown.add(WRONG, row, priority=score or 0.0)  # the most confident mistakes first

    def _number(self, label: str | None) -> int:
        return -1 if label is None else self.numbers.setdefault(label, len(self.numbers))

    def estimates(self) -> dict[str, Estimate]:
        """Accuracy and macro-F1, as in `sft.tasks.metrics.label_metrics`, with intervals; empty without gold."""
        if not self.pairs:
            return {}
        scores = partial(_scores, list(self.pairs), len(self.numbers))
        return with_intervals(list(self.pairs.values()), scores, self._wilson_intervals())

    def _wilson_intervals(self) -> dict[str, Interval]:
        right = sum(rows for (gold, answer), rows in self.pairs.items() if gold == answer)
        of_labels = [
            f1_interval(self.pairs[number, number], predicted, gold)
            for number, (predicted, gold) in self._totals().items()
            if gold
        ]
        return {"accuracy": wilson(right, self.pairs.total()), "macro_f1": mean_interval(of_labels)}

    def _totals(self) -> dict[int, tuple[int, int]]:
        """How often each label was predicted and is gold."""
        gold, predicted = Counter(), Counter()
        for (right, answer), rows in self.pairs.items():
            gold[right] += rows
            predicted[answer] += rows
        return {number: (predicted[number], gold[number]) for number in self.numbers.values()}

    def page(self) -> dict:
        """What the template shows, except rows and estimates."""
        return {
            "kind": self.kind,
            "title": self.title,
            "labels": list(self.numbers),
            "by_label": self._by_label(),
            "confusion": self._confusion(),
            "calibration": self.reliability.diagram(),
        }

    def _by_label(self) -> list[dict]:
        """Precision, recall, F1 and counts of each label that occurs, the most frequent first."""
        totals = self._totals()
        figures = [
            by_label_figures(label, self.pairs[number, number], *totals[number])
            for label, number in self.numbers.items()
            if any(totals[number])
        ]
        return sorted(figures, key=lambda figure: -figure["gold"])

    def _confusion(self) -> dict | None:
        """Rows by gold and predicted label, for the most frequent labels; -2 is all others, -1 is no label."""
        if not self.pairs:
            return None
        frequency: Counter[int] = Counter()
        for (right, predicted), rows in self.pairs.items():
            frequency[right] += rows
            frequency[predicted] += rows
        del frequency[-1]
        frequent = sorted(number for number, _ in frequency.most_common(MOST_CONFUSED))
        cells: Counter[tuple[int, int]] = Counter()
        for (right, predicted), rows in self.pairs.items():
            place = [number if number == -1 or number in frequent else -2 for number in (right, predicted)]
            cells[place[0], place[1]] += rows
        rest = [-2] if len(frequency) > len(frequent) else []
        unknown = [-1] if any(predicted == -1 for _, predicted in cells) else []
        columns = [*frequent, *rest, *unknown]
        return {
            "columns": columns,
            "rows": [
                {"gold": right, "cells": [cells[right, predicted] for predicted in columns]}
                for right in [*frequent, *rest]
            ],
        }


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def by_label_figures(label: str, right: int, predicted: int, gold: int) -> dict:
    """One line of a per-label table."""
    precision, recall, f1 = precision_recall_f1(right, predicted, gold)
    return {
        "label": label,
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "gold": gold,
        "predicted": predicted,
    }


def _scores(pairs: list[tuple[int, int]], label_count: int, draws: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy and macro-F1 of each resample; ``draws[:, i]`` is the number of rows with ``pairs[i]``."""
    import numpy as np

    golds, answers = np.array(pairs).T
    hits = golds == answers
    gold, predicted, right = np.zeros((3, label_count + 1, len(draws)))  # the last place, -1, is for no label
    np.add.at(gold, golds, draws.T)
    np.add.at(predicted, answers, draws.T)
    np.add.at(right, golds[hits], draws.T[hits])
    f1 = ratio(2 * right, predicted + gold)
    return {"accuracy": ratio(right.sum(0), gold.sum(0)), "macro_f1": mean_over(f1.T, gold.T > 0)}
