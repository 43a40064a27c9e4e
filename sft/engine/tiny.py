"""A tiny copy of a model's configuration: every kind of layer that it has, small sizes, a short window."""

from __future__ import annotations

import copy

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

WINDOW_TOKENS = 6
VOCABULARY = 96
HEAD_SIZE = 16
HEADS = 4
SPREAD = 0.3  # of the random weights: large, so that a wrong mask changes the result clearly
# What models call their sizes, and the size in the copy. Only what a config has is changed.
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": HEADS * HEAD_SIZE, "intermediate_size": 48,
    "num_attention_heads": HEADS, "head_dim": HEAD_SIZE, "sliding_window": WINDOW_TOKENS,
    "n_embd": HEADS * HEAD_SIZE, "n_head": HEADS, "n_inner": 48, "n_layer": 2, "ffn_dim": 48, "ffn_hidden_size": 48,
    "word_embed_proj_dim": HEADS * HEAD_SIZE, "num_kv_heads": HEADS,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "moe_num_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "num_experts_per_tok": 2, "moe_k": 2, "moe_topk": 2, "moe_num_shared_experts": 1, "n_shared_experts": 1,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
    "qk_head_dim": 32, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16,
}  # fmt: skip


def tiny_copy(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of a text model's ``config`` with small sizes, and one layer of each kind, or two of the only kind."""
    tiny = copy.deepcopy(config)
    grouped = _key_heads(config)
    for name, size in SIZES.items():
        if type(getattr(config, name, None)) is int:  # not a list, one size a layer: such a model is not tried
            setattr(tiny, name, size)
    if hasattr(config, "num_key_value_heads"):
        tiny.num_key_value_heads = grouped
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(config, name, None) is not None:
            setattr(tiny, name, 0)
    if hasattr(tiny, "quantization_config"):
        del tiny.quantization_config
    _keep_layers(tiny, config)
    _fit_positions(tiny)
    return tiny


def tiny_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A random model of a `tiny_copy` with transformers' plainest attention; the state of the random numbers stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            tiny_copy(config), attn_implementation="eager", dtype=torch.float32, trust_remote_code=False
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, SPREAD)
                else:
                    parameter.add_(torch.randn_like(parameter), alpha=SPREAD / 3)
    return model.eval()


def _key_heads(config: PreTrainedConfig) -> int:
    """As many key heads as query heads, one for all of them, or one for two, as in the model itself."""
    own, heads = getattr(config, "num_key_value_heads", None), getattr(config, "num_attention_heads", None)
    return HEADS if own in (None, heads) else 1 if own == 1 else HEADS // 2


def _keep_layers(tiny: PreTrainedConfig, config: PreTrainedConfig) -> None:
    layers = getattr(config, "num_hidden_layers", None)
    if type(layers) is not int:
        return
    # Lists with one entry a layer, as they are stored: some configs give a list out under two names.
    lists = {name: value for name, value in vars(config).items() if _is_list_of(value, layers)}
    kinds: dict[tuple, int] = {}
    for index in range(layers):
        kinds.setdefault(tuple(repr(value[index]) for value in lists.values()), index)
    kept = list(kinds.values()) if len(kinds) > 1 else list(range(min(2, layers)))
    tiny.num_hidden_layers = len(kept)
    for name, value in lists.items():
        setattr(tiny, name, [value[index] for index in kept])


def _is_list_of(value: object, length: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == length


def _fit_positions(tiny: PreTrainedConfig) -> None:
    """Lists with one number for each pair of rotated features, fitted to the head size of the copy."""
    own = getattr(tiny, "rope_parameters", None)
    for rope in [own, *own.values()] if isinstance(own, dict) else []:
        if not isinstance(rope, dict):
            continue
        pairs = int(HEAD_SIZE * rope.get("partial_rotary_factor", 1.0)) // 2
        for name in ("short_factor", "long_factor"):
            if isinstance(rope.get(name), list):
                rope[name] = (rope[name] * pairs)[:pairs]
        if isinstance(rope.get("mrope_section"), list):
            rope["mrope_section"] = [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]
