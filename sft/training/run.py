"""A training run as a value: its folder, the checkpoint it resumes, what decides its result, its micro-batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sft.errors import InputError
from sft.files import ALL_RESULTS_FILE, file_hash
from sft.model.hub import model_hash
from sft.model.loading import tokenizer_hash
from sft.tasks.settings import TaskSettings
from sft.training import checkpoints
from sft.training.memory import fitting_tokens, shape_of, step_kind
from sft.training.prepare import Prepared

# Those of transformers' arguments that change the result of a resumed run.
RESUMED_SETTINGS = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "seed", "data_seed", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "optim",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "train_sampling_strategy",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        output_dir: the folder of its results.
        checkpoint: the checkpoint that it resumes; None for a new run.
        identity: the settings that decide its result; a checkpoint with other ones is refused.
        max_tokens: the largest micro-batch at the start, in tokens; the trainer halves it when memory runs out.
        settings: what its adapter remembers; the threshold is chosen later.
    """

    output_dir: Path
    checkpoint: Path | None
    identity: dict
    max_tokens: int
    settings: TaskSettings

    @property
    def resumed_step(self) -> int | None:
        """The optimizer step of the checkpoint; None for a new run."""
        return checkpoints.step_of(self.checkpoint) if self.checkpoint else None


def open_run(prepared: Prepared) -> Run:
    """Prepare the output folder and decide where the run starts. The first function that writes into it.

    Raises:
        InputError: see `prepare_output`.
    """
    output_dir = Path(prepared.arguments.training.output_dir)
    identity = run_identity(prepared)
    checkpoint = prepare_output(output_dir, identity, prepared)
    max_tokens = prepared.arguments.data.max_tokens_per_micro_batch
    if max_tokens is None and checkpoint is not None:  # the same rounding, even if this machine has more memory
        max_tokens = checkpoints.saved_run(checkpoint).get(checkpoints.MICRO_BATCH)
    if max_tokens is None:
        max_tokens = fitting_micro_batch(prepared)
    settings = prepared.settings.replace(base_hash=identity["model"])
    return Run(output_dir, checkpoint, identity, max_tokens, settings)


def fitting_micro_batch(prepared: Prepared) -> int:
    """How many tokens of a micro-batch fit into the free memory."""
    kind = step_kind(prepared.dtype, prepared.arguments)
    return fitting_tokens(shape_of(prepared.base_folder), kind, prepared.arguments.training.device)


def run_identity(prepared: Prepared) -> dict:
    """The settings that decide a run's result, by name: data, model and flags. Files are given by their hash."""
    arguments, data = prepared.arguments, prepared.arguments.data
    identity = {
        "train_file": file_hash(Path(data.train_file))[:16],
        "max_train_samples": data.max_train_samples,
        "max_length": data.max_length,
        "batching": data.batching,
        "model": prepared.settings.base_hash or model_hash(prepared.base_folder),
        "tokenizer": tokenizer_hash(prepared.tokenizer),  # with the chat template: what the prompts look like
        "dtype": str(prepared.dtype),
        **vars(arguments.lora),
    }
    if arguments.model.init_adapter:
        identity["init_adapter"] = model_hash(Path(arguments.model.init_adapter))
    if prepared.validates:  # the validation split changes the training rows
        validation_file = data.validation_file and file_hash(Path(data.validation_file))[:16]
        identity |= {"validation_file": validation_file, "validation_ratio": data.validation_ratio}
        identity |= {"max_validation_rows": data.max_validation_rows}
    settings = arguments.training.to_dict()
    identity |= {name: settings[name] for name in RESUMED_SETTINGS}
    return identity | {"processes": arguments.training.world_size}


def shown_settings(prepared: Prepared, run: Run) -> dict:
    """The settings to show to the user: the identity and the micro-batch, with file names instead of hashes."""
    data, training = prepared.arguments.data, prepared.arguments.training
    names = {"train_file": data.train_file, "validation_file": data.validation_file}
    if prepared.arguments.model.init_adapter:
        names["init_adapter"] = prepared.arguments.model.init_adapter
    names |= {"model": prepared.arguments.model.model_name_or_path, "output_dir": training.output_dir}
    return run.identity | {checkpoints.MICRO_BATCH: run.max_tokens} | names


def prepare_output(output_dir: Path, identity: dict, prepared: Prepared) -> Path | None:
    """Create the output folder. An earlier run in it is only overwritten if a flag asks for it.

    Returns:
        The checkpoint to resume; None to start a new run.

    Raises:
        InputError: the folder cannot be created; it has an earlier run, and no flag asks to resume or overwrite it;
            or the checkpoint to resume is damaged or belongs to another run.
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
        raise InputError(
            f"{output_dir}：已有训练完成的结果；请换一个 --output_dir，或加 --overwrite_output_dir 覆盖；"
            f"{checkpoints.how_to_go_on(output_dir)}"
        )
    if checkpoints.newest_whole(output_dir) is not None:
        raise InputError(
            f"{output_dir}：有没训练完的检查点；续训加 --resume_from_checkpoint true，重来加 --overwrite_output_dir"
        )
    return None
