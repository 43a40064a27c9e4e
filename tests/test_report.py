"""The content of a report: intervals, kinds of error, calibration, the rows it shows, and escaping of data."""

from __future__ import annotations

import json
import random
import re
import tracemalloc
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from sft.report import page
from sft.report.charts import line_chart
from sft.report.findings import findings_of
from sft.report.intervals import wilson
from sft.report.labels import LabelFindings
from sft.report.run import Kept, _scores_by_threshold
from sft.report.shown_rows import MOST_KEPT, RIGHT, WRONG, ShownRows
from sft.report.span_errors import KINDS, PAIRED_KINDS, span_errors
from sft.report.spans import SpanFindings
from sft.tasks import TASKS
from sft.tasks.calibration import BINS
from sft.tasks.classification import Classification
from sft.tasks.evaluation import Tally, metrics_of_predictions
from sft.tasks.metrics import METRIC_NAMES, best_span_threshold, count_labels, count_spans, label_metrics, span_metrics
from sft.tasks.ner import Ner
from tests.reports import ENTITY_LABELS, FACTS, HOSTILE, LABELS, label_rows, span_rows, write_report

CLASSIFICATION = Classification(LABELS)
NER = Ner.with_labels(ENTITY_LABELS)


def found(task, records, predictions):
    findings = findings_of(task)
    for record, prediction in zip(records, predictions, strict=True):
        findings.add(record["text"], task.gold(record), prediction)
    return findings


# ---- scores and intervals ----


@given(st.lists(st.tuples(st.sampled_from("甲乙丙"), st.sampled_from(["甲", "乙", "丙", "丁", None])), min_size=1))
def test_label_estimates_are_the_scores_of_evaluation(rows):
    golds, answers = zip(*rows, strict=True)
    findings = LabelFindings(("甲", "乙", "丙"))
    for gold, answer in rows:
        findings.add("", {"label": gold}, {"label": answer})
    expected = label_metrics(count_labels(golds, answers))
    for name, (value, low, high, _) in findings.estimates().items():
        assert value == pytest.approx(expected[name], abs=1e-12)
        assert 0 <= low < high <= 1


spans = st.sets(st.tuples(st.integers(0, 6), st.integers(1, 4), st.sampled_from("甲乙")), max_size=4).map(
    lambda found: [{"start": start, "end": start + length, "label": label} for start, length, label in found]
)


@given(st.lists(st.tuples(spans, spans), min_size=1, max_size=8))
def test_span_estimates_are_the_scores_of_evaluation(rows):
    findings = SpanFindings(("甲", "乙"))
    for gold, predicted in rows:
        findings.add("", {"entities": gold}, {"entities": predicted})
    expected = span_metrics(count_spans(*zip(*rows, strict=True)), ("甲", "乙"))
    for name, (value, low, high, _) in findings.estimates().items():
        assert value == pytest.approx(expected[name], abs=1e-12)
        assert 0 <= low < high <= 1
    for figures in findings.page()["by_label"]:
        assert figures["f1"] == pytest.approx(expected[f"f1_{figures['label']}"])


def test_the_interval_is_that_of_resampling_rows_one_by_one():
    records, predictions = span_rows(300)
    estimate = found(NER, records, predictions).estimates()["f1"]
    generator = np.random.default_rng(0)
    golds, answers = [record["entities"] for record in records], [row["entities"] for row in predictions]
    resampled = []
    for _ in range(400):
        chosen = generator.integers(0, 300, 300)
        scores = span_metrics(
            count_spans([golds[index] for index in chosen], [answers[index] for index in chosen]), ENTITY_LABELS
        )
        resampled.append(scores["f1"])
    low, high = np.percentile(resampled, (2.5, 97.5))
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.01)
    assert estimate.low < estimate.value < estimate.high


@pytest.mark.parametrize(("task", "make"), [(CLASSIFICATION, label_rows), (NER, span_rows)])
def test_the_same_rows_give_the_same_intervals_and_more_rows_narrower_ones(task, make):
    few, many = make(100), make(1600)
    first = found(task, *few).estimates()
    assert first == found(task, *few).estimates()
    for name, (_, low, high, _) in found(task, *many).estimates().items():
        assert high - low < 0.5 * (first[name].high - first[name].low)


@given(st.integers(0, 60), st.integers(0, 60))
def test_a_wilson_interval_is_that_of_its_definition(part, others):
    """Its ends are the shares at which what was seen is 1.96 standard deviations away."""
    whole = part + others
    low, high = wilson(part, whole)
    assert 0 <= low < high <= 1
    for end in (low, high):
        if whole and 0 < end < 1:
            assert abs(part / whole - end) == pytest.approx(1.959964 * (end * (1 - end) / whole) ** 0.5)
    if whole:
        assert low <= part / whole <= high


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("rows", [1, 20])
def test_rows_that_are_all_right_or_all_wrong_still_have_an_interval(right, rows):
    labels, spans = LabelFindings(("甲", "乙")), SpanFindings(("甲",))
    gold = {"entities": [{"start": 0, "end": 2, "label": "甲"}]}
    for _ in range(rows):
        labels.add("文", {"label": "甲"}, {"label": "甲" if right else "乙"})
        spans.add("文本", gold, gold if right else {"entities": [{"start": 1, "end": 2, "label": "甲"}]})
    expected = wilson(rows * right, rows)
    accuracy = labels.estimates()["accuracy"]
    assert accuracy == (right, *expected, True)
    assert (accuracy.high - accuracy.low < 0.2) == (rows == 20)
    for estimate in spans.estimates().values():
        assert estimate[:3] == pytest.approx((float(right), *expected))
        assert estimate.is_wilson


def test_where_resampling_says_something_the_interval_is_not_replaced():
    assert not any(estimate.is_wilson for estimate in found(NER, *span_rows(100)).estimates().values())


def test_rows_without_gold_or_with_an_error_are_counted_and_not_scored():
    findings = findings_of(CLASSIFICATION)
    findings.add("a", None, {"label": "体育", "score": 0.5})
    findings.add("b", None, {"error": "太长"})
    assert findings.estimates() == {}
    assert (findings.rows, findings.failed, findings.shown.seen["unjudged"]) == (2, 1, 1)


# ---- label findings ----


def test_label_tables_agree_with_scikit_learn():
    records, predictions = label_rows(500)
    golds, answers = [row["label"] for row in records], [row["label"] for row in predictions]
    page = found(CLASSIFICATION, records, predictions).page()
    for name, expected in zip(
        ("precision", "recall", "f1", "gold"),
        precision_recall_fscore_support(golds, answers, labels=LABELS),
        strict=True,
    ):
        by_label = {figures["label"]: figures[name] for figures in page["by_label"]}
        assert [by_label[label] for label in LABELS] == pytest.approx(expected)
    cells = [row["cells"] for row in page["confusion"]["rows"]]
    assert cells == confusion_matrix(golds, answers, labels=LABELS).tolist()


def test_the_reliability_diagram_is_that_of_scikit_learn():
    records, predictions = label_rows(500)
    hits = [row["label"] == answer["label"] for row, answer in zip(records, predictions, strict=True)]
    scores = [row["score"] for row in predictions]
    accuracy, confidence = calibration_curve(hits, scores, n_bins=BINS)
    calibration = found(CLASSIFICATION, records, predictions).page()["calibration"]
    assert [bin_["accuracy"] for bin_ in calibration["bins"]] == pytest.approx(accuracy)
    assert [bin_["confidence"] for bin_ in calibration["bins"]] == pytest.approx(confidence)
    weights = np.array([bin_["rows"] for bin_ in calibration["bins"]]) / 500
    assert calibration["expected_error"] == pytest.approx(np.sum(weights * np.abs(accuracy - confidence)))


@pytest.mark.parametrize(
    ("task", "make", "count_name", "share_name"),
    [(CLASSIFICATION, label_rows, "行数", "准确率"), (NER, span_rows, "实体数", "精确率")],
    ids=["labels", "spans"],
)
def test_both_kinds_of_report_have_a_reliability_diagram(task, make, count_name, share_name, tmp_path):
    records, predictions = make(400)
    path = write_report(tmp_path, task, (records, predictions))
    golds, answers = [task.gold(record) for record in records], [row | {"problems": {}} for row in predictions]
    metrics = metrics_of_predictions(task, golds, answers)
    html, text = path.read_text(encoding="utf-8"), " ".join(Page(path).text.split())
    section = html.split('id="calibration-title"')[1].split("</section>")[0]
    marks, head = section.count('<circle class="mark'), section.split("<thead>")[1].split("</thead>")[0]
    assert 0 < marks <= BINS and section.count('<tr><th scope="row">') == marks
    assert f"{BINS} 个等宽区间）{metrics['ece']:.3f}" in text
    before_and_after = r"验证集，微调前 ?[\d.]+ ?验证集，微调后 ?[\d.]+"
    assert re.search(rf"校准误差 ECE ?{before_and_after} ?测试集，微调后 ?{metrics['ece']:.3f}", text)
    assert count_name in head and share_name in head
    assert "只作参考" not in text
    few = " ".join(Page(write_report(tmp_path / "few", task, make(20))).text.split())
    assert "只作参考" in few


def test_a_withheld_label_claims_nothing_and_is_not_in_the_diagram():
    findings = findings_of(CLASSIFICATION)
    for score, label in ((0.9, "体育"), (0.3, None)):
        findings.add("", {"label": "体育"}, {"label": label, "score": score})
    assert findings.page()["calibration"]["rows"] == 1


def test_a_confusion_matrix_of_many_labels_keeps_every_row():
    findings = LabelFindings()
    for number in range(900):
        findings.add("", {"label": f"L{number % 60}"}, {"label": f"L{number % 45}" if number % 50 else None})
    confusion = findings.page()["confusion"]
    assert len(confusion["columns"]) == 22  # twenty labels, other labels, no label
    assert sum(sum(row["cells"]) for row in confusion["rows"]) == 900


# ---- span findings ----


@pytest.mark.parametrize(
    ("predicted", "kinds"),
    [
        ([(2, 4, "甲")], []),
        ([], ["missed"]),
        ([(2, 4, "乙")], ["wrong_label"]),
        ([(2, 5, "甲")], ["wrong_boundary"]),
        ([(1, 3, "乙")], ["wrong_both"]),
        ([(4, 6, "甲")], ["missed", "invented"]),
        ([(2, 4, "甲"), (6, 7, "乙")], ["invented"]),
        ([(2, 4, "乙"), (2, 5, "甲")], ["wrong_label", "invented"]),  # the same ends come first
        ([(2, 3, "甲"), (3, 4, "甲")], ["wrong_boundary", "invented"]),  # one error is counted once
    ],
)
def test_a_gold_span_and_what_was_predicted_make_this_kind_of_error(predicted, kinds):
    assert Counter(error.kind for error in span_errors([(2, 4, "甲")], predicted)) == Counter(kinds)


span_sets = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5), st.sampled_from("甲乙丙")), max_size=7).map(
    lambda found: [(start, start + length, label) for start, length, label in found]
)


@given(span_sets, span_sets)
def test_every_span_is_right_or_in_exactly_one_error(gold, predicted):
    errors = span_errors(gold, predicted)
    right = set(gold) & set(predicted)
    assert Counter(error.gold for error in errors if error.gold) == Counter(set(gold) - right)
    assert Counter(error.predicted for error in errors if error.predicted) == Counter(set(predicted) - right)
    for kind, ours, theirs in errors:
        assert (kind in PAIRED_KINDS) == (ours is not None and theirs is not None)
    missed = [error.gold for error in errors if error.kind == "missed"]
    invented = [error.predicted for error in errors if error.kind == "invented"]
    assert not any(a[0] < b[1] and b[0] < a[1] for a in missed for b in invented)  # overlapping spans are paired
    assert span_errors(list(reversed(gold)), list(reversed(predicted))) == errors


def test_error_counts_add_up_to_the_spans():
    records, predictions = span_rows(400)
    findings = found(NER, records, predictions)
    page = findings.page()
    spans_of = {kind["kind"]: kind["spans"] for kind in page["errors"]["kinds"]}
    gold = sum(figures["gold"] for figures in page["by_label"])
    predicted = sum(figures["predicted"] for figures in page["by_label"])
    paired = sum(spans_of[kind] for kind in PAIRED_KINDS)
    assert all(spans_of[kind] for kind in KINDS if kind != "wrong_both")
    assert gold - paired - spans_of["missed"] == predicted - paired - spans_of["invented"]
    assert all(sum(kind["by_label"]) == kind["spans"] for kind in page["errors"]["kinds"])


# ---- which rows are shown ----


def test_the_most_confident_mistakes_are_kept_however_many_rows_come():
    rng = random.Random(0)
    priorities = [rng.random() for _ in range(3 * MOST_KEPT)]
    shown = ShownRows()
    for number, priority in enumerate(priorities):
        shown.add(WRONG, [number], priority)
    rows, account = shown.chosen(10**9, lambda row: 1)
    most = sorted(range(len(priorities)), key=lambda number: -priorities[number])[:MOST_KEPT]
    assert [number for (number,) in rows] == sorted(most)
    assert account[WRONG] == {"seen": 3 * MOST_KEPT, "shown": MOST_KEPT}


def test_rows_are_left_out_for_size_and_counted():
    shown = ShownRows()
    for number in range(1000):
        shown.add(WRONG if number < 500 else RIGHT, [number])
    rows, account = shown.chosen(1000, lambda row: 10)
    assert account[WRONG]["shown"] == 85
    assert account[RIGHT]["shown"] == 15
    assert rows == sorted(rows)


def test_memory_does_not_grow_with_the_number_of_rows():
    records, predictions = span_rows(500)
    findings = findings_of(NER)
    tracemalloc.start()
    peaks = []
    for round_ in range(20):
        for record, prediction in zip(records, predictions, strict=True):
            findings.add(f"{round_}{record['text']}", NER.gold(record), prediction)
        peaks.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert findings.rows == 10_000
    assert peaks[-1] - peaks[-5] < 0.1 * peaks[-5]


# ---- the page ----


class Page(HTMLParser):
    """Tags, the text of each script, and all text outside scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.handlers: list[str] = []
        self.scripts: list[str] = []
        self.inside, self.text = "", ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts.append(data)
        elif self.inside != "style":
            self.text += data


def hostile(make) -> tuple[list[dict], list[dict]]:
    records, predictions = make(30)
    for record in records:
        record["text"] = HOSTILE + record["text"]
        if "label" in record:
            record["label"] = HOSTILE
        for found_entity in record.get("entities", ()):
            found_entity["label"] = HOSTILE
    return records, predictions


@pytest.mark.parametrize(("task", "make"), [(CLASSIFICATION, label_rows), (NER, span_rows)])
def test_text_from_data_is_never_markup(task, make, tmp_path):
    plain = Page(write_report(tmp_path / "plain", task, make(30)))
    page = Page(write_report(tmp_path / "hostile", task, hostile(make)))
    assert page.tags["script"] == plain.tags["script"] == 2
    assert page.tags["img"] == 0
    assert page.handlers == []
    assert HOSTILE in page.text  # as a label in a table
    embedded = json.loads(page.scripts[0])
    assert all(row[1].startswith(HOSTILE) for row in embedded["rows"])
    assert page.scripts[1] == plain.scripts[1]
    source = (tmp_path / "hostile" / "report.html").read_text(encoding="utf-8")
    assert "{{7*7}}" in source
    assert not re.search("<script>window|<img", source)


@pytest.mark.parametrize(("task", "make"), [(CLASSIFICATION, label_rows), (NER, span_rows)])
@pytest.mark.parametrize("length", [80, 1000])
def test_five_thousand_rows_make_less_than_two_megabytes(task, make, length, tmp_path):
    path = write_report(tmp_path, task, make(5000, length=length))
    assert path.stat().st_size < 2_000_000


def test_markup_in_every_row_does_not_burst_the_size(tmp_path):
    records, predictions = label_rows(5000)
    for record in records:
        record["text"] = "<&>'" * 200
    assert write_report(tmp_path, CLASSIFICATION, (records, predictions)).stat().st_size < 2_000_000


def test_what_is_missing_is_said_to_be_missing(tmp_path):
    train, _ = span_rows(20)
    splits = {"train": train, "validation": [], "test": []}
    keywords = {"predictions": {}, "splits": splits}
    text = Page(write_report(tmp_path / "full", NER, ([], []), **keywords)).text
    assert "验证 0" not in text and "测试 0" not in text
    assert sections(tmp_path / "full/report.html") == ["summary", "curves", "data", "settings"]
    bare = Page(write_report(tmp_path / "bare", NER, ([], []), bare=True, **keywords)).text
    assert "没有成绩：既没有测试集也没有验证集" in bare
    assert "没有微调前的成绩" not in bare  # the page says instead that there are no scores at all
    assert sections(tmp_path / "bare/report.html") == ["summary", "data", "settings"]


def sections(path: Path) -> list[str]:
    """The sections of a page; each has a link to it at the top, and no link leads nowhere."""
    text = path.read_text(encoding="utf-8")
    found = re.findall(r'<section id="(\w+)"', text)
    assert re.findall(r'<a href="#(\w+)">', text.split("<nav")[1].split("</nav>")[0]) == found
    return found


def test_what_is_zero_takes_no_room(tmp_path):
    records, _ = span_rows(30)
    text = Page(write_report(tmp_path, NER, (records, [{"entities": row["entities"]} for row in records]))).text
    assert "没有错误" in text and "错误种类" not in text
    assert "两边都有的文本" not in text  # 0 in the conversion's report
    assert "合并的重复行" in text
    assert "max_steps" not in text  # -1: by epochs


def test_the_kept_weights_and_the_threshold_are_told_and_marked(tmp_path):
    text = Page(write_report(tmp_path / "best", NER, span_rows(30))).text
    assert "采用的是第 40 步的权重（共 59 步）：各次验证中最好的一次（按微平均 F1）" in " ".join(text.split())
    assert "概率低于 0.35 的实体不给" in text
    assert text.count("采用：40") == 2 and text.count("采用：0.35") == 1
    assert "温度" not in text
    chosen = FACTS._replace(kept=Kept(40, "eval_f1", 0.35, temperature=1.875))
    text = Page(write_report(tmp_path / "calibrated", NER, span_rows(30), facts=chosen)).text
    assert "概率按温度 1.875 校准过" in text
    chosen = FACTS._replace(kept=Kept(40, "eval_f1", 0.35, temperature=1.875, score_bias=0.5))
    text = Page(write_report(tmp_path / "biased", NER, span_rows(30), facts=chosen)).text
    assert "概率按温度 1.875 和偏置 +0.5 校准过" in text
    everything = FACTS._replace(kept=Kept(40, "eval_f1", 0.0))
    text = Page(write_report(tmp_path / "everything", NER, span_rows(30), facts=everything)).text
    assert "阈值是 0，实体全给" in text and "概率低于" not in text
    last = FACTS._replace(kept=Kept(59))
    text = Page(write_report(tmp_path / "last", CLASSIFICATION, label_rows(30), facts=last)).text
    assert "采用的是第 59 步的权重（共 59 步），也就是最后一步" in text
    assert "阈值" not in text


def test_the_curve_over_thresholds_is_what_each_threshold_makes_of_the_validation():
    records, predictions = span_rows(60)
    curves = _scores_by_threshold(NER, records, Kept(1, "f1", 0.5, predictions))
    golds = [record["entities"] for record in records]
    for threshold, f1 in curves["eval_f1"]:
        above = [[entity for entity in row["entities"] if entity["score"] >= threshold] for row in predictions]
        assert f1 == span_metrics(count_spans(golds, above), ENTITY_LABELS)["f1"]
    assert (
        best_span_threshold(golds, [row["entities"] for row in predictions])
        == max(curves["eval_f1"], key=lambda point: (point[1], -point[0]))[0]
    )


@given(st.floats(1e-6, 1e6), st.floats(21, 1e9))
def test_a_logarithmic_axis_covers_its_values_with_few_round_ticks(low, times):
    chart = line_chart({"loss": [(1, low), (2, low * times)]})
    assert chart["logarithmic"]
    assert 2 <= len(chart["y_ticks"]) <= 6
    first, last = (mark[1] for mark in chart["series"][0]["marks"])
    assert chart["top"] - 0.01 <= last < first <= chart["bottom"] + 0.01
    at = [(float(words), y) for y, words in chart["y_ticks"]]
    for (small, bottom), (large, top) in pairwise(at):
        assert small < large and bottom > top


@pytest.mark.parametrize("values", [(0.0, 5.0), (1.0, 2.0), (-1.0, 50.0)])
def test_losses_that_reach_zero_or_stay_close_have_a_linear_axis(values):
    assert not line_chart({"loss": list(enumerate(values))})["logarithmic"]


def test_a_resumed_run_shows_the_scores_at_its_start_without_interval(tmp_path):
    records, predictions = span_rows(20)
    path = write_report(tmp_path, NER, (records, predictions), predictions={"test": predictions})
    text = " ".join(Page(path).text.split())
    assert "验证集，微调前0.100" in text and "0.100 [" not in text
    assert "训练用时1:02:03" in text, "of the whole run"


def test_a_model_that_answers_nan_still_has_a_report(tmp_path):
    records, predictions = label_rows(10)
    for row in predictions:
        row["score"], row["scores"] = float("nan"), dict.fromkeys(row["scores"], float("nan"))
    text = Page(write_report(tmp_path / "labels", CLASSIFICATION, (records, predictions))).text
    assert "混淆矩阵" in text and "期望校准误差" not in text
    records, predictions = span_rows(10)
    for row in predictions:
        row["entities"] = [found_entity | {"score": float("inf")} for found_entity in row["entities"]]
    write_report(tmp_path / "spans", NER, (records, predictions))


def test_every_word_is_there_in_both_languages():
    for key, (chinese, english) in page.STRINGS.items():
        assert set(re.findall(r"\{\w+\}", chinese)) == set(re.findall(r"\{\w+\}", english)), key
        assert chinese.strip()
        assert english.strip()


def test_the_strings_table_has_no_word_that_is_not_used():
    sources = [path for path in page.HERE.iterdir() if path.is_file()]
    text = "".join(path.read_text(encoding="utf-8") for path in sources if path.name != "strings.py")
    built = {f"{start}_{kind}" for start in ("rows", "shown_cap") for kind in ("labels", "spans")}
    built |= {f"rows_{split}" for split in ("train", "validation", "test")}
    built |= {start + name for start in ("", "eval_") for name in METRIC_NAMES}  # of the results
    built |= {task.title for task in TASKS.values()}
    unused = [key for key in page.STRINGS if not re.search(rf"[\"']{key}[\"']", text) and key not in built]
    assert unused == []


def test_the_page_about_a_prediction_is_made_of_its_output_lines(tmp_path):
    records, predictions = span_rows(40)
    lines = [
        orjson.dumps({"text": record["text"], "entities": prediction["entities"], "gold": NER.gold(record)})
        for record, prediction in zip(records, predictions, strict=True)
    ]
    lines[5] = orjson.dumps({"error": "不是合法的 JSON"})
    path = tmp_path / "new" / "report.html"
    answers = [prediction | {"problems": {}} for prediction in predictions]
    findings, tally = findings_of(NER), Tally.of(NER, [NER.gold(record) for record in records], answers)
    page.check_report_path(path, {})
    page.add_lines(findings, lines)
    facts = page.PredictionFacts("test.jsonl", base="qwen/demo", adapter=None, dtype="float32")
    page.write_prediction_page(path, NER, findings, tally, facts)
    assert sections(path) == ["summary", "results", "rows"]
    text = Page(path).text
    assert "40 条，其中 1 条无法预测" in text
    assert "微调之前的模型" in text
