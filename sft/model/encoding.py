"""From records to token ids: the prompt by the chat template, then the answer and the template's own terminator.

Training, evaluation and prediction all call `encode_prompts`, so their prompts are the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import TypeVar
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from sft.console import progress
from sft.engine.batches import EncodedRow
from sft.errors import InputError, RowError, is_out_of_memory, one_line
from sft.model.template import answer_end
from sft.tasks.task import Task

WORTH_SHARING = 16  # with fewer texts, looking for their common beginning does not pay

Found = TypeVar("Found")

ENCODED_TOGETHER = 2048  # rows in one call of the tokenizer: enough for all cores, few enough to show progress


@dataclass
class LengthReport:
    """How long the rows are, and how many had to be cut or split.

    Attributes:
        lengths: tokens of each row, before it is shortened.
        shortened_lines: line numbers of the rows that were cut or split.
        pieces: how many rows came out of the shortened ones.
        dropped_tokens: prompt tokens that were cut away; splitting drops none.
    """

    lengths: list[int] = field(default_factory=list)
    shortened_lines: list[int] = field(default_factory=list)
    pieces: int = 0
    dropped_tokens: int = 0


def _once(find: Callable[[PreTrainedTokenizerBase], Found]) -> Callable[[PreTrainedTokenizerBase], Found]:
    """``find`` something in a tokenizer, and again only after its chat template or its tokens have changed.

    Listing thousands of added tokens takes some milliseconds. Not seen: ``add_tokens`` of a word that the vocabulary
    had before; nothing does that once a tokenizer is loaded.
    """
    known: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[str, Found]] = WeakKeyDictionary()

    @wraps(find)
    def found(tokenizer: PreTrainedTokenizerBase) -> Found:
        named = (tokenizer.special_tokens_map, tokenizer.all_special_tokens, tokenizer.chat_control_tokens)
        state = repr((len(tokenizer), tokenizer.chat_template, *named))
        if tokenizer not in known or known[tokenizer][0] != state:
            known[tokenizer] = (state, find(tokenizer))
        return known[tokenizer][1]

    return found


@_once
def terminator_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an assistant's answer in the chat template; generation stops at it.

    Raises:
        InputError: the template ends an answer without a special token.
    """
    end = answer_end(tokenizer)
    if end is None:
        raise InputError("对话模板没有用特殊 token 结束回答，模型将不知道何时停止；请换一个对话模型")
    return tokenizer.convert_tokens_to_ids(end)


def encode_prompts(records: Sequence[dict], task: Task, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each record's prompt, up to and including the assistant's header.

    Text from data never becomes a control token. Rows that contain the text of one are encoded one by one with
    transformers' ``sanitize_control_tokens``; the others in one batch, which gives the same ids several times faster.

    Raises:
        RowError: the chat template fails at the text of one of them.
    """
    chats = [task.prompt(record) for record in records]
    try:
        return _encode_chats(chats, tokenizer)
    except Exception as error:  # a template is foreign code: it can raise anything
        if is_out_of_memory(error):
            raise
        raise RowError("text", f"对话模板在它上面出错（{one_line(error) or type(error).__name__}）") from error


def encode_each_prompt(
    records: Sequence[dict], task: Task, tokenizer: PreTrainedTokenizerBase
) -> list[list[int] | RowError]:
    """`encode_prompts`; in the place of a record at which the chat template fails stands the error."""
    try:
        return encode_prompts(records, task, tokenizer)
    except RowError as error:
        if len(records) == 1:
            return [error]
    return [encode_each_prompt([record], task, tokenizer)[0] for record in records]


def _encode_chats(chats: Sequence[list[dict[str, str]]], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
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
    """Token ids of each record's answer, with the terminator."""
    end = terminator_id(tokenizer)
    return [[*ids, end] for ids in encode_texts([task.answer(record) for record in records], tokenizer)]


def encode_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of answer texts; the text of a control token is encoded as plain text."""
    if not texts:
        return []
    control = control_token_pattern(tokenizer)
    encoded = _batch(list(texts), tokenizer)
    return [
        _encode_plain(text, tokenizer) if control.search(text) else ids
        for text, ids in zip(texts, encoded, strict=True)
    ]


def token_starts(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The offset at which each token of a text begins, ascending; the text of a control token counts as one token."""
    encoded = tokenizer(
        text, add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=True, verbose=False
    )
    return sorted(start for start, _ in encoded.offset_mapping)


def encode_rows(
    records: Sequence[tuple[int, dict]], task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[EncodedRow], LengthReport]:
    """Encode ``(line number, record)`` pairs for training; rows over ``max_length`` tokens are cut or split.

    Raises:
        InputError: a row cannot be made to fit.
    """

    def length_tokens(piece: dict) -> int:
        return len(_encode([(0, piece)], task, tokenizer)[0])

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
            pieces = task.pieces(record, with_known_length(record, len(row), length_tokens), max_length)
        except RowError as error:
            raise InputError(f"第 {line} 行：{error}；请加大 --max_length 或去掉这一行") from error
        encoded_pieces = _encode([(line, piece) for piece in pieces], task, tokenizer)
        rows += encoded_pieces
        report.shortened_lines.append(line)
        report.pieces += len(pieces)
        if sum(len(piece["text"]) for piece in pieces) < len(record["text"]):
            report.dropped_tokens += len(row) - sum(len(piece) for piece in encoded_pieces)
    return rows, report


def with_known_length(record: dict, known_tokens: int, length_tokens: Callable[[dict], int]) -> Callable[[dict], int]:
    """``length_tokens``, but the length of ``record`` itself is known: a long text takes long to encode."""
    return lambda piece: known_tokens if piece is record else length_tokens(piece)


def _encode(records: Sequence[tuple[int, dict]], task: Task, tokenizer: PreTrainedTokenizerBase) -> list[EncodedRow]:
    """Raises InputError if the chat template fails at one of the records."""
    contents = [record for _, record in records]
    prompts = encode_each_prompt(contents, task, tokenizer)
    for (line, _), prompt in zip(records, prompts, strict=True):
        if isinstance(prompt, RowError):
            raise InputError(f"第 {line} 行：{prompt}；请去掉这一行，或换一个对话模板") from prompt
    answers = encode_answers(contents, task, tokenizer)
    lines = [line for line, _ in records]
    same = {}  # a token id → the one object for it in these rows: 8 bytes a token then, not 36
    prompts, answers = ([[same.setdefault(i, i) for i in ids] for ids in rows] for rows in (prompts, answers))
    return [EncodedRow(*parts) for parts in zip(prompts, answers, lines, strict=True)]


def _tokenize(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of texts; their common beginning is tokenised only once. It ends where a control token begins.

    A tokenizer first separates the control tokens, then tokenises the text between them piece by piece, so a cut at a
    control token changes nothing. The first, the middle and the longest text are tokenised both ways to check this.
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
    """Length of the texts' common beginning, up to the last control token in it; 0 if there is none."""
    shared = os.path.commonprefix([min(texts), max(texts)])  # what these two share, all texts share
    return max([0, *map(shared.rfind, _tokens_to_cut_at(tokenizer))])


@_once
def _tokens_to_cut_at(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The control tokens that are found wherever they stand and take nothing before them along."""
    tokens = tokenizer.added_tokens_decoder.values()
    return [token.content for token in tokens if token.special and not token.lstrip and not token.single_word]


def _batch(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False).input_ids


def _encode_plain(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of ``text`` without recognising any added token.

    ``split_special_tokens`` is not enough: it still recognises added tokens that are not special.
    """
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    words = [text] if backend.pre_tokenizer is None else [w for w, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    return [token.id for word in words for token in backend.model.tokenize(word)]


@_once
def control_token_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern:
    """Matches the text of any control token: a special token, or one in the chat template (``<tool_call>``)."""
    named = (tokenizer.chat_template, *(tokenizer.chat_control_tokens or ()))
    texts = {
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or any(token.content in text for text in named)
    }
    longest_first = sorted((text for text in texts if not text.isspace()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
