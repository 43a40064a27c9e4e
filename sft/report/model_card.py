"""The model card beside a trained adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft.files import MODEL_CARD_FILE, whole_file
from sft.tasks.settings import CHOSEN
from sft.text import three_digits

SPLITS = {"eval_": "验证", "test_": "测试"}
LONGER = {"ends": "，更长的只留正文的开头和结尾", "head": "，更长的只留正文的开头"}  # by `long_text`
NOT_A_METRIC = ("loss", *CHOSEN)


def write_model_card(output_dir: Path, settings: Mapping[str, Any], results: Mapping[str, float]) -> None:
    """Write ``README.md``: base, data, settings, results, and how the adapter is used here and elsewhere.

    Args:
        settings: the run's settings by name, those of ``task.json`` included; ``hub_id`` of the base and ``license``
            where they are known.
        results: what the run prints: the epochs that were trained, which flags such as ``--max_steps`` can make others
            than ``--num_train_epochs``, and metrics, of which those of validation and test over all labels are listed.

    Raises:
        InputError: it cannot be written.
    """
    folder = Path(settings["output_dir"]).as_posix()
    head = {
        "base_model": settings.get("hub_id"),
        "license": settings.get("license"),
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "language": "zh",
        "tags": f"[lora, sft, chinese, {settings['task']}]",
    }
    text = f"""---
{chr(10).join(f"{name}: {value}" for name, value in head.items() if value)}
---

# {output_dir.resolve().name}

{settings["base_model"]} 的 LoRA 适配器，任务：{settings["task"]}，标签：{"、".join(settings["labels"])}。

```
python predict.py --adapter {folder} --text "……"
```

{_metrics(settings, results)}

- 训练数据：{Path(settings["train_file"]).name}，{three_digits(results["epoch"])} 轮，\
一条最多 {settings["max_length"]} 个 token{LONGER.get(settings.get("long_text"), "")}
- LoRA：r {settings["lora_r"]}，alpha {settings["lora_alpha"]}，dropout {settings["lora_dropout"]}，\
{"、".join(settings["lora_target_modules"])}
- 学习率 {settings["learning_rate"]:g}，每步 {settings["rows_a_step"]} 条，种子 {settings["seed"]}，{settings["dtype"]}
- 提示词、用户消息的写法、标签、长度都在 `task.json` 里，`predict.py` 只读它
{_elsewhere(settings, folder)}"""
    with whole_file(output_dir / MODEL_CARD_FILE) as file:
        file.write(text.encode())


def _metrics(settings: Mapping[str, Any], results: Mapping[str, float]) -> str:
    """The metrics over all labels, a column for each split; those of single labels are in ``report.html``."""
    ends = tuple(f"_{label}" for label in settings["labels"])
    tables = {
        title: {
            name.removeprefix(start): value
            for name, value in results.items()
            if name.startswith(start) and not name.endswith((*ends, *NOT_A_METRIC))
        }
        for start, title in SPLITS.items()
    }
    tables = {title: figures for title, figures in tables.items() if figures}
    names = list(dict.fromkeys(name for figures in tables.values() for name in figures))
    rows = [
        f"| {name} | {' | '.join(f'{figures[name]:.4f}' if name in figures else '' for figures in tables.values())} |"
        for name in names
    ]
    return "\n".join([f"| 指标 | {' | '.join(tables)} |", f"|---|{'---|' * len(tables)}", *rows]) if rows else ""


def _elsewhere(settings: Mapping[str, Any], folder: str) -> str:
    """How to use the adapter without this project; empty if ``task.json`` does not say how a user message is made."""
    if "user_prompt" not in settings:
        return ""
    options = settings.get("options_separator", "").join(settings["labels"])
    user = json.dumps(settings["user_prompt"].replace("{options}", options), ensure_ascii=False)
    return f"""
## 在别处使用

只用 transformers 和 PEFT（自由回答；`predict.py` 还保证答案合格、给出位置和概率）：

```python
import json; from peft import AutoPeftModelForCausalLM; from transformers import AutoTokenizer
task, tokenizer, model = json.load(open("{folder}/task.json", encoding="utf-8")), \
AutoTokenizer.from_pretrained("{folder}"), AutoPeftModelForCausalLM.from_pretrained("{folder}")
messages = [{{"role": "system", "content": task["system_prompt"]}}, \
{{"role": "user", "content": {user}.replace("{{text}}", "一段文本")}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=task["max_new_tokens"], do_sample=False, \
repetition_penalty=1.0, eos_token_id=tokenizer.convert_tokens_to_ids(task["end_token"]))\
[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

合并成普通的模型；给 vLLM 或 SGLang；给 Ollama（每一种都先用留出的数据对照，对不上就不导出）：

```
python export.py --adapter {folder} --to merged --output_dir {folder}-merged
python export.py --adapter {folder} --to vllm --output_dir {folder}-vllm && bash {folder}-vllm/serve.sh
python export.py --adapter {folder} --to ollama --output_dir {folder}-ollama
cd {folder}-ollama && ollama create {Path(folder).name.lower()} -f Modelfile
```
"""
