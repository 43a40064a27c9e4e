"""A rehearsal of the GPU path on a machine without one: tensors say ``cuda:0`` and compute on the CPU.

Every line of a program takes the branch that it takes on a GPU, with real numbers. The rehearsal notices what a GPU
would mind, and counts what makes it slow:

- an operator that mixes tensors of the CPU and of the GPU raises `MixedDevices`, as torch does on a GPU;
- every copy between the two and every place where the host waits for the GPU, with the line that asks for it;
- kernel launches: each operator that is no view counts as one.

Autocast and ``GradScaler`` are torch's own; only the casts of autocast are written here, because torch's ask for a
real CUDA tensor. Variable-length attention follows its documentation, and is refused below Ampere and in float32.

    with PretendGpu(capability=(7, 5)) as gpu:
        model.to("cuda")
    print(gpu.report())

It changes torch while it is entered; a whole script runs in a process of its own, see `tests.rehearsed_runs`. It knows
nothing of time, of kernels that a card lacks, and of nccl. torch's fused attention counts as its parts.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import NamedTuple
from unittest import mock

import torch
import torch._dynamo  # noqa: F401  before anything is changed
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
META = torch.device("meta")  # what torch takes such a tensor for
AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operators that launch nothing.
VIEWS = _words(
    "view _unsafe_view transpose t permute slice select expand unsqueeze squeeze as_strided detach alias unbind split "
    "split_with_sizes lift_fresh empty empty_like new_empty unflatten _reshape_alias empty_strided new_empty_strided "
    "reshape is_same_size chunk set_ diagonal unfold movedim resolve_conj resolve_neg is_pinned promote_types"
)
# The host waits: for a number, or for how large a result is.
WAITING = _words(
    "_local_scalar_dense nonzero unique_dim _unique2 unique_consecutive masked_select equal is_nonzero bincount"
)
INDEXING = _words("index index_put index_put_ _index_put_impl_ _unsafe_index _unsafe_index_put")
MASKS = (torch.bool, torch.uint8)
BETWEEN_DEVICES = _words("copy_ _to_copy set_ _foreach_copy_")

# What autocast computes in 16 bits and in float32, of the operators that a language model uses.
IN_16_BITS = _words(
    "linear matmul mm bmm mv addmm addmv addr baddbmm addbmm einsum scaled_dot_product_attention prelu conv1d"
)
IN_FLOAT32 = _words(
    "softmax.int log_softmax.int sum sum.dim_IntList prod cumsum cumprod exp log log2 log10 log1p expm1 rsqrt "
    "reciprocal pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar layer_norm rms_norm norm.Scalar norm.ScalarOpt_dim "
    "logsumexp nll_loss kl_div mse_loss"
)


class MixedDevices(RuntimeError):
    """An operator got tensors of the CPU and of the GPU."""


class Event(NamedTuple):
    """Something that a GPU minds.

    Attributes:
        kind: ``wait`` (the host waits for a result), ``copy`` (between the devices, and the host waits), or
            ``free copy`` (from pinned memory, without waiting).
        name: the operator.
        phase: ``step`` (inside the training loop, but not logging, evaluating or saving) or ``other``.
        where: the innermost line of the project, and the line of a library below it.
    """

    kind: str
    name: str
    phase: str
    where: str

    @property
    def waits(self) -> bool:
        return self.kind != "free copy"


class GpuTensor(torch.Tensor):
    """A CPU tensor, ``inner``, that says it is on the GPU."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor, requires_grad: bool = False):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=META,
            requires_grad=requires_grad,
            _extra_dispatch_keys=AUTOCAST,
        )

    def __init__(self, inner: torch.Tensor, requires_grad: bool = False) -> None:
        self.inner = inner

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return 0

    def __repr__(self) -> str:
        return f"Gpu{self.inner!r}"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else repr(self)

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __reduce_ex__(self, protocol):  # what torch.save writes
        return self.inner.__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        return GpuTensor(self.inner.clone(), self.requires_grad)

    def untyped_storage(self):
        return self.inner.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _compute(PretendGpu.current, func, args, kwargs or {})


# ---- operators ----


def _compute(gpu: PretendGpu, func, args: tuple, kwargs: dict):
    """Compute an operator on the CPU; the result is on the device where it would be."""
    name = func._schema.name.split("::")[1]
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    on_gpu = [leaf for leaf in leaves if isinstance(leaf, GpuTensor)]
    asked = kwargs.get("device")
    asked = None if asked is None else torch.device(asked).type
    to_gpu = asked in ("meta", "cuda")
    if not on_gpu and not to_gpu:
        return func(*args, **kwargs)
    on_cpu = [leaf for leaf in leaves if not isinstance(leaf, GpuTensor) and leaf.dim() > 0]
    if on_gpu and on_cpu and name not in INDEXING | BETWEEN_DEVICES:
        shapes = [(tuple(leaf.shape), "cuda" if isinstance(leaf, GpuTensor) else "cpu") for leaf in leaves]
        raise MixedDevices(f"{func} with {shapes} at {where()[1]}")
    gpu._note(_Call(name, func, args, kwargs, leaves, on_gpu, on_cpu, to_gpu, asked == "cpu"))
    inner_kwargs = {key: _inner(value) for key, value in kwargs.items() if key not in ("pin_memory", "non_blocking")}
    if to_gpu:
        inner_kwargs["device"] = torch.device("cpu")
    inner_args = tree_map(_inner, args)
    if name == "_varlen_attn" and on_gpu:
        out = _varlen_forward(gpu.capability, *inner_args, **inner_kwargs)
    elif name == "_varlen_attn_backward" and on_gpu:
        out = _varlen_backward(*inner_args, **inner_kwargs)
    else:
        out = func(*inner_args, **inner_kwargs)
    if asked == "cpu":
        return out
    if to_gpu and not on_gpu and any(out is argument for argument in inner_args):
        out = out.clone()
    wrapped = tree_map(gpu._wrap, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if on_gpu else wrapped


def _inner(value):
    return value.inner if isinstance(value, GpuTensor) else value


class _Call(NamedTuple):
    name: str
    func: object
    args: tuple
    kwargs: dict
    leaves: list
    on_gpu: list
    on_cpu: list
    to_gpu: bool
    to_cpu: bool

    def events(self, gpu: PretendGpu) -> Iterator[str]:
        """The kinds of `Event` that this call makes."""
        name = self.name
        if name == "_to_copy" and self.to_gpu and not self.on_gpu:
            yield self._copy(gpu, self.args[0], self.kwargs.get("non_blocking"))
        elif name == "_to_copy" and self.to_cpu:
            yield "copy"
        elif name == "copy_" and not isinstance(self.args[1], GpuTensor):
            if self.args[1].dim():
                asked = self.args[2] if len(self.args) > 2 else self.kwargs.get("non_blocking")
                yield self._copy(gpu, self.args[1], asked)
        elif name == "copy_" and not isinstance(self.args[0], GpuTensor):
            yield "copy"
        elif name in WAITING:
            yield "wait"
        elif name in INDEXING:
            yield from self._of_indexing()
        elif name == "repeat_interleave" and self.kwargs.get("output_size") is None:
            overload = self.func._overloadname
            if overload == "Tensor" or overload == "self_Tensor":
                yield "wait"

    @staticmethod
    def _copy(gpu: PretendGpu, source: torch.Tensor, non_blocking: bool | None) -> str:
        return "free copy" if non_blocking and gpu.is_pinned(source) else "copy"

    def _of_indexing(self) -> Iterator[str]:
        indices = [index for index in self.args[1] if isinstance(index, torch.Tensor)]
        fills = "put" in self.name and isinstance(self.args[2], torch.Tensor) and self.args[2].numel() == 1
        if any(index.dtype in MASKS for index in indices) and not (fills and len(indices) == 1):
            yield "wait"
        if any(not isinstance(index, GpuTensor) for index in indices):
            yield "copy"


# ---- variable-length attention, by its documentation ----


def _varlen_sequences(query, key, value, offsets_q, offsets_k, scale, window):
    """For each sequence: where its queries and keys are, these in float32 with a head each, and the weights.

    A query sees the keys up to its own place, counted from the lower right corner, or as the window says.
    """
    repeats = query.shape[1] // key.shape[1]
    ends_q, ends_k = offsets_q.tolist(), offsets_k.tolist()
    left, right = window
    for q0, q1, k0, k1 in zip(ends_q, ends_q[1:], ends_k, ends_k[1:], strict=False):
        q = query[q0:q1].float()
        k, v = (states[k0:k1].float().repeat_interleave(repeats, 1) for states in (key, value))
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        distance = torch.arange(k1 - k0) - torch.arange(q1 - q0)[:, None] - (k1 - k0 - (q1 - q0))
        hidden = torch.zeros_like(distance, dtype=torch.bool)
        hidden |= (distance > right) if right >= 0 else hidden
        hidden |= (distance < -left) if left >= 0 else hidden
        yield slice(q0, q1), slice(k0, k1), q, k, v, scores.masked_fill(hidden, -torch.inf).softmax(-1)


def _varlen_forward(
    capability,
    query,
    key,
    value,
    offsets_q,
    offsets_k,
    max_q,
    max_k,
    is_causal=False,
    scale=None,
    window=None,
    *others,
):
    if capability < (8, 0):
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")
    if query.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    assert query.dtype == key.dtype == value.dtype, (query.dtype, key.dtype, value.dtype)
    assert offsets_q.dtype == offsets_k.dtype == torch.int32
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1 and query.shape[2] % 8 == 0
    assert offsets_q[-1] == len(query) and offsets_k[-1] == len(key) == len(value)
    assert max_q == offsets_q.diff().max() and max_k == offsets_k.diff().max()
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    window = (-1, 0) if is_causal else tuple(window or (-1, -1))
    sequences = _varlen_sequences(query, key, value, offsets_q, offsets_k, scale, window)
    out = torch.cat([torch.einsum("hqk,khd->qhd", weights, v) for *_, v, weights in sequences]).to(query.dtype)
    return out, query.new_zeros((query.shape[1], len(query)), dtype=torch.float32), torch.zeros(2, dtype=torch.uint64)


def _varlen_backward(
    grad, query, key, value, out, lse, offsets_q, offsets_k, max_q, max_k, is_causal, rng, scale=None, window=None
):
    assert grad.dtype == query.dtype and grad.stride(-1) == 1, (grad.dtype, grad.stride())
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    window = (-1, 0) if is_causal else tuple(window or (-1, -1))
    of_query, of_key, of_value = (torch.zeros(states.shape) for states in (query, key, value))

    def shared(states: torch.Tensor) -> torch.Tensor:  # summed over the heads that share keys
        return states.unflatten(1, (key.shape[1], -1)).sum(2)

    for at, keys, q, k, v, weights in _varlen_sequences(query, key, value, offsets_q, offsets_k, scale, window):
        g = grad[at].float()
        of_weights = torch.einsum("qhd,khd->hqk", g, v)
        of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * scale
        of_query[at] = torch.einsum("hqk,khd->qhd", of_scores, k)
        of_key[keys] += shared(torch.einsum("hqk,qhd->khd", of_scores, q))
        of_value[keys] += shared(torch.einsum("hqk,qhd->khd", weights, g))
    return tuple(part.to(query.dtype) for part in (of_query, of_key, of_value))


# ---- autocast ----


class _Autocast:
    """The casts of ``torch.autocast("cuda")`` for `GpuTensor`; when they happen is up to torch's own dispatcher."""

    def __init__(self) -> None:
        self._library = torch.library.Library("aten", "IMPL")
        self._cast_weights: dict[int, tuple] = {}  # cast once while autocast is on, as torch does
        kernels = dict.fromkeys(IN_16_BITS) | dict.fromkeys(IN_FLOAT32, torch.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that torch's own are no longer used
            for name, dtype in kernels.items():
                self._library.impl(name, self._kernel(name, dtype), "AutocastCUDA", allow_override=True)

    def forget_weights(self) -> None:
        self._cast_weights.clear()

    def _kernel(self, name: str, dtype: torch.dtype | None):
        packet, _, overload = name.partition(".")
        operator = getattr(getattr(torch.ops.aten, packet), overload or "default")

        def kernel(*args, **kwargs):
            wanted = torch.get_autocast_dtype("cuda") if dtype is None else dtype
            with torch._C._ExcludeDispatchKeyGuard(AUTOCAST):
                if dtype is not None and "dtype" in kwargs:
                    return operator(*args, **kwargs)
                cast = lambda value: self._cast(value, wanted)  # noqa: E731
                return operator(*tree_map(cast, args), **tree_map(cast, kwargs))

        return kernel

    def _cast(self, value, dtype: torch.dtype):
        eligible = isinstance(value, GpuTensor) and value.is_floating_point() and value.dtype != torch.float64
        if not eligible or value.dtype == dtype:
            return value
        is_weight = value.dtype == torch.float32 and value.is_leaf and value.requires_grad
        if not (is_weight and dtype != torch.float32 and torch.is_autocast_cache_enabled()):
            return value.to(dtype)
        if id(value) not in self._cast_weights:
            self._cast_weights[id(value)] = (value, value.to(dtype))
        return self._cast_weights[id(value)][1]


# ---- modes ----


class _Dispatch(TorchDispatchMode):
    def __init__(self, gpu: PretendGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _compute(self.gpu, func, args, kwargs or {})


class _Devices(TorchFunctionMode):
    """``cuda`` in any call becomes ``meta``, which `_compute` takes for the GPU."""

    def __init__(self, gpu: PretendGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and _is_cuda(kwargs.get("device")):
            return func(*args, **{key: value for key, value in kwargs.items() if key != "device"}).to(META)
        if func is torch.Tensor.tolist and isinstance(args[0], GpuTensor):
            self.gpu._event("wait", "tolist")
            return args[0].inner.tolist()
        if func in (torch.Tensor.numpy, torch.Tensor.__array__) and isinstance(args[0], GpuTensor):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if func is torch.Tensor.pin_memory:
            return self.gpu.pin(args[0])
        if func is torch.Tensor.is_pinned:
            return self.gpu.is_pinned(args[0])
        if func is torch.Tensor.cuda:
            return args[0].to(META, non_blocking=kwargs.get("non_blocking", False))
        if _is_cuda(kwargs.get("device")):
            kwargs = kwargs | {"device": META}
        if name == "to":
            args = tuple(META if _is_cuda(arg) else arg for arg in args)
        pinned = bool(kwargs.pop("pin_memory", False)) if "pin_memory" in kwargs else False
        out = func(*args, **kwargs)
        return self.gpu.pin(out) if pinned else out


def _is_cuda(value: object) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.startswith("cuda")


class PretendGpu:
    """Within this, ``cuda`` is a device.

    Args:
        capability: the compute capability: (7, 5) is Turing, (8, 0) Ampere.
        memory_bytes: of the card; more than that on it at once raises ``torch.OutOfMemoryError``.
        count: how many such cards are visible. Tensors are only ever on the first.

    Attributes:
        launches: by operator.
        events: what a GPU minds, counted.
        allocated_bytes: of the tensors on the card now; ``peak_bytes`` is the most since the start.
    """

    current: PretendGpu

    def __init__(self, capability: tuple[int, int] = (8, 0), memory_bytes: int = 24 * 10**9, count: int = 1) -> None:
        self.capability, self.memory_bytes, self.count = capability, memory_bytes, count
        self.launches: Counter[str] = Counter()
        self.events: Counter[Event] = Counter()
        self.allocated_bytes = self.peak_bytes = 0
        self._sizes: dict[int, int] = {}
        self._pinned: dict[int, torch.UntypedStorage] = {}
        self._stack = ExitStack()

    # ---- what a test reads ----

    def reset(self) -> None:
        """Count from zero."""
        self.launches.clear()
        self.events.clear()
        self.peak_bytes = self.allocated_bytes

    def waits(self, phase: str | None = None) -> Counter[Event]:
        """Where the host waited for the GPU, in one phase or in all."""
        chosen = (item for item in self.events.items() if item[0].waits and phase in (None, item[0].phase))
        return Counter(dict(chosen))

    def report(self) -> str:
        """Launches, then events, most first."""
        lines = [f"{self.launches.total()} launches: {dict(self.launches.most_common(12))}"]
        lines += [f"{count:6d}  {' '.join(event)}" for event, count in self.events.most_common()]
        return "\n".join(lines)

    # ---- what the tensors tell ----

    def _note(self, call: _Call) -> None:
        if call.name not in VIEWS:
            self.launches[call.name] += 1
        for kind in call.events(self):
            self._event(kind, call.name)

    def _event(self, kind: str, name: str) -> None:
        self.events[Event(kind, name, *where())] += 1

    def _wrap(self, value):
        if not isinstance(value, torch.Tensor) or isinstance(value, GpuTensor):
            return value
        self._allocate(value.untyped_storage())
        return GpuTensor(value)

    def _allocate(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self._sizes or not size:
            return
        if self.allocated_bytes + size > self.memory_bytes:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. {size} bytes wanted, {self.allocated_bytes} of {self.memory_bytes} used"
            )
        self._sizes[address] = size
        self.allocated_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.allocated_bytes)
        weakref.finalize(storage, self._free, address).atexit = False

    def _free(self, address: int) -> None:
        self.allocated_bytes -= self._sizes.pop(address, 0)

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy in pinned memory."""
        tensor = tensor.clone()
        storage = tensor.untyped_storage()
        self._pinned[storage.data_ptr()] = storage  # kept, so that no other tensor gets its address
        return tensor

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor, or what it is a view of, is in pinned memory."""
        return not isinstance(tensor, GpuTensor) and tensor.untyped_storage().data_ptr() in self._pinned

    # ---- torch, changed ----

    def __enter__(self) -> PretendGpu:
        PretendGpu.current = self
        enter = self._stack.enter_context
        before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        self._stack.callback(torch._C._set_only_lift_cpu_tensors, before)
        for module, changes in ((torch.cuda, self._cuda()), (torch.accelerator, self._accelerator())):
            for name, value in changes.items():
                enter(mock.patch.object(module, name, value))
        state = torch.zeros(16, dtype=torch.uint8)
        for name in ("get_rng_state", "set_rng_state", "get_rng_state_all", "set_rng_state_all"):
            enter(mock.patch.object(torch.cuda.random, name, lambda *_, **__: state))
            enter(mock.patch.object(torch.cuda, name, lambda *_, **__: state))
        autocast, forget = _autocast(), torch.clear_autocast_cache

        def clear_autocast_cache() -> None:
            autocast.forget_weights()
            forget()

        enter(mock.patch.object(torch, "clear_autocast_cache", clear_autocast_cache))
        enter(_Devices(self))
        enter(_Dispatch(self))
        return self

    def _cuda(self) -> dict[str, object]:
        def nothing(*_, **__) -> None:
            return None

        def synchronize(*_, **__) -> None:
            self._event("wait", "synchronize")

        quiet = _words("_lazy_init init set_device empty_cache manual_seed_all manual_seed reset_peak_memory_stats")
        return dict.fromkeys(quiet, nothing) | {
            "synchronize": synchronize,
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "device_count": lambda: self.count,
            "current_device": lambda: 0,
            "_exchange_device": lambda *_: 0,
            "_maybe_exchange_device": lambda *_: 0,
            "get_device_capability": lambda *_: self.capability,
            "get_device_name": lambda *_: "pretend",
            "is_bf16_supported": lambda *_, **__: self.capability >= (8, 0),
            "mem_get_info": lambda *_: (self.memory_bytes - self.allocated_bytes, self.memory_bytes),
            "memory_allocated": lambda *_: self.allocated_bytes,
            "max_memory_allocated": lambda *_: self.peak_bytes,
            "memory_reserved": lambda *_: self.allocated_bytes,
            "max_memory_reserved": lambda *_: self.peak_bytes,
        }

    def _accelerator(self) -> dict[str, object]:
        cuda = self._cuda()
        stream = SimpleNamespace(is_capturing=lambda: False, synchronize=cuda["synchronize"])
        return {
            "current_stream": lambda *_: stream,
            "is_available": lambda: True,
            "device_count": lambda: self.count,
            "current_accelerator": lambda *_, **__: torch.device("cuda"),
            "current_device_index": lambda: 0,
            "synchronize": cuda["synchronize"],
            "empty_cache": cuda["empty_cache"],
            "memory_allocated": cuda["memory_allocated"],
            "max_memory_allocated": cuda["max_memory_allocated"],
        }

    def __exit__(self, *error) -> None:
        self._stack.close()


_registered: list[_Autocast] = []


def _autocast() -> _Autocast:
    """The casts of autocast, registered once a process: they cannot be taken back, and touch no other tensor."""
    if not _registered:
        _registered.append(_Autocast())
    return _registered[0]


# ---- where something happened ----

SKIPPED = ("/pretend_gpu.py", "<frozen", "/torch/_", "/torch/utils/_", "/torch/overrides", "/contextlib.py")
NOT_A_STEP = _words("_maybe_log_save_evaluate _evaluate evaluate _save_checkpoint log _finish_step")


def where() -> tuple[str, str]:
    """``(phase, line)`` of what is running now, see `Event`."""
    phase, inner, library = "other", "", ""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path, function = frame.f_code.co_filename, frame.f_code.co_name
        if not inner and not any(part in path for part in SKIPPED):
            if "site-packages/" in path:
                library = library or f"{path.split('site-packages/')[1]}:{frame.f_lineno}"
            else:
                parts = Path(path).parts
                inner = "/".join(parts[parts.index("sft") :] if "sft" in parts else parts[-1:]) + f":{frame.f_lineno}"
        if function in NOT_A_STEP and "logging" not in path:
            break
        if function == "_run_epoch":
            phase = "step"
            break
        frame = frame.f_back
    return phase, f"{inner} {library}".strip()
