"""Rows counted by reason, and the refusal of labels that are several in one. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sft.errors import InputError, RowError
from sft.tasks.classification import MULTI_LABEL
from sft.tasks.names import IN_NAMES, SEPARATORS, parts_of
from sft.tasks.raw_entities import NESTED, TWO_LABELS

SHOWN = 5  # reasons in a message
_MOST_KINDS = 200  # different reasons that are kept apart
_OTHER = "其他原因"
_SHOWN_CHARACTERS = 160  # of a reason


@dataclass
class Reason:
    """Rows that were rejected for one reason, or of which there is the same to say.

    Attributes:
        kind: the reason without the particulars of a row.
        first: the reason of the first row in full.
        line: that of the first row.
        alike: whether the reasons of all rows are the same in full.
    """

    kind: str
    first: str
    line: int
    rows: int = 0
    alike: bool = True

    def shown(self) -> str:
        """The reason for a person: that of the first row, which may stand for others."""
        return self.first if self.alike else f"{self.first} 等"


class RowKinds:
    """How many rows there are of each kind, with the line of the first."""

    def __init__(self) -> None:
        self._reasons: dict[str, Reason] = {}

    def count(self, kind: str, line: int, shown: str | None = None) -> None:
        """Count a row of a kind, on ``line`` of the file.

        Args:
            shown: the kind with the particulars of this row; None if it has none.
        """
        shown = kind if shown is None else shown
        if kind not in self._reasons and len(self._reasons) >= _MOST_KINDS:
            kind = shown = _OTHER
        shown = shown[:_SHOWN_CHARACTERS]
        reason = self._reasons.setdefault(kind, Reason(kind, shown, line))
        reason.rows += 1
        reason.alike = reason.alike and shown == reason.first

    def rows(self, kind: str) -> int:
        """How many rows there are of a kind."""
        return self._reasons[kind].rows if kind in self._reasons else 0

    def by_frequency(self) -> list[Reason]:
        """The kinds, the most frequent first."""
        return sorted(self._reasons.values(), key=lambda reason: -reason.rows)


class Rejections(RowKinds):
    """How many rows were rejected for each reason."""

    def add(self, error: RowError, line: int) -> None:
        """Count a row that ``error`` rejects, on ``line`` of the file."""
        if "multi-label" in error.reason:
            labels = error.reason.partition("：")[2]
            self.count(MULTI_LABEL, line, printable(f"{error.field}：{labels}" if error.field != "output" else labels))
        else:
            self.count(printable(error.kind), line, printable(error.described))

    def describe(self) -> str:
        """The most frequent reasons, in one line."""
        reasons = [f"{reason.shown()} {reason.rows:,} 行（如第 {reason.line} 行）" for reason in self.by_frequency()]
        more = f"；…… 共 {len(reasons)} 种原因" if len(reasons) > SHOWN else ""
        return "；".join(reasons[:SHOWN]) + more

    def advice(self) -> str:
        """What to do about the most frequent reason."""
        if not self._reasons:
            return "请检查数据"
        most_frequent = self.by_frequency()[0].kind
        if most_frequent.startswith("标签 "):
            return "请把标签加进 --labels；只想要其中几种，就加 --other_labels drop"
        if most_frequent == NESTED:
            return "本工具只做互不重叠的实体；请加 --nested outer（只留外层）或 --nested inner（只留内层）"
        if most_frequent == TWO_LABELS:
            return "一个实体只能有一个标签，请先只留一个"
        return "请先改正，或检查 --format、--text_column、--label_column"


def refuse_multi_label(path: Path, rejections: Rejections) -> None:
    """Refuse a file with rows that have several labels.

    Raises:
        InputError: there is such a row.
    """
    for reason in rejections.by_frequency():
        if reason.kind == MULTI_LABEL:
            raise multi_label_file(path, reason.rows, f"第 {reason.line} 行 {reason.first[:60]}")


def multi_label_file(path: Path, rows: int, example: str) -> InputError:
    """The error of a file with ``rows`` rows that have several labels."""
    return InputError(
        f"{path}：{rows:,} 行有几个标签（多标签 multi-label，如{example}）；本工具只做单标签分类，"
        "请让每行只剩一个标签，或每个标签另做一份是/否的数据"
    )


def joined_labels(rows_by_label: Mapping[str, int]) -> list[str]:
    """The labels that are several labels in one string, as ``体育|交通`` where ``体育`` and ``交通`` are labels too.

    Once a separator is seen to join labels, every label that it joins is taken for several if one part is known.
    Names such as ``女装/裙子``, whose parts are no labels, stay what they are.
    """
    joined: list[str] = []
    candidates = [label for label in rows_by_label if len(set(parts_of(label))) > 1]
    for separator in dict.fromkeys(map(_separator, candidates)):
        alike = [label for label in candidates if _separator(label) == separator]
        places = _places([parts_of(label) for label in alike])
        known = {part for part in places if part in rows_by_label}
        certain = separator not in IN_NAMES
        if certain:
            known |= {part for part, at in places.items() if len(at) > 1}
        if (certain and known) or any(known.issuperset(parts_of(label)) for label in alike):
            joined += [label for label in alike if not known.isdisjoint(parts_of(label))]
    return joined


def _separator(label: str) -> str:
    found = re.search(SEPARATORS, label.strip())[0]
    return " " if found.isspace() else found


def _places(labels: list[list[str]]) -> dict[str, set[int]]:
    """Each part with its places in the labels. A level of a hierarchy has one place; one of several labels has any."""
    places: dict[str, set[int]] = {}
    for parts in labels:
        for place, part in enumerate(parts):
            places.setdefault(part, set()).add(place)
    return places


def printable(text: str) -> str:
    """The text on one line, with unencodable characters replaced."""
    return " ".join(text.encode("utf-8", "replace").decode().split())
