"""``metrics.jsonl``: everything that training logged, one JSON line for each log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    """The rows so far; empty if there is no file.

    A line that was cut off when a run was killed is skipped, and so is one that is no row with a step.
    """
    if not path.is_file():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(row, dict) and type(row.get("step")) is int:
            rows.append(row)
    return rows


def keep_rows(path: Path, last_step: int) -> None:
    """Drop the rows after ``last_step``: the resumed run writes them again.

    Raises:
        InputError: it cannot be written.
    """
    rows = [row for row in read_metrics(path) if row["step"] <= last_step]
    with whole_file(path) as file:
        file.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)


def restore_rows(path: Path, logged: Sequence[Mapping[str, object]]) -> None:
    """Make the file what it was when a checkpoint was saved. Later rows go: the resumed run writes them again.

    Args:
        logged: everything that was logged until then, each with its step, as the checkpoint has it. The file only
            says when that was; without the file, that is not known.

    Raises:
        InputError: it cannot be written.
    """
    rows, old = [], read_metrics(path)
    for index, logs in enumerate(logged):
        row = log_row(logs["step"], logs.get("epoch"), None, logs)
        if index < len(old) and old[index] | {"time": None} == row:
            row["time"] = old[index].get("time")
        rows.append(row)
    with whole_file(path) as file:
        file.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)


def log_row(step: int, epoch: float | None, time: float | None, logs: Mapping[str, object]) -> dict:
    """One log as a row of the file.

    Args:
        time: in seconds since 1970; None if it is not known any more.
    """
    return {"step": step, "epoch": epoch, "time": time} | plain_metrics(logs)
