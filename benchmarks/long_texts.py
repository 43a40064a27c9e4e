"""Compare long texts with the same sentences one by one: the test rows are joined, and predicted in several ways.

python -m benchmarks.long_texts --adapter output/quickstart/ner --records data/quickstart/test_ner.jsonl
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sft.data.records import read_records
from sft.decoding.decode import predict
from sft.decoding.limits import Limits
from sft.errors import InputError
from sft.prediction.choices import LimitChoice
from sft.prediction.predictor import Predictor
from sft.tasks.evaluation import Tally, at_least

WHOLE = 1 << 20  # tokens of a piece: no text is cut before max_length is reached


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table of the scores.

    Returns:
        0 done, 2 bad input.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--adapter", type=Path, required=True, help="--output_dir of train_qwen2_ner.py")
    parser.add_argument("--records", type=Path, required=True, help="test records of transfer_ner_data.py")
    parser.add_argument("--rows", type=int, help="only the first so many")
    parser.add_argument("--characters", type=int, default=5000, help="of a joined text, at least")
    parser.add_argument("--piece_tokens", type=int, nargs="*", default=[], help="further lengths of pieces to try")
    parser.add_argument("--batch_size", type=int, default=16)
    arguments = parser.parse_args(argv)
    try:
        loaded = Predictor.load(arguments.adapter, LimitChoice(batch_size=arguments.batch_size))
        records = [record for _, record in read_records(arguments.records)][: arguments.rows]
        if loaded.task.answers != "entities":
            raise InputError(f"{arguments.adapter}：这里比较的是实体识别")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    long = list(joined(records, arguments.characters))
    usual = loaded.limits.piece_tokens
    print(f"{len(records)} rows; {len(long)} long texts; piece_tokens of the adapter: {usual}")
    print("| text | piece_tokens | F1 | precision | recall | cut | seconds |\n|---|---|---|---|---|---|---|")
    ways = [("one by one", records, usual or WHOLE), ("one by one", records, WHOLE), ("long", long, usual or WHOLE)]
    ways += [("long", long, tokens) for tokens in (*arguments.piece_tokens, WHOLE)]
    for text, rows, tokens in ways:
        started = time.perf_counter()
        figures = scores(loaded, rows, replace(loaded.limits, piece_tokens=tokens))
        shown = " | ".join(f"{figures[name]:.4f}" for name in ("f1", "precision", "recall"))
        length = "whole" if tokens == WHOLE else tokens
        print(f"| {text} | {length} | {shown} | {figures['cut']} | {time.perf_counter() - started:.1f} |", flush=True)
    return 0


def joined(records: Sequence[dict], least_characters: int) -> Iterator[dict]:
    """The records joined in their order to long ones of at least so many characters; the last one can be shorter."""
    text, entities = "", []
    for record in records:
        entities += [
            entity | {"start": entity["start"] + len(text), "end": entity["end"] + len(text)}
            for entity in record["entities"]
        ]
        text += record["text"]
        if len(text) >= least_characters:
            yield {"text": text, "entities": entities}
            text, entities = "", []
    if text:
        yield {"text": text, "entities": entities}


def scores(loaded: Predictor, records: Sequence[dict], limits: Limits) -> dict[str, float]:
    """The metrics of the predictions at the adapter's threshold, and how many rows were ``cut``."""
    predicted = predict(loaded.model, loaded.tokenizer, loaded.task, records, limits, loaded.room)
    results = at_least(loaded.task, list(predicted), loaded.row_settings.threshold)
    tally = Tally.of(loaded.task, [loaded.task.gold(record) for record in records], results)
    return tally.metrics(loaded.task) | {"cut": tally.rows["cut"]}


if __name__ == "__main__":
    sys.exit(main())
