"""Any causal language model can be trained, padded exactly as row by row, or one line says the true reason."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from models import LINEAR_PROJECTIONS, SIZES, save_model, tiny_model
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BertConfig,
    BloomConfig,
    Gemma2Config,
    Gemma3Config,
    GlmConfig,
    GPT2Config,
    GPTNeoXConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3_5TextConfig,
    T5Config,
)
from transformers.pytorch_utils import Conv1D

from sft.engine.batches import EncodedRow, PaddedBatching
from sft.engine.loss import supervised_loss
from sft.engine.option_scores import score
from sft.errors import InputError
from sft.model.kinds import refuse_other_kinds
from sft.model.loading import load_base, load_config, load_tokenizer
from sft.model.lora import add_lora, target_modules
from sft.training.flags import LoraArguments
from sft.training.memory import shape_of

SMALL = {"vocab_size": 512, "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": None}
GPT2 = SMALL | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
COMMON = SIZES | {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MODELS = {
    "gpt2": GPT2Config(**GPT2),
    "bloom": BloomConfig(**SMALL, hidden_size=32, n_layer=2, n_head=4),
    "gpt_neox": GPTNeoXConfig(**{name: COMMON[name] for name in COMMON if name != "num_key_value_heads"}),
    "gemma2": Gemma2Config(**COMMON, head_dim=8),
    "phi3": Phi3Config(**COMMON),
    "glm": GlmConfig(**COMMON, head_dim=8),
    "mistral": MistralConfig(**COMMON),
    "qwen3_5": Qwen3_5TextConfig(  # three recurrent layers of four; here one of two
        **COMMON,
        head_dim=16,
        layer_types=["linear_attention", "full_attention"],
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
    ),
    "qwen2_moe": Qwen2MoeConfig(**COMMON, **EXPERTS, shared_expert_intermediate_size=16),
}
ROWS = [
    EncodedRow([5, 6, 7, 8, 9, 10], [11, 12], 1),
    EncodedRow([5, 6], [13, 14, 15], 2),
    EncodedRow([20, 21, 22, 23], [24], 3),
]


@pytest.fixture(scope="module")
def folder_of(tokenizer, tmp_path_factory):
    """The folder of a tiny random model, made once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(MODELS[name])
            made[name] = save_model(model, tokenizer, tmp_path_factory.mktemp(name))
        return made[name]

    return make


@pytest.mark.parametrize("name", MODELS)
class TestAnyCausalModel:
    def test_a_padded_batch_has_the_loss_of_its_rows_one_by_one(self, folder_of, name):
        model = load_base(folder_of(name), torch.float32).eval()
        pad_id = load_tokenizer(folder_of(name)).pad_token_id
        batching = PaddedBatching(pad_id)
        tokens = sum(len(row.answer_ids) for row in ROWS)
        with torch.no_grad():
            together = supervised_loss(model, batching.collate(ROWS), tokens)
            alone = sum(supervised_loss(model, batching.collate([row]), tokens) for row in ROWS)
        assert together.item() == pytest.approx(alone.item(), abs=1e-5)

    def test_options_are_scored_together_as_one_by_one(self, folder_of, name):
        model = load_base(folder_of(name), torch.float32).eval()
        prompts = [row.prompt_ids for row in ROWS]
        options = [[[11, 12], [13, 14, 15], [24]] for _ in prompts]
        together = score(model, prompts, options)
        for prompt, choices, scores in zip(prompts, options, together, strict=True):
            alone = torch.cat([score(model, [prompt], [[choice]])[0] for choice in choices])
            assert torch.allclose(scores, alone, atol=1e-4)

    def test_all_linear_gives_every_linear_layer_an_adapter(self, folder_of, name, caplog):
        model = load_base(folder_of(name), torch.float32)
        add_lora(model, **vars(LoraArguments(lora_target_modules=["all-linear"])))
        assert "没有适配器的线性层" not in caplog.text
        assert ("专家的权重" in caplog.text) == (name == "qwen2_moe")

    def test_its_sizes_are_those_of_its_weights(self, folder_of, name):
        shape = shape_of(folder_of(name))
        assert (shape.layers, shape.hidden_size, shape.vocabulary_size) == (2, 32, 512)
        expected = {"gpt2": 128, "bloom": 128, "qwen2_moe": 2 * 16 + 16}
        assert shape.intermediate_size == expected.get(name, 48)


class TestTargets:
    @pytest.mark.parametrize("name", ["mistral", "phi3", "glm", "gpt2", "bloom", "gpt_neox", "qwen3_5"])
    def test_by_default_every_linear_layer_of_a_block_has_an_adapter_and_no_line_is_needed(
        self, folder_of, name, caplog
    ):
        model = load_base(folder_of(name), torch.float32)
        caplog.clear()
        adapted = add_lora(model, **vars(LoraArguments()))
        head = model.get_output_embeddings()
        bare = [
            path
            for path, module in adapted.get_base_model().named_modules()
            if isinstance(module, torch.nn.Linear | Conv1D) and "lora_" not in path and module is not head
            if not path.endswith("base_layer")
        ]
        assert not bare
        assert not caplog.records

    def test_the_recurrent_layers_of_qwen3_5_learn(self, folder_of):
        model = add_lora(load_base(folder_of("qwen3_5"), torch.float32), **vars(LoraArguments()))
        supervised_loss(model, PaddedBatching(0).collate(ROWS), 6).backward()
        for layer in ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"):
            gradients = [p.grad for name, p in model.named_parameters() if f"{layer}.lora_B" in name]
            assert gradients and all(gradient.abs().max() > 0 for gradient in gradients), layer

    def test_what_reads_images_gets_no_adapter(self, tmp_path):
        """Its layers have the same names as those of the language model."""
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        text = {name: value for name, value in COMMON.items() if name != "vocab_size"} | {"head_dim": 8}
        config = Gemma3Config(text_config=text | {"vocab_size": 512}, vision_config=vision)
        modules = target_modules(config, ["all-linear"])
        assert len(modules) == 2 * 7
        assert not any("vision" in name for name in modules)

    def test_layers_without_an_adapter_are_named_in_one_line(self, folder_of, caplog):
        model = load_base(folder_of("phi3"), torch.float32)
        add_lora(model, **vars(LoraArguments(lora_target_modules=["o_proj"])))
        (line,) = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
        assert all(layer in line for layer in ("qkv_proj（2 层）", "gate_up_proj（2 层）", "all-linear"))
        assert "o_proj" not in line

    def test_a_wanted_part_of_the_layers_is_named_too(self, folder_of, caplog):
        add_lora(
            load_base(folder_of("mistral"), torch.float32), **vars(LoraArguments(lora_target_modules=["q_proj", "v"]))
        )
        assert "down_proj（2 层）" in caplog.text
        assert "模型里没有 v" in caplog.text

    def test_qwens_adapter_names_the_seven_layers_that_it_always_had(self, tmp_path):
        """So an adapter of today is the file that it was."""
        add_lora(tiny_model("qwen2"), **vars(LoraArguments())).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        assert sorted(config["target_modules"]) == sorted(LINEAR_PROJECTIONS)

    @pytest.mark.parametrize("name, layer", [("gpt2", "c_attn"), ("bloom", "query_key_value"), ("gpt_neox", "dense")])
    def test_a_model_with_other_names_says_them(self, folder_of, name, layer):
        with pytest.raises(InputError, match=rf"--lora_target_modules.*{layer}.*all-linear"):
            add_lora(load_base(folder_of(name), torch.float32), **vars(LoraArguments(lora_target_modules=["q_proj"])))


def config_file(folder: Path, **content: object) -> Path:
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


class TestOtherKinds:
    @pytest.mark.parametrize(
        "content, reason",
        [
            ({"model_type": "baichuan", "auto_map": {"AutoConfig": "a.B"}}, "自带的代码.*-hf"),
            ({"model_type": "qwen99"}, "不认识模型 qwen99"),
            ({}, "没有 model_type"),
            ({"model_type": "t5", "is_encoder_decoder": True}, "seq2seq"),
            ({"model_type": "vit"}, "不是因果语言模型"),
            ({"model_type": "roberta"}, "只有编码器"),
            ({"model_type": "qwen2", "architectures": ["Qwen2ForRewardModel"]}, "Qwen2ForRewardModel"),
            ({"model_type": "qwen2", "quantization_config": {"quant_method": "gptq"}}, "gptq.*optimum"),
            ({"model_type": "qwen2", "quantization_config": {"quant_method": "awq"}}, "awq.*gptqmodel"),
            ({"model_type": "qwen2", "quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes.*或换"),
        ],
    )
    def test_the_true_reason_is_given_in_one_line(self, tmp_path, monkeypatch, content, reason):
        monkeypatch.setattr("sft.model.kinds.find_spec", lambda module: None)
        with pytest.raises(InputError, match=reason) as error_info:
            refuse_other_kinds(config_file(tmp_path, **content))
        assert "\n" not in str(error_info.value)
        assert "重新下载" not in str(error_info.value)

    def test_a_quantised_base_with_its_library_is_not_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr("sft.model.kinds.find_spec", lambda module: object())
        refuse_other_kinds(config_file(tmp_path, model_type="qwen2", quantization_config={"quant_method": "awq"}))

    @pytest.mark.parametrize(
        "config, head",
        [
            (BertConfig(), "BertForMaskedLM"),
            (T5Config(), "T5ForConditionalGeneration"),
            (BartConfig(), "BartForConditionalGeneration"),
            (Qwen2Config(), "Qwen2ForSequenceClassification"),
        ],
        ids=["encoder", "t5", "bart", "classifier"],
    )
    def test_models_that_write_no_text_are_refused_by_their_own_config(self, tmp_path, config, head):
        config.architectures = [head]
        config.save_pretrained(tmp_path)
        with pytest.raises(InputError, match="需要因果语言模型"):
            load_config(tmp_path)

    def test_all_models_of_this_file_are_accepted(self, folder_of):
        for name in MODELS:
            refuse_other_kinds(folder_of(name))
