"""brat's pairs of text and annotations become rows with entities, each line of a text a row."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.data.brat import describe_brat, is_brat, read_brat
from sft.errors import InputError, RowError
from sft.tasks.ner import Ner
from tests.test_formats import annotated, spans_of

TEXT = "赵一到青湖。\n\n今天没课。\n他在青湖大学\n"
NOTES = (
    "R1\tIn Arg1:T1 Arg2:T2\nA1\tSure T1\n#1\tAnnotatorNotes T1\t看不清\n"
    "*\tEquiv T1 T2\nE1\tGo:T1\nN1\tRef T1 Wiki:1\n"
)
ENTITIES = "T1\tPER 0 2\t赵一\nT2\tLOC 3 5\t青湖\nT3\tORG 16 20\t青湖大学\n"
ROWS = [
    (1, "赵一到青湖。", [(0, 2, "PER"), (3, 5, "LOC")]),
    (3, "今天没课。", []),
    (4, "他在青湖大学", [(2, 6, "ORG")]),
]


def pair(
    folder: Path, text: str = TEXT, annotations: str = ENTITIES, name: str = "a", encoding: str = "utf-8"
) -> Path:
    (folder / f"{name}.txt").write_bytes(text.encode(encoding))
    (folder / f"{name}.ann").write_bytes(annotations.encode(encoding))
    return folder / f"{name}.ann"


def read(path: Path, encoding: str = "auto") -> list:
    rows = [(number, row) for number, _, row in read_brat(path, encoding)]
    return [(number, row if isinstance(row, RowError) else (row["text"], spans_of(row))) for number, row in rows]


def as_rows(rows: list) -> list:
    return [(number, (text, spans)) for number, text, spans in rows]


def test_annotations_a_text_beside_them_and_a_folder_are_the_same_rows(tmp_path):
    path = pair(tmp_path, annotations=ENTITIES + NOTES)
    for given_path in (path, path.with_suffix(".txt"), tmp_path):
        assert is_brat(given_path) and read(given_path) == as_rows(ROWS)


def test_other_texts_and_folders_are_not_brat(tmp_path):
    (tmp_path / "a.txt").write_text("甲", encoding="utf-8")
    assert not is_brat(tmp_path / "a.txt") and not is_brat(tmp_path) and not is_brat(tmp_path / "none.txt")


def test_a_folder_is_read_with_its_folders_in_the_order_of_names(tmp_path):
    (tmp_path / "b").mkdir()
    pair(tmp_path / "b", "青湖", "T1\tLOC 0 2\t青湖\n")
    pair(tmp_path, "乙", "", name="z")
    pair(tmp_path, "甲\n", "\n", name="a")
    (tmp_path / "b" / "._a.ann").write_bytes(b"\0")
    assert [text for _, (text, _) in read(tmp_path)] == ["甲", "青湖", "乙"]


def test_what_is_not_read_is_counted(tmp_path):
    path = pair(tmp_path, annotations=ENTITIES + NOTES + "R2\tIn Arg1:T1 Arg2:T2\n")
    (tmp_path / "new.txt").write_text("新的", encoding="utf-8")
    unused = "没有用到 关系 2、属性 1、备注 1、等价关系 1、事件 1、外部编号 1"
    assert describe_brat(path) == unused
    assert describe_brat(tmp_path) == f"{unused}；1 个 .txt 没有 .ann，没有读"
    (tmp_path / "new.txt").unlink()
    pair(tmp_path)
    assert describe_brat(tmp_path) == ""


# ---- How characters are counted ----


@pytest.mark.parametrize("count", [1, 2])
def test_a_crlf_is_one_character_or_two_as_the_entities_show(tmp_path, count):
    annotations = ENTITIES if count == 1 else ENTITIES.replace("16 20", "19 23")
    path = pair(tmp_path, TEXT.replace("\n", "\r\n"), annotations.replace("\n", "\r\n"))
    assert read(path) == as_rows(ROWS)


def test_a_byte_order_mark_is_counted_or_not_as_the_entities_show(tmp_path):
    assert read(pair(tmp_path, "\ufeff青湖很旧", "T1\tLOC 0 2\t青湖")) == [(1, ("青湖很旧", [(0, 2, "LOC")]))]
    assert read(pair(tmp_path, "\ufeff青湖很旧", "T1\tLOC 1 3\t青湖")) == [(1, ("青湖很旧", [(0, 2, "LOC")]))]


def test_characters_beyond_the_basic_plane_count_once(tmp_path):
    assert read(pair(tmp_path, "😀𠮷野家", "T1\tORG 1 4\t𠮷野家")) == [(1, ("😀𠮷野家", [(1, 4, "ORG")]))]


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-8-sig"])
def test_other_encodings(tmp_path, encoding):
    assert read(pair(tmp_path, encoding=encoding)) == as_rows(ROWS)


@settings(max_examples=50)
@given(st.lists(annotated(), min_size=1, max_size=4), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_any_entities_written_as_brat_are_read_back(sentences, line_end, counts_carriage_return):
    text = line_end.join(text for text, _ in sentences)
    annotations, at = "", 0
    for sentence, spans in sentences:
        for start, end, label in spans:
            annotations += f"T{len(annotations)}\t{label} {at + start} {at + end}\t{sentence[start:end]}\n"
        at += len(sentence) + (len(line_end) if counts_carriage_return else 1)
    expected = [(at + 1, sentence) for at, sentence in enumerate(sentences)]
    with TemporaryDirectory() as folder:
        rows = read(pair(Path(folder), text, annotations), "utf-8")  # two rare letters leave the encoding in doubt
    if any(isinstance(row, RowError) for _, row in rows):  # the same characters stand in both places
        assert line_end == "\r\n" and all("看不出换行" in row.reason for _, row in rows)
    else:
        assert rows == expected


@pytest.mark.parametrize(
    ("text", "entity"),
    [
        ("甲\r\n湖湖", "T1\tLOC 3 4\t湖"),
        ("甲\r\n青湖", "T1\tLOC 3 5"),
        ("\ufeff湖湖湖", "T1\tLOC 1 2\t湖"),
    ],
)
def test_a_text_whose_way_of_counting_is_in_doubt_is_rejected(tmp_path, text, entity):
    for _, row in read(pair(tmp_path, text, entity)):
        assert isinstance(row, RowError) and "看不出换行" in row.reason


# ---- What cannot be used ----


@pytest.mark.parametrize(
    ("entity", "reason", "lines"),
    [
        ("T4\tLOC 0 2;3 5\t赵一 青湖", "a.ann:1 的 T4 不是连续的一段", [1]),
        ("T4\tLOC 5 9\t。  今", "a.ann:1 的 T4 跨行", [1, 2, 3]),
        ("T4\tLOC 10 12;14 16\t课。 他在", "a.ann:1 的 T4 不是连续的一段", [3, 4]),
    ],
)
def test_an_entity_in_pieces_or_over_a_line_end_rejects_its_lines_only(tmp_path, entity, reason, lines):
    rows = dict(read(pair(tmp_path, annotations=entity)))
    assert [number for number, row in rows.items() if isinstance(row, RowError)] == lines
    assert all(rows[number].reason.startswith(reason) and rows[number].field == "entities" for number in lines)


def test_pieces_that_touch_are_one(tmp_path):
    assert read(pair(tmp_path, "青湖大学", "T1\tORG 0 2;2 4\t青湖 大学")) == [(1, ("青湖大学", [(0, 4, "ORG")]))]


@pytest.mark.parametrize("bad", ["T9\tLOC 90 92\t青湖", "T9\tLOC 3 3\t", "T9 LOC", "T9\tLOC 三 五\t青湖", "青湖\tLOC"])
def test_an_entity_that_cannot_be_placed_rejects_every_line_of_its_text_alone(tmp_path, bad):
    pair(tmp_path, annotations=ENTITIES + bad)
    pair(tmp_path, "好的", "", name="b")
    *rejected, (_, good) = read(tmp_path)
    assert [number for number, _ in rejected] == [1, 3, 4] and good == ("好的", [])
    assert all(row.reason.startswith("a.txt：a.ann:4") for _, row in rejected)


def test_an_entity_with_another_text_is_left_to_the_task_to_reject(tmp_path):
    ((_, _, row),) = read_brat(pair(tmp_path, "青湖很旧", "T1\tLOC 1 3\t青湖"))
    with pytest.raises(RowError) as error:
        Ner.convert(row)
    assert error.value.field == "entity_text"


def test_bytes_that_do_not_decode_reject_their_line(tmp_path):
    path = pair(tmp_path, annotations="")
    path.with_suffix(".txt").write_bytes("好的一行\n".encode() + b"\xff\xfe\n")
    (_, good), (number, bad) = read(path)
    assert good == ("好的一行", []) and number == 2 and "解不开" in bad.reason


def test_annotations_without_a_text_are_refused(tmp_path):
    path = pair(tmp_path)
    path.with_suffix(".txt").unlink()
    for given_path in (path, tmp_path):
        with pytest.raises(InputError, match=r"a\.ann：旁边没有 a\.txt"):
            read(given_path)
    path.with_suffix(".txt").write_bytes(b"\n")
    with pytest.raises(InputError, match=r"a\.txt：文件是空的，而 a\.ann 里有标注"):
        read(path)
