"""``report.html`` of a training run: what the page says, put together from what the run left."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sft.data.records import conversion_report_path
from sft.files import read_json
from sft.report.charts import curves_of, histogram, line_chart
from sft.report.page import Fact, Findings, figure, write_page
from sft.tracking.metrics_log import read_rows
from sft.training.arguments import Arguments

if TYPE_CHECKING:
    from sft.model.encoding import LengthReport
    from sft.tasks.task import Task

SPLIT_OF = {"before": "validation", "after": "validation", "test": "test"}  # of each evaluation, in order
SCORE_CURVES = ("eval_f1", "eval_accuracy", "eval_macro_f1", "eval_precision", "eval_recall")
LINES_NAMED = 20


def write_run_report(
    output_dir: Path,
    *,
    task: Task,
    splits: dict[str, Sequence[tuple[int, dict]]],
    predictions: dict[str, Sequence[dict]],
    lengths: LengthReport,
    results: dict[str, float],
    task_json: dict,
    arguments: Arguments,
    steps: int,
    resumed: bool,
) -> None:
    """Write the page of a run that is otherwise finished.

    Args:
        splits: ``(line number, record)`` pairs of ``train``, ``validation`` and ``test``.
        predictions: of the validation records ``before`` and ``after`` training, and of the ``test`` records, as far
            as there are any; the last of them is shown row by row.
        lengths: of the training rows.
        results: what the run prints.

    Raises:
        InputError: the page cannot be written, or the conversion's report cannot be read.
    """
    metrics = read_rows(output_dir / "metrics.jsonl")
    records = {split: [record for _, record in numbered] for split, numbered in splits.items()}
    findings = {
        evaluation: _find(task, records[split], predictions[evaluation])
        for evaluation, split in SPLIT_OF.items()
        if evaluation in predictions
    }
    scores = {evaluation: found.estimates() for evaluation, found in findings.items()}
    if "before" not in scores and (at_start := _scores_at_start(metrics)):  # a resumed run has the figures only
        scores = {"before": at_start} | scores
    page = {
        "kind": "report_run",
        "name": output_dir.resolve().name,
        "facts": _facts(records, results, task_json, steps, resumed, arguments.training.device.type == "cuda"),
        "scores": scores,
        "charts": {
            "chart_loss": line_chart(curves_of(metrics, ("loss", "eval_loss"))),
            "chart_scores": line_chart(curves_of(metrics, SCORE_CURVES), at_least=(0, 1)),
            "chart_learning_rate": line_chart(curves_of(metrics, ("learning_rate",)), at_least=(0, 0)),
        },
        "data": _describe_data(task, records, lengths, Path(arguments.data.train_file), task_json["max_length"]),
        "settings": _settings(arguments, task_json),
    }
    shown = next(reversed(findings), None)
    write_page(output_dir / "report.html", page, shown, findings[shown] if shown else None)


def _find(task: Task, records: Sequence[dict], predictions: Sequence[dict]) -> Findings:
    findings = task.findings()
    for record, prediction in zip(records, predictions, strict=True):
        findings.add(record["text"], task.gold(record), prediction)
    return findings


def _scores_at_start(metrics: Sequence[dict]) -> dict[str, tuple[float, None, None]]:
    """Scores of the evaluation before the first step, without intervals."""
    first = next((row for row in metrics if row["step"] == 0 and "eval_loss" in row), {})
    names = ("f1", "precision", "recall", "accuracy", "macro_f1")
    return {name: (first[f"eval_{name}"], None, None) for name in names if first.get(f"eval_{name}") is not None}


def _facts(
    splits: dict[str, Sequence[dict]], results: dict, task_json: dict, steps: int, resumed: bool, cuda: bool
) -> list[Fact]:
    """What stands at the head of the page."""
    executed, logical = results["executed_tokens"], results["logical_tokens"]
    tokens = {"executed": figure(executed), "logical": figure(logical), "share": f"{100 * executed / logical:.0f}"}
    return [
        ("base", task_json["base_model"]),
        ("data", ("counts", {split: figure(len(records)) for split, records in splits.items()})),
        ("training_time_resumed" if resumed else "training_time", _duration(results["train_runtime"])),
        ("steps", ("steps_epochs", {"steps": figure(steps), "epochs": f"{results['epoch']:.4g}"})),
        ("tokens", ("tokens_share", tokens)),
        ("peak_memory_cuda" if cuda else "peak_memory", f"{results['peak_memory_bytes'] / 1e9:.2f} GB"),
        ("numbers", task_json["dtype"]),
    ]


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _describe_data(
    task: Task, splits: dict[str, Sequence[dict]], lengths: LengthReport, train_file: Path, max_length: int
) -> dict:
    """Lengths with the cut, label balance, and what conversion did."""
    ordered = sorted(lengths.lengths)
    labels_of = task.findings().labels_of
    counts = {
        split: Counter(label for record in records for label in labels_of(task.gold(record)))
        for split, records in splits.items()
    }
    labels = sorted(set().union(*counts.values()), key=lambda label: (-counts["train"][label], label))
    report_path = conversion_report_path(train_file)
    return {
        "histogram": histogram(ordered, max_length),
        "lengths": {
            "median": statistics.median(ordered),
            "most": ordered[int(0.95 * (len(ordered) - 1))],
            "longest": ordered[-1],
            "cut": max_length,
        },
        "shortened": _shortened(lengths),
        "balance": [{"label": label, **{split: counts[split][label] for split in splits}} for label in labels],
        "balance_total": counts["train"].total(),
        "conversion": read_json(report_path) if report_path.is_file() else None,
        "conversion_path": report_path.name,
    }


def _shortened(lengths: LengthReport) -> tuple[str, dict[str, str]]:
    """What to say about rows that were too long: a key of the strings, and what it needs."""
    rows = lengths.shortened_rows
    if not rows:
        return "none_cut", {}
    lines = "、".join(map(str, rows[:LINES_NAMED])) + ("……" if len(rows) > LINES_NAMED else "")
    told = {"rows": figure(len(rows)), "lines": lines}
    if lengths.dropped_tokens:
        return "rows_cut", told | {"tokens": figure(lengths.dropped_tokens)}
    return "rows_split", told | {"pieces": figure(lengths.pieces)}


def _settings(arguments: Arguments, task_json: dict) -> dict[str, object]:
    """The settings that people compare runs by, under the names of their flags."""
    training, data, lora = arguments.training, arguments.data, arguments.lora
    threshold = task_json.get("threshold")  # where the task has one and there were validation rows to choose it by
    return {
        "train_file": data.train_file,
        "learning_rate": f"{training.learning_rate:g}",
        "num_train_epochs": f"{training.num_train_epochs:g}",
        "max_steps": training.max_steps,
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "lr_scheduler_type": training.lr_scheduler_type.value,
        "warmup_steps": training.warmup_steps,
        "lora_r": lora.lora_r,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": lora.lora_dropout,
        "lora_target_modules": " ".join(lora.lora_target_modules),
        "max_length": data.max_length,
        "max_new_tokens": task_json["max_new_tokens"],
        "batching": data.batching,
        "seed": training.seed,
        "threshold": "–" if threshold is None else f"{threshold:.3g}",
        "version": task_json["version"],
    }
