"""What a GGUF file answers, through llama-cpp-python: its own chat template, tokenizer and stop token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from llama_cpp import Llama
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from sft.console import progress
from sft.export.merged import scores_leg
from sft.export.proof import Leg, compare
from sft.export.reference import Reference
from sft.export.source import Source

LEAST = {"f32": 0.99, "f16": 0.99, "bf16": 0.98, "q8_0": 0.9}  # share of equal answers
MOST_SCORE = {"f32": 0.02, "f16": 0.02, "bf16": 0.1, "q8_0": 0.1}  # see `sft.export.merged.MOST_SCORE`
SCORED = 50  # rows whose answers' log-probabilities are compared: each needs the logits of the whole row


def answers_legs(
    path: Path, source: Source, reference: Reference, number_type: str, least: float | None
) -> tuple[list[Leg], list[str]]:
    """The comparisons of prompts, answers and scores, and the answers as texts."""
    longest = max(len(prompt) for prompt in reference.prompts) + source.max_new_tokens + 8
    model = Llama(str(path), n_ctx=longest, n_batch=min(512, longest), logits_all=False, verbose=False, seed=0)
    prompts = [rendered(model, chat) for chat in reference.messages]
    rows = list(range(len(prompts)))
    texts = [answer(model, reference.messages[row], source.max_new_tokens) for row in progress(rows, "GGUF 的回答")]
    model.close()
    scored = rows[:SCORED]
    model = Llama(str(path), n_ctx=longest, n_batch=min(512, longest), logits_all=True, verbose=False, seed=0)
    scores = [mean_log_probability(model, reference.prompts[row], reference.answers[row]) for row in scored]
    model.close()
    least = LEAST[number_type] if least is None else least
    legs = [
        compare("prompts", reference.prompts, prompts),
        compare("answers", reference.texts, texts, least),
        scores_leg(reference.scores[:SCORED], scores, MOST_SCORE[number_type]),
    ]
    return legs, texts


def rendered(model: Llama, chat: list[dict[str, str]]) -> list[int]:
    """The ids of a prompt as `Llama.create_chat_completion` makes them, by the template that the file holds."""
    token = {name: _token(model, name) for name in ("bos", "eos")}
    formatter = Jinja2ChatFormatter(
        template=model.metadata["tokenizer.chat_template"], eos_token=token["eos"], bos_token=token["bos"]
    )
    result = formatter(messages=chat)
    return model.tokenize(result.prompt.encode(), add_bos=not result.added_special, special=True)


def _token(model: Llama, name: str) -> str:
    index = int(model.metadata.get(f"tokenizer.ggml.{name}_token_id", -1))
    return model._model.token_get_text(index) if index >= 0 else ""


def answer(model: Llama, chat: list[dict[str, str]], most: int) -> str:
    """The greedy answer, as anybody would ask for it."""
    done = model.create_chat_completion(chat, temperature=0.0, repeat_penalty=1.0, max_tokens=most)
    return done["choices"][0]["message"]["content"] or ""


def mean_log_probability(model: Llama, prompt: Sequence[int], answer_ids: Sequence[int]) -> float:
    """The mean log-probability of an answer's tokens. The model must keep all logits."""
    model.reset()
    model.eval([*prompt, *answer_ids])
    logits = np.asarray(model.scores[len(prompt) - 1 : len(prompt) + len(answer_ids) - 1], dtype=np.float64)
    largest = logits.max(-1, keepdims=True)
    logs = logits - largest - np.log(np.exp(logits - largest).sum(-1, keepdims=True))
    mean = float(logs[np.arange(len(answer_ids)), list(answer_ids)].mean())
    return mean if math.isfinite(mean) else math.nan
