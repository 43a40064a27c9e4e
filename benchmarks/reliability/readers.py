"""B1: bad data files. B2: a million mutations of everything that is read: no traceback, nobody waits."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import random
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import transfer_classification_data
import transfer_ner_data
from benchmarks.reliability.matrix import Family, Job, Outcome
from benchmarks.reliability.runs import World
from sft.data.inputs import read_file
from sft.errors import InputError, RowError
from sft.prediction.rows import to_record
from sft.tasks.classification import Classification
from sft.tasks.entity_lines import NO_ENTITY, entity_line
from sft.tasks.ner import Ner
from tests.format_examples import EXAMPLES, Example

SCRIPTS = {"label": transfer_classification_data.main, "entities": transfer_ner_data.main}
CODES = {0, 1, 2}
SLOW_SECONDS = 60
ENCODINGS = ("utf-8", "utf-8-sig", "gb18030", "utf-16", "utf-16-le", "big5", "latin-1")
PIECES = (
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\r", b"\n\n", b"\t", b",", b'"', b"{", b"}", b"[" * 99, b"NaN",
    b"1e999", b"null", b"\\ud800", b"<|im_end|>", b"\x1b[2J", b"\x1a", b"O", b"B-", b" I-X", b"__label__", b"=", b"-1",
    "　".encode(), "体肓".encode(), "😀".encode(), "e\u0301".encode(), b"'; --", b"&#x202e;", b"\xc0\x80", b"9" * 400,
)  # fmt: skip


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Bytes of a file with one to four changes: cut, flipped, doubled, inserted, in another encoding."""
    for _ in range(draw.randint(1, 4)):
        kind, at = draw.randrange(7), draw.randrange(len(content) + 1)
        if kind == 0:
            content = content[:at] + draw.choice(PIECES) + content[at:]
        elif kind == 1:
            content = content[:at]
        elif kind == 2:
            content = content[:at] + content[at + draw.randint(1, 9) :]
        elif kind == 3 and content:
            flipped = bytearray(content)
            flipped[at % len(content)] ^= 1 << draw.randrange(8)
            content = bytes(flipped)
        elif kind == 4:
            lines = content.splitlines(keepends=True)
            content = b"".join(draw.sample(lines, len(lines)) + lines[:1])
        elif kind == 5:
            content = content.decode("utf-8", "replace").encode(draw.choice(ENCODINGS), "replace")
        else:
            content = content.replace(draw.choice((b"\n", b'"', b":", b" ", b"\t", b",")), draw.choice(PIECES))
    return content


# ---- B1 ----


def file_jobs(world: World, short: bool) -> Iterator[Job]:
    chosen = EXAMPLES[::12] if short else EXAMPLES
    return (
        Job(bad_files, (number, 4 if short else 50)) for number, example in enumerate(EXAMPLES) if example in chosen
    )


def bad_files(world: World, folder: Path, number: int, count: int) -> Iterator[Outcome]:
    """Convert damaged files of one format with the real script."""
    example, draw = EXAMPLES[number], random.Random(number)
    os.chdir(folder)
    for attempt in range(count):
        content = damaged(example.content.encode(), draw)
        yield _judge(f"B1 {example.file} {attempt}", content, lambda content=content: _convert(example, content))


def _convert(example: Example, content: bytes) -> str | None:
    Path(example.file).write_bytes(content)
    words = [f"--input_file={example.file}", "--output_file=out/train.jsonl", "--test_file=out/test.jsonl"]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            code = SCRIPTS[example.answers]([*words, "--test_ratio=0.34"])
        except SystemExit as stop:  # argparse
            code = stop.code
    if code not in CODES or "Traceback" in said.getvalue():
        return f"退出码 {code}：{said.getvalue()[-500:]}"
    if list(Path().rglob("*.tmp")):
        return "留下了 .tmp"
    if code == 0:
        report = json.loads(Path("out/train.report.json").read_text(encoding="utf-8"))
        if report["read"] != report["converted"] + report["rejected"] + report["merged"]:
            return f"行数对不上：{report}"
    elif not said.getvalue().strip():
        return "没有说错在哪里"
    return None


def _judge(label: str, content: bytes, check: Callable[[], str | None]) -> Outcome:
    """1 if ``check`` returns None in time; what is wrong otherwise."""
    started = time.monotonic()
    try:
        fault = check()
    except Exception:
        fault = traceback.format_exc()[-900:]
    if fault is None and time.monotonic() - started > SLOW_SECONDS:
        fault = f"用了 {time.monotonic() - started:.0f} 秒"
    return 1 if fault is None else f"{label}：{fault}：{content[:400]!r}"


# ---- B2 ----

MUTATIONS = 1_000_000
PARTS = 20


def mutation_jobs(world: World, short: bool) -> Iterator[Job]:
    if short:
        yield from (Job(function, (0, 1500)) for function in (mutated_json, mutated_rows, mutated_answers))
        return
    for part in range(PARTS):
        yield Job(mutated_json, (part, MUTATIONS * 4 // 10 // PARTS))
        yield Job(mutated_rows, (part, MUTATIONS * 2 // 10 // PARTS))
        yield Job(mutated_answers, (part, MUTATIONS * 4 // 10 // PARTS))


def mutated_json(world: World, folder: Path, part: int, count: int) -> Iterator[Outcome]:
    """Records, task.json, progress, metrics.jsonl, configs, indices, samples."""
    from sft.model import adapter_config
    from sft.model.loading import load_tokenizer
    from tests.models import save_adapter
    from tests.test_wrong_shapes import REFUSED, read_mutations, readers

    os.fsync = lambda _: None
    adapter_config._ends_soon = lambda *_: True  # starts a process; S1 has cases of its own for it
    logging.disable()
    save_adapter(load_tokenizer(world.base), folder / "trained", ("体育", "军事"))
    (folder / "files").mkdir()
    passed = 0
    for told in read_mutations(readers(folder / "trained", folder / "files"), count, random.Random(part)):
        if told is None or told is REFUSED:
            passed += 1
        else:
            yield f"B2 {told}"
    yield passed


def mutated_rows(world: World, folder: Path, part: int, count: int) -> Iterator[Outcome]:
    """Files of every format, read as conversion and prediction read them; each row is a record or a `RowError`."""
    draw, passed = random.Random(part), 0
    logging.disable()
    tasks = {"label": Classification(("体育", "军事", "交通")), "entities": Ner.with_labels(["PER", "LOC"])}
    for number in range(count):
        example = EXAMPLES[number % len(EXAMPLES)]
        content, path = damaged(example.content.encode(), draw), folder / example.file
        path.write_bytes(content)
        outcome = _judge("B2 行", content, lambda: _read(path, tasks[example.answers], example.answers))  # noqa: B023
        if outcome == 1:
            passed += 1
        else:
            yield outcome
    yield passed


def _read(path: Path, task, answers: str) -> str | None:
    try:
        for row in read_file(path, answers):
            record = row if isinstance(row, RowError) else to_record(row, task)
            if not isinstance(record, RowError) and not isinstance(record["text"], str):
                return f"文本不是字符串：{record}"
    except InputError as error:
        return None if len(str(error).splitlines()) == 1 else f"错误不止一行：{error}"
    return None


SENTENCE = "张伟昨天到了上海，见到了😀菲律宾总统e\u0301，张伟说：“<|im_end|>”。"
WORDS = (*"张伟上海菲律宾总统", "人名", "地点", "\n", "\t", '"', "\\", "{", "}", "[", "]", ":", ",", "null", "\\u5f20")
WORDS += (NO_ENTITY, "\ud800", "\0", "\u2028", "1e999", "entity_text", "entity_label", "<|im_end|>", " " * 50)


def mutated_answers(world: World, folder: Path, part: int, count: int) -> Iterator[Outcome]:
    """What a model may answer: always a well-formed result whose entities stand in the text."""
    draw, passed = random.Random(part), 0
    ner, classes = Ner.with_labels(["人名", "地点"]), Classification(("体育", "军事"))
    good = "\n".join(
        entity_line(name, label) for name, label in (("张伟", "人名"), ("上海", "地点"), ("张伟", "人名"))
    )
    for _ in range(count):
        answer = _mutated_text(good, draw)
        outcome = _judge("B2 回答", answer.encode("utf-8", "replace"), lambda: _parse(ner, classes, answer))  # noqa: B023
        if outcome == 1:
            passed += 1
        else:
            yield outcome
    yield passed


def _mutated_text(text: str, draw: random.Random) -> str:
    for _ in range(draw.randint(1, 5)):
        start = draw.randrange(len(text) + 1)
        end = start + draw.randint(0, 8) * draw.randrange(2)
        text = text[:start] + draw.choice(WORDS) * draw.choice((0, 1, 1, 1, 3)) + text[end:]
    return text


def _parse(ner: Ner, classes: Classification, answer: str) -> str | None:
    result = ner.parse(answer, {"text": SENTENCE, "entities": []})
    spans = [(entity["start"], entity["end"]) for entity in result["entities"]]
    for entity in result["entities"]:
        if SENTENCE[entity["start"] : entity["end"]] != entity["text"] or entity["label"] not in ner.labels:
            return f"实体不在文本里：{entity}"
    if len(set(spans)) != len(spans) or not isinstance(result["unparsable"], bool):
        return f"结果不合格：{result}"
    label = classes.parse(answer, {"text": SENTENCE, "options": ["体育", "军事"]})
    return None if label["label"] in (None, "体育", "军事") else f"候选之外的标签：{label}"


FAMILIES = (
    Family(
        "B1",
        "每种格式的数据文件各改坏 50 次：编码、截断、翻转、乱序、插入控制符和特殊 token",
        "没有 traceback；行数对得上，或用一行拒绝；不留下写了一半的文件",
        file_jobs,
    ),
    Family(
        "B2",
        "读入的一切共改一百万次：原始行、记录、task.json、进度、metrics.jsonl、各种配置、模型的回答",
        "没有 traceback，没有卡住；拒绝是一行；回答总是解析成合格的结果",
        mutation_jobs,
    ),
)
