"""What happens to each kind of input: it is accepted, one row is rejected, or the file is refused in one line.

Every kind goes through the real script. Whatever happens there is no traceback, the accounting adds up, and nothing
half-written is left behind. Run: pytest tests/test_input_kinds.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import transfer_classification_data
import transfer_ner_data

SCRIPTS = {"cls": transfer_classification_data.main, "ner": transfer_ner_data.main}
ACCEPTED = "accepted"


def line(**row: object) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def article(text: str = "国足昨晚赢了", category: object = "['体育', '军事']", output: object = "体育") -> bytes:
    return line(text=text, category=category, output=output)


def sentence(text: object, *entities: object) -> bytes:
    return line(text=text, entities=list(entities))


def entity(start: object, end: object, text: object, label: object = "GPE") -> dict:
    return {"start_idx": start, "end_idx": end, "entity_text": text, "entity_label": label}


GOOD = {
    "cls": b"".join(article(f"第{number}条新闻", output="体育" if number % 2 else "军事") for number in range(20)),
    "ner": b"".join(
        sentence(f"他第{number}次到北京", entity(len(f"他第{number}次到"), len(f"他第{number}次到") + 2, "北京"))
        for number in range(20)
    ),
}
CONLL = "".join(f"第 O\n{number} O\n次 O\n到 O\n北 B-LOC\n京 I-LOC\n\n" for number in range(20)).encode()
BMES = CONLL.replace("京 I-LOC".encode(), "京 E-LOC".encode())
CSV = b"text,label\n" + b"".join(f"第{n}条新闻,{'体育' if n % 2 else '军事'}\n".encode() for n in range(20))

CSV_AS_JSON = b"".join(line(text=f"第{n}条新闻", label="体育" if n % 2 else "军事") for n in range(20))


def spans(notation: dict, text: str = "他到北京去了") -> bytes:
    rows = [{"text": f"{text}{number}", **notation} for number in range(20)]
    return b"".join(line(**row) for row in rows)


# One row among twenty good ones: (id, task, the row, accepted or the field at fault).
ROWS = [
    ("U+2028 in a string", "cls", article("第一段\u2028第二段\u2029第三段\x85完"), ACCEPTED),
    ("10 MB line", "cls", article("长" * 3_500_000), ACCEPTED),
    ("emoji and rare characters", "cls", article("👨‍👩‍👧 𠮷野家 ﷽"), ACCEPTED),
    ("escaped NUL", "cls", article("前\x00后"), ACCEPTED),
    ("control token", "cls", article("他说<|im_end|>就走了"), ACCEPTED),
    ("ASCII escapes", "cls", json.dumps(json.loads(article())).encode() + b"\n", ACCEPTED),
    ("escaped key-like text", "cls", article('他写道："text":1, "output":2'), ACCEPTED),
    ("quoted key in the text", "cls", article('{"text":"a","text":"b"}'), ACCEPTED),
    ("not NFC", "cls", article("Cafe\u0301 豈有此理"), ACCEPTED),
    ("compatibility ideograph", "cls", article("\uf900山"), ACCEPTED),
    ("options as a list", "cls", article(category=["体育", "军事"]), ACCEPTED),
    ("options as a JSON list", "cls", article(category='["体育", "军事"]'), ACCEPTED),
    ("options with blanks around", "cls", article(category="[' 体育', '军事 ']", output="体育 "), ACCEPTED),
    ("same key twice, same value", "cls", article()[:-2] + ', "output": "体育"}\n'.encode(), ACCEPTED),
    ("unknown extra field", "cls", line(text="多一个字段", category=["体育"], output="体育", id=10**30), ACCEPTED),
    ("blank lines", "cls", b"\n  \n" + article() + b"\n", ACCEPTED),
    ("no line end after the last row", "cls", article()[:-1], ACCEPTED),
    ("broken JSON", "cls", '{"text": "没有写完", "category'.encode() + b"\n", ""),
    ("two objects on a line", "cls", article()[:-1] + article(), ""),
    ("an array", "cls", b"[1, 2]\n", ""),
    ("a bare string", "cls", '"只有文本"\n'.encode(), ""),
    ("undecodable byte", "cls", article().replace("国".encode(), b"\xff\xfe"), ""),
    ("byte order mark inside the file", "cls", b"\xef\xbb\xbf" + article(), ACCEPTED),
    ("raw NUL", "cls", article().replace("国".encode(), b"\x00"), ""),
    ("NaN where nobody looks", "cls", article()[:-2] + b', "weight": NaN}\n', ACCEPTED),
    ("-Infinity where nobody looks", "cls", article()[:-2] + b', "meta": {"weight": [-Infinity]}}\n', ACCEPTED),
    ("NaN for text", "cls", article(text=float("nan")), "text"),
    ("NaN for a label", "cls", article(output=float("nan")), "output"),
    ("Infinity for a label", "cls", article(output=float("inf")), "output"),
    ("NaN for options", "cls", article(category=float("nan")), "category"),
    ("NaN for entities", "ner", line(text="到北京", entities=float("nan")), "entities"),
    ("NaN for an offset", "ner", sentence("到北京", entity(float("nan"), 3, "北京")), "start_idx"),
    ("NaN and the same key twice", "cls", article()[:-2] + ', "weight": NaN, "output": "军事"}\n'.encode(), "output"),
    ("NaN and a lone surrogate", "cls", article()[:-2] + b', "weight": NaN, "note": ["\\ud800"]}\n', "note"),
    ("NaN in broken JSON", "cls", article()[:-2] + b', "weight": NaN\n', ""),
    ("too deep", "cls", b'{"text": ' + b"[" * 5000 + b"]" * 5000 + b"}\n", ""),
    ("deep, in a field of ours", "cls", b'{"text": ' + b"[" * 900 + b"]" * 900 + b"}\n", "text"),
    ("same key twice, other value", "cls", article()[:-2] + ', "output": "军事"}\n'.encode(), "output"),
    ("lone surrogate", "cls", b'{"text": "\\ud800", "category": ["a"], "output": "a"}\n', "text"),
    ("no text", "cls", line(category=["体育"], output="体育"), "text"),
    ("text is null", "cls", article(text=None), "text"),
    ("text is a number", "cls", article(text=3), "text"),
    ("text is a list", "cls", article(text=["一", "二"]), "text"),
    ("empty text", "cls", article(text=""), "text"),
    ("white space for text", "cls", article(text=" \u3000\n"), "text"),
    ("no label", "cls", line(text="没有标签", category=["体育"]), "output"),
    ("label is a number", "cls", article(output=1), "output"),
    ("blank label", "cls", article(output=" "), "output"),
    ("label outside the options", "cls", article(output="财经"), "output"),
    ("look-alike label", "cls", article(output="体肓"), "output"),
    ("options missing", "cls", line(text="没有选项", output="体育"), "category"),
    ("options null", "cls", article(category=None), "category"),
    ("options are no list", "cls", article(category="体育或军事"), "category"),
    ("options are an object", "cls", article(category={"体育": 1}), "category"),
    ("options with a number", "cls", article(category=["体育", 2]), "category"),
    ("no options in them", "cls", article(category="[]"), "category"),
    ("code for options", "cls", article(category="__import__('os').system('true')"), "category"),
    ("endless brackets for options", "cls", article(category="[" * 5000), "category"),
    ("no entities", "ner", sentence("今天天气好"), ACCEPTED),
    ("entities out of order", "ner", sentence("从上海到北京", entity(4, 6, "北京"), entity(1, 3, "上海")), ACCEPTED),
    ("entity without its text", "ner",
     sentence("到北京", {"start_idx": 1, "end_idx": 3, "entity_label": "GPE"}), ACCEPTED),
    ("entity not NFC", "ner",
     sentence("看Cafe\u0301和北京", entity(1, 6, "Cafe\u0301", "ORG"), entity(7, 9, "北京")), ACCEPTED),
    ("edge inside a composed character", "ner", sentence("看Cafe\u0301", entity(1, 5, "Cafe", "ORG")), ACCEPTED),
    ("entities missing", "ner", line(text="到北京"), "entities"),
    ("entities an object", "ner", line(text="到北京", entities={"a": 1}), "entities"),
    ("an entity is a string", "ner", sentence("到北京", "北京"), "entities"),
    ("offset past the end", "ner", sentence("到北京", entity(1, 9, "北京")), "start_idx"),
    ("negative offset", "ner", sentence("到北京", entity(-2, 3, "北京")), "start_idx"),
    ("empty span", "ner", sentence("到北京", entity(1, 1, "")), "start_idx"),
    ("offset a string", "ner", sentence("到北京", entity("1", "3", "北京")), "start_idx"),
    ("offset a boolean", "ner", sentence("到北京", entity(True, 3, "北京")), "start_idx"),
    ("offset a float", "ner", sentence("到北京", entity(1.0, 3.0, "北京")), "start_idx"),
    ("text does not match", "ner", sentence("到北京", entity(0, 2, "北京")), "entity_text"),
    ("inclusive end", "ner", sentence("到北京了", entity(1, 2, "北京")), ACCEPTED),
    ("UTF-16 offsets", "ner", sentence("😀到北京了", entity(3, 5, "北京")), ACCEPTED),
    ("an end inside a character", "ner", sentence("😀到北京了", entity(1, 5, "北京")), "entity_text"),
    ("ends of two kinds", "ner",
     sentence("从北京到上海了", entity(1, 2, "北京"), entity(4, 6, "上海")), "entity_text"),
    ("overlapping", "ner", sentence("北京大学", entity(0, 2, "北京"), entity(0, 4, "北京大学", "ORG")), "entities"),
    ("the same entity twice", "ner", sentence("到北京", entity(1, 3, "北京"), entity(1, 3, "北京")), ACCEPTED),
    ("one entity with two labels", "ner",
     sentence("到北京", entity(1, 3, "北京"), entity(1, 3, "北京", "ORG")), "entities"),
    ("unknown label", "ner", sentence("到北京", entity(1, 3, "北京", "TIME")), "entity_label"),
    ("label missing", "ner", sentence("到北京", entity(1, 3, "北京", None)), "entity_label"),
    ("same key twice in an entity", "ner",
     sentence("到北京", entity(1, 3, "北京")).replace(b'"start_idx"', b'"start_idx": 0, "start_idx"'), "start_idx"),
]  # fmt: skip

# Whole files that are accepted or refused: (id, task, file name, content, further flags, expected output).
# The expected output: part of the summary, or, for a refused file, `2:` and part of the error.
FILES = [
    ("UTF-8 with BOM", "cls", "a.jsonl", b"\xef\xbb\xbf" + GOOD["cls"], [], "BOM"),
    ("GB18030", "cls", "a.jsonl", GOOD["cls"].decode().encode("gb18030"), [], "GB18030"),
    ("GB18030 CSV", "cls", "a.csv", CSV.decode().encode("gb18030"), [], "GB18030"),
    ("UTF-16 with BOM", "cls", "a.jsonl", GOOD["cls"].decode().encode("utf-16"), [], "UTF-16"),
    ("CRLF", "cls", "a.jsonl", GOOD["cls"].replace(b"\n", b"\r\n"), [], "fudan"),
    ("CRLF CSV", "cls", "a.csv", CSV.replace(b"\n", b"\r\n"), [], "csv"),
    ("CSV with BOM", "cls", "a.csv", b"\xef\xbb\xbf" + CSV, [], "csv"),
    ("CSV, line end in a cell", "cls", "a.csv", CSV + '"两行\n的文本",体育\n'.encode(), [], "csv"),
    ("TSV", "cls", "a.tsv", CSV.replace(b",", b"\t"), [], "tsv"),
    ("TSV with quotes as text", "cls", "a.tsv", CSV.replace(b",", b"\t") + '"他好"他说\t体育\n'.encode(), [], "原文"),
    ("JSON lines with text and label", "cls", "a.jsonl", CSV_AS_JSON, [], "jsonl"),
    ("columns by flag", "cls", "a.csv",
     CSV.replace(b"text,label", b"a,b"), ["--text_column=a", "--label_column=b"], "csv"),
    ("CoNLL BIO", "ner", "a.txt", CONLL, [], "conll（BIO）"),
    ("CoNLL, tabs and CRLF", "ner", "a.txt", CONLL.replace(b" ", b"\t").replace(b"\n", b"\r\n"), [], "conll（BIO）"),
    ("CoNLL BMES", "ner", "a.txt", BMES + "大 B-LOC\n理 M-LOC\n州 E-LOC\n".encode(), [], "conll（BMES）"),
    ("CoNLL BIOES", "ner", "a.txt", BMES + "沪 S-LOC\n".encode(), [], "conll（BIOES）"),
    ("CoNLL GB18030", "ner", "a.txt", CONLL.decode().encode("gb18030"), [], "GB18030"),
    ("CLUENER", "ner", "a.json", spans({"label": {"address": {"北京": [[2, 3]]}}}), [], "cluener"),
    ("doccano", "ner", "a.jsonl", spans({"label": [[2, 4, "地点"]]}), [], "doccano"),
    ("spans", "ner", "a.jsonl", spans({"entities": [{"start": 2, "end": 4, "label": "地点"}]}), [], "spans"),
    ("entities in a CSV", "ner", "a.csv",
     b"text,entities\n" + b"".join(f"到北京{n},\"[[1, 3, 'LOC']]\"\n".encode() for n in range(20)), [], "csv"),
    ("other labels, named", "ner", "a.txt", CONLL, ["--labels=LOC=地点"], "地点 20"),
    ("options by flag", "cls", "a.csv", CSV, ["--labels=体育,军事"], "体育 10"),
    ("empty file", "cls", "a.jsonl", b"", [], "2:空的"),
    ("only blank lines", "cls", "a.jsonl", b"\n\n", [], "2:空的"),
    ("no file", "cls", "none.jsonl", None, [], "2:没有这个文件"),
    ("a directory", "cls", ".", None, [], "2:是一个目录"),
    ("UTF-16 without BOM", "cls", "a.jsonl", GOOD["cls"].decode().encode("utf-16-le"), [], "UTF-16"),
    ("UTF-32", "cls", "a.jsonl", GOOD["cls"].decode().encode("utf-32"), [], "2:UTF-32"),
    ("CR alone", "cls", "a.jsonl", GOOD["cls"].replace(b"\n", b"\r"), [], "2:CR"),
    ("a zip file", "cls", "a.jsonl", b"PK\x03\x04" + bytes(100), [], "2:不是文本文件"),
    ("a JSON array", "cls", "a.json", b"[" + b",".join(GOOD["cls"].split(b"\n")[:-1]) + b"]", [], "一整个 JSON 文档"),
    ("indented JSON", "cls", "a.json", b'{\n  "text": "a"\n}\n', [], "2:认不出哪一列是标签"),
    ("plain text", "cls", "a.txt", "只是一些话\n又一些\n".encode(), [], "2:认不出格式"),
    ("no row usable", "cls", "a.jsonl", b"{\n" * 5 + b'{"text"\n', [], "2:都不能用"),
    ("all rows bad", "cls", "a.jsonl", article(output="财经") * 5, [], "2:都不能用"),
    ("too many bad rows", "cls", "a.jsonl", GOOD["cls"] * 50 + article(output="财经") * 11, [], "2:超过 1%"),
    ("bad row, to stop at", "cls", "a.jsonl", GOOD["cls"] + b"{\n", ["--on_bad_row=error"], "2:a.jsonl:21"),
    ("unclosed quote in a CSV", "cls", "a.csv", CSV + '"没有闭合,体育\n'.encode(), [], "2:a.csv:22"),
    ("columns unknown", "cls", "a.csv", CSV.replace(b"text,label", b"a,b"), [], "2:--text_column"),
    ("columns ambiguous", "cls", "a.csv", b"sentence,content,label\na,b,c\n", [], "2:--text_column"),
    ("column by flag not there", "cls", "a.csv", CSV, ["--text_column=正文"], "2:正文"),
    ("header twice the same", "cls", "a.csv", b"text,text,label\na,b,c\n", [], "2:重名"),
    ("too few rows to split", "cls", "a.jsonl", article(), [], "2:只有一行"),
    ("too few texts to split", "cls", "a.jsonl", article() + article(text="乙"), [], "2:请换 --test_ratio"),
    ("a label for each row", "cls", "a.csv",
     b"text,label\n" + b"".join(b"t%d,l%d\n" % (n, n) for n in range(1002)), [], "2:--label_column"),
    ("no entity anywhere", "ner", "a.jsonl", spans({"entities": []}), ["--format=spans"], "2:没有一个实体"),
    ("labels by flag empty", "ner", "a.txt", CONLL, ["--labels=A,,B"], "2:--labels"),
    ("same file for both splits", "cls", "a.jsonl", GOOD["cls"], ["--input_test_file=a.jsonl"], "2:同一个文件"),
    ("output over the input", "cls", "a.jsonl", GOOD["cls"], ["--output_file=a.jsonl"], "2:既是输入又是输出"),
    ("both outputs one file", "cls", "a.jsonl", GOOD["cls"], ["--test_file=out/train.jsonl"], "2:同一个文件"),
    ("output a directory", "cls", "a.jsonl", GOOD["cls"], ["--output_file=."], "2:目录"),
    ("unwritable output", "cls", "a.jsonl", GOOD["cls"], ["--output_file=a.jsonl/b.jsonl"], "2:无法写入"),
    ("unknown flag", "cls", "a.jsonl", GOOD["cls"], ["--test_ration=0.2"], "2:--test_ratio"),
    ("abbreviated flag", "cls", "a.jsonl", GOOD["cls"], ["--test_rat=0.2"], "2:--test_rat"),
    ("test share of two", "cls", "a.jsonl", GOOD["cls"], ["--test_ratio=2"], "2:--test_ratio"),
]  # fmt: skip

CONLL_ROWS = [
    ("BIO, I- without B-", CONLL, "到 O\n沪 I-LOC\n", ACCEPTED),
    ("BIO, I- of another label", CONLL, "北 B-LOC\n京 I-ORG\n", ACCEPTED),
    ("tag missing", CONLL, "到 O\n沪\n", "tag"),
    ("tag of no scheme", CONLL, "到 O\n沪 X-LOC\n", "tag"),
    ("tag without label", CONLL, "到 O\n沪 B-\n", "tag"),
    ("BMES, M- without B-", BMES, "到 O\n沪 M-LOC\n", "tag"),
    ("BMES, entity not ended", BMES, "北 B-LOC\n到 O\n", "tag"),
    ("BMES, not ended at the end", BMES, "到 O\n北 B-LOC\n", "tag"),
]


def convert(task: str, folder: Path, monkeypatch, capsys, *flags: str) -> tuple[int, str]:
    """Run the script in ``folder``; returns exit code and what it said."""
    monkeypatch.chdir(folder)
    defaults = ["--output_file=out/train.jsonl", "--test_file=out/test.jsonl", "--test_ratio=0.2"]
    try:
        code = SCRIPTS[task]([*defaults, *flags])
    except SystemExit as exit:  # argparse
        code = exit.code
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err
    return code, said.err


def report_of(folder: Path) -> dict:
    report = json.loads((folder / "out/train.report.json").read_text())
    assert report["read"] == report["converted"] + report["rejected"] + report["merged"]
    written = [
        row for side in ("train", "test") for row in (folder / f"out/{side}.jsonl").read_bytes().split(b"\n")[:-1]
    ]
    assert len(written) == report["converted"]
    return report


def assert_tidy(folder: Path, *, finished: bool, rejected: bool = False) -> None:
    """The output files are there and whole, or there is none; nothing is half-written."""
    names = {"train.jsonl", "train.task.json", "test.jsonl", "test.task.json", "train.report.json"}
    names |= {"train.rejected.jsonl"} if rejected else set()
    out = folder / "out"
    assert ({path.name for path in out.iterdir()} if out.exists() else set()) == (names if finished else set())
    assert not list(folder.rglob("*.tmp"))


def assert_row(content: bytes, at_line: int, task: str, fate: str, folder: Path, monkeypatch, capsys) -> None:
    (folder / "raw.txt").write_bytes(content)
    code, said = convert(task, folder, monkeypatch, capsys, "--input_file=raw.txt")
    assert code == 0, said
    report = report_of(folder)
    assert report["rejected"] == (0 if fate == ACCEPTED else 1)
    assert_tidy(folder, finished=True, rejected=fate != ACCEPTED)
    if fate != ACCEPTED:
        (rejected,) = map(json.loads, (folder / "out/train.rejected.jsonl").read_bytes().split(b"\n")[:-1])
        assert (rejected["field"], rejected["line"]) == (fate, at_line)
        assert rejected["reason"] and len(rejected["raw"]) <= 500
        assert "rejected.jsonl" in said


@pytest.mark.parametrize(("task", "row", "fate"), [kind[1:] for kind in ROWS], ids=[kind[0] for kind in ROWS])
def test_row(task, row, fate, tmp_path, monkeypatch, capsys):
    assert_row(GOOD[task] + row, 21, task, fate, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("good", "row", "fate"), [kind[1:] for kind in CONLL_ROWS], ids=[kind[0] for kind in CONLL_ROWS]
)
def test_tagged_row(good, row, fate, tmp_path, monkeypatch, capsys):
    assert_row(good + row.encode(), 141, "ner", fate, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("task", "name", "content", "flags", "seen"), [kind[1:] for kind in FILES], ids=[kind[0] for kind in FILES]
)
def test_file(task, name, content, flags, seen, tmp_path, monkeypatch, capsys):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, said = convert(task, tmp_path, monkeypatch, capsys, f"--input_file={name}", *flags)
    if seen.startswith("2:"):
        assert code == 2 and seen[2:] in said
        assert said.count("\n") == 1, "an error is one line"
        assert_tidy(tmp_path, finished=False)
        assert content is None or (tmp_path / name).read_bytes() == content
    else:
        assert code == 0 and seen in said, said
        assert report_of(tmp_path)["rejected"] == 0
        assert_tidy(tmp_path, finished=True)


def test_table_is_as_long_as_promised():
    kinds = [kind[0] for kind in [*ROWS, *CONLL_ROWS, *FILES]]
    assert len(set(kinds)) == len(kinds) >= 45


def test_rejected_file_of_an_earlier_run_goes_away(tmp_path, monkeypatch, capsys):
    (tmp_path / "raw.jsonl").write_bytes(GOOD["cls"] + b"{}\n")
    convert("cls", tmp_path, monkeypatch, capsys, "--input_file=raw.jsonl")
    assert_tidy(tmp_path, finished=True, rejected=True)
    (tmp_path / "raw.jsonl").write_bytes(GOOD["cls"])
    convert("cls", tmp_path, monkeypatch, capsys, "--input_file=raw.jsonl")
    assert_tidy(tmp_path, finished=True)


def test_outputs_of_an_earlier_run_survive_a_refused_one(tmp_path, monkeypatch, capsys):
    (tmp_path / "raw.jsonl").write_bytes(GOOD["cls"])
    convert("cls", tmp_path, monkeypatch, capsys, "--input_file=raw.jsonl")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "raw.jsonl").write_bytes(b"{}\n" * 10)
    assert convert("cls", tmp_path, monkeypatch, capsys, "--input_file=raw.jsonl")[0] == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_missing_default_input_says_how_to_fetch_it(tmp_path, monkeypatch, capsys):
    for task, command in (("cls", "modelscope download --dataset swift/zh_cls_fudan-news"), ("ner", "curl -L")):
        code, said = convert(task, tmp_path, monkeypatch, capsys)
        assert code == 2 and command in said and said.count("\n") == 1


@pytest.mark.parametrize("folder", ["data", "data/zh_cls_fudan-news"])
def test_default_inputs_are_found(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "train.jsonl").write_bytes(GOOD["cls"])
    (tmp_path / folder / "test.jsonl").write_bytes(article("国足的新闻") + article("第3条新闻"))
    code, said = convert("cls", tmp_path, monkeypatch, capsys)
    assert code == 0 and re.search("剔除 1", said)
