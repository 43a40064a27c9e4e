"""Notebook views: marked sentences contain the text and nothing else, tables contain every error."""

from __future__ import annotations

import html
import re

from hypothesis import given
from hypothesis import strategies as st

from sft.report.notebook import confusion_table, label_error_table, marked_entities, span_error_table, wrong_rows

LABELS = ("人名", "地点")
TEXT = st.text(st.sampled_from("张伟到了<script>&上海\"' \n"), min_size=1, max_size=20)


@st.composite
def spans_of(draw, text: str) -> list[dict]:
    """Entities anywhere in the text, also overlapping ones."""
    ends = st.tuples(st.integers(0, len(text) - 1), st.integers(1, len(text)))
    places = draw(st.lists(ends.filter(lambda place: place[0] < place[1]), max_size=4, unique=True))
    return [
        {"start": start, "end": end, "label": draw(st.sampled_from(LABELS)), "score": 0.5} for start, end in places
    ]


@st.composite
def rows(draw) -> dict:
    text = draw(TEXT)
    return {"text": text, "entities": draw(spans_of(text)), "gold": {"entities": draw(spans_of(text))}}


@given(rows())
def test_a_marked_sentence_shows_its_text_whole_and_escaped(row):
    content = marked_entities([{"text": row["text"], "entities": row["entities"]}], LABELS)._repr_html_()
    assert "<script" not in content
    without_labels = re.sub(r" <small>(人名|地点)</small></mark>", "", content)
    assert html.unescape(re.sub(r"<[^<>]*>", "", without_labels)) == row["text"]


@given(st.lists(rows(), max_size=4))
def test_gold_is_shown_where_it_differs_and_every_error_is_in_the_table(several):
    content = marked_entities(several, LABELS)._repr_html_()
    wrong = wrong_rows(several)
    assert content.count("✗ 正确") == len(wrong)
    table = span_error_table(several)
    assert (len(table) == 0) == (wrong == [])
    assert list(table.columns) == ["错误", "正确", "预测", "把握", "原文"]


def test_the_surest_errors_come_first_in_words_a_person_knows():
    text = "张伟到了上海"
    gold = {"entities": [{"start": 0, "end": 2, "label": "人名"}, {"start": 4, "end": 6, "label": "地点"}]}
    found = [
        {"start": 0, "end": 1, "label": "人名", "score": 0.4},
        {"start": 2, "end": 3, "label": "地点", "score": 0.9},
    ]
    table = span_error_table([{"text": text, "entities": found, "gold": gold}])
    assert table[["错误", "正确", "预测"]].values.tolist() == [
        ["多出", "", "到（地点）"],
        ["边界错", "张伟（人名）", "张（人名）"],
        ["漏掉", "上海（地点）", ""],
    ]


def test_label_errors_and_confusion():
    several = [
        {"text": "文" * 100, "label": predicted, "score": score, "gold": {"label": gold}}
        for gold, predicted, score in [("体育", "体育", 0.9), ("体育", "军事", 0.6), ("军事", "体育", 0.8)]
    ]
    errors = label_error_table(several)
    assert errors[["预测", "正确", "把握"]].values.tolist() == [["体育", "军事", 0.8], ["军事", "体育", 0.6]]
    assert errors["正文"].str.len().max() <= 61
    assert confusion_table(several).loc["体育"].to_dict() == {"体育": 1, "军事": 1}
    assert label_error_table([]).empty
