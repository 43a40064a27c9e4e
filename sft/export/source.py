"""What is exported: an adapter with its base, its task and its tokenizer; and the two merged into one model."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft.errors import InputError
from sft.model.adapter import Base, find_base, require_adapter, settings_of_adapter
from sft.model.encoding import terminator_id
from sft.model.loading import context_tokens, load_adapter, load_base, load_config, load_tokenizer
from sft.tasks.settings import TaskSettings
from sft.tasks.task import Task

logger = logging.getLogger(__name__)

WAIVER = "加 --no_verify"
USUAL_LENGTH, USUAL_NEW_TOKENS = 1024, 256  # tokens, where an old adapter does not say them


class Source(NamedTuple):
    """An adapter that can be exported.

    Attributes:
        end: the id of the token that ends an answer.
    """

    adapter: Path
    settings: TaskSettings
    base: Base
    tokenizer: PreTrainedTokenizerBase
    end: int

    @property
    def task(self) -> Task:
        """The task of the adapter."""
        return self.settings.task

    @property
    def end_token(self) -> str:
        """The token that ends an answer."""
        return self.tokenizer.convert_ids_to_tokens(self.end)

    @property
    def max_length(self) -> int:
        """Tokens of a row at most, prompt and answer."""
        return self.settings.max_length or USUAL_LENGTH

    @property
    def max_new_tokens(self) -> int:
        """Tokens of an answer at most."""
        return self.settings.max_new_tokens or USUAL_NEW_TOKENS

    @property
    def context_tokens(self) -> int:
        """The room that another program should give to a prompt and its answer, as far as the base allows."""
        wanted = self.max_length + self.max_new_tokens
        return min(wanted, context_tokens(load_config(self.base.folder)) or wanted)


def open_source(arguments: argparse.Namespace) -> Source:
    """Check an adapter as `predict.py` does; no weights are read.

    Raises:
        InputError: it cannot be used, or was changed after training.
        RunError: its base could not be downloaded.
    """
    require_adapter(arguments.adapter)
    settings = settings_of_adapter(arguments.adapter, verify=not arguments.no_verify, waiver=WAIVER)
    named, allow_other = arguments.model_name_or_path, arguments.allow_other_base
    base = find_base(arguments.adapter, settings, named, allow_other=allow_other)
    load_config(base.folder)
    if settings.quantization is not None:
        logger.warning(
            "训练时底座用 --quantization %s，导出用没有量化的底座；对照的也是它，答案会与 predict.py 略有不同",
            settings.quantization,
        )
    tokenizer = load_tokenizer(arguments.adapter)
    end = terminator_id(tokenizer)
    token = tokenizer.convert_ids_to_tokens(end)
    if settings.end_token not in (None, token):
        raise InputError(
            f"{arguments.adapter}：训练时回答以 {settings.end_token} 结束，现在的对话模板以 {token} 结束；"
            "请恢复训练时的分词器文件"
        )
    return Source(arguments.adapter, settings, base, tokenizer, end)


def adapted_model(source: Source) -> PreTrainedModel:
    """The base with the adapter on it, in float32 and not merged, in evaluation mode: what everything is held to."""
    return load_adapter(load_base(source.base.folder, torch.float32), source.adapter).eval()


def merged_model(source: Source) -> PreTrainedModel:
    """Base and adapter merged in float32, so that the sum is rounded only once, when it is written.

    Raises:
        InputError: this kind of adapter cannot be merged, or the sum is not finite.
    """
    model = adapted_model(source)
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError, AttributeError) as error:
        raise InputError(f"{source.adapter}：这种适配器不能并进权重（{error}）；请用 --to vllm") from error
    return merged.eval()
