"""What the adapter itself answers: base and adapter, not merged, in float32. Every export is held to this."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from sft.console import progress
from sft.decoding.decode import predict
from sft.decoding.limits import Limits
from sft.decoding.pieces import fit
from sft.engine.loss import CHUNK_LOGITS, hidden_states, plain_head
from sft.engine.served import served_by
from sft.errors import InputError, RowError
from sft.export.rows import Rows
from sft.export.source import Source, adapted_model
from sft.model.encoding import control_token_pattern
from sft.model.loading import default_device
from sft.tasks.evaluation import Tally

logger = logging.getLogger(__name__)

ROWS_OF_LOGITS = 4  # in a pass that gives the logits of whole answers: 4 × 100 × 151,936 in float32 are 243 MB


@dataclass(frozen=True)
class Reference:
    """The rows that are compared, and what the adapter makes of them.

    Attributes:
        records: the rows.
        messages: the chat messages of each row's prompt.
        prompts: the token ids of each prompt.
        answers: the token ids of each greedy answer, with the terminator if the model wrote it.
        texts: the answers as text, without the terminator.
        scores: the log-probability of each answer: the mean of its tokens.
        constrained_equal: rows where `predict.py`, which allows only well-formed answers, gives the same result.
        notes: what a person should know about the rows.
    """

    records: tuple[dict, ...]
    messages: tuple[list[dict[str, str]], ...]
    prompts: tuple[list[int], ...]
    answers: tuple[list[int], ...] = ()
    texts: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    constrained_equal: int = 0
    notes: tuple[str, ...] = ()


def reference_of(source: Source, rows: Rows, batch_size: int, *, answers: bool = True) -> Reference:
    """Encode the prompts of the rows, and let the adapter answer them.

    Rows that are too long are cut or split as in `predict.py`. Left out, and told: rows whose text has the text of a
    control token; `predict.py` makes that harmless, other programs do not.

    Args:
        answers: false where only the prompts are compared.

    Raises:
        InputError: no row is left.
    """
    piece_tokens = source.settings.usual_text_tokens
    limits = Limits(source.max_length, source.max_new_tokens, batch_size, piece_tokens=piece_tokens)
    usable, prompts, notes = _usable(source, rows, limits)
    messages = tuple(source.task.prompt(record) for record in usable)
    reference = Reference(tuple(usable), messages, tuple(prompts), notes=notes)
    if not answers:
        return reference
    logger.info("适配器先答 %d 条（float32，贪心）", len(usable))
    model = adapted_model(source).to(default_device())
    answered = greedy(model, prompts, source, batch_size)
    texts = tuple(text_of(ids, source) for ids in answered)
    scores = tuple(mean_log_probabilities(model, prompts, answered, batch_size))
    constrained = list(predict(model, source.tokenizer, source.task, usable, limits))
    free = results_of(texts, usable, source)
    same = sum(shown(one, source) == shown(other, source) for one, other in zip(free, constrained, strict=True))
    return Reference(tuple(usable), messages, tuple(prompts), tuple(answered), texts, scores, same, notes)


def _usable(source: Source, rows: Rows, limits: Limits) -> tuple[list[dict], list[list[int]], tuple[str, ...]]:
    """The records that can be compared, the token ids of their prompts, and what a person should know about them."""
    control = control_token_pattern(source.tokenizer)
    usable, prompts = [], []
    long = suspicious = impossible = 0
    for record, pieces in zip(rows.records, fit(rows.records, source.task, source.tokenizer, limits), strict=True):
        if isinstance(pieces, RowError):
            impossible += 1
            continue
        chats = [source.task.prompt(piece.record) for piece in pieces]
        if any(control.search(message["content"]) for chat in chats for message in chat):
            suspicious += 1
            continue
        long += len(pieces) > 1 or pieces[0].record is not record
        usable += [piece.record for piece in pieces]
        prompts += [piece.prompt_ids for piece in pieces]
    too_long = f"超过 {source.max_length} 个 token"
    if limits.piece_tokens is not None:  # a text that is longer than those of training is read in pieces
        too_long = f"正文超过训练时常见的 {limits.piece_tokens} 个 token，或连提示{too_long}"
    told = (
        (long, f"太长（{too_long}），先像 predict.py 那样截或拆，再对照"),
        (suspicious, "的文本里有控制 token 的写法，只有 predict.py 会把它当普通文字，没有对照"),
        (impossible, "怎样截都太长，没有对照"),
    )
    notes = tuple(f"{count} 条{what}" for count, what in told if count)
    if not usable:
        raise InputError(f"{rows.path}：没有一条能对照（{'；'.join(notes)}）；请换 --rows")
    return usable, prompts, notes


def results_of(texts: Sequence[str], records: Sequence[dict], source: Source) -> list[dict]:
    """The results that freely generated answers mean."""
    return [source.task.parse(text, record) for text, record in zip(texts, records, strict=True)]


def shown(result: dict, source: Source) -> str:
    """A result as text, to compare; an error as what it says."""
    return result.get("error") or source.task.show(result)


def metric_of(texts: Sequence[str], reference: Reference, source: Source) -> float | None:
    """The task's metric of freely generated answers; None if no row has gold."""
    golds = [source.task.gold(record) for record in reference.records]
    tally = Tally.of(source.task, golds, results_of(texts, reference.records, source))
    figures = tally.metrics(source.task)
    return None if figures is None else figures[source.task.metric]


def text_of(answer_ids: Sequence[int], source: Source) -> str:
    """An answer as text, up to its terminator."""
    ids = list(answer_ids)
    ids = ids[: ids.index(source.end)] if source.end in ids else ids
    return source.tokenizer.decode(ids, skip_special_tokens=False)


def in_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """The numbers of the rows in batches of similar length, the longest first."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask of shape (rows, longest), padded on the left."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for row, tokens in enumerate(rows):
        ids[row, width - len(tokens) :] = torch.tensor(tokens)
        mask[row, width - len(tokens) :] = 1
    return ids, mask


@torch.no_grad()
def greedy(model: PreTrainedModel, prompts: Sequence[list[int]], source: Source, batch_size: int) -> list[list[int]]:
    """The greedy answer to each prompt, with the terminator if it was written."""
    answers: list[list[int]] = [[]] * len(prompts)
    batches = list(in_batches([len(ids) for ids in prompts], batch_size))
    for rows in progress(batches, "适配器回答"):
        ids, mask = left_padded([prompts[row] for row in rows], source.tokenizer.pad_token_id)
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=source.max_new_tokens,
            do_sample=False,
            eos_token_id=source.end,
            pad_token_id=source.tokenizer.pad_token_id,
        )[:, ids.shape[1] :].tolist()
        for row, answer in zip(rows, output, strict=True):
            answers[row] = up_to(source.end, answer)
    return answers


def up_to(end: int, ids: list[int]) -> list[int]:
    """The ids up to and including ``end``; all of them if it is not there."""
    return ids[: ids.index(end) + 1] if end in ids else ids


@torch.no_grad()
def mean_log_probabilities(
    model: PreTrainedModel, prompts: Sequence[list[int]], answers: Sequence[list[int]], batch_size: int
) -> list[float]:
    """The mean log-probability of the tokens of each answer, given its prompt.

    The logits are large, so they exist for one block of answer tokens at a time, or for a few rows where the output
    layer cannot be run by itself.
    """
    means = [0.0] * len(prompts)
    pairs = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    head = plain_head(model)
    batch_size = batch_size if head is not None else min(batch_size, ROWS_OF_LOGITS)
    for rows in in_batches([len(pair) for pair in pairs], batch_size):
        ids, mask = left_padded([pairs[row] for row in rows], 0)
        lengths = [len(answers[row]) for row in rows]
        kept = max(lengths)
        inputs = {
            "input_ids": ids.to(model.device),
            "attention_mask": mask.to(model.device),
            "position_ids": (mask.cumsum(-1) - 1).clamp(min=0).to(model.device),
            "logits_to_keep": kept + 1,
            "use_cache": False,
        }
        found = model(**inputs).logits if head is None else hidden_states(model, head, **inputs)
        asked = torch.arange(kept) >= kept - torch.tensor(lengths)[:, None]
        chosen = ids[:, ids.shape[1] - kept :][asked].to(found.device)
        logs = _log_probabilities(model, head, found[:, -kept - 1 : -1][asked], chosen)
        for row, own in zip(rows, logs.split(lengths), strict=True):
            means[row] = own.mean().item()
    return means


def _log_probabilities(
    model: PreTrainedModel, head: torch.nn.Linear | None, found: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """The log-probability of each token: (tokens,), in float32 on the CPU.

    Args:
        head: the output layer; None if ``found`` are logits already.
        found: (tokens, size), what ``head`` gets at the place before each token.
    """
    parts = []
    size = max(1, CHUNK_LOGITS // model.config.get_text_config(decoder=True).vocab_size)
    for block, right in zip(found.split(size), tokens.split(size), strict=True):
        logits = (block if head is None else served_by(model).logits.of(head(block))).float()
        parts.append(logits.log_softmax(-1).gather(-1, right[:, None])[:, 0])
    return torch.cat(parts).cpu()
