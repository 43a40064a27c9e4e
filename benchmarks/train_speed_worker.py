"""One contestant of train_speed.py: trains on the given rows with one library and reports how long it took.

train_speed.py starts it in the contestant's own Python environment. They talk in JSON lines: the first line on stdin
is the job, each further line starts one more pass over the rows. After each pass, and at the end, one line goes to
stdout.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import psutil
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
OUTPUT = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print to stdout goes to stderr


class Pacer(TrainerCallback):
    """Waits for a line on stdin before every pass over the rows, and reports each pass."""

    def __init__(self) -> None:
        self.tokens = self.head_positions = self.steps = 0

    def count_in(self, model: torch.nn.Module) -> None:
        """Count the tokens that the body runs on and the positions of the model's own head.

        What gradient checkpointing recomputes is not counted.
        """
        base = model.get_base_model()
        base.get_input_embeddings().register_forward_pre_hook(self._count_tokens)
        base.get_output_embeddings().register_forward_hook(self._count_head)

    def _count_tokens(self, module, arguments) -> None:
        self.tokens += arguments[0].numel()

    def _count_head(self, module, arguments, output) -> None:
        self.head_positions += output.numel() // output.shape[-1]

    def on_epoch_begin(self, args, state, control, **_) -> None:
        if not sys.stdin.readline():
            sys.exit(0)
        self.tokens = self.head_positions = self.steps = 0
        self.started = time.perf_counter(), time.process_time()

    def on_step_end(self, args, state, control, **_) -> None:
        self.steps += 1

    def on_epoch_end(self, args, state, control, **_) -> None:
        wall, cpu = time.perf_counter() - self.started[0], time.process_time() - self.started[1]
        counts = {"tokens": self.tokens, "head_positions": self.head_positions, "steps": self.steps}
        send(seconds=wall, cpu_seconds=cpu, **counts)


def main() -> None:
    """Read the job from the first line of stdin, train, and report the first loss and the peak memory."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    job = json.loads(sys.stdin.readline())
    rows = [json.loads(line) for line in Path(job["rows"]).read_text(encoding="utf-8").splitlines()]
    torch.manual_seed(0)
    dtype = getattr(torch, job["dtype"])
    model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=dtype, attn_implementation="sdpa")
    pacer = Pacer()
    trainer = {"ours": ours, "hf": hugging_face, "trl": trl}[job["library"]](model, rows, job, pacer)
    pacer.count_in(trainer.model)
    for parameter in trainer.model.parameters():
        parameter.detach().sum()  # read the weights now: the file is mapped, and pages load at first use
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # reset the peak
    trainer.train()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    send(first_loss=losses[0], peak_bytes=peak - before)


def send(**values) -> None:
    """Send one line of JSON to train_speed.py."""
    OUTPUT.write(json.dumps(values) + "\n")
    OUTPUT.flush()


def settings(job: dict) -> dict:
    """The settings of all three libraries: the same rows in each step, optimizer and schedule."""
    options = {
        "output_dir": job["output_dir"],
        "num_train_epochs": job["passes"],
        "learning_rate": 1e-4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,  # no autocast: the base is already bfloat16, the adapter float32; TRL's default is True
        "dataloader_pin_memory": False,
        "gradient_checkpointing": False,
        "seed": 0,
    }
    return options | job["arguments"]


def with_adapter(model):
    """Add the adapter that every contestant trains. Its B is zero, so the first loss is that of the base model."""
    return get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=32, lora_dropout=0.0, target_modules=PROJECTIONS)
    )


def ours(model, rows: list[dict], job: dict, pacer: Pacer) -> Trainer:
    """This project's trainer, as `sft.training.fine_tune.build_trainer` builds it."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from sft.engine.batches import EncodedRow, PaddedBatching, PrefixTreeBatching
    from sft.engine.lora_node import use_lora_node
    from sft.training.evaluation import Evaluator, Examples
    from sft.training.fine_tune import as_dataset
    from sft.training.memory import fastest_on_cpu_tokens
    from sft.training.run import Run
    from sft.training.trainer import SftTrainer

    encoded = [EncodedRow(row["prompt_ids"], row["answer_ids"], line) for line, row in enumerate(rows, start=1)]
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    batchings = {"prefix_tree": PrefixTreeBatching(), "padded": PaddedBatching(tokenizer.pad_token_id)}
    max_tokens = job.get("max_tokens") or fastest_on_cpu_tokens(model.config.intermediate_size)
    arguments = TrainingArguments(**settings(job), remove_unused_columns=False, length_column_name="length")
    model = with_adapter(model)
    use_lora_node(model)  # as `sft.model.lora.add_lora` does
    return SftTrainer(
        model=model,
        args=arguments,
        train_dataset=as_dataset(encoded),
        processing_class=tokenizer,
        evaluator=Evaluator(None, tokenizer, None, batchings[job["batching"]], quiet=True),
        validation=Examples([], []),
        run=Run(Path(job["output_dir"]), checkpoint=None, identity={}, max_tokens=max_tokens),
        callbacks=[pacer],
    )


def hugging_face(model, rows: list[dict], job: dict, pacer: Pacer) -> Trainer:
    """transformers' Trainer with its own padding collator and the model's own loss, with logits of all positions."""
    model = with_adapter(model)
    if job["arguments"].get("gradient_checkpointing"):
        model.enable_input_require_grads()
    ids = [row["prompt_ids"] + row["answer_ids"] for row in rows]
    labels = [[-100] * len(row["prompt_ids"]) + row["answer_ids"] for row in rows]
    dataset = Dataset.from_dict(
        {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids], "labels": labels}
    )
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    return Trainer(
        model=model,
        args=TrainingArguments(**settings(job)),
        train_dataset=dataset,
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
        callbacks=[pacer],
    )


def trl(model, rows: list[dict], job: dict, pacer: Pacer) -> Trainer:
    """TRL's SFTTrainer; its loss runs the head in chunks over the supervised positions."""
    from trl import SFTConfig, SFTTrainer

    ids = [row["prompt_ids"] + row["answer_ids"] for row in rows]
    masks = [[0] * len(row["prompt_ids"]) + [1] * len(row["answer_ids"]) for row in rows]
    return SFTTrainer(
        model=with_adapter(model),
        args=SFTConfig(**settings(job), completion_only_loss=True),
        train_dataset=Dataset.from_dict({"input_ids": ids, "completion_mask": masks}),
        processing_class=AutoTokenizer.from_pretrained(job["base"]),
        callbacks=[pacer],
    )


if __name__ == "__main__":
    main()
