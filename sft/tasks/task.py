"""What a task is: the members that every task has, written down as a type.

A task is an immutable value: what the model is asked, how its answer reads, how it is scored. Everything outside
``sft/tasks`` and ``sft/data`` knows a task only by these members. CONTRIBUTING.md shows how to add one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, Protocol, Self

Counts = Counter[tuple[str, str | None]]


class Task(Protocol):
    """A record is a dict with ``text`` and the task's own fields; a result is what `parse` returns.

    Attributes:
        name: the task's name in records and in ``*.task.json``.
        title: its name for people, in Chinese.
        answers: the kind of result: ``label`` is ``{"label", "score", "scores"}``, ``entities`` is
            ``{"entities": [{"start", "end", "text", "label", "score"}]}``. Reading raw rows, decoding and the report
            go by this.
        answer_format: how an answer is written: ``label`` is the label itself; entities are ``json``, the lines of
            `sft.tasks.entity_lines`, or ``inline``, the text with the marks of `sft.tasks.entity_marks`. Decoding goes
            by this.
        metric: the metric that chooses the best checkpoint.
        labels: the labels of the data, in the order of the prompt.
        long_text: what is read of a text that is too long, for a task that lets training choose it: ``ends`` or
            ``head``, see `sft.tasks.classification`. None: the task always does the same.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    answers: ClassVar[Literal["label", "entities"]]
    metric: ClassVar[str]
    labels: tuple[str, ...]
    answer_format: str
    long_text: str | None

    # ---- settings: what ``*.task.json`` keeps ----

    @classmethod
    def from_settings(cls, settings: dict) -> Self:
        """The task from what `settings` returned.

        Raises:
            KeyError, TypeError: a field is missing or has another type.
        """

    def settings(self) -> dict:
        """A JSON object with the task's name under ``task`` and everything `from_settings` needs."""

    # ---- what the model is asked, and what it should answer ----

    def known_fields(self, row: dict) -> dict:
        """The record fields that a row to predict has: options and gold, as far as they are usable.

        Where something else can be used although the gold cannot, ``gold_error`` is the `RowError` that says why.

        Raises:
            RowError: they are there but cannot be used.
        """

    def prompt(self, record: dict) -> list[dict[str, str]]:
        """The chat messages before the answer."""

    def options(self, record: dict) -> Sequence[str] | None:
        """The answers to choose from; None if the answer is free text."""

    def answer(self, record: dict) -> str:
        """What the model should say."""

    # ---- texts that are too long ----

    def pieces(self, record: dict, length_tokens: Callable[[dict], int], max_length: int) -> list[dict]:
        """The record cut or split so that ``length_tokens`` of each piece is at most ``max_length``.

        Training always cuts so; prediction only where answers are labels: see `sft.decoding.pieces`. A piece whose
        ``text`` is not simply a part of the record's says in ``read_characters`` how much of that it has.

        Raises:
            RowError: it cannot be made to fit.
        """

    def merge(self, pieces: Sequence[dict], results: Sequence[dict]) -> dict:
        """The result of a record from the results of its pieces, in order.

        A piece with ``start`` begins there in the text of the record, and can share text with the piece before it;
        without, it begins where that one ends. The result has ``cut`` if one of the results has it.

        If the answers were generated, each result also has the ``answer`` itself.
        """

    # ---- results ----

    def parse(self, answer: str, record: dict) -> dict:
        """The result that a generated answer means, with ``unparsable`` (bool).

        Each of its entities has a ``line``, the line of the answer that names it, or the mark, from 0: decoding gives
        the entity the score of that line or mark.
        """

    def problems(self, result: dict) -> dict[str, int]:
        """What was wrong with the answer behind a result, counted by kind."""

    def gold(self, record: dict) -> dict | None:
        """The right result; None if the record has no gold."""

    def show(self, result: dict) -> str:
        """A result as a person reads it."""

    # ---- thresholds and metrics ----

    def best_threshold(self, golds: Sequence[dict], predictions: Sequence[dict]) -> float | None:
        """The score below which parts of a result are better left out; None if that never helps."""

    def at_least(self, result: dict, threshold: float) -> dict:
        """The result without what scores less than ``threshold``."""

    def count(self, golds: Sequence[dict], predictions: Sequence[dict]) -> Counts:
        """What `metrics` needs of these rows; the counts of more rows can be added to it."""

    def metrics(self, counts: Counts) -> dict[str, float]:
        """The metrics of all counted rows, by name; `metric` is one of them."""


def chat_messages(task: Task, record: dict) -> list[dict[str, str]]:
    """A record's whole conversation: the prompt and the right answer."""
    return [*task.prompt(record), {"role": "assistant", "content": task.answer(record)}]
