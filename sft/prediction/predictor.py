"""From an adapter's folder to predictions: what `predict.py`, the notebooks and the benchmarks call."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft.decoding.decode import WINDOW_BATCHES, Limits, groups, predict
from sft.errors import InputError, RowError, RunError
from sft.files import TASK_FILE, file_hash
from sft.model.hub import DEFAULT_MODEL, resolve_model
from sft.model.loading import default_device, load_adapter, load_base, load_tokenizer, model_hash, resolve_dtype
from sft.prediction.rows import DEFAULT, RowSettings, to_output, to_record
from sft.tasks.evaluation import Tally, at_least
from sft.tasks.options import options_from_flag
from sft.tasks.settings import TaskSettings, settings_path
from sft.tasks.task import Task

UNTRAINED_MAX_LENGTH, UNTRAINED_MAX_NEW_TOKENS = 1024, 256  # tokens, when no training has set them


@dataclass(frozen=True)
class Loaded:
    """Everything a prediction needs, and the folders it came from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    limits: Limits
    settings: RowSettings = DEFAULT
    base_folder: Path | None = None
    adapter: Path | None = None


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
    constrained: bool = True,
    max_tokens: int | None = None,
    options: str | None = None,
    threshold: float | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
) -> Loaded:
    """The model, tokenizer and task that ``adapter/task.json`` names; None means as in training.

    Args:
        base_only: leave the adapter out; without ``adapter`` the task comes from ``task_file`` or stands beside
            ``input_file``.
        options: the labels to choose from for every row, such as ``体育,军事``.
        constrained, max_tokens: as in `Limits`.
        threshold, text_column, label_column: as in `RowSettings`.

    Raises:
        InputError: no such adapter, task or base model, or they do not fit together.
    """
    settings = TaskSettings.read(_task_path(adapter, task_file, input_file))
    task = settings.task
    if options is not None and task.options({}) is None:
        raise InputError("--options：只用于分类；实体识别的标签在训练时就定下了")
    if threshold is None and adapter is not None and constrained and not base_only:
        threshold = settings.threshold  # chosen for this adapter, and for what constrained answers score
    row_settings = RowSettings(
        text_column,
        label_column,
        options_from_flag(options) if options is not None else None,
        threshold,
        not constrained,
    )
    base = model_name_or_path or settings.base_model or DEFAULT_MODEL
    folder = resolve_model(base)
    device = default_device()
    wanted = dtype or settings.dtype or "auto"
    if wanted == "float16" and device.type == "cpu" and dtype is None:
        wanted = "auto"  # trained on a GPU, used on a CPU
    tokenizer = load_tokenizer(folder if adapter is None else adapter)
    model = load_base(folder, resolve_dtype(wanted, device))
    if adapter is not None and not base_only:
        model = load_adapter(model, adapter)
    limits = Limits(
        max_length or settings.max_length or UNTRAINED_MAX_LENGTH,
        max_new_tokens or settings.max_new_tokens or UNTRAINED_MAX_NEW_TOKENS,
        batch_size,
        constrained,
        max_tokens,
    )
    return Loaded(model.to(device), tokenizer, task, limits, row_settings, folder, None if base_only else adapter)


def _task_path(adapter: Path | None, task_file: Path | None, input_file: Path | None) -> Path:
    if task_file is not None:
        path = task_file
    elif adapter is not None:
        path = adapter / TASK_FILE
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
    total = Tally()

    def lines() -> Iterator[bytes]:
        for window in groups(rows, rows_per_window(loaded.limits)):
            outputs, tally = predict_window(loaded, window)
            total.add(tally)
            yield from outputs

    return lines(), lambda: metrics_of(loaded, total)


def rows_per_window(limits: Limits) -> int:
    """How many rows are predicted together. What a row's numbers are depends on nothing outside its window."""
    return WINDOW_BATCHES * limits.batch_size


def predict_window(loaded: Loaded, rows: Sequence[dict | RowError]) -> tuple[list[bytes], Tally]:
    """The output lines of a window's rows, in order, and their counts.

    Raises:
        RunError: the GPU's memory is not enough.
    """
    task, settings = loaded.task, loaded.settings
    records = [to_record(row, task, settings) for row in rows]
    usable = [record for record in records if not isinstance(record, RowError)]
    try:
        predicted = iter(list(predict(loaded.model, loaded.tokenizer, task, usable, loaded.limits)))
    except torch.OutOfMemoryError as error:
        raise RunError("显存不够：请减小 --batch_size、--max_tokens 或 --max_length") from error
    results = [{"error": str(record)} if isinstance(record, RowError) else next(predicted) for record in records]
    results = at_least(task, results, settings.threshold)
    golds = [None if isinstance(record, RowError) else task.gold(record) for record in records]
    outputs = [to_output(record, result, task, settings) for record, result in zip(records, results, strict=True)]
    return [orjson.dumps(output) for output in outputs], Tally.of(task, golds, results)


def metrics_of(loaded: Loaded, tally: Tally) -> dict[str, float] | None:
    """Metrics over the rows with gold, and what was wrong with unconstrained answers; None where there is neither."""
    figures = tally.metrics(loaded.task)
    metrics = {} if figures is None else {"rows": tally.rows["gold"], **figures}
    if figures is not None and tally.rows["judged"] < tally.rows["gold"]:
        metrics["rows_without_prediction"] = tally.rows["gold"] - tally.rows["judged"]
    if not loaded.limits.constrained:
        predicted = tally.rows["read"] - tally.rows["error"]
        metrics |= {"predicted_rows": predicted, **tally.problems}
    return metrics or None


def describe_run(loaded: Loaded, input_file: Path | None, **reading: object) -> dict:
    """What decides the output, as flat names and values; an input that is no file has no name to go on by.

    Args:
        reading: further settings of how the input is read.
    """
    tokenizer = orjson.dumps([loaded.tokenizer.backend_tokenizer.to_str(), loaded.tokenizer.chat_template])
    return {
        "input_file": input_file and file_hash(input_file)[:16],
        **reading,
        "adapter": loaded.adapter and model_hash(loaded.adapter),
        "model": loaded.base_folder and model_hash(loaded.base_folder),
        "tokenizer": hashlib.sha256(tokenizer).hexdigest()[:16],
        "task": hashlib.sha256(orjson.dumps(loaded.task.settings())).hexdigest()[:16],
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": loaded.model.device.type,
        **asdict(loaded.limits),
        **orjson.loads(orjson.dumps(asdict(loaded.settings))),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
