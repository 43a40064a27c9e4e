"""What makes a run the same run, and whether its folder may be written to or taken up again."""

from __future__ import annotations

from pathlib import Path

from sft.errors import InputError
from sft.files import ALL_RESULTS_FILE, file_hash
from sft.model.loading import model_hash
from sft.training import checkpoints
from sft.training.arguments import Arguments

# Of transformers' arguments, those that change what a resumed run would compute.
RESUMED_SETTINGS = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "seed", "data_seed", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "optim",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "train_sampling_strategy",
)  # fmt: skip


def describe_run(arguments: Arguments, base_folder: Path, dtype: str) -> dict:
    """What decides a run's result, as flat names and values: data, model, settings."""
    data = arguments.data
    run = {
        "train_file": file_hash(Path(data.train_file))[:16],
        "max_train_samples": data.max_train_samples,
        "max_length": data.max_length,
        "batching": data.batching,
        "model": model_hash(base_folder),
        "dtype": dtype,
        **vars(arguments.lora),
    }
    if arguments.training.eval_strategy != "no":  # what is held out is not trained on
        run |= {"validation_file": data.validation_file and file_hash(Path(data.validation_file))[:16]}
        run |= {"validation_ratio": data.validation_ratio, "max_validation_rows": data.max_validation_rows}
    settings = arguments.training.to_dict()
    return run | {name: settings[name] for name in RESUMED_SETTINGS} | {"processes": arguments.training.world_size}


def shown_settings(run: dict, arguments: Arguments) -> dict:
    """What SwanLab shows of a run's settings: those of `describe_run`, with names of files instead of their hashes."""
    data = arguments.data
    files = {"train_file": data.train_file, "validation_file": data.validation_file}
    return run | files | {"model": arguments.model.model_name_or_path, "output_dir": arguments.training.output_dir}


def prepare_output(output_dir: Path, run: dict, arguments: Arguments) -> Path | None:
    """The checkpoint to resume from, None to start anew; a finished or half-done run is not overwritten unasked.

    Raises:
        InputError: the folder holds a run and neither resuming nor overwriting was asked for, or cannot be written.
    """
    resume = arguments.training.resume_from_checkpoint
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output_dir}：无法建立输出文件夹（{error.strerror}）；请换一个 --output_dir") from error
    if arguments.training.should_save:
        checkpoints.remove_leftovers(output_dir)
    if resume is not None and resume.lower() not in ("false", "no", "0"):
        return checkpoints.to_resume(resume, output_dir, run)
    if arguments.data.overwrite_output_dir:
        if arguments.training.should_save:
            checkpoints.remove_all(output_dir)
        return None
    if (output_dir / ALL_RESULTS_FILE).is_file():
        raise InputError(f"{output_dir}：已有训练完成的结果；请换一个 --output_dir，或加 --overwrite_output_dir 覆盖")
    if checkpoints.newest_whole(output_dir) is not None:
        raise InputError(
            f"{output_dir}：有没训练完的检查点；续训加 --resume_from_checkpoint true，重来加 --overwrite_output_dir"
        )
    return None


def step_of(checkpoint: Path | None) -> int | None:
    """The optimizer step a checkpoint was taken after."""
    return int(checkpoint.name.removeprefix("checkpoint-")) if checkpoint else None
