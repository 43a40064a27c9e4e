"""Print the tables of docs/guide.md: the estimated memory of training for each micro-batch size.

python -m benchmarks.memory_table qwen/Qwen2.5-1.5B-Instruct
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from sft.training.memory import (
    CONTEXT_BYTES,
    FIXED_SHARE,
    GROWING_SHARE,
    ModelShape,
    StepKind,
    attention_sizes,
    estimate_memory_bytes,
    largest_micro_batch_tokens,
)

MICRO_BATCH_TOKENS = (1024, 2048, 4096, 8192, 16384)
CARDS_GB = (6, 8, 12, 16, 24, 48, 80)
SYSTEM_GB = 0.3  # of a card, for the driver and the screen
SUPERVISED_SHARE = 4  # one token in 4 is supervised, as `sft.training.memory.tokens_that_fit` assumes


def main() -> None:
    """Print two Markdown tables. The model folder needs only config.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    folder = parser.parse_args().model
    shape = shape_by_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    print(f"{folder.name}：{shape.parameters:,} 个参数，16 位权重 {2 * shape.parameters / 1e9:.1f} GB\n")
    plain = StepKind(itemsize=2, recompute=False, whole_head=False)
    quantized = plain._replace(quantized=True, one_node=False)
    kinds = (plain, plain._replace(recompute=True), quantized, quantized._replace(recompute=True))
    print("| 一次前向的 token | 默认 | 重算激活 | nf4 | nf4，重算激活 |\n|---|---|---|---|---|")
    for tokens in MICRO_BATCH_TOKENS:
        needed = (estimate_memory_bytes(shape, kind, tokens, tokens // SUPERVISED_SHARE) / 1e9 for kind in kinds)
        print(f"| {tokens:,} | {' | '.join(f'{gigabytes:.1f} GB' for gigabytes in needed)} |")
    print("\n| 显存 | 默认 | Windows、WSL | 重算激活 | nf4 | nf4，重算激活 |\n|---|---|---|---|---|---|")
    ways = [(kind, GROWING_SHARE) for kind in kinds]
    ways.insert(1, (plain, FIXED_SHARE))  # there torch's blocks cannot grow
    for card in CARDS_GB:
        free_bytes = (card - SYSTEM_GB) * 1e9 - CONTEXT_BYTES
        fitting = (largest_micro_batch_tokens(free_bytes, shape, kind, share) for kind, share in ways)
        shown = (f"{max(0, min(int(tokens), MICRO_BATCH_TOKENS[-1])):,}" for tokens in fitting)
        print(f"| {card} GB | {' | '.join(shown)} |")


def shape_by_config(config: PreTrainedConfig) -> ModelShape:
    """As `sft.training.memory.shape_of` gives it, without weight files."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    sizes = [parameter.shape for parameter in model.parameters()]
    linear = [size for size in sizes if len(size) == 2 and config.vocab_size not in size]
    return ModelShape(
        sum(map(math.prod, sizes)),
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.vocab_size,
        sum(map(math.prod, linear)),
        sum(map(sum, linear)),
        *attention_sizes(config),
        any(name.endswith(".q_norm.weight") for name, _ in model.named_parameters()),
    )


if __name__ == "__main__":
    main()
