"""The terminal: summaries, progress bars on a terminal but not in a file, and consoles with GBK encoding."""

from __future__ import annotations

import json
import logging
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import REPOSITORY, stranger

from sft import console
from sft.tasks.classification import Classification
from sft.training import summary
from sft.training.trainer_arguments import SftTrainingArguments
from tests.models import save_model, tiny_model
from tests.terminal import Screen, on_a_terminal, screen_of
from tests.test_training import LABELS, articles, write_records

GBK = {"PYTHONIOENCODING": "cp936", "PYTHONUTF8": "0"}  # the name on Windows
NOT_IN_GBK = "😀"
SLOW_LOOP = """
import time
from sft.console import progress
for _ in progress(range(50), "转换"): time.sleep(0.06)
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tokenizer) -> Path:
    """A tiny model and records, one with a character that GBK does not have."""
    folder = tmp_path_factory.mktemp("控制台")
    save_model(tiny_model("qwen2"), tokenizer, folder / "tiny")
    records = articles(12, 0)
    records[0]["text"] += NOT_IN_GBK
    write_records(folder / "train_cls.jsonl", Classification(LABELS), records)
    write_records(folder / "test_cls.jsonl", Classification(LABELS), records[:3])
    return folder


def training_command(inputs: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, str(REPOSITORY / "train_qwen2_classification.py"), "--output_dir", str(inputs / "run")),
        *("--model_name_or_path", str(inputs / "tiny"), "--train_file", str(inputs / "train_cls.jsonl")),
        *("--dtype", "float32", "--max_steps", "2", "--logging_steps", "1", "--overwrite_output_dir", *more),
    ]


def environment(inputs: Path, **more: str) -> dict[str, str]:
    return stranger(inputs / "home") | {"PYTHONPATH": str(REPOSITORY)} | more


# ---- a training run ----


def test_a_run_on_a_gbk_console_speaks_gbk_and_its_results_are_utf8(inputs):
    """With SwanLab, whose messages contain emoji. Without a terminal there are no bars."""
    done = subprocess.run(
        training_command(inputs, "--swanlab_mode", "local", "--validation_ratio", "0.2"),
        cwd=inputs,
        env=environment(inputs, **GBK),
        capture_output=True,
        timeout=300,
    )
    told = done.stderr.decode("gbk")
    assert done.returncode == 0, told[-2000:]
    assert any(name.startswith("test_f1_") and name[8:] in LABELS for name in json.loads(done.stdout.decode("utf-8")))
    assert "Traceback" not in told
    assert "\r" not in told
    assert "it/s" not in told
    before, after = told.index("将要训练"), told.index("训练完成")
    for word in ("任务", "模型", "数据", "计划", "数值", "输出", "swanlab watch"):
        assert word in told[before:after], word
    for word in (
        "用时",
        "验证",
        "测试",
        "产物",
        "report.html",
        f"predict.py --adapter {shlex.quote(str(inputs / 'run'))} ",
    ):
        assert word in told[after:], word


def test_log_level_error_leaves_only_results(inputs):
    command = training_command(inputs, "--dry_run", "--log_level", "error")
    done = subprocess.run(command, cwd=inputs, env=environment(inputs), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    assert "步数" in done.stdout
    assert done.stderr == ""


def test_someone_who_watches_sees_training_move(inputs):
    command = training_command(inputs, "--swanlab_mode", "disabled", "--eval_strategy", "no", "--test_file", "none")
    written = on_a_terminal(command, cwd=inputs, env=environment(inputs)).decode()
    assert "Traceback" not in written
    assert re.search(r"训练: +\d+%.* \d/2 \[", written)
    assert "条/s" in written
    assert "[2/2] 损失" in written, "reports stand above the bar"


@pytest.mark.parametrize(("level", "expected"), [("passive", logging.INFO), ("error", 40), ("debug", 10)])
def test_log_level_is_transformers_own_flag(level, expected, tmp_path):
    assert console.log_level(SftTrainingArguments(output_dir=str(tmp_path), log_level=level)) == expected


# ---- what a person sees at 80 columns ----

SMALL = ("--model_name_or_path", "tiny", "--train_file", "train_cls.jsonl", "--dtype", "float32")


@pytest.fixture(scope="module")
def watched(inputs) -> Screen:
    """A run of 6 steps on a terminal, as a user starts it: with SwanLab, validation and test."""
    command = [sys.executable, str(REPOSITORY / "train_qwen2_classification.py"), *SMALL, "--output_dir", "我的 run"]
    command += ["--max_steps", "6", "--validation_ratio", "0.2", "--swanlab_mode", "local"]
    return screen_of(on_a_terminal(command, 80, cwd=inputs, env=environment(inputs)).decode(), 80)


def test_training_is_one_short_line_a_step_and_one_a_validation(watched):
    steps = [line for line in watched.lines if re.match(r"\[\d+/6\] ", line)]
    first = re.fullmatch(r"\[1/6\] 损失 [\d.]+  学习率 1e-4  [\d,]+ token/秒  剩 \d+ (秒|分)", steps[0])
    assert first, steps[0]
    assert len(steps) == 6, "short runs log every step"
    assert "剩" not in steps[-1]
    scores = r"验证 损失 [\d.]+  准确率 [\d.]+  宏平均 F1 [\d.]+"
    validations = [line for line in watched.lines if re.fullmatch(f"(训练前)?{scores}", line)]
    assert validations[0].startswith("训练前")
    assert len(validations) >= 2


def test_training_leaves_no_json_no_chatter_and_no_bar_on_the_terminal(watched):
    assert watched.too_long == []
    for line in watched.lines:
        assert not line.startswith(("{", "}", '  "')), line
        assert "swanlab:" not in line
        assert "Warning" not in line
        assert "[transformers]" not in line
        assert "%|" not in line
    assert sum("训练完成" in line for line in watched.lines) == 1


def test_the_command_that_training_recommends_works_as_typed(watched, inputs):
    start = next(number for number, line in enumerate(watched.lines) if line.startswith("    python "))
    command = "\n".join(watched.lines[start:]).strip()
    done = subprocess.run(["bash", "-c", command], cwd=inputs, env=environment(inputs), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    texts = [json.loads(line)["text"] for line in (inputs / "test_cls.jsonl").read_text("utf-8").splitlines()]
    said = json.loads(done.stdout.decode())["text"]
    assert any(said in text for text in texts), "a real sentence of the test set"


def test_predictions_on_a_terminal_are_marked_rows_and_a_closing_line(watched, inputs):
    command = [sys.executable, str(REPOSITORY / "predict.py"), "--adapter", "我的 run", "--batch_size", "1"]
    command += ["--input_file", "train_cls.jsonl"]
    for variables, coloured in (({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False)):
        written = on_a_terminal(command, 80, cwd=inputs, env=environment(inputs, **variables)).decode()
        screen = screen_of(written, 80)
        rows = [line for line in screen.lines if re.match(rf"\[({'|'.join(LABELS)}) \d\.\d{{4}}\]", line)]
        assert len(rows) == 12
        assert screen.colours == coloured
        assert screen.too_long == []
        assert not any("%|" in line or "{" in line for line in screen.lines), "bar and rows apart, no JSON"
        closing = next(number for number, line in enumerate(screen.lines) if line.startswith("预测了 12 条（"))
        assert screen.lines[closing + 1].startswith("成绩（12 条有标准答案）：准确率 "), "the metrics in a line"


def test_predictions_into_a_file_are_never_silent(watched, inputs):
    command = [sys.executable, str(REPOSITORY / "predict.py"), "--adapter", "我的 run", "--report", "看.html"]
    (inputs / "texts.txt").write_text("国家队赢了。\n", encoding="utf-8")
    command += ["--input_file", "texts.txt", "--output_file", "predictions.jsonl"]
    done = subprocess.run(command, cwd=inputs, env=environment(inputs), capture_output=True, check=True)
    assert done.stdout == b"", "no gold, no metrics"
    assert re.fullmatch(r"预测了 1 条（\w+ 1）；写在 predictions.jsonl；报告 看.html\n", done.stderr.decode())


def test_a_dry_run_fits_the_terminal_and_promises_no_zero_minutes(inputs):
    command = [sys.executable, str(REPOSITORY / "train_qwen2_classification.py"), *SMALL, "--dry_run"]
    screen = screen_of(on_a_terminal(command, 80, cwd=inputs, env=environment(inputs)).decode(), 80)
    assert screen.too_long == []
    assert any(line.startswith("时间估计  不到 1 分钟") for line in screen.lines)
    memory = next(line for line in screen.lines if line.startswith("内存估计"))
    whole, program = map(float, re.search(r"([\d.]+) GB（其中程序本身 ([\d.]+) GB）", memory).groups())
    assert whole >= program > 0.2


def test_conversion_fits_the_terminal_and_ends_with_the_command_to_train(inputs, tmp_path):
    rows = [f"第 {number} 篇文章讲的是{label}的事情,{label}" for number in range(20) for label in LABELS]
    (tmp_path / "我的 文章.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    converting = [sys.executable, str(REPOSITORY / "transfer_classification_data.py")]
    converting += ["--input_file", "我的 文章.csv", "--output_file", "data/我的 文章_train.jsonl"]
    screen = screen_of(on_a_terminal(converting, 80, cwd=tmp_path, env=environment(inputs)).decode(), 80)
    assert screen.too_long == []
    start = next(number for number, line in enumerate(screen.lines) if line.startswith("    python "))
    command = "\n".join(screen.lines[start:]).strip()
    more = f" --dry_run --dtype float32 --model_name_or_path {inputs / 'tiny'}"
    done = subprocess.run(["bash", "-c", command + more], cwd=tmp_path, env=environment(inputs), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert "检查通过" in done.stdout.decode()


# ---- bars ----


@pytest.mark.parametrize("encoding", ["utf-8", "gbk"])
def test_a_bar_tells_rate_and_time_left_after_two_seconds(inputs, encoding):
    variables = environment(inputs, **(GBK if encoding == "gbk" else {}))
    written = on_a_terminal([sys.executable, "-c", SLOW_LOOP], env=variables).decode(encoding)
    assert "转换:" in written
    assert "条/s" in written
    assert "<00:0" in written, "time left"
    assert "  0%" not in written, "what is quick shows no bar"


def test_no_bar_goes_into_a_file(inputs):
    command = [sys.executable, "-c", SLOW_LOOP.replace("0.06", "0.001")]
    done = subprocess.run(command, env=environment(inputs), capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_conversion_shows_how_far_it_is(inputs, tmp_path):
    """The bar knows the length of the whole file, although the file is read as a stream."""
    raw = tmp_path / "raw.jsonl"
    raw.write_text("一行\n" * 90, encoding="utf-8")
    code = f"""
import time
from pathlib import Path
from sft.console import ConversionProgress
with ConversionProgress() as progress:
    for line in range(1, 91):
        time.sleep(0.04)
        progress(Path({str(raw)!r}), line)
"""
    written = on_a_terminal([sys.executable, "-c", code], env=environment(inputs)).decode()
    assert "/90 [" in written
    assert "行/s" in written
    assert console.count_lines(raw) == 90


# ---- summaries ----


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (7, "7 个"),
        (9999, "9999 个"),
        (10_000, "1 万"),
        (456_000, "45.6 万"),
        (28_600_000, "2,860 万"),
        (99_999_999, "10,000 万"),
        (1.54e9, "15.4 亿"),
        (3e12, "30,000 亿"),
    ],
)
def test_counts_are_told_in_chinese_units(number, shown):
    assert summary.count(number) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "1 秒"), (59.2, "1 分"), (59, "59 秒"), (61, "2 分"), (3599, "1 小时 0 分"), (3725, "1 小时 3 分")],
)
def test_the_time_left_is_one_unit_rounded_up(seconds, shown):
    assert console.time_left(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0 秒"), (59.6, "1 分 0 秒"), (192, "3 分 12 秒"), (3725, "1 小时 2 分")]
)
def test_durations_are_told_in_chinese(seconds, shown):
    assert console.duration(seconds) == shown


def test_a_clock_has_two_digits_for_minutes_and_seconds():
    assert [console.clock(seconds) for seconds in (0.4, 65, 3725.4)] == ["0:00:00", "0:01:05", "1:02:05"]


def test_many_labels_are_counted_not_listed():
    assert summary.shown_labels([str(n) for n in range(20)]).endswith("等 20 种")
    assert summary.shown_labels(("体育", "军事")) == "体育、军事"
    assert summary.shown_labels(()) == "每行自带选项"


def test_samples_are_the_same_for_a_seed_and_tell_right_from_wrong():
    task = Classification(LABELS)
    records = [{"text": f"第{n}篇", "label": LABELS[n % 2]} for n in range(9)]
    predictions = [{"label": LABELS[0]} for _ in records[:-1]] + [{"error": "太长"}]
    samples = summary.sample_texts(task, records, predictions, 9, 42)
    assert [caption for caption, _ in samples] == ["对", "错"] * 4 + ["错"]
    assert samples[-1][1] == f"文本：第8篇\n预测：太长\n正确：{LABELS[0]}"
    few = summary.sample_texts(task, records, predictions, 3, 42)
    assert few == summary.sample_texts(task, records, predictions, 3, 42)
    assert len(few) == 3
