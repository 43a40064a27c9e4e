"""The tokenizer of the demonstration model: byte-level BPE built like Qwen2's, trained on the made-up corpus."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from demo import corpus, lessons, words
from sft.files import write_json
from sft.tasks.classification import Classification
from sft.tasks.ner import CCFBDCI_LABELS, Ner

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PRE_TOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# How often each kind of text is given to the BPE trainer. It merges frequent text first, so every character becomes a
# token before any word does.
_CHARACTER_WEIGHT, _PROMPT_WEIGHT, _WORD_WEIGHT = 400, 200, 8


def common_characters() -> str:
    """The 3,755 characters of GB 2312 level 1, decoded from their byte codes."""
    return b"".join(
        bytes((row, cell)) for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF) if (row, cell) <= (0xD7, 0xF9)
    ).decode("gb2312")


def train_tokenizer(vocabulary_size: int) -> Tokenizer:
    """A byte-level BPE whose tokens are characters, words of the corpus and parts of the task prompts.

    The training text has no names, on purpose: a name stays a sequence of characters, so that it has the same tokens
    wherever it occurs.

    Args:
        vocabulary_size: how many tokens, special tokens included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZER), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - len(SPECIAL_TOKENS),
        min_frequency=2 * _WORD_WEIGHT,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_text(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write the files that ``AutoTokenizer`` reads."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_prefix_space": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "model_max_length": 1024,
            "errors": "replace",
            "split_special_tokens": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def _training_text() -> Iterator[str]:
    for character in sorted(set(common_characters() + _known_characters())):
        yield from [character] * _CHARACTER_WEIGHT
    for prompt in _task_prompts():
        yield from [prompt] * _PROMPT_WEIGHT
    for word in _words():
        yield from [word] * (2 * _WORD_WEIGHT)
    for fragment in _fragments():
        yield from [fragment] * _WORD_WEIGHT


def _known_characters() -> str:
    pools = words.SURNAMES + words.GIVEN_CHARACTERS + words.PLACE_CHARACTERS + words.BRAND_CHARACTERS
    return pools + words.FOREIGN_CHARACTERS + "，。：；、“”？！（）《》·０１２３４５６７８９"


def _task_prompts() -> list[str]:
    """The fixed parts of the prompts of the two tasks, so that a prompt has few tokens."""
    labels = [topic.label for topic in words.TOPICS]
    ner, classification = Ner.with_labels(CCFBDCI_LABELS.values()), Classification(labels=tuple(labels))
    record = {"text": "", "options": ["甲"], "entities": [{"text": "甲", "label": label} for label in ner.labels]}
    prompts = [message["content"] for task in (ner, classification) for message in task.prompt(record)]
    return [*prompts, ner.answer(record), ner.answer({"entities": []}), "system\n", "user\n", "assistant\n"]


def _words() -> list[str]:
    """Words that become single tokens. Words that only the sample data uses are not among them."""
    found = [*corpus.training_words(), *CCFBDCI_LABELS.values(), *words.LANDMARK_SUFFIXES, *words.PLACE_SUFFIXES]
    found += [*words.INSTITUTION_SUFFIXES, *words.COMPANY_SUFFIXES]
    found += [word for topic in words.TOPICS for word in (topic.label, topic.other_label)]
    return found


def _fragments() -> list[str]:
    """The texts between the slots of the training templates, and the fixed texts of the lessons."""
    templates = corpus.TRAIN_TEMPLATES
    lines = [*templates.entity, *templates.empty, *templates.news, *lessons.fixed_text()]
    lines += [line for topic_lines in templates.news_by_topic.values() for line in topic_lines]
    return [piece for line in lines for piece in re.split(r"\{\w+\}", line) if piece]
