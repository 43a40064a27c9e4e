"""One fine-tuning run from start to end: prepare, open, train, evaluate, write the results."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import EarlyStoppingCallback, TrainerCallback, set_seed

from sft.data.records import write_check_rows
from sft.decoding.limits import Limits
from sft.engine.compiled_layers import compile_layers
from sft.errors import InputError, RunError, Stopped, is_out_of_memory, memory_name
from sft.files import (
    ADAPTER_FILE,
    ALL_RESULTS_FILE,
    CHECK_ROWS_FILE,
    LOSS_CURVE_FILE,
    METRICS_FILE,
    REPORT_FILE,
    SAMPLES_FILE,
    TASK_FILE,
    TRAIN_RESULTS_FILE,
    write_json,
)
from sft.model.devices import require_finite
from sft.model.hub import license_of, published_id
from sft.model.loading import load_adapter, load_base
from sft.model.lora import add_lora
from sft.report.curves import draw_loss_curve
from sft.report.model_card import write_model_card
from sft.report.page import logged_not_raised
from sft.report.run import Kept, Lengths, RunData, RunFacts, write_run_report
from sft.tasks.settings import TaskSettings
from sft.tasks.task import Task
from sft.tracking.callbacks import MetricsLog
from sft.tracking.swanlab import SAMPLES, Tracking, start_tracking
from sft.training.arguments import Arguments
from sft.training.checkpoints import told_if_not_written
from sft.training.choosing_rows import Numbered
from sft.training.continuing import ResumedTrainer
from sft.training.evaluation import Evaluation, Evaluator, Examples, named_metrics
from sft.training.learning_rate import Loaded, SearchLog, with_learning_rate
from sft.training.memory import peak_memory_bytes
from sft.training.prepare import Prepared, prepare
from sft.training.preview import show_plan, show_rows
from sft.training.run import Run, look_at_folder, open_run, own_folder, shown_path, shown_settings
from sft.training.steps import rows_a_step
from sft.training.summary import before_training, sample_texts
from sft.training.trainer import SftTrainer, as_dataset

logger = logging.getLogger(__name__)


def fine_tune(task_type: type[Task], arguments: Arguments) -> dict[str, float] | None:
    """Run one fine-tuning, and write everything that `predict.py` needs into ``--output_dir``.

    Returns:
        The metrics of the run (train, evaluation, test); None after ``--preview`` or ``--dry_run``, and if the run
        to resume is finished.

    Raises:
        InputError: a file or a flag is wrong; nothing was trained.
        RunError: the loss or a gradient is NaN or Inf, or memory ran out.
        Stopped: the run was stopped by SIGTERM or Ctrl-C.
    """
    prepared = prepare(task_type, arguments)  # writes nothing but a base model that is missing, reads no weights
    if arguments.data.preview:
        show_rows(prepared.rows.train[: arguments.data.preview], prepared.tokenizer)
    if arguments.data.dry_run:
        show_plan(prepared)
        resuming = look_at_folder(prepared)
        sys.stdout.write(f"检查通过，没有开始训练{resuming}\n")
    if arguments.data.preview or arguments.data.dry_run:
        return None
    with own_folder(prepared):
        run = open_run(prepared)  # checkpoint to resume, identity, micro-batch
        if run is None:
            return None  # it is finished
        with told_if_out_of_memory(prepared):
            run = with_learning_rate(prepared, run, lambda: load(prepared))
        trainer = build_trainer(prepared, run)
        with tracked(prepared, run, trainer) as tracking:
            logger.info("%s", before_training(prepared, run, trainer.model, tracking.where))
            trained = trainer.train(resume_from_checkpoint=run.checkpoint and str(run.checkpoint))
            results = training_results(trainer, trained.metrics)
            stop_if_asked(trainer)
            save_adapter(trainer, run.settings, results)  # usable even if the evaluation below is killed
            best = evaluate_best(trainer)
            settings = run.settings.replace(**best.chosen()) if best else run.settings
            if trainer.is_world_process_zero():
                settings.write(run.output_dir / TASK_FILE)
            tested = evaluate_test(trainer, prepared, tracking, settings)
            trainer.save_state()
            results |= named_metrics(best, "eval") | named_metrics(tested, "test")
            if run.search is not None:
                results["learning_rate"] = run.search.rate
            if trainer.is_world_process_zero():
                evaluations = {"before": trainer.before, "after": best, "test": tested}
                steps, kept = trainer.state.global_step, what_is_kept(trainer, best)
                write_down(prepared, run, settings, steps, kept, results, evaluations)
            leave_other_processes(trainer)
        return results


def build_trainer(prepared: Prepared, run: Run) -> SftTrainer:
    """Load the base model, add a new adapter or the one of ``--init_adapter``, and build the trainer.

    Raises:
        InputError: the model or the adapter cannot be read, or the model's numbers are too large for float16.
    """
    arguments, splits = prepared.arguments, prepared.splits
    model, evaluator = load(prepared)
    trainer = (ResumedTrainer if run.resumed else SftTrainer)(
        model=model,
        args=arguments.training,
        train_dataset=as_dataset(prepared.rows.train),
        processing_class=prepared.tokenizer,
        evaluator=evaluator,
        validation=Examples(records_of(splits.validation), prepared.rows.validation),
        run=run,
    )
    if arguments.data.early_stopping_patience and splits.validation:
        trainer.add_callback(EarlyStoppingCallback(arguments.data.early_stopping_patience))
    longest = max(prepared.rows.train, key=len)
    require_finite(model, longest.prompt_ids + longest.answer_ids, f"{arguments.data.train_file}:{longest.line}")
    return trainer


def load(prepared: Prepared) -> Loaded:
    """The model with an adapter as training starts from it, and what evaluates it; errors as in `build_trainer`."""
    arguments, settings = prepared.arguments, prepared.settings
    training = arguments.training
    set_seed(training.seed)  # for the initial weights of the adapter
    base = load_base(prepared.base_folder, prepared.dtype, settings.quantization, training.device)
    trained = arguments.model.init_adapter
    batching = prepared.batching.for_model(base, training.device)
    if trained:
        model = load_adapter(base, Path(trained), trainable=True, lora_dropout=arguments.lora.lora_dropout)
    else:
        model = add_lora(base, **vars(arguments.lora))
    if training.compile_layers:
        if not getattr(getattr(batching, "tree", batching), "varlen", False):
            raise InputError("--compile_layers：只在变长注意力下有用，这张卡、这个模型或 --batching 用不了；请去掉它")
        compile_layers(model)
    limits = Limits(
        settings.max_length,
        settings.max_new_tokens,
        training.per_device_eval_batch_size,
        piece_tokens=settings.usual_text_tokens,
    )
    return model, Evaluator(settings.task, prepared.tokenizer, limits, batching, quiet=training.disable_tqdm)


def records_of(numbered: Numbered) -> list[dict]:
    """The records without their line numbers."""
    return [record for _, record in numbered]


@contextmanager
def tracked(prepared: Prepared, run: Run, trainer: SftTrainer) -> Iterator[Tracking]:
    """Record the run in ``metrics.jsonl`` and SwanLab, and close both when the ``with`` block ends or raises.

    Raises:
        RunError: memory ran out inside the block.
    """
    flags = prepared.arguments.tracking
    tracking = start_tracking(
        mode=flags.swanlab_mode,
        project=flags.swanlab_project,
        experiment=flags.swanlab_experiment or prepared.arguments.training.run_name,
        default_experiment=run.output_dir.name,
        log_dir=Path(flags.swanlab_logdir),
        config=shown_settings(prepared, run),
        metrics_path=run.output_dir / METRICS_FILE,
    )
    resumed = run.resumed
    trainer.add_callback(MetricsLog(run.output_dir / METRICS_FILE, resumed and resumed.step, resumed and resumed.rows))
    trainer.add_callback(tracking.callback)
    trainer.add_callback(SamplesAtStart(prepared, trainer, tracking))
    trainer.add_callback(SearchLog(trainer))
    state = "crashed"
    try:
        with told_if_out_of_memory(prepared):
            yield tracking
        state = "success"
    except (Stopped, KeyboardInterrupt):
        state = "aborted"
        raise
    finally:
        tracking.finish(state)


@contextmanager
def told_if_out_of_memory(prepared: Prepared) -> Iterator[None]:
    """Inside this block, memory that runs out becomes one line.

    Raises:
        RunError: it ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(f"{memory_name(error)}不够：{advice_on_memory(prepared)}") from error


def advice_on_memory(prepared: Prepared) -> str:
    """What a run can do that has no memory left: what it does not do yet, the cheapest first."""
    recomputes = prepared.arguments.training.gradient_checkpointing
    parts = ["加 --gradient_checkpointing"] * (not recomputes)
    parts += ["用 --quantization nf4"] * (prepared.settings.quantization is None)
    parts.append("减小 --max_tokens_per_micro_batch 或 --max_length")
    return f"请{'、'.join(parts)}，或换小一些的模型；别的程序占着它，就先关掉"


class SamplesAtStart(TrainerCallback):
    """Sends sample predictions of the model before training to SwanLab, so that the samples are its first chart."""

    def __init__(self, prepared: Prepared, trainer: SftTrainer, tracking: Tracking) -> None:
        self._prepared, self._trainer, self._tracking = prepared, trainer, tracking

    def on_evaluate(self, args, state, control, **_) -> None:
        if state.global_step == 0 and state.is_world_process_zero:
            predictions = self._trainer.before.predictions
            records, count = self._trainer.validation.records, self._prepared.arguments.data.sample_predictions
            samples = sample_texts(self._prepared.task, records, predictions, count, args.seed)
            self._tracking.log_texts(SAMPLES, samples, 0, on_top=True)


def training_results(trainer: SftTrainer, metrics: dict[str, float]) -> dict[str, float]:
    """The Trainer's metrics, the token counts, and the peak memory in bytes. Every process must call this."""
    executed, logical = trainer.token_counts()
    figures = {"executed_tokens": executed, "logical_tokens": logical}
    return metrics | figures | {"peak_memory_bytes": peak_memory_bytes(trainer.args.device)}


def stop_if_asked(trainer: SftTrainer) -> None:
    """End the run if a signal asked any process for it. The checkpoint has been saved. Every process must call this.

    Raises:
        Stopped: there was a signal.
    """
    received = trainer.stop_on_signal.agreed()
    if received is not None:
        leave_other_processes(trainer)
        raise Stopped(f"已停止；续跑加 --resume_from_checkpoint true（{trainer.run.output_dir}）", received)


def leave_other_processes(trainer: SftTrainer) -> None:
    """Close the connections between processes. A process that ends without this can abort and kill the others."""
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


def save_adapter(trainer: SftTrainer, settings: TaskSettings, results: dict[str, float]) -> None:
    """Write the best adapter, and the other files that `predict.py` needs.

    The ``task.json`` of an earlier run goes first: a run that is killed here must not leave it beside a new adapter.
    """
    if trainer.is_world_process_zero():
        (trainer.run.output_dir / TASK_FILE).unlink(missing_ok=True)
    with told_if_not_written(trainer.run.output_dir / ADAPTER_FILE):
        trainer.save_model()
    if trainer.is_world_process_zero():
        settings.write(trainer.run.output_dir / TASK_FILE)
        write_json(trainer.run.output_dir / TRAIN_RESULTS_FILE, results)


def evaluate_best(trainer: SftTrainer) -> Evaluation | None:
    """Evaluate the saved weights on the validation records; None if there are no such records.

    The best weights may not be the last ones. So the metrics are not logged: the curve shows what was at each step.
    """
    if not trainer.validation.records:
        return None
    best = trainer.validate()
    if trainer.is_world_process_zero():
        write_metrics(trainer.run.output_dir, "eval", best)
    return best


def evaluate_test(
    trainer: SftTrainer, prepared: Prepared, tracking: Tracking, settings: TaskSettings
) -> Evaluation | None:
    """Evaluate on the test records, once, and keep some predictions as samples; None if there are no such records.

    Args:
        settings: with the threshold and the calibration that the adapter remembers.
    """
    if not prepared.splits.test:
        return None
    examples = Examples(records_of(prepared.splits.test), prepared.rows.test)
    tested = trainer.evaluator.evaluate(trainer.model, examples, trainer.max_tokens, trainer.accelerator, settings)
    trainer.log(named_metrics(tested, "test"))
    if trainer.is_world_process_zero():
        write_metrics(trainer.run.output_dir, "test", tested)
    count, seed = prepared.arguments.data.sample_predictions, trainer.args.seed
    samples = sample_texts(prepared.task, examples.records, tested.predictions, count, seed)
    tracking.log_texts(SAMPLES, samples, trainer.state.global_step)
    if trainer.is_world_process_zero():
        write_json(trainer.run.output_dir / SAMPLES_FILE, samples)
    return tested


def what_is_kept(trainer: SftTrainer, best: Evaluation | None) -> Kept:
    """Which step's weights are saved, by which metric they were chosen, with which threshold and calibration."""
    state, training = trainer.state, trainer.args
    chosen = best.chosen() | {"predictions": best.unfiltered} if best else {}
    if training.load_best_model_at_end and state.best_global_step:
        return Kept(state.best_global_step, training.metric_for_best_model, **chosen)
    return Kept(state.global_step, **chosen)


def write_metrics(output_dir: Path, split: str, evaluation: Evaluation) -> None:
    """``eval_results.json`` and ``test_results.json``."""
    write_json(output_dir / f"{split}_results.json", named_metrics(evaluation, split))


def write_down(
    prepared: Prepared,
    run: Run,
    settings: TaskSettings,
    steps: int,
    kept: Kept,
    results: dict[str, float],
    evaluations: dict[str, Evaluation | None],
) -> None:
    """Results, loss curve, model card and report. A report that cannot be written is logged, not raised.

    Args:
        steps: optimizer steps of the run.
        kept: the weights and the threshold that the run keeps.
        evaluations: ``before`` and ``after`` training on the validation records, and ``test``, as far as they exist.
    """
    output_dir, lengths = run.output_dir, prepared.lengths
    draw_loss_curve(output_dir / METRICS_FILE, output_dir / LOSS_CURVE_FILE, kept.step)
    rows = {"rows_a_step": rows_a_step(prepared.arguments.training)}
    base_model = shown_path(settings.base_model)
    shown = shown_settings(prepared, run) | settings.to_json() | rows | {"base_model": base_model}
    known = {"hub_id": published_id(settings.base_model or ""), "license": license_of(prepared.base_folder)}
    write_model_card(output_dir, shown | known, results)
    kept_rows = records_of((*prepared.splits.test, *prepared.splits.validation))
    write_check_rows(output_dir / CHECK_ROWS_FILE, settings.task, kept_rows)
    data = RunData(
        {split: records_of(numbered) for split, numbered in prepared.splits._asdict().items()},
        Lengths(
            tokens=lengths.lengths,
            max_length=settings.max_length,
            shortened_lines=lengths.shortened_lines,
            pieces=lengths.pieces,
            dropped_tokens=lengths.dropped_tokens,
        ),
        Path(prepared.arguments.data.train_file),
    )
    facts = RunFacts(
        base_model=base_model,
        dtype=settings.dtype,
        device_type=prepared.arguments.training.device.type,
        steps=steps,
        kept=kept,
        trials=run.search.trials if run.search else (),
    )
    predictions = {name: evaluation.predictions for name, evaluation in evaluations.items() if evaluation}
    with logged_not_raised(output_dir / REPORT_FILE):
        write_run_report(output_dir, settings.task, data, predictions, results, facts, shown)
    write_json(output_dir / ALL_RESULTS_FILE, results)  # last: it says that the run is finished
