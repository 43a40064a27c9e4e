"""The folder of the base model: a local one, or one downloaded from the ModelScope hub.

A name is a path or a hub id (``Owner/Name``), and the two can look alike: ``qwen/Qwen2.5-1.5B-Instruct`` is the folder
that the readme downloads into, ``Qwen/Qwen2.5-1.5B-Instruct`` is the id on the hub. The rule: a name that exists as a
path is a path. Otherwise ``Owner/Name`` is a hub id, unless ``Owner`` is the models folder or an existing folder with
exactly this spelling.
"""

from __future__ import annotations

import logging
import re
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path

import orjson

from sft.errors import InputError, RunError
from sft.files import ADAPTER_CONFIG_FILE, large_file_hash
from sft.network import reachable

logger = logging.getLogger(__name__)

MODELS_DIR = Path("qwen")  # where models are downloaded to
DEFAULT_NAME = "Qwen2.5-1.5B-Instruct"
DEFAULT_MODEL = f"{MODELS_DIR}/{DEFAULT_NAME}"
DEMO_MODEL = f"{MODELS_DIR}/demo"
CONNECT_SECONDS = 10
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
PUBLISHED = re.compile(r"Qwen[\d.]+-[\d.]+B(-A[\d.]+B)?(-Base|-Instruct)?(-\d{4})?")  # Qwen's names of its models
# Other formats of the same weights. They are never read, and loading a pickled file can run its code.
UNUSED_FILES = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "*.tflite", "*.pdparams"]


def resolve_model(name_or_path: str, models_dir: Path = MODELS_DIR, *, offer_demo: bool = True) -> Path:
    """The complete folder of a model: with config, tokenizer and safetensors weights.

    A hub id is downloaded once into ``models_dir/<Name>``; later calls find it there and need no network.

    Args:
        offer_demo: whether the demo model would do, too; the messages then name it.

    Raises:
        InputError: there is no such folder, a part of it is missing, or the hub does not know the id.
        RunError: the download failed.
    """
    folder = Path(name_or_path).expanduser()
    if folder.exists():
        _require_complete(folder, offer_demo)
        return folder
    if not is_hub_id(name_or_path, models_dir):
        raise InputError(f"{name_or_path}：没有这个模型文件夹；{_advice(folder, offer_demo)}")
    folder = models_dir / name_or_path.split("/")[1]
    if problem(folder) is not None:
        _download(name_or_path, folder, offer_demo)
        _require_complete(folder, offer_demo)
    return folder


def is_hub_id(name: str, models_dir: Path = MODELS_DIR) -> bool:
    """Whether a name that is no existing path is one of the hub; see the rule above."""
    if HUB_ID.fullmatch(name) is None:
        return False
    owner = name.split("/")[0]
    # Compare names instead of asking the file system: if it ignores case, Path("Qwen").is_dir() finds qwen/.
    return owner != models_dir.name and all(owner != entry.name for entry in Path.cwd().iterdir() if entry.is_dir())


def published_id(name: str) -> str | None:
    """The hub id of a model that is named by id or by folder; None if it is not known which model it is."""
    if is_hub_id(name):
        return name
    folder = Path(name).name
    return f"Qwen/{folder}" if PUBLISHED.fullmatch(folder) else None


def license_of(folder: Path) -> str | None:
    """The licence that a model's own card names, such as ``apache-2.0``; None if it has no card or names none."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    head = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    found = head and re.search(r"^license: *([\w.-]+) *$", head[1], re.MULTILINE)
    return found[1] if found else None


def lasting_name(name_or_path: str) -> str:
    """A model's name for a file that may be read elsewhere: ``models/mine`` that is a folder here → ``./models/mine``.

    Without the ``./`` it would be taken for a hub id where there is no folder ``models``.
    """
    is_folder = Path(name_or_path).is_dir() and HUB_ID.fullmatch(name_or_path) is not None
    return f"./{name_or_path}" if is_folder and not name_or_path.startswith(f"{MODELS_DIR}/") else name_or_path


def _require_complete(folder: Path, offer_demo: bool) -> None:
    found = problem(folder)
    if found is not None:
        raise InputError(f"{folder}：{found}；{_advice(folder, offer_demo)}")


def _advice(folder: Path, offer_demo: bool, hub_id: str | None = None) -> str:
    """The command that downloads this model into ``folder``, if it is known which, and what to do without a network.

    Another model is never advised: its name does not say that it would do.
    """
    if hub_id is None and PUBLISHED.fullmatch(folder.name):
        hub_id = published_id(folder.name)
    if hub_id is None:
        return "请检查路径，并用 --model_name_or_path 给出模型所在的文件夹"
    local_dir = folder.as_posix()
    if not local_dir.startswith(("/", ".", "~")):
        local_dir = f"./{local_dir}"
    demo = f"；不能联网就用自带的演示模型：--model_name_or_path {DEMO_MODEL}" if offer_demo else ""
    return f"请先下载：modelscope download --model {hub_id} --local_dir {shlex.quote(local_dir)}{demo}"


def problem(folder: Path) -> str | None:
    """Why ``folder`` is not a complete model; None if it is one."""
    try:
        return _missing_part(folder)
    except OSError as error:
        return f"无法读取（{error.strerror}）"


def _missing_part(folder: Path) -> str | None:
    if not folder.is_dir():
        return "不是文件夹"
    if not (folder / "config.json").is_file():
        adapter = (folder / ADAPTER_CONFIG_FILE).is_file()
        return "这是 LoRA 适配器，不是底座模型（缺少 config.json）" if adapter else "缺少 config.json"
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        return "缺少分词器（tokenizer.json）"
    return _weights_problem(folder)


def _weights_problem(folder: Path) -> str | None:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        return "权重只有 pickle 格式（.bin），只接受 safetensors" if pickled else "缺少权重（*.safetensors）"
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(orjson.loads(index.read_bytes())["weight_map"].values())
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            return f"{index.name} 已损坏"
        missing = sorted(shards - {path.name for path in weights})
        if missing:
            return f"缺少权重 {missing[0]}（共缺 {len(missing)} 个）"
    for path in weights:
        if not _has_declared_size(path):
            return f"{path.name} 不完整或已损坏"
    return None


def _has_declared_size(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says; an interrupted download is not."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_length = int.from_bytes(file.read(8), "little")
        if header_length > size - 8:
            return False
        try:
            header = orjson.loads(file.read(header_length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, IndexError):
            return False
    return size == 8 + header_length + max(ends, default=0)


def model_hash(folder: Path) -> str:
    """Short SHA-256 hashes of the config and weights of a model or an adapter, joined with ``-``.

    Every byte counts, so that another model of the same shape and a damaged file are noticed; names do not.
    """
    files = sorted([*folder.glob("config.json"), *folder.glob(ADAPTER_CONFIG_FILE), *folder.glob("*.safetensors")])
    return "-".join(large_file_hash(path)[:8] for path in files)


def _download(hub_id: str, folder: Path, offer_demo: bool) -> None:
    """Download ``hub_id`` into ``folder``; modelscope checks the SHA-256 of every file.

    Raises:
        InputError: the hub has no such model, or it needs a login.
        RunError: there is no network, or a file did not arrive complete.
    """
    # The modelscope client prints messages to stdout, which is for results.
    with redirect_stdout(sys.stderr):
        import requests
        from modelscope import snapshot_download
        from modelscope_hub.config import HubConfig
        from modelscope_hub.errors import HubError

        endpoint = HubConfig().endpoint
        # Without this check, the client retries five times and reports the same after 45 s.
        if not reachable(endpoint, CONNECT_SECONDS):
            advice = _advice(folder, offer_demo, hub_id)
            raise RunError(f"{hub_id}：{CONNECT_SECONDS} 秒内连不上 {endpoint}，请检查网络或代理；或{advice}")
        logger.info("从 ModelScope 下载 %s 到 %s", hub_id, folder)
        try:
            snapshot_download(hub_id, local_dir=str(folder), ignore_patterns=UNUSED_FILES)
        except requests.HTTPError as error:
            raise InputError(f"{hub_id}：ModelScope 上没有这个模型，或需要先登录（{_first_line(error)}）") from error
        except (HubError, requests.RequestException, OSError) as error:
            raise RunError(f"{hub_id}：下载失败（{_first_line(error)}）；再运行一次会接着下载") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
