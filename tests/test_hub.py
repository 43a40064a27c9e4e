"""The base model's folder: when it is used as it is, when it is downloaded (from a stub hub), and error messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from stub_hub import StubHub, stub_hub

from sft.errors import InputError, RunError
from sft.model.hub import resolve_model

README_MODEL = "modelscope download --model Qwen/Qwen2.5-1.5B-Instruct --local_dir ./qwen/Qwen2.5-1.5B-Instruct"
README_DATA = "modelscope download --dataset swift/zh_cls_fudan-news --local_dir ./data"
MODELS = Path("qwen")


def write_model(folder: Path, shards: int = 1) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    (folder / "tokenizer.json").write_text("{}")
    for shard in range(shards):
        name = "model.safetensors" if shards == 1 else f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file({f"weight{shard}": np.arange(4096, dtype=np.float32)}, folder / name)
    if shards > 1:
        files = {f"weight{shard}": f"model-{shard + 1:05}-of-{shards:05}.safetensors" for shard in range(shards)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with an empty ``qwen/``."""
    folder = tmp_path / "here"
    (folder / "qwen").mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def server():
    # All tests share one port, because the client keeps the first address it gets for the life of the process.
    # Import the client here: otherwise its log handler would keep the stderr that pytest gives to one single test.
    import modelscope  # noqa: F401

    with stub_hub() as hub:
        yield hub


@pytest.fixture
def hub(server: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubHub:
    server.repositories.clear()
    server.wrong_bytes.clear()
    server.requests.clear()
    for name, value in server.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    return server


def serve_model(hub: StubHub, tmp_path: Path, hub_id: str = "Qwen/Qwen2.5-1.5B-Instruct") -> Path:
    folder = write_model(tmp_path / "served", shards=2)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    hub.repositories["models", hub_id] = folder
    return folder


def test_a_whole_folder_is_used_as_it_is(here: Path) -> None:
    write_model(here / "qwen/demo")
    assert resolve_model("qwen/demo", MODELS) == Path("qwen/demo")
    sharded = write_model(here / "elsewhere/model", shards=2)
    assert resolve_model(str(sharded), MODELS) == sharded


def test_missing_default_folder_is_told_with_the_readme_command_and_the_offline_way(here: Path) -> None:
    with pytest.raises(InputError) as error:
        resolve_model("qwen/Qwen2.5-1.5B-Instruct", MODELS)
    message = str(error.value)
    assert README_MODEL in message
    assert "--model_name_or_path qwen/demo" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["qwen/missing", "./Qwen/missing", "models/a/b", "nothing", "/no/such", "其他/模型"])
def test_a_missing_path_is_never_looked_up_on_the_hub(here: Path, hub: StubHub, name: str) -> None:
    with pytest.raises(InputError, match="没有这个模型文件夹"):
        resolve_model(name, MODELS)
    assert hub.requests == []


def test_a_folder_of_the_owners_name_makes_the_name_a_path(here: Path, hub: StubHub) -> None:
    (here / "MyModels").mkdir()
    with pytest.raises(InputError, match="没有这个模型文件夹"):
        resolve_model("MyModels/one", MODELS)


def damage(folder: Path, kind: str) -> None:
    weights = folder / "model.safetensors"
    if kind == "no config":
        (folder / "config.json").unlink()
    elif kind == "adapter":
        (folder / "config.json").rename(folder / "adapter_config.json")
    elif kind == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif kind == "no weights":
        weights.unlink()
    elif kind == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif kind == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif kind == "empty weights":
        weights.write_bytes(b"")
    elif kind == "not safetensors":
        weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    elif kind == "missing shard":
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00002.safetensors"}}')
    elif kind == "broken index":
        (folder / "model.safetensors.index.json").write_text("{")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("no config", "缺少 config.json"),
        ("adapter", "LoRA 适配器"),
        ("no tokenizer", "分词器"),
        ("no weights", "缺少权重"),
        ("pickle", "只接受 safetensors"),
        ("cut", "不完整"),
        ("empty weights", "不完整"),
        ("not safetensors", "不完整"),
        ("missing shard", "model-00002.safetensors"),
        ("broken index", "已损坏"),
    ],
)
def test_what_a_folder_lacks_is_told_in_one_line(here: Path, kind: str, told: str) -> None:
    damage(write_model(here / "model"), kind)
    with pytest.raises(InputError, match=told) as error:
        resolve_model("model", MODELS)
    assert "\n" not in str(error.value)


def test_a_hub_id_is_fetched_once_and_then_needs_no_network(
    here: Path, hub: StubHub, tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve_model(hub, tmp_path)
    folder = resolve_model("Qwen/Qwen2.5-1.5B-Instruct", MODELS)
    assert folder == Path("qwen/Qwen2.5-1.5B-Instruct")
    for path in served.glob("*.safetensors"):
        assert (folder / path.name).read_bytes() == path.read_bytes()
    assert not list(folder.glob("*.bin")), "pickled weights are not fetched"
    assert capfd.readouterr().out == "", "stdout is for results"

    hub.requests.clear()
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    assert resolve_model("Qwen/Qwen2.5-1.5B-Instruct", MODELS) == folder
    assert resolve_model("qwen/Qwen2.5-1.5B-Instruct", MODELS) == folder
    assert hub.requests == []


def test_a_download_that_stopped_halfway_is_completed(here: Path, hub: StubHub, tmp_path: Path) -> None:
    serve_model(hub, tmp_path)
    folder = resolve_model("Qwen/Qwen2.5-1.5B-Instruct", MODELS)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert resolve_model("Qwen/Qwen2.5-1.5B-Instruct", MODELS) == folder
    assert (folder / "model-00002-of-00002.safetensors").is_file()


def test_a_wrong_byte_is_refused(here: Path, hub: StubHub, tmp_path: Path) -> None:
    serve_model(hub, tmp_path)
    hub.wrong_bytes.add("model-00002-of-00002.safetensors")
    with pytest.raises(RunError, match="下载失败"):
        resolve_model("Qwen/Qwen2.5-1.5B-Instruct", MODELS)
    assert not (here / "qwen/Qwen2.5-1.5B-Instruct/model-00002-of-00002.safetensors").exists()


def test_an_unknown_id_is_a_mistake_of_the_users(here: Path, hub: StubHub) -> None:
    with pytest.raises(InputError, match="ModelScope") as error:
        resolve_model("Nobody/Nothing", MODELS)
    assert "\n" not in str(error.value)


def test_a_repository_without_files_is_not_taken_for_a_model(here: Path, hub: StubHub, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    hub.repositories["models", "Owner/Empty"] = tmp_path / "empty"
    with pytest.raises(InputError, match="Empty"):
        resolve_model("Owner/Empty", MODELS)


def test_without_network_the_download_fails_soon_and_says_what_to_do(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path))
    started = time.monotonic()
    with pytest.raises(RunError, match="连不上") as error:
        resolve_model("Qwen/Qwen2.5-1.5B-Instruct", MODELS)
    assert time.monotonic() - started < 15
    assert README_MODEL in str(error.value)


def run_command(command: str, here: Path, hub: StubHub, tmp_path: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, **hub.environment(tmp_path)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(command, shell=True, cwd=here, env=environment, capture_output=True, text=True, timeout=60)


def test_the_readmes_model_command_works_as_written(here: Path, hub: StubHub, tmp_path: Path) -> None:
    serve_model(hub, tmp_path)
    done = run_command(README_MODEL, here, hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert resolve_model("qwen/Qwen2.5-1.5B-Instruct", MODELS) == Path("qwen/Qwen2.5-1.5B-Instruct")


def test_the_readmes_data_command_works_as_written(here: Path, hub: StubHub, tmp_path: Path) -> None:
    served = tmp_path / "news"
    served.mkdir()
    (served / "train.jsonl").write_text('{"text": "甲", "category": ["体育"], "output": "体育"}\n', encoding="utf-8")
    (served / "test.jsonl").write_text('{"text": "乙", "category": ["体育"], "output": "体育"}\n', encoding="utf-8")
    hub.repositories["datasets", "swift/zh_cls_fudan-news"] = served
    done = run_command(README_DATA, here, hub, tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("train.jsonl", "test.jsonl"):
        assert (here / "data" / name).read_bytes() == (served / name).read_bytes()


def test_a_wrong_byte_is_refused_by_the_readmes_command_too(here: Path, hub: StubHub, tmp_path: Path) -> None:
    serve_model(hub, tmp_path)
    hub.wrong_bytes.add("model-00001-of-00002.safetensors")
    done = run_command(README_MODEL, here, hub, tmp_path)
    assert done.returncode != 0
    assert not (here / "qwen/Qwen2.5-1.5B-Instruct/model-00001-of-00002.safetensors").exists()


def test_importing_the_module_loads_nothing_heavy() -> None:
    code = "import sys, sft.model.hub; print([m for m in ('torch', 'transformers', 'modelscope') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
