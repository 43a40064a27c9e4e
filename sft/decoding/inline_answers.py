"""Inline answers about many texts: decoded under the rules of the format, or scored where the model answered freely.

The answer repeats its text, so it is as long as that and its marks; JSON lines are as long as the names in it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft.decoding.constrained import Answer, Bounds, decode_by
from sft.decoding.inline import InlineRules
from sft.decoding.inline_drafts import InlineDrafter
from sft.decoding.vocabulary import Vocabulary
from sft.model.encoding import encode_texts
from sft.tasks.entity_marks import marks_in

LEAST_MARK_TOKENS = 64  # room for marks, however short the text


def room_tokens(text_tokens: int, max_new_tokens: int) -> int:
    """The tokens that an answer about a text of so many tokens may need: the text again, and as many for marks."""
    return min(max_new_tokens, 2 * text_tokens + LEAST_MARK_TOKENS)


def rooms_of(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> list[int]:
    """`room_tokens` of each text: a model that answers freely and goes round in circles is not heard to the end."""
    return [room_tokens(len(ids), max_new_tokens) for ids in encode_texts(list(texts), tokenizer)]


def decode(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    labels: Sequence[str],
    texts: Sequence[str],
    prompts: Sequence[list[int]],
    bounds: Bounds,
) -> list[Answer]:
    """The greedy well-formed inline answer to each prompt about its text. What it lacks of the text is put back."""
    room = [room_tokens(len(token_ids), bounds.answer_tokens) for token_ids in vocabulary.encode(list(texts))]
    rules = [InlineRules(text, labels, vocabulary, most) for text, most in zip(texts, room, strict=True)]
    answers = decode_by(rules, InlineDrafter(vocabulary, labels), model, vocabulary, prompts, bounds)
    return [answer._replace(text=rule.whole(answer.text)) for rule, answer in zip(rules, answers, strict=True)]


def leave_out_overruled(result: dict, answer: Answer) -> None:
    """Take out of a result the entities in whose marks the model would rather have written what is not in the text.

    They count as ``invented``: that is what the model would have done, had the rules allowed it.
    """
    kept = [entity for entity in result["entities"] if entity["line"] not in answer.overruled]
    result["problems"]["invented"] += len(result["entities"]) - len(kept)
    result["entities"] = kept


def mark_scores(
    tokenizer: PreTrainedTokenizerBase, answer: str, answer_ids: Sequence[int], steps: Sequence[float]
) -> dict[int, float]:
    """Probability of each mark of an answer: the product over the tokens that hold a part of it.

    Args:
        steps: the log-probability of each token of the answer.
    """

    def written(tokens: int) -> int:
        """Whole characters in the first tokens."""
        return len(tokenizer.decode(list(answer_ids[:tokens]), skip_special_tokens=False).rstrip("\ufffd"))

    counts = range(len(answer_ids) + 1)
    scores = {}
    for number, mark in enumerate(marks_in(answer)):
        first = bisect_right(counts, mark.begin, key=written) - 1
        after = bisect_left(counts, mark.end, key=written)
        scores[number] = math.exp(sum(steps[first:after]))
    return scores
