"""A new LoRA adapter on a base model, and one line about what gets none."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sft.errors import InputError, one_line

logger = logging.getLogger(__name__)

ALL_LINEAR = "all-linear"  # PEFT's word for every linear layer but the output layer


def add_lora(
    model: PreTrainedModel,
    *,
    lora_r: int,
    lora_alpha: int,
    lora_dropout: float,
    lora_target_modules: list[str],
    use_rslora: bool,
) -> PeftModel:
    """Add a new LoRA adapter to a base model; the arguments are the flags of the same names.

    The adapter's weights are float32, whatever the dtype of the base. At first it changes nothing (B is zero).

    Names that the model does not have, and linear layers that get no adapter, are logged in one line.

    Args:
        lora_target_modules: names of layers, or only ``all-linear`` for every linear layer but the output layer.

    Raises:
        InputError: the model has no such target module.
    """
    everything = [name.lower() for name in lora_target_modules] == [ALL_LINEAR]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora_r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=ALL_LINEAR if everything else lora_target_modules,
        use_rslora=use_rslora,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2's kind of linear layer
    )
    own = _linear_layers(model)
    try:
        adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
    except ValueError as error:
        raise InputError(
            f"--lora_target_modules：模型里没有 {'、'.join(lora_target_modules)}（{one_line(error)[:80]}）；"
            f"它的线性层是 {'、'.join(own)}，全部都要就写 {ALL_LINEAR}"
        ) from error
    if line := _left_out(adapted, own, [] if everything else lora_target_modules):
        logger.warning("%s", line)
    return adapted


def _left_out(adapted: PeftModel, own: Counter[str], wanted: Sequence[str]) -> str | None:
    """What of the model has no adapter, in one line; None if every linear layer has one."""
    missing = own - Counter(name.rpartition(".")[2] for name in adapted.targeted_module_names)
    names = {name.rpartition(".")[2] for name, _ in adapted.get_base_model().named_modules()}
    parts = []
    if missing:
        parts.append("没有适配器的线性层：" + "、".join(f"{name}（{count} 层）" for name, count in missing.items()))
        unknown = [name for name in wanted if name.rpartition(".")[2] not in names]
        if unknown:
            parts.append(f"模型里没有 {'、'.join(unknown)}")
        parts.append(f"要全部都有，加 --lora_target_modules {ALL_LINEAR}")
    if experts := _expert_weights(adapted):
        parts.append(f"专家的权重（{'、'.join(experts)}）不是线性层，没有适配器")
    return "；".join(parts) or None


def _linear_layers(model: PreTrainedModel) -> Counter[str]:
    """How many linear layers of each name the model has, the output layer left out."""
    head = model.get_output_embeddings()
    return Counter(
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    )


def _expert_weights(model: torch.nn.Module) -> list[str]:
    """The weights of a mixture of experts that are one tensor for all experts, such as ``experts.down_proj``."""
    stacked = (name for name, parameter in model.named_parameters() if parameter.ndim == 3)
    experts = (".".join(name.split(".")[-2:]) for name in stacked if "lora_" not in name)
    return list(dict.fromkeys(name for name in experts if "expert" in name))
