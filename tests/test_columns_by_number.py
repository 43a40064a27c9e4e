"""Tables without a header: which column is taken, and advice that works when it is typed.

Run: pytest tests/test_columns_by_number.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import transfer_classification_data
from sft.data.inputs import read_file
from sft.errors import InputError

THINGS = ("发票", "运费", "余额", "订单", "密码", "地址", "积分", "会员", "优惠券", "快递")
QUESTIONS = [f"{ask}{thing}" for thing in THINGS for ask in ("查一下", "怎么改", "看看我的")]
SCORES = ("3", "5", "4")


def converted(folder: Path, name: str, lines: list[str], *flags: str) -> int:
    path = folder / name
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return transfer_classification_data.main(
        [f"--input_file={path}", f"--output_file={folder / 'train.jsonl'}", "--test_ratio=0.2", *flags]
    )


def records(folder: Path) -> set[tuple[str, str]]:
    rows = [
        json.loads(line) for name in ("train", "test") for line in (folder / f"{name}.jsonl").open(encoding="utf-8")
    ]
    return {(row["text"], row["label"]) for row in rows}


@pytest.mark.parametrize("label", ["查询", "customer_service.query"])
@pytest.mark.parametrize("label_first", [True, False])
def test_of_two_columns_the_text_may_be_as_short_as_the_label(tmp_path, capsys, label, label_first):
    rows = [(text, label if at % 3 else "其他问题") for at, text in enumerate(QUESTIONS)]
    lines = ["\t".join(reversed(row) if label_first else row) for row in rows]
    assert converted(tmp_path, "intents.txt", lines) == 0, capsys.readouterr().err
    assert records(tmp_path) == set(rows)


@pytest.mark.parametrize(
    "columns", [("{text}", "{label}"), ("{label}", "{text}"), ("id{number}", "{text}", "{label}")]
)
def test_labels_that_are_longer_than_the_texts_are_not_predicted(tmp_path, columns):
    """Prediction needs no label, so a wrong column would be read without a word."""
    labels = ("customer_service.query", "customer_service.change")
    path = tmp_path / "intents.tsv"
    lines = [
        "\t".join(columns).format(number=number, text=text, label=labels[number % 2])
        for number, text in enumerate(QUESTIONS)
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    rows = list(read_file(path, "label"))
    assert [(row["text"], row["output"]) for row in rows] == [
        (text, labels[number % 2]) for number, text in enumerate(QUESTIONS)
    ]


def test_names_of_files_are_no_texts(tmp_path, capsys):
    lines = [
        f"img{number:03}.png\tpositive" if number % 2 else f"img{number:03}.png\tnegative" for number in range(40)
    ]
    assert converted(tmp_path, "images.txt", lines) == 2
    assert "认不出哪一列是文本" in capsys.readouterr().err


@pytest.mark.parametrize(
    "columns",
    [
        ("1", "####", "{text}，请尽快处理一下"),
        ("{number}", "{text}，请尽快处理一下", "{score}", "2024"),
        ("{text}，请尽快处理一下", "{score}", "{score}0"),
    ],
)
def test_the_numbers_that_are_advised_can_be_typed(tmp_path, capsys, columns):
    """They name the column of the text, and one with few different values for the label."""
    lines = [
        "\t".join(columns).format(number=number, text=text, score=SCORES[number % 3])
        for number, text in enumerate(QUESTIONS)
    ]
    lines[-1] = lines[-1].replace("1\t#", "0\t#")
    assert converted(tmp_path, "rows.tsv", lines) == 2
    advice = re.search(r"如 (--text_column \d) (--label_column \d)，", capsys.readouterr().err)
    flags = [flag.replace(" ", "=") for flag in advice.groups()]
    assert converted(tmp_path, "rows.tsv", lines, *flags) == 0, capsys.readouterr().err
    assert {text for text, _ in records(tmp_path)} == {f"{text}，请尽快处理一下" for text in QUESTIONS}


def test_of_one_column_no_second_one_is_advised(tmp_path, capsys):
    assert converted(tmp_path, "neg.csv", [f"{text}，太差了".replace("，", "。") for text in QUESTIONS]) == 2
    said = capsys.readouterr().err
    assert "只有一列" in said
    assert "--label_column" not in said


def test_texts_with_a_label_behind_a_tab_are_predicted_as_they_are_converted(tmp_path):
    """``cnews``: nobody calls it a table. What could be texts with a tab in them is still asked about."""
    path = tmp_path / "test.txt"
    lines = [f"{text}\t{number % 3}\n" for number, text in enumerate(QUESTIONS)]
    path.write_text("".join(lines), encoding="utf-8")
    assert [(row["text"], row["output"]) for row in read_file(path, "label")] == [
        (text, str(number % 3)) for number, text in enumerate(QUESTIONS)
    ]
    for few in (lines[:9], [*lines, "没有制表符\n"], [f"{text}\t{text[::-1]}\n" for text in QUESTIONS]):
        path.write_text("".join(few), encoding="utf-8")
        with pytest.raises(InputError, match=r"--format tsv.*--format lines"):
            list(read_file(path, "label"))
    with pytest.raises(InputError, match="--format tsv"):
        list(read_file(path, "entities"))
