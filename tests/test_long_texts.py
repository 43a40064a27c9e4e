"""Long texts: pieces cover them, nothing is found twice or lost at a cut, and what was not read or said is told."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import NAMES, Oracle, save_adapter, starts_of, tiny_model

import predict as script
from benchmarks.long_texts import joined, scores
from sft.console import say_once
from sft.decoding.decode import predict
from sft.decoding.limits import Limits
from sft.decoding.pieces import MOST_RESTS, Piece, fit, read_on
from sft.errors import InputError
from sft.model.encoding import encode_prompts, encode_rows, token_starts
from sft.model.loading import load_tokenizer
from sft.prediction.label_studio import task_of
from sft.prediction.predictor import Predictor
from sft.prediction.rows import to_output, to_record
from sft.prediction.shown import ShownRows, look_of
from sft.tasks.evaluation import Tally
from sft.tasks.long_texts import Span, ends_in, merged, spans_to_read
from sft.tasks.ner import Ner
from sft.tasks.settings import TaskSettings
from sft.training.lengths import LEAST_PIECE_TOKENS, usual_text_tokens

ROOT = Path(script.__file__).parent
NER = Ner(labels=("地理实体", "人名"), system_prompt="请提取实体。")
WORDS = st.sampled_from(["到了", "，", "。", "”", "\n", "a b", "昨天的会议", "𠮷", "！！", "。”", *NAMES])
TEXTS = st.lists(WORDS, min_size=1, max_size=60).map("".join)


def one_token_each(text: str) -> list[int]:
    return list(range(len(text)))


@given(text=TEXTS, most=st.integers(1, 60))
def test_the_spans_cover_the_text_and_share_at_most_a_third(text, most):
    spans = spans_to_read(text, one_token_each(text), most)
    assert (spans[0].start, spans[-1].end) == (0, len(text))
    for span in spans:
        assert 0 < span.end - span.start <= most
    for left, right in pairwise(spans):
        assert left.start < right.start <= left.end < right.end
        assert 3 * (left.end - right.start) <= most
    read = Counter(place for span in spans for place in range(*span))
    assert read.keys() == set(range(len(text))) and max(read.values()) <= 2


@given(text=TEXTS, most=st.integers(1, 60))
def test_a_sentence_that_fits_is_never_cut(text, most):
    """The ends of all spans are ends of sentences, but for those in a sentence of more tokens than a span may have."""
    sentences = [0, *ends_in(text).sentences]
    for span in spans_to_read(text, one_token_each(text), most):
        if span.end not in sentences:
            begin = max(end for end in sentences if end < span.end)
            assert min(end for end in sentences if end > span.end) - begin > most // 2


@st.composite
def texts_with_entities(draw):
    """A text, the most tokens of a span, and entities anywhere in it that do not overlap."""
    text = draw(TEXTS)
    edges = sorted(draw(st.sets(st.integers(0, len(text)), max_size=20)))
    entities = [
        {"start": start, "end": end, "text": text[start:end], "label": draw(st.sampled_from(NER.labels))}
        for start, end in pairwise(edges)
        if draw(st.booleans())
    ]
    return text, draw(st.integers(1, 40)), entities


@settings(max_examples=200)
@given(case=texts_with_entities(), clipped=st.booleans())
def test_the_gold_of_the_pieces_is_the_gold_of_the_text(case, clipped):
    """A model that is right about each piece is right about the text, though it takes the rest of a name that was cut
    for a name (``clipped``). Only what no piece has whole can be wrong.
    """
    text, most, entities = case
    spans = spans_to_read(text, one_token_each(text), most)

    def seen(span: Span) -> list[dict]:
        inside = [entity for entity in entities if entity["start"] < span.end and span.start < entity["end"]]
        whole = [entity for entity in inside if span.start <= entity["start"] and entity["end"] <= span.end]
        return [
            entity | {"start": max(entity["start"], span.start), "end": min(entity["end"], span.end), "score": 0.5}
            for entity in (inside if clipped else whole)
        ]

    found = merged(spans, [seen(span) for span in spans])
    for left, right in pairwise(found):
        assert left["end"] <= right["start"]
    possible = [
        (entity["start"], entity["end"], entity["label"])
        for entity in entities
        if any(span.start <= entity["start"] and entity["end"] <= span.end for span in spans)
    ]
    places = [(entity["start"], entity["end"], entity["label"]) for entity in found]
    assert set(possible) <= set(places) if clipped else possible == places
    assert all(entity["score"] == 0.5 for entity in found)


def test_entities_in_each_other_stay_and_contradictions_go_to_the_piece_that_saw_more():
    nested = [{"start": 0, "end": 6}, {"start": 0, "end": 2}]
    assert merged([Span(0, 9), Span(9, 12)], [nested, []]) == nested
    left, right = {"start": 8, "end": 10}, {"start": 9, "end": 12}  # the first one stands at the end of its span
    assert merged([Span(0, 10), Span(4, 20)], [[left], [right]]) == [right]
    assert merged([Span(0, 20), Span(9, 30)], [[left], [right]]) == [left]


@pytest.mark.parametrize("architecture", ["qwen2", "sliding_qwen2"])
def test_a_text_of_usual_length_is_predicted_as_without_pieces(tokenizer, architecture):
    model, limits = tiny_model(architecture), Limits(400, 12, 2)
    for text in ("张伟", "昨天张伟到了上海。菲律宾也是。", "a" * 20):
        tokens = len(encode_prompts([{"text": text}, {"text": ""}], NER, tokenizer)[0])
        tokens -= len(encode_prompts([{"text": ""}], NER, tokenizer)[0])
        (expected,) = predict(model, tokenizer, NER, [{"text": text}], limits)
        assert list(predict(model, tokenizer, NER, [{"text": text}], replace(limits, piece_tokens=tokens))) == [
            expected
        ]
        longer = Oracle(tokenizer)
        list(predict(longer, tokenizer, NER, [{"text": text + text}], replace(limits, piece_tokens=tokens)))
        assert max(map(len, longer.sentences)) < 2 * len(text)


@settings(max_examples=15)
@given(words=st.lists(WORDS, min_size=4, max_size=40), piece_tokens=st.integers(20, 60), gold=st.booleans())
def test_pieces_are_as_long_as_asked_whatever_the_gold_is(tokenizer, words, piece_tokens, gold):
    record = {"text": "".join(words)}
    limits = Limits(2000, 100, 2, piece_tokens=piece_tokens)
    given_gold = {"entities": [{"start": 0, "end": len(record["text"]), "text": record["text"], "label": "人名"}]}
    (pieces,) = fit([record | given_gold if gold else record], NER, tokenizer, limits)
    instruction = len(encode_prompts([{"text": ""}], NER, tokenizer)[0])
    assert all(len(piece.prompt_ids) - instruction <= piece_tokens for piece in pieces)
    for piece in pieces:  # by itself each is read whole: exports compare piece by piece
        (again,) = fit([{"text": piece.record["text"]}], NER, tokenizer, limits)
        assert [one.prompt_ids for one in again] == [piece.prompt_ids]
    assert [piece.record["text"] for piece in pieces] == [
        piece.record["text"] for piece in fit([record], NER, tokenizer, limits)[0]
    ]


def test_an_answer_at_its_cap_goes_on_with_the_rest(tokenizer):
    """Each answer may have a few entities; there are 12, and no end of a sentence."""
    text = "张伟，上海的菲律宾人，" * 4
    oracle = Oracle(tokenizer)
    (result,) = predict(oracle, tokenizer, NER, [{"text": text}], Limits(2000, 40, 2))
    found = [(entity["start"], entity["text"]) for entity in result["entities"]]
    assert found == sorted((start, name) for name in NAMES for start in starts_of(name, text))
    assert all(0 < entity["score"] <= 1 for entity in result["entities"])
    assert "cut" not in result and len(oracle.sentences) > 2
    (result,) = predict(oracle, tokenizer, NER, [{"text": text}], Limits(2000, 1, 2))  # one entity an answer
    assert result["cut"] and len(result["entities"]) == 1 + MOST_RESTS
    (free,) = predict(Oracle(tokenizer), tokenizer, NER, [{"text": text}], Limits(2000, 20, 2, constrained=False))
    assert free["cut"] and len(free["entities"]) < 3


@pytest.mark.parametrize("entities", [[], [{"start": 0, "end": 2, "text": "张伟", "label": "人名"}]])
def test_an_answer_that_gets_no_further_stops_and_says_so(tokenizer, entities):
    def stuck(pieces):
        asked.extend(pieces)
        return [
            {"entities": [], "cut": True, "unparsable": False, "problems": Counter(), "answer": ""} for _ in pieces
        ]

    asked: list[Piece] = []
    record = {"text": "张伟到了上海。张伟。"}
    first = {"entities": entities, "cut": True, "unparsable": False, "problems": Counter(), "answer": "…"}
    pieces = [Piece(record, [1])]
    (result,) = read_on(pieces, [first], NER, tokenizer, stuck)
    assert result["cut"] and len(asked) == len(entities)
    assert [entity["text"] for entity in result["entities"]] == [entity["text"] for entity in entities]
    whole = first | {"entities": [{"start": 7, "end": 9, "text": "张伟", "label": "人名"}]}
    (result,) = read_on(pieces, [whole], NER, tokenizer, stuck)  # only a full stop is left
    assert "cut" not in result and len(asked) == len(entities)


def test_how_much_was_read_is_in_the_users_own_characters(tokenizer, classification):
    """``é`` is two characters in the user's text, and one in the text that the model reads."""
    text = "Cafe\u0301体育" * 40
    record = to_record({"text": text}, classification)
    (result,) = predict(tiny_model("qwen2"), tokenizer, classification, [record], Limits(200, 8, 2))
    output = to_output(record, result, classification)
    read = output["read_characters"]
    assert output["cut"] is True and result["read_characters"] < read < len(text)
    assert len(to_record({"text": text[:read]}, classification)["text"]) == result["read_characters"]
    whole = to_record({"text": "体育"}, classification)
    (result,) = predict(tiny_model("qwen2"), tokenizer, classification, [whole], Limits(200, 8, 2))
    assert not {"cut", "read_characters"} & to_output(whole, result, classification).keys()


def test_what_was_read_at_both_ends_is_in_the_users_own_characters(tokenizer, classification):
    task = replace(classification, long_text="ends")
    text = "Cafe\u0301体育" * 40
    record = to_record({"text": text}, task)
    (result,) = predict(tiny_model("qwen2"), tokenizer, task, [record], Limits(200, 8, 2))
    output = to_output(record, result, task)
    read, at_end = output["read_characters"], output["read_at_end"]
    assert output["cut"] is True and 0 < at_end < read < len(text)
    head, tail = text[: read - at_end], text[len(text) - at_end :]
    (piece,) = fit([record], task, tokenizer, Limits(200, 8, 2))[0]
    assert to_record({"text": f"{head}…{tail}"}, task)["text"] == piece.record["text"]
    (again,) = predict(tiny_model("qwen2"), tokenizer, task, [{"text": piece.record["text"]}], Limits(200, 8, 2))
    assert again == {
        name: value for name, value in result.items() if name not in ("cut", "read_characters", "read_at_end")
    }
    short = to_record({"text": "体育"}, task)
    (result,) = predict(tiny_model("qwen2"), tokenizer, task, [short], Limits(200, 8, 2))
    assert not {"cut", "read_characters", "read_at_end"} & to_output(short, result, task).keys()


def test_rows_that_were_cut_are_counted_shown_and_imported_into_label_studio():
    rows = [
        {"text": "甲" * 9, "label": "体育", "score": 0.5, "cut": True, "read_characters": 4},
        {"text": "张伟", "entities": [{"start": 0, "end": 2, "text": "张伟", "label": "人名"}], "cut": True},
    ]
    shown = [ShownRows(look_of(80, (), coloured=False))(json.dumps(row).encode()) for row in rows]
    assert "只读了开头 4 个字" in shown[0] and "没有写完" in shown[1]
    for row in rows:
        plain = {name: value for name, value in row.items() if name not in ("cut", "read_characters")}
        assert task_of(row, "v") == task_of(plain, "v")
    results = [rows[1] | {"unparsable": False, "problems": {}}, {"error": "坏"}]
    tally = Tally.of(NER, [None, None], results)
    tally.add(Tally.of(NER, [None], [{"entities": [], "unparsable": False, "problems": {}}]))
    assert Tally.from_json(json.loads(json.dumps(tally.to_json()))).rows["cut"] == tally.rows["cut"] == 1


def test_the_end_of_a_run_tells_how_many_rows_were_cut_also_after_resuming(tokenizer, tmp_path, capsys, caplog):
    adapter = save_adapter(tokenizer, tmp_path, ("体育", "军事"))
    texts = ["国家队赢了。" * 60, "打仗", "国家队赢了。" * 70]
    (tmp_path / "rows.txt").write_text("\n".join(texts), encoding="utf-8")
    words = ["--adapter", str(adapter), "--input_file", str(tmp_path / "rows.txt"), "--batch_size", "1"]
    out = tmp_path / "out.jsonl"
    for more in ([], ["--resume"]):
        caplog.clear()
        assert script.main([*words, "--output_file", str(out), *more]) == 0
        (told,) = [message for message in caplog.messages if "cut" in message]
        assert told.startswith("2 条没有读完") and "--max_length 200" in told
    outputs = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [output.get("cut") for output in outputs] == [True, None, True]
    assert all(0 < output["read_characters"] < 360 for output in outputs[::2])
    capsys.readouterr()


def test_training_keeps_how_long_its_texts_are(tokenizer, classification, tmp_path):
    records = [
        (line, {"text": "昨天张伟到了上海。" * (1 + (line > 95) * 9), "entities": []}) for line in range(1, 101)
    ]
    rows, _ = encode_rows(records, NER, tokenizer, 10_000)
    short = len(encode_prompts([records[0][1]], NER, tokenizer)[0]) - len(
        encode_prompts([{"text": ""}], NER, tokenizer)[0]
    )
    assert usual_text_tokens(rows, records[0][1], NER, tokenizer) == max(short, LEAST_PIECE_TOKENS)
    assert usual_text_tokens(rows[95:], records[0][1], NER, tokenizer) == 10 * short > LEAST_PIECE_TOKENS
    assert usual_text_tokens(rows, {"text": "a"}, classification, tokenizer) is None
    path = tmp_path / "task.json"
    TaskSettings(NER, usual_text_tokens=35).write(path)
    assert TaskSettings.read(path).usual_text_tokens == 35
    TaskSettings(NER).write(path)
    assert TaskSettings.read(path).usual_text_tokens is None and "usual" not in path.read_text(encoding="utf-8")
    for wrong in (0, True, "35", -3):
        TaskSettings(NER, usual_text_tokens=wrong).write(path)
        with pytest.raises(InputError, match="usual_text_tokens"):
            TaskSettings.read(path)


def test_a_long_text_and_no_length_of_training_is_told(tokenizer, caplog):
    say_once.cache_clear()
    long = [{"text": "张伟到上海。" * 99}]
    for limits in (Limits(4000, 100, 2, piece_tokens=400), Limits(300, 100, 2)):
        fit(long, NER, tokenizer, limits)
    assert caplog.messages == []
    fit(long, NER, tokenizer, Limits(4000, 100, 2))
    assert "--piece_tokens" in caplog.messages[0]


def test_transformers_does_not_warn_of_lengths_that_are_cut_anyway(tokenizer_folder, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr("transformers.tokenization_utils_base.logger.warning", told.append)
    loaded = load_tokenizer(tokenizer_folder)
    loaded.model_max_length = 5
    records = [{"text": "昨天张伟到了上海。"}, {"text": "<|im_end|>昨天张伟到了上海。"}]
    encode_prompts(records, NER, loaded)
    token_starts(records[1]["text"], loaded)
    assert told == []
    loaded.deprecation_warnings.clear()  # as transformers itself loads it
    encode_prompts(records, NER, loaded)
    assert "longer than the specified maximum" in told[0]


@pytest.mark.slow
def test_a_long_text_is_as_good_as_its_sentences_one_by_one():
    """The demonstration model of quickstart: 5,000 characters cost at most 3 points of F1."""
    adapter, rows = ROOT / "output/quickstart/ner", ROOT / "data/quickstart/test_ner.jsonl"
    if not (adapter / "all_results.json").is_file():
        pytest.skip("quickstart.sh has not been run here")
    records = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    loaded = Predictor.load(adapter)
    limits = replace(loaded.limits, piece_tokens=loaded.limits.piece_tokens or 35)  # an older one does not know
    alone = scores(loaded, records, limits)
    long = scores(loaded, list(joined(records, 5000)), limits)
    whole = scores(loaded, list(joined(records, 5000)), replace(limits, piece_tokens=None))
    assert long["f1"] >= alone["f1"] - 0.03
    assert long["cut"] == 0
    assert whole["f1"] < 0.3  # what happens to a text that is read at once
