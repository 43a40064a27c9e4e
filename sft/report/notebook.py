"""Views for the notebooks: sentences with marked entities, and tables of the model's errors.

Rows are lines of `predict.py`'s output: ``{"text", "entities" or "label" and "score", "gold"}``.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sft.report.span_errors import span_errors, spans_of
from sft.report.strings import STRINGS
from sft.tasks.metrics import Span, span_of

if TYPE_CHECKING:
    import pandas as pd

CHARACTERS_SHOWN = 60  # of a text, in a table
COLOURS = ("#ffd8a8", "#b2f2bb", "#a5d8ff", "#eebefa", "#ffec99", "#99e9f2", "#ffc9c9", "#d0bfff")
MARK = "background:{};color:#111;border-radius:4px;padding:2px 4px;margin:0 1px"


class Marked:
    """HTML that a notebook displays."""

    def __init__(self, content: str) -> None:
        self._content = content

    def _repr_html_(self) -> str:
        return self._content


def marked_entities(rows: Sequence[dict], labels: Sequence[str]) -> Marked:
    """Sentences with their entities marked, one colour for each label. Gold is shown below where it differs.

    Args:
        rows: predictions or records: anything with ``text`` and ``entities``, each with start, end and label.
        labels: the task's labels; their order decides the colours.
    """
    colours = {label: COLOURS[number % len(COLOURS)] for number, label in enumerate(labels)}
    lines = []
    for row in rows:
        lines.append(_marked(row["text"], row["entities"], colours))
        gold = row.get("gold")
        if gold is not None and spans_of(gold) != spans_of(row):
            lines.append(f"<small>✗ 正确：{_marked(row['text'], gold['entities'], colours)}</small>")
    return Marked("".join(f"<p style='line-height:2;margin:.2em 0'>{line}</p>" for line in lines))


def _marked(text: str, entities: Sequence[dict], colours: dict[str, str]) -> str:
    parts, last = [], 0
    for entity in sorted(entities, key=lambda entity: (entity["start"], -entity["end"])):
        if entity["start"] < last:  # overlaps the previous entity
            continue
        parts.append(html.escape(text[last : entity["start"]]))
        surface, label = text[entity["start"] : entity["end"]], entity["label"]
        style = MARK.format(colours.get(label, "#dee2e6"))
        parts.append(f"<mark style='{style}'>{html.escape(surface)} <small>{html.escape(label)}</small></mark>")
        last = entity["end"]
    return "".join([*parts, html.escape(text[last:])])


def span_error_table(rows: Sequence[dict]) -> pd.DataFrame:
    """All span errors with their kind, the most confident first. Columns: 错误 正确 预测 把握 原文."""
    import pandas as pd

    columns = ["错误", "正确", "预测", "把握", "原文"]
    lines = []
    for row in rows:
        scores = {span_of(entity): entity["score"] for entity in row["entities"]}
        for error in span_errors(spans_of(row["gold"]), spans_of(row)):
            shown = (_shown(row["text"], span) for span in (error.gold, error.predicted))
            lines.append((STRINGS[error.kind][0], *shown, scores.get(error.predicted), _short(row["text"])))
    return pd.DataFrame(lines, columns=columns).sort_values("把握", ascending=False, ignore_index=True)


def wrong_rows(rows: Sequence[dict]) -> list[dict]:
    """The rows with a wrong predicted span or a missed gold span."""
    return [row for row in rows if spans_of(row["gold"]) != spans_of(row)]


def _shown(text: str, span: Span | None) -> str:
    return f"{text[span[0] : span[1]]}（{span[2]}）" if span else ""


def label_error_table(rows: Sequence[dict]) -> pd.DataFrame:
    """All rows with a wrong label, the most confident first. Columns: 预测 正确 把握 正文."""
    import pandas as pd

    lines = [
        (row["label"], row["gold"]["label"], row["score"], _short(row["text"]))
        for row in rows
        if row["label"] != row["gold"]["label"]
    ]
    table = pd.DataFrame(lines, columns=["预测", "正确", "把握", "正文"])
    return table.sort_values("把握", ascending=False, ignore_index=True)


def confusion_table(rows: Sequence[dict]) -> pd.DataFrame:
    """How often each gold label (row of the table) was predicted as each label (column)."""
    import pandas as pd

    gold = pd.Series([row["gold"]["label"] for row in rows], name="正确")
    return pd.crosstab(gold, pd.Series([row["label"] for row in rows], name="预测"))


def _short(text: str) -> str:
    return text if len(text) <= CHARACTERS_SHOWN else f"{text[:CHARACTERS_SHOWN]}…"
