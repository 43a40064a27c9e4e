"""Memory of a training step: estimate it, find how many tokens fit at once, and measure the peak."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from safetensors import safe_open
from transformers import PreTrainedConfig

from sft.engine.loss import CHUNK_LOGITS
from sft.model.loading import load_config
from sft.processes import segments_grow
from sft.tasks.settings import NF4
from sft.training.arguments import Arguments

# The smallest and the largest automatic micro-batch. One long row must fit anyway; larger ones are not faster.
MICRO_BATCH_TOKENS = (1024, 16384)
CPU_MICRO_BATCH_TOKENS = 4096
# glibc returns larger blocks to the system at once, and then every new tensor needs new pages: a quarter slower for
# the 1.5B model.
CPU_REUSED_BYTES = 2**25
HEAD = "lm_head"  # if this layer is trained, all of its logits exist at once
UNIT_TOKENS = 4096  # the memory of one token is estimated from a micro-batch of this size
CONTEXT_BYTES = 5 * 10**8  # what CUDA and its libraries take of a card beside tensors
# The part of the free memory that is filled. Every step has another shape, so blocks that cannot grow leave gaps.
GROWING_SHARE, FIXED_SHARE = 0.85, 0.6
ADAPTER_BYTES = 16  # of a weight of the adapter: itself in float32, its gradient, and Adam's two moments
NF4_BYTES = 0.56  # of a weight in 4 bits, with the scale of its block


class ModelShape(NamedTuple):
    """The sizes of a model that decide how much memory a step takes.

    Attributes:
        parameters: of the whole model.
        linear_parameters: those of its linear layers, without embedding and output layer.
        linear_width: inputs and outputs of these layers, summed: the adapter has ``lora_r`` times so many weights.
        query_size, key_size: the width of all heads of the queries and of the keys of a token; None: the hidden size.
        query_norm: queries and keys have a norm of their own, as in Qwen3.
    """

    parameters: int
    layers: int
    hidden_size: int
    intermediate_size: int
    vocabulary_size: int
    linear_parameters: int = 0
    linear_width: int = 0
    query_size: int | None = None
    key_size: int | None = None
    query_norm: bool = False


class StepKind(NamedTuple):
    """How a step computes.

    Attributes:
        itemsize: bytes of one number of the model.
        recompute: activations are recomputed in the backward pass (gradient checkpointing).
        whole_head: the logits of all supervised tokens exist at once, not only those of one chunk.
        grouped: the branches of a prefix tree are copied into groups for attention, without variable-length kernels.
        one_node: a LoRA layer is one node (`sft.engine.lora_node`); else PEFT copies its input to float32.
        dropout: the adapter has dropout, which keeps a copy of each input.
        quantized: the linear layers of the base have 4 bits a weight.
        lora_r: rank of the adapter.
    """

    itemsize: int
    recompute: bool
    whole_head: bool
    grouped: bool = False
    one_node: bool = True
    dropout: bool = False
    quantized: bool = False
    lora_r: int = 8


def shape_of(folder: Path) -> ModelShape:
    """The shape of the model in ``folder``, from its config and the headers of its weight files."""
    config = load_config(folder).get_text_config()
    parameters = linear_parameters = linear_width = 0
    query_norm = False
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  no dict
                sizes = weights.get_slice(name).get_shape()
                parameters += math.prod(sizes)
                query_norm = query_norm or name.endswith(".q_norm.weight")
                if len(sizes) == 2 and config.vocab_size not in sizes:
                    linear_parameters += math.prod(sizes)
                    linear_width += sum(sizes)
    return ModelShape(
        parameters,
        config.num_hidden_layers,  # GPT-2 and BLOOM have other names for these; transformers knows them
        config.hidden_size,
        _intermediate_size(config),
        config.vocab_size,
        linear_parameters,
        linear_width,
        *attention_sizes(config),
        query_norm,
    )


def attention_sizes(config: PreTrainedConfig) -> tuple[int, int]:
    """The width of all heads of a token's queries, and of its keys."""
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads * head_size, (getattr(config, "num_key_value_heads", None) or heads) * head_size


def _intermediate_size(config: PreTrainedConfig) -> int:
    """The width of a layer's MLP; in a mixture of experts, of all the experts of one token together."""
    experts = (getattr(config, "num_experts_per_tok", None) or 0) * (
        getattr(config, "moe_intermediate_size", None) or 0
    )
    if experts:
        return experts + (getattr(config, "shared_expert_intermediate_size", None) or 0)
    sizes = (getattr(config, name, None) for name in ("intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim"))
    return next((size for size in sizes if isinstance(size, int)), 4 * config.hidden_size)


def step_kind(dtype: torch.dtype, arguments: Arguments) -> StepKind:
    """How the steps of a run compute."""
    training, lora = arguments.training, arguments.lora
    quantized = arguments.model.quantization == NF4
    return StepKind(
        dtype.itemsize,
        recompute=bool(training.gradient_checkpointing or training.activation_checkpointing),
        whole_head=HEAD in lora.lora_target_modules,
        grouped=arguments.data.batching != "padded" and not has_varlen_kernels(training.device, dtype),
        one_node=lora.lora_dropout == 0 and not quantized,
        dropout=lora.lora_dropout > 0,
        quantized=quantized,
        lora_r=lora.lora_r,
    )


def has_varlen_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether variable-length attention can run: on Ampere and newer, in 16 bits."""
    return device.type == "cuda" and dtype.itemsize == 2 and torch.cuda.get_device_capability(device) >= (8, 0)


def weight_bytes(shape: ModelShape, kind: StepKind) -> float:
    """The memory of the model and its adapter with gradients and moments, and of the weights that are unpacked."""
    plain = shape.parameters * kind.itemsize + ADAPTER_BYTES * kind.lora_r * shape.linear_width
    if not kind.quantized:
        return plain
    unpacked = shape.hidden_size * shape.intermediate_size * kind.itemsize  # the largest layer, one at a time
    return plain - shape.linear_parameters * (kind.itemsize - NF4_BYTES) + unpacked


def estimate_memory_bytes(shape: ModelShape, kind: StepKind, tokens: int, supervised_tokens: int) -> float:
    """A rough estimate of the peak memory of one micro-batch in bytes: weights, stored activations, and logits.

    With recomputation each layer stores only its input for each token, and one layer at a time everything, see
    `stored_values`. Logits exist for one chunk of supervised tokens at a time (``whole_head``: for all), three times:
    as computed, in float32, and as a gradient.

    Args:
        tokens: of the micro-batch.
        supervised_tokens: how many of them have a loss.
    """
    logits = supervised_tokens * shape.vocabulary_size
    if not kind.whole_head:
        logits = min(logits, CHUNK_LOGITS)
    layer_bytes = tokens * kind.itemsize * stored_values(shape, kind)
    if kind.recompute:
        activations = layer_bytes + shape.layers * tokens * kind.itemsize * shape.hidden_size
    else:
        activations = shape.layers * layer_bytes
    return weight_bytes(shape, kind) + activations + logits * (kind.itemsize + 4 + 4)


def stored_values(shape: ModelShape, kind: StepKind) -> int:
    """How many values a layer stores for each token until the backward pass, counted by tests/live_bytes.py.

    They are counted in the sizes of hidden states, queries, keys, and the MLP. In 16 bits some are float32, which
    counts twice: in norms and rotary embeddings, in copies for groups, and in PEFT's own LoRA layer.
    """
    in_16_bits = kind.itemsize == 2
    # Keys are copied for each branch of a tree: the more, the shorter the branches are beside what they share.
    hidden, query, key, mlp = (6, 2, 5, 4) if in_16_bits else (4, 3, 7, 4)
    if in_16_bits and kind.grouped:
        query, key = 7, 10
    if shape.query_norm:
        query, key = query + 2, key + 2
    if kind.dropout:
        hidden, query, mlp = (hidden + 18, query + 4, mlp + 3) if in_16_bits else (hidden + 8, query + 1, mlp + 1)
    elif in_16_bits and not kind.one_node:
        hidden, query, mlp = hidden + 8, query + 2, mlp + 1
    query_size, key_size = (shape.hidden_size if size is None else size for size in (shape.query_size, shape.key_size))
    return hidden * shape.hidden_size + query * query_size + key * key_size + mlp * shape.intermediate_size


def fitting_tokens(shape: ModelShape, kind: StepKind, device: torch.device) -> int:
    """How many tokens of one micro-batch fit beside the weights; on a CPU, at most the fastest size."""
    tokens = tokens_that_fit(free_memory_bytes(device), shape, kind, share_filled(device))
    return min(tokens, fastest_on_cpu_tokens(shape.intermediate_size)) if device.type == "cpu" else tokens


def free_memory_bytes(device: torch.device) -> int:
    """What tensors can have of a device's memory, before anything is on it; of this machine's for a CPU."""
    if device.type in ("cuda", "xpu"):
        return getattr(torch, device.type).mem_get_info(device)[0] - CONTEXT_BYTES
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return psutil.virtual_memory().available


def share_filled(device: torch.device) -> float:
    """The part of a device's free memory that is filled, by whether its allocator's blocks can grow."""
    return GROWING_SHARE if device.type == "cuda" and segments_grow() else FIXED_SHARE


def tokens_that_fit(free_bytes: float, shape: ModelShape, kind: StepKind, share: float) -> int:
    """How many tokens of one micro-batch fit into ``free_bytes``, if a quarter is supervised, within its limits.

    Args:
        share: the part of the memory beside the weights that is used.
    """
    tokens = largest_micro_batch_tokens(free_bytes, shape, kind, share)
    return int(min(max(tokens, MICRO_BATCH_TOKENS[0]), MICRO_BATCH_TOKENS[1]))


def largest_micro_batch_tokens(free_bytes: float, shape: ModelShape, kind: StepKind, share: float) -> float:
    """The same without limits: negative where not even the weights fit."""
    weights = weight_bytes(shape, kind)
    unit, double = (
        estimate_memory_bytes(shape, kind, tokens, tokens // 4) - weights for tokens in (UNIT_TOKENS, 2 * UNIT_TOKENS)
    )
    token_bytes = (double - unit) / UNIT_TOKENS  # the logits of a chunk are there however many tokens there are
    return (share * (free_bytes - weights) - (unit - token_bytes * UNIT_TOKENS)) / token_bytes


def fastest_on_cpu_tokens(intermediate_size: int) -> int:
    """The fastest micro-batch on a CPU, in tokens: glibc must still reuse the memory of the widest float32 tensor."""
    return min(max(CPU_REUSED_BYTES // (4 * intermediate_size), MICRO_BATCH_TOKENS[0]), CPU_MICRO_BATCH_TOKENS)


def peak_memory_bytes(device: torch.device) -> int:
    """The peak memory in bytes since the start: of tensors on a CUDA device, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    status = Path("/proc/self/status")  # Linux; getrusage would also count the program before exec
    if status.is_file():
        for line in status.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
