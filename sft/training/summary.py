"""Texts for the user about a training run: the plan, the results, and sample predictions."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import PeftModel

from sft.console import duration
from sft.files import ADAPTER_FILE, LOSS_CURVE_FILE, METRICS_FILE, REPORT_FILE, STATE_FILE, TASK_FILE
from sft.tasks.metrics import METRIC_NAMES
from sft.tasks.settings import TaskSettings
from sft.tasks.task import Task
from sft.terminal import command, folded, hints_wanted, script_path, terminal_columns
from sft.text import three_digits
from sft.tracking.metrics_log import read_metrics
from sft.training.arguments import Arguments
from sft.training.examples import example_of, options_for_flag
from sft.training.log_lines import short_exponent
from sft.training.manifests import state_of
from sft.training.prepare import Prepared
from sft.training.run import Run
from sft.training.steps import planned_steps, rows_a_step

# The main metrics of both tasks, in the order in which they are shown.
FIGURES = {name: chinese for name, (chinese, _) in METRIC_NAMES.items()} | {"f1": "F1"}
COMPARED = ("accuracy", "f1")  # with the score before training; more would not be read
SPLITS = {"eval": "验证", "test": "测试"}
LABELS_SHOWN = 8
LINE = "─" * 12


def before_training(prepared: Prepared, run: Run, model: PeftModel, tracked_where: str) -> str:
    """The plan of the run: task, model, rows, steps, dtype, and where the results go.

    Args:
        tracked_where: where SwanLab records, as text for the user.
    """
    arguments, splits = prepared.arguments, prepared.splits
    training = arguments.training
    trained, parameters = model.get_nb_trainable_parameters()
    lengths = sorted(len(row) for row in prepared.rows.train)
    steps, epochs = planned_steps(len(lengths), training)
    dtype = str(next(model.get_base_model().parameters()).dtype).removeprefix("torch.")
    rate = f"；学习率 {short_exponent(run.search.rate)}（auto 选的）" if run.search else ""
    lines = {
        "任务": f"{prepared.task.title}：{shown_labels(prepared.task.labels)}",
        "模型": f"{arguments.model.model_name_or_path}（{count(parameters - trained)}参数），"
        f"LoRA r={arguments.lora.lora_r} 训练其中 {count(trained)}",
        "数据": f"训练 {len(lengths):,} 条，验证 {len(splits.validation):,} 条，测试 {len(splits.test):,} 条；"
        f"一条 {statistics.median(lengths):.0f} 个 token（中位数），最长 {lengths[-1]:,}",
        "计划": f"{steps:,} 步，每步 {rows_a_step(training)} 条，共 {three_digits(epochs)} 轮，"
        f"约 {count(sum(lengths) * epochs)} token{rate}",
        "数值": f"{dtype}，{device_name(training.device)}，{prepared.batching.title}批处理",
        "输出": training.output_dir,
        "曲线": tracked_where,
    }
    if arguments.model.init_adapter:
        lines["起点"] = f"适配器 {arguments.model.init_adapter}"
    if run.checkpoint is not None:
        lines["续跑"] = f"从 {run.checkpoint} 接着"
    return table("将要训练", lines)


def after_training(results: dict[str, float], arguments: Arguments) -> str:
    """The results of the run, where they are, and the next command."""
    output_dir = Path(arguments.training.output_dir)
    lines = {"用时": f"训练 {duration(results['train_runtime'])}，{results['logical_tokens']:,} 个 token"}
    if kept := kept_weights(output_dir, arguments):
        lines["权重"] = kept
    before = scores_at_start(output_dir)
    for split, name in SPLITS.items():
        figures = {figure: results.get(f"{split}_{figure}") for figure in FIGURES}
        earlier = before if split == "eval" else {}
        if parts := [_score(figure, value, earlier) for figure, value in figures.items() if value is not None]:
            lines[name] = "，".join(parts)
    written = [name for name in (ADAPTER_FILE, REPORT_FILE, LOSS_CURVE_FILE) if (output_dir / name).is_file()]
    lines["产物"] = f"{output_dir}：{'、'.join([*written, METRICS_FILE])} 等"
    told = table("训练完成", lines)
    example = example_of(arguments)
    if example is None or not hints_wanted():
        return told
    own_options = example.options and not TaskSettings.read(output_dir / TASK_FILE).task.labels
    options = ["--options", options_for_flag(example.options)] if own_options else []
    words = ["python", script_path("predict.py"), "--adapter", output_dir, "--text", example.text, *options]
    return f"{told}\n下一步，试一句测试集里的：\n{command(words, terminal_columns())}"


def kept_weights(output_dir: Path, arguments: Arguments) -> str | None:
    """Which step's weights are kept, if not the last one's: the scores told before were those of the last step."""
    training = arguments.training
    if not training.load_best_model_at_end or not (output_dir / STATE_FILE).is_file():
        return None
    state = state_of(output_dir)
    best, last = state["best_global_step"], state["global_step"]
    metric = training.metric_for_best_model.removeprefix("eval_")
    return (
        f"采用第 {best:,} 步的（共 {last:,} 步）：验证成绩最好（{FIGURES.get(metric, metric)}）"
        if best and best < last
        else None
    )


def scores_at_start(output_dir: Path) -> dict[str, float]:
    """The main scores of the validation before the first step, by name; empty if there was none.

    They come from ``metrics.jsonl``, where a resumed run has them, too.
    """
    rows = read_metrics(output_dir / METRICS_FILE)
    first = next((row for row in rows if row["step"] == 0 and "eval_loss" in row), {})
    return {figure: value for figure in COMPARED if (value := first.get(f"eval_{figure}")) is not None}


def _score(figure: str, value: float, before: Mapping[str, float]) -> str:
    """``F1 0.817``, or ``F1 0.010 → 0.817`` where it was measured before training."""
    change = f"{before[figure]:.3f} → " if figure in before else ""
    return f"{FIGURES[figure]} {change}{value:.3f}"


def shown_labels(labels: Sequence[str]) -> str:
    """The first few labels, and their total number."""
    if not labels:
        return "每行自带选项"
    return "、".join(labels[:LABELS_SHOWN]) + (f" 等 {len(labels)} 种" if len(labels) > LABELS_SHOWN else "")


def table(title: str, lines: dict[str, str]) -> str:
    """A title, and lines that each begin with a name of up to three characters, aligned with full-width spaces.

    On a terminal, long lines are broken.
    """
    columns = terminal_columns()
    rows = [folded(f"{name}{'　' * (3 - len(name))} {text}", columns, 7) for name, text in lines.items()]
    return "\n".join([f"{LINE} {title} {LINE}", *rows])


def count(number: float) -> str:
    """``456000`` → ``45.6 万``."""
    for unit, name in ((1e8, "亿"), (1e4, "万")):
        if number >= unit:
            return f"{three_digits(number / unit)} {name}"
    return f"{number:.0f} 个"


def device_name(device: torch.device) -> str:
    """The name of the GPU, or the number of CPU threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {torch.get_num_threads()} 线程" if device.type == "cpu" else device.type


def sample_texts(
    task: Task, records: Sequence[dict], predictions: Sequence[dict], count: int, seed: int
) -> list[tuple[str, str]]:
    """Random predictions to read, each as ``(对 or 错, the text with its prediction and the correct result)``."""
    chosen = random.Random(seed).sample(range(len(records)), min(count, len(records)))
    samples = []
    for index in sorted(chosen):
        prediction, gold = predictions[index], task.show(task.gold(records[index]))
        predicted = prediction["error"] if "error" in prediction else task.show(prediction)
        text = f"文本：{records[index]['text']}\n预测：{predicted}\n正确：{gold}"
        samples.append(("对" if predicted == gold else "错", text))
    return samples
