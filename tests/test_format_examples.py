"""Every format of the page docs/formats.md, in conversion and in prediction.

Run: pytest tests/test_format_examples.py
"""

from __future__ import annotations

import json

import pytest

import transfer_classification_data
import transfer_ner_data
from sft.data.inputs import read_file
from sft.errors import RowError
from sft.prediction.rows import to_record
from sft.tasks.settings import TaskSettings, settings_path
from tests.format_examples import EXAMPLES, PAGES, Example, page

SCRIPTS = {"label": transfer_classification_data.main, "entities": transfer_ner_data.main}


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.file for example in EXAMPLES])
def test_conversion_and_prediction_read_what_the_page_says(tmp_path, example: Example):
    path, out = tmp_path / example.file, tmp_path / "out_train.jsonl"
    path.write_text(example.content, encoding="utf-8", newline="")
    files = {"--input_file": path, "--output_file": out, "--test_file": tmp_path / "out_test.jsonl"}
    flags = [f"{flag}={file}" for flag, file in files.items()]
    assert SCRIPTS[example.answers]([*flags, "--test_ratio=0.34"]) == 0
    records = [json.loads(line) for name in (out, tmp_path / "out_test.jsonl") for line in name.open(encoding="utf-8")]
    text, gold = example.becomes
    (record,) = [record for record in records if record["text"] == text]
    assert read_gold(record) == gold

    task = TaskSettings.read(settings_path(out)).task
    rows = [to_record(row, task) for row in read_file(path, task.answers)]
    assert not any(isinstance(row, RowError) for row in rows)
    assert sorted(row["text"] for row in rows) == sorted(record["text"] for record in records)
    assert {row["text"]: read_gold(row) for row in rows} == {record["text"]: read_gold(record) for record in records}


def read_gold(record: dict) -> str | list[tuple[int, int, str]]:
    if "label" in record:
        return record["label"]
    return [(entity["start"], entity["end"], entity["label"]) for entity in record["entities"]]


@pytest.mark.parametrize("language", [0, 1], ids=["zh", "en"])
def test_the_page_is_written_from_the_examples(language):
    assert PAGES[language].read_text(encoding="utf-8") == page(language), "python -m tests.format_examples"
