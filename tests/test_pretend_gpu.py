"""The pretend GPU notices what a real one would mind, and nothing else."""

from __future__ import annotations

import pytest
import torch
from pretend_gpu import MixedDevices, PretendGpu
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import linear, scaled_dot_product_attention

HALF = {"rtol": 2e-2, "atol": 2e-2}


@pytest.fixture
def gpu():
    with PretendGpu() as gpu:
        yield gpu


def ones(*shape: int, **settings) -> torch.Tensor:
    return torch.ones(shape, device="cuda", **settings)


def test_tensors_say_that_they_are_on_the_gpu_and_have_the_numbers_of_the_cpu(gpu):
    ours = torch.arange(6.0).reshape(2, 3).to("cuda")
    for tensor in (
        ours,
        ours + 1,
        ours.T,
        ours.clone(),
        torch.zeros(2, device="cuda"),
        torch.tensor([1], device="cuda"),
    ):
        assert tensor.device == torch.device("cuda", 0)
        assert tensor.is_cuda
    assert (ours @ ours.T).cpu().tolist() == (
        torch.arange(6.0).reshape(2, 3) @ torch.arange(6.0).reshape(2, 3).T
    ).tolist()
    assert ours.cpu().device.type == "cpu"


class TestMixedDevices:
    @pytest.mark.parametrize(
        "mix",
        [
            lambda ours, cpu: ours + cpu,
            lambda ours, cpu: ours @ cpu,
            lambda ours, cpu: torch.cat((ours, cpu)),
            lambda ours, cpu: torch.where(ours > 0, ours, cpu),
            lambda ours, cpu: ours.index_select(0, torch.tensor([0])),
            lambda ours, cpu: scaled_dot_product_attention(
                ours[None], ours[None], ours[None], attn_mask=cpu[None] > 0
            ),
        ],
    )
    def test_they_are_refused_with_the_operator_and_the_line(self, mix, gpu):
        with pytest.raises(MixedDevices, match=r"aten\.\w+.*'cuda'.*'cpu'.* at test_pretend_gpu\.py:\d+"):
            mix(ones(3, 3), torch.ones(3, 3))

    def test_a_number_of_the_cpu_may_meet_a_tensor_of_the_gpu(self, gpu):
        assert (ones(2) * torch.tensor(3.0) + 1).cpu().tolist() == [4, 4]

    def test_numpy_wants_a_tensor_of_the_cpu(self, gpu):
        with pytest.raises(TypeError, match="cuda:0"):
            ones(2).numpy()


class TestWaits:
    @pytest.mark.parametrize(
        "wait",
        [
            lambda x: x.sum().item(),
            lambda x: float(x.sum()),
            lambda x: bool((x > 0).all()),
            lambda x: x.tolist(),
            lambda x: x.cpu(),
            lambda x: x.to("cpu", non_blocking=True),
            lambda x: x.nonzero(),
            lambda x: x[x > 0],
            lambda x: x.unique(),
            lambda x: torch.equal(x, x),
            lambda x: x.repeat_interleave(torch.ones(3, dtype=torch.long, device="cuda")),
            lambda x: torch.ones(3).to("cuda"),
            lambda x: torch.ones(3).to("cuda", non_blocking=True),  # not pinned
            lambda x: torch.ones(3).pin_memory().to("cuda"),
            lambda x: torch.tensor([1, 2], device="cuda"),
            lambda x: x.copy_(torch.ones(3)),
            lambda x: x[torch.tensor([0])],
            lambda x: torch.cuda.synchronize(),
        ],
    )  # fmt: skip
    def test_one_is_one_with_the_line_that_waits(self, wait, gpu):
        x = ones(3)
        gpu.reset()
        wait(x)
        ((event, count),) = gpu.waits().items()
        assert count == 1
        assert event.where.startswith("test_pretend_gpu.py:")

    @pytest.mark.parametrize(
        "call",
        [
            lambda x: (x * 2 + 1).softmax(-1).sum(),
            lambda x: x[torch.zeros(1, dtype=torch.long, device="cuda")],
            lambda x: x.index_select(0, torch.zeros(1, dtype=torch.long, device="cuda")),
            lambda x: x.masked_fill(x > 0, 1),
            lambda x: torch.arange(3, device="cuda").repeat_interleave(2),
            lambda x: torch.ones(3).pin_memory().to("cuda", non_blocking=True),
            lambda x: torch.ones(4).pin_memory()[1:].to("cuda", non_blocking=True),
            lambda x: x.view(torch.uint8)[4:].view(torch.float32),
            lambda x: x.tolist if x.dim() else None,
        ],
    )
    def test_what_a_gpu_does_alone_is_none(self, call, gpu):
        x = ones(3)
        gpu.reset()
        call(x)
        assert not gpu.waits()


def test_a_launch_is_an_operator_that_computes(gpu):
    x = ones(4, 4)
    gpu.reset()
    x.T.reshape(2, 8)[0].add_(1)
    assert gpu.launches == {"add_": 1, "clone": 1}


class TestAutocast:
    def test_products_are_in_16_bits_and_sums_in_32(self, gpu):
        x, weight = ones(2, 3), ones(4, 3)
        with torch.autocast("cuda", torch.float16):
            product = linear(x, weight)
            dtypes = [product.dtype, (x @ weight.T).dtype, product.softmax(-1).dtype, product.sum().dtype]
            dtypes += [(product + product).dtype, product.pow(2).dtype]
        half, full = torch.float16, torch.float32
        assert dtypes == [half, half, full, full, half, full]
        assert linear(x, weight).dtype == full

    def test_a_weight_is_cast_once_and_has_a_gradient_of_its_own_dtype(self, gpu):
        weight = torch.nn.Parameter(ones(4, 3))
        gpu.reset()
        with torch.autocast("cuda", torch.float16):
            x = ones(2, 3, dtype=torch.float16)
            loss = sum(linear(x, weight).float().sum() for _ in range(3))
        casts = gpu.launches["_to_copy"]
        loss.backward()
        assert casts == 1 + 3  # the weight, and each product's .float()
        assert weight.grad.dtype == torch.float32
        assert weight.grad.cpu().tolist() == [[6.0] * 3] * 4

    def test_a_scaler_skips_the_step_with_an_inf_and_scales_less(self, gpu):
        weight = torch.nn.Parameter(ones(2))
        optimizer, scaler = torch.optim.AdamW([weight], lr=0.1), torch.amp.GradScaler("cuda")
        for gradient, moved in ((torch.inf, False), (1.0, True)):
            before = weight.detach().clone()
            scaler.scale((weight * gradient).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            assert torch.equal(before, weight.detach()) is not moved
        assert scaler.get_scale() == 65536 / 2


class TestVariableLengthAttention:
    QUERIES, KEYS = [3, 1, 5], [3, 4, 9]

    def inputs(self, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        shapes = [(sum(self.QUERIES), 4, 8), (sum(self.KEYS), 2, 8), (sum(self.KEYS), 2, 8)]
        drawn = [torch.randn(shape, generator=generator).to(torch.bfloat16) for shape in shapes]
        return [states.to(device, dtype).requires_grad_() for states in drawn]

    def attend(self, query, key, value) -> torch.Tensor:
        offsets = [torch.tensor([0, *lengths]).cumsum(0).int().to("cuda") for lengths in (self.QUERIES, self.KEYS)]
        longest = max(self.QUERIES), max(self.KEYS)
        return varlen_attn(query, key, value, *offsets, *longest, window_size=(-1, 0), enable_gqa=True)

    def test_it_is_attention_of_each_sequence_aligned_at_the_lower_right(self, gpu):
        inputs, plain = self.inputs("cuda", torch.bfloat16), self.inputs("cpu", torch.float32)
        ours, parts = self.attend(*inputs), []
        for q, k, v in zip(*(states.split(n) for states, n in zip(plain, self.lengths(), strict=True)), strict=True):
            seen = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
            q, k, v = (states.transpose(0, 1)[None] for states in (q, k, v))
            parts.append(scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)[0].transpose(0, 1))
        theirs = torch.cat(parts)
        assert torch.allclose(ours.detach().cpu().float(), theirs, **HALF)
        weights = torch.arange(theirs.numel()).reshape(theirs.shape) % 7 / 7
        gradients = torch.autograd.grad((ours * weights.to("cuda", torch.bfloat16)).sum(), inputs)
        for our, their in zip(gradients, torch.autograd.grad((theirs * weights).sum(), plain), strict=True):
            assert torch.allclose(our.cpu().float(), their, **HALF)

    def lengths(self) -> list[list[int]]:
        return [self.QUERIES, self.KEYS, self.KEYS]

    def test_float32_and_older_cards_are_refused(self, gpu):
        with pytest.raises(RuntimeError, match="fp16 and bf16"):
            self.attend(*self.inputs("cuda", torch.float32))
        gpu.capability = (7, 5)
        with pytest.raises(RuntimeError, match="Ampere"):
            self.attend(*self.inputs("cuda", torch.float16))


def test_memory_is_counted_and_ends():
    with PretendGpu(memory_bytes=1000) as gpu:
        first = ones(100)
        assert gpu.allocated_bytes == 400
        view = first[50:]
        del first
        assert gpu.allocated_bytes == 400  # the view keeps it
        with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
            ones(200)
        del view
        assert (gpu.allocated_bytes, gpu.peak_bytes) == (0, 400)
        assert torch.cuda.mem_get_info() == (1000, 1000)
    assert not torch.cuda.is_available() or torch.version.cuda is not None
