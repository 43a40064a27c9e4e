"""Text classification as a task: prompt, conversion of raw rows, parsing of answers, metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from sft.errors import RowError
from sft.tasks import metrics
from sft.tasks.names import parts_of, read_names
from sft.tasks.options import clean_label, read_options
from sft.text import clean_text

SYSTEM_PROMPT = (
    "你是一个文本分类领域的专家，你会接收到几个分类选项和一段文本，请从选项中选出文本的正确类型，只输出类型本身。"
)

MULTI_LABEL = "多标签（multi-label）"  # the kind of error of a row with several labels

HEAD, ENDS = "head", "ends"  # what is read of a text that is too long: its beginning, or its beginning and its end
LEFT_OUT = "…"  # stands in the text where something was left out


@dataclass(frozen=True)
class Classification:
    """The classification task with its settings.

    Attributes:
        system_prompt: the instruction, the same for every row.
        labels: all labels in the data; they are the options of a row without options of its own.
        names: label in the user's data → its name for the model, where the two differ.
        long_text: what is read of a text that is too long: ``ends`` or ``head``. Training chooses it.
    """

    name: ClassVar[str] = "classification"
    title: ClassVar[str] = "文本分类"
    answers: ClassVar[str] = "label"  # a result is ``{"label", "score", "scores"}``
    metric: ClassVar[str] = "macro_f1"  # chooses the best checkpoint
    answer_format: ClassVar[str] = "label"  # an answer is the label itself

    labels: tuple[str, ...]
    system_prompt: str = SYSTEM_PROMPT
    names: Mapping[str, str] = field(default_factory=dict, hash=False)
    long_text: str = HEAD

    @classmethod
    def from_settings(cls, settings: dict) -> Classification:
        """See `Task`.

        Raises:
            ValueError: ``long_text`` is unknown.
        """
        long_text = settings.get("long_text", HEAD)
        if long_text not in (HEAD, ENDS):
            raise ValueError(f"long_text 应是 {HEAD}、{ENDS} 之一，实际是 {str(long_text)[:60]!r}")
        names = read_names(settings.get("names", {}))
        return cls(tuple(settings["labels"]), settings["system_prompt"], names, long_text)

    def settings(self) -> dict:
        """See `Task`. Reading the beginning is not named: so were all settings before there was another way."""
        return {
            "task": self.name,
            "system_prompt": self.system_prompt,
            "labels": list(self.labels),
            "names": dict(self.names),
            **({} if self.long_text == HEAD else {"long_text": self.long_text}),
        }

    @staticmethod
    def convert(raw: dict, names: Mapping[str, str] | None = None) -> dict:
        """The fields of a record, from a raw row ``{"text", "category"?, "output"}``.

        ``options`` is among them only if the row has a ``category``.

        Args:
            names: label → its name for the model; a label that is not in it stays as it is.

        Raises:
            RowError: the row cannot be used.
        """
        text = clean_text(raw)
        label = raw.get("output")
        if isinstance(label, RowError):  # it could not be read
            raise label
        if type(label) is list and len(label) > 1 and all(type(one) is str for one in label):
            raise multi_label_error(label)
        if label is None:
            hint = "（category 当作选项；它若就是标签，请加 --label_column category）" if raw.get("category") else ""
            raise RowError("output", f"缺少标签{hint}")
        if type(label) is not str:
            raise RowError("output", f"应是字符串，实际是 {type(label).__name__}")
        label = clean_label(label)
        if not label:
            raise RowError("output", "标签是空的", "标签是空的")  # the column may have any name
        category = raw.get("category")
        if names:
            label = names.get(label, label)
        if category is None or category == "":
            return {"text": text, "label": label}
        options = read_options(category)
        if names:
            options = tuple(dict.fromkeys(names.get(option, option) for option in options))
        if label not in options:
            raise _not_an_option(label, options)
        return {"text": text, "options": options, "label": label}

    def known_fields(self, row: dict) -> dict:
        """The options and the label of a row to predict, as far as it has them. The row is a raw one or a record.

        Raises:
            RowError: they are there but cannot be used.
        """
        names = self.names
        if "messages" in row:  # a record, whose labels have their names already
            options, names = row.get("options"), {}
            options = list(options) if isinstance(options, tuple) else options
            row = {"text": row["text"], "category": options, "output": row.get("label")}
        options = {}
        if row.get("category"):
            options["options"] = tuple(
                dict.fromkeys(names.get(option, option) for option in read_options(row["category"]))
            )
        given = row.get("output")
        if given is None or (isinstance(given, str) and not given.strip()):
            return options
        try:
            fields = self.convert(row, names)
        except RowError as error:  # the options are good even if the label is not
            return options | {"gold_error": error}
        if fields["label"] not in self.options(fields):
            fields["gold_error"] = _not_an_option(fields["label"], self.options(fields))
        return fields

    def prompt(self, record: dict) -> list[dict[str, str]]:
        """System and user message. The options come before the text, so that cutting the text never cuts them."""
        options = "、".join(self.options(record))
        return [
            {"role": "system", "content": self.system_prompt},
            {"role": "user", "content": f"类型选项：{options}\n文本：{record['text']}"},
        ]

    def options(self, record: dict) -> Sequence[str]:
        """The answers to choose from."""
        return record.get("options") or self.labels

    def answer(self, record: dict) -> str:
        """What the model should say: the label."""
        return record["label"]

    def pieces(self, record: dict, length_tokens: Callable[[dict], int], max_length: int) -> list[dict]:
        """The record with its text cut so that ``length_tokens`` is at most ``max_length``. Nothing else is cut.

        It has two more fields: ``read_characters``, how many were kept, and ``read_at_end``, how many of them are
        from the end.

        Raises:
            RowError: instruction, options and answer alone are too long.
        """
        text, cut = record["text"], partial(_cut, record, self.long_text)
        fixed_tokens = length_tokens(cut(0))
        if fixed_tokens >= max_length:
            raise RowError("options", f"指令、选项和答案已有 {fixed_tokens} 个 token，超过 {max_length}")
        kept, dropped = 0, len(text)  # characters: the most known to fit, the fewest not to be tried
        if self.long_text == ENDS:
            dropped -= 1  # the sign in the middle stands for more than one character
        room_tokens = max_length - fixed_tokens
        guess = int(dropped * room_tokens / max(1, length_tokens(record) - fixed_tokens))
        while dropped - kept > 1:
            guess = min(max(guess, kept + 1), dropped - 1)
            length = length_tokens(cut(guess))
            if length <= max_length:
                kept = guess
                if max_length - length < 8:  # close enough: encoding again would gain a few characters only
                    break
            else:
                dropped = guess
            guess = int(guess * room_tokens / max(1, length - fixed_tokens))
            if not kept < guess < dropped:
                guess = (kept + dropped) // 2
        return [cut(kept)]

    def merge(self, pieces: Sequence[dict], results: Sequence[dict]) -> dict:
        """The result of the only piece."""
        (result,) = results
        return result

    def parse(self, answer: str, record: dict) -> dict:
        """The label in a generated answer. If it is not an option, ``label`` is None and ``unparsable`` is true."""
        label = answer.strip()
        known = label in self.options(record)
        return {"label": label if known else None, "unparsable": not known}

    def problems(self, result: dict) -> dict[str, int]:
        """``out_of_options``: 1 if the answer was not an option."""
        return {"out_of_options": int(result["unparsable"] and result["label"] is None)}

    def gold(self, record: dict) -> dict | None:
        """The right label as a result; None if the record has none."""
        return {"label": record["label"]} if record.get("label") is not None else None

    def show(self, result: dict) -> str:
        """The label."""
        return str(result["label"])

    def best_threshold(self, golds: Sequence[dict], predictions: Sequence[dict]) -> None:
        """None: every row has a label, so leaving labels out never makes a metric higher."""

    def at_least(self, result: dict, threshold: float) -> dict:
        """The result; the label becomes None if its score is below ``threshold``."""
        return result | {"label": None} if result.get("score", 1.0) < threshold else result

    def count(self, golds: Sequence[dict], predictions: Sequence[dict]) -> Counter[tuple[str, str | None]]:
        """How often each gold label was predicted as each label."""
        return metrics.count_labels(
            [gold["label"] for gold in golds],
            [prediction["label"] for prediction in predictions],
        )

    def metrics(self, counts: Counter[tuple[str, str | None]]) -> dict[str, float]:
        """Accuracy, macro-F1 and per-label F1; a label of None counts as wrong."""
        return metrics.label_metrics(counts)


def multi_label_error(labels: Sequence[object], field: str = "output") -> RowError:
    """The error of a row with several labels in its column ``field``."""
    shown = "、".join(str(label)[:20] for label in labels[:5])
    return RowError(field, f"有几个标签（multi-label）：{shown}", MULTI_LABEL)


def _cut(record: dict, long_text: str, characters: int) -> dict:
    """The record with so many characters of its text."""
    at_end = characters // 2 if long_text == ENDS else 0
    text = shortened(record["text"], characters - at_end, at_end)
    return record | {"text": text, "read_characters": characters, "read_at_end": at_end}


def shortened(text: str, at_start: int, at_end: int) -> str:
    """So many characters of a text's beginning and of its end, with a sign between them that something is left out."""
    return f"{text[:at_start]}{LEFT_OUT}{text[len(text) - at_end :]}" if at_end else text[:at_start]


def _not_an_option(label: str, options: Sequence[str]) -> RowError:
    if len(parts := parts_of(label)) > 1 and set(parts) <= set(options):
        return multi_label_error(parts)
    return RowError("output", f"标签 {label!r} 不在选项 {'、'.join(options)} 里", f"标签 {label!r} 不在选项里")
