"""Which numbers the flags of training can be. Imports neither torch nor transformers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple


class Range(NamedTuple):
    """The numbers that a flag can be; infinity and NaN are never among them.

    Attributes:
        least: the smallest number; not itself one of them if ``above``.
        below: a number that is too large; None for no upper limit.
        besides: a number with a meaning of its own, such as -1 for no limit.
    """

    least: float
    above: bool = False
    below: float | None = None
    besides: float | None = None

    def has(self, value: float) -> bool:
        """Whether a flag can be ``value``."""
        large_enough = value > self.least if self.above else value >= self.least
        small_enough = self.below is None or value < self.below
        return value == self.besides or (math.isfinite(value) and large_enough and small_enough)

    def __str__(self) -> str:
        text = f"{'大于' if self.above else '不小于'} {self.least:g}"
        if self.below is not None:
            text += f"、小于 {self.below:.10g}"
        return text if self.besides is None else f"{self.besides:g}，或{text}"


POSITIVE, COUNT, ANY_COUNT, AMOUNT = Range(0, above=True), Range(1), Range(0), Range(0)
SEED = Range(0, below=1 << 32)  # of numpy
RANGES = {
    "lora_r": COUNT,
    "lora_alpha": COUNT,
    "lora_dropout": Range(0, below=1),
    "validation_ratio": Range(0, below=1),
    "max_validation_rows": ANY_COUNT,
    "max_length": COUNT,
    "max_tokens_per_micro_batch": COUNT,
    "max_train_samples": COUNT,
    "sample_predictions": ANY_COUNT,
    "early_stopping_patience": ANY_COUNT,
    "preview": ANY_COUNT,
    "per_device_train_batch_size": COUNT,
    "per_device_eval_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "learning_rate": AMOUNT,
    "weight_decay": AMOUNT,
    "max_grad_norm": AMOUNT,
    "warmup_steps": AMOUNT,
    "num_train_epochs": POSITIVE,
    "max_steps": Range(1, besides=-1),
    "save_total_limit": COUNT,
    "logging_steps": POSITIVE,
    "save_steps": POSITIVE,
    "eval_steps": POSITIVE,
    "dataloader_num_workers": ANY_COUNT,
    "seed": SEED,
    "data_seed": SEED,
    "adam_beta1": Range(0, below=1),
    "adam_beta2": Range(0, below=1),
    "adam_epsilon": AMOUNT,
    "eval_delay": AMOUNT,
    "ddp_timeout": COUNT,
}


def check_ranges(groups: Iterable[object]) -> None:
    """Refuse a flag whose number makes no sense, such as a batch of no rows.

    Args:
        groups: the parsed flags, as attributes of several objects.

    Raises:
        ValueError: names the first such flag, what it can be, and what it is.
    """
    for group in groups:
        for name, allowed in RANGES.items():
            value = getattr(group, name, None)
            if value is not None and not allowed.has(value):
                raise ValueError(f"--{name} 应是{allowed}，实际是 {value:g}")
