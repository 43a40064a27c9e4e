"""What a report collects about the predictions of a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sft.report.intervals import Estimate
from sft.report.labels import LabelFindings
from sft.report.spans import SpanFindings
from sft.tasks.settings import CHOSEN

if TYPE_CHECKING:
    from sft.tasks.task import Task

Findings = LabelFindings | SpanFindings
NOT_SCORES = ("unparsable", "loss", *CHOSEN)
FINDINGS = {"label": LabelFindings, "entities": SpanFindings}  # by the key that holds the answer in a result


def findings_of(task: Task) -> Findings:
    """An empty collection for the predictions of ``task``; a task's ``answers`` decides its kind."""
    return FINDINGS[task.answers](task.labels, task.title)


def scores_of(task: Task, findings: Findings, metrics: Mapping[str, float] | None) -> dict[str, Estimate]:
    """The scores of the page's table, the one that chooses checkpoints first.

    The task's own metrics, which the page cannot resample, and the calibration error have no interval. Metrics of one
    label have their own table.

    Args:
        metrics: what the task makes of the same rows; None without gold.
    """
    estimates = findings.estimates()
    endings = tuple(f"_{label}" for label in findings.numbers)
    own = {
        name: Estimate(value)
        for name, value in (metrics or {}).items()
        if name not in estimates and name not in NOT_SCORES and not name.endswith(endings)
    }
    error = findings.reliability.expected_error()
    scores = estimates | own | ({} if error is None else {"ece": Estimate(error)})
    return {name: scores[name] for name in sorted(scores, key=lambda name: name != task.metric)}
