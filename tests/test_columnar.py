"""Parquet and Arrow files become the rows that the same data have as JSON lines."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from pyarrow import ipc, parquet

import transfer_classification_data
import transfer_ner_data
from sft.data.columnar import read_columnar
from sft.data.formats import recognise
from sft.data.inputs import input_hash, read_file

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample"
SCRIPTS = {"news_test.jsonl": transfer_classification_data, "ner_test.jsonl": transfer_ner_data}
TAGS = ["O", "B-人名", "I-人名", "B-地点", "I-地点"]
FIRST = "train-00000-of-00002.parquet"


@pytest.fixture(autouse=True, scope="module")
def no_bars():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def labelled(folder: Path, labels: list[int], name: str = "rows.parquet") -> Path:
    """Texts with numbers as labels, as `datasets` writes them."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["差评", "好评"])})
    texts = [f"{name}的第{n}条，买了就用上了" for n in range(len(labels))]
    Dataset.from_dict({"text": texts, "label": labels}, features).to_parquet(folder / name)
    return folder / name


def convert(script, path: Path, folder: Path) -> int:
    return script.main(["--input_file", str(path), "--output_file", str(folder / "train.jsonl")])


def written(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("train.jsonl", "test.jsonl")]


@pytest.mark.parametrize("ending", ["parquet", "arrow", "stream.arrow"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_conversion_is_that_of_the_same_json_lines(name, ending, tmp_path):
    table = pa.Table.from_pylist([json.loads(line) for line in (SAMPLE / name).read_text("utf-8").splitlines()])
    path = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        parquet.write_table(table, path)
    else:
        open_writer = ipc.new_stream if ending.startswith("stream") else ipc.new_file
        with open_writer(path, table.schema) as writer:
            writer.write_table(table, 100)
    for source, folder in ((SAMPLE / name, "json"), (path, "columns")):
        assert convert(SCRIPTS[name], source, tmp_path / folder) == 0
    assert written(tmp_path / "columns") == written(tmp_path / "json")


# ---- names of classes ----


def test_numbers_become_the_names_that_the_file_lists_and_this_is_told(tmp_path, capsys):
    path = labelled(tmp_path, [0, 1] * 20)
    assert convert(transfer_classification_data, path, tmp_path / "out") == 0
    assert "label 的数字按文件里写的名字读（0=差评、1=好评）" in capsys.readouterr().err
    rows = [json.loads(line) for content in written(tmp_path / "out") for line in content.splitlines()]
    assert {row["label"] for row in rows} == {"差评", "好评"}
    assert all((row["label"] == "好评") == (int(row["text"].split("第")[1].split("条")[0]) % 2 == 1) for row in rows)


def test_a_hidden_label_is_a_missing_one(tmp_path):
    rows = list(read_file(labelled(tmp_path, [0, -1]), "label"))
    assert [row.get("output") for row in rows] == ["差评", None]


@pytest.mark.parametrize("old", [False, True])
def test_numbers_of_tags_become_their_names(old, tmp_path):
    features = Features({"tokens": Sequence(Value("string")), "ner_tags": Sequence(ClassLabel(names=TAGS))})
    rows = {"tokens": [list("张伟到上海了")] * 2, "ner_tags": [[1, 2, 0, 3, 4, 0], [0] * 6]}
    path = tmp_path / "rows.parquet"
    Dataset.from_dict(rows, features).to_parquet(path)
    if old:  # how `datasets` wrote a list before 2021
        table = parquet.read_table(path)
        info = json.loads(table.schema.metadata[b"huggingface"])
        info["info"]["features"]["ner_tags"] = [{"names": TAGS, "_type": "ClassLabel"}]
        parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), path)
    first, second = read_file(path, "entities")
    assert [(entity["entity_text"], entity["entity_label"]) for entity in first["entities"]] == [
        ("张伟", "人名"),
        ("上海", "地点"),
    ]
    assert second["entities"] == []


# ---- several files ----


def test_each_part_of_a_data_set_stands_for_the_whole(tmp_path):
    parts = [labelled(tmp_path, [0, 1] * 3, FIRST.replace("00000", f"0000{part}")) for part in range(2)]
    whole = [row["text"] for row in read_file(parts[0], "label")]
    assert [row["text"] for row in read_file(parts[1], "label")] == whole
    assert (len(whole), whole[0][:11], whole[-1][:11]) == (12, "train-00000", "train-00001")
    assert "一共 2 个文件" in recognise(parts[1], "label").describe()
    before = input_hash(parts[0])
    labelled(tmp_path, [1, 0] * 3, parts[1].name)
    assert input_hash(parts[0]) != before


def test_a_missing_part_is_named(tmp_path, capsys):
    path = labelled(tmp_path, [0, 1] * 3, FIRST)
    assert convert(transfer_classification_data, path, tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert "缺 train-00001-of-00002.parquet" in told
    assert told.count("\n") == 1


# ---- what else can be in such a file ----


def test_values_are_those_of_json_and_the_index_of_pandas_is_no_column(tmp_path):
    row = {
        "text": "天晴", "date": datetime.date(2026, 1, 2), "price": Decimal("1.50"), "nan": float("nan"),
        "bytes": b"\xff", "__index_level_0__": 7, "list": [{"a": None}],
    }  # fmt: skip
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    ((number, line, read),) = read_columnar(tmp_path / "rows.parquet")
    assert (number, json.loads(line)) == (1, read)
    assert read == {
        "text": "天晴", "date": "2026-01-02", "price": "1.50", "nan": None, "bytes": "b'\\xff'", "list": [{"a": None}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("rows.parquet", lambda content: content[:-20], "读不出来"),
        ("rows.parquet", lambda content: b"", "读不出来"),
        ("rows.arrow", lambda content: content, "读不出来"),
        ("rows.bin", lambda content: content, "以 .parquet 结尾"),
        ("rows.parquet", None, "没有这个文件"),
    ],
)
def test_what_cannot_be_read_is_told_in_a_line(name, change, said, tmp_path, capsys):
    content = labelled(tmp_path, [0, 1] * 3, "whole.parquet").read_bytes()
    if change is not None:
        (tmp_path / name).write_bytes(change(content))
    assert convert(transfer_classification_data, tmp_path / name, tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_a_folder_that_is_called_like_a_file_is_told(tmp_path, capsys):
    """As Spark writes a table."""
    (tmp_path / "rows.parquet").mkdir()
    labelled(tmp_path / "rows.parquet", [0, 1], "part-0.parquet")
    assert convert(transfer_ner_data, tmp_path / "rows.parquet", tmp_path / "out") == 2
    assert "是一个目录" in capsys.readouterr().err


def test_a_folder_that_datasets_saved_is_told_which_file_to_give(tmp_path, capsys):
    Dataset.from_dict({"text": [f"第{n}天" for n in range(20)], "label": ["好", "坏"] * 10}).save_to_disk(
        tmp_path / "saved"
    )
    assert convert(transfer_classification_data, tmp_path / "saved", tmp_path / "out") == 2
    advised = capsys.readouterr().err.strip().rpartition("如 ")[2]
    assert convert(transfer_classification_data, Path(advised), tmp_path / "out") == 0
