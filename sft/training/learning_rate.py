"""``--learning_rate auto``: try rates on a model of its own, before the run's model is loaded.

So the run that follows is the one that the same rate given by hand would be, to the bit: nothing of the trials is
left but a number. `sft.training.rate_plan` says what is tried. Every finished trial is written down, so that a search
that is killed goes on where it was.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils.memory import clear_device_cache
from peft import PeftModel
from transformers import TrainerCallback, TrainingArguments

from sft.errors import InputError, RunError, Stopped
from sft.files import RATE_SEARCH_FILE, read_json, write_json
from sft.training.callbacks import NotFinite, StopOnSignal
from sft.training.evaluation import Evaluator, Examples
from sft.training.log_lines import LogLines, ProgressOnStderr, short_exponent
from sft.training.prepare import Prepared
from sft.training.rate_plan import (
    Search,
    SearchPlan,
    Trial,
    chosen_of,
    rate_of_trial,
    successive_halving,
    trials_from_json,
)
from sft.training.run import Run, asks_to_resume
from sft.training.trainer import SftTrainer, as_dataset

logger = logging.getLogger(__name__)

WRAPPED = ("forward", "_original_forward")  # what accelerate puts into a model for float16, once for each trial
Loaded = tuple[PeftModel, Evaluator]  # a model with an adapter as the run will start from, and what evaluates it


def with_learning_rate(prepared: Prepared, run: Run, load: Callable[[], Loaded]) -> Run:
    """Find the rate for ``--learning_rate auto`` and set it; a rate given by hand stays.

    A resumed run takes the rate in its checkpoint.

    Args:
        load: loads the model; called only if there is something to try.

    Raises:
        RunError: no rate gave a finite loss.
        Stopped: there was a signal.
    """
    training = prepared.arguments.training
    if prepared.search is None:
        return run
    search = run.search or search_rates(prepared.search, prepared, run, load)
    training.learning_rate = search.rate
    return replace(run, search=search)


def search_rates(plan: SearchPlan, prepared: Prepared, run: Run, load: Callable[[], Loaded]) -> Search:
    """Try the rates of ``plan``; arguments and errors as in `with_learning_rate`."""
    path = run.output_dir / RATE_SEARCH_FILE
    trials = list(_finished_trials(path, run.identity)) if asks_to_resume(prepared) else []
    known = {(trial.rate, trial.steps): trial.loss for trial in trials}
    logger.info("--learning_rate auto：先试学习率，%s", plan.describe())
    if known:
        logger.info("接着试：%s 里已有 %d 次的结果", path, len(known))
    laboratory = _Laboratory(plan, prepared, run, load)

    def loss_of(rate: float, steps: int) -> float | None:
        if (rate, steps) not in known:
            known[rate, steps] = laboratory.loss_of(rate, steps)
            trials.append(Trial(rate, steps, known[rate, steps]))
            write_json(path, {"identity": run.identity, "trials": [list(trial) for trial in trials]})
        return known[rate, steps]

    done = successive_halving(plan.rounds, loss_of, lambda round: logger.info("%s", _line(round)))
    laboratory.close()
    best = chosen_of([trial for trial in done if trial.steps == plan.rounds[-1].steps])
    if best.loss is None:
        raise RunError("--learning_rate auto：每个学习率的损失都是 NaN 或 Inf；请检查数据，或用 --dtype float32")
    logger.info("选定 --learning_rate %s", short_exponent(best.rate))
    return Search(best.rate, tuple(done))


def _line(trials: Sequence[Trial]) -> str:
    losses = "，".join(
        f"{short_exponent(trial.rate)} → {'发散' if trial.loss is None else f'{trial.loss:.3g}'}" for trial in trials
    )
    return f"试 {trials[0].steps} 步后的验证损失：{losses}"


def _finished_trials(path: Path, identity: dict) -> Sequence[Trial]:
    """The trials of this run that an earlier process finished; none if they are of another run or cannot be read."""
    if not path.is_file():
        return ()
    try:
        saved = read_json(path)
        return trials_from_json(saved["trials"]) if saved["identity"] == identity else ()
    except (InputError, KeyError, TypeError, ValueError, OverflowError):
        logger.warning("%s：内容不对，重新试", path)
        return ()


class _Laboratory:
    """One model on which rates are tried, one after the other, always from the same weights.

    Args:
        load: loads the model, when the first rate is tried.
    """

    def __init__(self, plan: SearchPlan, prepared: Prepared, run: Run, load: Callable[[], Loaded]) -> None:
        self._plan, self._prepared, self._run, self._load = plan, prepared, run, load
        self._loaded: Loaded | None = None
        self._initial: list[torch.Tensor] = []
        self._methods: dict[str, object] = {}

    def loss_of(self, rate: float, steps: int) -> float | None:
        """The validation loss after a trial; None if it is not finite.

        Raises:
            Stopped: there was a signal.
        """
        if self._loaded is None:
            self._loaded = self._load()
            model, _ = self._loaded
            self._initial = [parameter.detach().clone() for parameter in _trained(model)]
            self._methods = {name: vars(model)[name] for name in WRAPPED if name in vars(model)}
        model, evaluator = self._loaded
        training = self._prepared.arguments.training
        trainer = TrialTrainer(
            model=model,
            args=arguments_of_trial(training, rate, steps, self._plan.run_steps),
            train_dataset=as_dataset(self._plan.rows_of(steps)),
            processing_class=self._prepared.tokenizer,
            evaluator=evaluator,
            validation=Examples((), self._plan.validation),
            run=self._run,
        )
        try:
            loss = trainer.tried()
        finally:
            self._reset(model)
            self._run = replace(self._run, max_tokens=trainer.max_tokens)  # what did not fit once, does not fit later
        if trainer.stop_on_signal.received is not None:
            raise Stopped(
                f"已停止：还在试学习率；接着试加 --resume_from_checkpoint true（{self._run.output_dir}）",
                trainer.stop_on_signal.received,
            )
        return loss if math.isfinite(loss) else None

    def _reset(self, model: PeftModel) -> None:
        with torch.no_grad():
            for parameter, value in zip(_trained(model), self._initial, strict=True):
                parameter.copy_(value)
                parameter.grad = None
        for name in WRAPPED:
            vars(model).pop(name, None)
        vars(model).update(self._methods)

    def close(self) -> None:
        """Let go of the model, before the run's own is loaded."""
        self._loaded, self._initial = None, []
        clear_device_cache(garbage_collection=True)


def _trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


class TrialTrainer(SftTrainer):
    """A short run for one rate: it logs and saves nothing, and ends with the loss on the validation rows."""

    def tried(self) -> float:
        """Train, and return the validation loss; NaN if training was stopped by a number that is not finite."""
        self._validation_loss = math.nan
        try:
            self.train()
        except NotFinite:
            logger.debug("%s", self.args.learning_rate, exc_info=True)
        finally:
            self.stop_on_signal.on_train_end(self.args, self.state, self.control)
        return self._validation_loss

    def _set_callbacks(self) -> None:
        super()._set_callbacks()
        for callback in (LogLines, ProgressOnStderr, StopOnSignal):
            self.remove_callback(callback)
        self.stop_on_signal = StopOnSignal("完成这一步后停止")
        self.add_callback(self.stop_on_signal)

    def _say_how_the_head_is_computed(self) -> None:
        """Nothing: the run's own trainer says it."""

    def _finalize_training(self, *arguments):
        if self.stop_on_signal.received is None:
            rows, device = self.validation.rows, self.args.device
            self._validation_loss = self.evaluator.loss(self.model, rows, self.max_tokens, device)
        return super()._finalize_training(*arguments)

    def _save_checkpoint(self, model, trial) -> None:
        """Nothing: a trial leaves nothing behind."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Nothing: the curves are those of the run."""


def arguments_of_trial(training: TrainingArguments, rate: float, steps: int, run_steps: int) -> TrainingArguments:
    """The arguments of a run in small: all is as in the run, but rate and length, and what is written and shown.

    Args:
        rate: of the run.
        steps: of the trial.
        run_steps: of the run; warm-up and the parts of a schedule shrink in proportion.
    """
    shrink = steps / run_steps
    schedule = {
        name: round(value * shrink) if name.endswith("_steps") and value else value
        for name, value in (training.lr_scheduler_kwargs or {}).items()
    }
    trial = copy.copy(training)
    changes = {
        "learning_rate": rate_of_trial(rate, steps, run_steps),
        "max_steps": steps,
        "warmup_steps": round(training.get_warmup_steps(run_steps) * shrink),
        "lr_scheduler_kwargs": schedule,
        "eval_strategy": "no",
        "eval_on_start": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "load_best_model_at_end": False,
        "metric_for_best_model": None,
        "report_to": [],
        "push_to_hub": False,
        "disable_tqdm": True,
    }
    for name, value in changes.items():
        setattr(trial, name, value)
    return trial


class SearchLog(TrainerCallback):
    """Writes the trials at the head of ``metrics.jsonl``."""

    def __init__(self, trainer: SftTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args, state, control, **_) -> None:
        search = self._trainer.run.search
        for trial in search.trials if search and state.global_step == 0 else ():
            loss = math.inf if trial.loss is None else trial.loss
            self._trainer.log({"trial_learning_rate": trial.rate, "trial_steps": trial.steps, "trial_loss": loss})
