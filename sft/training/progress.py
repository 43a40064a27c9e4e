"""What a checkpoint carries beyond transformers' own state, so that a resumed run continues as if undisturbed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from sft.errors import InputError
from sft.files import read_json
from sft.training import checkpoints, manifests
from sft.training.evaluation import Evaluation
from sft.training.rate_plan import Search

STEP, EPOCH = "step", "epoch"  # the two places where transformers logs, evaluates and saves


class Progress(NamedTuple):
    """How far a run was when a checkpoint was saved.

    Attributes:
        executed_tokens, logical_tokens: of all processes since the start.
        seconds: of training since the start, evaluations included.
        stage: whether it was saved at the end of a `STEP`, or after that at the end of an `EPOCH`.
        evaluate: an evaluation was due here, and a signal came before it.
        stop: training was due to stop here: the last step, or early stopping.
        total_loss: the sum of the losses of all logged steps.
        losses: for each process, the sum of the losses of the steps that are not logged yet.
        logged_step: the last step with a logged loss.
        gradient_norm, learning_rate: of the last step, for its log.
        before: the evaluation before the first step.
        skipped_steps: how many steps in a row the loss scaler of float16 has left out.
        search: what ``--learning_rate auto`` found before the first step.
    """

    executed_tokens: int
    logical_tokens: int
    seconds: float
    stage: str
    evaluate: bool
    stop: bool
    total_loss: float
    losses: list[float]
    logged_step: int
    gradient_norm: float | None
    learning_rate: float | None
    before: Evaluation | None
    skipped_steps: int = 0
    search: Search | None = None

    def to_json(self) -> dict:
        """As a JSON object, for `read`."""
        search = self.search and self.search.to_json()
        return self._asdict() | {"before": self.before and self.before._asdict(), "search": search}


class Resumed(NamedTuple):
    """The checkpoint that a run resumes.

    Attributes:
        folder: of the checkpoint.
        step: its optimizer step.
        rows: everything that was logged until then, as transformers keeps it.
        progress: what transformers does not keep.
    """

    folder: Path
    step: int
    rows: list[dict]
    progress: Progress


def read(checkpoint: Path) -> Resumed:
    """Read a whole checkpoint.

    Raises:
        InputError: a file has the wrong content.
    """
    with checkpoints.told_if_not_readable(checkpoint):
        saved = read_json(checkpoint / manifests.PROGRESS)
        before = saved["before"] and Evaluation(**saved["before"])
        search = Search.from_json(saved["search"]) if saved.get("search") else None
        progress = Progress(**saved | {"before": before, "search": search})
        rows = manifests.state_of(checkpoint)["log_history"]
        if not all(type(row["step"]) is int for row in rows) or progress.stage not in (STEP, EPOCH):
            raise InputError("log_history")
    return Resumed(checkpoint, manifests.step_of(checkpoint), rows, progress)
