"""``--to merged``: one plain model folder, as transformers, vLLM and other converters read it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from sft.console import progress
from sft.errors import InputError
from sft.export.card import write_card
from sft.export.proof import Difference, Leg, Proof, compare, compare_named
from sft.export.reference import (
    Reference,
    in_batches,
    left_padded,
    mean_log_probabilities,
    metric_of,
    text_of,
)
from sft.export.source import Source, merged_model
from sft.files import TASK_FILE, read_json
from sft.model.loading import default_device, load_config

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LEAST = {"float32": 1.0, "bfloat16": 0.98, "float16": 0.99}  # share of equal answers
# The mean log-probability of an answer's tokens may move so far; float32 only adds in another order.
MOST_SCORE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
# What makes generation other than greedy, with the value that changes nothing.
NEUTRAL = {
    "do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "length_penalty": 1.0,
    "encoder_repetition_penalty": 1.0, "min_length": 0, "min_new_tokens": 0, "penalty_alpha": 0.0,
    "temperature": 1.0, "top_p": 1.0, "top_k": 50, "typical_p": 1.0, "min_p": 0.0,
}  # fmt: skip
# What may differ from the base's config: the end of an answer, and how and by what it was written.
NOT_COMPARED = {"eos_token_id", "pad_token_id", "dtype", "transformers_version", "_name_or_path", "architectures"}


def dtype_named(named: str | None, source: Source) -> str:
    """The name of the dtype of the weights: the one of the flag, else the one of training."""
    if named in (None, "auto"):
        return source.settings.dtype or "bfloat16"
    return named


@dataclass(frozen=True)
class Merged:
    """The base with the adapter added to its weights."""

    source: Source
    dtype: str
    least: float | None
    batch_size: int
    answers: bool = True

    def write(self, folder: Path, reference: Reference) -> None:
        """See `Target`."""
        model = merged_model(self.source)
        write_merged(model, self.source, folder, DTYPES[self.dtype])

    def prove(self, folder: Path, reference: Reference) -> Proof:
        """See `Target`."""
        proof = prove_merged(folder, self.source, reference, self.dtype, self.least, self.batch_size)
        write_card(folder, self.source, proof, "merged", len(reference.records))
        return proof


def write_merged(model: PreTrainedModel, source: Source, folder: Path, dtype: torch.dtype) -> None:
    """Write weights, config, generation config, tokenizer, chat template and ``task.json`` into ``folder``.

    Raises:
        InputError: a weight is not finite in ``dtype``.
    """
    model = model.to(dtype)
    for name, weight in model.state_dict().items():
        if not weight.isfinite().all():
            raise InputError(f"{name}：并好的权重在 {dtype} 里不是有限的数；请换 --dtype float32 或 bfloat16")
    pad = source.tokenizer.pad_token_id
    model.config.eos_token_id, model.config.pad_token_id = source.end, pad
    if hasattr(model.config, "_name_or_path"):
        model.config._name_or_path = ""  # a path of this machine
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=source.max_new_tokens,
        bos_token_id=source.tokenizer.bos_token_id,
        eos_token_id=source.end,
        pad_token_id=pad,
    )
    model.save_pretrained(folder)
    save_tokenizer(source, folder)


def save_tokenizer(source: Source, folder: Path) -> None:
    """Write the tokenizer with its chat template, and ``task.json``."""
    source.tokenizer.save_pretrained(folder)
    save_task_file(source, folder)


def save_task_file(source: Source, folder: Path) -> None:
    """Write ``task.json``; the hashes of the adapter's files are left out, they are not there."""
    source.settings.replace(files=None).write(folder / TASK_FILE)


# ---- the proof: as somebody who has only the folder would use it ----


def prove_merged(
    folder: Path, source: Source, reference: Reference, dtype: str, least: float | None, batch_size: int
) -> Proof:
    """Load the folder with plain transformers and compare it with the adapter.

    Weights in a dtype that this processor does not compute in are computed in float32.

    Args:
        dtype: what the weights should be in.
        least: the share of equal answers; None for the usual one of ``dtype``.
    """
    least = LEAST[dtype] if least is None else least
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, padding_side="left")
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
    )
    model = model.to(default_device()).eval()
    answers = _plain_answers(model, tokenizer, source, reference, batch_size)
    note = f"权重是 {dtype}，在 float32 里算" if dtype != "float32" else ""
    texts = [text_of(ids, source) for ids in answers]
    scores = mean_log_probabilities(model, reference.prompts, reference.answers, batch_size)
    legs = (
        prompts_leg(tokenizer, reference),
        _settings_leg(folder, source),
        _weights_leg(folder, source, dtype, loading),
        compare("answers", reference.answers, answers, source.tokenizer.decode, least, note),
        scores_leg(reference.scores, scores, MOST_SCORE[dtype]),
    )
    metrics, metric = metric_legs(reference, texts, source, "merged")
    return Proof(f"merged {dtype}", legs + metric, reference.notes, metrics)


def prompts_leg(tokenizer, reference: Reference) -> Leg:
    """The prompts by the chat template of a tokenizer, as any program would render them, and ours."""
    found = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
        for chat in reference.messages
    ]
    return compare("prompts", reference.prompts, found, tokenizer.decode)


def scores_leg(wanted: Sequence[float], found: Sequence[float], most: float) -> Leg:
    """Each answer's mean log-probability; it may differ by ``most``."""
    differences = tuple(
        Difference(f"第 {number} 条", f"{one:.5f}", f"{other:.5f}")
        for number, (one, other) in enumerate(zip(wanted, found, strict=True), start=1)
        if not abs(one - other) <= most  # NaN differs
    )
    widest = max((abs(one - other) for one, other in zip(wanted, found, strict=True)), default=0.0)
    return Leg("scores", len(found), differences, note=f"最多差 {widest:.1e}，允许 {most:g}")


def metric_legs(
    reference: Reference, texts: Sequence[str], source: Source, name: str
) -> tuple[tuple[tuple[str, float], ...], tuple[Leg, ...]]:
    """The metric of the adapter's answers and of the export's, and a leg that fails if too much is lost.

    0.3 points may be lost, or what chance explains: answers that turn are as often wrong before as after, and the sum
    of so many coin throws is within two standard deviations.
    """
    constrained = reference.constrained_equal / len(reference.records)
    told = (("自由回答与 predict.py（受约束）相同的比例", constrained),)
    ours, theirs = (metric_of(answers, reference, source) for answers in (reference.texts, texts))
    if ours is None or theirs is None:
        return told, ()
    turned = sum(one != other for one, other in zip(reference.texts, texts, strict=True))
    most = max(0.003, 2 * turned**0.5 / len(texts))
    metric = source.task.metric
    worse = (Difference(metric, f"{ours:.4f}", f"{theirs:.4f}"),) if theirs < ours - most else ()
    told = ((f"适配器 {metric}", ours), (f"{name} {metric}", theirs), *told)
    return told, (Leg("metric", 1, worse, note=f"{metric} {ours:.4f} → {theirs:.4f}，最多低 {most:.4f}"),)


@torch.no_grad()
def _plain_answers(model, tokenizer, source: Source, reference: Reference, batch_size: int) -> list[list[int]]:
    """The answers with nothing but the folder's own generation config."""
    answers: list[list[int]] = [[]] * len(reference.messages)
    batches = list(in_batches([len(ids) for ids in reference.prompts], batch_size))
    pad = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    most = max(map(len, reference.answers)) + 8  # of a model that does not stop
    for rows in progress(batches, "导出的回答"):
        ids, mask = left_padded(_rendered(tokenizer, [reference.messages[row] for row in rows]), pad)
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            **({} if model.generation_config.max_new_tokens else {"max_new_tokens": most}),
        )[:, ids.shape[1] :].tolist()
        for row, answer in zip(rows, output, strict=True):
            answers[row] = _without_padding(answer, pad, source.end)
    return answers


def _without_padding(ids: list[int], pad: int, end: int) -> list[int]:
    """What was generated: not cut at ``end``, so that a model which goes on after it is noticed."""
    length = next((at for at in range(len(ids), 0, -1) if ids[at - 1] != pad), 0)
    return ids[: length + (pad == end)]


def _rendered(tokenizer, chats: Sequence[list[dict[str, str]]]) -> list[list[int]]:
    return [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
        for chat in chats
    ]


def _settings_leg(folder: Path, source: Source) -> Leg:
    """What other programs read: greedy generation, the right end of an answer everywhere, and the base's config."""
    generation, config = read_json(folder / "generation_config.json"), read_json(folder / "config.json")
    pairs = [(f"generation_config.json {name}", value, generation.get(name, value)) for name, value in NEUTRAL.items()]
    pairs += [
        ("generation_config.json eos_token_id", source.end, generation.get("eos_token_id")),
        ("generation_config.json max_new_tokens", source.max_new_tokens, generation.get("max_new_tokens")),
        ("config.json eos_token_id", source.end, config.get("eos_token_id")),
        ("task.json end_token", source.end_token, read_json(folder / TASK_FILE).get("end_token", source.end_token)),
    ]
    base, exported = (load_config(place).to_dict() for place in (source.base.folder, folder))
    names = sorted((base.keys() | exported.keys()) - NOT_COMPARED)
    pairs += [(f"config.json {name}", base.get(name), exported.get(name)) for name in names]
    return compare_named("settings", pairs)


def _weights_leg(folder: Path, source: Source, dtype: str, loading: dict) -> Leg:
    """All weights that the model needs and no others, in the right dtype, finite, and zero only where the base's are.

    Args:
        loading: what transformers says about loading the folder.
    """
    zero = {name for name, tensor in tensors_of(source.base.folder) if not tensor.any()}
    pairs: list[tuple[str, object, object]] = []
    for name, tensor in tensors_of(folder):
        if tensor.is_floating_point():
            pairs.append((f"{name} 的类型", str(DTYPES[dtype]), str(tensor.dtype)))
        pairs.append((f"{name} 全是有限的数", True, bool(tensor.isfinite().all())))
        pairs.append((f"{name} 全是零", name in zero, not tensor.any()))
    for kind, title in (("missing_keys", "缺少"), ("unexpected_keys", "多余"), ("mismatched_keys", "形状不同")):
        pairs.append((f"{title}的权重", [], sorted(map(str, loading[kind]))))
    return compare_named("weights", pairs)


def tensors_of(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a model folder, one at a time."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  it is no dict
                yield name, weights.get_tensor(name)
