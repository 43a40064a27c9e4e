"""The parts of `benchmarks.gpu`. Each runs in a process of its own, and reports what it finds as soon as it is known.

A part gets a connection, and its job from it. It sends dicts; the first one with ``done`` or ``failed`` is the last.
An error ends only this part. Nothing here touches the GPU before `work` is called.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import math
import os
import platform
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Qwen2Config

from benchmarks import gpu_rows, predict_speed, train_speed_worker
from benchmarks.memory_table import shape_by_config
from benchmarks.train_speed import save_tokenizer
from benchmarks.widened_model import widen
from sft.data.records import read_records
from sft.engine.attention import use_packed_attention
from sft.engine.batches import EncodedRow, PaddedBatching, PrefixTreeBatching, micro_batches, to_device
from sft.engine.loss import supervised_loss
from sft.engine.prefix_tree import varlen_works
from sft.errors import RunError, one_line
from sft.model.encoding import encode_prompts
from sft.prediction.predictor import Predictor
from sft.training.memory import ModelShape, StepKind, share_filled, tokens_that_fit

SHOWN_VERSIONS = ("torch", "transformers", "peft", "accelerate", "trl", "bitsandbytes", "flash_attn", "liger-kernel")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
CONTEXT_BYTES = 0.6e9  # of a card, for CUDA itself: `set_per_process_memory_fraction` does not count it
OUT_OF_MEMORY = "显存不够"
STEPS_OF = {"warm up": 2, "profile": 1}  # of a pass that is not a whole one
ROOT = Path(__file__).resolve().parents[1]
# For prediction: the task, its sample files, its scripts, and flags of a short training.
TASKS = (
    ("ner", "ner", "transfer_ner_data", "train_qwen2_ner", ("--learning_rate", "2e-3")),
    (
        "classification",
        "news",
        "transfer_classification_data",
        "train_qwen2_classification",
        ("--learning_rate", "3e-3", "--max_length", "256"),
    ),
)


def work(connection: Connection) -> None:
    """Get a job, and do the part ``job["part"]``."""
    logging.basicConfig(level=logging.INFO, force=True)
    try:
        job = connection.recv()
        PARTS[job["part"]](job, connection)
        connection.send({"done": True})
    except EOFError:  # nobody wants it any more
        return
    except BaseException as error:
        traceback.print_exc()
        with suppress(OSError):
            memory = isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)
            connection.send({"failed": OUT_OF_MEMORY if memory else f"{type(error).__name__}: {one_line(error)}"})


def wait(device: str) -> None:
    """Wait until the GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def random_model(shape: dict, device: str, dtype: torch.dtype, attention: str = "sdpa", **keywords) -> torch.nn.Module:
    """A Qwen2 with random weights, made on the device; embedding and head are one matrix."""
    torch.manual_seed(0)
    config = Qwen2Config(**shape, tie_word_embeddings=True, pad_token_id=0, bos_token_id=None, eos_token_id=1)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention, **keywords)


def encoded(rows: list[dict]) -> list[EncodedRow]:
    """The rows as training has them, numbered from 1."""
    return [EncodedRow(row["prompt_ids"], row["answer_ids"], line) for line, row in enumerate(rows, 1)]


# ---- the machine ----


def machine(job: dict, connection: Connection) -> None:
    """Versions, card, and the rate of bf16 matrix products that it reaches, in TFLOP/s."""
    found = {}
    for name in SHOWN_VERSIONS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    connection.send({"versions": found, "cuda": torch.version.cuda, "python": sys.version.split()[0]})
    connection.send({"processor": processor()})
    device = job["device"]
    if device == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError("torch 用不了显卡（torch.cuda.is_available() 为假）")
        card = torch.cuda.get_device_properties(0)
        connection.send(
            {
                "card": card.name,
                "capability": f"{card.major}.{card.minor}",
                "memory_gb": card.total_memory / 1e9,
                "processors": card.multi_processor_count,
            }
        )
    modern = device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)  # Turing only pretends
    dtype = torch.bfloat16 if modern else torch.float16
    best = 0.0
    for size in job["sizes"]:  # random numbers: with zeros a card draws less power and is faster
        left, right = (torch.randn((size, size), device=device).to(dtype) for _ in range(2))
        best = max(best, matrix_rate(left, right, device))
        connection.send({"matrix_tflops": best, "matrix_dtype": str(dtype).removeprefix("torch.")})


def processor() -> str:
    """The name of the CPU, which launches what the GPU does, and how many cores it has."""
    information = Path("/proc/cpuinfo")
    text = information.read_text(encoding="utf-8") if information.is_file() else ""
    found = re.search(r"model name\s*: (.+)", text)
    return f"{found[1] if found else platform.processor()}，{os.cpu_count()} 核"


def matrix_rate(left: torch.Tensor, right: torch.Tensor, device: str) -> float:
    """TFLOP/s of a product of two square matrices: the median of three groups of ten, after a warm-up."""
    size, seconds = len(left), []
    for group in range(4):
        wait(device)
        started = time.perf_counter()
        for _ in range(10):
            left @ right
        wait(device)
        if group:
            seconds.append((time.perf_counter() - started) / 10)
    return 2 * size**3 / sorted(seconds)[1] / 1e12


# ---- checks ----


def checks(job: dict, connection: Connection) -> None:
    """Variable-length attention against padded rows, float16 with a loss scaler, and 4-bit weights."""
    for name, check in (("varlen", check_attention), ("fp16", check_float16), ("nf4", check_nf4)):
        try:
            ok, said = check(job)
        except Exception as error:
            traceback.print_exc()
            ok, said = False, f"{type(error).__name__}: {one_line(error)}"
        connection.send({"check": name, "ok": ok, "said": said})


def check_attention(job: dict) -> tuple[bool | None, str]:
    """Loss and gradients of prefix trees are those of padded rows, as far as 16 bits can tell."""
    device, shape, dtype = job["device"], job["shape"] | {"num_hidden_layers": 2}, getattr(torch, job["dtype"])
    wide = random_model(shape, device, dtype)
    varlen = varlen_works(wide, torch.device(device))
    rows = encoded(gpu_rows.random_rows("ner", 8, shape["vocab_size"], job["share"]))
    results = []
    for batching in (PaddedBatching(0), PrefixTreeBatching().for_model(wide, torch.device(device))):
        model = train_speed_worker.with_adapter(random_model(shape, device, dtype))
        torch.manual_seed(1)
        with torch.no_grad():  # else the gradient of every A is zero
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
        loss = one_loss(model, rows, batching, device)
        loss.backward()
        gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        results.append((loss.item(), torch.cat(gradients)))
    (padded_loss, padded), (tree_loss, tree) = results
    loss = abs(tree_loss - padded_loss) / padded_loss
    gradient = (torch.linalg.vector_norm(tree - padded) / torch.linalg.vector_norm(padded)).item()
    used = "变长 FlashAttention" if varlen else "SDPA 分组"
    return (
        loss < 0.01 and gradient < 0.2,
        f"{used}；与补齐的差：损失 {loss:.1e}，梯度 {gradient:.1e}（{job['dtype']}）",
    )


def one_loss(model: torch.nn.Module, rows: list[EncodedRow], batching, device: str) -> torch.Tensor:
    """The mean loss of the rows in one pass."""
    (batch,) = micro_batches(rows, 10**6, batching)
    if batch["layout"] is not None:
        use_packed_attention(model)
    batch = to_device(batch, torch.device(device))
    return supervised_loss(model, batch, sum(len(row.answer_ids) for row in rows))


def check_float16(job: dict) -> tuple[bool | None, str]:
    """A few steps of this project's trainer in float16: the loss scaler is there, and most steps are taken."""
    if job["device"] == "cpu":
        return None, "CPU 上没有损失缩放"
    shape = job["shape"] | {"num_hidden_layers": 4}
    model = random_model(shape, job["device"], torch.float16)
    rows = gpu_rows.random_rows("ner", 128, shape["vocab_size"], job["share"])
    job = contestant_job(job, {"per_device_train_batch_size": 16, "fp16": True, "logging_steps": 1})
    trainer = train_speed_worker.ours(model, rows, job, train_speed_worker.TrainerCallback())
    scaler = trainer.accelerator.scaler
    if scaler is None:
        return False, "没有损失缩放"
    before = torch.cat([parameter.detach().flatten().clone() for parameter in trainer.adapter])
    trainer.train()
    after = torch.cat([parameter.detach().flatten() for parameter in trainer.adapter])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    fine = all(map(math.isfinite, losses)) and bool(torch.isfinite(after).all()) and not torch.equal(before, after)
    return fine, f"{len(losses)} 步，损失 {losses[0]:.2f} → {losses[-1]:.2f}，缩放 {scaler.get_scale():.0f}"


def check_nf4(job: dict) -> tuple[bool | None, str]:
    """A model in 4 bits has nearly the loss of the same model in 16, and its adapter gets finite gradients."""
    if find_spec("bitsandbytes") is None:
        return None, "没有装 bitsandbytes"
    if job["device"] == "cpu":
        return None, "只在显卡上查"
    shape = job["shape"] | {"num_hidden_layers": 2}
    rows = encoded(gpu_rows.random_rows("ner", 8, shape["vocab_size"], job["share"]))
    dtype = getattr(torch, job["dtype"])
    model = random_model(shape, job["device"], dtype)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        quantised = AutoModelForCausalLM.from_pretrained(
            folder,
            quantization_config=BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
            ),
            device_map={"": job["device"]},
            dtype=dtype,
            attn_implementation="sdpa",
        )
    losses = []
    for each in (model, quantised):
        adapted = train_speed_worker.with_adapter(each)
        losses.append(one_loss(adapted, rows, PaddedBatching(0), job["device"]))
    losses[1].backward()
    gradients = [parameter.grad for parameter in adapted.parameters() if parameter.grad is not None]
    finite = bool(gradients) and all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    plain, four = (loss.item() for loss in losses)
    return finite and abs(
        four - plain
    ) < 0.1 * plain, f"损失 {plain:.3f}（16 位）、{four:.3f}（4 位），梯度有限：{finite}"


# ---- training ----


def contestant_job(job: dict, arguments: dict) -> dict:
    """A job as the functions of `train_speed_worker` take it, for this device."""
    folder = Path(tempfile.gettempdir()) / f"gpu-benchmark-tokenizer-{job['shape']['vocab_size']}"
    if not (folder / "tokenizer.json").is_file():
        save_tokenizer(folder, job["shape"]["vocab_size"])
    common = {"use_cpu": job["device"] == "cpu", "dataloader_pin_memory": job["device"] == "cuda"}
    return {
        "base": str(folder),
        "passes": job.get("passes", 1),
        "output_dir": tempfile.mkdtemp(),
        "batching": "prefix_tree",
        "max_tokens": job.get("max_tokens", 16384),
        "arguments": common | {"logging_steps": 10**6, "logging_first_step": True} | arguments,
    }


class GpuPacer(train_speed_worker.Pacer):
    """Like `Pacer`, with a connection instead of stdin, and a clock that waits for the GPU.

    What it is sent before a pass is ``go`` for a whole one, ``warm up`` for a few steps, or ``profile`` for one whose
    kernels are counted.
    """

    def __init__(self, device: str, connection: Connection) -> None:
        super().__init__()
        self._device, self._connection = device, connection
        self._command, self._profiler = "go", None
        self._found: dict = {}

    def on_epoch_begin(self, args, state, control, **_) -> None:
        self._command = self._connection.recv()
        self._found = {}
        self.tokens = self.head_positions = self.steps = 0
        if self._device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        wait(self._device)
        self.started = time.perf_counter(), time.process_time()

    def on_step_begin(self, args, state, control, **_) -> None:
        if self._command == "profile" and not self.steps:
            # Not the operators on a GPU: with the others' many small passes, sorting them takes longer than the step.
            activity = torch.profiler.ProfilerActivity
            kind = activity.CUDA if self._device == "cuda" else activity.CPU
            self._profiler = torch.profiler.profile(activities=[kind])
            self._profiler.start()

    def on_step_end(self, args, state, control, **_) -> None:
        self.steps += 1
        control.should_epoch_stop = self.steps >= STEPS_OF.get(self._command, math.inf)
        if self._profiler is not None:
            wait(self._device)
            self._profiler.stop()
            averages = self._profiler.key_averages()
            self._profiler = None
            if self._device == "cuda":
                self._found["launches"] = sum(event.count for event in averages if event.key in LAUNCHES)
            else:
                self._found["operators"] = sum(event.count for event in averages)

    def on_epoch_end(self, args, state, control, **_) -> None:
        wait(self._device)
        self._found["seconds"] = time.perf_counter() - self.started[0]
        self._found |= {"tokens": self.tokens, "head_positions": self.head_positions, "steps": self.steps}
        if self._device == "cuda":
            self._found["allocated_gb"] = torch.cuda.max_memory_allocated() / 1e9
            self._found["reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
            torch.cuda.empty_cache()  # the others' turn
        self._connection.send(self._found)


def contestant(job: dict, connection: Connection) -> None:
    """One library: for each kind of rows a training, pass by pass, each when it is told to."""
    dtype = getattr(torch, job["dtype"])
    model = random_model(job["shape"], job["device"], dtype, job.get("attention", "sdpa"))
    wait(job["device"])
    connection.send({"ready": True})
    for rows in job["rows"]:
        rows = json.loads(Path(rows).read_text(encoding="utf-8"))
        theirs = contestant_job(job, job["arguments"]) | {"batching": job.get("batching", "prefix_tree")}
        pacer = GpuPacer(job["device"], connection)
        build = {"ours": train_speed_worker.ours, "hf": train_speed_worker.hugging_face, "trl": train_speed_worker.trl}
        trainer = build[job["library"]](model, rows, theirs, pacer)
        pacer.count_in(trainer.model)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        connection.send({"first_loss": losses[0]})
        model = without_hooks(trainer.model.unload())
        del trainer


def without_hooks(model: torch.nn.Module) -> torch.nn.Module:
    """The base model again, without what counted tokens."""
    model.get_input_embeddings()._forward_pre_hooks.clear()
    model.get_output_embeddings()._forward_hooks.clear()
    return model


# ---- prediction ----


def prediction(job: dict, connection: Connection) -> None:
    """This project's prediction against batched ``generate``, on a model of the given shape that gives real answers.

    The demo model is fine-tuned for a moment on its sample data and copied into the shape (see `widened_model`).
    """
    device, folder = job["device"], Path(tempfile.mkdtemp())
    for name, raw, transfer, train, more in TASKS:
        loaded = fine_tuned(job, folder / name, raw, transfer, train, more)
        records = [record for _, record in read_records(folder / name / "test.jsonl")][: job["count"]]
        with torch.device(device):
            model = widen(loaded.model.merge_and_unload().to(device), job["widened"])
        loaded = replace(loaded, model=model.to(getattr(torch, job["dtype"])))
        ours = partial(predict_speed.ours, loaded, records, job["batch_size"])
        answers = timed(device, ours)[1]  # to warm up
        tokens = max(len(ids) for ids in loaded.tokenizer(answers).input_ids) + 1
        prompts = encode_prompts(records, loaded.task, loaded.tokenizer)
        batched = partial(predict_speed.batched, loaded, prompts, job["batch_size"], max_new_tokens=tokens)
        methods = {"ours": ours, "generate": batched}
        seconds: dict[str, list[float]] = {method: [] for method in methods}
        for _ in range(job["rounds"]):
            for method, run in methods.items():
                seconds[method].append(timed(device, run)[0])
            medians = {method: sorted(times)[len(times) // 2] for method, times in seconds.items()}
            connection.send({"task": name, "rows": len(records), "answer_tokens": tokens, **medians})


def fine_tuned(job: dict, folder: Path, raw: str, transfer: str, train: str, more: Sequence[str]) -> Predictor:
    """The demo model after a short training, ready to predict.

    Raises:
        RunError: a script did not succeed.
    """
    sample, records = ROOT / "data" / "sample", folder / "train.jsonl"
    convert = [
        "--input_file",
        str(sample / f"{raw}_train.jsonl"),
        "--input_test_file",
        str(sample / f"{raw}_test.jsonl"),
    ]
    convert += ["--output_file", str(records), "--test_file", str(folder / "test.jsonl")]
    flags = ["--model_name_or_path", str(ROOT / "qwen" / "demo"), "--train_file", str(records)]
    flags += ["--output_dir", str(folder / "run"), "--swanlab_mode", "disabled", "--disable_tqdm", "true"]
    flags += ["--test_file", "none", "--eval_strategy", "no", "--validation_ratio", "0", "--save_strategy", "no"]
    flags += ["--lora_r", "16", "--max_steps", str(job["steps"]), "--dtype", "float32", *more]
    for script, arguments in ((transfer, convert), (train, flags)):
        if code := importlib.import_module(script).main(arguments):
            raise RunError(f"{script}：退出码 {code}")
    return Predictor.load(folder / "run")


def timed(device: str, run: Callable) -> tuple[float, object]:
    """Seconds, with what the GPU still had to do, and the result."""
    wait(device)
    started = time.perf_counter()
    result = run()
    wait(device)
    return time.perf_counter() - started, result


# ---- memory ----


def memory(job: dict, connection: Connection) -> None:
    """One training step of each kind of rows within a cap; what it took to fit.

    The cap holds for torch's own allocator, so what CUDA takes for itself is subtracted from it first.
    """
    cap = job["cap_gb"] * 1e9
    if job["device"] == "cuda":
        total = torch.cuda.mem_get_info()[1]
        if cap > total:
            connection.send({"skipped": f"这张卡只有 {total / 1e9:.0f} GB"})
            return
        torch.cuda.set_per_process_memory_fraction(min(1.0, (cap - CONTEXT_BYTES) / total))
    shape = job["shape"]
    sizes = shape_by_config(Qwen2Config(**shape, tie_word_embeddings=True))
    try:
        model = random_model(shape, job["device"], getattr(torch, job["dtype"]))
    except torch.OutOfMemoryError:
        connection.send({"rows": "", "result": "装不下权重"})
        return
    for name, count in job["rows"].items():
        rows = gpu_rows.random_rows(name, count, shape["vocab_size"], job["share"])
        result, model = fit(model, rows, job, sizes, cap)
        connection.send({"rows": name, "count": count, **result})


def fit(model: torch.nn.Module, rows: list[dict], job: dict, sizes: ModelShape, cap: float) -> tuple[dict, object]:
    """What it takes to train one step: nothing, smaller passes, checkpointing too, or more memory than there is.

    Returns:
        The result, and the model without an adapter.
    """
    for checkpointing in (False, True):
        kind = StepKind(itemsize=2, recompute=checkpointing, whole_head=False)
        max_tokens = tokens_that_fit(cap - CONTEXT_BYTES, sizes, kind, share_filled(torch.device(job["device"])))
        arguments = {"per_device_train_batch_size": len(rows), "gradient_checkpointing": checkpointing}
        arguments["fp16"] = job["dtype"] == "float16"
        theirs = contestant_job(job | {"max_tokens": max_tokens}, arguments)
        trainer = train_speed_worker.ours(model, rows, theirs, train_speed_worker.TrainerCallback())
        if job["device"] == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            trainer.train()
        except (torch.OutOfMemoryError, RunError):
            fits = False
        else:
            fits = True
        halved = round(math.log2(max_tokens / max(1, trainer.max_tokens))) if trainer.max_tokens < max_tokens else 0
        model = trainer.model.unload()
        model.gradient_checkpointing_disable()
        del trainer
        gc.collect()
        if fits:
            said = "装得下" if not halved else f"减半 {halved} 次"
            result = {"result": said + ("，开梯度检查点" if checkpointing else ""), "max_tokens": max_tokens}
            if job["device"] == "cuda":
                result["reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
            return result, model
    return {"result": OUT_OF_MEMORY}, model


PARTS: dict[str, Callable[[dict, Connection], None]] = {
    "machine": machine,
    "checks": checks,
    "contestant": contestant,
    "prediction": prediction,
    "memory": memory,
}
