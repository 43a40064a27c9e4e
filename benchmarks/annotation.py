"""Count how consistently names are annotated: no model can do better than its data agrees with itself.

    python -m benchmarks.annotation --records data/real/train_ner.jsonl data/real/test_ner.jsonl

A name of at least two characters that the first file annotates often is looked for in the texts of each file. Places
that lie in a longer entity, or overlap one, do not count.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from sft.data.records import read_records
from sft.errors import InputError

SHOWN = 5  # names that are annotated least consistently


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table.

    Returns:
        0 done, 2 bad input.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--records", type=Path, nargs="+", required=True, help="the names are those of the first file")
    parser.add_argument("--least", type=int, default=5, help="how often a name is annotated, at least (5)")
    arguments = parser.parse_args(argv)
    try:
        files = [[record for _, record in read_records(path)] for path in arguments.records]
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    names = frequent_names(files[0], arguments.least)
    print(f"{len(names)} names\n| file | annotated | not annotated | share | such as |\n|---|---|---|---|---|")
    for path, records in zip(arguments.records, files, strict=True):
        annotated, left = counts(records, names)
        share = left.total() / max(1, annotated.total() + left.total())
        worst = sorted(names, key=lambda name: -min(annotated[name], left[name]))[:SHOWN]
        examples = "、".join(f"{name} {annotated[name]}/{left[name]}" for name in worst)
        print(f"| {path.name} | {annotated.total()} | {left.total()} | {share:.1%} | {examples} |")
    return 0


def frequent_names(records: Iterable[dict], least: int) -> list[str]:
    """The texts of two characters or more that are annotated at least so often, in alphabetical order."""
    found = Counter(entity["text"] for record in records for entity in record["entities"])
    return sorted(name for name, count in found.items() if count >= least and len(name) >= 2)


def counts(records: Iterable[dict], names: Sequence[str]) -> tuple[Counter[str], Counter[str]]:
    """How often each name is an entity, and how often it stands where no entity is."""
    annotated, left = Counter(), Counter()
    for record in records:
        spans = [(entity["start"], entity["end"]) for entity in record["entities"]]
        for name in names:
            start = record["text"].find(name)
            while start >= 0:
                end = start + len(name)
                if (start, end) in spans:
                    annotated[name] += 1
                elif not any(begin < end and start < stop for begin, stop in spans):
                    left[name] += 1
                start = record["text"].find(name, start + 1)
    return annotated, left


if __name__ == "__main__":
    sys.exit(main())
