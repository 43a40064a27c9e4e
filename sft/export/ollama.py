"""``--to ollama``: a Modelfile whose Go template writes exactly our prompt, and a reader that proves it.

The reader understands what `modelfile` writes and nothing else: literals, ``.System``, ``.Prompt`` and ``.Response``.
As in Ollama, what follows ``.Response`` is not part of a prompt.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from sft.errors import InputError
from sft.export.proof import Leg, Proof, compare, compare_named
from sft.export.reference import Reference
from sft.export.source import Source

MODELFILE = "Modelfile"
SYSTEM_MARK, USER_MARK, ANSWER_MARK = "甲系统乙", "丙用户丁", "戊回答己"
ACTION = re.compile(r'\{\{ (\.\w+|"(?:[^"\\]|\\.)*") \}\}')
QUOTES = '"""'


def modelfile(source: Source, file: str) -> str:
    """The Modelfile for the GGUF file named ``file`` beside it.

    Ollama's own defaults sample and punish repetition; both are switched off.

    Raises:
        InputError: the chat template cannot be written as a Go template.
    """
    prompt, system = _go_template(source), _system_of(source)
    quoted = f"SYSTEM {QUOTES}{system}{QUOTES}\n" if _can_be_quoted(system) else ""
    if not quoted:  # then it stands in the template
        prompt = prompt.replace("{{ .System }}", f"{{{{ {_literal(system)} }}}}")
    parameters = "".join(f"PARAMETER {name} {value}\n" for name, value in _parameters(source).items())
    return f"FROM ./{file}\nTEMPLATE {QUOTES}{prompt}{QUOTES}\n{quoted}{parameters}"


def _parameters(source: Source) -> dict[str, str]:
    return {
        "temperature": "0",
        "top_k": "1",
        "repeat_penalty": "1",
        "num_ctx": str(source.context_tokens),
        "num_predict": str(source.max_new_tokens),
        "stop": json.dumps(source.end_token, ensure_ascii=False),
    }


def _system_of(source: Source) -> str:
    return source.settings.task.settings()["system_prompt"]


def _can_be_quoted(system: str) -> bool:
    return QUOTES not in system and not system.startswith('"') and not system.endswith('"')


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # Go knows all of JSON's escapes


def _go_template(source: Source) -> str:
    """The chat template as the pieces between system message, user message and answer."""
    roles = (("system", SYSTEM_MARK), ("user", USER_MARK), ("assistant", ANSWER_MARK))
    messages = [{"role": role, "content": text} for role, text in roles]
    prompt = source.tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
    parts = re.split(f"{SYSTEM_MARK}|{USER_MARK}", prompt)
    if len(parts) != 3 or prompt.index(SYSTEM_MARK) > prompt.index(USER_MARK):
        raise InputError(
            f"{source.adapter}：对话模板不是“指令、用户消息、回答”各一次的样子，写不成 Ollama 的模板；请用 --to gguf"
        )
    fields = ("{{ .System }}", "{{ .Prompt }}", "{{ .Response }}")
    pieces = [
        f"{{{{ {_literal(part)} }}}}{field}" if part else field for part, field in zip(parts, fields, strict=True)
    ]
    return "".join(pieces) + f"{{{{ {_literal(source.end_token)} }}}}"


# ---- read it back ----


@dataclass(frozen=True)
class Modelfile:
    """What a Modelfile says; a parameter that is given twice keeps its last value."""

    base: str
    template: str
    system: str
    parameters: dict[str, str]


def read_modelfile(text: str) -> Modelfile:
    """Read a Modelfile.

    Raises:
        InputError: it has an instruction that is not known here.
    """
    found: dict[str, str] = {}
    parameters: dict[str, str] = {}
    pattern = re.compile(r'(\w+) (?:(\w+) )?(?:"""(.*?)"""|([^\n]*))\n', re.DOTALL)
    at = 0
    while at < len(text):
        match = pattern.match(text, at)
        if match is None:
            raise InputError(f"Modelfile：读不懂 {text[at : at + 60]!r}")
        name, second, quoted, plain = match.groups()
        value = plain if quoted is None else quoted
        if name == "PARAMETER":
            parameters[second] = value
        elif name in ("FROM", "TEMPLATE", "SYSTEM") and second is None:
            found[name] = value
        else:
            raise InputError(f"Modelfile：不认识 {name}")
        at = match.end()
    return Modelfile(found.get("FROM", ""), found.get("TEMPLATE", ""), found.get("SYSTEM", ""), parameters)


def rendered(read: Modelfile, system: str | None, user: str) -> str:
    """The prompt that Ollama would make.

    Args:
        system: the system message of the request; None for the Modelfile's own.
    """
    fields = {".System": read.system if system is None else system, ".Prompt": user}
    before, response, _ = read.template.partition("{{ .Response }}")
    if not response:  # Ollama adds it at the end
        before = read.template

    def value(match: re.Match) -> str:
        action = match[1]
        return json.loads(action) if action.startswith('"') else fields.get(action, "")

    return ACTION.sub(value, before)


def prove_modelfile(text: str, source: Source, reference: Reference, proof: Proof) -> Proof:
    """The proof of the GGUF file, with the prompts and settings of the Modelfile added to it."""
    read = read_modelfile(text)
    prompts = [rendered(read, None, chat[-1]["content"]) for chat in reference.messages]
    ids = [source.tokenizer(prompt, add_special_tokens=False).input_ids for prompt in prompts]
    legs = [
        _with_more(leg, compare("prompts", reference.prompts, ids, source.tokenizer.decode), _settings(read, source))
        for leg in proof.legs
    ]
    not_run = (*proof.not_run, "Ollama 没有运行：它的 Go 模板由一个只认得这几种写法的读法渲染")
    target = proof.target.replace("gguf", "ollama")
    return replace(proof, target=target, legs=tuple(legs), not_run=not_run)


def _with_more(leg: Leg, prompts: Leg, settings: Leg) -> Leg:
    """A comparison of the GGUF file, with that of the Modelfile of the same name added to it."""
    more = {"prompts": prompts, "settings": settings}.get(leg.name)
    if more is None:
        return leg
    together = leg.compared + more.compared
    return replace(leg, compared=together, differences=leg.differences + more.differences)


def _settings(read: Modelfile, source: Source) -> Leg:
    wanted = _parameters(source)
    pairs = [(f"PARAMETER {name}", value, read.parameters.get(name)) for name, value in wanted.items()]
    in_template = _literal(_system_of(source)) in read.template
    pairs.append(("SYSTEM", True, in_template or read.system == _system_of(source)))
    pairs.append(("FROM", True, Path(read.base).suffix == ".gguf"))
    return compare_named("settings", pairs)
