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
from sft.training.arguments import Arguments

# The smallest and the largest automatic micro-batch. One long row must fit anyway; larger ones are not faster.
MICRO_BATCH_TOKENS = (1024, 16384)
CPU_MICRO_BATCH_TOKENS = 4096
# glibc returns larger blocks to the system at once, and then every new tensor needs new pages: a quarter slower for
# the 1.5B model.
CPU_REUSED_BYTES = 2**25
HEAD = "lm_head"  # if this layer is trained, all of its logits exist at once
UNIT_TOKENS = 4096  # the memory of one token is estimated from a micro-batch of this size


class ModelShape(NamedTuple):
    """The sizes of a model that decide how much memory a step takes."""

    parameters: int
    layers: int
    hidden_size: int
    intermediate_size: int
    vocabulary_size: int


class StepKind(NamedTuple):
    """How a step computes.

    Attributes:
        itemsize: bytes of one number of the model.
        recompute: activations are recomputed in the backward pass (gradient checkpointing).
        whole_head: the logits of all supervised tokens exist at once, not only those of one chunk.
    """

    itemsize: int
    recompute: bool
    whole_head: bool


def shape_of(folder: Path) -> ModelShape:
    """The shape of the model in ``folder``, from its config and the headers of its weight files."""
    config = load_config(folder).get_text_config()
    parameters = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            parameters += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return ModelShape(
        parameters,
        config.num_hidden_layers,  # GPT-2 and BLOOM have other names for these; transformers knows them
        config.hidden_size,
        _intermediate_size(config),
        config.vocab_size,
    )


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
    training = arguments.training
    recompute = bool(training.gradient_checkpointing or training.activation_checkpointing)
    return StepKind(dtype.itemsize, recompute, HEAD in arguments.lora.lora_target_modules)


def estimate_memory_bytes(shape: ModelShape, kind: StepKind, tokens: int, supervised_tokens: int) -> float:
    """A rough estimate of the peak memory of one micro-batch in bytes: weights, stored activations, and logits.

    For each token a layer stores about 16 values of the hidden size and 5 of the intermediate size. With recomputation
    each layer stores one of the hidden size, and one layer at a time stores everything. Logits exist for one chunk of
    supervised tokens at a time (``whole_head``: for all), three times: as computed, in float32, and as a gradient.

    Args:
        tokens: of the micro-batch.
        supervised_tokens: how many of them have a loss.
    """
    logits = supervised_tokens * shape.vocabulary_size
    if not kind.whole_head:
        logits = min(logits, CHUNK_LOGITS)
    layer_bytes = tokens * kind.itemsize * (16 * shape.hidden_size + 5 * shape.intermediate_size)
    if kind.recompute:
        activations = layer_bytes + shape.layers * tokens * kind.itemsize * shape.hidden_size
    else:
        activations = shape.layers * layer_bytes
    return shape.parameters * kind.itemsize + activations + logits * (kind.itemsize + 4 + 4)


def fitting_tokens(shape: ModelShape, kind: StepKind, device: torch.device) -> int:
    """How many tokens of one micro-batch fit beside the weights; on a CPU, at most the fastest size."""
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        return tokens_that_fit(free_bytes, shape, kind)
    free_bytes = psutil.virtual_memory().available
    return min(tokens_that_fit(free_bytes, shape, kind), fastest_on_cpu_tokens(shape.intermediate_size))


def tokens_that_fit(free_bytes: int, shape: ModelShape, kind: StepKind) -> int:
    """How many tokens of one micro-batch fit into ``free_bytes`` beside the weights, if a quarter is supervised.

    Uses only 60 % of the memory that is left beside the weights.
    """
    unit_bytes = estimate_memory_bytes(shape._replace(parameters=0), kind, UNIT_TOKENS, UNIT_TOKENS // 4)
    tokens = 0.6 * (free_bytes - shape.parameters * kind.itemsize) / (unit_bytes / UNIT_TOKENS)
    return int(min(max(tokens, MICRO_BATCH_TOKENS[0]), MICRO_BATCH_TOKENS[1]))


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
