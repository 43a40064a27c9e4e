"""Which tokens a base model has never seen in training: their embeddings are those of unused ones.

Vocabularies are padded, and base models have tokens for later use. In training nothing tells these rows apart, so they
stay close together, away from all others. Only a few hundred rows are read from the safetensors files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

# The output layer decides whether a token can be written; where it is tied, the embedding is the output layer.
HEADS = ("lm_head.weight", "embed_out.weight", "output_layer.weight")
EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
)
RESERVED = re.compile(r"[<\[]\|?(?:reserved|unused|dummy|placeholder|extra|SPECIAL)[\w-]*\d+\|?[>\]]", re.I)
MOST_ROWS = 200  # read of each kind


def untrained_ids(folder: Path, tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> set[int]:
    """Those of ``token_ids`` that the base model in ``folder`` was never trained on, as far as that can be seen.

    A token is one of them if its row is zero, or lies among the rows of unused ids while ordinary rows are far away.
    Where the unused rows are not close together, for example in a random model, nothing can be said.

    Returns:
        An empty set if there are no weights or no unused ids.
    """
    found = _output_rows(folder)
    if found is None:
        return set()
    path, name = found
    with safe_open(path, "pt") as weights:
        matrix = weights.get_slice(name)
        rows = matrix.get_shape()[0]

        def read(ids: Sequence[int]) -> torch.Tensor:
            return torch.cat([matrix[index : index + 1] for index in ids]).float()

        judged = [index for index in token_ids if index < rows]
        reserved = [index for token, index in tokenizer.get_added_vocab().items() if RESERVED.fullmatch(token)]
        unused = _some([index for index in [*range(len(tokenizer), rows), *reserved] if index < rows])
        ordinary = _some(range(min(rows, tokenizer.vocab_size)))
        if not judged or not ordinary:
            return set()
        return _among_unused(judged, read(judged), read(unused) if unused else None, read(ordinary))


def _among_unused(
    ids: Sequence[int], judged: torch.Tensor, unused: torch.Tensor | None, ordinary: torch.Tensor
) -> set[int]:
    """The ids whose rows of ``judged`` lie among those of ``unused``; all tensors are (tokens, hidden size)."""
    zero = judged.abs().amax(-1) == 0
    if unused is None:
        return {
            index
            for index, is_zero in zip(ids, (zero & (ordinary.norm(dim=-1).median() > 0)).tolist(), strict=True)
            if is_zero
        }
    centre = unused.mean(0)
    spread = (unused - centre).norm(dim=-1).max()
    usual = (ordinary - centre).norm(dim=-1).median()
    if spread > 0.5 * usual or usual == 0:
        return set()
    near = (judged - centre).norm(dim=-1) <= torch.maximum(1.25 * spread, 0.05 * usual)
    return {index for index, is_near in zip(ids, (near | zero).tolist(), strict=True) if is_near}


def _output_rows(folder: Path) -> tuple[Path, str] | None:
    """The file and the name of the output layer's matrix, or of the embedding's; None if there is neither."""
    names = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as weights:
                names |= dict.fromkeys(weights.keys(), path)
        except (SafetensorError, OSError):  # loading the model will say what is wrong with it
            return None
    wanted = (*HEADS, *EMBEDDINGS)
    found = [name for end in wanted for name in names if name == end or name.endswith(f".{end}")]
    return (names[found[0]], found[0]) if found else None


def _some(ids: Sequence[int]) -> Sequence[int]:
    """At most `MOST_ROWS` of the ids, evenly spread."""
    return ids[:: max(1, -(-len(ids) // MOST_ROWS))]
