"""The trainer of a resumed run: it first does what was still due at the step of its checkpoint."""

from __future__ import annotations

import time

import torch

from sft.training import checkpoints
from sft.training.progress import STEP
from sft.training.trainer import SftTrainer


class ResumedTrainer(SftTrainer):
    """Continues from a checkpoint, so that steps, logs and results are those of an undisturbed run.

    transformers restores weights, optimizer and random states. Its own resuming forgets an evaluation, a save or a
    stop that was due at the checkpoint's step, and the losses since the last log.
    """

    def __init__(self, **keywords) -> None:
        super().__init__(**keywords)
        progress = self.run.resumed.progress
        self.timed_tokens = progress.logical_tokens
        if self.is_world_process_zero():
            self.executed_tokens, self.logical_tokens = progress.executed_tokens, progress.logical_tokens
        self.before = progress.before
        self.earlier_seconds = progress.seconds
        self.stop_on_non_finite.skipped_steps = progress.skipped_steps
        self.args.eval_on_start = False  # early stopping would count a second evaluation as no improvement
        self._steps_an_epoch = 1
        self._step_is_open = True

    def _init_training_state(self, max_steps: int, steps_an_epoch: int, *others) -> tuple[int, int]:
        self._steps_an_epoch = steps_an_epoch
        with checkpoints.told_if_not_readable(self.run.checkpoint):
            return super()._init_training_state(max_steps, steps_an_epoch, *others)

    def _load_from_checkpoint(self, *arguments) -> None:
        with checkpoints.told_if_not_readable(self.run.checkpoint):
            super()._load_from_checkpoint(*arguments)

    def _load_optimizer_and_scheduler(self, *arguments) -> None:
        with checkpoints.told_if_not_readable(self.run.checkpoint):
            super()._load_optimizer_and_scheduler(*arguments)

    def _load_rng_state(self, *arguments) -> None:
        with checkpoints.told_if_not_readable(self.run.checkpoint):
            super()._load_rng_state(*arguments)

    def _run_epoch(self, **keywords) -> None:
        """Train an epoch, unless the run was already due to stop."""
        self._finish_step()
        if not self.control.should_training_stop:
            super()._run_epoch(**keywords)

    def _finalize_training(self, *arguments):
        self._finish_step()  # if no epoch is left
        return super()._finalize_training(*arguments)

    def _finish_step(self) -> None:
        """Do what an undisturbed run does between this checkpoint and the next step. Only the first call does it."""
        if not self._step_is_open:
            return
        self._step_is_open = False
        progress, control = self.run.resumed.progress, self.control
        self._load_rng_state(str(self.run.checkpoint))  # this step may be saved again before transformers does it
        with checkpoints.told_if_not_readable(self.run.checkpoint):
            self._tr_loss = torch.tensor(progress.losses[self.args.process_index], device=self.args.device)
        self._total_loss_scalar, self._globalstep_last_logged = progress.total_loss, progress.logged_step
        self._initial_global_step = 0  # the mean loss and the speed of the summary are those of the whole run
        self.stop_on_signal.stage = progress.stage
        self._last_step = (progress.gradient_norm, progress.learning_rate)
        control.should_log = False
        control.should_evaluate = control.should_save = progress.evaluate
        control.should_training_stop = progress.stop
        self._do_what_is_due()
        is_end_of_epoch = self.state.global_step % self._steps_an_epoch == 0
        if progress.stage == STEP and (is_end_of_epoch or self.control.should_training_stop):
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            self._do_what_is_due()

    def _do_what_is_due(self) -> None:
        """Log, evaluate and save, as the control flags say."""
        norm, rate = self._last_step
        model, now = self.model_wrapped, time.time()
        self._maybe_log_save_evaluate(self._tr_loss, norm, model, None, 0, None, now, learning_rate=rate)
