"""``--to vllm``: the adapter as it is, the commands that serve it with vLLM or SGLang, and a client."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from sft.errors import InputError
from sft.export.card import write_card
from sft.export.merged import prompts_leg
from sft.export.proof import Leg, Proof, compare_named
from sft.export.reference import Reference
from sft.export.source import Source
from sft.export.usage import copy_client
from sft.files import ADAPTER_CONFIG_FILE, TASK_FILE, read_json
from sft.tasks.sealed import hashes_beside

TEMPLATE_FILE = "chat_template.jinja"
SERVE_FILE = "serve.sh"
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes for --max-lora-rank
NOT_RUN = "vLLM 和 SGLang 没有运行；对照的是它们要读的分词器和对话模板"


@dataclass(frozen=True)
class Serving:
    """The adapter's folder for a server that loads the base and adds the adapter to it."""

    source: Source
    output_dir: Path
    answers: bool = False

    def __post_init__(self) -> None:
        """Refuse an adapter that vLLM does not take.

        Raises:
            InputError: names what it is.
        """
        config = read_json(self.source.adapter / ADAPTER_CONFIG_FILE)
        taken = {"use_dora": False, "modules_to_save": None, "bias": "none", "trainable_token_indices": None}
        for name, value in taken.items():
            if config.get(name, value) not in (value, [], None):
                raise InputError(f"{self.source.adapter}：vLLM 不认有 {name} 的适配器；请用 --to merged")

    def write(self, folder: Path, reference: Reference) -> None:
        """See `Target`."""
        for name in hashes_beside(self.source.adapter / TASK_FILE):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.source.adapter / name, folder / name)
        shutil.copyfile(self.source.adapter / TASK_FILE, folder / TASK_FILE)
        template = self.source.tokenizer.chat_template  # settled, also where an old adapter's has a clock
        (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8", newline="\n")
        (folder / SERVE_FILE).write_text(serve_script(self.source), encoding="utf-8", newline="\n")
        copy_client(folder, "vllm")

    def prove(self, folder: Path, reference: Reference) -> Proof:
        """See `Target`."""
        proof = prove_serving(folder, self.source, reference)
        write_card(folder, self.source, proof, "vllm", len(reference.records))
        return proof


def serve_script(source: Source) -> str:
    """The shell script that starts vLLM, with the same for SGLang as a comment.

    The base's generation config is not used: it may sample and punish repetition.
    """
    rank = highest_rank(source.adapter)
    fitting = next((one for one in RANKS if one >= rank), rank)
    base = shlex.quote(source.base.folder.resolve().as_posix())
    return f"""#!/usr/bin/env bash
# 底座换了地方：BASE=/path/to/base bash {SERVE_FILE}。启动之后：python client.py "一段文本"
set -euo pipefail
cd "$(dirname "$0")"
base=${{BASE:-{base}}}
exec vllm serve "$base" --enable-lora --max-lora-rank {fitting} --lora-modules adapter=. \\
    --chat-template {TEMPLATE_FILE} --generation-config vllm \\
    --max-model-len {source.context_tokens}
# SGLang（端口 30000，客户端加 --api sglang）：
# python -m sglang.launch_server --model-path "$base" --lora-paths adapter=. --max-lora-rank {fitting} \\
#     --chat-template {TEMPLATE_FILE} --sampling-defaults openai
"""


def highest_rank(adapter: Path) -> int:
    """The highest rank of an adapter's layers."""
    config = read_json(adapter / ADAPTER_CONFIG_FILE)
    return max([config["r"], *(config.get("rank_pattern") or {}).values()])


def prove_serving(folder: Path, source: Source, reference: Reference) -> Proof:
    """The prompts by the tokenizer and the template in the folder, and whether the files are the adapter's own."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizer.chat_template = (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    return Proof("vllm", (prompts_leg(tokenizer, reference), _files_leg(folder, source)), (*reference.notes, NOT_RUN))


def _files_leg(folder: Path, source: Source) -> Leg:
    wanted, found = hashes_beside(source.adapter / TASK_FILE), hashes_beside(folder / TASK_FILE)
    names = sorted((wanted.keys() | found.keys()) - {TEMPLATE_FILE})
    return compare_named("weights", ((name, wanted.get(name), found.get(name)) for name in names))
