"""The four targets: each can write itself into a folder and prove itself there."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Protocol

from sft.errors import InputError
from sft.export.proof import Proof
from sft.export.reference import Reference
from sft.export.source import Source
from sft.model.loading import load_config


class Target(Protocol):
    """One way out.

    Attributes:
        answers: whether its answers are compared, so that the adapter must answer first.
    """

    answers: bool

    def write(self, folder: Path, reference: Reference) -> None:
        """Write all files of the export into an empty folder."""

    def prove(self, folder: Path, reference: Reference) -> Proof:
        """Compare what lies in the folder with the adapter."""


def target_of(source: Source, arguments: argparse.Namespace) -> Target:
    """The target that ``--to`` names, checked as far as it can be before any weights are read.

    Raises:
        InputError: it cannot hold this model, or a package is missing.
    """
    least, batch_size = arguments.min_agreement, arguments.batch_size
    if arguments.to != "vllm" and getattr(load_config(source.base.folder), "quantization_config", None):
        raise InputError(
            f"{source.base.folder}：底座是量化过的，并进去的权重与训练时的不同；请用 --to vllm，或没有量化的底座"
        )
    if arguments.to == "merged":
        from sft.export.merged import Merged, dtype_named

        return Merged(source, dtype_named(arguments.dtype, source), least, batch_size)
    if arguments.to == "vllm":
        from sft.export.serving import Serving

        return Serving(source, arguments.output_dir)
    from sft.export.gguf_target import Gguf

    number_type = arguments.gguf_type or "f16"
    return Gguf(source, source.adapter.resolve().name, number_type, least, ollama=arguments.to == "ollama")
