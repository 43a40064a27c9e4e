"""The prompts that a GGUF file makes, where llama-cpp-python is not installed: its template and its vocabulary.

The template is rendered with transformers' environment, and the text is tokenised by a byte-level BPE that is built
from nothing but what the file holds.
"""

from __future__ import annotations

from pathlib import Path

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sft.export.gguf_check import open_gguf, values_of
from sft.export.gguf_file import WORDS
from sft.export.merged import prompts_leg
from sft.export.proof import Leg
from sft.export.reference import Reference
from sft.export.source import Source


def prompts_leg_of(path: Path, source: Source, reference: Reference) -> Leg:
    """The prompts by the file's own template and vocabulary, and ours."""
    return prompts_leg(tokenizer_in(path), reference)


def tokenizer_in(path: Path) -> PreTrainedTokenizerFast:
    """A tokenizer from the metadata of a GGUF file alone."""
    values = values_of(open_gguf(path))
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    special = {int(gguf.TokenType.CONTROL): True, int(gguf.TokenType.USER_DEFINED): False}
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]]
    pre = values["tokenizer.ggml.pre"]
    words = next((pattern for pattern, name in WORDS.items() if name == pre), r"\s+")
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = [AddedToken(token, special=special[kind], normalized=False)
             for token, kind in zip(tokens, types, strict=True) if kind in special]  # fmt: skip
    tokenizer.add_tokens(added)

    def named(kind: str) -> str | None:
        index = values.get(f"tokenizer.ggml.{kind}_token_id")
        return None if index is None else tokens[index]

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=named("bos"),
        eos_token=named("eos"),
        chat_template=values["tokenizer.chat_template"],
    )
