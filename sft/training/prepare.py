"""Read and check everything that a run needs, before the run's folder is written and the weights are read."""

from __future__ import annotations

import codecs
import logging
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

import sft
from sft.data.places import path_of_test
from sft.data.records import read_task_records
from sft.engine.batches import Batching, EncodedRow, PaddedBatching, PrefixTreeBatching, TreeUpTo
from sft.engine.served import say_what_is_not_served, served
from sft.errors import InputError
from sft.model.devices import check_device
from sft.model.encoding import LengthReport, encode_rows, terminator_id
from sft.model.hub import lasting_name, resolve_model
from sft.model.loading import load_config, load_tokenizer, require_within_context, resolve_dtype
from sft.model.lora import target_modules
from sft.model.quantization import require_quantization
from sft.model.template import prompt_date
from sft.tasks.settings import TaskSettings, require_pair, settings_path
from sft.tasks.task import Task
from sft.tracking.swanlab import require_project_name
from sft.training.arguments import Arguments
from sft.training.checkpointing import settle_checkpointing, step_tokens
from sft.training.choosing_rows import Numbered, hold_out, sample, warn_of_labels_without_rows
from sft.training.evaluation import require_metric
from sft.training.idle_flags import say_idle_flags
from sft.training.lengths import describe_lengths, most_new_tokens, usual_text_tokens
from sft.training.rate_plan import SearchPlan, plan_search
from sft.training.schedule import check_schedule
from sft.training.sharding import refuse_where_it_cannot
from sft.training.shared_texts import warn_of_shared_texts
from sft.training.start import start_from_adapter
from sft.training.steps import advice_on_few_steps, advice_on_late_validation, fitting_logging_steps, planned_steps
from sft.training.untrained_answers import advice_on_untrained_answers
from sft.training.validation_size import validation_texts

logger = logging.getLogger(__name__)

FIRST_BYTES = 1 << 20  # of a data file, looked at to see whether it is converted
CONVERTERS = {"classification": "transfer_classification_data.py", "ner": "transfer_ner_data.py"}

MIXED_PRECISION = "ACCELERATE_MIXED_PRECISION"  # an environment variable of `accelerate launch`
MIXED_PRECISION_OF = {torch.float16: "fp16", torch.bfloat16: "bf16"}


class Splits(NamedTuple):
    """The records of a run."""

    train: Numbered
    validation: Numbered
    test: Numbered


class EncodedSplits(NamedTuple):
    """The same records as token ids. A record that is too long can become several rows."""

    train: list[EncodedRow]
    validation: list[EncodedRow]
    test: list[EncodedRow]


@dataclass(frozen=True)
class Prepared:
    """Everything that a run needs.

    Attributes:
        settings: the task, and what else `predict.py` needs to know.
        splits: the records to train, validate and test on.
        rows: the same records, encoded.
        lengths: the lengths of the training rows, and what was cut or split.
        tokenizer: of the base model.
        base_folder: the folder of the base model.
        dtype: the dtype in which the base model is loaded.
        batching: how rows become a batch.
        validates: whether validation was asked for; there can still be no validation rows.
        arguments: the flags.
        search: what ``--learning_rate auto`` will do; None for a rate given by hand.
    """

    settings: TaskSettings
    splits: Splits
    rows: EncodedSplits
    lengths: LengthReport
    tokenizer: PreTrainedTokenizerBase
    base_folder: Path
    dtype: torch.dtype
    batching: Batching
    validates: bool
    arguments: Arguments
    search: SearchPlan | None = None

    @property
    def task(self) -> Task:
        """The task."""
        return self.settings.task


def prepare(task_type: type[Task], arguments: Arguments) -> Prepared:
    """Read and check everything. A missing base model is downloaded; nothing else is written.

    Raises:
        InputError: a file or a flag is wrong, or the GPU cannot be used.
        RunError: the base model could not be downloaded.
    """
    data, training = arguments.data, arguments.training
    require_project_name(arguments.tracking.swanlab_project)
    dtype = resolve_dtype(arguments.model.dtype, training.device)
    check_device(training.device, dtype, on_purpose=training.use_cpu and "use_cpu" in arguments.given)
    warn_of_mixed_precision(dtype)
    task = read_task(task_type, Path(data.train_file))
    splits = read_splits(task, arguments)
    base_hash = None
    if arguments.model.init_adapter:
        (base_folder, _, base_hash), arguments = start_from_adapter(task, arguments)
    else:
        base_folder = resolve_model(arguments.model.model_name_or_path)
    task = with_long_text(task, arguments)
    config = load_config(base_folder)  # first of all: says which kinds of models cannot be trained
    require_within_context(config, data.max_length)
    quantization = None if arguments.model.quantization == "none" else arguments.model.quantization
    if quantization is not None:
        require_quantization(base_folder)
    if not arguments.model.init_adapter:
        modules = target_modules(config, arguments.lora.lora_target_modules)
        if "lora_target_modules" not in arguments.given:  # the run, the card and the adapter name the layers
            arguments = arguments._replace(lora=replace(arguments.lora, lora_target_modules=modules))
    tokenizer = load_tokenizer(Path(arguments.model.init_adapter or base_folder))
    say_idle_flags(arguments, validates=bool(splits.validation), tests=bool(splits.test))
    require_metric(task, [record for _, record in splits.validation], training.metric_for_best_model)
    encode = partial(encode_file, task=task, tokenizer=tokenizer, max_length=data.max_length)
    rows, lengths = encode(splits.train, data.train_file)
    require_supervision(rows, data.train_file)
    validation, _ = encode(splits.validation, data.validation_file or data.train_file)
    test, _ = encode(splits.test, find_test_file(data.test_file, Path(data.train_file)))
    logger.info("%s", describe_lengths(lengths, data.max_length, task.long_text))
    settings = TaskSettings(
        task,
        base_model=lasting_name(arguments.model.model_name_or_path),
        base_hash=base_hash,
        dtype=str(dtype).removeprefix("torch."),
        max_length=data.max_length,
        max_new_tokens=most_new_tokens(task, rows, data.max_length),
        usual_text_tokens=usual_text_tokens(rows, splits.train[0][1], task, tokenizer),
        version=sft.__version__,
        end_token=tokenizer.convert_ids_to_tokens(terminator_id(tokenizer)),
        prompt_date=prompt_date(tokenizer),
        quantization=quantization,
    )
    batching = choose_batching(config, data.batching, tokenizer.pad_token_id)
    validates = training.eval_strategy != "no"
    settle_training_arguments(arguments, dtype, len(rows), bool(splits.validation))
    look_at_length(arguments, len(rows), validates=bool(splits.validation))
    settle_checkpointing(arguments, base_folder, dtype, step_tokens(rows, batching, training))
    search = plan_search(rows, validation, training) if training.searches_rate else None
    if advice := advice_on_untrained_answers(rows, tokenizer, base_folder):
        logger.warning("%s", advice)
    return Prepared(
        settings=settings,
        splits=splits,
        rows=EncodedSplits(rows, validation, test),
        lengths=lengths,
        tokenizer=tokenizer,
        base_folder=base_folder,
        dtype=dtype,
        batching=batching,
        validates=validates,
        arguments=arguments,
        search=search,
    )


def look_at_length(arguments: Arguments, rows: int, *, validates: bool) -> None:
    """Warn of a run that is too short for its validation, its warm-up or a new adapter.

    Args:
        rows: encoded training rows.
        validates: whether there are validation rows.

    Raises:
        InputError: it has no step, or its schedule cannot be made.
    """
    training = arguments.training
    steps, _ = planned_steps(rows, training)
    check_schedule(training, steps, validates=validates)
    if advice := advice_on_late_validation(steps, training):
        logger.warning("%s", advice)
    if arguments.data.preview or arguments.model.init_adapter:
        return
    if advice := advice_on_few_steps(rows, training):
        logger.warning("%s", advice)


def warn_of_mixed_precision(dtype: torch.dtype) -> None:
    """Say it if ``accelerate launch`` was asked for another dtype than the run's: ``--dtype`` alone decides."""
    asked = os.environ.get(MIXED_PRECISION, "no")
    if asked not in ("no", MIXED_PRECISION_OF.get(dtype)):
        named = str(dtype).removeprefix("torch.")
        logger.warning("accelerate 的 mixed_precision %s 不起作用：数值类型由 --dtype 决定，现在是 %s", asked, named)


def read_task(task_type: type[Task], train_file: Path) -> Task:
    """The task from the settings file that conversion wrote beside the training records.

    Raises:
        InputError: there is no such file, the records are raw data, it belongs to another task, or it is damaged (see
            `TaskSettings.read`).
    """
    path = settings_path(train_file)
    if not train_file.is_file():
        raise InputError(f"{train_file}：没有这个文件；请先运行 transfer_*.py，或用 --train_file 指定")
    require_records(train_file, task_type)
    if not path.is_file():
        raise InputError(
            f"{path}：没有这个文件；它和 {train_file.name} 一起由 transfer_*.py 写出，请一起拷来，或重新转换"
        )
    settings = TaskSettings.read(path)
    require_pair(train_file, settings)
    task = settings.task
    if task.name != task_type.name:
        raise InputError(f"{path}：这是 {task.name} 的数据，这个脚本训练 {task_type.name}；请换脚本或换数据")
    return task


def with_long_text(task: Task, arguments: Arguments) -> Task:
    """The task that reads a text that is too long as ``--long_text`` says, if it is for training to choose.

    Raises:
        InputError: the flag is given, and there is nothing to choose.
    """
    if task.long_text is not None:
        return replace(task, long_text=arguments.data.long_text)
    if "long_text" in arguments.given:
        raise InputError("--long_text：只用于分类；这个任务不截文本，长的按句拆开。请去掉它")
    return task


def require_records(path: Path, task_type: type[Task]) -> None:
    """Refuse a file of raw data, which has to be converted first. A missing or empty file is left to others.

    Raises:
        InputError: the first line is no record and does not look like a damaged one.
    """
    try:
        with path.open("rb") as file:
            first = file.read(FIRST_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()
    except OSError:
        return
    line = first.partition(b"\n")[0]
    if not first or (line.startswith(b"{") and b'"messages"' in line and b'"task"' in line):
        return
    script = CONVERTERS.get(task_type.name, "transfer_*.py")
    raise InputError(
        f"{path}：这是没有转换的原始数据；请先运行 python {script} --input_file {shlex.quote(path.as_posix())}"
    )


def read_splits(task: Task, arguments: Arguments) -> Splits:
    """Read the training, validation and test records with their line numbers.

    Validation records that are split off from the training file share no text with the training records.

    Raises:
        InputError: a file cannot be read or has a wrong record.
    """
    data, training = arguments.data, arguments.training
    train = sample(read_task_records(Path(data.train_file), task), data.max_train_samples, training.seed)
    if training.eval_strategy == "no":
        validation = []
    elif data.validation_file is not None:
        require_records(Path(data.validation_file), type(task))
        validation = read_task_records(Path(data.validation_file), task)
    else:
        texts = len({record["text"] for _, record in train})
        train, validation = hold_out(train, validation_texts(texts, arguments), training.seed)
    warn_of_labels_without_rows(task, train, Path(data.train_file))
    test_file = find_test_file(data.test_file, Path(data.train_file))
    if test_file:
        require_records(test_file, type(task))
        if test_file != Path(data.train_file) and settings_path(test_file).is_file():
            require_pair(test_file, TaskSettings.read(settings_path(test_file)))
    test = read_task_records(test_file, task) if test_file else []
    logger.info("训练 %d 条，验证 %d 条，测试 %d 条（%s）", len(train), len(validation), len(test), test_file or "无")
    splits = Splits(train, validation, test)
    warn_of_shared_texts(**{name: [record for _, record in rows] for name, rows in splits._asdict().items()})
    return splits


def find_test_file(test_file: str | None, train_file: Path) -> Path | None:
    """The file of ``--test_file`` (``none``: no test). Default: the one beside the training file, if it exists."""
    if test_file is not None:
        return None if test_file.lower() == "none" else Path(test_file)
    beside = path_of_test(train_file)
    return beside if beside.is_file() else None


def encode_file(
    records: Numbered, file: Path | str | None, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[EncodedRow], LengthReport]:
    """The rows of a file of records, encoded; see `encode_rows`.

    Raises:
        InputError: a row cannot be made to fit.
    """
    try:
        return encode_rows(records, task, tokenizer, max_length)
    except InputError as error:
        raise InputError(f"{file} {error}") from error


def require_supervision(rows: Sequence[EncodedRow], train_file: str) -> None:
    """Refuse rows that nothing can be learned from.

    Raises:
        InputError: there are no rows, or a row has no supervised tokens.
    """
    if not rows:
        raise InputError(f"{train_file}：没有训练数据；请检查转换结果，或减小 --validation_ratio")
    for row in rows:
        if not row.answer_ids:
            raise InputError(f"{train_file}:{row.line}：没有任何需要学习的 token；请重新转换数据")


def choose_batching(config: PreTrainedConfig, batching: str, pad_id: int) -> Batching:
    """Choose how rows become a batch.

    Args:
        batching: the flag ``--batching``.

    Raises:
        InputError: ``--batching prefix_tree``, and a prefix tree is not exact for the model.
    """
    found = served(config)
    if batching == "padded":
        return PaddedBatching(pad_id)
    if found.packed:
        limit_tokens = found.limit_tokens
        return PrefixTreeBatching() if limit_tokens is None else TreeUpTo(limit_tokens, PaddedBatching(pad_id))
    if batching == "prefix_tree":
        raise InputError(f"--batching prefix_tree：{config.model_type}：{found.reason}；请用 auto 或 padded")
    say_what_is_not_served(config)
    return PaddedBatching(pad_id)


def settle_training_arguments(arguments: Arguments, dtype: torch.dtype, rows: int, has_validation: bool) -> None:
    """Set those of transformers' arguments that follow from the others.

    Only this function changes parsed flags before the run is opened.

    Args:
        rows: encoded training rows.

    Raises:
        InputError: the best step's weights are wanted, and no checkpoints; or FSDP where it does nothing.
    """
    training = arguments.training
    refuse_where_it_cannot(training, dtype, arguments.model.quantization)
    if "logging_steps" not in arguments.given:
        training.logging_steps = fitting_logging_steps(planned_steps(rows, training)[0])
    # Autocast and loss scaling; bfloat16 and float32 need neither. The Trainer only reads the second of the two.
    training.fp16 = dtype == torch.float16
    training.mixed_precision = "fp16" if training.fp16 else "no"
    training.dataloader_pin_memory = training.dataloader_pin_memory and training.device.type == "cuda"
    training.length_column_name = "length"
    training.restore_callback_states_from_checkpoint = True  # early stopping continues to count
    if not has_validation:
        training.eval_strategy = "no"
        training.eval_on_start = False
        training.load_best_model_at_end = False
        training.metric_for_best_model = None
    if training.save_strategy == "best" and not has_validation:
        raise InputError(
            "--save_strategy best：没有验证数据，不知道哪一步最好；"
            "请给 --validation_file 或 --validation_ratio，或用 --save_strategy epoch"
        )
    if training.load_best_model_at_end and training.save_strategy == "no":
        raise InputError(
            "--save_strategy no：不存检查点，就留不住验证最好的一步；请用 --save_strategy best，"
            "或加 --load_best_model_at_end false（保留最后一步的权重）"
        )
