"""Measure how long training waits for its rows: read and check them, encode them, put them into a table.

    python benchmarks/encode_speed.py --train_file data/train_ner.jsonl --tokenizer qwen/Qwen2.5-1.5B-Instruct

The records of a NER file are repeated, each with a different number at the end of its text, so that no two are the
same.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import TypeVar

import orjson

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sft.data.records import read_task_records
from sft.model.encoding import encode_rows
from sft.model.loading import load_tokenizer
from sft.tasks.ner import Ner
from sft.training.fine_tune import as_dataset
from sft.training.prepare import read_task

Result = TypeVar("Result")


def main() -> None:
    """Write the rows to a temporary file, then time each step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--train_file", type=Path, default=Path("data/train_ner.jsonl"))
    parser.add_argument("--tokenizer", type=Path, default=Path("qwen/Qwen2.5-1.5B-Instruct"))
    parser.add_argument("--rows", type=int, default=100_000)
    arguments = parser.parse_args()
    task = read_task(Ner, arguments.train_file)
    tokenizer = load_tokenizer(arguments.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        with path.open("wb") as file:
            numbered = islice(numbered_records(arguments.train_file, task), arguments.rows)
            file.writelines(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in numbered)
        started = time.perf_counter()
        records = timed("read and check", lambda: read_task_records(path, task))
        rows, _ = timed("encode", lambda: encode_rows(records, task, tokenizer, 1024))
        timed("table", lambda: as_dataset(rows))
        print(f"{'all':16s} {time.perf_counter() - started:6.1f} s for {len(rows):,} rows")


def numbered_records(path: Path, task: Ner) -> Iterator[dict]:
    """Repeat the records of a file forever, each with a different number at the end of its text."""
    records = [record for _, record in read_task_records(path, task)]
    for number in count():
        record = records[number % len(records)]
        fields = record | {"text": f"{record['text']}{number}"}
        yield fields | {"messages": [*task.prompt(fields), {"role": "assistant", "content": task.answer(fields)}]}


def timed(what: str, action: Callable[[], Result]) -> Result:
    """Call ``action``, print how long it took, and return its result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = action()
    print(
        f"{what:16s} {time.perf_counter() - wall:6.1f} s ({time.process_time() - cpu:.1f} s of CPU time)", flush=True
    )
    return result


if __name__ == "__main__":
    main()
