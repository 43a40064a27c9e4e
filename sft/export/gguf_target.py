"""``--to gguf`` and ``--to ollama``: one GGUF file, proved by reading it back and through llama-cpp-python."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sft.errors import InputError
from sft.export.card import write_card
from sft.export.merged import metric_legs, save_task_file
from sft.export.proof import Leg, Proof
from sft.export.reference import Reference
from sft.export.source import Source, merged_model
from sft.export.usage import copy_client
from sft.model.loading import load_config

logger = logging.getLogger(__name__)

INSTALL = "pip install -r requirements-export.txt"
ONLY_GGUF = "pip install gguf==0.19.0"  # where the other package of that file cannot be compiled, pip installs neither
NO_LLAMA = f"没有装 llama-cpp-python（{INSTALL}），GGUF 的回答没有对照；权重、设置是读回来核对的"


def require_gguf() -> None:
    """Raises InputError if the library `gguf` is not installed."""
    if find_spec("gguf") is None:
        raise InputError(f"写 GGUF 要先装 gguf：{INSTALL}；其中 llama-cpp-python 编译不了，就只装 {ONLY_GGUF}")


@dataclass(frozen=True)
class Gguf:
    """A GGUF file; for Ollama with a Modelfile beside it.

    Attributes:
        name: of the file, without its end.
    """

    source: Source
    name: str
    number_type: str
    least: float | None
    ollama: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be written, before any weights are read.

        Raises:
            InputError: see `refuse_other_models`; or the package `gguf` is missing.
        """
        require_gguf()
        from sft.export.gguf_file import refuse_other_models

        refuse_other_models(self.source, load_config(self.source.base.folder))
        if self.ollama:
            from sft.export.ollama import modelfile

            modelfile(self.source, self.file)
        if not self.answers:
            logger.warning("%s", NO_LLAMA)

    @property
    def answers(self) -> bool:
        """Whether its answers can be compared here."""
        return find_spec("llama_cpp") is not None

    @property
    def file(self) -> str:
        """The name of the file, such as ``Qwen2.5-NER-f16.gguf``."""
        return f"{self.name}-{self.number_type}.gguf"

    def write(self, folder: Path, reference: Reference) -> None:
        """See `Target`."""
        from sft.export.gguf_file import write_gguf

        weights = merged_model(self.source).state_dict()
        write_gguf(folder / self.file, weights, self.source, load_config(self.source.base.folder), self.number_type)
        save_task_file(self.source, folder)
        copy_client(folder, "ollama" if self.ollama else "gguf")
        if self.ollama:
            from sft.export.ollama import MODELFILE, modelfile

            (folder / MODELFILE).write_text(modelfile(self.source, self.file), encoding="utf-8", newline="\n")

    def prove(self, folder: Path, reference: Reference) -> Proof:
        """See `Target`."""
        proof = prove_gguf(folder / self.file, self.source, reference, self.number_type, self.least)
        if self.ollama:
            from sft.export.ollama import MODELFILE, prove_modelfile

            modelfile = (folder / MODELFILE).read_text(encoding="utf-8")
            proof = prove_modelfile(modelfile, self.source, reference, proof)
        kind = "ollama" if self.ollama else "gguf"
        write_card(folder, self.source, proof, kind, len(reference.records), file=self.file)
        return proof


def prove_gguf(path: Path, source: Source, reference: Reference, number_type: str, least: float | None) -> Proof:
    """Read the file back, and let llama-cpp-python render, tokenise and answer, where it is installed.

    Args:
        least: the share of equal answers; None for the usual one of ``number_type``.
    """
    from sft.export.gguf_check import metadata_leg, open_gguf, tensors_leg

    config, reader = load_config(source.base.folder), open_gguf(path)
    legs: list[Leg] = [
        metadata_leg(reader, source, config),
        tensors_leg(reader, merged_model(source).state_dict(), config, number_type),
    ]
    del reader
    if not reference.answers:
        from sft.export.gguf_prompts import prompts_leg_of

        legs.insert(0, prompts_leg_of(path, source, reference))
        return Proof(f"gguf {number_type}", tuple(legs), (*reference.notes, NO_LLAMA))
    from sft.export.llama import answers_legs

    of_llama, texts = answers_legs(path, source, reference, number_type, least)
    metrics, metric = metric_legs(reference, texts, source, f"gguf {number_type}")
    not_run = (*reference.notes, "llama-server 没有运行：模板是由 llama-cpp-python 渲染的")
    return Proof(f"gguf {number_type}", (of_llama[0], *legs, *of_llama[1:], *metric), not_run, metrics)
