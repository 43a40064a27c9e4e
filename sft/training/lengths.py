"""How long rows, texts and answers are: what a person is told, and what prediction must know."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from sft.decoding.pieces import instruction_tokens
from sft.engine.batches import EncodedRow
from sft.model.encoding import LengthReport
from sft.tasks.task import Task

LEAST_NEW_TOKENS = 64  # lower limit for predictions, even if all training answers are short
LEAST_PIECE_TOKENS = 32  # and for the pieces of a long text: finer ones would cut sentences into words


def most_new_tokens(task: Task, rows: Sequence[EncodedRow], max_length: int) -> int:
    """The tokens of an answer at most, for prediction: twice the longest one of the training rows.

    An inline answer repeats its text, and a text to predict may be as long as ``max_length`` allows.
    """
    most = max(LEAST_NEW_TOKENS, 2 * max(len(row.answer_ids) for row in rows))
    return max(most, max_length // 2) if task.answer_format == "inline" else most


def usual_text_tokens(
    rows: Sequence[EncodedRow], record: dict, task: Task, tokenizer: PreTrainedTokenizerBase
) -> int | None:
    """How many tokens 95 % of the training texts do not exceed; None where no text is read in pieces.

    Args:
        record: one of the training records, for the instruction, which does not count.
    """
    if task.answers != "entities" or task.options(record) is not None:
        return None
    instruction = instruction_tokens(record, task, tokenizer)
    return max(LEAST_PIECE_TOKENS, quantile_95([len(row.prompt_ids) for row in rows]) - instruction)


def quantile_95(lengths: Sequence[int]) -> int:
    """The length that 95 % do not exceed."""
    return sorted(lengths)[int(0.95 * (len(lengths) - 1))]


def describe_lengths(report: LengthReport, max_length: int, long_text: str | None) -> str:
    """One line for the user about lengths in tokens, and about what was cut or split.

    Args:
        long_text: of the task.
    """
    lengths = sorted(report.lengths)
    long = quantile_95(lengths)
    line = f"长度（token）：中位数 {statistics.median(lengths):.0f}，95% 不超过 {long}，最长 {lengths[-1]}"
    if report.shortened_lines:
        line += f"；{len(report.shortened_lines)} 条超过 --max_length {max_length}"
        if report.dropped_tokens:
            where = "中间" if long_text == "ends" else "后面"
            line += f"，只截正文的{where}，共截去 {report.dropped_tokens} 个 token"
        else:
            line += f"，按句拆成 {report.pieces} 条"
    return line
