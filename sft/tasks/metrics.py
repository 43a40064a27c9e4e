"""Metrics of predictions against gold.

scikit-learn computes those of labels. It has none for entity spans, so spans are counted here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

# What people read: (Chinese, English).
METRIC_NAMES = {
    "loss": ("损失", "loss"),
    "accuracy": ("准确率", "accuracy"),
    "f1": ("微平均 F1", "micro F1"),
    "precision": ("精确率", "precision"),
    "recall": ("召回率", "recall"),
    "macro_f1": ("宏平均 F1", "macro F1"),
    "ece": ("校准误差 ECE", "calibration error ECE"),
}

Span = tuple[int, int, str]  # start, end (exclusive), label: two entities with the same are the same


def span_of(entity: dict) -> Span:
    """The span of one entity of a result or a record."""
    return entity["start"], entity["end"], entity["label"]


def count_labels(golds: Sequence[str], predictions: Sequence[str | None]) -> Counter[tuple[str, str | None]]:
    """How often each gold label was answered by each label: what `label_metrics` needs, for any number of rows."""
    return Counter(zip(golds, predictions, strict=True))


def label_metrics(counts: Counter[tuple[str, str | None]]) -> dict[str, float]:
    """Accuracy, macro-F1 over the gold labels, and each gold label's F1, from the counts of `count_labels`.

    None as a prediction is a wrong answer. Macro-F1 averages over the labels that occur as gold.
    """
    from sklearn.metrics import accuracy_score, f1_score

    pairs = sorted(counts, key=str)
    golds = [gold for gold, _ in pairs]
    answers = [prediction if prediction is not None else "" for _, prediction in pairs]
    rows = [counts[pair] for pair in pairs]
    labels = sorted(set(golds))
    by_label = f1_score(golds, answers, labels=labels, average=None, zero_division=0, sample_weight=rows)
    macro_f1 = f1_score(golds, answers, labels=labels, average="macro", zero_division=0, sample_weight=rows)
    return {
        "accuracy": float(accuracy_score(golds, answers, sample_weight=rows)),
        "macro_f1": float(macro_f1),
        **{f"f1_{label}": float(f1) for label, f1 in zip(labels, by_label, strict=True)},
    }


def count_spans(
    golds: Sequence[Sequence[dict]], predictions: Sequence[Sequence[dict]]
) -> Counter[tuple[str, str | None]]:
    """How many spans of each label are gold, predicted and right: what `span_metrics` needs, for any number of rows.

    ``golds`` and ``predictions`` have one sequence of ``{"start", "end", "label"}`` a row; a span counts once a row.

    Keys are ``("gold", label)``, ``("predicted", label)`` and ``("right", label)``.
    """
    counts: Counter[tuple[str, str | None]] = Counter()
    for gold_entities, predicted_entities in zip(golds, predictions, strict=True):
        gold, predicted = set(map(span_of, gold_entities)), set(map(span_of, predicted_entities))
        for kind, spans in (("right", gold & predicted), ("gold", gold), ("predicted", predicted)):
            counts.update((kind, label) for _, _, label in spans)
    return counts


def span_metrics(counts: Counter[tuple[str, str | None]], labels: Sequence[str]) -> dict[str, float]:
    """Exact-match precision, recall and F1 of spans, from the counts of `count_spans`: micro, macro, of each label.

    Args:
        labels: the task's labels; one with neither gold nor predicted spans is left out of the macro mean.
    """
    right, gold_count, predicted_count = (
        Counter({label: count for (of, label), count in counts.items() if of == kind})
        for kind in ("right", "gold", "predicted")
    )
    precision, recall, f1 = precision_recall_f1(right.total(), predicted_count.total(), gold_count.total())
    by_label = {
        label: precision_recall_f1(right[label], predicted_count[label], gold_count[label])
        for label in labels
        if gold_count[label] or predicted_count[label]
    }
    result = {"precision": precision, "recall": recall, "f1": f1}
    result["macro_f1"] = sum(f1 for _, _, f1 in by_label.values()) / len(by_label) if by_label else 0.0
    for label, figures in by_label.items():
        result |= {
            f"{name}_{label}": value for name, value in zip(("precision", "recall", "f1"), figures, strict=True)
        }
    return result


def precision_recall_f1(right: int, predicted: int, gold: int) -> tuple[float, float, float]:
    """Precision, recall and F1 from counts; each is 0 where its denominator is 0."""
    precision = right / predicted if predicted else 0.0
    recall = right / gold if gold else 0.0
    return precision, recall, 2 * right / (predicted + gold) if predicted + gold else 0.0


def best_span_threshold(golds: Sequence[Sequence[dict]], predictions: Sequence[Sequence[dict]]) -> float:
    """The threshold, a multiple of 0.05, that gives these rows the highest micro-F1; of several, the lowest.

    In theory an entity should be kept if its probability is above half the best F1 (Lipton et al. 2014,
    arXiv 1402.1892). The scores of a model are not exact probabilities, so the threshold is searched on held-out rows.

    Args:
        predictions: as in `count_spans`, each entity with its ``score``.
    """
    best = (-1.0, 0.0)
    for threshold in (step / 20 for step in range(20)):
        kept = [[entity for entity in entities if entity["score"] >= threshold] for entities in predictions]
        f1 = span_metrics(count_spans(golds, kept), ())["f1"]
        best = max(best, (f1, threshold), key=lambda found: found[0])  # max keeps the first of equals
    return best[1]
