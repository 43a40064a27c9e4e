"""The names of a training file and its test file: the one follows from the other.

Imports only the standard library, so that ``--help`` answers at once.
"""

from __future__ import annotations

import re
from pathlib import Path


def path_of_test(train_file: Path) -> Path:
    """``x/a_train.jsonl`` → ``x/a_test.jsonl``; a name without "train": ``x/a.jsonl`` → ``x/a.test.jsonl``."""
    name = _exchange(train_file.name, "train", "test")
    return train_file.with_name(name or f"{train_file.stem}.test{train_file.suffix}")


def path_of_train(test_file: Path) -> Path | None:
    """The training file whose `path_of_test` is ``test_file``; None if there is none."""
    name = _exchange(test_file.name, "test", "train")
    train_file = test_file.with_name(name) if name else None
    return train_file if train_file and path_of_test(train_file) == test_file else None


def _exchange(name: str, word: str, other: str) -> str | None:
    """The name with ``word`` exchanged, the last that stands alone, else the last of all; None if there is none."""
    found = [*re.finditer(rf"(?<![a-z]){word}(?![a-z])", name, re.IGNORECASE)] or [
        *re.finditer(word, name, re.IGNORECASE)
    ]
    if not found:
        return None
    start, end = found[-1].span()
    return name[:start] + _in_case_of(name[start:end], other) + name[end:]


def _in_case_of(model: str, word: str) -> str:
    if model.isupper():
        return word.upper()
    return word.capitalize() if model[0].isupper() else word
