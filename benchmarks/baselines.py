"""Baselines without a language model: a CRF for entities, and TF-IDF with logistic regression for labels.

    python -m venv .venv-baselines && .venv-baselines/bin/pip install -r benchmarks/requirements-baselines.txt
    .venv-baselines/bin/python -m benchmarks.baselines      # from the project's folder, after both transfer scripts

They read the same record files as training and are scored with the tasks' own ``count`` and ``metrics``. The CRF sees
two characters on each side and predicts BIO tags. TF-IDF uses character n-grams of 1 to 3; the answer is the most
probable of the row's options.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from sft.data.records import read_records
from sft.errors import InputError
from sft.files import read_json
from sft.tasks.classification import Classification
from sft.tasks.ner import Ner
from sft.tasks.settings import settings_path

COLUMNS = ("train rows", "test rows", "train s", "test s")


def main(argv: Sequence[str] | None = None) -> int:
    """Train, predict and score each baseline, and print a table.

    Returns:
        0 done, 2 bad input or a package that is not installed.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="where the record files are (data)")
    parser.add_argument("--task", choices=("ner", "classification"), help="only this one; both by default")
    parser.add_argument("--crf_iterations", type=int, default=200, help="of L-BFGS at most (200)")
    arguments = parser.parse_args(argv)
    try:
        if arguments.task != "classification":
            print_figures("CRF, characters +-2, BIO", measure_crf(arguments.data_dir, arguments.crf_iterations))
        if arguments.task != "ner":
            print_figures("TF-IDF 1-3 + logistic regression", measure_tfidf(arguments.data_dir))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"{error.name}：没有安装；pip install -r benchmarks/requirements-baselines.txt", file=sys.stderr)
        return 2
    return 0


def measure_crf(data_dir: Path, iterations: int) -> dict[str, float]:
    """Train a linear-chain CRF and return its rows, seconds and entity metrics by name."""
    import pycrfsuite

    train, test, settings = read_split(data_dir, "ner")
    started = time.perf_counter()
    trainer = pycrfsuite.Trainer(algorithm="lbfgs", verbose=False)
    trainer.set_params({"c1": 0.1, "c2": 0.1, "max_iterations": iterations, "feature.possible_transitions": True})
    for record in train:
        trainer.append(features(record["text"]), tags(record))
    with tempfile.TemporaryDirectory() as folder:
        model = str(Path(folder) / "model.crfsuite")
        trainer.train(model)
        trained = time.perf_counter()
        with pycrfsuite.Tagger().open(model) as tagger:
            predictions = [{"entities": spans(tagger.tag(features(record["text"])))} for record in test]
        finished = time.perf_counter()
    task = Ner.from_settings(settings)
    scores = task.metrics(task.count([task.gold(record) for record in test], predictions))
    return counts(train, test, trained - started, finished - trained) | scores


def features(text: str) -> list[list[str]]:
    """The features of each character: the character, its neighbours, the pairs they form, and its `kind`."""
    padded = f"\x02\x02{text}\x03\x03"
    return [
        [
            "bias",
            f"kind={kind(padded[i])}",
            *(f"{offset}:{padded[i + offset]}" for offset in range(-2, 3)),
            *(f"{offset}:{padded[i + offset : i + offset + 2]}" for offset in range(-2, 2)),
            f"around:{padded[i - 1]}{padded[i + 1]}",
        ]
        for i in range(2, len(text) + 2)
    ]


def kind(character: str) -> str:
    """The class of a character: ``digit``, ``latin``, ``letter`` or ``sign``."""
    if character.isdigit():
        return "digit"
    if character.isascii():
        return "latin" if character.isalpha() else "sign"
    return "letter" if character.isalpha() else "sign"


def tags(record: dict) -> list[str]:
    """One BIO tag for each character of the record's text."""
    result = ["O"] * len(record["text"])
    for entity in record["entities"]:
        result[entity["start"]] = f"B-{entity['label']}"
        result[entity["start"] + 1 : entity["end"]] = [f"I-{entity['label']}"] * (entity["end"] - entity["start"] - 1)
    return result


def spans(bio: Sequence[str]) -> list[dict]:
    """The entities in a sequence of BIO tags. An I tag that continues no entity starts a new one."""
    entities: list[dict] = []
    previous = "O"
    for position, tag in enumerate(bio):
        if tag.startswith("I-") and previous[2:] == tag[2:]:
            entities[-1]["end"] = position + 1
        elif tag != "O":
            entities.append({"start": position, "end": position + 1, "label": tag[2:]})
        previous = tag
    return entities


def measure_tfidf(data_dir: Path) -> dict[str, float]:
    """Train logistic regression on TF-IDF and return its rows, seconds and label metrics by name."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train, test, settings = read_split(data_dir, "cls")
    started = time.perf_counter()
    pipeline = make_pipeline(
        TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True, min_df=2),
        LogisticRegression(C=10, max_iter=1000),
    )
    pipeline.fit([record["text"] for record in train], [record["label"] for record in train])
    trained = time.perf_counter()
    probabilities = pipeline.predict_proba([record["text"] for record in test])
    by_label = [dict(zip(pipeline.classes_, row, strict=True)) for row in probabilities]
    finished = time.perf_counter()
    task = Classification.from_settings(settings)
    predictions = [
        {"label": max(record.get("options") or task.labels, key=lambda option: scores.get(option, 0.0))}
        for record, scores in zip(test, by_label, strict=True)
    ]
    scores = task.metrics(task.count([task.gold(record) for record in test], predictions))
    return counts(train, test, trained - started, finished - trained) | scores


def read_split(data_dir: Path, name: str) -> tuple[list[dict], list[dict], dict]:
    """Read the training records, the test records and the task's settings.

    Raises:
        InputError: a file is missing or damaged.
    """
    train_file, test_file = data_dir / f"train_{name}.jsonl", data_dir / f"test_{name}.jsonl"
    train, test = ([record for _, record in read_records(path)] for path in (train_file, test_file))
    return train, test, read_json(settings_path(train_file))


def counts(train: Sequence[dict], test: Sequence[dict], train_seconds: float, test_seconds: float) -> dict[str, float]:
    """The figures that every baseline has: numbers of rows, and seconds."""
    return dict(zip(COLUMNS, (len(train), len(test), train_seconds, test_seconds), strict=True))


def print_figures(name: str, figures: dict[str, float]) -> None:
    """Print one baseline as a Markdown table of two columns."""
    print(f"| {name} | |\n|---|---|")
    for column, value in figures.items():
        shown = f"{value:.1f}" if column.endswith(" s") else f"{value:.4f}" if isinstance(value, float) else value
        print(f"| {column} | {shown} |")
    print()


if __name__ == "__main__":
    sys.exit(main())
