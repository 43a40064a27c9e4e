"""Live bytes of a training step, counted on tensors that have shapes and no memory."""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch
from models import LINEAR_PROJECTIONS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedConfig

from sft.engine.batches import Batching, EncodedRow
from sft.engine.loss import supervised_loss
from sft.engine.served import served_by
from sft.model.lora import add_lora


class Counted(NamedTuple):
    """Bytes: of the weights, stored for the backward pass, and at the peak (with gradients, without Adam)."""

    weights: int
    stored: int
    peak: int
    tokens: int
    supervised_tokens: int


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, storage._cdata)

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor)
        return result


def count_step(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    rows: list[EncodedRow],
    batching: Batching,
    *,
    recompute: bool,
    **lora: object,
) -> Counted:
    """Count one forward and backward pass of a model with an adapter, for a batch of ``rows``."""
    settings = {"lora_r": 8, "lora_alpha": 32, "lora_dropout": 0.0, "use_rslora": False}
    settings |= {"lora_target_modules": list(LINEAR_PROJECTIONS)} | lora
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
        model = add_lora(model, **settings)
    model.train()
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch = batching.collate(rows)
    served_by(model)  # tried with real numbers, before the fakes
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        _give_storage(model)
        weights = live.live
        loss = supervised_loss(model, batch, 1)
        stored = live.live - weights
        loss.backward()
        peak = live.peak
    return Counted(weights, stored, peak, batching.tokens(rows), sum(len(row.answer_ids) for row in rows))


def _give_storage(model: torch.nn.Module) -> None:
    """Put fake tensors of a CPU in the places of those of the meta device; tied ones stay tied."""
    given: dict[torch.Tensor, torch.Tensor] = {}
    for module in model.modules():
        for places in (module._parameters, module._buffers):
            for name, tensor in places.items():
                if tensor is not None and tensor not in given:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    given[tensor] = torch.nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
                places[name] = None if tensor is None else given[tensor]
