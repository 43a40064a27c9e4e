"""transformers' Trainer with this project's loss, evaluation by real predictions, and checkpoints with a manifest."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from transformers import PrinterCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from sft.console import is_watched
from sft.engine.batches import EncodedRow, batch_tokens, micro_batches, to_device
from sft.engine.lora_node import adapters_copied, one_node_layers
from sft.engine.loss import frozen_head, supervised_loss
from sft.errors import InputError, RunError, is_out_of_memory, memory_name
from sft.processes import largest
from sft.tracking.charts import is_of_one_label
from sft.training.callbacks import StopOnNonFinite, StopOnSignal
from sft.training.evaluation import Evaluation, Evaluator, Examples, named_metrics
from sft.training.log_lines import LogLines, ProgressOnStderr
from sft.training.run import Run
from sft.training.saving import SavingTrainer
from sft.training.sharding import groups_of, is_asked_for, is_sharded, whole

logger = logging.getLogger(__name__)

SURPLUS = "surplus"  # marks a micro-batch that only keeps the other processes company


class SftTrainer(SavingTrainer):
    """Trains on `EncodedRow`s and evaluates on records.

    Args:
        evaluator: computes loss and metrics; training uses its batching, too.
        validation: the validation records; can be empty.
        run: the run to train.
        keywords: further arguments of transformers' `Trainer`.

    Attributes:
        executed_tokens: tokens that this process computed since the start, padding included.
        logical_tokens: tokens of the rows that this process trained on since the start.
        stop_on_signal: has the number of the signal if the run was asked to stop.
    """

    loss_is_scaled_for_ga = True  # supervised_loss divides by the supervised tokens of the whole step

    def __init__(self, *, evaluator: Evaluator, validation: Examples, run: Run, **keywords) -> None:
        super().__init__(run=run, data_collator=_keep_rows, eval_dataset=list(validation.rows) or None, **keywords)
        self.evaluator, self.validation = evaluator, validation
        self.executed_tokens = self.logical_tokens = 0
        self.batch_tokens = 0  # executed tokens of the last batch
        self.flops_a_token: int | None = None
        self.timed_tokens = 0
        self.timed_since: float | None = None  # the first step begins
        self.adapter = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.lora_layers = one_node_layers(self.model)
        self._say_how_the_head_is_computed()
        self._set_callbacks()

    def _say_how_the_head_is_computed(self) -> None:
        if frozen_head(self.model) is None or self.args.torch_compile:
            logger.info(
                "输出层由模型自己计算（它带适配器、被编译，或输出不只是一个线性层）：显存随学习的 token 数增加"
            )

    def _set_callbacks(self) -> None:
        for callback in (DEFAULT_PROGRESS_CALLBACK, PrinterCallback):  # both write to stdout, which is for results
            self.remove_callback(callback)
        self.stop_on_signal = StopOnSignal()
        self.stop_on_non_finite = StopOnNonFinite(scales=self.accelerator.scaler is not None)
        shown = [ProgressOnStderr(), LogLines()] if is_watched() and not self.args.disable_tqdm else [LogLines()]
        for callback in (self.stop_on_signal, *shown):
            self.add_callback(callback)

    def _prepare_for_training(self, *arguments, **keywords):
        prepared = super()._prepare_for_training(*arguments, **keywords)
        # FSDP2 has put parts in place of the parameters
        self.adapter = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if is_asked_for(self.args):
            if not is_sharded(self.model):
                raise RunError("要了 FSDP，但 accelerate 没有把权重分到各进程；请去掉它，用 torchrun")
            groups, processes = groups_of(self.model), self.args.world_size
            logger.info("FSDP2：%d 组权重分在 %d 个进程里；验证时每个进程都有整个模型", groups, processes)
        return prepared

    # ---- loss ----

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Forward and backward pass of one batch, in micro-batches. Returns the loss, a scalar.

        If memory runs out, the whole batch is computed again in micro-batches of half the size.

        Raises:
            RunError: one of several processes is out of memory.
        """
        if self.timed_since is None:
            self.timed_since = time.perf_counter()
        gradients = _copies([parameter.grad for parameter in self.adapter])  # from earlier batches of the step
        while True:
            batches = micro_batches(inputs["rows"], self.max_tokens, self.evaluator.batching)
            batches = self._as_many_in_all_processes(batches)
            self.batch_tokens = sum(map(batch_tokens, batches))
            losses, last = [], False
            try:
                for batch in batches:
                    last = batch is batches[-1]  # the processes exchange gradients in the last one
                    with nullcontext() if last else self.accelerator.no_sync(model), self._adapters_copied():
                        losses.append(super().training_step(model, batch, num_items_in_batch))
                break
            except (RuntimeError, MemoryError) as error:
                if last or is_sharded(self.model):
                    self._refuse_to_halve_alone(error)
                if not is_out_of_memory(error) or max(len(batch["lines"]) for batch in batches) == 1:
                    raise
                name = memory_name(error)
            for parameter, gradient in zip(self.adapter, _copies(gradients), strict=True):
                parameter.grad = gradient
            self._halve(max(map(batch_tokens, batches)), name)
        self.executed_tokens += self.batch_tokens
        self.logical_tokens += sum(len(row) for row in inputs["rows"])
        for loss, batch in zip(losses, batches, strict=True):
            self.stop_on_non_finite.note(loss, batch["lines"])
        return sum(losses)

    def _adapters_copied(self) -> AbstractContextManager:
        """For the passes of one micro-batch, see `sft.engine.lora_node.adapters_copied`.

        Not for a sharded model, whose layers have their whole matrices only while they run.
        """
        return nullcontext() if is_sharded(self.model) else adapters_copied(self.lora_layers)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> torch.Tensor:
        """The cross-entropy of the batch, divided by the supervised tokens of the whole optimizer step. A scalar.

        The step includes all accumulated batches and all processes.
        """
        weight = 0 if SURPLUS in inputs else self.accelerator.num_processes
        return supervised_loss(model, inputs, num_items_in_batch) * weight

    def _prepare_inputs(self, inputs: dict[str, object]) -> dict[str, object]:
        """A micro-batch on the device."""
        return to_device(inputs, self.args.device)

    def _get_num_items_in_batch(self, batch_samples: list[dict], device: torch.device) -> torch.Tensor | int:
        """The supervised tokens of an optimizer step, over all processes. Counted on the CPU, where the rows are."""
        count = sum(len(row.answer_ids) for batch in batch_samples for row in batch["rows"])
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            return self.accelerator.reduce(torch.tensor(count, device=device), reduction="sum")
        return count

    def _get_grad_norm(self, model, grad_norm=None) -> torch.Tensor | float:
        """The norm of the gradients, with the scale of the loss taken off; called right before the optimizer's step.

        Raises:
            RunError: the losses or the gradients of this step are not finite, see `StopOnNonFinite`.
        """
        norm = whole(super()._get_grad_norm(model, grad_norm))
        self.stop_on_non_finite.check(torch.as_tensor(norm, device=self.args.device), self.state.global_step + 1)
        return norm

    def _as_many_in_all_processes(self, batches: list[dict[str, object]]) -> list[dict[str, object]]:
        """For a sharded model, repeat the first micro-batch, without weight in the loss, until all have equally many.

        Its processes gather the weights together in every pass, so one that makes fewer would keep them
        waiting. No number changes.
        """
        if not is_sharded(self.model):
            return batches
        missing = largest(len(batches), self.stop_on_signal.group) - len(batches)
        return [*(batches[0] | {SURPLUS: True} for _ in range(missing)), *batches]

    def _refuse_to_halve_alone(self, error: Exception) -> None:
        """Refuse to recompute a batch in one process only: the other processes have already exchanged gradients.

        Those of a sharded model exchange its weights in every pass.

        Raises:
            RunError: there are other processes, and this one is out of memory.
        """
        exchanged = is_sharded(self.model) or self.accelerator.sync_gradients
        several = self.accelerator.num_processes > 1 and exchanged
        if several and is_out_of_memory(error):
            raise RunError(
                "有一张卡显存不够，多卡时无法只在一张卡上重算；请把 --max_tokens_per_micro_batch 设得比 "
                f"{self.max_tokens} 小，再用 --resume_from_checkpoint true 续跑"
            ) from error

    def _halve(self, largest_tokens: int, name: str) -> None:
        """From now on use micro-batches of half the size that did not fit; later checkpoints save the new size.

        Args:
            name: of the memory that ran out.
        """
        self.max_tokens = min(self.max_tokens, largest_tokens) // 2
        clear_device_cache(garbage_collection=True)
        logger.warning(
            "第 %d 步%s不够：每次前向改为最多 %d 个 token，重算这一批；每步的数据和结果不变",
            self.state.global_step + 1,
            name,
            self.max_tokens,
        )

    # ---- counts and logs ----

    def floating_point_ops(self, inputs) -> int:
        """transformers' estimate of the floating-point operations, for the executed tokens of the batch."""
        if self.flops_a_token is None:  # compute it once: transformers counts all parameters each time
            self.flops_a_token = super().floating_point_ops({"input_ids": torch.empty(1, device="meta")})
        return self.batch_tokens * self.flops_a_token

    def token_counts(self) -> tuple[int, int]:
        """``(executed tokens, logical tokens)`` of all processes since the start. Every process must call this."""
        counts = torch.tensor([self.executed_tokens, self.logical_tokens], device=self.args.device)
        executed, logical = self.accelerator.reduce(counts, reduction="sum").tolist()
        return executed, logical

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and add token counts and tokens per second to every training loss."""
        if "loss" in logs or "train_loss" in logs:
            executed, logical = self.token_counts()
            logs |= {"executed_tokens": executed, "logical_tokens": logical}
        if "loss" in logs:
            now = time.perf_counter()
            if self.timed_since is not None:  # a resumed run may have nothing but an evaluation left to do
                logs["tokens_per_second"] = (logical - self.timed_tokens) / (now - self.timed_since)
            self.timed_tokens, self.timed_since = logical, now
        if "train_runtime" in logs:
            self.add_earlier_seconds(logs)
        super().log(logs, start_time)

    # ---- evaluation ----

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Evaluate on the validation records; the metrics are logged and given to the callbacks."""
        started = time.perf_counter()
        evaluation = self.validate()
        self.chosen = (self.state.global_step, evaluation.chosen())
        if self.state.global_step == 0:
            self.before = evaluation
        metrics = named_metrics(evaluation, metric_key_prefix)
        if (wanted := self.args.metric_for_best_model) and f"eval_{wanted.removeprefix('eval_')}" not in metrics:
            known = "、".join(sorted(name for name in metrics if not is_of_one_label(name)))
            raise InputError(f"--metric_for_best_model：没有 {wanted} 这个指标，可选的有 {known}")
        if self.timed_since is not None:
            self.timed_since += time.perf_counter() - started  # tokens per second count only training time
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def validate(self) -> Evaluation:
        """Evaluate on the validation records, with the calibration and the threshold that are best for them."""
        return self.evaluator.choose_threshold(self.model, self.validation, self.max_tokens, self.accelerator)


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


def _keep_rows(rows: Sequence[dict]) -> dict[str, object]:
    """The data collator: the rows of a batch. They become tensors in `SftTrainer.training_step`."""
    return {"rows": [EncodedRow(row["prompt_ids"], row["answer_ids"], row["line"]) for row in rows]}


def _copies(gradients: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    return [None if gradient is None else gradient.clone() for gradient in gradients]
