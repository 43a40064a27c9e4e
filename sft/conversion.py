"""Raw rows → records, split into train and test, with every row accounted for.

One pass over each file, one row at a time. What is remembered of a row is a hash of its text and of its gold, so
memory grows by less than 100 bytes a row.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import orjson

from sft.classification import Classification
from sft.formats import Source, read_rows
from sft.ner import CCFBDCI_LABELS, Ner
from sft.records import FORMAT_VERSION, InputError, RowError, conversion_report_path, settings_path, whole_file

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


def classification_recipe(sources: Iterable[Source], labels: str | None) -> Recipe:
    """How to convert classification rows; rows without options of their own get ``labels``, or every label seen.

    Raises:
        InputError: ``labels`` is not a list of different names.
    """
    options = tuple(_split_labels(labels)) if labels else ()
    known = bool(options) or all(source.options_column for source in sources)

    def convert(raw: dict) -> dict:
        fields = Classification.convert(raw)
        if "options" in fields or not known:
            return fields
        if not options:
            raise RowError("category", "没有选项；可以用 --labels 给出")
        if fields["label"] not in options:
            raise RowError("output", f"标签 {fields['label']!r} 不在 --labels 里")
        return {"text": fields["text"], "options": options, "label": fields["label"]}

    return Recipe(
        task=Classification(labels=options) if known else None,
        with_labels=lambda seen: Classification(labels=tuple(seen)),
        convert=convert,
        gold=lambda fields: (fields["label"], (fields["label"],), fields["label"].encode()),
    )


def ner_recipe(sources: Iterable[Source], labels: str | None) -> Recipe:
    """How to convert NER rows; the label set is ``labels``, CCFBDCI's four, or what the data has.

    Raises:
        InputError: ``labels`` is not a list of different names.
    """
    names = _split_labels(labels) if labels else None
    if names is None and all(source.ccfbdci_labels for source in sources):
        names = CCFBDCI_LABELS
    return Recipe(
        task=Ner.with_labels(dict.fromkeys(names.values())) if names else None,
        with_labels=Ner.with_labels,
        convert=partial(Ner.convert, names=names),
        gold=_entity_gold,
    )


def _entity_gold(fields: dict) -> Gold:
    entities = fields["entities"]
    if not entities:
        return "无实体", (), b"[]"
    return "有实体", [entity["label"] for entity in entities], orjson.dumps(entities)


def _split_labels(labels: str) -> dict[str, str]:
    """``GPE=地理实体,LOC`` → ``{"GPE": "地理实体", "LOC": "LOC"}``."""
    names: dict[str, str] = {}
    for part in labels.replace("，", ",").split(","):
        label, _, name = (side.strip() for side in part.partition("="))
        if not label or label in names:
            raise InputError(
                f"--labels：{'重复的标签 ' + label if label else '有空的标签'}；应如 GPE=地理实体,LOC=地点"
            )
        names[label] = name or label
    return names


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


def convert_files(
    recipe: Recipe,
    train_source: Source,
    test_source: Source | None,
    *,
    output_file: Path,
    test_file: Path,
    test_ratio: float,
    seed: int,
    stop_at_bad_row: bool,
    progress: Progress,
) -> dict:
    """Convert, split and write everything; returns the report, which also stands in ``<output>.report.json``.

    Without ``test_source`` a share of ``test_ratio`` of the texts goes to test. With it that file is kept as it is,
    and train rows with a text of its are dropped.

    Raises:
        InputError: bad input, or outputs that cannot be written; no output has been touched then.
    """
    record_files = (output_file, test_file)
    for path in record_files:
        if path.is_dir():
            raise InputError(f"{path}：是一个目录；请给出文件名，如 {path / 'train.jsonl'}")
    report_file, rejected_file = conversion_report_path(output_file), rejected_path(output_file)
    outputs = [*record_files, *map(settings_path, record_files), report_file, rejected_file]
    _check_places(outputs, [source.path for source in (train_source, test_source) if source])

    with ExitStack() as stack:  # all renamed at its end, the records last
        files = {path: stack.enter_context(whole_file(path, sync=False)) for path in outputs}
        finished = [files[path] for path in record_files]
        spools = finished
        if recipe.task is None:  # the messages can be written only when all labels are known
            spools = [stack.enter_context(TemporaryFile(dir=path.parent)) for path in record_files]
        splitter = Splitter(recipe, spools, files[rejected_file], test_ratio, seed, stop_at_bad_row, progress)
        if test_source:
            splitter.add_file(test_source, TEST)
        splitter.add_file(train_source, TRAIN if test_source else None)
        task = splitter.settled_task()
        if recipe.task is None:
            for spool, file in zip(spools, finished, strict=True):
                _render_spool(task, spool, file)
        for path in record_files:
            files[settings_path(path)].write(_json({"format_version": FORMAT_VERSION, **task.settings()}))
        report = splitter.report(task) | {"seed": seed, "test_ratio": None if test_source else test_ratio}
        files[report_file].write(_json(report))
        for file in files.values():  # a full disk shows here, before anything is renamed
            file.flush()
    if not report["rejected"]:
        rejected_file.unlink()
    return report


def rejected_path(output_file: Path) -> Path:
    """Where the rejected rows stand."""
    return output_file.with_name(f"{output_file.stem}.rejected.jsonl")


def _json(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _check_places(outputs: list[Path], inputs: list[Path]) -> None:
    outputs_at, inputs_at = [path.resolve() for path in outputs], [path.resolve() for path in inputs]
    for path, place in zip(outputs, outputs_at, strict=True):
        if place in inputs_at:
            raise InputError(f"{path}：既是输入又是输出，会把原始数据盖掉；请换一个输出文件")
        if outputs_at.count(place) > 1:
            raise InputError(f"{path}：两个输出是同一个文件；请换一个 --output_file 或 --test_file")
    if len(set(inputs_at)) < len(inputs_at):
        raise InputError(f"{inputs[0]}：训练集和测试集是同一个文件；请换一个，或不给 --input_test_file")


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
            record = _record(task, fields) if task else fields
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


def _record(task: Classification | Ner, fields: dict) -> dict:
    messages = task.prompt(fields)
    messages.append({"role": "assistant", "content": task.answer(fields)})
    return {"messages": messages, "task": task.name, **fields}


def _render_spool(task: Classification | Ner, spool: IO[bytes], file: IO[bytes]) -> None:
    """Write the records whose fields were kept back until all labels were known."""
    spool.seek(0)
    for line in spool:
        fields = orjson.loads(line)
        if task.name == "classification" and "options" not in fields:
            fields = {"text": fields["text"], "options": task.labels, "label": fields["label"]}
        file.write(orjson.dumps(_record(task, fields), option=orjson.OPT_APPEND_NEWLINE))


def summary(report: dict, rejected_file: Path) -> Iterator[str]:
    """The report for a person, line by line."""
    for file in report["files"]:
        yield f"{file['file']}：{file['format']}，{file['read']:,} 行"
    leaked = f" + 与测试集重复而剔除 {report['leaked']:,}" if report["leaked"] else ""
    yield (
        f"读入 {report['read']:,} = 转换 {report['converted']:,} + 拒绝 {report['rejected']:,}"
        f" + 合并重复 {report['merged']:,}{leaked}"
    )
    if report["rejected"]:
        fields = "，".join(f"{field or '整行'} {count:,}" for field, count in report["rejected_fields"].items())
        yield f"拒绝的行按字段：{fields}；行号和原因在 {rejected_file}"
    if report["composed"]:
        yield f"NFC 规范化改动了 {report['composed']:,} 行的文本，标注的位置随之移动"
    if report["repeated"]:
        yield f"官方测试集里有 {report['repeated']:,} 行是重复的，原样保留"
    if report["conflicts"]:
        yield f"同一文本标注不同的有 {report['conflicts']:,} 行，都保留了，如"
        for example in report["conflict_examples"][:3]:
            yield f"  {example['file']}:{example['line']}：{example['text'][:30]} → {example['gold'][:80]}"
    yield "标签：" + _listed(f"{label} {count:,}" for label, count in report["labels"].items())
    yield "划分（训练/测试 行）：" + _listed(
        f"{name} {rows['train']:,}/{rows['test']:,}" for name, rows in report["split"].items()
    )
    texts = report["texts"]
    yield (
        f"不同的文本：训练 {texts['train']:,} + 测试 {texts['test']:,} = 共 {texts['distinct']:,}；"
        f"两边都有的文本：{report['texts_on_both_sides']}"
    )


def _listed(items: Iterable[str]) -> str:
    items = list(items)
    return "，".join(items[:20]) + (f" …… 共 {len(items)} 种" if len(items) > 20 else "")
