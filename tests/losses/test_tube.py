"""The semantic tube against a plain loop, and trajectories whose cost is known."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import randn, refusals

from jepa.losses.tube import semantic_tube


def by_loop(states):
    total = 0.0
    for s, r, t in states:
        onward, before = t - r, r - s
        total = total + 1 - (onward * before).sum() / (onward.square().sum() * before.square().sum()).sqrt()
    return total / len(states)


@pytest.mark.parametrize("count", [1, 5])
def test_value_and_gradient_equal_the_loop(count):
    states = randn(count, 3, 6).requires_grad_()
    ours, theirs = semantic_tube(states), by_loop(states)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(theirs, states)
    torch.testing.assert_close(torch.autograd.grad(ours, states), expected, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(semantic_tube, (states,))


@pytest.mark.parametrize("degrees", [0, 60, 90, 180])
def test_a_turn_costs_one_less_its_cosine(degrees):
    angle = math.radians(degrees)
    steps = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.5 * math.cos(angle), 0.5 * math.sin(angle)]]).double()
    assert semantic_tube(steps.cumsum(0)[None] + 7).item() == pytest.approx(1 - math.cos(angle), abs=1e-7)


def test_states_that_stand_still_have_no_gradient():
    states = randn(2, 3, 4)
    states[0, 2] = states[0, 1]
    states.requires_grad_()
    value = semantic_tube(states)
    (gradient,) = torch.autograd.grad(value, states)
    assert value.item() == pytest.approx((1 + by_loop(states[1:]).item()) / 2)
    assert not gradient[0].any()
    assert gradient[1].any()


def test_half_precision_is_subtracted_in_float32():
    states = (randn(64, 3, 8) * 0.01 + 1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert semantic_tube(states) == semantic_tube(states.float())


test_bad_states_are_refused = refusals(
    (torch.zeros(3, 4), r"states must be \(N, 3, E\) with N, E >= 1, got \(3, 4\)"),
    (torch.zeros(2, 4, 5), r"got \(2, 4, 5\)"),
    (torch.zeros(0, 3, 4), r"got \(0, 3, 4\)"),
    (torch.zeros(2, 3, 4).long(), r"states must be floating point, got torch\.int64"),
    of=semantic_tube,
)
