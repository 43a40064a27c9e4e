r"""Compare ways to read articles that are longer than the model is to read: train and score each at the same cost.

    python -m benchmarks.long_articles --data_dir data/real --characters 200 --output_dir output/long-articles \
        -- --model_name_or_path qwen/demo --learning_rate 3e-3 --lora_r 16 --num_train_epochs 1

The record files are those of `transfer_classification_data.py`. Every way keeps ``--characters`` of a longer text:

- ``head`` keeps the beginning: `--long_text head`.
- ``ends`` keeps half of them from the beginning and half from the end, with "…" between: `--long_text ends`.
- ``windows`` reads the beginning and the end as two texts of half the length. Training sees both as rows of their own;
  in prediction the label is the one with the largest mean log-probability.

What stands after ``--`` goes to every training run as it is.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson

from benchmarks import recipes
from sft.data.records import make_record, read_records
from sft.decoding.decode import predict
from sft.errors import InputError
from sft.files import ALL_RESULTS_FILE
from sft.prediction.choices import LimitChoice
from sft.prediction.predictor import Predictor
from sft.tasks.classification import shortened
from sft.tasks.evaluation import Tally
from sft.tasks.settings import TaskSettings, settings_path
from sft.tasks.task import Task

Texts = list[str]


def head(text: str, characters: int) -> Texts:
    """The beginning."""
    return [text[:characters]]


def ends(text: str, characters: int) -> Texts:
    """The beginning and the end in one text."""
    half = characters // 2
    return [shortened(text, half, half)] if len(text) > characters else [text]


def windows(text: str, characters: int) -> Texts:
    """The beginning and the end as two texts."""
    half = characters // 2
    return [text[:half], text[-half:]] if len(text) > characters else [text]


WAYS: dict[str, Callable[[str, int], Texts]] = {"head": head, "ends": ends, "windows": windows}


def main(argv: Sequence[str] | None = None) -> int:
    """Train and score every way, and print a table.

    Returns:
        0 done, 1 a training failed, 2 bad input.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--data_dir", type=Path, required=True, help="has train_cls.jsonl and test_cls.jsonl")
    parser.add_argument("--characters", type=int, required=True, help="kept of a text")
    parser.add_argument("--output_dir", type=Path, required=True, help="each way gets a folder in it")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--train_rows", type=int, help="only the first so many")
    parser.add_argument("--test_rows", type=int, help="only the first so many")
    parser.add_argument("flags", nargs="*", help="after --: the flags of every training run")
    arguments = parser.parse_args(argv)
    if arguments.characters < 2:
        parser.error("--characters：至少是 2，开头和结尾各要一个")
    try:
        train, test = (list(records_in(arguments.data_dir / f"{part}_cls.jsonl")) for part in ("train", "test"))
        task = TaskSettings.read(settings_path(arguments.data_dir / "train_cls.jsonl")).task
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    train, test = train[: arguments.train_rows], test[: arguments.test_rows]
    longer = sum(len(record["text"]) > arguments.characters for record in test)
    print(f"{len(train)} training rows, {len(test)} test rows, {longer} of them longer")
    print("| way | accuracy | macro F1 | accuracy of the longer texts | training seconds |\n|---|---|---|---|---|")
    for name in arguments.ways:
        adapter = arguments.output_dir / name / "adapter"
        seconds = trained(adapter, task, cut(train, WAYS[name], arguments.characters), arguments.flags)
        if seconds is None:
            return 1
        labels = predicted(adapter, test, WAYS[name], arguments.characters)
        print(f"| {name} | {figures(task, test, labels, arguments.characters)} | {seconds:.0f} |", flush=True)
    return 0


def records_in(path: Path) -> list[dict]:
    """The records of a file without their messages."""
    return [{name: record[name] for name in ("text", "options", "label")} for _, record in read_records(path)]


def cut(records: Sequence[dict], way: Callable[[str, int], Texts], characters: int) -> list[dict]:
    """The records with the texts that a way makes of theirs."""
    return [record | {"text": text} for record in records for text in way(record["text"], characters)]


def trained(adapter: Path, task: Task, records: Sequence[dict], flags: Sequence[str]) -> float | None:
    """Train on the records, unless that is done. Returns the seconds of the training loop; None if it failed."""
    adapter.mkdir(parents=True, exist_ok=True)
    path = adapter.with_name("train_cls.jsonl")
    path.write_bytes(b"".join(orjson.dumps(make_record(task, record)) + b"\n" for record in records))
    TaskSettings(task).write(settings_path(path))
    files = ["--train_file", str(path), "--test_file", "none"]
    if recipes.trained("train_qwen2_classification.py", adapter, {}, [*files, *flags]):
        return None
    return orjson.loads((adapter / ALL_RESULTS_FILE).read_bytes())["train_runtime"]


def predicted(adapter: Path, test: Sequence[dict], way: Callable[[str, int], Texts], characters: int) -> list[dict]:
    """A result for each test record; of several texts it has the label with the largest mean log-probability."""
    loaded = Predictor.load(adapter, LimitChoice(batch_size=16))
    texts_of = [way(record["text"], characters) for record in test]
    rows = [record | {"text": text} for record, texts in zip(test, texts_of, strict=True) for text in texts]
    results = predict(loaded.model, loaded.tokenizer, loaded.task, rows, loaded.limits, loaded.room)
    return [together([next(results) for _ in texts]) for texts in texts_of]


def together(results: Sequence[dict]) -> dict:
    """One result of those for several texts."""
    if len(results) == 1:
        return results[0]
    least = 1e-12  # a score can be 0
    sums = {
        label: sum(math.log(max(result["scores"][label], least)) for result in results)
        for label in results[0]["scores"]
    }
    return {"label": max(sums, key=sums.__getitem__), "unparsable": False}


def figures(task: Task, test: Sequence[dict], results: Sequence[dict], characters: int) -> str:
    """Accuracy, macro F1, and the accuracy of the texts that are longer."""
    metrics = Tally.of(task, [task.gold(record) for record in test], results).metrics(task)
    right = [
        result["label"] == record["label"]
        for record, result in zip(test, results, strict=True)
        if len(record["text"]) > characters
    ]
    shown = (metrics["accuracy"], metrics["macro_f1"], sum(right) / max(1, len(right)))
    return " | ".join(f"{figure:.4f}" for figure in shown)


if __name__ == "__main__":
    sys.exit(main())
