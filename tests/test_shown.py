"""Predictions as a person reads them on a terminal."""

from __future__ import annotations

import re

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.prediction.shown import (
    ShownRows,
    count_labels,
    figures,
    look_of,
    marked,
    visible,
    what_was_done,
    what_was_left_out,
)
from sft.terminal import display_width

LABELS = ("人名", "地点")
ESCAPES = re.compile(r"\x1b\[\d*m")


def entity(text: str, surface: str, label: str, score: float | None = None) -> dict:
    start = text.index(surface)
    found = {"start": start, "end": start + len(surface), "text": surface, "label": label}
    return found if score is None else found | {"score": score}


def shown(output: dict, columns: int = 80, *, coloured: bool = False) -> str:
    return ShownRows(look_of(columns, LABELS, coloured=coloured))(orjson.dumps(output))


SENTENCE = "赵一到青湖。"
FOUND = [entity(SENTENCE, "赵一", "人名", 0.99874), entity(SENTENCE, "青湖", "地点", 0.5)]


def test_a_sentence_is_marked_and_its_scores_have_four_digits():
    assert shown({"text": SENTENCE, "entities": FOUND}).splitlines() == [
        "[赵一 人名]到[青湖 地点]。",
        "  赵一 人名 0.9987，青湖 地点 0.5000",
    ]


def test_a_sentence_without_entities_says_so_and_wrong_ones_show_the_right_answer():
    assert shown({"text": "下雨。", "entities": []}).splitlines() == ["下雨。", "  没有实体"]
    right = {"entities": [entity(SENTENCE, "赵一", "人名")]}
    assert shown({"text": SENTENCE, "entities": FOUND[:1], "gold": right}).count("\n") == 1, "right: nothing to add"
    assert shown({"text": SENTENCE, "entities": FOUND[1:], "gold": right}).endswith("\n  应为 [赵一 人名]到青湖。")


def test_colours_mark_the_same_characters_as_the_brackets():
    text = shown({"text": SENTENCE, "entities": FOUND}, coloured=True)
    assert ESCAPES.sub("", text) == shown({"text": SENTENCE, "entities": FOUND})
    assert re.findall(r"\x1b\[3\dm(.*?)\x1b\[0m", text) == ["[赵一 人名]", "[青湖 地点]"]
    assert len(set(re.findall(r"\x1b\[3\dm", text))) == 2, "each label has its own"


def test_a_label_stands_before_as_much_of_the_text_as_fits():
    line = shown({"text": "国家队\n赢了。" * 50, "label": "体育", "score": 0.98, "scores": {}})
    assert line.startswith("[体育 0.9800] 国家队 赢了。")
    assert line.endswith("…")
    assert 70 < display_width(line) <= 80
    wrong = {"text": "打仗", "label": "体育", "score": 0.5, "gold": {"label": "军事"}}
    assert shown(wrong) == "[体育 0.5000]（应为 军事） 打仗"
    assert shown({"text": "打仗", "label": None, "score": 0.2}) == "[没有把握 0.2000] 打仗"


def test_an_error_names_its_row():
    rows = ShownRows(look_of(80, LABELS, coloured=False))
    assert rows(orjson.dumps({"text": "下雨。", "label": "体育", "score": 1.0})) == "[体育 1.0000] 下雨。"
    assert rows(orjson.dumps({"error": "text: 文本是空的"})) == "第 2 条出错：text: 文本是空的"


def test_free_answers_show_what_the_model_said():
    output = {"text": "下雨。", "entities": [], "answer": "没有\n找到"}
    assert shown(output).splitlines()[-1] == "  原话 没有␊找到"


SPANS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8), st.sampled_from(LABELS)), max_size=6)


@given(st.text(min_size=1, max_size=40), SPANS, st.integers(20, 100), st.booleans())
def test_any_text_and_any_spans_stay_within_the_terminal(text, spans, columns, coloured):
    """Nothing of the text can move the cursor, and without the marks the text is all there."""
    entities = [
        {"start": start, "end": min(start + length, len(text)), "label": label, "score": 0.5}
        for start, length, label in spans
        if start < len(text)
    ]
    for one in entities:
        one["text"] = text[one["start"] : one["end"]]
    line = orjson.dumps({"text": text, "entities": entities})
    lines = ShownRows(look_of(columns, LABELS, coloured=coloured))(line).split("\n")
    for written in lines:
        plain = ESCAPES.sub("", written)
        assert display_width(plain) <= columns
        assert not set(plain) & set("\x1b\r\b\x07\x9b\u202e")
    sentence = marked(text, [])
    assert sentence.text == visible(text)
    assert len(sentence.text) == len(text), "offsets stay right"


def test_of_entities_that_overlap_the_first_is_marked_and_all_are_listed():
    inner = entity(SENTENCE, "一", "地点", 0.25)
    assert shown({"text": SENTENCE, "entities": [FOUND[0], inner]}).splitlines() == [
        "[赵一 人名]到青湖。",
        "  赵一 人名 0.9987，一 地点 0.2500",
    ]


# ---- the closing line ----


def test_the_closing_line_counts_rows_entities_and_labels():
    lines = [{"text": SENTENCE, "entities": FOUND}, {"text": SENTENCE, "entities": FOUND[:1]}, {"error": "坏"}]
    counts = count_labels(map(orjson.dumps, lines))
    assert what_was_done(3, 1, counts, "entities", 0.15) == (
        "预测了 3 条，其中 1 条出错，3 个实体（人名 2，地点 1；概率不低于 0.15）"
    )
    labels = count_labels(map(orjson.dumps, [{"label": "体育"}, {"label": "体育"}, {"label": None}]))
    assert what_was_done(3, 0, labels, "label", None) == "预测了 3 条（体育 2；1 条没有给标签）"
    assert what_was_done(5, 1, labels, "label", 0.9) == (
        "预测了 5 条，其中 1 条出错（体育 2；概率不低于 0.9；2 条没有给标签）"
    )
    assert what_was_done(3, 0, counts, "entities", 0.0) == "预测了 3 条，3 个实体（人名 2，地点 1）"
    stars = count_labels(map(orjson.dumps, [{"label": "5"}, {"label": "5"}, {"label": "很好"}]))
    assert what_was_done(3, 0, stars, "label", None) == "预测了 3 条（5：2，很好 1）"  # not "5 2"
    assert what_was_done(1, 0, count_labels([]), "entities", None) == "预测了 1 条，0 个实体"


def test_names_that_were_left_out_are_told_apart():
    assert (
        what_was_left_out({"invented": 2, "repeated": 1, "out_of_order": 4})
        == "；3 个名字没有采用（2 个文中没有，1 个重复）"
    )
    assert what_was_left_out({"repeated": 1200}) == "；1,200 个名字没有采用（1,200 个重复）"
    assert what_was_left_out({}) == what_was_left_out({"invented": 0, "invalid": 3}) == ""


@pytest.mark.parametrize(
    ("metrics", "line"),
    [
        ({"rows": 1200, "f1": 0.5, "f1_人名": 1.0}, "成绩（1,200 条有标准答案）：F1 0.5000"),
        (
            {"rows": 2, "accuracy": 1.0, "rows_without_prediction": 1},
            "成绩（2 条有标准答案）：准确率 1.0000，rows_without_prediction 1",
        ),
        ({"predicted_rows": 3, "invalid": 2}, "没有标准答案：predicted_rows 3，invalid 2"),
    ],
)
def test_the_metrics_are_one_line(metrics, line):
    assert figures(metrics) == line
