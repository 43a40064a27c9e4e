"""Split converted rows into train and test, and count what becomes of every row. Imports no torch.

All rows with the same text (see `sft.text.compared`) go to the same side. Of each row only hashes of its text and its
gold are kept, so memory grows by less than 100 bytes a row, and as much again for a text with blanks at its edges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import IO, NoReturn

import orjson

from sft.data.accounts import SIDES, TEST, TRAIN, Account, Stratum
from sft.data.arguments import Conversion
from sft.data.readers import read_rows
from sft.data.recipes import Recipe
from sft.data.records import make_record
from sft.data.rejections import joined_labels, multi_label_file, printable
from sft.data.source import Source
from sft.errors import InputError, LeftOut, RowError
from sft.tasks.options import clean_label
from sft.tasks.task import Task
from sft.text import compared

MAX_LABELS = 1000
MAX_LABEL_CHARACTERS = 20_000  # of all labels together, where every prompt names all of them
MAX_SHARE_OF_LABELS, FEWEST_ROWS_TO_JUDGE = 0.5, 20  # labels for each row
MAX_SHARE_WITH_SEVERAL_LABELS, SEVERAL_LABELS_FROM_TEXTS = 0.2, 3  # of the texts
_EXAMPLES = 5
_PROGRESS_ROWS = 4096
_RAW_SHOWN = 500  # characters
# Hashes are cut to 60 bits, because CPython stores an int of 60 bits in 32 bytes and a longer one in 48.
_TEXT_DROPPED_BITS = 4  # 64 - 60
_GOLD_DROPPED_BITS = 5  # 64 - 60, and one bit more for the side
_SIDE_BITS = 1  # the lowest bit of a gold key is the side
_SIDE_MASK = 1

Progress = Callable[[Path, int], None]  # called now and then with the file and the lines read so far


class Splitter:
    """Sends each row to train or test, all rows with one text to one side, and keeps the accounts.

    Texts are compared by Python's own hash of strings (SipHash), cut to 60 bits. With a million texts the chance that
    two different ones are taken for the same is 4e-7.
    """

    def __init__(
        self, recipe: Recipe, files: list[IO[bytes]], rejected: IO[bytes], conversion: Conversion, progress: Progress
    ) -> None:
        """Write bad rows to ``rejected``, and the others to ``files`` (train, test) as records.

        While the task is unknown, what goes to ``files`` is the fields of the records.
        """
        self.recipe, self.files, self.rejected = recipe, files, rejected
        self.stop_at_bad_row, self.progress = conversion.stop_at_bad_row, progress
        self.ratio, self.seed = Fraction(str(conversion.test_ratio)), conversion.seed
        self.accounts: list[Account] = []
        self.gold_keys: dict[int, int] = {}  # text key → the gold key of its first row, which has the text's side too
        self.forms: dict[int, int] = {}  # text key → the key of its first row's text as it is, where that differs
        self.other_gold_keys: dict[int, set[int]] = {}  # text key → further gold keys, where rows disagree
        self.strata: dict[str, Stratum] = {}
        self.first_rows: dict[str, str] = {}  # stratum → where its first row is
        self.labels: Counter[str] = Counter()
        self.rejected_fields: Counter[str] = Counter()
        self.trained_labels: set[str] = set()  # those of the training rows
        self.texts = [0, 0]  # different texts on each side
        self.first_text = ""
        self.conflicts = 0
        self.conflict_examples: list[dict] = []
        self.left_out_reasons: Counter[str] = Counter()

    def add_file(self, source: Source, side: int | None) -> None:
        """Convert a whole file.

        Args:
            side: where every row goes; None splits the file.

        Raises:
            InputError: the file cannot be read, or has too many bad rows.
        """
        account = Account(source)
        self.accounts.append(account)
        convert, gold_of, task = self.recipe.convert, self.recipe.gold, self.recipe.task
        gold_keys, strata, label_counts = self.gold_keys, self.strata, Counter()  # locals are faster in this loop
        writes = [file.write for file in self.files]
        dumps, newline = orjson.dumps, orjson.OPT_APPEND_NEWLINE
        for number, line, raw in read_rows(source):
            account.read += 1
            if not account.read % _PROGRESS_ROWS:
                self.progress(source.path, number)
            try:
                if isinstance(raw, RowError):
                    raise raw
                fields = convert(raw)
                if fields is None:
                    account.left_out += 1
                    continue
                text_key = _text_key(compared(fields["text"]))
            except LeftOut as error:
                account.left_out += 1
                self.left_out_reasons[error.kind] += 1
                continue
            except RowError as error:
                self._reject(account, number, line, error)
                continue
            for note in self.recipe.noted:
                account.notes.count(note, number)
            if fields["text"] is not raw["text"]:
                account.composed += 1

            stratum_name, labels, gold = gold_of(fields)
            stratum = strata.get(stratum_name) or self._new_stratum(stratum_name, number)
            if text_key not in gold_keys:
                row_side = stratum.draw_side() if side is None else side
                gold_keys[text_key] = _gold_key(gold, row_side)
                self.texts[row_side] += 1
                self.first_text = self.first_text or fields["text"]
                if (form := _text_key(fields["text"])) != text_key:
                    self.forms[text_key] = form
            else:
                row_side = self._side_of_known(account, number, text_key, fields["text"], gold, side)
                if row_side is None:
                    continue

            account.converted += 1
            stratum.rows[row_side] += 1
            for label in labels:
                label_counts[label] += 1
            if row_side == TRAIN:
                self.trained_labels.update(labels)
            if len(label_counts) > MAX_LABELS:
                self._refuse_so_many_labels(number)
            record = make_record(task, fields) if task else fields
            writes[row_side](dumps(record, option=newline))
        account.labels = frozenset(label_counts)
        self.labels.update(label_counts)
        account.refuse_many_bad_rows()

    def _reject(self, account: Account, number: int, line: bytes | str, error: RowError) -> None:
        account.rejected += 1
        self.rejected_fields[error.field] += 1
        account.rejections.add(error, number)
        reason = printable(error.reason)
        where = f"{account.source.path}:{number}：{printable(error.field) + '：' if error.field else ''}{reason}"
        if self.stop_at_bad_row:
            raise InputError(f"{where}；请改正，或用 --on_bad_row skip 跳过坏行") from error
        account.first_bad_row = account.first_bad_row or where
        shown = line[: _RAW_SHOWN * 4].decode("utf-8", "replace") if isinstance(line, bytes) else line
        entry = {
            "file": printable(str(account.source.path)),
            "line": number,
            "field": printable(error.field),
            "reason": reason,
            "raw": shown[:_RAW_SHOWN].encode("utf-8", "replace").decode(),
        }
        self.rejected.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))

    def _new_stratum(self, name: str, line: int) -> Stratum:
        stratum = self.strata[name] = Stratum(name, self.ratio, self.seed)
        self.first_rows[name] = f"{self.accounts[-1].source.path}:{line}"
        if len(self.strata) > MAX_LABELS:
            self._refuse_joined_labels({name: sum(stratum.rows) for name, stratum in self.strata.items()})
            self._refuse_so_many_labels(line)
        return stratum

    def _refuse_so_many_labels(self, line: int) -> NoReturn:
        raise InputError(
            f"{self.accounts[-1].source.path}:{line}：到这里标签已超过 {MAX_LABELS} 种，多半是选错了列；"
            "请检查 --label_column，或用 --labels 给出要的标签"
        )

    def _side_of_known(
        self, account: Account, number: int, key: int, text: str, gold: bytes, side: int | None
    ) -> int | None:
        """The side of a row whose text has occurred before; None if the row is dropped.

        A row whose gold the text has not had yet is a conflict and is kept. Any other is a repetition, which only an
        official test file keeps.
        """
        known_side = _side_of(self.gold_keys[key])
        looks_alike = _text_key(text) != self.forms.get(key, key)
        if side == TRAIN and known_side == TEST:
            account.leaked += 1
            account.alike += looks_alike
            return None
        if self._add_gold(key, _gold_key(gold, known_side)):
            self._note_conflict(account.source.path, number, text, gold)
            return known_side
        if side == TEST:
            account.repeated += 1
            return TEST
        account.merged += 1
        account.alike += looks_alike
        return None

    def _add_gold(self, text_key: int, gold_key: int) -> bool:
        """Remember a gold of a known text; returns whether it is new."""
        if gold_key == self.gold_keys[text_key]:
            return False
        others = self.other_gold_keys.setdefault(text_key, set())
        if gold_key in others:
            return False
        others.add(gold_key)
        return True

    def _note_conflict(self, path: Path, number: int, text: str, gold: bytes) -> None:
        self.conflicts += 1
        if len(self.conflict_examples) < _EXAMPLES:
            example = {"file": printable(str(path)), "line": number, "text": text[:60], "gold": gold.decode()[:200]}
            self.conflict_examples.append(example)

    def _refuse_joined_labels(self, rows_by_label: Mapping[str, int]) -> None:
        """Refuse rows such as ``体育|交通``, if their labels are taken as they are in the data."""
        source = self.accounts[-1].source
        if source.answers != "label" or self.recipe.task is not None:
            return
        if joined := joined_labels(rows_by_label):
            rows = sum(rows_by_label[label] for label in joined)
            example = f" {self.first_rows[joined[0]]} 的 {joined[0]!r}"
            error = multi_label_file(source.path, rows, example)
            raise InputError(f"{error}；若 {joined[0]!r} 本来就是一个标签，用 --labels 列出全部标签")

    def _refuse_texts_with_several_labels(self) -> None:
        """Refuse a file that gives a text's several labels in as many rows; a few such texts are slips."""
        source, several, texts = self.accounts[-1].source, len(self.other_gold_keys), len(self.gold_keys)
        if source.answers != "label" or any(account.source.has_options for account in self.accounts):
            return  # with options of its own, a row may ask something else about the same text
        if several >= SEVERAL_LABELS_FROM_TEXTS and several > MAX_SHARE_WITH_SEVERAL_LABELS * texts:
            example = self.conflict_examples[0]
            error = multi_label_file(source.path, self.conflicts, f" {example['file']}:{example['line']}")
            raise InputError(f"{error}（{texts:,} 段不同的文本里有 {several:,} 段出现在几行里，标签各不相同）")

    def _refuse_an_empty_side(self) -> None:
        """Refuse data of which one side gets nothing, and say why: only sometimes another ratio helps."""
        for account in self.accounts:
            if not account.converted and not account.leaked:
                why = "，".join(f"{reason} {rows:,}" for reason, rows in self.left_out_reasons.items())
                lost = [f"没有要的 {account.left_out:,} 行{why and f'（{why}）'}"] if account.left_out else []
                lost += [account.rejections.describe()] if account.rejected else []
                raise InputError(f"{account.source.path}：没有留下一行：{'；'.join(lost)}；请检查 --labels 和数据")
        source, rows, texts = account.source, account.read, len(self.gold_keys)
        if rows == 1 and source.tagging and not source.tagging.sentence_a_line:
            raise InputError(f"{source.path}：整个文件读成了一句话；句子之间应有空行")
        if all(self.texts):
            return
        if len(self.accounts) > 1:
            test_path = self.accounts[0].source.path
            raise InputError(f"{source.path}：文本全都在 {test_path} 里，没有一行留给训练；请换 --input_test_file")
        if rows == 1:
            raise InputError(f"{source.path}：只有一行数据，分不出训练集和测试集；请检查文件")
        if texts == 1 and account.converted + account.merged > 1:
            field = "（如 instruction）" if source.format == "alpaca" else ""
            raise InputError(
                f"{source.path}：{account.converted + account.merged:,} 行的文本都是 {self.first_text!r:.60}，"
                f"多半取错了字段；文本在别的字段里{field}就用 --text_column 指明"
            )
        side = SIDES[self.texts.index(0)]
        raise InputError(f"{source.path}：只有 {texts} 段不同的文本，{side} 一行也没有分到；请换 --test_ratio")

    def _refuse_too_few_labels(self) -> None:
        """Refuse training rows that nothing can be learned from: a single class, or no entity."""
        account = self.accounts[-1]
        dropped = "，".join(f"{label} {count:,}" for label, count in self.recipe.dropped.most_common(5))
        lost = [account.rejections.describe()] if account.rejected else []
        lost += [f"--other_labels drop 去掉了 {dropped}"] if dropped else []
        because = f"（{'；'.join(lost)}）" if lost else ""
        advice = "请检查 --labels 和数据" if lost else "请检查数据和 --label_column"
        if account.source.answers == "label" and len(account.labels) < 2:
            (label,) = account.labels or ("",)
            what = f"只有 {label!r} 一类" if label else "一类也没有"
            raise InputError(f"{account.source.path}：能用的行里{what}，学不到怎样分类{because}；{advice}")
        if account.source.answers == "label" and self.recipe.task is None:
            self._refuse_labels_that_are_texts(account)
        if account.source.answers == "entities" and not account.labels:
            raise InputError(f"{account.source.path}：能用的行里没有一个实体，学不到东西{because}；{advice}")

    def _refuse_labels_that_are_texts(self, account: Account) -> None:
        """Refuse rows of which nearly each has a label of its own: answers in words, scores, tags of tokens."""
        rows, labels = sum(self.labels.values()), len(self.labels)
        if rows >= FEWEST_ROWS_TO_JUDGE and labels > MAX_SHARE_OF_LABELS * rows:
            raise InputError(
                f"{account.source.path}：{rows:,} 行里有 {labels:,} 种标签（如 {next(iter(self.labels))!r:.40}），"
                "不像分类的标签；请检查 --label_column，或换一个任务的脚本；的确有这么多类，请用 --labels 列出"
            )

    def settled_task(self) -> Task:
        """The task with its labels: those of the recipe, else those in the data.

        Raises:
            InputError: there is nothing to learn, rows have several labels, or one side got no row.
        """
        path = self.accounts[-1].source.path
        self._refuse_an_empty_side()
        self._refuse_joined_labels(self.labels)
        self._refuse_texts_with_several_labels()
        self._refuse_too_few_labels()
        if self.recipe.task and self.recipe.task.labels:
            return self.recipe.task
        characters = sum(map(len, self.labels))
        if self.recipe.task is None and characters > MAX_LABEL_CHARACTERS:
            raise InputError(
                f"{path}：{len(self.labels):,} 种标签共有 {characters:,} 个字（最多 {MAX_LABEL_CHARACTERS:,}），"
                "每一条提示都要全写一遍；多半是选错了列，请检查 --label_column"
            )
        return self.recipe.with_labels(self._labels_by_frequency())

    def _labels_by_frequency(self) -> list[str]:
        return sorted(self.labels, key=lambda label: (-self.labels[label], label))

    def report(self, task: Task) -> dict:
        """All the counts of the conversion, as JSON has them."""
        figures = [account.figures() for account in self.accounts]
        return {
            "task": task.name,
            **{name: sum(figure[name] for figure in figures) for name in figures[0]},
            "rejected_fields": dict(self.rejected_fields.most_common()),
            "rejected_reasons": self._kinds("rejections"),
            "notes": self._kinds("notes"),
            "left_out_reasons": dict(self.left_out_reasons.most_common()),
            "dropped_labels": dict(self.recipe.dropped.most_common()),
            "corrected_labels": [
                {"label": label, "now": clean_label(label), "count": count}
                for label, count in self.recipe.corrected.most_common()
            ],
            "labels_without_rows": [label for label in task.labels if not self.labels[label]],
            "conflicts": self.conflicts,
            "conflict_examples": self.conflict_examples,
            "labels": {label: self.labels[label] for label in self._labels_by_frequency()},
            "labels_only_in_test": [
                label for label in self._labels_by_frequency() if label not in self.trained_labels
            ],
            "split": {name: dict(zip(SIDES, self.strata[name].rows, strict=True)) for name in sorted(self.strata)},
            "texts": dict(zip(SIDES, self.texts, strict=True)) | {"distinct": len(self.gold_keys)},
            "texts_on_both_sides": sum(self.texts) - len(self.gold_keys),
            "files": [
                {"file": printable(str(account.source.path)), "format": account.source.describe(), **figure}
                for account, figure in zip(self.accounts, figures, strict=True)
            ],
        }

    def _kinds(self, counted: str) -> list[dict]:
        reasons: dict[str, dict] = {}
        for account in self.accounts:
            for reason in vars(account)[counted].by_frequency():
                example = f"{account.source.path}:{reason.line}"
                known = reasons.setdefault(reason.kind, {"reason": reason.shown(), "rows": 0, "example": example})
                known["rows"] += reason.rows
        return sorted(reasons.values(), key=lambda reason: -reason["rows"])


def _text_key(text: str) -> int:
    return hash(text) >> _TEXT_DROPPED_BITS


@lru_cache(maxsize=4096)
def _gold_key(gold: bytes, side: int) -> int:
    """A 59-bit hash of the gold above the bit of the side. The cache lets equal keys share one int."""
    return (hash(gold) >> _GOLD_DROPPED_BITS) << _SIDE_BITS | side


def _side_of(gold_key: int) -> int:
    return gold_key & _SIDE_MASK
