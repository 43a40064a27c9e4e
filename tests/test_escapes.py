"""Text from data is never obeyed by the terminal; labels without end are refused before they fill the disk."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import transfer_classification_data
import transfer_ner_data
from sft.cli import one_line_errors
from sft.console import PrintableFormatter
from sft.data.splitter import MAX_LABEL_CHARACTERS, MAX_LABELS
from sft.errors import InputError, printable

ESCAPES = "\x1b]0;owned\x07\x1b[31m", "\x9b31m", "\x9d0;owned\x9c", "\x08\x08\x7f", "\u202egnp.exe", "\r改写"
OBEYED = {*map(chr, range(32)), *map(chr, range(0x7F, 0xA0)), *"\u202a\u202b\u202c\u202d\u202e\u2028"} - {"\n", "\t"}


@given(st.text())
def test_what_is_printable_stays_and_nothing_that_is_obeyed_remains(text):
    shown = printable(text)
    assert not OBEYED & set(shown)
    if not OBEYED & set(text) and text.isprintable():
        assert shown == text


@given(st.text())
def test_json_says_the_same_after_it_was_made_printable(text):
    assert json.loads(printable(json.dumps({text: text}, ensure_ascii=False))) == {text: text}


@pytest.mark.parametrize("escape", ESCAPES)
def test_errors_and_log_lines_are_printable(escape, capsys):
    with one_line_errors():
        raise InputError(f"标签 {escape}")
    assert not OBEYED & set(capsys.readouterr().err)
    record = logging.LogRecord("a", logging.INFO, "a", 1, "标签 %s", (escape,), None)
    assert not OBEYED & set(PrintableFormatter("%(message)s").format(record))


def convert(script, folder: Path, rows: list[dict], *flags: str) -> int:
    raw = folder / "raw.jsonl"
    raw.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    files = ["--output_file", str(folder / "train.jsonl"), "--test_file", str(folder / "test.jsonl")]
    return script.main(["--input_file", str(raw), *files, "--test_ratio", "0.3", *flags])


@pytest.mark.parametrize("escape", ESCAPES)
@pytest.mark.parametrize(
    "flags", [(), ("--on_bad_row", "skip"), ("--labels", "甲,乙"), ("--label_column", "\x1b[31m")]
)
def test_no_summary_of_a_conversion_has_escapes(escape, flags, tmp_path, capsys):
    texts = [f"句{escape}{number // 2}" for number in range(24)]  # each twice, with different labels: conflicts
    labels = [f"甲{escape}", f"乙{escape}"]
    convert(
        transfer_classification_data,
        tmp_path,
        [{"text": text, "output": labels[n % 2], "category": labels} for n, text in enumerate(texts)]
        + [{"text": "好", "output": f"丙{escape}", "category": labels}],
        *flags,
    )
    entities = [[{"start_idx": 0, "end_idx": 1, "entity_label": label}] for label in labels]
    rows = [{"text": text, "entities": entities[n % 2]} for n, text in enumerate(texts)]
    rows += [{"text": "好", "entities": [{"start_idx": 0, "end_idx": 1, "entity_text": escape}]}]
    convert(transfer_ner_data, tmp_path, rows, *flags)
    out, error = capsys.readouterr()
    assert not OBEYED & set(out + error)
    assert error


class TestLabels:
    """The wrong column gives as many labels as rows, and every prompt would name all of them."""

    def rows(self, script, labels: list[str]) -> list[dict]:
        if script is transfer_ner_data:
            entity = {"start_idx": 0, "end_idx": 2}
            return [
                {"text": f"张伟{n}", "entities": [entity | {"entity_label": label}]} for n, label in enumerate(labels)
            ]
        return [{"text": f"张伟{n}", "output": label} for n, label in enumerate(labels)]

    @pytest.mark.parametrize("script", [transfer_ner_data, transfer_classification_data])
    @pytest.mark.parametrize(
        "labels",
        [
            [f"LABEL{number}" for number in range(5000)],
            [f"L{number % (MAX_LABELS + 1)}" for number in range(3000)],
            [f"{number}" + "很长的一段文字" * 40 for number in range(400)],
        ],
        ids=["5,000", "one too many", "texts"],
    )
    def test_too_many_labels_are_refused_in_one_line_and_nothing_is_written(self, script, labels, tmp_path, capsys):
        started = time.monotonic()
        assert convert(script, tmp_path, self.rows(script, labels)) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1 and "--label_column" in error
        assert [path.name for path in tmp_path.iterdir()] == ["raw.jsonl"]
        assert time.monotonic() - started < 20

    @pytest.mark.parametrize("script", [transfer_ner_data, transfer_classification_data])
    def test_many_short_labels_are_not_too_many(self, script, tmp_path):
        labels = [f"L{number % MAX_LABELS:03}" for number in range(2 * MAX_LABELS)]
        assert sum(map(len, set(labels))) <= MAX_LABEL_CHARACTERS
        assert convert(script, tmp_path, self.rows(script, labels)) == 0

    def test_long_options_of_each_row_are_not_counted(self, tmp_path):
        labels = [f"{number}" + "长" * 60 for number in range(400)]
        rows = [{"text": f"句{n}", "output": label, "category": [label, "无"]} for n, label in enumerate(labels)]
        assert convert(transfer_classification_data, tmp_path, rows) == 0
