"""Constrained decoding gives the same answers as plain constrained greedy decoding, in fewer forward passes."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch
from models import CONFIGS, WHOLE, tiny_model, with_random_lora
from peft import LoraConfig, get_peft_model
from tokenizers_of_all_kinds import KINDS

from sft.decoding import choosing, constrained
from sft.decoding.automaton import Automaton, answer_format
from sft.decoding.constrained import Bounds, decode
from sft.decoding.decode import predict
from sft.decoding.drafts import Drafter
from sft.decoding.limits import Limits
from sft.decoding.vocabulary import vocabulary_of
from sft.engine.attention import at_least_float32, use_packed_attention
from sft.model.encoding import encode_prompts
from sft.model.loading import load_base, load_tokenizer
from sft.tasks.ner import Ner

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "qwen" / "demo"
LABELS = ("人名", "人", "地理实体")
WORDS = ("张伟", "上海", "菲律宾", "到了", "，", "。", "a ", '"', "\\", "\n", "𠮷", "12", "南京大学")


def some_texts(count: int, seed: int = 0, words: int = 8) -> list[str]:
    generator = random.Random(seed)
    return ["".join(generator.choices(WORDS, k=generator.randint(1, words))) for _ in range(count)]


def sample_texts(count: int) -> list[str]:
    with (ROOT / "data" / "sample" / "ner_test.jsonl").open(encoding="utf-8") as rows:
        return [json.loads(next(rows))["text"] for _ in range(count)]


def prompts_of(texts: list[str], tokenizer) -> list[list[int]]:
    task = Ner.with_labels(LABELS)
    return encode_prompts([{"text": text} for text in texts], task, tokenizer)


@torch.no_grad()
def plain_greedy(model, vocabulary, text: str, prompt: list[int], answer_tokens: int) -> tuple[str, list[float], bool]:
    """Constrained greedy decoding and its scores by their definition: one token at a time, without a cache.

    Returns:
        The answer; for each entity the log-probability, over the whole vocabulary, of what decides it; and whether
        the model would go on.
    """
    automaton = Automaton(text, answer_format(LABELS), vocabulary)
    state, answer, scores, pending = automaton.begin, [], [], 0.0
    while True:
        more = len(answer) < answer_tokens
        allowed = automaton.allowed(state, more)
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, -1]
        ids = sorted(allowed)
        token_id = ids[logits[ids].argmax().item()]
        free = automaton.free(state, more)
        if free:
            other = vocabulary.plain[logits[vocabulary.plain].argmax().item()]
            token_id = other if logits[other] > logits[token_id] else token_id
        if token_id == vocabulary.end:
            on = sorted(automaton.allowed(state))
            cut = on[logits[on].argmax().item()] != vocabulary.end
            return vocabulary.join(answer)[len(vocabulary.lead) :].decode(errors="replace"), scores, cut
        log_probabilities = at_least_float32(logits).log_softmax(-1)
        chosen = log_probabilities[token_id].item() if free or differ(ids, vocabulary) else 0.0
        answer.append(token_id)
        after = automaton.after(state, vocabulary.spelling[token_id])
        assert after == allowed.get(token_id, after)
        finished = chosen
        if after.entities > state.entities:
            label_end = vocabulary.spelling[token_id].split(b'"')[0] + b'"'
            ends = [other for other in ids if vocabulary.spelling.get(other, b"").startswith(label_end)]
            finished = log_probabilities[ends].logsumexp(0).item() if chosen else 0.0
            scores.append(pending + finished)
            pending = -finished
        pending += chosen
        state = after


def differ(ids: list[int], vocabulary) -> bool:
    """Whether two of some tokens go on with different words, or end the answer."""
    spelt = [vocabulary.spelling.get(token_id, b"\0") for token_id in ids]
    return any(not one.startswith(other) and not other.startswith(one) for one in spelt for other in spelt)


def check_against_plain(model, tokenizer, texts: list[str], bounds: Bounds) -> int:
    """Compare the answers and scores with `plain_greedy`; return how many entities they contain."""
    vocabulary = vocabulary_of(tokenizer)
    prompts = prompts_of(texts, tokenizer)
    answers = decode(model, vocabulary, LABELS, texts, prompts, bounds)
    for text, prompt, answer in zip(texts, prompts, answers, strict=True):
        expected, scores, cut = plain_greedy(model, vocabulary, text, prompt, bounds.answer_tokens)
        assert (answer.text, answer.cut) == (expected, cut)
        assert answer.scores == pytest.approx([math.exp(score) for score in scores], rel=1e-4, abs=1e-5)
    return sum(len(answer.scores) for answer in answers)


@pytest.fixture(scope="module")
def demo():
    """The demo model: it uses the usual tokens for the fixed parts of an answer, and names many entities."""
    return load_base(DEMO, torch.float32).eval(), load_tokenizer(DEMO)


@pytest.fixture(params=["cautious", "bold"])
def drafts(request, monkeypatch):
    """How much is guessed: as on a CPU, or as on a GPU."""
    bold = request.param == "bold"
    monkeypatch.setattr(constrained, "Drafter", lambda vocabulary, labels, **_: Drafter(vocabulary, labels, bold=bold))


class TestSameAsPlainGreedy:
    @pytest.mark.usefixtures("drafts")
    def test_answers_of_a_trained_model_are_plain_greedy_in_few_passes(self, demo):
        model, tokenizer = demo
        vocabulary, texts = vocabulary_of(tokenizer), sample_texts(3)
        passes, tokens = [], 0
        hook = model.model.register_forward_hook(lambda *_: passes.append(1))
        for text, prompt in zip(texts, prompts_of(texts, tokenizer), strict=True):
            (answer,) = decode(
                model, vocabulary, LABELS, [text], [prompt], Bounds(1, 1)
            )  # one name, and from the text
            tokens += len(vocabulary.encode([answer.text])[0]) + 1
        hook.remove()
        assert len(passes) < 0.8 * tokens  # the demo model is not trained for this task, so drafts often fail
        assert check_against_plain(model, tokenizer, texts, Bounds(3, 40)) > 3

    @pytest.mark.usefixtures("drafts")
    @pytest.mark.parametrize("architecture", CONFIGS)
    def test_answers_are_those_of_plain_constrained_greedy_decoding(self, tokenizer, architecture):
        model = tiny_model(architecture)
        assert check_against_plain(model, tokenizer, some_texts(6), Bounds(4, 40)) > 0

    @pytest.mark.usefixtures("drafts")
    @pytest.mark.parametrize("kind", KINDS)
    def test_answers_are_plain_greedy_whatever_the_tokenizer(self, kind):
        assert check_against_plain(tiny_model("qwen2", seed=3), KINDS[kind](), some_texts(5), Bounds(3, 40)) > 0

    @pytest.mark.usefixtures("drafts")
    @pytest.mark.parametrize("bounds", [Bounds(1, 30), Bounds(3, 30), Bounds(16, 30), Bounds(16, 30, 400)])
    def test_answers_do_not_depend_on_how_many_rows_run_together(self, tokenizer, bounds):
        model = with_random_lora(tiny_model("qwen2", seed=5))
        texts, vocabulary = some_texts(9, seed=1), vocabulary_of(tokenizer)
        prompts = prompts_of(texts, tokenizer)
        alone = [
            decode(model, vocabulary, LABELS, [text], [prompt], Bounds(1, 30))[0]
            for text, prompt in zip(texts, prompts, strict=True)
        ]
        together = decode(model, vocabulary, LABELS, texts, prompts, bounds)
        assert [answer.text for answer in together] == [answer.text for answer in alone]
        for got, expected in zip(together, alone, strict=True):
            assert got.scores == pytest.approx(expected.scores, rel=1e-4)

    def test_a_wrong_draft_changes_nothing(self, tokenizer, monkeypatch):
        model, texts = tiny_model("llama", seed=2), some_texts(6, seed=2)
        vocabulary = vocabulary_of(tokenizer)
        prompts = prompts_of(texts, tokenizer)
        expected = decode(model, vocabulary, LABELS, texts, prompts, Bounds(4, 40))
        generator = random.Random(0)

        class Wild(Drafter):
            def guess(self, state, source, copied):
                return generator.randrange(480) if generator.random() < 0.5 else super().guess(state, source, copied)

        monkeypatch.setattr(constrained, "Drafter", Wild)
        wild = decode(model, vocabulary, LABELS, texts, prompts, Bounds(4, 40))
        assert [answer.text for answer in wild] == [answer.text for answer in expected]

    @pytest.mark.usefixtures("drafts")
    @pytest.mark.slow
    def test_a_thousand_sentences_agree_with_plain_greedy(self, tokenizer):
        entities = 0
        for seed in range(20):
            model = tiny_model(WHOLE[seed % len(WHOLE)], seed=seed)
            entities += check_against_plain(model, tokenizer, some_texts(50, seed, words=10), Bounds(16, 60))
        assert entities > 500


class TestWholeOutputLayer:
    """Scores are those of `plain_greedy`, which has whole logits from the model, whatever makes the logits."""

    @pytest.mark.parametrize("chunk_logits", [1, 1500, 2**24])
    def test_scores_do_not_depend_on_how_many_logits_are_there_at_once(self, tokenizer, chunk_logits, monkeypatch):
        monkeypatch.setattr(choosing, "CHUNK_LOGITS", chunk_logits)
        assert check_against_plain(tiny_model("qwen2", seed=3), tokenizer, some_texts(4), Bounds(4, 40)) > 0

    def test_an_adapter_on_the_output_layer_takes_part(self, tokenizer):
        model = tiny_model("llama", seed=4)
        config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
        assert check_against_plain(get_peft_model(model, config).eval(), tokenizer, some_texts(3), Bounds(3, 20)) > 0

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_scores_are_probabilities(self, tokenizer, dtype):
        model, texts = tiny_model("qwen2", dtype, seed=3), some_texts(5)
        prompts = prompts_of(texts, tokenizer)
        answers = decode(model, vocabulary_of(tokenizer), LABELS, texts, prompts, Bounds(5, 20))
        scores = [score for answer in answers for score in answer.scores]
        assert scores and all(0 <= score <= 1 for score in scores)


class TestPredict:
    def test_a_text_that_goes_on_after_the_last_token_ends_with_a_whole_entity(self, tokenizer):
        model, vocabulary = tiny_model("qwen2", seed=3), vocabulary_of(tokenizer)
        text = "张伟到上海，" * 12
        (prompt,) = prompts_of([text], tokenizer)
        lengths = []
        for answer_tokens in (1, 20, 80):
            (answer,) = decode(model, vocabulary, LABELS, [text], [prompt], Bounds(1, answer_tokens))
            parsed = Ner(labels=LABELS, system_prompt="").parse(answer.text, {"text": text})
            assert not parsed["unparsable"]
            lengths.append(len(answer.scores))
        assert lengths[0] <= 1 and lengths == sorted(lengths)

    @pytest.mark.parametrize("implementation", ["sdpa", "eager", "packed"])
    def test_answers_do_not_depend_on_the_models_attention_and_it_keeps_its_mode(self, tokenizer, implementation):
        model = tiny_model("qwen2", seed=6)
        expected = list(run(model, tokenizer))
        if implementation == "packed":
            use_packed_attention(model)
        else:
            model.set_attn_implementation(implementation)
        model = with_random_lora(model)
        model.base_model.model.gradient_checkpointing_enable()
        model.train()
        with model.disable_adapter():
            assert list(run(model, tokenizer)) == expected
        assert model.training

    def test_raw_answers_are_had_by_asking_for_them(self, tokenizer):
        model = tiny_model("qwen2", seed=6)
        assert not any(result["unparsable"] for result in run(model, tokenizer))
        assert any(result["unparsable"] for result in run(model, tokenizer, constrained=False))


def run(model, tokenizer, constrained: bool = True):
    task = Ner(labels=LABELS, system_prompt="请提取实体。")
    records = [{"text": text} for text in some_texts(5, seed=8)]
    for result in predict(model, tokenizer, task, records, Limits(400, 40, 3, constrained=constrained)):
        yield {name: result[name] for name in ("answer", "unparsable", "problems")}
