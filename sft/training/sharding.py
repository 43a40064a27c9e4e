"""FSDP2: the weights are spread over the processes. What is allowed of it, whole weights where they are needed, and
checkpoints.

Checkpoints look like those of one process: an adapter, and an optimizer state with whole tensors. So they can be
resumed with or without FSDP2, and `predict.py` can use them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import Trainer

from sft.errors import InputError
from sft.files import ADAPTER_FILE

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"  # transformers' own names
LAUNCHED = "ACCELERATE_USE_FSDP"  # set by `accelerate launch --use_fsdp`
LOADS_IN_ONE_PROCESS = "FSDP_CPU_RAM_EFFICIENT_LOADING"
WRAPS = "FSDP_AUTO_WRAP_POLICY"
# What else `accelerate launch` can ask for, by environment variable, and what to use instead.
OTHER_LAUNCHES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config（tp、cp、sp）",
}
# Options of FSDP2 that were never tried with this project's steps: the name in ``--fsdp_config``, the environment
# variable of `accelerate launch`, and what to do.
UNTRIED = {
    "cpu_offload": ("FSDP_OFFLOAD_PARAMS", "请去掉它；显存不够请加 --gradient_checkpointing"),
    "activation_checkpointing": ("FSDP_ACTIVATION_CHECKPOINTING", "请改用 --gradient_checkpointing"),
    "xla": (None, "请去掉它"),
}
USE_INSTEAD = "显存够用 torchrun --nproc_per_node，不够用 accelerate launch --use_fsdp --fsdp_version 2"


def is_asked_for(training) -> bool:
    """Whether ``--fsdp`` or `accelerate launch --use_fsdp` asks to spread the weights."""
    return bool(training.fsdp) or _is_on(os.environ.get(LAUNCHED))


def accelerate_shards_on(device_type: str) -> bool:
    """Whether accelerate spreads weights over devices of this type; over CPUs it would only copy them, silently."""
    return device_type != "cpu"


def refuse_other_launches() -> None:
    """Refuse what `accelerate launch` asks for by environment variable and this project does not do.

    Raises:
        ValueError: there is such a variable; the message is for the user.
    """
    for variable, name in OTHER_LAUNCHES.items():
        if _is_on(os.environ.get(variable)):
            raise ValueError(f"{name}：不支持（accelerate 的设置里开着它）；{USE_INSTEAD}")


def refuse_untried(training) -> None:
    """Refuse options of FSDP that do not work, or were never tried. Changes only how the base is read.

    Args:
        training: the arguments as parsed; the flag ``--fsdp_config`` can be a file or a dict.

    Raises:
        ValueError: there is one; the message is for the user.
    """
    if str(training.fsdp).lower() in ("false", "0", "no", "off"):
        training.fsdp = None  # transformers would take any word for yes
    elif _is_on(training.fsdp):
        training.fsdp = True
    if training.fsdp_config and not is_asked_for(training):
        raise ValueError("--fsdp_config：要和 --fsdp 一起给")
    if not is_asked_for(training):
        return
    config = _config_of(training)
    given = {name: config.get(name, os.environ.get(variable or "")) for name, (variable, _) in UNTRIED.items()}
    version = str(config.get("version", 2 if training.fsdp else os.environ.get("FSDP_VERSION", "1")))
    if version != "2":
        raise ValueError("FSDP1 不支持；请用 FSDP2：accelerate launch --use_fsdp --fsdp_version 2，或 --fsdp")
    words = str(training.fsdp).split() if training.fsdp else []
    if "offload" in words:
        given["cpu_offload"] = True
    for name, value in given.items():
        if _is_on(value):
            raise ValueError(f"FSDP 的 {name}：没有验证过，不支持；{UNTRIED[name][1]}")
    if training.torch_compile:
        raise ValueError("--torch_compile：和 FSDP 一起没有验证过，不支持；请去掉一个")
    os.environ[LOADS_IN_ONE_PROCESS] = "false"  # every process reads the base: the adapter starts the same in all
    os.environ.setdefault(WRAPS, "TRANSFORMER_BASED_WRAP")  # layer by layer; accelerate would gather all at once
    if training.fsdp:
        training.fsdp_config = config | {"cpu_ram_efficient_loading": False}


def refuse_where_it_cannot(training, dtype: torch.dtype, quantization: str = "none") -> None:
    """Refuse FSDP for one process, on CPUs, in float16, and for a base in 4 bits.

    Raises:
        InputError: it was asked for and would do nothing, or was never tried.
    """
    if not is_asked_for(training):
        return
    if training.world_size == 1:
        raise InputError("FSDP 要几个进程；请用 accelerate launch --use_fsdp --num_processes 2，或去掉 --fsdp")
    if not accelerate_shards_on(training.device.type):
        raise InputError("FSDP 要显卡：在 CPU 上 accelerate 不会把权重分到各进程；请去掉它，用 torchrun")
    if dtype == torch.float16:
        raise InputError("FSDP 和 float16 一起没有验证过，不支持；请用 --dtype bfloat16 或 float32，或去掉 FSDP")
    if quantization != "none":
        raise InputError(f"FSDP 和 --quantization {quantization} 一起没有验证过，不支持；请去掉一个")


def _config_of(training) -> dict:
    """``--fsdp_config`` without the ``fsdp_`` that names may begin with.

    Raises:
        ValueError: the file cannot be read, or is no JSON object.
    """
    config = training.fsdp_config or {}
    if isinstance(config, str):
        try:
            config = json.loads(Path(config).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"--fsdp_config {training.fsdp_config}：读不出 JSON（{error}）") from error
    if not isinstance(config, Mapping):
        raise ValueError(f"--fsdp_config {training.fsdp_config}：应是一个 JSON 对象")
    return {str(name).removeprefix("fsdp_"): value for name, value in config.items()}


def _is_on(value: object) -> bool:
    return str(value).strip().lower() in ("1", "true", "yes", "on")


# ---- whole weights ----


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether the weights of ``model`` are spread over the processes."""
    return isinstance(model, FSDPModule)


def groups_of(model: torch.nn.Module) -> int:
    """How many groups of weights there are, each gathered and let go of by itself."""
    return sum(isinstance(module, FSDPModule) for module in model.modules())


@contextmanager
def whole_weights(model: torch.nn.Module) -> Iterator[None]:
    """Inside this block every process has all weights, so that each may run as many forward passes as it needs.

    The processes share the rows of an evaluation, and their numbers of passes differ. A sharded model gathers its
    weights in each pass, with all processes: one of them would wait for a pass that the others never make. Every
    process must enter and leave this block. Without FSDP it does nothing.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    reshards = [module is not model and _reshards_after_forward(module) for module in sharded]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module, after_forward in zip(sharded, reshards, strict=True):
            module.set_reshard_after_forward(after_forward, recurse=False)
            module.reshard()


def _reshards_after_forward(module: FSDPModule) -> bool:
    """What `fully_shard` was told; there is no public way to read it."""
    return any(group._reshard_after_forward for group in module._get_fsdp_state()._fsdp_param_groups)


def whole(value: object) -> object:
    """A value of any depth with every spread tensor gathered on the CPU. Every process must call this."""
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    if isinstance(value, dict):
        return {name: whole(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(item) for item in value)
    return value


def spread_like(tensor: torch.Tensor, model_tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a whole tensor, spread as ``model_tensor`` is; itself if that is whole.

    Every process has the whole tensor, so nothing is sent.
    """
    tensor = tensor.to(model_tensor.device)
    if not isinstance(model_tensor, DTensor):
        return tensor
    return distribute_tensor(tensor, model_tensor.device_mesh, model_tensor.placements, src_data_rank=None)


class ShardedTrainer(Trainer):
    """transformers' Trainer whose checkpoints under FSDP2 are whole, and hold the adapter but not the base model."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter. Every process must call this."""
        if not is_sharded(self.model):
            return super().save_model(output_dir, _internal_call)
        saved = {id(parameter) for parameter in self._saved_parameters().values()}
        named = self.model.named_parameters(remove_duplicate=False)
        state = whole({name: parameter for name, parameter in named if id(parameter) in saved})
        return self._save(output_dir or self.args.output_dir, state_dict=state)

    def _saved_parameters(self) -> dict[str, torch.nn.Parameter]:
        """What an adapter's file has, by the names in it: the adapter, and a head that it is trained on."""
        named = dict(self.model.named_parameters(remove_duplicate=False))
        return get_peft_model_state_dict(self.model, state_dict=named)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not is_sharded(self.model):
            return super()._save_optimizer_and_scheduler(output_dir)
        state = whole(self.optimizer.state_dict())
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)
        return None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if not is_sharded(self.model):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        return self._load_adapter(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if not is_sharded(self.model):
            return super()._load_best_model()
        return self._load_adapter(Path(self.state.best_model_checkpoint))

    @torch.no_grad()
    def _load_adapter(self, checkpoint: Path) -> None:
        saved, parameters = load_file(checkpoint / ADAPTER_FILE), self._saved_parameters()
        if parameters.keys() != saved.keys():
            raise ValueError(f"{ADAPTER_FILE}: {sorted(parameters.keys() ^ saved.keys())[:3]}")
        for name, parameter in parameters.items():
            parameter.copy_(spread_like(saved[name], parameter))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not is_sharded(self.model):
            return super()._load_optimizer_and_scheduler(checkpoint)
        saved = torch.load(Path(checkpoint) / OPTIMIZER, map_location="cpu", weights_only=True)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            saved["state"][number] = {
                name: spread_like(value, parameter) if _has_shape_of(value, parameter) else value
                for name, value in saved["state"].get(number, {}).items()
            }
        self.optimizer.load_state_dict(saved)
        scheduler = torch.load(Path(checkpoint) / SCHEDULER, map_location="cpu", weights_only=True)
        self.lr_scheduler.load_state_dict(scheduler)
        return None


def _has_shape_of(value: object, parameter: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == parameter.shape
