"""A real sentence of the user's data, for the command that a finished run recommends."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from sft.data.records import read_records
from sft.errors import InputError
from sft.tasks.long_texts import SENTENCE_END
from sft.terminal import display_width, folds
from sft.training.arguments import Arguments
from sft.training.prepare import find_test_file

RECORDS = 100  # how many are looked at
MOST_COLUMNS = 56
LEAST_COLUMNS = 8
AWKWARD = frozenset("\"'`$%!\\^&|<>")  # mean something to one shell or another, even quoted


class Example(NamedTuple):
    """A text to predict, and its options if the task does not have its own."""

    text: str
    options: list[str]


def example_of(arguments: Arguments) -> Example | None:
    """The first good sentence of the test file, else of the training file; None if they are not there any more."""
    train_file = Path(arguments.data.train_file)
    for path in (find_test_file(arguments.data.test_file, train_file), train_file):
        try:
            records = [record for _, record in islice(read_records(path), RECORDS)] if path else []
        except InputError:  # moved or changed while the run was going on: no reason to fail now
            continue
        if examples := list(_examples(records)):
            return max(examples, key=lambda found: found[0])[1]  # max takes the first of equals
    return None


def _examples(records: Sequence[dict]) -> Iterator[tuple[int, Example]]:
    """Each record's first sentence, with a mark for how good it is."""
    for record in records:
        text = first_sentence(record["text"])
        plain = text.isprintable() and not AWKWARD & set(text)
        fitting = LEAST_COLUMNS <= display_width(text) <= MOST_COLUMNS
        telling = "entities" not in record or any(entity["end"] <= len(text) for entity in record["entities"])
        example = Example(cut(text, MOST_COLUMNS), list(record.get("options") or ()))
        yield 4 * plain + 2 * fitting + telling, example


def first_sentence(text: str) -> str:
    """The first sentence of a text, on one line."""
    text = text.strip()
    end = SENTENCE_END.search(text)
    return " ".join(text[: end.end() if end else None].split())


def cut(text: str, columns: int) -> str:
    """The beginning of ``text`` that takes at most so many columns."""
    return text[: next(folds(text, columns, split_words=True), (0, 0))[1]].rstrip()


def options_for_flag(options: Sequence[str]) -> str:
    """Options as ``--options`` reads them."""
    if any(set(option) & set(",，、[]") for option in options):
        return json.dumps(options, ensure_ascii=False)
    return ",".join(options)
