"""A tiny adapter to export, and exports of it with one fault each."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from models import save_model, tiny_model, with_random_lora
from safetensors.torch import load_file, save_file

from sft.export.arguments import parse_arguments
from sft.export.merged import write_merged
from sft.export.reference import Reference, reference_of
from sft.export.rows import rows_to_compare
from sft.export.source import Source, merged_model, open_source
from sft.files import read_json, write_json
from sft.tasks.ner import Ner
from sft.tasks.settings import TaskSettings

TEXTS = (
    "南京大学的张伟昨天到了上海。",
    "今天下雨。",
    '菲律宾总统埃斯特拉达说：“见到了"张伟"”。',
    "上海 Military Space 2024年12月。",
    "《经济》第1版，{text}和{options}！",
    "国家队在上海赢了比赛，张伟\n很高兴\\。",
)
LABELS = ("地理实体", "人名")


def make_adapter(tokenizer, folder: Path, architecture: str = "qwen2") -> Path:
    """An NER adapter as training writes it, with rows to compare; its base is beside it."""
    base = save_model(tiny_model(architecture), tokenizer, folder / "base")
    adapter = save_model(with_random_lora(tiny_model(architecture)), tokenizer, folder / "adapter")
    edit_json("adapter_config.json", base_model_name_or_path=str(base))(adapter, None)
    rows = [json.dumps({"task": "ner", "text": text, "entities": []}, ensure_ascii=False) for text in TEXTS]
    (adapter / "check_rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    task = Ner(LABELS, '请提取实体。"如此"：')
    settings = TaskSettings(
        task, str(base), "float32", max_length=200, max_new_tokens=12, end_token="<|im_end|>", version="test"
    )
    settings.write(adapter / "task.json")
    return adapter


def arguments_for(adapter: Path, to: str, output_dir: Path, *more: str) -> argparse.Namespace:
    """The command line as `export.py` reads it."""
    return parse_arguments(["--adapter", str(adapter), "--to", to, "--output_dir", str(output_dir), *more])


def open_adapter(adapter: Path) -> tuple[Source, Reference]:
    """The adapter as a source, and what it answers."""
    source = open_source(arguments_for(adapter, "merged", adapter.parent / "out"))
    return source, reference_of(source, rows_to_compare(adapter, source, 500), 8)


# ---- one fault each in a merged folder ----


def edit_json(name: str, **changes: object) -> Callable[[Path, Source], None]:
    def fault(folder: Path, source: Source) -> None:
        write_json(folder / name, read_json(folder / name) | changes)

    return fault


def edit_text(name: str, old: str, new: str) -> Callable[[Path, Source], None]:
    def fault(folder: Path, source: Source) -> None:
        before = (folder / name).read_text(encoding="utf-8")
        assert old in before
        (folder / name).write_text(before.replace(old, new), encoding="utf-8", newline="\n")

    return fault


def without_end_of_generation(folder: Path, source: Source) -> None:
    content = read_json(folder / "generation_config.json")
    del content["eos_token_id"]
    write_json(folder / "generation_config.json", content)


def without_adapter(folder: Path, source: Source) -> None:
    shutil.copyfile(source.base.folder / "model.safetensors", folder / "model.safetensors")


def on_another_base(folder: Path, source: Source) -> None:
    model = merged_model(source)
    other = tiny_model("qwen2", seed=5).state_dict()
    base = tiny_model("qwen2").state_dict()
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            weight += other[name] - base[name]
    write_merged(model, source, folder, torch.float32)


def with_scaled_alpha(folder: Path, source: Source) -> None:
    model, base = merged_model(source), tiny_model("qwen2").state_dict()
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            weight += 0.1 * (weight - base[name])
    write_merged(model, source, folder, torch.float32)


def with_another_tokenizer(folder: Path, source: Source) -> None:
    content = read_json(folder / "tokenizer.json")
    content["model"]["merges"] = content["model"]["merges"][:20]
    write_json(folder / "tokenizer.json", content)


def in_another_dtype(folder: Path, source: Source) -> None:
    write_merged(merged_model(source), source, folder, torch.bfloat16)


def change_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path, Source], None]:
    def fault(folder: Path, source: Source) -> None:
        path = folder / "model.safetensors"
        weights = load_file(path)
        change(weights)
        save_file(weights, path, {"format": "pt"})

    return fault


def zero_one(weights: dict[str, torch.Tensor]) -> None:
    weights["model.layers.1.self_attn.o_proj.weight"].zero_()


def lose_one(weights: dict[str, torch.Tensor]) -> None:
    del weights["model.layers.1.mlp.up_proj.weight"]


def with_another_theta(folder: Path, source: Source) -> None:
    rope = read_json(folder / "config.json")["rope_parameters"]
    edit_json("config.json", rope_parameters=rope | {"rope_theta": 1e6})(folder, source)


MERGED_FAULTS: dict[str, tuple[Callable[[Path, Source], None], str]] = {
    "wrong template": (edit_text("chat_template.jinja", "<|im_start|>assistant", "<|im_start|> assistant"), "prompts"),
    "missing terminator": (edit_text("chat_template.jinja", "+ '<|im_end|>' ", ""), "prompts"),
    "missing end of generation": (without_end_of_generation, "settings"),
    "another end of generation": (edit_json("generation_config.json", eos_token_id=3), "settings"),
    "dropped adapter": (without_adapter, "scores"),
    "wrong base": (on_another_base, "scores"),
    "scaled alpha": (with_scaled_alpha, "scores"),
    "other tokenizer": (with_another_tokenizer, "prompts"),
    "sampling left on": (edit_json("generation_config.json", do_sample=True, temperature=0.7), "settings"),
    "repetition punished": (edit_json("generation_config.json", repetition_penalty=1.1), "answers"),
    "wrong dtype": (in_another_dtype, "weights"),
    "zeroed tensor": (change_weights(zero_one), "weights"),
    "lost tensor": (change_weights(lose_one), "weights"),
    "rope theta wrong": (with_another_theta, "scores"),
}


# ---- one fault each in a GGUF file: what is written wrongly ----


def gguf_faults() -> dict[str, tuple[str, Callable, str]]:
    """Name → the architecture, a function that plants the fault in `sft.export.gguf_file`, the leg that must fail.

    The function gets the module and a ``patch(name, value)`` for it.
    """
    import gguf

    writer = gguf.GGUFWriter

    def instead(method: str, value: object) -> Callable:
        original = getattr(writer, method)
        return lambda module, patch: patch(writer, method, lambda self, _: original(self, value))

    def never(method: str) -> Callable:
        return lambda module, patch: patch(writer, method, lambda self, _: None)

    def other_tokens(module, patch) -> None:
        rows = module.vocabulary_rows

        def swapped(tokenizer, count):
            tokens, types = rows(tokenizer, count)
            tokens[300], tokens[301] = tokens[301], tokens[300]
            return tokens, types

        patch(module, "vocabulary_rows", swapped)

    def changed_tensors(change: Callable) -> Callable:
        def plant(module, patch) -> None:
            tensors = module._tensors
            patch(module, "_tensors", lambda weights, config: change(dict(tensors(weights, config))).items())

        return plant

    def without_output(tensors: dict) -> dict:
        return {name: numbers for name, numbers in tensors.items() if name != "output.weight"}

    def with_zeros(tensors: dict) -> dict:
        return tensors | {"blk.1.ffn_up.weight": 0 * tensors["blk.1.ffn_up.weight"]}

    return {
        "swapped q and k": ("llama", lambda m, patch: patch(m, "permuted", lambda numbers, heads: numbers), "weights"),
        "tied where it is not": ("llama", changed_tensors(without_output), "weights"),
        "zeroed tensor": ("qwen2", changed_tensors(with_zeros), "weights"),
        "rope theta wrong": ("qwen2", instead("add_rope_freq_base", 1e6), "settings"),
        "eos id wrong": ("qwen2", instead("add_eos_token_id", 3), "settings"),
        "BOS added": ("qwen2", instead("add_add_bos_token", True), "settings"),
        "other template": ("qwen2", instead("add_chat_template", "{{ messages[0]['content'] }}"), "prompts"),
        "other words": ("qwen2", instead("add_tokenizer_pre", "gpt-2"), "settings"),
        "no merges": ("qwen2", instead("add_token_merges", ["a b"]), "prompts"),
        "other tokens": ("qwen2", other_tokens, "settings"),
    }  # fmt: skip


GGUF_FAULTS = (
    "swapped q and k", "tied where it is not", "zeroed tensor", "rope theta wrong", "eos id wrong", "BOS added",
    "other template", "other words", "no merges", "other tokens",
)  # fmt: skip
