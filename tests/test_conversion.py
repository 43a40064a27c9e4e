"""Splitting and accounting: nothing is lost, no text is on both sides, and the same command gives the same files.

Run: pytest tests/test_conversion.py
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar
from unicodedata import normalize

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import transfer_classification_data
import transfer_ner_data
from sft.data.arguments import Conversion
from sft.data.conversion import convert_files
from sft.data.formats import recognise
from sft.data.recipes import Recipe, entity_gold, label_gold
from sft.data.records import read_task_records
from sft.tasks.classification import Classification
from sft.tasks.ner import Ner
from sft.tasks.settings import FORMAT_VERSION, settings_path, user_turn
from sft.text import compared, visible

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the real data of ../shared/data is not there")


def convert(main, folder: Path, raw: bytes | Path, *flags: str, test: bytes | Path | None = None) -> dict:
    """Run a script on raw rows; returns its report, with the accounting checked against the files."""
    inputs = {"--input_file": raw, "--input_test_file": test}
    command = [f"--output_file={folder / 'train.jsonl'}", f"--test_file={folder / 'test.jsonl'}", *flags]
    for flag, rows in inputs.items():
        if isinstance(rows, bytes):
            path = folder / f"raw{flag}.jsonl"
            path.write_bytes(rows)
            rows = path
        command += [f"{flag}={rows}"] if rows else []
    assert main(command) == 0
    report = json.loads((folder / "train.report.json").read_bytes())
    train, test_rows = records(folder, "train"), records(folder, "test")
    assert report["read"] == report["converted"] + report["rejected"] + report["merged"] + report["leaked"]
    assert report["converted"] == len(train) + len(test_rows)
    train_texts, test_texts = ({compared(row["text"]) for row in side} for side in (train, test_rows))
    assert not train_texts & test_texts
    assert report["texts_on_both_sides"] == 0
    assert report["texts"]["train"] == len(train_texts)
    assert report["texts"]["test"] == len(test_texts)
    return report


def records(folder: Path, side: str) -> list[dict]:
    return [orjson.loads(line) for line in (folder / f"{side}.jsonl").read_bytes().split(b"\n")[:-1]]


def lines(rows: list[dict]) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def articles(count: int) -> list[dict]:
    labels = ["体育", "军事", "财经"]
    return [
        {"text": f"第{number}篇", "category": str(labels), "output": labels[number % 7 % 3]} for number in range(count)
    ]


def share_of_test(report: dict, ratio: float) -> None:
    """Each stratum is within one row of its share (a text with two annotations may add a row)."""
    for rows in report["split"].values():
        assert abs(rows["test"] - ratio * sum(rows.values())) <= 1 + report["conflicts"]


row = st.builds(
    lambda text, output, valid: {"text": text, "category": ["甲", "乙"], "output": output if valid else "丙"},
    st.sampled_from([f"文本{number}" for number in range(30)]) | st.text(max_size=3),
    st.sampled_from(["甲", "乙"]),
    st.sampled_from([True] * 9 + [False]),
)


@settings(deadline=None, max_examples=50)
@given(st.lists(row, max_size=60), st.sampled_from([0.1, 0.3, 0.5, 0.9]), st.integers(0, 5))
def test_every_row_is_accounted_for(rows, ratio, seed):
    with TemporaryDirectory() as name:
        filler = articles(60)
        report = convert(
            transfer_classification_data.main,
            Path(name),
            lines(filler + rows),
            f"--test_ratio={ratio}",
            f"--seed={seed}",
        )
        bad = sum(row["output"] == "丙" or not compared(row["text"]) for row in rows)
        assert (report["read"], report["rejected"]) == (60 + len(rows), bad)
        texts = [(compared(normalize("NFC", row["text"])), row["output"]) for row in rows]
        distinct = {(text, label) for text, label in texts if label != "丙" and text}
        assert report["converted"] == 60 + len(distinct)


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.25, 0.3, 0.5, 0.77])
def test_each_stratum_has_its_share_however_the_file_is_ordered(ratio, tmp_path):
    rows = articles(1000)
    for ordered in (rows, sorted(rows, key=lambda row: row["output"])):
        report = convert(transfer_classification_data.main, tmp_path, lines(ordered), f"--test_ratio={ratio}")
        share_of_test(report, ratio)


def test_test_rows_come_from_everywhere_in_the_file(tmp_path):
    """The original project took the first tenth of the file, whose rows differ from the rest."""
    convert(transfer_classification_data.main, tmp_path, lines(articles(1000)))
    places = [int(row["text"][1:-1]) for row in records(tmp_path, "test")]
    assert all(5 <= sum(tenth <= place < tenth + 100 for place in places) <= 15 for tenth in range(0, 1000, 100))
    assert len({place % 10 for place in places}) > 5, "not every tenth row"


def test_split_depends_on_the_seed_and_on_nothing_else(tmp_path):
    def split(*flags: str) -> bytes:
        convert(transfer_classification_data.main, tmp_path, lines(articles(300)), *flags)
        return (tmp_path / "test.jsonl").read_bytes()

    random.seed(1)
    state, first = random.getstate(), split()
    assert random.getstate() == state, "the global random state is the caller's"
    random.seed(2)
    assert split() == first
    assert split("--seed=7") != first == split("--seed=42")


def test_rows_added_at_the_end_move_no_row_to_the_other_side(tmp_path):
    convert(transfer_classification_data.main, tmp_path, lines(articles(300)))
    before = {row["text"] for row in records(tmp_path, "test")}
    convert(transfer_classification_data.main, tmp_path, lines(articles(600)))
    after = {row["text"] for row in records(tmp_path, "test")}
    assert {text for text in after if int(text[1:-1]) < 300} == before


def test_the_same_text_with_another_label_stays_on_its_side_and_is_shown(tmp_path, capsys):
    rows = articles(50)
    twice = [{**row, "output": "财经" if row["output"] != "财经" else "体育"} for row in rows[:10]]
    report = convert(transfer_classification_data.main, tmp_path, lines(rows + twice + twice))
    assert (report["conflicts"], report["merged"], report["converted"]) == (10, 10, 60)
    assert report["conflict_examples"][0] | {"text": "第0篇"} == report["conflict_examples"][0]
    assert "第0篇" in capsys.readouterr().err


def test_an_official_test_file_is_kept_and_train_rows_in_it_are_dropped(tmp_path):
    rows = articles(50)
    test = [*rows[:5], rows[0], {**rows[1], "output": "财经"}]
    report = convert(transfer_classification_data.main, tmp_path, lines(rows), test=lines(test))
    assert [row["text"] for row in records(tmp_path, "test")] == [row["text"] for row in test]
    assert (report["leaked"], report["repeated"], report["conflicts"]) == (5, 1, 1)
    assert len(records(tmp_path, "train")) == 45


def test_records_are_what_the_task_renders(tmp_path):
    """Training refuses records whose messages it would render differently; conversion must never write any."""
    for main, raw, of_settings in (
        (transfer_classification_data.main, lines(articles(30)), Classification.from_settings),
        (transfer_classification_data.main, lines([{"text": r["text"], "label": r["output"]} for r in articles(30)]),
         Classification.from_settings),
        (transfer_ner_data.main, lines(sentences(30)), Ner.from_settings),
        (transfer_ner_data.main, lines([{"text": f"到北京{n}", "label": [[1, 3, "城市"]]} for n in range(30)]),
         Ner.from_settings),
    ):  # fmt: skip
        convert(main, tmp_path, raw)
        for side in ("train", "test"):
            path = tmp_path / f"{side}.jsonl"
            kept = json.loads(settings_path(path).read_bytes())
            assert kept.pop("format_version") == FORMAT_VERSION
            assert kept.pop("conversion")["with"] == f"{'test' if side == 'train' else 'train'}.jsonl"
            assert len(kept.pop("sha256")) == 16
            task = of_settings(kept)
            assert task.settings() | user_turn(task) == kept
            read_task_records(path, task)


def sentences(count: int) -> list[dict]:
    rows = []
    for number in range(count):
        start = len(f"第{number}次到")
        item = {"start_idx": start, "end_idx": start + 2, "entity_text": "北京", "entity_label": "GPE"}
        rows.append({"text": f"第{number}次到北京", "entities": [item] if number % 3 else []})
    return rows


def test_record_has_the_agreed_fields_in_order(tmp_path):
    convert(transfer_classification_data.main, tmp_path, lines(articles(30)))
    assert list(records(tmp_path, "train")[0]) == ["messages", "task", "text", "options", "label"]
    convert(transfer_ner_data.main, tmp_path, lines(sentences(30)))
    record = records(tmp_path, "train")[-1]
    assert list(record) == ["messages", "task", "text", "entities"]
    assert [message["role"] for message in record["messages"]] == ["system", "user", "assistant"]
    assert record["entities"][0]["label"] == "地理实体"


def test_labels_of_other_data_are_its_own_the_most_frequent_first(tmp_path):
    labels = ["城市"] * 30 + ["人"] * 20 + ["书"] * 20
    rows = [{"text": f"到北京{number}", "label": [[1, 3, label]]} for number, label in enumerate(labels)]
    convert(transfer_ner_data.main, tmp_path, lines(rows))
    assert json.loads((tmp_path / "train.task.json").read_bytes())["labels"] == ["城市", "书", "人"]


def test_ccfbdci_labels_survive_a_mistyped_one(tmp_path):
    """One row with a label of its own must not turn the four Chinese names into raw labels."""
    rows = sentences(60)
    rows[1]["entities"][0]["entity_label"] = "GEP"
    report = convert(transfer_ner_data.main, tmp_path, lines(rows))
    assert report["rejected_fields"] == {"entity_label": 1}
    assert "--labels" in (tmp_path / "train.rejected.jsonl").read_text()
    settings = json.loads((tmp_path / "train.task.json").read_bytes())
    assert settings["labels"] == ["地理实体", "地点", "组织", "人名"]


@dataclass(frozen=True)
class Polarity:
    """A third task, with only the members that a conversion uses."""

    labels: tuple[str, ...]
    name: ClassVar[str] = "polarity"
    title: ClassVar[str] = "褒贬"
    answers: ClassVar[str] = "label"
    answer_format: ClassVar[str] = "label"
    long_text: ClassVar[None] = None

    def prompt(self, record: dict) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"{'还是'.join(self.labels)}？{record['text']}"}]

    def answer(self, record: dict) -> str:
        return record["label"]

    def settings(self) -> dict:
        return {"task": self.name, "labels": list(self.labels)}


@dataclass(frozen=True)
class FirstName(Polarity):
    """A third task whose raw rows have entities."""

    name: ClassVar[str] = "first_name"
    answers: ClassVar[str] = "entities"

    def answer(self, record: dict) -> str:
        return record["entities"][0]["text"] if record["entities"] else "无"


@given(st.text("青湖 \u200b\ufeff\n", min_size=1, max_size=12).filter(compared), st.data())
def test_annotations_are_compared_without_what_shows_nothing(text, data):
    edges = st.integers(0, len(text))
    spans = [sorted(data.draw(st.tuples(edges, edges))) for _ in range(3)]
    entities = [{"start": start, "end": end, "text": text[start:end], "label": "L"} for start, end in spans]
    _, labels, annotation = entity_gold({"text": text, "entities": entities})
    for (start, end), found in zip(spans, json.loads(annotation), strict=True):
        assert found["text"] == (text[start:end] if compared(text) == text else compared(text[start:end]))
        assert (found["start"], found["end"]) == tuple(len(visible(text[:edge]).lstrip()) for edge in (start, end))
    assert labels == ["L"] * 3


def test_many_entities_in_a_long_text_are_compared_in_one_pass():
    text = "青湖\u200b" * 8_000
    entities = [{"start": at, "end": at + 2, "text": "青湖", "label": "LOC"} for at in range(0, len(text), 3)]
    begin = time.process_time()
    entity_gold({"text": text, "entities": entities})
    assert time.process_time() - begin < 2, "each entity went through the whole text"


LABELLED = "".join(f"第{number}句,{'褒' if number % 3 else '贬'}\n" for number in range(30))
TAGGED = "".join(f"第 O\n{number} O\n张 B-人\n伟 I-人\n\n" for number in range(30))


@pytest.mark.parametrize(
    ("task_type", "file_name", "content", "convert_row", "gold", "answers"),
    [
        (Polarity, "raw.csv", "text,label\n" + LABELLED,
         lambda raw: {"text": raw["text"], "label": raw["output"]}, label_gold, {"褒", "贬"}),
        (FirstName, "raw.txt", TAGGED, Ner.convert, entity_gold, {"张伟"}),
    ],
    ids=["label", "entities"],
)  # fmt: skip
@pytest.mark.parametrize("known", [True, False])
def test_a_third_task_converts_by_a_recipe_of_its_own(
    tmp_path, task_type, file_name, content, convert_row, gold, answers, known
):
    (tmp_path / file_name).write_text(content, encoding="utf-8")
    task = task_type(("褒", "贬") if task_type is Polarity else ("人",))
    recipe = Recipe(
        task=task if known else None,
        with_labels=lambda labels: task_type(tuple(labels)),
        convert=convert_row,
        gold=gold,
    )
    conversion = Conversion(tmp_path / "train.jsonl", tmp_path / "test.jsonl")
    report = convert_files(recipe, [recognise(tmp_path / file_name, task_type.answers)], conversion)
    assert (report["task"], report["read"], report["converted"]) == (task.name, 30, 30)
    assert json.loads(settings_path(conversion.output_file).read_bytes())["labels"] == list(task.labels)
    rows = [record for path in conversion[:2] for _, record in read_task_records(path, task)]
    assert {task.answer(row) for row in rows} == answers


def test_nfc_is_counted_and_merges_what_becomes_equal(tmp_path):
    rows = [*articles(30), {"text": "Cafe\u0301", "category": ["a", "b"], "output": "a"}]
    rows.append({"text": "Café", "category": ["a", "b"], "output": "a"})
    report = convert(transfer_classification_data.main, tmp_path, lines(rows))
    assert (report["composed"], report["merged"]) == (1, 1)


def refused(main, tmp_path, capsys, raw: str, *flags: str, name: str = "raw.jsonl") -> str:
    """What is said of a file that is refused."""
    (tmp_path / name).write_text(raw, encoding="utf-8")
    assert main([f"--input_file={tmp_path / name}", f"--output_file={tmp_path / 'out_train.jsonl'}", *flags]) == 2
    return capsys.readouterr().err


class TestEmptySides:
    """Another ratio is advised only where it helps."""

    TAGGED = "张 B-PER\n三 I-PER\n走 O\n了 O\n李 B-PER\n四 I-PER\n在 O\n。 O\n"

    def test_sentences_without_blank_lines_between_them(self, tmp_path, capsys):
        said = refused(transfer_ner_data.main, tmp_path, capsys, self.TAGGED, name="raw.txt")
        assert "整个文件读成了一句话；句子之间应有空行" in said and "--test_ratio" not in said
        (tmp_path / "test.txt").write_text("王 B-PER\n五 I-PER\n\n赵 B-PER\n六 I-PER\n", encoding="utf-8")
        flags = [f"--input_test_file={tmp_path / 'test.txt'}"]
        assert "整个文件读成了一句话" in refused(
            transfer_ner_data.main, tmp_path, capsys, self.TAGGED, *flags, name="raw.txt"
        )

    @pytest.mark.parametrize("label", ["甲乙", "甲"])
    def test_texts_that_are_all_the_same(self, tmp_path, capsys, label):
        rows = [{"instruction": f"第{n}条", "input": "判断", "output": label[n % len(label)]} for n in range(10)]
        raw = lines(rows).decode()
        said = refused(transfer_classification_data.main, tmp_path, capsys, raw)
        assert "10 行的文本都是 '判断'" in said and "--text_column" in said and "--test_ratio" not in said
        flags = ["--text_column=instruction"]
        if label == "甲乙":
            assert convert(transfer_classification_data.main, tmp_path, raw.encode(), *flags)["converted"] == 10
        raw = "text,label\n" + "".join(f"一样的,{label[n % len(label)]}\n" for n in range(10))
        said = refused(transfer_classification_data.main, tmp_path, capsys, raw, name="raw.csv")
        assert "10 行的文本都是 '一样的'" in said

    def test_training_rows_that_are_all_in_the_official_test_file(self, tmp_path, capsys):
        (tmp_path / "official.jsonl").write_bytes(lines(articles(20)))
        flags = [f"--input_test_file={tmp_path / 'official.jsonl'}"]
        said = refused(transfer_classification_data.main, tmp_path, capsys, lines(articles(9)).decode(), *flags)
        assert "文本全都在" in said and "official.jsonl" in said and "--test_ratio" not in said

    def test_rows_none_of_which_is_wanted(self, tmp_path, capsys):
        flags = ["--labels=音乐,美术", "--other_labels=drop"]
        said = refused(transfer_classification_data.main, tmp_path, capsys, lines(articles(9)).decode(), *flags)
        assert "没有留下一行：没有要的 9 行" in said and "--labels" in said and "--test_ratio" not in said


class TestLabelsOnlyInTest:
    @staticmethod
    def named(label: str, count: int, first: int = 0) -> list[dict]:
        return [{"text": f"第{n:03}次张三", "label": [[5, 7, label]]} for n in range(first, first + count)]

    def test_entities_that_only_the_official_test_file_has(self, tmp_path, capsys):
        train, test = lines(self.named("人名", 20)), lines(self.named("PER", 5, first=50))
        report = convert(transfer_ner_data.main, tmp_path, train, test=test)
        assert report["labels_only_in_test"] == ["PER"]
        said = capsys.readouterr().err
        assert "只在测试集里、训练时学不到的标签：PER 5（只是写法不同就用 --labels 统一）" in said
        report = convert(transfer_ner_data.main, tmp_path, train, "--labels=PER=人名", test=test)
        assert report["labels_only_in_test"] == [] and "学不到" not in capsys.readouterr().err

    def test_a_rare_label_that_the_split_gives_to_test(self, tmp_path, capsys):
        """With ten rows and a share of one half some seed sends the one row of a label to test."""
        for task, rare in (("ner", {"label": [[5, 7, "罕见"]]}), ("cls", {"label": "罕见"})):
            rows = self.named("人名", 9)
            rows = rows if task == "ner" else [{**row, "label": "甲乙"[n % 2]} for n, row in enumerate(rows)]
            main = transfer_ner_data.main if task == "ner" else transfer_classification_data.main
            raw, found = lines([*rows, {"text": "第999次张三", **rare}]), []
            for seed in range(9):
                report = convert(main, tmp_path, raw, "--test_ratio=0.5", f"--seed={seed}")
                found.append(report["labels_only_in_test"])
                told = "学不到的标签：罕见 1（可以换 --seed）" in capsys.readouterr().err
                in_train = b"\xe7\xbd\x95\xe8\xa7\x81" in b"".join(
                    orjson.dumps(row.get("entities", row.get("label"))) for row in records(tmp_path, "train")
                )
                assert told == (not in_train) == (found[-1] == ["罕见"])
            assert [] in found and ["罕见"] in found

    def test_more_labels_than_the_summary_lists(self, tmp_path, capsys):
        rows = [{"text": f"第{n}句", "label": f"类{n % 30:02}"} for n in range(120)]
        test = [{"text": "另一句", "label": "财经"}]
        report = convert(transfer_classification_data.main, tmp_path, lines(rows), test=lines(test))
        assert report["labels_only_in_test"] == ["财经"] and "学不到的标签：财经 1" in capsys.readouterr().err


UNSEEN = [" {}", "{}　", "\ufeff{}", "{}\u200b", "{}\u2060 ", "\u200e{}\u200f", "\xa0\u200b {}\t"]


@pytest.mark.parametrize("form", UNSEEN)
def test_texts_that_look_the_same_are_one_text(form, tmp_path, capsys):
    rows = articles(50)
    unseen = [{**row, "text": form.format(row["text"])} for row in rows]
    report = convert(transfer_classification_data.main, tmp_path, lines([*rows, *unseen, *rows]))
    assert (report["converted"], report["merged"], report["alike"]) == (50, 100, 50)
    assert "有 50 行只在首尾的空白或看不见的字符" in capsys.readouterr().err
    report = convert(transfer_classification_data.main, tmp_path, lines([*unseen, *rows]))
    assert (report["merged"], report["alike"]) == (50, 50)
    written = {row["text"] for side in ("train", "test") for row in records(tmp_path, side)}
    assert written == {row["text"] for row in unseen}, "the first form is written as it is"


def test_training_rows_that_look_like_official_test_rows_are_dropped(tmp_path, capsys):
    rows = articles(50)
    unseen = [{**row, "text": f"{row['text'][:1]}\u200b{row['text'][1:]} "} for row in rows[:5]]
    report = convert(transfer_classification_data.main, tmp_path, lines(rows), test=lines(unseen))
    assert (report["leaked"], report["alike"], report["repeated"]) == (5, 5, 0)
    assert "有 5 行只在" in capsys.readouterr().err
    assert [row["text"] for row in records(tmp_path, "test")] == [row["text"] for row in unseen]


def test_the_same_looking_text_with_another_label_is_a_conflict_on_one_side(tmp_path):
    rows = articles(50)
    other = [
        {**row, "text": f"{row['text']} ", "output": "军事" if row["output"] != "军事" else "体育"} for row in rows
    ]
    report = convert(transfer_classification_data.main, tmp_path, lines(rows + other[:9]))
    assert (report["conflicts"], report["merged"], report["alike"], report["converted"]) == (9, 0, 0, 59)


def test_entities_of_texts_that_look_the_same_are_the_same_wherever_they_stand(tmp_path):
    """What nobody sees moves the offsets, and the offsets that are written count it."""
    rows = [
        {"text": f"第{n}次到北京", "label": [[len(f"第{n}次到"), len(f"第{n}次到") + 2, "城市"]]} for n in range(50)
    ]
    unseen = [
        {"text": f" \u200b{row['text'][:-1]}\ufeff{row['text'][-1]} ", "label": [[s + 2, e + 3, x]]}
        for row in rows
        for s, e, x in row["label"]
    ]
    report = convert(transfer_ner_data.main, tmp_path, lines(unseen + rows))
    assert (report["merged"], report["conflicts"], report["alike"]) == (50, 0, 50)
    for row in records(tmp_path, "train"):
        assert [row["text"][e["start"] : e["end"]] for e in row["entities"]] == ["北\ufeff京"]
    other = [{**row, "label": [[0, 2, "城市"]]} for row in rows[:9]]
    assert convert(transfer_ner_data.main, tmp_path, lines(unseen + other))["conflicts"] == 9


def test_joined_emoji_are_another_text_than_the_same_apart(tmp_path):
    rows = [{"text": f"{n}👨\u200d👩", "label": "甲" if n % 2 else "乙"} for n in range(9)]
    apart = [{**row, "text": row["text"].replace("\u200d", "")} for row in rows]
    assert convert(transfer_classification_data.main, tmp_path, lines(rows + apart))["merged"] == 0


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    """A limit on file size stands for the full disk."""
    (tmp_path / "raw.jsonl").write_bytes(lines(articles(5000)))
    command = [sys.executable, str(ROOT / "transfer_classification_data.py"), "--input_file=raw.jsonl"]
    command += ["--output_file=out/train.jsonl", "--test_file=out/test.jsonl"]
    limit = 1_000_000
    result = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("script", ["transfer_classification_data.py", "transfer_ner_data.py"])
def test_help_needs_the_standard_library_alone_and_answers_at_once(script):
    command = [sys.executable, "-S", "-X", "importtime", str(ROOT / script), "--help"]  # -S: without site-packages
    result = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert result.returncode == 0 and "--on_bad_row" in result.stdout
    total_microseconds = sum(int(line.split("|")[0].split(":")[1]) for line in result.stderr.splitlines()[1:])
    assert total_microseconds < 500_000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """At most 200 MB plus 100 bytes a row, however long a row is; here 300,000 rows with different texts."""
    with (tmp_path / "raw.jsonl").open("wb") as file:
        for number in range(300_000):
            row = {"text": f"第{number}号到北京", "entities": []}
            start = len(row["text"]) - 2
            row["entities"] = [
                {"start_idx": start, "end_idx": start + 2, "entity_text": "北京", "entity_label": "GPE"}
            ]
            file.write(orjson.dumps(row) + b"\n")
    probe = (
        "import re, sys, transfer_ner_data; assert transfer_ner_data.main(sys.argv[1:]) == 0;"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"  # ru_maxrss is inherited
    )
    command = [sys.executable, "-c", probe, f"--input_file={tmp_path / 'raw.jsonl'}"]
    command += [f"--output_file={tmp_path / 'train.jsonl'}", f"--test_file={tmp_path / 'test.jsonl'}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (
        int(result.stdout) * 1024 < 100e6 + 100 * 300_000
    )  # half of what is allowed, since the interpreter takes only 30 MB


@needs_shared
@pytest.mark.shared
def test_real_ccfbdci_adds_up(tmp_path):
    raw = SHARED / "ner" / "ccfbdci.jsonl"
    report = convert(transfer_ner_data.main, tmp_path, raw)
    assert report["read"] == sum(1 for _ in raw.open("rb")) and report["rejected"] == 0
    share_of_test(report, 0.1)
    empty = {
        side: sum(not row["entities"] for row in records(tmp_path, side)) / len(records(tmp_path, side))
        for side in ("train", "test")
    }
    assert abs(empty["train"] - empty["test"]) < 0.005


@needs_shared
@pytest.mark.shared
@pytest.mark.parametrize("official", [True, False])
def test_real_court_rows_add_up(official, tmp_path):
    train, test = (SHARED / "classification" / f"court_{side}.jsonl" for side in ("train", "test"))
    report = convert(transfer_classification_data.main, tmp_path, train, test=test if official else None)
    assert report["rejected"] == 0
    if official:
        assert len(records(tmp_path, "test")) == sum(1 for _ in test.open("rb"))
    else:
        share_of_test(report, 0.1)
