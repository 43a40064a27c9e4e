"""Answers that the base model can hardly learn to write, because it was never trained on some of their tokens.

The output layer is not trained, and the rows of such tokens are all alike in it: whatever LoRA does before it cannot
single one of them out. A loss that stays high then looks like a fault of the data or of the learning rate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from sft.engine.batches import EncodedRow
from sft.model.trained_tokens import untrained_ids

LEAST_SHARE = 0.1  # of the answers; a few rare names are no reason to look for another base model
MOST_TOKENS = 2000  # the most frequent ones of all answers are looked at
SHOWN = 5


def advice_on_untrained_answers(
    rows: Sequence[EncodedRow], tokenizer: PreTrainedTokenizerBase, base_folder: Path
) -> str | None:
    """One line for the user if many answers have tokens that the base model has never seen; None otherwise."""
    answers = [set(row.answer_ids[:-1]) for row in rows]  # the end has a warning of its own
    frequent = [index for index, _ in Counter(chain.from_iterable(answers)).most_common(MOST_TOKENS)]
    untrained = untrained_ids(base_folder, tokenizer, frequent)
    hit = sum(not untrained.isdisjoint(answer) for answer in answers)
    if hit < LEAST_SHARE * len(rows):
        return None
    texts = [tokenizer.decode([index]).strip() for index in frequent if index in untrained]
    shown = [text for text in texts if text and text.isprintable() and "\ufffd" not in text][
        :SHOWN
    ]  # whole characters
    examples = f"（如 {'、'.join(shown)}）" if shown else ""
    return (
        f"{hit} 条（{hit / len(rows):.0%}）的答案里有底座没有学过的 token{examples}，"
        "很难学会写；请换一个底座（演示模型只认得自带数据那样的字词），是标签的就在转换时用 --labels 换个名字"
    )
