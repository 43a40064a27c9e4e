"""Look at an adapter's ``adapter_config.json`` before PEFT acts on it.

PEFT builds whatever the file says: layers of any rank, names matched by any regular expression, layers from modules of
any name. So that a file from elsewhere can neither run code nor use up memory or time, it is checked against the
weights beside it. Imports no torch.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import orjson

from sft.errors import InputError
from sft.files import ADAPTER_CONFIG_FILE, ADAPTER_FILE, read_json

PLAIN = re.compile(r"[^*+?{|]*")  # a pattern that cannot take long: it repeats nothing and has no alternatives
MATCHING_SECONDS = 5  # a usual pattern takes a millisecond
# Reads [[pattern, way], …] and names from stdin and matches each with each, as PEFT does.
MATCH_ALL = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern, whole in patterns:
    for name in names:
        re.fullmatch(pattern, name) if whole else re.match(rf"(.*\\.)?({pattern})$", name)
"""
KINDS = {
    "r": int, "lora_alpha": int | float, "lora_dropout": int | float, "use_rslora": bool, "use_dora": bool,
    "target_modules": str | list, "exclude_modules": str | list, "rank_pattern": dict, "alpha_pattern": dict,
    "fan_in_fan_out": bool, "modules_to_save": list, "layers_to_transform": int | list, "layers_pattern": str | list,
    "base_model_name_or_path": str, "task_type": str, "bias": str,
}  # fmt: skip
UNUSED = {  # what a LoRA adapter for one model never needs
    "megatron_config": "它让 PEFT 载入任意名字的模块",
    "layer_replication": "它会复制出任意多的层",
    "arrow_config": "它要另外的适配器",
}


def check_adapter_config(folder: Path) -> None:
    """Refuse an adapter whose config does not fit its weights or asks for more than a LoRA adapter is.

    Raises:
        InputError: says what is wrong, in one line.
    """
    path = folder / ADAPTER_CONFIG_FILE
    config = read_json(path)
    reason = _reason(config, _ranks(folder / ADAPTER_FILE)) if isinstance(config, dict) else "不是一个 JSON 对象"
    if reason is not None:
        raise InputError(f"{path}：{reason}；请恢复训练写下的文件")


def _reason(config: dict, ranks: Mapping[str, int]) -> str | None:
    """Why the config cannot be used; None if it can.

    Args:
        ranks: the rank of each layer in the weights, by the layer's name.
    """
    if config.get("peft_type") != "LORA":
        return f"peft_type 是 {str(config.get('peft_type'))[:40]!r}，只支持 LoRA 适配器"
    for name, kind in KINDS.items():
        value = config.get(name)
        wrong = value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool))
        if wrong or (isinstance(value, list) and not all(isinstance(item, str | int) for item in value)):
            return f"{name} 的类型不对（{str(value)[:60]!r}）"
    for name, why in UNUSED.items():
        if config.get(name):
            return f"不支持 {name}（{why}）"
    mapping = config.get("auto_mapping")
    if mapping and not (isinstance(mapping, dict) and _is_transformers(mapping.get("parent_library"))):
        return "auto_mapping 指向 transformers 以外的代码，为安全起见从不运行它"
    return _wrong_number(config, ranks) or _wrong_pattern(config, list(ranks))


def _is_transformers(module: object) -> bool:
    return isinstance(module, str) and module.partition(".")[0] in ("transformers", "peft")


def _wrong_number(config: dict, ranks: Mapping[str, int]) -> str | None:
    own = {**(config.get("rank_pattern") or {}), "r": config.get("r")}
    most = max(ranks.values(), default=0)
    for name, rank in own.items():
        if type(rank) is not int or rank < 1 or (most and rank > most):
            return f"{name[:40]} 的秩是 {str(rank)[:40]}，而权重里的秩最大是 {most}"
    scales = {**(config.get("alpha_pattern") or {}), "lora_alpha": config.get("lora_alpha")}
    for name, scale in scales.items():
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
            return f"{name[:40]} 的 lora_alpha 应是数，实际是 {str(scale)[:40]!r}"
    return None


def _wrong_pattern(config: dict, layers: list[str]) -> str | None:
    """Which regular expression is broken or does not come to an end; None if all are usable."""
    whole = [config[name] for name in ("target_modules", "exclude_modules") if isinstance(config.get(name), str)]
    ends = [*(config.get("rank_pattern") or {}), *(config.get("alpha_pattern") or {})]
    layers_patterns = config.get("layers_pattern") or []
    ends += [layers_patterns] if isinstance(layers_patterns, str) else layers_patterns
    patterns = [(pattern, True) for pattern in whole] + [(str(pattern), False) for pattern in ends]
    for pattern, _ in patterns:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            return f"{pattern[:60]!r} 不是正则表达式（{error}）"
    unusual = [pattern for pattern in patterns if PLAIN.fullmatch(pattern[0]) is None]
    if unusual and not _ends_soon(unusual, layers):
        return f"正则表达式 {unusual[0][0][:60]!r} {MATCHING_SECONDS} 秒还没有匹配完"
    return None


def _ends_soon(patterns: list[tuple[str, bool]], layers: list[str]) -> bool:
    """Whether the patterns can be matched with the layers' names; tried in a process that can be stopped."""
    names = list(dict.fromkeys([*layers, *(f"{name}!" for name in layers), "a" * 60 + "!"]))
    task = orjson.dumps([patterns, names])
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", MATCH_ALL], input=task, timeout=MATCHING_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _ranks(weights: Path) -> dict[str, int]:
    """The rank of each layer of an adapter, from the header of its weights; empty if the header cannot be read."""
    try:
        with weights.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = orjson.loads(file.read(min(length, weights.stat().st_size)))
        found = {}
        for name, tensor in header.items():
            layer, mark, _ = name.partition(".lora_A.")
            if not mark:
                layer, mark, _ = name.partition(".lora_embedding_A")
            if mark:
                found[layer.removeprefix("base_model.model.")] = int(tensor["shape"][0])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return {}  # loading the weights says what is wrong with them
    return found
