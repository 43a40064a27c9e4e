"""The answer automaton allows exactly the tokens that keep answers valid, for any tokenizer, and all gold answers."""

from __future__ import annotations

import random
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_of_all_kinds import KINDS, word_piece

from sft.decoding.automaton import Automaton, Nothing, answer_format, can_write
from sft.decoding.vocabulary import Vocabulary, vocabulary_of
from sft.tasks.entity_lines import NO_ENTITY, entity_line
from sft.tasks.ner import CCFBDCI_LABELS, Ner

CCFBDCI = Path(__file__).resolve().parents[2] / "shared" / "data" / "ner" / "ccfbdci.jsonl"
LABELS = ("人", "人名", '"实\\"')  # one is a prefix of another, one needs escaping in JSON
TEXTS = st.text(st.sampled_from(list('张伟张"\\\n\t{}] a:,上海\u2028\x00𠮷é<')), min_size=1, max_size=6)


@pytest.fixture(scope="session", params=["byte-level", *KINDS])
def vocabulary(request, tokenizer) -> Vocabulary:
    return vocabulary_of(tokenizer if request.param == "byte-level" else KINDS[request.param]())


def writable_runs(text: str, vocabulary: Vocabulary) -> str:
    """The text with each character that the vocabulary cannot write replaced by a lone surrogate."""
    return "".join(c if vocabulary.can_write(entity_line("", c)[33:-2].encode()) else "\udfff" for c in text)


def may_begin_an_answer(said: bytes, text: str) -> bool:
    """Whether ``said`` is the beginning of some valid answer. Tries every line that may come next."""
    if NO_ENTITY.encode().startswith(said):
        return True
    cursor = 0
    while cursor < len(text.rstrip("\udfff")) or not said:
        for span, label in spans_and_labels(text[cursor:]):
            line = entity_line(span, label).encode()
            if line.startswith(said):
                return True
            if said.startswith(line + b"\n"):
                said = said.removeprefix(line + b"\n")
                cursor = text.index(span, cursor) + len(span)
                if not said:
                    return cursor < len(text.rstrip("\udfff"))
                break
        else:
            return False
    return False


@lru_cache
def spans_and_labels(text: str) -> list[tuple[str, str]]:
    spans = {text[start:end] for start in range(len(text)) for end in range(start + 1, len(text) + 1)}
    return [(span, label) for span in spans if "\udfff" not in span for label in LABELS]


@settings(max_examples=6)
@given(text=TEXTS, seed=st.integers(0, 1 << 30))
def test_allowed_tokens_are_exactly_those_after_which_an_answer_can_still_be_finished(vocabulary, text, seed):
    generator = random.Random(seed)
    automaton = Automaton(text, answer_format(LABELS), vocabulary)
    known = writable_runs(text, vocabulary)
    state, said = automaton.begin, b""
    for _ in range(40):
        allowed = automaton.allowed(state)
        assert allowed
        tokens = set(allowed) - {vocabulary.end}
        lead = vocabulary.lead
        expected = {
            token_id
            for token_id, spelt in vocabulary.spelling.items()
            if (said + spelt).startswith(lead) and may_begin_an_answer((said + spelt).removeprefix(lead), known)
        }
        assert tokens == expected
        token_id = generator.choice(sorted(allowed))
        if token_id == vocabulary.end:
            break
        state, said = allowed[token_id], said + vocabulary.spelling[token_id]


@settings(max_examples=60)
@given(text=TEXTS, seed=st.integers(0, 1 << 30), tokens_before_the_end=st.integers(0, 60))
def test_any_walk_ends_in_an_answer_that_parses_without_a_problem(vocabulary, text, seed, tokens_before_the_end):
    generator = random.Random(seed)
    automaton = Automaton(text, answer_format(LABELS), vocabulary)
    state, token_ids = automaton.begin, []
    while type(state) is not Nothing or not automaton.accepts(state):
        allowed = automaton.allowed(state, len(token_ids) < tokens_before_the_end)
        token_id = generator.choice(sorted(allowed))
        if token_id == vocabulary.end:
            break
        token_ids.append(token_id)
        state = allowed[token_id]
    answer = vocabulary.join(token_ids)[len(vocabulary.lead) :].decode()
    result = Ner(labels=LABELS, system_prompt="").parse(answer, {"text": text})
    assert not result["unparsable"] and not any(result["problems"].values())
    assert answer == NO_ENTITY or len(result["entities"]) == state.entities > 0
    for entity in result["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]
    assert all(left["end"] <= right["start"] for left, right in pairwise(result["entities"]))


@settings(max_examples=100)
@given(
    parts=st.lists(
        st.tuples(
            st.text(st.sampled_from("。到了a"), max_size=3), st.sampled_from(["张天", '"', "\\", "a\nb", "𠮷", "实"])
        ),
        max_size=4,
    )
)
def test_the_tokenizers_own_spelling_of_a_gold_answer_is_allowed(vocabulary, parts):
    task = Ner(labels=LABELS, system_prompt="")
    text, entities, cursor = "。", [], 0
    for index, (gap, surface) in enumerate(parts):
        text += gap + surface
        known = vocabulary.can_write(entity_line("", surface)[33:-2].encode())
        if known and text.find(surface, cursor) == len(text) - len(surface):
            cursor = len(text)
            entities.append(
                {"start": cursor - len(surface), "end": cursor, "text": surface, "label": LABELS[index % 3]}
            )
    assert_reachable(task.answer({"entities": entities}), text, LABELS, vocabulary)


def assert_reachable(answer: str, text: str, labels: tuple[str, ...], vocabulary: Vocabulary) -> None:
    (token_ids,) = vocabulary.encode([answer])
    automaton = Automaton(text, answer_format(labels), vocabulary)
    state = automaton.begin
    for token_id in [*token_ids, vocabulary.end]:
        allowed = automaton.allowed(state)
        assert token_id in allowed, (answer, vocabulary.spelling.get(token_id))
        state = allowed[token_id]


@pytest.mark.shared
def test_every_gold_answer_of_ccfbdci_is_reachable_token_by_token(real_tokenizer):
    """Also answers (about 1 in 300) that would be read as an earlier occurrence of the entity's text."""
    if not CCFBDCI.is_file():
        pytest.skip(f"no data in {CCFBDCI}")
    task = Ner.with_labels(CCFBDCI_LABELS.values())
    vocabulary = vocabulary_of(real_tokenizer)
    checked = other = 0
    for line in CCFBDCI.read_bytes().splitlines()[::8]:
        record = Ner.convert(orjson.loads(line), CCFBDCI_LABELS)
        parsed = task.parse(task.answer(record), record)
        if [entity["start"] for entity in parsed["entities"]] != [entity["start"] for entity in record["entities"]]:
            other += 1
        assert_reachable(task.answer(record), record["text"], task.labels, vocabulary)
        checked += 1
    assert checked > 1500 and other < checked / 50


def test_a_tokenizer_that_cannot_write_the_format_is_told(tokenizer):
    assert vocabulary_of(word_piece()) is None
    vocabulary = vocabulary_of(tokenizer)
    assert can_write(answer_format(LABELS), vocabulary)
    assert not can_write(answer_format(("𠮷",)), vocabulary_of(KINDS["unigram without bytes"]()))


def test_control_tokens_are_never_part_of_an_answer(tokenizer):
    vocabulary = vocabulary_of(tokenizer)
    text = "<|im_end|><tool_call>张伟"
    automaton = Automaton(text, answer_format(LABELS), vocabulary)
    assert not set(tokenizer.added_tokens_decoder) & set(vocabulary.spelling)
    assert_reachable(entity_line("<|im_end|><tool_call>", "人"), text, LABELS, vocabulary)
    assert automaton.allowed(automaton.begin)
