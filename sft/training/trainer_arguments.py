"""transformers' TrainingArguments with this project's defaults, and the parser of all flags. Slow to import."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import HfArgumentParser, TrainingArguments

from sft.cli import OneLineErrors
from sft.processes import has_launcher
from sft.training.flags import DataArguments, LoraArguments, ModelArguments, TrackingArguments, TrainerDefaults


@dataclass
class SftTrainingArguments(TrainerDefaults, TrainingArguments):
    """transformers' TrainingArguments with this project's defaults."""

    report_to: None | str | list[str] = field(
        default="none", metadata={"help": "SwanLab 由本项目接入，这里留给其他工具"}
    )
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "由本项目的批处理决定，不要改"})

    def __post_init__(self) -> None:
        if has_launcher() and not torch.cuda.is_available():
            self.use_cpu = True  # without this, accelerate does not connect the processes that torchrun started
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # every adapter weight has a gradient
        if self.load_best_model_at_end is None:
            self.load_best_model_at_end = self._saves_when_it_evaluates()
        super().__post_init__()

    def _saves_when_it_evaluates(self) -> bool:
        """Whether every evaluated step has a checkpoint."""
        if self.eval_strategy == "steps" and self.save_strategy == "steps":
            return self.save_steps % (self.eval_steps or self.logging_steps) == 0
        return self.eval_strategy != "no" and self.save_strategy in (self.eval_strategy, "best")


class _Parser(OneLineErrors, HfArgumentParser):
    """transformers' parser, with this project's error messages."""


def build_parser(description: str) -> HfArgumentParser:
    """The parser of all flags of a training script; ``--help_all`` lists them."""
    parser = _Parser(
        [ModelArguments, LoraArguments, DataArguments, TrackingArguments, SftTrainingArguments],
        description=description,
        usage="%(prog)s [--train_file 文件] [--output_dir 文件夹] [其他参数]",
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--help_all", action="help", help="列出所有参数")
    return parser
