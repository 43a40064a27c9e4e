"""A tokenizer's vocabulary as a trie of bytes, to find the tokens that a format allows.

Tokens do not end where characters or words end: byte-level BPE splits some Han characters, a token may hold a quote
and the character after it, and SentencePiece writes a space as ``▁`` and an unknown byte as ``<0xE4>``. Written as
bytes, all of these can be treated in the same way.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from sft.model.encoding import control_token_pattern, encode_texts, terminator_id

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "▁"  # a space in SentencePiece
NOT_PLAIN = re.compile(rb'[\x00-\x1f"\\]')  # what a JSON string cannot hold as it is


class UnknownSpelling(Exception):
    """The bytes of this tokenizer's tokens are unknown (WordPiece adds and removes spaces when it decodes)."""


class Node:
    """A node of the trie: stands for the bytes from the root to it. Children are built on first use.

    Attributes:
        ids: the tokens that end here; more than one if the vocabulary has the same bytes twice.
    """

    __slots__ = ("_children", "_high", "_low", "_prefix", "_spellings", "ids")

    def __init__(self, spellings: list[tuple[bytes, int]], prefix: bytes, low: int, high: int) -> None:
        self._spellings, self._prefix, self._low, self._high = spellings, prefix, low, high
        self._children: dict[int, Node | None] = {}
        self.ids: list[int] = []
        while low < high and spellings[low][0] == prefix:
            self.ids.append(spellings[low][1])
            low += 1

    def child(self, byte: int) -> Node | None:
        """The node after one more byte; None if no token continues with it."""
        if byte not in self._children:
            prefix = self._prefix + bytes((byte,))
            low = bisect_left(self._spellings, (prefix,), self._low, self._high)
            after = self._prefix + bytes((byte + 1,)) if byte < 255 else None
            high = self._high if after is None else bisect_left(self._spellings, (after,), low, self._high)
            self._children[byte] = Node(self._spellings, prefix, low, high) if low < high else None
        return self._children[byte]


class Vocabulary:
    """All tokens that write text, as bytes.

    Attributes:
        spelling: token id → its bytes; control tokens are left out.
        root: the root of the trie.
        end: the token that ends an answer.
        plain: the tokens that write only text which a JSON string holds as it is, ascending. Their bytes need not be
            whole characters.
        lead: what the tokenizer puts before an answer and removes when decoding (a space in SentencePiece).

    Raises:
        UnknownSpelling: the bytes of the tokens are unknown.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.spelling = _spell_tokens(tokenizer)
        spellings = sorted((spelt, token_id) for token_id, spelt in self.spelling.items())
        self.root = Node(spellings, b"", 0, len(spellings))
        self.plain = sorted(token_id for token_id, spelt in self.spelling.items() if not NOT_PLAIN.search(spelt))
        self.end = terminator_id(tokenizer)
        probe = "答"
        self.lead = self.join(encode_texts([probe], tokenizer)[0]).removesuffix(probe.encode())
        if self.lead not in (b"", b" "):
            raise UnknownSpelling("回答开头的写法")
        self._tokenizer = tokenizer

    def join(self, token_ids: list[int]) -> bytes:
        """The bytes of a sequence of tokens; control tokens have none."""
        return b"".join(self.spelling.get(token_id, b"") for token_id in token_ids)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without the terminator."""
        return encode_texts(texts, self._tokenizer)

    @lru_cache(maxsize=1 << 14)  # noqa: B019 (a vocabulary lives as long as the process)
    def can_write(self, text: bytes) -> bool:
        """Whether ``text`` can be written from any place in it: each byte, or each character, is a token."""
        if all((node := self.root.child(byte)) is not None and node.ids for byte in set(text)):
            return True
        return all(self._is_token(character.encode()) for character in text.decode())

    def _is_token(self, spelt: bytes) -> bool:
        node: Node | None = self.root
        for byte in spelt:
            node = node.child(byte) if node is not None else None
        return node is not None and bool(node.ids)


@lru_cache(maxsize=2)
def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> Vocabulary | None:
    """The tokenizer's vocabulary; None if the bytes of its tokens are unknown."""
    try:
        return Vocabulary(tokenizer)
    except UnknownSpelling:
        return None


def _spell_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """The bytes of every token except control tokens.

    Raises:
        UnknownSpelling: the tokenizer's decoder is of an unknown kind.
    """
    added = tokenizer.added_tokens_decoder
    control = control_token_pattern(tokenizer)
    kinds = _decoder_kinds(tokenizer)
    if "ByteLevel" in kinds:
        spell = _spell_byte_level
    elif "Metaspace" in kinds or "Replace" in kinds:
        spell = _spell_sentencepiece
    else:
        raise UnknownSpelling("、".join(sorted(kinds)) or "没有解码器")
    spelling = {}
    for token, token_id in tokenizer.get_vocab().items():
        if token_id not in added:
            spelling[token_id] = spell(token)
        elif not added[token_id].special and not control.fullmatch(added[token_id].content):
            spelling[token_id] = added[token_id].content.encode()
    return {token_id: spelt for token_id, spelt in spelling.items() if spelt}


def _decoder_kinds(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"] or {}
    return {part["type"] for part in decoder.get("decoders", [decoder]) if "type" in part}


def _spell_byte_level(token: str) -> bytes:
    return bytes(map(_byte_of_character().__getitem__, token))


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """The byte that each character of byte-level BPE stands for.

    GPT-2 writes printable Latin-1 bytes as they are, and the others with the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


def _spell_sentencepiece(token: str) -> bytes:
    if match := BYTE_TOKEN.fullmatch(token):
        return bytes((int(match[1], 16),))
    return token.replace(SPACE, " ").encode()
