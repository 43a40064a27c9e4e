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

from sft.attention import sees_everything
from sft.automaton import answer_format, can_write
from sft.constrained import Bounds, decode
from sft.encoding import Task, encode_prompts, encode_texts, terminator_id
from sft.ragged import say_once
from sft.records import RowError
from sft.vocabulary import Vocabulary, vocabulary_of

logger = logging.getLogger(__name__)

WINDOW_BATCHES = 16  # rows are sorted by length within a window of so many batches, to pad less


@dataclass(frozen=True)
class Limits:
    """How much of a record is read, and how much may be answered, in tokens; and how many rows run together.

    Attributes:
        max_new_tokens: of an answer in free text; in a constrained one no entity begins after so many.
        constrained: only well-formed answers; false for what the model says by itself.
        max_tokens: how many tokens may be in memory together; None leaves it to the other three.
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
    pieces_of = _fit(records, task, tokenizer, limits)
    pieces = [piece for pieces in pieces_of if isinstance(pieces, list) for piece in pieces]
    prompts = encode_prompts(pieces, task, tokenizer)
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


def _fit(records: Sequence[dict], task: Task, tokenizer, limits: Limits) -> list[list[dict] | RowError]:
    """Each record's pieces that leave room for the answer, or why there are none."""
    prompts = encode_prompts(records, task, tokenizer)
    return [
        _fit_one(record, len(prompt), task, tokenizer, limits) for record, prompt in zip(records, prompts, strict=True)
    ]


def _fit_one(record: dict, prompt_tokens: int, task: Task, tokenizer, limits: Limits) -> list[dict] | RowError:
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
    free_text = task.options(records[0]) is None
    if free_text and limits.constrained and (vocabulary := _vocabulary_for(tokenizer, task)) is not None:
        yield from _extract(model, vocabulary, task, records, prompts, limits)
        return
    for start in range(0, len(records), limits.batch_size):
        batch = records[start : start + limits.batch_size], prompts[start : start + limits.batch_size]
        if free_text:
            yield from _generate(model, tokenizer, task, *batch, limits)
        else:
            yield from _choose(model, tokenizer, task, *batch)


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


def _choose(model, tokenizer, task: Task, records, prompts: list[list[int]]) -> list[dict]:
    """The most probable option of each record, with the probability of every option (renormalised over them)."""
    results = []
    options_of = [list(task.options(record)) for record in records]
    for options, log_probabilities in zip(
        options_of, score_options(model, tokenizer, prompts, options_of), strict=True
    ):
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


@torch.no_grad()
def score_options(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    options_of: Sequence[Sequence[str]],
) -> list[torch.Tensor]:
    """Log-probability of each option, terminator included, as the answer to each prompt; one tensor a row.

    A row is a tree: its prompt, then every option as a branch that sees the prompt and itself only, with the
    positions it would have alone. So one pass over prompt + options gives what a pass over each full sequence would.
    """
    end = terminator_id(tokenizer)
    branches_of = [[[*ids, end] for ids in encode_texts(options, tokenizer)] for options in options_of]
    longest = max(len(ids) + max(map(len, branches)) - 1 for ids, branches in zip(prompts, branches_of, strict=True))
    if not sees_everything(model, longest):
        return [_score_separately(model, ids, branches) for ids, branches in zip(prompts, branches_of, strict=True)]
    trees = [_tree(ids, branches) for ids, branches in zip(prompts, branches_of, strict=True)]
    width = max(len(ids) for ids, _, _ in trees)
    kept = 1 + max(sum(len(branch) - 1 for branch in branches) for branches in branches_of)
    input_ids = torch.full((len(trees), width), tokenizer.pad_token_id)
    position_ids = torch.zeros((len(trees), width), dtype=torch.long)
    sees = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)  # padding sees itself: no empty softmax row
    for row, (ids, positions, mask) in enumerate(trees):
        input_ids[row, width - len(ids) :] = torch.tensor(ids)
        position_ids[row, width - len(ids) :] = torch.tensor(positions)
        sees[row, width - len(ids) :, width - len(ids) :] = mask
    logits = model(
        input_ids=input_ids.to(model.device),
        attention_mask=sees[:, None].to(model.device),
        position_ids=position_ids.to(model.device),
        logits_to_keep=kept,
        use_cache=False,
    ).logits
    return [_branch_scores(row_logits, branches) for row_logits, branches in zip(logits, branches_of, strict=True)]


def _tree(prompt: list[int], branches: list[list[int]]) -> tuple[list[int], list[int], torch.Tensor]:
    """Token ids, position ids and who sees whom of a prompt with branches; a branch's last token is never an input."""
    ids, positions = list(prompt), list(range(len(prompt)))
    length = len(prompt) + sum(len(branch) - 1 for branch in branches)
    sees = torch.zeros((length, length), dtype=torch.bool)
    sees[:, : len(prompt)] = True
    sees[: len(prompt), : len(prompt)].tril_()
    for branch in branches:
        start, size = len(ids), len(branch) - 1
        ids += branch[:-1]
        positions += range(len(prompt), len(prompt) + size)
        sees[start : start + size, start : start + size] = torch.ones((size, size), dtype=torch.bool).tril()
    return ids, positions, sees


def _branch_scores(logits: torch.Tensor, branches: list[list[int]]) -> torch.Tensor:
    """Each branch's log-probability from the logits at the row's end: the prompt's last token, then the branches."""
    size = 1 + sum(len(branch) - 1 for branch in branches)
    log_probabilities = _log_softmax(logits[-size:]).cpu()
    scores, start = [], 1
    for branch in branches:
        sources = [0, *range(start, start + len(branch) - 1)]
        scores.append(log_probabilities[sources, branch].sum())
        start += len(branch) - 1
    return torch.stack(scores)


@torch.no_grad()
def _score_separately(model: PreTrainedModel, prompt: list[int], branches: list[list[int]]) -> torch.Tensor:
    """Each branch's log-probability from a pass over its own full sequence: for models no tree mask can express."""
    scores = []
    for branch in branches:
        ids = torch.tensor([prompt + branch[:-1]], device=model.device)
        logits = model(input_ids=ids, logits_to_keep=len(branch), use_cache=False).logits[0]
        scores.append(_log_softmax(logits).cpu()[range(len(branch)), branch].sum())
    return torch.stack(scores)


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """In float32 or wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


class _ChosenProbability(LogitsProcessor):
    """Notes the log-probability of the token that greedy decoding is about to take."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []  # one tensor of shape (batch,) a step

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.steps.append(_log_softmax(scores).amax(-1).cpu())
        return scores


@torch.no_grad()
def _generate(model, tokenizer, task: Task, records, prompts: list[list[int]], limits: Limits) -> list[dict]:
    """Greedy answers, parsed; an entity's ``score`` is the probability of its line given what precedes it."""
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
