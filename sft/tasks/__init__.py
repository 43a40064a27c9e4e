"""The tasks by name, as ``*.task.json`` and records name them."""

from __future__ import annotations

from sft.tasks.classification import Classification
from sft.tasks.ner import Ner
from sft.tasks.task import Task

TASKS: dict[str, type[Task]] = {task.name: task for task in (Classification, Ner)}
