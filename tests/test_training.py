"""Training runs as a user starts them: the files they write, resuming, stopping, and what they refuse."""

from __future__ import annotations

import inspect
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import predict
import train_qwen2_classification
import train_qwen2_ner
from sft.engine.lora_node import one_node_layers
from sft.errors import RunError
from sft.tasks.classification import Classification
from sft.tasks.ner import Ner
from sft.tasks.settings import TaskSettings, settings_path
from sft.training import trainer
from tests.models import save_model, tiny_model
from tests.pretend_gpu import PretendGpu

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE, SCRIPT = REPOSITORY / "sft", REPOSITORY / "train_qwen2_classification.py"
LABELS = ("体育", "军事", "经济")
LAST_STEP = 10


def write_records(path: Path, task, records: list[dict]) -> Path:
    """Write a records file and its settings as the transfer scripts do."""
    lines = []
    for record in records:
        messages = [*task.prompt(record), {"role": "assistant", "content": task.answer(record)}]
        lines.append(json.dumps({"messages": messages, "task": task.name, **record}, ensure_ascii=False))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    TaskSettings(task).write(settings_path(path))
    return path


def articles(count: int, seed: int) -> list[dict]:
    rng = random.Random(seed)
    return [
        {"text": "".join(rng.choices("国家队赢了比赛坦克演习股市上涨。", k=rng.randint(5, 30))), "label": label}
        | {"options": list(LABELS)}
        for label in rng.choices(LABELS, k=count)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Records of both tasks, for training and testing, and their settings."""
    folder = tmp_path_factory.mktemp("data")
    write_records(folder / "train_cls.jsonl", Classification(LABELS), articles(40, 0))
    write_records(folder / "test_cls.jsonl", Classification(LABELS), articles(12, 1))
    entities = [{"start": 0, "end": 2, "text": "张伟", "label": "人名"}]
    sentences = [{"text": f"张伟到了上海{n}次。", "entities": entities if n % 3 else []} for n in range(16)]
    write_records(folder / "train_ner.jsonl", Ner.with_labels(["人名", "地点"]), sentences)
    write_records(folder / "test_ner.jsonl", Ner.with_labels(["人名", "地点"]), sentences[:8])
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer) -> Path:
    """A random two-layer Qwen2."""
    return save_model(tiny_model("qwen2"), tokenizer, tmp_path_factory.mktemp("base") / "tiny")


def flags(base: Path, data: Path, output_dir: Path, *more: str) -> list[str]:
    """Ten steps, with a checkpoint and an evaluation every two. Dropout is on, so the random state matters."""
    return [
        *("--model_name_or_path", str(base), "--train_file", str(data / "train_cls.jsonl"), "--dtype", "float32"),
        *("--output_dir", str(output_dir), "--swanlab_mode", "disabled", "--disable_tqdm", "true"),
        *("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2", "--num_train_epochs", "2"),
        *("--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps", "--save_steps", "2"),
        *("--logging_steps", "1", "--learning_rate", "1e-2", "--lora_dropout", "0.1", "--save_total_limit", "3"),
        *("--validation_ratio", "0.1", *more),
    ]


def train(arguments: list[str]) -> int:
    """Run the classification script in this process, on one thread: sums are then the same at each run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train_qwen2_classification.main(arguments)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(base, data, tmp_path_factory) -> Path:
    """The output folder of an uninterrupted run."""
    output_dir = tmp_path_factory.mktemp("finished") / "run"
    assert train(flags(base, data, output_dir)) == 0
    return output_dir


def metrics_of(output_dir: Path) -> list[dict]:
    rows = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    timed = re.compile("time|second")
    return [{name: value for name, value in row.items() if not timed.search(name)} for row in rows]


# ---- what a run writes ----


def test_a_run_leaves_everything_a_user_and_predict_need(finished):
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "chat_template.jinja", "task.json",
        "trainer_state.json", "train_results.json", "eval_results.json", "test_results.json", "all_results.json",
        "metrics.jsonl", "loss.png", "README.md", "report.html",
    }  # fmt: skip
    assert not list(finished.glob(".*"))
    steps = [row["step"] for row in metrics_of(finished) if "loss" in row]
    assert steps == list(range(1, LAST_STEP + 1))


def test_predict_gives_the_metrics_that_training_reported(finished, data, tmp_path, capsys):
    output = tmp_path / "predictions.jsonl"
    arguments = [
        "--adapter",
        str(finished),
        "--input_file",
        str(data / "test_cls.jsonl"),
        "--output_file",
        str(output),
        "--report",
        str(tmp_path / "report.html"),
    ]
    assert predict.main(arguments) == 0
    predicted = json.loads(capsys.readouterr().out)
    reported = json.loads((finished / "test_results.json").read_text())
    for name in ("accuracy", "macro_f1", "unparsable"):
        assert predicted[name] == reported[f"test_{name}"]
    assert len(output.read_text().splitlines()) == 12
    assert f"<b>{predicted['accuracy']:.3f}</b>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_report_that_can_go_nowhere_is_refused(finished, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "report.html"):
        assert predict.main(["--adapter", str(finished), "--text", "甲", "--report", str(path)]) == 2
        assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("disable_tqdm", ["true", "false"])
def test_results_go_to_stdout_as_json_and_logs_to_stderr(disable_tqdm, base, data, tmp_path, capsys):
    arguments = flags(base, data, tmp_path / "run", "--max_steps", "1", "--disable_tqdm", disable_tqdm)
    assert train(arguments) == 0
    assert "test_accuracy" in json.loads(capsys.readouterr().out)


def test_the_best_checkpoint_by_the_generated_metric_is_what_is_saved(finished):
    rows = [row for row in metrics_of(finished) if "eval_macro_f1" in row and row["step"] > 0]
    best = max(rows, key=lambda row: (row["eval_macro_f1"], -row["eval_loss"], -row["step"]))
    state = json.loads((finished / "trainer_state.json").read_text())
    assert state["best_global_step"] == best["step"]
    saved = load_file(finished / "adapter_model.safetensors")
    of_best = load_file(finished / state["best_model_checkpoint"] / "adapter_model.safetensors")
    assert all(torch.equal(saved[name], of_best[name]) for name in of_best)


def test_a_run_is_evaluated_once_before_its_first_step(finished):
    evaluations = [row["step"] for row in metrics_of(finished) if "eval_loss" in row]
    assert evaluations == [0, 2, 4, 6, 8, 10]
    assert "验证集，微调前" in (finished / "report.html").read_text(encoding="utf-8")


def test_the_evaluation_before_the_first_step_is_neither_best_nor_patience(base, data, tmp_path):
    arguments = ["--learning_rate", "0", "--early_stopping_patience", "1", "--test_file", "none"]
    states = []
    for start in ("true", "false"):
        output_dir = tmp_path / start
        assert train(flags(base, data, output_dir, "--eval_on_start", start, *arguments)) == 0
        state = json.loads((output_dir / "trainer_state.json").read_text())
        states.append((state["global_step"], state["best_global_step"]))
        first = next(row["step"] for row in metrics_of(output_dir) if "eval_loss" in row)
        assert first == (0 if start == "true" else 2)
    assert states == [(4, 2), (4, 2)]  # learning rate 0: the first evaluation stays best, the second stops the run


def test_what_a_run_took_at_most_is_in_its_results(finished):
    peak = json.loads((finished / "train_results.json").read_text())["peak_memory_bytes"]
    assert 50e6 < peak < 50e9


def test_a_report_that_cannot_be_written_loses_nothing_and_is_told(base, data, tmp_path, capsys, caplog):
    output_dir = tmp_path / "run"
    (output_dir / "report.html" / "in_the_way").mkdir(parents=True)
    assert train(flags(base, data, output_dir, "--max_steps", "1")) == 0
    assert "test_accuracy" in json.loads(capsys.readouterr().out)
    assert (output_dir / "all_results.json").is_file()
    (told,) = [record.getMessage() for record in caplog.records if "report.html" in record.getMessage()]
    assert "没有写成" in told
    assert "\n" not in told


def test_ner_trains_and_predicts(base, data, tmp_path, capsys):
    output_dir = tmp_path / "ner"
    arguments = ["--model_name_or_path", str(base), "--train_file", str(data / "train_ner.jsonl"), "--max_steps", "1"]
    arguments += ["--output_dir", str(output_dir), "--swanlab_mode", "disabled", "--dtype", "float32"]
    arguments += ["--validation_ratio", "0.25"]
    assert train_qwen2_ner.main(arguments) == 0
    assert predict.main(["--adapter", str(output_dir), "--text", "张伟到了上海。"]) == 0
    assert '"entities":' in capsys.readouterr().out
    test_file, output = str(data / "test_ner.jsonl"), str(tmp_path / "predictions.jsonl")
    assert predict.main(["--adapter", str(output_dir), "--input_file", test_file, "--output_file", output]) == 0
    predicted = json.loads(capsys.readouterr().out)
    reported = json.loads((output_dir / "test_results.json").read_text())
    assert json.loads((output_dir / "task.json").read_text()).get("threshold") is None  # four rows are too few
    assert "test_threshold" not in reported
    assert "没有定阈值：验证集里只有" in (output_dir / "report.html").read_text(encoding="utf-8")
    for name in ("precision", "recall", "f1", "macro_f1", "unparsable"):
        assert predicted[name] == reported[f"test_{name}"]


def test_the_same_flags_give_the_same_adapter(finished, base, data, tmp_path):
    assert train(flags(base, data, tmp_path / "again")) == 0
    ours, theirs = (folder / "adapter_model.safetensors" for folder in (tmp_path / "again", finished))
    assert ours.read_bytes() == theirs.read_bytes()


# ---- resumed ----


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_checkpoint_is_passed_over_for_the_last_whole_one(damage, finished, base, data, tmp_path, caplog):
    arguments = flags(base, data, tmp_path / "run")
    assert train([*arguments, "--max_steps", "8", "--test_file", "none"]) == 0
    victim = tmp_path / "run" / "checkpoint-8" / "optimizer.pt"
    content = victim.read_bytes()
    if damage == "delete":
        victim.unlink()
    else:
        victim.write_bytes(content[:100] if damage == "truncate" else content[:-9] + b"\0" + content[-8:])
    (tmp_path / "run" / "all_results.json").unlink()
    assert train([*arguments, "--max_steps", "8", "--resume_from_checkpoint", "true"]) == 0
    assert "checkpoint-8" in caplog.text and "optimizer.pt" in caplog.text


@pytest.mark.parametrize("change", [("--learning_rate", "2e-2"), ("--lora_r", "4"), ("--seed", "1")])
def test_resuming_with_other_settings_is_refused_by_name(change, finished, base, data, capsys):
    arguments = flags(base, data, finished, "--resume_from_checkpoint", "true", *change)
    assert train(arguments) == 2
    assert change[0].removeprefix("--") in capsys.readouterr().err


def test_resuming_with_other_data_or_another_model_is_refused(finished, base, data, tmp_path, tokenizer, capsys):
    write_records(tmp_path / "train_cls.jsonl", Classification(LABELS), articles(40, 5))
    assert train(flags(base, tmp_path, finished, "--resume_from_checkpoint", "true")) == 2
    assert "train_file" in capsys.readouterr().err
    other = save_model(tiny_model("qwen2", seed=3), tokenizer, tmp_path / "other")
    assert train(flags(other, data, finished, "--resume_from_checkpoint", "true")) == 2
    assert "model" in capsys.readouterr().err


def test_a_finished_run_is_overwritten_only_when_asked(base, data, tmp_path, capsys):
    arguments = flags(base, data, tmp_path / "run", "--max_steps", "2", "--test_file", "none")
    assert train(arguments) == 0
    before = (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    assert train([*arguments, "--seed", "7"]) == 2
    assert "--overwrite_output_dir" in capsys.readouterr().err
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == before
    assert train([*arguments, "--seed", "7", "--overwrite_output_dir"]) == 0
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() != before


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
def test_sigterm_saves_a_checkpoint_and_exits_with_143(base, data, tmp_path):
    output_dir = tmp_path / "run"
    arguments = flags(base, data, output_dir, "--num_train_epochs", "2000")
    command = [sys.executable, str(REPOSITORY / "train_qwen2_classification.py"), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (output_dir / "checkpoint-2").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "--resume_from_checkpoint true" in errors and "Traceback" not in errors
    last = json.loads((output_dir / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert (output_dir / f"checkpoint-{last}" / "manifest.json").is_file()


# ---- refused, or stopped ----


def test_nan_stops_the_run_at_that_step_and_names_the_row(base, data, tmp_path, tokenizer, capsys):
    rows = articles(12, 2)
    rows[8]["text"] += "龘"  # no other row has its byte tokens
    write_records(tmp_path / "train_cls.jsonl", Classification(LABELS), rows)
    poisoned = save_model(tiny_model("llama"), tokenizer, tmp_path / "poisoned")  # its head is not the embedding
    weights = load_file(poisoned / "model.safetensors")
    common = set(tokenizer("".join(row["text"] for row in articles(12, 2))).input_ids)
    only = [token for token in tokenizer("龘").input_ids if token not in common]
    weights["model.embed_tokens.weight"][only[0]] = float("nan")
    save_file(weights, poisoned / "model.safetensors", {"format": "pt"})
    arguments = flags(poisoned, tmp_path, tmp_path / "run", "--validation_ratio", "0", "--eval_strategy", "no")
    arguments += ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "1"]
    assert train(arguments) == 1
    error = capsys.readouterr().err
    assert "第 9 行" in error and "nan" in error and "Traceback" not in error


PLAIN = ("--lora_dropout", "0", "--max_steps", "2", "--eval_strategy", "no", "--test_file", "none")
REENTRANT = ("--activation_checkpointing", "true", "--activation_checkpointing_kwargs", '{"use_reentrant": true}')


@pytest.fixture(scope="module")
def short(base, data, tmp_path_factory) -> bytes:
    """The adapter after two steps without dropout."""
    output_dir = tmp_path_factory.mktemp("short")
    assert train(flags(base, data, output_dir, *PLAIN)) == 0
    return (output_dir / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("more", "together"),
    [((), True), (("--gradient_checkpointing", "true"), True), (REENTRANT, True), (("--lora_dropout", "0.1"), False)],
    ids=["plain", "checkpointing", "reentrant checkpointing", "dropout"],
)
def test_lora_matrices_are_copied_together_where_that_changes_nothing(
    more, together, short, base, data, tmp_path, monkeypatch
):
    """Dropout is PEFT's own forward, which has no use for copies."""
    supervised_loss, found = trainer.supervised_loss, set()

    def watched(model, *arguments):
        found.add(all(layer.copied is not None for layer in one_node_layers(model)))
        return supervised_loss(model, *arguments)

    monkeypatch.setattr(trainer, "supervised_loss", watched)
    assert train(flags(base, data, tmp_path / "run", *PLAIN, *more)) == 0
    assert found == {together}
    if "--lora_dropout" not in more:
        assert (tmp_path / "run/adapter_model.safetensors").read_bytes() == short


def documented_path(language: str) -> list[str]:
    """The functions that CONTRIBUTING tells the reader to read first, in order."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text[text.index(language) :].split("\n### ")[0]
    return re.findall(r"^\d\. `(\w+)`", section, re.MULTILINE)


def test_six_functions_lead_from_the_script_to_the_loss(base, data, tmp_path, monkeypatch):
    """When the loss is computed, this project's functions on the call stack are those that CONTRIBUTING names."""
    from sft.engine import loss

    chunked_loss, paths = loss.chunked_loss, set()

    def watched_loss(*arguments):
        frames = [(Path(frame.filename), frame.function) for frame in reversed(inspect.stack()[1:])]
        ours = [name for path, name in frames if path.is_relative_to(PACKAGE) or path == SCRIPT]
        paths.add((*ours, "chunked_loss"))
        return chunked_loss(*arguments)

    monkeypatch.setattr(loss, "chunked_loss", watched_loss)
    words = ["--max_steps", "1", "--eval_strategy", "no", "--test_file", "none"]
    assert train(flags(base, data, tmp_path, *words)) == 0
    (path,) = paths
    assert list(path) == documented_path("### 先读这条路") == documented_path("### The path to read first")
    assert len(path) <= 6


class TestStopOnNonFinite:
    INF, NAN = torch.tensor(torch.inf), torch.tensor(torch.nan)

    def stop(self, *losses: tuple[float, list[int]], scales: bool = False):
        from sft.training.callbacks import StopOnNonFinite

        stop = StopOnNonFinite(scales=scales)
        for loss, lines in losses:
            stop.note(torch.tensor(loss), lines)
        return stop

    def test_a_gradient_stops_the_run_naming_the_rows_of_the_whole_step(self):
        for norm in (self.INF, self.NAN):
            with pytest.raises(RunError, match=r"第 5 步的梯度.*第 1、3 行.*--learning_rate"):
                self.stop((0.5, [3]), (0.5, [1])).check(norm, 5)

    @pytest.mark.parametrize("scales", [True, False])
    def test_a_loss_stops_it_naming_the_rows_of_its_micro_batch(self, scales):
        for norm in (self.NAN, torch.tensor(1.0)):
            with pytest.raises(RunError, match=r"第 6 步的损失是 nan.*第 7、8 行；可试 --dtype float32"):
                self.stop((0.5, [3]), (torch.nan, [8, 7]), scales=scales).check(norm, 6)

    def test_rows_of_earlier_steps_are_forgotten(self):
        stop = self.stop((0.5, [3]))
        stop.check(torch.tensor(1.0), 1)
        stop.note(torch.tensor(0.5), [4])
        with pytest.raises(RunError, match="第 4 行"):
            stop.check(self.INF, 2)

    def test_with_a_scaler_only_twenty_steps_in_a_row_stop_it(self):
        stop = self.stop(scales=True)
        for _ in range(3):
            for step in range(19):
                stop.check(self.INF, step)
            stop.check(torch.tensor(1.0), 20)
        for step in range(19):
            stop.check(self.NAN, step)
        stop.note(torch.tensor(0.5), [9])
        with pytest.raises(RunError, match=r"连续 20 步.*第 9 行；可试 --dtype float32$"):
            stop.check(self.INF, 77)

    def test_it_waits_for_the_gpu_once_a_step(self):
        with PretendGpu() as gpu:
            stop = self.stop()
            for line in range(3):
                stop.note(torch.ones((), device="cuda", dtype=torch.bfloat16), [line])
            stop.check(torch.ones((), device="cuda"), 1)
            assert gpu.waits().total() == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--train_file", "absent.jsonl"], "transfer_"),
        (["--model_name_or_path", "qwen/absent"], "没有这个模型文件夹；请检查路径"),
        (["--model_name_or_path", "./absent/Qwen2.5-0.5B-Instruct"], "--model Qwen/Qwen2.5-0.5B-Instruct"),
        (["--per_device", "3"], "--per_device"),
        (["--lr", "3"], "--learning_rate"),
        (["--warmup_ratio", "0.1"], "--warmup_steps"),
        (["--learning_rate", "fast"], "--learning_rate"),
        (["--dtype", "float16"], "float16"),
        (["--lora_target_modules", "nothing_like_it"], "--lora_target_modules"),
        (["--max_length", "20"], "--max_length"),
        (["--swanlab_project", "名字 不行"], "--swanlab_project"),
    ],
)
def test_a_mistake_is_told_in_one_line_with_exit_code_2(change, said, base, data, tmp_path, capsys):
    try:
        code = train(flags(base, data, tmp_path / "run", "--swanlab_mode", "offline", *change))
    except SystemExit as stop:  # raised by argparse
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    last = captured.err.strip().splitlines()[-1]
    assert said in last and "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"task": "ner"}, "task"),
        ({"messages": []}, "messages"),
        ({"label": None}, "messages"),
    ],
)
def test_records_that_training_would_not_render_the_same_are_refused_with_their_line(
    record, said, base, data, tmp_path, capsys
):
    path = write_records(tmp_path / "train_cls.jsonl", Classification(LABELS), articles(3, 0))
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | record, ensure_ascii=False)
    path.write_text("\n".join(lines), encoding="utf-8")
    assert train(flags(base, tmp_path, tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert "train_cls.jsonl:2" in error and said in error


# ---- preview and dry run ----


def test_preview_shows_what_is_supervised_and_trains_nothing(base, data, tmp_path, capsys):
    assert train(flags(base, data, tmp_path / "run", "--preview", "2")) == 0
    shown = capsys.readouterr().out
    assert shown.count("──") == 2 and shown.count("【<|im_end|>】") == 2
    assert not (tmp_path / "run").exists()


def test_dry_run_counts_the_steps_that_training_takes(base, data, tmp_path, capsys, finished):
    assert train(flags(base, data, tmp_path / "run", "--dry_run")) == 0
    assert f"步数      {LAST_STEP}（每步 8 条）" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "more",
    [
        ["--resume_from_checkpoint", "true", "--seed", "7"],
        ["--output_dir", "RUN/task.json/run"],
        ["--max_length", "4097"],
    ],
)
def test_what_stops_a_run_at_its_folder_stops_its_dry_run(more, finished, base, data, capsys):
    """Both say the same; the dry run changes nothing."""
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    arguments = flags(base, data, finished, *(word.replace("RUN", str(finished)) for word in more))
    said = []
    for words in (["--dry_run"], []):
        assert train([*arguments, *words]) == 2
        captured = capsys.readouterr()
        assert "检查通过" not in captured.out
        said.append(captured.err.strip().splitlines()[-1].partition("（")[0])
    assert said[0] == said[1]
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_dry_run_in_the_folder_of_an_earlier_run_says_what_training_will_say(finished, base, data, capsys):
    assert train(flags(base, data, finished, "--dry_run")) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert train(flags(base, data, finished)) == 2
    refusal = capsys.readouterr().err.strip().splitlines()[-1]
    assert told == f"检查通过，没有开始训练。真要训练时：{refusal}"
    assert train(flags(base, data, finished, "--dry_run", "--overwrite_output_dir")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "检查通过，没有开始训练"


@pytest.mark.parametrize("newest", [None, LAST_STEP - 2])
def test_a_dry_run_says_which_checkpoint_the_run_goes_on_from(newest, finished, base, data, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    if newest:
        (tmp_path / "run" / "all_results.json").unlink()
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{LAST_STEP}")
    arguments = flags(base, data, tmp_path / "run", "--resume_from_checkpoint", "true", "--dry_run")
    assert train(arguments) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("检查通过")
    assert (f"将从 {tmp_path / 'run' / f'checkpoint-{newest}'} 续跑" if newest else "已经完成") in last


def test_validation_rows_are_held_out_by_text_and_by_seed():
    from sft.training.choosing_rows import hold_out

    rows = [(line, {"text": f"文本{line % 30}"}) for line in range(90)]
    train_rows, validation = hold_out(rows, 6, seed=1)
    assert {row["text"] for _, row in train_rows}.isdisjoint({row["text"] for _, row in validation})
    assert len({row["text"] for _, row in validation}) == 6 and len(train_rows) + len(validation) == 90
    assert hold_out(rows[::-1], 6, seed=1)[1][::-1] == validation
    assert hold_out(rows, 6, seed=2)[1] != validation
