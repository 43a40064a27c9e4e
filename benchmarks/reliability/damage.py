"""C1: every file of a checkpoint and of a finished adapter damaged. C2: every setting changed before resuming."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import predict
from benchmarks.reliability.matrix import Family, Job, Outcome
from benchmarks.reliability.runs import (
    RESUME,
    World,
    case,
    flags,
    require,
    require_resumable,
    require_told,
    run,
    stopped,
    undisturbed,
)
from benchmarks.reliability.writes import shares
from sft.errors import InputError
from sft.files import checkpoint_folder
from sft.model.adapter import find_base, require_adapter, settings_of_adapter
from sft.training import manifests, resuming

ALL_KEPT = ("--save_total_limit", "9")
NEWEST, OLDER = 4, 2
FLIPS = 100
# What predict.py reads; the rest of the folder is for people.
OF_ADAPTER = (
    "adapter_model.safetensors", "adapter_config.json", "task.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja",
)  # fmt: skip
OF_BASE = ("model.safetensors", "config.json")


def damages(whole: bytes, other: bytes | None, flips: int, seed: str) -> Iterator[tuple[str, bytes | None]]:
    """Ways to damage a file: what it is called, and the new content; None is a deleted file.

    Args:
        other: the same file at another step.
    """
    size = len(whole)
    yield "删除", None
    for kept in sorted({0, 1, size // 2, size - 1} - {size}):
        yield f"截到 {kept} 字节", whole[:kept]
    yield "全是零", bytes(size)
    yield "多一个字节", whole + b"\n"
    if other is not None:
        yield "换成另一步的", other
    draw = random.Random(seed)
    for _ in range(flips):
        content = bytearray(whole)
        content[draw.randrange(size)] ^= 1 << draw.randrange(8)
        yield "翻转一位", bytes(content)


def same_content(content: bytes | None, whole: bytes) -> bool:
    """Whether nothing is lost: the same bytes, or JSON with other white space."""
    if content is None or content == whole:
        return content == whole
    try:
        return json.loads(content) == json.loads(whole)
    except ValueError:
        return False


def put(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(content)


# ---- C1 ----


def damage_jobs(world: World, short: bool) -> Iterator[Job]:
    folder = checkpoint_folder(stopped(world, *ALL_KEPT), NEWEST)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    undisturbed(world, *ALL_KEPT)  # both are trained before the jobs begin
    flips = 5 if short else FLIPS
    for name in names:
        yield Job(damaged_checkpoint, (name, flips))
        if not short or name in ("optimizer.pt", "manifest.json"):
            yield Job(damaged_and_resumed, (name, 1 if short else 8))
    for name in OF_ADAPTER:
        yield Job(damaged_adapter, (name, flips, 1 if short else 8))
    for name in OF_BASE:
        yield Job(damaged_base, (name, flips))


def _both(world: World, name: str) -> tuple[bytes, bytes | None]:
    run_folder = stopped(world, *ALL_KEPT)
    newest, older = (checkpoint_folder(run_folder, step) / name for step in (NEWEST, OLDER))
    return newest.read_bytes(), older.read_bytes() if older.is_file() else None


def damaged_checkpoint(world: World, folder: Path, name: str, flips: int) -> Iterator[Outcome]:
    """Every damage is found before training, and the file is named."""
    whole, other = _both(world, name)
    copy = Path(shutil.copytree(stopped(world, *ALL_KEPT), folder / "run"))
    identity = manifests.identity_of(checkpoint_folder(copy, OLDER))
    victim = checkpoint_folder(copy, NEWEST) / name
    for what, content in damages(whole, other, flips, name):
        if same_content(content, whole):
            continue
        put(victim, content)
        named = "" if content == other else name  # another step's manifest fits none of the files
        yield case(folder, f"C1 checkpoint/{name} {what}", found_in_checkpoint, victim.parent, named, identity)
    put(victim, whole)


def found_in_checkpoint(_: Path, checkpoint: Path, name: str, identity: dict) -> None:
    reason = manifests.problem(checkpoint, manifests.RESUMABLE)
    require(reason is not None, "没有发现")
    require(name in reason, f"没有说是哪个文件：{reason}")
    chosen = resuming.newest_of_run(checkpoint.parent, identity)
    require(chosen is not None and chosen.name == f"checkpoint-{OLDER}", f"退回到 {chosen}")


def damaged_and_resumed(world: World, folder: Path, name: str, count: int) -> Iterator[Outcome]:
    """The run goes on from the last whole checkpoint, and ends as if nothing had been damaged."""
    whole, other = _both(world, name)
    kinds = [(what, content) for what, content in damages(whole, other, 1, name) if not same_content(content, whole)]
    for what, content in kinds[-count:]:
        yield case(folder, f"C1 checkpoint/{name} {what}，续跑", resume_damaged, world, name, content)


def resume_damaged(folder: Path, world: World, name: str, content: bytes | None) -> None:
    shutil.copytree(stopped(world, *ALL_KEPT), folder / "run")
    put(checkpoint_folder(folder / "run", NEWEST) / name, content)
    require_resumable(world, folder, ALL_KEPT)


def damaged_adapter(world: World, folder: Path, name: str, flips: int, runs: int) -> Iterator[Outcome]:
    """A finished folder: predict.py refuses it and names the file."""
    source = undisturbed(world, *ALL_KEPT)
    adapter = Path(shutil.copytree(source, folder / "run", ignore=shutil.ignore_patterns("checkpoint-*")))
    whole = (adapter / name).read_bytes()
    older = checkpoint_folder(source, OLDER) / name
    other = older.read_bytes() if older.is_file() and name != "task.json" else None
    for what, content in damages(whole, other, flips, name):
        if same_content(content, whole):
            continue
        put(adapter / name, content)
        yield case(folder, f"C1 {name} {what}", found_in_adapter, adapter, name)
        if runs:
            runs -= 1
            yield case(folder, f"C1 {name} {what}，predict.py", refused_by_predict, adapter, name)


def found_in_adapter(_: Path, adapter: Path, name: str) -> None:
    try:
        require_adapter(adapter)
        settings_of_adapter(adapter)
    except InputError as error:
        require(name in str(error) and "\n" not in str(error), f"没有用一行说是哪个文件：{error}")
    else:
        require(False, "没有发现")


def refused_by_predict(folder: Path, adapter: Path, name: str) -> None:
    done = run(["--adapter", str(adapter), "--text", "昨天赢了比赛"], folder, main=predict.main)
    require_told(done, {2})
    require(name in done.errors, "没有说是哪个文件", done)


def damaged_base(world: World, folder: Path, name: str, flips: int) -> Iterator[Outcome]:
    """A base model that is not the one of the training is refused, whichever bit is different."""
    adapter = undisturbed(world, *ALL_KEPT)
    settings = settings_of_adapter(adapter)
    base = Path(shutil.copytree(world.base, folder / "base"))
    whole = (base / name).read_bytes()
    for what, content in damages(whole, None, flips, name):
        put(base / name, content)
        yield case(folder, f"C1 base/{name} {what}", found_in_base, base, adapter, settings)


def found_in_base(_: Path, base: Path, adapter: Path, settings) -> None:
    try:
        find_base(adapter, settings, str(base))
    except InputError as error:
        require(str(base) in str(error) and "\n" not in str(error), f"没有用一行说是哪个底座：{error}")
    else:
        require(False, "没有发现")


# ---- C2 ----


def change_jobs(world: World, short: bool) -> Iterator[Job]:
    stopped(world, *ALL_KEPT)
    names = sorted(FILES_CHANGED) + sorted(changed_flags(world))
    yield from shares(changes, names[:: len(names) // 5] if short else names)


def changed_flags(world: World) -> dict[str, tuple[str, str]]:
    """For each flag that decides a result, another value, by the name of its field."""
    from sft.training.arguments import parse_arguments

    parsed = parse_arguments("", flags(world, world.folder / "unused"))
    identity = manifests.identity_of(checkpoint_folder(stopped(world, *ALL_KEPT), NEWEST))
    values = {}
    for group in (parsed.data, parsed.lora, parsed.training):
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            if field.name in identity and (other := _other(field.name, value)) is not None:
                values[field.name] = (f"--{field.name}", other)
    return values


OTHERS = {
    "batching": "padded", "lora_target_modules": "q_proj", "lr_scheduler_type": "cosine", "optim": "sgd",
    "metric_for_best_model": "eval_accuracy", "greater_is_better": "false", "max_grad_norm": "0.5",
    "neftune_noise_alpha": "5", "optim_args": "eps=1e-3", "train_sampling_strategy": "group_by_length",
    "num_train_epochs": "3", "eval_strategy": "epoch", "warmup_steps": "2", "max_steps": "5",
}  # fmt: skip


def _other(name: str, value: object) -> str | None:
    if name in OTHERS:
        return OTHERS[name]
    if isinstance(value, bool):
        return str(not value).lower()
    if isinstance(value, int):
        return str(value + 1)
    if isinstance(value, float):
        return repr(value / 2 if value else 0.25)
    return None


def _change_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def _reorder(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(reversed(lines)), encoding="utf-8")


def _other_text(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[1:]), encoding="utf-8")


def _other_merges(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["merges"].pop()
    path.write_text(json.dumps(content), encoding="utf-8")


def _other_template(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("assistant", "bot"), encoding="utf-8")


def _other_labels(path: Path) -> None:
    from sft.tasks.classification import Classification
    from sft.tasks.settings import TaskSettings

    TaskSettings(Classification(("体育", "军事", "经济", "天气"))).write(path)


# The file to change, how, and what the refusal must name.
FILES_CHANGED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "数据的一行": ("train.jsonl", _other_text, "train_file"),
    "数据的顺序": ("train.jsonl", _reorder, "train_file"),
    "验证数据": ("validation.jsonl", _reorder, "validation_file"),
    "底座权重的一个字节": ("base/model.safetensors", _change_byte, "model"),
    "分词器": ("base/tokenizer.json", _other_merges, "tokenizer"),
    "对话模板": ("base/chat_template.jinja", _other_template, "chat_template"),
    "标签": ("train.task.json", _other_labels, "task_settings"),
}


def changes(world: World, folder: Path, names: list[str]) -> Iterator[Outcome]:
    others = changed_flags(world)
    for name in names:
        yield case(folder, f"C2 {name}", refused_when_changed, world, name, others.get(name))


def refused_when_changed(folder: Path, world: World, name: str, change: tuple[str, str] | None) -> None:
    shutil.copytree(stopped(world, *ALL_KEPT), folder / "run")
    here = world
    if change is None:
        here = World(folder / "changed")
        shutil.copytree(world.base, here.base)
        for path in world.folder.glob("*.json*"):
            shutil.copy(path, here.folder)
        file, alter, field = FILES_CHANGED[name]
        alter(here.folder / file)
        if name == "标签":
            shutil.copy(here.folder / file, here.folder / "validation.task.json")
    else:
        field = name
    arguments = [*flags(here, folder / "run", *ALL_KEPT), *(change or ()), *RESUME]
    done = run(arguments, folder)
    require_told(done, {2})
    require(field in done.errors, "没有说是哪一项", done)


FAMILIES = (
    Family(
        "C1",
        "检查点的每个文件、训练完的文件夹里 predict 要读的每个文件、底座的权重和配置：删除、截短、清零、多一个字节、"
        "每个文件翻转 100 次一位、换成另一步的",
        "都在用之前发现，说出文件名；续跑退回上一个完整的检查点，结果逐位相同",
        damage_jobs,
    ),
    Family(
        "C2",
        "续跑前改一项：每个决定结果的参数，数据、顺序、底座、分词器、模板、标签",
        "拒绝，并说出是哪一项",
        change_jobs,
    ),
)
