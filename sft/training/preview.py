"""``--preview`` and ``--dry_run``: show the rows of a run and estimate its cost, before it runs."""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Sequence

import psutil
import torch
from transformers import PreTrainedTokenizerBase

from sft.engine.batches import Batching, EncodedRow, split_rows
from sft.errors import printable
from sft.terminal import columns_of, display_width, folded
from sft.training.memory import ModelShape, StepKind, estimate_memory_bytes, fitting_tokens, shape_of, step_kind
from sft.training.prepare import Prepared
from sft.training.steps import planned_steps, rows_a_step

NAME_COLUMNS = 10  # of the plan
IMPORTED_LATER_BYTES = 10**8  # SwanLab, scikit-learn and matplotlib
RATE_SHARE = 0.5  # of the speed of a matrix product, which training reaches while it computes
# Starting the kernels of a layer, forward and backward, on the H100 of docs/gpu.md: there a step with 16 short rows
# takes 20 times as long as its matrix products.
GPU_SECONDS_A_LAYER = 0.009


def show_rows(rows: Sequence[EncodedRow], tokenizer: PreTrainedTokenizerBase) -> None:
    """Write rows to stdout as the model sees them: the prompt, then each supervised token in 【】."""
    for row in rows:
        supervised = "".join(f"【{tokenizer.decode([token_id])}】" for token_id in row.answer_ids)
        sys.stdout.write(
            f"── 第 {row.line} 行：提示 {len(row.prompt_ids)} token，学习 {len(row.answer_ids)} 个 token（【】内）\n"
            f"{printable(tokenizer.decode(row.prompt_ids) + supervised)}\n"
        )


def show_plan(prepared: Prepared) -> None:
    """Write to stdout: steps, tokens, the share of tokens that is computed, and estimates of memory and time."""
    rows, arguments, batching = prepared.rows.train, prepared.arguments, prepared.batching
    training = arguments.training
    steps, epochs = planned_steps(len(rows), training)
    share = executed_share(rows, training.per_device_train_batch_size, batching, training.seed)
    tokens = share * sum(len(row) for row in rows) * epochs
    shape, kind = shape_of(prepared.base_folder), step_kind(prepared.dtype, arguments)
    max_tokens = arguments.data.max_tokens_per_micro_batch or fitting_tokens(shape, kind, training.device)
    largest = largest_micro_batch(rows, training.per_device_train_batch_size, batching, max_tokens)
    memory = estimate_memory_bytes(shape, kind, *largest)
    on_gpu = training.device.type == "cuda"
    batches = steps * training.gradient_accumulation_steps
    passes = batches * max(1.0, tokens / training.world_size / batches / max_tokens) if on_gpu else 0
    seconds = training_seconds(shape, kind, tokens, passes, measure_flops(training.device, prepared.dtype))
    seconds *= 1 + (prepared.search.share if prepared.search else 0)
    starts = "，加上启动核的时间" if on_gpu else ""
    lines = {
        "数据": f"{len(rows):,} 条，{sum(len(row) for row in rows):,} 个 token，"
        f"其中学习 {sum(len(row.answer_ids) for row in rows):,} 个",
        "步数": f"{steps:,}（每步 {rows_a_step(training)} 条）",
        "批处理": f"{batching.description}，实际计算的 token 是数据的 {share:.0%}，一次前向最多 {max_tokens} 个",
        "数值": f"{prepared.settings.dtype}，{training.device}",
        "内存估计": memory_text(memory, training.device),
        "时间估计": f"{time_text(seconds)}（按本机矩阵乘法速度的一半{starts}估算，不含验证和测试）",
    }
    if prepared.search:
        lines["试学习率"] = prepared.search.describe()
    columns = columns_of(sys.stdout)
    for name, text in lines.items():
        padding = " " * (NAME_COLUMNS - display_width(name))
        sys.stdout.write(folded(f"{name}{padding}{text}", columns, NAME_COLUMNS) + "\n")


def memory_text(model_bytes: float, device: torch.device) -> str:
    """The memory that the run will need; on a CPU that of this process now, before the model is loaded, is part of it.

    Args:
        model_bytes: for the weights, the activations and the logits.
    """
    if device.type != "cpu":
        return f"{model_bytes / 1e9:.1f} GB 显存（不含 {device.type.upper()} 自己占的）"
    process_bytes = psutil.Process().memory_info().rss + IMPORTED_LATER_BYTES
    return f"{(model_bytes + process_bytes) / 1e9:.1f} GB（其中程序本身 {process_bytes / 1e9:.1f} GB）"


def time_text(seconds: float) -> str:
    """``400`` → ``约 7 分钟``; nothing is said to take no time."""
    if seconds < 60:
        return "不到 1 分钟"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"约 {hours} 小时 {minutes} 分钟" if hours else f"约 {minutes} 分钟"


def training_seconds(shape: ModelShape, kind: StepKind, tokens: float, gpu_passes: float, rate: float) -> float:
    """How long training on so many tokens takes, about.

    Args:
        gpu_passes: forward and backward passes whose kernels the host has to start; 0 on a CPU.
        rate: of a matrix product, in floating-point operations per second.
    """
    again = 1.5 if kind.recompute else 1.0  # the forward pass of each layer twice
    # The base is frozen: the forward pass, and a backward pass only for the gradient of the inputs.
    computing = again * 4 * shape.parameters * tokens / (RATE_SHARE * rate)
    return computing + again * gpu_passes * shape.layers * GPU_SECONDS_A_LAYER


def executed_share(rows: Sequence[EncodedRow], batch_rows: int, batching: Batching, seed: int) -> float:
    """Computed tokens divided by tokens of the data, measured on up to 64 random batches."""
    shuffled = random.Random(seed).sample(rows, min(len(rows), 64 * batch_rows))
    batches = [shuffled[start : start + batch_rows] for start in range(0, len(shuffled), batch_rows)]
    return sum(map(batching.tokens, batches)) / sum(len(row) for row in shuffled)


def largest_micro_batch(
    rows: Sequence[EncodedRow], batch_rows: int, batching: Batching, max_tokens: int
) -> tuple[int, int]:
    """``(computed tokens, supervised tokens)`` of the largest possible micro-batch, made of the longest rows."""
    pieces = split_rows(sorted(rows, key=len)[-batch_rows:], max_tokens, batching)
    largest = max(pieces, key=batching.tokens)
    return batching.tokens(largest), sum(len(row.answer_ids) for row in largest)


def measure_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the speed of a matrix product on ``device``, in floating-point operations per second."""
    size = 4096 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    left @ right
    start, repeats = time.perf_counter(), 0
    while time.perf_counter() - start < 0.3:
        (left @ right)[0, 0].item()  # wait for the device
        repeats += 1
    return 2 * size**3 * repeats / (time.perf_counter() - start)
