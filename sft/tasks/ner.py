"""Named-entity recognition as a task: prompt, conversion of raw rows, parsing of answers, metrics."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

from sft.errors import RowError
from sft.tasks import metrics
from sft.tasks.entity_lines import NO_ENTITY, entity_line, read_lines
from sft.tasks.entity_marks import marked, marked_text, read_marked
from sft.tasks.long_texts import CLAUSE_END, SENTENCE_END, Span, merged
from sft.tasks.names import read_names
from sft.tasks.raw_entities import KEPT, REPEATED, as_raw, entity_of, label_of, without_overlaps, without_repeats
from sft.text import clean_text, shifted_offsets

CCFBDCI_LABELS = {"GPE": "地理实体", "LOC": "地点", "ORG": "组织", "PER": "人名"}
PROBLEMS = ("invalid", "unknown_label", "invented", "repeated", "out_of_order")  # see `read_lines` and `read_marked`
JSON, INLINE = ANSWER_FORMATS = ("json", "inline")  # `sft.tasks.entity_lines`, `sft.tasks.entity_marks`

ANYWHERE = re.compile(r".", re.DOTALL)


def system_prompt(labels: Sequence[str], answer_format: str = JSON) -> str:
    """The instruction for a label set and a format of answers."""
    if answer_format == INLINE:
        return (
            f"你是一个文本实体识别领域的专家，你需要在给定的句子中标出{'、'.join(labels)}实体。"
            f"把句子原样抄一遍，每个实体写成 {marked('实体原文', labels[0])}。"
            "要求：1. 除了标记，一个字也不增减、不改动；2. 句子里原有的 [ ] | \\ 前面加一个 \\；"
            f"3. 找不到任何实体时，只输出“{NO_ENTITY}”。"
        )
    example = entity_line("实体原文", labels[0])
    return (
        f"你是一个文本实体识别领域的专家，你需要从给定的句子中按出现顺序提取{'、'.join(labels)}实体。"
        f"每个实体输出一行 json，如 {example}。"
        "要求：1. 每一行都必须是正确的 json 字符串；2. 实体必须是句子中的原文；"
        f"3. 找不到任何实体时，输出“{NO_ENTITY}”。"
    )


@dataclass(frozen=True)
class Ner:
    """The NER task with its settings.

    Attributes:
        labels: the names of the labels as the model writes them, in the order of the prompt.
        system_prompt: the instruction, the same for every row.
        names: label in the user's data → its name for the model, where the two differ.
        answer_format: how an answer names its entities: ``json`` or ``inline``.
    """

    name: ClassVar[str] = "ner"
    title: ClassVar[str] = "命名实体识别"
    answers: ClassVar[str] = "entities"  # a result is ``{"entities": [{"start", "end", "text", "label", "score"}]}``
    metric: ClassVar[str] = "f1"  # chooses the best checkpoint
    long_text: ClassVar[None] = None  # all of it is read, in pieces

    labels: tuple[str, ...]
    system_prompt: str
    names: Mapping[str, str] = field(default_factory=dict, hash=False)
    answer_format: str = JSON

    @classmethod
    def with_labels(
        cls, labels: Iterable[str], names: Mapping[str, str] | None = None, answer_format: str = JSON
    ) -> Ner:
        """The task for a label set, with the standard instruction."""
        labels = tuple(labels)
        return cls(labels, system_prompt(labels, answer_format), dict(names or {}), answer_format)

    @classmethod
    def from_settings(cls, settings: dict) -> Ner:
        """See `Task`. Settings of an earlier version have no names; the only ones it gave were CCFBDCI's.

        Raises:
            ValueError: the format of the answers is unknown.
        """
        labels = tuple(settings["labels"])
        names = settings.get("names", {raw: name for raw, name in CCFBDCI_LABELS.items() if name in labels})
        answer_format = settings.get("answer_format", JSON)
        if answer_format not in ANSWER_FORMATS:
            raise ValueError(
                f"answer_format 应是 {'、'.join(ANSWER_FORMATS)} 之一，实际是 {str(answer_format)[:60]!r}"
            )
        return cls(labels, settings["system_prompt"], read_names(names), answer_format)

    def settings(self) -> dict:
        """See `Task`. JSON lines are not named: so were all settings before there was another format."""
        return {
            "task": self.name,
            "system_prompt": self.system_prompt,
            "labels": list(self.labels),
            "names": dict(self.names),
            **({} if self.answer_format == JSON else {"answer_format": self.answer_format}),
        }

    @staticmethod
    def convert(
        raw: dict,
        names: Mapping[str, str] | None = None,
        drop: Callable[[str], bool] | None = None,
        note: Callable[[str], None] | None = None,
        nested: str | None = None,
    ) -> dict:
        """The fields of a record from a raw row ``{"text", "entities": [{"start_idx", "end_idx", ...}]}``.

        Args:
            names: raw label → the name that the model writes; None to keep the labels as they are.
            drop: says whether to leave out the entities of a label, which are not looked at any further then.
            note: is told what was put right.
            nested: which of overlapping entities stay, ``outer`` or ``inner``; None to reject their row.

        Raises:
            RowError: the row cannot be used.
        """
        text = clean_text(raw)
        items = raw.get("entities")
        if isinstance(items, RowError):  # they could not be read
            raise items
        if type(items) is not list:
            raise RowError("entities", "缺少这个字段" if items is None else f"应是列表，实际是 {type(items).__name__}")
        if not items:
            return {"text": text, "entities": []}
        original = raw["text"]
        if drop is not None:
            items = [item for item in items if not drop(label_of(item))]
        entities = [entity_of(item, original, names) for item in items]
        if text is not original:
            offsets = shifted_offsets(original)
            for entity in entities:
                start, end = offsets[entity["start"]][0], offsets[entity["end"]][1]
                entity |= {"start": start, "end": end, "text": text[start:end]}
        entities.sort(key=lambda entity: entity["start"])
        if any(right["start"] < left["end"] for left, right in pairwise(entities)):
            stay = without_overlaps(entities, nested) if nested else entities
            without = without_repeats(stay)
            for said in (
                KEPT[nested] if len(stay) < len(entities) else "",
                REPEATED if len(without) < len(stay) else "",
            ):
                if said and note is not None:
                    note(said)
            entities = without
        return {"text": text, "entities": entities}

    def known_fields(self, row: dict) -> dict:
        """The entities of a row to predict, if it has any. The row is a raw one or a record.

        In place of the entities there may be the `RowError` that says why they cannot be read.

        Raises:
            RowError: they are there but cannot be used.
        """
        if row.get("entities") is None:
            return {}
        names = {label: label for label in self.labels}
        if "messages" not in row:
            names |= self.names
        elif isinstance(row["entities"], list):  # a record, whose labels have their names already
            row = row | {"entities": [as_raw(entity) for entity in row["entities"]]}
        for item in row["entities"] if isinstance(row["entities"], list) else ():
            if (label := label_of(item)) and label not in names:
                reason = f"标签 {label!r} 不在 {'、'.join(self.labels)} 里"
                raise RowError("entity_label", reason, f"标签 {label!r} 不是这个模型的")
        return self.convert(row, names)

    def prompt(self, record: dict) -> list[dict[str, str]]:
        """System and user message: the user message is the sentence itself."""
        return [
            {"role": "system", "content": self.system_prompt},
            {"role": "user", "content": record["text"]},
        ]

    def options(self, record: dict) -> None:
        """None: an answer is free text, there are no options to choose from."""

    def answer(self, record: dict) -> str:
        """The entities in the order of the text: one JSON object a line, or the text with marks.

        An entity that occurs twice is named twice.
        """
        if self.answer_format == INLINE:
            return marked_text(record["text"], record["entities"])
        lines = [entity_line(entity["text"], entity["label"]) for entity in record["entities"]]
        return "\n".join(lines) or NO_ENTITY

    def pieces(self, record: dict, length_tokens: Callable[[dict], int], max_length: int) -> list[dict]:
        """The record split into pieces of at most ``max_length`` tokens, at the ends of sentences if possible.

        The texts of the pieces, joined, are the text of the record. An entity is never cut; it goes with its piece.

        Raises:
            RowError: a piece is too long and cannot be split further.
        """
        if length_tokens(record) <= max_length:
            return [record]
        boundary = _split_point(record)
        if boundary is None:
            raise RowError("text", f"无法再拆分，却仍超过 {max_length} 个 token")
        left, right = _split(record, boundary)
        return self.pieces(left, length_tokens, max_length) + self.pieces(right, length_tokens, max_length)

    def merge(self, pieces: Sequence[dict], results: Sequence[dict]) -> dict:
        """The results of the pieces joined, with offsets in the whole text; see `sft.tasks.long_texts.merged`."""
        spans, entities_of, end = [], [], 0
        for piece, result in zip(pieces, results, strict=True):
            start = piece.get("start", end)
            end = start + len(piece["text"])
            spans.append(Span(start, end))
            entities_of.append(
                [
                    entity | {"start": entity["start"] + start, "end": entity["end"] + start}
                    for entity in result["entities"]
                ]
            )
        return {
            "entities": merged(spans, entities_of),
            "unparsable": any(result["unparsable"] for result in results),
            "problems": {kind: sum(result["problems"][kind] for result in results) for kind in PROBLEMS},
            "answer": "\n".join(result["answer"] for result in results),
            **({"cut": True} if any(result.get("cut") for result in results) else {}),
        }

    def parse(self, answer: str, record: dict) -> dict:
        """The entities of a generated answer with their offsets, and counts of what was wrong with the answer.

        See `sft.tasks.entity_lines.read_lines` and `sft.tasks.entity_marks.read_marked`.
        """
        problems = dict.fromkeys(PROBLEMS, 0)
        read = read_marked if self.answer_format == INLINE else read_lines
        entities = read(answer, record["text"], self.labels, problems)
        return {"entities": entities, "unparsable": problems["invalid"] > 0, "problems": problems}

    def problems(self, result: dict) -> dict[str, int]:
        """What was wrong with the answer, counted by kind; see `parse`."""
        return result["problems"]

    def gold(self, record: dict) -> dict | None:
        """The right entities as a result; None if the record has no gold."""
        return {"entities": record["entities"]} if record.get("entities") is not None else None

    def show(self, result: dict) -> str:
        """The entities with their labels, in one line."""
        return "、".join(f"{entity['text']}（{entity['label']}）" for entity in result["entities"]) or NO_ENTITY

    def best_threshold(self, golds: Sequence[dict], predictions: Sequence[dict]) -> float:
        """The score below which leaving entities out gives the highest F1 on these rows."""
        return metrics.best_span_threshold(
            [gold["entities"] for gold in golds],
            [prediction["entities"] for prediction in predictions],
        )

    def at_least(self, result: dict, threshold: float) -> dict:
        """The result without the entities whose score is below ``threshold``."""
        kept = [entity for entity in result["entities"] if entity.get("score", 1.0) >= threshold]
        return result | {"entities": kept}

    def count(self, golds: Sequence[dict], predictions: Sequence[dict]) -> Counter[tuple[str, str | None]]:
        """How many spans of each label are gold, predicted and right."""
        return metrics.count_spans(
            [gold["entities"] for gold in golds],
            [prediction["entities"] for prediction in predictions],
        )

    def metrics(self, counts: Counter[tuple[str, str | None]]) -> dict[str, float]:
        """Precision, recall and F1 of spans: micro, macro and per label. Both ends and the label must be right."""
        return metrics.span_metrics(counts, self.labels)


def _split_point(record: dict) -> int | None:
    """Where to split: at the end of a sentence, else of a clause, else anywhere; near the middle; not in an entity."""
    text, middle = record["text"], len(record["text"]) / 2
    for pattern in (SENTENCE_END, CLAUSE_END, ANYWHERE):
        points = [match.end() for match in pattern.finditer(text)]
        points = [point for point in points if 0 < point < len(text) and not _inside_entity(point, record)]
        if points:
            return min(points, key=lambda point: abs(point - middle))
    return None


def _inside_entity(point: int, record: dict) -> bool:
    return any(entity["start"] < point < entity["end"] for entity in record.get("entities") or ())


def _split(record: dict, point: int) -> tuple[dict, dict]:
    """The record before ``point`` and from ``point`` on, each with its own entities."""
    left, right = record | {"text": record["text"][:point]}, record | {"text": record["text"][point:]}
    if record.get("entities") is not None:
        left["entities"] = [entity for entity in record["entities"] if entity["end"] <= point]
        right["entities"] = [
            entity | {"start": entity["start"] - point, "end": entity["end"] - point}
            for entity in record["entities"]
            if entity["start"] >= point
        ]
    return left, right
