"""Print the tables of docs/guide.md: the estimated memory of training for each micro-batch size.

python -m benchmarks.memory_table qwen/Qwen2.5-1.5B-Instruct
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sft.training.memory import ModelShape, StepKind, estimate_memory_bytes, tokens_that_fit

MICRO_BATCH_TOKENS = (1024, 2048, 4096, 8192, 16384)
CARDS_GB = (6, 8, 12, 16, 24, 48, 80)
CARD_ITSELF_GB = 1  # for CUDA, the adapter, its gradients and Adam's moments
SUPERVISED_SHARE = 4  # one token in 4 is supervised, as `sft.training.memory.tokens_that_fit` assumes


def main() -> None:
    """Print two Markdown tables. The model folder needs only config.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    folder = parser.parse_args().model
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sizes = (config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.vocab_size)
    shape = ModelShape(parameters, *sizes)
    kinds = [StepKind(itemsize=2, recompute=recompute, whole_head=False) for recompute in (False, True)]
    print(f"{folder.name}：{parameters:,} 个参数，16 位权重 {2 * parameters / 1e9:.1f} GB\n")
    print("| 一次前向的 token | 默认 | `--gradient_checkpointing` |\n|---|---|---|")
    for tokens in MICRO_BATCH_TOKENS:
        plain, recomputed = (
            estimate_memory_bytes(shape, kind, tokens, tokens // SUPERVISED_SHARE) / 1e9 for kind in kinds
        )
        print(f"| {tokens:,} | {plain:.1f} GB | {recomputed:.1f} GB |")
    print("\n| 显存 | 自动定的一次前向的 token | 打开 `--gradient_checkpointing true` |\n|---|---|---|")
    for card in CARDS_GB:
        free_bytes = int((card - CARD_ITSELF_GB) * 1e9)
        plain, recomputed = (tokens_that_fit(free_bytes, shape, kind) for kind in kinds)
        print(f"| {card} GB | {plain:,} | {recomputed:,} |")


if __name__ == "__main__":
    main()
