"""Rows written as a dialogue: our records, messages (OpenAI, ShareGPT), alpaca's instructions. Imports no torch.

The instruction of such a row is not used, because a task has its own. Only our own prompt is looked into: its user
turn holds the options and the text.
"""

from __future__ import annotations

import re

from sft.data.columns import Columns, OtherTask, Written, value_at
from sft.errors import RowError
from sft.tasks import TASKS

_USER = ("user", "human")
_ASSISTANT = ("assistant", "gpt", "model", "bot", "chatgpt", "bing")
_SYSTEM = ("system", "developer")
# Names of question and answer, besides alpaca's own.
_QUESTIONS = ("input", "prompt", "query", "question")
_ANSWERS = ("output", "completion", "response", "answer")
_OWN_PROMPT = re.compile(r"类型选项：(?P<options>[^\n]+)\n文本：(?P<text>.*)", re.DOTALL)


def is_record(row: dict) -> bool:
    """Whether a row is one of our records: its messages, its task and the fields that the task gave it."""
    return (
        "messages" in row and "text" in row and any(name in row for name in ("task", "entities", "label", "options"))
    )


def read_record(row: dict, answers: str, columns: Columns) -> Written:
    """The fields of a record, which also keep what only its own task knows.

    Raises:
        OtherTask: the record is of a task with other answers.
    """
    task = TASKS.get(str(row.get("task")))
    if task is not None and task.answers != answers:
        raise OtherTask("task", f"这一行是{task.title}（{task.name}）的记录；请换成这个任务的数据")
    field = "entities" if answers == "entities" else "label"
    options = row.get("options")
    options = list(options) if type(options) is tuple else options
    return Written(row["text"], row.get(columns.label or field), columns.label or field, options, kept=row)


def is_dialogue(row: dict) -> bool:
    """Whether a row is a list of turns."""
    return type(_turns(row)) is list


def read_dialogue(row: dict, answers: str, columns: Columns) -> Written:
    """The text is the user's turn, the gold the assistant's; a dialogue to predict may lack the latter.

    Raises:
        RowError: there is more than one turn of either, or a turn cannot be read.
    """
    field = "messages" if "messages" in row else "conversations"
    said: dict[str, list[str]] = {"user": [], "assistant": []}
    for turn in _turns(row):
        role, content = _turn(turn, field)
        if role in _USER or role in _ASSISTANT:
            said["user" if role in _USER else "assistant"].append(content)
        elif role not in _SYSTEM:
            raise RowError(field, f"认不出的角色 {role!r:.40}；应是 system、user、assistant（或 human、gpt）")
    if len(said["user"]) != 1 or len(said["assistant"]) > 1:
        turns = f"user {len(said['user'])} 句，assistant {len(said['assistant'])} 句"
        raise RowError(field, f"多轮对话（multi-turn）：{turns}；应各一句" if said["user"] else "没有 user 的话")
    gold = said["assistant"][0] if said["assistant"] else None
    return _asked(said["user"][0], gold, field, (row, answers, columns))


def _turns(row: dict) -> object:
    return row.get("messages", row.get("conversations"))


def _turn(turn: object, field: str) -> tuple[str, str]:
    """The role and the words of a turn. OpenAI may write the words as a list of parts."""
    if type(turn) is not dict:
        raise RowError(field, "每一句应是 {role, content} 或 {from, value}")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if type(content) is list and all(type(part) is dict and type(part.get("text")) is str for part in content):
        content = "".join(part["text"] for part in content)
    if type(role) is not str or type(content) is not str:
        raise RowError(field, "每一句应是 {role, content} 或 {from, value}")
    return role.lower(), content


def is_alpaca(row: dict) -> bool:
    """Whether a row is an instruction with an answer, or a question and an answer under one of their usual names."""
    if "instruction" in row and "input" in row:
        return True
    if "text" in row:  # Alpaca's own `text` is the whole prompt; elsewhere it is the text, beside an instruction
        instruction, text = row.get("instruction"), row["text"]
        asked = type(instruction) is str and type(text) is str and bool(instruction) and instruction in text
        return asked and "### " in text and "output" in row
    if "instruction" in row:
        return True
    return any(question in row for question in _QUESTIONS) and any(answer in row for answer in _ANSWERS)


def read_alpaca(row: dict, answers: str, columns: Columns) -> Written:
    """The text is ``input``, or without one the ``instruction``; the gold is ``output``.

    Raises:
        RowError: the row goes on from earlier turns, or there is no text.
    """
    if row.get("history"):
        raise RowError("history", "多轮对话（multi-turn）：history 不是空的；应只有一问一答")
    question = next((row[name] for name in (*_QUESTIONS, "instruction") if row.get(name)), None)
    field = next((name for name in _ANSWERS if name in row), "output")
    return _asked(question, row.get(field), field, (row, answers, columns))


def _asked(question: object, gold: object, field: str, given: tuple[dict, str, Columns]) -> Written:
    """What a question and its answer say. Our own prompt is taken apart into options and text.

    Raises:
        OtherTask: it is our prompt for classification, and the task is another.
    """
    row, answers, columns = given
    if columns.label is not None:
        gold, field = value_at(row, columns.label), columns.label
    own = _OWN_PROMPT.fullmatch(question) if type(question) is str else None
    if own is None:
        return Written(question, gold, field)
    if answers == "entities":
        raise OtherTask(field, "这一行是文本分类的对话（类型选项：…），不是实体识别的；请换数据或任务")
    return Written(own["text"], gold, field, own["options"].split("、"))
