"""From one training to the next: `--init_adapter`, checkpoints that predict, and data that is not converted yet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from models import save_model, tiny_model
from safetensors.torch import load_file
from test_training import LABELS, articles, base, data, flags, train, write_records  # noqa: F401  fixtures

import predict
import train_qwen2_ner
from sft.errors import InputError
from sft.model.hub import model_hash
from sft.tasks.classification import Classification
from sft.tasks.settings import TaskSettings

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def old(base, data, tmp_path_factory) -> Path:  # noqa: F811
    """A finished run of four steps with its checkpoints 2 and 4, with LoRA settings that are not the defaults."""
    output_dir = tmp_path_factory.mktemp("old") / "run"
    lora = ("--lora_r", "4", "--lora_alpha", "6", "--lora_target_modules", "v_proj", "q_proj", "--use_rslora", "true")
    assert train(flags(base, data, output_dir, *lora, "--max_steps", "4", *validation(data, "cls"))) == 0
    return output_dir


def validation(data: Path, task: str) -> tuple[str, str, str, str]:  # noqa: F811
    return ("--validation_file", str(data / f"test_{task}.jsonl"), "--test_file", "none")


def going_on(data: Path, output_dir: Path, adapter: Path, *more: str) -> list[str]:  # noqa: F811
    """One step on a trained adapter; neither the base model nor LoRA is given."""
    return [
        *("--init_adapter", str(adapter), "--train_file", str(data / "train_cls.jsonl"), "--dtype", "float32"),
        *("--output_dir", str(output_dir), "--swanlab_mode", "disabled", "--disable_tqdm", "true", "--max_steps", "1"),
        *("--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "1"),
        *(*validation(data, "cls"), *more),
    ]


def evaluations(output_dir: Path) -> dict[int, dict]:
    """The metrics of each evaluation on the validation records, by step."""
    rows = map(json.loads, (output_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["step"]: row for row in rows if "eval_loss" in row}


def predicted_metrics(capsys, adapter: Path, rows: Path, *more: str) -> dict:
    capsys.readouterr()
    words = ("--adapter", str(adapter), "--input_file", str(rows), "--output_file", str(adapter / "predicted.jsonl"))
    assert predict.main([*words, "--overwrite", *more]) == 0
    return json.loads(capsys.readouterr().out)


def same_metrics(evaluation: dict, predicted: dict) -> None:
    names = [name for name in predicted if f"eval_{name}" in evaluation]
    assert {"f1", "accuracy"} & set(names)
    assert {name: predicted[name] for name in names} == {name: evaluation[f"eval_{name}"] for name in names}


# ---- --init_adapter ----


def test_going_on_starts_from_what_the_adapter_predicts(old, data, tmp_path, capsys):  # noqa: F811
    assert train(going_on(data, tmp_path / "new", old)) == 0
    same_metrics(evaluations(tmp_path / "new")[0], predicted_metrics(capsys, old, data / "test_cls.jsonl"))
    before, after = load_file(old / WEIGHTS), load_file(tmp_path / "new" / WEIGHTS)
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)
    kept = ("r", "lora_alpha", "use_rslora")
    configs = [json.loads((folder / "adapter_config.json").read_text()) for folder in (old, tmp_path / "new")]
    assert [configs[1][name] for name in kept] == [4, 6, True]
    assert set(configs[0]["target_modules"]) == set(configs[1]["target_modules"])
    remembered = [TaskSettings.read(folder / "task.json") for folder in (old, tmp_path / "new")]
    assert remembered[0].base_model == remembered[1].base_model
    assert remembered[0].base_hash == remembered[1].base_hash == model_hash(Path(remembered[0].base_model))


def test_how_long_articles_are_read_is_kept_and_can_be_changed(base, data, tmp_path, caplog):  # noqa: F811
    """Training, its evaluation and prediction all read the same; a run that goes on reads as the first did."""
    words = ("--max_length", "90", "--max_steps", "1", *validation(data, "cls"))
    caplog.set_level("INFO", "sft")
    kept = {}
    for name, more in {"ends": [], "head": ["--long_text", "head"]}.items():
        assert train(flags(base, data, tmp_path / name, *words, *more)) == 0
        settings = TaskSettings.read(tmp_path / name / "task.json")
        assert settings.task.long_text == name
        kept[name] = settings.to_json()
        card = (tmp_path / name / "README.md").read_text(encoding="utf-8")
        assert f"一条最多 90 个 token，更长的只留正文的开头{'和结尾' if name == 'ends' else ''}\n" in card
    assert (kept["ends"]["format_version"], kept["ends"]["long_text"]) == (2, "ends")
    assert kept["head"]["format_version"] == 1 and "long_text" not in kept["head"]
    assert "只截正文的后面" in caplog.text and "只截正文的中间" in caplog.text
    for more, long_text in (([], "head"), (["--long_text", "ends"], "ends")):
        caplog.clear()
        assert train(going_on(data, tmp_path / f"new {long_text}", tmp_path / "head", *words, *more)) == 0
        assert TaskSettings.read(tmp_path / f"new {long_text}" / "task.json").task.long_text == long_text
        assert "--long_text head" in caplog.text


def test_a_run_that_reads_long_articles_otherwise_is_not_resumed(base, data, tmp_path, capsys):  # noqa: F811
    words = flags(base, data, tmp_path / "run", "--max_length", "90", "--max_steps", "2", *validation(data, "cls"))
    assert train(words) == 0
    assert train([*words, "--long_text", "head", "--max_steps", "2", "--resume_from_checkpoint", "true"]) == 2
    assert "long_text" in capsys.readouterr().err


def test_entities_leave_nothing_to_choose_of_a_long_text(base, data, tmp_path, capsys):  # noqa: F811
    ner = ("--train_file", str(data / "train_ner.jsonl"), *validation(data, "ner"), "--max_steps", "1")
    assert train_qwen2_ner.main(flags(base, data, tmp_path / "run", *ner, "--long_text", "ends")) == 2
    assert "--long_text" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["tail", 3, None])
def test_another_way_to_read_long_articles_in_task_json_is_refused(old, tmp_path, value):
    content = json.loads((old / "task.json").read_bytes()) | {"long_text": value}
    (tmp_path / "task.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="long_text 应是 head、ends 之一"):
        TaskSettings.read(tmp_path / "task.json", verify=False)


def test_going_on_with_entities_starts_from_what_the_adapter_predicts(base, data, tmp_path, capsys):  # noqa: F811
    """From a checkpoint, too; the threshold is part of what is evaluated."""
    ner = ("--train_file", str(data / "train_ner.jsonl"), *validation(data, "ner"), "--max_steps", "4")
    assert train_qwen2_ner.main(flags(base, data, tmp_path / "old", *ner)) == 0
    for adapter in (tmp_path / "old", tmp_path / "old" / "checkpoint-2"):
        new = tmp_path / f"after {adapter.name}"
        assert train_qwen2_ner.main(going_on(data, new, adapter, *ner, "--max_steps", "1")) == 0
        first = evaluations(new)[0]
        threshold = ("--threshold", str(first.get("eval_threshold", 0)))
        same_metrics(first, predicted_metrics(capsys, adapter, data / "test_ner.jsonl", *threshold))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lora_r", "8"], "--lora_r 8"),
        (["--lora_alpha=32"], "--lora_alpha 32"),
        (["--lora_target_modules", "q_proj"], "--lora_target_modules q_proj"),
        (["--use_rslora", "false"], "--use_rslora False"),
        (["--init_adapter", "no/such"], "没有这个文件夹"),
        (["--output_dir", "OLD", "--overwrite_output_dir", "true"], "会盖掉"),
        (["--init_adapter", "OLD/checkpoint-2", "--output_dir", "OLD", "--overwrite_output_dir", "true"], "会盖掉"),
        (["--model_name_or_path", "OTHER"], "权重不同"),
    ],
)
def test_what_an_adapter_cannot_go_on_with_is_one_line(words, said, old, data, tokenizer, tmp_path, capsys):  # noqa: F811
    other = save_model(tiny_model("qwen2", seed=9), tokenizer, tmp_path / "other")
    words = [word.replace("OLD", str(old)).replace("OTHER", str(other)) for word in words]
    capsys.readouterr()
    assert train(going_on(data, tmp_path / "new", old, *words)) == 2
    error = capsys.readouterr().err
    assert said in error and error.strip().count("\n") == 0
    assert not (tmp_path / "new").exists() and (old / WEIGHTS).is_file()


def test_what_changes_nothing_about_the_adapter_may_be_given(old, data, tokenizer, tmp_path):  # noqa: F811
    same = ("--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj", "--lora_dropout", "0.5")
    assert train(going_on(data, tmp_path / "new", old, *same)) == 0
    config = json.loads((tmp_path / "new/adapter_config.json").read_text())
    assert (config["r"], config["lora_dropout"]) == (4, 0.5)


def test_another_tasks_adapter_is_no_start(old, data, tmp_path, capsys):  # noqa: F811
    ner = ("--train_file", str(data / "train_ner.jsonl"), *validation(data, "ner"))
    assert train_qwen2_ner.main(going_on(data, tmp_path / "new", old, *ner)) == 2
    assert "它的任务是 classification，数据是 ner 的" in capsys.readouterr().err


def test_new_labels_are_told_and_the_new_adapter_knows_them(old, data, tmp_path, caplog):  # noqa: F811
    labels = (*LABELS[1:], "天气")
    records = [{"text": f"晴天{n}", "label": labels[n % 3], "options": list(labels)} for n in range(9)]
    path = write_records(tmp_path / "train_new.jsonl", Classification(labels), records)
    new = ("--train_file", str(path), "--validation_file", str(path))
    assert train(going_on(data, tmp_path / "new", old, *new)) == 0
    assert f"新的有 天气；没有了 {LABELS[0]}" in caplog.text
    assert TaskSettings.read(tmp_path / "new/task.json").task.labels == labels


def test_resuming_knows_which_adapter_the_run_began_with(old, data, tmp_path, capsys):  # noqa: F811
    assert train(going_on(data, tmp_path / "new", old)) == 0
    resumed = ("--resume_from_checkpoint", "true")
    assert train(going_on(data, tmp_path / "new", old, *resumed)) == 0
    capsys.readouterr()
    other = next(path for path in old.glob("checkpoint-*") if model_hash(path) != model_hash(old))
    assert train(going_on(data, tmp_path / "new", other, *resumed)) == 2
    assert "init_adapter" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--num_train_epochs", "4", "--resume_from_checkpoint", "true"], []])
def test_a_finished_run_says_how_to_go_on(words, old, base, data, capsys):  # noqa: F811
    capsys.readouterr()
    assert train(flags(base, data, old, *words)) == 2
    assert f"--init_adapter {old}" in capsys.readouterr().err


# ---- checkpoints predict ----


def test_a_checkpoint_predicts_what_training_evaluated_at_its_step(old, data, tmp_path, capsys):  # noqa: F811
    for step, evaluation in evaluations(old).items():
        if step > 0:
            checkpoint = old / f"checkpoint-{step}"
            same_metrics(evaluation, predicted_metrics(capsys, checkpoint, data / "test_cls.jsonl"))
            assert "task.json" in json.loads((checkpoint / "manifest.json").read_text())["files"]


def test_an_interrupted_run_names_its_checkpoints(old, data, tmp_path, capsys):  # noqa: F811
    interrupted = shutil.copytree(old, tmp_path / "run")
    for name in (WEIGHTS, "task.json", "all_results.json"):
        (interrupted / name).unlink()
    assert predict.main(["--adapter", str(interrupted), "--text", "打仗"]) == 2
    error = capsys.readouterr().err
    assert f"--adapter {interrupted}/checkpoint-4" in error and error.count("\n") == 1
    assert predict.main(["--adapter", str(interrupted / "checkpoint-4"), "--text", "打仗"]) == 0


# ---- data that is not converted ----

RAW = {
    "rows.csv": "text,label\n打仗,军事\n赢了,体育\n",
    "rows.tsv": "text\tlabel\n打仗\t军事\n",
    "rows.jsonl": '{"text": "打仗", "label": "军事"}\n',
    "rows.json": '[\n  {"text": "打仗", "label": "军事"}\n]\n',
    "rows.txt": "打仗\n赢了\n",
    "rows.conll": "打 O\n仗 B-X\n\n",
    "chat.jsonl": '{"messages": [{"role": "user", "content": "打仗"}, {"role": "assistant", "content": "军事"}]}\n',
    "my rows.csv": "text,label\n打仗,军事\n",
}


@pytest.mark.parametrize("name", RAW)
def test_raw_data_says_which_script_to_run_first(name, base, data, tmp_path, capsys):  # noqa: F811
    path = tmp_path / name
    path.write_text(RAW[name], encoding="utf-8")
    shown = f"'{path}'" if " " in name else str(path)
    for main, script, task in (
        (train, "transfer_classification_data.py", "cls"),
        (train_qwen2_ner.main, "transfer_ner_data.py", "ner"),
    ):
        records = str(data / f"train_{task}.jsonl")
        for flag in ("--train_file", "--validation_file", "--test_file"):
            assert main(flags(base, data, tmp_path / "run", "--train_file", records, flag, str(path))) == 2
            line = capsys.readouterr().err.strip().splitlines()[-1]
            assert f"python {script} --input_file {shown}" in line


def test_raw_data_beside_a_task_json_of_the_same_name_is_seen(base, data, tmp_path, capsys):  # noqa: F811
    write_records(tmp_path / "rows.jsonl", Classification(LABELS), articles(5, 0))
    (tmp_path / "rows.csv").write_text(RAW["rows.csv"], encoding="utf-8")
    assert train(flags(base, data, tmp_path / "run", "--train_file", str(tmp_path / "rows.csv"))) == 2
    assert "请先运行 python transfer_classification_data.py" in capsys.readouterr().err


def test_records_without_their_task_json_say_what_is_missing(base, data, tmp_path, capsys):  # noqa: F811
    path = write_records(tmp_path / "rows.jsonl", Classification(LABELS), articles(5, 0))
    (tmp_path / "rows.task.json").unlink()
    assert train(flags(base, data, tmp_path / "run", "--train_file", str(path))) == 2
    error = capsys.readouterr().err
    assert "rows.task.json：没有这个文件" in error and "--input_file" not in error


# ---- reporting elsewhere ----


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--report_to", "tensorboard"], "pip install tensorboard"),
        (["--report_to", "swanlab,wandb"], "pip install wandb"),
        (["--report_to", "tensorbord"], "没有这个工具"),
        (["--push_to_hub"], "--push_to_hub：连不上"),
        (["--push_to_hub", "true", "--hub_model_id", "me/mine"], "--push_to_hub：连不上"),
    ],
)
def test_where_nothing_can_be_reported_is_one_line(words, said, base, data, tmp_path, capsys, monkeypatch):  # noqa: F811
    from transformers.integrations import integration_utils

    for name in ("is_tensorboard_available", "is_wandb_available"):
        monkeypatch.setattr(integration_utils, name, lambda: False)
    with pytest.raises(SystemExit) as stop:
        train(flags(base, data, tmp_path / "run", *words))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and error.count("\n") == 1


@pytest.mark.parametrize("words", [["--report_to", "swanlab"], ["--report_to", "all"], []])
def test_reporting_to_swanlab_means_our_own_tracking(words, tmp_path):
    from sft.training.arguments import parse_arguments

    training = parse_arguments("", ["--output_dir", str(tmp_path), *words]).training
    assert "swanlab" not in training.report_to
