"""Measure everything on a GPU with one command, in less than 8 minutes and without network, and write docs/gpu.md.

    python -m benchmarks.gpu                # from the project's folder
    python -m benchmarks.gpu --rehearse     # the same code with a tiny model on the CPU; writes nothing

Parts: the card and its matrix rate; checks; training of a model with the shape of Qwen2.5-1.5B and random weights
against the HF Trainer, TRL (if installed) and the original recipe, in turns; prediction against batched ``generate``;
the memory of a training step under caps. Each part runs in processes of its own and has its seconds: what fails or
takes too long is said in one line, and the other parts go on.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from benchmarks import gpu_report, gpu_rows
from benchmarks.train_speed import GROUPED, ORIGINAL, OURS, TRL, Contestant, batches

ROOT = Path(__file__).resolve().parents[1]
TOTAL_SECONDS = 460
# Of each part; what one does not use, the later ones may.
PART_SECONDS = {"machine": 60, "checks": 75, "training": 210, "prediction": 100, "memory": 120}
NEEDED = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "orjson", "psutil", "rich")
CAPS_GB = (4, 6, 8, 12, 16, 24)
ROUNDS = 2
BIG_CARD_GB = 60  # from here on all contestants' models stay on the card, and their passes alternate
ROWS_A_STEP = 128  # of the large-batch contestants


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        device: ``cuda`` or ``cpu``.
        shape: of the model.
        share: of the rows' lengths.
        rows: how many rows a pass has, by kind; few, because launch after launch takes most of the others' time.
        sizes: of the matrices whose product is timed.
        widened: the shape of the model that predicts.
        steps: of the training before that.
        predicted: rows to predict.
        caps: in GB.
        patience: how many times the seconds of each part it may take.
        method: how processes start: ``spawn``, or ``forkserver`` where no GPU can be touched before the fork.
    """

    device: str = "cuda"
    shape: dict = field(default_factory=lambda: gpu_rows.QWEN_1_5B)
    share: float = 1.0
    rows: dict = field(default_factory=lambda: {"ner": 128, "many": 256, "court": 64, "articles": 16})
    sizes: tuple[int, ...] = (4096, 8192)
    widened: dict = field(default_factory=lambda: gpu_rows.WIDENED_1_5B)
    steps: int = 120
    predicted: int = 96
    caps: tuple[int, ...] = CAPS_GB
    patience: int = 1
    method: str = "spawn"


REHEARSAL = Plan(
    device="cpu", shape=gpu_rows.TINY, share=0.1, sizes=(64,), widened=gpu_rows.WIDENED_TINY, steps=2, predicted=4,
    rows={"ner": 32, "many": 128, "court": 16, "articles": 16}, caps=(4,), method="forkserver", patience=20,
)  # fmt: skip


class Late(Exception):
    """A part used up its seconds."""


class Failed(Exception):
    """A part ended early; the message is one line."""


class Worker:
    """A process for one part. It has imported everything, but done nothing, until it is given its job."""

    def __init__(self, method: str, log: Path) -> None:
        context = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(["benchmarks.gpu_worker"])
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, str(log)), daemon=True)
        self._process.start()
        theirs.close()

    def send(self, message: object) -> None:
        """Give it its job, or its turn."""
        try:
            self._connection.send(message)
        except OSError as error:
            raise Failed("进程没有了") from error

    def receive(self, deadline: float) -> dict:
        """The next thing it found.

        Raises:
            Late: there was none before the deadline.
            Failed: it ended with an error.
        """
        try:
            if not self._connection.poll(max(0.0, deadline - time.monotonic())):
                raise Late
            found = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(5)
            raise Failed(f"进程没有了（退出码 {self._process.exitcode}）") from error
        if "failed" in found:
            raise Failed(found["failed"])
        return found

    def all_findings(self, deadline: float) -> Sequence[dict]:
        """Everything until it is done, as it comes; the same errors as `receive`."""
        while "done" not in (found := self.receive(deadline)):
            yield found

    def stop(self) -> None:
        """End it, whatever it does."""
        self._connection.close()  # one that waits for its turn ends by itself
        self._process.join(2)
        self._process.kill()
        self._process.join(10)


def _work(connection, log: str) -> None:
    """In the worker's process. What libraries print, when imported too, goes to the file ``log``."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    from benchmarks.gpu_worker import work

    work(connection)


class Benchmark:
    """One run over all parts.

    Attributes:
        plan: what to run.
        found: what was found, by part, for `gpu_report`.
        problems: what failed or was left out, one line each.
    """

    def __init__(self, plan: Plan, folder: Path, seconds: float = TOTAL_SECONDS) -> None:
        self.plan, self.folder = plan, folder
        self.found: dict[str, list[dict]] = {part: [] for part in PART_SECONDS}
        self.problems: list[str] = []
        self._end = time.monotonic() + seconds * plan.patience
        self._matrix_tflops = self._memory_gb = 0.0
        self._supervised: dict[str, int] = {}  # tokens of a pass over the rows of a kind
        self.dtype = "bfloat16"

    def run(self, parts: Sequence[str]) -> None:
        """Run the parts in order.

        Raises:
            Failed: there is no GPU.
        """
        for part in parts:
            deadline = min(self._end, time.monotonic() + PART_SECONDS[part] * self.plan.patience)
            if deadline - time.monotonic() < 5:
                self.problems.append(f"{part}：没有时间了，没有测")
                continue
            print(f"{part} …", file=sys.stderr, flush=True)
            try:
                getattr(self, part)(deadline)
            except Late:
                self.problems.append(f"{part}：到 {PART_SECONDS[part]} 秒还没有完，只有前面的")
            except Failed as error:
                if part == "machine":
                    raise
                self.problems.append(f"{part}：{error}")

    def _worker(self) -> Worker:
        return Worker(self.plan.method, self.folder / "log.txt")

    def _job(self, part: str, **more) -> dict:
        plan = self.plan
        job = {"part": part, "device": plan.device, "shape": plan.shape, "share": plan.share, "dtype": self.dtype}
        return job | more

    def _one(self, part: str, deadline: float, **job) -> None:
        """A part that is one process."""
        worker = self._worker()
        try:
            worker.send(self._job(part, **job))
            for found in worker.all_findings(deadline):
                self.found[part].append(found)
        finally:
            worker.stop()

    # ---- parts ----

    def machine(self, deadline: float) -> None:
        """Versions, card, matrix rate."""
        self._one("machine", deadline, sizes=self.plan.sizes)
        for found in self.found["machine"]:
            self._matrix_tflops = found.get("matrix_tflops", self._matrix_tflops)
            self._memory_gb = found.get("memory_gb", self._memory_gb)
            self.dtype = found.get("matrix_dtype", self.dtype)

    def checks(self, deadline: float) -> None:
        """Right before fast."""
        self._one("checks", deadline)
        self.problems += [
            f"检查 {found['check']}：{found['said']}" for found in self.found["checks"] if found["ok"] is False
        ]

    def prediction(self, deadline: float) -> None:
        """Entities and labels against batched ``generate``."""
        size = 64 if self.plan.device == "cuda" else 4
        job = {"count": self.plan.predicted, "batch_size": size, "rounds": ROUNDS, "steps": self.plan.steps}
        self._one("prediction", deadline, **job, widened=self.plan.widened)

    def memory(self, deadline: float) -> None:
        """One process for each cap; they start together, and run one after the other."""
        workers = [(cap, self._worker()) for cap in self.plan.caps]
        try:
            for cap, worker in workers:
                try:
                    worker.send(self._job("memory", cap_gb=cap, rows={"ner": 16, "court": 16, "articles": 4}))
                    for found in worker.all_findings(deadline):
                        self.found["memory"].append({"cap_gb": cap, **found})
                except Failed as error:
                    self.problems.append(f"显存 {cap} GB：{error}")
                worker.stop()
        finally:
            for _, worker in workers:
                worker.stop()

    def training(self, deadline: float) -> None:
        """Every library trains the same rows, in turns."""
        files: dict[str, Path] = {}
        for kind, count in self.plan.rows.items():
            rows = gpu_rows.random_rows(kind, count, self.plan.shape["vocab_size"], self.plan.share)
            self._supervised[kind] = sum(len(row["answer_ids"]) for row in rows)
            files[kind] = self.folder / f"{kind}.json"
            files[kind].write_text(gpu_report.as_json(rows), encoding="utf-8")
        together = self.plan.device == "cpu" or self._memory_gb >= BIG_CARD_GB
        peers = contestants(self.dtype, BIG_CARD_GB if self.plan.device == "cpu" else self._memory_gb)
        if self.plan.device == "cpu":  # ours and one other, with few and with many rows a step
            peers = peers[:2] + peers[-2:]
        if not together:
            self.problems.append(f"显存 {self._memory_gb:.0f} GB 放不下所有参赛者的模型：训练依次测，不交错")
        for group in [peers] if together else [[peer] for peer in peers]:
            self._contest(group, files, deadline)

    def _contest(self, peers: Sequence[Contestant], files: dict[str, Path], deadline: float) -> None:
        running: dict[str, Worker] = {}
        try:
            for peer in peers:
                running[peer.name] = self._worker()
            for peer in peers:
                job = {"library": peer.library, "arguments": peer.arguments, **peer.job, "passes": ROUNDS + 2}
                job["rows"] = [str(path) for kind, path in files.items() if takes_part(peer, kind)]
                running[peer.name].send(self._job("contestant", **job))
            self._each(peers, running, lambda peer, worker: worker.receive(deadline))
            for kind in files:
                self._turns(kind, [peer for peer in peers if takes_part(peer, kind)], running, deadline)
        finally:
            for worker in running.values():
                worker.stop()

    def _turns(self, kind: str, peers: Sequence[Contestant], running: dict[str, Worker], deadline: float) -> None:
        """A few steps to warm up, the rounds of whole passes, and one step whose kernels are counted."""
        reports: dict[str, list[dict]] = {peer.name: [] for peer in peers}
        try:
            for command in ["warm up", *["go"] * ROUNDS, "profile"]:

                def one_pass(peer: Contestant, worker: Worker, command: str = command) -> None:
                    worker.send(command)
                    reports[peer.name].append(worker.receive(deadline))

                self._each(peers, running, one_pass)
            self._each(peers, running, lambda peer, worker: reports[peer.name].append(worker.receive(deadline)))
        finally:
            for peer in peers:
                if len(reports[peer.name]) > 1:
                    self.found["training"].append(
                        {
                            "kind": kind,
                            "name": peer.name,
                            "library": peer.library,
                            "arguments": peer.arguments,
                            "matrix_tflops": self._matrix_tflops,
                            "supervised": self._supervised[kind],
                            "passes": reports[peer.name][1 : ROUNDS + 1],
                            "launches": reports[peer.name][ROUNDS + 1 : ROUNDS + 2],
                            "first_loss": reports[peer.name][ROUNDS + 2 :],
                        }
                    )

    def _each(self, peers: Sequence[Contestant], running: dict[str, Worker], act) -> None:
        """Let each contestant act that is still there; one that fails is out, and why is remembered."""
        for peer in peers:
            if peer.name in running:
                try:
                    act(peer, running[peer.name])
                except Failed as error:
                    self.problems.append(f"训练，{peer.name}：{error}")
                    running.pop(peer.name).stop()


def contestants(dtype: str, memory_gb: float) -> list[Contestant]:
    """Ours first, then the other libraries as they are usually set up. All train the same rows in each step."""
    large = memory_gb >= 40
    autocast = {"fp16": True} if dtype == "float16" else {"bf16": True}
    own = {"fp16": True} if dtype == "float16" else {}
    mine = replace(OURS, name="本项目", arguments=OURS.arguments | own)
    size = 8 if large else 4
    peers = [
        mine,
        Contestant(f"HF Trainer，按长度分组，{size}×{16 // size}", "HF", "hf", batches(size) | GROUPED | autocast),
        replace(ORIGINAL, name="原来的做法（4×4，梯度检查点）", arguments=ORIGINAL.arguments | own),
    ]
    if find_spec("liger_kernel"):
        from sft.training.trainer_arguments import LIGER_KERNELS

        kernels = {"use_liger_kernel": True, "liger_kernel_config": LIGER_KERNELS}
        peers.append(replace(mine, name="本项目，--use_liger_kernel", arguments=mine.arguments | kernels))
    if find_spec("trl"):
        options = batches(8) | TRL | autocast
        peers.append(
            Contestant("TRL 默认（8×2，梯度检查点）", "TRL", "trl", options | {"gradient_checkpointing": True})
        )
        if find_spec("flash_attn"):
            free = options | {"padding_free": True}
            job = {"attention": "flash_attention_2"}
            peers.append(Contestant("TRL padding-free，FlashAttention，8×2", "TRL", "trl", free, job))
    if large:
        sizes = {"per_device_train_batch_size": ROWS_A_STEP, "gradient_accumulation_steps": 1}
        peers.append(replace(mine, name=f"本项目，每步 {ROWS_A_STEP} 条", arguments=mine.arguments | sizes))
        sizes = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": ROWS_A_STEP // 16}
        peers.append(Contestant(f"HF Trainer，每步 {ROWS_A_STEP} 条（16×8）", "HF", "hf", sizes | GROUPED | autocast))
    return peers


def takes_part(peer: Contestant, kind: str) -> bool:
    """Whether the contestant trains on rows of this kind: those with large steps on the many rows, the others not."""
    rows = peer.arguments["per_device_train_batch_size"] * peer.arguments["gradient_accumulation_steps"]
    return (rows == ROWS_A_STEP) == (kind == "many")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark, print the report, and write it.

    Returns:
        0 all was measured, 1 something failed or was left out, 2 there is no GPU or a package is missing.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--rehearse", action="store_true", help="a tiny model on the CPU, writing nothing")
    parser.add_argument("--parts", nargs="+", choices=list(PART_SECONDS), default=list(PART_SECONDS))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "gpu.md")
    arguments = parser.parse_args(argv)
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        print(f"没有安装 {'、'.join(missing)}；请先 pip install -r requirements.txt", file=sys.stderr)
        return 2
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]  # one card
    if arguments.rehearse:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    parts = ["machine", *(part for part in PART_SECONDS if part in arguments.parts and part != "machine")]
    folder = Path(tempfile.mkdtemp(prefix="gpu-benchmark-"))
    benchmark = Benchmark(REHEARSAL if arguments.rehearse else Plan(), folder)
    try:
        benchmark.run(parts)
    except Failed as error:
        print(f"{error}；在 CPU 上排练请加 --rehearse", file=sys.stderr)
        return 2
    today, command = (
        datetime.now(UTC).date().isoformat(),
        " ".join(["python -m benchmarks.gpu", *(argv or sys.argv[1:])]),
    )
    text = gpu_report.report(
        benchmark.found, benchmark.problems, benchmark.plan.shape, (today, command, platform.system())
    )
    print(text)
    if benchmark.problems:
        print(f"有没测成的，详细的日志在 {folder / 'log.txt'}", file=sys.stderr)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    if not arguments.rehearse:
        arguments.output.write_text(text, encoding="utf-8")
    return 1 if benchmark.problems else 0


if __name__ == "__main__":
    sys.exit(main())
