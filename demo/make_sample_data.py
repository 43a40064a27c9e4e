"""Write the sample data: made-up rows in the raw formats of the NER and the news data sets.

    python -m demo.make_sample_data

The same seed gives the same bytes. The names and templates of the test rows occur in no training row.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))  # so that `python demo/make_sample_data.py` works as well as `-m`

import orjson  # noqa: E402

from demo import words  # noqa: E402
from demo.corpus import (  # noqa: E402
    TEST_TEMPLATES,
    TRAIN_TEMPLATES,
    HeldOutNames,
    Sentence,
    ner_sentence,
    news_article,
    ordinary_text,
)
from demo.names import NameMaker  # noqa: E402
from sft.files import whole_file  # noqa: E402

SEED = 20240601
DEFAULT_COUNTS = ((4000, 250), (1000, 256))  # NER and news rows, each (training, test)
ENTITY_NAMES = {
    "GPE": ["地理实体", "政区", "国家", "城市"],
    "LOC": ["地点", "位置", "自然景观", "建筑"],
    "ORG": ["组织", "机构", "单位", "企业"],
    "PER": ["人名", "姓名"],
}


def ner_row(sentence: Sentence) -> dict:
    """A raw row of the NER data."""
    entities = [
        {
            "start_idx": start,
            "end_idx": end,
            "entity_text": sentence.text[start:end],
            "entity_label": label,
            "entity_names": ENTITY_NAMES[label],
        }
        for start, end, label in sentence.entities
    ]
    return {"text": sentence.text, "entities": entities, "data_source": "SAMPLE"}


def news_row(random: Random, article: Sentence, label: str) -> dict:
    """A raw row of the news data. The options are a Python list written as a string; the right label is among them."""
    others = [topic.label for topic in words.TOPICS if topic.label != label]
    candidates = [label, *random.sample(others, random.randint(2, 5))]
    random.shuffle(candidates)
    return {"text": article.text, "category": str(candidates), "output": label}


def distinct(compose: Callable[[], Sentence], count: int, held_out: HeldOutNames) -> list[Sentence]:
    """Compose ``count`` different sentences that contain no held-out name."""
    found: dict[str, Sentence] = {}
    while len(found) < count:
        sentence = compose()
        if not held_out.occur_in(sentence.text):
            found.setdefault(sentence.text, sentence)
    return list(found.values())


def surfaces(sentences: Iterable[Sentence]) -> set[str]:
    """All names in some sentences."""
    return {surface for sentence in sentences for surface in sentence.surfaces()}


def articles(
    random: Random, names: NameMaker, split: str, count: int, held_out: HeldOutNames
) -> list[tuple[Sentence, str]]:
    """News articles with their labels, in random order; every topic gets the same number of articles."""
    templates = TEST_TEMPLATES if split == "test" else TRAIN_TEMPLATES
    rows = []
    for number in range(count):
        topic = words.TOPICS[number % len(words.TOPICS)]
        article = distinct(
            lambda topic=topic: news_article(random, names, topic, templates, for_sample=True), 1, held_out
        )[0]
        rows.append((article, topic.label))
    random.shuffle(rows)
    return rows


def make_rows(seed: int, ner_counts: tuple[int, int], news_counts: tuple[int, int]) -> tuple[dict, HeldOutNames]:
    """The rows of all four files by file name, and the names that occur in the test rows.

    Args:
        ner_counts, news_counts: how many training rows and test rows.
    """
    none = HeldOutNames(())
    random = Random(f"{seed} ner test")
    names = NameMaker(random, "test", ordinary_text())
    ner_test = distinct(lambda: ner_sentence(random, names, TEST_TEMPLATES), ner_counts[1], none)
    news_test = articles(random, names, "test", news_counts[1], none)
    held_out = HeldOutNames(surfaces([*ner_test, *(article for article, _ in news_test)]))

    train_random = Random(f"{seed} ner train")
    train_names = NameMaker(train_random, "train", ordinary_text())
    ner_train = distinct(lambda: ner_sentence(train_random, train_names, TRAIN_TEMPLATES), ner_counts[0], held_out)
    news_random = Random(f"{seed} news train")
    news_names = NameMaker(news_random, "train", ordinary_text())
    news_train = articles(news_random, news_names, "train", news_counts[0], held_out)

    label_random = Random(f"{seed} candidates")
    rows = {
        "ner_train.jsonl": [ner_row(sentence) for sentence in ner_train],
        "ner_test.jsonl": [ner_row(sentence) for sentence in ner_test],
        "news_train.jsonl": [news_row(label_random, *row) for row in news_train],
        "news_test.jsonl": [news_row(label_random, *row) for row in news_test],
    }
    return rows, held_out


def main() -> None:
    """Parse the command line and write the four files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=PROJECT / "data" / "sample")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--ner_train", type=int, default=DEFAULT_COUNTS[0][0])
    parser.add_argument("--ner_test", type=int, default=DEFAULT_COUNTS[0][1])
    parser.add_argument("--news_train", type=int, default=DEFAULT_COUNTS[1][0])
    parser.add_argument("--news_test", type=int, default=DEFAULT_COUNTS[1][1])
    arguments = parser.parse_args()
    rows_by_file, _ = make_rows(
        arguments.seed, (arguments.ner_train, arguments.ner_test), (arguments.news_train, arguments.news_test)
    )
    for name, rows in rows_by_file.items():
        with whole_file(arguments.output_dir / name) as file:
            file.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
        print(f"{arguments.output_dir / name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
