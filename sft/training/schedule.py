"""The learning rate's schedule, tried before a model is read: whether it can be made, and what of it does nothing."""

from __future__ import annotations

import logging

import torch
from transformers import TrainingArguments, get_scheduler

from sft.errors import InputError, one_line

logger = logging.getLogger(__name__)

BY_METRIC = ("reduce_lr_on_plateau", "greedy")  # they go by the validation
WITHOUT_WARMUP = ("constant", *BY_METRIC)
WITH_WARMUP = {"constant": "；请用 --lr_scheduler_type constant_with_warmup"}
# What a schedule cannot be made without, as an example that works.
NEEDED = {
    "cosine_with_min_lr": '{"min_lr_rate": 0.1}',
    "cosine_warmup_with_min_lr": '{"min_lr_rate": 0.1}',
    "warmup_stable_decay": '{"num_decay_steps": 10}',
}


def check_schedule(training: TrainingArguments, steps: int, *, validates: bool) -> None:
    """Make the schedule of a run of ``steps`` steps, and warn of a warm-up that is ignored or never ends.

    Raises:
        InputError: it needs validation rows and there are none, or it cannot be made with these arguments.
    """
    kind = training.lr_scheduler_type.value
    if kind in BY_METRIC and not validates:
        raise InputError(
            f"--lr_scheduler_type {kind}：它看验证指标，而没有验证数据；"
            "请给 --validation_file 或 --validation_ratio，或换成 linear、cosine"
        )
    warmup = training.get_warmup_steps(steps)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=training.learning_rate)
    try:
        get_scheduler(kind, optimizer, warmup, steps, training.lr_scheduler_kwargs)
    except (TypeError, ValueError) as error:
        example = NEEDED.get(kind)
        advice = f"请给如 --lr_scheduler_kwargs '{example}'" if example else "请改正或去掉 --lr_scheduler_kwargs"
        raise InputError(f"--lr_scheduler_type {kind}：{one_line(error)}；{advice}") from error
    asked = f"--warmup_steps {training.warmup_steps:g}"
    if warmup and kind in WITHOUT_WARMUP:
        logger.warning("%s 没有用上：--lr_scheduler_type %s 不预热%s", asked, kind, WITH_WARMUP.get(kind, ""))
    elif warmup >= steps > 1:
        told = "%s：这次训练只有 %d 步，到最后也升不到 --learning_rate；请减小它，如 --warmup_steps 0.1"
        logger.warning(told, asked, steps)
