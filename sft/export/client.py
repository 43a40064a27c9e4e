"""Ask an exported model about one text. Standard library only: this file is copied into the exports.

python client.py "南京大学的张伟昨天到了上海。"
python client.py --api sglang --url http://127.0.0.1:30000 "……"

The prompt and the form of the answer come from task.json beside this file. vLLM, SGLang and llama.cpp can only write
well-formed answers here: labels are a choice, entities a grammar. Ollama answers freely.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

API = "vllm"
URLS = {
    "vllm": "http://127.0.0.1:8000",
    "sglang": "http://127.0.0.1:30000",
    "llama-server": "http://127.0.0.1:8080",
    "ollama": "http://127.0.0.1:11434",
}
NO_ENTITY = "没有找到任何实体"
# The characters of a JSON string: as they are, or escaped.
CHARACTER = r'[^"\\\x00-\x1f] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F])'


def messages_of(task: dict, text: str, options: list[str] | None = None) -> list[dict[str, str]]:
    """The chat messages, as in training."""
    user = task["user_prompt"]
    joined = task.get("options_separator", "").join(options or task["labels"])
    # One pass: a text that itself has the word {options} stays as it is.
    head, mark, tail = user.partition("{text}")
    user = head.replace("{options}", joined) + (text if mark else "") + tail.replace("{options}", joined)
    return [{"role": "system", "content": task["system_prompt"]}, {"role": "user", "content": user}]


def chooses(task: dict) -> bool:
    """Whether the answer is one of the labels."""
    return "{options}" in task.get("user_prompt", "")


def grammar_of(task: dict, text: str = "") -> str:
    """The well-formed answers as a grammar that llama.cpp (GBNF) and vLLM (xgrammar) read.

    Args:
        text: what is asked about; only the grammar of inline answers depends on it.
    """
    answer_format = task.get("answer_format", "json")
    if answer_format == "inline":
        return inline_grammar(task["labels"], text)
    if answer_format != "json":
        raise SystemExit(
            f"task.json：answer_format 是 {answer_format!r}，这个 client.py 不认识；请用写它的版本重新导出"
        )
    labels = " | ".join(_quoted(label) for label in task["labels"])
    if chooses(task):
        return f"root ::= {labels}\n"
    before, between, after = '{"entity_text": "', '", "entity_label": ', "}"
    names = " | ".join(_quoted(json.dumps(label, ensure_ascii=False)) for label in task["labels"])
    return (
        f'root ::= {_quoted(NO_ENTITY)} | line ("\\n" line)*\n'
        f"line ::= {_quoted(before)} character+ {_quoted(between)} label {_quoted(after)}\n"
        f"label ::= {names}\n"
        f"character ::= {CHARACTER}\n"
    )


def inline_grammar(labels: list[str], text: str) -> str:
    """The text once more, with marks such as ``[菲律宾|地理实体]``: two rules for each of its characters.

    At character 7, ``c7`` goes on outside of a mark, ``o7`` inside of one that has just begun, ``e7`` further inside.
    """
    characters = [_quoted(_in_text(character)) for character in text]
    last = len(characters) - 1
    lines = [f"root ::= {_quoted(NO_ENTITY)} | c0" if characters else f"root ::= {_quoted(NO_ENTITY)}"]
    for place, character in enumerate(characters):
        lines.append(f'c{place} ::= {character}{"" if place == last else f" c{place + 1}"} | "[" o{place}')
        lines.append(f"o{place} ::= {character} e{place + 1}")
        lines.append(f'e{place + 1} ::= "|" label "]"{"" if place == last else f" c{place + 1}"}')
        lines[-1] += "" if place == last else f" | {characters[place + 1]} e{place + 2}"
    return "\n".join([*lines, f"label ::= {' | '.join(_quoted(_in_text(label)) for label in labels)}", ""])


def _in_text(text: str) -> str:
    """A part of the text or a label, as an inline answer writes it."""
    return re.sub(r"[\[\]|\\]", r"\\\g<0>", text)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda control: f"\\x{ord(control[0]):02x}", escaped) + '"'


def request_of(task: dict, text: str, api: str, options: list[str] | None = None) -> dict:
    """The body of the request: greedy, nothing punished, and only well-formed answers where the server can."""
    body = {
        "model": {"vllm": "adapter", "sglang": "adapter"}.get(api, "default"),
        "messages": messages_of(task, text, options),
        "temperature": 0,
        "max_tokens": task.get("max_new_tokens", 256),
    }
    allowed = task | ({"labels": options} if options else {})
    if api == "vllm":
        form = {"choice": allowed["labels"]} if chooses(task) else {"grammar": grammar_of(allowed, text)}
        body |= {"structured_outputs": form, "repetition_penalty": 1.0}
    elif api == "sglang":
        body |= {"ebnf": grammar_of(allowed, text), "repetition_penalty": 1.0}
    elif api == "llama-server":
        body |= {"grammar": grammar_of(allowed, text), "repeat_penalty": 1.0}
    return body


def ask(url: str, body: dict) -> str:
    """The answer of an OpenAI-compatible server; one line and the end of the program where none comes."""
    request = urllib.request.Request(
        f"{url.rstrip('/')}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            return _answer_of(json.load(response)["choices"][0])
    except urllib.error.HTTPError as error:
        told = " ".join(error.read().decode("utf-8", "replace").split())[:500]
        sys.exit(f"{url}：拒绝了这个请求（{error.code}）：{told}")
    except OSError as error:
        reason = getattr(error, "reason", error)
        sys.exit(f"{url}：连不上（{reason}）；请先启动服务（命令见 README.md），在别处的用 --url 给出地址")


def _answer_of(choice: dict) -> str:
    """The text of an answer; stderr says if it has no end."""
    if choice.get("finish_reason") == "length":
        sys.stderr.write("答案到了 max_new_tokens 还没有完；请把文本分开来问\n")
    return choice["message"]["content"]


def is_long(task: dict, text: str) -> bool:
    """Whether a text is much longer than what training read of one. A token may be some characters, hardly ever more
    than four in Chinese.
    """
    known = task.get("usual_text_tokens") or (chooses(task) and task.get("max_length"))
    return bool(known) and len(text) > 4 * known


def ask_file(path: Path, task: dict, text: str, options: list[str] | None = None) -> str:
    """The answer of a GGUF file, through llama-cpp-python."""
    try:
        from llama_cpp import Llama, LlamaGrammar
    except ModuleNotFoundError:
        sys.exit(
            "没有装 llama-cpp-python：请先 pip install llama-cpp-python，或启动 llama-server，加 --api llama-server"
        )

    allowed = task | ({"labels": options} if options else {})
    model = Llama(str(path), n_ctx=task.get("max_length", 1024), verbose=False)
    done = model.create_chat_completion(
        messages_of(task, text, options),
        temperature=0.0,
        repeat_penalty=1.0,
        max_tokens=task.get("max_new_tokens", 256),
        grammar=LlamaGrammar.from_string(grammar_of(allowed, text), verbose=False),
    )
    return _answer_of(done["choices"][0])


def main() -> None:
    """Print the answer to one text."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8")
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="问导出的模型一段文本")
    parser.add_argument("text", help="一段文本")
    parser.add_argument("--api", default=API, choices=[*URLS, "gguf"], help=f"哪种程序在回答（默认 {API}）")
    parser.add_argument("--url", help="服务的地址")
    parser.add_argument("--model", help="服务里模型的名字")
    parser.add_argument("--options", help="分类：这一条的选项，如 体育,军事")
    arguments = parser.parse_args()
    task = json.loads((here / "task.json").read_text(encoding="utf-8"))
    options = arguments.options.split(",") if arguments.options else None
    if is_long(task, arguments.text):
        advice = "请先截短" if chooses(task) else "会漏掉实体；请一句一句地问"
        sys.stderr.write(f"文本比训练时读的长得多，{advice}（predict.py 自己会截、会分段）\n")
    if arguments.api == "gguf":
        answer = ask_file(next(here.glob("*.gguf")), task, arguments.text, options)
    else:
        body = request_of(task, arguments.text, arguments.api, options)
        answer = ask(
            arguments.url or URLS[arguments.api], body | ({"model": arguments.model} if arguments.model else {})
        )
    sys.stdout.write(f"{answer}\n")


if __name__ == "__main__":
    main()
