"""Gradient checkpointing by itself: switched on when a step would not fit into the card's memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import TrainingArguments

from sft.engine.batches import Batching, EncodedRow
from sft.training.arguments import Arguments
from sft.training.memory import (
    MICRO_BATCH_TOKENS,
    free_memory_bytes,
    largest_micro_batch_tokens,
    shape_of,
    share_filled,
    step_kind,
    weight_bytes,
)

logger = logging.getLogger(__name__)

FLAGS = {"gradient_checkpointing", "activation_checkpointing"}  # the second is transformers' new name


def step_tokens(rows: Sequence[EncodedRow], batching: Batching, training: TrainingArguments) -> int:
    """How many tokens should run at once: the largest batch, but no more than the smallest micro-batch or a row."""
    longest = sorted(rows, key=len)[-training.per_device_train_batch_size :]
    return max(len(longest[-1]), min(batching.tokens(longest), MICRO_BATCH_TOKENS[0]))


def settle_checkpointing(arguments: Arguments, base_folder: Path, dtype: torch.dtype, tokens: int) -> None:
    """Switch gradient checkpointing on if ``tokens`` do not fit without it, and tell so in one line.

    What the user says counts for more. On a CPU it stays off: it would cost time there, and memory is rarely short.
    Gradients are the same with it. If nothing helps, that is told.
    """
    training = arguments.training
    if training.device.type == "cpu":
        return
    shape, kind = shape_of(base_folder), step_kind(dtype, arguments)
    free_bytes, share = free_memory_bytes(training.device), share_filled(training.device)
    plain, recomputed = (
        largest_micro_batch_tokens(free_bytes, shape, kind._replace(recompute=recompute), share)
        for recompute in (False, True)
    )
    free = f"空着的显存约 {max(0, free_bytes) / 1e9:.1f} GB"
    if not kind.recompute and plain < tokens and not FLAGS & arguments.given:
        training.gradient_checkpointing = training.activation_checkpointing = True
        logger.info(
            "%s，估计一次只放得下 %d 个 token，这里要 %d 个：打开 --gradient_checkpointing（慢一些，结果相同）；"
            "不要就加 --gradient_checkpointing false",
            *(free, max(0, int(plain)), tokens),
        )
    if (recomputed if training.gradient_checkpointing else plain) < min(tokens, MICRO_BATCH_TOKENS[0]):
        logger.warning("%s，%s；%s", free, _too_little(free_bytes, weight_bytes(shape, kind)), _advice(arguments))


def _too_little(free_bytes: float, weights: float) -> str:
    if weights > free_bytes:
        return f"连模型本身也放不下（约 {weights / 1e9:.1f} GB）"
    return "估计很紧，可能放不下"


def _advice(arguments: Arguments) -> str:
    parts = ["加 --gradient_checkpointing"] * (not arguments.training.gradient_checkpointing)
    parts += ["用 --quantization nf4"] * (arguments.model.quantization == "none")
    return f"可以{'、'.join([*parts, '减小 --max_length', '换小一些的模型'])}"
