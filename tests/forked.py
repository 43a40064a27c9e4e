"""Run `predict.py` in processes that can be killed, forked from a server that has imported torch once."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

import predict

ROOT = Path(predict.__file__).parent


def server() -> multiprocessing.context.ForkServerContext:
    """A context whose processes start at once."""
    paths = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["forked", "sft.prediction.predictor", "sft.prediction.turns"])
    return context


def run(arguments: list[str], log: Path) -> None:
    """The script, as far as a process can be it; what it says goes to ``log``."""
    with log.open("a", encoding="utf-8") as file:
        sys.stdout = sys.stderr = file
        code = predict.main(arguments)
    sys.exit(code)
