"""A model with the shape, and so the cost, of a larger one that answers exactly as a small fine-tuned one does.

Timing needs models that really answer, and two cores overfit no model of 200 million parameters in a sitting. So the
small model is laid into the larger shape: its width in the first dimensions (the norms rescaled for the others, which
stay zero), its layers first, and after them layers that compute all they always compute and add nothing.
"""

from __future__ import annotations

import copy

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

# hidden 1024 × 16 layers: 190 M in the body, 33 M in the head, 0.175 of the body as in Qwen2.5-1.5B (0.178)
SHAPE = {"hidden_size": 1024, "num_hidden_layers": 16, "intermediate_size": 2816, "vocab_size": 32_256}


@torch.no_grad()
def widen(small: PreTrainedModel, shape: dict[str, int] = SHAPE) -> PreTrainedModel:
    """The larger model.

    Args:
        small: a Qwen2 whose embedding is its head; adapters merged.
        shape: fields of its config; heads keep their size and how many share keys.
    """
    config = copy.deepcopy(small.config)
    head_size = config.hidden_size // config.num_attention_heads
    sharing = config.num_attention_heads // config.num_key_value_heads
    scale = config.hidden_size / shape["hidden_size"]
    config.update(shape)
    config.num_attention_heads = shape["hidden_size"] // head_size
    config.num_key_value_heads = config.num_attention_heads // sharing
    config.layer_types = ["full_attention"] * config.num_hidden_layers
    config.rms_norm_eps *= scale
    large = AutoModelForCausalLM.from_config(config, dtype=small.dtype, attn_implementation="sdpa").eval()
    weights = small.state_dict()
    for name, target in large.state_dict().items():
        source = weights.get(name)
        if source is None:  # a layer the small one lacks: random, but nothing of it comes out
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                target.zero_()
            continue
        target.zero_()
        target[tuple(map(slice, source.shape))] = source * scale**0.5 if "norm" in name else source
        if "embed_tokens" in name:  # more tokens that are never the most probable: as one that is not
            target[len(source) :, : source.shape[1]] = source[small.config.pad_token_id]
    large.generation_config = small.generation_config
    return large
