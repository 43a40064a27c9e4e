"""From an adapter's folder to predictions: what `predict.py`, the notebooks and the benchmarks call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft.classification import Classification
from sft.decoding import WINDOW_BATCHES, Limits, groups, predict
from sft.encoding import Task
from sft.hub import resolve_model
from sft.model import default_device, load_adapter, load_base, load_tokenizer, resolve_dtype
from sft.ner import Ner
from sft.prediction import score_predictions, to_output, to_record
from sft.records import InputError, RowError, read_json, settings_path

TASKS = {task.name: task for task in (Classification, Ner)}
UNTRAINED = {"max_length": 1024, "max_new_tokens": 256}  # lengths when no training has set them


@dataclass(frozen=True)
class Loaded:
    """Everything a prediction needs."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    limits: Limits


def load_for_prediction(
    *,
    adapter: Path | None = None,
    base_only: bool = False,
    task_file: Path | None = None,
    input_file: Path | None = None,
    model_name_or_path: str | None = None,
    dtype: str | None = None,
    max_length: int | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 16,
) -> Loaded:
    """The model, tokenizer and task that ``adapter/task.json`` names; None means as in training.

    Args:
        base_only: leave the adapter out; without ``adapter`` the task comes from ``task_file`` or stands beside
            ``input_file``.

    Raises:
        InputError: no such adapter, task or base model, or they do not fit together.
    """
    settings, task = _read_task(_task_path(adapter, task_file, input_file))
    base = model_name_or_path or settings.get("base_model") or "qwen/Qwen2.5-1.5B-Instruct"
    folder = resolve_model(base, Path("qwen"))
    device = default_device()
    wanted = dtype or settings.get("dtype") or "auto"
    if wanted == "float16" and device.type == "cpu" and dtype is None:
        wanted = "auto"  # trained on a GPU, used on a CPU
    tokenizer = load_tokenizer(folder if adapter is None else adapter)
    model = load_base(folder, resolve_dtype(wanted, device))
    if adapter is not None and not base_only:
        model = load_adapter(model, adapter)
    limits = Limits(max_length or settings["max_length"], max_new_tokens or settings["max_new_tokens"], batch_size)
    return Loaded(model.to(device), tokenizer, task, limits)


def _read_task(path: Path) -> tuple[dict, Task]:
    settings = read_json(path)
    if not isinstance(settings, dict) or settings.get("task") not in TASKS:
        found = settings.get("task") if isinstance(settings, dict) else settings
        raise InputError(f"{path}：不认识任务 {str(found)[:60]!r}；应是 {'、'.join(TASKS)} 之一")
    try:
        return UNTRAINED | settings, TASKS[settings["task"]].from_settings(settings)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}：缺少字段或类型不对（{error}）；请重新转换或训练") from error


def _task_path(adapter: Path | None, task_file: Path | None, input_file: Path | None) -> Path:
    if task_file is not None:
        path = task_file
    elif adapter is not None:
        path = adapter / "task.json"
    elif input_file is not None:
        path = settings_path(input_file)
    else:
        raise InputError("不知道是什么任务：请用 --task_file 给出 data/*.task.json，或用 --adapter")
    if not path.is_file():
        raise InputError(
            f"{path}：没有这个文件；请检查 --adapter 是不是训练脚本的 --output_dir，或用 --task_file 指定"
        )
    return path


def predict_rows(
    loaded: Loaded, rows: Iterable[dict | RowError]
) -> tuple[Iterator[bytes], Callable[[], dict[str, float] | None]]:
    """Predict rows as users have them.

    Returns:
        The output lines in order, as JSON without line ends; and a function that gives the metrics over the rows
        with gold (None without any) once the lines are used up.
    """
    golds: list[dict | None] = []
    judged: list[dict] = []

    def lines() -> Iterator[bytes]:
        for window in groups(rows, WINDOW_BATCHES * loaded.limits.batch_size):
            records = [to_record(row, loaded.task) for row in window]
            usable = [record for record in records if not isinstance(record, RowError)]
            predictions = predict(loaded.model, loaded.tokenizer, loaded.task, usable, loaded.limits)
            for record in records:
                prediction = {} if isinstance(record, RowError) else next(predictions)
                yield orjson.dumps(to_output(record, prediction, loaded.task))
                if not isinstance(record, RowError):
                    golds.append(loaded.task.gold(record))
                    judged.append(prediction)

    def metrics() -> dict[str, float] | None:
        figures = score_predictions(loaded.task, golds, judged)
        rows_with_gold = sum(gold is not None for gold in golds)
        return None if figures is None else {"rows": rows_with_gold, **figures}

    return lines(), metrics
