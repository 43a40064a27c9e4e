"""The model card that stands beside a trained adapter."""

from __future__ import annotations

from pathlib import Path

from sft.files import whole_file
from sft.training.arguments import Arguments


def write_model_card(output_dir: Path, task_json: dict, results: dict[str, float], arguments: Arguments) -> None:
    """Write ``README.md``: base, data, settings, results, and the command that uses the adapter."""
    figures = "\n".join(
        f"| {name} | {value:.4f} |" for name, value in results.items() if name.startswith(("eval_", "test_"))
    )
    training, lora = arguments.training, arguments.lora
    text = f"""---
base_model: {task_json["base_model"]}
library_name: peft
language: zh
tags: [lora, {task_json["task"]}]
---

# {output_dir.name}

{task_json["base_model"]} 的 LoRA 适配器，任务：{task_json["task"]}，标签：{"、".join(task_json["labels"])}。

```
python predict.py --adapter {output_dir.as_posix()} --text "……"
```

- 训练数据：{Path(arguments.data.train_file).name}，{training.num_train_epochs:g} 轮，\
一条最多 {task_json["max_length"]} 个词元
- LoRA：r {lora.lora_r}，alpha {lora.lora_alpha}，dropout {lora.lora_dropout}，{"、".join(lora.lora_target_modules)}
- 学习率 {training.learning_rate:g}，每步 {training.train_batch_size * training.gradient_accumulation_steps} 条，\
种子 {training.seed}，{task_json["dtype"]}
- 提示词、标签、长度都在 `task.json` 里，`predict.py` 只读它

| 指标 | 值 |
|---|---|
{figures}
"""
    with whole_file(output_dir / "README.md") as file:
        file.write(text.encode())
