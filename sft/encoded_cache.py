"""Encoded rows on disk, named by a hash of everything they follow from, so that a stale one is never found."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import orjson
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from transformers import PreTrainedTokenizerBase

from sft.encoding import EncodedRow, LengthReport, Task, encode_rows
from sft.records import InputError, whole_file

logger = logging.getLogger(__name__)

WORTH_KEEPING_ROWS = 5000  # fewer are encoded in a second or two
KEPT_FILES = 4  # the newest, in one folder


def encode_rows_cached(
    records: Sequence[tuple[int, dict]], task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int, folder: Path
) -> tuple[list[EncodedRow], LengthReport]:
    """As `sft.encoding.encode_rows`, from ``folder`` where the same was encoded before.

    Raises:
        InputError: a row that cannot be made to fit.
    """
    if len(records) < WORTH_KEEPING_ROWS:
        return encode_rows(records, task, tokenizer, max_length)
    path = folder / f"encoded-{content_hash(records, task, tokenizer, max_length)[:32]}.safetensors"
    if path.is_file():
        try:
            return _load(path)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            logger.warning("%s：读不出（%s），重新编码", path, error)
    rows, report = encode_rows(records, task, tokenizer, max_length)
    try:
        _save(path, rows, report)
    except (InputError, OSError) as error:  # a folder that cannot be written, a full disk: the rows are there anyway
        logger.warning("编码结果没有存下来：%s", error)
    return rows, report


def content_hash(
    records: Sequence[tuple[int, dict]], task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> str:
    """A hash of the records, the task, the tokenizer with its template, the length, and this package's own source."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    settings = [task.name, task.settings(), str(tokenizer.chat_template), max_length]
    digest.update(json.dumps(settings, ensure_ascii=False, sort_keys=True, default=str).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(orjson.dumps(list(records)))
    return digest.hexdigest()


def _save(path: Path, rows: Sequence[EncodedRow], report: LengthReport) -> None:
    """All ids in one tensor, with the numbers of ids that make up each prompt and answer."""
    tensors = {
        "ids": [token for row in rows for ids in (row.prompt_ids, row.answer_ids) for token in ids],
        "prompt_tokens": [len(row.prompt_ids) for row in rows],
        "answer_tokens": [len(row.answer_ids) for row in rows],
        "row": [row.row for row in rows],
    }
    tensors = {name: torch.tensor(values, dtype=torch.int32) for name, values in tensors.items()}
    with whole_file(path, sync=False) as file:
        file.write(save(tensors, {"report": json.dumps(asdict(report))}))
    files = sorted(path.parent.glob("encoded-*.safetensors"), key=lambda file: file.stat().st_mtime)
    for old in files[:-KEPT_FILES]:
        old.unlink(missing_ok=True)


def _load(path: Path) -> tuple[list[EncodedRow], LengthReport]:
    with safe_open(path, "pt") as file:
        ids, prompts, answers, lines = (
            file.get_tensor(name).tolist() for name in ("ids", "prompt_tokens", "answer_tokens", "row")
        )
        report = LengthReport(**json.loads(file.metadata()["report"]))
    rows, start = [], 0
    for prompt_tokens, answer_tokens, line in zip(prompts, answers, lines, strict=True):
        middle, end = start + prompt_tokens, start + prompt_tokens + answer_tokens
        rows.append(EncodedRow(ids[start:middle], ids[middle:end], line))
        start = end
    return rows, report
