"""Preprocessing is fast and changes nothing: what prompts share is tokenised once, what was encoded is kept."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft import encoded_cache, encoding
from sft.encoded_cache import encode_rows_cached
from sft.encoding import encode_prompts, encode_rows
from sft.ner import Ner

# ---- faster, and the same ----


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
    monkeypatch.setattr(encoding, "_shared_characters", lambda *_: 5)  # within the control token
    assert encoding._tokenize(texts, tokenizer) == whole


# ---- kept on disk ----


def numbered(count: int) -> list[tuple[int, dict]]:
    return [(n, {"text": f"张伟到了{n}", "entities": []}) for n in range(1, count + 1)]


def test_rows_from_the_cache_are_the_rows_that_were_encoded(tokenizer, ner, tmp_path, monkeypatch):
    monkeypatch.setattr(encoded_cache, "WORTH_KEEPING_ROWS", 3)
    first = encode_rows_cached(numbered(30), ner, tokenizer, 200, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    monkeypatch.setattr(encoded_cache, "encode_rows", None)  # not called again
    assert encode_rows_cached(numbered(30), ner, tokenizer, 200, tmp_path / "cache") == first
    assert len(first[0]) == 30 and file.suffix == ".safetensors"


def test_nothing_stale_and_nothing_broken_comes_from_the_cache(tokenizer, ner, tmp_path, monkeypatch):
    monkeypatch.setattr(encoded_cache, "WORTH_KEEPING_ROWS", 3)
    rows, _ = encode_rows_cached(numbered(5), ner, tokenizer, 200, tmp_path)
    changed = [(line, record | {"text": record["text"].replace("3", "4")}) for line, record in numbered(5)]
    assert encode_rows_cached(changed, ner, tokenizer, 200, tmp_path) == encode_rows(changed, ner, tokenizer, 200)
    other = dataclasses.replace(ner, system_prompt="别的提示。")
    assert encode_rows_cached(numbered(5), other, tokenizer, 200, tmp_path)[0] != rows
    assert len(list(tmp_path.iterdir())) == 3
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:50])
    assert encode_rows_cached(numbered(5), ner, tokenizer, 200, tmp_path)[0] == rows
    for count in range(6, 14):
        encode_rows_cached(numbered(count), ner, tokenizer, 200, tmp_path)
    assert len(list(tmp_path.iterdir())) == encoded_cache.KEPT_FILES


def test_a_folder_that_cannot_be_written_costs_only_the_cache(tokenizer, ner, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(encoded_cache, "WORTH_KEEPING_ROWS", 3)
    (tmp_path / "file").write_text("")
    rows, _ = encode_rows_cached(numbered(5), ner, tokenizer, 200, tmp_path / "file")
    assert len(rows) == 5 and "没有存下来" in caplog.text
