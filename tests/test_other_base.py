"""An adapter and what it belongs to: its base model, the place of it, and rows of its own task."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from models import save_adapter, save_model, tiny_model
from safetensors.torch import load_file, save_file
from stub_hub import stub_hub

import predict
from sft.data.records import make_record
from sft.errors import InputError
from sft.files import PART_BYTES, file_hash, large_file_hash
from sft.model.adapter import find_base, settings_of_adapter
from sft.model.hub import lasting_name, model_hash
from sft.prediction.other_task import gold_kind
from sft.tasks.classification import Classification
from sft.tasks.ner import Ner
from sft.tasks.settings import TaskSettings

LABELS = ("体育", "军事")


def remember(adapter: Path, **changes: object) -> None:
    path = adapter / "task.json"
    TaskSettings.read(path).replace(**changes).write(path)


@pytest.fixture
def adapter(tokenizer, tmp_path) -> Path:
    """An adapter in ``project/adapter`` that remembers its base, ``project/base``, by path and hash."""
    folder = save_adapter(tokenizer, tmp_path / "project", LABELS)
    remember(folder, base_hash=model_hash(tmp_path / "project" / "base"))
    return folder


def predicted(capsys, *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = predict.main([*words, "--text", "打仗"])
    return code, *capsys.readouterr()


def other_values(base: Path, tokenizer) -> None:
    save_model(tiny_model("qwen2", seed=5), tokenizer, base)


def one_value(base: Path, tokenizer) -> None:
    path = base / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][7] += 1
    save_file(tensors, path, metadata={"format": "pt"})


def one_bit(base: Path, tokenizer) -> None:
    path = base / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def other_rope(base: Path, tokenizer) -> None:
    path = base / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))


# ---- another base of the same shape ----


@pytest.mark.parametrize(
    ("change", "what"),
    [(other_values, "权重不同"), (one_value, "权重不同"), (one_bit, "权重不同"), (other_rope, "config.json 不同")],
)
def test_another_base_of_the_same_shape_is_refused_unless_told(
    change, what, adapter, tokenizer, tmp_path, capsys, caplog
):
    other = shutil.copytree(tmp_path / "project" / "base", tmp_path / "other")
    change(other, tokenizer)
    words = ("--adapter", str(adapter), "--model_name_or_path", str(other))
    code, out, error = predicted(capsys, *words)
    assert (code, out, error.count("\n")) == (2, "", 1)
    remembered = TaskSettings.read(adapter / "task.json").base_hash
    assert what in error and remembered in error and model_hash(other) in error and str(other) in error
    code, out, _ = predicted(capsys, *words, "--allow_other_base")
    assert code == 0 and json.loads(out)["label"] in LABELS
    assert what in caplog.text


def test_a_moved_and_renamed_copy_of_the_base_is_the_same(adapter, tmp_path, capsys):
    _, expected, _ = predicted(capsys, "--adapter", str(adapter))
    moved = tmp_path / "elsewhere" / "another name"
    shutil.move(tmp_path / "project" / "base", moved)
    assert predicted(capsys, "--adapter", str(adapter), "--model_name_or_path", str(moved))[:2] == (0, expected)
    moved_adapter = shutil.move(adapter, tmp_path / "adapter 2")
    words = ("--adapter", str(moved_adapter), "--model_name_or_path", str(moved))
    assert predicted(capsys, *words)[:2] == (0, expected)


def test_the_model_before_fine_tuning_is_the_adapters_own_base(adapter, tokenizer, tmp_path, capsys, monkeypatch):
    words = ("--base_only", "--adapter", str(adapter))
    _, expected, _ = predicted(capsys, *words)
    remember(adapter, base_model="./base")
    monkeypatch.chdir(tmp_path)
    assert predicted(capsys, *words)[:2] == (0, expected)
    other = shutil.copytree(tmp_path / "project" / "base", tmp_path / "other")
    other_values(other, tokenizer)
    assert predicted(capsys, *words, "--model_name_or_path", str(other))[0] == 2


def test_an_adapter_of_an_older_version_still_works(adapter, tokenizer, tmp_path, capsys):
    remember(adapter, base_hash=None)
    other_values(tmp_path / "project" / "base", tokenizer)
    assert predicted(capsys, "--adapter", str(adapter))[0] == 0


@pytest.mark.parametrize("extra", [0, 1, PART_BYTES])
def test_the_hash_of_a_large_file_counts_every_byte(extra, tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(PART_BYTES + extra)
    hashes = {large_file_hash(path)}
    if extra == 0:
        assert hashes == {file_hash(path)}
    for place in (0, PART_BYTES - 1, PART_BYTES + extra - 1):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"\x01")
        hashes.add(large_file_hash(path))
    assert len(hashes) == (4 if extra else 3)


# ---- where the base is ----


@pytest.mark.parametrize(
    "remembered", ["base", "./base", ".\\base", "../project/base", "models/base", "./models/base"]
)
def test_a_relative_base_is_found_from_another_working_directory(
    remembered, adapter, tmp_path, monkeypatch, capsys, recwarn
):
    """The hash shows that the folder above the adapter is the right one; nothing is looked up on the hub."""
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    _, expected, _ = predicted(capsys, "--adapter", str(adapter))
    if "models" in remembered:
        (tmp_path / "project/models").mkdir()
        (tmp_path / "project/base").rename(tmp_path / "project/models/base")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": remembered}))
    settings = TaskSettings.read(adapter / "task.json")
    settings.replace(base_model=remembered).write(adapter / "task.json")  # after the file that it has a hash of
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    code, out, error = predicted(capsys, "--adapter", str(adapter))
    assert (code, out) == (0, expected), error
    assert not [warning for warning in recwarn if "config" in str(warning.message)], "peft looks nothing up"


def test_a_folder_of_that_name_with_another_model_is_not_taken(adapter, tokenizer, tmp_path, monkeypatch, capsys):
    remember(adapter, base_model="base")
    other_values(tmp_path / "project" / "base", tokenizer)
    monkeypatch.chdir(tmp_path)
    code, _, error = predicted(capsys, "--adapter", str(adapter))
    assert code == 2 and "那里没有" in error


@pytest.mark.parametrize(
    "remembered",
    [
        "qwen/demo",
        "/data/models/x",
        "./x",
        "../x",
        "..\\x",
        "C:\\models\\x",
        "D:/x/y",
        "~/x",
        "./models/x",
        "output/m/x",
    ],
)
@pytest.mark.parametrize("has_hash", [True, False])
def test_a_base_that_has_gone_is_told_without_asking_the_network(remembered, has_hash, adapter, tmp_path, monkeypatch):
    wanted = TaskSettings.read(adapter / "task.json").base_hash if has_hash else None
    remember(adapter, base_model=remembered, base_hash=wanted)
    monkeypatch.chdir(adapter.parent.parent)
    with stub_hub() as hub:
        for name, value in hub.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError) as error:
            find_base(adapter, settings_of_adapter(adapter), None)
        assert hub.requests == []
    message = str(error.value)
    assert remembered in message and "--model_name_or_path" in message
    assert (wanted or "哈希") in message if has_hash else "哈希" not in message
    assert "download" not in message and "demo" not in message.replace(remembered, "")


def test_a_local_base_that_looks_like_a_hub_id_is_remembered_as_local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("models/mine", "Owner/Name", "qwen/demo", "a/b/c", "plain"):
        Path(name).mkdir(parents=True)
    assert lasting_name("models/mine") == "./models/mine"
    assert lasting_name("Owner/Name") == "./Owner/Name"
    for name in ("qwen/demo", "a/b/c", "plain", "Qwen/Qwen3-0.6B", str(tmp_path / "models/mine")):
        assert lasting_name(name) == name


@pytest.mark.parametrize("name", ["my-base", "chatglm3-6b", "Qwen2.5-merged", "bert-base-chinese"])
def test_another_models_download_is_never_advised(name, tmp_path, monkeypatch, capsys):
    (tmp_path / name).mkdir()
    for given in (name, f"./no/{name}"):
        words = ["--base_only", "--task_file", str(tmp_path / "t.task.json"), "--model_name_or_path"]
        TaskSettings(Classification(LABELS)).write(tmp_path / "t.task.json")
        monkeypatch.chdir(tmp_path)
        code, _, error = predicted(capsys, *words, given)
        assert code == 2 and "download" not in error and "--model_name_or_path" in error


# ---- folders without an adapter ----


def damage_name(adapter: Path, kind: str) -> Path:
    if kind == "file":
        return adapter / "adapter_model.safetensors"
    if kind == "base":
        return adapter.parent / "base"
    if kind == "checkpoints":
        for step in (20, 100):
            shutil.copytree(adapter, adapter.parent / "run" / f"checkpoint-{step}")
        state = adapter.parent / "run/checkpoint-100/trainer_state.json"
        state.write_text('{"best_global_step": 20}')
        return adapter.parent / "run"
    return adapter.parent


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("file", "请给出它所在的文件夹"),
        ("base", "这是底座模型"),
        ("checkpoints", "checkpoint-20"),
        ("nothing", "没有 adapter_model.safetensors"),
    ],
)
def test_a_folder_without_an_adapter_says_which_one_to_name(kind, said, adapter, capsys):
    folder = damage_name(adapter, kind)
    code, _, error = predicted(capsys, "--adapter", str(folder))
    assert code == 2 and said in error and error.count("\n") == 1
    if kind == "checkpoints":
        assert f"最新的是 --adapter {folder}/checkpoint-100" in error
        assert predicted(capsys, "--adapter", str(folder / "checkpoint-20"))[0] == 0


def test_a_checkpoint_without_task_json_takes_that_of_its_run(adapter, tmp_path, capsys, caplog):
    checkpoint = tmp_path / "run" / "checkpoint-8"
    shutil.copytree(adapter, checkpoint)
    (checkpoint / "task.json").rename(tmp_path / "run" / "task.json")
    remember(tmp_path / "run", threshold=0.9)
    code, out, _ = predicted(capsys, "--adapter", str(checkpoint))
    assert code == 0 and "不用它的阈值" in caplog.text
    assert out == predicted(capsys, "--adapter", str(adapter))[1]


def test_a_task_file_of_another_task_is_refused(adapter, tmp_path, capsys):
    path = tmp_path / "ner.task.json"
    TaskSettings(Ner.with_labels(["人名"])).write(path)
    code, _, error = predicted(capsys, "--adapter", str(adapter), "--task_file", str(path))
    assert code == 2 and "ner" in error and "classification" in error


# ---- rows of another task ----

SENTENCE = "张伟到了上海"
NER_ROWS = {
    "ccfbdci": {"text": SENTENCE, "entities": [{"start_idx": 0, "end_idx": 2, "entity_label": "人名"}]},
    "spans": {"text": SENTENCE, "entities": [{"start": 0, "end": 2, "label": "人名"}]},
    "doccano": {"text": SENTENCE, "label": [[0, 2, "人名"]]},
    "cluener": {"text": SENTENCE, "label": {"人名": {"张伟": [[0, 1]]}}},
    "offsets": {"content": SENTENCE, "entities": [{"start_offset": 0, "end_offset": 2, "label": "人名"}]},
    "cell": {"text": SENTENCE, "实体": "[[0, 2, '人名']]"},
}  # fmt: skip
LABEL_ROWS = {
    "fudan": {"text": SENTENCE, "category": ["体育", "军事"], "output": "军事"},
    "label": {"text": SENTENCE, "label": "军事"},
    "chinese": {"文本": SENTENCE, "类别": "军事"},
    "number": {"text": SENTENCE, "label": 1},
}
NEITHER = [
    {"text": SENTENCE},
    {"text": SENTENCE, "entities": []},
    {"text": SENTENCE, "label": None},
    {"text": SENTENCE, "output": "没有找到任何实体"},
    {"text": SENTENCE, "label": "军事", "entities": [[0, 2, "人名"]]},
]


@pytest.mark.parametrize("row", NER_ROWS.values(), ids=NER_ROWS)
def test_rows_with_entities_are_seen(row):
    assert gold_kind(row) == "entities"


@pytest.mark.parametrize("row", LABEL_ROWS.values(), ids=LABEL_ROWS)
def test_rows_with_a_label_are_seen(row):
    assert gold_kind(row) == "label"


@pytest.mark.parametrize("row", NEITHER, ids=str)
def test_rows_that_could_be_of_any_task_are_left_alone(row):
    assert gold_kind(row) is None


def refused_rows(adapter: Path, rows: list[dict], tmp_path: Path, capsys, *more: str) -> tuple[int, str]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    capsys.readouterr()
    code = predict.main(["--adapter", str(adapter), "--input_file", str(path), *more])
    return code, capsys.readouterr().err


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model fails the test: the refusal comes first."""
    monkeypatch.setattr("sft.prediction.predictor.load_base", None)


def of_task(adapter: Path, task) -> Path:
    remember(adapter, task=task)
    return adapter


NER = Ner.with_labels(["人名"])
CONVERTED = {
    "ner": make_record(NER, {"text": SENTENCE, "entities": []}),
    "classification": make_record(Classification(LABELS), {"text": SENTENCE, "label": "军事"}),
}


@pytest.mark.parametrize("task", [Classification(LABELS), NER], ids=["classification", "ner"])
def test_a_file_of_another_task_is_refused_before_the_model_is_loaded(task, adapter, tmp_path, capsys, no_model):
    folder = of_task(adapter, task)
    (other,) = CONVERTED.keys() - {task.name}
    code, error = refused_rows(folder, [CONVERTED[other]], tmp_path, capsys)
    assert code == 2 and f"第 1 条是 {other} 的数据" in error and error.count("\n") == 1
    for raw in (NER_ROWS if task.answers == "label" else LABEL_ROWS).values():
        code, error = refused_rows(folder, [{"text": "没有标准答案"}, raw, raw], tmp_path, capsys)
        assert code == 2 and "3 条里有 2 条" in error and error.count("\n") == 1


def test_conll_given_to_a_classifier_is_refused(adapter, tmp_path, capsys, no_model):
    path = tmp_path / "rows.conll"
    path.write_text("张 B-PER\n伟 I-PER\n到 O\n\n上 B-LOC\n海 I-LOC\n", encoding="utf-8")
    assert predict.main(["--adapter", str(adapter), "--input_file", str(path)]) == 2
    assert "实体识别的数据" in capsys.readouterr().err


def test_the_texts_of_another_tasks_rows_can_be_predicted_when_asked(adapter, tmp_path, capsys):
    code, _ = refused_rows(adapter, [NER_ROWS["spans"], CONVERTED["ner"]], tmp_path, capsys, "--text_column", "text")
    assert code == 0


def test_a_single_row_of_another_task_is_an_error_in_its_place(adapter, tmp_path, capsys):
    rows = [{"text": "打仗"}] * 60 + [CONVERTED["ner"]]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert predict.main(["--adapter", str(adapter), "--input_file", str(path)]) == 0
    outputs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ["error" in output for output in outputs] == [False] * 60 + [True]
    assert "ner" in outputs[-1]["error"]


def test_gold_under_names_is_no_other_task(adapter, tmp_path, capsys):
    assert refused_rows(adapter, [{"text": "打仗", "label": "别的名字"}], tmp_path, capsys)[0] == 0
    remember(adapter, task=NER)
    named = [{"text": SENTENCE, "entities": [{"start": 0, "end": 2, "label": "PER"}]}]
    assert refused_rows(adapter, named, tmp_path, capsys)[0] == 0
