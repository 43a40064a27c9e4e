"""From encoded rows to what the model takes, and from its logits to the loss: padded, or as a prefix tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from sft.engine.attention import NO_MASK
from sft.engine.loss import chunked_loss, frozen_head, hidden_states, plain_loss
from sft.engine.prefix_tree import PrefixTree
from sft.model.encoding import EncodedRow

IGNORED = -100  # a label that is not supervised, as everywhere in transformers
Size = Callable[[Sequence[EncodedRow]], int]


def padded_tokens(rows: Sequence[EncodedRow]) -> int:
    """How many tokens, padding included, the padded batch of ``rows`` has."""
    return len(rows) * max(len(row) for row in rows)


def split_rows(rows: Sequence[EncodedRow], max_tokens: int, size: Size) -> list[list[EncodedRow]]:
    """Rows, sorted by length, in pieces of at most ``max_tokens`` as ``size`` counts them; no row is split."""
    rows = sorted(rows, key=len)
    if rows and size(rows) <= max_tokens:
        return [rows]
    pieces: list[list[EncodedRow]] = [[]]
    for row in rows:
        if pieces[-1] and size([*pieces[-1], row]) > max_tokens:
            pieces.append([])
        pieces[-1].append(row)
    return [piece for piece in pieces if piece]  # a process may have no validation rows at all


def collate_padded(rows: Sequence[EncodedRow], pad_id: int) -> dict[str, torch.Tensor]:
    """Rows padded on the left, so that the supervised tokens stand at the right end of every row.

    Returns:
        ``input_ids``, ``attention_mask``, ``position_ids``, ``labels``: (rows, width); ``lines``: (rows,) the line of
        each row in its file. ``labels`` are as transformers has them: each token's own id where it is supervised.
    """
    width = max(len(row) for row in rows)
    batch = {
        "input_ids": torch.full((len(rows), width), pad_id),
        "attention_mask": torch.zeros((len(rows), width), dtype=torch.long),
        "position_ids": torch.zeros((len(rows), width), dtype=torch.long),
        "labels": torch.full((len(rows), width), IGNORED),
        "lines": torch.tensor([row.line for row in rows]),
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

    The head runs only where a token is predicted that counts; the loss is in float32 or wider.
    """
    inputs, kept, targets = _tree_inputs(batch) if "tree" in batch else _padded_inputs(batch)
    head = frozen_head(model)
    if head is None:
        loss = plain_loss(model(**inputs, use_cache=False).logits[kept], targets)
    else:
        loss = chunked_loss(hidden_states(model, head, **inputs, use_cache=False)[kept], head, targets)
    return loss / supervised_tokens


def _padded_inputs(batch: dict[str, torch.Tensor]) -> tuple[dict, tuple, torch.Tensor]:
    """What the model takes, which of the positions it keeps predict a supervised token, and those tokens."""
    labels = batch["labels"]
    columns = int((labels != IGNORED).any(0).sum())  # a run at the right end, by the collator
    targets = labels[:, -columns:]
    supervised = targets != IGNORED
    names = ("input_ids", "attention_mask", "position_ids")
    inputs = {name: batch[name] for name in names} | {"logits_to_keep": columns + 1}
    rows, positions = supervised.nonzero(as_tuple=True)
    return inputs, (rows, positions), targets[supervised]


def _tree_inputs(batch: dict) -> tuple[dict, tuple, torch.Tensor]:
    """The same for a batch laid out as a tree."""
    inputs = {
        "input_ids": batch["input_ids"],
        "attention_mask": NO_MASK.to(batch["input_ids"].device),
        "position_ids": batch["position_ids"],
        "tree": PrefixTree(*batch["tree"]),
        "logits_to_keep": batch["sources"],
    }
    return inputs, (0,), batch["labels"][0]
