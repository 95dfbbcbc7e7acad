"""Ward and the oracle against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_streams import LENGTHS, SEEDS, firsts_of, noisy_events, sse, times_of, total_sse, unit
from sklearn import cluster
from sklearn.feature_extraction.image import grid_to_graph

from jepa.errors import InputError
from jepa.selective import Decoded, Oracle, SelectiveDecoder, Ward
from jepa.selective.policies import ward_tree


def walk(seed: int, steps: int) -> np.ndarray:
    """A direction that wanders, with noise: (steps, 4)."""
    rng = np.random.default_rng(seed)
    return unit(rng.standard_normal((steps, 4)).cumsum(axis=0) + 0.3 * rng.standard_normal((steps, 4)))


def rate_of(number: int, steps: int) -> float:
    """The rate at which `times_of(steps)` is cut into so many segments."""
    return number / (steps * 0.5 if steps > 1 else 1.0)


# --- Ward


def brute_force_ward(latents: np.ndarray) -> tuple[list[list[int]], list[float]]:
    """First steps of the segments for 1, 2, ... T segments, and the costs of the mergers in their order.

    Every pair of neighbours is tried on the raw data.
    """
    rows = latents.astype(np.float64)
    firsts = list(range(len(rows)))
    cuts, costs = [firsts], []
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
        costs.append(cost(i))
        firsts = [*firsts[: i + 1], *firsts[i + 2 :]]
        cuts.append(firsts)
    return cuts[::-1], costs


@given(seed=SEEDS, steps=st.integers(1, 24))
@settings(max_examples=30)
def test_ward_equals_brute_force_at_every_number_of_segments(seed: int, steps: int) -> None:
    latents = walk(seed, steps)
    cuts, costs = brute_force_ward(latents)
    np.testing.assert_allclose(ward_tree(latents).costs, costs, atol=1e-9)
    assert math.isclose(sum(ward_tree(latents).costs), sse(latents), rel_tol=1e-9, abs_tol=1e-9)
    for number, firsts in enumerate(cuts, start=1):
        assert firsts_of(Ward(rate_of(number, steps), "mean"), latents) == firsts


@given(seed=SEEDS, steps=st.integers(2, 60), length=st.integers(0, 3), runs=st.integers(1, 4))
@settings(max_examples=40)
def test_ward_merges_as_scikit_learn_does(seed: int, steps: int, length: int, runs: int) -> None:
    """Also where costs are equal: those of unrelated runs of 2^length steps are, and have no rounding."""
    for latents in (walk(seed, steps), np.eye(2**runs, dtype=np.float32).repeat(2**length, axis=0)):
        mergers, _, _, _, distances = cluster.ward_tree(
            latents.astype(np.float64), connectivity=grid_to_graph(len(latents), 1), return_distance=True
        )
        firsts, boundaries = list(range(len(latents))), []
        for one, other in mergers.tolist():
            boundaries.append(max(firsts[one], firsts[other]))
            firsts.append(min(firsts[one], firsts[other]))
        tree = ward_tree(latents)
        assert tree.boundaries.tolist() == boundaries
        np.testing.assert_allclose(tree.costs, distances**2 / 2, atol=1e-12)  # its distance is √(2 · cost)


def test_unit_latents_spread_by_one_minus_their_mean() -> None:
    latents = noisy_events(0, 50).astype(np.float64)
    mean = latents.mean(axis=0)
    assert math.isclose(sse(latents), 50 * (1 - mean @ mean), rel_tol=1e-5)


@pytest.mark.parametrize(("rate", "number"), [(0.001, 1), (0.35, 21), (1.0, 60), (2.0, 120), (9.0, 120)])
def test_there_are_as_many_segments_as_asked(rate: float, number: int) -> None:
    assert len(Ward(rate, "mean").segment(noisy_events(1, 120), times_of(120))) == number


@given(seed=SEEDS, steps=LENGTHS)
@settings(max_examples=40)
def test_ward_is_below_equally_long_segments_over_all_numbers(seed: int, steps: int) -> None:
    latents = noisy_events(seed, steps)
    tree, sums = ward_tree(latents), np.zeros(2)
    for number in range(1, steps + 1):
        equal = [i * steps // number for i in range(number)]
        sums += total_sse(latents, tree.firsts(number).tolist()), total_sse(latents, equal)
    assert sums[0] <= sums[1] + 1e-9


# --- Oracle


def test_the_oracle_cuts_at_its_boundaries() -> None:
    latents, times = noisy_events(0, 10), times_of(10)  # 0.25, 0.75, ... 4.75
    oracle = Oracle("mean")
    oracle.boundaries = [3.8, 0.75, 2.3, 3.8, 2.4, 99.0, -1.0]  # a step on a boundary is after it
    assert oracle.boundaries == (-1.0, 0.75, 2.3, 2.4, 3.8, 3.8, 99.0)
    segments = oracle.segment(latents, times)
    assert [(s.first, s.last) for s in segments] == [(0, 0), (1, 4), (5, 7), (8, 9)]


@given(seed=SEEDS, steps=LENGTHS, boundaries=st.lists(st.floats(-5, 40, allow_nan=False), max_size=12))
@settings(max_examples=60)
def test_steps_share_a_segment_if_no_boundary_lies_between(seed: int, steps: int, boundaries: list[float]) -> None:
    times = times_of(steps)
    oracle = Oracle("midpoint")
    oracle.boundaries = boundaries
    label = np.zeros(steps, dtype=int)
    for s in (segments := oracle.segment(noisy_events(seed, steps), times)):
        label[s.first : s.last + 1] = s.first
    assert [s.first for s in segments] == sorted({s.first for s in segments})
    for i in range(steps - 1):
        apart = any(times[i] < b <= times[i + 1] for b in boundaries)
        assert (label[i] != label[i + 1]) == apart


def test_an_oracle_is_told_before_each_stream() -> None:
    latents, times = noisy_events(0, 10), times_of(10)
    oracle = Oracle("mean")
    message = "boundaries must be set before each stream, got None"
    with pytest.raises(InputError, match=message):
        oracle.step(latents[0], 0.25)
    with pytest.raises(InputError, match=message):
        oracle.run(latents, times)
    oracle.boundaries = [2.0]
    oracle.start()
    assert len(oracle.run(latents, times)) == 2
    with pytest.raises(InputError, match=message):  # used up
        oracle.run(latents, times)
    oracle.boundaries = []
    oracle.step(latents[0], 0.25)
    oracle.start()  # the stream was abandoned
    with pytest.raises(InputError, match=message):
        oracle.step(latents[0], 0.25)
    with pytest.raises(InputError, match="boundaries must be finite, got nan"):
        oracle.boundaries = [1.0, math.nan]


def test_an_oracle_serves_one_stream_after_the_other() -> None:
    class Silent:
        def decode(self, latents: torch.Tensor) -> list[Decoded]:
            return [Decoded("text", 1, 1)] * len(latents)

    oracle = Oracle("mean")
    decoder = SelectiveDecoder(oracle, Silent())
    for boundaries, number in (([2.0], 2), ([], 1), ([1.0, 2.0, 3.0], 4)):
        oracle.boundaries = boundaries
        assert len(decoder.run(noisy_events(0, 10), times_of(10))) == number
