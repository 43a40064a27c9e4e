"""A system prompt and label descriptions given at conversion reach the records, the settings and the prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import transfer_classification_data
import transfer_ner_data
from sft.data.instructions import read_descriptions
from sft.tasks.settings import TaskSettings

ORDERS = [
    {"text": f"{place}空调漏水，请尽快来。", "entities": [{"start": 2, "end": 4, "label": "PROD"}]}
    for place in ("客厅", "卧室")
]
REVIEWS = [{"text": f"第{number}条", "label": label} for number, label in enumerate(("好评", "差评") * 4)]
FUDAN = [
    {"text": f"第{number}条", "category": "['体育', '军事']", "output": label}
    for number, label in enumerate(("体育", "军事") * 4)
]


def converted(tmp_path: Path, script, rows: list[dict], *flags: str) -> tuple[str, list[dict]]:
    """The system prompt in the settings, and all records."""
    source, output = tmp_path / "rows.jsonl", tmp_path / "out_train.jsonl"
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    words = ["--input_file", str(source), "--output_file", str(output), "--test_ratio", "0.5", *flags]
    assert script.main(words) == 0
    files = [output, tmp_path / "out_test.jsonl"]
    prompts = {TaskSettings.read(path.with_suffix(".task.json")).task.system_prompt for path in files}
    (prompt,) = prompts
    return prompt, [json.loads(line) for path in files for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    ("script", "rows"),
    [
        (transfer_ner_data, ORDERS),
        (transfer_classification_data, REVIEWS),
        (transfer_classification_data, FUDAN),
    ],
    ids=["ner", "labels of the data", "options of each row"],
)
@pytest.mark.parametrize("as_file", [False, True])
def test_the_given_prompt_is_in_every_record_and_in_the_settings(tmp_path, script, rows, as_file):
    value = "找出要修的东西。\n一行一个。"
    if as_file:
        (tmp_path / "prompt.txt").write_text(f"\ufeff{value}\n", encoding="utf-8")
        value = f"@{tmp_path / 'prompt.txt'}"
    prompt, records = converted(tmp_path, script, rows, "--system_prompt", value)
    assert prompt == "找出要修的东西。\n一行一个。"
    assert {record["messages"][0]["content"] for record in records} == {prompt}


@pytest.mark.parametrize(
    ("script", "rows", "flags", "end"),
    [
        (transfer_ner_data, ORDERS, ("--label_descriptions", "PROD=家电，不含配件"), "PROD：家电，不含配件。"),
        (transfer_ner_data, ORDERS, ("--labels", "PROD=产品", "--label_descriptions", "PROD=家电"), "产品：家电。"),
        (transfer_ner_data, ORDERS, ("--labels", "PROD=产品", "--label_descriptions", "产品=家电"), "产品：家电。"),
        (
            transfer_classification_data,
            REVIEWS,
            ("--label_descriptions", "好评=满意，会再来,差评=不满意"),
            "好评：满意，会再来；差评：不满意。",
        ),
        (transfer_classification_data, FUDAN, ("--label_descriptions", "体育=比赛"), "体育：比赛。"),
    ],
)
def test_descriptions_follow_the_standard_prompt(tmp_path, script, rows, flags, end):
    without = [flag for flag in flags if not flag.startswith("--label_d")][:2] if "--labels" in flags else []
    standard, _ = converted(tmp_path, script, rows, *without)
    prompt, records = converted(tmp_path, script, rows, *flags)
    assert prompt == f"{standard}各标签的含义：{end}"
    assert {record["messages"][0]["content"] for record in records} == {prompt}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("PROD", "不是“标签=说明”"),
        ("PROD=", "不是“标签=说明”"),
        ("=家电", "不是“标签=说明”"),
        ("PROD=家电=电器", "不是“标签=说明”"),
        ("PROD=家电；PROD=电器", "给了两次"),
        ("FAULT=故障", "没有标签 FAULT；标签有 PROD"),
        ("PROD=家电,FALT=故障", "没有标签 FALT"),
        ("", "是空的"),
        ("@nowhere.txt", "nowhere.txt 无法读取"),
    ],
)
def test_a_wrong_description_is_refused_in_one_line(tmp_path, capsys, value, said):
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ORDERS), encoding="utf-8")
    words = ["--input_file", str(source), "--output_file", str(tmp_path / "t.jsonl"), "--test_ratio", "0.5"]
    assert transfer_ner_data.main([*words, "--label_descriptions", value]) == 2
    line = capsys.readouterr().err
    assert line.startswith("--label_descriptions：")
    assert said in line
    assert line.count("\n") == 1
    assert not (tmp_path / "t.jsonl").exists()


_WORD = st.text("甲乙丙丁一二三 a", min_size=1).map(str.strip).filter(bool)


@given(
    st.dictionaries(_WORD, st.lists(_WORD, min_size=1, max_size=3).map("，".join), min_size=1),
    st.sampled_from("；;，,\n"),
)
def test_descriptions_are_read_as_they_were_written(descriptions, between):
    value = between.join(f"{label}={description}" for label, description in descriptions.items())
    assert {"".join(k.split()): "".join(v.split()) for k, v in read_descriptions(value).items()} == {
        "".join(k.split()): "".join(v.split()) for k, v in descriptions.items()
    }
