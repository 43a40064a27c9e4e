"""What the model reads of a record: mostly all; of a long article what fits; a long text with entities in pieces.

Evaluation during training, `predict.py` and the exports all cut by `fit`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from sft.console import say_once
from sft.decoding.inline_answers import LEAST_MARK_TOKENS
from sft.decoding.limits import Limits
from sft.errors import RowError
from sft.model.encoding import encode_each_prompt, encode_prompts, encode_texts, token_starts, with_known_length
from sft.tasks.long_texts import Span, place_to_go_on, spans_to_read
from sft.tasks.task import Task

logger = logging.getLogger(__name__)

LONG_PIECE_TOKENS = 256  # a piece of more is long, where it is not known how long the texts of training were
MOST_RESTS = 4  # of one piece are read: a model that would list entities for ever is stopped


class Piece(NamedTuple):
    """A record that fits, or a part of a longer one, with the token ids of its prompt."""

    record: dict
    prompt_ids: list[int]


def fit(
    records: Sequence[dict], task: Task, tokenizer: PreTrainedTokenizerBase, limits: Limits
) -> list[list[Piece] | RowError]:
    """For each record the pieces that leave room for the answer (mostly one), or why there are none."""
    prompts = encode_each_prompt(records, task, tokenizer)
    lists_entities = task.answers == "entities" and all(task.options(record) is None for record in records)
    instructions = _instruction_tokens(records, task, tokenizer) if lists_entities else [0] * len(records)
    encoded = [record for record, ids in zip(records, prompts, strict=True) if not isinstance(ids, RowError)]
    option_tokens = _option_tokens(encoded, task, tokenizer)
    fitted: list[list[Piece] | RowError] = []
    for record, prompt_ids, instruction in zip(records, prompts, instructions, strict=True):
        try:
            if isinstance(prompt_ids, RowError):
                raise prompt_ids
            whole = Piece(record, prompt_ids)
            if lists_entities:
                fitted.append(_in_pieces(whole, instruction, task, tokenizer, limits))
            else:
                fitted.append(_cut(whole, option_tokens, task, tokenizer, limits))
        except RowError as error:
            fitted.append(error)
    return fitted


def _option_tokens(
    records: Sequence[dict], task: Task, tokenizer: PreTrainedTokenizerBase
) -> dict[tuple[str, ...], int]:
    """The tokens of the longest option, for all options that records have; these are mostly the same."""
    all_options = {tuple(options) for record in records if (options := task.options(record)) is not None}
    return {options: max(map(len, encode_texts(options, tokenizer))) for options in all_options}


def _instruction_tokens(records: Sequence[dict], task: Task, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of each record's prompt without its text. Records have few different instructions."""
    known: dict[str, int] = {}
    tokens = []
    for record in records:
        asked = repr(task.prompt(record | {"text": ""}))
        if asked not in known:
            known[asked] = instruction_tokens(record, task, tokenizer)
        tokens.append(known[asked])
    return tokens


def instruction_tokens(record: dict, task: Task, tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokens of a record's prompt without its text."""
    for text in ("", "。"):  # some chat templates do not take an empty text
        (prompt_ids,) = encode_each_prompt([record | {"text": text}], task, tokenizer)
        if not isinstance(prompt_ids, RowError):
            return len(prompt_ids) - len(text)
    return 0


def _in_pieces(
    whole: Piece, instruction: int, task: Task, tokenizer: PreTrainedTokenizerBase, limits: Limits
) -> list[Piece]:
    """A record in pieces whose texts are no longer than those of training, each with room for its answer.

    Args:
        instruction: tokens of the prompt without the text.

    Raises:
        RowError: it cannot be cut so finely.
    """
    most_tokens = _most_text_tokens(task, limits.max_length - instruction, limits.max_new_tokens)
    most_tokens = min(most_tokens, limits.piece_tokens or most_tokens)
    text_tokens = len(whole.prompt_ids) - instruction
    if limits.piece_tokens is None and min(text_tokens, most_tokens) > LONG_PIECE_TOKENS:
        say_once(logger, "有的文本很长，而不知道训练时的有多长：一次读得太长会漏掉实体；可加 --piece_tokens 64 分段读")
    if text_tokens <= most_tokens:
        return [whole]
    text = whole.record["text"]
    starts, tried_tokens = token_starts(text, tokenizer), most_tokens
    while tried_tokens > 0:  # a piece by itself can have a few tokens more than it has in the whole text
        parts = [part(whole.record, span) for span in spans_to_read(text, starts, tried_tokens)]
        prompts = encode_prompts(parts, task, tokenizer)
        excess_tokens = max(map(len, prompts)) - instruction - most_tokens
        if excess_tokens <= 0:
            return [Piece(*both) for both in zip(parts, prompts, strict=True)]
        tried_tokens = max(tried_tokens - excess_tokens, tried_tokens // 2)
    raise RowError("text", f"无法再拆分，却仍超过 {limits.max_length} 个 token")


def _most_text_tokens(task: Task, free_tokens: int, max_new_tokens: int) -> int:
    """How long a text can be where so many tokens are left for it and its answer."""
    if task.answer_format == "inline":  # see `sft.decoding.inline_answers.room_tokens`
        return max(free_tokens - max_new_tokens, (free_tokens - LEAST_MARK_TOKENS) // 3)
    return free_tokens - min(max_new_tokens, free_tokens // 2)  # an answer is at most about as long as its sentence


def _cut(
    whole: Piece,
    option_tokens: Mapping[tuple[str, ...], int],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    limits: Limits,
) -> list[Piece]:
    """A record as the task cuts it, with room for its answer.

    Args:
        option_tokens: the tokens of the longest of some options.

    Raises:
        RowError: it cannot be made to fit.
    """
    options = task.options(whole.record)
    room_tokens = limits.max_new_tokens if options is None else 1 + option_tokens[tuple(options)]
    if len(whole.prompt_ids) + room_tokens <= limits.max_length:
        return [whole]
    if options is None:
        (empty,) = encode_prompts([whole.record | {"text": ""}], task, tokenizer)
        room_tokens = min(room_tokens, (limits.max_length - len(empty)) // 2)

    def length_tokens(record: dict) -> int:
        return len(encode_prompts([record], task, tokenizer)[0]) + room_tokens

    known = with_known_length(whole.record, len(whole.prompt_ids) + room_tokens, length_tokens)
    parts = task.pieces(whole.record, known, limits.max_length)
    return [Piece(*both) for both in zip(parts, encode_prompts(parts, task, tokenizer), strict=True)]


def part(record: dict, span: Span) -> dict:
    """The part of a record: its text, where that begins in the record's, and the gold entities that lie in it."""
    inside = record | {"text": record["text"][span.start : span.end], "start": span.start}
    if record.get("entities") is not None:
        inside["entities"] = [
            entity | {"start": entity["start"] - span.start, "end": entity["end"] - span.start}
            for entity in record["entities"]
            if span.start <= entity["start"] and entity["end"] <= span.end
        ]
    return inside


def read_on(
    pieces: Sequence[Piece],
    results: Sequence[dict],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    answer: Callable[[Sequence[Piece]], list[dict]],
) -> list[dict]:
    """The results, with what the rest of each text holds whose answer was cut, rest after rest.

    Each rest gives at least one more entity, or it is the last one; there are at most ``MOST_RESTS`` of them. What is
    still cut then says ``cut``.

    Args:
        answer: gives the results of pieces.
    """
    results = list(results)
    open_ones = [index for index, result in enumerate(results) if result.get("cut")]
    for _ in range(MOST_RESTS):
        begins = {}
        for index in open_ones:
            if results[index]["entities"]:  # else nothing says where to go on
                begins[index] = place_to_go_on(pieces[index].record["text"], results[index]["entities"])
                if begins[index] is None:  # everything was read
                    results[index] = _finished(results[index])
        rests = _rests(pieces, begins, task, tokenizer)
        if not rests:
            break
        open_ones = []
        for index, found in zip(rests, answer(list(rests.values())), strict=True):
            longer = _joined(pieces[index].record, results[index], begins[index], found, task)
            if found.get("cut") and len(longer["entities"]) > len(results[index]["entities"]):
                open_ones.append(index)
            results[index] = longer
    return results


def _rests(
    pieces: Sequence[Piece], begins: Mapping[int, int | None], task: Task, tokenizer: PreTrainedTokenizerBase
) -> dict[int, Piece]:
    """What is left to read of pieces, by their numbers; without those at whose rest the chat template fails."""
    rests = {}
    for index, begin in begins.items():
        if begin is not None:
            record = part(pieces[index].record, Span(begin, len(pieces[index].record["text"])))
            (prompt_ids,) = encode_each_prompt([record], task, tokenizer)
            if not isinstance(prompt_ids, RowError):
                rests[index] = Piece(record, prompt_ids)
    return rests


def _joined(record: dict, result: dict, begin: int, found: dict, task: Task) -> dict:
    """The result of a record whose answer was cut, with what was found from ``begin`` on and was not known yet."""
    done = max(entity["end"] for entity in result["entities"])
    new = [
        entity | {"start": entity["start"] + begin - done, "end": entity["end"] + begin - done}
        for entity in found["entities"]
        if entity["start"] + begin >= done
    ]
    halves = [part(record, Span(0, done)), part(record, Span(done, len(record["text"])))]
    return task.merge(halves, [_finished(result), found | {"entities": new}])


def _finished(result: dict) -> dict:
    return {name: value for name, value in result.items() if name != "cut"}
