"""Tiny random models of the supported architectures, and a fake model whose answers are always right."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3Config,
)

from sft.model.encoding import encode_texts, terminator_id
from sft.tasks.classification import Classification
from sft.tasks.entity_lines import NO_ENTITY, entity_line
from sft.tasks.settings import TaskSettings

LINEAR_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.3,  # large, so that options and tokens get clearly different probabilities
}
CONFIGS = {
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, {"head_dim": 8, "tie_word_embeddings": True}),
    "llama": (LlamaConfig, {}),
    "sliding_qwen2": (Qwen2Config, {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}),
    "sliding_mistral": (MistralConfig, {"sliding_window": 12}),
}
WHOLE = ("qwen2", "qwen3", "llama")  # full attention in every layer
NAMES = ("张伟", "上海", "菲律宾")  # the names that `Oracle` finds
SLIDING = ("sliding_qwen2", "sliding_mistral")


def tiny_model(architecture: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A random two-layer model; the same arguments give the same weights."""
    config_type, special = CONFIGS[architecture]
    torch.manual_seed(seed)
    config = config_type(**SIZES | special, bos_token_id=None, eos_token_id=None)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype).eval()


def with_random_lora(model: PreTrainedModel, seed: int = 1) -> PeftModel:
    """``model`` with an adapter on every projection. Its B matrices are not zero, as after some training."""
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules=LINEAR_PROJECTIONS)
    model = get_peft_model(model, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return model


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Save both to ``folder``, for `sft.model.loading.load_base` and `load_tokenizer` to read; return it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_adapter(tokenizer: PreTrainedTokenizerBase, folder: Path, labels: tuple[str, ...]) -> Path:
    """A classification adapter in ``folder/adapter`` as training writes it, with its base model in ``folder/base``."""
    base = save_model(tiny_model("qwen2"), tokenizer, folder / "base")
    adapter = save_model(with_random_lora(tiny_model("qwen2")), tokenizer, folder / "adapter")
    settings = TaskSettings(Classification(labels), str(base), "float32", max_length=200, max_new_tokens=8)
    settings.write(adapter / "task.json")
    return adapter


class Oracle:
    """A fake model that answers with all ``NAMES`` in the sentence; every token has the same probability."""

    training = False
    device = torch.device("cpu")
    config = SimpleNamespace(model_type="oracle")
    margin = 9.0  # the right token's logit is this much higher than the others

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer
        self.sentences: list[str] = []

    def eval(self) -> None:
        pass

    def train(self, mode: bool) -> None:
        pass

    def answer(self, sentence: str) -> str:
        found = sorted((start, name) for name in NAMES for start in starts_of(name, sentence))
        return "\n".join(entity_line(name, "人名") for _, name in found) or NO_ENTITY

    def scripts(self, input_ids, attention_mask) -> list[list[int]]:
        scripts = []
        for ids, mask in zip(input_ids, attention_mask.bool(), strict=True):
            prompt = self.tokenizer.decode(ids[mask])
            sentence = prompt.split("<|im_start|>user\n")[1].removesuffix("<|im_end|>\n<|im_start|>assistant\n")
            self.sentences.append(sentence)
            answer_ids = encode_texts([self.answer(sentence)], self.tokenizer)[0]
            scripts.append([*answer_ids, terminator_id(self.tokenizer)])
        return scripts

    def logits(self, scripts: list[list[int]], step: int) -> torch.Tensor:
        tokens = torch.tensor([script[step] if step < len(script) else 0 for script in scripts])
        return self.margin * torch.nn.functional.one_hot(tokens, len(self.tokenizer)).float()

    def generate(self, input_ids, attention_mask, logits_processor, max_new_tokens, **_):
        scripts = self.scripts(input_ids, attention_mask)
        for step in range(min(max_new_tokens, max(map(len, scripts)))):
            logits = logits_processor(input_ids, self.logits(scripts, step))
            input_ids = torch.cat([input_ids, logits.argmax(-1, keepdim=True)], 1)
        return input_ids

    def __call__(self, input_ids, attention_mask, past_key_values, **_):
        scripts, step = past_key_values or (self.scripts(input_ids, attention_mask), 0)
        return SimpleNamespace(logits=self.logits(scripts, step)[:, None], past_key_values=(scripts, step + 1))

    def token_probability(self) -> float:
        return torch.tensor([self.margin, *[0.0] * (len(self.tokenizer) - 1)]).softmax(0)[0].item()


def starts_of(name: str, text: str) -> list[int]:
    return [start for start in range(len(text)) if text.startswith(name, start)]
