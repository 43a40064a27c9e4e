r"""Train with every combination of some flags, one after the other, and print what each one scored.

    python -m benchmarks.recipes --script train_qwen2_ner.py --output_dir output/recipes \
        --vary learning_rate=1e-4,3e-4,1e-3 --vary seed=1,2 -- --train_file data/real/train_ner.jsonl --lora_r 16

What stands after ``--`` goes to every run as it is. A run that is finished is not run again, and one that was stopped
is resumed: so the command can be repeated until its table is whole. Seconds are those of the whole process.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import orjson

from sft.files import ALL_RESULTS_FILE, write_json

SHOWN = ("eval_loss", "eval_f1", "test_f1", "eval_macro_f1", "test_macro_f1", "eval_accuracy", "test_accuracy")
SECONDS_FILE = "recipe_seconds.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, and print the table.

    Returns:
        0 done; else the exit code of the run that failed.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--script", required=True, help="a training script")
    parser.add_argument("--output_dir", type=Path, required=True, help="each run gets a folder in it")
    parser.add_argument("--vary", action="append", type=choices, required=True, help="flag=value,value; repeat it")
    parser.add_argument("flags", nargs="*", help="after --: the flags of every run")
    arguments = parser.parse_args(argv)
    names = [name for name, _ in arguments.vary]
    rows = []
    for values in itertools.product(*(values for _, values in arguments.vary)):
        varied = dict(zip(names, values, strict=True))
        folder = arguments.output_dir / "_".join(f"{name}-{value}" for name, value in varied.items())
        code = trained(arguments.script, folder, varied, arguments.flags)
        if code:
            return code
        rows.append((*values, *figures(folder)))
    table((*names, "seconds", *SHOWN), rows)
    return 0


def choices(text: str) -> tuple[str, list[str]]:
    """``flag=a,b`` as the flag's name and its values."""
    name, _, values = text.partition("=")
    if not values:
        raise argparse.ArgumentTypeError(f"{text}：应写作 flag=value,value")
    return name.removeprefix("--"), values.split(",")


def trained(script: str, folder: Path, varied: dict[str, str], flags: Sequence[str]) -> int:
    """Train into ``folder``, unless that is done. Returns the exit code."""
    if (folder / ALL_RESULTS_FILE).is_file():
        return 0
    command = [sys.executable, script, "--output_dir", str(folder), "--swanlab_mode", "disabled", *flags]
    command += [part for name, value in varied.items() for part in (f"--{name}", value)]
    if any(folder.glob("checkpoint-*")):
        command += ["--resume_from_checkpoint", "true"]
    started = time.perf_counter()
    code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    if code == 0:
        before = seconds_of(folder)
        write_json(folder / SECONDS_FILE, {"seconds": before + time.perf_counter() - started})
    return code


def seconds_of(folder: Path) -> float:
    """How long the run in ``folder`` took; 0 if nobody has counted."""
    path = folder / SECONDS_FILE
    return orjson.loads(path.read_bytes())["seconds"] if path.is_file() else 0.0


def figures(folder: Path) -> list[str]:
    """The seconds and the metrics of a finished run, for the table."""
    results = orjson.loads((folder / ALL_RESULTS_FILE).read_bytes())
    return [f"{seconds_of(folder):.0f}", *(f"{results[name]:.4f}" if name in results else "" for name in SHOWN)]


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print the columns in which some row has something."""
    used = [column for column in range(len(names)) if any(row[column] for row in rows)]
    print("| " + " | ".join(names[column] for column in used) + " |")
    print("|" + "---|" * len(used))
    for row in rows:
        print("| " + " | ".join(row[column] for column in used) + " |")


if __name__ == "__main__":
    sys.exit(main())
