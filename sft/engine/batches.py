"""Training rows to batches: padded, as a prefix tree, or whichever of the two fits a batch; each is a `Batching`.

All give a batch of the same form, a dict for `sft.engine.loss.supervised_loss`:

- ``inputs``: the model's keyword arguments. ``input_ids`` and ``position_ids`` are (rows, width), or (1, tokens) for a
  tree; ``logits_to_keep`` is the number of last positions to keep of each row, or (supervised,) positions for a tree;
- ``layout``: the `sft.engine.prefix_tree.PrefixTree`; None for a padded batch;
- ``kept``: an index into (rows, kept positions): the positions that predict a supervised token;
- ``labels``: (supervised,) these tokens, row by row;
- ``lines``: the line of each row in its file, a list.

A batch is made on the CPU; `to_device` moves it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, tee
from typing import ClassVar, Protocol

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers import PreTrainedModel

from sft.engine.attention import NO_MASK, common_prefix_tokens
from sft.engine.prefix_tree import PrefixTree, build_tree, varlen_works
from sft.engine.sizes import compiles_each_size, filled_up
from sft.engine.transfer import copied_together

WIDTHS = 16  # with few sizes, the tokens of a group of branches are a multiple of this


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

    def growing_tokens(self, rows: Iterable[EncodedRow]) -> Iterator[int]:
        """`tokens` of the first row, of the first two, and so on; each row is looked at once."""

    def collate(self, rows: Sequence[EncodedRow]) -> dict[str, object]:
        """The batch of ``rows``, on the CPU."""

    def apart(self, rows: Sequence[EncodedRow]) -> list[list[EncodedRow]]:
        """``rows`` in parts that must not be in one batch, in the order given; usually one."""

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

    def growing_tokens(self, rows: Iterable[EncodedRow]) -> Iterator[int]:
        """See `Batching`."""
        for count, longest in enumerate(accumulate(map(len, rows), max), 1):
            yield count * longest

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

    def apart(self, rows: Sequence[EncodedRow]) -> list[list[EncodedRow]]:
        """See `Batching`."""
        return [list(rows)]

    def for_model(self, model: PreTrainedModel, device: torch.device) -> PaddedBatching:
        """See `Batching`."""
        return self


@dataclass(frozen=True)
class PrefixTreeBatching:
    """A prefix tree: what all prompts begin with, once; then the rest of each row.

    The last token of a row is only predicted, so it is not part of the tree.

    Attributes:
        varlen: whether to use variable-length attention (see `sft.engine.prefix_tree.varlen_works`).
        few_sizes: whether to fill the tree up with tokens that nothing attends to, see
            `sft.engine.sizes`.
    """

    varlen: bool = False
    few_sizes: bool = False
    title: ClassVar[str] = "前缀树"
    description: ClassVar[str] = "前缀树：共有的开头每批只算一次"

    def tokens(self, rows: Sequence[EncodedRow]) -> int:
        """See `Batching`."""
        return self._counted(len(rows), sum(map(len, rows)), _shared_tokens(rows))

    def growing_tokens(self, rows: Iterable[EncodedRow]) -> Iterator[int]:
        """See `Batching`."""
        shared: list[int] = []  # what the prompts so far begin with
        total = 0
        for count, row in enumerate(rows, 1):
            total += len(row)
            if count == 1:
                shared = row.prompt_ids
            elif row.prompt_ids[: len(shared)] != shared:
                shared = shared[: common_prefix_tokens([shared, row.prompt_ids])]
            yield self._counted(count, total, len(shared))

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
        layout = build_tree(shared, branches, self.varlen, WIDTHS if self.few_sizes else 1)
        if self.few_sizes and (unused := filled_up(len(input_ids)) - len(input_ids)):
            layout = replace(layout, order=torch.cat((layout.order, layout.order[:1].expand(unused))))
            input_ids += input_ids[:1] * unused
            position_ids += position_ids[:1] * unused
        inputs = {
            "input_ids": torch.tensor([input_ids]),
            "attention_mask": NO_MASK,
            "position_ids": torch.tensor([position_ids]),
            "logits_to_keep": torch.tensor(sources),
        }
        return {
            "inputs": inputs,
            "layout": layout,
            "kept": (0,),
            "labels": _labels(rows),
            "lines": [row.line for row in rows],
        }

    def apart(self, rows: Sequence[EncodedRow]) -> list[list[EncodedRow]]:
        """See `Batching`."""
        return [list(rows)]

    def for_model(self, model: PreTrainedModel, device: torch.device) -> PrefixTreeBatching:
        """See `Batching`."""
        few_sizes = compiles_each_size(device, model.dtype)
        return replace(self, varlen=varlen_works(model, device), few_sizes=few_sizes)

    def _counted(self, rows: int, row_tokens: int, shared: int) -> int:
        """How many tokens so many rows have, with so many tokens in all, of which each begins with the shared ones."""
        tokens = row_tokens - rows - (rows - 1) * shared
        return filled_up(tokens) if self.few_sizes else tokens


@dataclass(frozen=True)
class TreeUpTo:
    """A prefix tree for rows up to a length; a batch with a longer row is padded.

    Attributes:
        limit_tokens: see `sft.engine.served.Served`.
    """

    limit_tokens: int
    padded: PaddedBatching
    tree: PrefixTreeBatching = field(default_factory=PrefixTreeBatching)
    title: ClassVar[str] = PrefixTreeBatching.title
    description: ClassVar[str] = PrefixTreeBatching.description

    def tokens(self, rows: Sequence[EncodedRow]) -> int:
        """See `Batching`."""
        return self._way(rows).tokens(rows)

    def growing_tokens(self, rows: Iterable[EncodedRow]) -> Iterator[int]:
        """See `Batching`."""
        for_longest, for_tree, for_padded = tee(rows, 3)
        longest = accumulate(map(len, for_longest), max)
        ways = self.tree.growing_tokens(for_tree), self.padded.growing_tokens(for_padded)
        for length, in_tree, when_padded in zip(longest, *ways, strict=True):
            yield in_tree if length <= self.limit_tokens else when_padded

    def collate(self, rows: Sequence[EncodedRow]) -> dict[str, object]:
        """See `Batching`."""
        return self._way(rows).collate(rows)

    def apart(self, rows: Sequence[EncodedRow]) -> list[list[EncodedRow]]:
        """See `Batching`. A longer row changes the angles of all rows of its batch."""
        short = [row for row in rows if len(row) <= self.limit_tokens]
        return [part for part in (short, [row for row in rows if len(row) > self.limit_tokens]) if part]

    def for_model(self, model: PreTrainedModel, device: torch.device) -> TreeUpTo:
        """See `Batching`."""
        return replace(self, tree=self.tree.for_model(model, device))

    def _way(self, rows: Sequence[EncodedRow]) -> Batching:
        return self.tree if max(map(len, rows)) <= self.limit_tokens else self.padded


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
    return [piece for part in batching.apart(sorted(rows, key=len)) for piece in _split(part, max_tokens, batching)]


def _split(rows: list[EncodedRow], max_tokens: int, batching: Batching) -> list[list[EncodedRow]]:
    pieces, start = [], 0
    while start < len(rows):  # a process may have no validation rows at all
        stop = start
        for tokens in batching.growing_tokens(map(rows.__getitem__, range(start, len(rows)))):
            if tokens > max_tokens and stop > start:
                break
            stop += 1
        pieces.append(rows[start:stop])
        start = stop
    return pieces
