"""Hashes by which readers of a ``task.json`` notice that it, or a file beside it, is not what was written.

``sha256`` in the file is the hash of everything else in it; ``files`` has a hash for each file beside it that
prediction reads. Files of older versions have neither and are read as they are. Imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import orjson

from sft.errors import InputError
from sft.files import file_hash, json_bytes, large_file_hash

SEAL, FILES, CONVERSION = "sha256", "files", "conversion"
# Everything that is read when an adapter and its tokenizer are loaded, under all names that libraries know.
READ = (
    "adapter_*", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model",
    "chat_template*", "additional_chat_templates/*", "config.json", "generation_config.json", "*processor_config.json",
)  # fmt: skip
HEXADECIMALS = 16
WAIVER = "先删去 task.json 里的 sha256 和 files 两项"  # how to use changed files where no flag allows it


def seal_of(content: Mapping[str, object]) -> str:
    """The hash of a JSON object, its own seal left out."""
    rest = {name: value for name, value in content.items() if name != SEAL}
    return hashlib.sha256(orjson.dumps(rest, option=orjson.OPT_SORT_KEYS)).hexdigest()[:HEXADECIMALS]


def sealed_bytes(content: Mapping[str, object]) -> bytes:
    """A JSON object with its seal, as the bytes of a file."""
    return json_bytes({**content, SEAL: seal_of(content)})


def is_sealed(content: Mapping[str, object]) -> bool:
    """Whether the seal fits. An object of an older version, which has none, passes."""
    if SEAL not in content:
        return not content.keys() & {FILES, CONVERSION}
    return content[SEAL] == seal_of(content)


def hashes_beside(path: Path) -> dict[str, str]:
    """Short SHA-256 hashes, by name, of the files beside a ``task.json`` that prediction reads; all or none.

    Returns:
        An empty dict if there is no adapter.
    """
    found = _read_files(path.parent)
    if not any(name.startswith("adapter_") for name in found):
        return {}
    return {name: large_file_hash(file)[:HEXADECIMALS] for name, file in found.items()}


def check_files(path: Path, wanted: Mapping[str, str] | None, waiver: str = WAIVER) -> None:
    """Compare the files beside a ``task.json`` with the hashes in it.

    Args:
        wanted: None in a file of an older version: nothing is compared.
        waiver: what the user can do to use changed files on purpose, for the message.

    Raises:
        InputError: names the first file that was changed, added or removed.
    """
    if wanted is None:
        return
    now = hashes_beside(path)
    for name in sorted(wanted.keys() | now.keys()):
        if wanted.get(name) == now.get(name):
            continue
        what = (
            "训练时没有这个文件" if name not in wanted else "没有这个文件" if name not in now else "与训练写下的不同"
        )
        raise InputError(
            f"{path.parent / name}：{what}（损坏、改过，或不是与 {path.name} 同一次训练的）；"
            f"请从备份恢复或重新训练；确实要这样用，{waiver}"
        )


def pair_id(content: Mapping[str, object], *records: Path) -> str:
    """What the two files of one conversion have in common and no others: the hash of the task and of all rows."""
    parts = [seal_of(content), *map(file_hash, records)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:HEXADECIMALS]


def _read_files(folder: Path) -> dict[str, Path]:
    found = (path for pattern in READ for path in folder.glob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in sorted(found)}
