"""The columns of a plain row: which has the text, which the gold, which the options. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from sft.errors import RowError, one_line
from sft.text import read_literal

# The usual names of columns and JSON fields, in lower case. The first group that a row has decides.
TEXT_COLUMNS = ("text", "content", "sentence", "文本", "内容", "正文", "句子")
MORE_TEXT_COLUMNS = (
    "review", "review_text", "comment", "text_a", "title", "headline", "news", "tweet", "query", "question", "prompt",
    "input", "inputs", "utterance", "message", "document", "context", "paragraph", "passage", "body", "article",
    "abstract", "abst", "fact", "originaltext", "original_text", "data",
    "评论", "评论内容", "评论文本", "评价", "评价内容", "微博", "微博内容", "微博正文", "微博中文内容", "标题",
    "新闻标题", "新闻", "新闻内容", "题目", "原文", "文章", "文本内容", "语句", "语料", "描述", "留言", "留言详情",
    "弹幕",
)  # fmt: skip
LABEL_COLUMNS = ("output", "label", "category", "class", "标签", "类别", "分类")
MORE_LABEL_COLUMNS = (
    "labels", "sentiment", "polarity", "emotion", "intent", "target", "cls", "class_label", "label_desc", "label_des",
    "label_name", "label_text", "stance", "情感", "情感倾向", "情感极性", "情绪", "类型", "意图", "极性", "立场",
    "一级标签", "一级分类", "一级类别",
)  # fmt: skip
DESCRIPTION_COLUMNS = ("label_desc", "label_des", "label_text", "label_name")  # the name beside a numeric `label`
ENTITY_COLUMNS = ("entities", "label", "labels", "实体", "标签")
MORE_ENTITY_COLUMNS = (
    "spans", "entity", "entity_list", "ents", "ner", "annotations", "annotation", "output", "bio_label", "bio_anno",
    "bio", "实体列表", "标注",
)  # fmt: skip
ALL_TEXT_COLUMNS, ALL_LABEL_COLUMNS = (*TEXT_COLUMNS, *MORE_TEXT_COLUMNS), (*LABEL_COLUMNS, *MORE_LABEL_COLUMNS)
OF_PARTS = "类别（choices）标在文本的一部分上（如方面级情感），不是整段文本的；本工具只给整段文本分类"
SECOND_TEXT_COLUMNS = ("text_b", "sentence2")
_STANCES = ("stance", "立场")


class Columns(NamedTuple):
    """The columns that the user names; None takes those with the usual names.

    A name with dots leads into nested objects: ``meta.accusation``.

    Attributes:
        offsets: what the whole file shows of the offsets in the column of entities; see `sft.data.offsets`.
    """

    text: str | None = None
    label: str | None = None
    options: str | None = None
    offsets: str = ""


class Written(NamedTuple):
    """What a row says, before the notation of its gold is read.

    Attributes:
        gold: a label or entities in any notation; None if the row has none.
        field: where the gold is, for error messages.
        options: the options of a classification row, or None.
        problem: why the gold must not be used, or None.
        kept: other fields of the row that its task may know (of a record).
    """

    text: object
    gold: object = None
    field: str = ""
    options: object = None
    problem: RowError | None = None
    kept: Mapping[str, object] = {}


USUAL_COLUMNS = Columns()


class OtherTask(RowError):
    """A row of another task: neither conversion nor prediction may use it."""


def plain_row(row: dict, answers: str, columns: Columns) -> Written:
    """A row with a column of text and a column of gold.

    Raises:
        RowError: there is no text column, several could be it, or the row is another task's.
    """
    text = text_value(row, columns)
    problem = None
    try:
        gold, field = gold_value(row, answers, columns)
    except RowError as error:
        gold, field, problem = None, "", error
    if answers == "entities":
        if gold is None and problem is None and columns.label is None and _is_from_label_studio(row):
            gold = []  # JSON-MIN leaves the field out where nothing is marked
        if problem is None and columns.label is None and _has_options_and_label(row, field):
            raise OtherTask(
                "category", "这一行是文本分类的数据（有 category 和 output），不是实体识别的；请换数据或任务"
            )
        return Written(text, gold, field, problem=problem)
    if gold is None and problem is None and _lists_spans(row.get("entities")):
        raise OtherTask("entities", "这一行是实体识别的数据（有 entities），不是文本分类的；请换数据或任务")
    return Written(text, gold, field, options_value(row, columns, field), problem)


def text_value(row: dict, columns: Columns) -> object:
    """The text of a row.

    Raises:
        RowError: there is no text column, several could be it, or there are two texts.
    """
    if columns.text is not None:
        value = value_at(row, columns.text, default=row)
        if value is row:
            raise RowError(columns.text, "缺少这个字段")
        return value
    if "text" in row:
        return row["text"]
    found = columns_named(row, TEXT_COLUMNS)
    found = found or [name for name in columns_named(row, MORE_TEXT_COLUMNS) if isinstance(row[name], str)]
    if len(found) != 1:
        several = f"有几个字段都像文本（{one_line('、'.join(found))}）；请用 --text_column 指明"
        raise RowError("text", several if found else "缺少这个字段")
    for name in SECOND_TEXT_COLUMNS:
        if row.get(name):
            raise RowError(name, "是两段文本的任务，这里只支持一段；只用一段请加 --text_column")
    return row[found[0]]


def gold_value(row: dict, answers: str, columns: Columns) -> tuple[object, str]:
    """The gold of a row as it is written, and the field where it is; None if it has none.

    Raises:
        RowError: several fields could be the gold, and they differ.
    """
    if columns.label is not None:
        return value_at(row, columns.label), columns.label
    if answers == "entities":
        return _only(row, _entity_columns(row), "实体")
    gold, field = _only(row, _label_columns(row), "标签")
    if field == "label" and str(gold).isdecimal():
        for name in DESCRIPTION_COLUMNS:  # TNEWS, IFLYTEK: a number and its name
            if type(row.get(name)) is str and row[name].strip():
                return row[name], name
    return gold, field


def options_value(row: dict, columns: Columns, label_field: str) -> object:
    """The options of a classification row, as they are written; None if it has none."""
    if columns.options is not None:
        return value_at(row, columns.options)
    if row.get("options") is not None:
        return row["options"]
    if label_field == "category" or not ("output" in row or _reads_as_list(row.get("category"))):
        return None
    return row.get("category")


def _label_columns(row: dict) -> list[str]:
    """The columns that could be the label.

    ``category`` is none beside ``output``, or if it is a list of options; the target of a stance is none either.
    """
    found = columns_named(row, LABEL_COLUMNS) or columns_named(row, MORE_LABEL_COLUMNS)
    if columns_named(row, _STANCES):
        found = [name for name in found if name.strip().lower() != "target"]
    if "category" in found and ("output" in row or _reads_as_list(row["category"])):
        found.remove("category")
    return found


def _entity_columns(row: dict) -> list[str]:
    if "entities" in row:
        return ["entities"]
    found = columns_named(row, ENTITY_COLUMNS) or columns_named(row, MORE_ENTITY_COLUMNS)
    lists = [name for name in found if isinstance(row[name], list | dict)]
    return lists if len(lists) == 1 else found


def _only(row: dict, found: list[str], what: str) -> tuple[object, str]:
    """The value of the only column among ``found``, or of all of them if they agree."""
    with_value = [name for name in found if row[name] is not None]
    if len(with_value) > 1 and any(row[name] != row[with_value[0]] for name in with_value):
        raise RowError(
            with_value[0], f"有几个字段都像{what}（{one_line('、'.join(with_value))}）；请用 --label_column 指明"
        )
    name = (with_value or found or [None])[0]
    return (None, "entities" if what == "实体" else "output") if name is None else (row[name], name)


def columns_named(row: dict, names: tuple[str, ...]) -> list[str]:
    """The columns of a row that have one of the ``names``, in any case."""
    return [column for column in row if column.strip().lower() in names]


def value_at(row: dict, name: str, default: object = None) -> object:
    """The value of a field, or of a field inside others: ``meta.accusation``. On the way a list of one is its element.

    Returns:
        ``default`` if there is no such field.
    """
    if name in row:
        return row[name]
    value: object = row
    for part in name.split("."):
        if type(value) is list and len(value) == 1:
            value = value[0]
        if type(value) is not dict or part not in value:
            return default
        value = value[part]
    return value


def _reads_as_list(value: object) -> bool:
    """Whether a value is a list, or a string that reads as one."""
    if type(value) is str and value.lstrip().startswith("["):
        try:
            value = read_literal(value)
        except ValueError:
            return False
    return type(value) is list


def _has_options_and_label(row: dict, gold_field: str) -> bool:
    """Whether a row is a classification row: a list of options, a label in words, and no field of entities."""
    label = row.get("output")
    in_words = type(label) is str and label[:1] not in ("[", "{", "")
    return (
        in_words
        and gold_field in ("output", "entities")
        and "entities" not in row
        and _reads_as_list(row.get("category"))
    )


def _is_from_label_studio(row: dict) -> bool:
    """Whether a row without entities is an annotated one of Label Studio's JSON-MIN."""
    return "annotation_id" in row and "annotator" in row and not _entity_columns(row)


def _lists_spans(value: object) -> bool:
    return type(value) is list and bool(value) and isinstance(value[0], dict | list)
