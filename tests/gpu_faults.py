"""Faults to plant in a rehearsed run. Each takes the `PretendGpu`, and is called in the run's own process."""

from __future__ import annotations

from collections.abc import Callable

import torch

OVERFLOWING_STEPS = (2,)


def mask_left_on_the_cpu(gpu) -> None:
    from sft.engine import prefix_tree

    hidden = prefix_tree._hidden
    prefix_tree._hidden = lambda width, length, window, device: hidden(width, length, window, torch.device("cpu"))


def scaler_missing(gpu) -> None:
    from sft.training import prepare

    settle = prepare.settle_training_arguments

    def settle_training_arguments(arguments, *others) -> None:
        settle(arguments, *others)
        arguments.training.mixed_precision = "no"

    prepare.settle_training_arguments = settle_training_arguments


def item_in_the_layer_loop(gpu) -> None:
    from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

    forward = Qwen2DecoderLayer.forward

    def waiting(self, hidden_states, *arguments, **keywords):
        hidden_states.abs().amax().item()
        return forward(self, hidden_states, *arguments, **keywords)

    Qwen2DecoderLayer.forward = waiting


def gradients_overflow_in_step_2(gpu) -> None:
    _change_gradients(lambda step: step in OVERFLOWING_STEPS)


def gradients_overflow_always(gpu) -> None:
    _change_gradients(lambda step: True)


def _change_gradients(overflows: Callable[[int], bool]) -> None:
    """Put an Inf into a gradient after the backward pass of chosen steps."""
    from sft.training.trainer import SftTrainer

    training_step = SftTrainer.training_step

    def overflowing(self, *arguments, **keywords):
        loss = training_step(self, *arguments, **keywords)
        if overflows(self.state.global_step + 1):
            next(parameter for parameter in self.adapter if parameter.grad is not None).grad[0, 0] = torch.inf
        return loss

    SftTrainer.training_step = overflowing


def loss_of_step_2_is_nan(gpu) -> None:
    from sft.training import trainer

    compute, calls = trainer.supervised_loss, [0]

    def supervised_loss(*arguments):
        calls[0] += 1
        loss = compute(*arguments)
        return loss * torch.nan if calls[0] == 2 else loss

    trainer.supervised_loss = supervised_loss
