"""The flags of `predict.py` and `export.py`: none does nothing in silence, and what a refusal advises works."""

from __future__ import annotations

import json
from pathlib import Path

import exports
import pytest
from models import save_adapter

import export
import predict
from sft.export.place import lowest_share
from sft.export.proof import Difference, Leg
from sft.model.loading import load_config

ROWS = [{"text": "国家队赢了", "label": "体育"}, {"text": "打仗", "label": "军事"}]


@pytest.fixture(scope="module")
def labels(tokenizer, tmp_path_factory) -> Path:
    return save_adapter(tokenizer, tmp_path_factory.mktemp("labels"), ("体育", "军事", "经济"))


@pytest.fixture(scope="module")
def entities(tokenizer, tmp_path_factory) -> Path:
    return exports.make_adapter(tokenizer, tmp_path_factory.mktemp("entities"))


@pytest.fixture
def rows(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    return path


def told(script, words: list[object], capsys) -> tuple[int, str]:
    """The exit code, and what was written to stderr."""
    try:
        code = script.main(list(map(str, words)))
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr().err


# ---- a report ----


def test_a_report_never_takes_the_place_of_data_or_predictions(labels, rows, tmp_path, capsys):
    before, notes = rows.read_bytes(), tmp_path / "notes.md"
    notes.write_text("mine")
    words = ["--adapter", labels, "--input_file", rows]
    output = tmp_path / "predictions.jsonl"
    for more, said in (
        (["--report", rows], "也是 --input_file"),
        (["--report", output, "--output_file", output], "也是 --output_file"),
        (["--report", notes], "不是网页"),
    ):
        code, line = told(predict, [*words, *more], capsys)
        assert (code, line.count("\n")) == (2, 1)
        assert said in line
    assert (rows.read_bytes(), notes.read_text(), output.exists()) == (before, "mine", False)


def test_an_earlier_report_is_replaced(labels, rows, tmp_path, capsys):
    page = tmp_path / "report.html"
    for _ in range(2):
        assert told(predict, ["--adapter", labels, "--input_file", rows, "--report", page], capsys)[0] == 0
    assert page.stat().st_size > 1000


# ---- how much is read ----


def test_rows_are_not_longer_than_the_model_reads(labels, rows, capsys):
    context = load_config(labels.parent / "base").max_position_embeddings
    words = ["--adapter", labels, "--input_file", rows, "--max_length"]
    code, line = told(predict, [*words, context + 1], capsys)
    assert (code, line.count("\n")) == (2, 1)
    assert f"--max_length {context + 1}" in line
    advised = line.partition("请用 --max_length ")[2].split()[0]
    assert told(predict, [*words, advised], capsys)[0] == 0


# ---- what is read ----


@pytest.mark.parametrize(
    "more", [["--max_rows", "3"], ["--format", "csv"], ["--encoding", "big5"], ["--text_column", "a"]]
)
def test_a_text_on_the_command_line_has_no_rows_columns_or_encoding(labels, more, capsys):
    code, line = told(predict, ["--adapter", labels, "--text", "打仗", *more], capsys)
    assert code == 2
    assert f"{more[0]} 只用于 --input_file 和标准输入" in line


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
@pytest.mark.parametrize("flag", ["--text_column", "--label_column"])
def test_a_column_that_is_not_there_is_told_with_those_that_are(labels, tmp_path, rows, name, flag, capsys):
    """A mistyped ``--label_column`` would otherwise be rows without gold, and no metrics."""
    (tmp_path / "rows.csv").write_text("text,label\n国家队赢了,体育\n", encoding="utf-8")
    code, line = told(predict, ["--adapter", labels, "--input_file", tmp_path / name, flag, "lable"], capsys)
    assert code == 2
    assert f"没有 {flag} 给出的列 'lable'；有的列是 text、label" in line


@pytest.mark.parametrize("flag", ["--text_column", "--label_column"])
def test_lines_of_text_have_no_columns(labels, tmp_path, flag, capsys):
    path = tmp_path / "texts.txt"
    path.write_text("国家队赢了\n打仗\n", encoding="utf-8")
    code, line = told(predict, ["--adapter", labels, "--input_file", path, flag, "内容"], capsys)
    assert code == 2
    assert f"没有列；请去掉 {flag}" in line


def test_json_among_lines_has_the_columns_that_are_named(labels, tmp_path, capsys):
    path = tmp_path / "rows.txt"
    path.write_text('{"内容": "国家队赢了"}\n{"内容": "打仗"}\n', encoding="utf-8")
    words = ["--adapter", labels, "--input_file", path, "--text_column", "内容"]
    assert told(predict, [*words, "--output_file", tmp_path / "out.jsonl"], capsys)[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == ["国家队赢了", "打仗"]


# ---- limits of the other task ----


def test_limits_that_do_nothing_for_labels_are_refused_or_told(labels, entities, capsys, caplog):
    words = ["--adapter", labels, "--text", "打仗"]
    code, line = told(predict, [*words, "--piece_tokens", "5"], capsys)
    assert code == 2 and "只用于实体识别" in line
    idle = "--max_new_tokens 没有用上"
    assert told(predict, [*words, "--max_new_tokens", "5"], capsys)[0] == 0 and idle in caplog.text
    caplog.clear()
    assert told(predict, [*words, "--max_new_tokens", "5", "--constrained", "false"], capsys)[0] == 0
    limits = ["--piece_tokens", "5", "--max_new_tokens", "5"]
    assert told(predict, ["--adapter", entities, "--text", "张伟", *limits], capsys)[0] == 0
    assert idle not in caplog.text


# ---- export ----


@pytest.mark.parametrize(
    ("target", "more", "said", "not_said"),
    [
        ("vllm", ["--dtype", "float32"], "请去掉它", "--gguf_type"),
        ("gguf", ["--dtype", "float32"], "请用 --gguf_type，或去掉它", "vllm"),
        ("vllm", ["--min_agreement", "0.9"], "不对照回答", "--gguf_type"),
    ],
)
def test_a_flag_of_another_target_is_refused_with_advice_for_this_one(
    entities, tmp_path, target, more, said, not_said, capsys
):
    code, line = told(export, ["--adapter", entities, "--to", target, "--output_dir", tmp_path / "x", *more], capsys)
    assert code == 2
    assert said in line
    assert not_said not in line


def test_an_export_never_takes_the_place_of_the_adapter(entities, tmp_path, capsys):
    served, rows = tmp_path / "served", entities / "check_rows.jsonl"
    assert told(export, ["--adapter", entities, "--to", "vllm", "--output_dir", served], capsys)[0] == 0
    words = ["--adapter", served, "--to", "merged", "--output_dir", served, "--rows", rows, "--overwrite"]
    code, line = told(export, words, capsys)
    assert code == 2
    assert "--output_dir 就是 --adapter" in line
    assert (served / "adapter_model.safetensors").is_file()


def test_without_kept_rows_the_flag_that_gives_some_is_named(entities, tmp_path, capsys):
    (tmp_path / "none.jsonl").write_text("")
    words = ["--adapter", entities, "--to", "vllm", "--output_dir", tmp_path / "x"]
    code, line = told(export, [*words, "--rows", tmp_path / "none.jsonl"], capsys)
    assert code == 2
    assert "请用 --rows" in line


def test_the_agreement_that_a_refused_export_advises_is_one_that_passes():
    legs = [Leg("answers", 7, (Difference("a", "b", "c"),) * count, least=1.0) for count in (1, 2)]
    share = lowest_share(legs)
    assert share == 0.714
    assert all(Leg("answers", leg.compared, leg.differences, least=share).passed for leg in legs)
