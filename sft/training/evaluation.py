"""Evaluate the model during training: its loss on encoded rows, and the metrics of its predictions for records."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from sft.console import progress, say_once
from sft.decoding.decode import predict
from sft.decoding.limits import Limits
from sft.decoding.room import Room
from sft.engine.batches import Batching, EncodedRow, split_rows, to_device
from sft.engine.lora_node import adapters_copied, one_node_layers
from sft.engine.loss import supervised_loss
from sft.errors import InputError
from sft.tasks.evaluation import at_least, best_calibration, best_threshold, calibrated, metrics_of_predictions
from sft.tasks.settings import CHOSEN, TaskSettings
from sft.tasks.task import Task
from sft.tracking.charts import is_of_one_label
from sft.training.sharding import whole_weights

logger = logging.getLogger(__name__)

OF_EVERY_TASK = ("loss", "ece", "unparsable")  # metrics


class Examples(NamedTuple):
    """The data to evaluate on.

    Attributes:
        records: whole records, for the predictions.
        rows: the same records encoded, for the loss; a long record can be several rows.
    """

    records: Sequence[dict]
    rows: Sequence[EncodedRow]


class Evaluation(NamedTuple):
    """The result of an evaluation.

    Attributes:
        metrics: the loss, the task's metrics, and the threshold and the calibration if there are any, by name.
        predictions: one result for each record, in order, without entities that score below the threshold.
        threshold: the lowest score of an entity that is kept; None for no threshold.
        unfiltered: the predictions with the entities that score below the threshold.
        temperature, score_bias: of all these scores, see `sft.tasks.calibration`; None for the model's own.
    """

    metrics: dict[str, float]
    predictions: list[dict]
    threshold: float | None
    unfiltered: list[dict]
    temperature: float | None = None
    score_bias: float | None = None

    def chosen(self) -> dict[str, float | None]:
        """What an adapter remembers of the evaluation that chose it."""
        return {name: getattr(self, name) for name in CHOSEN}


class Evaluator:
    """Evaluates a model by its loss and by the answers of `sft.decoding.decode.predict`. Processes share the work.

    When memory runs out, the passes shrink, as in training.

    Args:
        task: for prompts, parsing and metrics.
        tokenizer: of the model.
        limits: the lengths of predictions, as `predict.py` will use them.
        batching: how rows become a batch.
        quiet: show no progress bars.
    """

    def __init__(
        self, task: Task, tokenizer: PreTrainedTokenizerBase, limits: Limits, batching: Batching, *, quiet: bool
    ) -> None:
        self.task, self.tokenizer, self.limits, self.batching, self.quiet = task, tokenizer, limits, batching, quiet
        self._room, self._loss_room = Room(), Room("验证")
        self._loss_tokens = 0  # the largest pass for the loss; 0: none has run out of memory

    def choose_threshold(self, model, examples: Examples, max_tokens: int, accelerator: Accelerator) -> Evaluation:
        """Evaluate with the calibration and the threshold that are best for these examples, the validation records.

        Args:
            max_tokens: the largest forward pass for the loss, in tokens.
        """
        loss, golds, predictions = self._predict(model, examples, max_tokens, accelerator)
        calibration = best_calibration(self.task, golds, predictions)
        temperature, bias = calibration or (None, None)
        predictions = calibrated(predictions, calibration)
        threshold = best_threshold(self.task, golds, predictions)
        chosen = {"threshold": threshold, "temperature": temperature, "score_bias": bias}
        return self._evaluation(loss, golds, predictions, chosen)

    def evaluate(
        self, model, examples: Examples, max_tokens: int, accelerator: Accelerator, settings: TaskSettings
    ) -> Evaluation:
        """Evaluate with the calibration and the threshold that an adapter remembers."""
        loss, golds, predictions = self._predict(model, examples, max_tokens, accelerator)
        chosen = {name: getattr(settings, name) for name in CHOSEN}
        return self._evaluation(loss, golds, calibrated(predictions, settings.calibration), chosen)

    def loss(self, model, rows: Sequence[EncodedRow], max_tokens: int, device: torch.device) -> float:
        """The mean loss per supervised token, without predictions; in this process alone."""
        return self._loss_sum(model, rows, max_tokens, device) / sum(len(row.answer_ids) for row in rows)

    def _predict(
        self, model, examples: Examples, max_tokens: int, accelerator: Accelerator
    ) -> tuple[float, list[dict | None], list[dict]]:
        """The mean loss per supervised token, the gold results, and the predictions without a threshold."""
        records, rows = examples
        mine = slice(accelerator.process_index, None, accelerator.num_processes)
        model = accelerator.unwrap_model(model)
        supervised_tokens = sum(len(row.answer_ids) for row in rows[mine])
        with whole_weights(model):
            loss_sum = self._loss_sum(model, rows[mine], max_tokens, accelerator.device)
            predicting = predict(model, self.tokenizer, self.task, records[mine], self.limits, self._room)
            predicted = list(progress(predicting, "预测", total=len(records[mine]), hidden=self.quiet))
        shares = gather_object([(loss_sum, supervised_tokens, predicted)])
        predictions: list[dict] = [{}] * len(records)
        for rank, (_, _, share) in enumerate(shares):
            predictions[rank :: accelerator.num_processes] = share
        if any(result.get("cut") and "read_characters" not in result for result in predictions):
            say_once(logger, f"有的答案超过 {self.limits.max_new_tokens} 个 token 还没有完，后面的实体没有找")
        loss = sum(share[0] for share in shares) / max(1, sum(share[1] for share in shares))
        return loss, [self.task.gold(record) for record in records], predictions

    @torch.no_grad()
    def _loss_sum(self, model, rows: Sequence[EncodedRow], max_tokens: int, device: torch.device) -> float:
        """The loss summed over all supervised tokens."""
        was_training = model.training
        model.eval()
        pieces = split_rows(rows, self._at_most(max_tokens), self.batching)
        losses = self._losses(model, pieces, max_tokens, device)
        with adapters_copied(one_node_layers(model)):
            loss_sum = sum(progress(losses, "验证损失", "批", total=len(pieces), hidden=self.quiet))
        model.train(was_training)
        return loss_sum

    def _losses(
        self, model, pieces: Sequence[Sequence[EncodedRow]], max_tokens: int, device: torch.device
    ) -> Iterator[float]:
        """The summed loss of each pass; `sft.decoding.room.Room` says what happens when memory runs out."""
        while pieces:
            work = partial(self._loss_of, model, pieces[0], device)
            loss = self._loss_room.tried(work, divisible=len(pieces[0]) > 1)
            if loss is not None:
                yield loss
                pieces = pieces[1:]
            else:
                self._loss_tokens = self.batching.tokens(pieces[0]) // 2
                rest = [row for piece in pieces for row in piece]
                pieces = split_rows(rest, self._at_most(max_tokens), self.batching)

    def _at_most(self, max_tokens: int) -> int:
        return min(max_tokens, self._loss_tokens) if self._loss_tokens else max_tokens

    def _loss_of(self, model, rows: Sequence[EncodedRow], device: torch.device) -> float:
        return supervised_loss(model, to_device(self.batching.collate(rows), device), 1).item()

    def _evaluation(
        self,
        loss: float,
        golds: Sequence[dict | None],
        predictions: Sequence[dict],
        chosen: Mapping[str, float | None],
    ) -> Evaluation:
        """The evaluation of predictions whose scores are calibrated already."""
        kept = at_least(self.task, predictions, chosen["threshold"])
        metrics = metrics_of_predictions(self.task, golds, kept) or {}
        metrics |= {name: value for name, value in chosen.items() if value is not None}
        return Evaluation(metrics | {"loss": loss}, kept, unfiltered=list(predictions), **chosen)


def require_metric(task: Task, records: Sequence[dict], wanted: str | None) -> None:
    """Refuse a metric to choose the best step by that no evaluation of these validation records can have.

    Args:
        wanted: the flag ``--metric_for_best_model``.

    Raises:
        InputError: there is no such metric.
    """
    golds = [gold for record in records if (gold := task.gold(record)) is not None]
    if not golds or wanted is None:
        return
    names = {*task.metrics(task.count(golds, golds)), *OF_EVERY_TASK}
    if wanted.removeprefix("eval_") not in names:
        known = "、".join(sorted(name for name in names if not is_of_one_label(f"eval_{name}")))
        raise InputError(f"--metric_for_best_model：没有 {wanted} 这个指标，可选的有 {known}")


def named_metrics(evaluation: Evaluation | None, split: str) -> dict[str, float]:
    """The metrics with the name of what was evaluated before theirs: ``f1`` → ``eval_f1``; empty for None."""
    return {} if evaluation is None else {f"{split}_{name}": value for name, value in evaluation.metrics.items()}
