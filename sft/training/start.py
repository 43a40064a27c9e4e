"""``--init_adapter``: the trained adapter that a run starts from, instead of a new one."""

from __future__ import annotations

import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

from sft.errors import InputError
from sft.files import ADAPTER_CONFIG_FILE, read_json
from sft.model.adapter import Base, find_base, require_adapter, settings_of_adapter
from sft.tasks.task import Task
from sft.training.arguments import Arguments
from sft.training.flags import LoraArguments

logger = logging.getLogger(__name__)

# Each flag of LoRA, and its name in peft's config file.
IN_CONFIG = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "use_rslora": "use_rslora",
}
CHANGEABLE = ("lora_dropout",)  # it does not change what the adapter computes


class Start(NamedTuple):
    """Where a run starts.

    Attributes:
        base: the base model of the adapter.
        arguments: the flags, with the base model and LoRA settings of the adapter.
    """

    base: Base
    arguments: Arguments


def start_from_adapter(task: Task, arguments: Arguments) -> Start:
    """Check that the adapter of ``--init_adapter`` can be trained further with these data and flags.

    Other labels than before are allowed: the prompt names them, and the new adapter remembers the new ones.

    Raises:
        InputError: it is no LoRA adapter, it is of another task or another base model, it would be overwritten, or a
            flag of LoRA differs from it.
        RunError: its base model could not be downloaded.
    """
    model, folder = arguments.model, Path(arguments.model.init_adapter)
    require_adapter(folder, "--init_adapter")
    output_dir = Path(arguments.training.output_dir)
    if output_dir.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise InputError(f"--output_dir {output_dir}：会盖掉 --init_adapter {folder}；请换一个 --output_dir")
    settings = settings_of_adapter(folder)
    if settings.task.name != task.name:
        raise InputError(
            f"--init_adapter {folder}：它的任务是 {settings.task.name}，数据是 {task.name} 的；请换适配器或换数据"
        )
    if settings.task.labels != task.labels:
        logger.warning("%s", _other_labels(folder, settings.task.labels, task.labels))
    before, now = settings.task.answer_format, task.answer_format
    if before != now:
        logger.warning("--init_adapter %s：答案的格式与它训练时的不同（%s → %s），以新数据的为准", folder, before, now)
    named = model.model_name_or_path if "model_name_or_path" in arguments.given else None
    base = find_base(folder, settings, named, allow_other=model.allow_other_base)
    lora, data = _lora_of(folder, arguments), arguments.data
    quantization = _own_or_given("quantization", settings.quantization or "none", model.quantization, arguments)
    model = replace(model, model_name_or_path=base.name, quantization=quantization)
    if settings.task.long_text is not None:
        long_text = _own_or_given("long_text", settings.task.long_text, data.long_text, arguments)
        data = replace(data, long_text=long_text)
    return Start(base, arguments._replace(model=model, lora=lora, data=data))


def _own_or_given(flag: str, own: str, asked: str, arguments: Arguments) -> str:
    """The adapter's own value of a flag, told in one line where it is not the default, unless the flag is given."""
    folder = arguments.model.init_adapter
    if own == asked:
        return own
    if flag not in arguments.given:
        logger.info("--init_adapter %s：--%s %s，同它训练时", folder, flag, own)
        return own
    logger.warning("--init_adapter %s：它训练时是 --%s %s；照 %s 继续", folder, flag, own, asked)
    return asked


def _other_labels(folder: Path, before: tuple[str, ...], now: tuple[str, ...]) -> str:
    new = [label for label in now if label not in before]
    gone = [label for label in before if label not in now]
    parts = [f"新的有 {'、'.join(new)}"] * bool(new) + [f"没有了 {'、'.join(gone)}"] * bool(gone)
    return f"--init_adapter {folder}：标签与它训练时的不同（{'；'.join(parts) or '顺序不同'}），以新数据的为准"


def _lora_of(folder: Path, arguments: Arguments) -> LoraArguments:
    """The adapter's own settings. A flag on the command line must agree with them."""
    path = folder / ADAPTER_CONFIG_FILE
    config = read_json(path)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise InputError(f"{path}：不是 LoRA 适配器的设置；请用 --init_adapter 给出训练脚本的 --output_dir")
    adapter = {flag: config.get(name) for flag, name in IN_CONFIG.items()}
    modules = adapter["lora_target_modules"]
    adapter["lora_target_modules"] = sorted(modules) if isinstance(modules, list) else [str(modules)]
    for flag in (field.name for field in fields(LoraArguments) if field.name in arguments.given):
        asked, own = getattr(arguments.lora, flag), adapter.get(flag)
        same = sorted(asked) == own if isinstance(asked, list) else asked == own
        if flag in CHANGEABLE:
            adapter[flag] = asked
        elif not same:
            shown = [" ".join(value) if isinstance(value, list) else value for value in (asked, own)]
            raise InputError(
                f"--{flag} {shown[0]}：--init_adapter {folder} 的是 {shown[1]}，接着训练不能改；请去掉这个参数"
            )
    return replace(arguments.lora, **adapter)
