"""Predictions as a person reads them on a terminal: ``[赵一 人名]到[青湖 地点]``, and the line at the end of a run.

A pipe or a file gets JSON lines instead; nothing is left out there.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import orjson

from sft.tasks.metrics import METRIC_NAMES, span_of
from sft.terminal import RESET, display_width, folds
from sft.text import with_count

COLOURS = ("\x1b[36m", "\x1b[33m", "\x1b[35m", "\x1b[32m", "\x1b[34m", "\x1b[31m")  # of the labels, in turn
INDENT = 2
LABELS_SHOWN = 8
LEFT_OUT = {"invented": "文中没有", "repeated": "重复"}  # kinds of names that a result leaves out, see `sft.tasks.ner`
FIGURES = {name: chinese for name, (chinese, _) in METRIC_NAMES.items()} | {"f1": "F1"}
BIDIRECTIONAL = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Look(NamedTuple):
    """How predictions are shown.

    Attributes:
        columns: of the terminal.
        colours: label → the code that switches its colour on; empty for no colours.
    """

    columns: int
    colours: Mapping[str, str]


def look_of(columns: int, labels: Sequence[str], *, coloured: bool) -> Look:
    """The look for a terminal of so many columns."""
    colours = {label: COLOURS[index % len(COLOURS)] for index, label in enumerate(labels)} if coloured else {}
    return Look(columns, colours)


class ShownRows:
    """Turns output lines into text for a person. It counts the rows, so that an error can name its row.

    Args:
        look: how.
    """

    def __init__(self, look: Look) -> None:
        self._look, self._rows = look, 0

    def __call__(self, line: bytes) -> str:
        """The text for one output line, without a newline at its end."""
        self._rows += 1
        output = orjson.loads(line)
        if "error" in output:
            return "\n".join(_folded(f"第 {self._rows:,} 条出错：{visible(output['error'])}", self._look))
        lines = _entity_lines(output, self._look) if "entities" in output else _label_lines(output, self._look)
        answer = _folded(f"  原话 {visible(output['answer'])}", self._look) if "answer" in output else ()
        return "\n".join([*lines, *answer])


class _Marked(NamedTuple):
    """A text with the places to colour: ``(start, end, label)``."""

    text: str
    places: list[tuple[int, int, str]]


def _entity_lines(output: dict, look: Look) -> Iterator[str]:
    """The marked sentence, the scores, and the gold if it is another one."""
    text, entities = output["text"], output["entities"]
    yield from _coloured(marked(text, entities), look)
    scored = [f"{visible(entity['text'])} {entity['label']} {score_text(entity)}".rstrip() for entity in entities]
    yield from _folded("  " + ("，".join(scored) or "没有实体"), look)
    if output.get("cut"):
        yield from _folded("  答案没有写完，后面可能还有实体", look)
    if "gold" in output and set(map(span_of, output["gold"]["entities"])) != set(map(span_of, entities)):
        right = marked(text, output["gold"]["entities"])
        prefix = "  应为 "
        places = [(start + len(prefix), end + len(prefix), label) for start, end, label in right.places]
        yield from _coloured(_Marked(prefix + right.text, places), look)


def _label_lines(output: dict, look: Look) -> Iterator[str]:
    """The label, its score, and as much of the text as fits into the line."""
    label = output["label"] if output["label"] is not None else "没有把握"
    mark = f"[{label} {score_text(output)}".rstrip() + "]"
    gold = output.get("gold")
    right = f"（应为 {gold['label']}）" if gold is not None and gold["label"] != output["label"] else ""
    if "read_characters" in output:
        where = "开头和结尾" if "read_at_end" in output else "开头"
        right += f"（只读了{where} {output['read_characters']:,} 个字）"
    text = visible(" ".join(output["text"].split()))
    room = look.columns - display_width(f"{mark}{right} ")
    if display_width(text) > room:
        first = next(folds(text, max(room - 2, 2), split_words=True), (0, 0))  # 2: the ellipsis
        text = f"{text[first[0] : first[1]].rstrip()}…"
    yield from _coloured(_Marked(f"{mark}{right} {text}", [(0, len(mark), output["label"] or "")]), look)


def marked(text: str, entities: Sequence[dict]) -> _Marked:
    """``赵一到青湖`` → ``[赵一 人名]到[青湖 地点]``. Of entities that overlap, the first is marked."""
    parts, places, done, length = [], [], 0, 0
    for entity in sorted(entities, key=lambda entity: (entity["start"], -entity["end"])):
        if entity["start"] < done:
            continue
        between = visible(text[done : entity["start"]])
        mark = f"[{visible(text[entity['start'] : entity['end']])} {entity['label']}]"
        places.append((length + len(between), length + len(between) + len(mark), entity["label"]))
        parts += [between, mark]
        length += len(between) + len(mark)
        done = entity["end"]
    return _Marked("".join([*parts, visible(text[done:])]), places)


def score_text(result: dict) -> str:
    """The score with four digits; empty if there is none."""
    return "" if result.get("score") is None else f"{result['score']:.4f}"


def visible(text: str) -> str:
    """``text`` without what would move the cursor, change colours or reverse the line: a picture stands for it.

    Every character stays one character, so that offsets stay right.
    """
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character < " ":
        return chr(0x2400 + ord(character))  # ␊ for a line feed
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in BIDIRECTIONAL:
        return "\ufffd"
    return character


def _folded(text: str, look: Look) -> Iterator[str]:
    yield from _coloured(_Marked(text, []), look)


def _coloured(shown: _Marked, look: Look) -> Iterator[str]:
    """The lines of a marked text, broken to the terminal, with colours."""
    for number, (start, end) in enumerate(folds(shown.text, look.columns, INDENT, split_words=True)):
        pieces, done = [" " * INDENT * (number > 0)], start
        for place_start, place_end, label in shown.places:
            first, last = max(place_start, start), min(place_end, end)
            if first < last and label in look.colours:
                pieces += [shown.text[done:first], look.colours[label], shown.text[first:last], RESET]
                done = last
        yield "".join([*pieces, shown.text[done:end]]).rstrip()


# ---- the end of a run ----


def count_labels(lines: Iterable[bytes]) -> Counter[str]:
    """How many entities or rows of each label the output lines have; rows without a label are not counted."""
    counts: Counter[str] = Counter()
    for output in map(orjson.loads, lines):
        if "entities" in output:
            counts.update(entity["label"] for entity in output["entities"])
        elif output.get("label") is not None:
            counts[output["label"]] += 1
    return counts


def what_was_done(rows: int, errors: int, counts: Counter[str], answers: str, threshold: float | None) -> str:
    """``预测了 3 条，5 个实体（人名 3，地点 2；概率不低于 0.15）``."""
    shown = [with_count(label, f"{number:,}") for label, number in counts.most_common(LABELS_SHOWN)]
    more = f" 等 {len(counts)} 种" if len(counts) > LABELS_SHOWN else ""
    details = ["，".join(shown) + more] if shown else []
    if threshold:
        details.append(f"概率不低于 {threshold:.4g}")
    if answers == "label" and (without := rows - errors - counts.total()):
        details.append(f"{without:,} 条没有给标签")
    found = f"，{counts.total():,} 个实体" if answers == "entities" else ""
    failed = f"，其中 {errors:,} 条出错" if errors else ""
    return f"预测了 {rows:,} 条{failed}{found}" + (f"（{'；'.join(details)}）" if details else "")


def what_was_left_out(problems: Mapping[str, int]) -> str:
    """``；3 个名字没有采用（2 个文中没有，1 个重复）``; "" if nothing was."""
    parts = [f"{problems[kind]:,} 个{why}" for kind, why in LEFT_OUT.items() if problems.get(kind)]
    total = sum(problems.get(kind, 0) for kind in LEFT_OUT)
    return f"；{total:,} 个名字没有采用（{'，'.join(parts)}）" if parts else ""


def figures(metrics: Mapping[str, float]) -> str:
    """The main metrics in one line, then the counts of what went wrong; those of each label are left to the report."""
    parts = [f"{title} {metrics[name]:.4f}" for name, title in FIGURES.items() if name in metrics]
    counted = [f"{name} {value:,}" for name, value in metrics.items() if isinstance(value, int) and name != "rows"]
    rows = f"成绩（{metrics['rows']:,} 条有标准答案）：" if "rows" in metrics else "没有标准答案："
    return rows + "，".join([*parts, *counted])
