"""Training rows to batches. There are two ways, padded and as a prefix tree; each is a value, a `Batching`.

Both give a batch of the same form, a dict for `sft.engine.loss.supervised_loss`:

- ``inputs``: the model's keyword arguments. ``input_ids`` and ``position_ids`` are (rows, width), or (1, tokens) for a
  tree; ``logits_to_keep`` is the number of last positions to keep of each row, or (supervised,) positions for a tree;
- ``layout``: the `sft.engine.prefix_tree.PrefixTree`; None for a padded batch;
- ``kept``: an index into (rows, kept positions): the positions that predict a supervised token;
- ``labels``: (supervised,) these tokens, row by row;
- ``lines``: the line of each row in its file, a list.

A batch is made on the CPU; `to_device` moves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers import PreTrainedModel

from sft.engine.attention import NO_MASK, common_prefix_tokens
from sft.engine.prefix_tree import PrefixTree, build_tree, varlen_works
from sft.engine.transfer import copied_together


@dataclass
class EncodedRow:
    """One training example.

    Attributes:
        prompt_ids: token ids of the prompt.
        answer_ids: token ids of the answer with its terminator; all of them are supervised.
        line: the record's line in its file, from 1.
    """

    prompt_ids: list[int]
    answer_ids: list[int]
    line: int

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


class Batching(Protocol):
    """A way to turn rows into a batch.

    Attributes:
        title: its name in messages to the user.
        description: what it does, in messages to the user.
    """

    title: ClassVar[str]
    description: ClassVar[str]

    def tokens(self, rows: Sequence[EncodedRow]) -> int:
        """How many tokens the batch of ``rows`` has, padding included."""

    def collate(self, rows: Sequence[EncodedRow]) -> dict[str, object]:
        """The batch of ``rows``, on the CPU."""

    def for_model(self, model: PreTrainedModel, device: torch.device) -> Batching:
        """The same way with the fastest attention that works for ``model`` on ``device``."""


@dataclass(frozen=True)
class PaddedBatching:
    """Rows padded on the left, so that the answers are aligned at the right and few logits have to be kept."""

    pad_id: int
    title: ClassVar[str] = "补齐"
    description: ClassVar[str] = "补齐到最长"

    def tokens(self, rows: Sequence[EncodedRow]) -> int:
        """See `Batching`."""
        return len(rows) * max(len(row) for row in rows)

    def collate(self, rows: Sequence[EncodedRow]) -> dict[str, object]:
        """See `Batching`."""
        width = max(len(row) for row in rows)
        columns = max(len(row.answer_ids) for row in rows)
        input_ids = torch.full((len(rows), width), self.pad_id)
        attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
        position_ids = torch.zeros((len(rows), width), dtype=torch.long)
        kept: list[tuple[int, int]] = []
        for index, row in enumerate(rows):
            input_ids[index, width - len(row) :] = torch.tensor(row.prompt_ids + row.answer_ids)
            attention_mask[index, width - len(row) :] = 1
            position_ids[index, width - len(row) :] = torch.arange(len(row))
            kept += [(index, column) for column in range(columns - len(row.answer_ids), columns)]
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        return {
            "inputs": inputs | {"logits_to_keep": columns + 1},
            "layout": None,
            "kept": torch.tensor(kept).unbind(1),
            "labels": _labels(rows),
            "lines": [row.line for row in rows],
        }

    def for_model(self, model: PreTrainedModel, device: torch.device) -> PaddedBatching:
        """See `Batching`."""
        return self


@dataclass(frozen=True)
class PrefixTreeBatching:
    """A prefix tree: what all prompts begin with, once; then the rest of each row.

    The last token of a row is only predicted, so it is not part of the tree.

    Attributes:
        varlen: whether to use variable-length attention (see `sft.engine.prefix_tree.varlen_works`).
    """

    varlen: bool = False
    title: ClassVar[str] = "前缀树"
    description: ClassVar[str] = "前缀树：共有的开头每批只算一次"

    def tokens(self, rows: Sequence[EncodedRow]) -> int:
        """See `Batching`."""
        shared = _shared_tokens(rows)
        return shared + sum(len(row) - shared - 1 for row in rows)

    def collate(self, rows: Sequence[EncodedRow]) -> dict[str, object]:
        """See `Batching`."""
        shared = _shared_tokens(rows)
        input_ids = list(rows[0].prompt_ids[:shared])
        position_ids = list(range(shared))
        branches: list[range] = []
        sources: list[int] = []  # for each supervised token, the flat position that predicts it
        for row in rows:
            start = len(input_ids)
            input_ids += row.prompt_ids[shared:]
            input_ids += row.answer_ids[:-1]
            branches.append(range(start, len(input_ids)))
            position_ids += range(shared, shared + len(branches[-1]))
            # If all of the prompt is shared, the last token of the prefix predicts the answer's first token.
            answered_from = start + len(row.prompt_ids) - shared - 1 if len(row.prompt_ids) > shared else shared - 1
            sources += [answered_from, *range(len(input_ids) - len(row.answer_ids) + 1, len(input_ids))]
        inputs = {
            "input_ids": torch.tensor([input_ids]),
            "attention_mask": NO_MASK,
            "position_ids": torch.tensor([position_ids]),
            "logits_to_keep": torch.tensor(sources),
        }
        return {
            "inputs": inputs,
            "layout": build_tree(shared, branches, self.varlen),
            "kept": (0,),
            "labels": _labels(rows),
            "lines": [row.line for row in rows],
        }

    def for_model(self, model: PreTrainedModel, device: torch.device) -> PrefixTreeBatching:
        """See `Batching`."""
        return replace(self, varlen=varlen_works(model, device))


def _shared_tokens(rows: Sequence[EncodedRow]) -> int:
    return common_prefix_tokens([row.prompt_ids for row in rows])


def _labels(rows: Sequence[EncodedRow]) -> torch.Tensor:
    return torch.tensor([token_id for row in rows for token_id in row.answer_ids])


def micro_batches(rows: Sequence[EncodedRow], max_tokens: int, batching: Batching) -> list[dict[str, object]]:
    """Rows as batches of at most ``max_tokens`` each, to be computed one after the other; see `split_rows`."""
    return [batching.collate(piece) for piece in split_rows(rows, max_tokens, batching)]


def to_device(batch: dict[str, object], device: torch.device) -> dict[str, object]:
    """The batch with all its tensors on ``device``, those of its layout too; one copy, for which nobody waits."""
    tensors, structure = tree_flatten(batch | {"layout": None})
    layout: PrefixTree | None = batch["layout"]
    places = [place for place, leaf in enumerate(tensors) if isinstance(leaf, torch.Tensor)]
    of_layout = layout.tensors() if layout is not None else []
    moved = copied_together([*(tensors[place] for place in places), *of_layout], device)
    for place, tensor in zip(places, moved, strict=False):
        tensors[place] = tensor
    layout = layout and layout.with_tensors(moved[len(places) :])
    return tree_unflatten(tensors, structure) | {"layout": layout}


def batch_tokens(batch: dict[str, object]) -> int:
    """How many tokens a batch has, padding included."""
    return batch["inputs"]["input_ids"].numel()


def split_rows(rows: Sequence[EncodedRow], max_tokens: int, batching: Batching) -> list[list[EncodedRow]]:
    """Rows sorted by length, in pieces of at most ``max_tokens`` as ``batching`` counts them.

    A row is never split, so a piece of one row can be longer.
    """
    rows = sorted(rows, key=len)
    if rows and batching.tokens(rows) <= max_tokens:
        return [rows]
    pieces: list[list[EncodedRow]] = [[]]
    for row in rows:
        if pieces[-1] and batching.tokens([*pieces[-1], row]) > max_tokens:
            pieces.append([])
        pieces[-1].append(row)
    return [piece for piece in pieces if piece]  # a process may have no validation rows at all
