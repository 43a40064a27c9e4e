"""transformers' TrainingArguments with this project's defaults, and the parser of all flags. Slow to import."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from huggingface_hub import get_token
from huggingface_hub.constants import ENDPOINT
from transformers import HfArgumentParser, Trainer, TrainingArguments
from transformers.hf_argparser import string_to_bool
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.utils import is_liger_kernel_available, is_torch_tf32_available
from transformers.utils.hub import is_offline_mode

from sft.cli import OneLineErrors, settle_boolean
from sft.network import reachable
from sft.processes import has_launcher
from sft.training.flags import (
    AUTO_RATE,
    DEFAULT_RATE,
    DataArguments,
    LoraArguments,
    ModelArguments,
    TrackingArguments,
    TrainerDefaults,
)
from sft.training.rate_plan import BY_HAND
from sft.training.sharding import USE_INSTEAD, refuse_other_launches, refuse_untried

CONNECT_SECONDS = 5
# Tools to report to, and the package to install for each.
PACKAGES = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "comet_ml": "comet-ml",
    "clearml": "clearml",
    "neptune": "neptune",
    "dvclive": "dvclive",
    "codecarbon": "codecarbon",
    "azure_ml": "azureml-core",
    "dagshub": "dagshub",
    "trackio": "trackio",
}
# Flags of transformers that would do nothing here, or the wrong thing unseen, and why.
NOT_FOR_THIS_PROJECT = {
    "bf16": "数值类型请用 --dtype bfloat16",
    "fp16": "数值类型请用 --dtype float16",
    "bf16_full_eval": "验证用的就是训练的数值类型，由 --dtype bfloat16 决定；请去掉它",
    "fp16_full_eval": "验证用的就是训练的数值类型，由 --dtype float16 决定；请去掉它",
    "label_smoothing_factor": "本项目的损失没有标签平滑；请去掉它",
    "neftune_noise_alpha": "一批数据共有的开头只算一次，不能各加各的噪声；请去掉它",
    "deepspeed": f"不支持；{USE_INSTEAD}",
    "auto_find_batch_size": "放不下的批本来就会自动分几次算，结果相同；请去掉它",
    "remove_unused_columns": "数据的各列由本项目的批处理决定；请去掉它",
    "prediction_loss_only": "验证总是真的预测一遍；想快些，请减小 --max_validation_rows 或少验证几次，并去掉它",
    "batch_eval_metrics": "验证由本项目自己做；请去掉它",
    "include_for_metrics": "验证由本项目自己做；请去掉它",
    "label_names": "验证由本项目自己做；请去掉它",
    "eval_accumulation_steps": "验证时显存不够会自动减半重算；想再少用，请减小 --per_device_eval_batch_size；请去掉它",
    "include_num_input_tokens_seen": "token 数总会记录（executed_tokens、logical_tokens）；请去掉它",
    "debug": "损失和梯度里的 NaN、Inf 本来就会查；请去掉它",
}
ALWAYS_TRAINS = "这个脚本总要训练；只看成绩，请用 predict.py 的 --adapter 和 --input_file；要训练就去掉它"
STRATEGIES = {"eval_strategy": ("no", "steps", "epoch"), "save_strategy": ("no", "steps", "epoch", "best")}
OFF = (None, False, "", "no", "false")  # values of such a flag that ask for nothing
FROM_FILES = ("accelerator_config", "fsdp_config", "deepspeed")  # of the flags for JSON, those that can name a file
# Of liger-kernel: its norm, rotary embedding and gated activation, not its losses.
LIGER_KERNELS = {
    "rope": True,
    "rms_norm": True,
    "swiglu": True,
    "cross_entropy": False,
    "fused_linear_cross_entropy": False,
}

ERRORS = ("ece", "unparsable")  # metrics of which less is better


@dataclass
class SftTrainingArguments(TrainerDefaults, TrainingArguments):
    """transformers' TrainingArguments with this project's defaults.

    Attributes:
        searches_rate: ``--learning_rate auto``; until the search is done, ``learning_rate`` is the default.
    """

    searches_rate = False  # no field: it is no flag

    report_to: None | str | list[str] = field(
        default="none", metadata={"help": "另外再记到 tensorboard、wandb 等；SwanLab 由本项目接入，不用写在这里"}
    )
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "由本项目的批处理决定，不要改"})

    def __post_init__(self) -> None:
        if self.learning_rate == AUTO_RATE:
            self.searches_rate, self.learning_rate = True, DEFAULT_RATE
        self._refuse_what_cannot_be()
        if self.use_liger_kernel:
            self.liger_kernel_config = LIGER_KERNELS
        if self.full_determinism:  # CUDA reads it at the first matrix product, transformers sets it later
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # with :16:8 torch warns that it wants more
        if has_launcher() and not torch.cuda.is_available():
            self.use_cpu = True  # without this, accelerate does not connect the processes that torchrun started
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # every adapter weight has a gradient
        if self.disable_tqdm is None:
            self.disable_tqdm = False  # transformers would go by its verbosity, which the scripts lower
        best = self._settle_best_step()
        named = [self.report_to] if isinstance(self.report_to, str) else self.report_to or []
        named = [name for words in named for name in words.replace(",", " ").split()]
        self.report_to = named[0] if len(named) == 1 else named  # "none" and "all" mean something as a single word
        # transformers refuses most combinations of evaluating and saving, and allows some in which the best step has
        # no checkpoint. Here the trainer saves a step when it becomes the best.
        self.load_best_model_at_end = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # --gradient_checkpointing gets another name in version 6
            super().__post_init__()
        self.load_best_model_at_end = best
        self._n_gpu = min(self.n_gpu, 1)  # transformers would wrap the model in DataParallel, which no batch here fits
        self.report_to = settled_reporters(self.report_to)
        if self.push_to_hub:
            require_hub()
        with suppress(ValueError):  # some optimizers want to see the model first
            Trainer.get_optimizer_cls_and_kwargs(self)  # an ImportError if it needs a package that is not installed

    def _refuse_what_cannot_be(self) -> None:
        """Refuse flags that nothing here obeys, and those that this machine cannot obey.

        Raises:
            ValueError: there is one; the message is for the user.
        """
        for name, reason in NOT_FOR_THIS_PROJECT.items():
            if getattr(self, name) not in OFF and getattr(self, name):
                raise ValueError(f"--{name}：{reason}")
        if (self.do_eval or self.do_predict) and not self.do_train:
            raise ValueError(f"--{'do_eval' if self.do_eval else 'do_predict'}：{ALWAYS_TRAINS}")
        for name, allowed in STRATEGIES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"--{name} 应是 {'、'.join(allowed)} 之一，实际是 {getattr(self, name)}")
        for name in self._VALID_DICT_FIELDS:
            require_json(name, getattr(self, name))
        if self.optim_args and not all("=" in part for part in self.optim_args.split(",")):
            raise ValueError(f"--optim_args {self.optim_args}：应是 名字=值，几个用逗号分开，如 momentum=0.9")
        refuse_other_launches()
        refuse_untried(self)
        if self.tf32 and not is_torch_tf32_available():
            raise ValueError("--tf32：只有 Ampere 及以后的 NVIDIA 显卡有；请去掉它")
        if self.liger_kernel_config:
            raise ValueError("--liger_kernel_config：本项目只用 liger-kernel 的 norm、旋转位置和门控激活；请去掉它")
        if self.use_liger_kernel:
            require_liger()
        if self.compile_layers:
            require_compiler()

    def _settle_best_step(self) -> bool:
        """Whether the weights of the best step are wanted at the end; settles by which metric it is the best.

        Raises:
            ValueError: no validation would show which step that is, or which learning rate.
        """
        evaluates = self.eval_strategy != "no"
        best = evaluates if self.load_best_model_at_end is None else self.load_best_model_at_end
        if best and not evaluates:
            raise ValueError("--load_best_model_at_end 要有验证才知道哪一步最好；请给 --eval_strategy steps 或 epoch")
        if self.searches_rate and not evaluates:
            raise ValueError(f"--learning_rate auto 要在验证数据上比；请去掉 --eval_strategy no，{BY_HAND}")
        if best and self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"
        if self.greater_is_better is None and (self.metric_for_best_model or "").removeprefix("eval_") in ERRORS:
            self.greater_is_better = False  # transformers knows it only of losses
        return best


def require_json(name: str, value: object) -> None:
    """Check the text of a flag that takes a JSON object.

    Raises:
        ValueError: it is none; the message is for the user.
    """
    if not isinstance(value, str) or (name in FROM_FILES and not value.startswith("{")):
        return
    try:
        found = json.loads(value)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        example = '{"use_reentrant": false}' if "checkpointing" in name else '{"num_cycles": 2}'
        raise ValueError(f"--{name} {value}：应是 JSON 对象，名字用双引号，如 '{example}'")


def require_liger() -> None:
    """For ``--use_liger_kernel``: that there is a GPU, and the package.

    Raises:
        ValueError: there is none; the message is for the user.
    """
    if not torch.cuda.is_available():
        raise ValueError("--use_liger_kernel：它的核只在 NVIDIA 显卡上运行，这里没有能用的；请去掉它")
    if not is_liger_kernel_available():
        raise ValueError("--use_liger_kernel：没有装；请先 pip install liger-kernel，或去掉这个参数")


def require_compiler() -> None:
    """For ``--compile_layers``: that there is a GPU, and not on Windows.

    Raises:
        ValueError: the message is for the user.
    """
    if sys.platform == "win32":
        raise ValueError("--compile_layers：Windows 上 torch 没有编译器；请去掉它")
    if not torch.cuda.is_available():
        raise ValueError("--compile_layers：只在显卡上、用变长注意力时有用，这里没有能用的显卡；请去掉它")


def settled_reporters(report_to: list[str]) -> list[str]:
    """The tools to report to, without SwanLab: this project's own tracking records there anyway.

    Raises:
        ValueError: there is no such tool, or its package is not installed; the message is for the user.
    """
    others = [name for name in report_to if name != "swanlab"]
    installed = get_available_reporting_integrations()
    for name in others:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(f"--report_to {name}：没有这个工具；可选的有 swanlab、tensorboard、wandb、none 等")
        if name in PACKAGES and name not in installed:
            raise ValueError(f"--report_to {name}：没有装；请先 pip install {PACKAGES[name]}，或去掉这个参数")
    return others


def require_hub() -> None:
    """For ``--push_to_hub``: that the hub of Hugging Face answers and there is a login.

    Raises:
        ValueError: it does not, or there is none; the message is for the user.
    """
    if is_offline_mode() or not reachable(ENDPOINT, CONNECT_SECONDS):
        reason = "设了 HF_HUB_OFFLINE" if is_offline_mode() else f"{CONNECT_SECONDS} 秒内没有应答"
        raise ValueError(f"--push_to_hub：连不上 {ENDPOINT}（{reason}）；请去掉它，训练完再上传 --output_dir")
    if get_token() is None:
        raise ValueError("--push_to_hub：没有登录 Hugging Face；请先运行 hf auth login，或去掉它")


def rate_or_auto(text: str) -> float | str:
    """The value of ``--learning_rate``.

    Raises:
        argparse.ArgumentTypeError: it is neither a number nor ``auto``.
    """
    if text.strip().lower() == AUTO_RATE:
        return AUTO_RATE
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"应是 float 或 auto，实际是 {text!r}") from error


class _Parser(OneLineErrors, HfArgumentParser):
    """transformers' parser, with this project's error messages."""


def build_parser(description: str) -> HfArgumentParser:
    """The parser of all flags of a training script; ``--help_all`` lists them. A flag alone means yes."""
    parser = _Parser(
        [ModelArguments, LoraArguments, DataArguments, TrackingArguments, SftTrainingArguments],
        description=description,
        usage="%(prog)s [--train_file 文件] [--output_dir 文件夹] [其他参数]",
        allow_abbrev=False,
        add_help=False,
    )
    for action in list(parser._actions):
        if action.type is string_to_bool:  # transformers wants a value for those whose default is None
            settle_boolean(parser, action)
        elif action.dest == "learning_rate":
            action.type = rate_or_auto
        elif action.dest == "report_to":
            action.nargs = "+"
        elif action.dest == "resume_from_checkpoint":
            action.nargs, action.const = "?", "true"
    parser.add_argument("--help_all", action="help", help="列出所有参数")
    return parser
