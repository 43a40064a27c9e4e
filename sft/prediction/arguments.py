"""The flags of `predict.py`. Only the standard library is imported, so that ``--help`` is fast."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sft.cli import Parser, add_boolean, parse, positive, probability
from sft.data.arguments import PREDICTION_FORMATS, add_encoding

# What other tools call these flags.
RENAMED_FLAGS = {
    "adapter_name_or_path": "--adapter",
    "lora": "--adapter",
    "lora_path": "--adapter",
    "peft_model": "--adapter",
    "checkpoint": "--adapter",
    "ckpt": "--adapter",
    "output_dir": "--adapter（训练脚本的 --output_dir）或 --output_file（结果写到哪里）",
    "model": "--model_name_or_path",
    "model_name": "--model_name_or_path",
    "model_path": "--model_name_or_path",
    "base_model": "--model_name_or_path",
    "data": "--input_file",
    "test_file": "--input_file",
    "file": "--input_file",
    "labels": "--options",
    "load_in_4bit": "--quantization nf4",
    "load_in_8bit": "--quantization nf4（只支持 4 位）",
    "quantization_bit": "--quantization nf4（只支持 4 位）",
}


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; a mistake in it ends the program with one Chinese line and exit code 2."""
    parser = Parser(description="用微调好的适配器预测")
    parser.add_argument("--adapter", type=Path, help="训练脚本的 --output_dir")
    add_boolean(parser, "--base_only", help="不加载适配器，看微调之前的模型")
    parser.add_argument("--task_file", type=Path, help="没有 --adapter 时的任务设置：data/*.task.json")
    parser.add_argument("--model_name_or_path", help="底座模型；默认用训练时的那个")
    add_boolean(parser, "--allow_other_base", help="允许底座与训练时的不同（形状相同、权重不同），结果自负")
    add_boolean(parser, "--no_verify", help="不核对适配器、分词器和 task.json 是否还是训练写下的样子，结果自负")

    reading = parser.add_argument_group("输入")
    source = reading.add_mutually_exclusive_group()
    source.add_argument("--text", help="一段文本")
    source.add_argument(
        "--input_file",
        type=Path,
        help="转换脚本认得的任何原始数据、转换后的 jsonl、csv/tsv，或每行一段文本；都不给则读标准输入",
    )
    reading.add_argument(
        "--format",
        choices=PREDICTION_FORMATS,
        default="auto",
        help="数据格式（默认自动识别）；lines：每行一段文本",
    )
    reading.add_argument(
        "--text_column", help="文本所在的列名或字段名（默认自动识别）；给了它，数据也可以是别的任务的"
    )
    reading.add_argument("--label_column", help="标准答案所在的列名或字段名（默认自动识别；没有标准答案也可以）")
    add_encoding(reading)
    reading.add_argument("--max_rows", type=positive, help="只预测前多少条")

    writing = parser.add_argument_group("输出")
    writing.add_argument(
        "--output_file", type=Path, help="结果写到这里（每行一条 JSON，顺序同输入，随跑随写）；默认标准输出"
    )
    writing.add_argument(
        "--output_format",
        choices=("jsonl", "label_studio"),
        default="jsonl",
        help="label_studio：结束时把 --output_file 写成可以导入 Label Studio 的任务，预测作为预标注",
    )
    writing.add_argument("--report", type=Path, help="把成绩、错误和逐条对照另写成一页 HTML")
    add_boolean(writing, "--resume", help="接着上次没跑完的写；输入、适配器和设置须与上次相同")
    add_boolean(writing, "--overwrite", help="盖掉没跑完的结果，或不是 predict.py 写的文件")

    answers = parser.add_argument_group("答案")
    answers.add_argument("--options", help="分类：每一条都从这些选项里选，如 体育,军事,经济；默认用数据或训练时的")
    answers.add_argument(
        "--threshold",
        type=probability,
        help="概率低于它的标签给 null，低于它的实体不给（实体默认用训练时在验证集上选的；0 表示全给）",
    )
    add_boolean(
        answers,
        "--constrained",
        default=True,
        help="true（默认）只产生合法的答案；false 让模型随便说，原话在 answer 里，指标里有各种毛病的个数",
    )

    limits = parser.add_argument_group("长度、速度、内存")
    limits.add_argument("--batch_size", type=positive, default=16, help="每批多少条（默认 16；显卡上解码可到 4 倍）")
    limits.add_argument("--max_tokens", type=positive, help="内存里同时最多多少 token；默认不限")
    limits.add_argument("--max_length", type=positive, help="一条最多多少 token；默认同训练")
    limits.add_argument("--max_new_tokens", type=positive, help="答案最多多少 token；默认按训练数据")
    limits.add_argument(
        "--piece_tokens", type=positive, help="实体：长文本分段读，每段正文最多多少 token；默认是训练时常见的长度"
    )
    limits.add_argument("--dtype", choices=["auto", "bfloat16", "float16", "float32"], help="数值类型；默认同训练")
    limits.add_argument("--quantization", choices=["none", "nf4"], help="nf4：底座用 4 位，省显存；默认同训练")
    arguments = parse(parser, argv, RENAMED_FLAGS)
    _check_together(parser, arguments)
    return arguments


def _check_together(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    of_files = {"format": "auto", "encoding": "auto", "text_column": None, "label_column": None, "max_rows": None}
    for flag, default in of_files.items():
        if arguments.text is not None and getattr(arguments, flag) != default:
            parser.error(f"--{flag} 只用于 --input_file 和标准输入，不用于 --text；请去掉它")
    if arguments.adapter is None and not arguments.base_only:
        parser.error("请用 --adapter 给出训练脚本的 --output_dir；想看未微调的模型请加 --base_only")
    if arguments.resume and (arguments.input_file is None or arguments.output_file is None):
        parser.error("--resume 需要 --input_file 和 --output_file；标准输入无法从中间读起")
    if arguments.output_format == "label_studio" and arguments.output_file is None:
        parser.error("--output_format label_studio 需要 --output_file，如 output/tasks.json")
    if arguments.resume and arguments.overwrite:
        parser.error("--resume 和 --overwrite 只能给一个")
