"""Small tokenizers of other kinds than Qwen's: SentencePiece BPE, Unigram with and without byte tokens."""

from __future__ import annotations

import json

from conftest import CHAT_TEMPLATE, CORPUS
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WRITABLE = '[]|"{}\\:_ ,\n./abcdefghijklmnopqrstuvwxyz0123456789'


def _finished(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
    )


def llama_like():
    """SentencePiece BPE like Llama 2's: puts a space before the text, writes unknown characters as bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False)
    )
    settings = json.loads(tokenizer.to_str())
    vocab = {"<unk>": 0} | {token: index + 1 for index, token in enumerate(BYTES)}
    for token in settings["model"]["vocab"]:
        if token != "\n":  # Llama 2 writes it as a byte token
            vocab.setdefault(token, len(vocab))
    merges = [merge for merge in settings["model"]["merges"] if not any("\n" in part for part in merge)]
    settings["model"] |= {"vocab": vocab, "merges": merges, "byte_fallback": True}
    settings["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(settings))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _finished(tokenizer)


def unigram(byte_fallback: bool):
    """Unigram with Metaspace. Without byte tokens, it does not know most characters."""
    words = [
        "实体",
        "人名",
        "地理",
        "没有找到",
        "张伟",
        "伟昨",
        "昨天",
        "▁{",
        '"}',
        '":',
        '",',
        '▁"',
        "entity",
        "_text",
        "_label",
    ]
    characters = sorted({*"".join(CORPUS).replace(" ", ""), *WRITABLE.replace(" ", "▁")} - {"伟", "海"})
    pieces = [("<unk>", 0.0), *((word, -2.0) for word in words), *((character, -5.0) for character in characters)]
    if byte_fallback:
        pieces += [(token, -9.0) for token in BYTES]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, byte_fallback))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    return _finished(tokenizer)


def word_piece():
    """WordPiece, as BERT uses. Its decoder inserts spaces that the text does not have."""
    tokenizer = Tokenizer(models.WordPiece({"<unk>": 0, "张": 1, "##伟": 2}, unk_token="<unk>"))
    tokenizer.decoder = decoders.WordPiece()
    return _finished(tokenizer)


KINDS = {
    "llama-like": llama_like,
    "unigram with bytes": lambda: unigram(True),
    "unigram without bytes": lambda: unigram(False),
}
