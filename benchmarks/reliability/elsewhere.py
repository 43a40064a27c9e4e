"""S1: folders from elsewhere with code, and secrets. T1: trackers that fail. M1: downloads that fail."""

from __future__ import annotations

import io
import os
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import predict
from benchmarks.reliability import preload
from benchmarks.reliability.matrix import Family, Job, Outcome
from benchmarks.reliability.runs import (
    KILLED,
    LABELS,
    RESUME,
    World,
    case,
    flags,
    require,
    require_same,
    require_told,
    run,
    stopped,
    undisturbed,
)
from benchmarks.reliability.writes import sample, shares
from sft.files import checkpoint_folder
from sft.training import manifests
from tests import test_foreign_folders as foreign

# ---- S1 ----

PICKLED = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
IGNORED = ("training_args.bin", "pytorch_model.bin", "adapter_model.bin", "scaler.pt")
SECRETS = ("--hub_token", "--push_to_hub_token", "SWANLAB_API_KEY", "HF_TOKEN")


def payload_jobs(world: World, short: bool) -> Iterator[Job]:
    payloads = [("adapter", name) for name in foreign.ADAPTER] + [("init_adapter", name) for name in foreign.ADAPTER]
    payloads += [("base", name) for name in foreign.BASE] + [("bomb", name) for name in foreign.BOMBS]
    yield from shares(payload, sample(payloads, 4) if short else payloads)
    sealed = [(name, instead) for name in PICKLED + IGNORED for instead in (True, False)]
    yield from shares(pickled_checkpoints, sealed[:1] if short else sealed)
    yield Job(secrets, (SECRETS[:1] if short else SECRETS,))


def payload(world: World, folder: Path, payloads: Sequence[tuple[str, str]]) -> Iterator[Outcome]:
    good = folder / "good"
    good.mkdir()
    _write_adapter(world, good)
    for place, name in payloads:
        yield case(folder, f"S1 {place} {name}", harmless, good, place, name)


def _write_adapter(world: World, folder: Path) -> None:
    from sft.model.loading import load_tokenizer
    from tests.models import save_adapter

    save_adapter(load_tokenizer(world.base), folder, foreign.LABELS)


def harmless(folder: Path, good: Path, place: str, name: str) -> None:
    foreign.plant(good, folder)
    base, adapter = folder / "base", folder / "adapter"
    if place == "bomb":
        foreign.change("adapter_config.json", **foreign.BOMBS[name])(adapter)
    else:
        os.chdir(folder)  # a pickle names the canary by this folder
        payloads = foreign.BASE if place == "base" else foreign.ADAPTER
        payloads[name](base if place == "base" else adapter)
    main, words = predict.main, ["--adapter", str(adapter), "--text", "昨天赢了", "--no_verify", "--allow_other_base"]
    if place == "init_adapter":
        _seal_again(adapter)
        words = ["--init_adapter", str(adapter), "--allow_other_base", "true"]
    if place == "init_adapter" or (place == "base" and name in foreign.EVERYWHERE):
        main, words = foreign.train_qwen2_classification.main, [*words[: 4 if place != "base" else 0]]
        words += ["--train_file", str(_records(folder)), "--test_file", "none", "--validation_ratio", "0"]
        words += ["--output_dir", str(folder / "run"), "--max_steps", "1", "--eval_strategy", "no"]
        words += ["--swanlab_mode", "disabled", "--dtype", "float32"]
    started = time.monotonic()
    done = run([*words, "--model_name_or_path", str(base)], folder, lambda: say_yes(folder), main=main)
    require_told(done, {0, 2})
    require(not (folder / "canary").exists(), "它的代码运行了", done)
    require(not (folder / "asked").exists(), "它从标准输入读了回答", done)
    require(time.monotonic() - started < 50, "太慢", done)


def _seal_again(adapter: Path) -> None:
    """As somebody would who gives the changed folder away."""
    from sft.tasks.settings import TaskSettings

    TaskSettings.read(adapter / "task.json", verify=False).write(adapter / "task.json")


def _records(folder: Path) -> Path:
    from sft.tasks.classification import Classification
    from tests.test_training import write_records

    rows = [{"text": f"新闻{n}", "label": LABELS[n % 2], "options": list(foreign.LABELS)} for n in range(8)]
    return write_records(folder / "train.jsonl", Classification(foreign.LABELS), rows)


class AnsweringYes(io.RawIOBase):
    """A standard input that says yes to every question, and notes that it was asked."""

    def __init__(self, note: Path) -> None:
        self.note = note

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        self.note.touch()
        buffer[:2] = b"y\n"
        return 2


def say_yes(folder: Path) -> None:
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.stdin = io.TextIOWrapper(io.BufferedReader(AnsweringYes(folder / "asked")), encoding="utf-8")


def pickled_checkpoints(world: World, folder: Path, cases: Sequence[tuple[str, bool]]) -> Iterator[Outcome]:
    for name, sealed in cases:
        yield case(
            folder, f"S1 检查点里的 {name}{'，重新封过' if sealed else ''}", resume_pickled, world, name, sealed
        )


def resume_pickled(folder: Path, world: World, name: str, sealed: bool) -> None:
    more = ("--save_total_limit", "9")
    shutil.copytree(stopped(world, *more), folder / "run")
    checkpoint = checkpoint_folder(folder / "run", 4)
    os.chdir(folder)
    foreign.pickled(name)(checkpoint)
    if sealed:
        identity = manifests.saved_run(checkpoint)
        (checkpoint / manifests.MANIFEST).unlink()
        manifests.write_manifest(checkpoint, identity)
    done = run([*flags(world, folder / "run", *more), *RESUME], folder, lambda: say_yes(folder))
    require_told(done, {0, 2})
    require(not (folder / "canary").exists(), "它的代码运行了", done)
    if done.code == 0:
        require_same(folder / "run", undisturbed(world, *more))


def secrets(world: World, folder: Path, names: Sequence[str]) -> Iterator[Outcome]:
    for name in names:
        yield case(folder, f"S1 密钥 {name}", keep_secret, world, name)


def keep_secret(folder: Path, world: World, name: str) -> None:
    secret, words = "hf_SECRETSECRETSECRET", []
    if name.startswith("--"):
        words = [name, secret] if name == "--hub_token" else ["--hub_token", secret, "--logging_steps", "2"]

    def prepare() -> None:
        if not name.startswith("--"):
            os.environ[name] = secret

    done = run(flags(world, folder / "run", *words), folder, prepare)
    require_told(done, {0})
    require(secret not in done.errors, "密钥在输出里", done)
    for path in (folder / "run").rglob("*"):
        require(not path.is_file() or secret.encode() not in path.read_bytes(), f"密钥在 {path.name} 里")
    for path in ("README.md", "report.html", "trainer_state.json"):
        require(str(folder) not in (folder / "run" / path).read_text(encoding="utf-8"), f"{path} 里有绝对路径")


# ---- T1 ----


def tracker_jobs(world: World, short: bool) -> Iterator[Job]:
    undisturbed(world)
    faults = sorted(_tracker_faults())
    return (Job(tracked_runs, (fault,)) for fault in (faults[:2] if short else faults))


def _tracker_faults() -> dict[str, Callable[[], None]]:
    from tests.test_tracker_faults import RAISED

    return RAISED | {
        "hangs": threading.Event().wait,
        "hangs at the end": lambda: None,
        "exits at the end": lambda: None,
        "does not start": lambda: None,
        "hangs at the start": lambda: None,
        "is missing": lambda: None,
    }


def tracked_runs(world: World, folder: Path, fault: str) -> Iterator[Outcome]:
    yield case(folder, f"T1 {fault}", train_tracked, world, fault)


def train_tracked(folder: Path, world: World, fault: str) -> None:
    words = [*flags(world, folder / "run"), "--swanlab_mode", "offline", "--swanlab_logdir", str(folder / "swanlog")]
    done = run(words, folder, lambda: break_tracker(folder, fault))
    require_told(done, {0})
    require(done.errors.count("SwanLab") >= 1 or fault == "works", "没有说 SwanLab 出了什么事", done)
    require_same(folder / "run", undisturbed(world))


def break_tracker(folder: Path, fault: str) -> None:
    """Stand a faulty tracker in for SwanLab."""
    from sft.tracking import swanlab
    from sft.training import fine_tune
    from tests.test_tracker_faults import tracked

    swanlab.LOG_SECONDS = swanlab.FINISH_SECONDS = swanlab.START_SECONDS = 0.3
    hangs, exits = threading.Event().wait, sys.exit
    swanlab._finish = {"hangs at the end": lambda *_: hangs(), "exits at the end": lambda *_: exits(3)}.get(
        fault, lambda *_: None
    )
    if fault == "is missing":
        sys.modules["swanlab"] = None
    elif fault in ("does not start", "hangs at the start"):
        swanlab._init = lambda *_: exits(3) if fault == "does not start" else hangs()
    else:
        fine_tune.start_tracking = lambda **_: tracked(folder, _tracker_faults()[fault])[0]


# ---- M1 ----

MODEL = "Qwen/Qwen2.5-1.5B-Instruct"
DOWNLOADED = ("config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def download_jobs(world: World, short: bool) -> Iterator[Job]:
    cases: list[tuple[str, object]] = [("错一个字节", name) for name in DOWNLOADED]
    cases += [(fault, name) for fault in ("500", "404", "断开") for name in DOWNLOADED[1:3]]
    cases += [("杀死", seconds) for seconds in (0.1, 0.3, 0.5)] + [("磁盘满", number) for number in (1, 3, 6, 9)]
    cases += [("下载后翻转一位", name) for name in DOWNLOADED[2:]] + [("连不上", None)]
    return (Job(downloads, (fault,)) for fault in (cases[2:7:2] if short else cases))


def downloads(world: World, folder: Path, fault: tuple[str, object]) -> Iterator[Outcome]:
    yield case(folder, f"M1 {fault[0]} {fault[1]}", download, *fault)


def download(folder: Path, fault: str, what: object) -> None:
    """A download goes wrong: nothing bad is in its place, and the next one completes it."""
    from tests.stub_hub import stub_hub
    from tests.test_hub import write_model

    with stub_hub() as hub:
        served = write_model(folder / "served", shards=2)
        hub.repositories["models", MODEL] = served
        if fault == "错一个字节":
            hub.wrong_bytes.add(what)
        elif fault in ("500", "404", "断开"):
            hub.faults[what] = {"500": 500, "404": 404, "断开": 0}[fault]
        place = folder / "here" / "qwen" / MODEL.split("/")[1]
        (folder / "here" / "qwen").mkdir(parents=True)
        environment = hub.environment(folder)
        if fault == "连不上":
            environment["MODELSCOPE_ENDPOINT"] = "http://127.0.0.1:9"
        hook = preload.watch(folder / "here", preload.FULL, what) if fault == "磁盘满" else lambda: None
        killed = what if fault == "杀死" else None
        done = run(
            [], folder, lambda: _prepare_download(environment, hook), main=_resolve, kill_after_cpu_seconds=killed
        )
        require_told(
            done, {0, KILLED} if fault in ("杀死", "下载后翻转一位") else {1, 2, 0} if fault == "磁盘满" else {1, 2}
        )
        _require_no_bad_file(place, served)
        if fault == "下载后翻转一位":
            _flip(place / what)
            return _require_noticed(folder, hub, place, served)
        hub.wrong_bytes.clear()
        hub.faults.clear()
        done = run([], folder, lambda: _prepare_download(hub.environment(folder), lambda: None), main=_resolve)
        require_told(done, {0})
        _require_no_bad_file(place, served, whole=True)
        return None


def _prepare_download(environment: dict[str, str], hook: Callable[[], object]) -> None:
    os.environ |= environment
    os.chdir(Path(environment["MODELSCOPE_HOME"]).parent / "here")
    hook()


def _resolve(_: list[str]) -> int:
    from sft.cli import one_line_errors
    from sft.model.hub import resolve_model

    with one_line_errors() as outcome:
        resolve_model(MODEL, Path("qwen"))
    return outcome.code


def _require_no_bad_file(place: Path, served: Path, *, whole: bool = False) -> None:
    for path in served.iterdir():
        ours = place / path.name
        if whole:
            require(ours.is_file(), f"没有 {path.name}")
        same = not ours.exists() or ours.read_bytes() == path.read_bytes()
        require(same, f"{path.name} 不是服务器上的")


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[random.Random(0).randrange(len(content) // 2, len(content))] ^= 1
    path.write_bytes(content)


def _require_noticed(folder: Path, hub, place: Path, served: Path) -> None:
    """A flipped bit of the weights changes the model's hash, by which a run and an adapter know their base."""
    from sft.model.hub import model_hash

    require(model_hash(place) != model_hash(served), "翻转的一位没有改变底座的哈希")


FAMILIES = (
    Family(
        "S1",
        "外来的底座、适配器和检查点：自带 Python 代码、pickle、危险的模板、正则炸弹，标准输入一直答 y；密钥和绝对路径",
        "代码从不运行，从不提问，一行拒绝或照常工作；任何输出里没有密钥",
        payload_jobs,
    ),
    Family(
        "T1",
        "记录工具出错：抛出各种异常、退出、卡住、启动不了、没有安装",
        "训练照常，结果与不记录时逐位相同，metrics.jsonl 完整",
        tracker_jobs,
    ),
    Family(
        "M1",
        "下载出错：错一个字节、500、404、断开、被杀、磁盘满、连不上，下载后翻转一位",
        "坏文件从不在它的位置上；再运行一次就完整",
        download_jobs,
    ),
)
