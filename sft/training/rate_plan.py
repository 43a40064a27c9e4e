"""``--learning_rate auto``: which rates are tried, on how much of the data, and which of them the run takes.

A search is a short successive halving. In the first round every rate of `RATES` is tried for a few steps; the best
of them are tried again for more steps. What counts is the loss on validation rows. A trial is the run made small: the
same rows a step, and the same schedule from the warm-up to its end, in fewer steps, at a rate that is larger in
proportion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from transformers import TrainingArguments

from sft.engine.batches import EncodedRow
from sft.errors import InputError
from sft.training.choosing_rows import chosen_rows
from sft.training.steps import FEW_STEPS, planned_steps, rows_a_step

# Published runs of LoRA on models of 0.5B to 70B lie between 1e-4 and 1e-3; very small models want up to 3e-3.
RATES = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)
KEPT = 3  # rates that are tried again
# Times the steps of the first round. For 95 steps on the bundled entities (2,000 test rows, 2 seeds) 5e-3 gives F1
# 0.788 and 2e-3 0.756: after 8 steps their losses differ by 4 to 5 %, after 16 by 18 to 19 %.
LONGER = 4
SHARE = 0.2  # of the steps of the run, for all trials together; validation comes on top
LEAST_STEPS = 4  # of a trial in the first round: a short run spends a larger share
VALIDATION_ROWS = 100  # all rates are compared on the same rows, so that few are enough
# The shorter a run, the larger its best rate, by a power of the ratio of their lengths (for pretraining: arXiv
# 2409.19913). With the demo model on the bundled news, 4 rows a step, the best of 8 steps was 1e-2, where 60 steps
# gave 1.35, and the best of 60 steps 5e-3, which gave 0.15. So a trial stands for a run at a smaller rate than its
# own. With trials of at most 10 steps it took 5e-3 for 77 steps on CCFBDCI (loss 0.59, at 2e-3 0.70), and 2e-3 for
# 357 steps on the bundled entities (0.048), where 5e-3 would give 0.036: the power errs towards small rates.
HORIZON_POWER = 1 / 3
# Short trials flatter large rates: for 120 steps on the bundled news, 5e-3 was 4 % below 2e-3 after 8 steps and equal
# after 16, and the run itself had an accuracy of 0.906 where 2e-3 gave 0.965. So a larger rate must be clearly better.
# (With another seed it is, by 28 %, and still worse in the test, whose rows are written otherwise: docs/results.md.)
CLEARLY_BETTER = 0.95  # times the loss of the smaller rate, or less
BY_HAND = "或直接写出一个，如 --learning_rate 2e-4"


class Round(NamedTuple):
    """A round of a search: how many rates are tried, and for how many steps each."""

    rates: int
    steps: int


class Trial(NamedTuple):
    """One rate that was tried.

    Attributes:
        rate: the learning rate of the run that it stands for, see `rate_of_trial`.
        steps: the optimizer steps of the trial.
        loss: after them, the mean over the supervised tokens of the validation rows; None if it was not finite.
    """

    rate: float
    steps: int
    loss: float | None


class Search(NamedTuple):
    """A finished search: the rate that the run takes, and all trials in order."""

    rate: float
    trials: tuple[Trial, ...]

    def to_json(self) -> dict:
        """As a JSON object, for `from_json`."""
        return {"rate": self.rate, "trials": [list(trial) for trial in self.trials]}

    @classmethod
    def from_json(cls, value: dict) -> Search:
        """The search that `to_json` was called on."""
        return cls(float(value["rate"]), trials_from_json(value["trials"]))


def trials_from_json(value: list) -> tuple[Trial, ...]:
    """Trials as they are saved.

    Raises:
        TypeError, ValueError: the value is something else.
    """
    return tuple(Trial(float(rate), int(steps), None if loss is None else float(loss)) for rate, steps, loss in value)


class SearchPlan(NamedTuple):
    """What a search will do.

    Attributes:
        rounds: one after the other.
        run_steps: the steps of the run itself.
        train: the rows to train trials on: a trial takes the first ones, as many as its steps need.
        validation: the rows that decide.
        rows_a_step: rows in one optimizer step.
        share: of the computation that the run's own steps take. Validating a row takes a third of training on it.
    """

    rounds: tuple[Round, ...]
    run_steps: int
    train: Sequence[EncodedRow]
    validation: Sequence[EncodedRow]
    rows_a_step: int
    share: float

    @property
    def steps(self) -> int:
        """The optimizer steps of all trials."""
        return sum(round.rates * round.steps for round in self.rounds)

    @property
    def trials(self) -> int:
        """How many trials there are."""
        return sum(round.rates for round in self.rounds)

    def rows_of(self, steps: int) -> Sequence[EncodedRow]:
        """The rows that a trial of so many steps trains on."""
        return self.train[: steps * self.rows_a_step]

    def describe(self) -> str:
        """What it costs, for the user."""
        sizes = "，".join(f"{round.rates} 个各 {round.steps} 步" for round in self.rounds)
        return (
            f"{sizes}，共 {self.steps} 步，每次用 {len(self.validation)} 条验证数据；计算量约是训练的 {self.share:.0%}"
        )


def plan_search(
    train: Sequence[EncodedRow], validation: Sequence[EncodedRow], training: TrainingArguments
) -> SearchPlan:
    """The search of a run, over slices of its rows that depend on the seed.

    Raises:
        InputError: there is nothing to compare with, the run is too short, or it has several processes.
    """
    if training.world_size > 1:  # each trial would exchange gradients of its own; not tried
        raise InputError(
            f"--learning_rate auto：只能在一个进程里试，现在有 {training.world_size} 个；"
            f"请先不用 torchrun，用 --max_train_samples 的一小份试出来，{BY_HAND}"
        )
    if not validation:
        raise InputError(
            f"--learning_rate auto：没有验证数据可比；请给 --validation_file 或 --validation_ratio，{BY_HAND}"
        )
    steps, epochs = planned_steps(len(train), training)
    if steps < FEW_STEPS:
        length = "--max_steps" if training.max_steps > 0 else "--num_train_epochs"
        raise InputError(
            f"--learning_rate auto：这次训练只有 {steps} 步，太短，试不出来（要 {FEW_STEPS} 步以上）；"
            f"请加大 {length}，{BY_HAND}"
        )
    first = max(LEAST_STEPS, int(SHARE * steps / (len(RATES) + KEPT * LONGER)))
    rounds = (Round(len(RATES), first), Round(KEPT, LONGER * first))
    rows = chosen_rows(train, LONGER * first * rows_a_step(training), training.seed)
    judges = chosen_rows(validation, VALIDATION_ROWS, training.seed)
    plan = SearchPlan(rounds, steps, rows, judges, rows_a_step(training), 0.0)
    tokens = plan.steps * plan.rows_a_step * _mean_tokens(rows) + plan.trials * sum(map(len, judges)) / 3
    return plan._replace(share=tokens / (epochs * sum(map(len, train))))


def rate_of_trial(rate: float, steps: int, run_steps: int) -> float:
    """The rate of a trial of ``steps`` that stands for a run of ``run_steps`` at ``rate``."""
    return rate * (run_steps / steps) ** HORIZON_POWER


def _mean_tokens(rows: Sequence[EncodedRow]) -> float:
    return sum(map(len, rows)) / len(rows)


def successive_halving(
    rounds: Sequence[Round],
    loss_of: Callable[[float, int], float | None],
    tell: Callable[[Sequence[Trial]], None] = lambda trials: None,
) -> list[Trial]:
    """Try all rates, then the best of them for longer; returns all trials in order.

    Args:
        loss_of: tries one rate for so many steps; None if the loss is not finite.
        tell: is called with the trials of each finished round.
    """
    trials: list[Trial] = []
    rates: Sequence[float] = RATES
    for round in rounds:
        rates = sorted(rates[: round.rates])
        done = [Trial(rate, round.steps, loss_of(rate, round.steps)) for rate in rates]
        tell(done)
        trials += done
        rates = [trial.rate for trial in best_first(done)]
    return trials


def chosen_of(trials: Sequence[Trial]) -> Trial:
    """The trial that decides, of those of the last round: the smallest rate that no larger one is clearly better than.

    If no loss is finite, its loss is None.
    """
    best = best_first(trials)[0]
    if best.loss is None:
        return best
    near = [trial for trial in trials if trial.loss is not None and best.loss >= CLEARLY_BETTER * trial.loss]
    return min(near, key=lambda trial: trial.rate)


def best_first(trials: Sequence[Trial]) -> list[Trial]:
    """By loss; of equals the smaller rate is better, and a loss that is not finite is worse than any."""
    return sorted(trials, key=lambda trial: (trial.loss is None, trial.loss or 0.0, trial.rate))
