"""Try packed passes on a tiny copy of a model: each against one row at a time, by transformers' plainest attention."""

from __future__ import annotations

from collections import Counter

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from sft.engine.attention import use_packed_attention
from sft.engine.batches import EncodedRow, PaddedBatching, PrefixTreeBatching
from sft.engine.loss import plain_loss, supervised_loss
from sft.engine.option_scores import score
from sft.engine.ragged import Cache, Feed, run
from sft.engine.served import Logits, Served, assume
from sft.engine.tiny import tiny_model
from sft.errors import one_line

# Kinds of rotary positions whose angles depend on the longest sequence of a pass.
ANGLES_BY_LENGTH = ("dynamic", "longrope")
KINDS = {"full_attention", "sliding_attention"}  # of layers that a layout describes
TOLERANCE = 1e-4  # of the largest logit, score or gradient; float32 is right to about 1e-6, a wrong mask to nothing
# Rows longer than the window of the tiny copy, that begin alike; one ends where the shared part ends.
SHARED = [7, 3, 9, 14, 5, 2, 8, 21, 13]
ROWS = [
    EncodedRow([*SHARED, 4, 17, 30, 6, 11, 40, 19], [12, 5, 33], 1),
    EncodedRow([*SHARED, 25], [12, 44], 2),
    EncodedRow(SHARED, [50, 3, 6, 12], 3),
]
OPTIONS = [[12, 5, 33], [12, 5, 9, 60, 2], [12], [44, 8]]


def try_out(config: PreTrainedConfig) -> Served:
    """What a model with ``config`` can use; whatever goes wrong on the tiny copy is a reason to use nothing."""
    text = config.get_text_config(decoder=True)
    if _loads_more_than_text(config, text):
        return Served(False, None, reason="不只有语言模型（多模态）")
    logits = None
    try:
        tiny = tiny_model(text)
        logits = _how_logits_are_made(tiny, text)
        reason = _problem(tiny, text, logits)
    except Exception as error:  # any error: each of a hundred kinds of models has its own
        reason = f"小模型上算不了（{one_line(error)[:80]}）"
    return Served(not reason, logits, _limit_tokens(text), reason)


def _limit_tokens(config: PreTrainedConfig) -> int | None:
    """Up to which length the rotary angles are the same whatever else is in a pass; None if always."""
    own = getattr(config, "rope_parameters", None)
    ropes = [rope for rope in (own, *own.values()) if isinstance(rope, dict)] if isinstance(own, dict) else []
    if not any(by_length in str(rope.get("rope_type")) for rope in ropes for by_length in ANGLES_BY_LENGTH):
        return None
    limits = [rope.get("original_max_position_embeddings") for rope in ropes]
    limits += [getattr(config, f"{which}max_position_embeddings", None) for which in ("original_", "")]
    return min((limit for limit in limits if type(limit) is int), default=None)


def _loads_more_than_text(config: PreTrainedConfig, text: PreTrainedConfig) -> bool:
    """Whether transformers makes another model of ``config`` than of its text part."""
    models = AutoModelForCausalLM._model_mapping
    return text is not config and models.get(type(config), None) is not models.get(type(text), None)


def _how_logits_are_made(tiny: PreTrainedModel, config: PreTrainedConfig) -> Logits | None:
    """How the model turns the output of its output layer into logits; None if neither its config nor 1 explains it."""
    head, outputs = tiny.get_output_embeddings(), []
    if type(head) is not torch.nn.Linear:
        return None
    hook = head.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        made = tiny(input_ids=torch.tensor([SHARED])).logits
    hook.remove()
    divisor, factor = getattr(config, "logits_scaling", None), getattr(config, "logit_scale", None)
    scale = 1 / divisor if divisor else factor or 1.0
    for rule in (Logits(scale, getattr(config, "final_logit_softcapping", None)), Logits()):
        if len(outputs) == 1 and _same(rule.of(outputs[0]), made):
            return rule
    return None


def _problem(tiny: PreTrainedModel, config: PreTrainedConfig, logits: Logits | None) -> str:
    """Why packed passes cannot be used; "" if they are exact."""
    kinds = Counter(getattr(config, "layer_types", None) or ())
    if others := [f"{count} 层 {kind}" for kind, count in kinds.items() if kind not in KINDS]:
        return f"有 {'、'.join(others)}，不是逐对 token 的注意力"
    if logits is None:
        return "输出不只是一个线性层"
    tiny.get_output_embeddings().requires_grad_(False)
    with torch.enable_grad():
        right = _alone(tiny)
        use_packed_attention(tiny)
        assume(tiny, Served(True, logits))
        try:
            found = _packed(tiny, logits)
        except NotImplementedError as error:  # from `packed_attention`
            return str(error)
    wrong = [name for name, value in found.items() if not _same(value, right[name])]
    return f"{'、'.join(wrong)}与逐条计算的不同" if wrong else ""


def _alone(tiny: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What is right, one sequence at a time."""
    logits = [tiny(input_ids=torch.tensor([row.prompt_ids + row.answer_ids])).logits[0] for row in ROWS]
    loss = torch.zeros(())
    for row, own in zip(ROWS, logits, strict=True):
        loss = loss + plain_loss(own[len(row.prompt_ids) - 1 : -1], torch.tensor(row.answer_ids))
    gradients = _gradients(loss, tiny)
    scores = []
    with torch.no_grad():
        for row in ROWS:
            for option in OPTIONS:
                own = tiny(input_ids=torch.tensor([row.prompt_ids + option])).logits[0, len(row.prompt_ids) - 1 : -1]
                scores.append(-plain_loss(own, torch.tensor(option)))
    return {
        "补齐的批": loss,
        "前缀树": loss,
        "前缀树的梯度": gradients,
        "选项树": torch.stack(scores),
        "带缓存的": torch.cat([own[:-1] for own in logits]),
    }


def _packed(tiny: PreTrainedModel, logits: Logits) -> dict[str, torch.Tensor]:
    """The same by the passes of this project."""
    loss = supervised_loss(tiny, PrefixTreeBatching().collate(ROWS), 1)
    return {
        "补齐的批": supervised_loss(tiny, PaddedBatching(0).collate(ROWS), 1),
        "前缀树": loss,
        "前缀树的梯度": _gradients(loss, tiny),
        "选项树": torch.cat(score(tiny, [row.prompt_ids for row in ROWS], [OPTIONS] * len(ROWS))),
        "带缓存的": logits.of(tiny.get_output_embeddings()(_cached_states(tiny))),
    }


def _gradients(loss: torch.Tensor, tiny: PreTrainedModel) -> torch.Tensor:
    trained = [parameter for parameter in tiny.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss, trained, allow_unused=True)
    return torch.cat([gradient.flatten() for gradient in found if gradient is not None])


def _cached_states(tiny: PreTrainedModel) -> torch.Tensor:
    """Last hidden states of all tokens but each row's last, in passes with a cache; one token is taken back."""
    cache = Cache(len(ROWS), 4)
    shared = len(SHARED) - 1
    rows = [(row.prompt_ids + row.answer_ids)[:-1] for row in ROWS]
    parts = [[run(tiny, cache, [Feed(0, 0, SHARED[:shared])], range(shared))] for _ in rows]
    cache.share(shared)
    run(tiny, cache, [Feed(slot, shared, [*ids[shared : shared + 1], 77]) for slot, ids in enumerate(rows)], [0])
    for start, stop in ((shared, shared + 2), (shared + 2, None)):
        feeds = [Feed(slot, start, ids[start:stop]) for slot, ids in enumerate(rows) if ids[start:stop]]
        states = run(tiny, cache, feeds, range(sum(len(feed.token_ids) for feed in feeds)))
        for feed, own in zip(feeds, states.split([len(feed.token_ids) for feed in feeds]), strict=True):
            parts[feed.slot].append(own)
    return torch.cat([part for own in parts for part in own])


def _same(ours: torch.Tensor, right: torch.Tensor) -> bool:
    return bool((ours - right).abs().max() <= TOLERANCE * right.abs().max())
