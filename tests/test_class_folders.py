"""A folder for each class with a text in each file, or a file for each class with a text in each line.

Run: pytest tests/test_class_folders.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import openpyxl
import pytest

import transfer_classification_data
from sft.console import count_lines
from sft.data.arguments import ReadOptions
from sft.data.formats import recognise
from sft.data.inputs import input_hash, read_file
from sft.errors import InputError

TEXTS = {
    "好评": [f"第{number}间房很干净，住得舒服" for number in range(12)],
    "差评": [f"第{number}间房太吵了，再也不来" for number in range(8)],
}
ROWS = {(text, label) for label, texts in TEXTS.items() for text in texts}


def write_files(folder: Path, ending: str, encoding: str = "utf-8") -> None:
    """One file for each class."""
    folder.mkdir()
    for label, texts in TEXTS.items():
        path = folder / f"{label}.{ending}"
        if ending == "xlsx":
            book = openpyxl.Workbook()
            for row in [["编号", "评论"], *enumerate(texts)]:
                book.active.append(list(row))
            book.save(path)
        elif ending == "csv":
            path.write_text("编号,评论\n" + "".join(f'{at},"{text}"\n' for at, text in enumerate(texts)), encoding)
        elif ending == "jsonl":
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding)
        else:
            path.write_text("\n\n".join(texts), encoding)  # blank lines between the texts are none


def write_folders(folder: Path, encoding: str = "utf-8") -> None:
    """One folder for each class, one file for each text."""
    for label, texts in TEXTS.items():
        (folder / label).mkdir(parents=True)
        for number, text in enumerate(texts):
            (folder / label / f"{number:03}.txt").write_bytes(text.replace("，", "，\r\n").encode(encoding))


def converted(folder: Path, *flags: str) -> set[tuple[str, str]]:
    output = folder.parent / "out" / "train.jsonl"
    output.parent.mkdir(exist_ok=True)
    words = [f"--input_file={folder}", f"--output_file={output}", "--test_ratio=0.2", *flags]
    assert transfer_classification_data.main(words) == 0
    rows = [json.loads(line) for name in ("train", "test") for line in output.with_name(f"{name}.jsonl").open("rb")]
    assert all(set(row["options"]) == set(TEXTS) for row in rows)
    return {("".join(row["text"].split()), row["label"]) for row in rows}


def said_of(folder: Path) -> str:
    with pytest.raises(InputError) as refused:
        recognise(folder, "label")
    return str(refused.value)


@pytest.mark.parametrize("ending", ["txt", "csv", "jsonl", "xlsx"])
def test_the_name_of_a_file_is_the_label_of_its_rows(tmp_path, ending, capsys):
    write_files(tmp_path / "reviews", ending)
    assert converted(tmp_path / "reviews") == ROWS
    assert "classes（文件名是标签：" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_the_name_of_a_folder_is_the_label_of_its_files(tmp_path, encoding, capsys):
    """Each file is too short to show its encoding; all files of a class together do."""
    write_folders(tmp_path / "reviews", encoding)
    assert converted(tmp_path / "reviews") == ROWS
    assert "文件夹名是标签，一个文件一条文本" in capsys.readouterr().err


def test_prediction_reads_them_as_conversion_does(tmp_path):
    write_folders(tmp_path / "reviews")
    rows = list(read_file(tmp_path / "reviews", "label"))
    assert {("".join(row["text"].split()), row["output"]) for row in rows} == ROWS


def test_a_file_that_cannot_be_decoded_is_one_rejected_row(tmp_path, capsys):
    write_folders(tmp_path / "reviews", "gb18030")
    (tmp_path / "reviews/好评/坏.txt").write_bytes("住得舒服".encode("gb18030") + b"\xff\xff")
    assert converted(tmp_path / "reviews") == ROWS
    assert "拒绝 1" in capsys.readouterr().err
    rejected = json.loads((tmp_path / "out/train.rejected.jsonl").read_bytes())
    assert rejected["reason"] == "好评：坏.txt：有解不开的字节"


def test_a_few_bytes_that_do_not_decode_are_left_out_of_a_long_text_which_is_told(tmp_path, capsys):
    """One text in fifty of an old corpus has some: without these rows the whole would be refused."""
    write_folders(tmp_path / "reviews", "gb18030")
    long = "住得很舒服，下次还来。" * 20
    (tmp_path / "reviews/好评/长.txt").write_bytes(long[:99].encode("gb18030") + b"\xff" + long[99:].encode("gb18030"))
    assert converted(tmp_path / "reviews") == {*ROWS, (long, "好评")}
    assert "有个别解不开的字节，只去掉这些字节：1 行" in capsys.readouterr().err


def test_what_is_not_read_is_named(tmp_path):
    write_files(tmp_path / "reviews", "txt")
    (tmp_path / "reviews/图片.png").write_bytes(b"\x89PNG")
    assert "没有读 图片.png" in recognise(tmp_path / "reviews", "label").describe()


@pytest.mark.parametrize(
    "name", ["train.txt", "cnews.test.txt", "my_dev.csv", "class.txt", "cn_stopwords.txt", "训练集.csv"]
)
def test_the_files_of_a_data_set_are_no_classes(tmp_path, name):
    write_files(tmp_path / "data", "txt")
    (tmp_path / "data" / name).write_text("房间好\t好评\n早餐差\t差评\n", encoding="utf-8")
    assert f"里面有 {name}" in said_of(tmp_path / "data")


def test_the_folders_of_a_data_set_are_no_classes(tmp_path):
    for part in ("train", "test"):
        write_folders(tmp_path / "data" / part)
    advised = Path(said_of(tmp_path / "data").rpartition("如 ")[2])
    assert converted(advised) == ROWS


def test_a_folder_of_data_sets_is_no_folder_of_classes(tmp_path):
    for name in ("weibo", "hotel"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "train.txt").write_text("房间好\t好评\n", encoding="utf-8")
    assert "不像一个文件一条文本" in said_of(tmp_path / "data")


def test_rows_with_labels_of_their_own_keep_them(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("酒店", "外卖"):
        (tmp_path / "data" / f"{name}.csv").write_text("text,label\n房间好,好评\n早餐差,差评\n", encoding="utf-8")
    assert "自己有标签" in said_of(tmp_path / "data")


def test_a_folder_without_classes_is_refused_as_before(tmp_path):
    assert f"是一个目录；请给出其中的文件，如 {tmp_path / 'train.jsonl'}" in said_of(tmp_path)


def test_a_file_of_texts_is_told_about_the_folder(tmp_path):
    """What it is told works."""
    write_files(tmp_path / "reviews", "txt")
    assert "请单独放进一个目录" in said_of(tmp_path / "reviews/好评.txt")
    assert converted(tmp_path / "reviews") == ROWS


def test_a_file_of_xml_is_told_so(tmp_path):
    path = tmp_path / "reviews.txt"
    path.write_text('<review id="0" label="1">\n房间好\n</review>\n', encoding="utf-8")
    assert "像 XML" in said_of(path)


def test_the_encoding_may_be_given(tmp_path):
    write_folders(tmp_path / "reviews", "gb18030")
    options = ReadOptions(encoding="gb18030")
    assert {source.encoding for _, source in recognise(tmp_path / "reviews", "label", options).classes} == {"gb18030"}


def test_a_folder_has_a_hash_and_no_lines(tmp_path):
    """`predict.py` notes the hash of its input, also of a folder of brat; a progress bar counts lines."""
    write_folders(tmp_path / "reviews")
    first = input_hash(tmp_path / "reviews")
    assert count_lines(tmp_path / "reviews") is None
    shutil.copytree(tmp_path / "reviews", tmp_path / "copy")
    assert input_hash(tmp_path / "copy") == first
    (tmp_path / "copy/好评/000.txt").write_text("别的", encoding="utf-8")
    assert input_hash(tmp_path / "copy") != first
