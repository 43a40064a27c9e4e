"""``--quantization nf4``: the base's linear layers in 4 bits (QLoRA, arXiv 2305.14314), by bitsandbytes."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from sft.errors import InputError
from sft.files import read_json
from sft.tasks.settings import NF4

logger = logging.getLogger(__name__)

REQUIREMENTS = "requirements-quantization.txt"


def require_quantization(folder: Path) -> None:
    """Check, before weights are read, that the base in ``folder`` can be quantised while it is loaded.

    Raises:
        InputError: bitsandbytes is not installed, or the base is quantised already.
    """
    if find_spec("bitsandbytes") is None:
        raise InputError(
            f"--quantization {NF4}：没有装 bitsandbytes；请先运行 python -m pip install -r {REQUIREMENTS}"
        )
    config = read_json(folder / "config.json")
    found = config.get("quantization_config") if isinstance(config, dict) else None
    if isinstance(found, dict):
        method = found.get("quant_method")
        raise InputError(f"{folder}：这个底座已经是量化过的（{method}），不能再量化；请去掉 --quantization {NF4}")


def nf4_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """How `load_base` quantises: NF4 with quantised scales, multiplied in ``dtype``."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def settle_quantized(model: PreTrainedModel) -> None:
    """Check that layers were quantised, and keep their weights as they are loaded.

    On a CPU with AVX512_BF16, bitsandbytes packs the weights anew in the first evaluation, and unpacks them for
    training: the scales lose digits each time, and layers whose size is no multiple of 32 fail.

    Raises:
        InputError: the model has no layer that bitsandbytes can quantise.
    """
    import bitsandbytes

    layers = [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    if not layers:
        raise InputError(f"--quantization {NF4}：这种模型（{model.config.model_type}）没有可以量化的线性层；请去掉它")
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
