"""Rows with a shape of their own that annotation tools write. Imports no torch.

Label Studio's tasks (JSON) and Prodigy's answers (JSON lines).
"""

from __future__ import annotations

from collections.abc import Sequence

from sft.data.columns import (
    ALL_LABEL_COLUMNS,
    ENTITY_COLUMNS,
    MORE_TEXT_COLUMNS,
    OF_PARTS,
    TEXT_COLUMNS,
    Columns,
    OtherTask,
    Written,
    columns_named,
    plain_row,
    value_at,
)
from sft.data.offsets import UTF16_DOUBT, doubtful, is_after_wide
from sft.errors import LeftOut, NotAnnotated, RowError

# ---- Label Studio ----

_PLACES = {"start", "end"}  # in the value of a region that is a part of the text
_LABEL_STUDIO_LISTS = ("annotations", "completions", "predictions")


def is_label_studio(row: dict) -> bool:
    """Whether a row is a task of Label Studio, annotated or not."""
    if type(row.get("data")) is not dict:
        return False
    if any(name in row for name in _LABEL_STUDIO_LISTS):
        return True
    return "text" not in row and not columns_named(row, ALL_LABEL_COLUMNS + ENTITY_COLUMNS)


def read_label_studio(row: dict, answers: str, columns: Columns) -> Written:
    """The text is in ``data``, the gold in the annotation that was not cancelled; predictions are no gold.

    Several annotations must say the same, or one of them be the ground truth.

    Args:
        columns: ``text`` is a key of ``data``, ``label`` the name of a tag (``from_name``).

    Raises:
        RowError: there is no text, or several strings could be it.
    """
    field = "annotations" if "annotations" in row else "completions"
    annotations = [item for item in row.get(field) or () if type(item) is dict]
    kept = [item for item in annotations if not item.get("was_cancelled") and not item.get("skipped")]
    true = [item for item in kept if item.get("ground_truth")]
    kept = true if len(true) == 1 else kept
    text = _label_studio_text(row["data"], kept, columns)
    if not kept:
        reason = "标注时跳过了（was_cancelled）" if annotations else "在 Label Studio 里还没有标注"
        return Written(text, None, field, problem=(LeftOut if annotations else NotAnnotated)(field, reason, reason))
    try:
        golds = [_label_studio_gold(item, text, answers, columns) for item in kept]
    except RowError as error:
        return Written(text, None, field, problem=error)
    if any(gold != golds[0] for gold in golds):
        problem = RowError(field, f"{len(golds)} 份标注不一致；请在 Label Studio 里定下一份（ground truth）")
        return Written(text, None, field, problem=problem)
    return Written(text, golds[0], field)


def _label_studio_text(data: dict, annotations: Sequence[dict], columns: Columns) -> object:
    if columns.text is not None:
        if columns.text not in data:
            raise RowError(columns.text, "data 里缺少这个字段")
        return data[columns.text]
    strings = [name for name, value in data.items() if type(value) is str]
    if len(strings) > 1:
        targets = {region.get("to_name") for item in annotations for region in _regions(item)}
        strings = (
            [name for name in strings if name in targets] or [name for name in strings if name == "text"] or strings
        )
    if len(strings) > 1:
        strings = columns_named(dict.fromkeys(strings), TEXT_COLUMNS + MORE_TEXT_COLUMNS) or strings
    if len(strings) != 1:
        several = f"data 里有几个字段都像文本（{'、'.join(strings)}）；请用 --text_column 指明"
        raise RowError("data", several if strings else "data 里没有文本")
    return data[strings[0]]


def _regions(annotation: dict) -> list[dict]:
    regions = annotation.get("result")
    return [region for region in regions if type(region) is dict] if type(regions) is list else []


def _label_studio_gold(annotation: dict, text: object, answers: str, columns: Columns) -> object:
    """The entities of an annotation, sorted, or the list of its choices; None if it has no choice.

    Raises:
        RowError: the choices are of parts of the text, the spans are of another kind, or their offsets could be code
            points or UTF-16 units.
    """
    regions = [r for r in _regions(annotation) if columns.label is None or r.get("from_name") == columns.label]
    if answers == "label":
        chosen = [region for region in regions if region.get("type") == "choices"]
        choices = [region for region in chosen if not _PLACES & _value(region).keys()]
        if chosen and not choices:
            raise RowError("result", OF_PARTS)
        if not choices and any(region.get("type") == "labels" for region in regions):
            raise OtherTask("result", "只标了实体（labels），没有类别（choices）：是实体识别的数据，不是文本分类的")
        tags = sorted({str(region.get("from_name")) for region in choices})
        if len(tags) > 1:
            raise RowError("from_name", f"有几种选择（{'、'.join(tags)}）；请用 --label_column 指明")
        return [choice for region in choices for choice in _value(region).get("choices") or ()] or None
    if other := next(
        (r["type"] for r in regions if str(r.get("type")).lower() in ("hypertextlabels", "paragraphlabels")), None
    ):
        raise RowError("type", f"是 {other}，位置不在一段纯文本里；请用 <Text> 标注")
    spans = [_value(region) for region in regions if region.get("type") == "labels"]
    if not spans and any(region.get("type") == "choices" for region in regions):
        raise RowError("result", "只标了类别（choices），没有实体（labels）")
    # Old versions counted UTF-16 units, newer ones count code points. Without its text a span could be either.
    ends = [span["end"] for span in spans if span.get("text") is None and type(span.get("end")) is int]
    if type(text) is str and ends and is_after_wide(text, max(ends)):
        raise doubtful(UTF16_DOUBT)
    return sorted(spans, key=lambda span: (str(span.get("start")).zfill(12), str(span.get("end")).zfill(12)))


def _value(region: dict) -> dict:
    """The value of a region, without what does not say which entity it is."""
    value = region.get("value")
    names = ("start", "end", "text", "labels", "choices")
    return {name: value[name] for name in names if name in value} if type(value) is dict else {}


# ---- Prodigy ----


def is_prodigy(row: dict) -> bool:
    """Whether a row is an answer in Prodigy."""
    return row.get("answer") in ("accept", "reject", "ignore") and "text" in row


def read_prodigy(row: dict, answers: str, columns: Columns) -> Written:
    """Only an accepted row is annotated. Of a choice, the accepted option is the label.

    Raises:
        RowError: see `sft.data.columns.plain_row`.
    """
    problem = None
    if row["answer"] != "accept":
        reason = f"在 Prodigy 里没有接受（{row['answer']}）"
        problem = LeftOut("answer", reason, reason)
    if answers == "entities":
        gold = value_at(row, columns.label) if columns.label else row.get("spans", row.get("entities", []))
        return Written(row["text"], gold, columns.label or "spans", problem=problem)
    if type(row.get("accept")) is list and columns.label is None:
        options = row.get("options")
        if type(options) is list:
            options = [option.get("id") if type(option) is dict else option for option in options]
        return Written(row["text"], row["accept"], "accept", options, problem)
    written = plain_row({name: value for name, value in row.items() if name != "answer"}, answers, columns)
    return written._replace(problem=problem or written.problem)
