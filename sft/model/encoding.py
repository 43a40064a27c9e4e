"""Records to token ids: the prompt by the chat template, then the answer and the template's own terminator.

The same `encode_prompts` serves training, evaluation and prediction, so the three cannot drift apart.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from sft.console import progress
from sft.engine.batches import EncodedRow
from sft.errors import InputError, RowError
from sft.tasks.task import Task

WORTH_SHARING = 16  # texts; for fewer it is not worth looking for what they share

ENCODED_TOGETHER = 2048  # rows that the tokenizer gets at once: enough for all cores, few enough to see progress


@dataclass
class LengthReport:
    """What encoding did to the rows: lengths in tokens, and what had to be cut or split."""

    lengths: list[int] = field(default_factory=list)
    shortened_rows: list[int] = field(default_factory=list)  # lines cut (classification) or split (NER)
    pieces: int = 0  # rows that the shortened ones became
    dropped_tokens: int = 0  # prompt tokens cut away; splitting drops none


def terminator_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token the chat template ends an assistant's answer with; what generation stops at.

    Raises:
        InputError: the template ends an answer with no special token.
    """
    probe = "答"
    messages = [{"role": "user", "content": "问"}, {"role": "assistant", "content": probe}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    tail_ids = tokenizer(rendered[rendered.rindex(probe) + len(probe) :], add_special_tokens=False).input_ids
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    for token_id in tail_ids:
        if token_id in special:
            return token_id
    raise InputError("对话模板没有用特殊词元结束回答，模型将不知道何时停止；请换一个对话模型")


def encode_prompts(records: Sequence[dict], task: Task, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each record's prompt, up to and including the assistant's header.

    Text from data never becomes a control token: rows that hold one as text are encoded piecewise by transformers'
    ``sanitize_control_tokens``, the others in one batch (the same ids, several times faster).
    """
    chats = [task.prompt(record) for record in records]
    control = control_token_pattern(tokenizer)
    suspicious = [any(control.search(message["content"]) for message in chat) for chat in chats]
    plain_chats = [chat for chat, suspect in zip(chats, suspicious, strict=True) if not suspect]
    plain_ids = iter(())
    if plain_chats:
        rendered = tokenizer.apply_chat_template(plain_chats, add_generation_prompt=True, tokenize=False)
        plain_ids = iter(_tokenize(rendered, tokenizer))
    return [
        tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=False, sanitize_control_tokens=True
        )
        if suspect
        else next(plain_ids)
        for chat, suspect in zip(chats, suspicious, strict=True)
    ]


def encode_answers(records: Sequence[dict], task: Task, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each record's answer and the terminator after it."""
    end = terminator_id(tokenizer)
    return [[*ids, end] for ids in encode_texts([task.answer(record) for record in records], tokenizer)]


def encode_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of what an assistant says, control tokens as plain text."""
    if not texts:
        return []
    control = control_token_pattern(tokenizer)
    encoded = _batch(list(texts), tokenizer)
    return [
        _encode_plain(text, tokenizer) if control.search(text) else ids
        for text, ids in zip(texts, encoded, strict=True)
    ]


def encode_rows(
    records: Sequence[tuple[int, dict]], task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[EncodedRow], LengthReport]:
    """Encode ``(line number, record)`` pairs for training; rows over ``max_length`` tokens are cut or split.

    Raises:
        InputError: a row that cannot be made to fit.
    """
    report = LengthReport()
    rows = []
    windows = (records[start : start + ENCODED_TOGETHER] for start in range(0, len(records), ENCODED_TOGETHER))
    encoded = (row for window in windows for row in _encode(window, task, tokenizer))
    for (line, record), row in zip(progress(records, "编码"), encoded, strict=True):
        report.lengths.append(len(row))
        if len(row) <= max_length:
            rows.append(row)
            continue
        try:
            pieces = task.pieces(record, lambda piece: len(_encode([(0, piece)], task, tokenizer)[0]), max_length)
        except RowError as error:
            raise InputError(f"第 {line} 行：{error}；请加大 --max_length 或去掉这一行") from error
        encoded_pieces = _encode([(line, piece) for piece in pieces], task, tokenizer)
        rows += encoded_pieces
        report.shortened_rows.append(line)
        report.pieces += len(pieces)
        if sum(len(piece["text"]) for piece in pieces) < len(record["text"]):
            report.dropped_tokens += len(row) - sum(len(piece) for piece in encoded_pieces)
    return rows, report


def _encode(records: Sequence[tuple[int, dict]], task: Task, tokenizer: PreTrainedTokenizerBase) -> list[EncodedRow]:
    contents = [record for _, record in records]
    prompts = encode_prompts(contents, task, tokenizer)
    answers = encode_answers(contents, task, tokenizer)
    lines = [line for line, _ in records]
    return [EncodedRow(*parts) for parts in zip(prompts, answers, lines, strict=True)]


def _tokenize(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of texts; what many of them begin with is tokenised once, up to where a control token begins.

    A tokenizer takes control tokens out first and tokenises what stands between them piece by piece, so a cut there
    changes nothing; that this one does is tried on the first, the middle and the longest text.
    """
    cut = _shared_characters(texts, tokenizer) if len(texts) >= WORTH_SHARING else 0
    if not cut:
        return _batch(texts, tokenizer)
    (beginning,) = _batch([texts[0][:cut]], tokenizer)
    tried = [texts[0], texts[len(texts) // 2], max(texts, key=len)]
    if _batch(tried, tokenizer) != [beginning + rest for rest in _batch([text[cut:] for text in tried], tokenizer)]:
        return _batch(texts, tokenizer)
    return [beginning + rest for rest in _batch([text[cut:] for text in texts], tokenizer)]


def _shared_characters(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> int:
    """How much of all texts is the same up to the last place where a control token begins; 0 for nothing."""
    shared = os.path.commonprefix([min(texts), max(texts)])  # of sorted texts, the first and the last differ earliest
    tokens = tokenizer.added_tokens_decoder.values()
    apart = [token for token in tokens if token.special and not token.lstrip and not token.single_word]
    return max([0, *(shared.rfind(token.content) for token in apart)])


def _batch(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False).input_ids


def _encode_plain(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of ``text`` with no added token recognised (``split_special_tokens`` spares those not special)."""
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    words = [text] if backend.pre_tokenizer is None else [w for w, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    return [token.id for word in words for token in backend.model.tokenize(word)]


def control_token_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern:
    """The text of any control token: one that is special, or that the template writes (``<tool_call>``)."""
    named = (tokenizer.chat_template, *(tokenizer.chat_control_tokens or ()))
    texts = {
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or any(token.content in text for text in named)
    }
    longest_first = sorted((text for text in texts if not text.isspace()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
