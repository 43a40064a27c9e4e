"""Flags that do nothing beside the others: each is told in one line, so that nobody waits for what will not come."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from sft.training.arguments import Arguments
from sft.training.validation_size import SIZE_FLAGS, WANTS_VALIDATION

logger = logging.getLogger(__name__)

# What only an evaluation on validation rows can do something with.
OF_VALIDATION = (*sorted(WANTS_VALIDATION), "eval_delay", "greater_is_better")
OF_THE_HUB = (
    "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push", "hub_revision",
)  # fmt: skip
WHAT_STEPS_DO = {"eval": "验证", "save": "存检查点", "logging": "记录"}
WITHOUT_ARGUMENTS = ("adamw_torch", "adamw_torch_fused", "adafactor")  # optimizers; transformers reads no others here


def say_idle_flags(arguments: Arguments, *, validates: bool, tests: bool) -> None:
    """Tell the flags that were given and will do nothing.

    Called before `sft.training.prepare.settle_training_arguments`, which changes some of them.

    Args:
        validates, tests: whether there are validation rows and test rows.
    """
    for line in (*_of_validation(arguments, validates), *_of_steps(arguments, validates), *_others(arguments, tests)):
        logger.warning("%s", line)


def _of_validation(arguments: Arguments, validates: bool) -> Iterator[str]:
    never = arguments.training.eval_strategy == "no"
    beside = sorted(SIZE_FLAGS & arguments.given)
    if validates:
        if arguments.data.validation_file is not None and beside:
            yield f"给了 --validation_file，全部用来验证：{_named(beside)} 没有用上"
        return
    files = ["validation_file", *beside] if never else []
    asked = [name for name in (*OF_VALIDATION, *files) if name in arguments.given and _value(arguments, name)]
    asked = [name for name in sorted(asked) if not (never and name == "eval_strategy")]
    if asked and never:
        yield f"--eval_strategy no：不验证，{_named(asked)} 没有用上；训练集全部用来训练"
    elif asked:
        yield f"没有验证数据：{_named(asked)} 没有用上；要验证请给 --validation_file，或大一些的 --validation_ratio"


def _of_steps(arguments: Arguments, validates: bool) -> Iterator[str]:
    """``--eval_steps 50`` beside ``--eval_strategy epoch``, and the like: so only the strategy counts."""
    for kind, what in WHAT_STEPS_DO.items():
        strategy = str(getattr(arguments.training, f"{kind}_strategy").value)
        steps = getattr(arguments.training, f"{kind}_steps")
        if f"{kind}_steps" in arguments.given and strategy != "steps" and (validates or kind != "eval"):
            yield (
                f"--{kind}_steps {steps:g} 没有用上：--{kind}_strategy 是 {strategy}；"
                f"要按步数{what}，请加 --{kind}_strategy steps"
            )


def _others(arguments: Arguments, tests: bool) -> Iterator[str]:
    training, data, given = arguments.training, arguments.data, arguments.given
    if training.max_steps > 0 and "num_train_epochs" in given:
        yield f"--max_steps {training.max_steps} 优先：--num_train_epochs {training.num_train_epochs:g} 没有用上"
    if arguments.model.allow_other_base and arguments.model.init_adapter is None:
        yield "--allow_other_base 没有用上：它只用于 --init_adapter"
    if "sample_predictions" in given and data.sample_predictions and not tests:
        yield f"--sample_predictions {data.sample_predictions}：没有测试集，训练结束时没有样例可记；请给 --test_file"
    if (unused := [name for name in OF_THE_HUB if name in given]) and not training.push_to_hub:
        yield f"没有 --push_to_hub：{_named(unused)} 没有用上"
    if training.optim_args and training.optim in WITHOUT_ARGUMENTS:
        yield f"--optim_args 没有用上：--optim {training.optim.value} 没有别的参数"
    if "project" in given and "trackio" not in training.report_to:
        yield "--project 没有用上：它只用于 trackio；SwanLab 的项目名请用 --swanlab_project"


def _value(arguments: Arguments, name: str) -> object:
    return getattr(arguments.data if hasattr(arguments.data, name) else arguments.training, name)


def _named(names: list[str]) -> str:
    return "、".join(f"--{name}" for name in names)
