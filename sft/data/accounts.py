"""The two sides of a split: which a new text goes to, and the account of each file's rows. Imports no torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from fractions import Fraction

from sft.data.rejections import Rejections, RowKinds, refuse_multi_label
from sft.data.source import Source
from sft.errors import InputError

SIDES = ("train", "test")
TRAIN, TEST = 0, 1
MAX_BAD_SHARE = 0.2
MAX_BAD_SHARE_OF_MANY, MANY_ROWS = 0.01, 1000


@dataclass
class Account:
    """What became of the rows of one file: read = converted + rejected + merged + leaked + left_out."""

    source: Source
    read: int = 0
    converted: int = 0
    rejected: int = 0
    merged: int = 0  # repeated rows (same text, same gold) that are dropped
    leaked: int = 0  # train rows that are dropped because the official test file has their text
    alike: int = 0  # of the merged and leaked rows, those whose text only looks like the one that is kept
    left_out: int = 0  # rows that are not wanted: the user wants other labels, or the annotator rejected them
    repeated: int = 0  # repeated rows of an official test file; they are kept
    composed: int = 0  # rows whose text NFC changed
    first_bad_row: str = ""  # where it is and why, for a message
    rejections: Rejections = field(default_factory=Rejections)
    notes: RowKinds = field(default_factory=RowKinds)  # what there is to say of converted rows
    labels: frozenset[str] = frozenset()  # those of the converted rows

    def figures(self) -> dict[str, int]:
        """The counts by name."""
        names = ("read", "converted", "rejected", "merged", "leaked", "alike", "left_out", "repeated", "composed")
        return {name: vars(self)[name] for name in names}

    def refuse_many_bad_rows(self) -> None:
        """Refuse a file of which too little is left, now that all of it has been read.

        Raises:
            InputError: it has no rows, too many of them are rejected, or a row has several labels.
        """
        path, read, rejected = self.source.path, self.read, self.rejected
        if not read:
            raise InputError(f"{path}：没有一行数据；请检查文件")
        refuse_multi_label(path, self.rejections)
        reasons, advice = self.rejections.describe(), self.rejections.advice()
        if rejected == read:
            raise InputError(f"{path}：{read:,} 行都不能用：{reasons}；头一处是 {self.first_bad_row}；{advice}")
        most = MAX_BAD_SHARE_OF_MANY if read >= MANY_ROWS else MAX_BAD_SHARE
        if rejected > most * read:
            raise InputError(
                f"{path}：{read:,} 行里有 {rejected:,} 行不能用（超过 {most:.0%}），跳过它们只剩 "
                f"{read - rejected:,} 行：{reasons}；{advice}"
            )


class Stratum:
    """Rows whose share the split keeps: all with one label, for example.

    Its different texts are counted in windows of 1/ratio. In each window, a hash of seed, stratum and window picks one
    text for test. So one pass gives the exact share in any order of the file, and no random state is touched.
    """

    def __init__(self, name: str, ratio: Fraction, seed: int) -> None:
        self.name, self.ratio, self.seed = name, ratio, seed
        self.rows = [0, 0]
        self.texts = 0
        self.window = -1
        self.window_end = 0
        self.picked = 0

    def draw_side(self) -> int:
        """The side of the next new text."""
        index = self.texts
        self.texts += 1
        if index == self.window_end:
            self.window += 1
            self.window_end = -(-(self.window + 1) * self.ratio.denominator // self.ratio.numerator)  # rounded up
            drawn = hashlib.blake2b(f"{self.seed}\0{self.name}\0{self.window}".encode(), digest_size=8).digest()
            self.picked = index + int.from_bytes(drawn) % (self.window_end - index)
        return TEST if index == self.picked else TRAIN
