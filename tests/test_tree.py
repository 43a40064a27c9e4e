"""A batch as a prefix tree computes what one row at a time computes: loss, every gradient, the trained adapter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.attention import can_express, use_tree_attention
from sft.batches import collate_padded, padded_tokens, split_rows, supervised_loss
from sft.encoding import EncodedRow
from sft.tree import collate_tree, common_prefix_tokens, tree_tokens
from tests.models import SLIDING, WHOLE, tiny_model, with_random_lora

TOKENS = st.integers(0, 479)


@st.composite
def batches(draw, longest: int = 40) -> list[EncodedRow]:
    """Rows with a common beginning (or none), some alike, some whose whole prompt is shared."""
    shared = draw(st.lists(TOKENS, max_size=longest))
    rows = []
    for line in range(1, draw(st.integers(1, 6)) + 1):
        own = draw(st.lists(TOKENS, min_size=0 if shared else 1, max_size=longest))
        rows.append(EncodedRow(shared + own, draw(st.lists(TOKENS, min_size=1, max_size=8)), line))
    return rows + draw(st.sampled_from(([], rows[:1])))


def in_float64(model):
    """The model with RMSNorm in float64 too: transformers' own rounds to float32 inside, forward and backward."""
    model = model.double()

    def forward(self, states):
        return self.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = forward.__get__(module)
    return model


def loss_and_gradients(model, pieces: list[dict], supervised_tokens: int) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = 0.0
    for piece in pieces:
        part = supervised_loss(model, piece, supervised_tokens)
        part.backward()
        loss += part.item()
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(ours, theirs, tolerance: float) -> None:
    (our_loss, our_gradients), (their_loss, their_gradients) = ours, theirs
    assert abs(our_loss - their_loss) <= tolerance * abs(their_loss)
    assert our_gradients.keys() == their_gradients.keys() and our_gradients
    norm = torch.linalg.vector_norm
    largest = max(norm(gradient) for gradient in their_gradients.values())
    for name, gradient in their_gradients.items():
        # A token that attends to itself alone has no gradient at its query: rounding noise is compared with the rest.
        assert norm(our_gradients[name] - gradient) <= tolerance * norm(gradient).clamp_min(1e-2 * largest), name


@pytest.fixture(scope="module", params=WHOLE)
def exact_model(request):
    """A float64 model with an adapter whose every gradient is alive, and the base under it."""
    base = tiny_model(request.param, torch.float64)
    return in_float64(with_random_lora(base)), base


@settings(max_examples=40, deadline=None)
@given(rows=batches())
def test_loss_and_gradients_are_those_of_one_row_at_a_time(exact_model, rows):
    model, base = exact_model
    supervised_tokens = sum(len(row.answer_ids) for row in rows)
    base.set_attn_implementation("sdpa")
    alone = loss_and_gradients(model, [collate_padded([row], 0) for row in rows], supervised_tokens)
    use_tree_attention(base)
    assert_equal(loss_and_gradients(model, [collate_tree(rows)], supervised_tokens), alone, 1e-10)


@settings(max_examples=10, deadline=None)
@given(rows=batches(), max_tokens=st.integers(1, 200))
def test_pieces_of_a_batch_add_up_to_the_batch(exact_model, rows, max_tokens):
    model, base = exact_model
    use_tree_attention(base)
    supervised_tokens = sum(len(row.answer_ids) for row in rows)
    pieces = split_rows(rows, max_tokens, tree_tokens)
    assert sorted(row.row for piece in pieces for row in piece) == sorted(row.row for row in rows)
    assert all(len(piece) == 1 or tree_tokens(piece) <= max_tokens for piece in pieces)
    whole = loss_and_gradients(model, [collate_tree(rows)], supervised_tokens)
    assert_equal(loss_and_gradients(model, list(map(collate_tree, pieces)), supervised_tokens), whole, 1e-10)


def test_no_rows_are_no_pieces():
    assert split_rows([], 10, tree_tokens) == []


@pytest.mark.parametrize("architecture", WHOLE)
def test_long_rows_in_float32_with_gradient_checkpointing_agree_to_1e_5(architecture):
    shared = list(range(100, 300))
    rows = [EncodedRow(shared + [(7 * k + line) % 480 for k in range(600 * line)], [3, 5], line) for line in (1, 2, 3)]
    base = tiny_model(architecture)
    model = with_random_lora(base)
    alone = loss_and_gradients(model, [collate_padded([row], 0) for row in rows], 6)
    use_tree_attention(base)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    assert_equal(loss_and_gradients(model, [collate_tree(rows)], 6), alone, 3e-5)


@given(rows=batches())
def test_a_tree_never_has_more_tokens_than_the_rows(rows):
    batch = collate_tree(rows)
    assert batch["input_ids"].numel() == tree_tokens(rows) <= padded_tokens(rows)
    assert common_prefix_tokens(rows) <= min(len(row.prompt_ids) for row in rows)


@given(rows=batches())
def test_every_position_is_that_of_its_own_row(rows):
    """Following the tree back from each supervised token gives the row it came from."""
    batch = collate_tree(rows)
    ids, positions, sources = batch["input_ids"][0], batch["position_ids"][0], batch["sources"]
    expected = [len(row.prompt_ids) - 1 + index for row in rows for index in range(len(row.answer_ids))]
    assert positions[sources].tolist() == expected
    assert batch["labels"][0].tolist() == [token for row in rows for token in row.answer_ids]
    read = [
        (row.prompt_ids + row.answer_ids)[position]
        for row, position in zip([row for row in rows for _ in row.answer_ids], expected, strict=True)
    ]
    assert ids[sources].tolist() == read


def test_a_window_that_no_row_exceeds_is_full_attention():
    for architecture in SLIDING:
        model = tiny_model(architecture)
        assert can_express(model.config, 12) and not can_express(model.config, 13)
    assert can_express(tiny_model("qwen2").config, 10**6)


@pytest.mark.parametrize("architecture", WHOLE)
def test_six_steps_of_adamw_end_at_the_adapter_of_padded_batches(architecture):
    torch.manual_seed(0)
    shared = torch.randint(480, (30,)).tolist()
    steps = [
        [
            EncodedRow(shared + torch.randint(480, (k + 1,)).tolist(), torch.randint(480, (k % 4 + 1,)).tolist(), k)
            for k in range(8)
        ]
        for _ in range(6)
    ]
    adapters = []
    for as_tree in (True, False):
        base = tiny_model(architecture)
        model = with_random_lora(base)
        if as_tree:
            use_tree_attention(base)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-3)
        for rows in steps:
            optimizer.zero_grad()
            supervised_loss(model, collate_tree(rows) if as_tree else collate_padded(rows, 0), 20).backward()
            optimizer.step()
        adapters.append(torch.cat([p.detach().flatten() for p in parameters]))
    ours, theirs = adapters
    assert torch.linalg.vector_norm(ours - theirs) <= 1e-3 * torch.linalg.vector_norm(theirs)
