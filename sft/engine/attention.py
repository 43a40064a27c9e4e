"""Attention over a prefix tree, registered with transformers: by padded groups everywhere, of variable length on GPUs.

The model computes everything else as ever on one flat row of tokens; only attention knows that the row is a tree.
Without a tree (generation, scoring) it is transformers' own SDPA attention.
"""

from __future__ import annotations

import logging

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sft.engine.loss import ARCHITECTURES
from sft.engine.prefix_tree import PrefixTree, Segments, build_tree

logger = logging.getLogger(__name__)

NAME, VARLEN_NAME = "prefix_tree", "prefix_tree_varlen"  # the names under which transformers finds the two
# A mask with four dimensions is passed on as it is, so none is built; the attention below does not read it.
NO_MASK = torch.zeros((1, 1, 1, 1), dtype=torch.bool)
# On a CPU the fused kernel's backward is slow in bfloat16: up to so many keys, plain matrix products are faster.
SHORT_KEYS = 384
SHORT_DTYPES = [torch.bfloat16]
CAUSAL = (-1, 0)  # a window for varlen attention: everything before, nothing after


def use_tree_attention(model: PreTrainedModel, device: torch.device | None = None) -> None:
    """Register the attention and switch ``model`` to it: to the one of variable length where ``device`` can do it."""
    for name, attention in ((NAME, tree_attention), (VARLEN_NAME, varlen_attention)):
        AttentionInterface.register(name, attention)
        AttentionMaskInterface.register(name, sdpa_mask)
    varlen = device is not None and device.type == "cuda" and varlen_works(model, device)
    model.set_attn_implementation(VARLEN_NAME if varlen else NAME)
    if device is not None and device.type == "cuda":
        logger.info("前缀树注意力：%s", "变长 FlashAttention" if varlen else "SDPA（这张卡或这个模型用不了变长的）")


@torch.enable_grad()
def varlen_works(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether variable-length attention gives on ``device`` what SDPA gives, forward and backward, on a small tree.

    Tried, not looked up: it depends on the card, the numbers, the head size, and on what torch was built with.
    """
    config = model.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    tree = PrefixTree(*_to_device(tuple(build_tree(5, [range(5, 6), range(6, 15), range(15, 22)])), device))
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn((1, count, 22, size), generator=generator) for count in (heads, kv_heads, kv_heads)]
    results = []
    for attention in (tree_attention, varlen_attention):
        inputs = [state.to(device, model.dtype).requires_grad_() for state in states]
        try:
            attended, _ = attention(None, *inputs, None, scaling=size**-0.5, tree=tree)
            results.append([attended, *torch.autograd.grad(attended.square().sum(), inputs)])
        except (RuntimeError, ValueError) as error:
            logger.debug("变长注意力：%s", error)
            return False
    return all(torch.allclose(ours, theirs, rtol=0.05, atol=0.05) for theirs, ours in zip(*results, strict=True))


def _to_device(value: object, device: torch.device) -> object:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return type(value)(_to_device(item, device) for item in value) if isinstance(value, tuple | list) else value


def can_express(config: PreTrainedConfig, length_tokens: int) -> bool:
    """Whether a tree says all there is to say about a model's attention, and the model takes one."""
    return config.model_type in ARCHITECTURES and _sees_everything(config, length_tokens)


def _sees_everything(config: PreTrainedConfig, length_tokens: int) -> bool:
    """Whether every layer attends to all of ``length_tokens``; a window that no row exceeds is full attention."""
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if not kinds and window is not None:  # Mistral names no kinds
        kinds = {"sliding_attention"}
    return kinds <= {"full_attention"} or (
        kinds <= {"full_attention", "sliding_attention"} and length_tokens <= window
    )


def tree_attention(
    module: torch.nn.Module | None,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    tree: PrefixTree | None = None,
    **keywords,
) -> tuple[torch.Tensor, None]:
    """Attention of each token to the prefix and to its own branch: branches of like length padded to one width.

    Args:
        query: (1, heads, tokens, head size); ``key`` and ``value`` with as many or fewer heads.
        tree: how the tokens hang together; None for ordinary attention.

    Returns:
        (1, tokens, heads, head size), and no weights.
    """
    if tree is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **keywords
        )
    shared = tree.prefix_tokens
    prefix_key, prefix_value = key[:, :, :shared], value[:, :, :shared]
    parts = []
    if shared:
        parts.append(_attend(query[:, :, :shared], prefix_key, prefix_value, dropout, scaling))
    for group in tree.groups:
        branch_query, branch_key, branch_value = (_take(states, group) for states in (query, key, value))
        keys = torch.cat((prefix_key.expand(len(group), -1, -1, -1), branch_key), dim=2)
        values = torch.cat((prefix_value.expand(len(group), -1, -1, -1), branch_value), dim=2)
        parts.append(_attend(branch_query, keys, values, dropout, scaling))
    parts = [part.transpose(1, 2).flatten(0, 1) for part in parts]
    return torch.cat(parts).index_select(0, tree.order)[None], None


def varlen_attention(
    module: torch.nn.Module | None,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    tree: PrefixTree | None = None,
    **keywords,
) -> tuple[torch.Tensor, None]:
    """The same in one call of variable-length attention: the prefix is a sequence, and so is each branch behind it.

    Dropout of attention weights, which no supported model has, takes the other way.
    """
    if tree is None or dropout:
        return tree_attention(module, query, key, value, attention_mask, dropout, scaling, tree, **keywords)
    segments = Segments(*tree.segments)
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    attended = varlen_attn(
        query.contiguous(),
        key.index_select(0, segments.keys),
        value.index_select(0, segments.keys),
        segments.query_offsets,
        segments.key_offsets,
        segments.longest_queries,
        segments.longest_keys,
        scale=scaling,
        window_size=CAUSAL,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return attended[None], None


def _take(states: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """(1, heads, tokens, size) at the positions of (branches, width): (branches, heads, width, size)."""
    taken = states[0].transpose(0, 1).index_select(0, group.flatten())
    return taken.unflatten(0, group.shape).transpose(1, 2)


def _attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, dropout: float, scaling: float | None
) -> torch.Tensor:
    """Causal attention of the last positions to all: (rows, heads, width, size), (rows, fewer heads, length, size)."""
    width, length = queries.shape[2], keys.shape[2]
    on_cpu = queries.device.type == "cpu"
    if on_cpu and length <= SHORT_KEYS and queries.dtype in SHORT_DTYPES and not dropout:
        return _short_attention(queries, keys, values, scaling)
    repeats = queries.shape[1] // keys.shape[1]
    if not on_cpu:  # no fused kernel on a GPU takes grouped heads and a mask
        keys, values = repeat_kv(keys, repeats), repeat_kv(values, repeats)
    settings = {"dropout_p": dropout, "scale": scaling, "enable_gqa": on_cpu and repeats > 1}
    if 2 * width > length:  # a few idle queries in front cost less than a mask, which keeps the kernel from skipping
        queries = pad(queries, (0, 0, length - width, 0))
        return scaled_dot_product_attention(queries, keys, values, is_causal=True, **settings)[:, :, length - width :]
    mask = ~_future(width, length, queries.device)
    return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, **settings)


def _short_attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """The same by plain matrix products; the scores in float32 or wider, as within fused kernels."""
    rows, heads, width, size = queries.shape
    wide = torch.promote_types(queries.dtype, torch.float32)
    queries = queries.to(wide) * (size**-0.5 if scaling is None else scaling)
    queries = queries.unflatten(1, (keys.shape[1], -1)).flatten(2, 3)  # heads with the same keys ask them together
    scores = (queries @ keys.to(wide).mT).unflatten(2, (-1, width))
    scores = scores.masked_fill_(_future(width, keys.shape[2], queries.device), -torch.inf)
    weights = scores.softmax(-1).to(values.dtype).flatten(2, 3)
    return (weights @ values).view(rows, heads, width, size)


def _future(width: int, length: int, device: torch.device) -> torch.Tensor:
    """(width, length): what comes after each of the last ``width`` of ``length`` positions; padding is after all."""
    return torch.ones((width, length), dtype=torch.bool, device=device).triu(length - width + 1)
