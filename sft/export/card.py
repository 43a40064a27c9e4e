"""The ``README.md`` in an export's folder: what it is, how it is used, and the proof. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sft.export.usage import usage_of
from sft.files import MODEL_CARD_FILE, whole_file

if TYPE_CHECKING:
    from sft.export.proof import Proof
    from sft.export.source import Source


def write_card(folder: Path, source: Source, proof: Proof, kind: str, rows: int, *, file: str = "") -> None:
    """Write ``README.md``.

    Args:
        kind: the target, one of ``--to``.
        rows: how many were compared.
        file: the name of the model's file, where the target is a file.
    """
    lines = "\n".join(
        f"  - {line.strip()}" if line[0] == " " else f"- {line.removeprefix('- ')}" for line in proof.lines()
    )
    answered = any(leg.name == "answers" for leg in proof.legs)
    answers = "回答都是贪心的（不采样，不受约束）" if answered else "没有对照回答"
    text = f"""---
language: zh
tags: [{source.task.name}, {kind}]
---

# {source.adapter.resolve().name}（{proof.target}）

由 `export.py` 从适配器导出。任务：{source.task.title}；\
标签：{"、".join(source.task.labels)}；底座：{source.base.folder.name}。

## 怎样用

{usage_of(kind, source, file)}

提示词、标签、用户消息的写法都在 `task.json` 里：`system_prompt` 是 system 消息，`user_prompt` 是用户消息的模板。\
{_of_long_texts(source)}

## 与适配器的对照

{rows} 条，{answers}，每一项都由导出的东西自己算：

{lines}
"""
    with whole_file(folder / MODEL_CARD_FILE) as card:
        card.write(text.encode())


def _of_long_texts(source: Source) -> str:
    """What other programs have to do with texts that are too long, where only training's own cut is right."""
    if source.task.long_text != "ends":
        return ""
    return (
        f"一条超过 {source.max_length} 个 token 时，训练只留正文的开头和结尾各一半，中间是“…”；"
        "别的程序不会这样截，请先截短。"
    )
