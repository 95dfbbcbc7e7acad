"""Ward and the oracle against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import refuses
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_streams import LENGTHS, SEEDS, firsts_of, noisy_events, sse, times_of, unit
from sklearn import cluster
from sklearn.feature_extraction.image import grid_to_graph

from jepa.selective import Oracle, Ward
from jepa.selective.policies import ward
from jepa.selective.policies.ward import ward_mergers


def walk(seed: int, steps: int) -> np.ndarray:
    """A direction that wanders, with noise: (steps, 4)."""
    rng = np.random.default_rng(seed)
    return unit(rng.standard_normal((steps, 4)).cumsum(axis=0) + 0.3 * rng.standard_normal((steps, 4)))


# --- Ward


def brute_force_ward(latents: np.ndarray) -> list[list[int]]:
    """First steps of the segments for 1, 2, ... T segments: every pair of neighbours is tried on the raw data."""
    rows = latents.astype(np.float64)
    firsts = list(range(len(rows)))
    cuts = [firsts]
    while len(firsts) > 1:
        ends = [*firsts[1:], len(rows)]

        def cost(i: int, firsts: list[int] = firsts, ends: list[int] = ends) -> float:
            one, other = rows[firsts[i] : ends[i]], rows[firsts[i + 1] : ends[i + 1]]
            increase = sse(rows[firsts[i] : ends[i + 1]]) - sse(one) - sse(other)
            n, m = len(one), len(other)
            identity = n * m / (n + m) * float(np.sum((one.mean(axis=0) - other.mean(axis=0)) ** 2))
            assert math.isclose(increase, identity, abs_tol=1e-9)
            return increase

        i = min(range(len(firsts) - 1), key=cost)
        firsts = [*firsts[: i + 1], *firsts[i + 2 :]]
        cuts.append(firsts)
    return cuts[::-1]


@given(seed=SEEDS, steps=st.integers(1, 24))
@settings(max_examples=30)
def test_ward_equals_brute_force_at_every_number_of_segments(seed: int, steps: int) -> None:
    latents = walk(seed, steps)
    for number, firsts in enumerate(brute_force_ward(latents), start=1):
        rate = number / (steps * 0.5 if steps > 1 else 1.0)
        assert firsts_of(Ward(rate, "mean"), latents) == firsts


@given(seed=SEEDS, steps=st.integers(2, 60), length=st.integers(0, 3), runs=st.integers(1, 4))
@settings(max_examples=40)
def test_ward_merges_as_scikit_learn_does(seed: int, steps: int, length: int, runs: int) -> None:
    """Also where costs are equal: those of unrelated runs of 2^length steps are, and have no rounding."""
    for latents in (walk(seed, steps), np.eye(2**runs, dtype=np.float32).repeat(2**length, axis=0)):
        mergers, *_ = cluster.ward_tree(latents.astype(np.float64), connectivity=grid_to_graph(len(latents), 1))
        firsts, boundaries = list(range(len(latents))), []
        for one, other in mergers.tolist():
            boundaries.append(max(firsts[one], firsts[other]))
            firsts.append(min(firsts[one], firsts[other]))
        assert ward_mergers(latents).tolist() == boundaries


def test_mergers_are_found_once_for_policies_that_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    latents, calls, shared = noisy_events(5, 40), [], {}
    monkeypatch.setattr(ward, "ward_mergers", lambda rows: calls.append(rows) or ward_mergers(rows))
    policies = [Ward(rate, name) for rate in (0.2, 0.4) for name in ("mean", "midpoint")]
    for policy in policies:
        policy.shared = shared
    cuts = [firsts_of(policy, latents) for policy in policies]
    assert len(calls) == 1
    assert cuts[0] == cuts[1] != cuts[2] == cuts[3]
    assert firsts_of(Ward(0.2, "mean"), -latents) == cuts[0]
    assert len(calls) == 2


@pytest.mark.parametrize(("rate", "number"), [(0.001, 1), (0.35, 21), (1.0, 60), (2.0, 120), (9.0, 120)])
def test_there_are_as_many_segments_as_asked(rate: float, number: int) -> None:
    assert len(Ward(rate, "mean").run(noisy_events(1, 120), times_of(120))) == number


# --- Oracle


def test_the_oracle_cuts_at_its_boundaries() -> None:
    latents, times = noisy_events(0, 10), times_of(10)  # 0.25, 0.75, ... 4.75
    oracle = Oracle("mean")
    oracle.boundaries = [3.8, 0.75, 2.3, 3.8, 2.4, 99.0, -1.0]  # a step on a boundary is after it
    assert [(s.first, s.last) for s, _ in oracle.run(latents, times)] == [(0, 0), (1, 4), (5, 7), (8, 9)]


@given(seed=SEEDS, steps=LENGTHS, boundaries=st.lists(st.floats(-5, 40, allow_nan=False), max_size=12))
@settings(max_examples=60)
def test_steps_share_a_segment_if_no_boundary_lies_between(seed: int, steps: int, boundaries: list[float]) -> None:
    times = times_of(steps)
    oracle = Oracle("midpoint")
    oracle.boundaries = boundaries
    label = np.zeros(steps, dtype=int)
    for s in (segments := [segment for segment, _ in oracle.run(noisy_events(seed, steps), times)]):
        label[s.first : s.last + 1] = s.first
    assert [s.first for s in segments] == sorted({s.first for s in segments})
    for i in range(steps - 1):
        apart = any(times[i] < b <= times[i + 1] for b in boundaries)
        assert (label[i] != label[i + 1]) == apart


def test_an_oracle_is_told_before_each_stream() -> None:
    latents, times = noisy_events(0, 10), times_of(10)
    oracle = Oracle("mean")
    for boundaries in ([2.0], []):
        refuses("boundaries must be set before each stream, got None", oracle.run, latents, times)
        oracle.boundaries = boundaries
        assert len(oracle.run(latents, times)) == 1 + len(boundaries)
