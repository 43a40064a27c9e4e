"""JSON documents: which files are one, and which rows are in it, at which lines."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.data.documents import is_document, read_document
from sft.errors import InputError, RowError

ROWS = [{"text": "甲", "label": "体育"}, {"text": "乙", "label": "军事"}]
KEYS = ["label", "评分", "a b", 'q"\\', "7"]
VALUE = st.none() | st.booleans() | st.integers(-9, 9) | st.text() | st.lists(st.text(), max_size=2)
TABLE = st.lists(st.sampled_from(KEYS), unique=True).flatmap(
    lambda keys: st.lists(
        st.fixed_dictionaries({"text": st.text()} | dict.fromkeys(keys, VALUE)), min_size=2, max_size=4
    )
)


def dumps(value: object, **options: object) -> str:
    return json.dumps(value, ensure_ascii=False, **options)


def by_column(rows: list[dict]) -> dict:
    return {key: {str(at): row[key] for at, row in enumerate(rows)} for key in rows[0]}


FORMS: dict[str, Callable[[list[dict]], str]] = {
    "array": dumps,
    "array, indented": lambda rows: dumps(rows, indent=2),
    "array, indented with tabs and CRLF": lambda rows: dumps(rows, indent="\t").replace("\n", "\r\n") + "\r\n",
    "array, blank before colons": lambda rows: dumps(rows, indent=1, separators=(",", " : ")),
    "array of JSON lines": lambda rows: "[\n" + ",\n".join(map(dumps, rows)) + "\n]\n",
    "array, comma after the last": lambda rows: "[" + "".join(f"{dumps(row)},\n" for row in rows) + "]",
    "JSON lines with commas": lambda rows: "".join(f"{dumps(row)},\n" for row in rows),
    "objects, indented": lambda rows: "\n".join(dumps(row, indent=4) for row in rows),
    "objects, indented, with commas": lambda rows: ",\n".join(dumps(row, indent=4) for row in rows),
    "data": lambda rows: dumps({"version": "1.0", "data": rows}, indent=2),
    "data on one line": lambda rows: dumps({"data": rows, "labels": ["体育", "军事"]}),
    "rows, in an only member": lambda rows: dumps({"result": {"total": len(rows), "rows": rows}}),
    "by index": lambda rows: dumps(dict(enumerate(rows))),
    "by index, indented": lambda rows: dumps(dict(enumerate(rows)), indent=1),
    "by name": lambda rows: dumps({f"id-{at}": row for at, row in enumerate(rows)}, indent=1),
    "by column": lambda rows: dumps(by_column(rows)),
    "by column, indented": lambda rows: dumps(by_column(rows), indent=1),
    "columns as lists": lambda rows: dumps({key: [row[key] for row in rows] for key in rows[0]}),
    "split": lambda rows: dumps(
        {
            "columns": list(rows[0]),
            "index": list(range(len(rows))),
            "data": [[row[key] for key in rows[0]] for row in rows],
        }
    ),
    "table": lambda rows: dumps({"schema": {"fields": [{"name": "text"}], "pandas_version": "1.4.0"}, "data": rows}),
}
NO_DOCUMENT = {
    "JSON lines": "".join(f"{dumps(row)}\n" for row in ROWS),
    "one JSON line": dumps(ROWS[0]),
    "one JSON line, broken": dumps(ROWS[0])[:-1],
    "two objects on a line": dumps(ROWS[0]) * 2,
    "one JSON line with entities": dumps({"text": "到青湖", "entities": [{"start": 1, "end": 3, "label": "LOC"}]}),
    "one JSON line with entities, other text": dumps({"句": "到青湖", "entities": [{"start": 1, "end": 3}]}),
    "one task of Label Studio": dumps({"id": 1, "data": {"text": "到青湖"}, "annotations": [{"result": []}]}),
    "one line with messages": dumps({"messages": [{"role": "user", "content": "甲"}]}),
    "one line with tokens": dumps({"tokens": ["甲", "乙"], "ner_tags": [0, 1]}),
    "JSON lines, the first broken": '{"text": "甲", "label"\n{"text": "乙"}\n',
    "JSON lines, the first not ended": '{"text": "没有写完\n{"text": "乙"}\n',
    "JSON lines, the first cut at a comma": '{"text": "甲",\n{"text": "乙"}\n',
    "braces": "{\n{\n{\n",
    "a text in brackets": "[注] 甲\n[1] 乙\n",
    "a bracket": "[\n甲\n]\n",
    "a list as text": "['甲', '乙']\n",
    "inline marks": "{{a:b}}\n{{c:d}}\n",
    "a brace in a text": "{甲}\n",
    "nothing": "",
}
ENCODING = st.sampled_from(["utf-8", "utf-8-sig", "gb18030", "utf-16"])


def sample(content: str) -> list[str]:
    return [line for line in content.splitlines(keepends=True) if line.strip()]


def read(content: str, encoding: str = "utf-8") -> list:
    return list(read_document(io.BytesIO(content.encode(encoding)), encoding, "a.json"))


def rows(content: str, encoding: str = "utf-8") -> list:
    return [row for _, _, row in read(content, encoding)]


@pytest.mark.parametrize("form", FORMS)
def test_a_document_is_recognised_by_its_beginning_also_without_a_name(form):
    content = FORMS[form](ROWS)
    for ending in ("json", "jsonl", "txt", ""):
        assert is_document(sample(content), ending)
    assert is_document(sample("\ufeff" + content), "json")
    assert rows(content) == ROWS


@pytest.mark.parametrize("form", NO_DOCUMENT)
@pytest.mark.parametrize("ending", ["txt", "json", ""])
def test_lines_and_texts_are_no_document(form, ending):
    if (form, ending) != ("a bracket", "json"):  # a file with that name would be a broken document
        assert not is_document(sample(NO_DOCUMENT[form]), ending)


@given(TABLE, st.sampled_from(["\n", "\r\n", "\n\n"]), st.booleans())
def test_json_lines_are_never_taken_for_a_document(table, line_end, alone):
    content = "".join(f"{dumps(row)}{line_end}" for row in (table[:1] if alone else table))
    assert not is_document([line for line in content.split("\n") if line.strip()], "jsonl")


@settings(max_examples=15)
@given(TABLE, ENCODING)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_table_reads_to_the_same_rows(form, table, encoding):
    content = FORMS[form](table)
    assert is_document(content.split("\n"), "json")
    assert rows(content, encoding) == table


@settings(max_examples=25)
@given(TABLE)
@pytest.mark.parametrize("form", ["array, indented", "array of JSON lines", "objects, indented", "data"])
def test_a_row_has_the_number_of_the_line_where_it_begins(form, table):
    content = FORMS[form](table)
    lines = content.split("\n")
    numbers = [number for number, _, _ in read(content)]
    ends = [*numbers[1:], len(lines) + 1]
    for number, end, row in zip(numbers, ends, table, strict=True):
        piece = "\n".join(lines[number - 1 : end - 1])
        decoded, _ = json.JSONDecoder().raw_decode(piece, piece.index("{"))
        assert decoded == row


def test_rows_of_columns_have_the_lines_of_their_first_cells():
    assert [number for number, _, _ in read(FORMS["by column, indented"](ROWS))] == [3, 4]


# ---- spaCy ----


def test_training_data_of_spacy_becomes_texts_with_entities():
    pairs = [["青湖很旧", {"entities": [[0, 2, "LOC"]]}], ["今天没课", {"entities": [], "links": {}}]]
    expected = [{"text": "青湖很旧", "entities": [[0, 2, "LOC"]]}, {"text": "今天没课", "entities": []}]
    for content in (dumps(pairs), dumps(pairs, indent=1), dumps({"data": pairs})):
        assert is_document(sample(content), "txt") and rows(content) == expected


def test_categories_of_spacy_become_a_label():
    cats = [{"体育": 1.0, "军事": 0.0}, {"体育": False, "军事": True}, {"体育": 0}, {"体育": 1, "军事": 1}]
    first, second, none, several = rows(dumps([["甲", {"cats": each}] for each in cats]))
    assert (first["label"], second["label"], none["label"]) == ("体育", "军事", None)
    assert "multi-label（多标签）" in several.reason


@pytest.mark.parametrize(
    "pair", [["甲", "体育"], ["甲"], ["甲", {}], [{"text": "甲"}, "体育"], [1, {"entities": []}], []]
)
def test_other_pairs_are_rejected_row_by_row(pair):
    good, bad = rows(dumps([["甲", {"entities": []}], pair]))
    assert good == {"text": "甲", "entities": []} and isinstance(bad, RowError)


# ---- What is wrong ----


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ('{"text": "a", "label": "体育", "label": "军事"}', "label"),
        ('{"text": "a",}', ""),
        ('{"text": "a" "label": "b"}', ""),
        ('{"text": "\\ud800"}', "text"),
        ("3", ""),
        ('"甲"', ""),
        ("null", ""),
    ],
)
def test_a_row_that_cannot_be_read_is_one_bad_row(row, field):
    for content in (
        f'[\n{{"text": "甲"}},\n{row},\n{{"text": "乙"}}]',
        f'{{"data": [{{"text": "甲"}}, {row}, {{"text": "乙"}}]}}',
    ):
        good, bad, after = rows(content)
        assert (good, after) == ({"text": "甲"}, {"text": "乙"})
        assert isinstance(bad, RowError) and bad.field == field


def test_nan_in_a_column_that_nobody_reads_is_missing():
    assert rows('[{"text": "甲", "score": NaN}]') == [{"text": "甲", "score": None}]


def test_bytes_that_do_not_decode_reject_their_row():
    content = '[{"text": "甲"},\n{"text": "'.encode("gb18030") + b'\xff"}]'
    good, bad = (row for _, _, row in read_document(io.BytesIO(content), "gb18030", "a.json"))
    assert good == {"text": "甲"} and isinstance(bad, RowError)


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ('[\n{"text": "甲"},\n  {"text": "乙', "a.json:3:12：从这里开始的引号没有结尾"),
        ('[\n{"text": "甲"},\n  {"text": "乙"', "a.json:3:3：从这里开始的 { 没有结尾"),
        ('[\n{"text": "甲"},\n', "a.json:1:1：从这里开始的 [ 没有结尾"),
        ('[{"甲": "乙"} {"text": "乙"}]', "a.json:1:13：这里应是逗号或 ]"),
        ('[{"text": ["甲"}, {"text": "乙"}]', "a.json:1:15：括号 } 对不上"),
        ('[{"text": "甲"}]\n[{"text": "乙"}]', "a.json:2:1：整个数组之后还有内容"),
        ('[{"text": "甲"}, , {"text": "乙"}]', "a.json:1:17：这里应是一个值"),
        ('{"data": [{"text": "甲"}], 版本: 1}', "a.json:1:27：这里应是一个键"),
        ('{"text": ["甲", "乙"], "label": ["体育"]}', "a.json：各列的行数不一样"),
        ('{"text": {"0": "甲", "1": "乙"}, "label": {"1": "体育", "0": "军事"}}', "a.json：各列的索引不一样"),
        ('{"train": [{"text": "甲"}], "test": [{"text": "乙"}]}', "a.json：有几个列表都像数据（train、test）"),
        ("[]", "a.json：里面没有一行数据"),
        ('{"data": []}', "a.json：里面没有一行数据"),
        ('{"columns": ["text"], "data": [["甲", "乙"]]}', "a.json:1:32：这一行有 2 列，columns 有 1 列"),
    ],
)  # fmt: skip
def test_a_broken_document_is_refused_in_one_line_with_its_place(content, where):
    with pytest.raises(InputError) as error:
        read(content)
    assert str(error.value).startswith(where) and "\n" not in str(error.value)


@given(TABLE, st.data())
def test_a_document_that_is_cut_off_is_refused_and_never_shortened(table, data):
    content = dumps(table, indent=1)
    cut = data.draw(st.integers(1, len(content) - 1))
    with pytest.raises(InputError):
        read(content[:cut])


def test_the_same_key_twice_around_the_rows_loses_no_row():
    (row,) = rows('{"1": {"text": "甲"}, "1": {"text": "乙"}}')
    assert isinstance(row, RowError) and row.field == "1"


def test_utf_16_that_ends_inside_a_character_is_refused():
    with pytest.raises(InputError, match="不是完整的 utf-16"):
        list(read_document(io.BytesIO(dumps(ROWS).encode("utf-16")[:-1]), "utf-16", "a.json"))


def test_brackets_nested_thousands_deep_are_one_bad_row():
    good, bad = rows('[{"text": "甲"}, {"text": ' + "[" * 5000 + "]" * 5000 + "}]")
    assert good == {"text": "甲"} and "嵌套" in bad.reason
