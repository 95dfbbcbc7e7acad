"""Performance per token against hand counts, the definitions written out, and what must hold of any answers."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import refusals, refuses
from hypothesis import given
from hypothesis import strategies as st

from jepa.metrics.per_token import accuracy_area, accuracy_within, cost_of_pass, ock_score

RIGHT = torch.tensor([True, False, True, False])
TOKENS = torch.tensor([2, 7, 5, 2])

answers = st.lists(st.tuples(st.booleans(), st.integers(0, 12)), min_size=1, max_size=30).map(
    lambda rows: (torch.tensor([r for r, _ in rows]), torch.tensor([t for _, t in rows]))
)


def test_hand_counts():
    assert cost_of_pass(RIGHT, TOKENS).item() == 8  # 16 tokens for 2 right answers
    assert ock_score(RIGHT, 2500 * TOKENS).item() == pytest.approx(50 - 10 * math.log(2))  # 10,000 tokens on average
    assert accuracy_within(RIGHT, TOKENS, 6).tolist() == [0, 0, 0.25, 0.25, 0.25, 0.5, 0.5]
    assert accuracy_area(RIGHT, TOKENS, 6).item() == pytest.approx((4 + 1) / 6 / 4)


def test_nothing_right_costs_without_end():
    nothing = torch.zeros(4, dtype=torch.bool)
    assert cost_of_pass(nothing, TOKENS).item() == math.inf
    assert cost_of_pass(nothing, 0 * TOKENS).item() == math.inf
    assert accuracy_area(nothing, TOKENS, 6).item() == 0


def test_costs_are_summed_without_loss():
    flops = torch.tensor([2**40 + 1, 2**40 + 1, 0, 0])  # float32 would lose the ones
    assert cost_of_pass(RIGHT, flops).item() == 2**40 + 1


@given(answers)
def test_cost_of_pass_is_mean_cost_over_accuracy(rows):
    right, tokens = rows
    fraction = right.double().mean().item()
    expected = tokens.double().mean().item() / fraction if fraction else math.inf
    assert cost_of_pass(right, tokens).item() == pytest.approx(expected)
    assert cost_of_pass(right.repeat(3), tokens.repeat(3)).item() == pytest.approx(expected)


@given(answers, st.integers(1, 15))
def test_the_curve_is_the_definition_and_the_area_is_that_under_it(rows, longest):
    right, tokens = rows
    pairs = list(zip(right.tolist(), tokens.tolist(), strict=True))
    curve = accuracy_within(right, tokens, longest)
    assert curve.tolist() == [sum(r and t <= b for r, t in pairs) / len(pairs) for b in range(longest + 1)]
    assert accuracy_within(right, tokens, 12)[-1] == right.double().mean()  # no answer is longer
    area = accuracy_area(right, tokens, longest)
    assert area.item() == pytest.approx(curve[:-1].mean().item())  # the step from b to b + 1 is as high as at b
    assert 0 <= area <= right.double().mean()


@given(answers, st.integers(1, 15))
def test_longer_answers_are_never_better(rows, longest):
    right, tokens = rows
    assert cost_of_pass(right, tokens + 1) >= cost_of_pass(right, tokens)
    assert ock_score(right, tokens + 1) < ock_score(right, tokens) <= 100 * right.double().mean()
    assert accuracy_area(right, tokens + 1, longest) <= accuracy_area(right, tokens, longest)


test_bad_input = refusals(
    (RIGHT, TOKENS[:3], r"right and costs must be \(N,\) with N >= 1, right of booleans, got \(4,\) .*\(3,\)"),
    (RIGHT.long(), TOKENS, "right of booleans, got .* torch.int64"),
    (RIGHT[:0], TOKENS[:0], r"N >= 1, .* got \(0,\)"),
    (RIGHT, TOKENS - 3, "costs must be finite and >= 0, got -1"),
    (RIGHT, TOKENS / 0, "costs must be finite and >= 0, got inf"),
    of=cost_of_pass,
)


@pytest.mark.parametrize("curve", [accuracy_within, accuracy_area])
@pytest.mark.parametrize("longest", [0, 2.5])
def test_bad_budgets(curve, longest):
    refuses(f"longest must be a whole number >= 1, got {longest}", curve, RIGHT, TOKENS, longest)
