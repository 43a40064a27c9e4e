"""Drafts save passes: what other answers found is guessed. The answers here are given, so that no model is needed.

That drafts change no answer is tested with models in test_constrained.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import transfer_ner_data
from benchmarks import draft_passes
from benchmarks.draft_passes import work_of
from sft.decoding.automaton import Automaton, answer_format
from sft.decoding.drafts import Drafter, sources_of
from sft.decoding.vocabulary import Vocabulary, vocabulary_of
from sft.model.loading import load_tokenizer
from sft.tasks.entity_lines import NO_ENTITY, entity_line

DEMO = Path(__file__).resolve().parents[1] / "qwen" / "demo"
LABELS = ("人名", "地理实体", "组织")


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return vocabulary_of(load_tokenizer(DEMO))


def answer_of(*entities: tuple[str, str]) -> str:
    return "\n".join(entity_line(*entity) for entity in entities) or NO_ENTITY


def passes_of(drafter: Drafter, vocabulary: Vocabulary, text: str, answer: str) -> int:
    """How many passes an answer takes that a model is sure of; the drafter learns from it."""
    return work_of(answer, Automaton(text, answer_format(LABELS), vocabulary), drafter, vocabulary).passes


@pytest.mark.parametrize("bold", [False, True])
def test_a_name_that_was_found_before_ends_where_it_did_and_has_its_label(bold, vocabulary):
    drafter = Drafter(vocabulary, LABELS, bold)
    entities = [("河和市", "地理实体"), ("田中由纪", "人名")]
    takes = [
        passes_of(drafter, vocabulary, text, answer_of(*entities))
        for text in ("河和市的田中由纪到了。", "在河和市，记者田中由纪说，会议开始了。", "昨天河和市来了田中由纪。")
    ]
    assert takes[1] < takes[0] and takes[2] <= takes[1]
    assert takes[2] <= (2 if bold else 4)


def test_a_new_name_gets_the_label_of_names_that_end_alike(vocabulary):
    answers = [("河和", "山央", "水中"), ("林木", "石川", "金沙")]
    takes = []
    for alike in (True, False):
        drafter = Drafter(vocabulary, LABELS)
        for name in answers[0]:
            passes_of(drafter, vocabulary, f"去{name}市。", answer_of((f"{name}市", "地理实体")))
            passes_of(drafter, vocabulary, f"去{name}社。", answer_of((f"{name}社", "组织")))
        for name in answers[1]:
            label = "地理实体" if alike else "组织"
            takes.append(passes_of(drafter, vocabulary, f"去{name}市。", answer_of((f"{name}市", label))))
    assert sum(takes[:3]) < sum(takes[3:])


def test_what_is_mostly_passed_over_is_no_longer_guessed(vocabulary):
    drafter = Drafter(vocabulary, LABELS, bold=True)
    text, found = "河和市到了。", answer_of(("河和市", "地理实体"))
    passes_of(drafter, vocabulary, text, found)
    (source,) = sources_of([text.encode()], vocabulary)
    assert drafter._names.next_place(source, 0) == 0
    for _ in range(3):
        passes_of(drafter, vocabulary, "河和市的田中由纪到了。", answer_of(("田中由纪", "人名")))
    assert drafter._names.next_place(source, 0) is None


@pytest.mark.parametrize("text", ["", '"\\\n', "𠮷𠮷", "a b"])
def test_a_source_has_a_token_at_each_of_its_places(text, vocabulary):
    rules = Automaton(text, answer_format(LABELS), vocabulary)
    (source,) = sources_of([rules.source], vocabulary)
    assert list(source.places) == sorted(source.tokens)
    joined = b"".join(vocabulary.spelling[source.tokens[place]] for place in source.places)
    assert joined == vocabulary.lead + source.text


@pytest.mark.parametrize("answer_format", ["json", "inline"])
def test_drafts_read_a_whole_answer_in_a_few_passes(answer_format, tmp_path, capsys):
    """With the gold answers of the bundled data, by the command of docs/prediction.md."""
    records = tmp_path / "records.jsonl"
    words = [
        "--input_file",
        str(DEMO.parents[1] / "data" / "sample" / "ner_test.jsonl"),
        "--output_file",
        str(records),
    ]
    assert transfer_ner_data.main([*words, "--answer_format", answer_format]) == 0
    capsys.readouterr()
    assert draft_passes.main(["--tokenizer", str(DEMO), "--records", str(records), "--every", "5"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(rows) == (1 if answer_format == "inline" else 2)
    for _, _, tokens, passes, fed in rows:
        assert float(passes) < 0.4 * float(tokens)
        assert float(tokens) - 1 <= float(fed.rstrip(" |")) < 3 * float(tokens)
