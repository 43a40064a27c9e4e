"""One attention function is registered with transformers; without a layout it does the same as transformers' own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, StableLmConfig

from sft.engine.attention import NAME, use_packed_attention
from sft.model.loading import load_base
from tests.models import CONFIGS, SIZES, save_model, tiny_model, with_random_lora

REGISTERED = """
import importlib, pkgutil
from transformers import AttentionInterface, AttentionMaskInterface

def names():
    return [set(interface().valid_keys()) for interface in (AttentionInterface, AttentionMaskInterface)]

before = names()
import sft
for module in pkgutil.walk_packages(sft.__path__, "sft."):
    if module.name != "sft.export.llama_process":  # a program of its own, which needs llama-cpp-python
        importlib.import_module(module.name)
assert names() == before, names()
from sft.engine.attention import use_packed_attention
from tests.models import tiny_model
use_packed_attention(tiny_model("qwen2"))
for old, new in zip(before, names()):
    print(*(new - old))
"""


def test_one_name_is_registered_with_transformers_and_none_by_importing():
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", REGISTERED], cwd=root, capture_output=True, text=True)
    assert done.stdout.split() == [NAME, NAME], done.stderr[-2000:]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_without_a_layout_it_is_transformers_own_attention(architecture):
    model = tiny_model(architecture)
    input_ids = torch.randint(480, (3, 30), generator=torch.Generator().manual_seed(0))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, :9] = 0
    expected = model(input_ids=input_ids, attention_mask=attention_mask).logits
    use_packed_attention(model)
    assert model.config._attn_implementation == NAME
    assert torch.equal(model(input_ids=input_ids, attention_mask=attention_mask).logits, expected)


def test_a_model_is_switched_once_and_its_base_given_back(monkeypatch):
    base = tiny_model("qwen2")
    model = with_random_lora(base)
    assert use_packed_attention(model) is base
    monkeypatch.setattr(type(base), "set_attn_implementation", None)
    assert use_packed_attention(model) is use_packed_attention(base) is base


def test_models_are_switched_when_they_are_loaded_if_a_layout_can_reach_their_attention(tokenizer, tmp_path):
    packed = load_base(save_model(tiny_model("qwen2"), tokenizer, tmp_path / "qwen2"), torch.float32)
    assert packed.config._attn_implementation == NAME
    stablelm = AutoModelForCausalLM.from_config(StableLmConfig(**SIZES))
    other = load_base(save_model(stablelm, tokenizer, tmp_path / "stablelm"), torch.float32)
    assert other.config._attn_implementation == "sdpa"
