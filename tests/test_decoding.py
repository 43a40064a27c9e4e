"""Decoding: probabilities equal those of full sequences, answers are greedy, results are well-formed and in order."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import CONFIGS, NAMES, SLIDING, WHOLE, Oracle, save_model, starts_of, tiny_model, with_random_lora
from transformers import GenerationConfig

from sft.decoding import decode as decode_module
from sft.decoding import pieces as pieces_module
from sft.decoding.automaton import ROUNDS, Automaton, answer_format
from sft.decoding.choosing import decision_at
from sft.decoding.constrained import Bounds, decode
from sft.decoding.decode import predict, score_options
from sft.decoding.limits import Limits
from sft.decoding.vocabulary import vocabulary_of
from sft.model.encoding import encode_prompts, encode_texts, terminator_id
from sft.model.loading import load_base
from sft.tasks.classification import Classification
from sft.tasks.entity_lines import NO_ENTITY, entity_line
from sft.tasks.ner import Ner

OPTION_SETS = (
    ("体育", "体育新闻", "体育新闻联播"),  # each is a prefix of the next
    ("军", "经济与社会发展、国际关系及其他一切未归入以上各类的文章"),  # one option has one token, the other many
    tuple(f"选项{number}" for number in range(100)),
    ("唯一",),
)
LIMITS = Limits(max_length=512, max_new_tokens=10, batch_size=4)
RAW = Limits(max_length=512, max_new_tokens=400, batch_size=1, constrained=False)


def some_prompts(lengths: tuple[int, ...]) -> list[list[int]]:
    generator = random.Random(0)
    return [[generator.randrange(480) for _ in range(length)] for length in lengths]


@torch.no_grad()
def scored_alone(model, tokenizer, prompt: list[int], options: tuple[str, ...]) -> torch.Tensor:
    """Each option's log-probability, computed from its own full sequence."""
    scores = []
    for ids in encode_texts(options, tokenizer):
        ids = [*ids, terminator_id(tokenizer)]
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0]
        log_probabilities = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        scores.append(log_probabilities[range(len(ids)), ids].sum())
    return torch.stack(scores)


def check_scores(model, tokenizer, prompts, options_of, tolerance: float) -> None:
    scores = score_options(model, tokenizer, prompts, options_of)
    for got, prompt, options in zip(scores, prompts, options_of, strict=True):
        expected = scored_alone(model, tokenizer, prompt, options)
        assert expected.unique().numel() == len(options)  # the model gives every option a different value
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


class TestScoreOptions:
    @pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["fp32", "fp64"])
    @pytest.mark.parametrize("architecture", WHOLE)
    def test_scores_are_those_of_each_options_own_sequence(self, tokenizer, architecture, dtype, tolerance):
        model = tiny_model(architecture, dtype)
        check_scores(model, tokenizer, some_prompts((5, 40, 17, 23)), OPTION_SETS, tolerance)

    @pytest.mark.parametrize("lengths", [(3, 5), (8, 9), (30, 20)], ids=["inside", "on the edge of", "beyond"])
    @pytest.mark.parametrize("architecture", SLIDING)
    def test_scores_are_right_with_a_sliding_window(self, tokenizer, architecture, lengths):
        model = tiny_model(architecture, torch.float64)
        check_scores(model, tokenizer, some_prompts(lengths), (("体育", "体育新闻"), ("军", "经济", "体育")), 1e-10)

    def test_a_long_option_counts_towards_the_window(self, tokenizer):
        model = tiny_model("sliding_qwen2", torch.float64)
        check_scores(model, tokenizer, some_prompts((4,)), (("军", "体育新闻联播" * 20),), 1e-10)

    @pytest.mark.parametrize("architecture", SLIDING)
    def test_scores_are_right_one_token_past_the_window(self, tokenizer, architecture):
        model = tiny_model(architecture, torch.float64)
        longest_tokens = max(map(len, encode_texts(OPTION_SETS[0], tokenizer)))
        for length in (12 - longest_tokens, 13 - longest_tokens):  # the sliding window is 12 tokens
            check_scores(model, tokenizer, some_prompts((max(1, length),)), OPTION_SETS[:1], 1e-10)

    def test_every_model_takes_one_pass_for_all_options(self, tokenizer):
        for architecture in CONFIGS:
            model = tiny_model(architecture)
            passes = []
            model.base_model.register_forward_hook(lambda *_, passes=passes: passes.append(1))
            score_options(model, tokenizer, some_prompts((30, 20)), [("体育", "军事", "经济")] * 2)
            assert len(passes) == 1

    def test_an_adapter_takes_part(self, tokenizer):
        model = with_random_lora(tiny_model("qwen2", torch.float64))
        check_scores(model, tokenizer, some_prompts((5, 20)), OPTION_SETS[:2], 1e-10)
        scores = score_options(model, tokenizer, some_prompts((5,)), OPTION_SETS[:1])[0]
        with model.disable_adapter():
            without = score_options(model, tokenizer, some_prompts((5,)), OPTION_SETS[:1])[0]
        assert (scores - without).abs().max() > 0.1

    def test_half_precision_scores_are_float32(self, tokenizer):
        (scores,) = score_options(
            tiny_model("qwen2", torch.bfloat16), tokenizer, some_prompts((5,)), (("体育", "军"),)
        )
        assert scores.dtype == torch.float32


def classification_records() -> list[dict]:
    options = [OPTION_SETS[0], None, ("军事", "经济")]
    texts = ["赢", "昨天国家队在上海赢了比赛。" * 3, "军<|im_end|>", "经济" * 300, "体育新闻，" * 9, "a", "𠮷" * 7]
    return [
        {"text": text} | ({"options": options[index % 3]} if options[index % 3] else {})
        for index, text in enumerate(texts)
    ]


class TestPredictLabels:
    def test_options_that_rows_share_are_encoded_once_and_not_for_each_row(self, tokenizer, monkeypatch):
        encoded = []

        def noted(texts, tokenizer):
            encoded.append(tuple(texts))
            return encode_texts(texts, tokenizer)

        monkeypatch.setattr(decode_module, "encode_texts", noted)
        monkeypatch.setattr(pieces_module, "encode_texts", noted)
        task, others = Classification(labels=OPTION_SETS[2], system_prompt="请选。"), ("军事", "经济")
        records = [{"text": f"文本{row}"} | ({"options": others} if row % 4 == 3 else {}) for row in range(8)]
        results = list(predict(tiny_model("qwen2"), tokenizer, task, records, replace(LIMITS, max_length=4000)))
        assert [tuple(result["scores"]) for result in results] == [task.options(record) for record in records]
        assert encoded.count(OPTION_SETS[2]) == 1 + 2  # for the lengths, and in each of two batches
        assert encoded.count(others) <= 1 + 2

    @pytest.mark.parametrize("batch_size", [3, 16])
    def test_results_do_not_depend_on_the_batch_size(self, tokenizer, classification, batch_size):
        model = tiny_model("qwen2")
        records = classification_records()
        alone = [
            result
            for record in records
            for result in predict(model, tokenizer, classification, [record], Limits(120, 8, 1))
        ]
        batched = list(predict(model, tokenizer, classification, records, Limits(120, 8, batch_size)))
        assert [result["label"] for result in batched] == [result["label"] for result in alone]
        for got, expected in zip(batched, alone, strict=True):
            assert got["scores"] == pytest.approx(expected["scores"], rel=1e-4, abs=1e-7)

    def test_the_label_is_the_most_probable_of_the_rows_own_options(self, tokenizer, classification):
        records = classification_records()
        for record, result in zip(
            records, predict(tiny_model("qwen2"), tokenizer, classification, records, LIMITS), strict=True
        ):
            assert tuple(result["scores"]) == tuple(record.get("options") or classification.labels)
            assert sum(result["scores"].values()) == pytest.approx(1)
            assert result["score"] == max(result["scores"].values()) == result["scores"][result["label"]]

    def test_prompts_stay_within_max_length_with_room_for_every_option(self, tokenizer, classification):
        model = tiny_model("qwen2")
        widths = []
        model.base_model.register_forward_pre_hook(
            lambda module, args, inputs: widths.append(inputs["input_ids"].shape[1]), with_kwargs=True
        )
        record = {"text": "昨天国家队在上海赢了比赛。" * 30, "options": ("一", "二")}
        branch_tokens = sum(map(len, encode_texts(record["options"], tokenizer)))
        list(predict(model, tokenizer, classification, [record], Limits(100, 8, 1)))
        assert 80 < widths[0] <= 100 + branch_tokens

    def test_raw_labels_are_had_by_asking_for_them(self, tokenizer, classification):
        """A random model's answer is not one of the options, so the label stays None."""
        records = classification_records()
        for result in predict(
            tiny_model("qwen2"), tokenizer, classification, records, replace(LIMITS, constrained=False)
        ):
            assert (result["label"], result["unparsable"]) == (None, True)
            assert 0 < result["score"] < 1 and result["answer"]

    def test_a_record_that_cannot_fit_is_an_error_in_its_place(self, tokenizer, classification):
        many = tuple(f"选项{number}" for number in range(100))
        records = [{"text": "军"}, {"text": "军", "options": many}, {"text": "军事" * 90}]
        results = list(predict(tiny_model("qwen2"), tokenizer, classification, records, Limits(100, 8, 2)))
        assert ["error" if "error" in result else "label" for result in results] == ["label", "error", "label"]
        assert "超过 100" in results[1]["error"]

    def test_nothing_in_gives_nothing_out(self, tokenizer, classification):
        assert list(predict(tiny_model("qwen2"), tokenizer, classification, [], LIMITS)) == []

    def test_the_model_is_left_as_it_was(self, tokenizer, classification):
        model = tiny_model("qwen2").train()
        list(predict(model, tokenizer, classification, [{"text": "军"}], LIMITS))
        assert model.training


class Recording(Ner):
    """An NER task that records the model's answers."""

    def parse(self, answer: str, record: dict) -> dict:
        self.__dict__.setdefault("answers", {})[record["text"]] = answer
        return super().parse(answer, record)


TEXTS = ["张伟", "昨天张伟到了上海。", "菲律宾" * 9, "<|im_end|>张伟", "𠮷"]
ANSWER_TOKENS = 10


def answers(model, tokenizer, texts: list[str], batch_size: int) -> dict[str, str]:
    task = Recording(labels=("地理实体", "人名"), system_prompt="请提取实体。")
    limits = Limits(max_length=512, max_new_tokens=ANSWER_TOKENS, batch_size=batch_size, constrained=False)
    list(predict(model, tokenizer, task, [{"text": text} for text in texts], limits))
    return task.answers


@torch.no_grad()
def greedy_answer(model, tokenizer, text: str) -> str:
    """Greedy decoding of one text, without cache or batch."""
    task = Ner(labels=("地理实体", "人名"), system_prompt="请提取实体。")
    (ids,) = encode_prompts([{"text": text}], task, tokenizer)
    answer_ids = []
    for _ in range(ANSWER_TOKENS):
        token = model(input_ids=torch.tensor([ids + answer_ids])).logits[0, -1].argmax().item()
        if token == terminator_id(tokenizer):
            break
        answer_ids.append(token)
    return tokenizer.decode(answer_ids)


class TestGreedyAnswers:
    @pytest.mark.parametrize("architecture", CONFIGS)
    def test_answers_are_greedy_whatever_the_batch_size(self, tokenizer, architecture):
        model = tiny_model(architecture)
        expected = {text: greedy_answer(model, tokenizer, text) for text in TEXTS}
        assert len(set(expected.values())) > 3
        for batch_size in (2, 16):
            assert answers(model, tokenizer, TEXTS, batch_size) == expected

    def test_sampling_defaults_of_the_base_model_are_ignored(self, tokenizer, tmp_path):
        model = tiny_model("qwen2")
        model.generation_config = GenerationConfig(
            do_sample=True, temperature=50.0, top_k=400, repetition_penalty=9.0, no_repeat_ngram_size=1
        )
        loaded = load_base(save_model(model, tokenizer, tmp_path), torch.float32)
        expected = {text: greedy_answer(model, tokenizer, text) for text in TEXTS[:3]}
        assert any(len(set(answer)) < len(answer) for answer in expected.values())  # with repeated tokens
        assert answers(loaded, tokenizer, TEXTS[:3], 2) == expected
        assert answers(with_random_lora(loaded), tokenizer, TEXTS[:3], 2) != expected


class TestPredictEntities:
    @settings(max_examples=15, deadline=None)
    @given(
        sentences=st.lists(
            st.lists(st.sampled_from([*NAMES, "到了", "，", "a ", "昨天"]), max_size=4).map("".join), max_size=12
        ),
        batch_size=st.integers(1, 5),
        constrained=st.booleans(),
    )
    def test_long_documents_have_offsets_in_the_whole_text(self, tokenizer, sentences, batch_size, constrained):
        ner = Ner(labels=("地理实体", "人名"), system_prompt="请提取实体。")
        documents = ["。".join(sentences), "张伟。", "没有。", ("。".join(sentences) + "。") * 3]
        limits = Limits(140, 2000, batch_size, constrained)
        oracle = Oracle(tokenizer)
        results = list(predict(oracle, tokenizer, ner, [{"text": text} for text in documents], limits))
        assert sum(map(len, oracle.sentences)) >= sum(map(len, documents))
        for text, result in zip(documents, results, strict=True):
            found = [(entity["start"], entity["end"], entity["text"]) for entity in result["entities"]]
            assert found == sorted((s, s + len(name), name) for name in NAMES for s in starts_of(name, text))
            assert all(0 < entity["score"] <= 1 for entity in result["entities"])
            assert not result["unparsable"]

    def test_an_entitys_score_is_the_probability_of_its_line(self, tokenizer, ner):
        oracle = Oracle(tokenizer)
        (result,) = predict(oracle, tokenizer, ner, [{"text": "张伟到上海"}], RAW)
        answer = oracle.answer("张伟到上海")
        ids = encode_texts([answer], tokenizer)[0]
        ends_line = next(i for i in range(len(ids)) if "\n" in tokenizer.decode(ids[: i + 1]))
        first, second = (entity["score"] for entity in result["entities"])
        assert first == pytest.approx(oracle.token_probability() ** (ends_line + 1), rel=1e-5)
        assert second == pytest.approx(oracle.token_probability() ** (len(ids) - ends_line - 1), rel=1e-5)

    def test_an_entity_has_the_same_score_in_both_ways_but_for_words_that_are_fixed(self, tokenizer, ner):
        """Every token has the same probability here, so a score tells how many tokens it is made of."""
        oracle, vocabulary = Oracle(tokenizer), vocabulary_of(tokenizer)
        (free,) = predict(oracle, tokenizer, ner, [{"text": "张伟到上海"}], RAW)
        (found,) = predict(oracle, tokenizer, ner, [{"text": "张伟到上海"}], replace(RAW, constrained=True))
        assert found["answer"] == free["answer"]
        automaton = Automaton("张伟到上海", answer_format(ner.labels), vocabulary)
        state, decided = automaton.begin, [0, 0, 0]
        for token_id in encode_texts([free["answer"]], tokenizer)[0]:
            decided[state.entities] += decision_at(automaton, state, True, vocabulary).decides
            state = automaton.after(state, vocabulary.spelling[token_id])
        for entity, tokens in zip(found["entities"], decided, strict=False):
            assert entity["score"] == pytest.approx(oracle.token_probability() ** tokens, rel=1e-5)
            assert tokens >= 3  # that it begins, its text, its label

    @pytest.mark.parametrize(
        ("names", "problems"),
        [
            (["上海", "张伟"], {"out_of_order": 1}),
            (["张伟", "张伟", "上海"], {"repeated": 1}),
            (["张伟", "北京", "上海"], {"invented": 1}),
            (["张到", "张伟到", "张伟", "上"], {"invented": 1, "repeated": 1}),
            (["张伟", "\U0002b740张", "上海"], {"invented": 1}),  # begins with a part of a character
        ],
    )
    def test_a_constrained_answer_says_what_the_model_says_and_the_result_leaves_out_the_rest(
        self, tokenizer, ner, names, problems
    ):
        oracle = Oracle(tokenizer)
        oracle.answer = lambda sentence: "\n".join(entity_line(name, "人名") for name in names)
        rows = [{"text": "𠮷张伟到上海"}]
        (free,) = predict(oracle, tokenizer, ner, rows, RAW)
        (found,) = predict(oracle, tokenizer, ner, rows, replace(RAW, constrained=True))
        assert found["answer"] == free["answer"] == oracle.answer("")
        assert found["problems"] == free["problems"] == dict.fromkeys(found["problems"], 0) | problems
        places = [[(entity["start"], entity["end"]) for entity in result["entities"]] for result in (found, free)]
        assert places[0] == places[1] != []

    def test_an_answer_that_goes_round_in_circles_ends_and_is_not_cut(self, tokenizer, ner):
        oracle, vocabulary = Oracle(tokenizer), vocabulary_of(tokenizer)
        oracle.answer = lambda sentence: "\n".join([entity_line("张伟", "人名"), entity_line("北京", "人名")] * 30)
        (prompt,) = encode_prompts([{"text": "张伟到上海"}], ner, tokenizer)
        (answer,) = decode(oracle, vocabulary, ner.labels, ["张伟到上海"], [prompt], Bounds(1, 2000))
        assert answer.text.count("\n") == 2 * ROUNDS + 1 and not answer.cut

    def test_an_answer_is_cut_where_the_model_would_go_on(self, tokenizer, ner):
        oracle, vocabulary = Oracle(tokenizer), vocabulary_of(tokenizer)
        (prompt,) = encode_prompts([{"text": "张伟到上海"}], ner, tokenizer)
        whole = len(encode_texts([oracle.answer("张伟到上海")], tokenizer)[0])
        for answer_tokens, entities in ((1, 1), (whole // 2, 1), (whole, 2), (whole + 9, 2)):
            (answer,) = decode(oracle, vocabulary, ner.labels, ["张伟到上海"], [prompt], Bounds(1, answer_tokens))
            assert (len(answer.scores), answer.cut) == (entities, entities < 2)

    def test_blank_lines_before_an_answer_move_no_score(self, tokenizer, ner):
        oracle = Oracle(tokenizer)
        plain = oracle.answer
        (expected,) = predict(oracle, tokenizer, ner, [{"text": "张伟到上海"}], RAW)
        oracle.answer = lambda sentence: f" \n \n{plain(sentence)}"
        (result,) = predict(oracle, tokenizer, ner, [{"text": "张伟到上海"}], RAW)
        assert [entity["text"] for entity in result["entities"]] == ["张伟", "上海"]
        assert result["entities"][1]["score"] == pytest.approx(expected["entities"][1]["score"])

    def test_an_answer_cut_off_is_unparsable_and_keeps_its_whole_lines(self, tokenizer, ner):
        oracle = Oracle(tokenizer)
        answer_ids = encode_texts([oracle.answer("张伟到上海")], tokenizer)[0]
        for missing_tokens, whole in ((1, ["张伟"]), (0, ["张伟", "上海"])):  # in both cases the terminator is missing
            limits = replace(RAW, max_new_tokens=len(answer_ids) - missing_tokens)
            (result,) = predict(oracle, tokenizer, ner, [{"text": "张伟到上海"}], limits)
            assert result["unparsable"]
            assert [entity["text"] for entity in result["entities"]] == whole

    def test_a_text_is_split_no_finer_than_the_instruction_leaves_room_for(self, tokenizer):
        ner = Ner(labels=("人名",), system_prompt="请提取实体，" * 12)
        text = "张伟到上海。" * 10
        instruction = len(encode_prompts([{"text": ""}], ner, tokenizer)[0])
        oracle = Oracle(tokenizer)
        limits = Limits(max_length=instruction + 60, max_new_tokens=400, batch_size=2)
        (result,) = predict(oracle, tokenizer, ner, [{"text": text}], limits)
        assert len(result["entities"]) == 20
        prompts = encode_prompts([{"text": sentence} for sentence in oracle.sentences], ner, tokenizer)
        assert all(instruction < len(ids) <= instruction + 30 for ids in prompts)

    def test_an_instruction_over_max_length_is_an_error_in_its_place(self, tokenizer, ner):
        results = list(predict(Oracle(tokenizer), tokenizer, ner, [{"text": "张伟"}] * 2, Limits(10, 400, 2)))
        assert [list(result) for result in results] == [["error"], ["error"]]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([*NAMES, "人名"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["entity_text", "entity_label", "x"]), inner, max_size=3),
    max_leaves=5,
)
GOOD_LINES = st.builds(
    entity_line, st.sampled_from([*NAMES, "伟到", "张", "没有的"]), st.sampled_from(["人名", "未知"])
)
ANSWER_LINES = (
    GOOD_LINES
    | st.text(max_size=20)
    | JSON_VALUES.map(json.dumps)
    | GOOD_LINES.flatmap(lambda line: st.integers(0, len(line)).map(lambda cut: line[:cut]))
    | st.sampled_from([NO_ENTITY, "[" * 10_000, '{"entity_text": ' + "9" * 5000 + "}", '"\\ud800"', "{}"])
)
SURFACES = st.text(st.sampled_from(list('张伟"\\\n\t{}[]a ,:\u2028\x00𠮷')), min_size=1, max_size=4)


class TestParse:
    @settings(max_examples=300, deadline=None)
    @given(lines=st.lists(ANSWER_LINES, max_size=6), text=st.lists(st.sampled_from([*NAMES, "到"])).map("".join))
    def test_any_answer_gives_entities_of_the_text_that_do_not_overlap(self, lines, text):
        ner = Ner(labels=("地理实体", "人名"), system_prompt="")
        result = ner.parse("\n".join(lines), {"text": text})
        end = 0
        for entity in result["entities"]:
            assert end <= entity["start"] < entity["end"]
            assert text[entity["start"] : entity["end"]] == entity["text"]
            assert entity["label"] in ner.labels
            end = entity["end"]

    @settings(max_examples=200, deadline=None)
    @given(parts=st.lists(st.tuples(st.text(st.sampled_from("。到了"), max_size=3), SURFACES), max_size=5))
    def test_an_answer_is_understood_as_it_was_written(self, parts):
        ner = Ner(labels=("地理实体", "人名"), system_prompt="")
        text, entities, cursor = "", [], 0
        for index, (gap, surface) in enumerate(parts):
            text += gap + surface
            start = text.find(surface, cursor)  # the convention: the leftmost after the previous entity's end
            if start == len(text) - len(surface):
                cursor = len(text)
                entities.append({"start": start, "end": cursor, "text": surface, "label": ner.labels[index % 2]})
        record = {"text": text, "entities": entities}
        result = ner.parse(ner.answer(record), record)
        parsed = [{name: entity[name] for name in ("start", "end", "text", "label")} for entity in result["entities"]]
        assert parsed == entities
        assert not result["unparsable"]
        assert not any(result["problems"].values())

    def test_what_is_wrong_with_an_answer_is_counted(self, ner):
        lines = [
            entity_line("张伟", "人名"),
            entity_line("上海", "未知"),
            entity_line("北京", "地理实体"),
            entity_line("张伟", "人名"),
            "上海",
            entity_line("昨天", "人名"),
        ]
        result = ner.parse("\n".join(lines), {"text": "昨天张伟到上海"})
        assert result["problems"] == {
            "invalid": 1, "unknown_label": 1, "invented": 1, "repeated": 1, "out_of_order": 1,
        }  # fmt: skip
        assert [(entity["text"], entity["line"]) for entity in result["entities"]] == [("昨天", 5), ("张伟", 0)]
        assert result["unparsable"]

    def test_a_generated_label_that_is_no_option_is_no_label(self):
        task = Classification(labels=("体育", "军事"))
        assert task.parse(" 体育\n", {"text": "a"}) == {"label": "体育", "unparsable": False}
        assert task.parse("经济", {"text": "a"}) == {"label": None, "unparsable": True}
        assert task.parse("经济", {"text": "a", "options": ["经济"]})["label"] == "经济"
