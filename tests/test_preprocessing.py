"""Preprocessing tokenises the text that all prompts share only once, and the token ids stay the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.model import encoding
from sft.model.encoding import encode_prompts
from sft.tasks.ner import Ner


@given(st.lists(st.text(max_size=12), min_size=16, max_size=20), st.text(max_size=6), st.text(max_size=6))
def test_what_prompts_share_is_tokenised_once_to_the_same_ids(tokenizer, texts, before, after):
    rendered = [
        f"<|im_start|>system\n{before}<|im_end|>\n<|im_start|>user\n{after}{text}<|im_end|>\n" for text in texts
    ]
    alone = [tokenizer(text, add_special_tokens=False).input_ids for text in rendered]
    assert encoding._tokenize(rendered, tokenizer) == alone


@pytest.mark.shared
def test_the_real_tokenizer_gives_real_prompts_the_same_ids_faster(real_tokenizer):
    task = Ner.with_labels(["人名", "地点", "组织"])
    records = [
        {"text": text, "entities": []}
        for text in ["", " ", "\n", "　张伟", "2号", "’s", "<tool", *"菲律宾总统说，军方"]
    ]
    prompts = encode_prompts(records, task, real_tokenizer)
    assert prompts == [encode_prompts([record], task, real_tokenizer)[0] for record in records]
    rendered = real_tokenizer.apply_chat_template([task.prompt(record) for record in records], tokenize=False)
    assert encoding._shared_characters(rendered, real_tokenizer) > 100


def test_a_tokenizer_that_would_join_the_two_parts_is_given_them_whole(monkeypatch, tokenizer):
    texts = [f"张伟到了<|im_start|>上海{n}" for n in range(16)]
    whole = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    monkeypatch.setattr(encoding, "_shared_characters", lambda *_: 5)  # a cut inside the control token
    assert encoding._tokenize(texts, tokenizer) == whole
