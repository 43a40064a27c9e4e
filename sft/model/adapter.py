"""A trained adapter's folder: whether it is one, what it remembers, and where its base model is now."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from sft.errors import InputError
from sft.files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    STATE_FILE,
    TASK_FILE,
    checkpoint_folder,
    named_checkpoints,
    read_json,
    step_in_name,
)
from sft.model.adapter_config import check_adapter_config
from sft.model.hub import MODELS_DIR, is_hub_id, model_hash, problem, resolve_model
from sft.tasks.sealed import WAIVER, check_files
from sft.tasks.settings import CHOSEN, TaskSettings

logger = logging.getLogger(__name__)


class Base(NamedTuple):
    """The base model of an adapter.

    Attributes:
        folder: where it is.
        name: how the user or the adapter names it.
        hash: see `model_hash`.
    """

    folder: Path
    name: str
    hash: str


def require_adapter(folder: Path, flag: str = "--adapter") -> None:
    """Refuse a folder without an adapter that can be used, and say which one was probably meant.

    Args:
        flag: the flag that named the folder.

    Raises:
        InputError: there is no such folder, no adapter in it, or one that `check_adapter_config` refuses.
    """
    if folder.is_file():
        raise InputError(f"{folder}：是一个文件；请给出它所在的文件夹：{flag} {folder.parent}")
    if not folder.is_dir():
        raise InputError(f"{folder}：没有这个文件夹；请用 {flag} 给出训练脚本的 --output_dir")
    if (folder / ADAPTER_FILE).is_file():
        check_adapter_config(folder)
        return
    if checkpoints := _checkpoints_in(folder):
        newest = checkpoints[-1]
        best = _best_of(newest)
        named = f"最新的是 {flag} {newest}"
        if best is not None and best != newest and best in checkpoints:
            named += f"，验证成绩最好的是 {flag} {best}"
        raise InputError(f"{folder}：训练没有跑完，还没有 {ADAPTER_FILE}；检查点可以用：{named}")
    if (folder / "config.json").is_file():
        raise InputError(f"{folder}：这是底座模型，不是适配器；请用 {flag} 给出训练脚本的 --output_dir")
    raise InputError(f"{folder}：没有 {ADAPTER_FILE}；请用 {flag} 给出训练脚本的 --output_dir")


def _checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints with an adapter, the newest last."""
    return [path for _, path in named_checkpoints(folder) if (path / ADAPTER_FILE).is_file()]


def _best_of(checkpoint: Path) -> Path | None:
    """The best checkpoint so far, as a checkpoint's state names it."""
    path = checkpoint / STATE_FILE
    try:
        state = read_json(path) if path.is_file() else None
    except InputError:  # it only says which one to advise
        return None
    step = state.get("best_global_step") if isinstance(state, dict) else None
    return checkpoint_folder(checkpoint.parent, step) if type(step) is int else None


def settings_of_adapter(folder: Path, *, verify: bool = True, waiver: str = WAIVER) -> TaskSettings:
    """What an adapter remembers, its ``task.json``. A checkpoint of an older version has that of its run.

    Args:
        verify: compare the files with their hashes in ``task.json``.
        waiver: what the user can do to use changed files on purpose, for the message.

    Raises:
        InputError: the folder has no adapter or no ``task.json``, it is damaged, or a file beside it was changed.
    """
    path = folder / TASK_FILE
    if path.is_file():
        settings = TaskSettings.read(path, verify=verify)
        if verify:
            check_files(path, settings.files, waiver)
        return settings
    require_adapter(folder)
    of_run = folder.absolute().parent / TASK_FILE
    if step_in_name(folder) is not None and of_run.is_file():
        logger.warning("%s：没有 %s，用这次训练的 %s（不用它的阈值）", folder, TASK_FILE, of_run)
        return TaskSettings.read(of_run, verify=verify).replace(**dict.fromkeys(CHOSEN))
    raise InputError(f"{path}：没有这个文件；请用 --task_file 给出训练数据旁边的 *.task.json")


def find_base(adapter: Path, settings: TaskSettings, named: str | None, *, allow_other: bool = False) -> Base:
    """The base model of an adapter, checked by its hash if the adapter remembers one.

    Args:
        settings: what the adapter remembers.
        named: the folder or hub id that the user gives; None for the one that the adapter remembers.
        allow_other: only warn about another model.

    Raises:
        InputError: the base is not where the adapter remembers it, or it is another model.
        RunError: it could not be downloaded.
    """
    remembered = settings.base_model or _base_in_config(adapter)
    if named is not None:
        folder, name = resolve_model(named, offer_demo=False), named
    elif remembered is None:
        raise InputError(f"{adapter}：没有记下底座模型；请用 --model_name_or_path 给出训练时的底座")
    else:
        folder, name = _remembered_folder(adapter, remembered, settings.base_hash), remembered
    found = model_hash(folder)
    if settings.base_hash not in (None, found):
        config_only = settings.base_hash.partition("-")[2] == found.partition("-")[2]
        message = (
            f"{folder}：不是 {adapter} 训练时的底座（{'config.json 不同' if config_only else '权重不同'}："
            f"训练时是 {remembered}，哈希 {settings.base_hash}；这里的是 {found}）"
        )
        if not allow_other:
            raise InputError(f"{message}；请用 --model_name_or_path 给出原来的底座；确实要换，加 --allow_other_base")
        logger.warning("%s；照 --allow_other_base 继续", message)
    return Base(folder, name, found)


def _base_in_config(adapter: Path) -> str | None:
    path = adapter / ADAPTER_CONFIG_FILE
    config = read_json(path) if path.is_file() else None
    name = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    return name if isinstance(name, str) and name else None


def _remembered_folder(adapter: Path, remembered: str, wanted_hash: str | None) -> Path:
    """The folder of a remembered base: as it is named, else above the adapter if the hash shows that it is the one."""
    if Path(remembered).expanduser().exists():
        return resolve_model(remembered, offer_demo=False)
    inside = remembered.replace("\\", "/")  # written on Windows
    places = [inside]
    if from_hub := is_hub_id(remembered):
        places.append(f"{MODELS_DIR}/{remembered.partition('/')[2]}")
    is_absolute = inside.startswith(("/", "~")) or inside[1:2] == ":"
    for parent in [] if is_absolute or wanted_hash is None else adapter.resolve().parents:
        for folder in (parent / place for place in places):
            if folder.is_dir() and problem(folder) is None and model_hash(folder) == wanted_hash:
                logger.info("底座 %s 不在当前目录，用 %s（哈希相同）", remembered, folder)
                return folder
    if from_hub:
        return resolve_model(remembered, offer_demo=False)
    known = f"，哈希 {wanted_hash}" if wanted_hash else ""
    raise InputError(
        f"{adapter}：它记得的底座是 {remembered}{known}，那里没有；"
        "底座改了名或换了地方，就用 --model_name_or_path 给出它现在的文件夹"
    )
