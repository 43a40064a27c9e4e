"""Read Parquet and Arrow files, as data sets are kept on Hugging Face and ModelScope, row by row like JSON.

Imports no torch. pyarrow, which `datasets` brings, is imported only here and only when such a file is read.

A data set in several numbered files (``train-00000-of-00002.parquet``) is read whole. Where the file lists the names
of classes (``ClassLabel`` of `datasets`), these take the place of their numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from sft.data.arguments import COLUMNAR_FORMATS
from sft.data.source import NumberedRow
from sft.errors import InputError, one_line

if TYPE_CHECKING:
    import pyarrow

_PART = re.compile(r"(.*-)(\d{5})(-of-)(\d{5})(\.\w+)")
_ROWS_TOGETHER = 1024
_INDEX = re.compile(r"__index_level_\d+__")  # of pandas, not of the data

ClassNames = Mapping[str, Sequence[str]]  # column → the names of its numbers


def is_columnar(path: Path) -> bool:
    """Whether it is a Parquet or an Arrow file, by its name."""
    return path.suffix.lower()[1:] in COLUMNAR_FORMATS


def parts_of(path: Path) -> list[Path]:
    """All files of the data set that ``path`` is a part of, in order; mostly only the file itself.

    Raises:
        InputError: one of them is missing.
    """
    if (found := _PART.fullmatch(path.name)) is None:
        return [path]
    before, _, of, count, ending = found.groups()
    parts = [path.with_name(f"{before}{number:05}{of}{count}{ending}") for number in range(int(count))]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise InputError(f"{path}：这份数据分成 {int(count)} 个文件，缺 {missing[0]}；请下载齐，放在一起")
    return parts


def describe_columnar(path: Path) -> tuple[str, ...]:
    """What was decided by evidence, in Chinese, for the summary.

    Raises:
        InputError: see `read_columnar`.
    """
    parts = parts_of(path)
    with _opened(parts[0]) as (schema, _):
        names = _class_names(schema)
    told = [f"一共 {len(parts)} 个文件"] if len(parts) > 1 else []
    for column, classes in names.items():
        shown = one_line("、".join(f"{number}={name}" for number, name in enumerate(classes[:5])))
        told.append(f"{column} 的数字按文件里写的名字读（{shown}{'…' if len(classes) > 5 else ''}）")
    return tuple(told)


def read_columnar(path: Path) -> Iterator[NumberedRow]:
    """Each row as JSON would hold it, with its number from 1 and the row as a line of JSON.

    Raises:
        InputError: there is no such file, or it is damaged; or see `parts_of`.
    """
    number = 0
    for part in parts_of(path):
        with _opened(part) as (schema, batches):
            names = _class_names(schema)
            for batch in batches:
                for row in batch.to_pylist():
                    number += 1
                    line = orjson.dumps(_named(row, names), default=str)
                    yield number, line, orjson.loads(line)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[pyarrow.Schema, Iterator[pyarrow.RecordBatch]]]:
    """The schema and the rows of one file.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    try:
        import pyarrow
        from pyarrow import ipc, parquet
    except ImportError as error:
        raise InputError(f"{path}：读它需要 pyarrow；请运行 pip install -r requirements.txt") from error
    if path.is_dir():
        raise InputError(f"{path}：是一个目录；请给出其中的一个文件")
    try:
        if path.suffix.lower() == ".parquet":
            with parquet.ParquetFile(path) as file:
                yield file.schema_arrow, file.iter_batches(_ROWS_TOGETHER)
            return
        with pyarrow.memory_map(str(path)) as mapped:
            is_file = mapped.read(6) == b"ARROW1"
            mapped.seek(0)
            if is_file:
                table = ipc.open_file(mapped)
                yield table.schema, (table.get_batch(index) for index in range(table.num_record_batches))
            else:
                stream = ipc.open_stream(mapped)
                yield stream.schema, iter(stream)
    except FileNotFoundError as error:
        raise InputError(f"{path}：没有这个文件；请检查路径") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}：读不出来（{one_line(error)[:100]}）；请检查下载是否完整") from error


def _class_names(schema: pyarrow.Schema) -> dict[str, list[str]]:
    """The names of classes that `datasets` wrote into the file, by the column that holds their numbers."""
    try:
        features = orjson.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        listed = {column: _names_in(features[column]) for column in schema.names}
    except (KeyError, TypeError, ValueError):  # another program's metadata, or none
        return {}
    return {column: names for column, names in listed.items() if names}


def _names_in(feature: object) -> list[str] | None:
    """The names of a ``ClassLabel``, or of a list of such: ``{"feature": …}``, before 2021 ``[…]``."""
    if type(feature) is list and len(feature) == 1:
        feature = feature[0]
    if type(feature) is dict and type(feature.get("feature")) is dict:
        feature = feature["feature"]
    names = feature.get("names") if type(feature) is dict and feature.get("_type") == "ClassLabel" else None
    return names if type(names) is list and all(type(name) is str for name in names) else None


def _named(row: dict, names: ClassNames) -> dict:
    """The row with names of classes instead of their numbers, and without the index of pandas."""
    return {
        column: _name_of(value, names[column]) if column in names else value
        for column, value in row.items()
        if not _INDEX.fullmatch(column)
    }


def _name_of(value: object, names: Sequence[str]) -> object:
    if type(value) is list:
        return [_name_of(item, names) for item in value]
    if value == -1:  # a hidden label
        return None
    return names[value] if type(value) is int and 0 <= value < len(names) else value
