"""Turn raw classification rows into records for training.

python transfer_classification_data.py
python transfer_classification_data.py --input_file raw.csv --test_ratio 0.2
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from sft.cli import one_line_errors, parse, readable_streams, run_script
from sft.data.arguments import LABEL_FORMATS, Conversion, ReadOptions, conversion_parser

DESCRIPTION = """把分类的原始数据转换成训练用的记录，分成训练集和测试集。
不给 --input_file 时用 data/ 或 data/zh_cls_fudan-news/ 里的 train.jsonl，同一目录的 test.jsonl 作为官方测试集。"""
LABELS = (
    "没有自带选项的行所用的选项，如 体育,军事（默认：数据里出现过的全部标签）；"
    "1=好评,0=差评 把数据里的标签和选项换成给模型看的名字"
)
OTHER_LABELS = "标签不在 --labels 里的行：error（默认）算坏行，自带选项的除外；drop 不要这些行，只留 --labels 里的几类"
FOLDERS = (Path("data"), Path("data/zh_cls_fudan-news"))
NOT_FOUND = (
    "data/train.jsonl：没有这个文件；请先下载："
    "modelscope download --dataset swift/zh_cls_fudan-news --local_dir ./data，或用 --input_file 给出自己的数据"
)


def main(argv: list[str] | None = None) -> int:
    """Convert as the command line says.

    Returns:
        0 done, 1 failed, 2 wrong usage or bad input, 130 Ctrl-C.
    """
    parser = conversion_parser(
        Path(__file__).name,
        DESCRIPTION,
        formats=LABEL_FORMATS,
        output_file="data/train_cls.jsonl",
        labels=LABELS,
        other_labels=OTHER_LABELS,
    )
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
    from sft.data.recipes import classification_recipe
    from sft.tasks.classification import Classification

    options, conversion = ReadOptions.from_arguments(arguments), Conversion.from_arguments(arguments)
    sources = [recognise(path, Classification.answers, options) for path in input_files(arguments) if path]
    recipe = classification_recipe(sources, arguments.labels, arguments.other_labels)
    recipe = with_instructions(recipe, arguments.system_prompt, arguments.label_descriptions)
    report = convert_files(recipe, sources, conversion)
    for line in (*summary(report, conversion), *next_command("train_qwen2_classification.py", conversion.output_file)):
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
        train, test = folder / "train.jsonl", folder / "test.jsonl"
        if train.is_file():
            return train, arguments.input_test_file or (test if test.is_file() else None)
    raise InputError(NOT_FOUND)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # exit normally, so that temporary files are removed
    readable_streams()
    run_script(main)
