"""Constrained inline answers: exactly the well-formed ones, greedy, with scores that say what was decided."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import CONFIGS, NAMES, Oracle, starts_of, tiny_model, with_random_lora
from test_constrained import some_texts
from tokenizers_of_all_kinds import KINDS

from sft.decoding import inline_answers
from sft.decoding.constrained import Bounds
from sft.decoding.decode import fit, predict
from sft.decoding.inline import End, InlineRules, can_write
from sft.decoding.inline_answers import decode
from sft.decoding.inline_drafts import InlineDrafter
from sft.decoding.limits import Limits
from sft.decoding.vocabulary import Vocabulary, vocabulary_of
from sft.export import client
from sft.model.encoding import encode_prompts, encode_texts
from sft.tasks.entity_lines import NO_ENTITY
from sft.tasks.entity_marks import escaped, marked_text, marks_in
from sft.tasks.ner import Ner

LABELS = ("人", "人名", "]实|")  # one is a prefix of another, one needs escaping
TASK = Ner(labels=LABELS, system_prompt="请标出实体。", answer_format="inline")
BOUNDS = Bounds(3, 400)
TEXTS = st.text(st.sampled_from(list("张伟没有[|]\\ \n上海\u2028𠮷")), min_size=1, max_size=6)


@pytest.fixture(scope="session", params=["byte-level", *KINDS])
def vocabulary(request, tokenizer) -> Vocabulary:
    return vocabulary_of(tokenizer if request.param == "byte-level" else KINDS[request.param]())


def writable(text: str, vocabulary: Vocabulary) -> str:
    return "".join(character for character in text if vocabulary.can_write(escaped(character).encode()))


def all_answers(text: str) -> list[bytes]:
    """Every well-formed answer about a text: it and all ways to put marks into it."""
    found = [NO_ENTITY.encode(), escaped(text).encode()]

    def add(start: int, entities: list[dict]) -> None:
        for begin in range(start, len(text)):
            for end in range(begin + 1, len(text) + 1):
                for label in LABELS:
                    more = [*entities, {"start": begin, "end": end, "label": label}]
                    found.append(marked_text(text, more).encode())
                    add(end, more)

    add(0, [])
    return found


@settings(max_examples=3)
@given(text=TEXTS.map(lambda text: text[:3]) | st.just("没有"), seed=st.integers(0, 1 << 30))
def test_allowed_tokens_are_exactly_those_after_which_an_answer_can_still_be_finished(vocabulary, text, seed):
    generator = random.Random(seed)
    lead = vocabulary.lead
    answers = [lead + answer for answer in all_answers(writable(text, vocabulary))]
    rules = InlineRules(text, LABELS, vocabulary)
    state, said = rules.begin, b""
    while type(state) is not End:
        allowed = rules.allowed(state)
        expected = {
            token_id
            for token_id, spelt in vocabulary.spelling.items()
            if any(answer.startswith(said + spelt) for answer in answers)
        }
        assert set(allowed) - {vocabulary.end} == expected
        assert (vocabulary.end in allowed) == (said in answers)
        token_id = generator.choice(sorted(allowed))
        state, said = allowed[token_id], said + vocabulary.spelling.get(token_id, b"")


@settings(max_examples=30)
@given(text=TEXTS, seed=st.integers(0, 1 << 30), tokens_before_the_end=st.integers(0, 60))
def test_any_walk_ends_in_an_answer_that_parses_without_a_problem(vocabulary, text, seed, tokens_before_the_end):
    """Also if characters cannot be written, and if the answer is cut because it is long."""
    generator = random.Random(seed)
    rules = InlineRules(text, LABELS, vocabulary)
    state, token_ids = rules.begin, []
    while len(token_ids) < tokens_before_the_end or not rules.accepts(state):
        allowed = rules.allowed(state, len(token_ids) < tokens_before_the_end)
        token_id = generator.choice(sorted(allowed))
        if token_id == vocabulary.end:
            break
        assert rules.after(state, vocabulary.spelling[token_id]) == allowed[token_id]
        token_ids.append(token_id)
        state = allowed[token_id]
    answer = rules.whole(vocabulary.join(token_ids)[len(vocabulary.lead) :].decode())
    result = TASK.parse(answer, {"text": text})
    assert not result["unparsable"] and not any(result["problems"].values())
    assert [entity["line"] for entity in result["entities"]] == list(range(state.entities))
    assert answer in (NO_ENTITY, marked_text(text, result["entities"]), escaped(text))


@settings(max_examples=30)
@given(text=TEXTS, edges=st.sets(st.integers(0, 6)), seed=st.integers(0, 99))
def test_the_tokenizers_own_spelling_of_a_gold_answer_is_allowed(vocabulary, text, edges, seed):
    generator, text = random.Random(seed), writable(text, vocabulary)
    # A tokenizer that puts a space before a text writes one for two.
    assume(not (vocabulary.lead and text.startswith(" ")))
    places = sorted(edge for edge in edges if edge <= len(text))
    entities = [{"start": start, "end": end, "label": generator.choice(LABELS)} for start, end in pairwise(places)]
    rules = InlineRules(text, LABELS, vocabulary)
    state = rules.begin
    for token_id in [*vocabulary.encode([marked_text(text, entities)])[0], vocabulary.end]:
        state = rules.allowed(state)[token_id]
    assert state == End(len(entities))


def test_what_a_vocabulary_cannot_write_is_told(tokenizer):
    assert can_write(LABELS, vocabulary_of(tokenizer))
    assert not can_write(("𠮷",), vocabulary_of(KINDS["unigram without bytes"]()))


# ---- with a model ----


@torch.no_grad()
def plain_greedy(model, vocabulary: Vocabulary, text: str, prompt: list[int], most_tokens: int) -> tuple:
    """Constrained greedy decoding by its definition, one token at a time, without a cache or a draft.

    Returns:
        The answer as it stands in the tokens, and the probability of each entity: of opening its mark here, among what
        is allowed here; and, among all tokens, of what follows up to the end of its label. The entities in whose marks
        the most probable plain text of all was not allowed.
    """
    rules = InlineRules(text, LABELS, vocabulary)
    state, answer, scores, pending, overruled = rules.begin, [], [], 1.0, set()
    while True:
        more = len(answer) < most_tokens
        allowed = rules.allowed(state, more or rules.accepts(state))
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, -1]
        ids = sorted(allowed)
        token_id = ids[logits[ids].argmax().item()]
        if token_id == vocabulary.end or (not more and rules.accepts(state)):
            return vocabulary.join(answer)[len(vocabulary.lead) :].decode(), scores, overruled
        spellings = [vocabulary.spelling.get(one) for one in ids]
        longest = max((spelt for spelt in spellings if spelt), key=len)
        alone = None not in spellings and all(map(longest.startswith, spellings))  # nothing is decided
        weights = logits.softmax(-1) if rules.weighed(state) else logits.softmax(-1) / logits.softmax(-1)[ids].sum()
        chosen = 1.0 if alone else weights[token_id].item()
        after, spelt = allowed[token_id], vocabulary.spelling[token_id]
        if rules.weighed(state) and not alone and logits[vocabulary.plain].max() > logits[ids].max():
            overruled.add(state.entities)
        if after.entities > state.entities:
            ends = next(n for n in range(len(spelt) + 1) if rules.after(state, spelt[:n]).entities > state.entities)
            same = [i for i in ids if i != vocabulary.end and vocabulary.spelling[i][:ends] == spelt[:ends]]
            finishing = 1.0 if alone else weights[same].sum().item()
            scores.append(pending * finishing)
            pending, chosen = 1.0, chosen / finishing
        pending = pending * chosen if rules.scored(after) else 1.0
        answer.append(token_id)
        state = after


def prompts_of(texts: list[str], tokenizer) -> list[list[int]]:
    return encode_prompts([{"text": text} for text in texts], TASK, tokenizer)


def check_against_plain(model, tokenizer, texts: list[str], bounds: Bounds = BOUNDS) -> int:
    """Compare answers and scores with `plain_greedy`; return how many entities they contain."""
    vocabulary, prompts = vocabulary_of(tokenizer), prompts_of(texts, tokenizer)
    answers = decode(model, vocabulary, LABELS, texts, prompts, bounds)
    for text, prompt, answer in zip(texts, prompts, answers, strict=True):
        most = inline_answers.room_tokens(len(vocabulary.encode([text])[0]), bounds.answer_tokens)
        expected, scores, overruled = plain_greedy(model, vocabulary, text, prompt, most)
        assert answer.text == InlineRules(text, LABELS, vocabulary).whole(expected)
        assert answer.scores == pytest.approx(scores, rel=1e-4, abs=1e-7)
        assert answer.overruled == overruled
        found = TASK.parse(answer.text, {"text": text})
        assert not found["unparsable"] and not any(found["problems"].values())
        assert len(answer.scores) == len(found["entities"])
    return sum(len(answer.scores) for answer in answers)


QUICK = ("qwen2", "sliding_qwen2")  # the other architectures are tried with `--all`


@pytest.mark.parametrize(
    "architecture", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS if name not in QUICK)]
)
def test_drafted_answers_and_their_scores_are_plain_greedy(tokenizer, architecture):
    model = tiny_model(architecture, seed=2)
    assert check_against_plain(model, tokenizer, some_texts(6, words=4)) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_plain_greedy_whatever_the_tokenizer(kind):
    assert check_against_plain(tiny_model("qwen2", seed=3), KINDS[kind](), some_texts(5, words=4)) > 0


def test_an_answer_that_is_long_enough_ends_and_says_so(tokenizer):
    """No entity begins after the last token that may begin one; the rest of the text is put back."""
    model, texts = with_random_lora(tiny_model("qwen2", seed=5)), some_texts(6, words=4)
    assert check_against_plain(model, tokenizer, texts, Bounds(6, 3)) >= 0
    vocabulary = vocabulary_of(tokenizer)
    answers = decode(model, vocabulary, LABELS, texts, prompts_of(texts, tokenizer), Bounds(6, 3))
    assert any(answer.cut for answer in answers)
    for text, answer in zip(texts, answers, strict=True):
        assert not any(TASK.parse(answer.text, {"text": text})["problems"].values())


def test_a_wrong_draft_changes_nothing(tokenizer, monkeypatch):
    generator = random.Random(0)

    class Wild(InlineDrafter):
        def guess(self, state, source, copied):
            return generator.randrange(480) if generator.random() < 0.5 else super().guess(state, source, copied)

    monkeypatch.setattr(inline_answers, "InlineDrafter", Wild)
    assert check_against_plain(tiny_model("llama", seed=2), tokenizer, some_texts(4, seed=2, words=4)) > 0


def test_entities_that_the_model_would_have_named_otherwise_are_left_out_and_counted(tokenizer):
    model, texts = tiny_model("qwen2", seed=7), some_texts(9, seed=1, words=4)
    vocabulary = vocabulary_of(tokenizer)
    answers = decode(model, vocabulary, LABELS, texts, prompts_of(texts, tokenizer), Bounds(16, 300))
    results = list(predict(model, tokenizer, TASK, [{"text": text} for text in texts], Limits(900, 300, 16)))
    assert any(answer.overruled for answer in answers)
    for text, answer, result in zip(texts, answers, results, strict=True):
        said = TASK.parse(answer.text, {"text": text})["entities"]
        kept = [entity for entity in said if entity["line"] not in answer.overruled]
        assert [entity["start"] for entity in result["entities"]] == [entity["start"] for entity in kept]
        assert result["problems"]["invented"] == len(said) - len(kept)
        assert not result["unparsable"]


@pytest.mark.parametrize(("batch_size", "constrained"), [(3, True), (16, False)])
def test_results_do_not_depend_on_how_many_rows_run_together(tokenizer, batch_size, constrained):
    """Also where rows are so full of marks, or a free answer so much in circles, that they are long enough."""
    model, rows = tiny_model("qwen2", seed=7), [{"text": text} for text in some_texts(4, seed=1)]
    one, many = (Limits(400, 300 if constrained else 70, size, constrained) for size in (1, batch_size))
    expected = [result for row in rows for result in predict(model, tokenizer, TASK, [row], one)]
    for got, wanted in zip(predict(model, tokenizer, TASK, rows, many), expected, strict=True):
        assert got["answer"] == wanted["answer"]
        scores = [[entity["score"] for entity in result["entities"]] for result in (got, wanted)]
        assert scores[0] == pytest.approx(scores[1], rel=1e-4)


class InlineOracle(Oracle):
    """Answers with the sentence and marks around names before 到 or a bracket: not around each occurrence."""

    def answer(self, sentence: str) -> str:
        return marked_text(sentence, meant_in(sentence))


def meant_in(text: str) -> list[dict]:
    places = sorted((start, start + len(name)) for name in NAMES for start in starts_of(name, text))
    return [{"start": start, "end": end, "label": "人名"} for start, end in places if text[end : end + 1] in "到]"]


@pytest.mark.parametrize("constrained", [True, False])
def test_long_documents_have_the_offsets_of_the_occurrences_that_are_meant(tokenizer, constrained):
    """Each piece leaves room for its own repetition; a name that is not marked stays so."""
    oracle, texts = InlineOracle(tokenizer), ["张伟和张伟到[上海]。" * 12, "没有人。", "菲律宾|张伟\\张伟到。"]
    limits = Limits(140, 200, 2, constrained)
    results = list(predict(oracle, tokenizer, TASK, [{"text": text} for text in texts], limits))
    assert len(oracle.sentences) > 5
    for text, result in zip(texts, results, strict=True):
        expected = [(entity["start"], entity["end"]) for entity in meant_in(text)]
        assert [(entity["start"], entity["end"]) for entity in result["entities"]] == expected
        assert all(0 < entity["score"] <= 1 for entity in result["entities"])
        assert not result["unparsable"] and not any(result["problems"].values())


@pytest.mark.parametrize("max_length", [60, 90, 200, 1000])
def test_a_piece_leaves_room_for_saying_it_again(tokenizer, max_length):
    record = {"text": "张伟和张伟到上海，[见]到菲律宾总统。" * 20}
    (pieces,) = fit([record], TASK, tokenizer, Limits(max_length, max_length // 2, 2))
    assert "".join(piece.record["text"] for piece in pieces) == record["text"]
    for piece in pieces:
        text_tokens = len(encode_texts([piece.record["text"]], tokenizer)[0])
        assert len(piece.prompt_ids) + min(2 * text_tokens, max_length // 2) <= max_length


def test_the_score_of_a_free_answer_is_the_probability_of_its_mark(tokenizer):
    """The tokens outside of a mark belong to no score, nor do those of another mark."""
    text, oracle = "张伟和张伟到上海，菲律宾到", InlineOracle(tokenizer)
    (result,) = predict(oracle, tokenizer, TASK, [{"text": text}], Limits(400, 200, 1, constrained=False))
    answer_ids = encode_texts([oracle.answer(text)], tokenizer)[0]
    for entity, mark in zip(result["entities"], marks_in(oracle.answer(text)), strict=True):
        held, written = 0, 0
        for token_id in answer_ids:
            spelt = vocabulary_of(tokenizer).spelling[token_id]
            begin, end = (len(oracle.answer(text)[:place].encode()) for place in mark[2:])
            held += written < end and written + len(spelt) > begin
            written += len(spelt)
        assert entity["score"] == pytest.approx(oracle.token_probability() ** held, rel=1e-5)


# ---- the same answers for other programs ----


def sentences_of(grammar: str) -> set[str]:
    """Everything that a GBNF grammar of literals, sequences and alternatives can say."""
    rules = dict(line.split(" ::= ", 1) for line in grammar.splitlines())
    tokens = re.compile(r'"(?:[^"\\]|\\.)*"|\w+|\|')

    @cache
    def said(rule: str) -> frozenset[str]:
        found, current = set(), {""}
        for part in [*tokens.findall(rules[rule]), "|"]:
            if part == "|":
                found |= current
                current = {""}
            elif part[0] == '"':
                literal = json.loads(re.sub(r"\\x", r"\\u00", part))
                current = {words + literal for words in current}
            else:
                current = {words + more for words in current for more in said(part)}
        return frozenset(found)

    return set(said("root"))


@pytest.mark.parametrize("text", ["张", "张[|", '"\\\n', "\x00伟\t", "没有"])
def test_the_grammar_of_the_client_says_every_answer_about_its_text_and_no_other(text):
    task = TASK.settings()
    assert sentences_of(client.grammar_of(task, text)) == {answer.decode() for answer in all_answers(text)}
    body = client.request_of(task | {"user_prompt": "{text}"}, text, "vllm")
    assert body["structured_outputs"] == {"grammar": client.grammar_of(task, text)}


def test_the_client_refuses_a_format_that_it_does_not_know():
    with pytest.raises(SystemExit, match="answer_format"):
        client.grammar_of(TASK.settings() | {"answer_format": "xml"} | {"user_prompt": "{text}"}, "张")
