"""Raw rows → records: one pass over each file, one row at a time, and files that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import orjson

from sft.data.readers import Source
from sft.data.records import conversion_report_path
from sft.data.splitter import TEST, TRAIN, Gold, Progress, Recipe, Splitter, make_record
from sft.errors import InputError, RowError
from sft.files import json_bytes, refuse_folder, whole_file
from sft.tasks.classification import Classification
from sft.tasks.ner import CCFBDCI_LABELS, Ner
from sft.tasks.settings import TaskSettings, settings_path


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
        refuse_folder(path, str(path / "train.jsonl"))
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
            files[settings_path(path)].write(TaskSettings(task).to_bytes())
        report = splitter.report(task) | {"seed": seed, "test_ratio": None if test_source else test_ratio}
        files[report_file].write(json_bytes(report))
        for file in files.values():  # a full disk shows here, before anything is renamed
            file.flush()
    if not report["rejected"]:
        rejected_file.unlink()
    return report


def rejected_path(output_file: Path) -> Path:
    """Where the rejected rows stand."""
    return output_file.with_name(f"{output_file.stem}.rejected.jsonl")


def _check_places(outputs: list[Path], inputs: list[Path]) -> None:
    outputs_at, inputs_at = [path.resolve() for path in outputs], [path.resolve() for path in inputs]
    for path, place in zip(outputs, outputs_at, strict=True):
        if place in inputs_at:
            raise InputError(f"{path}：既是输入又是输出，会把原始数据盖掉；请换一个输出文件")
        if outputs_at.count(place) > 1:
            raise InputError(f"{path}：两个输出是同一个文件；请换一个 --output_file 或 --test_file")
    if len(set(inputs_at)) < len(inputs_at):
        raise InputError(f"{inputs[0]}：训练集和测试集是同一个文件；请换一个，或不给 --input_test_file")


def _render_spool(task: Classification | Ner, spool: IO[bytes], file: IO[bytes]) -> None:
    """Write the records whose fields were kept back until all labels were known."""
    spool.seek(0)
    for line in spool:
        fields = orjson.loads(line)
        if task.name == "classification" and "options" not in fields:
            fields = {"text": fields["text"], "options": task.labels, "label": fields["label"]}
        file.write(orjson.dumps(make_record(task, fields), option=orjson.OPT_APPEND_NEWLINE))


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
