"""Count what one training step of the 1.5B model asks of a GPU: launches, traffic, saved bytes, peak memory.

    python -m benchmarks.step_counts

No GPU and no weights: the tensors are fake, they have sizes but no numbers, and the step is the one that runs on a GPU
(bfloat16, variable-length attention). A launch is an operator that is no view. Element-wise traffic is what all
operators but matrix products and attention read and write. The peak is that of all live tensors, the optimizer's
included; a real card adds its context and what the allocator cannot use.
"""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, Qwen2Config

from sft.engine.batches import EncodedRow, PrefixTreeBatching
from sft.engine.lora_node import adapters_copied, one_node_layers, use_lora_node
from sft.engine.loss import supervised_loss
from sft.engine.served import served_by
from tests.models import LINEAR_PROJECTIONS

# Qwen2.5-1.5B's shape.
SHAPE = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "vocab_size": 151936}
SHAPE |= {"num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True}
PREFIX_TOKENS, ROWS, OWN_TOKENS, ANSWER_TOKENS = 105, 16, 650, 19  # a usual step of NER: 755 tokens
GB = 1e9
NO_LAUNCH = {
    "view", "_unsafe_view", "transpose", "t", "permute", "slice", "select", "expand", "unsqueeze", "squeeze", "detach",
    "as_strided", "alias", "unbind", "split", "split_with_sizes", "lift_fresh", "empty", "empty_like", "new_empty",
    "empty_strided", "new_empty_strided", "_reshape_alias", "unflatten", "is_same_size", "promote_types",
}  # fmt: skip
MATRIX = {"mm", "addmm", "addmm_", "bmm", "_varlen_attn", "_varlen_attn_backward"}
TAKING = {"embedding", "gather", "index_select", "index"}  # they read as much as they write


class Counts(NamedTuple):
    """One step, forward and backward pass.

    Attributes:
        launches: kernels, without those of the optimizer.
        traffic_bytes: of element-wise operators.
        saved_bytes: kept by autograd for the backward pass, for each token and layer.
        peak_bytes: of all live tensors, with gradients and the optimizer's.
    """

    launches: int
    traffic_bytes: int
    saved_bytes: float
    peak_bytes: int


class Counter(TorchDispatchMode):
    """Counts launches and traffic, and follows the live memory."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.traffic_bytes = self.live_bytes = self.peak_bytes = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **keywords or {})
        space, name = function._schema.name.split("::")
        written = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        for tensor in written:
            self.follow(tensor)
        if name not in NO_LAUNCH and space != "prim":
            self.launches += 1
            if name not in MATRIX:
                read = [leaf for leaf in tree_leaves((arguments, keywords)) if isinstance(leaf, torch.Tensor)]
                self.traffic_bytes += sum(map(_bytes_of, written if name in TAKING else read))
                self.traffic_bytes += sum(map(_bytes_of, written))
        return result

    def follow(self, tensor: torch.Tensor) -> None:
        """Count a tensor's memory as live until it is freed."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.live_bytes += storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
            weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())

    def _freed(self, key: int, count: int) -> None:
        self._known.discard(key)
        self.live_bytes -= count


def _bytes_of(tensor: torch.Tensor) -> int:
    """What is read or written of a tensor: an expanded dimension is there once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count * tensor.element_size()


def count_step(*, node: bool, checkpointing: bool = False, layers: int = SHAPE["num_hidden_layers"]) -> Counts:
    """Run one step of the model as fakes and count.

    Args:
        node: LoRA layers as one node; PEFT's own without.
        checkpointing: gradient checkpointing.
        layers: of the model.
    """
    rows = []
    for index in range(ROWS):
        own = OWN_TOKENS // ROWS + (index < OWN_TOKENS % ROWS) - ANSWER_TOKENS + 1
        rows.append(EncodedRow([1] * PREFIX_TOKENS + [2 + index] * own, [5] * ANSWER_TOKENS, index))
    batching = PrefixTreeBatching(varlen=True)
    batch = batching.collate(rows)
    model = _model(layers)
    served_by(model)  # tried with real numbers, before the fakes
    if node:
        use_lora_node(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _make_fake(model)
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable()
        model.train()
        counter = Counter()
        weights = list(model.parameters())
        trained = [parameter for parameter in weights if parameter.requires_grad]
        moments = [torch.empty_like(parameter) for parameter in trained for _ in range(2)]
        for tensor in [*weights, *model.buffers(), *moments]:
            counter.follow(tensor)
        own = {tensor.untyped_storage()._cdata for tensor in [*weights, *model.buffers()]}
        saved: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                saved[storage._cdata] = storage.nbytes()
            return tensor

        with counter, adapters_copied(one_node_layers(model)):
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = supervised_loss(model, batch, ROWS * ANSWER_TOKENS)
            loss.backward()
    tokens = batching.tokens(rows)
    return Counts(counter.launches, counter.traffic_bytes, sum(saved.values()) / (tokens * layers), counter.peak_bytes)


def _model(layers: int) -> torch.nn.Module:
    """The model with a new adapter; sizes only, on the device "meta"."""
    with torch.device("meta"):
        config = Qwen2Config(**SHAPE | {"num_hidden_layers": layers})
        base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
        return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=LINEAR_PROJECTIONS))


def _make_fake(model: torch.nn.Module) -> None:
    """Give the model fake weights and buffers instead of those without memory; called inside the mode of fakes."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) not in made:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    trained = isinstance(tensor, torch.nn.Parameter)
                    made[id(tensor)] = torch.nn.Parameter(fake, tensor.requires_grad) if trained else fake
                tensors[name] = None if tensor is None else made[id(tensor)]


def main() -> None:
    """Print a table."""
    print("| | launches | traffic, GB | saved, KB a token a layer | peak, GB |\n|---|---|---|---|---|")
    for title, settings in (
        ("PEFT's layers", {"node": False}),
        ("one node", {"node": True}),
        ("one node, gradient checkpointing", {"node": True, "checkpointing": True}),
    ):
        found = count_step(**settings)
        print(
            f"| {title} | {found.launches:,} | {found.traffic_bytes / GB:.1f} | {found.saved_bytes / 1e3:.1f} "
            f"| {found.peak_bytes / GB:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
