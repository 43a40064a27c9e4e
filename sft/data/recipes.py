"""What a task wants of a conversion. Imports no torch.

A task of your own needs a `Recipe` of its own; it may stand in the script that converts the data:

    sources = [recognise(path, MyTask.answers, options)]
    recipe = Recipe(task=None, with_labels=MyTask, convert=convert, gold=label_gold)
    convert_files(recipe, sources, Conversion(output_file, test_file))
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import orjson

from sft.data.source import Source
from sft.errors import InputError, RowError
from sft.tasks.classification import Classification, multi_label_error
from sft.tasks.names import not_listed, parts_of
from sft.tasks.ner import CCFBDCI_LABELS, JSON, Ner
from sft.tasks.options import EQUALS, clean_label, is_corrected, split_flag
from sft.tasks.task import Task
from sft.text import compared, visible

Gold = tuple[str, Sequence[str], bytes]  # the stratum, the labels, the annotation as bytes


_NAMED_AFTER_BLANK = re.compile(rf"\s\S+{EQUALS.pattern}")


def _unchanged(_: Task, fields: dict) -> dict:
    return fields


@dataclass(frozen=True)
class Recipe:
    """What a task wants of a conversion.

    Attributes:
        task: the task that renders the messages; None if its labels are first to be learned from the data.
        with_labels: makes the task for the labels in the data, which come with the most frequent first. It is also
            called if ``task`` has no labels.
        convert: turns a raw row in its original shape (see `sft.data.shapes`) into the fields of a record; raises
            `RowError` if it cannot be used. Field ``text`` is required. None leaves the row out, as the user asked.
        gold: gives of a record's fields the name of its stratum (the split keeps the share of each stratum), its
            labels, and bytes that differ from those of any other annotation of the same text (see
            `sft.text.compared`).
        complete: the fields of a record once the labels are known; used only if ``task`` is None.
        dropped: counts, by label, of what ``convert`` has left out because the user does not want that label.
        noted: what there is to say of the row that ``convert`` has converted last; rows are counted by it.
        corrected: counts, by label as it is in the data, of those that were more than clean (`is_corrected`).
    """

    task: Task | None
    with_labels: Callable[[Iterable[str]], Task]
    convert: Callable[[dict], dict | None]
    gold: Callable[[dict], Gold]
    complete: Callable[[Task, dict], dict] = _unchanged
    dropped: Counter[str] = field(default_factory=Counter)
    noted: list[str] = field(default_factory=list)
    corrected: Counter[str] = field(default_factory=Counter)


def classification_recipe(sources: Iterable[Source], labels: str | None, other_labels: str = "error") -> Recipe:
    """How to convert classification rows. Rows without options get ``labels``, or else every label in the data.

    Args:
        labels: the options, as in ``体育,军事``; ``1=好评,0=差评`` also renames the labels and options in the data.
        other_labels: what becomes of rows with a label that is not in ``labels``. ``error``: they are rejected, unless
            they have options of their own; ``drop``: they are left out, and so are such options of other rows.

    Raises:
        InputError: ``labels`` is not a list of different names, or there is nothing that labels could be other than.
    """
    given = _given_labels(labels, other_labels)
    names = {} if given is None else given
    options = tuple(dict.fromkeys(names.values()))
    wanted = frozenset(options)
    in_flag = wanted.union(names)
    known = bool(options) or all(source.has_options for source in sources)
    renamed = _renamed(names)
    dropped, corrected = Counter(), Counter()
    noted: list[str] = []

    def convert(raw: dict) -> dict | None:
        noted[:] = raw.get("notes", ())
        fields = Classification.convert(raw, renamed)
        label = fields["label"]
        _count_corrected(corrected, (raw["output"],))
        if other_labels == "drop" and label not in wanted:
            if len(parts := parts_of(label)) > 1 and in_flag.issuperset(parts):
                raise multi_label_error(parts)
            dropped[label] += 1
            return None
        if "options" in fields:
            if other_labels == "drop":
                fields["options"] = tuple(option for option in fields["options"] if option in wanted)
            return fields
        if not known:
            return fields
        if not options:
            raise RowError("category", "没有选项；可以用 --labels 给出")
        if label not in wanted:
            if len(parts := parts_of(label)) > 1 and in_flag.issuperset(parts):
                raise multi_label_error(parts)
            raise RowError("output", reason := not_listed(label, in_flag), reason)
        return _with_options(fields, options)

    return Recipe(
        task=Classification(labels=options, names=renamed) if known else None,
        with_labels=lambda seen: Classification(labels=tuple(seen), names=renamed),
        convert=convert,
        gold=label_gold,
        complete=lambda task, fields: fields if "options" in fields else _with_options(fields, task.labels),
        dropped=dropped,
        noted=noted,
        corrected=corrected,
    )


def ner_recipe(
    sources: Iterable[Source],
    labels: str | None,
    other_labels: str = "error",
    answer_format: str = JSON,
    nested: str | None = None,
) -> Recipe:
    """How to convert NER rows. The label set is ``labels``, or CCFBDCI's four, or every label in the data.

    Args:
        labels: the labels in the data with their names for the model, as in ``GPE=地理实体,LOC``.
        other_labels: what becomes of entities with a label that is not in ``labels``. ``error``: their rows are
            rejected; ``drop``: only the entities are left out.
        answer_format: how the model is to name entities: ``json`` or ``inline``.
        nested: which of overlapping entities stay, ``outer`` or ``inner``; None to reject their rows.

    Raises:
        InputError: ``labels`` is not a list of different names, or there is nothing that labels could be other than.
    """
    names = _given_labels(labels, other_labels)
    if names is None and all(source.ccfbdci_labels for source in sources):
        names = CCFBDCI_LABELS
    lookup = None if names is None else {name: name for name in names.values()} | names
    dropped, corrected = Counter(), Counter()
    noted: list[str] = []

    def unwanted(label: str) -> bool:
        if not label or label in lookup:
            return False
        dropped[label] += 1
        return True

    def convert(raw: dict) -> dict:
        noted[:] = raw.get("notes", ())
        fields = Ner.convert(raw, lookup, unwanted if other_labels == "drop" else None, noted.append, nested)
        _count_corrected(corrected, (item.get("entity_label") for item in raw["entities"] if type(item) is dict))
        return fields

    with_labels = partial(Ner.with_labels, answer_format=answer_format)
    return Recipe(
        task=with_labels(dict.fromkeys(names.values()), _renamed(names)) if names else None,
        with_labels=with_labels,
        convert=convert,
        gold=entity_gold,
        dropped=dropped,
        noted=noted,
        corrected=corrected,
    )


def _given_labels(labels: str | None, other_labels: str) -> dict[str, str] | None:
    if labels:
        return _split_labels(labels)
    if other_labels == "drop":
        raise InputError("--other_labels drop：要和 --labels 一起用，说出要留下的标签，如 --labels PER=人名,LOC=地点")
    return None


def _renamed(names: Mapping[str, str]) -> dict[str, str]:
    """The labels whose names differ from them."""
    return {label: name for label, name in names.items() if label != name}


def label_gold(fields: dict) -> Gold:
    """`Recipe.gold` for records with a ``label``: one stratum for each label."""
    label = fields["label"]
    return label, (label,), label.encode()


def entity_gold(fields: dict) -> Gold:
    """`Recipe.gold` for records with ``entities``: one stratum with entities, one without."""
    entities = fields["entities"]
    if not entities:
        return "无实体", (), b"[]"
    labels, text = [entity["label"] for entity in entities], fields["text"]
    if compared(text) != text:
        entities = _compared_entities(entities, text)
    return "有实体", labels, orjson.dumps(entities)


def _compared_entities(entities: Sequence[dict], text: str) -> list[dict]:
    """The entities with their places in `compared` of the text, which is gone through once, piece by piece."""
    edges = sorted({entity[edge] for entity in entities for edge in ("start", "end")})
    places, length = {}, 0
    for before, edge in pairwise([0, *edges]):
        piece = visible(text[before:edge])
        length += len(piece) if length else len(piece.lstrip())  # blanks before all that shows do not count
        places[edge] = length
    return [
        entity | {"start": places[entity["start"]], "end": places[entity["end"]], "text": compared(entity["text"])}
        for entity in entities
    ]


def _with_options(fields: dict, options: Sequence[str]) -> dict:
    return {"text": fields["text"], "options": options, "label": fields["label"]}


def _count_corrected(corrected: Counter[str], labels: Iterable[object]) -> None:
    corrected.update(label for label in labels if type(label) is str and is_corrected(label))


def _split_labels(labels: str) -> dict[str, str]:
    """``GPE=地理实体,LOC`` → ``{"GPE": "地理实体", "LOC": "LOC"}``; see `split_flag`."""
    names: dict[str, str] = {}
    for label, name in _named_parts(labels):
        if not label or label in names:
            raise InputError(
                f"--labels：{'重复的标签 ' + label if label else '有空的标签'}；应如 GPE=地理实体,LOC=地点"
            )
        names[label] = name or label
    return names


def _named_parts(labels: str) -> list[tuple[str, str]]:
    """Each label of the flag with its name, which may be empty.

    Raises:
        InputError: it is no list of strings, or a name holds another label and its name.
    """
    try:
        parts = [EQUALS.split(part, maxsplit=1) for part in split_flag(labels)]
    except (TypeError, ValueError) as error:
        raise InputError(f"--labels：读不出标签 {labels[:60]!r}；应如 GPE=地理实体,LOC=地点") from error
    with_name = [len(part) > 1 for part in parts]
    unseparated = any(_NAMED_AFTER_BLANK.search(part[-1]) for part in parts)
    if unseparated or (any(with_name) and not all(with_name) and not re.search("[,，]", labels)):
        raise InputError(
            f"--labels：看不出 {labels[:60]!r} 里有哪几个标签；标签之间请用逗号，如 GPE=地理实体,LOC=地点"
        )
    return [(clean_label(label), clean_label("".join(name))) for label, *name in parts]
