"""Every policy against the rules of all policies, and the bad arguments of each."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from conftest import refuses
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from policy_streams import LENGTHS, SEEDS, begin, closed_by, noisy_events, plain, segments_of, times_of, unit

from jepa.build import build as build_node
from jepa.selective import (
    Budget,
    CausalPolicy,
    Comparisons,
    Debounce,
    Gate,
    LocalVariance,
    LongestGap,
    OnDemand,
    Oracle,
    Policy,
    PredictionError,
    SendOnDelta,
    Uniform,
    Ward,
)

POLICIES: dict[str, Callable[[], Policy]] = {
    "uniform": lambda: Uniform(0.7),
    "uniform_pool": lambda: Uniform(0.7, pool=True),
    "ward_midpoint": lambda: Ward(0.4, "midpoint"),
    "ward_mean": lambda: Ward(0.4, "mean"),
    "oracle_midpoint": lambda: Oracle("midpoint"),
    "oracle_mean": lambda: Oracle("mean"),
    "gate": lambda: Gate(1.0),
    "gate, agreement": lambda: Gate(1.0, agreement=8.0),
    "gate, 1 pending": lambda: Gate(2.0, pending=1),
    "gate, 3 pending": lambda: Gate(0.3, pending=3, noise_floor=0.05),
    "send_on_delta": lambda: SendOnDelta(0.5),
    "debounce": lambda: Debounce(0.5),
    "local_variance": lambda: LocalVariance(0.3),
    "local_variance, 2": lambda: LocalVariance(0.2, window=2),
    "prediction_error": lambda: PredictionError(1.0),
    "longest_gap_gate": lambda: LongestGap(Gate(1.0), 3.0),
    "longest_gap_send_on_delta": lambda: LongestGap(SendOnDelta(0.8), 3.0),
    "longest_gap_budget_local_variance": lambda: LongestGap(Budget(LocalVariance(0.3), 0.3), 4.0),
    "budget_gate": lambda: Budget(Gate(1.0), 0.3, gain=0.5),
    "budget_longest_gap_local_variance": lambda: Budget(LongestGap(LocalVariance(0.3), 9.0), 0.2),
}
CAUSAL = [name for name, build in POLICIES.items() if build().causal]
SINGLE_STEPS = ["uniform", "send_on_delta", "debounce", "longest_gap_send_on_delta"]  # a segment is one step
MIDPOINTS = [name for name in POLICIES if name.endswith("midpoint")]
PARTITIONS = [name for name in POLICIES if name not in SINGLE_STEPS]
STEERED = [name for name in CAUSAL if hasattr(POLICIES[name](), "threshold") and "budget" not in name]

EVERY_POLICY = pytest.mark.parametrize("build", POLICIES.values(), ids=POLICIES)


@EVERY_POLICY
@given(seed=SEEDS, steps=LENGTHS)
@settings(max_examples=15)
def test_a_segment_says_what_it_covers(build: Callable[[], Policy], seed: int, steps: int) -> None:
    latents, times = noisy_events(seed, steps), times_of(steps)
    segments = segments_of(build(), latents, times)
    assert segments
    for s in segments:
        assert 0 <= s.first <= s.last < steps
        assert (s.start, s.end) == (times[s.first], times[s.last])
        assert s.start <= s.time <= s.end
        assert s.latent.dtype == np.float32
        assert s.latent.shape == latents[0].shape
        assert math.isclose(np.linalg.norm(s.latent), 1, abs_tol=1e-5)


@pytest.mark.parametrize("name", PARTITIONS)
@given(seed=SEEDS, steps=LENGTHS)
@settings(max_examples=15)
def test_every_step_is_in_exactly_one_segment(name: str, seed: int, steps: int) -> None:
    segments = segments_of(POLICIES[name](), noisy_events(seed, steps), times_of(steps))
    assert [i for s in segments for i in range(s.first, s.last + 1)] == list(range(steps))


@pytest.mark.parametrize("name", [name for name in PARTITIONS if not name.endswith(("midpoint", "agreement"))])
@given(seed=SEEDS, steps=LENGTHS)
@settings(max_examples=15)
def test_a_pooled_latent_is_the_mean_of_its_steps(name: str, seed: int, steps: int) -> None:
    latents, times = noisy_events(seed, steps), times_of(steps)
    for s in segments_of(POLICIES[name](), latents, times):
        expected = unit(latents[s.first : s.last + 1].astype(np.float64).mean(axis=0))
        np.testing.assert_allclose(s.latent, expected, atol=1e-5)
        assert s.time == (s.start + s.end) / 2


@pytest.mark.parametrize("name", [name for name in (*MIDPOINTS, *SINGLE_STEPS) if name != "debounce"])  # a step late
def test_a_single_step_and_the_middle_of_several_are_decoded_as_they_are(name: str) -> None:
    latents, times = noisy_events(2, 61), times_of(61)
    for s, i in closed_by(POLICIES[name](), latents, times):
        middle = (s.first + s.last) // 2
        assert s.time == times[middle]
        np.testing.assert_array_equal(s.latent, latents[middle])
        if name in SINGLE_STEPS:
            assert s.first == s.last == i


@EVERY_POLICY
@given(seed=SEEDS, steps=LENGTHS)
@settings(max_examples=15)
def test_a_recorded_stream_gives_what_its_steps_give(build: Callable[[], Policy], seed: int, steps: int) -> None:
    latents, times = noisy_events(seed, steps), times_of(steps)
    expected = closed_by(build(), latents, times)
    policy = build()
    begin(policy, times)
    closed = policy.run(latents, times)
    assert [i for _, i in closed] == [i for _, i in expected]
    assert plain([s for s, _ in closed]) == plain([s for s, _ in expected])
    assert policy.finish() == []


@pytest.mark.parametrize(
    "build",
    [
        Gate,
        partial(Gate, pending=1),
        partial(Gate, pending=3, agreement=8.0),
        PredictionError,
        LocalVariance,
        lambda threshold: OnDemand(Gate(threshold), noisy_events(0, 60).__getitem__, correction=0.5),
    ],
    ids=["gate", "gate_1", "gate_agreement", "prediction", "variance", "on_demand"],
)
@given(seed=SEEDS, steps=LENGTHS, thresholds=st.permutations([0.02, 0.1, 0.3, 1.0, 3.0]))
@settings(max_examples=15)
def test_thresholds_that_share_comparisons_give_what_steps_give(
    build: Callable[[float], Policy], seed: int, steps: int, thresholds: list[float]
) -> None:
    """In any order of the thresholds."""
    latents, times, shared = noisy_events(seed, steps), times_of(steps), {}
    for threshold in thresholds:
        expected = closed_by(build(threshold), latents, times)
        policy = build(threshold)
        policy.shared = shared
        closed = policy.run(latents, times)
        assert [i for _, i in closed] == [i for _, i in expected]
        assert plain([s for s, _ in closed]) == plain([s for s, _ in expected])


@pytest.mark.parametrize("build", [Gate, partial(Gate, pending=1), PredictionError, LocalVariance])
@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_shared_comparisons_cut_nothing_out_of_rounding(build: Callable[[float], Policy], threshold: float) -> None:
    """Equal latents stay together at any threshold; opposite ones, and slow drifts, are cut as by steps."""
    still = unit(np.random.default_rng(0).standard_normal((1, 96)))
    opposite = still * np.repeat([1, -1, 1, 1, -1], 8)[:, None]
    angles = np.linspace(0, 9, 200)[:, None]
    drift = unit(np.cos(angles) * still + np.sin(angles) * np.roll(still, 1, axis=1))
    for latents in (np.repeat(still, 700, axis=0), opposite.astype(np.float32), drift):
        policy, times = build(threshold), times_of(len(latents))
        policy.shared = {}
        found = [s for s, _ in policy.run(latents, times)]
        assert plain(found) == plain(segments_of(build(threshold), latents, times))
        assert len(found) == 1 or len(latents) < 700


def test_times_of_any_precision_give_the_same_due_steps() -> None:
    latents, times = noisy_events(0, 40), times_of(40)
    found = [[step for _, step in Uniform(0.7).run(latents, each)] for each in (times, times.astype(np.float32))]
    assert found[0] == found[1] != []


@given(seed=SEEDS, steps=st.integers(4, 200), count=st.integers(1, 4))
@settings(max_examples=20)
def test_comparisons_hold_the_inner_products(seed: int, steps: int, count: int) -> None:
    latents = noisy_events(seed, steps)
    exact = latents.astype(np.float64) @ latents.astype(np.float64).T

    def numbers(n: np.ndarray, step: np.ndarray, square: np.ndarray, last: np.ndarray, products: np.ndarray) -> Any:
        return n, step, square, last, *products

    found = Comparisons({}, "all", latents, times_of(steps), numbers, count)
    for after, products in enumerate(found.products(count)):
        assert products == pytest.approx([*np.diagonal(exact, after), *[0.0] * after], abs=1e-9)
    for first, step in ((0, 1), (1, 3), (0, 3), (1, 2), (0, steps - 1), (2, steps - 1)):
        n, after, square, last, *own = found.at(first, step)
        assert (n, after) == (step - first, step)
        assert square == pytest.approx(exact[first:step, first:step].sum(), abs=1e-9)
        assert last == pytest.approx(exact[first:step, step - 1].sum(), abs=1e-9)
        products = exact[first:step, step : step + count].sum(axis=0)
        assert own == pytest.approx([*products, *[0.0] * (count - len(products))], abs=1e-9)


@EVERY_POLICY
@given(seed=SEEDS, steps=LENGTHS)
@settings(max_examples=10)
def test_a_stream_leaves_no_trace_in_the_next(build: Callable[[], Policy], seed: int, steps: int) -> None:
    latents, times = noisy_events(seed, steps), times_of(steps)
    policy = build()
    segments_of(policy, noisy_events(seed + 1, 20), times_of(20))
    begin(policy, times)
    policy.step(latents[0], 3.0)  # abandoned
    assert plain(segments_of(policy, latents, times)) == plain(segments_of(build(), latents, times))


@EVERY_POLICY
def test_the_callers_buffer_may_be_reused(build: Callable[[], Policy]) -> None:
    latents, times = noisy_events(3, 40), times_of(40)
    policy, buffer, segments = build(), np.empty(8, np.float32), []
    begin(policy, times)
    for latent, t in zip(latents, times, strict=True):
        buffer[:] = latent
        segments += policy.step(buffer, float(t))
    buffer[:] = 0
    assert plain(segments + policy.finish()) == plain(segments_of(build(), latents, times))


@EVERY_POLICY
def test_no_step_no_segment(build: Callable[[], Policy]) -> None:
    assert build().finish() == []
    assert build().run(np.zeros((0, 8), np.float32), np.zeros(0)) == []


@pytest.mark.parametrize(
    "policy", [Ward(0.01, "mean"), Gate(1e9), LocalVariance(1.0), PredictionError(1e9)], ids=lambda policy: policy.name
)
def test_steps_that_cancel_out_are_stood_in_for_by_the_last(policy: Policy) -> None:
    (segment,) = segments_of(policy, np.array([[1, 0], [-1, 0]], np.float32), times_of(2))
    assert segment.latent.tolist() == [-1, 0]


# --- Causal policies


@pytest.mark.parametrize("name", CAUSAL)
@given(seed=SEEDS, steps=LENGTHS, data=st.data())
@settings(max_examples=15)
def test_what_is_closed_by_hand_ends_at_the_newest_step(name: str, seed: int, steps: int, data: Any) -> None:
    when = data.draw(st.sets(st.integers(0, steps - 1)))
    latents, times = noisy_events(seed, steps), times_of(steps)
    policy = POLICIES[name]()
    assert isinstance(policy, CausalPolicy)
    assert policy.close() == []
    segments = []
    for i in range(steps):
        segments += policy.step(latents[i], times[i])
        if i in when:
            segments += policy.close()
            assert segments[-1].last == i
            assert policy.close() == []
    segments += policy.finish()
    covered = [i for s in segments for i in range(s.first, s.last + 1)]
    assert covered == list(range(steps)) if name in PARTITIONS else covered == sorted(set(covered))


@pytest.mark.parametrize("name", STEERED)
def test_the_threshold_may_change_between_steps(name: str) -> None:
    latents, times = noisy_events(4, 120), times_of(120)
    policy = POLICIES[name]()
    assert isinstance(policy, CausalPolicy)
    counts = []
    for first in (0, 40, 80):
        policy.threshold = 1e9 if first == 40 else 0.1
        counts.append(sum(len(policy.step(latents[i], times[i])) for i in range(first + 2, first + 40)))
    assert counts[1] <= (0 if "longest_gap" not in name else 18 / 3.0)
    assert min(counts[0], counts[2]) > counts[1]


@pytest.mark.parametrize("name", CAUSAL)
def test_the_state_of_a_causal_policy_does_not_grow(name: str) -> None:
    width, steps = 512, 3_000
    policy, sizes = POLICIES[name](), []
    rng = np.random.default_rng(0)
    centres = unit(rng.standard_normal((40, width)))
    for i in range(steps):
        policy.step(unit(centres[i // 80] + 0.3 * centres[i % 40]), 0.5 * i)
        sizes.append(len(pickle.dumps(policy)) if i % 20 == 0 else 0)
    stated = int(re.match(r"(\d+) latents?:", policy.state)[1])  # type: ignore[index]
    assert max(sizes) <= stated * 8 * width + 4_000
    assert max(sizes[steps // 2 :]) <= max(sizes[: steps // 2]) + 100  # integers get longer


@pytest.mark.parametrize("name", [name for name in CAUSAL if "uniform" not in name])
@given(seed=SEEDS)
@settings(max_examples=10)
def test_a_causal_policy_does_not_depend_on_the_axes(name: str, seed: int) -> None:
    latents, times = noisy_events(seed, 100), times_of(100)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((8, 8)))
    expected = [s.first for s in segments_of(POLICIES[name](), latents, times)]
    for fraction in (1 - 1e-5, 1 + 1e-5):  # no decision hangs on the rounding of the rotated latents
        nearby = POLICIES[name]()
        if name in STEERED:
            nearby.threshold *= fraction
        assume([s.first for s in segments_of(nearby, latents, times)] == expected)
    turned = segments_of(POLICIES[name](), unit(latents @ rotation), times)
    assert [s.first for s in turned] == expected


# --- Construction


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Uniform(0.0), "rate_hz must be finite and > 0, got 0.0"),
        (lambda: Ward(-1.0, "mean"), "rate_hz must be finite and > 0, got -1.0"),
        (lambda: Ward(1.0, "median"), "representative must be midpoint or mean, got 'median'"),
        (lambda: Gate(math.nan), "threshold must be finite and >= 0, got nan"),
        (lambda: Gate(1.0, pending=0), "pending must be a whole number >= 1, got 0"),
        (lambda: Gate(1.0, noise_floor=0.0), "noise_floor must be finite and > 0, got 0.0"),
        (lambda: SendOnDelta(-1.0), "threshold must be finite and >= 0, got -1.0"),
        (lambda: Debounce(-1.0), "seconds must be finite and >= 0, got -1.0"),
        (lambda: LocalVariance(-1.0), "threshold must be finite and >= 0, got -1.0"),
        (lambda: LocalVariance(1.0, window=1), "window must be a whole number >= 2, got 1"),
        (lambda: PredictionError(1.0, noise_floor=-1.0), "noise_floor must be finite and > 0, got -1.0"),
        (lambda: LongestGap(Gate(1.0), 0.0), "seconds must be finite and > 0, got 0.0"),
        (lambda: LongestGap(Ward(1.0, "mean"), 5.0), "policy must be causal, got ward_mean"),
        (lambda: Budget(LongestGap(Uniform(1.0), 3.0), 1.0), "policy must have a threshold, got longest_gap_uniform"),
        (lambda: Budget(Gate(0.0), 1.0), "policy.threshold must be finite and > 0, got 0.0"),
        (lambda: Budget(Gate(1.0), 1.0, gain=0.0), "gain must be finite and > 0, got 0.0"),
        (lambda: Budget(Gate(1.0), 1.0, span=1.0), "span must be > 1, got 1.0"),
        (lambda: OnDemand(Gate(1.0), keep=0), "keep must be a whole number >= 1, got 0"),
    ],
)
def test_bad_arguments_are_named(build: Callable[[], Policy], message: str) -> None:
    assert refuses("", build) == message


@pytest.mark.parametrize("name", [name for name in POLICIES if "," not in name])
def test_a_policy_says_what_it_is(name: str) -> None:
    policy = POLICIES[name]()
    assert policy.name == name
    assert policy.causal == isinstance(policy, CausalPolicy)


@pytest.mark.parametrize(
    ("name", "steps"), [("local_variance", 1), ("prediction_error", 1), ("gate", 2), ("gate, 3 pending", 3)]
)
def test_a_policy_is_as_late_as_it_says(name: str, steps: int) -> None:
    policy = POLICIES[name]()
    assert policy.latency == f"{steps} step{'s' * (steps > 1)} after the segment's last step"
    closed = closed_by(policy, noisy_events(3, 80), times_of(80))
    assert len(closed) > 3
    assert {i - segment.last for segment, i in closed[:-1]} == {steps}  # the last is left to finish


def test_wrapped_policies_build_from_a_configuration() -> None:
    node = {"_target_": "jepa.selective.Budget", "policy": {"_target_": "jepa.selective.Gate", "threshold": 0.7}}
    outer = build_node({"_target_": "jepa.selective.LongestGap", "policy": {**node, "rate_hz": 0.2}}, seconds=30)
    assert outer.name == "longest_gap_budget_gate"
