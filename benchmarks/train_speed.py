"""Measure speed and memory of training against the original recipe, transformers' Trainer and TRL.

    python -m venv .venv-trl && .venv-trl/bin/pip install -r benchmarks/requirements-trl.txt
    python benchmarks/train_speed.py --tokenizer qwen/Qwen2.5-1.5B-Instruct     # after both transfer scripts

The rows are real and keep their real lengths. Speed is measured with a small Qwen2 that has the proportions of the
1.5B model (its head costs 0.178 of its body); token ids are mapped into its small vocabulary. Memory is measured with
the whole vocabulary. Each contestant is a process. In each round every contestant trains one pass over the rows, in
turn; ratios are medians over the rounds. Before that, all must have the same loss at the first step in float32. Each
other library first runs once with every setting of a small grid, and its fastest setting takes part in the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORKER = ROOT / "benchmarks" / "train_speed_worker.py"
ROWS_PER_STEP = 16
SMALL = {"hidden_size": 256, "intermediate_size": 1493, "num_hidden_layers": 4, "vocab_size": 3640}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 1}
WIDE = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 3, "vocab_size": 3640}
WIDE |= {"num_attention_heads": 12, "num_key_value_heads": 2}  # 1.5B's own layers, three of them
WHOLE_VOCABULARY = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 5, "vocab_size": 151936}
WHOLE_VOCABULARY |= {"num_attention_heads": 14, "num_key_value_heads": 2}  # Qwen2.5-0.5B's layers, five of them
ARTICLE_TOKENS = 1000


@dataclass(frozen=True)
class Contestant:
    """A library with its settings.

    Attributes:
        name: its name in the tables.
        group: only the fastest contestant of each group takes part in the rounds.
        library: ``ours``, ``hf`` or ``trl``.
        arguments: keyword arguments of the library's TrainingArguments.
        job: further settings for the worker process.
    """

    name: str
    group: str
    library: str
    arguments: dict
    job: dict = field(default_factory=dict)


def batches(size: int) -> dict:
    """Trainer arguments for ``size`` rows in each batch and 16 rows in each optimizer step."""
    return {"per_device_train_batch_size": size, "gradient_accumulation_steps": ROWS_PER_STEP // size}


GROUPED = {"train_sampling_strategy": "group_by_length"}
TRL = {"max_length": 2048}  # by default TRL cuts rows at 1,024 tokens
OURS = Contestant("ours", "ours", "ours", batches(16), {"batching": "prefix_tree"})
PADDED = replace(OURS, name="ours, padded by length", group="padded", arguments=batches(16) | GROUPED)
PADDED = replace(PADDED, job={"batching": "padded"})
ORIGINAL = Contestant("original recipe", "original", "hf", batches(4) | {"gradient_checkpointing": True})
PEERS = [
    *(Contestant(f"HF Trainer, by length, {n}x{16 // n}", "HF", "hf", batches(n) | GROUPED) for n in (4, 8)),
    *(Contestant(f"TRL padded, by length, {n}x{16 // n}", "TRL", "trl", batches(n) | GROUPED | TRL) for n in (4, 8)),
    Contestant("TRL defaults, 8x2, checkpointing", "TRL", "trl", batches(8) | TRL | {"gradient_checkpointing": True}),
]

PACKING = "TRL packing"


def trl_packing(rows: list[dict], pack_tokens: int) -> Contestant:
    """TRL with packing; a step has a whole number of packs, with about 16 rows in all."""
    mean_tokens = statistics.mean(len(row["prompt_ids"]) + len(row["answer_ids"]) for row in rows)
    packs = max(1, round(ROWS_PER_STEP * mean_tokens / pack_tokens))
    arguments = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": packs}
    arguments |= {"packing": True, "max_length": pack_tokens}
    return Contestant(f"{PACKING} {pack_tokens}, 1x{packs}", "TRL", "trl", arguments)


class ContestantProcess:
    """The process of one contestant."""

    def __init__(self, contestant: Contestant, rows: Path, base: Path, dtype: str, passes: int, python: dict) -> None:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self.process = subprocess.Popen(
            [python.get(contestant.library, sys.executable), str(WORKER)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment, cwd=ROOT,
        )  # fmt: skip
        job = {"library": contestant.library, "arguments": contestant.arguments, **contestant.job}
        job |= {"rows": str(rows), "base": str(base), "dtype": dtype, "passes": passes}
        self._send(json.dumps(job | {"output_dir": tempfile.gettempdir()}))

    def one_pass(self) -> dict:
        """Let it train one pass over the rows, and return its report: seconds, CPU seconds and counts."""
        self._send("go")
        return self._receive()

    def finish(self) -> dict:
        """Wait for the end; return the loss of the first step and the peak memory in bytes."""
        report = self._receive()
        self.process.wait()
        return report

    def _send(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _receive(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise SystemExit(f"a contestant failed:\n{self.errors.read()[-3000:]}")
        return json.loads(line)


def main() -> None:
    """Measure what the flags ask for and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--tokenizer", type=Path, default=Path("qwen/Qwen2.5-1.5B-Instruct"))
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="train_ner.jsonl and train_cls.jsonl")
    parser.add_argument("--trl_python", default=str(ROOT / ".venv-trl" / "bin" / "python"))
    parser.add_argument(
        "--rows", choices=("ner", "court", "articles", "unshared"), nargs="*", default=["ner", "court", "articles"]
    )
    parser.add_argument("--measure", choices=("speed", "memory"), nargs="*", default=["speed", "memory"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--seconds_per_pass", type=float, default=1.0, help="scales the number of rows")
    parser.add_argument("--only", help="only the contestants with this in their name, without the grid")
    parser.add_argument("--wide", action="store_true", help="speed of 1.5B's own layers, three of them")
    parser.add_argument("--max_tokens", type=int, help="of a micro-batch of ours, instead of the default")
    arguments = parser.parse_args()
    if lacks := what_is_missing(arguments):
        parser.exit(2, f"{lacks}\n")
    with tempfile.TemporaryDirectory() as folder:
        for kind in arguments.rows:
            rows = read_rows(kind, arguments)
            describe(kind, rows)
            for measure in arguments.measure:
                {"speed": measure_speed, "memory": measure_memory}[measure](kind, rows, Path(folder), arguments)


def what_is_missing(arguments: argparse.Namespace) -> str | None:
    """What the benchmark needs and does not find, in one line; None if it has everything."""
    tasks = {"cls" if kind in ("court", "articles") else "ner" for kind in arguments.rows}
    data = [arguments.data_dir / f"train_{task}.jsonl" for task in sorted(tasks)]
    for path in [arguments.tokenizer, *data]:
        if not path.exists():
            return f"{path}: missing; see --help for --tokenizer and --data_dir, and docs/results.md for the data"
    if needs_trl(arguments) and not Path(arguments.trl_python).is_file():
        return (
            f"{arguments.trl_python}: no TRL; python -m venv .venv-trl && .venv-trl/bin/pip install -r "
            "benchmarks/requirements-trl.txt, or leave it out with --measure speed --only original"
        )
    return None


def needs_trl(arguments: argparse.Namespace) -> bool:
    """Whether one of the contestants is TRL; packing is one of its settings."""
    if "memory" in arguments.measure or not arguments.only:
        return True
    return any(arguments.only in name for name in [*(peer.name for peer in PEERS if peer.library == "trl"), PACKING])


# ---- rows and models ----


def read_rows(kind: str, arguments: argparse.Namespace) -> list[dict]:
    """Encoded rows of one kind, as dicts of ``prompt_ids`` and ``answer_ids``.

    Args:
        kind: ``ner``; ``unshared`` (NER rows without a common beginning); ``court`` (classification rows); or
            ``articles`` (court texts joined_records to about 1,000 tokens).
    """
    sys.path.insert(0, str(ROOT))
    from sft.data.records import read_task_records
    from sft.model.encoding import encode_rows
    from sft.model.loading import load_tokenizer
    from sft.tasks.classification import Classification
    from sft.tasks.ner import Ner
    from sft.training.prepare import read_task

    name, task_type = ("ner", Ner) if kind in ("ner", "unshared") else ("cls", Classification)
    path = arguments.data_dir / f"train_{name}.jsonl"
    task = read_task(task_type, path)
    records = read_task_records(path, task)
    random.Random(0).shuffle(records)
    tokenizer = load_tokenizer(arguments.tokenizer)
    count = {"ner": 256, "unshared": 256, "court": 128, "articles": 32}[kind]
    count = round(count * max(1.0, arguments.seconds_per_pass))
    rows = encode_rows(records[: 8 * count], task, tokenizer, 1024)[0]
    if kind == "articles":
        rows = articles(records, task, tokenizer, count)
    if kind == "unshared":  # a different first token for each row, so that nothing is shared
        for number, row in enumerate(rows):
            row.prompt_ids = [number + 10, *row.prompt_ids[1:]]
    return [{"prompt_ids": row.prompt_ids, "answer_ids": row.answer_ids} for row in rows[:count]]


def articles(records: list[tuple[int, dict]], task, tokenizer, count: int) -> list:
    """Rows that each join the texts of several records, cut to about 1,000 tokens."""
    from sft.model.encoding import encode_rows

    joined_records, remaining = [], iter(records)
    while len(joined_records) < count:
        line, record = next(remaining)
        text = record["text"]
        while len(text) < 2 * ARTICLE_TOKENS:
            text += next(remaining)[1]["text"]
        joined_records.append((line, record | {"text": text}))
    generator = random.Random(1)
    return [
        encode_rows([pair], task, tokenizer, round(ARTICLE_TOKENS * generator.uniform(0.8, 1.2)))[0][0]
        for pair in joined_records
    ]


def describe(kind: str, rows: list[dict]) -> None:
    """Print one line about the rows: mean lengths in tokens and the length of their common beginning."""
    prompts, answers = ([len(row[name]) for row in rows] for name in ("prompt_ids", "answer_ids"))
    shared = os.path.commonprefix([row["prompt_ids"] for row in rows])
    print(
        f"\n## {kind}: {len(rows)} rows, {statistics.mean(prompts):.0f} + {statistics.mean(answers):.0f} tokens, "
        f"of which {len(shared)} are shared",
        flush=True,
    )


def save_base(folder: Path, shape: dict, dtype: str) -> Path:
    """Save a Qwen2 of the given shape with random weights, and a tokenizer whose tokens are the ids as numbers."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(**shape, tie_word_embeddings=True, pad_token_id=0, bos_token_id=None, eos_token_id=1)
    Qwen2ForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    return save_tokenizer(folder, shape["vocab_size"])


def save_tokenizer(folder: Path, size: int) -> Path:
    """Save a tokenizer whose ``size`` tokens are the ids as numbers, and return the folder."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {str(number): number for number in range(size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="0", eos_token="1", chat_template=""
    ).save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict], vocabulary: int) -> Path:
    """Write rows with their token ids mapped into a smaller vocabulary; 0 and 1 are kept for padding and the end."""
    folded = [{name: [2 + token % (vocabulary - 2) for token in ids] for name, ids in row.items()} for row in rows]
    path.write_text("\n".join(map(json.dumps, folded)), encoding="utf-8")
    return path


# ---- speed ----


def measure_speed(kind: str, rows: list[dict], folder: Path, arguments: argparse.Namespace) -> None:
    """Check that losses are equal, run the grid, then run the fastest of each group in rounds."""
    python = {"trl": arguments.trl_python}
    rows = rows[: max(32, round(arguments.seconds_per_pass * len(rows)) // 16 * 16)]
    base = save_base(folder / "speed", WIDE if arguments.wide else SMALL, arguments.dtype)
    longest = max(len(row["prompt_ids"]) + len(row["answer_ids"]) for row in rows)
    peers = PEERS + [trl_packing(rows, tokens) for tokens in (1024, 2048) if tokens >= longest]
    compared = [OURS, PADDED, ORIGINAL, peers[0], *([peers[2], peers[-1]] if needs_trl(arguments) else [])]
    assert_equal_losses(compared, rows[:16], folder, python)
    all_rows, half = write_rows(folder / "rows", rows, 3640), write_rows(folder / "part", rows[: len(rows) // 2], 3640)
    best: dict[str, tuple[float, Contestant]] = {}
    if kind != "unshared" and not arguments.only:
        for peer in peers:
            running = ContestantProcess(peer, half, base, arguments.dtype, 1, python)
            report = running.one_pass()
            running.finish()
            speed = len(rows) // 2 / report["seconds"]
            print(f"grid  {peer.name:34s} {speed:7.2f} rows/s", flush=True)
            best[peer.group] = max(best.get(peer.group, (0.0, peer)), (speed, peer), key=lambda pair: pair[0])
    contestants = [OURS, PADDED] if kind == "unshared" else [OURS, *(peer for _, peer in best.values()), ORIGINAL]
    if arguments.only:
        contestants = [OURS, *(peer for peer in [*peers, ORIGINAL] if arguments.only in peer.name)]
    if arguments.max_tokens:
        contestants[0] = replace(OURS, job=OURS.job | {"max_tokens": arguments.max_tokens})
    take_turns(contestants, all_rows, rows, base, arguments, python)


def take_turns(contestants, all_rows: Path, rows: list[dict], base: Path, arguments, python: dict) -> None:
    """Warm up with one pass, run the rounds, and print medians, ratios and the ratio that the arithmetic predicts."""
    running = {
        peer.name: ContestantProcess(peer, all_rows, base, arguments.dtype, arguments.rounds + 1, python)
        for peer in contestants
    }
    reports = {name: [process.one_pass()] for name, process in running.items()}
    for _ in range(arguments.rounds):
        for name, process in running.items():
            reports[name].append(process.one_pass())
    supervised = sum(len(row["answer_ids"]) for row in rows)
    for process in running.values():
        process.finish()
    ours = reports["ours"][1:]
    print(f"{'':36s} rows/s  tokens run  ours is faster by (CPU time)   arithmetic bound")
    for peer in contestants:
        theirs = reports[peer.name][1:]
        ratio = statistics.median(their["seconds"] / our["seconds"] for our, their in zip(ours, theirs, strict=True))
        cpu = statistics.median(
            their["cpu_seconds"] / our["cpu_seconds"] for our, their in zip(ours, theirs, strict=True)
        )
        shape = WIDE if arguments.wide else SMALL
        bound = flops(shape, peer, theirs[0], supervised) / flops(shape, OURS, ours[0], supervised)
        speed = len(rows) / statistics.median(their["seconds"] for their in theirs)
        print(
            f"{peer.name:36s} {speed:6.2f} {theirs[0]['tokens']:10d}   {ratio:5.2f} ({cpu:5.2f})  {bound:5.2f}",
            flush=True,
        )


def flops(shape: dict, peer: Contestant, report: dict, supervised: int) -> float:
    """Floating-point operations of the linear layers in one pass over the rows.

    Counts the forward pass, the gradient of the inputs, and for the body what gradient checkpointing recomputes.
    Attention, adapters and optimizer are not counted. A head that runs in chunks is counted at supervised positions
    only, forward and backward.
    """
    hidden, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    body = layers * (2 * hidden * hidden + 2 * hidden * hidden * kv_heads // heads + 3 * hidden * inner)
    times = 3 if peer.arguments.get("gradient_checkpointing") else 2
    positions = report["head_positions"] if peer.library == "hf" else supervised
    return 2 * body * times * report["tokens"] + 2 * 2 * hidden * shape["vocab_size"] * positions


def assert_equal_losses(contestants, rows: list[dict], folder: Path, python: dict) -> None:
    """Check that all contestants have the same loss at the first step on the same 16 rows in float32.

    Raises:
        AssertionError: the losses differ by more than 1e-4 of ours.
    """
    base = save_base(folder / "float32", SMALL, "float32")
    path = write_rows(folder / "sixteen", rows, 3640)
    losses = {}
    for peer in contestants:
        whole_step = peer.arguments | {"gradient_accumulation_steps": 16}  # so that packs, too, make one step
        running = ContestantProcess(replace(peer, arguments=whole_step), path, base, "float32", 1, python)
        running.one_pass()
        losses[peer.name] = running.finish()["first_loss"]
    spread = max(losses.values()) - min(losses.values())
    assert spread <= 1e-4 * losses["ours"], losses
    print(f"first loss, float32: {losses['ours']:.5f}, all equal to {spread:.1e}", flush=True)


# ---- memory ----


def measure_memory(kind: str, rows: list[dict], folder: Path, arguments: argparse.Namespace) -> None:
    """Print each contestant's peak resident memory over one step, without the loaded model. One runs at a time."""
    base = save_base(folder / "whole", WHOLE_VOCABULARY, arguments.dtype)
    path = write_rows(folder / "memory", rows[:ROWS_PER_STEP], 151936)
    ours = None
    for peer in [OURS, PEERS[0], PEERS[2], ORIGINAL, trl_packing(rows, 2048), *PEERS[4:]]:
        running = ContestantProcess(peer, path, base, arguments.dtype, 1, {"trl": arguments.trl_python})
        speed = ROWS_PER_STEP / running.one_pass()["seconds"]
        peak = running.finish()["peak_bytes"]
        ours = ours or peak
        print(
            f"memory {peer.name:34s} {peak / 1e9:6.2f} GB, ours is {ours / peak:.2f} of it; {speed:.2f} rows/s",
            flush=True,
        )


if __name__ == "__main__":
    main()
