"""Predictions: options scored in one pass over a tree of them, entities by constrained greedy decoding; in order.

Everything that predicts (evaluation while training, `predict.py`, the notebooks) goes through `predict`.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from sft.console import say_once
from sft.decoding.automaton import answer_format, can_write
from sft.decoding.constrained import Bounds, decode
from sft.decoding.vocabulary import Vocabulary, vocabulary_of
from sft.engine.attention import at_least_float32
from sft.engine.option_tree import score
from sft.errors import RowError
from sft.model.encoding import encode_prompts, encode_texts, terminator_id
from sft.tasks.task import Task

logger = logging.getLogger(__name__)

WINDOW_BATCHES = 16  # rows are sorted by length within a window of so many batches, to pad less


@dataclass(frozen=True)
class Limits:
    """How much of a record is read, and how much may be answered, in tokens; and how many rows run together.

    Attributes:
        max_new_tokens: of an answer in free text; in a constrained one no entity begins after so many.
        constrained: only well-formed answers; false for what the model says by itself, parsed.
        max_tokens: how many tokens may be in memory together; None: as many as ``batch_size`` rows have, and of rows
            with options ``batch_size`` × ``max_length``.
    """

    max_length: int
    max_new_tokens: int
    batch_size: int
    constrained: bool = True
    max_tokens: int | None = None


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    records: Iterable[dict],
    limits: Limits,
) -> Iterator[dict]:
    """Yield the prediction of each record, in order; greedy, so the same records give the same predictions.

    A record over ``limits.max_length`` is cut or split as in training. A record that cannot be made to fit yields
    ``{"error": reason}``.
    """
    was_training = model.training
    model.eval()
    try:
        for window in groups(records, WINDOW_BATCHES * limits.batch_size):
            yield from _predict_window(model, tokenizer, task, window, limits)
    finally:
        model.train(was_training)


def groups(items: Iterable, size: int) -> Iterator[tuple]:
    """Consecutive tuples of up to ``size`` items (itertools.batched is Python 3.12)."""
    iterator = iter(items)
    while group := tuple(islice(iterator, size)):
        yield group


def _predict_window(model, tokenizer, task: Task, records: Sequence[dict], limits: Limits) -> list[dict]:
    whole_prompts = encode_prompts(records, task, tokenizer)
    pieces_of = [
        _fit_one(record, len(prompt), task, tokenizer, limits)
        for record, prompt in zip(records, whole_prompts, strict=True)
    ]
    pieces = [piece for pieces in pieces_of if isinstance(pieces, list) for piece in pieces]
    known = {id(record): prompt for record, prompt in zip(records, whole_prompts, strict=True)}
    new = iter(encode_prompts([piece for piece in pieces if id(piece) not in known], task, tokenizer))
    prompts = [known.get(id(piece)) or next(new) for piece in pieces]
    by_length = sorted(range(len(pieces)), key=lambda index: len(prompts[index]))
    answers = _answer(
        model, tokenizer, task, [pieces[index] for index in by_length], [prompts[index] for index in by_length], limits
    )
    results: list[dict] = [{}] * len(pieces)
    for index, result in zip(by_length, answers, strict=True):
        results[index] = result
    remaining = iter(results)
    return [
        task.merge(pieces, [next(remaining) for _ in pieces]) if isinstance(pieces, list) else {"error": str(pieces)}
        for pieces in pieces_of
    ]


def _fit_one(record: dict, prompt_tokens: int, task: Task, tokenizer, limits: Limits) -> list[dict] | RowError:
    """The record's pieces that leave room for the answer (the record itself if it does), or why there are none."""
    options = task.options(record)
    if options is None:
        room_tokens = limits.max_new_tokens
    else:
        room_tokens = 1 + max(len(ids) for ids in encode_texts(list(options), tokenizer))
    if prompt_tokens + room_tokens <= limits.max_length:
        return [record]
    if options is None:  # an answer is about as long as its sentence at most: half of what the instruction leaves
        instruction_tokens = len(encode_prompts([record | {"text": ""}], task, tokenizer)[0])
        room_tokens = min(room_tokens, (limits.max_length - instruction_tokens) // 2)
    try:
        return task.pieces(
            record,
            lambda piece: len(encode_prompts([piece], task, tokenizer)[0]) + room_tokens,
            limits.max_length,
        )
    except RowError as error:
        return error


def _answer(model, tokenizer, task: Task, records, prompts: list[list[int]], limits: Limits) -> Iterator[dict]:
    """The results of records in the order given, the shortest first."""
    if not records:
        return
    chooses = task.options(records[0]) is not None
    vocabulary = None if chooses or not limits.constrained else _vocabulary_for(tokenizer, task)
    if vocabulary is not None:
        yield from _extract(model, vocabulary, task, records, prompts, limits)
        return
    for rows in groups(range(len(records)), limits.batch_size if chooses else _raw_batch_size(prompts, limits)):
        batch = [records[row] for row in rows], [prompts[row] for row in rows]
        if chooses and limits.constrained:
            yield from _choose(model, tokenizer, task, *batch, limits)
        else:
            yield from _generate(model, tokenizer, task, *batch, limits)


def _raw_batch_size(prompts: Sequence[list[int]], limits: Limits) -> int:
    if limits.max_tokens is None:
        return limits.batch_size
    return max(1, min(limits.batch_size, limits.max_tokens // (len(prompts[-1]) + limits.max_new_tokens)))


def _vocabulary_for(tokenizer, task: Task) -> Vocabulary | None:
    """The tokenizer's vocabulary; None, said once, where constrained answers cannot be written with it."""
    vocabulary = vocabulary_of(tokenizer)
    if vocabulary is None or not can_write(answer_format(task.labels), vocabulary):
        say_once(logger, f"{tokenizer.name_or_path}：这种分词器写不出受约束的答案，改为自由生成再解析")
        return None
    return vocabulary


def _extract(model, vocabulary: Vocabulary, task: Task, records, prompts, limits: Limits) -> Iterator[dict]:
    """The entities of each record, by a well-formed answer."""
    bounds = Bounds(limits.batch_size, limits.max_new_tokens, limits.max_tokens)
    texts = [record["text"] for record in records]
    answers = decode(model, vocabulary, task.labels, texts, prompts, bounds)
    for record, answer in zip(records, answers, strict=True):
        result = task.parse(answer.text, record)
        for entity in result["entities"]:
            entity["score"] = answer.scores[entity.pop("line")]
        yield result | {"answer": answer.text}


def _choose(model, tokenizer, task: Task, records, prompts: list[list[int]], limits: Limits) -> list[dict]:
    """The most probable option of each record, with the probability of every option (renormalised over them)."""
    results = []
    options_of = [list(task.options(record)) for record in records]
    max_tokens = limits.max_tokens or limits.batch_size * limits.max_length
    scores_of = score_options(model, tokenizer, prompts, options_of, max_tokens)
    for options, log_probabilities in zip(options_of, scores_of, strict=True):
        probabilities = log_probabilities.softmax(-1).tolist()
        best = max(range(len(options)), key=probabilities.__getitem__)
        results.append(
            {
                "label": options[best],
                "score": probabilities[best],
                "scores": dict(zip(options, probabilities, strict=True)),
                "unparsable": False,
            }
        )
    return results


def score_options(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    options_of: Sequence[Sequence[str]],
    max_tokens: int | None = None,
) -> list[torch.Tensor]:
    """Log-probability of each option, terminator included, as the answer to each prompt; one tensor a row."""
    end = terminator_id(tokenizer)
    branches_of = [[[*ids, end] for ids in encode_texts(options, tokenizer)] for options in options_of]
    return score(model, prompts, branches_of, max_tokens)


class _ChosenProbability(LogitsProcessor):
    """Notes the log-probability of the token that greedy decoding is about to take."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []  # one tensor of shape (batch,) a step

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.steps.append(at_least_float32(scores).log_softmax(-1).amax(-1).cpu())
        return scores


@torch.no_grad()
def _generate(model, tokenizer, task: Task, records, prompts: list[list[int]], limits: Limits) -> list[dict]:
    """Greedy answers, parsed; the ``score`` is a label's probability, or an entity's line's given what precedes it."""
    end = terminator_id(tokenizer)
    width = max(len(ids) for ids in prompts)
    input_ids = torch.full((len(prompts), width), tokenizer.pad_token_id)
    attention_mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, ids in enumerate(prompts):
        input_ids[row, width - len(ids) :] = torch.tensor(ids)
        attention_mask[row, width - len(ids) :] = 1
    chosen = _ChosenProbability()
    output_ids = model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=attention_mask.to(model.device),
        logits_processor=LogitsProcessorList([chosen]),
        max_new_tokens=limits.max_new_tokens,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
    )[:, width:].tolist()
    log_probabilities = torch.stack(chosen.steps, dim=1).tolist()
    return [
        _parse_answer(tokenizer, task, record, answer_ids, steps, end)
        for record, answer_ids, steps in zip(records, output_ids, log_probabilities, strict=True)
    ]


def _parse_answer(tokenizer, task: Task, record: dict, answer_ids: list[int], steps: list[float], end: int) -> dict:
    finished = end in answer_ids
    answer_ids = answer_ids[: answer_ids.index(end)] if finished else answer_ids
    answer = tokenizer.decode(answer_ids, skip_special_tokens=False)
    result = task.parse(answer, record)
    result["unparsable"] = result["unparsable"] or not finished
    result["answer"] = answer
    if "label" in result:  # an answer of one piece
        result["score"] = math.exp(sum(steps[: len(answer_ids) + finished]))
        return result
    line_scores = _line_scores(tokenizer, answer, answer_ids, steps)
    for entity in result["entities"]:
        entity["score"] = line_scores[entity.pop("line")]
    return result


def _line_scores(tokenizer, answer: str, answer_ids: list[int], steps: list[float]) -> dict[int, float]:
    """Probability of each line of the stripped answer: the product over its tokens, its newline's included."""
    before = answer[: len(answer) - len(answer.lstrip())].count("\n")  # empty lines that stripping takes off
    totals: dict[int, float] = defaultdict(float)
    newlines = 0
    for token_id, log_probability in zip(answer_ids, steps, strict=False):
        totals[max(0, newlines - before)] += log_probability
        newlines += tokenizer.decode([token_id]).count("\n")
    return {line: math.exp(total) for line, total in totals.items()}
