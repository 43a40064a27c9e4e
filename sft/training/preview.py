"""What a run would see and cost, before it runs: rows as the model sees them, lengths, steps, memory, time."""

from __future__ import annotations

import json
import math
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedTokenizerBase, TrainingArguments

from sft.engine.batches import Batching, EncodedRow, split_rows
from sft.engine.loss import CHUNK_LOGITS
from sft.model.encoding import LengthReport
from sft.training.arguments import Arguments

# One long row must fit anyway; beyond the larger figure a bigger micro-batch is no faster.
MICRO_BATCH_TOKENS = (1024, 16384)
CPU_MICRO_BATCH_TOKENS = 4096
# Larger blocks glibc gives back at once, and every new tensor pays for fresh pages: slower by a quarter at 1.5B.
CPU_REUSED_BYTES = 2**25
HEAD = "lm_head"  # a layer whose logits exist whole when it is trained


def show_rows(rows: Sequence[EncodedRow], tokenizer: PreTrainedTokenizerBase) -> None:
    """Write rows to stdout as the model sees them: the prompt, then what is supervised in 【】, token by token."""
    for row in rows:
        supervised = "".join(f"【{tokenizer.decode([token_id])}】" for token_id in row.answer_ids)
        sys.stdout.write(
            f"── 第 {row.line} 行：提示 {len(row.prompt_ids)} 个词元，学习 {len(row.answer_ids)} 个词元（【】内）\n"
            f"{tokenizer.decode(row.prompt_ids)}{supervised}\n"
        )


def describe_lengths(report: LengthReport, max_length: int) -> str:
    """One line about lengths in tokens, and what was cut or split."""
    lengths = sorted(report.lengths)
    long = lengths[int(0.95 * (len(lengths) - 1))]
    line = f"长度（词元）：中位数 {statistics.median(lengths):.0f}，95% 不超过 {long}，最长 {lengths[-1]}"
    if report.shortened_rows:
        line += f"；{len(report.shortened_rows)} 条超过 --max_length {max_length}"
        if report.dropped_tokens:
            line += f"，只截正文，共截去 {report.dropped_tokens} 个词元"
        else:
            line += f"，按句拆成 {report.pieces} 条"
    return line


def show_plan(
    rows: Sequence[EncodedRow], base_folder: Path, dtype: torch.dtype, batching: Batching, arguments: Arguments
) -> None:
    """Write steps, tokens, what sharing saves, and estimated memory and time to stdout."""
    training = arguments.training
    steps, epochs = planned_steps(len(rows), training)
    share = executed_share(rows, training.per_device_train_batch_size, batching, training.seed)
    tokens = share * sum(len(row) for row in rows) * epochs
    shape = shape_of(base_folder)
    recompute = bool(training.gradient_checkpointing or training.activation_checkpointing)
    max_tokens = arguments.data.max_tokens_per_micro_batch or fitting_tokens(shape, dtype, arguments)
    largest_tokens, supervised_tokens = largest_piece(rows, training.per_device_train_batch_size, batching, max_tokens)
    whole_head = HEAD in arguments.lora.lora_target_modules
    memory = estimate_memory_bytes(*shape, dtype.itemsize, largest_tokens, supervised_tokens, recompute, whole_head)
    flops = (6 if recompute else 4) * shape[0] * tokens  # frozen base: forward and the gradient of inputs only
    seconds = flops / (0.5 * measure_flops(training.device, dtype))  # half the matrix rate is what training reaches
    sys.stdout.write(
        f"数据      {len(rows)} 条，{sum(len(row) for row in rows)} 个词元，"
        f"其中学习 {sum(len(row.answer_ids) for row in rows)} 个\n"
        f"步数      {steps}（每步 {rows_a_step(training)} 条）\n"
        f"批处理    {batching.description}，"
        f"实际计算的词元是数据的 {share:.0%}，一次前向最多 {max_tokens} 个\n"
        f"数值      {str(dtype).removeprefix('torch.')}，{training.device}\n"
        f"内存估计  {memory / 1e9:.1f} GB\n"
        f"时间估计  {seconds / 60:.1f} 分钟（按本机矩阵乘法速度的一半估算，不含验证）\n"
        "检查通过，没有开始训练\n"
    )


def rows_a_step(training: TrainingArguments) -> int:
    """Rows of one optimizer step, over accumulation and processes."""
    return training.per_device_train_batch_size * training.world_size * training.gradient_accumulation_steps


def planned_steps(rows: int, training: TrainingArguments) -> tuple[int, float]:
    """``(optimizer steps, epochs)`` of a run over ``rows`` rows, as the Trainer will count them."""
    micro_batches = math.ceil(rows / (training.per_device_train_batch_size * training.world_size))
    steps_an_epoch = math.ceil(micro_batches / training.gradient_accumulation_steps)
    steps = training.max_steps if training.max_steps > 0 else math.ceil(steps_an_epoch * training.num_train_epochs)
    return steps, steps / steps_an_epoch


def executed_share(rows: Sequence[EncodedRow], batch_rows: int, batching: Batching, seed: int) -> float:
    """Executed tokens over tokens of the data, in up to 64 batches of rows in random order."""
    shuffled = random.Random(seed).sample(rows, min(len(rows), 64 * batch_rows))
    batches = [shuffled[start : start + batch_rows] for start in range(0, len(shuffled), batch_rows)]
    return sum(map(batching.tokens, batches)) / sum(len(row) for row in shuffled)


def largest_piece(rows: Sequence[EncodedRow], batch_rows: int, batching: Batching, max_tokens: int) -> tuple[int, int]:
    """Executed and supervised tokens of the largest micro-batch that could come up: one of the longest rows."""
    pieces = split_rows(sorted(rows, key=len)[-batch_rows:], max_tokens, batching)
    largest = max(pieces, key=batching.tokens)
    return batching.tokens(largest), sum(len(row.answer_ids) for row in largest)


def shape_of(folder: Path) -> tuple[int, int, int, int, int]:
    """``(parameters, layers, hidden size, intermediate size, vocabulary)`` from config and weight headers."""
    config = json.loads((folder / "config.json").read_bytes())
    parameters = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            parameters += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return (
        parameters,
        config["num_hidden_layers"],
        config["hidden_size"],
        config["intermediate_size"],
        config["vocab_size"],
    )


def estimate_memory_bytes(
    parameters: int,
    layers: int,
    hidden: int,
    intermediate: int,
    vocabulary: int,
    itemsize: int,
    tokens: int,
    supervised_tokens: int,
    recompute: bool,
    whole_head: bool,
) -> float:
    """Rough peak of one micro-batch: weights, kept activations, and logits where there is an answer.

    A layer keeps about 16 hidden-sized and 5 intermediate-sized tensors a token; with recomputation one hidden-sized
    tensor a layer, and one layer whole. Logits exist for one chunk of answers at a time (``whole_head``: for all),
    three times over: as they are, in float32, and as a gradient.
    """
    logits = supervised_tokens * vocabulary
    if not whole_head:
        logits = min(logits, CHUNK_LOGITS)
    layer_bytes = tokens * itemsize * (16 * hidden + 5 * intermediate)
    activations = layer_bytes + layers * tokens * itemsize * hidden if recompute else layers * layer_bytes
    return parameters * itemsize + activations + logits * (itemsize + 4 + 4)


def measure_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a plain matrix product on ``device``."""
    size = 4096 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    left @ right
    start, repeats = time.perf_counter(), 0
    while time.perf_counter() - start < 0.3:
        (left @ right)[0, 0].item()  # waits for a device that works on its own
        repeats += 1
    return 2 * size**3 * repeats / (time.perf_counter() - start)


def fitting_tokens(shape: tuple[int, int, int, int, int], dtype: torch.dtype, arguments: Arguments) -> int:
    """How many tokens of one micro-batch fit beside the weights, a quarter supervised; on CPU no more than pay."""
    training = arguments.training
    if training.device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(training.device)
    else:
        import psutil

        free_bytes = psutil.virtual_memory().available
    recompute = bool(training.gradient_checkpointing or training.activation_checkpointing)
    whole_head = HEAD in arguments.lora.lora_target_modules
    tokens = tokens_that_fit(free_bytes, shape, dtype.itemsize, recompute, whole_head)
    return tokens if training.device.type == "cuda" else min(tokens, fastest_on_cpu_tokens(shape[3]))


def fastest_on_cpu_tokens(intermediate: int) -> int:
    """How many tokens of one micro-batch a CPU gets through fastest: the widest float32 tensor stays reusable."""
    return min(max(CPU_REUSED_BYTES // (4 * intermediate), MICRO_BATCH_TOKENS[0]), CPU_MICRO_BATCH_TOKENS)


def tokens_that_fit(
    free_bytes: int, shape: tuple[int, int, int, int, int], itemsize: int, recompute: bool, whole_head: bool
) -> int:
    """How many tokens of one micro-batch fit into ``free_bytes`` beside the weights, with room to spare."""
    unit = 4096
    unit_bytes = estimate_memory_bytes(0, *shape[1:], itemsize, unit, unit // 4, recompute, whole_head)
    tokens = 0.6 * (free_bytes - shape[0] * itemsize) / (unit_bytes / unit)
    return int(min(max(tokens, MICRO_BATCH_TOKENS[0]), MICRO_BATCH_TOKENS[1]))
