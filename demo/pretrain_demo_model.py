"""Pretrain the demonstration model on made-up lessons and write it to qwen/demo/.

    python -m demo.pretrain_demo_model

The weights depend on the flags and on the machine's floating-point arithmetic; the lessons depend only on the seed.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))  # so that `python demo/pretrain_demo_model.py` works as well as `-m`

from demo import make_sample_data  # noqa: E402
from demo.initial_weights import start_copying  # noqa: E402
from demo.lessons import Lesson, Teacher  # noqa: E402
from demo.tokenizer import common_characters, save_tokenizer, train_tokenizer  # noqa: E402

FIRST_SHARES = {"copy": 6, "quote": 2, "next_word": 2, "extract": 2}
LATER_SHARES = {"copy": 1, "quote": 0.5, "next_word": 0.5, "tell": 1, "extract": 7, "choose": 6}
POOL = 512  # how many lessons are drawn at a time; they are batched by length


@dataclass
class Batch:
    """A padded batch.

    Attributes:
        input_ids: (rows, width) token ids, padded on the right.
        positions: (supervised,) flat indices into ``input_ids``: the positions that predict a supervised token.
        targets: (supervised,) these tokens.
        weights: (supervised,) their weights in the loss.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor


def encode(lesson: Lesson, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """The token ids of a lesson in ChatML, and for each whether it belongs to an answer."""
    ids = tokenizer.encode(f"<|im_start|>system\n{lesson.system}<|im_end|>").ids
    answer_mask = [False] * len(ids)
    for user, answer in lesson.turns:
        user_turn = f"\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
        for text, is_answer in ((user_turn, False), (answer + "<|im_end|>", True)):
            piece = tokenizer.encode(text).ids
            ids += piece
            answer_mask += [is_answer] * len(piece)
    return ids, answer_mask


def collate(rows: list[tuple[list[int], list[bool], float]], padding: int) -> Batch:
    """Make a batch of rows ``(token ids, whether each belongs to an answer, weight)``."""
    width = max(len(ids) for ids, _, _ in rows)
    input_ids = torch.full((len(rows), width), padding)
    positions, targets, weights = [], [], []
    for number, (ids, answer_mask, weight) in enumerate(rows):
        input_ids[number, : len(ids)] = torch.tensor(ids)
        places = [place for place, is_answer in enumerate(answer_mask) if is_answer]
        positions += [number * width + place - 1 for place in places]
        targets += [ids[place] for place in places]
        weights += [weight] * len(places)
    return Batch(input_ids, torch.tensor(positions), torch.tensor(targets), torch.tensor(weights))


def batches(teacher: Teacher, tokenizer: Tokenizer, random: Random, steps: int, tokens: int, easy: int):
    """Yield ``steps`` batches of at most ``tokens`` tokens, padding included; the first ``easy`` ones mostly copy."""
    padding = tokenizer.token_to_id("<|endoftext|>")
    done = 0
    while done < steps:
        shares = FIRST_SHARES if done < easy else LATER_SHARES
        lessons = [teacher.lesson(shares) for _ in range(POOL)]
        rows = sorted(((*encode(lesson, tokenizer), lesson.weight) for lesson in lessons), key=lambda row: len(row[0]))
        groups = list(_groups([row for row in rows if len(row[0]) <= tokens], tokens))
        random.shuffle(groups)
        for group in groups[: steps - done]:
            yield collate(group, padding)
        done += len(groups)


def _groups(rows: list, tokens: int) -> Iterator[list]:
    group: list = []
    for row in rows:
        if group and len(row[0]) * (len(group) + 1) > tokens:
            yield group
            group = []
        group.append(row)
    yield group


def build_model(arguments: argparse.Namespace, tokenizer: Tokenizer) -> Qwen2ForCausalLM:
    """The model with its initial weights."""
    config = Qwen2Config(
        vocab_size=math.ceil(tokenizer.get_vocab_size() / 64) * 64,
        hidden_size=arguments.hidden_size,
        intermediate_size=arguments.intermediate_size,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden_size // 32,
        num_key_value_heads=arguments.hidden_size // 64,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        use_cache=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
        pad_token_id=tokenizer.token_to_id("<|endoftext|>"),
        attn_implementation="sdpa",
    )
    generator = torch.Generator().manual_seed(arguments.seed)
    with torch.random.fork_rng():
        torch.manual_seed(arguments.seed)
        model = Qwen2ForCausalLM(config)
    start_copying(model, generator)
    return model


def build_optimizers(model: Qwen2ForCausalLM, arguments: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, norms and biases."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(
        matrices, lr=arguments.matrix_learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(others, lr=arguments.learning_rate, betas=(0.9, 0.97), weight_decay=0.0)
    return [muon, adamw]


def train(model: Qwen2ForCausalLM, tokenizer: Tokenizer, teacher: Teacher, arguments: argparse.Namespace) -> None:
    """Train on the lessons. The learning rate rises for 50 steps, and falls to zero over the last 60 % of steps."""
    optimizers = build_optimizers(model, arguments)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / 50, 1.0, (arguments.steps - step) / (0.6 * arguments.steps))
        )
        for optimizer in optimizers
    ]
    random, easy = Random(f"{arguments.seed} order"), int(arguments.easy_share * arguments.steps)
    started, losses, seen = time.time(), [], 0
    stream = batches(teacher, tokenizer, random, arguments.steps, arguments.batch_tokens, easy)
    model.train()
    for step, batch in enumerate(stream, start=1):
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        seen += batch.input_ids.numel()
        if step % arguments.log_steps == 0:
            elapsed = time.time() - started
            print(
                f"step {step} loss {sum(losses) / len(losses):.4f} {elapsed:.0f}s {seen / elapsed:.0f} tokens/s",
                flush=True,
            )
            losses = []
        if arguments.save_steps and step % arguments.save_steps == 0:
            save(model, arguments.output_dir)


def loss_of(model: Qwen2ForCausalLM, batch: Batch) -> torch.Tensor:
    """The weighted mean cross-entropy of the answer tokens, a scalar.

    Padding is on the right, so causal attention needs no mask.
    """
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=batch.input_ids, use_cache=False).last_hidden_state.flatten(0, 1)
        logits = model.lm_head(hidden[batch.positions])
    losses = cross_entropy(logits.float(), batch.targets, reduction="none")
    return (losses * batch.weights).sum() / batch.weights.sum()


def save(model: Qwen2ForCausalLM, directory: Path) -> None:
    """Write the weights in bfloat16, and generation settings for greedy decoding."""
    config = model.config
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id, max_new_tokens=512
    )
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    half = Qwen2ForCausalLM(config).to(torch.bfloat16)
    half.load_state_dict(weights)
    half.generation_config = model.generation_config
    half.save_pretrained(directory)


def main() -> None:
    """Parse the command line, train the tokenizer and the model, and save them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=PROJECT / "qwen" / "demo")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch_tokens", type=int, default=4096)
    parser.add_argument("--easy_share", type=float, default=0.04, help="share of the steps that mostly copy")
    parser.add_argument("--hidden_size", type=int, default=192)
    parser.add_argument("--intermediate_size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary_size", type=int, default=5600)
    parser.add_argument("--learning_rate", type=float, default=3e-3, help="of embeddings, norms and biases")
    parser.add_argument("--matrix_learning_rate", type=float, default=4e-3, help="of the matrices in the layers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log_steps", type=int, default=50)
    parser.add_argument("--save_steps", type=int, default=200)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    tokenizer = train_tokenizer(arguments.vocabulary_size)
    save_tokenizer(tokenizer, arguments.output_dir)
    _, held_out = make_sample_data.make_rows(make_sample_data.SEED, *make_sample_data.DEFAULT_COUNTS)
    teacher = Teacher(Random(f"{arguments.seed} lessons"), held_out, common_characters())
    model = build_model(arguments, tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters", flush=True)
    train(model, tokenizer, teacher, arguments)
    save(model, arguments.output_dir)


if __name__ == "__main__":
    main()
