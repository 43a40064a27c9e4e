"""One fine-tuning run, top to bottom: read, encode, train, test, save."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, PreTrainedConfig, PreTrainedTokenizerBase, set_seed

import sft
from sft.decoding.decode import Limits
from sft.engine.attention import can_express
from sft.engine.batches import Batching, EncodedRow, PaddedBatching, PrefixTreeBatching
from sft.errors import InputError, RunError, Stopped
from sft.files import (
    ALL_RESULTS_FILE,
    LOSS_CURVE_FILE,
    METRICS_FILE,
    REPORT_FILE,
    SAMPLES_FILE,
    TASK_FILE,
    TRAIN_RESULTS_FILE,
    write_json,
)
from sft.model.encoding import LengthReport, encode_rows
from sft.model.hub import resolve_model
from sft.model.loading import add_lora, load_base, load_config, load_tokenizer, resolve_dtype
from sft.report.curves import draw_loss_curve
from sft.report.model_card import write_model_card
from sft.report.page import logged_not_raised
from sft.report.run import Lengths, RunData, RunFacts, write_run_report
from sft.tasks.settings import FORMAT_VERSION
from sft.tasks.task import Task
from sft.tracking.callbacks import MetricsLog
from sft.tracking.swanlab import SAMPLES, Tracking, start_tracking
from sft.training import checkpoints, preview, summary
from sft.training.arguments import Arguments
from sft.training.memory import peak_memory_bytes
from sft.training.prepare import Numbered, Splits, read_splits, read_task, require_supervision
from sft.training.resuming import describe_run, prepare_output, shown_settings, step_of
from sft.training.trainer import SftTrainer

logger = logging.getLogger(__name__)


def fine_tune(task_type: type[Task], arguments: Arguments) -> dict[str, float] | None:
    """Run one fine-tuning and leave everything `predict.py` needs in ``output_dir``.

    Returns:
        The metrics of the run (train, evaluation, test); None after ``--preview`` or ``--dry_run``.

    Raises:
        InputError: something the user gave is wrong; nothing was trained.
        RunError: NaN or Inf, or not enough memory.
        Stopped: SIGTERM or Ctrl-C.
    """
    data, training = arguments.data, arguments.training
    task = read_task(task_type, Path(data.train_file))
    splits = read_splits(task, arguments)
    base_folder = resolve_model(arguments.model.model_name_or_path)
    tokenizer = load_tokenizer(base_folder)
    rows, lengths = encode_rows(splits.train, task, tokenizer, data.max_length)
    require_supervision(rows, data.train_file)
    if data.preview:
        preview.show_rows(rows[: data.preview], tokenizer)
        return None
    dtype = resolve_dtype(arguments.model.dtype, training.device)
    logger.info("%s", preview.describe_lengths(lengths, data.max_length))
    longest_tokens = max(len(row) for row in rows)
    batching = choose_batching(load_config(base_folder), data.batching, longest_tokens, tokenizer.pad_token_id)
    if data.dry_run:
        preview.show_plan(rows, base_folder, dtype, batching, arguments)
        return None

    run, checkpoint = settle_run(base_folder, dtype, arguments)
    task_json = describe_task(task, rows, dtype, arguments)
    trainer = build_trainer(rows, splits, task, tokenizer, base_folder, dtype, batching, run, task_json, arguments)
    tracking = start_tracking(
        mode=arguments.tracking.swanlab_mode,
        project=arguments.tracking.swanlab_project,
        experiment=arguments.tracking.swanlab_experiment or Path(training.output_dir).name,
        log_dir=Path(arguments.tracking.swanlab_logdir),
        config=shown_settings(run, arguments),
        metrics_path=Path(training.output_dir) / METRICS_FILE,
    )
    trainer.add_callback(MetricsLog(Path(training.output_dir) / METRICS_FILE, step_of(checkpoint)))
    trainer.add_callback(tracking.callback)
    plan = summary.before_training(task, rows, splits, trainer.model, batching, checkpoint, tracking.where, arguments)
    logger.info("%s", plan)

    outcome = "crashed"
    try:
        results = train_and_test(trainer, checkpoint, splits.test, tracking, arguments, task_json)
        outcome = "success"
        write_page(trainer, splits, lengths, results, task_json, checkpoint, arguments)
        leave_other_processes(trainer)
    except (Stopped, KeyboardInterrupt):
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


def choose_batching(config: PreTrainedConfig, batching: str, longest_tokens: int, pad_id: int) -> Batching:
    """How rows become a batch.

    Raises:
        InputError: ``--batching prefix_tree`` with a model whose attention a tree cannot express.
    """
    if batching == "padded":
        return PaddedBatching(pad_id)
    if can_express(config, longest_tokens):
        return PrefixTreeBatching()
    reason = f"{config.model_type} 的注意力不能用前缀树表示"
    if batching == "prefix_tree":
        raise InputError(f"--batching prefix_tree：{reason}；请用 auto 或 padded")
    logger.info("%s，按补齐的方式训练", reason)
    return PaddedBatching(pad_id)


def settle_run(base_folder: Path, dtype: torch.dtype, arguments: Arguments) -> tuple[dict, Path | None]:
    """What the run is, its micro-batch size included, and the checkpoint it goes on from, None for a new one."""
    data = arguments.data
    max_tokens = data.max_tokens_per_micro_batch
    fitting = max_tokens or preview.fitting_tokens(preview.shape_of(base_folder), dtype, arguments)
    run = describe_run(arguments, base_folder, str(dtype)) | {checkpoints.MICRO_BATCH: fitting}
    checkpoint = prepare_output(Path(arguments.training.output_dir), run, arguments)
    if max_tokens is not None:  # said now, it counts for more than the checkpoint's
        run[checkpoints.MICRO_BATCH] = max_tokens
    return run, checkpoint


def describe_task(task: Task, rows: Sequence[EncodedRow], dtype: torch.dtype, arguments: Arguments) -> dict:
    """``task.json``: everything that `predict.py` has to know."""
    return {
        "format_version": FORMAT_VERSION,
        **task.settings(),
        "base_model": str(arguments.model.model_name_or_path),
        "dtype": str(dtype).removeprefix("torch."),
        "max_length": arguments.data.max_length,
        "max_new_tokens": max(64, 2 * max(len(row.answer_ids) for row in rows)),
        "version": sft.__version__,
    }


def build_trainer(
    rows: Sequence[EncodedRow],
    splits: Splits,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    base_folder: Path,
    dtype: torch.dtype,
    batching: Batching,
    run: dict,
    task_json: dict,
    arguments: Arguments,
) -> SftTrainer:
    """The base with a fresh adapter, and the trainer around them."""
    data, training = arguments.data, arguments.training
    set_seed(training.seed)  # the adapter's first weights
    base = load_base(base_folder, dtype)
    batching = batching.for_model(base, training.device)
    model = add_lora(base, arguments.lora)
    settle_training_arguments(splits.validation, dtype, arguments)
    trainer = SftTrainer(
        model=model,
        args=training,
        train_dataset=as_dataset(rows),
        processing_class=tokenizer,
        task=task,
        validation_records=[record for _, record in splits.validation],
        validation_rows=encode_rows(splits.validation, task, tokenizer, data.max_length)[0],
        limits=Limits(task_json["max_length"], task_json["max_new_tokens"], training.per_device_eval_batch_size),
        run=run,
        batching=batching,
        max_tokens_per_micro_batch=run[checkpoints.MICRO_BATCH],
    )
    if data.early_stopping_patience and splits.validation:
        trainer.add_callback(EarlyStoppingCallback(data.early_stopping_patience))
    return trainer


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


def as_dataset(rows: Sequence[EncodedRow]) -> Dataset:
    """The rows as a table, with the length that ``--train_sampling_strategy group_by_length`` sorts by."""
    return Dataset.from_dict(
        {
            "prompt_ids": [row.prompt_ids for row in rows],
            "answer_ids": [row.answer_ids for row in rows],
            "line": [row.line for row in rows],
            "length": [len(row) for row in rows],
        }
    )


def train_and_test(
    trainer: SftTrainer,
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
    if trainer.stop_on_signal.received is not None:
        leave_other_processes(trainer)
        raise Stopped(
            f"已停止；续训加 --resume_from_checkpoint true（{training.output_dir}）", trainer.stop_on_signal.received
        )
    trainer.save_model()
    if trainer.is_world_process_zero():
        write_json(output_dir / TASK_FILE, task_json)
        write_json(output_dir / TRAIN_RESULTS_FILE, results)
    if trainer.validation_records:
        # Of the best weights, which may not be the last: not logged, for the curve is of what was there at each step.
        metrics, predictions = trainer.validate("eval")
        trainer.predictions["after"] = predictions
        results |= metrics
        write_results(trainer, "eval", results)
        task_json["threshold"] = trainer.threshold
        if trainer.is_world_process_zero():
            write_json(output_dir / TASK_FILE, task_json)
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
            write_json(output_dir / SAMPLES_FILE, samples)
    trainer.save_state()
    if trainer.is_world_process_zero():
        write_json(output_dir / ALL_RESULTS_FILE, results)
        draw_loss_curve(output_dir / METRICS_FILE, output_dir / LOSS_CURVE_FILE)
        write_model_card(output_dir, shown_settings(trainer.run, arguments) | task_json, results)
    return results


def leave_other_processes(trainer: SftTrainer) -> None:
    """Close the connections of several processes: one that ends with them open can abort, and take the rest along."""
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


def write_results(trainer: SftTrainer, split: str, results: dict[str, float]) -> None:
    """``eval_results.json`` and its like: the figures whose names begin with ``split``."""
    if trainer.is_world_process_zero():
        figures = {name: value for name, value in results.items() if name.startswith(f"{split}_")}
        write_json(Path(trainer.args.output_dir) / f"{split}_results.json", figures)


def write_page(
    trainer: SftTrainer,
    splits: Splits,
    lengths: LengthReport,
    results: dict[str, float],
    task_json: dict,
    checkpoint: Path | None,
    arguments: Arguments,
) -> None:
    """``report.html``; a failure is logged, not raised."""
    if not trainer.is_world_process_zero():
        return
    output_dir = Path(arguments.training.output_dir)
    data = RunData(
        splits={name: [record for _, record in numbered] for name, numbered in splits._asdict().items()},
        lengths=Lengths(
            tokens=lengths.lengths,
            max_length=task_json["max_length"],
            shortened_lines=lengths.shortened_rows,
            pieces=lengths.pieces,
            dropped_tokens=lengths.dropped_tokens,
        ),
        train_file=Path(arguments.data.train_file),
    )
    facts = RunFacts(
        base_model=task_json["base_model"],
        dtype=task_json["dtype"],
        device_type=arguments.training.device.type,
        steps=trainer.state.global_step,
        resumed=checkpoint is not None,
    )
    settings = shown_settings(trainer.run, arguments) | task_json
    with logged_not_raised(output_dir / REPORT_FILE):
        write_run_report(output_dir, trainer.task, data, trainer.predictions, results, facts, settings)
