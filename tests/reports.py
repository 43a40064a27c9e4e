"""Reports of runs with generated rows, for tests."""

from __future__ import annotations

import random
from pathlib import Path

import orjson

from sft.data.records import conversion_report_path
from sft.files import write_json
from sft.report.run import Kept, Lengths, RunData, RunFacts, write_run_report
from sft.tasks.classification import Classification
from sft.tasks.ner import Ner

LABELS = ("体育", "军事", "经济", "教育")
ENTITY_LABELS = ("地理实体", "地点", "组织", "人名")
HOSTILE = (
    "</script><script>window.harmed = 1</script><img src=x onerror='window.harmed=1'>&lt;“\"'`{{7*7}}\u2028\u2029😀"
)
CHARACTERS = "昨天国家队在上海赢了比赛，菲律宾总统埃斯特拉达访问南京大学。坦克演习股市上涨"
FACTS = RunFacts(base_model="qwen/demo", dtype="float32", device_type="cpu", steps=59, kept=Kept(59))
SETTINGS = {
    "learning_rate": 1e-4, "num_train_epochs": 2, "max_steps": -1, "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 1, "lr_scheduler_type": "linear", "warmup_steps": 0, "lora_r": 8, "lora_alpha": 32,
    "lora_dropout": 0.0, "lora_target_modules": ["q_proj", "k_proj"], "max_length": 64, "max_new_tokens": 64,
    "batching": "auto", "seed": 42, "version": "0",
}  # fmt: skip
RESULTS = {
    "train_runtime": 3723.4,
    "epoch": 2.0,
    "executed_tokens": 619_604,
    "logical_tokens": 1_141_429,
    "peak_memory_bytes": 1_190_752_256,
}


def label_rows(count: int, seed: int = 0, length: int = 60) -> tuple[list[dict], list[dict]]:
    """Records, and predictions of which about one in five is wrong."""
    rng = random.Random(seed)
    records, predictions = [], []
    for _ in range(count):
        label = rng.choice(LABELS)
        answer = label if rng.random() < 0.8 else rng.choice(LABELS)
        score = rng.uniform(0.4, 1)
        others = [name for name in LABELS if name != answer]
        scores = {answer: score} | {name: (1 - score) / len(others) for name in others}
        records.append({"text": "".join(rng.choices(CHARACTERS, k=length)), "label": label, "options": LABELS})
        predictions.append({"label": answer, "score": score, "scores": scores, "unparsable": False})
    return records, predictions


def span_rows(count: int, seed: int = 0, length: int = 60) -> tuple[list[dict], list[dict]]:
    """Records and predictions: some gold spans are missed, shifted or get a wrong label; others are invented."""
    rng = random.Random(seed)
    records, predictions = [], []
    for _ in range(count):
        text = "".join(rng.choices(CHARACTERS, k=length))
        gold, predicted = [], []
        for start in sorted(rng.sample(range(0, length - 8, 8), rng.randint(0, 4))):
            gold.append(entity(text, start, start + rng.randint(1, 5), rng.choice(ENTITY_LABELS)))
        for span in gold:
            what = rng.random()
            if what < 0.7:
                predicted.append(span)
            elif what < 0.8:
                predicted.append(entity(text, span["start"], span["end"] + 1, span["label"]))
            elif what < 0.9:
                predicted.append(entity(text, span["start"], span["end"], rng.choice(ENTITY_LABELS)))
        if not gold and rng.random() < 0.2:
            predicted.append(entity(text, 3, 6, rng.choice(ENTITY_LABELS)))
        records.append({"text": text, "entities": gold})
        predictions.append({"entities": [span | {"score": rng.random()} for span in predicted], "unparsable": False})
    return records, predictions


def entity(text: str, start: int, end: int, label: str) -> dict:
    return {"start": start, "end": end, "text": text[start:end], "label": label}


def write_report(
    folder: Path,
    task: Classification | Ner,
    test: tuple[list, list],
    *,
    bare: bool = False,
    splits: dict[str, list] | None = None,
    **changes,
) -> Path:
    """Write the report of a finished run with these test rows and all sections; return the path of ``report.html``.

    Args:
        bare: leave out ``metrics.jsonl`` and the conversion's report.
        splits: records of ``train``, ``validation`` and ``test`` instead of the default ones.
        changes: arguments for `write_run_report` that replace the default ones.
    """
    make = label_rows if task.name == "classification" else span_rows
    train, (validation, after) = make(200, 1)[0], make(50, 2)
    before = make(50, 3)[1]
    score = {"classification": "eval_macro_f1", "ner": "eval_f1"}[task.name]
    rows = [{"step": 0, "eval_loss": 5.0, score: 0.1}]
    rows += [{"step": step, "loss": 4 / step, "learning_rate": 1e-4 * (1 - step / 60)} for step in range(1, 60)]
    rows += [{"step": step, "eval_loss": 5 / step, score: 1 - 1 / step} for step in (20, 40, 59)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in sorted(rows, key=by_step)))
    lengths = Lengths(
        tokens=[20 + n % 60 for n in range(200)],
        max_length=64,
        shortened_lines=[3, 7],
        pieces=2,
        dropped_tokens=31 if task.name == "classification" else 0,
    )
    splits = splits or {"train": train, "validation": validation, "test": test[0]}
    kept = Kept(40, "eval_macro_f1") if task.name == "classification" else Kept(40, "eval_f1", 0.35, after)
    if not splits["validation"]:
        kept = Kept(59)
    keywords = {
        "task": task,
        "data": RunData(splits, lengths, folder / "train.jsonl"),
        "predictions": {"before": before, "after": after, "test": test[1]},
        "results": RESULTS,
        "facts": FACTS._replace(kept=kept),
        "settings": SETTINGS | {"train_file": folder / "train.jsonl"},
    }
    if bare:
        (folder / "metrics.jsonl").unlink()
    else:
        write_json(conversion_report_path(folder / "train.jsonl"), CONVERSION)
    write_run_report(folder, **keywords | changes)
    return folder / "report.html"


def by_step(row: dict) -> int:
    return row["step"]


CONVERSION = {
    "read": 300, "converted": 250, "rejected": 3, "merged": 40, "leaked": 7, "repeated": 1, "composed": 2,
    "rejected_fields": {"output": 2, "": 1},
    "rejected_reasons": [{"reason": "标签 '<b>' 不在 --labels 里", "rows": 2}],
    "left_out": 0, "dropped_labels": {"<LOC>": 12}, "conflicts": 4, "texts_on_both_sides": 0,
    "files": [{"file": "raw/<b>.jsonl", "format": "jsonl，UTF-8", "read": 300}],
}  # fmt: skip
