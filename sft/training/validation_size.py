"""How many rows of the training file become validation rows, where neither flag says so.

A score on n rows has a standard error of sqrt(p (1 - p) / n): for p = 0.8 that is 18 points of accuracy on 5 rows, 9
on 20, 6 on 50, 3 on 200. The best of several steps is chosen by such scores. On fewer than 20 rows the choice is
chance, and the rows teach more than they tell. Beyond 50 another row tells little and is missed more in training.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from sft.training.arguments import Arguments

logger = logging.getLogger(__name__)

LEAST_ROWS = 50  # raised to this many
LARGEST_SHARE = 0.2  # of the texts, when raised
FEWEST_ROWS = 20  # with fewer there is no validation
SIZE_FLAGS = {"validation_ratio", "max_validation_rows"}
# Who gives one of these wants a validation, however small.
WANTS_VALIDATION = {
    "eval_strategy", "eval_steps", "early_stopping_patience", "load_best_model_at_end", "metric_for_best_model",
    "eval_on_start",
}  # fmt: skip


def validation_texts(texts: int, arguments: Arguments) -> int:
    """How many of the ``texts`` different texts are held out; says so in one line where it is not what the flags say.

    The flags ``--validation_ratio`` and ``--max_validation_rows`` are obeyed.
    """
    data, given = arguments.data, arguments.given
    by_flags = _by_flags(texts, arguments)
    if given & SIZE_FLAGS:
        if by_flags == 0 and data.max_validation_rows and data.validation_ratio:
            logger.warning(
                "--validation_ratio %g：%d 条里分不出一条，不验证，保留最后一步；要验证请加大它，如 0.2",
                *(data.validation_ratio, texts),
            )
        return by_flags
    raised = max(by_flags, min(LEAST_ROWS, int(texts * LARGEST_SHARE)))
    if raised < FEWEST_ROWS and not given & WANTS_VALIDATION:
        logger.warning(
            "训练数据只有 %d 条，分不出够用的验证集（%d 条以上才看得出好坏）：全部用来训练，不验证，保留最后一步；"
            "要验证请给 --validation_file 或 --validation_ratio",
            *(texts, FEWEST_ROWS),
        )
        return 0
    if raised > by_flags:
        logger.info(
            "验证集切 %d 条（%.0f%% 只有 %d 条，太少）；%d 条上的准确率有约 ±%.0f 个百分点的误差",
            *(raised, 100 * data.validation_ratio, by_flags, raised, 100 * standard_error(raised)),
        )
    return raised


def size_beside_flags(train: Sequence[dict], validation: Sequence[dict], arguments: Arguments) -> int | None:
    """How many texts were held out, where that does not follow from the flags alone; None where it does."""
    held = len({record["text"] for record in validation})
    by_flags = _by_flags(held + len({record["text"] for record in train}), arguments)
    return None if arguments.data.validation_file is not None or held == by_flags else held


def _by_flags(texts: int, arguments: Arguments) -> int:
    return min(arguments.data.max_validation_rows, int(texts * arguments.data.validation_ratio))


def standard_error(rows: int) -> float:
    """Of an accuracy of 0.8 on so many rows, between 0 and 1."""
    return math.sqrt(0.8 * 0.2 / max(rows, 1))
