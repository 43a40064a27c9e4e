"""Whole runs of a script on a pretend GPU, each in a process of its own. A fork server imports torch once for all.

From a shell: ``python -m tests.rehearsed_runs [--capability 7.5] train_qwen2_ner --train_file …``
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import forked

TRACEBACK = 99  # the exit code if an exception left the script
PRELOADED = ["forked", "rehearsed_runs", "pretend_gpu", "sft.training.fine_tune", "sft.prediction.predictor"]


class Card(NamedTuple):
    """A pretend GPU; see `pretend_gpu.PretendGpu`."""

    capability: tuple[int, int] = (8, 0)
    memory_bytes: int = 24 * 10**9
    count: int = 1


AMPERE, TURING = Card(), Card((7, 5))


class Rehearsed(NamedTuple):
    """What came of a run.

    Attributes:
        code: the exit code; `TRACEBACK` if the script raised.
        output: stdout.
        errors: stderr.
        launches: kernel launches by operator.
        waits: for each phase (``step`` and ``other``), how often the host waited for the GPU, by operator and line.
        peak_bytes: the most memory on the card.
        cpu_seconds: what the run took.
    """

    code: int
    output: str
    errors: str
    launches: Counter[str]
    waits: dict[str, Counter[str]]
    peak_bytes: int
    cpu_seconds: float

    @property
    def results(self) -> dict:
        """The JSON on stdout of a training script."""
        return json.loads(self.output)


def run(
    script: str, arguments: list[str], folder: Path, card: Card = AMPERE, fault: Callable | None = None
) -> Rehearsed:
    """Run ``main`` of a script on a pretend GPU.

    Args:
        folder: for the run's output; an existing one is used again.
        fault: a function of a module, called with the `PretendGpu` before the script: it can break something.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = forked.server()
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_rehearse, args=(script, arguments, folder, card, fault))
    process.start()
    process.join(280)
    output, errors = ((folder / name).read_text(encoding="utf-8") for name in ("output.txt", "errors.txt"))
    told = folder / "gpu.json"
    counts = json.loads(told.read_text(encoding="utf-8")) if told.exists() else {}
    waits = {phase: Counter(counts.get("waits", {}).get(phase, {})) for phase in ("step", "other")}
    launches = Counter(counts.get("launches", {}))
    return Rehearsed(process.exitcode, output, errors, launches, waits, counts.get("peak", 0), counts.get("cpu", 0.0))


def _rehearse(script: str, arguments: list[str], folder: Path, card: Card, fault: Callable | None) -> None:
    import torch
    from pretend_gpu import PretendGpu

    started = time.process_time()
    torch.set_num_threads(1)
    (folder / "gpu.json").unlink(missing_ok=True)
    streams = [(folder / name).open("w", encoding="utf-8", buffering=1) for name in ("output.txt", "errors.txt")]
    for descriptor, stream in enumerate(streams, start=1):
        os.dup2(stream.fileno(), descriptor)
    sys.stdout, sys.stderr = streams
    logging.lastResort = None
    main = importlib.import_module(script).main
    with PretendGpu(*card) as gpu:
        if fault is not None:
            fault(gpu)
        try:
            code = main(arguments)
        except SystemExit as stop:  # a mistake on the command line
            code = int(stop.code or 0)
        except Exception:
            traceback.print_exc()
            code = TRACEBACK
    waits: dict[str, Counter[str]] = {"step": Counter(), "other": Counter()}
    for event, count in gpu.waits().items():
        waits[event.phase][f"{event.kind} {event.name} {event.where}"] += count
    cpu_seconds = time.process_time() - started
    counts = {"launches": gpu.launches, "waits": waits, "peak": gpu.peak_bytes, "cpu": cpu_seconds}
    (folder / "gpu.json").write_text(json.dumps(counts), encoding="utf-8")
    for stream in streams:
        stream.flush()
    os._exit(code)


def main(words: list[str]) -> int:
    """Run a script on a pretend GPU in this process, and tell launches and waits on stderr."""
    from tests.pretend_gpu import PretendGpu

    card = AMPERE
    while words[0].startswith("--"):
        flag, value, *words = words
        if flag == "--capability":
            major, minor = value.split(".")
            card = card._replace(capability=(int(major), int(minor)))
        elif flag == "--gigabytes":
            card = card._replace(memory_bytes=int(float(value) * 1e9))
        elif flag == "--count":
            card = card._replace(count=int(value))
    script = importlib.import_module(words[0])
    import sft.prediction.predictor  # noqa: F401  everything slow to import, before torch is changed
    import sft.training.fine_tune  # noqa: F401

    with PretendGpu(*card) as gpu:
        code = script.main(words[1:])
    sys.stderr.write(gpu.report() + "\n")
    return code


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main(sys.argv[1:]))
