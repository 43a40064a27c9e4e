"""Convert raw rows to records in one pass over each file, one row at a time. Imports no torch.

The output files appear together and whole, or not at all.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import orjson

from sft.console import ConversionProgress
from sft.data.accounts import TEST, TRAIN
from sft.data.arguments import Conversion
from sft.data.recipes import Recipe
from sft.data.records import conversion_report_path, make_record
from sft.data.rejections import SHOWN
from sft.data.source import Source
from sft.data.splitter import Splitter
from sft.errors import InputError
from sft.files import is_device, json_bytes, refuse_folder, same_file, whole_file
from sft.tasks.settings import converted_settings, settings_path
from sft.tasks.task import Task
from sft.terminal import command, hints_wanted, script_path, terminal_columns
from sft.text import with_count


def convert_files(recipe: Recipe, sources: Sequence[Source], conversion: Conversion) -> dict:
    """Convert, split and write everything; returns the report, which is also written to ``<output>.report.json``.

    Args:
        sources: the file to convert and, if there is one, the official test file. Without it, ``test_ratio`` of the
            texts go to test. With it, that file becomes the test set as it is, and training rows with one of its
            texts are dropped.

    Raises:
        InputError: the input is bad, or the outputs cannot be written; no output has been touched then.
    """
    output_file, test_file = conversion.output_file, conversion.test_file
    train_source, *official_test = sources
    record_files = (output_file, test_file)
    for path in record_files:
        refuse_folder(path, str(path / "train.jsonl"))
        if not path.as_posix().isprintable() and not _is_utf8(path):
            raise InputError(f"{path.as_posix()!r}：文件名不是 UTF-8，记不进别的文件里；请换一个名字")
        if is_device(path):
            raise InputError(f"{path}：是一个设备或管道；旁边还要写别的文件，请给出文件名，如 data/train.jsonl")
    report_file, rejected_file = conversion_report_path(output_file), rejected_path(output_file)
    outputs = [*record_files, *map(settings_path, record_files), report_file, rejected_file]
    _check_places(outputs, [source.path for source in sources])

    # Renamed one after the other when the block ends, the last one first: a conversion that is killed meanwhile
    # leaves settings that are no pair (see `require_pair`).
    in_order = [settings_path(test_file), *record_files, report_file, rejected_file, settings_path(output_file)]
    with ExitStack() as stack:
        files = {path: stack.enter_context(whole_file(path, sync=False)) for path in in_order}
        finished = [files[path] for path in record_files]
        spools = finished
        if recipe.task is None:  # the messages can be written only when all labels are known
            spools = [stack.enter_context(TemporaryFile(dir=path.parent)) for path in record_files]
        with ConversionProgress() as progress:
            splitter = Splitter(recipe, spools, files[rejected_file], conversion, progress)
            for source in official_test:
                splitter.add_file(source, TEST)
            splitter.add_file(train_source, TRAIN if official_test else None)
        task = splitter.settled_task()
        if recipe.task is None:
            for spool, file in zip(spools, finished, strict=True):
                _render_spool(recipe, task, spool, file)
        test_ratio = None if official_test else conversion.test_ratio
        report = splitter.report(task) | {"seed": conversion.seed, "test_ratio": test_ratio}
        files[report_file].write(json_bytes(report))
        for file in files.values():  # a full disk fails here, before any file is renamed
            file.flush()
        written = {path: Path(files[path].name) for path in record_files}
        for path, settings in zip(record_files, converted_settings(task, written), strict=True):
            files[settings_path(path)].write(settings.to_bytes())
            files[settings_path(path)].flush()
    if not report["rejected"]:
        rejected_file.unlink()
    return report


def rejected_path(output_file: Path) -> Path:
    """Where the rejected rows are written."""
    return output_file.with_name(f"{output_file.stem}.rejected.jsonl")


def _check_places(outputs: list[Path], inputs: list[Path]) -> None:
    for path in outputs:
        if any(same_file(path, other) for other in inputs):
            raise InputError(f"{path}：既是输入又是输出，会把原始数据盖掉；请换一个输出文件")
        if sum(same_file(path, other) for other in outputs) > 1:
            raise InputError(f"{path}：两个输出是同一个文件；请换一个 --output_file 或 --test_file")
    if len(inputs) == 2 and same_file(*inputs):
        raise InputError(f"{inputs[0]}：训练集和测试集是同一个文件；请换一个，或不给 --input_test_file")


def _is_utf8(path: Path) -> bool:
    try:
        path.as_posix().encode()
    except UnicodeEncodeError:
        return False
    return True


def _render_spool(recipe: Recipe, task: Task, spool: IO[bytes], file: IO[bytes]) -> None:
    """Write the records whose fields were kept in ``spool`` until all labels were known."""
    spool.seek(0)
    for line in spool:
        fields = recipe.complete(task, orjson.loads(line))
        file.write(orjson.dumps(make_record(task, fields), option=orjson.OPT_APPEND_NEWLINE))


def summary(report: dict, conversion: Conversion) -> Iterator[str]:
    """The report for a person, line by line."""
    yield from _rows_summary(report, conversion)
    yield from _labels_summary(report)
    texts = report["texts"]
    yield (
        f"不同的文本：训练 {texts['train']:,} + 测试 {texts['test']:,} = 共 {texts['distinct']:,}；"
        f"两边都有的文本：{report['texts_on_both_sides']}"
    )
    yield f"写好了 {conversion.output_file} 和 {conversion.test_file}"


def _rows_summary(report: dict, conversion: Conversion) -> Iterator[str]:
    """What became of the rows."""
    for file in report["files"]:
        yield f"{file['file']}：{file['format']}，{file['read']:,} 行"
    leaked = f" + 与测试集重复而剔除 {report['leaked']:,}" if report["leaked"] else ""
    left_out = f" + 没有要的 {report['left_out']:,}" if report["left_out"] else ""
    yield (
        f"读入 {report['read']:,} = 转换 {report['converted']:,} + 拒绝 {report['rejected']:,}"
        f" + 合并重复 {report['merged']:,}{leaked}{left_out}"
    )
    if report["alike"]:
        yield f"重复的行里有 {report['alike']:,} 行只在首尾的空白或看不见的字符（如零宽空格）上不同"
    if report["left_out_reasons"]:
        yield "没有要的行：" + _listed(f"{reason} {rows:,}" for reason, rows in report["left_out_reasons"].items())
    if report["dropped_labels"]:
        by_label = report["left_out"] > sum(report["left_out_reasons"].values())
        what = "其他标签的行，没有要" if by_label else "其他标签的实体，已去掉"
        yield f"{what}：" + _listed(f"{label} {count:,}" for label, count in report["dropped_labels"].items())
    if report["rejected"]:
        reasons = report["rejected_reasons"]
        shown = "；".join(
            f"{reason['reason']} {reason['rows']:,} 行（如 {reason['example']}）" for reason in reasons[:SHOWN]
        )
        more = f"；…… 共 {len(reasons)} 种原因" if len(reasons) > SHOWN else ""
        yield f"拒绝的行：{shown}{more}；全部行号和原因在 {rejected_path(conversion.output_file)}"
    for note in report["notes"]:
        yield f"{note['reason']}：{note['rows']:,} 行（如 {note['example']}）"
    if report["composed"]:
        yield f"NFC 规范化改动了 {report['composed']:,} 行的文本，标注的位置随之移动"
    if report["repeated"]:
        yield f"官方测试集里有 {report['repeated']:,} 行是重复的，原样保留"
    if report["conflicts"]:
        yield f"同一文本标注不同的有 {report['conflicts']:,} 行，都保留了，如"
        for example in report["conflict_examples"][:3]:
            yield f"  {example['file']}:{example['line']}：{example['text'][:30]} → {example['gold'][:80]}"


def _labels_summary(report: dict) -> Iterator[str]:
    """The labels, and how many rows of each are on each side."""
    if report["corrected_labels"]:
        yield "标签里去掉了看不见的字符或末尾的分隔符：" + _listed(
            f"{found['label']!r:.60} → {found['now']} {found['count']:,}" for found in report["corrected_labels"]
        )
    yield "标签：" + _listed(with_count(label, f"{count:,}") for label, count in report["labels"].items())
    if only_in_test := report["labels_only_in_test"]:
        advice = "可以换 --seed" if report["test_ratio"] else "只是写法不同就用 --labels 统一"
        counted = _listed(with_count(label, f"{report['labels'][label]:,}") for label in only_in_test)
        yield f"只在测试集里、训练时学不到的标签：{counted}（{advice}）"
    if report["labels_without_rows"]:
        yield f"--labels 里的 {_listed(report['labels_without_rows'])} 在数据里一次也没有出现，请检查写法"
    yield "划分（训练/测试 行）：" + _listed(
        with_count(name, f"{rows['train']:,}/{rows['test']:,}") for name, rows in report["split"].items()
    )


def next_command(script: str, train_file: Path) -> Iterator[str]:
    """The command that trains on the records, line by line. It names an output folder that is not there yet.

    Args:
        script: the training script's name.
    """
    if not hints_wanted():
        return
    words = re.split(r"[^\w]+|_+", train_file.stem)
    name = "-".join(word for word in words if word and word.lower() != "train") or "model"
    folders = (Path("output", f"{name}-{number}" if number > 1 else name) for number in itertools.count(1))
    output_dir = next(folder for folder in folders if not folder.exists())
    flags = ["--train_file", train_file, "--output_dir", output_dir]
    yield "下一步，训练（先加 --dry_run 可以只检查）："
    yield command(["python", script_path(script), *flags], terminal_columns())


def _listed(items: Iterable[str]) -> str:
    items = list(items)
    return "，".join(items[:20]) + (f" …… 共 {len(items)} 种" if len(items) > 20 else "")
