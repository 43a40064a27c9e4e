"""Turn raw NER rows into records for training.

python transfer_ner_data.py
python transfer_ner_data.py --input_file raw.bio --labels LOC=地点,ORG=组织,PER=人名
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from sft.cli import one_line_errors, parse, readable_streams, run_script
from sft.data.arguments import (
    ANSWER_FORMATS,
    ENTITY_FORMATS,
    NESTED_CHOICES,
    Conversion,
    ReadOptions,
    conversion_parser,
)

DESCRIPTION = """把实体识别的原始数据转换成训练用的记录，分成训练集和测试集。
不给 --input_file 时用 data/ 或 data/chinese_ner_sft/ 里的 ccfbdci.jsonl。"""
LABELS = "标签和给模型看的名字，如 GPE=地理实体,LOC=地点（默认：CCFBDCI 的四种；其余格式取数据里出现过的）"
OTHER_LABELS = "标签不在 --labels 里的实体：error（默认）整行算坏行；drop 去掉这些实体，句子留着"
ANSWER_FORMAT = (
    "模型怎样回答：json（默认）一个实体一行 json；inline 把句子抄一遍，实体写成 [原文|标签]；"
    "存进 *.task.json，训练和预测照它来"
)
NESTED = (
    "有重叠的实体（嵌套）怎么办：error（默认）整行算坏行；outer 长的留下，与它重叠的去掉；inner 短的留下；"
    "有几行这样会说出来"
)
FOLDERS = (Path("data"), Path("data/chinese_ner_sft"))
NOT_FOUND = (
    "data/ccfbdci.jsonl：没有这个文件；请先下载：curl -L --create-dirs -o data/ccfbdci.jsonl "
    "https://huggingface.co/datasets/qgyd2021/chinese_ner_sft/resolve/main/data/ccfbdci.jsonl"
    "（国内可把 huggingface.co 换成 hf-mirror.com；PowerShell 里写 curl.exe），或用 --input_file 给出自己的数据"
)


def main(argv: list[str] | None = None) -> int:
    """Convert as the command line says.

    Returns:
        0 done, 1 failed, 2 wrong usage or bad input, 130 Ctrl-C.
    """
    parser = conversion_parser(
        Path(__file__).name,
        DESCRIPTION,
        formats=ENTITY_FORMATS,
        output_file="data/train_ner.jsonl",
        labels=LABELS,
        other_labels=OTHER_LABELS,
    )
    parser.add_argument("--answer_format", choices=ANSWER_FORMATS, default="json", help=ANSWER_FORMAT)
    parser.add_argument("--nested", choices=NESTED_CHOICES, default="error", help=NESTED)
    arguments = parse(parser, sys.argv[1:] if argv is None else argv)

    with one_line_errors(interrupted="中断了，没有写出任何文件") as outcome:
        convert(arguments)
    return outcome.code


def convert(arguments: argparse.Namespace) -> None:
    """Recognise the input format, convert the rows, and write a summary to stderr.

    Raises:
        InputError: a file, a row or a flag is wrong.
    """
    from sft.console import say
    from sft.data.conversion import convert_files, next_command, summary
    from sft.data.formats import recognise
    from sft.data.instructions import with_instructions
    from sft.data.offset_evidence import with_same_offsets
    from sft.data.recipes import ner_recipe
    from sft.tasks.ner import Ner

    options, conversion = ReadOptions.from_arguments(arguments), Conversion.from_arguments(arguments)
    sources = [recognise(path, Ner.answers, options) for path in input_files(arguments) if path]
    sources = with_same_offsets(sources)
    nested = None if arguments.nested == "error" else arguments.nested
    recipe = ner_recipe(sources, arguments.labels, arguments.other_labels, arguments.answer_format, nested)
    recipe = with_instructions(recipe, arguments.system_prompt, arguments.label_descriptions)
    report = convert_files(recipe, sources, conversion)
    for line in (*summary(report, conversion), *next_command("train_qwen2_ner.py", conversion.output_file)):
        say(line)


def input_files(arguments: argparse.Namespace) -> tuple[Path, Path | None]:
    """The file of raw rows, and the official test file or None.

    Raises:
        InputError: ``--input_file`` is not given and no default file exists.
    """
    from sft.errors import InputError

    if arguments.input_file:
        return arguments.input_file, arguments.input_test_file
    for folder in FOLDERS:
        if (folder / "ccfbdci.jsonl").is_file():
            return folder / "ccfbdci.jsonl", arguments.input_test_file
    raise InputError(NOT_FOUND)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # exit normally, so that temporary files are removed
    readable_streams()
    run_script(main)
