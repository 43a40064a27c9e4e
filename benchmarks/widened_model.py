"""A large model that costs as much as a real one of its size, but answers exactly as a small fine-tuned model does.

To time prediction, a model must give real answers, but training 200 million parameters takes too long on two cores.
So the weights of the small model are copied into a larger shape. They fill the first dimensions; the other dimensions
stay zero, and the norms are rescaled for them. The small model's layers come first. The layers after them do all of
their usual computation but add zero to the result.
"""

from __future__ import annotations

import copy

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

# Hidden size 1024, 16 layers: 190 M parameters in the body and 33 M in the head. The head is 0.175 of the body, about
# as in Qwen2.5-1.5B (0.178).
SHAPE = {"hidden_size": 1024, "num_hidden_layers": 16, "intermediate_size": 2816, "vocab_size": 32_256}


@torch.no_grad()
def widen(small: PreTrainedModel, shape: dict[str, int] = SHAPE) -> PreTrainedModel:
    """Copy a small model into a larger shape.

    Args:
        small: a Qwen2 whose embedding is also its head, with adapters merged.
        shape: the config fields of the larger model. The size of a head and the number of query heads for each
            key-value head stay the same.

    Returns:
        The larger model, in the dtype of ``small`` and in evaluation mode.
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
        if source is None:  # a layer that `small` does not have: random weights, but zero output
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                target.zero_()
            continue
        target.zero_()
        target[tuple(map(slice, source.shape))] = source * scale**0.5 if "norm" in name else source
        if "embed_tokens" in name:  # extra tokens get the padding token's embedding: never the most probable
            target[len(source) :, : source.shape[1]] = source[small.config.pad_token_id]
    large.generation_config = small.generation_config
    return large
