"""How many steps a run has, and how often its loss is logged."""

from __future__ import annotations

import math

from transformers import TrainingArguments

from sft.errors import InputError

# How often to log: as seldom as possible, if that gives at least so many points of the loss.
LOGGING_STEPS = (10, 5, 2, 1)
LEAST_POINTS = 20
# A new adapter begins at nothing. With the demo model and the best rates the training loss of both tasks still halves
# every ten to twenty steps at step 30, and is near its end at step 50 (classification) to 100 (entities).
FEW_STEPS = 50


def rows_a_step(training: TrainingArguments) -> int:
    """Rows in one optimizer step, over accumulation and all processes."""
    return training.per_device_train_batch_size * training.world_size * training.gradient_accumulation_steps


def planned_steps(rows: int, training: TrainingArguments) -> tuple[int, float]:
    """``(optimizer steps, epochs)`` of a run over ``rows`` rows, as the Trainer will count them.

    Raises:
        InputError: there are none: batches that are not full are left out, and none is full.
    """
    batches = rows / (training.per_device_train_batch_size * training.world_size)
    micro_batches = math.floor(batches) if training.dataloader_drop_last else math.ceil(batches)
    if micro_batches == 0:
        size = training.per_device_train_batch_size
        raise InputError(
            f"--dataloader_drop_last：{rows} 条不够每张卡一批 {size} 条，一步也没有；"
            "请去掉它，或减小 --per_device_train_batch_size"
        )
    steps_an_epoch = math.ceil(micro_batches / training.gradient_accumulation_steps)
    steps = training.max_steps if training.max_steps > 0 else math.ceil(steps_an_epoch * training.num_train_epochs)
    return steps, steps / steps_an_epoch


def fitting_logging_steps(steps: int) -> int:
    """How often a run of ``steps`` steps logs its loss, in steps. A run of fewer than 20 steps logs each of them."""
    return next((every for every in LOGGING_STEPS if steps // every >= LEAST_POINTS), 1)


def advice_on_late_validation(steps: int, training: TrainingArguments) -> str | None:
    """What to say about a run that ends before its first validation; None for any other."""
    if training.eval_strategy != "steps" or training.eval_steps <= steps:
        return None
    return (
        f"--eval_steps {training.eval_steps}：这次训练只有 {steps} 步，训练中一次也不验证，选不出最好的一步，"
        "保留最后一步；请减小它，或用 --eval_strategy epoch"
    )


def advice_on_few_steps(rows: int, training: TrainingArguments) -> str | None:
    """What to say about a run that is too short for a new adapter; None if it is long enough, or its length is given.

    Args:
        rows: training rows.
    """
    steps, epochs = planned_steps(rows, training)
    if training.max_steps > 0 or steps >= FEW_STEPS:
        return None
    enough = math.ceil(FEW_STEPS * epochs / steps)
    smaller = " 或更小的 --per_device_train_batch_size" if training.per_device_train_batch_size > 1 else ""
    return (
        f"只有 {steps} 步（{rows} 条，每步 {rows_a_step(training)} 条），新的适配器一般要 {FEW_STEPS} 到 "
        f"{2 * FEW_STEPS} 步才学得会；请用 --num_train_epochs {enough}{smaller}"
    )
