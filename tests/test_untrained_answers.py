"""Answers with tokens that the base model never saw: said before training; else a high loss is the only sign."""

from __future__ import annotations

import pytest

from sft.tasks.classification import Classification
from tests.forked import ROOT
from tests.test_training import articles, train, write_records

COMMON = ("体育", "军事", "经济")
FOREIGN = ("SPORT", "军事", "经济")  # the demo model was trained on no Latin letters


@pytest.mark.parametrize(("labels", "told"), [(COMMON, None), (FOREIGN, "（如 ")])
def test_labels_that_the_base_model_cannot_write_are_told(tmp_path, caplog, labels, told):
    names = dict(zip(COMMON, labels, strict=True))
    records = [row | {"label": names[row["label"]], "options": list(labels)} for row in articles(30, 0)]
    records = [row | {"text": f"{index}{row['text']}"} for index, row in enumerate(records)]
    path = write_records(tmp_path / "train.jsonl", Classification(labels), records)
    words = ["--model_name_or_path", str(ROOT / "qwen" / "demo"), "--train_file", str(path), "--dtype", "float32"]
    assert train([*words, "--output_dir", str(tmp_path / "run"), "--dry_run", "--eval_strategy", "no"]) == 0
    advice = [text for text in caplog.messages if "底座没有学过的 token" in text]
    assert len(advice) == (0 if told is None else 1)
    if told is not None:
        hit = sum(row["label"] == "SPORT" for row in records)
        assert f"{hit} 条（{hit / 30:.0%}）" in advice[0]
        assert told in advice[0]
        assert "S" in advice[0]
