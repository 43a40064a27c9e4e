"""What the training scripts can be told: model, LoRA, data, tracking, and every flag of transformers' Trainer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, NamedTuple

from sft.cli import Parser, refuse_unknown

if TYPE_CHECKING:
    from sft.training.trainer_arguments import SftTrainingArguments

LINEAR_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# Flags of older transformers that Chinese tutorials still use, and what to say instead.
RENAMED_FLAGS = {
    "evaluation_strategy": "--eval_strategy",
    "warmup_ratio": "--warmup_steps（小于 1 的小数表示比例）",
    "group_by_length": "--train_sampling_strategy group_by_length",
    "no_cuda": "--use_cpu",
    "logging_dir": "--swanlab_logdir",
    "cutoff_len": "--max_length",
    "max_seq_length": "--max_length",
    "lora_rank": "--lora_r",
    "target_modules": "--lora_target_modules",
    "lora_target": "--lora_target_modules",
}


def _choice(*allowed: str, default: str, help: str) -> str:
    return field(default=default, metadata={"choices": allowed, "help": help})


def _told(default: object, help: str) -> object:
    return field(default=default, metadata={"help": help})


@dataclass
class ModelArguments:
    """Which model, and in which numbers."""

    model_name_or_path: str = _told("qwen/Qwen2.5-1.5B-Instruct", "模型文件夹，或魔搭社区的模型名（下载到 qwen/ 下）")
    dtype: str = _choice(
        "auto", "bfloat16", "float16", "float32", default="auto", help="模型的数值类型；auto：硬件支持 bf16 就用它"
    )


@dataclass
class LoraArguments:
    """The adapter."""

    lora_r: int = _told(8, "LoRA 的秩")
    lora_alpha: int = _told(32, "LoRA 的缩放系数 alpha")
    lora_dropout: float = _told(0.0, "LoRA 的 dropout")
    lora_target_modules: list[str] = field(
        default_factory=lambda: list(LINEAR_PROJECTIONS), metadata={"help": "加适配器的线性层；默认全部七种"}
    )
    use_rslora: bool = _told(False, "用 rsLoRA 的缩放（alpha/√r）")


@dataclass
class DataArguments:
    """Records, their lengths, and what is looked at instead of trained."""

    train_file: str = _told("data/train.jsonl", "训练集（transfer_*.py 的输出）")
    validation_file: str | None = _told(None, "验证集；不给时从训练集里切出一份")
    validation_ratio: float = _told(0.05, "没有验证集时从训练集里切出的比例；0 表示不验证")
    max_validation_rows: int = _told(200, "切出的验证集最多多少条")
    test_file: str | None = _told(None, "测试集：只在训练结束后用一次；默认用训练集旁边的 test_*.jsonl；none 表示不用")
    max_length: int = _told(1024, "一条数据（提示加答案）最多多少词元")
    batching: str = _choice(
        "auto",
        "prefix_tree",
        "padded",
        default="auto",
        help="prefix_tree：一批数据共有的开头只算一次，结果相同而更快；auto：模型支持就用它",
    )
    max_tokens_per_micro_batch: int | None = _told(
        None, "一次前向最多多少词元，超过就分几次算，结果相同；默认按空闲内存，CPU 上最多 4096"
    )
    max_train_samples: int | None = _told(None, "最多用多少条训练数据")
    sample_predictions: int = _told(20, "训练结束时记录多少条预测样例")
    early_stopping_patience: int = _told(0, "验证指标连续多少次没有提高就停止；0 表示不提前停止")
    overwrite_output_dir: bool = _told(False, "覆盖已经训练完成的输出文件夹")
    preview: int = _told(0, "打印前 N 条数据在模型眼中的样子，然后退出")
    dry_run: bool = _told(False, "检查所有输入，打印步数、词元数、预计内存和时间，然后退出")


@dataclass
class TrackingArguments:
    """SwanLab."""

    swanlab_mode: str = _choice(
        "auto",
        "cloud",
        "local",
        "offline",
        "disabled",
        default="auto",
        help="auto：已登录就用云端，否则记在本机（swanlab watch 查看）",
    )
    swanlab_project: str = _told("chinese-llm-sft", "SwanLab 项目名")
    swanlab_experiment: str | None = _told(None, "SwanLab 实验名；默认用输出文件夹的名字")
    swanlab_logdir: str = _told("swanlog", "SwanLab 在本机写到哪里")


@dataclass
class TrainerDefaults:
    """This project's defaults for transformers' own arguments, and those that a person is likely to look for."""

    output_dir: str | None = _told("output", "输出文件夹")
    per_device_train_batch_size: int = _told(16, "每张卡每个小批多少条；放不下会自动分几次算，结果相同")
    gradient_accumulation_steps: int = _told(1, "累积多少个小批更新一次；与上一项之积是每步的条数")
    per_device_eval_batch_size: int = _told(16, "验证和预测时每批多少条")
    learning_rate: float = _told(1e-4, "学习率")
    num_train_epochs: float = _told(2, "训练多少轮")
    logging_steps: float = _told(10, "每多少步记录一次")
    logging_nan_inf_filter: bool = _told(False, "不掩盖 NaN：损失或梯度出现 NaN 会立刻停止")
    eval_strategy: str = _told("epoch", "何时验证：no、steps 或 epoch")
    eval_on_start: bool = _told(True, "训练前先验证一次：微调前的成绩，写进 report.html")
    save_strategy: str = _told("epoch", "何时存检查点：no、steps、epoch 或 best")
    save_total_limit: int | None = _told(2, "最多保留几个检查点（最好的一个总会保留）")
    load_best_model_at_end: bool | None = _told(None, "结束时换回验证指标最好的检查点；默认：验证和存盘同步时换")
    metric_for_best_model: str | None = _told(None, "按哪个验证指标选最好的检查点；默认宏平均 F1 或实体 F1")
    seed: int = _told(42, "随机种子")
    max_steps: int = _told(-1, "最多训练多少步；优先于轮数")
    warmup_steps: float = _told(0, "预热多少步；小于 1 表示占总步数的比例")
    gradient_checkpointing: bool | None = _told(None, "用时间换显存：反向时重算激活")
    resume_from_checkpoint: str | None = _told(None, "true：从最新的完整检查点续训；也可给出检查点文件夹")


class Arguments(NamedTuple):
    """Everything one training run was told."""

    model: ModelArguments
    lora: LoraArguments
    data: DataArguments
    tracking: TrackingArguments
    training: SftTrainingArguments  # transformers' TrainingArguments


GROUPS = {
    "模型": ModelArguments,
    "LoRA": LoraArguments,
    "数据": DataArguments,
    "SwanLab": TrackingArguments,
    "训练": TrainerDefaults,
}


def parse_arguments(description: str, argv: Sequence[str] | None, **defaults: object) -> Arguments:
    """Parse a training script's command line; ``defaults`` are the script's own.

    Exits with 2 and one line for unknown, abbreviated or ill-typed flags. ``--help`` does not wait for transformers.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if {"-h", "--help"} & set(argv):
        _short_help(description, defaults).parse_args(["--help"])
    from sft.training.trainer_arguments import build_parser

    parser = build_parser(description)
    parser.set_defaults(**defaults)
    try:
        *groups, unknown = parser.parse_args_into_dataclasses(
            args=argv, return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, TypeError, ImportError) as error:  # what TrainingArguments checks by itself
        parser.error(" ".join(str(error).split()))
    refuse_unknown(parser, unknown, RENAMED_FLAGS)
    return Arguments(*groups)


def _short_help(description: str, defaults: dict[str, object]) -> argparse.ArgumentParser:
    """The flags of this project; the hundred others of transformers' are in ``--help_all``."""
    parser = Parser(
        description=description,
        usage="%(prog)s [--train_file 文件] [--output_dir 文件夹] [其他参数]",
        epilog="transformers 的 TrainingArguments 的其余参数也都可用：--help_all 列出全部",
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
