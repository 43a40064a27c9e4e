"""Do scores keep what they promise: of all answers with a score of 0.8, are 80 % right? And a temperature to help.

The expected calibration error (ECE) and the reliability diagram are those of Guo et al. 2017 (arXiv 1706.04599), with
their 15 bins of equal width. A bin holds scores from its lower end, included, to its upper end, excluded. What is
counted is an answer with a score: a label, or an entity that the model found. An entity that was missed has no score.
The error is given for any number of answers; of fewer than `LEAST_SCORED` it is too high by chance.

The temperature is theirs, too: one number T > 0, by which the logarithms of probabilities are divided before they
are made to sum to 1 again. For a label these are the probabilities of all options; for an entity those of being
right and of being wrong. A larger T makes scores more modest. T never changes which option is the best.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

BINS = 15
LEAST_SCORED = 100  # answers: a temperature from fewer says more about these rows than about the model
LEAST_OF_EACH = 5  # right ones, and wrong ones: where no answer is wrong, the best temperature is 0
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.1, 10.0
DIGITS = 3  # of a temperature, after the point
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
        right_spans = {_span(entity) for entity in gold["entities"]}
        scores = {_span(entity): entity.get("score") for entity in result["entities"]}
        pairs = [(score, span in right_spans) for span, score in scores.items()]
    else:
        pairs = [(result.get("score"), result["label"] == gold["label"])] if result["label"] is not None else []
    for score, right in pairs:
        if is_probability(score):
            yield min(score, 1.0), right


def is_probability(score: float | None) -> bool:
    """Whether a score is a finite number that is not negative; rounding may bring it a little above 1."""
    return score is not None and math.isfinite(score) and score >= 0


def _span(entity: dict) -> tuple[int, int, str]:
    return entity["start"], entity["end"], entity["label"]


# ---- temperature ----


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


def softened(chances: Sequence[float], temperature: float) -> list[float]:
    """The probabilities at a temperature: as high as their ``1 / temperature``-th powers, and summing to 1."""
    logarithms = [math.log(max(chance, sys.float_info.min)) / temperature for chance in chances]
    highest = max(logarithms)
    powers = [math.exp(logarithm - highest) for logarithm in logarithms]
    total = sum(powers)
    return [power / total for power in powers]


def calibrated(result: dict, temperature: float) -> dict:
    """A result with the scores that its own become at a temperature. All else is the same.

    A score that is missing or not finite stays as it is.
    """
    if "entities" in result:
        return result | {"entities": [_calibrated_entity(entity, temperature) for entity in result["entities"]]}
    scores = result.get("scores")
    if not scores or not all(map(is_probability, scores.values())) or result["label"] not in scores:
        return result
    scores = dict(zip(scores, softened(list(scores.values()), temperature), strict=True))
    return result | {"score": scores[result["label"]], "scores": scores}


def _calibrated_entity(entity: dict, temperature: float) -> dict:
    if not is_probability(entity.get("score")):
        return entity
    return entity | {"score": softened(_right_or_wrong(entity["score"]), temperature)[0]}


def _right_or_wrong(score: float) -> tuple[float, float]:
    return max(score, EDGE), max(1 - score, EDGE)


def scored_answers(gold: dict, result: dict, row: int) -> Iterator[Scored]:
    """The answers of one row as a temperature is fitted to them."""
    if "entities" in result:
        for score, right in judged_scores(gold, result):
            yield Scored(_right_or_wrong(score), 0, 0 if right else 1, row)
        return
    scores = result.get("scores") or {}
    if {result["label"], gold["label"]} <= scores.keys() and all(map(is_probability, scores.values())):
        options = list(scores)
        yield Scored(tuple(scores.values()), options.index(result["label"]), options.index(gold["label"]), row)


def best_temperature(scored: Sequence[Scored]) -> float | None:
    """The temperature by which these answers are the most probable; None unless it helps with rows not fitted on.

    It is fitted on the even rows and tried on the odd ones, and the other way round. It helps if both the negative
    log-likelihood and the expected calibration error of all rows become smaller. What it is then is fitted on all.

    Returns:
        None also for fewer than ``LEAST_SCORED`` answers, or ``LEAST_OF_EACH`` right or wrong ones.
    """
    wrong = sum(answer.given != answer.truth for answer in scored)
    if len(scored) < LEAST_SCORED or min(wrong, len(scored) - wrong) < LEAST_OF_EACH:
        return None
    halves = [[answer for answer in scored if answer.row % 2 == parity] for parity in (0, 1)]
    if not all(halves):
        return None
    fitted = [_fit(_logarithms(half)) for half in reversed(halves)]
    if not _helps(halves, fitted):
        return None
    return round(_fit(_logarithms(scored)), DIGITS)


def _helps(parts: Sequence[Sequence[Scored]], temperatures: Sequence[float]) -> bool:
    """Whether each part's temperature brings likelihood and calibration error of all parts nearer to the ideal."""
    losses, errors = [0.0, 0.0], [Reliability(), Reliability()]
    for part, temperature in zip(parts, temperatures, strict=True):
        logarithms = _logarithms(part)
        for place, tried in enumerate((1.0, temperature)):
            losses[place] += _loss(logarithms, tried) * len(part)
            for answer in part:
                score = softened(answer.chances, tried)[answer.given]
                errors[place].count(score, right=answer.given == answer.truth)
    return losses[1] < losses[0] and errors[1].expected_error() < errors[0].expected_error()


def _logarithms(scored: Sequence[Scored]) -> np.ndarray:
    """Log-probabilities of shape (answers, options at most): the right option first, -inf where there is none."""
    import numpy as np

    found = np.full((len(scored), max(len(answer.chances) for answer in scored)), -np.inf)
    for row, (chances, _, truth, _) in zip(found, scored, strict=True):
        ordered = [chances[truth], *chances[:truth], *chances[truth + 1 :]]
        row[: len(chances)] = np.log(np.maximum(ordered, sys.float_info.min))
    return found


def _loss(logarithms: np.ndarray, temperature: float) -> float:
    """The mean negative log-likelihood of the right options, which are in the first column."""
    import numpy as np

    scaled = logarithms / temperature
    highest = scaled.max(axis=1)
    return float((highest + np.log(np.exp(scaled - highest[:, None]).sum(axis=1)) - scaled[:, 0]).mean())


def _fit(logarithms: np.ndarray) -> float:
    """The temperature with the smallest loss, by golden-section search over its logarithm.

    The loss is convex in 1 / temperature, so there is one minimum.
    """
    ratio = (math.sqrt(5) - 1) / 2
    low, high = math.log(LEAST_TEMPERATURE), math.log(MOST_TEMPERATURE)
    while high - low > 10**-DIGITS / 10:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if _loss(logarithms, math.exp(left)) <= _loss(logarithms, math.exp(right)):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)
