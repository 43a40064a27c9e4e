"""Encoding: rows are tokenised exactly as the template renders them, and never exceed the maximum length."""

from __future__ import annotations

import copy
import tracemalloc
from dataclasses import replace

import orjson
import pytest
from conftest import build_tokenizer
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sft.data.records import make_record, read_task_records
from sft.decoding.limits import Limits
from sft.decoding.pieces import fit
from sft.errors import InputError
from sft.model.encoding import (
    control_token_pattern,
    encode_answers,
    encode_prompts,
    encode_rows,
    encode_texts,
    terminator_id,
)
from sft.model.loading import load_tokenizer
from sft.tasks.classification import Classification
from sft.tasks.ner import Ner

SHARED_FIXTURES = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
CONTROL_TEXTS = ("<|im_end|>", "<|im_start|>", "<|endoftext|>", "<tool_call>", "</tool_call>")
PIECES = st.sampled_from(
    ["张伟", "上海", "。", "！", "，", " ", "\n", "<", "|>", "a b", "1", "𠮷", "é", "<|im_", "\u200b", '"', "\\"]
)
PLAIN_TEXT = st.lists(PIECES, min_size=1, max_size=12).map("".join)
ANY_TEXT = st.lists(PIECES | st.sampled_from(CONTROL_TEXTS), min_size=1, max_size=12).map("".join)


def entity(text: str, surface: str, label: str = "人名", after: int = 0) -> dict:
    start = text.index(surface, after)
    return {"start": start, "end": start + len(surface), "text": surface, "label": label}


def rendered(task, record: dict, tokenizer) -> str:
    """Prompt and answer as the chat template renders them."""
    messages = [*task.prompt(record), {"role": "assistant", "content": task.answer(record)}]
    return tokenizer.apply_chat_template(messages, tokenize=False)


def test_data_take_a_few_bytes_a_token(tokenizer, tmp_path):
    """Records without a second copy of their text or options, and rows in which a token is a pointer."""
    task = Classification(tuple(f"标签{n}" for n in range(50)))
    rows = [
        {"text": f"张伟在上海说了第{n}句话。" * 20, "options": list(task.labels), "label": "标签7"} for n in range(300)
    ]
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"".join(orjson.dumps(make_record(task, row)) + b"\n" for row in rows))
    encode_rows([(1, rows[0])] * 20, task, tokenizer, 9999)  # what is found once for a tokenizer is found
    tracemalloc.start()
    records = read_task_records(path, task)
    of_records = tracemalloc.get_traced_memory()[0]
    encoded, _ = encode_rows(records, task, tokenizer, 9999)
    of_rows = tracemalloc.get_traced_memory()[0] - of_records
    tracemalloc.stop()
    characters, tokens = sum(len(row["text"]) for row in rows), sum(map(len, encoded))
    assert of_records < 2 * characters + 1500 * len(rows)
    assert of_rows < 12 * tokens


def control_ids(tokenizer) -> set[int]:
    return set(tokenizer.convert_tokens_to_ids(list(CONTROL_TEXTS)))


def expected_prompt(task, record: dict, tokenizer) -> list[int]:
    return tokenizer.apply_chat_template(
        task.prompt(record),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
        sanitize_control_tokens=True,
    )


def check_row_is_the_templates_rendering(task, record: dict, tokenizer) -> None:
    (row,), _ = encode_rows([(1, record)], task, tokenizer, 10_000)
    whole = rendered(task, record, tokenizer)
    decoded = tokenizer.decode(row.prompt_ids + row.answer_ids)
    assert whole.startswith(decoded)
    assert not whole.removeprefix(decoded).strip()  # the newline after the terminator is not trained on
    assert tokenizer.decode(row.answer_ids[:-1]) == task.answer(record)
    assert row.answer_ids[-1] == terminator_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")


class TestWhatTheModelSees:
    @SHARED_FIXTURES
    @given(text=ANY_TEXT)
    def test_a_classification_row_is_the_templates_rendering(self, tokenizer, classification, text):
        check_row_is_the_templates_rendering(classification, {"text": text, "label": "体育新闻"}, tokenizer)

    @SHARED_FIXTURES
    @given(text=ANY_TEXT, surface=ANY_TEXT)
    def test_an_ner_row_is_the_templates_rendering(self, tokenizer, ner, text, surface):
        record = {"text": text + surface, "entities": [entity(text + surface, surface)]}
        check_row_is_the_templates_rendering(ner, record, tokenizer)

    def test_rows_of_the_real_tokenizer_are_its_templates_rendering(self, real_tokenizer, classification, ner):
        text = "菲律宾总统埃斯特拉达<|im_end|>\n<tool_call>昨天𠮷"
        check_row_is_the_templates_rendering(classification, {"text": text, "label": "体育"}, real_tokenizer)
        record = {"text": text, "entities": [entity(text, "埃斯特拉达<|im_end|>")]}
        check_row_is_the_templates_rendering(ner, record, real_tokenizer)

    @SHARED_FIXTURES
    @given(texts=st.lists(ANY_TEXT, min_size=1, max_size=5))
    def test_a_batch_of_prompts_is_encoded_as_transformers_does_row_by_row(self, tokenizer, ner, texts):
        records = [{"text": text} for text in texts]
        assert encode_prompts(records, ner, tokenizer) == [expected_prompt(ner, r, tokenizer) for r in records]

    def test_a_batch_is_encoded_row_by_row_with_the_real_tokenizer(self, real_tokenizer, ner):
        records = [
            {"text": t} for t in ("\n南京", "<|im_end|>", "<tool_call>a", "a  \n\n b", " 𠮷", "<|fim_prefix|>x")
        ]
        assert encode_prompts(records, ner, real_tokenizer) == [
            expected_prompt(ner, record, real_tokenizer) for record in records
        ]

    def test_no_rows_encode_to_nothing(self, tokenizer, ner):
        assert encode_prompts([], ner, tokenizer) == encode_answers([], ner, tokenizer) == []


class TestControlTokens:
    @pytest.mark.parametrize("control", CONTROL_TEXTS)
    def test_text_and_options_never_become_control_tokens(self, tokenizer, control):
        task = Classification(labels=("体育", control), system_prompt="请选。")
        clean = Classification(labels=("体育", "军事"), system_prompt="请选。")
        (prompt,) = encode_prompts([{"text": f"前{control}后"}], task, tokenizer)
        (clean_prompt,) = encode_prompts([{"text": "前后"}], clean, tokenizer)
        controls = control_ids(tokenizer)
        assert [i for i in prompt if i in controls] == [i for i in clean_prompt if i in controls]
        assert control in tokenizer.decode(prompt)

    @pytest.mark.parametrize("control", CONTROL_TEXTS)
    def test_labels_and_entities_never_become_control_tokens(self, tokenizer, classification, ner, control):
        label = {"text": "无", "label": f"体育{control}"}
        named = {"text": control, "entities": [entity(control, control)]}
        for task, record in ((classification, label), (ner, named)):
            ((*answer_ids, end),) = encode_answers([record], task, tokenizer)
            assert not control_ids(tokenizer).intersection(answer_ids)
            assert end == terminator_id(tokenizer)
            assert tokenizer.decode(answer_ids) == task.answer(record)

    @pytest.mark.parametrize("control", ["<|im_end|>", "<|box_start|>", "<tool_call>"])
    def test_labels_never_become_the_real_tokenizers_control_tokens(self, real_tokenizer, control):
        (ids,) = encode_texts([f"体育{control}"], real_tokenizer)
        assert real_tokenizer.convert_tokens_to_ids(control) not in ids
        assert real_tokenizer.decode(ids) == f"体育{control}"

    @SHARED_FIXTURES
    @given(text=PLAIN_TEXT)
    def test_an_answer_without_control_tokens_is_encoded_as_usual(self, tokenizer, text):
        assert encode_texts([text], tokenizer) == [tokenizer.encode(text, add_special_tokens=False)]


class TestWhatIsKnownOfATokenizer:
    def test_its_added_tokens_are_listed_once_for_all_rows(self, classification, monkeypatch):
        tokenizer, listed = build_tokenizer(), []
        original = type(tokenizer).added_tokens_decoder.fget
        counted = property(lambda self: listed.append(1) or original(self))
        monkeypatch.setattr(type(tokenizer), "added_tokens_decoder", counted)
        for _ in range(2):
            before = len(listed)
            records = [{"text": "昨天国家队", "label": "体育"}] * 20
            encode_rows(list(enumerate(records)), classification, tokenizer, 200)
            fit(records, classification, tokenizer, Limits(max_length=200, max_new_tokens=8, batch_size=4))
        assert len(listed) == before

    def test_tokens_that_are_added_later_are_control_tokens(self):
        own = build_tokenizer()
        assert control_token_pattern(own).search("<new>") is None
        own.add_tokens("<new>", special_tokens=True)
        assert control_token_pattern(own).search("a<new>")
        word = next(word for word in own.get_vocab() if word.isascii() and len(word) > 2 and word.isalpha())
        assert control_token_pattern(own).search(word) is None
        own.add_special_tokens({"additional_special_tokens": [word]})  # the vocabulary has as many tokens as before
        assert control_token_pattern(own).search(word)

    def test_a_template_that_is_set_later_names_its_tokens_and_ends_its_answers(self):
        own = build_tokenizer()
        own.add_tokens("<mark>")
        assert control_token_pattern(own).search("<mark>") is None
        assert own.decode([terminator_id(own)]) == "<|im_end|>"
        own.chat_template = "<mark>" + own.chat_template.replace("<|im_end|>", "<|endoftext|>")
        assert control_token_pattern(own).search("<mark>")
        assert own.decode([terminator_id(own)]) == "<|endoftext|>"


class TestTerminator:
    def test_a_template_without_special_terminator_is_refused(self, tokenizer):
        plain = copy.deepcopy(tokenizer)
        plain.chat_template = "{% for message in messages %}{{ message['content'] + '\n' }}{% endfor %}"
        with pytest.raises(InputError, match="特殊 token"):
            terminator_id(plain)

    def test_a_tokenizer_without_template_gets_chatml(self, tmp_path, ner, caplog):
        bare = build_tokenizer()
        bare.chat_template = None
        bare.save_pretrained(tmp_path)
        loaded = load_tokenizer(tmp_path)
        assert "ChatML" in caplog.text
        assert loaded.decode([terminator_id(loaded)]) == "<|im_end|>"
        check_row_is_the_templates_rendering(ner, {"text": "张伟", "entities": []}, loaded)
        loaded.save_pretrained(tmp_path)
        caplog.clear()
        assert load_tokenizer(tmp_path).chat_template == loaded.chat_template  # it is saved with the tokenizer
        assert not caplog.records


def length(task, record: dict, tokenizer) -> int:
    (row,), _ = encode_rows([(1, record)], task, tokenizer, 10_000)
    return len(row)


class TestTooLong:
    @SHARED_FIXTURES
    @given(text=st.lists(PIECES, min_size=20, max_size=60).map("".join), room=st.integers(2, 60))
    @example(text="国家队在上海赢了比赛。" * 9 + "𠮷" * 60, room=90)  # cheap tokens first: the first guess is far off
    @example(text="𠮷" * 60 + "国家队在上海赢了比赛。" * 9, room=90)
    def test_classification_cuts_only_the_article_and_not_wastefully(self, tokenizer, classification, text, room):
        record = {"text": text, "label": "体育"}
        max_length = length(classification, record | {"text": ""}, tokenizer) + room
        (row,), report = encode_rows([(7, record)], classification, tokenizer, max_length)
        assert len(row) <= max_length
        assert row.line == 7
        assert row.answer_ids == encode_answers([record], classification, tokenizer)[0]
        if length(classification, record, tokenizer) <= max_length:
            assert report.shortened_lines == []
            return
        assert report.shortened_lines == [7]
        before, after = rendered(classification, record | {"text": "|TEXT|"}, tokenizer).split("|TEXT|")
        shown = tokenizer.decode(row.prompt_ids + row.answer_ids)
        assert shown.startswith(before)
        assert (shown + "\n").endswith(after)
        kept = shown[len(before) : len(shown) + 1 - len(after)]
        assert text.startswith(kept)
        longer = length(classification, record | {"text": text[: len(kept) + 1]}, tokenizer)
        assert max_length - len(row) < 8 or longer > max_length

    @SHARED_FIXTURES
    @given(text=st.lists(PIECES, min_size=20, max_size=60).map("".join), room=st.integers(4, 60))
    @example(text="国家队在上海赢了比赛。" * 9 + "𠮷" * 60, room=90)
    @example(text="国" * 61, room=60)  # one character too many: the sign in the middle must not take its place
    def test_both_ends_of_an_article_are_kept_and_not_wastefully(self, tokenizer, classification, text, room):
        task = replace(classification, long_text="ends")
        record = {"text": text, "label": "体育"}
        max_length = length(task, record | {"text": ""}, tokenizer) + room
        (row,), report = encode_rows([(7, record)], task, tokenizer, max_length)
        assert len(row) <= max_length
        if length(task, record, tokenizer) <= max_length:
            assert report.shortened_lines == []
            return
        assert report.shortened_lines == [7] and report.dropped_tokens > 0
        (piece,) = task.pieces(record, lambda piece: length(task, piece, tokenizer), max_length)
        read, at_end = piece["read_characters"], piece["read_at_end"]
        head, tail = text[: read - at_end], text[len(text) - at_end :]
        assert 0 <= len(head) - len(tail) <= 1 and len(head) + len(tail) < len(text) - 1
        assert piece["text"] == (f"{head}…{tail}" if tail else head)
        assert (
            row.prompt_ids
            == encode_rows([(7, record | {"text": piece["text"]})], task, tokenizer, 10_000)[0][0].prompt_ids
        )
        longer = (
            f"{text[: len(head) + (len(head) == len(tail))]}…{text[len(text) - len(tail) - (len(head) > len(tail)) :]}"
        )
        too_long = length(task, record | {"text": longer}, tokenizer) > max_length
        assert max_length - len(row) < 8 or too_long or read + 2 == len(text)

    @SHARED_FIXTURES
    @given(
        words=st.lists(PIECES | st.sampled_from(["〔张伟〕", "〔上海市〕", "〔a。b〕"]), min_size=10, max_size=50),
        room=st.integers(60, 150),
    )
    def test_ner_pieces_join_up_and_keep_every_entity_once(self, tokenizer, ner, words, room):
        text, entities = "", []
        for word in words:
            if word.startswith("〔"):
                surface = word[1:-1]
                start = len(text)
                entities.append({"start": start, "end": start + len(surface), "text": surface, "label": "人名"})
                word = surface
            text += word
        record = {"text": text, "entities": entities}
        max_length = length(ner, {"text": "", "entities": []}, tokenizer) + room
        pieces = ner.pieces(record, lambda piece: length(ner, piece, tokenizer), max_length)
        assert "".join(piece["text"] for piece in pieces) == text
        assert all(length(ner, piece, tokenizer) <= max_length for piece in pieces)
        moved, offset = [], 0
        for piece in pieces:
            for found in piece["entities"]:
                assert piece["text"][found["start"] : found["end"]] == found["text"]
                moved.append(found | {"start": found["start"] + offset, "end": found["end"] + offset})
            offset += len(piece["text"])
        assert moved == entities

    def test_ner_rows_are_split_at_sentence_ends_and_drop_nothing(self, tokenizer, ner):
        text = "昨天张伟到了上海。" * 6
        record = {"text": text, "entities": []}
        max_length = length(ner, record | {"text": text[: len(text) // 3]}, tokenizer)
        rows, report = encode_rows([(3, record)], ner, tokenizer, max_length)
        header, footer = rendered(ner, record, tokenizer).split(text)
        shown = [tokenizer.decode(row.prompt_ids + row.answer_ids) + "\n" for row in rows]
        texts = [text.removeprefix(header).removesuffix(footer) for text in shown]
        assert "".join(texts) == text
        assert all(text.endswith("。") for text in texts)
        assert (report.shortened_lines, report.pieces, report.dropped_tokens) == ([3], len(rows), 0)
        assert {row.line for row in rows} == {3}

    @pytest.mark.parametrize("kind", [Classification, Ner])
    def test_the_whole_of_a_long_text_is_encoded_once(self, tokenizer, kind):
        read = []

        class Noted(kind):
            def prompt(self, record: dict) -> list[dict[str, str]]:
                read.append(record["text"])
                return super().prompt(record)

        task = Noted(labels=("体育", "军事"), system_prompt="请选。")
        record = {"text": "昨天国家队在上海赢了比赛。" * 30, "label": "体育", "entities": []}
        max_length = length(task, record | {"text": ""}, tokenizer) + 60
        read.clear()
        encode_rows([(1, record)], task, tokenizer, max_length)
        assert read.count(record["text"]) == 1 < len(read)
        read.clear()
        fit([record], task, tokenizer, Limits(max_length, max_new_tokens=20, batch_size=1))
        assert read.count(record["text"]) == 1 < len(read)

    def test_the_report_counts_the_tokens_cut_away(self, tokenizer, classification):
        record = {"text": "昨天国家队在上海赢了比赛。" * 5, "label": "体育"}
        whole = length(classification, record, tokenizer)
        (row,), report = encode_rows([(1, record)], classification, tokenizer, whole - 20)
        assert report.lengths == [whole]
        assert report.dropped_tokens == whole - len(row) >= 20

    def test_a_length_too_small_for_the_instruction_names_the_row(self, tokenizer, classification, ner):
        with pytest.raises(InputError, match=r"第 5 行.*--max_length"):
            encode_rows([(5, {"text": "正文", "label": "体育"})], classification, tokenizer, 20)
        with pytest.raises(InputError, match=r"第 6 行.*--max_length"):
            encode_rows([(6, {"text": "正文", "entities": []})], ner, tokenizer, 20)

    def test_an_entity_longer_than_the_length_is_refused_not_cut(self, tokenizer):
        task = Ner(labels=("人名",), system_prompt="。")
        text = "张" * 200
        record = {"text": text, "entities": [entity(text, text)]}
        with pytest.raises(InputError, match="无法再拆分"):
            encode_rows([(1, record)], task, tokenizer, 100)
