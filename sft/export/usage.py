"""How an export is used: the client that is copied into it, and the words of its ``README.md``. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sft.export.source import Source

CLIENT_FILE = "client.py"

MERGED = """```python
import json
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."
task = json.load(open(f"{folder}/task.json", encoding="utf-8"))
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
user = task["user_prompt"].replace("{options}", task.get("options_separator", "").join(task["labels"]))
messages = [
    {"role": "system", "content": task["system_prompt"]},
    {"role": "user", "content": user.replace("{text}", "一段文本")},
]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**inputs)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

vLLM：`vllm serve .`（贪心的设置在 `generation_config.json` 里，vLLM 会读）。"""

GGUF = """一段文本（需要 `pip install llama-cpp-python`），答案只可能是合格的：

```bash
python client.py "一段文本"
```

llama.cpp 的服务：`llama-server -m FILE --jinja --temp 0 --repeat-penalty 1`，
再 `python client.py --api llama-server "一段文本"`。"""

OLLAMA = """```bash
ollama create NAME -f Modelfile
python client.py --model NAME "一段文本"
```

Modelfile 里有同样的对话模板、system 消息、停止符和 temperature 0、repeat_penalty 1（Ollama 默认会采样、会罚重复）。"""

VLLM = """```bash
bash serve.sh
python client.py "一段文本"
```

`serve.sh` 启动 vLLM（SGLang 的命令也在里面）；`client.py` 按 `task.json` 写提示，
并用 `structured_outputs` 让答案只可能是合格的：分类是选项之一，实体按训练时的答案格式。"""


def usage_of(kind: str, source: Source, file: str) -> str:
    """The section “how to use it” of an export.

    Args:
        kind: the target, one of ``--to``.
        file: the name of the model's file, where the target is a file.
    """
    name = source.adapter.resolve().name.lower()
    texts = {"merged": MERGED, "gguf": GGUF, "ollama": OLLAMA, "vllm": VLLM}
    return texts[kind].replace("FILE", file).replace("NAME", name)


def copy_client(folder: Path, api: str) -> None:
    """Put `client.py` into an export; it asks ``api`` unless it is told otherwise."""
    text = Path(__file__).with_name(CLIENT_FILE).read_text(encoding="utf-8")
    (folder / CLIENT_FILE).write_text(text.replace('API = "vllm"', f'API = "{api}"'), encoding="utf-8", newline="\n")
