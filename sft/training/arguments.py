"""The command line of the training scripts: model, LoRA, data, tracking, and every flag of transformers' Trainer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, NamedTuple

from sft.cli import Parser, refuse_slips, refuse_unknown
from sft.errors import InputError, one_line
from sft.processes import let_segments_grow
from sft.training.config import with_config
from sft.training.flags import (
    GROUPS,
    RENAMED_FLAGS,
    DataArguments,
    LoraArguments,
    ModelArguments,
    TrackingArguments,
)
from sft.training.ranges import check_ranges

if TYPE_CHECKING:
    from sft.training.trainer_arguments import SftTrainingArguments


# Flags of transformers that contradict --dtype when they are false, and what to do instead.
DTYPE_FLAGS = {
    "bf16": "请去掉它；不要 bf16，用 --dtype float32 或 float16",
    "fp16": "请去掉它；不要 fp16，用 --dtype float32 或 bfloat16",
}


class Arguments(NamedTuple):
    """All flags of one training run."""

    model: ModelArguments
    lora: LoraArguments
    data: DataArguments
    tracking: TrackingArguments
    training: SftTrainingArguments  # transformers' TrainingArguments
    given: frozenset[str] = frozenset()  # names of the flags on the command line or in the file of --config


def parse_arguments(description: str, argv: Sequence[str], **defaults: object) -> Arguments:
    """Parse the command line of a training script.

    Exits with 2 and one line if a flag is unknown, abbreviated or not for this project, or if its value has the wrong
    type or is out of range. ``--help`` answers before transformers is imported.

    Args:
        description: the title of the help text.
        argv: the words of the command line.
        defaults: the defaults of this script, by flag name.
    """
    for flag in {"-h", "--help", "--version"}.intersection(argv):
        _short_help(description, defaults).parse_args([flag])
    let_segments_grow()  # before torch is imported
    from sft.training.trainer_arguments import ALWAYS_TRAINS, build_parser

    parser = build_parser(description)
    parser.set_defaults(**defaults)
    refuse_slips(parser, argv, RENAMED_FLAGS)
    try:
        argv = with_config(parser, argv, RENAMED_FLAGS)
    except InputError as error:
        parser.error(str(error))
    try:
        *groups, unknown = parser.parse_args_into_dataclasses(
            args=argv, return_remaining_strings=True, look_for_args_file=False
        )
        check_ranges(groups)
    except (ValueError, TypeError, ImportError, OSError) as error:  # from the checks of TrainingArguments
        parser.error(one_line(error))
    refuse_unknown(parser, unknown)
    given = given_flags(parser, argv)
    refuse_empty(parser, groups, given)
    if "do_train" in given and not groups[-1].do_train:
        parser.error(f"--do_train false：{ALWAYS_TRAINS}")
    for flag in sorted(given & DTYPE_FLAGS.keys()):
        parser.error(f"--{flag}：数值类型由 --dtype 决定（auto、bfloat16、float16、float32）；{DTYPE_FLAGS[flag]}")
    return Arguments(*groups, given=given)


def given_flags(parser: argparse.ArgumentParser, argv: Sequence[str]) -> frozenset[str]:
    """The names of the flags on a command line: ``--lora-r=4`` → ``lora_r``, ``--no_use_cpu`` → ``use_cpu``."""
    known = parser._option_string_actions
    flags = {word.partition("=")[0] for word in argv}
    return frozenset(known[flag].dest for flag in flags if flag in known)


def refuse_empty(parser: argparse.ArgumentParser, groups: Sequence[object], given: frozenset[str]) -> None:
    """Exit with 2 if a flag has an empty value, as from a shell variable that is not set."""
    for name in sorted(given):
        value = next((getattr(group, name) for group in groups if hasattr(group, name)), None)
        if value == "" or (name == "lora_target_modules" and not value):
            parser.error(f"--{name} 的值是空的；请写上值，或去掉它")


def _short_help(description: str, defaults: dict[str, object]) -> argparse.ArgumentParser:
    """A parser with only this project's flags; ``--help_all`` also lists the hundred other flags of transformers."""
    parser = Parser(
        description=description,
        usage="%(prog)s [--train_file 文件] [--output_dir 文件夹] [其他参数]",
        epilog="transformers 的 TrainingArguments 的其余参数也可用（在这里不起作用的会被拒绝）：--help_all 列出全部",
    )
    for title, group in GROUPS.items():
        section = parser.add_argument_group(title)
        for flag in fields(group):
            default = flag.default if flag.default is not MISSING else " ".join(flag.default_factory())
            default = defaults.get(flag.name, default)
            shown = "" if default in (None, "") else f"（默认 {default}）".replace("%", "%%")
            section.add_argument(
                f"--{flag.name}", choices=flag.metadata.get("choices"), help=flag.metadata["help"] + shown,
                metavar=None if "choices" in flag.metadata else "",
            )  # fmt: skip
    return parser
