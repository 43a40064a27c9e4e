"""From encoded rows to what the model takes, and from its logits to the loss: padded, or as a prefix tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import cross_entropy

from sft.attention import NO_MASK
from sft.encoding import EncodedRow
from sft.tree import PrefixTree

IGNORED = -100  # a label that is not supervised, as everywhere in transformers
Size = Callable[[Sequence[EncodedRow]], int]


def padded_tokens(rows: Sequence[EncodedRow]) -> int:
    """How many tokens, padding included, the padded batch of ``rows`` has."""
    return len(rows) * max(len(row) for row in rows)


def split_rows(rows: Sequence[EncodedRow], max_tokens: int, size: Size) -> list[list[EncodedRow]]:
    """Rows, sorted by length, in pieces of at most ``max_tokens`` as ``size`` counts them; no row is split."""
    pieces: list[list[EncodedRow]] = [[]]
    for row in sorted(rows, key=len):
        if pieces[-1] and size([*pieces[-1], row]) > max_tokens:
            pieces.append([])
        pieces[-1].append(row)
    return [piece for piece in pieces if piece]  # a process may have no validation rows at all


def collate_padded(rows: Sequence[EncodedRow], pad_id: int) -> dict[str, torch.Tensor]:
    """Rows padded on the left, so that the supervised tokens stand at the right end of every row.

    Returns:
        ``input_ids``, ``attention_mask``, ``position_ids``, ``labels``: (rows, width); ``rows``: (rows,) the line of
        each row in its file. ``labels`` are as transformers has them: each token's own id where it is supervised.
    """
    width = max(len(row) for row in rows)
    batch = {
        "input_ids": torch.full((len(rows), width), pad_id),
        "attention_mask": torch.zeros((len(rows), width), dtype=torch.long),
        "position_ids": torch.zeros((len(rows), width), dtype=torch.long),
        "labels": torch.full((len(rows), width), IGNORED),
        "rows": torch.tensor([row.row for row in rows]),
    }
    for index, row in enumerate(rows):
        batch["input_ids"][index, width - len(row) :] = torch.tensor(row.prompt_ids + row.answer_ids)
        batch["attention_mask"][index, width - len(row) :] = 1
        batch["position_ids"][index, width - len(row) :] = torch.arange(len(row))
        batch["labels"][index, width - len(row.answer_ids) :] = torch.tensor(row.answer_ids)
    return batch


def supervised_loss(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], supervised_tokens: torch.Tensor | int
) -> torch.Tensor:
    """Cross-entropy summed over the batch's supervised tokens, divided by ``supervised_tokens`` of the whole step.

    The head runs only over the columns that hold an answer in some row; the loss is in float32 or wider.
    """
    if "tree" in batch:
        return _tree_loss(model, batch, supervised_tokens)
    labels = batch["labels"]
    columns = int((labels != IGNORED).any(0).sum())  # a run at the right end, by the collator
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        logits_to_keep=columns + 1,
        use_cache=False,
    ).logits
    targets = labels[:, -columns:]
    supervised = targets != IGNORED
    logits = logits[:, :-1][supervised]
    wide = torch.promote_types(logits.dtype, torch.float32)
    loss = cross_entropy(logits.to(wide), targets[supervised], reduction="sum")
    return loss / supervised_tokens


def at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    """Half-precision logits in float32, for a softmax over 150,000 of them; wider ones as they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _tree_loss(model: torch.nn.Module, batch: dict, supervised_tokens: torch.Tensor | int) -> torch.Tensor:
    """The same loss for a batch laid out as a tree; the head runs once for each position that predicts something."""
    positions, which = batch["sources"].unique(return_inverse=True)
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=NO_MASK.to(positions.device),
        position_ids=batch["position_ids"],
        tree=PrefixTree(*batch["tree"]),
        logits_to_keep=positions,
        use_cache=False,
    ).logits[0]
    loss = cross_entropy(at_least_float32(logits)[which], batch["labels"][0], reduction="sum")
    return loss / supervised_tokens
