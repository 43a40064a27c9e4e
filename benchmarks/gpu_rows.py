"""What `benchmarks.gpu` computes: the shape of Qwen2.5-1.5B and a tiny one, and rows of the project's three kinds."""

from __future__ import annotations

import random
from typing import NamedTuple

# config.json of Qwen2.5-1.5B-Instruct, without what only concerns its tokens
QWEN_1_5B = {
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-06,
}
TINY = QWEN_1_5B | {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
# The shapes into which the demo model's weights are copied. Its heads have a size of 32 and share keys in pairs.
WIDENED_1_5B = {
    name: QWEN_1_5B[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
}
WIDENED_TINY = {"vocab_size": 5632, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4}  # its own
FIRST_TOKEN = 2  # 0 is padding, 1 the end


class Kind(NamedTuple):
    """The lengths of one kind of rows in tokens, as measured on real data with Qwen2.5's tokenizer.

    Attributes:
        shared: the beginning that all prompts have in common.
        prompt: the mean of whole prompts.
        spread: by how much of its mean a prompt's own part varies, both ways.
        answer: the mean of answers.
    """

    shared: int
    prompt: int
    spread: float
    answer: int


NER = Kind(shared=105, prompt=132, spread=0.8, answer=19)
KINDS = {
    "ner": NER,
    "many": NER,  # for steps of many rows
    "court": Kind(shared=42, prompt=276, spread=0.7, answer=3),
    "articles": Kind(shared=42, prompt=971, spread=0.2, answer=3),
}


def random_rows(name: str, count: int, vocabulary: int, share: float = 1.0) -> list[dict]:
    """Rows of random tokens with the lengths of a kind, as dicts of ``prompt_ids`` and ``answer_ids``.

    Args:
        name: a key of `KINDS`.
        share: of the lengths; less than 1 for a rehearsal.
    """
    kind, generator = KINDS[name], random.Random(name)
    token = lambda: generator.randrange(FIRST_TOKEN, vocabulary)  # noqa: E731
    beginning = [token() for _ in range(max(2, round(share * kind.shared)))]
    rows = []
    for _ in range(count):
        own = (kind.prompt - kind.shared) * generator.uniform(1 - kind.spread, 1 + kind.spread)
        answer = kind.answer * generator.uniform(0.5, 1.5)
        rows.append(
            {
                "prompt_ids": beginning + [token() for _ in range(max(1, round(share * own)))],
                "answer_ids": [token() for _ in range(max(1, round(share * answer)))],
            }
        )
    return rows
