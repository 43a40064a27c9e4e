"""The answer automaton allows exactly the tokens that keep answers valid, for any tokenizer, and all gold answers."""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_of_all_kinds import KINDS, word_piece

from sft.decoding.automaton import ROUNDS, After, Automaton, Nothing, answer_format, can_write
from sft.decoding.vocabulary import Vocabulary, vocabulary_of
from sft.tasks.entity_lines import NO_ENTITY, entity_line, occurrence, read_entity
from sft.tasks.ner import CCFBDCI_LABELS, Ner

CCFBDCI = Path(__file__).resolve().parents[2] / "shared" / "data" / "ner" / "ccfbdci.jsonl"
LABELS = ("人", "人名", '"实\\"')  # one is a prefix of another, one needs escaping in JSON
OPENING = b'{"entity_text": "'
TEXTS = st.text(st.sampled_from(list('张伟张"\\\n\t{}] a:,上海\u2028\x00𠮷é<')), min_size=1, max_size=6)


@pytest.fixture(scope="session", params=["byte-level", *KINDS])
def vocabulary(request, tokenizer) -> Vocabulary:
    return vocabulary_of(tokenizer if request.param == "byte-level" else KINDS[request.param]())


def writable_runs(text: str, vocabulary: Vocabulary) -> str:
    """The text with each character that the vocabulary cannot write replaced by a lone surrogate."""
    return "".join(c if vocabulary.can_write(entity_line("", c)[33:-2].encode()) else "\udfff" for c in text)


def may_begin_an_answer(said: bytes, before: bytes, text: str) -> bool:
    """Whether ``said``, which goes on after ``before``, is the beginning of some valid answer.

    Looks at every line that may come next: of all texts in the source, and of the one that is not, if it has begun.
    """
    if NO_ENTITY.encode().startswith(said):
        return True
    *whole, line = said.split(b"\n")
    begun = text_of(before.split(b"\n")[-1])
    if not text.strip("\udfff") or not all(one in lines(text, text_of(one)) for one in whole[before.count(b"\n") :]):
        return False
    if goes_round(whole, text):
        return False
    here = lines(text, begun) if len(whole) == before.count(b"\n") else lines(text, b"")
    found = bisect_left(here, line)
    return found < len(here) and here[found].startswith(line)


def text_of(line: bytes) -> bytes:
    """The text of an entity as far as a line says it."""
    return (
        re.match(rb'(?:[^"\\]|\\.?)*', line.removeprefix(OPENING), re.DOTALL)[0] if line.startswith(OPENING) else b""
    )


def goes_round(whole: list[bytes], text: str) -> bool:
    """Whether a text without a place is said too often without a placed one in between."""
    entities, cursor, unplaced = [], 0, []
    for line in whole:
        surface, _ = read_entity(line.decode(errors="replace"))
        start = occurrence(surface, text, cursor, entities)
        if start is not None:
            entities.append({"start": start, "end": start + len(surface)})
            cursor, unplaced = max(cursor, start + len(surface)), []
        else:
            unplaced.append(text_of(line))
            if unplaced.count(text_of(line)) > ROUNDS:
                return True
    return False


@lru_cache
def lines(text: str, invented: bytes) -> list[bytes]:
    """All lines about any part of the text, and about an invented one if it begins like no part; sorted."""
    found = {text[start:end] for start in range(len(text)) for end in range(start + 1, len(text) + 1)}
    texts = {text_of(entity_line(span, "").encode()) for span in found if "\udfff" not in span}
    if invented and not any(one.startswith(invented) for one in texts):
        texts.add(invented)
    rests = [entity_line("", label).encode().removeprefix(OPENING) for label in LABELS]
    return sorted(OPENING + one + rest for one in texts for rest in rests)


def any_token(automaton: Automaton, state, allowed: dict, vocabulary: Vocabulary, generator: random.Random) -> int:
    """One of the allowed tokens or, sometimes, of free text."""
    if automaton.free(state) and generator.random() < 0.2:
        return generator.choice(vocabulary.plain)
    return generator.choice(sorted(allowed))


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
            if (said + spelt).startswith(lead)
            and may_begin_an_answer((said + spelt).removeprefix(lead), said.removeprefix(lead), known)
        }
        assert tokens == expected
        for token_id in tokens:
            assert automaton.after(state, vocabulary.spelling[token_id]) == allowed[token_id]
        token_id = any_token(automaton, state, allowed, vocabulary, generator)
        if token_id == vocabulary.end:
            break
        said += vocabulary.spelling[token_id]
        state = automaton.after(state, vocabulary.spelling[token_id])


@settings(max_examples=60)
@given(text=TEXTS, seed=st.integers(0, 1 << 30), tokens_before_the_end=st.integers(0, 60))
def test_any_walk_ends_in_an_answer_that_parses_and_only_its_names_may_be_wrong(
    vocabulary, text, seed, tokens_before_the_end
):
    generator = random.Random(seed)
    automaton = Automaton(text, answer_format(LABELS), vocabulary)
    state, token_ids = automaton.begin, []
    while type(state) is not Nothing:
        more = len(token_ids) < tokens_before_the_end
        allowed = automaton.allowed(state, more)
        if automaton.free(state, more) and generator.random() < 0.2:
            token_id = generator.choice(vocabulary.plain)
        else:
            token_id = generator.choice(sorted(allowed))
        if token_id == vocabulary.end:
            break
        token_ids.append(token_id)
        state = automaton.after(state, vocabulary.spelling[token_id])
    answer = vocabulary.join(token_ids)[len(vocabulary.lead) :].decode(errors="replace")
    result = Ner(labels=LABELS, system_prompt="").parse(answer, {"text": text})
    problems = result["problems"]
    assert not result["unparsable"] and not problems["unknown_label"]
    assert answer == NO_ENTITY or state.entities == answer.count("\n") + 1
    assert len(result["entities"]) == state.entities - problems["invented"] - problems["repeated"]
    for entity in result["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]
    assert all(left["end"] <= right["start"] for left, right in pairwise(result["entities"]))
    if type(state) is After and writable_runs(text, vocabulary) == text:  # the automaton knows every place
        sizes = [0, *accumulate(len(text_of(entity_line(character, "").encode())) for character in text)]
        places = [(sizes[entity["start"]], sizes[entity["end"]]) for entity in result["entities"]]
        assert sorted(state.so_far.taken) == places


def test_names_without_a_place_may_be_said_a_few_times_and_after_a_new_entity_again(tokenizer):
    automaton = Automaton("张伟到上海", answer_format(LABELS), vocabulary_of(tokenizer))

    def may_go_on(*names: str) -> bool:
        answer = "\n".join(entity_line(name, "人") for name in names)
        return len(automaton.allowed(automaton.after(automaton.begin, answer.encode()))) > 1

    again, new = ["张伟"] * ROUNDS, ["北京"] * ROUNDS
    assert may_go_on("上海", "张伟", "北京") and may_go_on("张伟", *again, *new) and may_go_on(*new, "张伟", *new)
    assert not may_go_on("张伟", *again, "张伟") and not may_go_on(*new, "广州", "北京")
    assert not may_go_on("张伟到", *again, "伟", "张伟")


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
