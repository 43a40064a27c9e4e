"""What a training step of the 1.5B model asks of a GPU, counted with fake tensors, stays within bounds."""

from __future__ import annotations

import pytest

from benchmarks.step_counts import count_step


@pytest.fixture(scope="module")
def step():
    return count_step(node=True)


def test_a_step_launches_few_kernels_and_moves_little(step):
    assert 3500 < step.launches <= 4350
    assert 10e9 < step.traffic_bytes <= 30e9


def test_a_step_saves_little_for_the_backward_pass(step):
    assert 80e3 < step.saved_bytes <= 105e3


def test_a_usual_step_fits_into_6_gb_and_with_checkpointing_into_4(step):
    weights = 3.0e9
    assert weights < step.peak_bytes <= 5.5e9
    assert weights < count_step(node=True, checkpointing=True).peak_bytes <= 3.6e9


def test_peft_s_own_layers_ask_for_more_in_every_respect():
    """The counter sees the difference, so the bounds above hold because of the node."""
    theirs, ours = count_step(node=False, layers=2), count_step(node=True, layers=2)
    assert all(more > less for more, less in zip(theirs, ours, strict=True))
