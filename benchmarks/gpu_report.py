"""The page docs/gpu.md, from what `benchmarks.gpu` found."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence

from benchmarks.train_speed import Contestant, flops

TITLE = "# 显卡上的速度和显存"
TASK_NAMES = {"ner": "实体识别", "classification": "分类"}
KIND_NAMES = {
    "ner": "实体识别",
    "many": "实体识别，每步很多条",
    "court": "裁判文书（分类）",
    "articles": "约 1,000 token 的文章（分类）",
}
PREDICTION_NOTE = (
    "演示模型在示例数据上训练一小会儿，再把权重放进上面的形状里（多出来的层照算，不改变回答），所以回答是真的；\n"
    "generate 不受约束，每批写到结束，最多写到本项目最长的回答那么长。"
)


def as_json(value: object) -> str:
    """A value as JSON."""
    return json.dumps(value)


def report(
    found: Mapping[str, Sequence[dict]], problems: Sequence[str], shape: dict, run: tuple[str, str, str]
) -> str:
    """The page.

    Args:
        found: the findings, by part.
        problems: what failed or was left out.
        run: date, command and operating system.
    """
    date, command, system = run
    machine = {name: value for finding in found["machine"] for name, value in finding.items()}
    versions = "，".join(f"{name} {number}" for name, number in machine.get("versions", {}).items())
    processor = f"处理器：{machine.get('processor')}。"
    card = (
        f"{machine['card']}（{machine['memory_gb']:.0f} GB，计算能力 {machine['capability']}，CUDA {machine['cuda']}）"
        if "card" in machine
        else f"没有显卡，CPU 上的排练（{system}）"
    )
    lines = [
        TITLE,
        "",
        f"日期：{date}。机器：{card}。{processor}Python {machine.get('python')}，{versions}。",
        "",
        f"```bash\n{command}\n```",
        "",
        f"模型：随机权重，{shape['num_hidden_layers']} 层，H={shape['hidden_size']}，"
        f"中间层 {shape['intermediate_size']}，词表 {shape['vocab_size']:,}；数据是随机的 token，长短照真实数据。",
        f"方阵相乘（{machine.get('matrix_dtype')}，随机数）实测最快 "
        f"**{machine.get('matrix_tflops', 0):.1f} TFLOP/s**。",
    ]
    lines += _checks(found["checks"]) + _training(found["training"], shape) + _prediction(found["prediction"])
    lines += _memory(found["memory"])
    if problems:
        lines += ["", "## 没有测成的", "", *(f"- {problem}" for problem in problems)]
    return "\n".join(lines) + "\n"


def _checks(findings: Sequence[dict]) -> list[str]:
    if not findings:
        return []
    marks = {True: "对", False: "**不对**", None: "没有查"}
    rows = [f"| {found['check']} | {marks[found['ok']]} | {found['said']} |" for found in findings]
    return ["", "## 检查", "", "| | | |", "|---|---|---|", *rows]


def _training(findings: Sequence[dict], shape: dict) -> list[str]:
    if not findings:
        return []
    lines = [
        "",
        "## 训练",
        "",
        "每步 16 条（另写的除外），先热身几步，再轮流各过几遍；比值是各遍的中位数之比，和同一种数据的第一行比。",
        "“份额”是矩阵乘法的计算量（实际算的 token）除以时间，占上面实测的方阵速度的比例。",
        "",
        "| 数据 | | 条/秒 | token/秒 | 本项目快多少 | 份额 | 显存峰值 GB（分配 / 保留） | 每步的内核 | 第一步的损失 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    ours: dict[str, float] = {}
    for found in findings:
        ours.setdefault(found["kind"], _rows_a_second(found))  # ours comes first
    return lines + [_training_row(found, ours.get(found["kind"]), shape) for found in findings]


def _rows_a_second(found: dict) -> float:
    """Rows in the steps of a pass, over the median time."""
    return _rows(found) / _seconds(found)


def _rows(found: dict) -> int:
    arguments, (first, *_) = found["arguments"], found["passes"]
    return first["steps"] * arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"]


def _seconds(found: dict) -> float:
    return statistics.median(each["seconds"] for each in found["passes"])


def _training_row(found: dict, ours: float | None, shape: dict) -> str:
    first, speed = found["passes"][0], _rows_a_second(found)
    peer = Contestant(found["name"], "", found["library"], found["arguments"])
    rate = flops(shape, peer, first, found["supervised"]) / _seconds(found) / 1e12
    share = f"{rate / found['matrix_tflops']:.0%}" if found["matrix_tflops"] else ""
    memory = "–"
    if "allocated_gb" in first:
        peaks = [max(each[name] for each in found["passes"]) for name in ("allocated_gb", "reserved_gb")]
        memory = f"{peaks[0]:.1f} / {peaks[1]:.1f}"
    launches = found["launches"][0] if found["launches"] else {}
    counted = launches.get("launches") or launches.get("operators") or "–"
    loss = f"{found['first_loss'][0]['first_loss']:.3f}" if found["first_loss"] else "–"
    ratio = f"{ours / speed:.2f}" if ours else "–"
    cells = (
        KIND_NAMES[found["kind"]], found["name"], f"{speed:.1f}", f"{first['tokens'] / _seconds(found):,.0f}", ratio,
        share, memory, counted, loss,
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def _prediction(findings: Sequence[dict]) -> list[str]:
    latest = {found["task"]: found for found in findings}
    if not latest:
        return []
    lines = ["", "## 预测", "", PREDICTION_NOTE, "", "| 任务 | 条 | 本项目 条/秒 | generate 成批 条/秒 | 快多少 |"]
    lines.append("|---|---|---|---|---|")
    for task, found in latest.items():
        ours, theirs = (found["rows"] / found[method] for method in ("ours", "generate"))
        lines.append(f"| {TASK_NAMES[task]} | {found['rows']} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} |")
    return lines


def _memory(findings: Sequence[dict]) -> list[str]:
    if not findings:
        return []
    lines = [
        "",
        "## 一步训练要多少显存",
        "",
        "用 `torch.cuda.set_per_process_memory_fraction` 限住 torch 能用的显存"
        "（CUDA 自己的 0.6 GB 先扣掉），每档一个进程。",
        "",
        "| 显存 | 数据 | 结果 | 一次前向的 token | 保留的峰值 GB |",
        "|---|---|---|---|---|",
    ]
    for found in findings:
        if "skipped" in found:
            lines.append(f"| {found['cap_gb']} GB | | 没有测：{found['skipped']} | | |")
            continue
        kind = f"{found.get('count', '')} 条{KIND_NAMES[found['rows']]}" if found["rows"] else ""
        peak = f"{found['reserved_gb']:.1f}" if "reserved_gb" in found else "–"
        lines.append(
            f"| {found['cap_gb']} GB | {kind} | {found['result']} | {found.get('max_tokens', '–')} | {peak} |"
        )
    return lines
