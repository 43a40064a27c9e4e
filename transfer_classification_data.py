"""Turn raw classification rows into records for training.

python transfer_classification_data.py
python transfer_classification_data.py --input_file raw.csv --test_ratio 0.2
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from sft.cli import one_line_errors, parse
from sft.data.arguments import conversion_parser

DESCRIPTION = """把分类的原始数据转换成训练用的记录，分成训练集和测试集。
不给 --input_file 时用 data/ 或 data/zh_cls_fudan-news/ 里的 train.jsonl，同一目录的 test.jsonl 作为官方测试集。"""
FORMATS = ("fudan", "jsonl", "csv", "tsv")
LABELS = "没有自带选项的行所用的选项，如 体育,军事（默认：数据里出现过的全部标签）"
FOLDERS = (Path("data"), Path("data/zh_cls_fudan-news"))
NOT_FOUND = (
    "data/train.jsonl：没有这个文件；请先下载："
    "modelscope download --dataset swift/zh_cls_fudan-news --local_dir ./data，或用 --input_file 给出自己的数据"
)


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns its exit code: 0 done, 1 failed, 2 wrong usage or bad input."""
    parser = conversion_parser(
        Path(__file__).name,
        DESCRIPTION,
        formats=FORMATS,
        output_file="data/train_cls.jsonl",
        test_file="data/test_cls.jsonl",
        labels=LABELS,
    )
    arguments = parse(parser, argv)

    with one_line_errors(interrupted="中断了，没有写出任何文件") as outcome:
        convert(arguments)
    return outcome.code


def convert(arguments: argparse.Namespace) -> None:
    """Recognise the input, convert it, and say on stderr what became of it."""
    from sft.console import ConversionProgress
    from sft.data.conversion import classification_recipe, convert_files, rejected_path, summary
    from sft.data.formats import classification_source

    train, test = input_files(arguments)
    sources = [
        classification_source(
            path,
            format=arguments.format,
            encoding=arguments.encoding,
            text_column=arguments.text_column,
            label_column=arguments.label_column,
        )
        for path in (train, test)
        if path
    ]
    with ConversionProgress() as progress:
        report = convert_files(
            classification_recipe(sources, arguments.labels),
            sources[0],
            sources[1] if test else None,
            output_file=arguments.output_file,
            test_file=arguments.test_file,
            test_ratio=arguments.test_ratio,
            seed=arguments.seed,
            stop_at_bad_row=arguments.on_bad_row == "error",
            progress=progress,
        )
    for line in summary(report, rejected_path(arguments.output_file)):
        print(line, file=sys.stderr)
    print(f"写好了 {arguments.output_file} 和 {arguments.test_file}", file=sys.stderr)


def input_files(arguments: argparse.Namespace) -> tuple[Path, Path | None]:
    """The raw rows, and the official test split where there is one."""
    from sft.errors import InputError

    if arguments.input_file:
        return arguments.input_file, arguments.input_test_file
    for folder in FOLDERS:
        train, test = folder / "train.jsonl", folder / "test.jsonl"
        if train.is_file():
            return train, arguments.input_test_file or (test if test.is_file() else None)
    raise InputError(NOT_FOUND)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that half-written files are cleared away
    sys.exit(main())
