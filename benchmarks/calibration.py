"""How far scores are from the share of right answers, as the model gives them and calibrated on validation rows.

python -m benchmarks.calibration --adapter output/quickstart/ner --train_file data/quickstart/train_ner.jsonl \
    --records data/quickstart/test_ner.jsonl
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sft.data.records import read_records
from sft.decoding.decode import predict
from sft.errors import InputError
from sft.prediction.choices import LimitChoice
from sft.prediction.predictor import Predictor
from sft.tasks.evaluation import at_least, best_calibration, best_threshold, calibrated, metrics_of_predictions
from sft.tasks.task import Task
from sft.training.arguments import parse_arguments
from sft.training.prepare import read_splits

Judged = tuple[list[dict], list[dict]]  # gold and predictions of the same rows


def main(argv: Sequence[str] | None = None) -> int:
    """Predict the validation and the test rows; print the errors with and without calibration.

    Returns:
        0 done, 2 bad input.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--adapter", type=Path, required=True, help="--output_dir of a training script")
    parser.add_argument("--train_file", type=Path, help="validation is held out of it as training does by default")
    parser.add_argument("--validation_file", type=Path, help="instead of --train_file")
    parser.add_argument("--records", type=Path, required=True, help="test records of the transfer scripts")
    parser.add_argument("--rows", type=int, help="only the first so many of both")
    parser.add_argument("--batch_size", type=int, default=32)
    arguments = parser.parse_args(argv)
    if (arguments.train_file is None) == (arguments.validation_file is None):
        parser.error("give --train_file or --validation_file")
    try:
        loaded = Predictor.load(arguments.adapter, LimitChoice(batch_size=arguments.batch_size))
        if arguments.validation_file is not None:
            validation = list(read_records(arguments.validation_file))
        else:
            flags = ["--train_file", str(arguments.train_file), "--output_dir", "unused", "--test_file", "none"]
            validation = read_splits(loaded.task, parse_arguments("", flags)).validation
        test = list(read_records(arguments.records))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    fitted, tried = (
        predicted(loaded, [record for _, record in rows])
        for rows in (validation[: arguments.rows], test[: arguments.rows])
    )
    print(f"{len(fitted[0])} validation rows, {len(tried[0])} test rows")
    show(loaded.task, "validation rows, tried on the test rows", fitted, tried)
    halves = [(tried[0][start::2], tried[1][start::2]) for start in (0, 1)]
    show(loaded.task, "every second test row, tried on the others", *halves)
    return 0


def predicted(loaded: Predictor, records: Sequence[dict]) -> Judged:
    """Gold and predictions with the model's own scores, none left out."""
    results = predict(loaded.model, loaded.tokenizer, loaded.task, records, loaded.limits)
    return [loaded.task.gold(record) for record in records], list(results)


def show(task: Task, which: str, fitted: Judged, tried: Judged) -> None:
    """Print a table of the rows tried on; calibration and threshold are those of the rows fitted on."""
    calibration = best_calibration(task, *fitted)
    print(f"\ncalibration of {which}: {calibration or 'none that helps'}\n")
    print(f"| scores | ECE of all | threshold | ECE of those kept | {task.metric} |\n|---|---|---|---|---|")
    for name, used in [("the model's own", None)] + [("calibrated", calibration)] * (calibration is not None):
        golds, results = tried[0], calibrated(tried[1], used)
        threshold = best_threshold(task, fitted[0], calibrated(fitted[1], used))
        everything = metrics_of_predictions(task, golds, results)
        kept = metrics_of_predictions(task, golds, at_least(task, results, threshold))
        figures = [everything.get("ece", float("nan")), kept.get("ece", float("nan")), kept[task.metric]]
        print(f"| {name} | {figures[0]:.4f} | {threshold} | {figures[1]:.4f} | {figures[2]:.4f} |")


if __name__ == "__main__":
    sys.exit(main())
