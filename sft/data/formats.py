"""Recognise a person's file: its encoding, format and columns. Imports no torch.

`recognise` is the only entrance, for conversion and for prediction alike. To add a format, add a step to
`recognise_sample` or `_format_of`, and its reader to `sft.data.readers`. What a file must not be taken for is in
`sft.data.look_alikes`, the header and the columns of a table in `sft.data.table_columns`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import orjson

from sft.data import marked
from sft.data.arguments import COLUMNAR_FORMATS, JSON_FORMATS, ROW_FORMATS, ReadOptions, refuse_columns
from sft.data.brat import describe_brat, is_brat
from sft.data.class_folders import CLASS_FOLDER, classes_in, encoding_of_texts
from sft.data.columnar import describe_columnar, is_columnar, read_columnar
from sft.data.columns import Columns
from sft.data.documents import is_document, read_document
from sft.data.encodings import BYTE_ORDER_MARK, file_encoding
from sft.data.look_alikes import (
    doubt_about_texts,
    foreign,
    half_of_two_files,
    header_below,
    is_certainly_table,
    without_entities,
)
from sft.data.offset_evidence import with_offsets
from sft.data.readers import rows_in_shape
from sft.data.sample_rows import notation_of, with_columns
from sft.data.sentence_ends import with_sentence_ends
from sft.data.sheets import is_sheet
from sft.data.source import Source
from sft.data.table_columns import as_sheet, as_table
from sft.data.tables import (
    DELIMITERS,
    HEADER_LINES,
    has_text_name,
    is_data,
    separator_line,
)
from sft.data.tagged_layout import has_commas, tagging_of
from sft.data.tagging import Tagging
from sft.errors import InputError, one_line
from sft.tasks.ner import CCFBDCI_LABELS

TASK = {"label": "分类", "entities": "实体识别"}
JSON_ENDINGS = ("json", "jsonl")
TABLE_ENDINGS = ("csv", "tsv")
_SAMPLE_CHARACTERS = 1 << 20
_SAMPLE_ROWS = 1000


def recognise(path: Path, answers: str, options: ReadOptions | None = None, *, gold: bool = True) -> Source:
    """How to read a file.

    Args:
        answers: what the task's answers are, ``label`` or ``entities`` (``task.answers``).
        options: what the user says about the file.
        gold: whether rows need gold, as in conversion. Rows to predict need none, and a file in no known format has
            one text on each line.

    Raises:
        InputError: the file cannot be read, is in no known format, could be read in two ways, or its columns cannot
            be recognised.
    """
    options = options or ReadOptions()
    if options.format in ("auto", "brat") and is_brat(path):
        if answers == "label":
            raise other_task(path, "brat", "entities")
        refuse_columns(path, "brat", options)
        source = Source(path, answers, "brat", "brat", options.encoding)  # each file may have its own
        return replace(source, taken=(describe_brat(path, options.encoding),))
    if options.format == "auto" and answers == "label" and path.is_dir():
        return _class_folder(path, options)
    if options.format in ("auto", "xlsx") and is_sheet(path):
        return with_offsets(as_sheet(Source(path, answers, "xlsx", "sheet", "utf-8"), options, gold), gold=gold)
    if options.format in ("auto", *COLUMNAR_FORMATS, *JSON_FORMATS) and is_columnar(path):
        return with_offsets(_as_columnar(path, answers, options, gold), gold=gold)
    if options.format in COLUMNAR_FORMATS:
        raise InputError(f"{path}：文件名不是以 .{options.format} 结尾的；请改名，或去掉 --format {options.format}")
    if options.format in ("brat", "xlsx"):
        what = "brat（旁边没有 .ann，或不是 .ann）" if options.format == "brat" else "Excel 文件（.xlsx）"
        raise InputError(f"{path}：不是 {what}；请去掉 --format {options.format}")
    encoding = file_encoding(path, options.encoding)
    with path.open(encoding=encoding, newline="\n", errors="replace") as file:
        sample = sample_lines(file)
    if not sample:  # the file may hold only a byte order mark
        raise InputError(f"{path}：文件是空的；请检查下载是否完整")
    source = recognise_sample(Source(path, answers, "", "lines", encoding), sample, options, gold=gold)
    if source.tagging:
        with path.open(encoding=encoding, newline="\n", errors="replace") as file:
            source = replace(source, tagging=with_sentence_ends(source.tagging, file))
    source = _as_document(source, options, gold) if source.container == "document" else source
    return with_offsets(source, gold=gold)


def _as_columnar(path: Path, answers: str, options: ReadOptions, gold: bool) -> Source:
    """A Parquet or Arrow file, whose rows are like those of JSON; errors as in `recognise`."""
    format = path.suffix.lower()[1:]
    source = Source(path, answers, format, "columnar", "utf-8", taken=describe_columnar(path))
    rows = [row for _, _, row in islice(read_columnar(path), _SAMPLE_ROWS)]
    if not rows:
        raise InputError(f"{path}：文件是空的；请检查下载是否完整")
    source = _with_notation(source, rows, options, gold)
    return replace(source, format=format) if source.format == "jsonl" else source


def _class_folder(path: Path, options: ReadOptions) -> Source:
    """A folder whose names are the labels; see `sft.data.class_folders`.

    Raises:
        InputError: it is none, or the rows of a file have labels of their own.
    """
    classes, others = classes_in(path)
    sources = []
    for label, texts in classes.items():
        if texts.is_dir():
            source = Source(texts, "label", "texts", "texts", encoding_of_texts(texts, options.encoding))
        else:
            source = recognise(texts, "label", options, gold=False)
            if any(isinstance(row, dict) and row.get("output") for _, _, row in islice(rows_in_shape(source), 20)):
                raise InputError(f"{path}：是一个目录，可是里面的文件自己有标签；请给出文件，如 {texts}")
        sources.append((label, source))
    what = "文件夹名是标签，一个文件一条文本" if sources[0][1].container == "texts" else "文件名是标签"
    read = "；".join(dict.fromkeys(source.describe() for _, source in sources))[:200]
    unread = (f"没有读 {one_line('、'.join(others))[:80]}",) if others else ()
    taken = (f"{what}：{read}", *unread)
    return Source(path, "label", "classes", "classes", options.encoding, taken=taken, classes=tuple(sources))


def other_task(path: Path, format: str, answers: str) -> InputError:
    """The error of a file whose rows have the answers of the other task."""
    other = TASK["label" if answers == "entities" else "entities"]
    return InputError(f"{path}：是{TASK[answers]}的数据（{format}），不是{other}的；请换一个文件，或换一个任务的脚本")


def sample_lines(file: Iterable[str]) -> list[str]:
    """About a million characters of the first lines that are not blank. Bytes that do not decode are replaced."""
    lines, size = [], 0
    for line in file:
        line = line.removeprefix(BYTE_ORDER_MARK)
        if line.strip(" \t\r\n"):
            lines.append(line)
        size += len(line)
        if size > _SAMPLE_CHARACTERS:
            break
    return lines


def recognise_sample(source: Source, sample: list[str], options: ReadOptions, *, gold: bool) -> Source:
    """``source`` with everything that the first lines show; see `recognise`. A document has no columns yet.

    Raises:
        InputError: see `recognise`.
    """
    ending = source.path.suffix.lower()[1:]
    if options.format == "auto" and (what := foreign(sample[0])):
        raise InputError(f"{source.path}：{what}")
    if tagging := _tagging(source, sample, ending, options):
        return replace(source, format="conll", container="tagged", tagging=tagging)
    told = options.format != "auto"
    format = options.format if told else _format_of(source, sample, ending, gold)
    if format == "lines" or format in marked.ANSWERS:
        if not any(_json_objects(sample)):  # lines to predict may be JSON, each for itself
            refuse_columns(source.path, format, options)
        return replace(source, format=format, container="lines" if format == "lines" else "marked")
    if format in TABLE_ENDINGS:
        return as_table(replace(source, format=format, container="table"), sample, options, gold)
    if format == "document" or (told and is_document(sample, "json")):
        return replace(source, format="json", container="document")
    return _as_json(replace(source, format=format, container="json_lines"), sample, options, gold)


# ---- Format ----


def _tagging(source: Source, sample: list[str], ending: str, options: ReadOptions) -> Tagging | None:
    """The layout of a tagged file; None for a file of another kind.

    Raises:
        InputError: the user says that the file is tagged, and it is not; the layout is in doubt; or the task has no
            tags.
    """
    told = options.format == "conll"
    if not told and (options.format != "auto" or ending in JSON_ENDINGS):
        return None
    if not told and ending == "csv" and not (has_commas(sample) or _is_no_table(source, sample)):
        return None
    tagging = tagging_of(sample, text_column=options.text_column, tag_column=options.label_column, told=told)
    if tagging is None and told:
        shown = sample[0].strip()[:40]
        raise InputError(f"{source.path}:1：不像带标记的文件（第一行是 {shown!r}）；每行应是“字 标签”")
    if tagging and source.answers == "label":
        raise other_task(source.path, "conll", "entities")
    if tagging and tagging.doubt:
        raise InputError(f"{source.path}：{tagging.doubt}")
    return tagging


def _is_no_table(source: Source, sample: list[str]) -> bool:
    """Whether what is called a table has no column but one, and may be tagged. A comma may be a token."""
    return source.answers == "entities" and sum("," in line for line in sample) <= 0.1 * len(sample)


def _format_of(source: Source, sample: list[str], ending: str, gold: bool) -> str:
    """The format by the first step that fits: csv, tsv, document, jsonl, one of `marked`, or lines (to predict).

    ``jsonl`` is any JSON lines; their fields show which notation.

    Raises:
        InputError: no step fits, or the file is of the other task.
    """
    if ending in TABLE_ENDINGS:
        return ending
    # A text to predict may begin with a bracket, so only what is called JSON, or is a document for certain, is one.
    if is_document(sample, "json" if gold else ending):
        return "document"
    if ending in JSON_ENDINGS:
        return "jsonl"
    if marks := marked.marks_of(sample):
        if source.answers != (answers := marked.ANSWERS[marks]):
            raise other_task(source.path, marks, answers)
        return marks
    first = sample[0].strip()
    if gold and first.startswith("{"):
        return "jsonl"
    if table := _table_by_evidence(source, sample, gold):
        return table
    if not gold:
        return "lines"
    if source.answers == "entities" and (what := half_of_two_files(sample, source.path.name)):
        raise InputError(f"{source.path}：{what}")
    raise InputError(f"{source.path}:1：认不出格式（第一行是 {first[:40]!r}）；{_what_else(source, first)}")


def _what_else(source: Source, first: str) -> str:
    """What to do about a file in no known format, to which no ``--format`` may fit."""
    if first.startswith("<"):
        return "像 XML，这里不认；请先转成 CSV 或 JSONL"
    if source.answers == "entities":
        return "请用 --format 指明"
    return f"每行要有文本和标签；{CLASS_FOLDER}；是别的格式请用 --format 指明"


def _table_by_evidence(source: Source, sample: list[str], gold: bool) -> str | None:
    """Whether a file that is not called a table is one: ``csv`` or ``tsv``; None if it is none.

    A header with a usual column name is evidence enough; so are tabs, equally many in all lines, if one of the columns
    is the label. Rows to convert have one.

    Raises:
        InputError: rows to predict could be texts, and a table or a tagged file as well.
    """
    if separator_line(sample[0]):
        return "csv"
    for delimiter in DELIMITERS:
        first = [[cell.strip().strip('"') for cell in line.split(delimiter)] for line in sample[:HEADER_LINES]]
        header = first[0]
        if len(header) > 1 and has_text_name(header) and not is_data(header, [header]):
            return "tsv" if delimiter == "\t" else "csv"
        if header_below(first):
            return "tsv" if delimiter == "\t" else "csv"  # which says that there is something above the header
    if gold:
        tabs = sample[0].count("\t")
        alike = tabs > 0 and all(line.count("\t") == tabs for line in sample)
        return "tsv" if alike else "csv" if "," in sample[0] else None
    if source.answers == "label" and is_certainly_table(sample):
        return "tsv"
    if doubt := doubt_about_texts(sample):
        raise InputError(f"{source.path}：{doubt}")
    return None


# ---- JSON ----


def _as_json(source: Source, sample: list[str], options: ReadOptions, gold: bool) -> Source:
    rows = list(islice(_json_objects(sample), _SAMPLE_ROWS))
    if not rows and options.format in JSON_FORMATS:
        shown = sample[0].strip()[:40]
        raise InputError(f"{source.path}:1：不像 JSON（第一行是 {shown!r}）；请去掉 --format {options.format}")
    return _with_notation(source, rows, options, gold)


def _as_document(source: Source, options: ReadOptions, gold: bool) -> Source:
    with source.path.open("rb") as file:
        rows = (row for _, _, row in read_document(file, source.encoding, source.path) if type(row) is dict)
        source = replace(source, taken=("一整个 JSON 文档",))
        return _with_notation(source, list(islice(rows, _SAMPLE_ROWS)), options, gold)


def _with_notation(source: Source, rows: Sequence[dict], options: ReadOptions, gold: bool) -> Source:
    """The source with the notation of its rows and the columns to take.

    Raises:
        InputError: the rows have no whole entities, or another notation than the user says; see `with_columns`.
    """
    if gold and source.answers == "entities" and (what := without_entities(rows, named=bool(options.label_column))):
        raise InputError(f"{source.path}:1：{what}")
    columns = Columns(options.text_column, options.label_column)
    format = notation_of(rows, source.answers, columns)
    if options.format in JSON_FORMATS and options.format != "jsonl":
        if options.format != format and {options.format, format} & set(ROW_FORMATS):
            raise InputError(f"{source.path}：--format {options.format}，可是这里的行像 {format}；请去掉 --format")
        format = options.format
    source = replace(source, format="jsonl" if format in (None, "plain") else format)
    source = replace(source, ccfbdci_labels=source.format == "ccfbdci" and _has_ccfbdci_labels(rows))
    return with_columns(source, rows, columns, gold)


def _json_objects(sample: Iterable[str]) -> Iterator[dict]:
    for line in sample:
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue  # the reader will reject it
        if type(row) is dict:
            yield row


def _has_ccfbdci_labels(rows: Sequence[dict]) -> bool:
    """Whether the labels are CCFBDCI's four. Requires 90 %, so that one mistyped label does not switch label sets."""
    labels = []
    for row in rows:
        entities = row.get("entities")
        items = entities if type(entities) is list else ()
        labels += [str(item.get("entity_label")) for item in items if type(item) is dict]
    of_ccfbdci = sum(label.strip() in CCFBDCI_LABELS for label in labels)
    return of_ccfbdci >= 0.9 * len(labels) and any("entities" in row for row in rows)
