"""Which base models can be fine-tuned here: causal language models that transformers itself knows.

Everything is decided by ``config.json``, before any weights are read, and each refusal says the true reason.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from sft.errors import InputError
from sft.files import ADAPTER_CONFIG_FILE, read_json

WANTED = "需要因果语言模型（如 Qwen2.5-1.5B-Instruct）"
# The libraries that read quantised weights: quant_method → (module, package).
READERS = {
    "gptq": (("gptqmodel", "gptqmodel"), ("optimum", "optimum")),
    "awq": (("gptqmodel", "gptqmodel"),),
    "bitsandbytes": (("bitsandbytes", "bitsandbytes"),),
    "compressed-tensors": (("compressed_tensors", "compressed-tensors"),),
    "hqq": (("hqq", "hqq"),),
    "aqlm": (("aqlm", "aqlm"),),
    "torchao": (("torchao", "torchao"),),
    "quanto": (("optimum.quanto", "optimum-quanto"),),
    "auto-round": (("auto_round", "auto-round"),),
}
OTHER_HEADS = re.compile(r"For(MaskedLM|PreTraining|\w+Classification|QuestionAnswering|MultipleChoice|\w*Reward\w*)$")


def refuse_other_kinds(folder: Path) -> None:
    """Refuse a model folder whose config says that it is no causal language model that can be read here.

    Raises:
        InputError: custom code, an unknown architecture, an encoder, a sequence-to-sequence model, another head, or
            quantised weights without their library.
    """
    config = read_json(folder / "config.json")
    reason = _reason(config) if isinstance(config, dict) else "config.json 不是一个 JSON 对象"
    if reason is None and (folder / ADAPTER_CONFIG_FILE).exists():  # transformers would load it, too, silently
        reason = "里面既有底座模型又有适配器（adapter_config.json）；请把适配器移到别的文件夹"
    if reason is not None:
        raise InputError(f"{folder}：{reason}")


def _reason(config: dict) -> str | None:
    kind = config.get("model_type")
    if not isinstance(kind, str):
        return "config.json 里没有 model_type，不知道是什么模型"
    if kind not in CONFIG_MAPPING_NAMES:
        if config.get("auto_map"):
            return (
                f"模型 {kind} 靠自带的代码运行（auto_map），为安全起见从不运行它；"
                "请换 transformers 直接支持的模型，例如同一模型名字带 -hf 的版本"
            )
        return f"transformers {transformers.__version__} 不认识模型 {kind}；请换一个模型，或装支持它的 transformers"
    if config.get("is_encoder_decoder"):
        return f"模型 {kind} 是编码器加解码器的（seq2seq）；{WANTED}"
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return f"模型 {kind} 不是因果语言模型；{WANTED}"
    heads = config.get("architectures")
    heads = [head for head in (heads if isinstance(heads, list) else []) if isinstance(head, str)]
    generates = any(re.search(r"CausalLM|LMHead|ConditionalGeneration", head) for head in heads)
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not generates and not config.get("is_decoder"):
        return f"模型 {kind} 只有编码器，不能生成文字；{WANTED}"
    if other := next((head for head in heads if OTHER_HEADS.search(head) and not generates), None):
        return f"这是 {other}，没有语言模型的输出层；{WANTED}"
    return _missing_reader(config.get("quantization_config"))


def _missing_reader(quantization: object) -> str | None:
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    needed = READERS.get(str(method), ())
    missing = [package for module, package in needed if not _installed(module)]
    if not missing:
        return None
    return f"权重是 {method} 量化的，读它需要先装 {'、'.join(missing)}；或换没有量化的模型"


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around a submodule
        return False
