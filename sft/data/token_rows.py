"""A row of tokens and tags as a text with entities. Imports no torch.

``{"tokens": ["青", "湖"], "ner_tags": ["B-LOC", "I-LOC"]}`` as Hugging Face has it; also with a text instead of the
tokens, or with tokens or tags in one string: ``{"sentence": "青湖", "BIO_label": "B-LOC I-LOC"}``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sft.data.columns import USUAL_COLUMNS, Columns, Written, gold_value, plain_row
from sft.data.joining import has_short_words, joined
from sft.errors import RowError
from sft.text import read_literal

TAG_COLUMNS = (
    *("ner_tags", "tags", "labels", "bio_tags", "tag", "label", "ner", "ner_labels"),
    *("bio_label", "bio_labels", "bio_anno", "bio", "BIO_label", "BIO_anno", "BIO"),
)
_TOKEN_COLUMNS = ("tokens", "words", "chars")
_TEXT_COLUMNS = ("text", "sentence", "content", "文本", "句子")  # a list, or a string with blanks between the tokens
_TAG = re.compile(r"O|[BIEMSLU][-_][^\s\x00-\x1f]+")
_BETWEEN_TOKENS = re.compile(r"[\s\x02]+")


def tags_in(value: object) -> list[str] | None:
    """The tags that a list or a string says, such as ``B-LOC I-LOC O``; None if it is anything else."""
    if type(value) is str:
        value = _as_list(value) if value[:1] == "[" else _pieces(value)
    if type(value) is list and value and all(type(tag) is str and _TAG.fullmatch(tag) for tag in value):
        return value
    return None


def _pieces(value: str) -> list[str]:
    return [piece for piece in _BETWEEN_TOKENS.split(value) if piece]


def _as_list(value: object) -> object:
    """The list in a table's cell; any other value as it is."""
    if type(value) is str and value[:1] == "[":
        try:
            return read_literal(value)
        except ValueError:
            return value
    return value


def is_tokens(row: dict, columns: Columns = USUAL_COLUMNS) -> bool:
    """Whether a row has a list of tokens, and perhaps tags or their numbers; or a text like one, and as many tags."""
    return _tokens_and_tags(row, columns) is not None


def column_of_tokens(row: dict, columns: Columns = USUAL_COLUMNS) -> str | None:
    """The column in which `is_tokens` finds the tokens; None if there is none."""
    found = _tokens_and_tags(row, columns)
    return found and found[0]


def _tokens_and_tags(row: dict, columns: Columns) -> tuple[str, list[str], str | None] | None:
    """The column of the tokens, the tokens, and the column of the tags; rows to predict may have no tags.

    A column that the user names is looked at first.
    """
    tag_columns = [name for name in dict.fromkeys((columns.label, *TAG_COLUMNS)) if name in row]
    for column in _TOKEN_COLUMNS:
        if column in row and _is_list_of(tokens := _as_list(row[column]), (str,)):
            tagged = next((name for name in tag_columns if _is_list_of(_as_list(row[name]), (str, int))), None)
            if tagged is not None or type(row.get("text")) is not str:
                return column, tokens, tagged
    for name in tag_columns:
        tags = tags_in(row[name])
        for column in dict.fromkeys((columns.text, *_TEXT_COLUMNS)) if tags else ():
            tokens = _as_list(row.get(column))
            if _is_list_of(tokens, (str,)):
                return column, tokens, name
            if type(tokens) is str and len(pieces := _pieces(tokens)) == len(tags) > 1:
                return column, pieces, name
    for column in dict.fromkeys((columns.text, *_TEXT_COLUMNS)):
        if column in row and _is_list_of(row[column], (str,)) and _entities_by_token(row, columns) is not None:
            return column, row[column], None
    return None


def _entities_by_token(row: dict, columns: Columns) -> tuple[list, str] | None:
    """The entities of a row of tokens, whose places count tokens, and their field; None if it has none."""
    try:
        value, field = gold_value(row, "entities", columns)
    except RowError:
        return None
    is_list = type(value) is list and all(type(item) in (dict, list) for item in value)
    no_tags = value == [] and field in TAG_COLUMNS and field != "ner"  # W2NER's "ner" may be empty
    return (value, field) if is_list and not no_tags else None


def _is_list_of(value: object, kinds: tuple[type, ...]) -> bool:
    return type(value) is list and bool(value) and all(type(item) in kinds for item in value)


def read_tokens(row: dict, answers: str, columns: Columns) -> Written:
    """The tokens joined to a text, and the entities of the tags; for a label, what `plain_row` takes.

    Raises:
        RowError: see `sft.data.columns.plain_row`.
    """
    token_column, tokens, tag_column = _tokens_and_tags(row, columns)
    text, starts = joined(tokens, short_words=has_short_words(tokens))
    if token_column not in ("text", columns.text) and type(row.get("text")) is str:
        text, starts = row["text"], places_in_text(tokens, row["text"])
    if answers == "label":
        rest = {name: value for name, value in row.items() if name not in (token_column, tag_column)}
        return plain_row(rest | {"text": text}, answers, columns)
    if columns.label is not None:
        tag_column = columns.label
    tags = row.get(tag_column) if tag_column else None
    if (tags is None or tag_column == columns.label) and (found := _entities_by_token(row, columns)):
        return _with_places(tokens, text, *found)
    if tags is None:
        return Written(text, None, tag_column or "ner_tags")
    if starts is None:
        return Written(text, None, token_column, problem=RowError(token_column, "与 text 对不上"))
    try:
        return Written(text, _with_texts(_entities_of(tags, tokens, starts, tag_column), text), tag_column)
    except RowError as error:
        return Written(text, None, tag_column, problem=error)


def _with_places(tokens: list[str], text: str, entities: list, field: str) -> Written:
    """Entities whose places count tokens: of characters these are offsets, whose ends the whole file shows.

    W2NER lists the tokens of an entity: ``{"index": [0, 1], "type": "PER"}``.
    """
    if any(len(token) != 1 for token in tokens):
        problem = RowError(field, "位置数的是词，有的词不止一个字；请换成按字数的位置（一个字一项）")
        return Written(text, None, field, problem=problem)
    places = []
    for entity in entities:
        index = entity.get("index") if type(entity) is dict else None
        if type(index) is list and index and all(type(at) is int for at in index):
            if index != list(range(index[0], index[0] + len(index))):
                problem = RowError(field, f"实体的字不相连（index 是 {index!s:.40}）；只能是连着的一段")
                return Written(text, None, field, problem=problem)
            entity = {**entity, "start": index[0], "end": index[-1] + 1}
        places.append(entity)
    return Written("".join(tokens), places, field)


def _entities_of(tags: object, tokens: list[str], starts: list[int], field: str) -> list[dict]:
    tags = tags_in(tags) or _as_list(tags)
    if type(tags) is not list or len(tags) != len(tokens):
        raise RowError(field, f"标记应与 {len(tokens)} 个词一一对应")
    if not all(type(tag) is str for tag in tags):
        raise RowError(
            field,
            "标记是编号，不知道是哪个标签；请先换成 B-LOC 这样的名字"
            "（datasets 里：features['ner_tags'].feature.int2str）",
        )
    return entities_of_tags(tags, tokens, starts, field)


def entities_in_text(tags: Sequence[str], text: str, field: str) -> list[dict]:
    """The entities of the tags of a text's characters, or of its words between blanks.

    Raises:
        RowError: there are not as many; else see `entities_of_tags`.
    """
    for tokens in (list(text), text.split()):
        if len(tokens) == len(tags):
            return _with_texts(entities_of_tags(tags, tokens, places_in_text(tokens, text), field), text)
    raise RowError(field, f"有 {len(tags)} 个标记，文本有 {len(text)} 个字，应当一样多")


def _with_texts(entities: list[dict], text: str) -> list[dict]:
    return [entity | {"entity_text": text[entity["start_idx"] : entity["end_idx"]]} for entity in entities]


def places_in_text(tokens: Sequence[str], text: str) -> list[int] | None:
    """Where each token begins in a text that is given, too; None if there is more than blanks between them."""
    starts, cursor = [], 0
    for token in tokens:
        start = text.find(token, cursor)
        if start < 0 or text[cursor:start].strip():
            return None
        starts.append(start)
        cursor = start + len(token)
    return None if text[cursor:].strip() else starts


def entities_of_tags(tags: Sequence[str], tokens: Sequence[str], starts: Sequence[int], field: str) -> list[dict]:
    """The entities of BIO, BIOES, BMES or BILOU tags, with their offsets.

    In BIO an ``I-`` that continues no entity begins one, as conlleval and seqeval do. The other schemes mark the end
    of an entity, so there such a tag is an error: to guess would be to invent a boundary. ``S-`` alone marks no ends
    (BIOS).

    Raises:
        RowError: a tag is of no scheme, or cannot follow the one before it.
    """
    strict = any(tag[:1] in "EMLU" for tag in tags)
    spans: list[list] = []  # [start, end, label]
    inside = False  # whether the last span may go on
    for tag, token, start in zip(tags, tokens, starts, strict=True):
        if not _TAG.fullmatch(tag):
            raise RowError(field, f"认不出的标记 {tag!r:.40}；应如 B-LOC、I-LOC、O")
        prefix, label, end = tag[0], tag[2:], start + len(token)
        goes_on = inside and prefix in "IMEL" and label == spans[-1][2]
        if strict and not goes_on and (inside or prefix in "IMEL"):
            raise RowError(field, f"标记 {tag!r:.40} 接不上前一个")
        if goes_on:
            spans[-1][1] = end
        elif prefix != "O":
            spans.append([start, end, label])
        inside = prefix in "BIM"
    if strict and inside:
        raise RowError(field, f"句子结束了，实体 {spans[-1][2]:.40} 还没有结束")
    return [{"start_idx": start, "end_idx": end, "entity_label": label} for start, end, label in spans]
