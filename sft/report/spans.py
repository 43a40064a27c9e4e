"""What a report says about predicted spans: scores, kinds of error, and the sentences themselves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
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
from sft.report.labels import by_label_figures
from sft.report.shown_rows import RIGHT, UNJUDGED, WRONG, ShownRows
from sft.report.span_errors import KINDS, span_errors, spans_of
from sft.tasks.calibration import Reliability
from sft.tasks.metrics import Span, span_of

if TYPE_CHECKING:
    import numpy as np

MOST_CHARACTERS = 2000  # of a text are shown

# (label, right, predicted, gold) of one row, for each label that the row has
RowCounts = tuple[tuple[int, int, int, int], ...]


class SpanFindings:
    """Collects predictions row by row; memory grows only with the number of different counts that rows have.

    Args:
        labels: the task's labels, in the order of the page; labels that only appear in the data come after them.
        title: the task's name for people.
    """

    kind = "spans"

    def __init__(self, labels: tuple[str, ...] = (), title: str = "") -> None:
        self.title = title
        self.numbers = {label: number for number, label in enumerate(labels)}
        self.rows = self.failed = 0
        self.row_counts: Counter[RowCounts] = Counter()
        self.errors: Counter[tuple[str, str]] = (
            Counter()
        )  # by (kind, label): the gold label, or for an invented span the predicted one
        self.rows_with: Counter[str] = Counter()  # by kind
        self.reliability = Reliability()
        self.shown = ShownRows()

    @staticmethod
    def labels_of(gold: dict) -> list[str]:
        """The labels that a gold answer counts for."""
        return [entity["label"] for entity in gold["entities"]]

    def add(self, text: str, gold: dict | None, prediction: dict) -> None:
        """Add one row.

        Args:
            gold: ``{"entities"}``, None if unknown.
            prediction: ``{"entities"}``, each with an optional ``score``, or ``{"error"}``.
        """
        self.rows += 1
        if "error" in prediction:
            self.failed += 1
            return
        predicted = spans_of(prediction)
        right = spans_of(gold) if gold is not None else []
        scores = {span_of(entity): entity.get("score") for entity in prediction["entities"]}
        errors = span_errors(right, predicted) if gold is not None else []
        row = [
            self.rows,
            text[:MOST_CHARACTERS],
            len(text),
            [self._packed(span) for span in right if span[1] <= MOST_CHARACTERS],
            [[*self._packed(span), _rounded(scores[span])] for span in predicted if span[1] <= MOST_CHARACTERS],
            [
                [KINDS.index(error.kind), *(span and self._packed(span) for span in (error.gold, error.predicted))]
                for error in errors
            ],
            gold is not None,
        ]
        if gold is None:
            self.shown.add(UNJUDGED, row)
            return
        self.row_counts[self._counts(right, predicted)] += 1
        self.reliability.judge(gold, prediction)
        self.errors.update((error.kind, (error.gold or error.predicted)[2]) for error in errors)
        self.rows_with.update({error.kind for error in errors})
        self.shown.add(WRONG if errors else RIGHT, row)

    def _packed(self, span: Span) -> list[int]:
        start, end, label = span
        return [start, end, self._number(label)]

    def _number(self, label: str) -> int:
        return self.numbers.setdefault(label, len(self.numbers))

    def _counts(self, gold: Sequence[Span], predicted: Sequence[Span]) -> RowCounts:
        """Right, predicted and gold spans of one row, by label."""
        counts: dict[int, list[int]] = {}
        for place, spans in enumerate((set(gold) & set(predicted), predicted, gold)):
            for _, _, label in spans:
                counts.setdefault(self._number(label), [0, 0, 0])[place] += 1
        return tuple((label, *counts[label]) for label in sorted(counts))

    def estimates(self) -> dict[str, Estimate]:
        """The scores of `sft.tasks.metrics.span_metrics` over all labels, with intervals; empty without gold."""
        if not self.row_counts:
            return {}
        scores = partial(_scores, list(self.row_counts), max(1, len(self.numbers)))
        return with_intervals(list(self.row_counts.values()), scores, self._wilson_intervals())

    def _wilson_intervals(self) -> dict[str, Interval]:
        totals = list(self._totals().values())
        right, predicted, gold = (sum(figures) for figures in zip(*totals, strict=True)) if totals else (0, 0, 0)
        return {
            "f1": f1_interval(right, predicted, gold),
            "precision": wilson(right, predicted),
            "recall": wilson(right, gold),
            "macro_f1": mean_interval([f1_interval(*figures) for figures in totals if any(figures)]),
        }

    def _totals(self) -> dict[int, list[int]]:
        """Right, predicted and gold spans of each label."""
        totals = {number: [0, 0, 0] for number in self.numbers.values()}
        for counts, rows in self.row_counts.items():
            for label, *figures in counts:
                totals[label] = [total + rows * figure for total, figure in zip(totals[label], figures, strict=True)]
        return totals

    def page(self) -> dict:
        """What the template shows, except rows and estimates."""
        return {
            "kind": self.kind,
            "title": self.title,
            "labels": list(self.numbers),
            "by_label": self._by_label(),
            "errors": self._errors(),
            "calibration": self.reliability.diagram(),
        }

    def _by_label(self) -> list[dict]:
        """Precision, recall, F1 and counts of each label that occurs, the most frequent first."""
        totals = self._totals()
        figures = [
            by_label_figures(label, *totals[number]) for label, number in self.numbers.items() if any(totals[number])
        ]
        return sorted(figures, key=lambda figure: -figure["gold"])

    def _errors(self) -> dict | None:
        """The number of errors of each kind, in total, by label, and in how many rows; None without gold."""
        if not self.row_counts:
            return None
        labels = [label for label in self.numbers if any(self.errors[kind, label] for kind in KINDS)]
        return {
            "kinds": [
                {
                    "kind": kind,
                    "spans": sum(self.errors[kind, label] for label in labels),
                    "rows": self.rows_with[kind],
                    "by_label": [self.errors[kind, label] for label in labels],
                }
                for kind in KINDS
            ],
            "labels": labels,
        }


def _rounded(score: float | None) -> float | None:
    return round(score, 3) if score is not None and math.isfinite(score) else None


def _scores(kinds: list[RowCounts], label_count: int, draws: np.ndarray) -> dict[str, np.ndarray]:
    """Micro scores and macro-F1 of each resample; ``draws[:, i]`` is the number of rows with ``kinds[i]``."""
    import numpy as np

    features = np.zeros((len(kinds), label_count, 3))
    for index, counts in enumerate(kinds):
        for label, *figures in counts:
            features[index, label] = figures
    sums = np.tensordot(draws.astype(float), features, axes=1)
    right, predicted, gold = np.moveaxis(sums, -1, 0)  # each (resamples, labels)
    by_label = ratio(2 * right, predicted + gold)
    right_all, predicted_all, gold_all = right.sum(-1), predicted.sum(-1), gold.sum(-1)
    return {
        "f1": ratio(2 * right_all, predicted_all + gold_all),
        "precision": ratio(right_all, predicted_all),
        "recall": ratio(right_all, gold_all),
        "macro_f1": mean_over(by_label, predicted + gold > 0),
    }
