"""``--config run.yaml``: flags from a file, as the words of a command line.

A file is YAML or JSON by its ending. Its keys are names of flags without dashes; what the command line says counts
for more. Imports PyYAML late, so that ``--help`` does not wait for it.
"""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sft.cli import Parser, boolean
from sft.errors import InputError, one_line

UNSET = ("", "~", "null", "Null", "NULL")  # YAML's ways to give no value
EMPTY = object()  # the value of a YAML key with nothing after it: unset like ``~``, but not for a flag for yes or no


def with_config(
    parser: argparse.ArgumentParser, argv: Sequence[str], renamed: Mapping[str, str] | None = None
) -> list[str]:
    """The command line with the flags of its ``--config`` file before its own words, which so count for more.

    Args:
        parser: knows all flags.
        renamed: flags of other tools (without dashes) and the flag to use instead.

    Raises:
        InputError: the file cannot be read, or a key is unknown, given twice, or has no value that a flag takes.
    """
    finder = Parser(add_help=False, prog=parser.prog)
    finder.add_argument("--config", action="append", default=[])
    files = finder.parse_known_args(argv)[0].config
    if not files:
        return list(argv)
    if len(files) > 1:
        raise InputError(f"--config 只能给一个，实际是 {'、'.join(files)}")
    path = Path(files[0])
    actions = {
        option.removeprefix("--"): action
        for action in parser._actions
        for option in action.option_strings
        if action.nargs != 0 and option != "--config"
    }
    words: list[str] = []
    for key, value in read_config(path).items():
        if key not in actions:
            raise InputError(f"{path}：不认识的键 {key}{_guess(key, actions, renamed or {})}")
        if value is EMPTY and actions[key].type is boolean:  # on the command line the flag alone would mean yes
            raise InputError(f"{path}：{key} 后面没有值；请写 true 或 false，不想设就删去这一行")
        words += _words(path, key, value, takes_several=actions[key].nargs in ("*", "+"))
    return words + list(argv)


def read_config(path: Path) -> dict[str, Any]:
    """The keys and values of a file. Single values of YAML are strings as they are written: ``no`` is ``"no"``.

    Raises:
        InputError: the file cannot be read, is no mapping, or has a key twice.
    """
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise InputError(f"{path}：--config 应是 .yaml、.yml 或 .json 文件")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}：无法读取（{one_line(error)}）；应是 UTF-8 的文本") from error
    pairs = _json_pairs(path, text) if path.suffix.lower() == ".json" else _yaml_pairs(path, text)
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise InputError(f"{path}：{key} 给了两次；请只留一个")
        content[key] = value
    return content


def _json_pairs(path: Path, text: str) -> list[tuple[str, Any]]:
    try:
        pairs = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:  # the second: nested too deeply
        raise InputError(f"{path}：不是合法的 JSON（{one_line(error)}）") from error
    if not isinstance(pairs, _Pairs):
        raise InputError(f'{path}：应是一个对象，如 {{"learning_rate": 1e-4}}')
    return [(key, _plain(value)) for key, value in pairs]


class _Pairs(list):
    """The pairs of a JSON object, in order; the same key may come twice."""


def _plain(value: Any) -> Any:
    if isinstance(value, _Pairs):
        return {key: _plain(one) for key, one in value}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _yaml_pairs(path: Path, text: str) -> list[tuple[str, Any]]:
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            return []
        if not isinstance(root, yaml.MappingNode):
            raise InputError(f"{path}：应是“参数: 值”，一行一个，如 learning_rate: 1e-4")
        safe = yaml.SafeLoader("")
        return [
            (
                str(key.value),
                safe.construct_object(value, deep=True) if isinstance(value, yaml.MappingNode) else _as_written(value),
            )
            for key, value in root.value
        ]
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}：不是合法的 YAML（{one_line(error)}）") from error


def _as_written(node: Any) -> Any:
    """The text of a YAML value, or the texts of a list; None or `EMPTY` for no value."""
    if isinstance(node.value, list):
        return [_as_written(one) for one in node.value]
    if node.style is not None or node.value not in UNSET:
        return node.value
    return None if node.value else EMPTY


def _words(path: Path, key: str, value: Any, *, takes_several: bool) -> list[str]:
    """One key and its value as words of a command line; none for no value."""
    if value is None or value is EMPTY:
        return []
    if isinstance(value, list):
        if not takes_several:
            raise InputError(f"{path}：{key} 只能有一个值，实际是 {json.dumps(value, ensure_ascii=False)[:60]}")
        return [f"--{key}", *(_word(one) for one in value)]
    return [f"--{key}", *_word(value).split()] if takes_several else [f"--{key}={_word(value)}"]


def _word(value: Any) -> str:
    """A value as it is typed: a text as it is, everything else as JSON."""
    value = None if value is EMPTY else value
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _guess(key: str, known: Iterable[str], renamed: Mapping[str, str]) -> str:
    """What to say about an unknown key: the key that was probably meant."""
    name = key.strip().lstrip("-").replace("-", "_").casefold()
    if name in renamed:
        return f"，请用 {renamed[name].removeprefix('--')}"
    close = difflib.get_close_matches(name, [flag for flag in known if "-" not in flag], n=1, cutoff=0.6)
    return f"（是不是 {close[0]}？）" if close else "；键是参数的名字，如 learning_rate，全部见 --help_all"
