"""Average adapters of several runs with the same data and base: one adapter with the mean of their changes.

    python -m benchmarks.average_adapters --adapters output/gemma-ner-3 output/gemma-ner-4 --output_dir output/mean

Runs that ended in different places make different mistakes, and the mean of their weights fewer (Wortsman et al.,
"Model soups", arXiv 2203.05482). Threshold and calibration are those of the first adapter. The ranks add up, so
predicting takes a little longer.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel

from sft.errors import InputError
from sft.files import TASK_FILE
from sft.model.loading import load_base
from sft.tasks.settings import TaskSettings

MEAN = "mean"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the mean of some adapters.

    Returns:
        0 done, 2 bad input.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--adapters", type=Path, nargs="+", required=True, help="output folders of training")
    parser.add_argument("--output_dir", type=Path, required=True)
    arguments = parser.parse_args(argv)
    try:
        average(arguments.adapters, arguments.output_dir)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def average(adapters: Sequence[Path], output_dir: Path) -> None:
    """Write the mean of ``adapters`` to ``output_dir``, with the settings of the first.

    Raises:
        InputError: they are of different tasks or bases, or there is something at ``output_dir``.
    """
    if output_dir.exists():
        raise InputError(f"{output_dir} is there already")
    settings = [TaskSettings.read(folder / TASK_FILE) for folder in adapters]
    for folder, other in zip(adapters, settings, strict=True):
        if (other.task, other.base_hash) != (settings[0].task, settings[0].base_hash):
            raise InputError(f"{folder} has another task or another base than {adapters[0]}")
    base = load_base(Path(settings[0].base_model), torch.float32)
    names = [f"run-{index}" for index in range(len(adapters))]  # peft would take "0" for a part of "layers.0."
    model = PeftModel.from_pretrained(base, adapters[0], adapter_name=names[0])
    for folder, name in zip(adapters[1:], names[1:], strict=True):
        model.load_adapter(folder, name)
    model.add_weighted_adapter(names, [1 / len(names)] * len(names), MEAN, combination_type="cat")
    model.save_pretrained(output_dir.parent / f"{output_dir.name}.part", selected_adapters=[MEAN])
    shutil.move(output_dir.parent / f"{output_dir.name}.part" / MEAN, output_dir)
    shutil.rmtree(output_dir.parent / f"{output_dir.name}.part")
    for name in TOKENIZER_FILES:
        if (adapters[0] / name).is_file():
            shutil.copy(adapters[0] / name, output_dir)
    settings[0].write(output_dir / TASK_FILE)


if __name__ == "__main__":
    sys.exit(main())
