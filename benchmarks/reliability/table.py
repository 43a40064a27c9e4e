"""What the families found: one JSON file for each, and the page that is written from all of them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.reliability.matrix import Extent, Family, Result

ROOT = Path(__file__).resolve().parents[2]
KEPT, PAGE = ROOT / "output" / "reliability", ROOT / "docs" / "reliability.md"
HEAD = (
    "# 可靠性：中断、损坏、满盘之后会怎样\n\n"
    "每一行是一类故障，由 `python -m benchmarks.reliability` 实测；加名字只测几类"
    "（`python -m benchmarks.reliability E1 C1`），别的行保留上次的结果。\n"
    "用的是两层、隐藏维度 32 的随机 Qwen2，CPU，float32；真的进程、真的文件、真的 `kill -9`。"
    "杀死和满盘由一个预载的小库按进程的每一次写来数，torch 和 safetensors 的写也在内。\n"
    "“发现”是没有守住承诺的次数：结果悄悄不同、丢了检查点、traceback、没有发现的损坏、超过 60 秒不动。\n"
    "`bash test.sh` 每次跑其中固定的一小份（`--short`），`bash test.sh --all` 跑完整的。\n\n"
    "| | 故障 | 次数 | 承诺 | 发现 | 用时 | 日期、提交 |\n|---|---|---|---|---|---|---|\n"
)


def write_down(family: Family, result: Result, extent: Extent) -> None:
    """Keep a result, and write the page anew."""
    KEPT.mkdir(parents=True, exist_ok=True)
    kept = {
        "cases": result.cases,
        "extent": extent.words,
        "failures": result.failures,
        "seconds": result.seconds,
        "skipped": result.skipped,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "machine": _machine(),
    }
    path = KEPT / f"{family.name}.json"
    path.write_text(json.dumps(kept, ensure_ascii=False, indent=1), encoding="utf-8")
    write_page()


def write_page() -> None:
    """``docs/reliability.md`` from all results that are kept."""
    from benchmarks.reliability.families import FAMILIES

    rows, machines = [], set()
    for family in FAMILIES:
        path = KEPT / f"{family.name}.json"
        if not path.exists():
            continue
        kept = json.loads(path.read_text(encoding="utf-8"))
        machines.add(kept["machine"])
        cases = f"{kept['cases']:,}" + (f"（{kept['extent']}）" if kept["extent"] else "")
        found = kept["skipped"] or f"{len(kept['failures']):,}"
        rows.append(
            f"| {family.name} | {family.fault} | {cases} | {family.promise} | {found} "
            f"| {kept['seconds']:.0f} 秒 | {kept['date']}，{kept['commit']} |\n"
        )
    PAGE.write_text(f"{HEAD}{''.join(rows)}\n机器：{'；'.join(sorted(machines))}。\n", encoding="utf-8")


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "sft", "benchmarks", "tests")
    return (git("rev-parse", "--short", "HEAD") or "?") + ("（有未提交的改动）" if changed else "")


def _machine() -> str:
    import torch
    import transformers

    return (
        f"{os.cpu_count()} 个核，{platform.system()} {platform.machine()}，Python {platform.python_version()}，"
        f"torch {torch.__version__}，transformers {transformers.__version__}"
    )
