"""Uniform decoding against exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_streams import noisy_events, same_digits, segments_of, times_of

from jepa.selective import Policy, Uniform


@given(
    rate=st.fractions(Fraction(1, 50), 8, max_denominator=60),
    steps=st.integers(1, 200),
    step_rate=st.sampled_from([1, 2, 3, 5, 25]),
    origin=st.sampled_from([0.0, 0.1, 12345.7]),
)
@settings(max_examples=200)
def test_uniform_takes_the_step_nearest_to_each_due_moment(
    rate: Fraction, steps: int, step_rate: int, origin: float
) -> None:
    period, expected, due = step_rate / rate, [0], Fraction(0)  # in steps, in exact arithmetic
    while (due := due + period) <= steps - Fraction(1, 2) and steps > 1:
        expected.append(math.ceil(due - Fraction(1, 2)))  # of two equally near the earlier
    latents = np.ones((steps, 1), np.float32)
    times = origin + np.arange(steps) / step_rate
    assert [s.first for s in segments_of(Uniform(float(rate)), latents, times)] == sorted(set(expected))


@pytest.mark.parametrize(
    ("rate", "decodes"), [(2.0, 360), (7.0, 360), (1.0, 180), (0.35, 63), (0.7, 126), (0.3, 54), (1 / 3, 60)]
)
def test_uniform_decodes_rate_times_duration(rate: float, decodes: int) -> None:
    latents = np.ones((360, 1), np.float32)  # three minutes at 2 Hz
    segments = segments_of(Uniform(rate), latents, times_of(360))
    assert len(segments) == decodes == min(360, round(180 * rate))
    pooled = segments_of(Uniform(rate, pool=True), latents, times_of(360))
    assert [s.last for s in pooled][: len(segments)] == [s.first for s in segments]
    assert len(pooled) == decodes + (segments[-1].last < 359)


def test_uniform_decodes_once_after_a_gap_and_keeps_its_due_moments() -> None:
    times = np.array([0.0, 0.5, 1.0, 9.5, 10.0, 10.5, 11.0])
    segments = segments_of(Uniform(1.0), np.ones((7, 1), np.float32), times)
    assert [s.time for s in segments] == [0.0, 1.0, 9.5, 10.0, 11.0]


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("rate", [7.0, 2.0, 1.0, 0.333, 0.1])
def test_a_recorded_stream_has_the_digits_of_its_steps(rate: float, pool: bool) -> None:
    for steps in (1, 2, 90):
        latents = noisy_events(steps, steps)
        jittered = np.cumsum(np.random.default_rng(steps).choice([0.4, 0.5, 0.6, 4.0], steps))
        for times in (times_of(steps), jittered):
            plain = Policy.run(Uniform(rate, pool=pool), latents, times)
            assert same_digits(Uniform(rate, pool=pool).run(latents, times), plain)
