"""The inline format of answers: what is written is read back exactly, and a fault costs only what is unsure."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.data.arguments import ANSWER_FORMATS
from sft.data.entity_notations import raw_entities
from sft.errors import RowError
from sft.tasks import ner as ner_task
from sft.tasks.entity_lines import NO_ENTITY
from sft.tasks.entity_marks import entities_in_copy, escaped, marked, marks_in, unescaped
from sft.tasks.ner import CCFBDCI_LABELS, Ner

CCFBDCI = Path(__file__).resolve().parents[2] / "shared" / "data" / "ner" / "ccfbdci.jsonl"
LABELS = ("人名", "人", "a]|[\\", "地\n点")
INLINE = Ner(labels=LABELS, system_prompt="", answer_format="inline")
BRACKETS = st.sampled_from(list("[]|\\张伟 \n没到\u2028𠮷"))


@st.composite
def records(draw) -> dict:
    """Any text with any entities that do not overlap."""
    text = draw(st.text(BRACKETS, min_size=1, max_size=12) | st.text(min_size=1, max_size=8) | st.just(NO_ENTITY))
    places = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
    entities = [
        {"start": start, "end": end, "text": text[start:end], "label": draw(st.sampled_from(LABELS))}
        for start, end in pairwise(places)
        if draw(st.booleans())
    ]
    return {"text": text, "entities": entities}


def without_lines(entities: list[dict]) -> list[dict]:
    return [{name: value for name, value in entity.items() if name != "line"} for entity in entities]


@settings(max_examples=150)
@given(records())
def test_what_is_written_is_read_back_whatever_the_text(record):
    answer = INLINE.answer(record)
    result = INLINE.parse(answer, record)
    assert without_lines(result["entities"]) == record["entities"]
    assert [entity["line"] for entity in result["entities"]] == list(range(len(record["entities"])))
    assert not result["unparsable"] and not any(result["problems"].values())
    for mark, entity in zip(marks_in(answer), record["entities"], strict=True):
        assert answer[mark.begin : mark.end] == marked(entity["text"], entity["label"])


@given(st.text(BRACKETS | st.characters()))
def test_escaping_is_undone(text):
    assert unescaped(escaped(text)) == text


def test_a_text_without_entities_is_answered_in_one_sentence_and_its_copy_means_the_same():
    record = {"text": "今天没有[课]。", "entities": []}
    assert INLINE.answer(record) == NO_ENTITY
    for answer in (NO_ENTITY, f" {NO_ENTITY}\n", "今天没有\\[课\\]。", "今天没有[课]。"):
        result = INLINE.parse(answer, record)
        assert not result["entities"] and not any(result["problems"].values()), answer


def parsed(answer: str, text: str) -> tuple[list[tuple[int, str, str]], dict[str, int]]:
    """Where entities are, and the problems that there are."""
    result = INLINE.parse(answer, {"text": text})
    found = [(entity["start"], entity["text"], entity["label"]) for entity in result["entities"]]
    return found, {kind: count for kind, count in result["problems"].items() if count}


@pytest.mark.parametrize(
    ("answer", "found", "problems"),
    [
        ("张伟和[张伟|人名]到上海。", [(3, "张伟", "人名")], {}),
        ("[张伟|动物]和[张伟|人名]到上海。", [(3, "张伟", "人名")], {"unknown_label": 1}),
        ("[张三|人名]和[张伟|人名]到上海。", [(3, "张伟", "人名")], {"invented": 1}),
        ("[张伟|人名]跟[张伟|人名]到上海。", [(0, "张伟", "人名"), (3, "张伟", "人名")], {"invalid": 1}),
        ("到[上海|人]。", [(6, "上海", "人")], {"invalid": 1}),  # it left out the beginning
        ("张某和[张伟|人名]到上海。", [(3, "张伟", "人名")], {"invalid": 1}),  # a word changed; the context tells
        ("某某[张伟|人名]", [], {"invalid": 2}),  # which of the two is open
        ("[张伟|人名]和张伟到[上海|人", [(0, "张伟", "人名")], {"invalid": 1}),  # not closed
        ("[张伟|人名]和[张伟到上海。", [(0, "张伟", "人名")], {"invalid": 1}),
        ("[张伟|人名]", [(0, "张伟", "人名")], {"invalid": 1}),  # it stopped early
        ("张伟和张伟到[上海|人]。[上海|人]", [(6, "上海", "人")], {"repeated": 1}),
        ("张伟和[张伟到|人]。[上海|人]", [(3, "张伟到", "人"), (6, "上海", "人")], {"invalid": 2}),
        ("  [张伟|人名]和张伟到上海。\n", [(0, "张伟", "人名")], {}),
    ],
)  # fmt: skip
def test_of_a_faulty_answer_only_what_is_unsure_is_left_out_and_it_is_counted(answer, found, problems):
    assert parsed(answer, "张伟和张伟到上海。") == (found, problems)


def test_an_entity_that_is_named_too_late_is_kept_and_counted():
    assert parsed("张伟到[上海|人]。[张伟|人名]", "张伟到上海。") == (
        [(0, "张伟", "人名"), (3, "上海", "人")], {"out_of_order": 1},
    )  # fmt: skip


def test_brackets_of_the_text_that_were_copied_as_they_are_are_no_marks():
    assert parsed("见[图|人]和[1]，[张伟|人名]", "见[图|人]和[1]，张伟") == ([(11, "张伟", "人名")], {})


@settings(max_examples=80)
@given(
    parts=st.lists(
        st.sampled_from(
            ["[", "|", "]", "\\", "张伟", "人名", "[张伟|人名]", "[伟|人]", "到", " ", NO_ENTITY, "[" * 99]
        ),
        max_size=12,
    ),
    record=records(),
)
def test_any_answer_gives_entities_of_the_text_that_do_not_overlap(parts, record):
    text, end = record["text"] + "张伟到[张伟|人名]张伟", 0
    result = INLINE.parse("".join(parts), {"text": text})
    for entity in result["entities"]:
        assert end <= entity["start"] < entity["end"]
        assert text[entity["start"] : entity["end"]] == entity["text"]
        assert entity["label"] in LABELS
        end = entity["end"]
    assert len({entity["line"] for entity in result["entities"]}) == len(result["entities"])


def test_a_long_answer_is_read_in_time_that_grows_with_its_length():
    """Unclosed marks without end: a pattern that goes back would take minutes."""
    for answer in ("[张" * 100_000, "[" + "张" * 200_000, "[张|" * 70_000, "\\" * 200_001):
        assert parsed(answer, "张伟")[0] == []


@pytest.mark.shared
def test_no_occurrence_of_a_name_is_lost_on_the_way_there_and_back():
    """JSON lines do not say which occurrence they mean, and lose some: docs/prediction.md counts them."""
    if not CCFBDCI.is_file():
        pytest.skip(f"no data in {CCFBDCI}")
    lost = dict.fromkeys(ANSWER_FORMATS, 0)
    for line in CCFBDCI.read_bytes().splitlines():
        record = Ner.convert(orjson.loads(line), CCFBDCI_LABELS)
        for answer_format in ANSWER_FORMATS if record["entities"] else ():
            task = Ner(tuple(CCFBDCI_LABELS.values()), "", answer_format=answer_format)
            got = task.parse(task.answer(record), record)["entities"]
            lost[answer_format] += sum(entity not in without_lines(got) for entity in record["entities"])
    assert lost == {"json": 42, "inline": 0}


def test_the_flag_offers_the_formats_that_the_task_knows():
    assert ANSWER_FORMATS == ner_task.ANSWER_FORMATS


@given(records())
def test_data_in_this_format_are_read_as_entities_only_if_they_repeat_the_text_exactly(record):
    expected = [tuple(entity[name] for name in ("start", "end", "text", "label")) for entity in record["entities"]]
    answer = INLINE.answer(record)
    assert entities_in_copy(answer, record["text"]) == expected
    assert entities_in_copy(answer + "。", record["text"]) == []


def test_dialogues_and_instructions_with_inline_answers_are_read():
    answer, text = "[张伟|人名]和[张伟|人名]到[上海|地点]。", "张伟和张伟到上海。"
    read = raw_entities(answer, text, "output", [])
    assert [(entity["start_idx"], entity["end_idx"], entity["entity_label"]) for entity in read] == [
        (0, 2, "人名"), (3, 5, "人名"), (6, 8, "地点"),
    ]  # fmt: skip
    with pytest.raises(RowError):
        raw_entities(answer, "张伟和张三到上海。", "output", [])
