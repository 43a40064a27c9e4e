"""The flags of `export.py`. Only the standard library is imported, so that ``--help`` is fast."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sft.cli import Parser, add_boolean, parse, positive, probability

TARGETS = ("merged", "gguf", "ollama", "vllm")
GGUF_TYPES = ("f32", "f16", "bf16", "q8_0")
MOST_ROWS = 500

# What other tools call these flags.
RENAMED_FLAGS = {
    "adapter_name_or_path": "--adapter",
    "lora": "--adapter",
    "lora_path": "--adapter",
    "checkpoint": "--adapter",
    "model": "--model_name_or_path",
    "base_model": "--model_name_or_path",
    "export_dir": "--output_dir",
    "output": "--output_dir",
    "outfile": "--output_dir",
    "outtype": "--gguf_type",
    "quantization": "--gguf_type",
    "export_device": "--batch_size（导出总在内存里做）",
    "input_file": "--rows",
    "test_file": "--rows",
}


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; a mistake in it ends the program with one Chinese line and exit code 2."""
    parser = Parser(description="导出训练好的适配器，并用自己的数据与它对照，对不上就不导出")
    parser.add_argument("--adapter", type=Path, required=True, help="训练脚本的 --output_dir")
    parser.add_argument(
        "--to",
        choices=TARGETS,
        required=True,
        help="merged：合并成普通的模型；gguf：给 llama.cpp；ollama：再加 Modelfile；vllm：适配器加启动命令和客户端",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="写到这个文件夹（应当还没有）")
    add_boolean(parser, "--overwrite", help="换掉 --output_dir 里上次导出的")
    parser.add_argument(
        "--dtype",
        choices=["auto", "bfloat16", "float16", "float32"],
        help="merged 的数值类型；默认（auto）同训练",
    )
    parser.add_argument("--gguf_type", choices=GGUF_TYPES, help="gguf、ollama 的数值类型；默认 f16")

    proof = parser.add_argument_group("对照")
    proof.add_argument(
        "--rows", type=Path, help="用这些数据对照（转换后的 jsonl）；默认用训练留在 --adapter 里的 check_rows.jsonl"
    )
    proof.add_argument("--max_rows", type=positive, default=MOST_ROWS, help=f"最多对照多少条（默认 {MOST_ROWS}）")
    proof.add_argument(
        "--min_agreement", type=probability, help="至少多大比例的回答相同才算成；默认按数值类型（float32 是 1）"
    )
    proof.add_argument("--batch_size", type=positive, default=32, help="对照时每批多少条（默认 32）")

    model = parser.add_argument_group("模型")
    model.add_argument("--model_name_or_path", help="底座模型；默认用训练时的那个")
    add_boolean(model, "--allow_other_base", help="允许底座与训练时的不同（形状相同、权重不同），结果自负")
    add_boolean(model, "--no_verify", help="不核对适配器、分词器和 task.json 是否还是训练写下的样子，结果自负")
    arguments = parse(parser, argv, RENAMED_FLAGS)
    if arguments.output_dir.resolve() == arguments.adapter.resolve():  # an earlier export for vLLM is an adapter, too
        parser.error("--output_dir 就是 --adapter，会盖掉它；请换一个 --output_dir")
    if arguments.dtype is not None and arguments.to != "merged":
        instead = "请用 --gguf_type，或" if arguments.to in ("gguf", "ollama") else "请"
        parser.error(f"--dtype 只用于 --to merged，不用于 {arguments.to}；{instead}去掉它")
    if arguments.min_agreement is not None and arguments.to == "vllm":
        parser.error("--min_agreement：--to vllm 不对照回答（vLLM 不在这里运行）；请去掉它")
    if arguments.gguf_type is not None and arguments.to not in ("gguf", "ollama"):
        parser.error(f"--gguf_type 只用于 --to gguf 和 ollama，不用于 {arguments.to}")
    return arguments
