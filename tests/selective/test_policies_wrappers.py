"""The longest gap is kept and the budget is held, whatever the policy inside."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_streams import LENGTHS, SEEDS, closed_by, noisy_events, plain, segments_of, times_of, unit

from jepa.selective import (
    Budget,
    CausalPolicy,
    Gate,
    LocalVariance,
    LongestGap,
    PredictionError,
    Segment,
    SendOnDelta,
    Uniform,
)

STEERED: dict[str, Callable[[], CausalPolicy]] = {
    "gate": lambda: Gate(1.0),
    "send_on_delta": lambda: SendOnDelta(0.5),
    "local_variance": lambda: LocalVariance(0.4),
    "prediction_error": lambda: PredictionError(1.0),
    "longest_gap_gate": lambda: LongestGap(Gate(1.0), 20.0),
}
INNER = STEERED | {
    "uniform": lambda: Uniform(0.3),
    "uniform_pool": lambda: Uniform(0.3, pool=True),
    "budget_local_variance": lambda: Budget(LocalVariance(0.4), 0.3),
}


# --- LongestGap


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
@given(seed=SEEDS, steps=LENGTHS, seconds=st.floats(0.1, 12.0))
@settings(max_examples=20)
def test_no_gap_is_longer(inner: Callable[[], CausalPolicy], seed: int, steps: int, seconds: float) -> None:
    times = times_of(steps)
    closed = closed_by(LongestGap(inner(), seconds), noisy_events(seed, steps), times)
    out = np.array([times[0], *(times[i] for _, i in closed), times[-1]])
    assert np.diff(out).max() <= math.ceil(round(seconds / 0.5, 6)) * 0.5 + 1e-9


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
@given(seed=SEEDS, steps=LENGTHS)
@settings(max_examples=10)
def test_a_gap_that_is_never_reached_changes_nothing(inner: Callable[[], CausalPolicy], seed: int, steps: int) -> None:
    latents, times = noisy_events(seed, steps), times_of(steps)
    found = segments_of(LongestGap(inner(), 1e4), latents, times)
    assert plain(found) == plain(segments_of(inner(), latents, times))


def test_a_still_stream_is_decoded_at_the_longest_gap() -> None:
    latents = np.ones((41, 1), np.float32)  # 20 s at 2 Hz
    closed = closed_by(LongestGap(Gate(1.0), 5.0), latents, times_of(41))
    assert [i for _, i in closed] == [10, 20, 30, 40]
    assert [(s.first, s.last) for s, _ in closed] == [(0, 10), (11, 20), (21, 30), (31, 40)]
    tenths = closed_by(LongestGap(Gate(1.0), 0.3), latents, 0.1 * np.arange(41))  # 0.30000000000000004 and the like
    assert [i for _, i in tenths] == [*range(3, 40, 3), 40]


def test_a_gap_counts_from_the_last_text() -> None:
    latents = unit(np.repeat(np.eye(2, 8), [7, 30], axis=0))
    closed = closed_by(LongestGap(Gate(1.0), 5.0), latents, times_of(37))
    assert [i for _, i in closed] == [8, 18, 28, 36]  # the change, seen after 2 steps; then every 5 s; the end


def test_a_policy_keeps_what_it_learned_over_a_gap() -> None:
    latents = unit(np.eye(1, 64) + 0.6 * unit(np.random.default_rng(0).standard_normal((200, 64))))
    inner, alone = Gate(3.0), Gate(3.0)
    wrapped = LongestGap(inner, 10.0)
    for i, latent in enumerate(latents):
        wrapped.step(latent, 0.5 * i)
        alone.step(latent, 0.5 * i)
    assert inner._noise.value == pytest.approx(alone._noise.value, rel=0.05)
    assert inner._noise.value > 1.5 * inner.noise_floor


# --- Budget


def changing(seed: int, steps: int, before: float, after: float, width: int = 32) -> np.ndarray:
    """A noisy stream at 2 Hz whose events come every `before` seconds on average, and from half-way every `after`."""
    rng = np.random.default_rng(seed)
    chance = np.where(np.arange(steps) < steps // 2, 0.5 / before, 0.5 / after)
    events = np.cumsum(rng.random(steps) < chance)
    centres, noise = unit(rng.standard_normal((steps + 1, width))), unit(rng.standard_normal((steps, width)))
    return unit(centres[events] + 0.5 * noise)


def steps_out(closed: list[tuple[Segment, int]]) -> np.ndarray:
    return np.array([i for _, i in closed])


@pytest.mark.parametrize("inner", STEERED.values(), ids=STEERED)
def test_the_budget_is_held_when_the_density_changes(inner: Callable[[], CausalPolicy]) -> None:
    steps, rate = 2_400, 0.15  # 20 minutes
    errors, free = [], []
    for seed in range(3):
        latents, times = changing(seed, steps, before=6.0, after=2.0), 0.5 * np.arange(steps)
        out = steps_out(Budget(inner(), rate).run(latents, times)[:-1])
        errors += [np.sum((out >= half) & (out < half + 1200)) / 600 / rate - 1 for half in (0, 1200)]
        out = steps_out(inner().run(latents, times)[:-1])
        free.append((np.sum(out < 1200) / 600, np.sum(out >= 1200) / 600))
    assert np.abs(errors).max() <= 0.12
    assert np.mean(free, axis=0)[1] > 1.8 * np.mean(free, axis=0)[0]  # which it would not hold on its own


@given(seed=SEEDS, steps=LENGTHS, rate=st.floats(0.02, 2.0), gain=st.floats(0.05, 1.0), span=st.floats(1.5, 50.0))
@settings(max_examples=60)
def test_the_threshold_is_where_the_count_puts_it(seed: int, steps: int, rate: float, gain: float, span: float) -> None:
    budget = Budget(Gate(0.8), rate, gain=gain, span=span)
    excess, limit = 0.0, math.log(span) / gain
    for i, latent in enumerate(noisy_events(seed, steps)):
        count = len(budget.step(latent, 0.5 * i))
        excess = float(np.clip(excess + count - rate * 0.5 * (i > 0), -limit, limit))
        assert math.isclose(budget.policy.threshold, 0.8 * math.exp(gain * excess), rel_tol=1e-9)
    budget.finish()
    assert budget.policy.threshold == 0.8


def test_what_a_still_stream_leaves_is_not_spent_afterwards() -> None:
    still = np.repeat(np.eye(1, 32, dtype=np.float32), 20_000, axis=0)  # nothing to decode for hours
    busy = changing(0, 1_200, before=2.0, after=2.0)
    latents, rate, span, gain = np.concatenate([still, busy]), 0.1, 10.0, 0.2
    budget = Budget(LocalVariance(0.4), rate, gain=gain, span=span)
    out = steps_out(budget.run(latents, 0.5 * np.arange(len(latents)))[:-1])
    later = np.sum(out >= 20_000)
    assert abs(later - rate * 600) <= 2 * math.log(span) / gain  # 1,000 decodes were left
    assert later < 90


def test_what_a_longest_gap_closes_is_paid_from_the_budget() -> None:
    still = np.ones((400, 1), np.float32)
    budget = Budget(Gate(1.0), 0.05)
    outer = LongestGap(budget, 5.0)  # asks for 0.2 Hz
    for i, latent in enumerate(still):
        outer.step(latent, 0.5 * i)
    assert 9.0 < budget.policy.threshold <= 10.0  # as high as it may be, but for the fall since the last text
