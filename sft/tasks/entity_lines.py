"""The words and the line format of an answer that lists entities: one JSON object a line, or one fixed sentence."""

from __future__ import annotations

import json
from collections.abc import Sequence

NO_ENTITY = "没有找到任何实体"

_quoted = json.JSONEncoder(ensure_ascii=False).encode  # for strings; five times faster than json.dumps


def entity_line(text: str, label: str) -> str:
    """One entity as one line of the answer."""
    return f'{{"entity_text": {_quoted(text)}, "entity_label": {_quoted(label)}}}'


def read_lines(answer: str, text: str, labels: Sequence[str], problems: dict[str, int]) -> list[dict]:
    """The entities of an answer with their offsets in ``text``; each has the number of its line, from 0, as ``line``.

    An answer does not say which occurrence of a text it means. It is the leftmost one after the end of the previous
    entity; if there is none, the leftmost one that is still free.

    Args:
        problems: what is wrong is added here. ``invalid``: a line that is not the agreed JSON; ``unknown_label``;
            ``invented``: the entity's text is not in the text; ``repeated``: all of its occurrences are taken;
            ``out_of_order``: it is before the end of the previous entity. Only the last kind is kept.
    """
    entities: list[dict] = []
    cursor = 0
    lines = [] if answer.strip() == NO_ENTITY else answer.strip().split("\n")
    for number, line in enumerate(lines):
        entity = read_entity(line)
        if entity is None:
            problems["invalid"] += 1
            continue
        surface, label = entity
        if label not in labels:
            problems["unknown_label"] += 1
        elif surface not in text:
            problems["invented"] += 1
        elif (start := occurrence(surface, text, cursor, entities)) is None:
            problems["repeated"] += 1
        else:
            end = start + len(surface)
            problems["out_of_order"] += start < cursor
            cursor = max(cursor, end)
            entities.append({"start": start, "end": end, "text": surface, "label": label, "line": number})
    return sorted(entities, key=lambda entity: entity["start"])


def read_entity(line: str) -> tuple[str, str] | None:
    """``(text, label)`` of one answer line; None if the line is not the agreed JSON object."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, or an integer of thousands of digits
        return None
    if not isinstance(value, dict) or set(value) != {"entity_text", "entity_label"}:
        return None
    surface, label = value["entity_text"], value["entity_label"]
    if not isinstance(surface, str) or not isinstance(label, str) or not surface:
        return None
    return surface, label


def occurrence(surface: str, text: str, cursor: int, taken: Sequence[dict]) -> int | None:
    """Where an entity without offsets is in ``text``: at its leftmost occurrence from ``cursor`` on, the end of the
    previous entity, else at the leftmost one that overlaps no ``taken`` entity; None if there is none.
    """
    start = text.find(surface, cursor)
    if start >= 0:
        return start
    start = text.find(surface)
    while start >= 0:
        end = start + len(surface)
        if all(end <= entity["start"] or entity["end"] <= start for entity in taken):
            return start
        start = text.find(surface, start + 1)
    return None
