"""Compare constrained decoding (only well-formed answers) with free decoding: same model, same test rows.

python -m benchmarks.constrained_or_not --adapter output/real-ner --records data/real/test_ner.jsonl
python -m benchmarks.constrained_or_not --adapter output/real-cls --records data/real/test_cls.jsonl
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sft.data.records import read_records
from sft.decoding.decode import predict
from sft.errors import InputError
from sft.prediction.choices import LimitChoice
from sft.prediction.predictor import Predictor
from sft.tasks.evaluation import metrics_of_predictions


def main(argv: Sequence[str] | None = None) -> int:
    """Predict both ways; print the metrics side by side, and what was wrong with the free answers.

    Returns:
        0 done, 2 bad input.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--adapter", type=Path, required=True, help="--output_dir of a training script")
    parser.add_argument("--records", type=Path, required=True, help="test records of the transfer scripts")
    parser.add_argument("--rows", type=int, help="only the first so many")
    parser.add_argument("--batch_size", type=int, default=32)
    arguments = parser.parse_args(argv)
    try:
        loaded = Predictor.load(arguments.adapter, LimitChoice(batch_size=arguments.batch_size))
        records = [record for _, record in read_records(arguments.records)][: arguments.rows]
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    golds = [loaded.task.gold(record) for record in records]
    free_limits = replace(loaded.limits, constrained=False)
    constrained, free = (
        list(predict(loaded.model, loaded.tokenizer, loaded.task, records, limits))
        for limits in (loaded.limits, free_limits)
    )
    figures = [metrics_of_predictions(loaded.task, golds, results) for results in (constrained, free)]
    print(f"{len(records)} rows\n| | constrained | free |\n|---|---|---|")
    for name in figures[0]:
        print(f"| {name} | {figures[0][name]:.4f} | {figures[1].get(name, 0.0):.4f} |")
    field = loaded.task.answers
    agreeing = sum(
        comparable(one[field]) == comparable(other[field]) for one, other in zip(constrained, free, strict=True)
    )
    print(f"\nthe same result: {agreeing / len(records):.2%}")
    for kind in free[0].get("problems", ()):
        rows = sum(result["problems"][kind] > 0 for result in free)
        print(f"{kind}: {sum(result['problems'][kind] for result in free)} times in {rows / len(records):.2%} of rows")
    return 0


def comparable(result: object) -> object:
    """A result to compare: a label, or entities without their scores."""
    if not isinstance(result, list):
        return result
    return [(entity["start"], entity["end"], entity["label"]) for entity in result]


if __name__ == "__main__":
    sys.exit(main())
