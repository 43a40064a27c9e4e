"""Prediction as a user sees it: every input form, offsets in the user's own text, one output for every row."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Oracle, save_adapter, tiny_model

import predict
from sft.console import with_progress
from sft.data.arguments import ReadOptions
from sft.data.inputs import read_file, read_stream
from sft.decoding.decode import rows_per_window
from sft.decoding.limits import Limits
from sft.errors import InputError, RowError
from sft.model.encoding import encode_prompts
from sft.prediction.choices import AS_TRAINED, LimitChoice, ModelChoice, read_settings
from sft.prediction.predictor import Predictor
from sft.prediction.rows import RowSettings, to_output, to_record, usable_gold
from sft.prediction.turns import predict_rows
from sft.tasks.classification import Classification
from sft.tasks.entity_lines import entity_line
from sft.tasks.ner import Ner
from sft.tasks.settings import TaskSettings

ROOT = Path(predict.__file__).parent
TEXTS = ["昨天，张伟到了上海", 'a "b" c', "𠮷"]
FORMS = {
    "txt": "\n".join(TEXTS),
    "jsonl": "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS),
    "csv": 'id,text\n1,"昨天，张伟到了上海"\n2,"a ""b"" c"\n3,𠮷\n',
    "tsv": 'text\tid\n昨天，张伟到了上海\t1\n"a ""b"" c"\t2\n𠮷\t3\n',
    "CSV": '内容\n昨天，张伟到了上海\n\n"a ""b"" c"\n𠮷\n',
}


def texts_of(rows) -> list[str]:
    return [row["text"] for row in rows]


def outcomes(rows) -> list[str]:
    """Each row's text, or its error message."""
    return [str(row) if isinstance(row, RowError) else row["text"] for row in rows]


class TestForms:
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
    @pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["lf", "crlf"])
    @pytest.mark.parametrize("ending", FORMS)
    def test_every_form_of_a_file_gives_the_same_texts(self, tmp_path, ending, newline, encoding):
        path = tmp_path / f"rows.{ending}"
        path.write_text(FORMS[ending], encoding=encoding, newline=newline)
        assert texts_of(read_file(path, "label")) == TEXTS

    def test_standard_input_is_lines_of_text_or_json(self):
        lines = '\ufeff张伟\n\n{"text": "上海"}\n  \nc\r\n'.encode()
        assert texts_of(read_stream(io.BytesIO(lines), "label")) == ["张伟", "", "上海", "  ", "c"]

    def test_a_table_keeps_its_other_columns(self, tmp_path):
        path = tmp_path / "rows.csv"
        path.write_text("正文,output,category\n国家队赢了,体育,\"['体育', '军事']\"\n", encoding="utf-8")
        record = to_record(next(iter(read_file(path, "label"))), Classification(labels=("经济",)))
        assert (record["text"], record["label"], list(record["options"])) == ("国家队赢了", "体育", ["体育", "军事"])

    def test_a_cell_may_be_long_and_have_line_ends(self, tmp_path):
        text = "长文\n" * 50_000
        path = tmp_path / "rows.csv"
        path.write_text(f'text\n"{text}"\n短\n', encoding="utf-8")
        assert texts_of(read_file(path, "label")) == [text, "短"]


class TestBadInput:
    def test_an_unquoted_comma_is_an_error_in_its_place_not_a_shifted_column(self, tmp_path):
        path = tmp_path / "rows.csv"
        path.write_text("text\n你好,世界\n张伟\n", encoding="utf-8")
        bad, good = outcomes(read_file(path, "label"))
        assert "第 2 行：有 2 列，表头有 1 列" in bad
        assert good == "张伟"

    def test_bad_lines_are_errors_in_their_place(self):
        lines = b'{"text": \n\xb0\xa1\xb0\xa2\n{"text": "\xe5\xbc\xa0"}\n'
        assert [isinstance(row, RowError) for row in read_stream(io.BytesIO(lines), "label")] == [True, True, False]

    @pytest.mark.parametrize("ending", ["txt", "csv", "jsonl"])
    def test_bytes_of_another_encoding_say_how_to_name_it(self, tmp_path, ending):
        path = tmp_path / f"rows.{ending}"
        path.write_bytes(FORMS[ending].encode() + b"\n\xb0\xa1\xb0\xa2\n")
        assert "--encoding gb18030" in outcomes(read_file(path, "label"))[-1]

    def test_bad_bytes_in_one_row_of_a_table_are_an_error_in_its_place(self, tmp_path, classification):
        path = tmp_path / "rows.csv"
        path.write_bytes("text\n张伟\n上海\n".encode() + b"\xb0\xa1\n" + "菲律宾\n".encode())
        records = [to_record(row, classification) for row in read_file(path, "label")]
        assert [isinstance(record, RowError) for record in records] == [False, False, True, False]
        assert "第 4 行：有解不开的字节" in str(records[2])

    def test_a_table_without_a_text_column_is_refused_at_once(self, tmp_path):
        path = tmp_path / "rows.csv"
        path.write_text("主题,正确\n一,二\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"认不出哪一列是文本.*主题、正确.*--text_column"):
            read_file(path, "label")
        assert next(read_file(path, "label", ReadOptions(text_column="主题")))["text"] == "一"

    def test_a_folder_a_missing_or_an_empty_file_is_refused_at_once(self, tmp_path):
        (tmp_path / "empty.txt").write_text("\n\n")
        for path in (tmp_path, tmp_path / "none.txt", tmp_path / "empty.txt"):
            with pytest.raises(InputError, match=f"{path.name}：(没有这个文件|是一个目录|文件是空的)"):
                read_file(path, "label")

    @pytest.mark.parametrize(
        "row", [{}, {"text": None}, {"text": 3}, {"text": ["a"]}, {"text": " \n"}, {"text": "a\ud800"}], ids=str
    )
    def test_a_row_without_usable_text_says_so(self, classification, row):
        record = to_record(row, classification)
        assert isinstance(record, RowError)
        assert to_output(record, {}, classification)["error"].startswith("text: ")

    @pytest.mark.parametrize(
        "entities", ["x", [3], [{}], [{"start": 0, "end": 99, "label": "人名"}], {"a": 1}], ids=str
    )
    @pytest.mark.parametrize("extra", [{}, {"messages": []}], ids=["raw", "record"])
    def test_broken_gold_does_not_keep_a_row_from_its_prediction(self, ner, entities, extra):
        record = to_record({"text": "张伟", "entities": entities} | extra, ner)
        error = record.pop("gold_error")
        assert record == {"text": "张伟", "original": "张伟"}
        assert isinstance(error, RowError) and error.kind

    def test_a_broken_label_does_not_cost_a_row_its_options(self, classification):
        for row in (
            {"text": "a", "category": ["左", "右"], "output": "上"},
            {"text": "a", "options": ["左", "右"], "label": 3, "messages": []},
        ):
            record = to_record(row, classification)
            assert list(classification.options(record)) == ["左", "右"]
            assert usable_gold(record, classification) is None


# Words that Unicode normalisation changes (1 character to 1, 2 to 1, 3 to 1, 1 to 2), and some that it leaves alone.
WORDS = ("豈", "e\u0301", "\u1112\u1161\u11ab", "\u0958", "A\u030a\u0323", "张伟", "a", "𠮷", "한", "é")


class TestUsersOwnText:
    @settings(max_examples=100, deadline=None)
    @given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=10), chosen=st.sets(st.integers(0, 9)))
    def test_gold_comes_out_as_it_went_in(self, words, chosen):
        ner = Ner(labels=("人名",), system_prompt="")
        text, raw, given_gold = "", [], []
        for index, word in enumerate(words):
            start, end = len(text), len(text) + len(word)
            text += word
            if index in chosen:
                raw.append({"start_idx": start, "end_idx": end, "entity_text": word, "entity_label": "人名"})
                given_gold.append({"start": start, "end": end, "text": word, "label": "人名"})
        record = to_record({"text": text, "entities": raw}, ner)
        assert unicodedata.is_normalized("NFC", record["text"])
        output = to_output(record, {"entities": record["entities"]}, ner)
        assert output == {"text": text, "entities": given_gold, "gold": {"entities": given_gold}}

    @settings(max_examples=200, deadline=None)
    @given(
        original=st.text(st.sampled_from([*"".join(WORDS), "\u0301", "\u1100", "\u1161", "。"]), min_size=1),
        span=st.tuples(st.integers(0, 30), st.integers(1, 5)),
    )
    def test_any_predicted_span_is_a_slice_of_the_users_text(self, original, span):
        ner = Ner(labels=("人名",), system_prompt="")
        record = to_record({"text": original}, ner)
        text = record["text"]
        start = span[0] % len(text)
        end = min(len(text), start + span[1])
        entity = {"start": start, "end": end, "text": text[start:end], "label": "人名", "score": 0.5}
        output = to_output(record, {"entities": [entity]}, ner)
        (shown,) = output["entities"]
        assert output["text"] == original
        assert original[shown["start"] : shown["end"]] == shown["text"]
        assert text[start:end] in unicodedata.normalize("NFC", shown["text"])
        assert shown["score"] == 0.5
        if text == original:
            assert shown == entity

    def test_an_entity_in_decomposed_text_is_found_and_shown_decomposed(self, tokenizer, ner):
        original = "e\u0301\u1112\u1161\u11ab豈张伟e\u0301"
        loaded = Predictor(Oracle(tokenizer), tokenizer, ner, Limits(512, 400, 4))
        lines, _ = predict_rows(loaded, [{"text": original}])
        (entity,) = orjson.loads(next(lines))["entities"]
        assert (entity["start"], entity["end"], entity["text"]) == (6, 8, "张伟")


def check_outputs(outputs: list[dict], texts: list[str | None]) -> None:
    """Check that there is one output for each row, in order. In ``texts``, None stands for a row with an error."""
    assert [None if "error" in output and "text" not in output else output["text"] for output in outputs] == texts


class TestPredictRows:
    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_every_row_has_its_line_in_order_and_metrics_are_the_tasks_own(self, tokenizer, ner, batch_size):
        gold = [{"start_idx": 0, "end_idx": 2, "entity_label": "人名"}]
        rows = [
            {"text": "张伟到上海", "entities": gold},
            RowError("", "不是合法的 JSON"),
            {"text": "没有"},
            {"text": ""},
            {"text": "小明。", "entities": gold},
            {"text": "无", "entities": []},
        ] * 20
        loaded = Predictor(Oracle(tokenizer), tokenizer, ner, Limits(512, 400, batch_size))
        lines, metrics = predict_rows(loaded, iter(rows))
        outputs = [orjson.loads(line) for line in lines]
        check_outputs(outputs, ["张伟到上海", None, "没有", None, "小明。", "无"] * 20)
        assert [output["error"] for output in outputs[1:4:2]] == ["不是合法的 JSON", "text: 文本是空的"]
        judged = [output for output in outputs if "gold" in output]
        score = ner.metrics(ner.count([output["gold"] for output in judged], judged))
        assert metrics() == {"rows": 60, **score, "unparsable": 0.0, "ece": metrics()["ece"]}
        assert (score["precision"], score["recall"]) == (1 / 2, 1 / 2)

    def test_without_gold_there_are_no_metrics(self, tokenizer, ner):
        loaded = Predictor(Oracle(tokenizer), tokenizer, ner, Limits(512, 400, 2))
        lines, metrics = predict_rows(loaded, [{"text": "张伟"}])
        assert "gold" not in orjson.loads(next(lines))
        assert metrics() is None

    def test_rows_too_long_for_the_model_are_errors_with_their_text(self, tokenizer, classification):
        loaded = Predictor(tiny_model("qwen2"), tokenizer, classification, Limits(20, 8, 2))
        lines, metrics = predict_rows(loaded, [{"text": "军", "output": "军事"}])
        output = orjson.loads(next(lines))
        assert output["text"] == "军"
        assert "超过 20" in output["error"]
        assert metrics() is None

    def test_rows_are_read_a_window_ahead_at_most_and_counted_not_kept(self, tokenizer, classification):
        read = 0

        def rows():
            nonlocal read
            for read in range(1, 101):
                yield {"text": "打仗", "output": ("军事", "体育")[read % 2]}

        loaded = Predictor(tiny_model("qwen2"), tokenizer, classification, Limits(100, 8, 1))
        lines, metrics = predict_rows(loaded, rows())
        for written, _ in enumerate(lines):
            assert read - written <= rows_per_window(loaded.limits)
        assert metrics()["rows"] == 100

    @pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
    def test_under_the_threshold_a_label_is_null_and_counts_as_wrong(self, tokenizer, classification, threshold):
        settings = RowSettings(threshold=threshold)
        loaded = Predictor(tiny_model("qwen2"), tokenizer, classification, Limits(200, 8, 2), settings)
        rows = [{"text": text, "output": "军事"} for text in ("打仗", "比赛", "国家队赢了", "钱", "昨天")]
        lines, metrics = predict_rows(loaded, rows)
        outputs = [orjson.loads(line) for line in lines]
        free = [orjson.loads(line) for line in predict_rows(replace(loaded, row_settings=RowSettings()), rows)[0]]
        for output, unchecked in zip(outputs, free, strict=True):
            kept = unchecked["score"] >= threshold
            assert output == unchecked | {"label": unchecked["label"] if kept else None}
        assert metrics()["accuracy"] == sum(output["label"] == "军事" for output in outputs) / 5
        if threshold == 1.0:
            assert {output["label"] for output in outputs} == {None}

    def test_under_the_threshold_an_entity_is_not_given(self, tokenizer, ner):
        def entities(threshold: float | None) -> list[dict]:
            settings = RowSettings(threshold=threshold)
            loaded = Predictor(Oracle(tokenizer), tokenizer, ner, Limits(512, 400, 4, constrained=False), settings)
            return orjson.loads(next(predict_rows(loaded, [{"text": "张伟到上海"}])[0]))["entities"]

        scores = sorted(entity["score"] for entity in entities(None))
        assert len(scores) == 2
        assert len(entities(scores[0])) == 2
        assert [entity["score"] for entity in entities((scores[0] + scores[1]) / 2)] == scores[1:]
        assert entities(1.0) == []


class Babbler(Oracle):
    """A model whose answers contain every possible mistake."""

    def answer(self, sentence: str) -> str:
        faults = [("张伟", "人名"), ("张伟", "人名"), ("火星", "人名"), ("到", "怪物")]
        return "\n".join([entity_line(*fault) for fault in faults] + ["随便说说"])


class TestUnconstrained:
    def test_faults_of_free_answers_are_counted_with_or_without_gold_and_the_answer_is_shown(self, tokenizer, ner):
        loaded = Predictor(
            Babbler(tokenizer), tokenizer, ner, Limits(512, 400, 2, constrained=False), RowSettings(with_answer=True)
        )
        lines, metrics = predict_rows(loaded, [{"text": "张伟到上海"}, {"text": ""}, {"text": "张伟到南京"}])
        outputs = [orjson.loads(line) for line in lines]
        assert outputs[0]["answer"] == Babbler(tokenizer).answer("")
        assert [entity["text"] for entity in outputs[0]["entities"]] == ["张伟"]
        assert metrics() == {
            "predicted_rows": 2, "invalid": 2, "unknown_label": 2, "invented": 2, "repeated": 2, "out_of_order": 0,
        }  # fmt: skip

    def test_a_label_outside_the_options_is_null_and_counted(self, tokenizer, classification):
        model = tiny_model("qwen2")
        limits = Limits(200, 4, 2, constrained=False)
        loaded = Predictor(model, tokenizer, classification, limits, RowSettings(with_answer=True))
        rows = [{"text": text, "output": "军事"} for text in ("打仗", "比赛", "钱")]
        lines, metrics = predict_rows(loaded, rows)
        for row, output in zip(rows, map(orjson.loads, lines), strict=True):
            assert output["answer"] not in classification.labels, "a random model"
            assert output["label"] is None
            (prompt,) = encode_prompts([row], classification, tokenizer)
            ids = model.generate(torch.tensor([prompt]), max_new_tokens=4, do_sample=False)
            chosen = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1).max(-1)
            assert torch.equal(chosen.indices, ids[0, len(prompt) :])
            assert output["answer"] == tokenizer.decode(ids[0, len(prompt) :])
            assert output["score"] == pytest.approx(chosen.values.sum().exp().item(), rel=1e-4)
        figures = metrics()
        assert (figures["predicted_rows"], figures["out_of_options"], figures["accuracy"]) == (3, 3, 0.0)
        assert figures["unparsable"] == 1.0


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory) -> Path:
    """A folder as training writes it: adapter, tokenizer, task.json. Its base model is next to it."""
    return save_adapter(tokenizer, tmp_path_factory.mktemp("output"), ("体育", "军事", "经济"))


ROWS = [{"text": "国家队赢了", "output": "体育"}, {"text": ""}, {"text": "打仗", "output": "军事"}, {"text": "钱"}]


@pytest.fixture
def rows_file(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, ROWS)))
    return path


def one_line(text: str) -> bool:
    return text.count("\n") == 1 and text.endswith("\n")


class TestCommandLine:
    def test_a_file_gives_a_line_for_each_row_and_metrics_on_stderr(self, trained, rows_file, capsys):
        assert predict.main(["--adapter", str(trained), "--input_file", str(rows_file)]) == 0
        captured = capsys.readouterr()
        outputs = [json.loads(line) for line in captured.out.splitlines()]
        check_outputs(outputs, ["国家队赢了", None, "打仗", "钱"])
        judged = [output for output in outputs if "gold" in output]
        metrics = json.loads(captured.err[captured.err.index("{") :])
        task = Classification(labels=("体育", "军事", "经济"))
        counts = task.count([output["gold"] for output in judged], judged)
        assert metrics == {"rows": 2, **task.metrics(counts), "unparsable": 0.0, "ece": metrics["ece"]}

    def test_an_output_file_holds_the_same_lines_and_stdout_the_metrics(self, trained, rows_file, tmp_path, capsys):
        predict.main(["--adapter", str(trained), "--input_file", str(rows_file)])
        expected = capsys.readouterr().out
        out = tmp_path / "new" / "predictions.jsonl"
        arguments = ["--adapter", str(trained), "--input_file", str(rows_file), "--output_file", str(out)]
        assert predict.main(arguments) == 0
        assert out.read_text(encoding="utf-8") == expected
        assert json.loads(capsys.readouterr().out)["rows"] == 2

    def test_standard_input_and_text_are_predicted_alike(self, trained, monkeypatch, capsys):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("打仗\n".encode()), encoding="utf-8"))
        assert predict.main(["--adapter", str(trained)]) == 0
        from_stdin = capsys.readouterr().out
        assert predict.main(["--adapter", str(trained), "--text", "打仗"]) == 0
        assert capsys.readouterr().out == from_stdin
        assert json.loads(from_stdin)["label"] in ("体育", "军事", "经济")

    def test_base_only_leaves_the_adapter_out(self, trained, capsys):
        outputs = []
        base = ["--task_file", str(trained / "task.json")]
        for flags in (["--adapter", str(trained)], ["--adapter", str(trained), "--base_only"], ["--base_only", *base]):
            assert predict.main([*flags, "--text", "打仗"]) == 0
            outputs.append(json.loads(capsys.readouterr().out)["scores"])
        assert outputs[1] == outputs[2] != outputs[0]

    def test_a_task_file_of_a_conversion_does_not_say_how_long_articles_are_read(self, trained, tmp_path):
        """It replaces the labels and the instruction; what was read in training still is."""
        converted = TaskSettings(Classification(("体育", "军事")))
        converted.write(tmp_path / "x.task.json")
        adapters = {}
        for long_text in ("ends", "head"):
            adapters[long_text] = shutil.copytree(trained, tmp_path / long_text)
            before = TaskSettings.read(trained / "task.json")
            task = replace(before.task, long_text=long_text)
            before.replace(task=task, version="test").write(adapters[long_text] / "task.json")
            choice = ModelChoice(adapters[long_text], task_file=tmp_path / "x.task.json")
            assert read_settings(choice).task == replace(converted.task, long_text=long_text)
            by_itself = ModelChoice(base_only=True, task_file=adapters[long_text] / "task.json")
            assert read_settings(by_itself).task.long_text == long_text
        without = ModelChoice(base_only=True, task_file=tmp_path / "x.task.json")
        assert read_settings(without).task.long_text == "ends"  # as training, which is to be compared, reads them

    def test_a_missing_adapter_is_one_line_and_exit_code_2(self, tmp_path, capsys):
        assert predict.main(["--adapter", str(tmp_path / "none"), "--text", "a"]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert one_line(captured.err)
        assert "--adapter" in captured.err

    @pytest.mark.parametrize(
        "content",
        [
            b"{",
            b"[]",
            b'{"task": "poetry"}',
            b'{"task": "ner", "labels": ["a"], "system_prompt": "b"}',
            b'{"format_version": 0, "task": "ner", "labels": ["a"], "system_prompt": "b"}',
            b'{"format_version": 1, "task": "ner"}',
            b'{"format_version": 1, "task": "ner", "labels": 3}',
        ],
        ids=repr,
    )
    def test_a_broken_task_file_is_one_line_and_exit_code_2(self, tmp_path, capsys, content):
        (tmp_path / "task.json").write_bytes(content)
        assert predict.main(["--adapter", str(tmp_path), "--text", "a"]) == 2
        captured = capsys.readouterr()
        assert one_line(captured.err)
        assert "task.json" in captured.err

    def test_a_bad_input_file_is_found_before_the_model_is_loaded(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr("sft.prediction.predictor.Predictor.load", lambda *_: pytest.fail("loaded"))
        (tmp_path / "rows.csv").write_text("a\nb\n", encoding="utf-8")
        for name in ("rows.csv", "none.txt"):
            assert predict.main(["--adapter", "x", "--input_file", str(tmp_path / name)]) == 2
            assert one_line(capsys.readouterr().err)

    @pytest.mark.parametrize(
        "flags",
        [
            [],
            ["--adapter", "x", "--texts", "a"],
            ["--adap", "x"],
            ["--adapter", "x", "--batch_size", "0"],
            ["--adapter", "x", "--text", "a", "--input_file", "b"],
            ["--adapter", "x", "--dtype", "int8"],
            ["--adapter", "x", "--threshold", "1.5"],
            ["--adapter", "x", "--threshold", "nan"],
            ["--adapter", "x", "--constrained", "maybe"],
            ["--adapter", "x", "--max_tokens", "-1"],
            ["--adapter", "x", "--resume", "--overwrite", "--input_file", "a", "--output_file", "b"],
        ],
        ids=" ".join,
    )
    def test_wrong_usage_is_one_line_and_exit_code_2(self, flags, capsys):
        with pytest.raises(SystemExit) as exit_info:
            predict.main(flags)
        assert exit_info.value.code == 2
        assert one_line(capsys.readouterr().err)

    def test_help_needs_no_torch_and_half_a_second(self):
        resource = pytest.importorskip("resource")  # not on Windows
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-X", "importtime", "predict.py", "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0
        assert "--adapter" in done.stdout
        modules = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
        assert "argparse" in modules
        assert not modules & {"torch", "transformers", "peft", "pandas"}
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5

    @pytest.mark.parametrize(
        "options", ["体育,军事", "体育，军事", "体育、军事", '["体育", "军事"]', "['体育', '军事']"]
    )
    def test_options_given_are_the_only_ones(self, trained, options, capsys):
        assert predict.main(["--adapter", str(trained), "--text", "钱", "--options", options]) == 0
        assert list(json.loads(capsys.readouterr().out)["scores"]) == ["体育", "军事"]

    @pytest.mark.parametrize("to_file", [False, True], ids=["lines", "metrics"])
    def test_a_reader_that_has_had_enough_is_no_error_to_tell(self, trained, rows_file, tmp_path, to_file):
        """The reader closes the pipe early, as in ``predict.py … | head -1``."""
        reader, writer = os.pipe()
        os.close(reader)
        output = ["--output_file", str(tmp_path / "out.jsonl")] if to_file else []
        command = [sys.executable, "predict.py", "--adapter", str(trained), "--input_file", str(rows_file), *output]
        done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, encoding="utf-8")
        os.close(writer)
        assert done.returncode == 141
        assert re.fullmatch(r"预测了 4 条.*；写在 .*out\.jsonl\n" if to_file else "", done.stderr)

    @pytest.mark.parametrize("options", ["体育,", "体育,体育", "[1]", "[", ""])
    def test_options_that_are_none_are_one_line(self, trained, options, capsys):
        assert predict.main(["--adapter", str(trained), "--text", "钱", "--options", options]) == 2
        captured = capsys.readouterr()
        assert one_line(captured.err)
        assert "--options" in captured.err


def test_progress_is_a_line_now_and_then_where_nobody_watches(monkeypatch, caplog):
    monkeypatch.setattr("sft.console.SECONDS_BETWEEN_LINES", 0.0)
    caplog.set_level("INFO")
    windows = [(["{}"] * 30, None), (["{}"] * 10, None)]
    assert list(with_progress(iter(windows), 60, 100)) == windows
    first, last = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(r"已预测 90 条（共 100），每秒 [\d.]+ 条，还要约 \d+ 秒", first)
    assert "已预测 100 条" in last
    caplog.clear()
    list(with_progress(iter(windows), 0, None))
    assert re.fullmatch(r"已预测 30 条，每秒 [\d.]+ 条", caplog.records[0].getMessage())


def test_predictions_use_the_lengths_and_numbers_of_training(trained):
    loaded = Predictor.load(trained)
    assert loaded.limits == Limits(max_length=200, max_new_tokens=8, batch_size=16)
    assert str(loaded.model.dtype) == "torch.float32"
    assert Predictor.load(trained, LimitChoice(max_length=99, batch_size=2)).limits == Limits(99, 8, 2)


def test_an_adapter_trained_in_float16_is_usable_on_a_cpu(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    path = tmp_path / "task.json"
    TaskSettings.read(trained / "task.json").replace(dtype="float16").write(path)
    assert str(Predictor.load(ModelChoice(base_only=True, task_file=path)).model.dtype) != "torch.float16"
    with pytest.raises(InputError, match="float16"):
        Predictor.load(ModelChoice(base_only=True, task_file=path, dtype="float16"))


def test_options_are_refused_where_answers_are_free_text_before_the_model_is_loaded(ner, tmp_path, monkeypatch):
    monkeypatch.setattr("sft.prediction.predictor.load_base", lambda *_: pytest.fail("loaded"))
    TaskSettings(ner).write(tmp_path / "task.json")
    choice = ModelChoice(base_only=True, task_file=tmp_path / "task.json")
    with pytest.raises(InputError, match=r"--options.*只用于分类"):
        Predictor.load(choice, row_settings=RowSettings(options=("体育", "军事")))


def test_a_threshold_given_counts_for_more_than_the_one_of_training(trained, tmp_path):
    adapter = Path(shutil.copytree(trained, tmp_path / "adapter"))
    TaskSettings.read(trained / "task.json").replace(threshold=0.25).write(adapter / "task.json")

    def settings(choice: ModelChoice, limits: LimitChoice = AS_TRAINED, **chosen) -> tuple[float | None, bool]:
        rows = Predictor.load(choice, limits, RowSettings(**chosen)).row_settings
        return rows.threshold, rows.with_answer

    assert settings(ModelChoice(adapter)) == (0.25, False)
    assert settings(ModelChoice(adapter), threshold=0.0) == (0.0, False)
    assert settings(ModelChoice(adapter, base_only=True)) == (None, False)
    assert settings(ModelChoice(adapter), LimitChoice(constrained=False)) == (None, True)
