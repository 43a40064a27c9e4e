"""Models of today give the results of one row at a time, by packed passes or, with one line that says why, padded."""

from __future__ import annotations

import copy
import math
import time

import pytest
import torch
import transformers
from models import SIZES
from test_constrained import LABELS, plain_greedy, prompts_of, some_texts
from transformers import AutoModelForCausalLM, PreTrainedModel

from sft.console import say_once
from sft.decoding import constrained
from sft.decoding.constrained import Bounds, decode
from sft.decoding.vocabulary import vocabulary_of
from sft.engine import attention
from sft.engine.attention import use_packed_attention
from sft.engine.batches import EncodedRow, PrefixTreeBatching, micro_batches
from sft.engine.loss import frozen_head, plain_loss, supervised_loss
from sft.engine.option_scores import score
from sft.engine.served import say_what_is_not_served, served
from sft.engine.tiny import tiny_copy
from sft.engine.trial import try_out
from sft.errors import InputError
from sft.model.lora import add_lora
from sft.training.flags import LoraArguments
from sft.training.prepare import choose_batching

WINDOW = 12
COMMON = SIZES | {"initializer_range": 0.1, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
HEAD = {"head_dim": 8}
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
RECURRENT = HEAD | {
    "head_dim": 16, "layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip
PACKED = {
    "hunyuan_v1_dense": ("HunYuanDenseV1Config", HEAD),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0]}),
    "ernie4_5": ("Ernie4_5Config", HEAD),
    "glm4": ("Glm4Config", HEAD),
    "seed_oss": ("SeedOssConfig", HEAD | {"attention_dropout": 0.0, "residual_dropout": 0.0}),
    "olmo3": ("Olmo3Config", MIXED),
    "exaone4": ("Exaone4Config", MIXED),
    "gemma3_text": ("Gemma3TextConfig", HEAD | MIXED | {"query_pre_attn_scalar": 8}),
    "granite": ("GraniteConfig", {"logits_scaling": 8.0, "residual_multiplier": 0.22, "embedding_multiplier": 12.0}),
    "cohere2": ("Cohere2Config", HEAD | MIXED | {"logit_scale": 0.25}),
    "phi3": ("Phi3Config", {"sliding_window": WINDOW}),
    "ministral": ("MinistralConfig", HEAD | MIXED),
    "starcoder2": ("Starcoder2Config", {"sliding_window": WINDOW}),
    "qwen3_moe": ("Qwen3MoeConfig", HEAD | EXPERTS),
    "qwen2_moe": ("Qwen2MoeConfig", EXPERTS | {"shared_expert_intermediate_size": 16}),
    "gpt_neox": ("GPTNeoXConfig", {}),
}
PADDED = {  # and the reason
    "gemma2": ("Gemma2Config", HEAD | MIXED | {"query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0}, "有上限"),
    "gpt_oss": ("GptOssConfig", HEAD | MIXED | {"num_local_experts": 4, "num_experts_per_tok": 2}, "汇点"),
    "qwen3_5": ("Qwen3_5TextConfig", RECURRENT, "1 层 linear_attention"),
    "qwen3_next": ("Qwen3NextConfig", RECURRENT | EXPERTS | {"shared_expert_intermediate_size": 16}, "linear_att"),
    "stablelm": ("StableLmConfig", {}, "与逐条计算的不同"),
}
KINDS = {name: kind[:2] for name, kind in (PACKED | PADDED).items()}
SHARED = [(7 * place) % 450 for place in range(20)]  # longer than the window
ROWS = [
    EncodedRow([*SHARED, *range(30, 55)], [12, 5, 33], 1),
    EncodedRow([*SHARED, 25], [12, 44, *range(60, 75)], 2),
    EncodedRow(SHARED, [50], 3),
]
OPTIONS = [[12, 5, 33], [12, 5, *range(9, 30)], [12], [44, 8]]


def config_of(name: str):
    kind, special = KINDS[name]
    sizes = {name: COMMON[name] for name in COMMON if kind != "GPTNeoXConfig" or name != "num_key_value_heads"}
    return getattr(transformers, kind)(**sizes | special)


def model_of(name: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model, and its copy with transformers' plainest attention."""
    torch.manual_seed(0)
    config = config_of(name)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager").float().eval()
    plain.load_state_dict(model.state_dict())
    return (use_packed_attention(model) if served(config).packed else model), plain


def with_lora(model: PreTrainedModel):
    adapted = add_lora(model, **vars(LoraArguments(lora_r=2)))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    return adapted


def gradients_of(model, loss: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", KINDS)
class TestAsOneRowAtATime:
    def test_loss_and_every_gradient(self, name):
        model, plain = map(with_lora, model_of(name))
        batching = choose_batching(config_of(name), "auto", 0)
        assert isinstance(batching, PrefixTreeBatching) == (name in PACKED)
        alone = []
        for row in ROWS:
            logits = plain(torch.tensor([row.prompt_ids + row.answer_ids])).logits[0, len(row.prompt_ids) - 1 : -1]
            alone.append(plain_loss(logits, torch.tensor(row.answer_ids)))
        assert frozen_head(model) is not None  # the logits of a chunk at a time
        together = supervised_loss(model, batching.collate(ROWS), 1)
        (found, gradients), (expected, right) = gradients_of(model, together), gradients_of(plain, sum(alone))
        assert found == pytest.approx(expected, rel=1e-5)
        assert gradients.keys() == right.keys() and right
        # Padding moves the chunks in which a recurrent layer computes, and with them its rounding.
        tolerance = 1e-4 if name in ("qwen3_5", "qwen3_next") else 1e-5
        whole = torch.cat([gradient.flatten() for gradient in right.values()]).norm()
        for part, gradient in right.items():
            assert (gradients[part] - gradient).norm() <= tolerance * whole, part

    @torch.no_grad()
    def test_option_scores(self, name):
        model, plain = model_of(name)
        scores = score(model, [row.prompt_ids for row in ROWS], [OPTIONS] * len(ROWS))
        for row, found in zip(ROWS, scores, strict=True):
            logits = [plain(torch.tensor([row.prompt_ids + ids])).logits[0, -len(ids) - 1 : -1] for ids in OPTIONS]
            alone = [-plain_loss(own, torch.tensor(ids)) for own, ids in zip(logits, OPTIONS, strict=True)]
            torch.testing.assert_close(found, torch.stack(alone), rtol=1e-5, atol=1e-5)

    def test_constrained_answers(self, name, tokenizer):
        model, plain = model_of(name)
        vocabulary, texts = vocabulary_of(tokenizer), some_texts(2, seed=5)
        prompts = prompts_of(texts, tokenizer)
        answers = decode(model, vocabulary, LABELS, texts, prompts, Bounds(4, 25))
        expected = [plain_greedy(plain, vocabulary, *row, 25) for row in zip(texts, prompts, strict=True)]
        assert [(answer.text, answer.cut) for answer in answers] == [(text, cut) for text, _, cut in expected]
        for answer, (_, scores, _) in zip(answers, expected, strict=True):
            assert answer.scores == pytest.approx([math.exp(score) for score in scores], rel=1e-4, abs=1e-5)


class TestOneLine:
    @pytest.mark.parametrize("name", PADDED)
    def test_why_a_model_is_padded_is_said_once(self, name, caplog):
        say_once.cache_clear()
        for _ in range(2):
            say_what_is_not_served(config_of(name))
        (line,) = [record.message for record in caplog.records]
        assert name in line and PADDED[name][2] in line

    def test_nothing_is_said_about_a_model_that_is_served(self, caplog):
        for name in PACKED:
            say_what_is_not_served(config_of(name))
        assert not caplog.records

    def test_a_prefix_tree_that_is_asked_for_is_refused_with_the_reason(self):
        with pytest.raises(InputError, match=r"--batching prefix_tree.*gemma2.*有上限"):
            choose_batching(config_of("gemma2"), "prefix_tree", 0)


class TestTrial:
    @pytest.mark.parametrize("name", ["qwen2", "gemma3_text", "qwen3_moe", "qwen3_5"])
    def test_trying_a_model_of_full_size_takes_less_than_a_second_and_leaves_random_numbers_alone(self, name):
        config = transformers.CONFIG_MAPPING[name]()
        before, start = torch.get_rng_state(), time.process_time()
        try_out(config)
        assert time.process_time() - start < 1
        assert torch.equal(torch.get_rng_state(), before)

    def test_every_kind_of_layer_is_tried(self):
        config = transformers.CONFIG_MAPPING["gemma3_text"]()
        assert sorted(set(config.layer_types[:2])) == ["sliding_attention"]  # two layers would not be enough
        assert sorted(tiny_copy(config).layer_types) == ["full_attention", "sliding_attention"]

    def test_a_model_that_hides_its_window_from_attention_is_found_out(self, monkeypatch):
        """As one would be that only puts it into its mask."""
        original = attention.packed_attention

        def without_window(*states, sliding_window=None, **settings):
            return original(*states, **settings)

        monkeypatch.setattr(attention, "packed_attention", without_window)
        found = try_out(transformers.CONFIG_MAPPING["mistral"]())
        assert not found.packed and "前缀树" in found.reason

    def test_a_model_that_loses_the_layout_on_the_way_is_found_out(self, monkeypatch):
        original = attention.packed_attention
        monkeypatch.setattr(
            attention, "packed_attention", lambda *states, layout=None, **settings: original(*states, **settings)
        )
        assert not try_out(transformers.CONFIG_MAPPING["qwen2"]()).packed

    def test_a_model_with_images_is_not_served(self):
        assert "多模态" in served(transformers.CONFIG_MAPPING["gemma3"]()).reason


class TestEachPass:
    """One long row, or a generous --max_new_tokens, changes nothing for the others."""

    def test_no_answer_is_padded_because_of_how_long_it_may_become(self, tokenizer, monkeypatch):
        padded = []
        original = constrained._decode_padded
        monkeypatch.setattr(constrained, "_decode_padded", lambda *args: padded.extend(args[2]) or original(*args))
        model, _ = model_of("gemma3_text")
        texts = some_texts(2)
        decode(model, vocabulary_of(tokenizer), LABELS, texts, prompts_of(texts, tokenizer), Bounds(2, 516))
        assert not padded

    def test_only_rows_beyond_the_limit_of_the_angles_are_padded(self, monkeypatch):
        limit = 30
        config = config_of("phi3")
        config.sliding_window = None
        config.max_position_embeddings, config.original_max_position_embeddings = 200, limit
        factors = {"short_factor": [1.0] * 4, "long_factor": [4.0, 3.0, 2.0, 1.5]}
        config.rope_parameters = config.rope_parameters | {"rope_type": "longrope"} | factors
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        batching = choose_batching(config, "auto", 0)
        assert served(config).limit_tokens == limit
        alone = []
        for row in ROWS:
            logits = model(torch.tensor([row.prompt_ids + row.answer_ids])).logits[0, len(row.prompt_ids) - 1 : -1]
            alone.append(plain_loss(logits, torch.tensor(row.answer_ids)))
        expected = sum(alone).item()
        batches = micro_batches(ROWS, 10_000, batching)
        assert [batch["layout"] is not None for batch in batches] == [True, False]
        assert [len(batch["lines"]) for batch in batches] == [1, 2]
        found = sum(supervised_loss(model, batch, 1).item() for batch in batches)
        assert found == pytest.approx(expected, rel=1e-5)
