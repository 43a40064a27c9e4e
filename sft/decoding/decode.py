"""From records to results. Options are scored together in one pass; entities are decoded greedily under a constraint.

Evaluation during training, `predict.py` and the notebooks all use this module.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from sft.console import say_once
from sft.decoding import inline, inline_answers
from sft.decoding.automaton import answer_format, can_write
from sft.decoding.constrained import Answer, Bounds, decode
from sft.decoding.limits import Limits
from sft.decoding.pieces import Piece, fit, read_on
from sft.decoding.room import Room
from sft.decoding.vocabulary import Vocabulary, vocabulary_of
from sft.engine.attention import at_least_float32
from sft.engine.option_scores import LEAST_OPTION_TOKENS, score
from sft.errors import RowError
from sft.model.encoding import encode_texts, terminator_id
from sft.tasks.task import Task

logger = logging.getLogger(__name__)

WINDOW_BATCHES = 16  # within a window of so many batches, rows are sorted by length: less padding


def rows_per_window(limits: Limits) -> int:
    """How many rows are predicted together. The numbers of a row depend on no row outside its window."""
    return WINDOW_BATCHES * limits.batch_size


def in_groups(items: Iterable, size: int) -> Iterator[tuple]:
    """Consecutive tuples of up to ``size`` items (`itertools.batched` needs Python 3.12)."""
    iterator = iter(items)
    while group := tuple(islice(iterator, size)):
        yield group


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    records: Iterable[dict],
    limits: Limits,
    room: Room | None = None,
) -> Iterator[dict]:
    """Yield the result of each record, in order.

    Decoding is greedy, so the same records give the same results. A record that is too long is cut, or read in pieces
    (see `fit`); one that cannot be made to fit yields ``{"error": reason}``. A result has ``cut`` if the answer has no
    end, or if only ``read_characters`` of the text were read, of which the last ``read_at_end`` are those at its end.

    Args:
        room: what has fitted into memory so far; None if nothing is known. When memory runs out, the passes shrink.

    Raises:
        RunError: a single row does not fit into memory.
    """
    room = room or Room()
    for window in in_groups(records, rows_per_window(limits)):
        yield from predict_together(model, tokenizer, task, window, limits, room)


def predict_together(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    records: Sequence[dict],
    limits: Limits,
    room: Room,
) -> list[dict]:
    """The results of one window of records, as `predict` gives them."""
    pieces_of = fit(records, task, tokenizer, limits)
    pieces = [piece for pieces in pieces_of if not isinstance(pieces, RowError) for piece in pieces]
    answer = partial(_results, model, tokenizer, task, limits, room)
    results = answer(pieces)
    if limits.constrained:  # an unconstrained answer is shown as the model gives it
        results = read_on(pieces, results, task, tokenizer, answer)
    remaining = iter(results)
    return [
        {"error": str(pieces)}
        if isinstance(pieces, RowError)
        else _whole(record, pieces, [next(remaining) for _ in pieces], task)
        for record, pieces in zip(records, pieces_of, strict=True)
    ]


def _whole(record: dict, pieces: Sequence[Piece], results: Sequence[dict], task: Task) -> dict:
    """The result of a record from those of its pieces; one that was not read to its end says how much was."""
    result = task.merge([piece.record for piece in pieces], results)
    read_characters = sum(piece.record.get("read_characters", len(piece.record["text"])) for piece in pieces)
    if read_characters < len(record["text"]):
        result = result | {"cut": True, "read_characters": read_characters}
        if at_end := pieces[-1].record.get("read_at_end"):
            result["read_at_end"] = at_end
    return result


def _results(model, tokenizer, task: Task, limits: Limits, room: Room, pieces: Sequence[Piece]) -> list[dict]:
    """The results of pieces, in order. They run sorted by length."""
    by_length = sorted(range(len(pieces)), key=lambda index: len(pieces[index].prompt_ids))
    with _evaluating(model):
        answers = list(_answer(model, tokenizer, task, [pieces[index] for index in by_length], limits, room))
    results: list[dict] = [{}] * len(pieces)
    for index, result in zip(by_length, answers, strict=True):
        results[index] = result
    return results


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Put the model into evaluation mode, and back into its own mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _answer(model, tokenizer, task: Task, pieces: Sequence[Piece], limits: Limits, room: Room) -> Iterator[dict]:
    """The results of pieces, in order. The pieces come sorted by length, the shortest first."""
    if not pieces:
        return
    chooses = task.options(pieces[0].record) is not None
    lists_entities = task.answers == "entities" and not chooses
    vocabulary = _vocabulary_for(tokenizer, task) if lists_entities and limits.constrained else None
    if vocabulary is not None:
        yield from _extract(model, vocabulary, task, pieces, limits, room)
        return
    scores = chooses and limits.constrained
    size = limits.batch_size if chooses else _raw_batch_size(pieces, limits)
    while pieces:
        batch = pieces[: room.of(size)]
        if scores:
            work = partial(_choose_option, model, tokenizer, task, batch, limits, room)
        else:
            work = partial(_generate, model, tokenizer, task, batch, limits)
        # A row's options can be scored in several passes.
        divisible = len(batch) > 1 or (scores and _pass_tokens(limits, room) > limits.max_length + LEAST_OPTION_TOKENS)
        results = room.tried(work, divisible=divisible)
        if results is not None:
            yield from results
            pieces = pieces[len(batch) :]


def _is_inline(task: Task) -> bool:
    """Whether an answer repeats the text, with marks around the entities."""
    return task.answer_format == "inline"


def _raw_batch_size(pieces: Sequence[Piece], limits: Limits) -> int:
    if limits.max_tokens is None:
        return limits.batch_size
    longest_tokens = len(pieces[-1].prompt_ids) + limits.max_new_tokens
    return max(1, min(limits.batch_size, limits.max_tokens // longest_tokens))


def _vocabulary_for(tokenizer, task: Task) -> Vocabulary | None:
    """The tokenizer's vocabulary; None, with one log line, if it cannot write constrained answers."""
    vocabulary = vocabulary_of(tokenizer)
    if vocabulary is None or not (
        inline.can_write(task.labels, vocabulary)
        if _is_inline(task)
        else can_write(answer_format(task.labels), vocabulary)
    ):
        say_once(logger, f"{tokenizer.name_or_path}：这种分词器写不出受约束的答案，改为自由生成再解析")
        return None
    return vocabulary


def _extract(
    model, vocabulary: Vocabulary, task: Task, pieces: Sequence[Piece], limits: Limits, room: Room
) -> Iterator[dict]:
    """The entities of each piece, from a well-formed answer.

    The pieces of long texts are many more than their rows. So no more than a window of them run together: what does
    not fit into memory is then not all to be done again.
    """
    for together in in_groups(pieces, rows_per_window(limits)):
        answers = _decoded(model, vocabulary, task, together, limits, room)
        for piece, answer in zip(together, answers, strict=True):
            result = task.parse(answer.text, piece.record)
            for entity in result["entities"]:
                entity["score"] = answer.scores[entity["line"]]
            if _is_inline(task):
                inline_answers.leave_out_overruled(result, answer)
            for entity in result["entities"]:
                del entity["line"]
            yield result | {"answer": answer.text} | ({"cut": True} if answer.cut else {})


def _decoded(
    model, vocabulary: Vocabulary, task: Task, pieces: Sequence[Piece], limits: Limits, room: Room
) -> Sequence[Answer]:
    """The well-formed answer about each piece; the passes shrink until they fit into memory."""
    texts = [piece.record["text"] for piece in pieces]
    prompts = [piece.prompt_ids for piece in pieces]
    decode_all = inline_answers.decode if _is_inline(task) else decode
    answers = None
    while answers is None:
        rows = room.of(min(limits.batch_size, len(pieces)))
        bounds = Bounds(rows, limits.max_new_tokens, limits.max_tokens and room.of(limits.max_tokens))
        work = partial(decode_all, model, vocabulary, task.labels, texts, prompts, bounds)
        answers = room.tried(work, divisible=rows > 1)
    return answers


def _pass_tokens(limits: Limits, room: Room) -> int:
    """The tokens of one scoring pass, at most."""
    return room.of(limits.max_tokens or limits.batch_size * limits.max_length)


def _choose_option(model, tokenizer, task: Task, pieces: Sequence[Piece], limits: Limits, room: Room) -> list[dict]:
    """The most probable option of each piece, and the probability of every option (they sum to 1)."""
    results = []
    prompts = [piece.prompt_ids for piece in pieces]
    options_of = [list(task.options(piece.record)) for piece in pieces]
    scores_of = score_options(model, tokenizer, prompts, options_of, _pass_tokens(limits, room))
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
    """Log-probability of each option as the answer to its prompt, terminator included.

    Returns:
        For each prompt a tensor of shape (options,).
    """
    end = terminator_id(tokenizer)
    branches: dict[tuple[str, ...], list[list[int]]] = {}  # rows mostly have the same options
    for options in set(map(tuple, options_of)):
        branches[options] = [[*ids, end] for ids in encode_texts(options, tokenizer)]
    return score(model, prompts, [branches[tuple(options)] for options in options_of], max_tokens)


class _ChosenProbability(LogitsProcessor):
    """Keeps the log-probability of the token that greedy decoding takes at each step."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []  # at each step a tensor of shape (batch,)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.steps.append(at_least_float32(scores).log_softmax(-1).amax(-1).cpu())
        return scores


@torch.no_grad()
def _generate(model, tokenizer, task: Task, pieces: Sequence[Piece], limits: Limits) -> list[dict]:
    """Unconstrained greedy answers, parsed.

    ``score`` is the probability of the whole answer for a label, and that of its line or mark, given the answer before
    it, for an entity.
    """
    end = terminator_id(tokenizer)
    prompts = [piece.prompt_ids for piece in pieces]
    width = max(len(ids) for ids in prompts)
    input_ids = torch.full((len(prompts), width), tokenizer.pad_token_id)
    attention_mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, ids in enumerate(prompts):
        input_ids[row, width - len(ids) :] = torch.tensor(ids)
        attention_mask[row, width - len(ids) :] = 1
    most_tokens = [limits.max_new_tokens] * len(pieces)
    if _is_inline(task):
        texts = [piece.record["text"] for piece in pieces]
        most_tokens = inline_answers.rooms_of(texts, tokenizer, limits.max_new_tokens)
    chosen = _ChosenProbability()
    output_ids = model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=attention_mask.to(model.device),
        logits_processor=LogitsProcessorList([chosen]),
        max_new_tokens=max(most_tokens),
        do_sample=False,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
    )[:, width:].tolist()
    log_probabilities = torch.stack(chosen.steps, dim=1).tolist()
    return [
        _parse_answer(tokenizer, task, piece.record, answer_ids[:most], steps, end)
        for piece, answer_ids, most, steps in zip(pieces, output_ids, most_tokens, log_probabilities, strict=True)
    ]


def _parse_answer(tokenizer, task: Task, record: dict, answer_ids: list[int], steps: list[float], end: int) -> dict:
    finished = end in answer_ids
    answer_ids = answer_ids[: answer_ids.index(end)] if finished else answer_ids
    answer = tokenizer.decode(answer_ids, skip_special_tokens=False)
    result = task.parse(answer, record)
    result["unparsable"] = result["unparsable"] or not finished
    result["answer"] = answer
    if task.answers == "label":  # the whole answer is the label
        result["score"] = math.exp(sum(steps[: len(answer_ids) + finished]))
        return result
    if not finished:
        result["cut"] = True
    scores_of = inline_answers.mark_scores if _is_inline(task) else _line_scores
    line_scores = scores_of(tokenizer, answer, answer_ids, steps)
    for entity in result["entities"]:
        entity["score"] = line_scores[entity.pop("line")]
    return result


def _line_scores(tokenizer, answer: str, answer_ids: list[int], steps: list[float]) -> dict[int, float]:
    """Probability of each line of the stripped answer: the product over its tokens, including its newline."""
    before = answer[: len(answer) - len(answer.lstrip())].count("\n")  # empty lines that `strip` removes
    totals: dict[int, float] = defaultdict(float)
    newlines = 0
    for token_id, log_probability in zip(answer_ids, steps, strict=False):
        totals[max(0, newlines - before)] += log_probability
        newlines += tokenizer.decode([token_id]).count("\n")
    return {line: math.exp(total) for line, total in totals.items()}
