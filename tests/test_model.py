"""Models and adapters: loading gives exactly what was saved, or a one-line error says what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from models import save_model, tiny_model, with_random_lora
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from sft.decoding.decode import predict
from sft.decoding.limits import Limits
from sft.engine.attention import NAME
from sft.engine.batches import EncodedRow, PaddedBatching
from sft.errors import InputError
from sft.model.loading import load_adapter, load_base, load_tokenizer, resolve_dtype
from sft.model.lora import add_lora
from sft.tasks.ner import Ner
from sft.training.flags import LoraArguments

ADAPTER = "adapter_model.safetensors"
BASE = "model.safetensors"
IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory) -> Path:
    return save_model(tiny_model("qwen2"), tokenizer, tmp_path_factory.mktemp("base"))


@pytest.fixture
def adapter(tmp_path) -> Path:
    with_random_lora(tiny_model("qwen2")).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def copied_base(base, tmp_path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "base"))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


class Products(TorchDispatchMode):
    """Notes how many numbers the second factor of each matrix product has."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            self.sizes.append(arguments[1].numel())
        return function(*arguments, **(keywords or {}))


def change_weights(path: Path, change) -> None:
    """Rewrite a safetensors file after calling ``change(tensors, first_name)`` on its tensors."""
    tensors = load_file(path)
    change(tensors, min(tensors))
    save_file(tensors, path, metadata={"format": "pt"})


def rename(tensors: dict, name: str) -> None:
    tensors[name.replace("layers.0", "layers.9")] = tensors.pop(name)


def reshape(tensors: dict, name: str) -> None:
    tensors[name] = torch.zeros(3, 3)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


class TestAdapter:
    def test_a_loaded_adapter_computes_what_the_trained_model_did(self, base, adapter):
        before = logits(tiny_model("qwen2"))
        loaded = load_adapter(load_base(base, torch.float32), adapter)
        assert torch.equal(logits(loaded), logits(with_random_lora(tiny_model("qwen2"))))
        assert (logits(loaded) - before).abs().max() > 0.1

    @pytest.mark.parametrize("change", [dict.pop, rename, reshape])
    def test_an_adapter_whose_weights_do_not_fit_is_refused(self, base, adapter, change):
        change_weights(adapter / ADAPTER, change)
        with pytest.raises(InputError, match=r"对不上|不匹配"):
            load_adapter(load_base(base, torch.float32), adapter)

    def test_an_adapter_of_another_architecture_is_refused(self, base, tmp_path):
        wide = with_random_lora(tiny_model("qwen2"))
        wide.save_pretrained(tmp_path)
        path = tmp_path / "adapter_config.json"
        config = json.loads(path.read_text()) | {"target_modules": ["c_attn"]}
        path.write_text(json.dumps(config))
        with pytest.raises(InputError, match="不匹配"):
            load_adapter(load_base(base, torch.float32), tmp_path)

    @pytest.mark.parametrize("missing", [ADAPTER, "adapter_config.json"])
    def test_a_folder_without_an_adapter_is_refused(self, base, adapter, missing):
        (adapter / missing).unlink()
        with pytest.raises(InputError, match=missing):
            load_adapter(load_base(base, torch.float32), adapter)

    def test_a_pickled_adapter_is_not_read(self, base, adapter):
        torch.save(load_file(adapter / ADAPTER), adapter / "adapter_model.bin")
        (adapter / ADAPTER).unlink()
        with pytest.raises(InputError, match=ADAPTER):
            load_adapter(load_base(base, torch.float32), adapter)

    def test_a_cut_off_adapter_is_refused(self, base, adapter):
        truncate(adapter / ADAPTER)
        with pytest.raises(InputError, match="不匹配"):
            load_adapter(load_base(base, torch.float32), adapter)

    def test_a_broken_adapter_config_is_refused(self, base, adapter):
        for content in ("{", '{"peft_type": "NONE"}'):
            (adapter / "adapter_config.json").write_text(content)
            with pytest.raises(InputError, match="不匹配"):
                load_adapter(load_base(base, torch.float32), adapter)

    def test_an_adapter_on_the_embeddings_can_be_loaded_again(self, base, tmp_path):
        config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "embed_tokens"])
        model = get_peft_model(load_base(base, torch.float32), config)
        model.save_pretrained(tmp_path)
        assert torch.equal(logits(load_adapter(load_base(base, torch.float32), tmp_path)), logits(model))

    def test_a_new_adapter_is_float32_and_changes_nothing_yet(self, base):
        model = load_base(base, torch.bfloat16)
        before = logits(model)
        model = add_lora(model, **vars(LoraArguments()))
        assert torch.equal(logits(model), before)
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert len(trained) == 2 * 7 * 2  # 2 layers, 7 projections, matrices A and B
        assert {parameter.dtype for parameter in trained.values()} == {torch.float32}

    def test_an_unknown_target_module_names_the_flag(self, base):
        with pytest.raises(InputError, match=r"--lora_target_modules.*c_attn"):
            add_lora(load_base(base, torch.float32), **vars(LoraArguments(lora_target_modules=["c_attn"])))


class TestBase:
    def test_cudnn_does_not_compute_attention(self, base):
        """Its gradient is NaN at some widths on Hopper (pytorch issue 196678)."""
        torch.backends.cuda.enable_cudnn_sdp(True)
        load_base(base, torch.float32)
        assert not torch.backends.cuda.cudnn_sdp_enabled()

    @pytest.mark.parametrize("architecture", ["qwen2", "llama"])  # with a tied head, with an untied head
    def test_a_base_model_is_loaded_as_it_was_saved(self, tokenizer, tmp_path, architecture):
        model = tiny_model(architecture)
        loaded = load_base(save_model(model, tokenizer, tmp_path), torch.float32)
        assert torch.equal(logits(loaded), logits(model))
        assert loaded.config._attn_implementation == NAME

    @pytest.mark.parametrize("way", ["a free answer", "the loss of a padded batch"])
    def test_all_rows_of_a_batch_share_one_output_head(self, tokenizer, base, way):
        """torch would copy a frozen head for each row in 16 bits on a CPU: 4 GB and 40 seconds with Gemma 3 270M."""
        model = load_base(base, torch.bfloat16).eval().requires_grad_(False)  # as below an adapter
        with Products() as products, torch.no_grad():
            if way == "a free answer":
                limits = Limits(400, 4, 3, constrained=False)
                task = Ner(labels=("人名",), system_prompt="请提取实体。")
                assert len(list(predict(model, tokenizer, task, [{"text": "张伟"}] * 3, limits))) == 3
            else:
                rows = [EncodedRow([5, 6, 7], [8, 9], line) for line in range(3)]
                batch = PaddedBatching(0).collate(rows)
                assert len(model(**batch["inputs"]).logits) == 3
        assert max(products.sizes) == model.lm_head.weight.numel()

    def test_a_pickle_only_folder_is_refused(self, copied_base):
        torch.save(load_file(copied_base / BASE), copied_base / "pytorch_model.bin")
        (copied_base / BASE).unlink()
        with pytest.raises(InputError, match="safetensors"):
            load_base(copied_base, torch.float32)

    def test_missing_weights_are_refused_not_made_up(self, copied_base):
        change_weights(copied_base / BASE, dict.pop)
        with pytest.raises(InputError, match=r"缺少 \d+ 个权重"):
            load_base(copied_base, torch.float32)

    def test_a_cut_off_file_is_refused(self, copied_base):
        truncate(copied_base / BASE)
        with pytest.raises(InputError, match="读不出模型"):
            load_base(copied_base, torch.float32)

    @pytest.mark.parametrize("content", [None, "{", '{"model_type": "none"}'])
    def test_a_folder_that_is_no_causal_model_is_refused(self, copied_base, content):
        if content is None:
            (copied_base / "config.json").unlink()
        else:
            (copied_base / "config.json").write_text(content)
        with pytest.raises(InputError) as error_info:
            load_base(copied_base, torch.float32)
        assert "\n" not in str(error_info.value)


class TestTokenizer:
    def test_a_folder_without_a_vocabulary_is_refused(self, copied_base):
        (copied_base / "tokenizer.json").unlink()
        with pytest.raises(InputError, match="词表"):
            load_tokenizer(copied_base)
        (copied_base / "tokenizer.json").write_text("{")
        with pytest.raises(InputError, match="读不出分词器"):
            load_tokenizer(copied_base)

    def test_a_tokenizer_that_brings_its_own_code_is_refused(self, copied_base, monkeypatch):
        monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run it"))
        (copied_base / "own.py").write_text("raise SystemExit('run')\n")
        (copied_base / "config.json").write_text('{"model_type": "none"}')
        path = copied_base / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
        path.write_text(json.dumps(config), encoding="utf-8")
        with pytest.raises(InputError, match="读不出分词器"):
            load_tokenizer(copied_base)

    def test_a_tokenizer_without_padding_pads_with_the_end(self, tokenizer_folder, tmp_path):
        folder = Path(shutil.copytree(tokenizer_folder, tmp_path / "tokenizer"))
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        del config["pad_token"]
        path.write_text(json.dumps(config), encoding="utf-8")
        loaded = load_tokenizer(folder)
        assert loaded.pad_token_id == loaded.eos_token_id is not None


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class TestDtype:
    @pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
    def test_what_is_asked_for_is_taken(self, device):
        assert resolve_dtype("float32", device) == torch.float32
        assert resolve_dtype("bfloat16", device) == torch.bfloat16
        assert resolve_dtype("float16", CUDA) == torch.float16

    def test_float16_on_a_cpu_is_refused(self):
        with pytest.raises(InputError, match="float16"):
            resolve_dtype("float16", CPU)

    @pytest.mark.parametrize(
        "capability, expected",
        [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
    )
    def test_auto_on_a_gpu_is_what_its_hardware_computes_in(self, monkeypatch, capability, expected):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
        assert resolve_dtype("auto", CUDA) == expected

    @pytest.mark.parametrize(
        "avx512, amx, expected",
        [(False, False, torch.float32), (True, False, torch.bfloat16), (False, True, torch.bfloat16)],
    )
    def test_auto_on_a_cpu_is_bfloat16_only_where_it_is_fast(self, monkeypatch, avx512, amx, expected):
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512)
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
        assert resolve_dtype("auto", CPU) == expected
