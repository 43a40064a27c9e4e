"""A start for the demonstration model in which copying need not be discovered first.

A small model spends most of a short pretraining until two attention heads find each other: one that looks at the
previous token, and one that looks for where the current token stood before and what came after it. Here the first two
layers start out near such a pair; everything else starts at random, and all of it is trained.
"""

from __future__ import annotations

import math

import torch
from transformers import Qwen2ForCausalLM

EMBEDDING_STD = 0.05
_PREVIOUS_SHARPNESS = 60.0  # squared length of each rotated pair: attention falls by e⁶ one token off
_MATCH_STRENGTH = 2.0
_COPY_STRENGTH = 2.0
_FAST_PAIRS = 4  # rotary pairs that turn too fast to compare tokens far apart


@torch.no_grad()
def start_copying(model: Qwen2ForCausalLM, generator: torch.Generator) -> None:
    """Draw the embeddings, and set the first two layers' leading key-value groups to the pair of heads."""
    hidden = model.config.hidden_size
    embeddings = model.model.embed_tokens.weight
    embeddings.copy_(_normal(embeddings.shape, EMBEDDING_STD, generator))
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    size = first.head_dim
    for group in range(2):
        read_current = _normal((size, hidden), 1 / math.sqrt(hidden), generator)
        write_previous = _normal((hidden, size), EMBEDDING_STD / math.sqrt(size), generator)
        _look_at_previous(model, first, group, read_current, write_previous)
        read_previous = write_previous.T / write_previous.square().sum(0).mean().sqrt()
        _look_for_match(second, group, read_current, read_previous, generator)


def _look_at_previous(model, attention, group: int, read: torch.Tensor, write: torch.Tensor) -> None:
    """Queries and keys of biases alone, turned against each other by one position."""
    size, heads = attention.head_dim, attention.num_key_value_groups
    keys = slice(group * size, (group + 1) * size)
    frequencies = model.model.rotary_emb.inv_freq.float()
    length = math.sqrt(_PREVIOUS_SHARPNESS)
    attention.k_proj.weight[keys] = 0
    attention.k_proj.bias[keys] = torch.cat((torch.full_like(frequencies, length), torch.zeros_like(frequencies)))
    attention.v_proj.weight[keys] = read
    for head in range(group * heads, (group + 1) * heads):
        queries = slice(head * size, (head + 1) * size)
        attention.q_proj.weight[queries] = 0
        attention.q_proj.bias[queries] = length * torch.cat((frequencies.cos(), -frequencies.sin()))
        attention.o_proj.weight[:, queries] = write / heads


def _look_for_match(attention, group: int, read_current, read_previous, generator: torch.Generator) -> None:
    """Queries of the current token, keys of the token before; the value is the token itself."""
    size, heads = attention.head_dim, attention.num_key_value_groups
    keys = slice(group * size, (group + 1) * size)
    slow = (torch.arange(size) % (size // 2) >= _FAST_PAIRS).float()[:, None]
    value = _normal(read_current.shape, 1 / math.sqrt(read_current.shape[1]), generator)
    attention.k_proj.weight[keys] = _MATCH_STRENGTH * slow * read_previous * math.sqrt(size / read_previous.shape[1])
    attention.v_proj.weight[keys] = value
    for head in range(group * heads, (group + 1) * heads):
        queries = slice(head * size, (head + 1) * size)
        attention.q_proj.weight[queries] = _MATCH_STRENGTH * slow * read_current
        attention.o_proj.weight[:, queries] = _COPY_STRENGTH * EMBEDDING_STD * value.T


def _normal(shape, deviation: float, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(tuple(shape), generator=generator) * deviation
