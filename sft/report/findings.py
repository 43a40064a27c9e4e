"""What a report collects about the predictions of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sft.report.labels import LabelFindings
from sft.report.spans import SpanFindings

if TYPE_CHECKING:
    from sft.tasks.task import Task

Findings = LabelFindings | SpanFindings
FINDINGS = {"label": LabelFindings, "entities": SpanFindings}  # by the key that holds the answer in a result


def findings_of(task: Task) -> Findings:
    """An empty collection for the predictions of ``task``; a task's ``answers`` decides its kind."""
    return FINDINGS[task.answers](task.labels, task.title)
