"""Fixtures that several tests share: a tokenizer like Qwen2's and the two tasks. They need no network."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before importing transformers and peft
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before importing torch: tiny models need no threads

import pytest
from hypothesis import HealthCheck, settings

from tests.browser import browser, chromium  # noqa: F401  fixtures

settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # shared cores
settings.register_profile("ci", settings.get_profile("busy"), derandomize=True)  # in CI, always the same examples
settings.load_profile("ci" if os.environ.get("CI") else "busy")

SHARED_TOKENIZER = Path(__file__).resolve().parents[2] / "shared" / "qwen" / "Qwen2.5-1.5B-Instruct"

# The regular expression with which Qwen2 splits text into words.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The part of Qwen2.5's template that these tasks use. Like the real one it names <tool_call>, no special token.
CHAT_TEMPLATE = (
    "{% if tools %}{{ '<tool_call></tool_call>' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = (
    "类型选项：体育、军事、体育新闻、经济\n文本：昨天国家队在上海赢了比赛。",
    "南京大学的张伟昨天到了上海，见到了菲律宾总统埃斯特拉达。",
    '{"entity_text": "菲律宾", "entity_label": "地理实体"}\n{"entity_text": "张伟", "entity_label": "人名"}',
    "你是一个文本分类领域的专家，你会接收到几个分类选项和一段文本，请从选项中选出文本的正确类型，只输出类型本身。",
    "你是一个文本实体识别领域的专家，你需要从给定的句子中按出现顺序提取地理实体、人名、组织、地点实体。",
    "没有找到任何实体 Military Space <|im_end|> <tool_call> user assistant system",
)


def build_tokenizer():
    """A byte-level BPE like Qwen2's, trained on ``CORPUS``; the same at every run."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<tool_call>", "</tool_call>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer's folder on disk. Shared by all tests: do not write to it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path):
    """The tokenizer as ``sft.model.loading.load_tokenizer`` returns it. Shared by all tests: do not change it."""
    from sft.model.loading import load_tokenizer

    return load_tokenizer(tokenizer_folder)


@pytest.fixture(scope="session")
def real_tokenizer():
    """Qwen2.5's own tokenizer; the test is skipped where its files are not beside the repository."""
    if not SHARED_TOKENIZER.is_dir():
        pytest.skip(f"no real tokenizer in {SHARED_TOKENIZER}")
    from sft.model.loading import load_tokenizer

    return load_tokenizer(SHARED_TOKENIZER)


@pytest.fixture
def classification():
    """The classification task; one of its labels is a prefix of another."""
    from sft.tasks.classification import Classification

    return Classification(labels=("体育", "体育新闻", "军事", "经济"), system_prompt="请选出类型。")


@pytest.fixture
def ner():
    """The NER task with a short instruction."""
    from sft.tasks.ner import Ner

    return Ner(labels=("地理实体", "人名"), system_prompt="请提取实体。")
