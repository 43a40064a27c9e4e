"""One fine-tuning run, top to bottom: read, encode, train, test, save."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, PreTrainedConfig, set_seed

import sft
from sft import checkpoints, preview, summary
from sft.arguments import Arguments
from sft.attention import can_express, use_tree_attention
from sft.curves import draw_loss_curve
from sft.decoding import Limits
from sft.encoded_cache import encode_rows_cached
from sft.encoding import EncodedRow, Task, encode_rows
from sft.hub import resolve_model
from sft.memory import peak_memory_bytes
from sft.model import add_lora, load_base, load_config, load_tokenizer, model_hash, resolve_dtype
from sft.model_card import write_model_card
from sft.records import (
    FORMAT_VERSION,
    InputError,
    RunError,
    read_json,
    read_task_records,
    settings_path,
    write_json,
)
from sft.report.page import only_told
from sft.report.run import write_run_report
from sft.tracking import SAMPLES, Tracking, start_tracking
from sft.trainer import SftTrainer, StopOnSignal
from sft.trainer_callbacks import MetricsLog

logger = logging.getLogger(__name__)

Numbered = list[tuple[int, dict]]  # records with their line numbers

# Of transformers' arguments, those that change what a resumed run would compute.
RESUMED_SETTINGS = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "seed", "data_seed", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "optim",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "train_sampling_strategy",
)  # fmt: skip


class Interrupted(Exception):
    """The run was asked to stop by a signal, and did so after saving a checkpoint."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"signal {signal_number}")
        self.signal_number = signal_number


def fine_tune(task_type: type[Task], arguments: Arguments) -> dict[str, float] | None:
    """Run one fine-tuning and leave everything `predict.py` needs in ``output_dir``.

    Returns:
        The metrics of the run (train, evaluation, test); None after ``--preview`` or ``--dry_run``.

    Raises:
        InputError: something the user gave is wrong; nothing was trained.
        RunError: NaN or Inf, or not enough memory.
        Interrupted: SIGTERM or Ctrl-C.
    """
    model_arguments, lora_arguments, data, tracking_arguments, training = arguments
    output_dir = Path(training.output_dir)

    task = read_task(task_type, Path(data.train_file))
    train, validation, test = read_splits(task, arguments)
    base_folder = resolve_model(model_arguments.model_name_or_path, Path("qwen"))
    tokenizer = load_tokenizer(base_folder)
    cache = Path(data.train_file).parent / ".cache"
    rows, lengths = encode_rows_cached(train, task, tokenizer, data.max_length, cache)
    require_supervision(rows, data.train_file)
    if data.preview:
        preview.show_rows(rows[: data.preview], tokenizer)
        return None
    dtype = resolve_dtype(model_arguments.dtype, training.device)
    logger.info("%s", preview.describe_lengths(lengths, data.max_length))
    as_tree = choose_batching(load_config(base_folder), data.batching, max(len(row) for row in rows))
    if data.dry_run:
        preview.show_plan(rows, base_folder, dtype, as_tree, arguments)
        return None

    shape = preview.shape_of(base_folder)
    max_tokens = data.max_tokens_per_micro_batch or preview.fitting_tokens(shape, dtype, arguments)
    run = describe_run(arguments, base_folder, str(dtype)) | {checkpoints.MICRO_BATCH: max_tokens}
    checkpoint = prepare_output(output_dir, run, arguments)
    if data.max_tokens_per_micro_batch is not None:  # said now, it counts for more than the checkpoint's
        run[checkpoints.MICRO_BATCH] = max_tokens
    task_json = {
        "format_version": FORMAT_VERSION,
        **task.settings(),
        "base_model": str(model_arguments.model_name_or_path),
        "dtype": str(dtype).removeprefix("torch."),
        "max_length": data.max_length,
        "max_new_tokens": max(64, 2 * max(len(row.answer_ids) for row in rows)),
        "version": sft.__version__,
    }
    limits = Limits(task_json["max_length"], task_json["max_new_tokens"], training.per_device_eval_batch_size)

    set_seed(training.seed)  # the adapter's first weights
    base = load_base(base_folder, dtype)
    if as_tree:
        use_tree_attention(base, training.device)
    model = add_lora(base, lora_arguments)
    settle_training_arguments(validation, dtype, arguments)
    stop_on_signal = StopOnSignal()
    trainer = SftTrainer(
        model=model,
        args=training,
        train_dataset=as_dataset(rows),
        processing_class=tokenizer,
        task=task,
        validation_records=[record for _, record in validation],
        validation_rows=encode_rows(validation, task, tokenizer, data.max_length)[0],
        limits=limits,
        run=run,
        as_tree=as_tree,
        max_tokens_per_micro_batch=run[checkpoints.MICRO_BATCH],
        callbacks=[stop_on_signal],
    )
    if data.early_stopping_patience and validation:
        trainer.add_callback(EarlyStoppingCallback(data.early_stopping_patience))
    tracking = start_tracking(
        mode=tracking_arguments.swanlab_mode,
        project=tracking_arguments.swanlab_project,
        experiment=tracking_arguments.swanlab_experiment or output_dir.name,
        log_dir=Path(tracking_arguments.swanlab_logdir),
        config=shown_settings(run, arguments),
        metrics_path=output_dir / "metrics.jsonl",
    )
    trainer.add_callback(MetricsLog(output_dir / "metrics.jsonl", step_of(checkpoint)))
    trainer.add_callback(tracking.callback)
    counts = len(validation), len(test)
    plan = summary.before_training(task, rows, *counts, model, as_tree, checkpoint, tracking.where, arguments)
    logger.info("%s", plan)

    outcome = "crashed"
    try:
        results = train_and_test(trainer, stop_on_signal, checkpoint, test, tracking, arguments, task_json)
        outcome = "success"
        if trainer.is_world_process_zero():
            with only_told(output_dir / "report.html"):
                write_run_report(
                    output_dir,
                    task=task,
                    splits={"train": train, "validation": validation, "test": test},
                    predictions=trainer.predictions,
                    lengths=lengths,
                    results=results,
                    task_json=task_json,
                    arguments=arguments,
                    steps=trainer.state.global_step,
                    resumed=checkpoint is not None,
                )
    except (Interrupted, KeyboardInterrupt):
        outcome = "aborted"
        raise
    except torch.OutOfMemoryError as error:
        raise RunError(
            "显存不够：请减小 --per_device_train_batch_size（同时加大 --gradient_accumulation_steps）、"
            "--max_length，或打开 --gradient_checkpointing"
        ) from error
    finally:
        tracking.finish(outcome)
    return results


def train_and_test(
    trainer: SftTrainer,
    stop_on_signal: StopOnSignal,
    checkpoint: Path | None,
    test: Numbered,
    tracking: Tracking,
    arguments: Arguments,
    task_json: dict,
) -> dict[str, float]:
    """Train, save the adapter, look at the test rows once, and write down what came out."""
    data, training = arguments.data, arguments.training
    output_dir = Path(training.output_dir)
    results = dict(trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint)).metrics)
    results |= dict(zip(("executed_tokens", "logical_tokens"), trainer.token_counts(), strict=True))
    results |= {"peak_memory_bytes": peak_memory_bytes(training.device)}
    if stop_on_signal.received is not None:
        raise Interrupted(stop_on_signal.received)
    trainer.save_model()
    if trainer.is_world_process_zero():
        write_json(output_dir / "task.json", task_json)
        write_json(output_dir / "train_results.json", results)
    if trainer.validation_records:
        # Of the best weights, which may not be the last: not logged, for the curve is of what was there at each step.
        metrics, predictions = trainer.validate("eval")
        trainer.predictions["after"] = predictions
        results |= metrics
        write_results(trainer, "eval", results)
        task_json["threshold"] = trainer.threshold
        if trainer.is_world_process_zero():
            write_json(output_dir / "task.json", task_json)
    if test:
        records = [record for _, record in test]
        test_rows, _ = encode_rows(test, trainer.task, trainer.processing_class, data.max_length)
        metrics, predictions = trainer.measure(records, test_rows, "test")
        trainer.predictions["test"] = predictions
        results |= metrics
        trainer.log(metrics)
        write_results(trainer, "test", results)
        samples = summary.sample_texts(trainer.task, records, predictions, data.sample_predictions, training.seed)
        tracking.log_texts(SAMPLES, samples, trainer.state.global_step)
        if trainer.is_world_process_zero():
            write_json(output_dir / "sample_predictions.json", samples)
    trainer.save_state()
    if trainer.is_world_process_zero():
        write_json(output_dir / "all_results.json", results)
        draw_loss_curve(output_dir / "metrics.jsonl", output_dir / "loss.png")
        write_model_card(output_dir, task_json, results, arguments)
    return results


def choose_batching(config: PreTrainedConfig, batching: str, longest_tokens: int) -> bool:
    """Whether to lay batches out as prefix trees.

    Raises:
        InputError: ``--batching prefix_tree`` with a model whose attention a tree cannot express.
    """
    if batching == "padded":
        return False
    if not can_express(config, longest_tokens):
        reason = f"{config.model_type} 的注意力不能用前缀树表示"
        if batching == "prefix_tree":
            raise InputError(f"--batching prefix_tree：{reason}；请用 auto 或 padded")
        logger.info("%s，按补齐的方式训练", reason)
        return False
    return True


def read_task(task_type: type[Task], train_file: Path) -> Task:
    """The task as conversion wrote it beside the training records.

    Raises:
        InputError: there is no such file, or it is another task's or of another format version.
    """
    path = settings_path(train_file)
    if not train_file.is_file():
        raise InputError(f"{train_file}：没有这个文件；请先运行 transfer_*.py，或用 --train_file 指定")
    settings = read_json(path)
    if settings.get("task") != task_type.name:
        raise InputError(
            f"{path}：这是 {settings.get('task')} 的数据，这个脚本训练 {task_type.name}；请换脚本或换数据"
        )
    if settings.get("format_version") != FORMAT_VERSION:
        found = settings.get("format_version")
        raise InputError(f"{path}：格式版本是 {found}，应是 {FORMAT_VERSION}；请用 transfer_*.py 重新转换")
    return task_type.from_settings(settings)


def read_splits(task: Task, arguments: Arguments) -> tuple[Numbered, Numbered, Numbered]:
    """Training, validation and test records with their line numbers; a text is in training or validation, not both."""
    data, training = arguments.data, arguments.training
    train = read_task_records(Path(data.train_file), task)[: data.max_train_samples]
    if training.eval_strategy == "no":
        validation = []
    elif data.validation_file is not None:
        validation = read_task_records(Path(data.validation_file), task)
    else:
        train, validation = hold_out(train, data.validation_ratio, data.max_validation_rows, training.seed)
    test_file = find_test_file(data.test_file, Path(data.train_file))
    test = read_task_records(test_file, task) if test_file else []
    logger.info("训练 %d 条，验证 %d 条，测试 %d 条（%s）", len(train), len(validation), len(test), test_file or "无")
    return train, validation, test


def hold_out(train: Numbered, ratio: float, most: int, seed: int) -> tuple[Numbered, Numbered]:
    """A slice of ``train``, by text, for validation; the same for the same seed whatever the order of the rows."""
    texts = sorted({record["text"] for _, record in train})
    count = min(most, int(len(texts) * ratio))
    held = set(random.Random(seed).sample(texts, count))
    return (
        [(line, record) for line, record in train if record["text"] not in held],
        [(line, record) for line, record in train if record["text"] in held],
    )


def find_test_file(test_file: str | None, train_file: Path) -> Path | None:
    """``--test_file``, ``none`` for none, or ``test_cls.jsonl`` beside ``train_cls.jsonl`` where there is one."""
    if test_file is not None:
        return None if test_file.lower() == "none" else Path(test_file)
    beside = train_file.with_name(train_file.name.replace("train", "test"))
    return beside if beside != train_file and beside.is_file() else None


def require_supervision(rows: Sequence[EncodedRow], train_file: str) -> None:
    """Every row must teach something, and there must be rows.

    Raises:
        InputError: no rows, or a row without supervised tokens.
    """
    if not rows:
        raise InputError(f"{train_file}：没有训练数据；请检查转换结果，或减小 --validation_ratio")
    for row in rows:
        if not row.answer_ids:
            raise InputError(f"{train_file}:{row.row}：没有任何需要学习的词元；请重新转换数据")


def as_dataset(rows: Sequence[EncodedRow]) -> Dataset:
    """The rows as a table, with the length that ``--train_sampling_strategy group_by_length`` sorts by."""
    return Dataset.from_dict(
        {
            "prompt_ids": [row.prompt_ids for row in rows],
            "answer_ids": [row.answer_ids for row in rows],
            "row": [row.row for row in rows],
            "length": [len(row) for row in rows],
        }
    )


def describe_run(arguments: Arguments, base_folder: Path, dtype: str) -> dict:
    """What decides a run's result, as flat names and values: data, model, settings."""
    data = arguments.data
    run = {
        "train_file": checkpoints.file_hash(Path(data.train_file))[:16],
        "max_train_samples": data.max_train_samples,
        "max_length": data.max_length,
        "batching": data.batching,
        "model": model_hash(base_folder),
        "dtype": dtype,
        **vars(arguments.lora),
    }
    if arguments.training.eval_strategy != "no":  # what is held out is not trained on
        run |= {"validation_file": data.validation_file and checkpoints.file_hash(Path(data.validation_file))[:16]}
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
    if (output_dir / "all_results.json").is_file():
        raise InputError(f"{output_dir}：已有训练完成的结果；请换一个 --output_dir，或加 --overwrite_output_dir 覆盖")
    if checkpoints.newest_whole(output_dir) is not None:
        raise InputError(
            f"{output_dir}：有没训练完的检查点；续训加 --resume_from_checkpoint true，重来加 --overwrite_output_dir"
        )
    return None


def settle_training_arguments(validation: Numbered, dtype: torch.dtype, arguments: Arguments) -> None:
    """Set the Trainer flags that follow from the rest: numbers, and no best checkpoint without evaluation."""
    training = arguments.training
    training.fp16 = dtype == torch.float16  # autocast and loss scaling; bfloat16 and float32 need neither
    training.dataloader_pin_memory = training.device.type == "cuda"
    training.length_column_name = "length"
    training.restore_callback_states_from_checkpoint = True  # early stopping goes on counting
    if not validation:
        training.eval_strategy = "no"
        training.eval_on_start = False
        training.load_best_model_at_end = False
        training.metric_for_best_model = None


def step_of(checkpoint: Path | None) -> int | None:
    """The optimizer step a checkpoint was taken after."""
    return int(checkpoint.name.removeprefix("checkpoint-")) if checkpoint else None


def write_results(trainer: SftTrainer, split: str, results: dict[str, float]) -> None:
    """``eval_results.json`` and its like: the figures whose names begin with ``split``."""
    if trainer.is_world_process_zero():
        figures = {name: value for name, value in results.items() if name.startswith(f"{split}_")}
        write_json(Path(trainer.args.output_dir) / f"{split}_results.json", figures)
