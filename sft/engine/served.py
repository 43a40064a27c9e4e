"""Which packed passes are exact for a model, and what makes its logits: tried on a tiny copy, not looked up by name.

What is tried is in `sft.engine.trial`. It takes a few hundredths of a second, once for each configuration.
"""

from __future__ import annotations

import logging
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from transformers import PreTrainedConfig, PreTrainedModel

from sft.console import say_once

logger = logging.getLogger(__name__)


class Logits(NamedTuple):
    """What a model does to the output of its output layer: scales it, then caps it softly.

    Attributes:
        scale: 1 for most models.
        cap: None for most models.
    """

    scale: float = 1.0
    cap: float | None = None

    def of(self, output: torch.Tensor) -> torch.Tensor:
        """The logits, from the output of the output layer."""
        output = output if self.scale == 1 else output * self.scale
        return output if self.cap is None else self.cap * torch.tanh(output / self.cap)

    def slope(self, logits: torch.Tensor) -> torch.Tensor | float:
        """The derivative of ``logits`` by the output that they come from."""
        return self.scale if self.cap is None else self.scale * (1 - (logits / self.cap).square())


PLAIN = Logits()  # what the output layer gives


class Served(NamedTuple):
    """What of this project's engine a model can use with exact results.

    Attributes:
        packed: the prefix tree, the option tree and the ragged pass.
        logits: how logits come from the output layer, so that it may run at a few positions only; None if unknown.
        limit_tokens: packed passes are exact for sequences of at most so many tokens; None for no limit.
        reason: why ``packed`` is false, for the user; "" if it is true.
    """

    packed: bool
    logits: Logits | None
    limit_tokens: int | None = None
    reason: str = ""

    def expresses(self, length_tokens: int) -> bool:
        """Whether packed passes are exact for sequences of ``length_tokens``."""
        return self.packed and (self.limit_tokens is None or length_tokens <= self.limit_tokens)


_by_config: dict[str, Served] = {}
_by_model: WeakKeyDictionary[object, Served] = WeakKeyDictionary()


def served(config: PreTrainedConfig) -> Served:
    """What a model with this configuration can use; tried at the first call."""
    if not isinstance(config, PreTrainedConfig):
        return Served(False, None, reason="不是 transformers 的模型")
    key = config.to_json_string(use_diff=False)
    if key not in _by_config:
        from sft.engine.trial import try_out  # late: what it tries asks here, too

        _by_config[key] = try_out(config)
    return _by_config[key]


def served_by(model: PreTrainedModel | PeftModel) -> Served:
    """`served` for a model, with or without an adapter."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if base not in _by_model:
        _by_model[base] = served(base.config)
    return _by_model[base]


def assume(model: PreTrainedModel, what: Served) -> None:
    """Take ``what`` for granted about one model: for trying it."""
    _by_model[model] = what


def say_what_is_not_served(config: PreTrainedConfig) -> None:
    """One line for the user if a model needs padded passes; nothing otherwise."""
    found = served(config)
    if not found.packed:
        say_once(logger, f"{config.model_type}：{found.reason}，不能用前缀树：按补齐的批计算，结果相同，只是慢")
