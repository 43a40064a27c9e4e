"""``metrics.jsonl``: everything that training logged, one JSON line for each log."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path

import orjson

from sft.errors import RunError
from sft.files import whole_file


def plain_metrics(metrics: Mapping[str, object]) -> dict[str, int | float | str | bool | None]:
    """``metrics`` with NumPy and torch scalars as Python numbers and NaN and infinity as None."""
    return {name: _plain(value) for name, value in metrics.items()}


def _plain(value: object) -> int | float | str | bool | None:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """Append one row; it is handed to the operating system when this returns.

    Raises:
        RunError: it cannot be written.
    """
    try:
        with path.open("ab") as file:
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    except OSError as error:
        raise RunError(f"{path}：无法写入（{error.strerror}）") from error


def read_metrics(path: Path) -> list[dict]:
    """The rows so far; empty if there is no file. A line that was cut off when a run was killed is skipped."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            rows.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            continue
    return rows


def keep_rows(path: Path, last_step: int) -> None:
    """Drop the rows after ``last_step``: the resumed run writes them again.

    Raises:
        InputError: it cannot be written.
    """
    rows = [row for row in read_metrics(path) if row["step"] <= last_step]
    with whole_file(path) as file:
        file.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
