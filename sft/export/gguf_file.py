"""A GGUF file from a merged model, with the library `gguf` (of llama.cpp): names, metadata, tokenizer and numbers.

Three architectures: qwen2, qwen3 and llama, with a byte-level BPE tokenizer. Everything else is for llama.cpp's own
converter, ``convert_hf_to_gguf.py``, which reads the folder that ``--to merged`` writes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import gguf
import numpy as np
import orjson
import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from sft.errors import InputError
from sft.export.source import Source

ARCHITECTURES = {
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "llama": gguf.MODEL_ARCH.LLAMA,
}
PERMUTED = ("llama",)  # whose rotary embedding llama.cpp pairs in another order
NUMBER_TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
# How a tokenizer separates words → llama.cpp's name for it.
_AROUND_DIGITS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
WORDS = {
    r"\p{N}".join(_AROUND_DIGITS): "qwen2",
    r"\p{N}{1,3}".join(_AROUND_DIGITS): "llama-bpe",
}
OTHER = "请先 --to merged，再用 llama.cpp 的 convert_hf_to_gguf.py 转换那个文件夹"


def refuse_other_models(source: Source, config: PreTrainedConfig) -> None:
    """Refuse a model that this module cannot write, before any weights are read.

    Raises:
        InputError: says what about it, and names llama.cpp's converter.
    """
    folder = source.base.folder
    if config.model_type not in ARCHITECTURES:
        raise InputError(
            f"{folder}：这里不会把 {config.model_type} 写成 GGUF（会 {'、'.join(ARCHITECTURES)}）；{OTHER}"
        )
    kind = rope_of(config)["rope_type"]
    if kind not in ("default", "llama3"):
        raise InputError(f"{folder}：这里不会写 {kind} 的位置编码；{OTHER}")
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise InputError(f"{folder}：有滑动窗口的层，这里不会写；{OTHER}")
    if getattr(config, "hidden_act", "silu") != "silu":
        raise InputError(f"{folder}：激活函数是 {config.hidden_act}，这里只会 silu；{OTHER}")
    words_of(source.tokenizer, folder)


def rope_of(config: PreTrainedConfig) -> Mapping[str, float]:
    """The parameters of the rotary embedding, with ``rope_type`` and ``rope_theta``."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return {"rope_type": "default", "rope_theta": getattr(config, "rope_theta", 10000.0)} | dict(given)


def words_of(tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    """llama.cpp's name for how the tokenizer separates words.

    Raises:
        InputError: it is no byte-level BPE, or llama.cpp's name for it is not known here.
    """
    content = orjson.loads(tokenizer.backend_tokenizer.to_str())
    steps = content.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    patterns = [step["pattern"].get("Regex") for step in steps if step.get("type") == "Split"]
    is_bytes = any(step.get("type") == "ByteLevel" for step in steps)
    if content["model"]["type"] != "BPE" or not is_bytes or len(patterns) != 1 or patterns[0] not in WORDS:
        raise InputError(f"{folder}：分词器不是 Qwen 或 Llama 3 那样的字节级 BPE，这里不会写进 GGUF；{OTHER}")
    return WORDS[patterns[0]]


def head_size(config: PreTrainedConfig) -> int:
    """The width of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def write_gguf(
    path: Path, weights: Mapping[str, torch.Tensor], source: Source, config: PreTrainedConfig, number_type: str
) -> None:
    """Write the file.

    Args:
        weights: the merged model's, in float32, by their names in transformers.

    Raises:
        InputError: a weight has no place in this architecture, or is too large for the type.
    """
    logging.getLogger("gguf").setLevel(logging.WARNING)  # it tells every step
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config.model_type]])
    _write_metadata(writer, source, config, number_type)
    _write_tokenizer(writer, source, config.vocab_size)
    for name, tensor in _tensors(weights, config):
        _add(writer, name, tensor, NUMBER_TYPES[number_type][0])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _write_metadata(writer: gguf.GGUFWriter, source: Source, config: PreTrainedConfig, number_type: str) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(source.adapter.resolve().name)
    writer.add_file_type(NUMBER_TYPES[number_type][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_rope_dimension_count(head_size(config))
    writer.add_rope_freq_base(rope_of(config)["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _write_tokenizer(writer: gguf.GGUFWriter, source: Source, rows: int) -> None:
    """The vocabulary, merges, special tokens, and the chat template, which itself writes BOS where there is one."""
    tokenizer = source.tokenizer
    model = orjson.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens, types = vocabulary_rows(tokenizer, rows)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words_of(tokenizer, source.base.folder))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    writer.add_token_merges(merges)
    writer.add_eos_token_id(source.end)
    writer.add_eot_token_id(source.end)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def vocabulary_rows(tokenizer: PreTrainedTokenizerBase, rows: int) -> tuple[list[str], list[int]]:
    """The text and the type of each token, for every row of the embedding."""
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for index in range(rows):
        if index not in by_id:
            token, kind = f"[PAD{index}]", gguf.TokenType.UNUSED
        elif index in added:
            token = added[index].content
            kind = gguf.TokenType.CONTROL if added[index].special else gguf.TokenType.USER_DEFINED
        else:
            token, kind = by_id[index], gguf.TokenType.NORMAL
        tokens.append(token)
        types.append(int(kind))
    return tokens, types


def _tensors(weights: Mapping[str, torch.Tensor], config: PreTrainedConfig) -> Iterator[tuple[str, np.ndarray]]:
    """``(name in GGUF, float32 numbers)``; a tied output layer is left out, as llama.cpp expects it."""
    names = gguf.get_tensor_name_map(ARCHITECTURES[config.model_type], config.num_hidden_layers)
    for name, weight in weights.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        named = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if named is None:
            raise InputError(f"{name}：GGUF 的 {config.model_type} 里没有这个权重的位置；{OTHER}")
        numbers = weight.detach().to("cpu", torch.float32).numpy()
        heads = _heads(name, config)
        yield named, numbers if heads is None else permuted(numbers, heads)
    if rope_of(config)["rope_type"] == "llama3":
        yield "rope_freqs.weight", llama3_frequencies(config)


def _heads(name: str, config: PreTrainedConfig) -> int | None:
    """How many heads a projection that must be permuted has; None if it must not be."""
    if config.model_type not in PERMUTED:
        return None
    projection = name.split(".")[-2] if "." in name else ""
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(projection)


def permuted(numbers: np.ndarray, heads: int) -> np.ndarray:
    """The rows of each head in the order of llama.cpp's llama: transformers' halves become neighbours."""
    return numbers.reshape(heads, 2, -1, *numbers.shape[1:]).swapaxes(1, 2).reshape(numbers.shape)


def llama3_frequencies(config: PreTrainedConfig) -> np.ndarray:
    """By what each frequency of Llama 3.1's rotary embedding is divided; shape (head size / 2,)."""
    rope, size = rope_of(config), head_size(config)
    original = rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    factors = []
    for index in range(0, size, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (index / size)
        smooth = min(1.0, max(0.0, (original / wavelength - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


def _add(writer: gguf.GGUFWriter, name: str, numbers: np.ndarray, wanted: gguf.GGMLQuantizationType) -> None:
    """Add a tensor. Vectors stay in float32; a row that Q8_0 cannot divide into blocks is in float16."""
    kind = wanted if numbers.ndim > 1 else gguf.GGMLQuantizationType.F32
    if kind == gguf.GGMLQuantizationType.Q8_0 and numbers.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = gguf.GGMLQuantizationType.F16
    largest = float(np.abs(numbers).max(initial=0.0))
    if kind == gguf.GGMLQuantizationType.F16 and largest > np.finfo(np.float16).max:
        raise InputError(f"{name}：最大的数是 {largest:g}，f16 放不下；请用 --gguf_type bf16 或 f32")
    writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(numbers), kind), raw_dtype=kind)
