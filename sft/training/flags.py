"""The flags of the training scripts that this project adds, and its defaults for the flags of transformers.

Imports neither torch nor transformers, so that ``--help`` does not wait for torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from sft.model.hub import DEFAULT_MODEL
from sft.tracking.swanlab import MODES, PROJECT

# Flags of older transformers versions and of other tools, and the flag to use instead. Tutorials still use them.
RENAMED_FLAGS = {
    "evaluation_strategy": "--eval_strategy",
    "warmup_ratio": "--warmup_steps（小于 1 的小数表示比例）",
    "group_by_length": "--train_sampling_strategy group_by_length",
    "no_cuda": "--use_cpu",
    "logging_dir": "--swanlab_logdir",
    "cutoff_len": "--max_length",
    "max_seq_length": "--max_length",
    "max_seq_len": "--max_length",
    "lora_rank": "--lora_r",
    "rank": "--lora_r",
    "target_modules": "--lora_target_modules",
    "lora_target": "--lora_target_modules",
    "epochs": "--num_train_epochs",
    "epoch": "--num_train_epochs",
    "num_epochs": "--num_train_epochs",
    "lr": "--learning_rate",
    "batch_size": "--per_device_train_batch_size",
    "train_batch_size": "--per_device_train_batch_size",
    "eval_batch_size": "--per_device_eval_batch_size",
    "grad_accum": "--gradient_accumulation_steps",
    "model": "--model_name_or_path",
    "model_name": "--model_name_or_path",
    "model_path": "--model_name_or_path",
    "model_id": "--model_name_or_path",
    "base_model": "--model_name_or_path",
    "data": "--train_file",
    "dataset": "--train_file",
    "data_path": "--train_file",
    "train_data": "--train_file",
    "eval_file": "--validation_file",
    "val_file": "--validation_file",
    "dev_file": "--validation_file",
    "output": "--output_dir",
    "save_dir": "--output_dir",
    "save_path": "--output_dir",
    "resume": "--resume_from_checkpoint true",
    "torch_dtype": "--dtype",
    "mixed_precision": "--dtype",
    "compute_type": "--dtype",
    "half_precision_backend": "--dtype",
    "fp16_backend": "--dtype",
    "fp16_opt_level": "--dtype",
    "pure_bf16": "--dtype bfloat16",
    "load_in_4bit": "--quantization nf4",
    "load_in_8bit": "--quantization nf4（只支持 4 位）",
    "quantization_bit": "--quantization nf4（只支持 4 位）",
    "bnb_4bit_quant_type": "--quantization nf4",
    "use_qlora": "--quantization nf4",
    "qlora": "--quantization nf4",
    "adapter": "--init_adapter",
    "adapter_name_or_path": "--init_adapter",
    "checkpoint_dir": "--init_adapter",
}


AUTO_RATE, DEFAULT_RATE = "auto", 1e-4  # of --learning_rate


def _choice(*allowed: str, default: str, help: str) -> str:
    return field(default=default, metadata={"choices": allowed, "help": help})


def _flag(default: object, help: str) -> object:
    return field(default=default, metadata={"help": help})


@dataclass
class ModelArguments:
    """The base model, the adapter to go on with, and the dtype."""

    model_name_or_path: str = _flag(DEFAULT_MODEL, "模型文件夹，或魔搭社区的模型名（下载到 qwen/ 下）")
    init_adapter: str | None = _flag(None, "在这个适配器上接着训练（新数据或更多轮）；LoRA 的设置取自它")
    allow_other_base: bool = _flag(False, "允许 --init_adapter 用在另一个底座上（形状相同、权重不同）")
    dtype: str = _choice(
        "auto", "bfloat16", "float16", "float32", default="auto", help="模型的数值类型；auto：硬件支持 bf16 就用它"
    )
    quantization: str = _choice(
        *("none", "nf4"),
        default="none",
        help="nf4：底座的线性层用 4 位（QLoRA），省显存，慢一些；要先装 requirements-quantization.txt；"
        "接着训练时默认同 --init_adapter",
    )


@dataclass
class LoraArguments:
    """The LoRA adapter."""

    lora_r: int = _flag(8, "LoRA 的秩")
    lora_alpha: int = _flag(32, "LoRA 的缩放系数 alpha")
    lora_dropout: float = _flag(0.0, "LoRA 的 dropout")
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"],
        metadata={"help": "加适配器的线性层；默认 all-linear：解码层里的全部线性层"},
    )
    use_rslora: bool = _flag(False, "用 rsLoRA 的缩放（alpha/√r）")

    def __post_init__(self) -> None:
        names = [name for words in self.lora_target_modules for name in re.split(r"[,，、\s]+", words) if name]
        self.lora_target_modules = ["all-linear" if name.lower() == "all_linear" else name for name in names]


@dataclass
class DataArguments:
    """Records, lengths and batches, and the flags that only show something instead of training."""

    train_file: str = _flag("data/train.jsonl", "训练集（transfer_*.py 的输出）")
    validation_file: str | None = _flag(None, "验证集；不给时从训练集里切出一份")
    validation_ratio: float = _flag(0.05, "没有验证集时从训练集里切出的比例；0 表示不验证")
    max_validation_rows: int = _flag(200, "切出的验证集最多多少条")
    test_file: str | None = _flag(
        None, "测试集：只在训练结束后用一次；默认用转换时写在训练集旁边的那份；none 表示不用"
    )
    max_length: int = _flag(1024, "一条数据（提示加答案）最多多少 token")
    long_text: str = _choice(
        *("ends", "head"),
        default="ends",
        help="分类：文本比 --max_length 长时读哪里，训练和预测一样；ends：开头和结尾各一半，head：只读开头；"
        "接着训练时默认同 --init_adapter",
    )
    batching: str = _choice(
        "auto",
        "prefix_tree",
        "padded",
        default="auto",
        help="prefix_tree：一批数据共有的开头只算一次，结果相同而更快；auto：模型支持就用它",
    )
    max_tokens_per_micro_batch: int | None = _flag(
        None, "一次前向最多多少 token，超过就分几次算，结果相同；默认按空闲内存，CPU 上最多 4096"
    )
    max_train_samples: int | None = _flag(None, "最多用多少条训练数据，随机取，由 --seed 决定")
    sample_predictions: int = _flag(20, "训练结束时记录多少条预测样例")
    early_stopping_patience: int = _flag(0, "验证指标连续多少次没有提高就停止；0 表示不提前停止")
    overwrite_output_dir: bool = _flag(False, "覆盖已经训练完成的输出文件夹")
    preview: int = _flag(0, "打印前 N 条数据在模型眼中的样子，然后退出")
    dry_run: bool = _flag(False, "检查所有输入，打印步数、token 数、预计内存和时间，然后退出")
    config: str | None = _flag(
        None, "从这个 YAML 或 JSON 文件读参数（键是参数名，如 learning_rate: 1e-4）；命令行优先"
    )


@dataclass
class TrackingArguments:
    """Recording in SwanLab."""

    swanlab_mode: str = _choice(
        *MODES,
        default="auto",
        help="auto：已登录就用云端，否则记在本机（swanlab watch 查看）",
    )
    swanlab_project: str | None = _flag(None, f"SwanLab 项目名；默认用环境变量 SWANLAB_PROJECT，没有就是 {PROJECT}")
    swanlab_experiment: str | None = _flag(None, "SwanLab 实验名；默认用 --run_name，没有就是输出文件夹的名字")
    swanlab_logdir: str = _flag("swanlog", "SwanLab 在本机写到哪里")


@dataclass
class TrainerDefaults:
    """transformers' arguments with another default in this project, or that users often look for."""

    output_dir: str | None = _flag("output", "输出文件夹")
    per_device_train_batch_size: int = _flag(16, "每张卡每个小批多少条；放不下会自动分几次算，结果相同")
    gradient_accumulation_steps: int = _flag(1, "累积多少个小批更新一次；与上一项、卡数之积是每步的条数")
    per_device_eval_batch_size: int = _flag(16, "验证和预测时每批多少条")
    learning_rate: float = _flag(
        DEFAULT_RATE,
        "学习率；auto：先用一小份数据试 7 个，取验证损失最低的（400 步以上约多用四分之一的时间，50 步约一倍半）",
    )
    num_train_epochs: float = _flag(2, "训练多少轮")
    logging_steps: float = _flag(10, "每多少步记录一次；不给时短的训练记得更密，至少 20 个点")
    logging_nan_inf_filter: bool = _flag(False, "不掩盖 NaN：损失或梯度出现 NaN 会立刻停止")
    eval_strategy: str = _flag("epoch", "何时验证：no、steps 或 epoch")
    eval_on_start: bool = _flag(True, "训练前先验证一次：微调前的成绩，写进 report.html")
    save_strategy: str = _flag("epoch", "何时存检查点：no、steps、epoch 或 best；验证最好的一步总会存")
    save_total_limit: int | None = _flag(2, "最多保留几个检查点（最好的和最新的总会保留）")
    load_best_model_at_end: bool | None = _flag(None, "结束时换回验证指标最好的一步；默认：有验证就换")
    metric_for_best_model: str | None = _flag(None, "按哪个验证指标选最好的检查点；默认宏平均 F1 或实体 F1")
    seed: int = _flag(42, "随机种子")
    max_steps: int = _flag(-1, "最多训练多少步；优先于轮数")
    warmup_steps: float = _flag(0, "预热多少步；小于 1 表示占总步数的比例")
    gradient_checkpointing: bool | None = _flag(None, "用时间换显存：反向时重算激活；默认：显卡放不下就打开")
    compile_layers: bool = _flag(False, "编译模型的每一层（显卡、变长注意力；第一步要几分钟）；还没有在显卡上跑完过")
    resume_from_checkpoint: str | None = _flag(None, "true：从最新的完整检查点续跑；也可给出检查点文件夹")


GROUPS = {
    "模型": ModelArguments,
    "LoRA": LoraArguments,
    "数据": DataArguments,
    "SwanLab": TrackingArguments,
    "训练": TrainerDefaults,
}
