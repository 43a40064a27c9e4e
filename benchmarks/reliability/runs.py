"""Training runs of less than a second, each in a forked process, and the comparison with an undisturbed one."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import train_qwen2_classification
from sft.tasks.classification import Classification
from sft.training import checkpoints, manifests
from tests.stopped_runs import TRACEBACK, Done, result, run_here

HANG_SECONDS = 60
KILLED = -signal.SIGKILL
LABELS = ("体育", "军事", "经济")
RESUME = ("--resume_from_checkpoint", "true")
LOSSES = "losses.jsonl"
Hook = Callable[[], object]


class Failed(Exception):
    """A promise was broken; the message says which."""


class World(NamedTuple):
    """What all families share: a folder with a tiny base model, records, and runs that nothing disturbed."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @classmethod
    def create(cls, folder: Path) -> World:
        """Write the model and the records. Done in a process of its own: this one must not start threads of torch."""
        if os.fork() == 0:
            code = 1
            try:
                _write_world(folder)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        _, status = os.wait()
        if status:
            raise SystemExit("没有建成试验用的模型和数据")
        return cls(folder)


def _write_world(folder: Path) -> None:
    from tests.conftest import build_tokenizer
    from tests.models import save_model, tiny_model
    from tests.test_training import articles, write_records

    save_model(tiny_model("qwen2"), build_tokenizer(), folder / "base")
    for name, rows, seed in (("train", 56, 0), ("validation", 6, 1), ("test", 6, 2)):
        write_records(folder / f"{name}.jsonl", Classification(LABELS), articles(rows, seed))


def flags(world: World, output_dir: Path, *more: str) -> list[str]:
    """A run in float32 with LoRA dropout, so that random states matter. By default it has six steps in two epochs."""
    return [
        *("--model_name_or_path", str(world.base), "--train_file", str(world.folder / "train.jsonl")),
        *("--validation_file", str(world.folder / "validation.jsonl"), "--test_file", "none"),
        *("--output_dir", str(output_dir), "--dtype", "float32", "--swanlab_mode", "disabled"),
        *("--disable_tqdm", "true", "--logging_steps", "1", "--learning_rate", "1e-2", "--lora_dropout", "0.05"),
        *("--per_device_train_batch_size", "8", "--max_train_samples", "24", "--num_train_epochs", "2"),
        *("--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps", "--save_steps", "2", *more),
    ]


def run(
    arguments: Sequence[str],
    folder: Path,
    prepare: Hook = lambda: None,
    *,
    main: Callable[[list[str]], int] = train_qwen2_classification.main,
    kill_after_cpu_seconds: float | None = None,
) -> Done:
    """Run a script in a forked process.

    Args:
        folder: for its log.
        prepare: is called in the process before the script.
        kill_after_cpu_seconds: SIGKILL comes when the process has used so much.

    Raises:
        Failed: it takes longer than a minute.
    """
    log = folder / "log.txt"
    log.unlink(missing_ok=True)
    process = os.fork()
    if process == 0:
        os.setsid()
        run_here(main, list(arguments), log, prepare)
    deadline = time.monotonic() + HANG_SECONDS
    while True:
        finished, status = os.waitpid(process, os.WNOHANG)
        if finished:
            return Done(os.waitstatus_to_exitcode(status), log.read_text(encoding="utf-8", errors="replace"))
        if kill_after_cpu_seconds is not None and _cpu_seconds_of(process) >= kill_after_cpu_seconds:
            os.killpg(process, signal.SIGKILL)
        if time.monotonic() > deadline:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise Failed(f"超过 {HANG_SECONDS} 秒没有结束：{' '.join(arguments)}")
        time.sleep(0.002)


def _cpu_seconds_of(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def require(condition: object, text: str, done: Done | None = None) -> None:
    """Raise `Failed` unless ``condition`` holds."""
    if not condition:
        raise Failed(f"{text}｜{done.code}｜{done.errors[-1500:]}" if done else text)


def require_told(done: Done, codes: set[int]) -> None:
    """Require one of the exit codes, and no traceback."""
    require(done.code != TRACEBACK and "Traceback" not in done.errors, "traceback", done)
    require(done.code in codes, f"退出码不在 {sorted(codes)} 里", done)


def case(folder: Path, label: str, check: Callable[..., object], *arguments: object) -> int | str:
    """Run ``check(own_folder, *arguments)``; returns 1, or the failure."""
    own = folder / "case"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir()
    try:
        check(own, *arguments)
    except Failed as failure:
        return f"{label}：{failure}"
    except Exception:
        return f"{label}：{traceback.format_exc()[-1500:]}"
    return 1


# ---- undisturbed runs ----


def undisturbed(world: World, *more: str) -> Path:
    """The output folder of a run that nothing stopped; each set of flags is trained once. Its losses are recorded."""
    return _once(world, "undisturbed", more, lambda folder: _train_whole(world, folder, more))


def stopped(world: World, *more: str) -> Path:
    """The output folder of a run that was killed in its last step, with all its checkpoints. Do not write to it."""
    from tests.stopped_runs import Stop, stop_at

    def train(folder: Path) -> None:
        done = run(flags(world, folder / "run", *more), folder, lambda: stop_at(Stop("step", 6)))
        require(done.code == KILLED, "没有被杀死", done)

    return _once(world, "stopped", more, train)


def _train_whole(world: World, folder: Path, more: Sequence[str]) -> None:
    done = run(flags(world, folder / "run", *more), folder, record_losses(folder / LOSSES))
    require(done.code == 0, "没有打扰的训练失败了", done)


def _once(world: World, kind: str, key: Sequence[str], make: Callable[[Path], None]) -> Path:
    folder = world.folder / kind / hashlib.sha256("\0".join(key).encode()).hexdigest()[:16]
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            (folder / "made").touch()
    return folder / "run"


def record_losses(path: Path) -> Hook:
    """A hook that writes the step, the lines of the rows, and the raw loss of each micro-batch to ``path``."""

    def prepare() -> None:
        from sft.training.trainer import SftTrainer

        compute_loss = SftTrainer.compute_loss

        def recorded(self, model, inputs, *arguments, **keywords):
            loss = compute_loss(self, model, inputs, *arguments, **keywords)
            lines = [int(line) for line in inputs["lines"]]
            row = [self.state.global_step + 1, lines, loss.item().hex()]
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            return loss

        SftTrainer.compute_loss = recorded

    return prepare


def losses_after(path: Path, step: int) -> list[list]:
    """What `record_losses` wrote for the steps after ``step``."""
    recorded = map(json.loads, path.read_text(encoding="utf-8").splitlines()) if path.exists() else ()
    return [row for row in recorded if row[0] > step]


def require_same(output_dir: Path, reference: Path, *, checkpoint: int | None = None) -> None:
    """Require that a run ended as the undisturbed one did.

    Args:
        checkpoint: a step whose checkpoints must be the same, too.
    """
    ours, theirs = result(output_dir), result(reference)
    changed = [name for name in theirs if ours[name] != theirs[name]]
    require(not changed, f"与没有打扰的训练不同：{changed}" + _first_difference(ours, theirs, changed))
    if checkpoint is not None:
        ours, theirs = (_saved(folder / f"checkpoint-{checkpoint}") for folder in (output_dir, reference))
        require(ours == theirs, f"检查点不同：{[name for name in theirs if ours.get(name) != theirs[name]]}")


def _first_difference(ours: dict, theirs: dict, changed: Sequence[str]) -> str:
    if "files" in changed or not changed:
        return ""
    return f"；{str(ours[changed[0]])[:600]} ≠ {str(theirs[changed[0]])[:600]}"


def _saved(checkpoint: Path) -> dict[str, object]:
    """Weights, optimizer, scheduler and random states to the byte, and the state without times."""
    names = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
    progress = json.loads((checkpoint / manifests.PROGRESS).read_text(encoding="utf-8"))
    progress.pop("seconds")
    progress.pop("before")  # an evaluation before the first step: it has its own times
    return {name: (checkpoint / name).read_bytes() for name in names} | {"progress": progress}


def require_whole(output_dir: Path) -> None:
    """Require that every folder that looks like a checkpoint is a whole one."""
    for _, folder in checkpoints.checkpoints_in(output_dir):
        reason = manifests.problem(folder, manifests.RESUMABLE)
        require(reason is None, f"{folder.name} {reason}")


def require_resumable(world: World, folder: Path, more: Sequence[str], reference: Path | None = None) -> None:
    """Require that the run in ``folder / "run"`` is resumed without a manual step, and ends as the undisturbed one."""
    done = run([*flags(world, folder / "run", *more), *RESUME], folder)
    require(done.code == 0, "续跑失败", done)
    require_same(folder / "run", reference or undisturbed(world, *more))
