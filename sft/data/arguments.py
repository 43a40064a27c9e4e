"""The flags the two transfer scripts share. Standard library only, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from sft.cli import Parser


def conversion_parser(
    prog: str, description: str, *, formats: tuple[str, ...], output_file: str, test_file: str, labels: str
) -> argparse.ArgumentParser:
    """The parser of a transfer script.

    Args:
        prog, description: as in argparse.
        formats: what ``--format`` accepts beside ``auto``.
        output_file, test_file: the default outputs.
        labels: the help text of ``--labels``, which means something else for each task.
    """
    parser = Parser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("输入与输出")
    data.add_argument("--input_file", type=Path, help="原始数据；不给时在 data/ 里找（见上）")
    data.add_argument("--input_test_file", type=Path, help="官方测试集：原样保留，训练集里与它文本相同的行会被剔除")
    data.add_argument("--output_file", type=Path, default=Path(output_file), help="训练集输出（默认 %(default)s）")
    data.add_argument("--test_file", type=Path, default=Path(test_file), help="测试集输出（默认 %(default)s）")

    split = parser.add_argument_group("划分（没有官方测试集时）")
    split.add_argument("--test_ratio", type=_ratio, default=0.1, help="测试集的比例，0 到 1 之间（默认 %(default)s）")
    split.add_argument("--seed", type=int, default=42, help="划分的随机种子（默认 %(default)s）")

    reading = parser.add_argument_group("怎样读")
    reading.add_argument("--format", choices=("auto", *formats), default="auto", help="数据格式（默认自动识别）")
    reading.add_argument(
        "--encoding", choices=("auto", "utf-8", "gb18030", "utf-16"), default="auto", help="编码（默认自动识别）"
    )
    reading.add_argument("--text_column", help="文本所在的列名或字段名（默认自动识别）")
    reading.add_argument("--label_column", help="标签所在的列名或字段名（默认自动识别）")
    reading.add_argument("--labels", help=labels)
    reading.add_argument(
        "--on_bad_row",
        choices=("skip", "error"),
        default="skip",
        help="坏行怎么办：skip 记入 *.rejected.jsonl 后跳过（1000 行以上且超过 1%% 时仍算出错）；error 立即停下",
    )
    return parser


def _ratio(value: str) -> float:
    try:
        ratio = float(value)
    except ValueError:
        ratio = 0.0
    if not 0 < ratio < 1:
        raise argparse.ArgumentTypeError(f"应在 0 与 1 之间（不含两端），实际是 {value}")
    return ratio
