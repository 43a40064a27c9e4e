"""Initial weights for the demonstration model that can almost copy from the start.

To copy, a model needs two attention heads that work together: one attends to the previous token; the other finds an
earlier occurrence of the current token and attends to the token after it (an induction head). In a short pretraining,
a small model needs most of the time to learn this pair. Here the first two layers start close to it. All other weights
start at random, and all weights are trained.
"""

from __future__ import annotations

import math

import torch
from transformers import Qwen2ForCausalLM

EMBEDDING_STD = 0.05
_PREVIOUS_SHARPNESS = 60.0  # squared length of each rotary pair: one token further, attention is smaller by e⁶
_MATCH_STRENGTH = 2.0
_COPY_STRENGTH = 2.0
_FAST_PAIRS = 4  # rotary pairs that rotate too fast to compare distant tokens


@torch.no_grad()
def start_copying(model: Qwen2ForCausalLM, generator: torch.Generator) -> None:
    """Draw the embeddings, and set the first two key-value groups of the first two layers to the pair of heads.

    Args:
        model: a Qwen2 of at least two layers and two key-value groups; changed in place.
        generator: of the random numbers.
    """
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
    """Attend to the previous token: queries and keys are only biases, rotated against each other by one position."""
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
    """Attend to the token after an earlier occurrence of the current one.

    The query is the current token, the key is the token before each position, the value is the token at the position.
    """
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
