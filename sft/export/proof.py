"""What was compared between the adapter and its export, and whether it is equal enough. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

SHOWN = 3  # differences that are shown

TITLES = {
    "prompts": "提示的 token",
    "settings": "设置",
    "weights": "权重",
    "answers": "回答",
    "scores": "回答的对数概率",
    "metric": "成绩",
}


class Difference(NamedTuple):
    """One thing that differs: where, what it should be, and what it is."""

    where: str
    wanted: str
    found: str

    def __str__(self) -> str:
        return f"{self.where}：应是 {self.wanted}，这里是 {self.found}"


@dataclass(frozen=True)
class Leg:
    """One comparison.

    Attributes:
        name: a key of `TITLES`.
        compared: how many things were compared.
        differences: those that differ, the first ones in front.
        least: the share that must be equal.
        note: what a person should know about it.
    """

    name: str
    compared: int
    differences: tuple[Difference, ...] = ()
    least: float = 1.0
    note: str = ""

    @property
    def equal(self) -> int:
        """How many are equal."""
        return self.compared - len(self.differences)

    @property
    def passed(self) -> bool:
        """Whether enough is equal. A comparison of nothing proves nothing."""
        return self.compared > 0 and self.equal >= self.least * self.compared - 1e-9

    def __str__(self) -> str:
        share = f"{self.equal} / {self.compared} 相同"
        if self.compared and self.differences:
            share += f"（{self.equal / self.compared:.2%}，至少要 {self.least:.2%}）"
        return f"{TITLES[self.name]}：{share}{'；' + self.note if self.note else ''}"

    def to_json(self) -> dict:
        """The comparison as a JSON object."""
        shown = [difference._asdict() for difference in self.differences[:SHOWN]]
        figures = {"compared": self.compared, "equal": self.equal, "least": self.least, "passed": self.passed}
        return figures | ({"note": self.note} if self.note else {}) | ({"differences": shown} if shown else {})


@dataclass(frozen=True)
class Proof:
    """All comparisons of one export.

    Attributes:
        target: what was exported, for example ``gguf q8_0``.
        legs: the comparisons, in the order in which they were made.
        not_run: what could not be compared here, or only in another way, in words.
        metrics: figures that are only told: of the adapter and of the export.
    """

    target: str
    legs: tuple[Leg, ...]
    not_run: tuple[str, ...] = ()
    metrics: tuple[tuple[str, float], ...] = ()

    @property
    def failed(self) -> list[Leg]:
        """The comparisons with too many differences."""
        return [leg for leg in self.legs if not leg.passed]

    def lines(self) -> list[str]:
        """The proof for a person, line by line: comparisons, first differences, what was not compared."""
        lines = []
        for leg in self.legs:
            lines.append(f"{'✓' if leg.passed else '✗'} {leg}")
            lines += [f"    {difference}" for difference in leg.differences[:SHOWN]]
        lines += [f"- {name}：{value:.4f}" for name, value in self.metrics]
        return lines + [f"- {what}" for what in self.not_run]

    def to_json(self) -> dict:
        """The proof as a JSON object."""
        return {
            "target": self.target,
            "passed": not self.failed,
            "legs": {leg.name: leg.to_json() for leg in self.legs},
            "metrics": dict(self.metrics),
            "not_run": list(self.not_run),
        }


def compare(
    name: str,
    wanted: Sequence[list[int]],
    found: Sequence[list[int]],
    as_text: Callable[[list[int]], str],
    least: float = 1.0,
    note: str = "",
) -> Leg:
    """Compare two lists of token ids, row by row.

    Args:
        as_text: the text of some token ids, to show a difference.
    """
    pairs = zip(wanted, found, strict=True)
    differences = (
        Difference(f"第 {number} 条", *_around_first_difference(one, other, as_text))
        for number, (one, other) in enumerate(pairs, start=1)
        if one != other
    )
    return Leg(name, len(wanted), tuple(differences), least, note)


def compare_named(name: str, pairs: Iterable[tuple[str, object, object]]) -> Leg:
    """Compare ``(where, wanted, found)``; all of them must be equal."""
    pairs = list(pairs)
    differences = (Difference(where, _short(one), _short(other)) for where, one, other in pairs if one != other)
    return Leg(name, len(pairs), tuple(differences))


def _around_first_difference(
    wanted: list[int], found: list[int], as_text: Callable[[list[int]], str]
) -> tuple[str, str]:
    """Two rows from a little before the place where they begin to differ; as ids where the text is the same."""
    same = next((at for at, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), None)
    same = min(len(wanted), len(found)) if same is None else same
    pieces = [row[max(0, same - 8) : same + 16] for row in (wanted, found)]
    one, other = map(as_text, pieces)
    return (_short(one), _short(other)) if one != other else (_short(pieces[0]), _short(pieces[1]))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
