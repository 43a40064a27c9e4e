"""Read brat's standoff format: a text ``a.txt`` and its entities beside it in ``a.ann``, or a folder of such pairs.

Imports no torch. Each line of a text that is not blank is a row, in the original shape of entities (see
`sft.data.shapes`). Of the annotations only the lines ``T1⇥LOC 0 2⇥青湖`` are read; relations, events, attributes and
notes are counted (`describe_brat`). An entity that lies in pieces or goes over the end of a line rejects its lines; an
annotation that cannot be placed at all rejects every line of its text, because nobody knows which one lacks it.

Offsets count code points. In files with CRLF some tools count a line end as two characters and some as one, and some
count a byte order mark; the entities' own texts show which.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from sft.data.encodings import file_encoding, is_decoded
from sft.data.source import NumberedRow
from sft.errors import InputError, RowError

_ENTITY = re.compile(r"(T\S+)\s+(\S+)\s+(\d+ \d+(?:;\d+ \d+)*)(?:[\t ](.*))?")
_OTHER_KINDS = {"R": "关系", "E": "事件", "A": "属性", "M": "属性", "N": "外部编号", "#": "备注", "*": "等价关系"}


class BratDocument(NamedTuple):
    """A text and its annotations."""

    text: Path
    annotations: Path


class _Entity(NamedTuple):
    """A ``T`` line.

    Attributes:
        where: the file and line, and the name of the annotation.
        pieces: start and end of each, as written; pieces that touch are one.
        surface: the text that it says it has; None if it says none.
    """

    where: str
    label: str
    pieces: tuple[tuple[int, int], ...]
    surface: str | None


# ---- Files ----


def is_brat(path: Path) -> bool:
    """Whether it is an ``.ann`` file, a ``.txt`` file with one beside it, or a folder with such a pair.

    An ``.ann`` file without a ``.txt`` may be another tool's: YEDDA writes the text and the marks into one.
    """
    if path.is_dir():
        return any(annotations.with_suffix(".txt").is_file() for annotations in _in_folder(path, "ann"))
    suffix = path.suffix.lower()
    if suffix == ".ann" and not path.with_suffix(".txt").is_file() and path.is_file():
        with path.open("rb") as file:
            return not re.search(rb"\[[@$][^\[\]]*#[^#\[\]\s]+\*\]", file.read(1 << 16))
    return suffix == ".ann" or (suffix == ".txt" and path.with_suffix(".ann").is_file())


def brat_documents(path: Path) -> list[BratDocument]:
    """The pairs that a path stands for, those of a folder in the order of their names.

    Raises:
        InputError: annotations have no text beside them.
    """
    found = list(_in_folder(path, "ann")) if path.is_dir() else [path.with_suffix(".ann")]
    documents = [BratDocument(annotations.with_suffix(".txt"), annotations) for annotations in found]
    for document in documents:
        if not document.text.is_file():
            raise InputError(f"{document.annotations}：旁边没有 {document.text.name}；请把文本和标注放在一起")
    return documents


def describe_brat(path: Path, encoding: str = "auto") -> str:
    """What there is besides the entities and is not read, for the summary; ``""`` if there is nothing."""
    documents = brat_documents(path)
    kinds = Counter(
        _OTHER_KINDS[line[0]]
        for document in documents
        for line in _read(document.annotations, encoding).split("\n")
        if line[:1] in _OTHER_KINDS
    )
    parts = [f"没有用到 {'、'.join(f'{kind} {count:,}' for kind, count in kinds.items())}"] if kinds else []
    if path.is_dir():
        unannotated = set(_in_folder(path, "txt")) - {document.text for document in documents}
        parts += [f"{len(unannotated):,} 个 .txt 没有 .ann，没有读"] if unannotated else []
    return "；".join(parts)


def _in_folder(folder: Path, ending: str) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob(f"*.{ending}")) if not path.name.startswith("."))


def _read(path: Path, encoding: str) -> str:
    """The text of a file with its byte order mark; ``""`` of an empty one.

    Bytes that do not decode stay lone surrogates.
    """
    try:
        data = path.read_bytes()
        if not data.strip():
            return ""
        found = file_encoding(path, encoding).removesuffix("-sig")
        return data.decode(found, "strict" if found == "utf-16" else "surrogateescape")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}：不是完整的 {error.encoding}（{error.reason}）；请另存为 UTF-8") from error
    except OSError as error:
        raise InputError(f"{path}：无法读取（{error.strerror}）") from error


# ---- Rows ----


def read_brat(path: Path, encoding: str = "auto") -> Iterator[NumberedRow]:
    """Every line of the text or texts that is not blank, with its number in its file.

    Args:
        path: one for which `is_brat` holds.
        encoding: ``auto`` or a name that Python knows; of all files.

    Raises:
        InputError: a file is missing, cannot be read, or has annotations but no text.
    """
    for document in brat_documents(path):
        text = _read(document.text, encoding)
        entities, unreadable = _entities(document.annotations, encoding)
        if not text:
            if entities or unreadable:
                raise InputError(f"{document.text}：文件是空的，而 {document.annotations.name} 里有标注")
            continue
        for number, line, row in _rows(text, entities, unreadable):
            if isinstance(row, RowError) and path.is_dir():
                row = RowError(row.field, f"{document.text.relative_to(path)}：{row.reason}")
            yield number, line, row


def _entities(path: Path, encoding: str) -> tuple[list[_Entity], str]:
    """The entities of an ``.ann`` file, and what is wrong with the first line that cannot be read."""
    entities = []
    for number, line in enumerate(_read(path, encoding).removeprefix("\ufeff").split("\n"), start=1):
        line = line.rstrip("\r")
        if not line.strip() or line[0] in _OTHER_KINDS:
            continue
        found = _ENTITY.fullmatch(line)
        if found is None or not is_decoded(line):
            return entities, f"{path.name}:{number} 读不懂：{line.encode(errors='replace').decode()[:40]!r}"
        pieces: list[tuple[int, int]] = []
        for piece in found[3].split(";"):
            start, end = map(int, piece.split())
            if pieces and pieces[-1][1] == start:
                start = pieces.pop()[0]
            pieces.append((start, end))
        entities.append(_Entity(f"{path.name}:{number} 的 {found[1]}", found[2], tuple(pieces), found[4]))
    return entities, ""


def _rows(text: str, entities: Sequence[_Entity], unreadable: str) -> Iterator[NumberedRow]:
    text, entities, doubt = _counted_alike(text, entities)
    unreadable = unreadable or doubt
    lines = text.split("\n")
    starts = list(accumulate((len(line) + 1 for line in lines), initial=0))
    placed: dict[int, list[dict]] = {}
    problems: dict[int, str] = {}
    for entity in entities:
        if any(not 0 <= start < end <= len(text) for start, end in entity.pieces):
            unreadable = unreadable or f"{entity.where} 的位置 {entity.pieces[0]} 不在文本里（共 {len(text)} 个字符）"
            continue
        touched = {
            at
            for start, end in entity.pieces
            for at in range(bisect_right(starts, start) - 1, bisect_right(starts, end - 1))
        }
        if len(touched) == len(entity.pieces) == 1:
            (at,) = touched
            placed.setdefault(at, []).append(_as_raw(entity, text, starts[at]))
            continue
        reason = "不是连续的一段" if len(entity.pieces) > 1 else "跨行"
        problems |= dict.fromkeys(touched, f"{entity.where} {reason}；这样的实体不支持")
    for at, line in enumerate(lines):
        line = line.removesuffix("\r")
        reason = unreadable or problems.get(at, "") or ("" if is_decoded(line) else "有解不开的字节")
        if line.strip() or (reason and not unreadable) or at in placed:
            row = {"text": line, "entities": placed.get(at, [])}
            yield at + 1, line, RowError("entities", reason) if reason else row


def _counted_alike(text: str, entities: Sequence[_Entity]) -> tuple[str, Sequence[_Entity], str]:
    """The text without byte order mark in the way that the offsets count it, the entities, and what is in doubt.

    It is the way in which the most entities have the text that they say.
    """
    mark, text = text.startswith("\ufeff"), text.removeprefix("\ufeff")
    ways = []
    for moved in (entities, [_without_mark(entity) for entity in entities]) if mark else (entities,):
        for counted in dict.fromkeys((text, text.replace("\r\n", "\n"))):
            ways.append((sum(_has_its_surface(entity, counted) for entity in moved), counted, moved))
    most = max(fitting for fitting, _, _ in ways)
    best = [way for way in ways if way[0] == most]
    first_line_end = text.find("\r\n")
    alike = not mark and all(entity.pieces[-1][1] <= first_line_end for entity in entities)
    doubt = "从实体的文字看不出换行（CRLF）和文件头（BOM）算几个字符；请先把 .txt 和 .ann 换成 LF、没有 BOM 的"
    return best[0][1], best[0][2], doubt if entities and len(best) > 1 and not alike else ""


def _without_mark(entity: _Entity) -> _Entity:
    """The entity with offsets that do not count the byte order mark, if its own do."""
    return entity._replace(pieces=tuple((start - 1, end - 1) for start, end in entity.pieces))


def _has_its_surface(entity: _Entity, text: str) -> bool:
    """Whether an entity has the text it says, whatever the blanks; brat writes line ends as blanks."""
    if entity.surface is None or min(start for start, _ in entity.pieces) < 0:
        return False
    return "".join("".join(text[start:end] for start, end in entity.pieces).split()) == "".join(entity.surface.split())


def _as_raw(entity: _Entity, text: str, line_start: int) -> dict:
    ((start, end),) = entity.pieces
    surface = text[start:end] if _has_its_surface(entity, text) else entity.surface
    return {
        "start_idx": start - line_start,
        "end_idx": end - line_start,
        "entity_text": surface,
        "entity_label": entity.label,
    }
