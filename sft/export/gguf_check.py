"""Read a GGUF file back and compare it with the merged model, by names and formulas of its own.

What `gguf_file` writes with the tables of the library `gguf` is read here without them, so that one mistake is not
made twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import PreTrainedConfig

from sft.errors import InputError
from sft.export.gguf_file import PERMUTED, head_size, rope_of, vocabulary_rows, words_of
from sft.export.proof import Leg, compare_named
from sft.export.source import Source

# Name in GGUF → name in transformers, both without the ends ``.weight`` and ``.bias``.
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FACTORS = "rope_freqs.weight"


def name_in_transformers(name: str) -> str:
    """``blk.0.attn_q.weight`` → ``model.layers.0.self_attn.q_proj.weight``; an unknown name stays as it is."""
    stem, _, end = name.rpartition(".")
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.{end}"
    block, _, part = stem.removeprefix("blk.").partition(".")
    return f"model.layers.{block}.{INSIDE[part]}.{end}" if part in INSIDE and block.isdecimal() else name


def open_gguf(path: Path) -> gguf.GGUFReader:
    """Open a file to read.

    Raises:
        InputError: it is no GGUF file.
    """
    try:
        return gguf.GGUFReader(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}：读不出这个 GGUF 文件（{error}）") from error


def values_of(reader: gguf.GGUFReader) -> dict[str, object]:
    """The metadata by name."""
    return {name: field.contents() for name, field in reader.fields.items()}


def metadata_leg(reader: gguf.GGUFReader, source: Source, config: PreTrainedConfig) -> Leg:
    """Everything in the metadata that decides an answer."""
    found, kind, tokenizer = values_of(reader), config.model_type, source.tokenizer
    tokens, types = vocabulary_rows(tokenizer, config.vocab_size)
    wanted = {
        "general.architecture": kind,
        f"{kind}.block_count": config.num_hidden_layers,
        f"{kind}.context_length": config.max_position_embeddings,
        f"{kind}.embedding_length": config.hidden_size,
        f"{kind}.feed_forward_length": config.intermediate_size,
        f"{kind}.attention.head_count": config.num_attention_heads,
        f"{kind}.attention.head_count_kv": config.num_key_value_heads,
        f"{kind}.attention.key_length": head_size(config),
        f"{kind}.attention.value_length": head_size(config),
        f"{kind}.rope.dimension_count": head_size(config),
        f"{kind}.rope.freq_base": np.float32(rope_of(config)["rope_theta"]),
        f"{kind}.attention.layer_norm_rms_epsilon": np.float32(config.rms_norm_eps),
        f"{kind}.rope.scaling.type": None,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": words_of(tokenizer, source.base.folder),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.eos_token_id": source.end,
        "tokenizer.ggml.eot_token_id": source.end,
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": tokenizer.chat_template,
    }
    return compare_named("settings", ((name, value, found.get(name)) for name, value in wanted.items()))


def tensors_leg(
    reader: gguf.GGUFReader, weights: Mapping[str, torch.Tensor], config: PreTrainedConfig, wanted_type: str
) -> Leg:
    """Every tensor of the file, as numbers, and the merged model's; they may differ by the rounding of their type.

    The same weights must be there, and matrices in ``wanted_type`` (float16 where it does not divide into blocks).
    """
    pairs: list[tuple[str, object, object]] = []
    seen = set()
    for tensor in reader.tensors:
        if tensor.name == ROPE_FACTORS:
            continue
        name = name_in_transformers(tensor.name)
        seen.add(name)
        if name not in weights:
            pairs.append((tensor.name, "没有这个权重", "有"))
            continue
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        wanted = weights[name].detach().to("cpu", torch.float32).numpy()
        if config.model_type in PERMUTED and ".self_attn." in name:
            numbers = in_order_of_transformers(numbers, name, config)
        kind = tensor.tensor_type.name.lower()
        if numbers.ndim > 1:
            pairs.append((f"{tensor.name} 的类型", _type_of(wanted_type, wanted.shape[-1]), kind))
        pairs.append((f"{tensor.name} 的形状", list(wanted.shape), list(numbers.shape)))
        if wanted.shape == numbers.shape:
            pairs.append((f"{tensor.name} 的数", "在舍入之内", _beyond_rounding(wanted, numbers, kind)))
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    pairs += [(f"{name}", "有", "没有") for name in sorted(weights.keys() - seen - tied)]
    return compare_named("weights", pairs)


def _type_of(wanted: str, columns: int) -> str:
    return "f16" if wanted == "q8_0" and columns % 32 else wanted


def in_order_of_transformers(numbers: np.ndarray, name: str, config: PreTrainedConfig) -> np.ndarray:
    """A projection of llama.cpp's llama with its rows in transformers' order: neighbours become halves again."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return numbers
    size = numbers.shape[0] // heads
    order = [head * size + row for head in range(heads) for row in (*range(0, size, 2), *range(1, size, 2))]
    return numbers[order]


def _beyond_rounding(wanted: np.ndarray, found: np.ndarray, kind: str) -> str:
    """``在舍入之内``, or by how much the worst number is further away than rounding explains."""
    if kind == "q8_0":  # blocks of 32 share a scale, which is itself a float16
        blocks = np.abs(wanted).reshape(*wanted.shape[:-1], -1, 32).max(-1, keepdims=True)
        most = np.broadcast_to(blocks / 127, (*blocks.shape[:-1], 32)).reshape(wanted.shape) * 0.57 + 1e-6
    else:
        relative = {"f16": 2**-11, "bf16": 2**-8, "f32": 0.0}[kind]
        most = np.abs(wanted) * relative + {"f16": 2**-25, "bf16": 1e-38, "f32": 0.0}[kind]
    beyond = np.abs(wanted - found) - most
    worst = float(beyond.max(initial=0.0))
    return "在舍入之内" if worst <= 0 else f"超出 {worst:.3g}"
