"""transformers' Trainer with this project's loss, evaluation by real predictions, and checkpoints that are whole."""

from __future__ import annotations

import logging
import math
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import torch
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_utils import rotate_checkpoints

from sft.console import is_watched, progress
from sft.decoding.decode import Limits, predict
from sft.engine.batches import Batching, EncodedRow, batch_tokens, micro_batches
from sft.engine.loss import frozen_head, supervised_loss
from sft.errors import RunError
from sft.files import read_json, write_json
from sft.tasks.evaluation import at_least, best_threshold, score_predictions
from sft.tasks.task import Task
from sft.tracking.callbacks import LogLines, ProgressOnStderr
from sft.training import checkpoints

logger = logging.getLogger(__name__)

TOKEN_COUNTS = "token_counts.json"  # in a checkpoint: tokens executed and logical so far


class SftTrainer(Trainer):
    """Trains on `EncodedRow`s and evaluates on records, by loss and by what `sft.decoding.decode.predict` answers.

    Args:
        task: the task, for prompts, parsing and scores.
        validation_records: whole records to predict; empty for none.
        validation_rows: the same records encoded, for the loss.
        limits: the lengths of predictions, as `predict.py` will use them.
        run: what a checkpoint must match to be resumed (see `checkpoints.to_resume`).
        batching: how rows become a batch.
        max_tokens_per_micro_batch: a batch with more is computed in pieces, with the same result.
    """

    loss_is_scaled_for_ga = True  # supervised_loss divides by the supervised tokens of the whole step

    def __init__(
        self,
        *,
        task: Task,
        validation_records: Sequence[dict],
        validation_rows: Sequence[EncodedRow],
        limits: Limits,
        run: dict,
        batching: Batching,
        max_tokens_per_micro_batch: int,
        **keywords,
    ) -> None:
        super().__init__(data_collator=self._collate, eval_dataset=list(validation_rows) or None, **keywords)
        self.task = task
        self.validation_records = validation_records
        self.validation_rows = validation_rows
        self.limits = limits
        self.run = run
        self.batching = batching
        self.max_tokens_per_micro_batch = max_tokens_per_micro_batch
        self.executed_tokens = self.logical_tokens = 0  # by this process since the start
        self.batch_tokens = 0  # executed for the last batch
        self.flops_a_token: int | None = None
        self.timed_tokens, self.timed_since = 0, time.perf_counter()
        self.threshold: float | None = None  # entities less probable are not given; chosen on the validation records
        self.predictions: dict[str, list[dict]] = {}  # of the validation records, before training and latest
        self.adapter = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if frozen_head(self.model) is None or self.args.torch_compile:
            logger.info("输出层由模型自己计算（它带适配器、模型被编译，或不是普通的线性层）：显存随学习的词元数增加")
        self.step_lines: list[
            int
        ] = []  # the lines of the step's rows under way, to name them when something is not finite
        self._folder_of_checkpoints: str | None = None
        for callback in (DEFAULT_PROGRESS_CALLBACK, PrinterCallback):  # both write to stdout, which is for results
            self.remove_callback(callback)
        self.stop_on_signal = StopOnSignal()
        self.add_callback(self.stop_on_signal)
        self.add_callback(StopOnNonFinite(self))
        self.add_callback(ProgressOnStderr() if is_watched() and not self.args.disable_tqdm else LogLines())

    def _collate(self, rows: Sequence[dict]) -> dict[str, object]:
        """The rows of a batch, and all their labels, by which the Trainer counts supervised tokens."""
        encoded = [EncodedRow(row["prompt_ids"], row["answer_ids"], row["line"]) for row in rows]
        labels = torch.tensor([[token for row in encoded for token in row.answer_ids]])
        return {"rows": encoded, "labels": labels, "shift_labels": labels}

    # ---- loss ----

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Forward and backward of one batch; out of memory, all of it again in pieces half the size."""
        gradients = [parameter.grad for parameter in self.adapter]  # of the step's earlier batches
        gradients = [gradient if gradient is None else gradient.clone() for gradient in gradients]
        while True:
            pieces = micro_batches(inputs["rows"], self.max_tokens_per_micro_batch, self.batching)
            self.batch_tokens = sum(batch_tokens(piece) for piece in pieces)
            try:
                loss = self._forward_backward(model, pieces, num_items_in_batch)
                break
            except RuntimeError as error:
                if not should_reduce_batch_size(error) or max(len(piece["lines"]) for piece in pieces) == 1:
                    raise
            for parameter, gradient in zip(self.adapter, gradients, strict=True):
                parameter.grad = gradient if gradient is None else gradient.clone()
            self._halve(max(batch_tokens(piece) for piece in pieces))
        self.executed_tokens += self.batch_tokens
        self.logical_tokens += sum(len(row) for row in inputs["rows"])
        return loss

    def _forward_backward(self, model, pieces: Sequence[dict], num_items_in_batch) -> torch.Tensor:
        """Piece by piece; gradients meet between processes at the last one."""
        *before, last = pieces
        loss = torch.zeros((), device=self.args.device)
        for piece in before:
            with self.accelerator.no_sync(model):
                loss += super().training_step(model, piece, num_items_in_batch)
        try:
            return loss + super().training_step(model, last, num_items_in_batch)
        except torch.OutOfMemoryError as error:
            if self.accelerator.num_processes == 1 or not self.accelerator.sync_gradients:
                raise
            raise RunError(  # the other processes have had their part of this piece's gradient
                "有一张卡显存不够，多卡时无法只在一张卡上重算；请把 --max_tokens_per_micro_batch 设得比 "
                f"{self.max_tokens_per_micro_batch} 小，再用 --resume_from_checkpoint true 续训"
            ) from error

    def _halve(self, largest_tokens: int) -> None:
        """Make pieces half as large as the one that did not fit, from now on and in the checkpoints to come."""
        self.max_tokens_per_micro_batch = min(self.max_tokens_per_micro_batch, largest_tokens) // 2
        self.run[checkpoints.MICRO_BATCH] = self.max_tokens_per_micro_batch
        clear_device_cache(garbage_collection=True)
        logger.warning(
            "第 %d 步显存不够：每次前向改为最多 %d 个词元，重算这一批；每步的数据和结果不变",
            self.state.global_step + 1,
            self.max_tokens_per_micro_batch,
        )

    def floating_point_ops(self, inputs) -> int:
        """What transformers estimates, from the tokens that the batch came to."""
        if self.flops_a_token is None:  # asked once: transformers counts all parameters anew each time
            self.flops_a_token = super().floating_point_ops({"input_ids": torch.empty(1, device="meta")})
        return self.batch_tokens * self.flops_a_token

    def token_counts(self) -> tuple[int, int]:
        """Tokens executed and logical since the start, of all processes; all of them must ask."""
        counts = torch.tensor([self.executed_tokens, self.logical_tokens], device=self.args.device)
        executed, logical = self.accelerator.reduce(counts, reduction="sum").tolist()
        return executed, logical

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with tokens and tokens a second beside every training loss."""
        if "loss" in logs or "train_loss" in logs:
            executed, logical = self.token_counts()
            logs |= {"executed_tokens": executed, "logical_tokens": logical}
        if "loss" in logs:
            now = time.perf_counter()
            logs["tokens_per_second"] = (logical - self.timed_tokens) / (now - self.timed_since)
            self.timed_tokens, self.timed_since = logical, now
        super().log(logs, start_time)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross-entropy over the supervised tokens of the whole optimizer step, over accumulation and processes."""
        lines = inputs["lines"].tolist()
        self.step_lines += lines
        loss = supervised_loss(model, inputs, num_items_in_batch) * self.accelerator.num_processes
        if not math.isfinite(loss.item()):
            raise RunError(
                f"第 {self.state.global_step + 1} 步的损失是 {loss.item()}，已停止；"
                f"这一批是训练集第 {_listed(lines)} 行；可试 --dtype float32 或更小的 --learning_rate"
            )
        return loss

    # ---- evaluation ----

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Loss and metrics of predictions on the validation records; logged, and given to the callbacks."""
        started = time.perf_counter()
        metrics, predictions = self.validate(metric_key_prefix)
        self.predictions["before" if self.state.global_step == 0 else "after"] = predictions
        self.timed_since += time.perf_counter() - started  # tokens a second are those of training
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def validate(self, prefix: str) -> tuple[dict[str, float], list[dict]]:
        """`measure` on the validation records, which also tell how probable an entity must be to be given."""
        return self.measure(self.validation_records, self.validation_rows, prefix, choose_threshold=True)

    def measure(
        self, records: Sequence[dict], rows: Sequence[EncodedRow], prefix: str, choose_threshold: bool = False
    ) -> tuple[dict[str, float], list[dict]]:
        """``({prefix_loss, prefix_<metric>, …}, predictions)`` of records; processes share the work."""
        mine = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        loss_sum, supervised_tokens = self._loss_sum(rows[mine])
        model = self.accelerator.unwrap_model(self.model)
        predicting = predict(model, self.processing_class, self.task, records[mine], self.limits)
        predicted = list(progress(predicting, "预测", total=len(records[mine]), hidden=self.args.disable_tqdm))
        shares = gather_object([(loss_sum, supervised_tokens, predicted)])
        predictions: list[dict] = [{}] * len(records)
        for rank, (_, _, share) in enumerate(shares):
            predictions[rank :: self.accelerator.num_processes] = share
        golds = [self.task.gold(record) for record in records]
        if choose_threshold:
            self.threshold = best_threshold(self.task, golds, predictions)
        predictions = at_least(self.task, predictions, self.threshold)
        metrics = score_predictions(self.task, golds, predictions) or {}
        if self.threshold is not None:
            metrics["threshold"] = self.threshold
        metrics["loss"] = sum(share[0] for share in shares) / max(1, sum(share[1] for share in shares))
        return {f"{prefix}_{name}": value for name, value in metrics.items()}, predictions

    @torch.no_grad()
    def _loss_sum(self, rows: Sequence[EncodedRow]) -> tuple[float, int]:
        """``(summed loss, supervised tokens)`` of rows."""
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        pieces = micro_batches(rows, self.max_tokens_per_micro_batch, self.batching)
        pieces = progress(pieces, "验证损失", "批", hidden=self.args.disable_tqdm)
        loss_sum = sum(supervised_loss(model, self._prepare_inputs(piece), 1).item() for piece in pieces)
        model.train(was_training)
        return loss_sum, sum(len(row.answer_ids) for row in rows)

    # ---- checkpoints ----

    def train(self, resume_from_checkpoint: str | None = None, **keywords):
        """As transformers', with the token counts of the checkpoint."""
        if resume_from_checkpoint is not None:
            executed, logical = read_json(Path(resume_from_checkpoint) / TOKEN_COUNTS)
            self.timed_tokens = logical
            if self.is_world_process_zero():
                self.executed_tokens, self.logical_tokens = executed, logical
            self.args.eval_on_start = False  # it was, and a second evaluation of a step would count as patience
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **keywords)

    def _get_output_dir(self, trial) -> str:
        return self._folder_of_checkpoints or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial) -> None:
        """Write the checkpoint beside, seal it with its manifest, rename it; then let older ones go."""
        output_dir = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        beside, final = output_dir / f".saving-{name}", output_dir / name
        if (final / checkpoints.MANIFEST).is_file() and checkpoints.fault(final) is None:
            return  # the end of an epoch can ask for the step that was just saved
        self._folder_of_checkpoints = str(beside)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._folder_of_checkpoints = None
        self.accelerator.wait_for_everyone()  # every process writes its own random state
        if self.state.best_global_step is not None:
            self.state.best_model_checkpoint = str(output_dir / f"checkpoint-{self.state.best_global_step}")
        token_counts = self.token_counts()
        if self.args.should_save:
            self.state.save_to_json(str(beside / name / "trainer_state.json"))
            write_json(beside / name / TOKEN_COUNTS, token_counts)
            checkpoints.seal(beside / name, self.run)
            shutil.rmtree(final, ignore_errors=True)  # a damaged one of the same step
            (beside / name).rename(final)
            beside.rmdir()
            rotate_checkpoints(
                output_dir=str(output_dir),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )
        self.accelerator.wait_for_everyone()


def _listed(lines: Sequence[int]) -> str:
    return "、".join(str(line) for line in sorted(set(lines))[:20])


class StopOnNonFinite(TrainerCallback):
    """Stops the run before a NaN or Inf gradient reaches the weights, naming the rows of the step."""

    def __init__(self, trainer: SftTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_
    ) -> None:
        lines, self.trainer.step_lines = self.trainer.step_lines, []
        if args.fp16:
            return  # the loss scaler meets Inf by design, and skips the step itself
        gradients = [parameter.grad for parameter in self.trainer.adapter if parameter.grad is not None]
        if not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
            raise RunError(
                f"第 {state.global_step + 1} 步的梯度出现 NaN 或 Inf，已停止；这一步是训练集第 {_listed(lines)} 行；"
                "可试 --dtype float32 或更小的 --learning_rate"
            )


class StopOnSignal(TrainerCallback):
    """SIGTERM or Ctrl-C: finish the step, save a checkpoint, stop. A second one kills as usual."""

    def __init__(self) -> None:
        self.received: int | None = None

    def on_train_begin(self, args, state, control, **_) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        logger.warning("收到 %s：完成这一步并保存检查点后停止", signal.Signals(number).name)

    def on_step_end(self, args, state, control: TrainerControl, **_) -> None:
        if self.received is not None:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_epoch_end(self, args, state, control: TrainerControl, **_) -> None:
        self.on_step_end(args, state, control)

    def on_train_end(self, args, state, control, **_) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
