"""The flags that the transfer scripts share, and the values they become.

Imports only the standard library, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from sft.cli import Parser
from sft.data.places import path_of_test, path_of_train
from sft.errors import InputError

# What ``--format`` can say besides ``auto``. ``jsonl`` is any JSON; the other JSON formats name a notation of rows.
ROW_FORMATS = ("alpaca", "messages", "label_studio", "prodigy", "tokens")  # known by the fields of each row
JSON_FORMATS = ("jsonl", "fudan", "ccfbdci", "spans", "doccano", "cluener", *ROW_FORMATS)
TABLE_FORMATS = ("csv", "tsv", "xlsx")
COLUMNAR_FORMATS = ("parquet", "arrow")  # with rows like those of JSON
LABEL_FORMATS = ("jsonl", "fudan", *ROW_FORMATS[:-1], *TABLE_FORMATS, *COLUMNAR_FORMATS, "fasttext", "toutiao")
ENTITY_FORMATS = (
    *("jsonl", "ccfbdci", "spans", "doccano", "cluener", *ROW_FORMATS),
    *(*TABLE_FORMATS, *COLUMNAR_FORMATS),
    *("conll", "inline", "yedda", "chip", "words", "words_ltp", "brat"),
)
ANSWER_FORMATS = ("json", "inline")  # how a model names entities; `sft.tasks.ner` says what they are
NESTED_CHOICES = ("error", "outer", "inner")  # what becomes of overlapping entities; see `sft.tasks.raw_entities`
PREDICTION_FORMATS = ("auto", "lines", *dict.fromkeys((*LABEL_FORMATS, *ENTITY_FORMATS)))
ENCODINGS = ("auto", "utf-8", "gb18030", "big5", "utf-16", "shift_jis", "euc_jp", "euc_kr", "cp1252")
# Other names of the same encodings, or of a part of one, without dashes.
_OTHER_NAMES = {
    **{name.replace("-", "").replace("_", ""): name for name in ENCODINGS},
    **dict.fromkeys(("gbk", "gb2312", "cp936", "ansi"), "gb18030"),
    **dict.fromkeys(("cp950", "big5hkscs"), "big5"),
    **dict.fromkeys(("utf8sig",), "utf-8"),
    **dict.fromkeys(("utf16le", "utf16be", "unicode"), "utf-16"),
    **dict.fromkeys(("sjis", "cp932"), "shift_jis"),
    **dict.fromkeys(("cp949", "uhc"), "euc_kr"),
    **dict.fromkeys(("latin1", "iso88591", "windows1252"), "cp1252"),
}


class ReadOptions(NamedTuple):
    """What the user says about an input file; the defaults mean "recognise it".

    Attributes:
        format: one of the formats of `sft.data.source.Source`, or ``auto``.
        encoding: one of ``ENCODINGS``.
        text_column, label_column: the names of the columns or JSON fields.
    """

    format: str = "auto"
    encoding: str = "auto"
    text_column: str | None = None
    label_column: str | None = None

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> ReadOptions:
        """The options on the command line of a transfer script or of `predict.py`."""
        return cls(arguments.format, arguments.encoding, arguments.text_column, arguments.label_column)


def refuse_columns(path: Path, format: str, options: ReadOptions) -> None:
    """For a file without columns or fields.

    Raises:
        InputError: the user names one.
    """
    for flag in ("text_column", "label_column"):
        if getattr(options, flag) is not None:
            what = "每行一段文本" if format == "lines" else f"{format} 格式"
            raise InputError(f"{path}：按{what}读，没有列；请去掉 --{flag}，或用 --format 指明是哪种表格或 JSON")


class Conversion(NamedTuple):
    """What a conversion writes, and how it splits.

    Attributes:
        output_file, test_file: where the training and the test records go.
        test_ratio: the share of the texts that goes to test, between 0 and 1. Not used with an official test file.
        seed: of the split.
        stop_at_bad_row: stop at the first row that cannot be used, instead of skipping it.
    """

    output_file: Path
    test_file: Path
    test_ratio: float = 0.1
    seed: int = 42
    stop_at_bad_row: bool = False

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Conversion:
        """The conversion that a transfer script's command line asks for. One output file follows from the other.

        Raises:
            InputError: only ``--test_file`` is given, and its name does not say what the training file is called.
        """
        output_file, test_file = arguments.output_file, arguments.test_file
        if output_file is None and test_file is not None:
            output_file = path_of_train(test_file)
            if output_file is None:
                raise InputError(f"--test_file {test_file}：看不出训练集该叫什么；请同时给出 --output_file")
        output_file = output_file or arguments.default_output_file
        return cls(
            output_file,
            test_file or path_of_test(output_file),
            arguments.test_ratio,
            arguments.seed,
            stop_at_bad_row=arguments.on_bad_row == "error",
        )


def conversion_parser(
    prog: str, description: str, *, formats: tuple[str, ...], output_file: str, labels: str, other_labels: str
) -> argparse.ArgumentParser:
    """The parser of a transfer script.

    Args:
        prog, description: as in argparse.
        formats: the values of ``--format`` besides ``auto``.
        output_file: the default output.
        labels, other_labels: the help texts of these flags, whose meaning depends on the task.
    """
    parser = Parser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("输入与输出")
    data.add_argument("--input_file", type=Path, help="原始数据；不给时在 data/ 里找（见上）")
    data.add_argument("--input_test_file", type=Path, help="官方测试集：原样保留，训练集里与它文本相同的行会被剔除")
    data.add_argument("--output_file", type=Path, help=f"训练集输出（默认 {output_file}）")
    data.add_argument(
        "--test_file",
        type=Path,
        help="测试集输出（默认在训练集旁边：train 换成 test，如 orders_train.jsonl → orders_test.jsonl；"
        "名字里没有 train 的，如 orders.jsonl → orders.test.jsonl）",
    )
    parser.set_defaults(default_output_file=Path(output_file))

    split = parser.add_argument_group("划分（没有官方测试集时）")
    split.add_argument("--test_ratio", type=_ratio, default=0.1, help="测试集的比例，0 到 1 之间（默认 %(default)s）")
    split.add_argument("--seed", type=int, default=42, help="划分的随机种子（默认 %(default)s）")

    reading = parser.add_argument_group("怎样读")
    reading.add_argument("--format", choices=("auto", *formats), default="auto", help="数据格式（默认自动识别）")
    add_encoding(reading)
    reading.add_argument("--text_column", help="文本所在的列名或字段名（默认自动识别）")
    reading.add_argument("--label_column", help="标签所在的列名或字段名（默认自动识别）")
    reading.add_argument("--labels", help=labels)
    reading.add_argument("--other_labels", choices=("error", "drop"), default="error", help=other_labels)
    reading.add_argument("--system_prompt", help="换掉给模型的指令：写在这里，或 @文件；存进 *.task.json")
    reading.add_argument(
        "--label_descriptions",
        help="接在指令后面的标签说明，如 产品=家用电器的名字；故障=哪里坏了，或 @文件，一行一个；存进 *.task.json",
    )
    reading.add_argument(
        "--on_bad_row",
        choices=("skip", "error"),
        default="skip",
        help="坏行怎么办：skip 记入 *.rejected.jsonl 后跳过（超过 20%%，或 1000 行以上且超过 1%% 时仍算出错）；"
        "error 立即停下",
    )
    return parser


def add_encoding(parser: argparse._ActionsContainer) -> None:
    """The flag ``--encoding``; the usual other names are understood."""
    parser.add_argument(
        "--encoding",
        type=_encoding,
        choices=ENCODINGS,
        default="auto",
        help="编码（默认自动识别；GBK、GB2312 都用 gb18030）",
    )


def _encoding(value: str) -> str:
    return _OTHER_NAMES.get(value.lower().replace("-", "").replace("_", ""), value)


def _ratio(value: str) -> float:
    try:
        ratio = float(value)
    except ValueError:
        ratio = 0.0
    if not 0 < ratio < 1:
        raise argparse.ArgumentTypeError(f"应在 0 与 1 之间（不含两端），实际是 {value}")
    return ratio
