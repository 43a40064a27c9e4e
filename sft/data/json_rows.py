"""Read one JSON object as a row. Imports no torch."""

from __future__ import annotations

import json

import orjson

from sft.data.encodings import is_decoded
from sft.errors import RowError


def json_row(line: bytes | str) -> dict | RowError:
    """The JSON object on a line; NaN and the infinities in it become None."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return _read_slowly(line, error)
    return _checked(line, row)


def _checked(line: bytes | str, row: object) -> dict | RowError:
    """The row, if it is an object and no key stands twice in it with different values."""
    if type(row) is not dict:
        return RowError("", f"应是一个 JSON 对象，实际是 {type(row).__name__}")
    # With as many colons as keys nothing is nested, no text has a colon and no key stands twice: most rows end here.
    colons = line.count(b":" if type(line) is bytes else ":")
    return row if colons == len(row) else _repeated_key(line, row) or row


def _repeated_key(line: bytes | str, row: dict) -> RowError | None:
    """The error of a key that one object has twice with different values; orjson keeps the last value silently."""
    if line.count(b'":' if type(line) is bytes else '":') == _key_count(row):
        return None
    repeated = []

    def as_dict(pairs: list[tuple[str, object]]) -> dict:
        result = dict(pairs)
        repeated.extend(key for key, value in pairs if result[key] != value)
        return result

    try:
        json.loads(line, object_pairs_hook=as_dict)
    except (ValueError, RecursionError):
        return None  # the row has been read, so it is valid
    return RowError(repeated[0], "同一个键出现两次，值不相同") if repeated else None


def _key_count(row: dict) -> int:
    """How many keys a row has, two levels deep. Only a line that seems to have another number needs a closer look."""
    count = len(row)
    for value in row.values():
        if type(value) is list:
            for item in value:
                if type(item) is dict:
                    count += len(item)
        elif type(value) is dict:
            count += len(value) + sum([len(item) for item in value.values() if type(item) is dict])
    return count


def _read_slowly(line: bytes | str, error: orjson.JSONDecodeError) -> dict | RowError:
    """What Python's slower parser makes of a line that orjson refuses: a row with NaN or Infinity, or what is wrong.

    pandas writes NaN where a value is missing, so NaN and the infinities become None: a text, label or entities that
    are NaN are missing, and elsewhere nobody looks.
    """
    if isinstance(line, bytes):
        try:
            line = line.decode("utf-8")
        except UnicodeDecodeError as where:
            return RowError("", f"第 {where.start + 1} 个字节解不开（文件若是 GBK，请加 --encoding gb18030）")
    constants = []
    try:
        row = json.loads(line, parse_constant=constants.append)  # `append` gives None
        fields = row.items() if type(row) is dict else [("", row)]
        undecodable = [field for field, value in fields if not is_decoded(json.dumps(value, ensure_ascii=False))]
    except json.JSONDecodeError as precise:
        return RowError("", f"不是合法的 JSON（第 {precise.pos + 1} 个字符：{precise.msg}）")
    except ValueError as precise:
        return RowError("", f"不是合法的 JSON（{precise}）")
    except RecursionError:
        return RowError("", "JSON 嵌套太深")
    if undecodable:
        return RowError(undecodable[0], "含有不成对的代理字符（如 \\ud800），不是合法的 Unicode")
    if not constants:
        return RowError("", f"不是合法的 JSON（{error.msg}）")
    return _checked(line, row)
