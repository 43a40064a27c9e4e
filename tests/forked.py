"""Run `predict.py` in processes that can be killed. A fork server imports torch once for all of them."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

import predict

ROOT = Path(predict.__file__).parent


def server() -> multiprocessing.context.ForkServerContext:
    """A multiprocessing context whose processes start quickly: the server has imported everything already."""
    paths = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["forked", "sft.prediction.predictor", "sft.prediction.turns"])
    return context


def run(arguments: list[str], log: Path) -> None:
    """Do what the script ``predict.py`` does; stdout and stderr go to ``log``."""
    with log.open("a", encoding="utf-8") as file:
        sys.stdout = sys.stderr = file
        code = predict.main(arguments)
    sys.exit(code)
