"""Measure the speed of conversion against a plain JSON loop that does what the original scripts did.

    python benchmarks/convert_speed.py                       # 1,000,000 rows for each task, one or two minutes each
    python benchmarks/convert_speed.py --rows 100000 --characters 2000

Each side runs in its own process, in turns, on generated rows in a temporary folder. The best time of each side
counts. Our conversion also checks, normalises, deduplicates, splits and reports; the plain loop does none of that.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {"classification": "transfer_classification_data.py", "ner": "transfer_ner_data.py"}
LABELS = {
    "GPE": ["地缘政治实体", "政治实体", "地理实体", "社会实体"],
    "PER": ["人名", "姓名"],
    "ORG": ["组织", "团体", "机构"],
    "LOC": ["地名", "位置", "地点"],
}
CATEGORIES = ["Military", "Space", "Art", "Sports", "Economy", "Computer", "Medical", "Law", "History", "Energy"]
CHARACTERS = (
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种"
    "面而方后多定行学法所民得经十三之进着等部度家电力里如水化高自二理起小物现实加量都两体制机当使点从业本"
    "去把性好应开它合还因由其些然前外天政四日那社义事平形相全表间样与关各重新线内数正心反你明看原又么利比"
    "或但质气第向道命此变条只没结解问意建月公无系"
)


def main() -> None:
    """Generate rows, run both sides in turns, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--characters", type=int, help="mean length of a text (200 for articles, 35 for sentences)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--task", choices=tuple(SCRIPTS))
    arguments = parser.parse_args()
    for task in [arguments.task] if arguments.task else SCRIPTS:
        with tempfile.TemporaryDirectory() as folder:
            measure(task, Path(folder), arguments)


def measure(task: str, folder: Path, arguments: argparse.Namespace) -> None:
    """For one task, print the seconds of both sides, their ratio and our peak memory."""
    raw = folder / "raw.jsonl"
    generate(task, raw, arguments.rows, arguments.characters or (200 if task == "classification" else 35))
    plain = [sys.executable, __file__, "--plain", task, str(raw), str(folder / "plain.jsonl")]
    ours = [sys.executable, str(ROOT / SCRIPTS[task]), "--input_file", str(raw)]
    ours += ["--output_file", str(folder / "train.jsonl"), "--test_file", str(folder / "test.jsonl")]
    runs: dict[str, list[tuple[float, float, float]]] = {"plain": [], "ours": []}
    for _ in range(arguments.rounds):
        runs["plain"].append(run(plain))
        runs["ours"].append(run(ours))
    plain_seconds, plain_cpu, _ = map(min, zip(*runs["plain"], strict=True))
    our_seconds, our_cpu, memory = map(min, zip(*runs["ours"], strict=True))
    report = json.loads((folder / "train.report.json").read_bytes())
    allowed = 200 + arguments.rows * 100 / 1e6
    print(f"{task}: {report['read']:,} rows, {raw.stat().st_size / 1e6:.0f} MB; {report['merged']:,} merged")
    print(f"  plain loop {plain_seconds:.1f} s, ours {our_seconds:.1f} s: {plain_seconds / our_seconds:.2f} times")
    print(f"  CPU time {plain_cpu:.1f} s, ours {our_cpu:.1f} s: {plain_cpu / our_cpu:.2f} times")
    print(f"  peak memory {memory:.0f} MB (allowed {allowed:.0f} MB)", flush=True)


def run(command: list[str]) -> tuple[float, float, float]:
    """Run a command; return its wall-clock seconds, CPU seconds and peak resident memory in MB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def generate(task: str, path: Path, rows: int, characters: int) -> None:
    """Write rows in the original format. One row in 20 repeats the row before it; 60 % of sentences have no entity."""
    source = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        line = ""
        for number in range(rows):
            if number % 20 != 19:
                text = "".join(source.choices(CHARACTERS, k=source.randint(characters // 2, characters * 3 // 2)))
                row = classification_row(text, source) if task == "classification" else ner_row(text, source)
                line = json.dumps(row, ensure_ascii=False) + "\n"
            file.write(line)


def classification_row(text: str, source: random.Random) -> dict:
    """A row like those of zh_cls_fudan-news: the options are a Python list written as a string."""
    options = source.sample(CATEGORIES, source.randint(2, 6))
    return {"text": text, "category": str(options), "output": source.choice(options)}


def ner_row(text: str, source: random.Random) -> dict:
    """A row like those of CCFBDCI."""
    entities, position = [], 0
    for _ in range(source.randint(1, 3) if source.random() < 0.4 else 0):
        start = position + source.randint(0, 3)
        position = start + source.randint(2, 4)
        if position > len(text):
            break
        label = source.choice(list(LABELS))
        entity = {"start_idx": start, "end_idx": position, "entity_text": text[start:position]}
        entities.append(entity | {"entity_label": label, "entity_names": LABELS[label]})
    return {"text": text, "entities": entities, "data_source": "CCFBDCI"}


def plain_loop(task: str, raw: str, output: str) -> None:
    """What the original scripts do: read each line, build instruction, input and output, and write it."""
    with open(raw, encoding="utf-8") as source, open(output, "w", encoding="utf-8") as file:  # noqa: PTH123
        for line in source:
            data = json.loads(line)
            message = plain_classification(data) if task == "classification" else plain_ner(data)
            file.write(json.dumps(message, ensure_ascii=False) + "\n")


def plain_classification(data: dict) -> dict:
    """One row as the original classification script converts it."""
    text, category = data["text"], data["category"]
    return {
        "instruction": "你是一个文本分类领域的专家，你会接收到一段文本和几个潜在的分类选项，请输出文本内容的正确类型",
        "input": f"文本:{text},类型选型:{category}",
        "output": data["output"],
    }


def plain_ner(data: dict) -> dict:
    """One row as the original NER script converts it."""
    answer, label = "", ""
    for entity in data["entities"]:
        for name in entity["entity_names"]:
            if name in ("地点", "人名", "地理实体", "组织"):
                label = name
                break
        answer += f'{{"entity_text": "{entity["entity_text"]}", "entity_label": "{label}"}}'
    return {
        "instruction": "你是一个文本实体识别领域的专家，你需要从给定的句子中提取 地点; 人名; 地理实体; 组织 实体. "
        '以 json 格式输出, 如 {"entity_text": "南京", "entity_label": "地理实体"} '
        '注意: 1. 输出的每一行都必须是正确的 json 字符串. 2. 找不到任何实体时, 输出"没有找到任何实体". ',
        "input": f"文本:{data['text']}",
        "output": answer or "没有找到任何实体",
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--plain"]:
        plain_loop(*sys.argv[2:])
    else:
        main()
