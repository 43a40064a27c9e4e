"""``report.html`` of a training run: its content, from what the run left behind."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sft.console import clock
from sft.data.records import conversion_report_path
from sft.files import METRICS_FILE, REPORT_FILE, read_json
from sft.report.charts import Curve, curves_of, histogram, line_chart
from sft.report.findings import Findings, findings_of, scores_of
from sft.report.intervals import Estimate
from sft.report.page import Fact, figure, write_page
from sft.report.strings import STRINGS
from sft.tasks.evaluation import LEAST_GOLD_ENTITIES, at_least, gold_entities, too_few_entities
from sft.tracking.metrics_log import read_metrics

if TYPE_CHECKING:
    from sft.tasks.task import Task

SPLIT_OF = {
    "before": "validation",
    "after": "validation",
    "test": "test",
}  # evaluation → split, in the order of the page
SCORES = ("f1", "accuracy", "macro_f1", "precision", "recall")
THRESHOLDS = [step / 20 for step in range(20)]
LINES_NAMED = 20
# The settings that people compare runs by, under the names of their flags.
SETTINGS = (
    "config",
    "train_file", "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size",
    "gradient_accumulation_steps", "lr_scheduler_type", "warmup_steps", "lora_r", "lora_alpha", "lora_dropout",
    "lora_target_modules", "max_length", "max_new_tokens", "batching", "seed", "threshold",
    "temperature", "score_bias", "version",
)  # fmt: skip
UNSET = (None, -1)
FORMATS = {
    "learning_rate": "{:g}",
    "num_train_epochs": "{:g}",
    "threshold": "{:.3g}",
    "temperature": "{:g}",
    "score_bias": "{:g}",
}


class Lengths(NamedTuple):
    """Lengths of the training rows, and what was done to those that were too long.

    Attributes:
        tokens: of each row, prompt and answer.
        max_length: the limit, in tokens.
        shortened_lines: lines of the training file whose rows were cut or split.
        pieces: how many rows the split ones became.
        dropped_tokens: how many tokens were cut away; 0 if rows were split.
    """

    tokens: Sequence[int]
    max_length: int
    shortened_lines: Sequence[int]
    pieces: int
    dropped_tokens: int


class RunData(NamedTuple):
    """What a run was trained and evaluated on.

    Attributes:
        splits: the records of ``train``, ``validation`` and ``test``.
        lengths: of the training rows.
        train_file: where the training records come from; the conversion's report is beside it.
    """

    splits: Mapping[str, Sequence[dict]]
    lengths: Lengths
    train_file: Path


class Kept(NamedTuple):
    """The weights, the threshold and the calibration that the run keeps.

    Attributes:
        step: of the weights.
        metric: they are the best ones by this metric of the validation, such as ``f1``; None for those of the last
            step, not chosen by any metric.
        threshold: below which an entity is left out; None for none.
        predictions: of the validation records by these weights, before the threshold; empty if there are none.
        temperature, score_bias: of the scores, see `sft.tasks.calibration`; None for the model's own.
    """

    step: int
    metric: str | None = None
    threshold: float | None = None
    predictions: Sequence[dict] = ()
    temperature: float | None = None
    score_bias: float | None = None


class RunFacts(NamedTuple):
    """What the head of the page says beside the results.

    Attributes:
        base_model: its name or folder.
        dtype: of the model's weights, such as ``float32``.
        device_type: ``cuda`` or ``cpu``.
        steps: optimizer steps.
        kept: what the run keeps.
        trials: of ``--learning_rate auto``, in order: ``(rate, steps, validation loss)``; empty for a rate by hand.
    """

    base_model: str
    dtype: str
    device_type: str
    steps: int
    kept: Kept
    trials: Sequence[tuple[float, int, float | None]] = ()


def write_run_report(
    output_dir: Path,
    task: Task,
    data: RunData,
    predictions: Mapping[str, Sequence[dict]],
    results: Mapping[str, float],
    facts: RunFacts,
    settings: Mapping[str, object],
) -> None:
    """Write ``report.html`` into ``output_dir``. ``metrics.jsonl`` is read from there.

    Args:
        predictions: of the validation records ``before`` and ``after`` training and of the ``test`` records; any of
            them can be missing. The last one is shown row by row.
        results: the run's results: ``train_runtime`` in seconds, ``epoch``, ``executed_tokens``,
            ``logical_tokens``, ``peak_memory_bytes``.
        settings: the run's settings by name; those in ``SETTINGS`` are shown.

    Raises:
        InputError: the page cannot be written, or the conversion's report cannot be read.
    """
    metrics = read_metrics(output_dir / METRICS_FILE)
    findings = {
        evaluation: _find(task, data.splits[split], predictions[evaluation])
        for evaluation, split in SPLIT_OF.items()
        if evaluation in predictions
    }
    scores = {
        evaluation: scores_of(task, found, _metrics(task, data.splits[SPLIT_OF[evaluation]], predictions[evaluation]))
        for evaluation, found in findings.items()
    }
    if "before" not in scores and (
        at_start := _scores_at_start(metrics, task)
    ):  # a resumed run has no predictions from before
        scores = {"before": at_start} | scores
    kept = facts.kept
    curves = [f"eval_{name}" for name in dict.fromkeys((task.metric, *SCORES))]
    thresholds = _scores_by_threshold(task, data.splits["validation"], kept)
    page = {
        "kind": "report_run",
        "name": output_dir.resolve().name,
        "facts": _facts(data, results, facts),
        "scores": scores,
        "charts": {
            "chart_loss": line_chart(curves_of(metrics, ("loss", "eval_loss")), chosen=kept.step),
            "chart_scores": line_chart(curves_of(metrics, curves), at_least=(0, 1), chosen=kept.step),
            "chart_threshold": line_chart(thresholds, over="threshold", at_least=(0, 1), chosen=kept.threshold),
            "chart_learning_rate": line_chart(curves_of(metrics, ("learning_rate",)), at_least=(0, 0)),
        },
        "kept": _describe_kept(task, kept, facts.steps, data.splits["validation"]),
        "search": _describe_search(facts.trials, settings),
        "data": _describe_data(task, data),
        "settings": {
            name: _shown_setting(name, value) for name in SETTINGS if (value := settings.get(name)) not in UNSET
        },
    }
    shown = next(reversed(findings), None)
    write_page(output_dir / REPORT_FILE, page, shown, findings[shown] if shown else None)


def _find(task: Task, records: Sequence[dict], predictions: Sequence[dict]) -> Findings:
    findings = findings_of(task)
    for record, prediction in zip(records, predictions, strict=True):
        findings.add(record["text"], task.gold(record), prediction)
    return findings


def _metrics(task: Task, records: Sequence[dict], predictions: Sequence[dict]) -> dict[str, float] | None:
    """The task's metrics of the rows with gold and without an error; None if there are none."""
    pairs = zip((task.gold(record) for record in records), predictions, strict=True)
    judged = [(gold, result) for gold, result in pairs if gold is not None and "error" not in result]
    return task.metrics(task.count(*zip(*judged, strict=True))) if judged else None


def _scores_at_start(metrics: Sequence[dict], task: Task) -> dict[str, Estimate]:
    """Scores of the evaluation before the first step, without intervals."""
    first = next((row for row in metrics if row["step"] == 0 and "eval_loss" in row), {})
    names = dict.fromkeys((task.metric, *SCORES))
    return {name: Estimate(first[f"eval_{name}"]) for name in names if first.get(f"eval_{name}") is not None}


def _scores_by_threshold(task: Task, records: Sequence[dict], kept: Kept) -> dict[str, Curve]:
    """What each threshold would have made of the validation; empty without a threshold."""
    if kept.threshold is None or not kept.predictions:
        return {}
    rows = []
    for threshold in THRESHOLDS:
        metrics = _metrics(task, records, at_least(task, kept.predictions, threshold)) or {}
        rows.append({"step": threshold} | {f"eval_{name}": value for name, value in metrics.items()})
    return curves_of(rows, [f"eval_{name}" for name in dict.fromkeys((task.metric, "precision", "recall"))])


def _describe_kept(
    task: Task, kept: Kept, steps: int, validation: Sequence[dict]
) -> list[tuple[str, dict[str, object]]]:
    """What to say about the weights, threshold and calibration: keys of STRINGS and their arguments."""
    figures = {"step": figure(kept.step), "steps": figure(steps)}
    lines: list[tuple[str, dict[str, object]]] = [
        ("kept_last", figures) if kept.metric is None else ("kept_best", figures | {"metric": _named(kept.metric)})
    ]
    if kept.threshold is not None:
        key = "kept_threshold" if kept.threshold > 0 else "kept_all"
        lines.append((key, {"threshold": f"{kept.threshold:g}", "metric": _named(task.metric)}))
    elif validation and too_few_entities(task, golds := [task.gold(record) for record in validation]):
        counts = {"entities": figure(gold_entities(golds)), "least": figure(LEAST_GOLD_ENTITIES)}
        lines.append(("no_threshold", counts))
    if kept.temperature is not None:
        figures = {"temperature": f"{kept.temperature:g}", "bias": f"{kept.score_bias or 0:+g}"}
        lines.append(("kept_temperature" if kept.score_bias is None else "kept_temperature_and_bias", figures))
    return lines


def _describe_search(trials: Sequence[tuple[float, int, float | None]], settings: Mapping[str, object]) -> dict | None:
    """A row for each rate that was tried, with the loss after each number of steps."""
    if not trials:
        return None
    rounds = list(dict.fromkeys(steps for _, steps, _ in trials))
    losses = {(rate, steps): loss for rate, steps, loss in trials}
    rows = [
        {
            "rate": f"{rate:g}",
            "losses": [losses.get((rate, steps), "") for steps in rounds],
            "chosen": rate == settings.get("learning_rate"),
        }
        for rate in sorted({rate for rate, _, _ in trials})
    ]
    return {"rounds": rounds, "rows": rows}


def _named(metric: str) -> str:
    """A metric of the validation as a key of STRINGS, or its own name if it is not there."""
    metric = metric.removeprefix("eval_")
    return f"eval_{metric}" if f"eval_{metric}" in STRINGS else metric


def _facts(data: RunData, results: Mapping[str, float], facts: RunFacts) -> list[Fact]:
    """What the head of the page says."""
    executed, logical = results["executed_tokens"], results["logical_tokens"]
    tokens = {"executed": figure(executed), "logical": figure(logical), "share": f"{100 * executed / logical:.0f}"}
    memory = f"{results['peak_memory_bytes'] / 1e9:.2f} GB"
    return [
        ("base", facts.base_model),
        ("data", [(f"rows_{split}", {"rows": figure(len(rows))}) for split, rows in data.splits.items() if rows]),
        ("training_time", clock(results["train_runtime"])),  # of the whole run, also of one that was resumed
        ("steps", ("steps_epochs", {"steps": figure(facts.steps), "epochs": f"{results['epoch']:.4g}"})),
        ("tokens", ("tokens_share", tokens)),
        ("peak_memory_cuda" if facts.device_type == "cuda" else "peak_memory", memory),
        ("numbers", facts.dtype),
    ]


def _describe_data(task: Task, data: RunData) -> dict:
    """Lengths, label balance, and the conversion's report."""
    ordered, max_length = sorted(data.lengths.tokens), data.lengths.max_length
    labels_of = findings_of(task).labels_of
    counts = {
        split: Counter(label for record in records for label in labels_of(task.gold(record)))
        for split, records in data.splits.items()
    }
    labels = sorted(set().union(*counts.values()), key=lambda label: (-counts["train"][label], label))
    report_path = conversion_report_path(data.train_file)
    return {
        "histogram": histogram(ordered, max_length),
        "lengths": {
            "median": statistics.median(ordered),
            "most": ordered[int(0.95 * (len(ordered) - 1))],
            "longest": ordered[-1],
            "cut": max_length,
        },
        "shortened": _shortened(data.lengths),
        "splits": [split for split, records in data.splits.items() if records],
        "balance": [{"label": label, **{split: counts[split][label] for split in data.splits}} for label in labels],
        "balance_total": counts["train"].total(),
        "conversion": read_json(report_path) if report_path.is_file() else None,
    }


def _shortened(lengths: Lengths) -> tuple[str, dict[str, str]]:
    """What to say about rows that were too long: a key of STRINGS and its arguments."""
    shortened = lengths.shortened_lines
    if not shortened:
        return "none_cut", {}
    lines = "、".join(map(str, shortened[:LINES_NAMED])) + ("……" if len(shortened) > LINES_NAMED else "")
    figures = {"rows": figure(len(shortened)), "lines": lines}
    if lengths.dropped_tokens:
        return "rows_cut", figures | {"tokens": figure(lengths.dropped_tokens)}
    return "rows_split", figures | {"pieces": figure(lengths.pieces)}


def _shown_setting(name: str, value: object) -> str:
    if value is None:
        return "–"
    return " ".join(value) if isinstance(value, list) else FORMATS.get(name, "{}").format(value)
