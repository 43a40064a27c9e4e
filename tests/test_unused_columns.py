"""What the summary says of columns that were not taken and could be the text or the label.

Run: pytest tests/test_unused_columns.py
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import transfer_classification_data
from sft.data.arguments import ReadOptions
from sft.data.columns import ALL_LABEL_COLUMNS, ALL_TEXT_COLUMNS
from sft.data.formats import recognise
from sft.data.sample_rows import remarks_on
from sft.errors import InputError

BODIES = [f"第{number}位同学请注意，今天下午在操场集合" for number in range(12)]
TITLES = [f"通知{number}" for number in range(12)]
KINDS = ["体育", "交通", "财经"] * 4
LEVELS = ["好", "差"] * 6


def described(folder: Path, columns: dict[str, list], answers: str = "label", **options: str) -> str:
    """How a CSV and JSON lines with these columns are described, which must be the same."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    with (folder / "raw.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    (folder / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    table, json_lines = (
        recognise(folder / name, answers, ReadOptions(**options)).describe() for name in ("raw.csv", "raw.jsonl")
    )
    assert table.removeprefix("csv") == json_lines.removeprefix("jsonl")
    return table


@pytest.mark.parametrize(("title", "body", "kind"), [("标题", "详情", "类别"), ("title", "desc", "label")])
def test_a_longer_text_is_named_with_the_flag_that_takes_it(title, body, kind, tmp_path, capsys):
    columns = {"编号": list(range(12)), title: TITLES, body: BODIES, kind: KINDS}
    assert f"文本取自 {title}，没有用 {body}（像是更长的正文，要用就加 --text_column {body}）" in described(
        tmp_path, columns
    )
    assert "没有用" not in described(tmp_path, columns, text_column=body)
    command = [f"--input_file={tmp_path / 'raw.csv'}", f"--output_file={tmp_path / 'o.jsonl'}"]
    assert transfer_classification_data.main([*command, f"--text_column={body}", "--test_ratio=0.3"]) == 0
    assert json.loads((tmp_path / "o.jsonl").read_bytes().split(b"\n")[0])["text"] in BODIES
    capsys.readouterr()


def test_a_known_and_an_unknown_text_share_a_line(tmp_path):
    columns = {"text": TITLES, "comment": TITLES, "工单全文": BODIES, "label": KINDS}
    assert "文本取自 text，没有用 comment、工单全文（像是更长的正文，要用就加 --text_column 工单全文）" in described(
        tmp_path, columns
    )


def test_a_longer_text_beside_the_sentences_of_entities(tmp_path):
    rows = [{"标题": t, "详情": b, "entities": []} for t, b in zip(TITLES, BODIES, strict=True)]
    assert "要用就加 --text_column 详情" in remarks_on(rows, "entities")[0]


NO_TEXTS = {
    "numbers": [f"{number:030}" for number in range(12)],
    "hashes": [f"{number:x}abcdef0123456789abcdef0123456789" for number in range(12)],
    "dates": [f"2024年1月{number + 1}日 10:00:00 到 2024年1月{number + 2}日" for number in range(12)],
    "addresses": [f"https://例子.中国/新闻/体育/第{number}篇文章" for number in range(12)],
    "mails": [f"someone.with.a.long.name{number}@example.com" for number in range(12)],
    "one remark for all": ["这是从客服系统里导出来的数据，请勿外传"] * 12,
    "JSON": [json.dumps({"来源": "客服系统", "编号": number}, ensure_ascii=False) for number in range(12)],
    "mostly empty": ["这一条的备注很长很长很长很长很长很长"] + [""] * 11,
    "shorter": ["短短的话"] * 6 + ["也是短的"] * 6,
}


@pytest.mark.parametrize("name", NO_TEXTS)
def test_what_is_no_text_is_not_named(name, tmp_path):
    assert "没有用" not in described(tmp_path, {"标题": TITLES, "其他": NO_TEXTS[name], "标签": KINDS})


def test_another_label_is_named_with_the_flag_that_takes_it(tmp_path):
    columns = {"评论内容": BODIES, "类型": KINDS, "评价等级": LEVELS}
    told = "标签取自 类型，没有用 评价等级（要用就加 --label_column 评价等级）"
    assert told in described(tmp_path, columns)
    assert "没有用" not in described(tmp_path, columns, label_column="评价等级")
    assert "没有用" not in described(tmp_path, columns, label_column="类型")
    stars = {"评论内容": BODIES, "label": KINDS, "rating_level": [1, 2, 3, 4] * 3}
    assert "要用就加 --label_column rating_level" in described(tmp_path, stars)


@pytest.mark.parametrize("stances", [["FAVOR"] * 12, ["FAVOR", "AGAINST"] * 6])
def test_of_a_stance_and_its_target_the_stance_is_the_label(stances, tmp_path):
    """A file that is sorted by its stances shows only one of them at its beginning."""
    columns = {"ID": list(range(12)), "TARGET": KINDS, "TEXT": BODIES, "STANCE": stances}
    assert "标签取自 STANCE，没有用 TARGET" in described(tmp_path, columns)


def test_a_label_of_unknown_name_is_advised(tmp_path):
    """One column that could be it is given as a flag that works; of several the names are told."""
    columns = {"编号": list(range(12)), "content": BODIES, "value": LEVELS}
    with pytest.raises(InputError, match=r"请用 --label_column 指明，如 --label_column value$"):
        described(tmp_path, columns)
    assert "jsonl" not in described(tmp_path, columns, label_column="value")
    with pytest.raises(InputError, match=r"像标签的有 value、所属$"):
        described(tmp_path, columns | {"所属": KINDS})
    with pytest.raises(InputError, match=r"请用 --label_column 指明$"):
        described(tmp_path, {"编号": list(range(12)), "content": BODIES})


NO_LABELS = {
    "numbers": [1, 2, 3] * 4,
    "dates": ["2024-01-01", "2024/1/2"] * 6,
    "shares": ["10%", "2.5"] * 6,
    "addresses": ["http://a.cn", "www.b.cn"] * 6,
    "all the same": ["客服"] * 12,
    "all different": [f"甲{number}" for number in range(12)],
    "sentences": ["这一条是从客服系统里导出来的数据，请勿外传", "那一条是从门店系统里导出来的数据，请勿外传"] * 6,
    "the label again": KINDS,
}


@pytest.mark.parametrize("name", NO_LABELS)
def test_what_is_no_label_is_not_named(name, tmp_path):
    assert "没有用" not in described(tmp_path, {"评论内容": BODIES, "类型": KINDS, "其他": NO_LABELS[name]})


def test_beside_a_column_called_label_only_a_column_called_so_is_one(tmp_path):
    columns = {"text": BODIES, "label": KINDS, "省份": LEVELS}
    assert "没有用" not in described(tmp_path, columns)
    assert "没有用 省份类别（" in described(tmp_path, {"text": BODIES, "label": KINDS, "省份类别": LEVELS})


CELLS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.lists(st.text(), max_size=2)
ROWS = st.lists(
    st.dictionaries(st.sampled_from([*ALL_TEXT_COLUMNS[:9], *ALL_LABEL_COLUMNS[:9], "详情", "等级", " x\n"]), CELLS),
    max_size=9,
)


@given(ROWS, st.sampled_from(["label", "entities"]))
def test_remarks_are_lines_whatever_the_rows_hold(rows, answers):
    for remark in remarks_on(rows, answers):
        assert remark and "\n" not in remark
