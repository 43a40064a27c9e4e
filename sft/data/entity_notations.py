"""Entities in any notation that tools and people write, as CCFBDCI has them. Imports no torch.

What offsets mean is in `sft.data.offsets`. Entities without offsets are placed in the order they are written: the
leftmost occurrence after the previous entity, else the leftmost that is free.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import orjson

from sft.data.offsets import Mention, number_pairs, settled, with_offsets_of_pairs
from sft.data.token_rows import entities_in_text, tags_in
from sft.errors import RowError
from sft.tasks.entity_lines import NO_ENTITY, occurrence
from sft.tasks.entity_marks import entities_in_copy
from sft.tasks.raw_entities import REPEATED
from sft.text import read_literal, shown

START_NAMES = (
    "start_idx",
    "start",
    "start_offset",
    "start_pos",
    "start_index",
    "startOffset",
    "start_char",  # spaCy, Stanza
    "char_start",
    "startChar",
    "start_position",
    "begin_offset",
    "begin",
    "beg",
    "from",
    "offset",
)
END_NAMES = (
    "end_idx",
    "end",
    "end_offset",
    "end_pos",
    "end_index",
    "endOffset",
    "end_char",
    "char_end",
    "endChar",
    "end_position",
    "stop",
    "to",
)
PLACE_NAMES = ("span", "char_span", "position", "offsets", "pos", "loc", "range", "indices")  # [start, end]
SURFACE_NAMES = ("entity_text", "text", "surface", "mention", "word", "span", "entity", "name", "value")
LABEL_NAMES = (
    "entity_label",
    "label",
    "labels",
    "entity_type",
    "label_type",
    "entity_group",
    "type",
    "tag",
    "category",
)
_NONE = re.compile(
    r"(没有|未|无)(找到|发现|识别到?|抽取到)?(任何)?(命名)?实体[。.!！]?|无|没有|none|null", re.IGNORECASE
)
_NUMBER_OF_ENTITY = re.compile(r"[TE]?\d+")
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL)
_PLAIN_FIELDS = {"start_idx", "end_idx", "entity_label"}
_NO_NUMBERS = frozenset((*SURFACE_NAMES, *LABEL_NAMES)) - {*PLACE_NAMES}
_EMPTY_NOTE = "实体的格子是空的，当作没有实体；没标过的行请先去掉"
_PAIRS_NOTE = "实体里的数字认不出是不是位置，没有用；原文出现不止一次的，放在最左边"


def raw_entities(value: object, text: object, field: str, notes: list[str], offsets: str = "") -> object:
    """Entities in any notation, as CCFBDCI has them.

    None stays None.

    Args:
        value: a list, an object, or a string with either, with one JSON object on each line, or with the text and
            marks in it (`sft.tasks.entity_marks`).
        text: the text of the row.
        field: where ``value`` is, for error messages.
        notes: takes what there is to say of the row.
        offsets: what the whole file shows of offsets without texts; see `sft.data.offsets`.

    Raises:
        RowError: an entity is in no known notation, its offsets could mean two things, or it is not in the text.
    """
    if type(text) is str and (tags := tags_in(value)):
        return entities_in_text(tags, text, field)
    if type(value) is str:
        if not value.strip():
            notes.append(_EMPTY_NOTE)
        if type(text) is str and (marked := entities_in_copy(value, text)):
            return [_as_raw(Mention(*found), text) for found in marked]
        value = entities_in_string(value, field)
    if type(text) is not str or value is None or value == []:
        return value
    if type(value) is list and are_plain_entities(value, text):
        return value
    mentions = mentions_in(value, text, field)
    placed = [mention.start is not None or mention.end is not None for mention in mentions]
    if not any(placed):
        if (found := with_offsets_of_pairs(mentions, text)) is None:
            return _place(mentions, text, notes, field, in_order=type(value) is list)
        mentions, placed = found, [True]
    if not all(placed):
        raise RowError(field, "有的实体有起止位置，有的没有")
    return [_as_raw(mention, text) for mention in settled(mentions, text, notes, offsets)]


def mentions_in(value: object, text: str, field: str) -> list[Mention]:
    """The entities of a list or an object as they are written.

    Raises:
        RowError: an entity is in no known notation.
    """
    if not isinstance(value, list | dict):
        raise RowError(field, f"应是实体的列表，实际是 {shown(value)}；若是分类的数据，请换任务")
    return list(_mentions(value, text, field))


def entities_in_string(value: str, field: str) -> object:
    """The entities in a string: JSON, a Python literal, a JSON object on each line, or a sentence that there are none.

    Raises:
        RowError: it is none of them.
    """
    fenced = _FENCE.fullmatch(value.strip())
    value = fenced[1].strip() if fenced else value.strip()
    if not value or value == NO_ENTITY or _NONE.fullmatch(value):
        return []
    try:
        return read_literal(value)
    except ValueError:
        pass
    try:
        return [orjson.loads(line) for line in value.split("\n") if line.strip()]
    except orjson.JSONDecodeError:
        raise RowError(field, f"应是 JSON 或 Python 写法的实体列表，实际是 {shown(value)}") from None


def entity_notation(value: object) -> str | None:
    """tokens (tags), ccfbdci, spans, doccano, cluener, or answers (without offsets), by a row's entities.

    None if it has none.
    """
    if tags_in(value):
        return "tokens"
    if type(value) is str:
        try:
            value = entities_in_string(value, "")
        except RowError:
            return None
    if type(value) is dict and value:
        return "cluener" if any(type(surfaces) is dict for surfaces in value.values()) else "answers"
    if type(value) is not list or not value:
        return None
    if type(value[0]) is not dict:
        return "doccano"
    names = set(value[0])
    if names >= _PLAIN_FIELDS:
        return "ccfbdci"
    return "spans" if names & {*START_NAMES, *PLACE_NAMES} else "answers"


def are_plain_entities(items: list, text: str) -> bool:
    """Whether entities are already as CCFBDCI has them, and their texts say nothing against their offsets."""
    for item in items:
        if type(item) is not dict or not item.keys() >= _PLAIN_FIELDS:
            return False
        surface, start, end = item.get("entity_text"), item["start_idx"], item["end_idx"]
        if surface is None:
            return False
        if type(start) is not int or type(end) is not int:
            continue
        if end > len(text) or text[start:end] != surface:
            return False
    return True


# ---- What is written ----


def _mentions(value: list | dict, text: str, field: str) -> Iterator[Mention]:
    if type(value) is dict:
        if type(value.get("entities")) is list:  # beside relations, or alone
            value = value["entities"]
        elif _has(value, LABEL_NAMES) and (_has(value, SURFACE_NAMES) or _has(value, START_NAMES)):
            value = [value]
        else:
            yield from _grouped(value, text, field)
            return
    for item in value:
        if type(item) is dict:
            yield _in_fields(item, field)
        elif type(item) in (list, tuple):
            yield _in_order(item, text, field)
        else:
            raise RowError(field, f"认不出的实体 {shown(item)}；应如 [起, 止, 标签]")


def _has(item: dict, names: Sequence[str]) -> bool:
    return any(name in item for name in names)


def _in_fields(item: dict, field: str, group: str | None = None) -> Mention:
    """An entity as an object, whatever its fields are called.

    Args:
        group: the label of the group in which it stands, if there is one.

    Raises:
        RowError: two fields could be the same thing and differ, or it is open whether the end is inclusive.
    """
    if group is None and item.keys() >= _PLAIN_FIELDS:
        return Mention(item["start_idx"], item["end_idx"], item.get("entity_text"), item["entity_label"])
    start, end = _one_of(item, START_NAMES, field), _one_of(item, END_NAMES, field)
    for name in PLACE_NAMES if start is None and end is None else ():
        if type(item.get(name)) is list and len(item[name]) == 2:
            start, end = item[name]
    if end is None and type(start) is int and type(item.get("length")) is int:
        end = start + item["length"]
    labels = [name for name in LABEL_NAMES if item.get(name) is not None]
    surfaces = [name for name in SURFACE_NAMES if item.get(name) is not None and type(item[name]) is not list]
    if not labels and len(surfaces) > 1 and "entity" in surfaces:  # Hugging Face: {"entity": "LOC", "word": "青湖"}
        labels, surfaces = ["entity"], [name for name in surfaces if name != "entity"]
    label = _one_of(item, labels, field)
    if group is not None and label != group:
        raise RowError(field, f"实体的标签是 {shown(label)}，却放在 {shown(group)} 下面")
    if type(label) is list:
        if len(label) > 1:
            raise RowError(field, f"一个实体有几个标签（{shown('、'.join(map(str, label)))}）；只能有一个")
        label = label[0] if label else None
    surface = item[surfaces[0]] if surfaces else None
    if end is None and type(start) is int and type(surface) is str:  # settled checks that it stands there
        end = start + len(surface)
    if (start is None) != (end is None):
        known, missing = ("终点", "起点") if start is None else ("起点", "终点")
        raise RowError(field, f"实体有{known}，认不出{missing}（字段有 {shown('、'.join(map(str, item)))}）")
    if surface is None and "end_idx" in item and "entity_label" not in item:
        raise RowError(
            "end_idx", "看不出 end_idx 含不含最后一个字；请给出实体原文（entity），或改用 start、end（不含最后一个字）"
        )
    pairs = number_pairs(item, _NO_NUMBERS) if start is None and end is None else ()
    return Mention(start, end, surface, label, pairs)


def _one_of(item: dict, names: Sequence[str], field: str) -> object:
    found = [name for name in names if item.get(name) is not None]
    if len(found) > 1 and any(item[name] != item[found[0]] for name in found):
        raise RowError(field, f"实体里有几个字段意思相近而值不同（{'、'.join(found)}）；请只留一个")
    return item[found[0]] if found else None


def _in_order(item: Sequence, text: str, field: str) -> Mention:
    """An entity as a list: doccano's ``[start, end, label]``, with its text in any place, or ``[text, label]``.

    In front may be its number, as in ``["T0", label, start, end, text]``.
    """
    if len(item) == 5 and type(item[0]) is str and _NUMBER_OF_ENTITY.fullmatch(item[0]):
        item = item[1:]
    numbers = [index for index, part in enumerate(item) if type(part) is int]
    words = [part for part in item if type(part) is str]
    if len(item) == 3 and (numbers != [1, 2] or len(words) != 1):
        return Mention(item[0], item[1], None, item[2])
    if len(numbers) == 2 and numbers[1] == numbers[0] + 1 and len(words) == len(item) - 2:
        start, end = item[numbers[0]], item[numbers[1]]
        if len(words) == 1 and words[0] not in (text[start:end], text[start : end + 1]):
            return Mention(start, end, None, words[0])
        surfaces = [word for word in words if word in text]
        if len(words) == 2 and len(surfaces) == 1:
            return Mention(start, end, surfaces[0], words[words[0] == surfaces[0]])
    if len(item) == len(words) == 2 and (words[0] in text) != (words[1] in text):
        surface, label = words if words[0] in text else reversed(words)
        return Mention(None, None, surface, label)
    raise RowError(field, f"认不出的实体 {list(item)!s:.60}；应如 [起, 止, 标签]")


def _grouped(value: dict, text: str, field: str) -> Iterator[Mention]:
    """Entities by label: CLUENER's ``{label: {surface: [[start, last], …]}}``, ``{label: [surface, …]}``.

    Also ``{surface: label}``, where the text shows which is which.
    """
    for label, surfaces in value.items():
        if surfaces is None or surfaces in ("", []):
            continue
        if type(surfaces) is str:
            if (label in text) == (surfaces in text):
                raise RowError(
                    field, f"看不出 {shown(label)} 和 {shown(surfaces)} 哪个是实体哪个是标签；应如 {{标签: [实体]}}"
                )
            yield Mention(None, None, *((label, surfaces) if label in text else (surfaces, label)))
        elif type(surfaces) is list and all(type(surface) is str for surface in surfaces):
            yield from (Mention(None, None, surface, label) for surface in surfaces)
        elif type(surfaces) is list and all(type(surface) is dict for surface in surfaces):
            yield from (_in_fields({"label": label} | surface, field, label) for surface in surfaces)
        elif type(surfaces) is dict:
            for surface, places in surfaces.items():
                yield from _cluener(label, surface, places, field)
        else:
            raise RowError(field, f"{label} 应是 {{实体: [[起, 止]]}}，实际是 {shown(surfaces)}")


def _cluener(label: str, surface: str, places: object, field: str) -> Iterator[Mention]:
    """CLUENER's places of one entity; the end is inclusive."""
    for place in places if type(places) is list else [None]:
        if type(place) is not list or len(place) != 2 or not all(type(edge) is int for edge in place):
            raise RowError(field, f"{surface} 的位置应是 [[起, 止]]，实际是 {shown(places)}")
        yield Mention(place[0], place[1] + 1, surface, label)


# ---- Without offsets ----


def _place(mentions: Sequence[Mention], text: str, notes: list[str], field: str, *, in_order: bool) -> list[dict]:
    """The places of entities without offsets, as `sft.tasks.entity_lines.read_lines` finds them.

    What is written once more than it occurs is taken once.

    Args:
        notes: takes what there is to say of the row.
        in_order: whether they are written in the order of the text. Entities grouped by label are not: each gets its
            leftmost free occurrence.

    Raises:
        RowError: an entity is not in the text, or each of its occurrences is taken.
    """
    taken: list[dict] = []
    cursor = 0 if in_order else len(text)
    for mention in mentions:
        surface = mention.surface
        if type(surface) is not str or not surface:
            raise RowError(field, "实体既没有起止位置，也没有原文")
        start = occurrence(surface, text, cursor, taken)
        if start is None and any((text[item["start"] : item["end"]], item["label"]) == mention[2:4] for item in taken):
            notes.append(REPEATED)
            continue
        if start is None:
            reason = "没有空着的位置了（重叠或重复）" if surface in text else "不在文本里"
            raise RowError("entity_text", f"{shown(surface)} {reason}")
        end = start + len(surface)
        cursor = max(cursor, end)
        taken.append({"start": start, "end": end, "label": mention.label})
    if any(mention.pairs and text.count(mention.surface) > 1 for mention in mentions):
        notes.append(_PAIRS_NOTE)
    return [_as_raw(Mention(item["start"], item["end"], None, item["label"]), text) for item in taken]


def _as_raw(mention: Mention, text: str) -> dict:
    start, end, surface, label, _ = mention
    if surface is None and type(start) is type(end) is int and 0 <= start < end <= len(text):
        surface = text[start:end]  # so that nobody doubts these offsets again
    raw = {"start_idx": start, "end_idx": end, "entity_label": label}
    return raw if surface is None else raw | {"entity_text": surface}
