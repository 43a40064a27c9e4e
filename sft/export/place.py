"""Where an export is written: beside its place, and into it when it is proved. Imports no torch."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sft.errors import InputError, RunError
from sft.export.proof import TITLES, Leg, Proof
from sft.files import patiently, write_json

logger = logging.getLogger(__name__)

PROOF_FILE = "export.json"


@dataclass(frozen=True)
class Place:
    """The folder of an export.

    Attributes:
        folder: where it is written.
        output_dir: where it will be.
    """

    folder: Path
    output_dir: Path

    def finish(self, proof: Proof) -> None:
        """Tell the proof, and move the export to its place.

        Raises:
            RunError: a comparison failed. The export stays where it was written.
        """
        for line in proof.lines():
            logger.info("%s", line)
        write_json(self.folder / PROOF_FILE, proof.to_json())
        if proof.failed:
            legs = "、".join(TITLES[leg.name] for leg in proof.failed)
            only_answers = all(leg.name == "answers" and leg.compared for leg in proof.failed)
            loosen = f"；确实要放宽，加 --min_agreement {lowest_share(proof.failed)}" if only_answers else ""
            raise RunError(
                f"{self.output_dir}：没有导出：与适配器不同的是 {legs}（上面有最先不同的几处）；"
                f"写好的留在 {self.folder}，不要使用{loosen}"
            )
        if self.output_dir.exists():
            old = self.output_dir.with_name(f".{self.output_dir.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            patiently(self.output_dir.replace, old)
            patiently(self.folder.replace, self.output_dir)
            shutil.rmtree(old, ignore_errors=True)
        else:
            patiently(self.folder.replace, self.output_dir)
        logger.info("导出在 %s；怎样用见里面的 README.md", self.output_dir)


def lowest_share(legs: Sequence[Leg]) -> float:
    """The lowest share of equal things, rounded down to three places: a minimum that all would pass."""
    return min(1000 * leg.equal // leg.compared for leg in legs) / 1000


@contextmanager
def being_written(output_dir: Path, *, overwrite: bool) -> Iterator[Place]:
    """A folder beside ``output_dir`` to write into. If the ``with`` block raises before the proof, it is removed.

    Raises:
        InputError: ``output_dir`` is not free, or cannot be created.
    """
    require_free(output_dir, overwrite=overwrite)
    folder = output_dir.with_name(f"{output_dir.name}.unproved")
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{folder}：无法建立文件夹（{error.strerror}）；请换一个 --output_dir") from error
    try:
        yield Place(folder, output_dir)
    finally:
        if folder.exists() and not (folder / PROOF_FILE).is_file():
            shutil.rmtree(folder, ignore_errors=True)


def require_free(output_dir: Path, *, overwrite: bool) -> None:
    """Refuse a folder with something in it, unless it is an earlier export that may be replaced.

    Raises:
        InputError: it is not free.
    """
    if output_dir.is_file():
        raise InputError(f"{output_dir}：是一个文件；请用 --output_dir 给出一个新文件夹")
    if not output_dir.is_dir() or not any(output_dir.iterdir()):
        return
    if not (output_dir / PROOF_FILE).is_file():
        raise InputError(f"{output_dir}：里面有别的东西；请换一个 --output_dir")
    if not overwrite:
        raise InputError(f"{output_dir}：里面是上次导出的；要换掉它就加 --overwrite，或换一个 --output_dir")
