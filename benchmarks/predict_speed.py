"""Measure the speed of prediction against the usual methods: same model, same rows, in turns in one process.

    python -m benchmarks.predict_speed --adapter output/real-ner --records data/real/test_ner.jsonl
    python -m benchmarks.predict_speed --adapter output/real-ner --records data/real/test_ner.jsonl --widen --rows 48

``--widen`` gives the fine-tuned model the shape and the cost of a model with 222 million parameters (see
widened_model.py). Every method decodes greedily from the same prompts:

- ``ours`` is what `predict.py` does;
- ``loop`` is the original project's method: ``generate`` with one row at a time;
- ``batched`` is ``generate`` with left padding and rows sorted by length.

``ours`` and ``batched`` run with the fastest batch size of ``--batch_sizes``. The column ``work`` is the arithmetic of
a method divided by that of ``ours``, counted by hooks during the run. It would be the ratio of times if all methods
computed equally fast.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel

from benchmarks.widened_model import widen
from sft.data.records import read_records
from sft.decoding.decode import predict
from sft.engine.ragged import RaggedPass
from sft.errors import InputError
from sft.model.encoding import encode_prompts, terminator_id
from sft.prediction.choices import LimitChoice, ModelChoice
from sft.prediction.predictor import Predictor

ORIGINAL_MAX_NEW_TOKENS = 512


@dataclass
class Work:
    """What one run of a method did.

    Attributes:
        seconds: wall-clock time.
        cpu_seconds: CPU time of both cores; on a shared machine it varies less than ``seconds``.
        passes: forward passes.
        row_passes: forward passes counted once for each row in them.
        tokens: tokens through the transformer body, padding included.
        head_rows: hidden states through the whole output layer. With constrained answers, ours computes only some
            columns of it, which are not counted.
        answers: the answer of each row as text.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    passes: int = 0
    row_passes: int = 0
    tokens: int = 0
    head_rows: int = 0
    answers: list[str] = field(default_factory=list)

    def flop(self, model: PreTrainedModel) -> float:
        """Floating-point operations of the weight matrices; attention is not counted."""
        head = model.get_output_embeddings().weight.numel()
        body = sum(p.numel() for p in model.base_model.parameters() if p.ndim == 2) - head  # the embedding is the head
        return 2.0 * (self.tokens * body + self.head_rows * head)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every method and print a table.

    Returns:
        0 done, 2 bad input.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--adapter", type=Path, required=True, help="--output_dir of a training script")
    parser.add_argument("--records", type=Path, required=True, help="test records of the transfer scripts")
    parser.add_argument("--rows", type=int, default=128, help="how many of them, evenly spaced (128)")
    parser.add_argument("--rounds", type=int, default=3, help="of all methods in turn (3)")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8, 16, 32, 64], help="the grid")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--max_length", type=int, help="of a row in tokens; as in training by default")
    parser.add_argument("--widen", action="store_true", help="in the shape of a model of 222 million parameters")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=None,
        help="besides ours: batched, loop, lookup (prompt lookup; these by default), continuous",
    )
    arguments = parser.parse_args(argv)
    try:
        choice = ModelChoice(adapter=arguments.adapter, dtype=arguments.dtype)
        loaded = Predictor.load(choice, LimitChoice(max_length=arguments.max_length))
        records = [record for _, record in read_records(arguments.records)]
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    records = records[:: max(1, len(records) // arguments.rows)][: arguments.rows]
    loaded = replace(loaded, model=merge_adapter(loaded, arguments.widen))
    compare(loaded, records, arguments)
    return 0


def merge_adapter(loaded: Predictor, widened: bool) -> PreTrainedModel:
    """The model with the adapter merged into its weights, so that no method spends time on it."""
    model = loaded.model.merge_and_unload().eval()
    return widen(model) if widened else model


def compare(loaded: Predictor, records: list[dict], arguments: argparse.Namespace) -> None:
    """Run every method in turn for several rounds, and print medians."""
    # Cut long texts before the comparison, so that all methods read the same prompts.
    records = [cut_to_length(record, loaded) for record in records]
    lengths = [len(ids) for ids in encode_prompts(records, loaded.task, loaded.tokenizer)]
    print(f"rows {len(records)}, prompt tokens {min(lengths)}-{max(lengths)}, mean {statistics.mean(lengths):.0f}")
    methods = method_table(loaded, records)
    wanted = arguments.methods or [name for name in methods if name != "continuous"]  # it takes minutes on a CPU
    methods = {name: run for name, run in methods.items() if name == "ours" or name in wanted}
    measure(loaded, methods["ours"], arguments.batch_sizes[0])  # warm up: fill the caches that later runs reuse
    sizes = {name: best_size(loaded, run, arguments.batch_sizes) for name, run in methods.items()}
    runs: dict[str, list[Work]] = {name: [] for name in methods}
    for _ in range(arguments.rounds):
        for name, run in methods.items():
            runs[name].append(measure(loaded, run, sizes[name]))
            print(f"  {name} {runs[name][-1].seconds:.2f} s", file=sys.stderr)
    report(loaded, records, runs, sizes)


def cut_to_length(record: dict, loaded: Predictor) -> dict:
    """The record cut to ``max_length``, as prediction would cut it."""
    room = 1 + max(map(len, loaded.tokenizer(list(loaded.task.options(record) or [""])).input_ids))
    length = lambda piece: len(encode_prompts([piece], loaded.task, loaded.tokenizer)[0]) + room  # noqa: E731
    return loaded.task.pieces(record, length, loaded.limits.max_length)[0]


Run = Callable[[int], list[str]]


def method_table(loaded: Predictor, records: list[dict]) -> dict[str, Run]:
    """Each method by name: a function that takes the batch size and returns the answers as text, in order."""
    free_text = loaded.task.options(records[0]) is None
    extra = {"prompt_lookup_num_tokens": 10}
    prompts = lambda: encode_prompts(records, loaded.task, loaded.tokenizer)  # noqa: E731 (encoding counts in each method's time)
    methods: dict[str, Run] = {
        "ours": lambda size: ours(loaded, records, size),
        "batched": lambda size: batched(loaded, prompts(), size),
        "loop": lambda _: batched(loaded, prompts(), 1),
        "continuous": lambda _: continuous(loaded, prompts()),
    }
    if free_text:
        methods["lookup"] = lambda _: batched(loaded, prompts(), 1, **extra)
    return methods


def ours(loaded: Predictor, records: list[dict], size: int) -> list[str]:
    """Answer with `sft.decoding.decode.predict`, as `predict.py` does."""
    limits = replace(loaded.limits, batch_size=size)
    results = predict(loaded.model, loaded.tokenizer, loaded.task, records, limits)
    return [result["answer"] if "answer" in result else result["label"] for result in results]


def batched(loaded: Predictor, prompts: list[list[int]], size: int, **keywords) -> list[str]:
    """Answer with ``generate``: left padding, rows of similar length in one batch; ``keywords`` are for it."""
    keywords = {"max_new_tokens": ORIGINAL_MAX_NEW_TOKENS} | keywords
    device = loaded.model.device
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        width = max(len(prompts[row]) for row in rows)
        input_ids = torch.full((len(rows), width), loaded.tokenizer.pad_token_id)
        for index, row in enumerate(rows):
            input_ids[index, width - len(prompts[row]) :] = torch.tensor(prompts[row])
        output_ids = loaded.model.generate(
            input_ids=input_ids.to(device),
            attention_mask=torch.tensor(
                [[0] * (width - len(prompts[row])) + [1] * len(prompts[row]) for row in rows], device=device
            ),
            do_sample=False,
            eos_token_id=terminator_id(loaded.tokenizer),
            pad_token_id=loaded.tokenizer.pad_token_id,
            **keywords,
        )
        for row, ids in zip(rows, output_ids[:, width:].tolist(), strict=True):
            answers[row] = text_of(ids, loaded)
    return answers


def continuous(loaded: Predictor, prompts: list[list[int]]) -> list[str]:
    """Answer with transformers' continuous batching and its paged cache."""
    settings = GenerationConfig(
        max_new_tokens=ORIGINAL_MAX_NEW_TOKENS,
        do_sample=False,
        eos_token_id=terminator_id(loaded.tokenizer),
        pad_token_id=loaded.tokenizer.pad_token_id,
    )
    before = loaded.model.config._attn_implementation
    try:
        outputs = loaded.model.generate_batch(inputs=prompts, generation_config=settings, progress_bar=False)
    finally:
        loaded.model.set_attn_implementation(before)
    by_prompt = {tuple(output.prompt_ids): output.generated_tokens for output in outputs.values()}
    return [text_of(by_prompt[tuple(ids)], loaded) for ids in prompts]


def text_of(token_ids: list[int], loaded: Predictor) -> str:
    """The answer as text, without its terminator and what follows."""
    end = terminator_id(loaded.tokenizer)
    return loaded.tokenizer.decode(token_ids[: token_ids.index(end)] if end in token_ids else token_ids)


def best_size(loaded: Predictor, run: Run, sizes: Sequence[int]) -> int:
    """The fastest batch size of the grid; 1 for a method that ignores the batch size."""
    if len(sizes) == 1:
        return sizes[0]
    first = measure(loaded, run, sizes[0])
    seconds = {sizes[0]: first.seconds}
    for size in sizes[1:]:
        again = measure(loaded, run, size)
        if again.passes == first.passes:  # this method ignores the batch size
            return 1
        seconds[size] = again.seconds
    return min(seconds, key=seconds.__getitem__)


def measure(loaded: Predictor, run: Run, size: int) -> Work:
    """Run a method once; return its time, its counts and its answers."""
    with counting(loaded.model) as work:
        started, cpu_started = time.perf_counter(), time.process_time()
        work.answers = run(size)
        work.seconds, work.cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return work


@contextmanager
def counting(model: PreTrainedModel) -> Iterator[Work]:
    """Count what goes through the model's body and head inside the ``with`` block."""
    work = Work()

    def body(module, positional, keywords, output) -> None:
        input_ids = keywords["input_ids"]
        work.passes += 1
        work.tokens += input_ids.numel()
        layout = keywords.get("layout")
        work.row_passes += layout.rows if isinstance(layout, RaggedPass) else len(input_ids)

    def head(module, positional, output) -> None:
        work.head_rows += output.numel() // output.shape[-1]

    hooks = [
        model.base_model.register_forward_hook(body, with_kwargs=True),
        model.get_output_embeddings().register_forward_hook(head),
    ]
    try:
        yield work
    finally:
        for hook in hooks:
            hook.remove()


def report(loaded: Predictor, records: list[dict], runs: dict[str, list[Work]], sizes: dict[str, int]) -> None:
    """Print a table: speed, ratio to ours in the same round, counts, and the share of equal answers."""
    ours_runs = runs["ours"]
    answer_tokens = sum(len(ids) + 1 for ids in loaded.tokenizer(ours_runs[0].answers).input_ids)
    print(f"answer tokens {answer_tokens}, terminators included")
    columns = (
        "method",
        "batch",
        "rows/s",
        "times ours",
        "CPU times ours",
        "work",
        "passes",
        "passes of a row per token",
    )
    print(f"| {' | '.join((*columns, 'valid', 'same as ours'))} |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, works in runs.items():
        ratio = statistics.median(their.seconds / our.seconds for their, our in zip(works, ours_runs, strict=True))
        cpu = statistics.median(
            their.cpu_seconds / our.cpu_seconds for their, our in zip(works, ours_runs, strict=True)
        )
        seconds = statistics.median(work.seconds for work in works)
        tokens = sum(len(ids) + 1 for ids in loaded.tokenizer(works[0].answers).input_ids)
        flop = works[0].flop(loaded.model) / ours_runs[0].flop(loaded.model)
        valid, same = agreement(loaded, records, works[0].answers, ours_runs[0].answers)
        of_rows = works[0].row_passes / tokens
        figures = (
            f"{len(records) / seconds:.2f}",
            f"{ratio:.2f}",
            f"{cpu:.2f}",
            f"{flop:.2f}",
            works[0].passes,
            f"{of_rows:.2f}",
        )
        print(f"| {' | '.join(map(str, (name, sizes[name], *figures, f'{valid:.1%}', f'{same:.1%}')))} |")


def agreement(
    loaded: Predictor, records: list[dict], answers: list[str], our_answers: list[str]
) -> tuple[float, float]:
    """``(share of valid answers, share of the valid answers that equal ours)``."""
    valid = same = 0
    for record, answer, our_answer in zip(records, answers, our_answers, strict=True):
        result = loaded.task.parse(answer, record)
        if not result["unparsable"] and not any(result.get("problems", {}).values()):
            valid += 1
            same += answer.strip() == our_answer
    return valid / len(records), same / max(1, valid)


if __name__ == "__main__":
    sys.exit(main())
