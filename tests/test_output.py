"""Output files: resuming a killed run gives the same bytes as an uninterrupted run, or says why it cannot."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import save_adapter, save_model, tiny_model, with_random_lora

import predict
from sft.errors import InputError
from sft.prediction.output import GrowingFile, progress_path
from sft.tasks.classification import Classification
from sft.tasks.evaluation import Tally, metrics_of_predictions
from sft.tasks.settings import TaskSettings

ROWS = 300
WINDOW = 32  # rows that are read ahead and written together, at --batch_size 2
LABELS = ("体育", "军事", "经济")


@pytest.fixture(scope="module")
def adapter(tokenizer, tmp_path_factory) -> Path:
    """The folder of a classification adapter as training writes it, next to its base model."""
    return save_adapter(tokenizer, tmp_path_factory.mktemp("output"), LABELS)


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory) -> Path:
    """Rows of many lengths. Most have gold labels; some have none, and some cannot be read."""
    draw = random.Random(0)
    lines = []
    for number in range(ROWS):
        text = "".join(draw.choices("昨天国家队在上海赢了比赛打仗钱", k=draw.randint(1, 60)))
        row = {"text": text, "output": draw.choice(LABELS)} if number % 7 else {"text": text}
        lines.append('{"text": ' if number % 50 == 49 else json.dumps(row, ensure_ascii=False))
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def flags(adapter: Path, rows_file: Path, output: Path, *more: str) -> list[str]:
    files = ["--adapter", str(adapter), "--input_file", str(rows_file), "--output_file", str(output)]
    return [*files, "--batch_size", "2", *more]


@pytest.fixture(scope="module")
def undisturbed(adapter, rows_file, tmp_path_factory) -> Path:
    """The output of an uninterrupted run."""
    output = tmp_path_factory.mktemp("undisturbed") / "predictions.jsonl"
    assert predict.main(flags(adapter, rows_file, output)) == 0
    return output


@pytest.fixture
def half(undisturbed, adapter, rows_file, tmp_path, monkeypatch) -> Path:
    """The output of a run that stopped after two windows; after them comes a part of the third."""
    output = tmp_path / "predictions.jsonl"
    add = GrowingFile.add

    def fail_later(self, lines, tally):
        if self.rows == 2 * WINDOW:
            raise KeyboardInterrupt
        add(self, lines, tally)

    with monkeypatch.context() as patch:
        patch.setattr(GrowingFile, "add", fail_later)
        assert predict.main(flags(adapter, rows_file, output)) == 130
    with output.open("ab") as file:
        file.write(undisturbed.read_bytes()[output.stat().st_size :][:500])
    return output


def finished_rows(output: Path) -> int:
    return json.loads(progress_path(output).read_bytes())["rows"]


class TestKilled:
    def test_killed_at_random_moments_and_resumed_it_is_byte_identical(
        self, adapter, rows_file, undisturbed, tmp_path, capsys
    ):
        draw = random.Random(1)
        context = forked.server()
        output, log = tmp_path / "predictions.jsonl", tmp_path / "log"
        total = undisturbed.stat().st_size
        arguments = flags(adapter, rows_file, output, "--resume")
        kills = 0
        for moment in sorted(draw.uniform(0, 0.95) for _ in range(6)):
            process = context.Process(target=forked.run, args=(arguments, log))
            process.start()
            while process.is_alive() and not (output.exists() and output.stat().st_size > moment * total):
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.02))
            process.kill()
            process.join()
            kills += process.exitcode == -signal.SIGKILL
            assert undisturbed.read_bytes().startswith(output.read_bytes()), "it grows in input order"
        assert kills >= 3, log.read_text(encoding="utf-8")
        capsys.readouterr()
        assert predict.main(arguments) == 0
        assert output.read_bytes() == undisturbed.read_bytes()
        resumed = json.loads(capsys.readouterr().out)
        assert predict.main(flags(adapter, rows_file, tmp_path / "again.jsonl")) == 0
        assert json.loads(capsys.readouterr().out) == resumed, "the metrics are over all rows"
        assert {path.name for path in tmp_path.iterdir() if path.name.startswith("predictions")} == {
            "predictions.jsonl", "predictions.jsonl.progress.json",
        }  # fmt: skip
        assert not list(tmp_path.glob(".*"))

    def test_interrupted_it_says_how_much_is_kept_and_how_to_go_on(self, adapter, rows_file, undisturbed, tmp_path):
        for attempt in range(5):  # on a busy machine it may be done before the signal comes
            output, log = tmp_path / f"predictions-{attempt}.jsonl", tmp_path / f"log-{attempt}"
            process = forked.server().Process(target=forked.run, args=(flags(adapter, rows_file, output), log))
            process.start()
            while not (output.exists() and output.stat().st_size):
                time.sleep(0.001)
            os.kill(process.pid, signal.SIGINT)
            process.join()
            if process.exitcode != 0:
                break
        assert process.exitcode == 130
        said = log.read_text(encoding="utf-8")
        assert "Traceback" not in said
        assert f"已写好 {finished_rows(output)} 行；原来的命令加 --resume 接着跑" in said
        assert predict.main(flags(adapter, rows_file, output, "--resume")) == 0
        assert output.read_bytes() == undisturbed.read_bytes()

    def test_a_torn_window_is_cut_off_and_done_again(self, half, adapter, rows_file, undisturbed):
        assert finished_rows(half) == 2 * WINDOW
        assert predict.main(flags(adapter, rows_file, half, "--resume")) == 0
        assert half.read_bytes() == undisturbed.read_bytes()

    def test_two_processes_resume_what_one_began_and_give_the_same_bytes(
        self, half, adapter, rows_file, undisturbed, capsys
    ):
        assert predict.main(flags(adapter, rows_file, half.with_name("one.jsonl"))) == 0
        metrics = json.loads(capsys.readouterr().out)
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command = [*launcher, "predict.py", *flags(adapter, rows_file, half, "--resume")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=forked.ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=200
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert half.read_bytes() == undisturbed.read_bytes()
        assert json.loads(done.stdout) == metrics, "said once, over all rows"

    @pytest.mark.slow
    def test_killed_twenty_times_in_five_thousand_rows(self, tmp_path, capsys):
        """Runs the real script on the demo model, each time in a new process."""
        sample = forked.ROOT / "data/sample/news_train.jsonl"
        rows = [json.loads(line) for line in sample.read_text(encoding="utf-8").splitlines()]
        path = tmp_path / "rows.jsonl"
        texts = [json.dumps(row | {"text": row["text"][: 40 + 5 * part]}) for part in range(5) for row in rows]
        path.write_text("\n".join(texts[:5000]) + "\n", encoding="utf-8")
        task = Classification(labels=tuple(sorted({row["output"] for row in rows})))
        TaskSettings(task).write(tmp_path / "rows.task.json")
        model = ["--base_only", "--model_name_or_path", str(forked.ROOT / "qwen/demo"), "--dtype", "float32"]
        command = [sys.executable, "predict.py", *model, "--input_file", str(path), "--batch_size", "8"]
        started = time.monotonic()
        whole, output = tmp_path / "whole.jsonl", tmp_path / "predictions.jsonl"
        undisturbed = subprocess.run([*command, "--output_file", str(whole)], cwd=forked.ROOT, capture_output=True)
        assert undisturbed.returncode == 0
        seconds = time.monotonic() - started
        assert len(whole.read_bytes().splitlines()) == 5000

        draw = random.Random(2)
        kills, torn, moments = 0, 0, []
        while kills < 20:
            process = subprocess.Popen(
                [*command, "--output_file", str(output), "--resume"],
                cwd=forked.ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            before = output.stat().st_size if output.exists() else 0
            step = draw.uniform(0, 1.9) * (whole.stat().st_size - before) / (21 - kills)
            while process.poll() is None and not (output.exists() and output.stat().st_size >= before + step):
                time.sleep(0.001)
            time.sleep(draw.uniform(0, seconds / 100))
            process.kill()
            said = process.stderr.read().decode()
            assert process.wait() == -signal.SIGKILL, said
            kills += 1
            size = output.stat().st_size if output.exists() else 0
            moments.append(round(size / whole.stat().st_size, 3))
            torn += bool(size) and output.read_bytes()[-1:] != b"\n"
            assert whole.read_bytes().startswith(output.read_bytes() if size else b"")
        final = subprocess.run(
            [*command, "--output_file", str(output), "--resume"], cwd=forked.ROOT, capture_output=True
        )
        assert final.returncode == 0
        assert output.read_bytes() == whole.read_bytes()
        assert final.stdout == undisturbed.stdout
        with capsys.disabled():
            sys.stdout.write(f"\n{kills} kills at shares {moments}, {torn} torn lines; {seconds:.0f} s undisturbed\n")


class TestRefused:
    """Exit code 2, a one-line message, and an unchanged output file."""

    def check(self, output: Path, arguments: list[str], capsys, *words: str) -> None:
        before = {path: path.read_bytes() for path in output.parent.iterdir() if path.is_file()}
        capsys.readouterr()
        assert predict.main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        for word in words:
            assert word in captured.err
        assert {path: path.read_bytes() for path in output.parent.iterdir() if path.is_file()} == before

    def test_a_half_finished_output_is_not_overwritten_by_accident(
        self, half, adapter, rows_file, undisturbed, capsys
    ):
        self.check(half, flags(adapter, rows_file, half), capsys, f"第 {2 * WINDOW} 行", "--resume", "--overwrite")
        assert predict.main(flags(adapter, rows_file, half, "--overwrite")) == 0
        assert half.read_bytes() == undisturbed.read_bytes()

    def test_a_file_of_somebody_elses_is_not_overwritten(self, adapter, rows_file, tmp_path, capsys):
        output = tmp_path / "thesis.txt"
        output.write_text("三年的工作")
        self.check(output, flags(adapter, rows_file, output), capsys, "不是 predict.py 写的", "--overwrite")
        self.check(output, flags(adapter, rows_file, output, "--resume"), capsys, "progress.json")

    def test_the_input_is_never_the_output(self, adapter, rows_file, capsys):
        self.check(rows_file, flags(adapter, rows_file, rows_file, "--overwrite"), capsys, "既是输入又是输出")

    def test_a_folder_is_no_output(self, adapter, rows_file, tmp_path, capsys):
        self.check(tmp_path / "x", flags(adapter, rows_file, tmp_path), capsys, "目录")

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (["--batch_size", "3"], "batch_size：2 → 3"),
            (["--threshold", "0.5"], "threshold：None → 0.5"),
            (["--options", "体育,军事"], "options"),
            (["--max_rows", "200"], "max_rows"),
            (["--base_only"], "adapter"),
            (["--dtype", "bfloat16"], "dtype：float32 → bfloat16"),
        ],
        ids=lambda change: str(change),
    )
    def test_other_settings_are_not_resumed(self, half, adapter, rows_file, capsys, change, named):
        self.check(half, [*flags(adapter, rows_file, half, "--resume"), *change], capsys, "不一致", named)

    def test_another_input_or_adapter_is_not_resumed(self, half, adapter, rows_file, tokenizer, tmp_path, capsys):
        other_rows = tmp_path / "other.jsonl"
        other_rows.write_bytes(rows_file.read_bytes().replace("赢".encode(), "输".encode(), 1))
        self.check(half, flags(adapter, other_rows, half, "--resume"), capsys, "input_file")
        other = tmp_path / "adapter"
        save_model(with_random_lora(tiny_model("qwen2"), seed=5), tokenizer, other)
        (other / "task.json").write_bytes((adapter / "task.json").read_bytes())
        self.check(half, flags(other, rows_file, half, "--resume"), capsys, "adapter")

    def test_finished_lines_that_were_changed_since_are_not_resumed(self, half, adapter, rows_file, capsys):
        content = half.read_bytes()
        for changed in (content.replace(b"0.", b"1.", 1), content[:100], b""):
            half.write_bytes(changed)
            self.check(half, flags(adapter, rows_file, half, "--resume"), capsys, "与上次写下的不同")

    @pytest.mark.parametrize("content", [b"{", b"[]", b'{"format_version": 1}', b'{"format_version": 99}'], ids=repr)
    def test_a_broken_progress_file_is_refused(self, half, adapter, rows_file, capsys, content):
        progress_path(half).write_bytes(content)
        self.check(half, flags(adapter, rows_file, half, "--resume"), capsys, "progress.json")

    @pytest.mark.parametrize("more", [["--text", "甲", "--output_file", "x"], []], ids=["text", "stdin"])
    def test_what_is_no_file_cannot_be_resumed(self, adapter, more, capsys):
        with pytest.raises(SystemExit) as stop:
            predict.main(["--adapter", str(adapter), "--resume", *more])
        assert stop.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


class TestFinished:
    def test_resuming_a_finished_run_changes_nothing_and_tells_the_metrics_again(
        self, undisturbed, adapter, rows_file, capsys
    ):
        before = undisturbed.read_bytes()
        assert predict.main(flags(adapter, rows_file, undisturbed, "--resume")) == 0
        assert json.loads(capsys.readouterr().out)["rows"] > 200
        assert undisturbed.read_bytes() == before

    def test_a_finished_output_may_be_replaced(self, adapter, rows_file, tmp_path):
        output = tmp_path / "predictions.jsonl"
        for count in (40, 7):
            assert predict.main(flags(adapter, rows_file, output, "--max_rows", str(count))) == 0
            assert len(output.read_bytes().splitlines()) == finished_rows(output) == count

    def test_resuming_what_never_began_begins(self, adapter, rows_file, tmp_path):
        output = tmp_path / "new" / "predictions.jsonl"
        assert predict.main(flags(adapter, rows_file, output, "--resume", "--max_rows", "3")) == 0
        assert len(output.read_bytes().splitlines()) == 3

    def test_a_device_is_written_to_as_it_is(self, adapter, rows_file):
        assert predict.main(flags(adapter, rows_file, Path("/dev/null"), "--max_rows", "3")) == 0
        assert not progress_path(Path("/dev/null")).exists()

    def test_a_full_disk_is_one_line_and_exit_1(self, adapter, rows_file, capsys):
        if not Path("/dev/full").exists():
            pytest.skip("no /dev/full")
        assert predict.main(flags(adapter, rows_file, Path("/dev/full"), "--max_rows", "3")) == 1
        assert capsys.readouterr().err.count("\n") == 1


def test_a_window_is_written_only_whole_and_progress_is_never_ahead_of_it(tmp_path):
    path = tmp_path / "out.jsonl"
    with GrowingFile(path, {"input_file": "x"}, resume=False) as output:
        for number in range(3):
            output.add([b"%d" % number, b"{}"], Tally())
            assert path.read_bytes().count(b"\n") == output.rows == finished_rows(path)
    with pytest.raises(InputError, match="不一致"):
        GrowingFile(path, {"input_file": "y"}, resume=True)


PAIRS = st.lists(st.tuples(st.sampled_from([*LABELS, None]), st.sampled_from([*LABELS, None, "error"])), max_size=30)


@given(pairs=PAIRS, cut=st.integers(0, 30))
def test_metrics_of_parts_added_up_and_kept_as_json_are_those_of_the_whole(pairs, cut):
    task = Classification(labels=LABELS)
    golds = [None if gold is None else {"label": gold} for gold, _ in pairs]
    results = [
        {"error": "x"} if answer == "error" else {"label": answer, "unparsable": answer is None} for _, answer in pairs
    ]
    total = Tally()
    for part in (slice(0, cut), slice(cut, None)):
        total.add(Tally.of(task, golds[part], results[part]))
        total = Tally.from_json(orjson.loads(orjson.dumps(total.to_json())))
    assert total.metrics(task) == metrics_of_predictions(task, golds, results)
    judged = [(gold, result) for gold, result in zip(golds, results, strict=True) if gold and "error" not in result]
    if judged:
        right = sum(gold["label"] == result["label"] for gold, result in judged)
        assert total.metrics(task)["accuracy"] == pytest.approx(right / len(judged))
