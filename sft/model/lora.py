"""A new LoRA adapter on a base model, and one line about what gets none."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sft.engine.lora_node import use_lora_node
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
    if not everything and len(_unknown(lora_target_modules, model)) == len(lora_target_modules):
        raise _no_such_layers(lora_target_modules, model)
    try:
        adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
    except ValueError as error:
        raise InputError(f"LoRA 加不上（{one_line(error)[:200]}）；请换 --lora_target_modules") from error
    use_lora_node(adapted)
    if line := _left_out(adapted, own, [] if everything else lora_target_modules):
        logger.warning("%s", line)
    return adapted


def require_target_modules(config: PreTrainedConfig, names: Sequence[str], *, every_one: bool) -> None:
    """Check ``--lora_target_modules`` by the model's config alone, before its weights are read.

    Args:
        every_one: whether the model must have every layer; the default names are those of several models.

    Raises:
        InputError: the model has no such layers.
    """
    with torch.device("meta"):  # names and shapes without memory
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    unknown = [] if list(names) == [ALL_LINEAR] else _unknown(names, model)
    if unknown and (every_one or len(unknown) == len(names)):
        raise _no_such_layers(unknown, model)


def _unknown(names: Sequence[str], model: torch.nn.Module) -> list[str]:
    """Those of ``names`` that no module has; like PEFT, a name is the end of a module's path."""
    paths = [f".{path}" for path, _ in model.named_modules()]
    return [name for name in names if not any(path.endswith(f".{name}") for path in paths)]


def _no_such_layers(names: Sequence[str], model: PreTrainedModel) -> InputError:
    return InputError(
        f"--lora_target_modules：模型里没有 {'、'.join(names)}；"
        f"它的线性层是 {'、'.join(_linear_layers(model))}，全部都要就写 --lora_target_modules {ALL_LINEAR}"
    )


def _left_out(adapted: PeftModel, own: Counter[str], wanted: Sequence[str]) -> str | None:
    """What of the model has no adapter, in one line; None if every linear layer has one."""
    missing = own - Counter(name.rpartition(".")[2] for name in adapted.targeted_module_names)
    parts = []
    if missing:
        parts.append("没有适配器的线性层：" + "、".join(f"{name}（{count} 层）" for name, count in missing.items()))
        if unknown := _unknown(wanted, adapted.get_base_model()):
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
