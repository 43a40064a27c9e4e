"""The model card beside a trained adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft.files import MODEL_CARD_FILE, whole_file


def write_model_card(output_dir: Path, settings: Mapping[str, Any], results: Mapping[str, float]) -> None:
    """Write ``README.md``: base, data, settings, results, and the command that uses the adapter.

    Args:
        settings: the run's settings by name, those of ``task.json`` included.
        results: what the run prints; metrics of validation and test are listed.

    Raises:
        InputError: it cannot be written.
    """
    figures = "\n".join(
        f"| {name} | {value:.4f} |" for name, value in results.items() if name.startswith(("eval_", "test_"))
    )
    text = f"""---
base_model: {settings["base_model"]}
library_name: peft
language: zh
tags: [lora, {settings["task"]}]
---

# {output_dir.resolve().name}

{settings["base_model"]} 的 LoRA 适配器，任务：{settings["task"]}，标签：{"、".join(settings["labels"])}。

```
python predict.py --adapter {Path(settings["output_dir"]).as_posix()} --text "……"
```

- 训练数据：{Path(settings["train_file"]).name}，{settings["num_train_epochs"]:g} 轮，\
一条最多 {settings["max_length"]} 个 token
- LoRA：r {settings["lora_r"]}，alpha {settings["lora_alpha"]}，dropout {settings["lora_dropout"]}，\
{"、".join(settings["lora_target_modules"])}
- 学习率 {settings["learning_rate"]:g}，每步 {settings["rows_a_step"]} 条，种子 {settings["seed"]}，{settings["dtype"]}
- 提示词、标签、长度都在 `task.json` 里，`predict.py` 只读它

| 指标 | 值 |
|---|---|
{figures}
"""
    with whole_file(output_dir / MODEL_CARD_FILE) as file:
        file.write(text.encode())
