"""The entities of a raw row: checked one by one and together, and turned into those of a record.

A raw entity is ``{"start_idx", "end_idx", "entity_text", "entity_label"}``, as in CCFBDCI; ``entity_text`` may be
missing. One of a record is ``{"start", "end", "text", "label"}``. Offsets count code points, ends are exclusive.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from itertools import pairwise

from sft.errors import RowError
from sft.tasks.metrics import span_of
from sft.tasks.names import not_listed
from sft.tasks.options import clean_label

NESTED = "实体重叠（嵌套 nested）"  # the kind of error of a row with overlapping entities
TWO_LABELS = "同一个实体有两个标签"  # the same, of one whose entities are the same characters
REPEATED = "写了不止一遍的实体只留一个"  # what is to be said of a row
OUTER, INNER = "outer", "inner"  # which of overlapping entities stay
KEPT = {OUTER: "重叠的实体只留外层", INNER: "重叠的实体只留内层"}  # what is to be said of a row


def label_of(item: object) -> str:
    """The label of a raw entity; empty if it has none."""
    label = item.get("entity_label") if type(item) is dict else None
    return clean_label(label) if type(label) is str else ""


def entity_of(item: object, text: str, names: Mapping[str, str] | None) -> dict:
    """The entity of a record from a raw one; its offsets are those in the given ``text``.

    Args:
        names: raw label → the name that the model writes; None to keep the labels as they are.

    Raises:
        RowError: its offsets, its text or its label cannot be used.
    """
    if type(item) is not dict:
        raise RowError("entities", f"每个实体应是一个对象，实际是 {str(item)[:60]}")
    start, end, label = item.get("start_idx"), item.get("end_idx"), item.get("entity_label")
    if type(start) is not int or type(end) is not int:
        raise RowError("start_idx", f"起止位置应是整数，实际是 {start!r} 和 {end!r}", "位置不是整数")
    if not 0 <= start < end <= len(text):
        reason = f"起止位置 {start}、{end} 不在文本之内（文本长 {len(text)}），或是空的"
        raise RowError("start_idx", reason, "位置越界或是空的")
    if type(label) is not str or not label.strip():
        raise RowError("entity_label", f"应是非空的字符串，实际是 {label!r}")
    surface, given = text[start:end], item.get("entity_text")
    if given is not None and given != surface:
        _compare_surface(given, surface, text, start, end)
    label = clean_label(label)
    if names is not None:
        if label not in names:
            reason = f"标签 {label!r} 不在 {'、'.join(names)} 里；可以用 --labels 加上它"
            raise RowError("entity_label", reason, not_listed(label, names))
        label = names[label]
    return {"start": start, "end": end, "text": surface, "label": label}


def _compare_surface(given: object, surface: str, text: str, start: int, end: int) -> None:
    """Accept an entity text that differs from the sentence only in Unicode normalisation.

    Raises:
        RowError: it differs in another way.
    """
    if isinstance(given, str) and unicodedata.normalize("NFC", given) == unicodedata.normalize("NFC", surface):
        return
    hint = "；end_idx 应不含最后一个字" if text[start : end + 1] == given else ""
    reason = f"{given!r} 与文本 {start} 到 {end} 处的 {surface!r} 不符{hint}"
    raise RowError("entity_text", reason, f"实体的文字与位置不符{hint}")


def without_overlaps(entities: Iterable[dict], kept: str) -> list[dict]:
    """The entities of a record of which no two overlap, but for those of the same characters.

    The longest, or the shortest, come first; of two that are as long, the one on the left.

    Args:
        kept: ``outer`` or ``inner``.

    Returns:
        They, by ascending ``start``.
    """
    sign = -1 if kept == OUTER else 1
    stay: list[dict] = []
    for entity in sorted(entities, key=lambda entity: (sign * (entity["end"] - entity["start"]), entity["start"])):
        place = entity["start"], entity["end"]
        apart = (place[1] <= other["start"] or other["end"] <= place[0] for other in stay)
        if all(apart) or any(place == (other["start"], other["end"]) for other in stay):
            stay.append(entity)
    return sorted(stay, key=lambda entity: entity["start"])


def without_repeats(entities: Iterable[dict]) -> list[dict]:
    """The entities of a record without those that are there already.

    Args:
        entities: by ascending ``start``.

    Raises:
        RowError: other entities overlap.
    """
    kept = list({span_of(entity): entity for entity in entities}.values())
    for left, right in pairwise(kept):
        if (left["start"], left["end"]) == (right["start"], right["end"]):
            reason = f"实体 {left['text']!r} 有两个标签（{left['label']}、{right['label']}）；只能有一个"
            raise RowError("entities", reason, TWO_LABELS)
        if right["start"] < left["end"]:
            raise RowError("entities", f"实体 {left['text']!r} 与 {right['text']!r} 重叠（嵌套 nested）", NESTED)
    return kept


def as_raw(entity: object) -> object:
    """An entity of a record with the field names of raw rows."""
    if not isinstance(entity, dict):
        return entity
    raw_names = {"start": "start_idx", "end": "end_idx", "text": "entity_text", "label": "entity_label"}
    return {raw_names.get(name, name): value for name, value in entity.items()}
