"""Do scores keep what they promise: of all answers with a score of 0.8, are 80 % right? And what makes them do so.

The expected calibration error (ECE) and the reliability diagram are those of Guo et al. 2017 (arXiv 1706.04599), with
their 15 bins of equal width. A bin holds scores from its lower end, included, to its upper end, excluded. What is
counted is an answer with a score: a label, or an entity that the model found. An entity that was missed has no score.
The error is given for any number of answers; of fewer than `LEAST_SCORED` it is too high by chance.

The temperature is theirs, too: one number T > 0, by which the logarithms of the probabilities of all options are
divided before they are made to sum to 1 again. A larger T makes scores more modest; which option is the best, and the
order of all others, stay. An entity has two options, being right and being wrong, and a second number b, because the
likeliest of many possible names is often right at a probability far below one half: its score s becomes
sigmoid(logit(s) / T + b) (Platt 1999). The order of scores stays here, too.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from sft.tasks.metrics import span_of

if TYPE_CHECKING:
    import numpy as np

BINS = 15
LEAST_SCORED = 100  # answers: a temperature from fewer says more about these rows than about the model
LEAST_OF_EACH = 5  # right ones, and wrong ones: where no answer is wrong, the best temperature is 0
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.1, 10.0
MOST_BIAS = 5.0  # either way
DIGITS = 3  # of both, after the point
SCORE_UNITS = 1 << 30  # sums of scores are whole numbers of 1/2^30, so that they are the same in any order
EDGE = 2.0**-24  # float32 cannot tell a probability from 0 or 1 that is closer to it


class Bin(NamedTuple):
    """Some answers with nearly the same score.

    Attributes:
        rows: how many.
        score_units: the sum of their scores, in 1 / ``SCORE_UNITS``.
        right: how many of them are right.
    """

    rows: int = 0
    score_units: int = 0
    right: int = 0


@dataclass
class Reliability:
    """Answers counted by their score. The counts of other rows can be added; the order makes no difference.

    Attributes:
        bins: one `Bin` for each of the ``BINS`` ranges of scores, the lowest first.
    """

    bins: list[Bin] = field(default_factory=lambda: [Bin()] * BINS)

    def judge(self, gold: dict, result: dict) -> None:
        """Count the answers of one row that have a score."""
        for score, right in judged_scores(gold, result):
            self.count(score, right=right)

    def count(self, score: float, *, right: bool) -> None:
        """Count one answer."""
        index = min(BINS - 1, int(score * BINS))
        rows, units, hits = self.bins[index]
        self.bins[index] = Bin(rows + 1, units + round(score * SCORE_UNITS), hits + right)

    def add(self, other: Reliability) -> None:
        """Count the answers of other rows, too."""
        self.bins = [
            Bin(*(mine + others for mine, others in zip(*both, strict=True)))
            for both in zip(self.bins, other.bins, strict=True)
        ]

    @property
    def rows(self) -> int:
        """How many answers were counted."""
        return sum(bin_.rows for bin_ in self.bins)

    def expected_error(self) -> float | None:
        """The mean distance of score and share of right answers over the bins, by their rows; None without answers."""
        if not self.rows:
            return None
        return sum(abs(bin_.right * SCORE_UNITS - bin_.score_units) for bin_ in self.bins) / (SCORE_UNITS * self.rows)

    def diagram(self) -> dict | None:
        """The bins that are not empty, the error and the number of answers, for a page; None without answers."""
        if not self.rows:
            return None
        bins = [
            {
                "from": index / BINS,
                "to": (index + 1) / BINS,
                "rows": bin_.rows,
                "confidence": bin_.score_units / SCORE_UNITS / bin_.rows,
                "accuracy": bin_.right / bin_.rows,
            }
            for index, bin_ in enumerate(self.bins)
            if bin_.rows
        ]
        return {"bins": bins, "expected_error": self.expected_error(), "rows": self.rows}

    def to_json(self) -> list[list[int]]:
        """The bins as JSON values, for `from_json`."""
        return [[*bin_] for bin_ in self.bins]

    @classmethod
    def from_json(cls, value: object) -> Reliability:
        """The counts that `to_json` was called on.

        Raises:
            ValueError: it is something else, or counts that cannot be.
        """
        whole = isinstance(value, list) and len(value) == BINS
        if not whole or not all(isinstance(bin_, list) and len(bin_) == len(Bin._fields) for bin_ in value):
            raise ValueError(f"reliability 应是 {BINS} 个区间")
        bins = [Bin(*bin_) for bin_ in value]
        for bin_ in bins:
            if any(type(count) is not int for count in bin_):
                raise ValueError("reliability 应是计数")
            if not 0 <= bin_.right <= bin_.rows or not 0 <= bin_.score_units <= bin_.rows * SCORE_UNITS:
                raise ValueError("reliability 的计数互相矛盾")
        return cls(bins)


def judged_scores(gold: dict, result: dict) -> Iterator[tuple[float, bool]]:
    """The score of each answer of a row, and whether the answer is right.

    One of a label, or none if no label is given; one of each entity, and of two alike only one. An answer without a
    score, or with one that is not finite, is left out.
    """
    if "entities" in result:
        right_spans = set(map(span_of, gold["entities"]))
        scores = {span_of(entity): entity.get("score") for entity in result["entities"]}
        pairs = [(score, span in right_spans) for span, score in scores.items()]
    else:
        pairs = [(result.get("score"), result["label"] == gold["label"])] if result["label"] is not None else []
    for score, right in pairs:
        if is_probability(score):
            yield min(score, 1.0), right


def is_probability(score: float | None) -> bool:
    """Whether a score is a finite number that is not negative; rounding may bring it a little above 1."""
    return score is not None and math.isfinite(score) and score >= 0


# ---- scores that keep what they promise ----


class Calibration(NamedTuple):
    """What turns a model's own scores into calibrated ones.

    Attributes:
        temperature: logarithms of probabilities are divided by it.
        bias: added to the log-odds of an entity's being right; None for labels, which have none.
    """

    temperature: float
    bias: float | None = None


class Scored(NamedTuple):
    """An answer with the probabilities of everything that it could have been.

    Attributes:
        chances: of all options of a label; of an entity those of being right and of being wrong. They sum to 1.
        given: which of them is the answer.
        truth: which of them is the right one.
        row: the number of its row.
    """

    chances: tuple[float, ...]
    given: int
    truth: int
    row: int


def calibrated(result: dict, calibration: Calibration) -> dict:
    """A result with calibrated scores. All else is the same; a score that is missing or not finite stays as it is."""
    if "entities" in result:
        return result | {"entities": [_calibrated_entity(entity, calibration) for entity in result["entities"]]}
    scores = result.get("scores")
    if not scores or not all(map(is_probability, scores.values())) or result["label"] not in scores:
        return result
    scores = dict(zip(scores, rescaled(list(scores.values()), calibration), strict=True))
    return result | {"score": scores[result["label"]], "scores": scores}


def _calibrated_entity(entity: dict, calibration: Calibration) -> dict:
    if not is_probability(entity.get("score")):
        return entity
    return entity | {"score": rescaled(_right_or_wrong(entity["score"]), calibration)[0]}


def _right_or_wrong(score: float) -> tuple[float, float]:
    return max(score, EDGE), max(1 - score, EDGE)


def rescaled(chances: Sequence[float], calibration: Calibration) -> list[float]:
    """The calibrated probabilities of the options of one answer. They sum to 1."""
    logarithms = [math.log(max(chance, sys.float_info.min)) / calibration.temperature for chance in chances]
    logarithms[0] += calibration.bias or 0.0
    highest = max(logarithms)
    powers = [math.exp(logarithm - highest) for logarithm in logarithms]
    total = sum(powers)
    return [power / total for power in powers]


# ---- what fits validation rows best ----


def scored_answers(gold: dict, result: dict, row: int) -> Iterator[Scored]:
    """The answers of one row as a calibration is fitted to them."""
    if "entities" in result:
        for score, right in judged_scores(gold, result):
            yield Scored(_right_or_wrong(score), 0, 0 if right else 1, row)
        return
    scores = result.get("scores") or {}
    if {result["label"], gold["label"]} <= scores.keys() and all(map(is_probability, scores.values())):
        options = list(scores)
        yield Scored(tuple(scores.values()), options.index(result["label"]), options.index(gold["label"]), row)


def best_calibration(scored: Sequence[Scored], *, with_bias: bool) -> Calibration | None:
    """The calibration by which these answers are the most probable; None unless it helps with rows not fitted on.

    It is fitted on the even rows and tried on the odd ones, and the other way round. It helps if both the negative
    log-likelihood and the expected calibration error of all rows become smaller. What it is then is fitted on all.

    Args:
        with_bias: for entities.

    Returns:
        None also for fewer than ``LEAST_SCORED`` answers, or ``LEAST_OF_EACH`` right or wrong ones.
    """
    wrong = sum(answer.given != answer.truth for answer in scored)
    if len(scored) < LEAST_SCORED or min(wrong, len(scored) - wrong) < LEAST_OF_EACH:
        return None
    halves = [[answer for answer in scored if answer.row % 2 == parity] for parity in (0, 1)]
    if not all(halves):
        return None
    fitted = [_fit(half, with_bias=with_bias) for half in reversed(halves)]
    return _fit(scored, with_bias=with_bias) if _helps(halves, fitted) else None


def _helps(parts: Sequence[Sequence[Scored]], calibrations: Sequence[Calibration]) -> bool:
    """Whether each part's calibration makes both the loss and the calibration error of all parts smaller."""
    losses, errors = [0.0, 0.0], [Reliability(), Reliability()]
    for part, calibration in zip(parts, calibrations, strict=True):
        for answer in part:
            for place, chances in enumerate((answer.chances, rescaled(answer.chances, calibration))):
                losses[place] -= math.log(max(chances[answer.truth], sys.float_info.min))
                errors[place].count(min(chances[answer.given], 1.0), right=answer.given == answer.truth)
    return losses[1] < losses[0] and errors[1].expected_error() < errors[0].expected_error()


def _fit(scored: Sequence[Scored], *, with_bias: bool) -> Calibration:
    """The calibration with the smallest mean negative log-likelihood of the right options.

    That is convex in 1 / temperature and bias, so there is one minimum.
    """
    import numpy as np
    from scipy.optimize import minimize  # comes with scikit-learn

    logarithms = np.full((len(scored), max(len(answer.chances) for answer in scored)), -np.inf)
    for row, answer in zip(logarithms, scored, strict=True):
        row[: len(answer.chances)] = np.log(np.maximum(answer.chances, sys.float_info.min))
    finite = np.where(np.isfinite(logarithms), logarithms, 0.0)
    rows, truths = np.arange(len(scored)), np.array([answer.truth for answer in scored])

    def loss_and_slopes(values: np.ndarray) -> tuple[float, np.ndarray]:
        inverse, bias = values
        scaled = logarithms * inverse
        scaled[:, 0] += bias
        scaled -= scaled.max(axis=1, keepdims=True)
        powers = np.exp(scaled)
        totals = powers.sum(axis=1)
        chances = powers / totals[:, None]
        by_inverse = (chances * finite).sum(axis=1) - finite[rows, truths]
        slopes = np.array([by_inverse.mean(), (chances[:, 0] - (truths == 0)).mean()])
        return float((np.log(totals) - scaled[rows, truths]).mean()), slopes

    most_bias = MOST_BIAS if with_bias else 0.0
    bounds = [(1 / MOST_TEMPERATURE, 1 / LEAST_TEMPERATURE), (-most_bias, most_bias)]
    options = {"ftol": 1e-14, "gtol": 1e-9}
    found = minimize(loss_and_slopes, [1.0, 0.0], jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return Calibration(round(1 / float(found[0]), DIGITS), round(float(found[1]), DIGITS) if with_bias else None)
