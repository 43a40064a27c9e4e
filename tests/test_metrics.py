"""Metrics are checked by hand on small examples, and against a second implementation on generated ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nervaluate import Evaluator

from sft.tasks import metrics
from sft.tasks.metrics import best_span_threshold

LABELS = ("地理实体", "人名", "组织")
ENTITY = st.builds(
    lambda start, length, label: {"start": start, "end": start + length, "label": label},
    st.integers(0, 12),
    st.integers(1, 3),
    st.sampled_from(LABELS),
)


def label_metrics_of(golds, predictions) -> dict[str, float]:
    return metrics.label_metrics(metrics.count_labels(golds, predictions))


def span_metrics_of(golds, predictions, labels) -> dict[str, float]:
    return metrics.span_metrics(metrics.count_spans(golds, predictions), labels)


@st.composite
def rows_of_entities(draw) -> list[list[dict]]:
    """Rows whose entities do not overlap, as in gold data and parsed answers."""
    rows = []
    for entities in draw(st.lists(st.lists(ENTITY, max_size=5), min_size=1, max_size=5)):
        row, end = [], 0
        for entity in sorted(entities, key=lambda entity: entity["start"]):
            if entity["start"] >= end:
                row.append(entity)
                end = entity["end"]
        rows.append(row)
    return rows


@st.composite
def gold_and_predicted(draw) -> tuple[list, list]:
    """Gold rows and predicted rows; some predictions are right."""
    gold = draw(rows_of_entities())
    predicted = [row if draw(st.booleans()) else draw(rows_of_entities())[0] for row in gold]
    return gold, predicted


def nervaluate_strict(gold: list, predicted: list) -> tuple[dict, dict]:
    """nervaluate's strict scores as ``(overall, by label)``. Its span ends are inclusive."""

    def inclusive(rows: list) -> list:
        return [[entity | {"end": entity["end"] - 1} for entity in row] for row in rows]

    results = Evaluator(inclusive(gold), inclusive(predicted), tags=list(LABELS), loader="dict").evaluate()
    return results["overall"]["strict"], {label: found["strict"] for label, found in results["entities"].items()}


class TestSpanScores:
    @settings(max_examples=80, deadline=None)
    @given(rows=gold_and_predicted())
    def test_span_scores_agree_with_nervaluate(self, rows):
        self.check_against_nervaluate(*rows)

    @pytest.mark.slow
    @settings(max_examples=1000, deadline=None)
    @given(rows=gold_and_predicted())
    def test_span_scores_agree_with_nervaluate_on_a_thousand_cases(self, rows):
        self.check_against_nervaluate(*rows)

    @staticmethod
    def check_against_nervaluate(gold: list, predicted: list) -> None:
        figures = span_metrics_of(gold, predicted, LABELS)
        overall, by_label = nervaluate_strict(gold, predicted)
        for name in ("precision", "recall", "f1"):
            assert figures[name] == pytest.approx(getattr(overall, name))
            for label in LABELS:
                if f"{name}_{label}" in figures:
                    assert figures[f"{name}_{label}"] == pytest.approx(getattr(by_label[label], name))
        seen = {entity["label"] for row in gold + predicted for entity in row}
        assert {name.removeprefix("f1_") for name in figures if name.startswith("f1_")} == seen
        mean = sum(by_label[label].f1 for label in seen) / len(seen) if seen else 0.0
        assert figures["macro_f1"] == pytest.approx(mean)

    def test_a_small_example_by_hand(self):
        gold = [
            [{"start": 0, "end": 2, "label": "人名"}, {"start": 5, "end": 7, "label": "人名"}],
            [{"start": 0, "end": 3, "label": "组织"}],
            [],
        ]
        predicted = [
            [{"start": 0, "end": 2, "label": "人名"}, {"start": 5, "end": 8, "label": "人名"}],  # one end is wrong
            [{"start": 0, "end": 3, "label": "地理实体"}],  # the label is wrong
            [{"start": 1, "end": 2, "label": "人名"}],  # gold has no entity here
        ]
        figures = span_metrics_of(gold, predicted, LABELS)
        assert figures["precision"] == pytest.approx(1 / 4)
        assert figures["recall"] == pytest.approx(1 / 3)
        assert figures["f1"] == pytest.approx(2 / 7)
        assert figures["f1_人名"] == pytest.approx(2 / 5)
        assert figures["f1_组织"] == figures["f1_地理实体"] == 0.0
        assert figures["macro_f1"] == pytest.approx(2 / 15)

    def test_saying_the_same_span_twice_counts_once(self):
        span = {"start": 0, "end": 2, "label": "人名"}
        assert span_metrics_of([[span]], [[span, dict(span)]], LABELS)["f1"] == 1.0

    def test_rows_without_entities_on_both_sides_score_nothing(self):
        assert span_metrics_of([[], []], [[], []], LABELS) == {
            "precision": 0.0, "recall": 0.0, "f1": 0.0, "macro_f1": 0.0,
        }  # fmt: skip

    def test_a_missing_row_is_an_error_not_a_score(self):
        with pytest.raises(ValueError):
            span_metrics_of([[], []], [[]], LABELS)


class TestLabelScores:
    def test_a_small_example_by_hand(self):
        figures = label_metrics_of(["体育", "体育", "军事", "经济"], ["体育", "军事", "军事", None])
        assert figures["accuracy"] == pytest.approx(2 / 4)
        assert figures["f1_体育"] == pytest.approx(2 / 3)
        assert figures["f1_军事"] == pytest.approx(2 / 3)
        assert figures["f1_经济"] == 0.0
        assert figures["macro_f1"] == pytest.approx(4 / 9)

    def test_missing_answers_count_as_wrong(self):
        assert label_metrics_of(["体育", "军事"], [None, None]) == {
            "accuracy": 0.0, "macro_f1": 0.0, "f1_体育": 0.0, "f1_军事": 0.0,
        }  # fmt: skip

    def test_a_predicted_label_that_is_never_right_adds_no_label_to_the_mean(self):
        figures = label_metrics_of(["体育", "体育"], ["体育", "军事"])
        assert figures["macro_f1"] == figures["f1_体育"] == pytest.approx(2 / 3)
        assert "f1_军事" not in figures


class TestThreshold:
    @settings(max_examples=60, deadline=None)
    @given(rows=gold_and_predicted(), scores=st.lists(st.floats(0, 1), min_size=25, max_size=25))
    def test_no_other_threshold_gives_a_higher_f1(self, rows, scores):
        gold, predicted = rows
        scores = iter(scores)
        predicted = [[entity | {"score": next(scores)} for entity in row] for row in predicted]

        def f1(threshold: float) -> float:
            kept = [[entity for entity in row if entity["score"] >= threshold] for row in predicted]
            return span_metrics_of(gold, kept, LABELS)["f1"]

        best = best_span_threshold(gold, predicted)
        assert all(f1(best) > f1(step / 20) or (f1(best) == f1(step / 20) and best <= step / 20) for step in range(20))
