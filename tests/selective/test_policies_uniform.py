"""Uniform decoding against exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_streams import segments_of

from jepa.selective import Uniform


def nearest_steps(period: Fraction, steps: int) -> list[int]:
    """The step nearest to each due moment of a steady stream, all in steps: brute force in exact arithmetic."""
    due, expected = Fraction(0), set()
    while due <= steps - Fraction(1, 2):
        expected.add(min(range(steps), key=lambda step: (abs(step - due), step)))  # of two equally near the earlier
        due += period
    return sorted(expected)


@given(
    rate=st.fractions(Fraction(1, 50), 8, max_denominator=60),
    steps=st.integers(1, 120),
    step_rate=st.sampled_from([1, 2, 3, 5, 25]),
    origin=st.sampled_from([0.0, 0.1, 12345.7]),
)
@settings(max_examples=80)
def test_uniform_takes_the_step_nearest_to_each_due_moment(
    rate: Fraction, steps: int, step_rate: int, origin: float
) -> None:
    latents = np.ones((steps, 1), np.float32)
    times = origin + np.arange(steps) / step_rate
    expected = nearest_steps(step_rate / rate, steps)
    for pool in (False, True):
        policy = Uniform(float(rate), pool=pool)
        segments = segments_of(policy, latents, times)
        assert [s.last for s in segments][: len(expected)] == expected
        assert [s.last for s in segments][len(expected) :] == [steps - 1] * (pool and expected[-1:] != [steps - 1])


@given(
    rate=st.fractions(Fraction(1, 4), 2, max_denominator=12),
    coarse=st.integers(1, 5),
    fine=st.integers(1, 60),
    shrink=st.integers(2, 40),
)
@settings(max_examples=80)
def test_no_due_moment_is_lost_where_intervals_shrink(rate: Fraction, coarse: int, fine: int, shrink: int) -> None:
    """Steps every 8 s, each with two due moments or more, then sooner: from there on the nearest to each moment."""
    step = Fraction(8, shrink)
    turn = 8 * coarse
    exact = [Fraction(8 * i) for i in range(coarse + 1)] + [turn + step * i for i in range(1, fine + 1)]
    times = np.array([float(t) for t in exact])
    moments = [k / rate for k in range(math.floor((exact[-1] + step / 2) * rate) + 1)]
    expected = set(range(coarse + 1))
    for moment in moments:
        if moment > turn + step / 2:
            expected.add(min(range(len(exact)), key=lambda i: (abs(exact[i] - moment), i)))
    segments = segments_of(Uniform(float(rate)), np.ones((len(times), 1), np.float32), times)
    assert [s.first for s in segments] == sorted(expected)


@given(gaps=st.lists(st.floats(0.01, 20.0), min_size=1, max_size=60), rate=st.floats(0.05, 2.0))
@settings(max_examples=80)
def test_whatever_the_intervals_no_due_moment_is_decoded_twice(gaps: list[float], rate: float) -> None:
    times = np.cumsum([0.0, *gaps])
    segments = segments_of(Uniform(rate), np.ones((len(times), 1), np.float32), times)
    shortest = np.minimum.accumulate([np.inf, *gaps])
    for number, segment in enumerate(segments[1:], start=1):
        passed = (segment.time + shortest[segment.first] / 2) * rate  # due moments begun
        assert number <= passed + 1e-5
    late = [k / rate for k in range(math.floor(times[-1] * rate) + 1)]
    assert not late or segments[-1].time + shortest[segments[-1].first] / 2 >= late[-1] - 1e-5


def test_uniform_decodes_once_after_a_gap_and_keeps_its_due_moments() -> None:
    times = np.array([0.0, 0.5, 1.0, 9.5, 10.0, 10.5, 11.0])
    segments = segments_of(Uniform(1.0), np.ones((7, 1), np.float32), times)
    assert [s.time for s in segments] == [0.0, 1.0, 9.5, 10.0, 11.0]
