"""A run as a value: its folder, the checkpoint it goes on from, what decides its result, its micro-batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sft.errors import InputError
from sft.files import ALL_RESULTS_FILE, file_hash
from sft.model.loading import model_hash
from sft.training import checkpoints
from sft.training.memory import fitting_tokens, shape_of, step_kind
from sft.training.prepare import Prepared

# Of transformers' arguments, those that change what a resumed run would compute.
RESUMED_SETTINGS = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "seed", "data_seed", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "optim",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "train_sampling_strategy",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        output_dir: its folder.
        checkpoint: the checkpoint it goes on from; None for a new run.
        identity: what decides its result; a checkpoint of another identity is refused.
        max_tokens: tokens of a micro-batch at the start; it is halved when memory runs out.
    """

    output_dir: Path
    checkpoint: Path | None
    identity: dict
    max_tokens: int

    @property
    def resumed_step(self) -> int | None:
        """The optimizer step it goes on from."""
        return checkpoints.step_of(self.checkpoint) if self.checkpoint else None


def open_run(prepared: Prepared) -> Run:
    """Decide where the run is written and where it begins. The first function that writes.

    Raises:
        InputError: see `prepare_output`.
    """
    output_dir = Path(prepared.arguments.training.output_dir)
    identity = run_identity(prepared)
    checkpoint = prepare_output(output_dir, identity, prepared)
    max_tokens = prepared.arguments.data.max_tokens_per_micro_batch
    if max_tokens is None and checkpoint is not None:  # the same rounding, even if this machine has more memory
        max_tokens = checkpoints.saved_run(checkpoint).get(checkpoints.MICRO_BATCH)
    return Run(output_dir, checkpoint, identity, max_tokens or fitting_micro_batch(prepared))


def fitting_micro_batch(prepared: Prepared) -> int:
    """How many tokens of a micro-batch fit into the memory that is free now."""
    kind = step_kind(prepared.dtype, prepared.arguments)
    return fitting_tokens(shape_of(prepared.base_folder), kind, prepared.arguments.training.device)


def run_identity(prepared: Prepared) -> dict:
    """What decides a run's result, as flat names and values: data, model, settings."""
    arguments, data = prepared.arguments, prepared.arguments.data
    identity = {
        "train_file": file_hash(Path(data.train_file))[:16],
        "max_train_samples": data.max_train_samples,
        "max_length": data.max_length,
        "batching": data.batching,
        "model": model_hash(prepared.base_folder),
        "dtype": str(prepared.dtype),
        **vars(arguments.lora),
    }
    if prepared.validates:  # what is held out is not trained on
        validation_file = data.validation_file and file_hash(Path(data.validation_file))[:16]
        identity |= {"validation_file": validation_file, "validation_ratio": data.validation_ratio}
        identity |= {"max_validation_rows": data.max_validation_rows}
    settings = arguments.training.to_dict()
    identity |= {name: settings[name] for name in RESUMED_SETTINGS}
    return identity | {"processes": arguments.training.world_size}


def shown_settings(prepared: Prepared, run: Run) -> dict:
    """The settings as people see them in SwanLab: those of the identity, with file names instead of hashes."""
    data, training = prepared.arguments.data, prepared.arguments.training
    names = {"train_file": data.train_file, "validation_file": data.validation_file}
    names |= {"model": prepared.arguments.model.model_name_or_path, "output_dir": training.output_dir}
    return run.identity | {checkpoints.MICRO_BATCH: run.max_tokens} | names


def prepare_output(output_dir: Path, identity: dict, prepared: Prepared) -> Path | None:
    """The checkpoint to go on from; None to start anew. A run in the folder is not overwritten unasked.

    Raises:
        InputError: the folder cannot be written; it holds a run, and neither resuming nor overwriting was asked for;
            or the checkpoint to resume is damaged or another run's.
    """
    training = prepared.arguments.training
    resume = training.resume_from_checkpoint
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output_dir}：无法建立输出文件夹（{error.strerror}）；请换一个 --output_dir") from error
    if training.should_save:
        checkpoints.remove_leftovers(output_dir)
    if resume is not None and resume.lower() not in ("false", "no", "0"):
        return checkpoints.to_resume(resume, output_dir, identity)
    if prepared.arguments.data.overwrite_output_dir:
        if training.should_save:
            checkpoints.remove_all(output_dir)
        return None
    if (output_dir / ALL_RESULTS_FILE).is_file():
        raise InputError(f"{output_dir}：已有训练完成的结果；请换一个 --output_dir，或加 --overwrite_output_dir 覆盖")
    if checkpoints.newest_whole(output_dir) is not None:
        raise InputError(
            f"{output_dir}：有没训练完的检查点；续训加 --resume_from_checkpoint true，重来加 --overwrite_output_dir"
        )
    return None
