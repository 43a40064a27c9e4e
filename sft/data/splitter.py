"""Each converted row to train or to test, one text always to one side, and every row accounted for.

What is remembered of a row is a hash of its text and of its gold, so memory grows by less than 100 bytes a row.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import IO

import orjson

from sft.data.readers import Source, read_rows
from sft.errors import InputError, RowError
from sft.tasks.classification import Classification
from sft.tasks.ner import Ner
from sft.tasks.task import chat_messages

SIDES = ("train", "test")
TRAIN, TEST = 0, 1
MAX_LABELS = 1000
MAX_BAD_SHARE, BAD_SHARE_FROM_ROWS = 0.01, 1000
_EXAMPLES = 5
_PROGRESS_ROWS = 4096
_RAW_SHOWN = 500

Gold = tuple[str, Sequence[str], bytes]
Progress = Callable[[Path, int], None]  # called now and then with the file and the lines read so far


@dataclass(frozen=True)
class Recipe:
    """What a task wants of a conversion.

    Attributes:
        task: the task that renders the messages; None while its labels are still to be learnt from the data.
        with_labels: the task for the labels of the data, the most frequent first.
        convert: a raw row to the fields of a record; raises RowError.
        gold: of a record's fields, its stratum (what the split keeps in proportion), its labels, and what tells it
            from another annotation of the same text.
    """

    task: Classification | Ner | None
    with_labels: Callable[[Iterable[str]], Classification | Ner]
    convert: Callable[[dict], dict]
    gold: Callable[[dict], Gold]


@dataclass
class Account:
    """What became of the rows of one file: read = converted + rejected + merged + leaked."""

    source: Source
    read: int = 0
    converted: int = 0
    rejected: int = 0
    merged: int = 0  # same text, same gold
    leaked: int = 0  # train rows whose text is in the official test file
    repeated: int = 0  # rows that stand twice in an official test file, kept
    composed: int = 0  # rows whose text NFC changed
    bad_rows: list[str] = field(default_factory=list)  # the first ones, for a message

    def figures(self) -> dict[str, int]:
        """The counts by name."""
        names = ("read", "converted", "rejected", "merged", "leaked", "repeated", "composed")
        return {name: vars(self)[name] for name in names}


class Splitter:
    """Sends each row to train or test, one text always to one side, and keeps the account.

    Texts are told apart by Python's own hash of strings (SipHash), cut to 60 bits, for such an int takes 32 bytes
    and a longer one 48. Among a million texts the chance that two are taken for one is 4e-7.
    """

    def __init__(
        self,
        recipe: Recipe,
        files: list[IO[bytes]],
        rejected: IO[bytes],
        test_ratio: float,
        seed: int,
        stop_at_bad_row: bool,
        progress: Progress,
    ) -> None:
        self.recipe, self.files, self.rejected = recipe, files, rejected
        self.stop_at_bad_row, self.progress = stop_at_bad_row, progress
        self.ratio, self.seed = Fraction(str(test_ratio)), seed
        self.accounts: list[Account] = []
        self.golds: dict[int, int] = {}  # text → its first gold, with its side as the last bit
        self.more_golds: dict[int, set[int]] = {}  # text → the golds after the first
        self.strata: dict[str, Stratum] = {}
        self.labels: Counter[str] = Counter()
        self.rejected_fields: Counter[str] = Counter()
        self.texts = [0, 0]  # distinct ones, on each side
        self.conflicts = 0
        self.conflict_examples: list[dict] = []

    def add_file(self, source: Source, side: int | None) -> None:
        """Convert a whole file, every row to ``side``, or split if it is None.

        Raises:
            InputError: the file cannot be read, or has too many bad rows.
        """
        account = Account(source)
        self.accounts.append(account)
        convert, gold_of, task = self.recipe.convert, self.recipe.gold, self.recipe.task
        golds, strata, files = self.golds, self.strata, self.files  # the loop below runs for every row
        for number, line, raw in read_rows(source):
            account.read += 1
            if not account.read % _PROGRESS_ROWS:
                self.progress(source.path, number)
            try:
                if type(raw) is RowError:
                    raise raw
                fields = convert(raw)
                key = hash(fields["text"]) >> 4
            except RowError as error:
                self._reject(account, number, line, error)
                continue
            if fields["text"] is not raw["text"]:
                account.composed += 1

            stratum_name, labels, gold = gold_of(fields)
            stratum = strata.get(stratum_name) or self._new_stratum(stratum_name)
            if key not in golds:
                row_side = stratum.draw_side() if side is None else side
                golds[key] = _gold_key(gold, row_side)
                self.texts[row_side] += 1
            else:
                row_side = self._side_of_known(account, number, key, fields["text"], gold, side)
                if row_side is None:
                    continue

            account.converted += 1
            stratum.rows[row_side] += 1
            for label in labels:
                self.labels[label] += 1
            record = make_record(task, fields) if task else fields
            files[row_side].write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        self._check_bad_share(account)

    def _reject(self, account: Account, number: int, line: bytes | str, error: RowError) -> None:
        account.rejected += 1
        self.rejected_fields[error.field] += 1
        reason = _printable(error.reason)
        where = f"{account.source.path}:{number}：{_printable(error.field) + '：' if error.field else ''}{reason}"
        if self.stop_at_bad_row:
            raise InputError(f"{where}；请改正，或用 --on_bad_row skip 跳过坏行") from error
        if len(account.bad_rows) < 3:
            account.bad_rows.append(where)
        shown = line[: _RAW_SHOWN * 4].decode("utf-8", "replace") if isinstance(line, bytes) else line
        entry = {
            "file": str(account.source.path),
            "line": number,
            "field": _printable(error.field),
            "reason": reason,
            "raw": shown[:_RAW_SHOWN].encode("utf-8", "replace").decode(),
        }
        self.rejected.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))

    def _new_stratum(self, name: str) -> Stratum:
        stratum = self.strata[name] = Stratum(name, self.ratio, self.seed)
        if len(self.strata) > MAX_LABELS:
            raise InputError(
                f"{self.accounts[-1].source.path}：标签超过 {MAX_LABELS} 种，多半是选错了列；请检查 --label_column"
            )
        return stratum

    def _side_of_known(
        self, account: Account, number: int, key: int, text: str, gold: bytes, side: int | None
    ) -> int | None:
        """The side of a row whose text has been there before; None where it is dropped, a duplicate or a leak."""
        known_side = self.golds[key] & 1
        if side == TRAIN and known_side == TEST:
            account.leaked += 1
            return None
        gold_key = _gold_key(gold, known_side)
        if gold_key != self.golds[key] and gold_key not in self.more_golds.setdefault(key, set()):
            self.more_golds[key].add(gold_key)
            self.conflicts += 1
            if len(self.conflict_examples) < _EXAMPLES:
                example = {
                    "file": str(account.source.path),
                    "line": number,
                    "text": text[:60],
                    "gold": gold.decode()[:200],
                }
                self.conflict_examples.append(example)
            return known_side
        if side == TEST:
            account.repeated += 1
            return TEST
        account.merged += 1
        return None

    def _check_bad_share(self, account: Account) -> None:
        path, read, rejected = account.source.path, account.read, account.rejected
        examples = "；".join(account.bad_rows)
        if not read:
            raise InputError(f"{path}：没有一行数据；请检查文件")
        if rejected == read:
            raise InputError(f"{path}：{read} 行都不能用，如 {examples}；请检查数据，或用 --format 指明格式")
        if read >= BAD_SHARE_FROM_ROWS and rejected > MAX_BAD_SHARE * read:
            raise InputError(f"{path}：{read} 行里有 {rejected} 行不能用（超过 1%），如 {examples}；请先改正")

    def settled_task(self) -> Classification | Ner:
        """The task with its labels, the data's where none were given.

        Raises:
            InputError: there are no labels, or nothing is left for one side.
        """
        path = self.accounts[-1].source.path
        for side, texts in zip(SIDES, self.texts, strict=True):
            if not texts:
                raise InputError(f"{path}：{side} 一行也没有分到（数据太少，或与测试集全部重复）；请换 --test_ratio")
        if self.recipe.task and self.recipe.task.labels:
            return self.recipe.task
        if not self.labels:
            raise InputError(f"{path}：没有一个实体，无从知道标签；请用 --labels 给出")
        return self.recipe.with_labels(self._labels_by_frequency())

    def _labels_by_frequency(self) -> list[str]:
        return sorted(self.labels, key=lambda label: (-self.labels[label], label))

    def report(self, task: Classification | Ner) -> dict:
        """Every figure of the conversion."""
        figures = [account.figures() for account in self.accounts]
        return {
            "task": task.name,
            **{name: sum(figure[name] for figure in figures) for name in figures[0]},
            "rejected_fields": dict(self.rejected_fields.most_common()),
            "conflicts": self.conflicts,
            "conflict_examples": self.conflict_examples,
            "labels": {label: self.labels[label] for label in self._labels_by_frequency()},
            "split": {name: dict(zip(SIDES, self.strata[name].rows, strict=True)) for name in sorted(self.strata)},
            "texts": dict(zip(SIDES, self.texts, strict=True)) | {"distinct": len(self.golds)},
            "texts_on_both_sides": sum(self.texts) - len(self.golds),
            "files": [
                {"file": str(account.source.path), "format": account.source.describe(), **figure}
                for account, figure in zip(self.accounts, figures, strict=True)
            ],
        }


class Stratum:
    """Rows that the split keeps in proportion.

    Their texts arrive in windows of 1/ratio; of each window the one that a hash of seed, stratum and window picks
    goes to test. So the share is exact however the file is ordered, in one pass, and no random state is touched.
    """

    def __init__(self, name: str, ratio: Fraction, seed: int) -> None:
        self.name, self.ratio, self.seed = name, ratio, seed
        self.rows = [0, 0]
        self.texts = 0
        self.window = -1
        self.window_end = 0
        self.picked = 0

    def draw_side(self) -> int:
        """The side of the next text that has not been seen before."""
        index = self.texts
        self.texts += 1
        if index == self.window_end:
            self.window += 1
            self.window_end = -(-(self.window + 1) * self.ratio.denominator // self.ratio.numerator)
            drawn = hashlib.blake2b(f"{self.seed}\0{self.name}\0{self.window}".encode(), digest_size=8).digest()
            self.picked = index + int.from_bytes(drawn) % (self.window_end - index)
        return TEST if index == self.picked else TRAIN


@lru_cache(maxsize=4096)
def _gold_key(gold: bytes, side: int) -> int:
    """A hash of the gold with the side as its last bit; cached, so that equal ones share one int."""
    return hash(gold) >> 5 << 1 | side


def _printable(text: str) -> str:
    """On one line, and such as can be encoded."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def make_record(task: Classification | Ner, fields: dict) -> dict:
    """The record of a row's fields, its messages rendered."""
    return {"messages": chat_messages(task, fields), "task": task.name, **fields}
