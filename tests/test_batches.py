"""Batches: padding and gradient accumulation do not change the loss or the gradients."""

from __future__ import annotations

import pytest
import torch
from models import WHOLE, tiny_model, with_random_lora

from sft.engine.batches import EncodedRow, PaddedBatching
from sft.engine.loss import supervised_loss

PAD, IGNORED = 0, -100  # transformers' label for tokens that are not supervised
PADDED = PaddedBatching(PAD)
SHAPES = ((9, 3), (4, 1), (15, 6), (2, 2))  # (prompt tokens, answer tokens)


def make_rows() -> list[EncodedRow]:
    generator = torch.Generator().manual_seed(0)

    def some_ids(count: int) -> list[int]:
        return torch.randint(1, 500, (count,), generator=generator).tolist()

    return [EncodedRow(some_ids(p), some_ids(a), row) for row, (p, a) in enumerate(SHAPES, start=1)]


def supervised_tokens(rows: list[EncodedRow]) -> int:
    return sum(len(row.answer_ids) for row in rows)


def loss_and_gradients(model, micro_batches: list[list[EncodedRow]]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients summed over the micro-batches, as one optimizer step sees them."""
    model.zero_grad()
    tokens = supervised_tokens([row for rows in micro_batches for row in rows])
    total = 0.0
    for rows in micro_batches:
        loss = supervised_loss(model, PADDED.collate(rows), tokens)
        loss.backward()
        total += loss.item()
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("architecture", WHOLE)
class TestLoss:
    def test_a_padded_batch_has_the_loss_and_gradients_of_its_rows_alone(self, architecture):
        model = with_random_lora(tiny_model(architecture, torch.float64))
        rows = make_rows()
        together, gradients = loss_and_gradients(model, [rows])
        alone, gradients_alone = loss_and_gradients(model, [[row] for row in rows])
        assert together == pytest.approx(alone, rel=1e-10)
        assert gradients
        for name, gradient in gradients_alone.items():
            assert gradient.abs().max() > 0, name
            assert relative_error(gradients[name], gradient) < 1e-10, name

    def test_any_split_into_micro_batches_gives_the_same_step(self, architecture):
        model = with_random_lora(tiny_model(architecture, torch.float64))
        rows = make_rows()
        together, gradients = loss_and_gradients(model, [rows])
        split, gradients_split = loss_and_gradients(model, [rows[:1], rows[1:]])
        assert together == pytest.approx(split, rel=1e-10)
        for name, gradient in gradients.items():
            assert relative_error(gradients_split[name], gradient) < 1e-10, name

    def test_the_loss_of_a_row_is_transformers_own(self, architecture):
        model = with_random_lora(tiny_model(architecture))
        for row in make_rows():
            labels = torch.tensor([[IGNORED] * len(row.prompt_ids) + row.answer_ids])
            expected = model(input_ids=torch.tensor([row.prompt_ids + row.answer_ids]), labels=labels).loss
            loss = supervised_loss(model, PADDED.collate([row]), len(row.answer_ids))
            assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_only_the_head_of_supervised_columns_runs():
    model = tiny_model("qwen2")
    shapes = []
    model.lm_head.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    rows = make_rows()
    supervised_loss(model, PADDED.collate(rows), supervised_tokens(rows))
    assert [shape[1] for shape in shapes] == [1 + max(len(row.answer_ids) for row in rows)]


def test_a_bfloat16_models_loss_is_float32():
    rows = make_rows()
    model = tiny_model("qwen2", torch.bfloat16)
    assert supervised_loss(model, PADDED.collate(rows), 1).dtype == torch.float32


def test_labels_are_the_answers_own_ids_and_nothing_else():
    rows = make_rows()
    batch = PADDED.collate(rows)
    inputs = batch["inputs"]
    assert batch["lines"] == [row.line for row in rows]
    assert batch["labels"].tolist() == [token_id for row in rows for token_id in row.answer_ids]
    for index, row in enumerate(rows):
        real = inputs["attention_mask"][index].bool()
        assert inputs["input_ids"][index][real].tolist() == row.prompt_ids + row.answer_ids
        assert inputs["position_ids"][index][real].tolist() == list(range(len(row)))
        assert (inputs["input_ids"][index][~real] == PAD).all()
    next_ids = inputs["input_ids"][:, -inputs["logits_to_keep"] :][:, 1:]  # the token that each kept position predicts
    assert torch.equal(next_ids[batch["kept"]], batch["labels"])
