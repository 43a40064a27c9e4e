"""transformers' Trainer with checkpoints that are whole, carry everything, and include the best step's."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import torch
from accelerate.utils import gather_object

from sft.errors import RunError
from sft.files import ADAPTER_CONFIG_FILE, STATE_FILE, TASK_FILE, checkpoint_folder, read_json, write_json
from sft.tasks.settings import TaskSettings
from sft.training import checkpoints, manifests
from sft.training.callbacks import Postponed, StopOnNonFinite, StopOnSignal
from sft.training.evaluation import Evaluation
from sft.training.progress import Progress
from sft.training.run import Run
from sft.training.sharding import ShardedTrainer


class SavingTrainer(ShardedTrainer):
    """Saves checkpoints with a manifest, and loads the best one at the end.

    Args:
        run: the run to train.
        keywords: further arguments of transformers' `Trainer`.

    Attributes:
        stop_on_signal: has the number of the signal if the run was asked to stop.
        max_tokens: the largest micro-batch; a larger batch is computed in several.
        before: the evaluation before the first step.
        earlier_seconds: of training before the run was resumed.
    """

    stop_on_signal: StopOnSignal
    stop_on_non_finite: StopOnNonFinite

    def __init__(self, *, run: Run, **keywords) -> None:
        super().__init__(**keywords)
        self.run = run
        self.max_tokens = run.max_tokens
        self.before: Evaluation | None = None
        self.chosen: tuple[int | None, dict] = (
            None,
            {},
        )  # by the evaluation of the last step that had one; its number
        self.earlier_seconds = 0.0
        self.started = time.perf_counter()
        # gradient norm, learning rate
        self._last_step: tuple[torch.Tensor | float | None, float | None] = (None, None)
        self._saved: tuple[int, int] | None = None  # step and number of logs when it was saved
        self._folder_of_checkpoints: str | None = None

    def token_counts(self) -> tuple[int, int]:
        """``(executed tokens, logical tokens)`` of all processes since the start. Every process must call this."""
        raise NotImplementedError

    # ---- the best step ----

    def _determine_best_metric(self, metrics: dict[str, float], trial) -> bool:
        """Whether this evaluation is the best so far. Its weights are then saved, whatever else decides about saving.

        transformers alone would keep the best step's weights only where saving and evaluating coincide, and of steps
        with the same metric the first, though a later one can have half the loss.
        """
        is_best = super()._determine_best_metric(metrics, trial) or self._is_as_good_with_less_loss(metrics)
        if is_best and self.args.load_best_model_at_end:
            self.control.should_save = True
        return is_best

    def _is_as_good_with_less_loss(self, metrics: dict[str, float]) -> bool:
        """Whether the best metric is reached again, at a smaller loss; then this step becomes the best one."""
        best, name = self.state.best_global_step, self.args.metric_for_best_model
        if best is None or name is None or metrics[f"eval_{name.removeprefix('eval_')}"] != self.state.best_metric:
            return False
        losses = [
            logs["eval_loss"] for logs in self.state.log_history if logs.get("step") == best and "eval_loss" in logs
        ]
        if not (losses and metrics["eval_loss"] < losses[-1]):
            return False
        self.state.best_global_step = self.state.global_step
        return True

    def _finalize_training(self, *arguments):
        """Log the summary, and load the best weights, unless a signal stopped the run."""
        self.state.best_model_checkpoint = None  # transformers would trust the path, and delete by it
        output = super()._finalize_training(*arguments)
        if self.args.load_best_model_at_end and self.stop_on_signal.postponed is None:
            self._load_best()
        return output

    def _load_best(self) -> None:
        """Load the weights of the best step, if they are not the last ones.

        Raises:
            RunError: its checkpoint is damaged, or of another run.
        """
        step = self.state.best_global_step
        if step is None:
            return
        folder = checkpoint_folder(self.run.output_dir, step)
        if step != self.state.global_step:
            reason = manifests.problem(folder)
            if reason is None and manifests.identity_of(folder) != self.run.identity:
                reason = "属于另一次训练"
            if reason:
                raise RunError(
                    f"{folder}：最好的一步的检查点{reason}，没有可用的最好权重；"
                    "用 --resume_from_checkpoint true 续跑，会从它之前的完整检查点重新训练"
                )
            self.state.best_model_checkpoint = str(folder)
            self._load_best_model()
        self.state.best_model_checkpoint = folder.name  # relative to the state's own folder, which can be moved

    # ---- checkpoints ----

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, *others, learning_rate=None) -> None:
        """Remember what transformers logs about the last step: a resumed run may have to log it."""
        self._last_step = (grad_norm, learning_rate)  # not yet a number: that would wait for the GPU
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *others, learning_rate=learning_rate)

    def progress(self) -> Progress:
        """What a checkpoint carries beyond transformers' state. Every process must call this."""
        executed, logical = self.token_counts()
        norm, rate = self._last_step
        postponed = self.stop_on_signal.postponed or Postponed(False, self.control.should_training_stop)
        return Progress(
            executed_tokens=executed,
            logical_tokens=logical,
            seconds=self.earlier_seconds + time.perf_counter() - self.started,
            stage=self.stop_on_signal.stage,
            evaluate=postponed.evaluate,
            stop=postponed.stop,
            total_loss=self._total_loss_scalar,
            losses=gather_object([self._tr_loss.item()]),
            logged_step=self._globalstep_last_logged,
            gradient_norm=None if norm is None else float(norm),
            learning_rate=rate,
            before=self.before,
            skipped_steps=self.stop_on_non_finite.skipped_steps,
            search=self.run.search,
        )

    def add_earlier_seconds(self, logs: dict[str, float]) -> None:
        """Make the times in the summary those of the whole run, not only of the part since it was resumed."""
        seconds = logs["train_runtime"]
        logs["train_runtime"] = round(seconds + self.earlier_seconds, 4)
        for name in ("train_samples_per_second", "train_steps_per_second"):
            if name in logs:
                logs[name] = round(logs[name] * seconds / max(logs["train_runtime"], 1e-9), 3)

    def _get_output_dir(self, trial) -> str:
        return self._folder_of_checkpoints or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial) -> None:
        """Write the checkpoint into a temporary folder, add the manifest, rename it, and delete older checkpoints.

        Raises:
            RunError: it could not be written.
        """
        step = self.state.global_step
        if self._saved == (step, len(self.state.log_history)):
            return  # the end of an epoch can save the same step again
        final = checkpoint_folder(self.run.output_dir, step)
        temporary = final.with_name(f".saving-{final.name}")
        try:
            with checkpoints.told_if_not_written(final):
                self._write_files(model, trial, temporary, final.name)
                if self.args.should_save:
                    checkpoints.put_in_place(temporary / final.name, final)
                    temporary.rmdir()
        except RunError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._saved = (step, len(self.state.log_history))
        if self.args.should_save:
            kept = {step, self.state.best_global_step}
            checkpoints.rotate(self.run.output_dir, self.args.save_total_limit, kept, self.run.identity)
        self.accelerator.wait_for_everyone()

    def _write_files(self, model, trial, temporary: Path, name: str) -> None:
        """Write the checkpoint's files into ``temporary / name``; the manifest comes last."""
        self._folder_of_checkpoints = str(temporary)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._folder_of_checkpoints = None
        self.accelerator.wait_for_everyone()  # every process writes its own random state into the folder
        self.state.best_model_checkpoint = None  # the best one is found by its step
        progress = self.progress()
        if self.args.should_save:
            folder = temporary / name
            self.state.save_to_json(str(folder / STATE_FILE))
            write_json(folder / manifests.PROGRESS, progress.to_json())
            self._settings_now().write(folder / TASK_FILE)  # predict.py can use the checkpoint
            manifests.write_manifest(folder, self.run.identity | {manifests.MICRO_BATCH: self.max_tokens})

    def _settings_now(self) -> TaskSettings:
        """What the adapter of this step remembers: with threshold and calibration if this step was evaluated."""
        step, chosen = self.chosen
        return self.run.settings.replace(**chosen) if step == self.state.global_step else self.run.settings

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write adapter and tokenizer, but not transformers' ``training_args.bin``.

        That file is a pickle of all flags, the token of ``--hub_token`` and absolute paths included. Nothing reads it.
        """
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder, state_dict=state_dict)
        sort_target_modules(folder / ADAPTER_CONFIG_FILE)
        try:
            self.processing_class.save_pretrained(folder)
        except Exception as error:
            if type(error) is not Exception:
                raise
            raise OSError(str(error)) from error  # tokenizers has no class of its own for a full disk


def sort_target_modules(path: Path) -> None:
    """Sort the names in ``adapter_config.json``: PEFT keeps a set, whose order differs from process to process."""
    config = read_json(path)
    if isinstance(config.get("target_modules"), list):
        config["target_modules"].sort()
        write_json(path, config)
