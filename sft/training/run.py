"""A training run as a value: its folder, the checkpoint it resumes, what decides its result, its micro-batch."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from sft.errors import InputError
from sft.files import ALL_RESULTS_FILE, RATE_SEARCH_FILE, file_hash, locked, named_checkpoints
from sft.model.hub import model_hash
from sft.model.loading import tokenizer_hash
from sft.tasks.settings import TaskSettings
from sft.training import checkpoints, manifests
from sft.training.flags import AUTO_RATE
from sft.training.memory import fitting_tokens, shape_of, step_kind
from sft.training.prepare import Prepared
from sft.training.progress import Resumed, read
from sft.training.rate_plan import Search
from sft.training.resuming import NEVER, NEWEST, bring_best, how_to_go_on, is_finished, of_other_runs, to_resume
from sft.training.validation_size import size_beside_flags

logger = logging.getLogger(__name__)

# All flags are compared when a run is resumed, except these: they do not change the weights or which step is best.
# Where files are and what is shown, logged, saved and sent:
NOT_COMPARED = {
    "output_dir", "resume_from_checkpoint", "do_train", "do_eval", "do_predict", "eval_on_start", "disable_tqdm",
    "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "log_level", "log_level_replica",
    "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "debug",
    "include_num_input_tokens_seen", "skip_memory_metrics", "save_strategy", "save_steps", "save_total_limit",
    "save_only_model", "save_on_each_node", "enable_jit_checkpoint", "push_to_hub", "hub_token", "hub_private_repo",
    "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision", "restore_callback_states_from_checkpoint",
}  # fmt: skip
# How the machine does the same work. A run that was short of memory may go on with less of it:
NOT_COMPARED |= {
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing",
    "activation_checkpointing_kwargs", "torch_empty_cache_steps", "per_device_eval_batch_size",
    "eval_accumulation_steps", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
    "dataloader_prefetch_factor", "dataloader_multiprocessing_context", "local_rank", "ddp_backend", "ddp_timeout",
    "ddp_bucket_cap_mb", "ddp_find_unused_parameters", "ddp_broadcast_buffers", "ddp_static_graph", "fsdp",
    "fsdp_config",
}  # fmt: skip
# Of this project's flags for data; files are compared by their hash:
NOT_COMPARED |= {
    "train_file", "validation_file", "test_file", "max_tokens_per_micro_batch", "sample_predictions",
    "overwrite_output_dir", "preview", "dry_run", "config",
}  # fmt: skip
OF_VALIDATION = {"validation_ratio", "max_validation_rows", "early_stopping_patience"}
# Of what is compared, what a person wants to see:
SHOWN = (
    "max_train_samples", "max_length", "long_text", "batching", "dtype", "quantization", "lora_r", "lora_alpha",
    "lora_dropout", "lora_target_modules", "use_rslora", "validation_ratio", "max_validation_rows", "learning_rate",
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "seed",
    "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "max_grad_norm", "train_sampling_strategy",
    "processes",
)  # fmt: skip
LOCK = ".training.lock"


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        output_dir: the folder of its results.
        checkpoint: the checkpoint that it resumes; None for a new run.
        identity: the settings that decide its result; a checkpoint with other ones is refused.
        max_tokens: the largest micro-batch at the start, in tokens; the trainer halves it when memory runs out.
        settings: what its adapter remembers; the threshold is chosen later.
        resumed: what the checkpoint says; None for a new run.
        search: what ``--learning_rate auto`` found; None before it, and for a rate given by hand.
    """

    output_dir: Path
    checkpoint: Path | None
    identity: dict
    max_tokens: int
    settings: TaskSettings
    resumed: Resumed | None = None
    search: Search | None = None


@contextmanager
def own_folder(prepared: Prepared) -> Iterator[None]:
    """Create the output folder, and keep other trainings out of it inside the ``with`` block.

    Raises:
        InputError: the folder cannot be created, or another training is using it.
    """
    training = prepared.arguments.training
    output_dir = Path(training.output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output_dir}：无法建立输出文件夹（{error.strerror}）；请换一个 --output_dir") from error
    if not training.should_save:  # the first process has the lock
        yield
        return
    refusal = f"{output_dir}：另一个训练正在写这个文件夹；请等它结束，或换一个 --output_dir"
    with locked(output_dir / LOCK, refusal):
        yield


def open_run(prepared: Prepared) -> Run | None:
    """Decide where the run starts, and prepare its folder. Called inside `own_folder`.

    Returns:
        None if the run to resume is finished: there is nothing to do.

    Raises:
        InputError: see `prepare_output`.
    """
    training = prepared.arguments.training
    output_dir = Path(training.output_dir)
    identity = run_identity(prepared)
    if prepared.arguments.data.overwrite_output_dir and str(training.resume_from_checkpoint).lower() in NEWEST:
        logger.warning("--overwrite_output_dir 没有用上：要续跑；想从头开始，就去掉 --resume_from_checkpoint")
    with training.main_process_first(local=False):  # it may repair the folder, and the others must see the same
        if asks_to_resume(prepared) and is_finished(output_dir, identity):
            logger.warning("%s：这次训练已经完成，没有可续的，什么都没有改", output_dir)
            return None
        checkpoint = prepare_output(output_dir, identity, prepared)
    max_tokens = prepared.arguments.data.max_tokens_per_micro_batch
    if max_tokens is None and checkpoint is not None:  # the same rounding, even if this machine has more memory
        max_tokens = manifests.saved_run(checkpoint).get(manifests.MICRO_BATCH)
    if max_tokens is None:
        max_tokens = fitting_micro_batch(prepared)
    settings = prepared.settings.replace(base_hash=identity["model"])
    resumed = checkpoint and read(checkpoint)
    return Run(output_dir, checkpoint, identity, max_tokens, settings, resumed, resumed and resumed.progress.search)


def asks_to_resume(prepared: Prepared) -> bool:
    """Whether ``--resume_from_checkpoint`` asks to resume a run."""
    resume = prepared.arguments.training.resume_from_checkpoint
    return resume is not None and resume.lower() not in NEVER


def fitting_micro_batch(prepared: Prepared) -> int:
    """How many tokens of a micro-batch fit into the free memory."""
    kind = step_kind(prepared.dtype, prepared.arguments)
    return fitting_tokens(shape_of(prepared.base_folder), kind, prepared.arguments.training.device)


def run_identity(prepared: Prepared) -> dict:
    """The settings that decide a run's result, by name: data, model and flags. Files are given by their hash.

    Every value is as JSON gives it back.
    """
    arguments, data = prepared.arguments, prepared.arguments.data
    settings = vars(data) | vars(arguments.lora) | arguments.training.to_dict()
    unused = NOT_COMPARED if prepared.validates else NOT_COMPARED | OF_VALIDATION
    if prepared.task.long_text is None:
        unused = unused | {"long_text"}
    identity = {name: value for name, value in settings.items() if name not in unused}
    identity |= {
        "train_file": file_hash(Path(data.train_file))[:16],
        "task_settings": _hash(prepared.task.settings()),
        "model": prepared.settings.base_hash or model_hash(prepared.base_folder),
        "tokenizer": tokenizer_hash(prepared.tokenizer),
        "chat_template": _hash(prepared.tokenizer.chat_template),  # also by itself, so that a change of it is named
        "dtype": str(prepared.dtype),
        "processes": arguments.training.world_size,
    }
    if data.max_train_samples is not None:  # earlier versions took the first ones
        identity["max_train_samples"] = f"{data.max_train_samples}（随机）"
    if arguments.training.searches_rate:  # whatever it finds follows from the rest
        identity["learning_rate"] = AUTO_RATE
    if prepared.settings.quantization:
        identity["quantization"] = prepared.settings.quantization
    if arguments.model.init_adapter:
        identity["init_adapter"] = model_hash(Path(arguments.model.init_adapter))
    if prepared.validates:  # the validation split changes the training rows
        identity["validation_file"] = data.validation_file and file_hash(Path(data.validation_file))[:16]
        train, validation = ([record for _, record in split] for split in prepared.splits[:2])
        if (size := size_beside_flags(train, validation, arguments)) is not None:
            identity["validation_rows"] = size
    return orjson.loads(orjson.dumps(identity, default=str))


def _hash(value: object) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def shown_settings(prepared: Prepared, run: Run) -> dict:
    """The settings to show to the user: the identity and the micro-batch, with file names instead of hashes."""
    data, training = prepared.arguments.data, prepared.arguments.training
    names = {"train_file": data.train_file, "validation_file": data.validation_file}
    if prepared.arguments.model.init_adapter:
        names["init_adapter"] = prepared.arguments.model.init_adapter
    if data.config:
        names["config"] = data.config
    names |= {"model": prepared.arguments.model.model_name_or_path, "output_dir": training.output_dir}
    shown = {name: shown_path(path) for name, path in names.items()}
    chosen = {name: run.identity[name] for name in SHOWN if name in run.identity}
    if run.search is not None:
        chosen["learning_rate"] = run.search.rate
    return chosen | {manifests.MICRO_BATCH: run.max_tokens} | shown


def shown_path(path: str | None) -> str | None:
    """A path for a page or a card that others will read: never absolute, which would name the user and the machine."""
    if path is None or not Path(path).is_absolute():
        return path
    here = Path.cwd()
    return Path(path).relative_to(here).as_posix() if Path(path).is_relative_to(here) else Path(path).name


def prepare_output(output_dir: Path, identity: dict, prepared: Prepared) -> Path | None:
    """Clean the output folder. An earlier run in it is only overwritten if a flag asks for it.

    Returns:
        The checkpoint to resume; None to start a new run.

    Raises:
        InputError: the folder has an earlier run, and no flag asks to resume or overwrite it; or the checkpoint to
            resume is damaged or belongs to another run.
    """
    training = prepared.arguments.training
    if training.should_save:
        checkpoints.remove_leftovers(output_dir)
        refuse_files_in_the_way(output_dir)
    overwrite = prepared.arguments.data.overwrite_output_dir
    if asks_to_resume(prepared):
        checkpoint = to_resume(training.resume_from_checkpoint, output_dir, identity, replaces=overwrite)
        if checkpoint is not None and training.should_save:
            if overwrite and training.resume_from_checkpoint.lower() not in NEWEST:
                for folder in of_other_runs(output_dir, identity):
                    checkpoints.delete(folder)
            bring_best(checkpoint, output_dir)
        return checkpoint
    if not overwrite:
        refuse_earlier_run(output_dir)
    if training.should_save:
        if overwrite:
            checkpoints.remove_all(output_dir)
        else:
            (output_dir / RATE_SEARCH_FILE).unlink(missing_ok=True)
    return None


def refuse_earlier_run(output_dir: Path) -> None:
    """Refuse to start in the folder of an earlier run.

    Raises:
        InputError: it has results, or a checkpoint that can be resumed.
    """
    if (output_dir / ALL_RESULTS_FILE).is_file():
        raise InputError(
            f"{output_dir}：已有训练完成的结果；请换一个 --output_dir，或加 --overwrite_output_dir 覆盖；"
            f"{how_to_go_on(output_dir)}"
        )
    for _, folder in checkpoints.checkpoints_in(output_dir):
        reason = manifests.problem(folder)
        if reason is None or manifests.is_of_other_format(folder):
            raise InputError(
                f"{output_dir}：有没训练完的检查点；续跑加 --resume_from_checkpoint true，"
                "重来加 --overwrite_output_dir"
            )
        logger.warning("%s：%s，存同一步时会换掉它", folder, reason)


def look_at_folder(prepared: Prepared) -> str:
    """Look where the run would start, as `own_folder` and `prepare_output` do; nothing is written.

    Returns:
        What to say about an earlier run in the folder: it stops a new one, but not somebody who looks at the plan.

    Raises:
        InputError: the folder cannot be used, or what shall be resumed cannot.
    """
    training, overwrite = prepared.arguments.training, prepared.arguments.data.overwrite_output_dir
    output_dir = Path(training.output_dir)
    there = next(folder for folder in (output_dir, *output_dir.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"{output_dir}：无法建立输出文件夹（{there} 不是能写的文件夹）；请换一个 --output_dir")
    refuse_files_in_the_way(output_dir)
    if not asks_to_resume(prepared):
        try:
            if not overwrite:
                refuse_earlier_run(output_dir)
        except InputError as error:
            return f"。真要训练时：{error}"
        return ""
    identity = run_identity(prepared)
    if is_finished(output_dir, identity):
        return f"；{output_dir} 的训练已经完成，没有可续的"
    checkpoint = to_resume(training.resume_from_checkpoint, output_dir, identity, replaces=overwrite)
    return f"；将从 {checkpoint} 续跑" if checkpoint else ""


def refuse_files_in_the_way(output_dir: Path) -> None:
    """Refuse a file where a checkpoint must go.

    Raises:
        InputError: there is one.
    """
    for _, path in named_checkpoints(output_dir):
        if path.is_file():
            raise InputError(f"{path}：是一个文件，检查点没有地方放；请移走它，或换一个 --output_dir")
