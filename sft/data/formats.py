"""Recognise a person's file: its encoding, format and columns. Imports no torch.

`recognise` is the only entrance, for conversion and for prediction alike. To add a format, add a step to
`recognise_sample` or `_format_of`, and its reader to `sft.data.readers`. What a file must not be taken for is in
`sft.data.look_alikes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import orjson

from sft.data import marked
from sft.data.arguments import JSON_FORMATS, ROW_FORMATS, ReadOptions
from sft.data.brat import describe_brat, is_brat
from sft.data.columns import ALL_LABEL_COLUMNS, ALL_TEXT_COLUMNS, USUAL_COLUMNS, Columns
from sft.data.documents import is_document, read_document
from sft.data.encodings import BYTE_ORDER_MARK, file_encoding
from sft.data.look_alikes import doubt_about_texts, foreign, has_tag_column, header_below, table_problem
from sft.data.offset_evidence import with_offsets
from sft.data.shapes import column_problem, has_options, notation_of, remarks_on
from sft.data.sheets import is_sheet, sheet_cells, sheet_header
from sft.data.source import Source, TableLayout
from sft.data.tables import (
    DELIMITERS,
    HEADER_LINES,
    column_names,
    column_numbers,
    first_rows,
    has_text_name,
    is_data,
    layout_of,
    separator_line,
    text_and_label,
    titles_above,
)
from sft.data.tagged_layout import tagging_of
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
        source = Source(path, answers, "brat", "brat", options.encoding)  # each file may have its own
        return replace(source, taken=(describe_brat(path, options.encoding),))
    if options.format in ("auto", "xlsx") and is_sheet(path):
        return with_offsets(_as_sheet(Source(path, answers, "xlsx", "sheet", "utf-8"), options, gold), gold=gold)
    if options.format in ("brat", "xlsx"):
        what = "brat（旁边没有 .ann，或不是 .ann）" if options.format == "brat" else "Excel 文件（.xlsx）"
        raise InputError(f"{path}：不是 {what}；请去掉 --format {options.format}")
    encoding = file_encoding(path, options.encoding)
    with path.open(encoding=encoding, newline="\n", errors="replace") as file:
        sample = sample_lines(file)
    if not sample:  # the file may hold only a byte order mark
        raise InputError(f"{path}：文件是空的；请检查下载是否完整")
    source = recognise_sample(Source(path, answers, "", "lines", encoding), sample, options, gold=gold)
    source = _as_document(source, options, gold) if source.container == "document" else source
    return with_offsets(source, gold=gold)


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
    if format == "lines":
        return replace(source, format="lines")
    if format in marked.ANSWERS:
        return replace(source, format=format, container="marked")
    if format in TABLE_ENDINGS:
        return _as_table(replace(source, format=format, container="table"), sample, options, gold)
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
    if not told and (options.format != "auto" or ending in (*JSON_ENDINGS, "csv")):
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
    raise InputError(f"{source.path}:1：认不出格式（第一行是 {first[:40]!r}）；请用 --format 指明")


def _table_by_evidence(source: Source, sample: list[str], gold: bool) -> str | None:
    """Whether a file that is not called a table is one: ``csv`` or ``tsv``; None if it is none.

    A header with a usual column name is evidence enough; so are tabs, equally many in all lines.

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
    if doubt := doubt_about_texts(sample):
        raise InputError(f"{source.path}：{doubt}")
    return None


# ---- Tables ----


def _as_table(source: Source, sample: list[str], options: ReadOptions, gold: bool) -> Source:
    told = separator_line(sample[0])
    sample = sample[1:] if told else sample
    if not sample:
        raise InputError(f"{source.path}：没有一行数据；请检查文件")
    layout = layout_of(sample, source.format, told)._replace(lines_above=int(told is not None))
    taken = () if layout.quoted else ("引号按原文",)
    if layout.delimiter != ("\t" if source.format == "tsv" else ","):
        taken += (f"列之间是{'制表符' if layout.delimiter == chr(9) else f' {layout.delimiter} '}",)
    source, rows = _below_titles(replace(source, table=layout, taken=taken), first_rows(sample, layout), options)
    _refuse_look_alikes(source, sample, rows, options)
    return _with_header(source, rows, options, gold)


def _as_sheet(source: Source, options: ReadOptions, gold: bool) -> Source:
    cells = (cells for _, cells in sheet_cells(source.path) if type(cells) is list)
    rows = list(islice(cells, _SAMPLE_ROWS))
    width = max(map(len, rows), default=0)  # of a row, the cells after the last one with a value are missing
    rows = [row + [""] * (width - len(row)) for row in rows]
    source, rows = _below_titles(replace(source, table=TableLayout()), rows, options)
    if rows and not all(rows[0]):
        rows[0] = sheet_header(source.path, source.table.titles)
    _refuse_look_alikes(source, (), rows, options)
    return _with_header(source, rows, options, gold)


def _below_titles(source: Source, rows: list[list[str]], options: ReadOptions) -> tuple[Source, list[list[str]]]:
    """The source and its first rows without what stands above the header."""
    titles = titles_above(rows, (options.text_column, options.label_column))
    if not titles:
        return source, rows
    shown = "、".join(next(filter(str.strip, row), "") for row in rows[:titles])
    taken = (*source.taken, f"表头上面的 {titles} 行没有用：{one_line(shown)[:40]}")
    return replace(source, table=source.table._replace(titles=titles), taken=taken), rows[titles:]


def _refuse_look_alikes(
    source: Source, sample: Sequence[str], rows: Sequence[Sequence[str]], options: ReadOptions
) -> None:
    """Refuse what is no table, unless the user has named its columns; tags of characters are never entities."""
    is_told = options.text_column or options.label_column
    problem = table_problem(sample, rows)
    are_tags = source.answers == "entities" and has_tag_column(rows)
    if are_tags and is_told and source.format == "tsv":  # a tagged file, but without the columns that are named
        problem = f"没有 --text_column、--label_column 给出的列；有的列是 {one_line('、'.join(rows[0])[:80])}"
    if problem and (not is_told or are_tags):
        raise InputError(f"{source.path}：{problem}")


def _with_header(source: Source, rows: list[list[str]], options: ReadOptions, gold: bool) -> Source:
    """The source with the columns of a table, whose first rows are given, with or without a header."""
    if not rows:
        raise InputError(f"{source.path}:1：表头读不出来；请检查引号")
    header = rows[0]
    numbers = column_numbers(len(header))
    has_header = source.table.titles > 0 or any(map(_is_usual_name, header))
    options = _with_names(options, header, numbers) if has_header else options
    if _lacks_header(header, rows, options, numbers):
        columns = _columns_by_number(source.path, rows, options, gold)
        taken = (*source.taken, _describe_numbers(columns))
        return replace(source, table=source.table._replace(names=numbers), columns=columns, taken=taken)
    names = column_names(header)
    if len(set(names)) < len(names):
        raise InputError(f"{source.path}:1：表头有重名的列（{one_line('、'.join(names))}）；请改成不同的名字")
    sample = [dict(zip(names, row, strict=False)) for row in rows[1:]] or [dict.fromkeys(names, "")]
    return _with_columns(source, sample, Columns(options.text_column, options.label_column), gold)


def _with_names(options: ReadOptions, header: list[str], numbers: Sequence[str]) -> ReadOptions:
    """The options with the names of columns instead of their numbers, unless the header is data."""
    if is_data(header, [header]):
        return options
    names = dict(zip(numbers, header, strict=True))
    text, label = (names.get(str(column), column) for column in (options.text_column, options.label_column))
    return options._replace(text_column=text, label_column=label)


def _lacks_header(header: list[str], rows: list[list[str]], options: ReadOptions, numbers: Sequence[str]) -> bool:
    chosen = [column for column in (options.text_column, options.label_column) if column]
    if chosen:
        return not set(chosen) <= set(header) and set(chosen) <= set(numbers)
    return not any(map(_is_usual_name, header)) and is_data(header, rows)


def _is_usual_name(cell: str) -> bool:
    return cell.strip().lower() in (*ALL_TEXT_COLUMNS, *ALL_LABEL_COLUMNS)


def _columns_by_number(path: Path, rows: list[list[str]], options: ReadOptions, gold: bool) -> Columns:
    """The columns of a table without a header, as the user says or as the cells show.

    Raises:
        InputError: the cells do not show which columns to take.
    """
    text, label = text_and_label(rows)
    names = column_numbers(len(rows[0]))
    text_column = options.text_column or (None if text is None else names[text])
    label_column = options.label_column or (None if label is None else names[label])
    if text_column is None or (gold and label_column is None) or text_column == label_column:
        missing = "文本" if text_column is None else "标签"
        shown = "，".join(f"{name} {cell[:20]!r}" for name, cell in zip(names, rows[0], strict=False))
        raise InputError(
            f"{path}:1：没有表头，认不出哪一列是{missing}（第一行：{shown}）；"
            "请用 --text_column、--label_column 给出列号，如 --text_column 1 --label_column 2，或在第一行写上列名"
        )
    return Columns(text_column, label_column)


def _describe_numbers(columns: Columns) -> str:
    label = "" if columns.label is None else f"、第 {columns.label} 列作标签"
    return f"没有表头：第 {columns.text} 列作文本{label}"


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
    """The source with the notation of its rows and the columns to take."""
    columns = Columns(options.text_column, options.label_column)
    format = notation_of(rows, source.answers, columns)
    if options.format in JSON_FORMATS and options.format != "jsonl":
        if options.format != format and {options.format, format} & set(ROW_FORMATS):
            raise InputError(f"{source.path}：--format {options.format}，可是这里的行像 {format}；请去掉 --format")
        format = options.format
    source = replace(source, format="jsonl" if format in (None, "plain") else format)
    source = replace(source, ccfbdci_labels=source.format == "ccfbdci" and _has_ccfbdci_labels(rows))
    return _with_columns(source, rows, columns, gold)


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


# ---- Columns ----


def _with_columns(source: Source, rows: Sequence[dict], columns: Columns, gold: bool) -> Source:
    """The source with the columns to take, and what should be said about rows like these.

    Raises:
        InputError: none of the first rows has the columns, or several could be them. Rows to predict need no gold,
            and those of JSON may each have fields of their own.
    """
    is_table = source.container in ("table", "sheet")
    if gold or is_table or rows:
        problem = column_problem(rows, source.answers if gold else None, columns)
        if problem is not None:
            usual = columns != USUAL_COLUMNS or any(_is_usual_name(name) for row in rows[:1] for name in row)
            without_header = "；没有表头就写列号，如 --text_column 1" if is_table and not usual else ""
            raise InputError(f"{source.path}:1：{problem}{without_header}")
    return replace(
        source,
        columns=columns,
        has_options=source.answers == "label" and any(has_options(row, columns) for row in rows),
        taken=(*source.taken, *remarks_on(rows, source.answers, columns)),
    )
