"""Load a fine-tuned model and predict rows with it: `predict.py`, the notebooks and the benchmarks use this.

From Python, three lines do what `predict.py` does::

    from sft.prediction.predictor import Predictor
    predictor = Predictor.load("output/Qwen2.5-NER")
    print(predictor(["南京大学的张伟昨天到了上海。"]))
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

import orjson
import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft.data.inputs import input_hash
from sft.decoding.decode import in_groups, predict_together, rows_per_window
from sft.decoding.limits import Limits
from sft.decoding.room import Room
from sft.errors import InputError, RowError, RunError, is_out_of_memory, memory_name
from sft.model.adapter import find_base, require_adapter
from sft.model.devices import check_device, require_finite
from sft.model.encoding import encode_prompts, terminator_id
from sft.model.hub import DEFAULT_MODEL, model_hash, resolve_model
from sft.model.loading import (
    default_device,
    load_adapter,
    load_base,
    load_config,
    load_tokenizer,
    require_within_context,
    resolve_dtype,
    tokenizer_hash,
)
from sft.prediction.choices import AS_TRAINED, LimitChoice, ModelChoice, read_settings
from sft.prediction.rows import DEFAULT_ROW_SETTINGS, RowSettings, to_output, to_record, usable_gold
from sft.tasks.evaluation import Tally, at_least, calibrated
from sft.tasks.settings import TaskSettings
from sft.tasks.task import Task

logger = logging.getLogger(__name__)

UNTRAINED_MAX_LENGTH, UNTRAINED_MAX_NEW_TOKENS = 1024, 256  # tokens, if no training has set them


@dataclass(frozen=True)
class Predictor:
    """A loaded model with everything that prediction needs.

    Attributes:
        row_settings: how rows are read and results are written.
        base_folder: the folder of the base model.
        adapter: the folder of the adapter; None for the base model alone.
        base_hash: see `model_hash`; None if it has not been computed.
        is_half: the model is in float16, which may be too narrow for it.
        quantization: ``nf4`` for a base in 4 bits, else None.
        room: what fits into memory; it shrinks when memory runs out.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    limits: Limits
    row_settings: RowSettings = DEFAULT_ROW_SETTINGS
    base_folder: Path | None = None
    adapter: Path | None = None
    base_hash: str | None = None
    is_half: bool = False
    quantization: str | None = None
    room: Room = field(default_factory=Room, compare=False)

    @classmethod
    def load(
        cls,
        choice: ModelChoice | Path | str,
        limits: LimitChoice = AS_TRAINED,
        row_settings: RowSettings = DEFAULT_ROW_SETTINGS,
    ) -> Self:
        """Load a model with its tokenizer and task.

        Args:
            choice: which model; a path is the folder that a training script wrote.
            row_settings: if its ``threshold`` is None, the one that training chose for the adapter is used. Its
                ``calibration`` is always that of training.

        Raises:
            InputError: there is no such adapter, task or base model, they do not fit together, or the GPU cannot be
                used.
            RunError: the base model could not be downloaded, or the GPU's memory is full.
        """
        if not isinstance(choice, ModelChoice):
            choice = ModelChoice(adapter=Path(choice))
        settings = read_settings(choice)
        if row_settings.options is not None and settings.task.options({}) is None:
            raise InputError("--options：只用于分类；实体识别的标签在训练时就定下了")
        _look_at_idle_limits(limits, settings.task)
        adapter = None if choice.base_only else choice.adapter
        if choice.adapter is None:
            base_hash = None
            base_folder = resolve_model(choice.model_name_or_path or settings.base_model or DEFAULT_MODEL)
        else:
            if adapter is not None:
                require_adapter(adapter)
            allow_other = choice.allow_other_base
            base_folder, _, base_hash = find_base(
                choice.adapter, settings, choice.model_name_or_path, allow_other=allow_other
            )
        device = default_device()
        dtype = _dtype(choice, settings, device)
        check_device(device, dtype)
        config = load_config(base_folder)  # first of all: says which kinds of models cannot be read
        if limits.max_length is not None:
            require_within_context(config, limits.max_length)
        tokenizer = load_tokenizer(choice.adapter or base_folder)
        if choice.adapter is not None:
            _require_trained_end(tokenizer, settings, choice.adapter)
        quantization = _quantization(choice, settings)
        model = load_base(base_folder, dtype, quantization, device)
        if adapter is not None:
            model = load_adapter(model, adapter)
        return cls(
            model.to(device),
            tokenizer,
            settings.task,
            _limits(limits, settings),
            _row_settings(row_settings, limits, None if adapter is None else settings),
            base_folder,
            adapter,
            base_hash,
            is_half=dtype == torch.float16,
            quantization=quantization,
        )

    def __call__(self, rows: Iterable[str | dict]) -> list[dict]:
        """The results of texts, or of rows as `predict.py` reads them: the lines that it would write, as dicts.

        What is no text, such as the None or NaN of an empty cell, has ``{"error": …}`` in its place.

        Raises:
            InputError: ``rows`` is a single text.
            RunError: the GPU has not enough memory.
        """
        if isinstance(rows, str | dict):
            raise InputError("应是一个列表，如 predictor([一段文本])；这里是单独的一条")
        given = [row if isinstance(row, dict | RowError) else {"text": row} for row in rows]  # an error for no text
        windows = in_groups(given, rows_per_window(self.limits))
        return [orjson.loads(line) for window in windows for line in predict_window(self, window)[0]]


def _look_at_idle_limits(limits: LimitChoice, task: Task) -> None:
    """For limits that do nothing for a task that answers with a label: tell it, or refuse.

    Raises:
        InputError: there is one of entities alone.
    """
    if task.answers != "label":
        return
    if limits.piece_tokens is not None:
        raise InputError("--piece_tokens：只用于实体识别；分类的长文本按 --max_length 截。请去掉它")
    if limits.max_new_tokens is not None and limits.constrained:  # often given for both tasks
        logger.warning("--max_new_tokens 没有用上：分类只给选项打分，不生成答案")


def _require_trained_end(tokenizer: PreTrainedTokenizerBase, settings: TaskSettings, adapter: Path) -> None:
    """Refuse an adapter whose answers were trained to end otherwise than its tokenizer's chat template says.

    Raises:
        InputError: the two differ.
    """
    end = tokenizer.convert_ids_to_tokens(terminator_id(tokenizer))
    if settings.end_token not in (None, end):  # older adapters do not say it
        raise InputError(
            f"{adapter}：训练时回答以 {settings.end_token} 结束，现在的对话模板以 {end} 结束；请恢复训练时的分词器文件"
        )


def _dtype(choice: ModelChoice, settings: TaskSettings, device: torch.device) -> torch.dtype:
    wanted = choice.dtype or settings.dtype or "auto"
    if wanted == "float16" and device.type == "cpu" and choice.dtype is None:
        wanted = "auto"  # trained on a GPU, used on a CPU
    return resolve_dtype(wanted, device)


def _quantization(choice: ModelChoice, settings: TaskSettings) -> str | None:
    """How the base is quantised: as the user says, else as in training; told where it is, or is not as in training."""
    trained = None if choice.adapter is None else settings.quantization
    wanted = trained if choice.quantization is None else {"none": None}.get(choice.quantization, choice.quantization)
    shown, before = (name or "不量化" for name in (wanted, trained))
    if wanted == trained and wanted is not None:
        logger.info("底座按 %s 量化，同训练时", shown)
    elif wanted != trained and choice.adapter is not None:
        logger.warning(
            "底座：%s，训练时：%s；照 --quantization %s，结果会略有不同", shown, before, choice.quantization
        )
    return wanted


def _limits(choice: LimitChoice, settings: TaskSettings) -> Limits:
    return Limits(
        choice.max_length or settings.max_length or UNTRAINED_MAX_LENGTH,
        choice.max_new_tokens or settings.max_new_tokens or UNTRAINED_MAX_NEW_TOKENS,
        choice.batch_size,
        choice.constrained,
        choice.max_tokens,
        choice.piece_tokens or settings.usual_text_tokens,
    )


def _row_settings(chosen: RowSettings, limits: LimitChoice, trained: TaskSettings | None) -> RowSettings:
    """The settings with what training chose for the scores of constrained answers; None for the base alone."""
    if not limits.constrained:
        return replace(chosen, with_answer=True)
    if trained is None:
        return chosen
    threshold = trained.threshold if chosen.threshold is None else chosen.threshold
    if chosen.threshold is None and threshold is not None and trained.has_older_scores:
        told = "适配器的阈值 %g 是旧版本按另一种概率选的，不用它；要阈值就给 --threshold，或重新训练"
        logger.warning(told, threshold)
        threshold = None
    return replace(chosen, threshold=threshold, calibration=trained.calibration)


def predict_window(predictor: Predictor, rows: Sequence[dict | RowError]) -> tuple[list[bytes], Tally]:
    """The output lines of one window of rows, in order, and their counts.

    Raises:
        InputError: the model's numbers are too large for float16.
        RunError: a single row does not fit into memory.
    """
    task, settings = predictor.task, predictor.row_settings
    records = [to_record(row, task, settings) for row in rows]
    usable = [record for record in records if not isinstance(record, RowError)]
    try:
        if usable and predictor.is_half:
            prompts = encode_prompts(usable[:1], task, predictor.tokenizer)
            require_finite(predictor.model, prompts[0][: predictor.limits.max_length], "第一行")
        predicted = iter(
            predict_together(predictor.model, predictor.tokenizer, task, usable, predictor.limits, predictor.room)
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(f"{memory_name(error)}不够：请减小 --batch_size、--max_tokens 或 --max_length") from error
    results = [{"error": str(record)} if isinstance(record, RowError) else next(predicted) for record in records]
    results = at_least(task, calibrated(results, settings.calibration), settings.threshold)
    golds = [usable_gold(record, task) for record in records]
    outputs = [to_output(record, result, task, settings) for record, result in zip(records, results, strict=True)]
    tally = Tally.of(task, golds, results)
    for number, record in enumerate(records, start=1):
        if isinstance(record, dict) and "gold_error" in record:
            tally.add_unusable_gold(record["gold_error"].kind, number)
    return [orjson.dumps(output) for output in outputs], tally


def metrics_of(predictor: Predictor, tally: Tally) -> dict[str, float] | None:
    """Metrics over the rows with usable gold, the number of those whose gold cannot be used, and the problems of the
    answers: of unconstrained ones all, else those that there are beside metrics. None if there is nothing of these.
    """
    figures = tally.metrics(predictor.task)
    metrics = {} if figures is None else {"rows": tally.rows["gold"], **figures}
    if figures is not None and tally.rows["judged"] < tally.rows["gold"]:
        metrics["rows_without_prediction"] = tally.rows["gold"] - tally.rows["judged"]
    if tally.rows["unusable_gold"]:
        metrics["rows_with_unusable_gold"] = tally.rows["unusable_gold"]
    if not predictor.limits.constrained:
        predicted = tally.rows["read"] - tally.rows["error"]
        metrics |= {"predicted_rows": predicted, **tally.problems}
    elif figures is not None:
        metrics |= {kind: number for kind, number in tally.problems.items() if number}
    return metrics or None


def warn_of_unusable_gold(tally: Tally) -> None:
    """Log in one line how many rows have gold that cannot be used, and why; nothing if there are none."""
    rows, with_gold = tally.rows["unusable_gold"], tally.rows["gold"]
    if rows:
        left = f"成绩只按其余有标准答案的 {with_gold:,} 行算" if with_gold else "没有一行能评分"
        logger.warning("%d 行的标准答案用不上，整行不计入成绩，%s：%s", rows, left, tally.describe_gold_problems())


def warn_of_cut_rows(predictor: Predictor, tally: Tally) -> None:
    """Log in one line how many rows were not read or answered to the end, and what helps; nothing if none were."""
    rows, limits = tally.rows["cut"], predictor.limits
    if not rows:
        return
    if predictor.task.answers == "entities":
        what = f"的答案到 --max_new_tokens {limits.max_new_tokens} 还没有完，后面可能还有实体；可加大它"
        fewer = "，或减小 --piece_tokens，一次少读一些" if limits.constrained else ""
    else:
        both_ends = predictor.task.long_text == "ends"
        read = "开头和结尾共 read_characters 个字" if both_ends else "前 read_characters 个字"
        what = f"没有读完：超过 --max_length {limits.max_length}，只读了{read}"
        fewer = "；要读得多，训练和预测都加大它"
    logger.warning('%d 条%s%s（结果里有 "cut": true）', rows, what, fewer)


def prediction_identity(predictor: Predictor, input_file: Path | None, **reading: object) -> dict:
    """Everything that decides the output, by name: a run may only be resumed if all of it is the same.

    Args:
        input_file: None if the input is not a file; such a run cannot be resumed.
        reading: further settings of how the input is read.
    """
    row_settings = asdict(predictor.row_settings) | {"columns": list(predictor.row_settings.columns)}
    calibration = row_settings.pop("calibration")  # progress files of older versions do not name it
    if calibration is not None:
        row_settings["calibration"] = [*calibration]
    return {
        "input_file": input_file and input_hash(input_file)[:16],
        **reading,
        "adapter": predictor.adapter and model_hash(predictor.adapter),
        "model": predictor.base_hash or (predictor.base_folder and model_hash(predictor.base_folder)),
        "tokenizer": tokenizer_hash(predictor.tokenizer),
        "task": hashlib.sha256(orjson.dumps(predictor.task.settings())).hexdigest()[:16],
        "dtype": str(predictor.model.dtype).removeprefix("torch."),
        "device": predictor.model.device.type,
        **({"quantization": predictor.quantization} if predictor.quantization else {}),
        **_limits_that_decide(predictor.limits),
        **orjson.loads(orjson.dumps(row_settings)),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _limits_that_decide(limits: Limits) -> dict:
    """The limits by name; a run of a version that did not read in pieces can still be resumed."""
    named = asdict(limits)
    return {name: value for name, value in named.items() if (name, value) != ("piece_tokens", None)}
