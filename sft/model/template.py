"""The chat template, settled once: everything that the prompts depend on is in its own text.

A template from the hub may write today's date, leave the system message out or refuse it, open a thought, or end an
answer with a token that nobody trained. `settle_template` looks at a probe conversation as the template renders it,
and mends the template with a few lines of Jinja before and after it. Training saves the tokenizer with the adapter, so
prediction, and everybody else who loads that tokenizer, gets the very same prompts.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from sft.errors import InputError, one_line
from sft.model.trained_tokens import untrained_ids

logger = logging.getLogger(__name__)

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + TERMINATOR + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The day that a template gets when it asks for today's date: always the same, so that prompts never change.
# It is the day that Llama 3.2's own template takes where there is no clock.
PROMPT_DATE = "2024-07-26"
DATE_PARTS = {
    "%-d": "26", "%-m": "7", "%-H": "0", "%-I": "12", "%-M": "0", "%-S": "0", "%d": "26", "%e": "26", "%m": "07",
    "%b": "Jul", "%B": "July", "%Y": "2024", "%y": "24", "%a": "Fri", "%A": "Friday", "%j": "208", "%H": "00",
    "%I": "12", "%M": "00", "%S": "00", "%f": "000000", "%p": "AM", "%Z": "", "%z": "", "%F": PROMPT_DATE,
    "%T": "00:00:00", "%D": "07/26/24", "%x": "07/26/24", "%X": "00:00:00", "%c": "Fri Jul 26 00:00:00 2024",
    "%u": "5", "%w": "5", "%U": "29", "%W": "30", "%V": "30", "%G": "2024", "%s": "1721952000",
}  # fmt: skip
THINKING = ("enable_thinking", "thinking")  # what templates call the switch
RENDER_SECONDS = 10  # a probe takes milliseconds; a template that takes longer does not end

# Long enough that a template which cuts its input is noticed; quotes and lines, because real texts have them.
SYSTEM = "你是一个做抽取的专家。\n" + "要求：每一行都是 {\"甲\": '乙'}；" * 40 + "系统完"
USER = "类型选项：丙、丁\n" + '文本：“戊”<己> & "庚" \\ 辛；' * 40 + "用户完"
ANSWER = "这是应有的答复壬"
CONVERSATION = (("system", SYSTEM), ("user", USER), ("assistant", ANSWER))
NAMES = {SYSTEM: "指令（system 消息）", USER: "用户消息", ANSWER: "回答"}

FOLD = (
    "{% if messages|length > 1 and messages[0]['role'] == 'system' and messages[1]['role'] == 'user' %}"
    "{% set messages = [{'role': 'user', 'content': messages[0]['content'] + '\\n\\n' + messages[1]['content']}]"
    " + messages[2:] %}{% endif %}\n"
)
THOUGHT = re.compile(
    r"[<\[](/?)\|?(?:begin_of_|end_of_)?(?:\w+:)?(?:think|thinking|thought|thoughts|reasoning|reflection)\|?[>\]]",
    re.I,
)


class Rendered(NamedTuple):
    """The probe conversation as text.

    Attributes:
        prompt: up to and including the assistant's header.
        whole: with the answer.
    """

    prompt: str
    whole: str


def settle_template(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Give the tokenizer of the base model in ``folder`` a chat template that renders whole and constant prompts.

    A template that needs no mending stays as it is. Each change that a user should know is logged in one line.

    Raises:
        InputError: the template cannot be used: it fails, does not end, leaves a text out, or begins a thought.
    """
    template = own_template(tokenizer, folder)
    template = without_thinking(with_fixed_date(template))
    template = _with_instruction(template, tokenizer, folder)
    template = _with_beginning(template, tokenizer)
    template = _with_answer_header(template, tokenizer, folder)
    prompt = _render(template, tokenizer).prompt
    if thought := _open_thought(prompt):
        raise InputError(
            f"{folder}：对话模板让模型先思考（提示以没有结束的 {thought} 结尾），训练的却是直接回答；"
            "请换不思考的（-Instruct）模型，或换一个认得 enable_thinking 的对话模板"
        )
    tokenizer.chat_template = template
    tokenizer.chat_template = _with_end(template, tokenizer, folder)


def check_template(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Refuse the template of an adapter if it fails, does not end, or leaves the answer out; change nothing.

    Raises:
        InputError: there is such a problem.
    """
    try:
        rendered = _render(tokenizer.chat_template, tokenizer)
        problem = None if ANSWER in rendered.whole else f"{NAMES[ANSWER]}没有出现"
    except InputError as error:
        problem = str(error)
    if problem is not None:
        raise InputError(f"{folder}：对话模板用不了：{problem}；请恢复训练写下的 chat_template.jinja")


def own_template(tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    """The model's template; ChatML if it has none."""
    if tokenizer.chat_template is None:
        terminator = "<|im_end|>" if "<|im_end|>" in tokenizer.get_added_vocab() else tokenizer.eos_token
        if terminator is None:
            raise InputError(f"{folder}：分词器既没有对话模板也没有结束符，无法用于对话微调")
        logger.warning("%s 没有对话模板，改用 ChatML（结束符 %s）", folder, terminator)
        return CHATML.replace("TERMINATOR", repr(terminator))
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:  # several templates, and none of them is the default
        raise InputError(f"{folder}：对话模板有好几个，没有名为 default 的（{one_line(error)}）") from error


# ---- values that a template asks for ----


def with_fixed_date(template: str) -> str:
    """The template with a clock that stands still, if it asks for the date: always `PROMPT_DATE`."""
    if "strftime_now" not in template or "{% macro strftime_now" in template:
        return template
    replaced = "".join(f"|replace({json.dumps(code)}, {json.dumps(part)})" for code, part in DATE_PARTS.items())
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n{template}"


def without_thinking(template: str) -> str:
    """The template with its switch for thinking off, if it has one."""
    for name in THINKING:
        # `thinking` is also the name of a message's field; only a name that stands alone is the switch.
        switched_off = f"{{% set {name} = false %}}\n"
        if switched_off not in template and re.search(rf"(?<![\w.'\"<|/]){name}(?![\w'\">|:])", template):
            template = switched_off + template
    return template


def prompt_date(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The day that the prompts show, such as ``2024-07-26``; None if the template never asks for it."""
    return PROMPT_DATE if "strftime_now" in (tokenizer.chat_template or "") else None


# ---- the three texts of a row ----


def _with_instruction(template: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    """The template, or the same with the system message at the beginning of the user message.

    Raises:
        InputError: even then it fails, or a text is not in the rendering exactly once.
    """
    problem = _problem(template, tokenizer)
    if problem is None:
        return template
    folded = FOLD + template
    remaining = _problem(folded, tokenizer)
    if remaining is not None:
        raise InputError(f"{folder}：对话模板用不了：{remaining}；请换一个对话模型，或修正它的 chat_template")
    logger.warning("%s 的对话模板不支持 system 消息（%s）：指令改放在用户消息的开头", folder, problem)
    return folded


def _problem(template: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Why rows cannot be rendered with ``template``; None if they can. Blanks at the ends of a text may be cut."""
    try:
        rendered = _render(template, tokenizer)
        again = _render(template, tokenizer)
    except InputError as error:
        return str(error)
    if rendered != again:
        return "同一段对话两次渲染的结果不同"
    for place, text, times in (
        (rendered.prompt, SYSTEM, 1), (rendered.prompt, USER, 1), (rendered.prompt, ANSWER, 0),
        (rendered.whole, SYSTEM, 1), (rendered.whole, USER, 1), (rendered.whole, ANSWER, 1),
    ):  # fmt: skip
        found = _squeezed(place).count(_squeezed(text))
        if found != times:
            return f"{NAMES[text]}没有完整出现" if not found else f"{NAMES[text]}出现了 {found} 次"
    if not rendered.whole.rindex(_first_line(USER)) < rendered.whole.rindex(ANSWER):
        return "回答排在用户消息之前"
    return None


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _render(template: str, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """The probe conversation by ``template``.

    Raises:
        InputError: says in a few words how it fails, without the folder.
    """
    messages = [{"role": role, "content": text} for role, text in CONVERSATION]
    texts: list[str] = []
    errors: list[Exception] = []

    def render() -> None:
        try:
            for shown, asks in ((messages[:-1], True), (messages, False)):
                texts.append(
                    tokenizer.apply_chat_template(
                        shown, chat_template=template, add_generation_prompt=asks, tokenize=False
                    )
                )
        except Exception as error:  # a template is foreign code: it can raise anything
            errors.append(error)

    # A thread, because a template that never ends cannot be stopped on every system; it ends with the process.
    thread = threading.Thread(target=render, daemon=True)
    thread.start()
    thread.join(RENDER_SECONDS)
    if thread.is_alive():
        raise InputError(f"渲染 {RENDER_SECONDS} 秒还没有结束")
    if errors:
        raise InputError(f"渲染出错（{one_line(errors[0]) or type(errors[0]).__name__}）")
    return Rendered(*texts)


# ---- beginning, answer header and end ----


def _with_beginning(template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The template; with the tokens that the tokenizer itself puts before a text (BOS), if it does not write them."""
    beginning = _tokenizers_beginning(tokenizer)
    if not beginning or _render(template, tokenizer).prompt.lstrip().startswith(beginning):
        return template
    return f"{{{{ {json.dumps(beginning)} }}}}{{# 每段文本的开头，与分词器自己加的相同 #}}\n{template}"


def _tokenizers_beginning(tokenizer: PreTrainedTokenizerBase) -> str:
    """The special tokens that the tokenizer puts before every text, as text; mostly BOS or nothing."""
    plain = tokenizer(ANSWER, add_special_tokens=False).input_ids
    added = tokenizer(ANSWER).input_ids
    before = next((at for at in range(len(added)) if added[at : at + len(plain)] == plain), 0)
    return "".join(tokenizer.convert_ids_to_tokens(added[:before]))


def _with_answer_header(template: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    """The template; its prompt goes on with what the template itself writes before an answer, if that is missing."""
    rendered = _render(template, tokenizer)
    if not rendered.whole.startswith(rendered.prompt):
        return template
    between = rendered.whole[len(rendered.prompt) : rendered.whole.rindex(ANSWER)]
    if not between.strip() or THOUGHT.search(rendered.prompt[len(rendered.prompt) - 30 :]):
        return template
    logger.info("%s 的对话模板在回答之前写 %r：提示也以它结尾", folder, between)
    return f"{_body(template)}{{%+ if add_generation_prompt %}}{{{{ {json.dumps(between)} }}}}{{% endif %}}"


def _open_thought(prompt: str) -> str | None:
    """The mark of the thought that the end of ``prompt`` has opened and not closed; None if there is none."""
    header = prompt[prompt.rindex("用户完") :]
    marks = list(THOUGHT.finditer(header))
    opens = bool(marks) and not marks[-1][1] and "end_of_" not in marks[-1][0]
    return marks[-1][0] if opens else None


def _with_end(template: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    """The template; it ends an answer with a special token, one that the base model knows if there is one.

    Raises:
        InputError: there is no such token.
    """
    end = answer_end(tokenizer)
    if end is None and tokenizer.eos_token is None:
        raise InputError(f"{folder}：对话模板没有用特殊 token 结束回答，分词器也没有结束符；请换一个对话模型")
    known = _trained_end(end or tokenizer.eos_token, tokenizer, folder)
    new = json.dumps(known)
    if end is None:
        logger.info("%s 的对话模板没有结束回答的 token，改用分词器的结束符 %s", folder, known)
        return f"{_body(template)}{{%+ if not add_generation_prompt %}}{{{{ {new} }}}}{{% endif %}}"
    if known == end:
        return template
    # Only the end of the last answer: within the conversation the template's own mark stays.
    ended = f"rendered_chat.rpartition({json.dumps(end)})[0] + {new}"
    return (
        f"{{% set rendered_chat %}}\n{_body(template)}{{%+ endset %}}"
        f"{{{{ rendered_chat if add_generation_prompt else {ended} }}}}"
    )


def answer_end(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The special token that ends an answer in the tokenizer's chat template; None if there is none."""
    probe = "答"
    messages = [{"role": "user", "content": "问"}, {"role": "assistant", "content": probe}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    tail_ids = tokenizer(rendered[rendered.rindex(probe) + len(probe) :], add_special_tokens=False).input_ids
    special = {index: token.content for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((special[token_id] for token_id in tail_ids if token_id in special), None)


def template_tokens(tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, int]]:
    """The special tokens, with their ids, that the tokenizer's chat template writes around an answer and before it."""
    rendered = "".join(_render(tokenizer.chat_template, tokenizer))
    ids = set(tokenizer(rendered, add_special_tokens=False, verbose=False).input_ids)
    return sorted((token.content, index) for index, token in tokenizer.added_tokens_decoder.items() if index in ids)


def _trained_end(end: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    """``end``, or a token that ends a text in the base model's training, if ``end`` was never trained."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    usual = (tokenizer.eos_token, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
    others = [token for token in dict.fromkeys(usual) if token in special and token != end]
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (end, *others)}
    untrained = untrained_ids(folder, tokenizer, list(ids.values()))
    if ids[end] not in untrained:
        return end
    known = next((token for token in others if ids[token] not in untrained), None)
    if known is None:
        logger.warning(
            "%s：结束符 %s 没有训练过（它的嵌入与没用过的 token 相同），也没有别的可换：模型可能学不会停；"
            "最好换对话（-Instruct）模型",
            folder, end,
        )  # fmt: skip
        return end
    logger.warning("%s：结束符 %s 没有训练过（它的嵌入与没用过的 token 相同），回答改以 %s 结束", folder, end, known)
    return known


def _body(template: str) -> str:
    """The template to write behind; Jinja drops one newline at the end of a template."""
    return template.removesuffix("\n")
