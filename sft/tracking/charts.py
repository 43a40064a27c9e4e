"""Which figures become charts in SwanLab, and in which order; the others stay in ``metrics.jsonl``.

The local dashboard shows charts in the order in which they arrive. So the first to be sent are those that people watch
first, and there are few of them. What has a single value is no chart: it is shown beside the settings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

OF_ONE_LABEL = re.compile(r"(eval|test)_(precision|recall|f1)_")
FIRST, LAST = "loss", "eval_ece"
OTHERS = ("learning_rate", "grad_norm", "tokens_per_second")
MOST_SCORES = 6  # so that with the losses, the others and the samples there are at most 12 charts
# Of an evaluation, but no score: how long it took, and what is the same at every step or only of use afterwards.
NOT_SCORES = re.compile(r"eval_(loss|runtime|unparsable|threshold|temperature|score_bias|\w+_per_second)$")
RESULTS = re.compile(r"(test|train)_(?!\w+_per_second$)|(executed|logical)_tokens$")

Figures = dict[str, int | float]


class Charts:
    """Sorts the rows of ``metrics.jsonl`` into charts and single figures.

    Args:
        log: sends figures of one step: ``log(figures, step)``.
        show: shows single figures beside the settings.
    """

    def __init__(self, log: Callable[[Figures, int], object], show: Callable[[Figures], object]) -> None:
        self._log, self._show = log, show
        self._has_loss = False
        self._evaluations = 0
        self._waiting: tuple[Figures, int] | None = None  # the first evaluation: alone it would be a single point

    def add(self, step: int, row: Mapping[str, int | float]) -> None:
        """Send what a row has for the charts.

        Args:
            row: finite numbers by name.
        """
        if evaluation := _of_evaluation(row):
            self._add_evaluation(evaluation, step)
        if FIRST in row:
            self._send({FIRST: row[FIRST]}, step)
            if not self._has_loss:
                self._has_loss = True
                if self._waiting and self._waiting[1] == 0:  # others follow the one before the first step
                    self._send_waiting()
            self._send({name: row[name] for name in OTHERS if name in row}, step)
        elif any(name.startswith(("train_", "test_")) for name in row):
            results = {name: value for name, value in row.items() if RESULTS.match(name) and not is_of_one_label(name)}
            self._show(results)

    def end(self) -> None:
        """Show a single evaluation beside the settings."""
        if self._waiting:
            figures, _ = self._waiting
            self._show(figures)
            self._waiting = None

    def _add_evaluation(self, evaluation: Figures, step: int) -> None:
        self._evaluations += 1
        if self._evaluations == 1:
            self._waiting = (evaluation, step)
        else:
            self._send_waiting()
            self._send(evaluation, step)

    def _send_waiting(self) -> None:
        if self._waiting:
            self._send(*self._waiting)
            self._waiting = None

    def _send(self, figures: Figures, step: int) -> None:
        if figures:
            self._log({_title(name): value for name, value in figures.items()}, step)


def is_of_one_label(name: str) -> bool:
    """Whether a metric is about one label only; there can be hundreds of them."""
    return OF_ONE_LABEL.match(name) is not None


def _of_evaluation(row: Mapping[str, int | float]) -> Figures:
    """The loss and the first scores of a row with an evaluation."""
    scores = [
        name for name in row if name.startswith("eval_") and not NOT_SCORES.match(name) and not is_of_one_label(name)
    ]
    scores.sort(key=lambda name: name == LAST)
    names = [name for name in ("eval_loss",) if name in row] + scores[:MOST_SCORES]
    return {name: row[name] for name in names}


def _title(name: str) -> str:
    return name.replace("eval_", "eval/", 1) if name.startswith("eval_") else f"train/{name}"
