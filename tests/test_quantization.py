"""``--quantization nf4``: a base in 4 bits is trained on, remembered, and used again by prediction."""

from __future__ import annotations

import json
import logging
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from models import save_model, tiny_model, with_random_lora

import predict
import train_qwen2_ner
from sft.engine.attention import use_packed_attention
from sft.engine.batches import EncodedRow, PrefixTreeBatching
from sft.engine.loss import supervised_loss
from sft.engine.ragged import Cache, Feed, run
from sft.errors import InputError
from sft.files import read_json, write_json
from sft.model import quantization
from sft.model.loading import load_base
from sft.tasks.ner import Ner
from sft.tasks.settings import TaskSettings
from sft.training.memory import NF4_BYTES, StepKind, shape_of, weight_bytes
from tests.test_training import write_records

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="needs requirements-quantization.txt"
)
TEXTS = [f"{'张伟昨天到了上海。' * (1 + n % 3)}{n}" for n in range(12)]


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer) -> Path:
    return save_model(tiny_model("qwen2"), tokenizer, tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    entities = [{"start": 0, "end": 2, "text": "张伟", "label": "人名"}]
    rows = [{"text": text, "entities": entities} for text in TEXTS]
    return write_records(tmp_path_factory.mktemp("data") / "train.jsonl", Ner.with_labels(["人名"]), rows)


def train(base: Path, data: Path, output: Path, *more: str) -> int:
    words = ["--model_name_or_path", str(base), "--train_file", str(data), "--output_dir", str(output)]
    words += ["--dtype", "float32", "--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1"]
    words += ["--swanlab_mode", "disabled", "--validation_ratio", "0.3", "--disable_tqdm", "--learning_rate", "1e-3"]
    return train_qwen2_ner.main([*words, *more])


@pytest.fixture(scope="module")
def trained(base, data, tmp_path_factory) -> Path:
    """A whole run: evaluation before, between and after, checkpoints, the best one loaded back."""
    output = tmp_path_factory.mktemp("run") / "nf4"
    assert train(base, data, output, "--quantization", "nf4") == 0
    return output


def predicted(adapter: Path, tmp_path: Path, *more: str) -> list[dict]:
    source, target = tmp_path / "texts.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS), encoding="utf-8")
    words = ["--adapter", str(adapter), "--input_file", str(source), "--output_file", str(target), "--overwrite"]
    assert predict.main([*words, *more]) == 0
    return [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]


# ---- without bitsandbytes ----


def test_a_missing_package_is_one_line_with_the_file_that_names_it(base, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    assert train(base, data, tmp_path / "out", "--quantization", "nf4") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "没有装 bitsandbytes" in said
    assert "pip install -r requirements-quantization.txt" in said
    assert (Path(train_qwen2_ner.__file__).parent / quantization.REQUIREMENTS).is_file()


def test_a_base_that_is_quantised_already_is_refused(base, data, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "base"
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = read_json(folder / "config.json") | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    write_json(folder / "config.json", config)
    monkeypatch.setattr(quantization, "find_spec", lambda name: True)
    with pytest.raises(InputError, match="已经是量化过的（gptq）"):
        quantization.require_quantization(folder)


@pytest.mark.parametrize("flag", ["load_in_4bit", "load_in_8bit", "quantization_bit"])
def test_the_flags_of_other_tools_point_to_it(flag, capsys):
    for parse in (train_qwen2_ner.main, predict.main):
        with pytest.raises(SystemExit) as stop:
            parse([f"--{flag}", "4"])
        assert stop.value.code == 2
        assert "请用 --quantization nf4" in capsys.readouterr().err


def test_settings_know_only_the_kinds_that_there_are(tmp_path, ner):
    path = tmp_path / "x.task.json"
    TaskSettings(ner, quantization="nf4").write(path)
    assert TaskSettings.read(path).quantization == "nf4"
    TaskSettings(ner, quantization="int3").write(path)
    with pytest.raises(InputError, match="quantization 应是 nf4，实际是 'int3'"):
        TaskSettings.read(path)


def test_a_pass_of_which_nothing_is_wanted_gives_nothing():
    base = use_packed_attention(tiny_model("qwen2"))
    hidden = run(base, Cache(1, 8), [Feed(0, 0, [1, 2, 3])], [])
    assert hidden.shape == (0, base.config.hidden_size)


# ---- with it ----


@needs_bitsandbytes
def test_a_whole_run_is_remembered_and_prediction_uses_it_again(trained, tmp_path, caplog):
    assert TaskSettings.read(trained / "task.json").quantization == "nf4"
    with caplog.at_level(logging.INFO):
        as_trained = predicted(trained, tmp_path)
        assert "底座按 nf4 量化，同训练时" in caplog.text
        assert predicted(trained, tmp_path, "--quantization", "nf4") == as_trained
        caplog.clear()
        assert len(as_trained) == len(predicted(trained, tmp_path, "--quantization", "none")) == len(TEXTS)
    assert "底座：不量化，训练时：nf4；照 --quantization none" in caplog.text
    words = ("--constrained", "false", "--max_new_tokens", "3", "--quantization")
    assert predicted(trained, tmp_path, *words, "none") != predicted(trained, tmp_path, *words, "nf4")


@needs_bitsandbytes
def test_the_evaluation_in_training_is_that_of_prediction(trained, data, tmp_path):
    """The adapter fits the base that it was trained on."""
    words = ["--adapter", str(trained), "--input_file", str(data), "--threshold", "0", "--output_file"]
    assert predict.main([*words, str(tmp_path / "a.jsonl")]) == 0
    assert predict.main([*words, str(tmp_path / "b.jsonl"), "--quantization", "nf4"]) == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


@needs_bitsandbytes
def test_a_run_is_not_resumed_on_another_base(trained, base, data, capsys):
    assert train(base, data, trained, "--resume_from_checkpoint") == 2
    assert "quantization：nf4 → None" in capsys.readouterr().err
    assert train(base, data, trained, "--resume_from_checkpoint", "--quantization", "nf4") == 0  # it is finished


@needs_bitsandbytes
def test_an_interrupted_run_ends_at_the_same_adapter(trained, base, data, tmp_path):
    output = tmp_path / "again"
    assert train(base, data, output, "--quantization", "nf4") == 0
    assert (output / "adapter_model.safetensors").read_bytes() == (trained / "adapter_model.safetensors").read_bytes()
    (output / "all_results.json").unlink()
    (output / "adapter_model.safetensors").unlink()
    shutil.rmtree(output / "checkpoint-2")
    assert train(base, data, output, "--quantization", "nf4", "--resume_from_checkpoint") == 0
    assert (output / "adapter_model.safetensors").read_bytes() == (trained / "adapter_model.safetensors").read_bytes()


@needs_bitsandbytes
def test_training_on_goes_on_with_the_base_of_the_adapter(trained, base, data, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert train(base, data, tmp_path / "on", "--init_adapter", str(trained)) == 0
    assert "--quantization nf4，同它训练时" in caplog.text
    assert TaskSettings.read(tmp_path / "on/task.json").quantization == "nf4"
    with caplog.at_level(logging.INFO):
        assert train(base, data, tmp_path / "off", "--init_adapter", str(trained), "--quantization", "none") == 0
    assert "它训练时是 --quantization nf4；照 none 继续" in caplog.text
    assert TaskSettings.read(tmp_path / "off/task.json").quantization is None


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_evaluation_leaves_the_weights_as_they_are(base, dtype):
    """On a CPU with AVX512_BF16, bitsandbytes packs them anew, and loses digits, unless it is told not to."""
    import bitsandbytes

    model = with_random_lora(load_base(base, dtype, "nf4"))
    rows = [EncodedRow([1, 2, 3 + n], [7, 8], n) for n in range(4)]
    batch = PrefixTreeBatching().collate(rows)
    layers = [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 2 * 7
    before = [layer.weight.data.clone() for layer in layers]
    with torch.no_grad():
        training, evaluating = (supervised_loss(model.train(mode), batch, 1) for mode in (True, False))
    assert torch.equal(training, evaluating)
    assert all(torch.equal(layer.weight.data, weight) for layer, weight in zip(layers, before, strict=True))


@needs_bitsandbytes
def test_the_model_computes_with_the_unpacked_weights(base):
    import bitsandbytes

    packed, plain = load_base(base, torch.float32, "nf4"), load_base(base, torch.float32)
    for name, module in packed.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            unpacked = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.get_submodule(name).weight.data = unpacked.float()
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(packed(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-4)


@needs_bitsandbytes
def test_the_memory_of_the_weights_is_what_the_estimate_says(tmp_path, tokenizer):
    from transformers import AutoModelForCausalLM, Qwen2Config

    config = Qwen2Config(vocab_size=512, hidden_size=256, intermediate_size=1024, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    folder = save_model(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16), tokenizer, tmp_path / "base")
    model = load_base(folder, torch.bfloat16, "nf4")
    held = sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())
    for module in model.modules():
        if state := getattr(getattr(module, "weight", None), "quant_state", None):
            held += state.absmax.nbytes + state.state2.absmax.nbytes + state.state2.code.nbytes
    shape, kind = shape_of(folder), StepKind(2, recompute=False, whole_head=False, quantized=True, lora_r=0)
    unpacked = 2 * shape.hidden_size * shape.intermediate_size
    assert held == pytest.approx(weight_bytes(shape, kind) - unpacked, rel=0.1)
    assert 0.5 < NF4_BYTES < 0.6
