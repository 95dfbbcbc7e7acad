"""Ward, optimal segmentation and the oracle against brute force."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_streams import LENGTHS, SEEDS, firsts_of, noisy_events, sse, times_of, total_sse, unit
from sklearn import cluster
from sklearn.feature_extraction.image import grid_to_graph

from jepa.errors import InputError
from jepa.selective import Decoded, Optimal, Oracle, SelectiveDecoder, Uniform, Ward, WardCut
from jepa.selective.policies import optimal as optimal_module
from jepa.selective.policies import ward as ward_module
from jepa.selective.policies.offline import StreamMemory
from jepa.selective.policies.ward import ward_tree


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


@pytest.mark.parametrize("kind", [Ward, Optimal])
@pytest.mark.parametrize(("rate", "number"), [(0.001, 1), (0.35, 21), (1.0, 60), (2.0, 120), (9.0, 120)])
def test_there_are_as_many_segments_as_asked(kind: type, rate: float, number: int) -> None:
    assert len(kind(rate, "mean").segment(noisy_events(1, 120), times_of(120))) == number


def test_a_stream_is_computed_once_for_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ward_module, "_memory", StreamMemory(1 << 20))
    monkeypatch.setattr(optimal_module, "_memory", StreamMemory(1 << 20))
    one, other = noisy_events(5, 30), noisy_events(6, 31)
    ward_calls, optimal_calls = [], []
    monkeypatch.setattr(ward_module, "_cluster", lambda z, f=ward_module._cluster: ward_calls.append(len(z)) or f(z))
    monkeypatch.setattr(
        optimal_module, "_solve", lambda z, n, f=optimal_module._solve: optimal_calls.append((len(z), n)) or f(z, n)
    )
    for rate in (1.0, 0.3, 0.1):
        for latents in (one, other):
            for kind in (Ward, Optimal):
                kind(rate, "mean").segment(latents, times_of(len(latents)))
                kind(rate, "midpoint").segment(latents, times_of(len(latents)))
            WardCut(rate, "mean").segment(latents, times_of(len(latents)))
    assert ward_calls == [30, 31]
    assert optimal_calls == [(30, 15), (31, 16)]
    Optimal(1.5, "mean").segment(one, times_of(30))  # more segments than were asked for before
    Optimal(1.0, "mean").segment(one, times_of(30))
    assert optimal_calls[2:] == [(30, 23)]


def test_the_memory_holds_as_many_bytes_as_it_may() -> None:
    memory: StreamMemory[np.ndarray] = StreamMemory(100)
    keys = [memory.key(noisy_events(seed, 10)) for seed in range(4)]
    assert len(set(keys)) == 4
    assert memory.key(noisy_events(0, 10)) == keys[0]
    for key in keys[:3]:
        memory.put(key, np.zeros(40, np.uint8))
    assert [memory.get(key) is None for key in keys] == [True, False, False, True]
    memory.put(keys[1], np.zeros(50, np.uint8))  # in place of 40
    assert memory.get(keys[2]) is not None
    memory.put(keys[3], np.zeros(11, np.uint8))  # the least recently used goes
    assert [memory.get(key) is None for key in keys] == [True, True, False, False]
    memory.put(keys[0], np.zeros(101, np.uint8))
    assert all(memory.get(key) is None for key in keys)


# --- WardCut


@given(seed=SEEDS, steps=st.integers(1, 24), cost=st.floats(0.0, 4.0))
@settings(max_examples=60)
def test_ward_cut_undoes_mergers_from_the_last_one(seed: int, steps: int, cost: float) -> None:
    latents = walk(seed, steps)
    cuts, costs = brute_force_ward(latents)
    number = 1 + sum(max(costs[: i + 1]) > cost for i in range(len(costs)))
    assert firsts_of(WardCut(cost, "mean"), latents) == cuts[number - 1]


@given(seed=SEEDS, steps=LENGTHS, cuts=st.lists(st.floats(0.0, 6.0), min_size=2, max_size=6))
@settings(max_examples=40)
def test_a_higher_cost_never_adds_a_boundary(seed: int, steps: int, cuts: list[float]) -> None:
    latents = noisy_events(seed, steps)
    found = [set(firsts_of(WardCut(cost, "mean"), latents)) for cost in sorted(cuts)]
    assert all(after <= before for before, after in pairwise(found))
    assert firsts_of(WardCut(1e9, "mean"), latents) == [0]


def test_an_inversion_of_the_merge_costs_does_not_confuse_the_cut() -> None:
    seed = next(seed for seed in range(1000) if (np.diff(ward_tree(walk(seed, 12)).costs) < -1e-3).any())
    latents = walk(seed, 12)
    costs = ward_tree(latents).costs
    for cost in [*costs, *(costs * 0.99), *(costs * 1.01)]:
        merged = len(latents) - len(firsts_of(WardCut(float(cost), "mean"), latents))
        assert all(costs[:merged] <= cost)
        assert merged == len(costs) or costs[merged] > cost


def test_one_cost_gives_an_eventful_stream_more_segments() -> None:
    calm, eventful = np.repeat(np.eye(2, 8), 30, axis=0), np.repeat(np.eye(6, 8), 10, axis=0)
    assert [len(firsts_of(WardCut(1.0, "mean"), unit(z))) for z in (calm, eventful)] == [2, 6]
    assert math.isclose(
        ward_tree(unit(np.eye(2, 8).repeat(7, axis=0))).costs[-1], 7, rel_tol=1e-6
    )  # n unrelated steps each


# --- Optimal


@given(seed=SEEDS, steps=st.integers(1, 9))
@settings(max_examples=25)
def test_optimal_equals_brute_force(seed: int, steps: int) -> None:
    latents = walk(seed, steps)
    for number in range(1, steps + 1):
        least = min(total_sse(latents, [0, *cut]) for cut in combinations(range(1, steps), number - 1))
        firsts = firsts_of(Optimal(rate_of(number, steps), "mean"), latents)
        assert len(firsts) == number
        assert math.isclose(total_sse(latents, firsts), least, abs_tol=1e-9)


@given(seed=SEEDS, steps=LENGTHS)
@settings(max_examples=20)
def test_no_segmentation_beats_the_optimal_one(seed: int, steps: int) -> None:
    latents = noisy_events(seed, steps)
    spread = []
    for number in range(1, steps + 1):
        rate = rate_of(number, steps)
        best = total_sse(latents, firsts_of(Optimal(rate, "mean"), latents))
        assert best <= total_sse(latents, firsts_of(Ward(rate, "mean"), latents)) + 1e-9
        spread.append(best)
    assert all(after <= before + 1e-9 for before, after in pairwise(spread))


def equal_cut(number: int, steps: int) -> list[int]:
    """First steps of so many segments, as equal in length as may be: uniform decoding at each rate."""
    return [i * steps // number for i in range(number)]


@given(seed=SEEDS, steps=LENGTHS)
@settings(max_examples=40)
def test_optimal_is_at_most_ward_and_uniform_at_each_number_and_ward_below_uniform_over_all(
    seed: int, steps: int
) -> None:
    latents = noisy_events(seed, steps)
    sums = np.zeros(2)
    for number in range(steps, 0, -1):
        rate = rate_of(number, steps)
        best, ward, uniform = (
            total_sse(latents, firsts)
            for firsts in (
                firsts_of(Optimal(rate, "mean"), latents),
                firsts_of(Ward(rate, "mean"), latents),
                equal_cut(number, steps),
            )
        )
        assert best <= min(ward, uniform) + 1e-9
        if (
            number >= steps - 1 or number == 1
        ):  # the first merger is the cheapest there is, and the last one has no choice
            assert math.isclose(ward, best, abs_tol=1e-9)
        sums += ward, uniform
    assert sums[0] <= sums[1] + 1e-9


@given(seed=SEEDS, steps=LENGTHS, rate=st.floats(0.05, 2.0), phase=st.sampled_from([0.0, 0.5]))
@settings(max_examples=60)
def test_no_pools_of_uniform_decoding_beat_the_optimal_cut(seed: int, steps: int, rate: float, phase: float) -> None:
    latents = noisy_events(seed, steps)
    pools = firsts_of(Uniform(rate, phase=phase, pool=True), latents)
    best = firsts_of(Optimal(rate_of(len(pools), steps), "mean"), latents)
    assert len(best) == len(pools)
    assert total_sse(latents, best) <= total_sse(latents, pools) + 1e-9


def test_greedy_ward_exceeds_uniform_at_a_number_in_a_thousand() -> None:
    """What docs/concepts.md says of it: where early mergers were wrong, a cut into equal segments may be better."""
    excess = []
    for seed in range(300):
        latents = noisy_events(seed, 40)
        tree = ward_tree(latents)
        for number in range(1, 41):
            ward = total_sse(latents, tree.firsts(number).tolist())
            uniform = total_sse(latents, equal_cut(number, 40))
            if ward > uniform + 1e-9:
                excess.append(ward / uniform - 1)
    assert len(excess) == 12  # of 12,000
    assert round(max(excess), 3) == 0.108


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
