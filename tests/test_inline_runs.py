"""Data that is converted for inline answers trains and predicts like any other, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import predict
import train_qwen2_ner
import transfer_ner_data
from sft.errors import InputError
from sft.tasks.sealed import sealed_bytes
from sft.tasks.settings import TaskSettings
from tests.models import save_model, tiny_model

ROWS = [
    {"text": f"{before}张伟[{n}]到了上海，张伟走了。" if n % 4 else f"第{n}天没有课。", "entities": []}
    for n, before in enumerate(("", "昨天", " ", "今天\n") * 6)
]
for row in ROWS:
    if (second := row["text"].rfind("张伟")) >= 0:  # the second one: JSON lines would be read as the first
        row["entities"] = [{"start": second, "end": second + 2, "label": "PER"}]


def converted(folder: Path, *flags: str) -> Path:
    source, output = folder / "rows.jsonl", folder / "my_train.jsonl"
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    words = ["--input_file", str(source), "--output_file", str(output), "--labels", "PER=人名,LOC=地点"]
    assert transfer_ner_data.main([*words, "--test_ratio", "0.4", *flags]) == 0
    return output


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_converted_records_train_and_predict_with_every_offset(tmp_path, tokenizer, capsys):
    train_file = converted(tmp_path, "--answer_format", "inline")
    answers = {record["text"]: record["messages"][-1]["content"] for record in lines_of(train_file)}
    assert any(answer.endswith("\\]到了上海，[张伟|人名]走了。") for answer in answers.values())
    prompt = lines_of(train_file)[0]["messages"][0]["content"]
    assert "[实体原文|人名]" in prompt and "json" not in prompt

    base, run = save_model(tiny_model("qwen2"), tokenizer, tmp_path / "base"), tmp_path / "run"
    words = ["--model_name_or_path", str(base), "--train_file", str(train_file), "--output_dir", str(run)]
    words += ["--dtype", "float32", "--swanlab_mode", "disabled", "--disable_tqdm", "true", "--max_steps", "2"]
    assert train_qwen2_ner.main([*words, "--validation_ratio", "0.3", "--max_length", "400"]) == 0
    settings = TaskSettings.read(run / "task.json")
    assert settings.task.answer_format == "inline" and settings.to_json()["format_version"] == 2
    assert settings.max_new_tokens >= 200, "room for a text of any length that is allowed"

    test_file, output = tmp_path / "my_test.jsonl", tmp_path / "out.jsonl"
    texts = [record["text"] for record in lines_of(test_file)]
    for constrained in ("true", "false"):
        capsys.readouterr()
        words = ["--adapter", str(run), "--input_file", str(test_file), "--output_file", str(output), "--overwrite"]
        assert predict.main([*words, "--constrained", constrained, "--max_new_tokens", "60"]) == 0
        metrics = json.loads(capsys.readouterr().out)
        assert metrics["rows"] == len(texts)
        for text, line in zip(texts, lines_of(output), strict=True):
            assert line["text"] == text
            for entity in line["entities"]:
                assert text[entity["start"] : entity["end"]] == entity["text"] and 0 < entity["score"] <= 1


def test_json_lines_stay_what_they_were_and_are_the_default(tmp_path):
    """Settings and records of JSON lines do not name their format, so older files and newer ones are the same."""
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    files = [converted(tmp_path / "a"), converted(tmp_path / "b", "--answer_format", "json")]
    for suffix in (".jsonl", ".task.json"):
        one, other = (file.with_suffix(suffix).read_bytes() for file in files)
        assert one == other and b"answer_format" not in one
    assert TaskSettings.read(files[0].with_suffix(".task.json")).task.answer_format == "json"


def test_records_of_one_format_are_converted_to_the_other(tmp_path):
    inline = converted(tmp_path, "--answer_format", "inline")
    (tmp_path / "again").mkdir()
    again = tmp_path / "again" / "my_train.jsonl"
    assert transfer_ner_data.main(["--input_file", str(inline), "--output_file", str(again)]) == 0
    before = {record["text"]: record["entities"] for record in lines_of(inline)}
    after = [*lines_of(again), *lines_of(again.with_name("my_test.jsonl"))]
    assert {record["text"]: record["entities"] for record in after} == before
    assert all(record["messages"][-1]["content"][0] in "{没" for record in after)


@pytest.mark.parametrize("value", ["xml", None, ["inline"], 1])
def test_settings_of_a_format_that_is_not_known_are_refused_in_one_line(tmp_path, value):
    path = converted(tmp_path, "--answer_format", "inline").with_suffix(".task.json")
    content = json.loads(path.read_bytes()) | {"answer_format": value}
    content.pop("sha256")
    path.write_bytes(sealed_bytes(content))
    with pytest.raises(InputError, match=r"answer_format 应是 json、inline 之一") as refused:
        TaskSettings.read(path)
    assert "\n" not in str(refused.value)
