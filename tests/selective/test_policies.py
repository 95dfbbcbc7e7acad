"""Policies against references that share no code with them, and invariants."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.errors import InputError
from jepa.selective import Gate, Policy, Segment, Uniform, Ward
from jepa.selective.policies import ward as ward_module
from jepa.selective.policies.ward import ward_boundaries

POLICIES: dict[str, Callable[[], Policy]] = {
    "uniform": lambda: Uniform(0.7),
    "uniform_pool": lambda: Uniform(0.7, pool=True),
    "ward_midpoint": lambda: Ward(0.4, "midpoint"),
    "ward_mean": lambda: Ward(0.4, "mean"),
    "gate": lambda: Gate(1.0),
    "gate, 1 pending": lambda: Gate(2.0, pending=1),
    "gate, 3 pending": lambda: Gate(0.3, pending=3, noise_floor=0.05),
}
CAUSAL = [name for name, build in POLICIES.items() if build().causal]
PARTITIONS = [name for name in POLICIES if name != "uniform"]

EVERY_POLICY = pytest.mark.parametrize("build", POLICIES.values(), ids=POLICIES)
LENGTHS, SEEDS = st.integers(1, 60), st.integers(0, 2**32 - 1)


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def noisy_events(seed: int, steps: int, width: int = 8) -> np.ndarray:
    """Piecewise-constant directions with noise of a level drawn at random: (steps, width), unit float32."""
    rng = np.random.default_rng(seed)
    events = np.cumsum(rng.random(steps) < 0.2)
    centres = unit(rng.standard_normal((steps + 1, width)))
    noise = rng.uniform(0.0, 1.0) * unit(rng.standard_normal((steps, width)))
    return unit(centres[events] + noise)


def times_of(steps: int) -> np.ndarray:
    return 0.25 + 0.5 * np.arange(steps)


def segments_of(policy: Policy, latents: np.ndarray, times: np.ndarray) -> list[Segment]:
    policy.start()
    segments = [s for latent, t in zip(latents, times, strict=True) for s in policy.step(latent, float(t))]
    return segments + policy.finish()


def equal(one: list[Segment], other: list[Segment]) -> bool:
    def plain(segments: list[Segment]) -> list[tuple[Any, ...]]:
        return [(s.latent.tobytes(), s.time, s.start, s.end, s.first, s.last) for s in segments]

    return plain(one) == plain(other)


@EVERY_POLICY
@given(seed=SEEDS, steps=LENGTHS)
@settings(max_examples=25, deadline=None)
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
@settings(max_examples=25, deadline=None)
def test_every_step_is_in_exactly_one_segment(name: str, seed: int, steps: int) -> None:
    segments = segments_of(POLICIES[name](), noisy_events(seed, steps), times_of(steps))
    assert [i for s in segments for i in range(s.first, s.last + 1)] == list(range(steps))


@pytest.mark.parametrize("name", [name for name in PARTITIONS if name != "ward_midpoint"])
@given(seed=SEEDS, steps=LENGTHS)
@settings(max_examples=25, deadline=None)
def test_a_pooled_latent_is_the_mean_of_its_steps(name: str, seed: int, steps: int) -> None:
    latents, times = noisy_events(seed, steps), times_of(steps)
    for s in segments_of(POLICIES[name](), latents, times):
        expected = unit(latents[s.first : s.last + 1].astype(np.float64).mean(axis=0))
        np.testing.assert_allclose(s.latent, expected, atol=1e-5)
        assert s.time == (s.start + s.end) / 2


@pytest.mark.parametrize("name", CAUSAL)
@given(seed=SEEDS, steps=LENGTHS, data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_causal_policy_does_not_see_the_future(name: str, seed: int, steps: int, data: Any) -> None:
    now = data.draw(st.integers(0, steps))
    latents, times = noisy_events(seed, steps), times_of(steps)
    other = np.concatenate([latents[:now], noisy_events(seed + 1, steps)[now:]])
    one, two = POLICIES[name](), POLICIES[name]()
    for i in range(steps):
        emitted = one.step(latents[i], times[i]), two.step(other[i], times[i])
        if i < now:
            assert equal(*emitted)


@EVERY_POLICY
@given(seed=SEEDS, steps=LENGTHS)
@settings(max_examples=15, deadline=None)
def test_a_stream_leaves_no_trace_in_the_next(build: Callable[[], Policy], seed: int, steps: int) -> None:
    latents, times = noisy_events(seed, steps), times_of(steps)
    policy = build()
    segments_of(policy, noisy_events(seed + 1, 20), times_of(20))
    policy.step(latents[0], 3.0)  # abandoned
    assert equal(segments_of(policy, latents, times), segments_of(build(), latents, times))


@EVERY_POLICY
def test_the_callers_buffer_may_be_reused(build: Callable[[], Policy]) -> None:
    latents, times = noisy_events(3, 40), times_of(40)
    policy, buffer, segments = build(), np.empty(8, np.float32), []
    for latent, t in zip(latents, times, strict=True):
        buffer[:] = latent
        segments += policy.step(buffer, float(t))
    buffer[:] = 0
    assert equal(segments + policy.finish(), segments_of(build(), latents, times))


@EVERY_POLICY
def test_no_step_no_segment(build: Callable[[], Policy]) -> None:
    assert build().finish() == []


@pytest.mark.parametrize("policy", [Ward(0.01, "mean"), Gate(1e9)], ids=["ward_mean", "gate"])
def test_steps_that_cancel_out_are_stood_in_for_by_the_last(policy: Policy) -> None:
    (segment,) = segments_of(policy, np.array([[1, 0], [-1, 0]], np.float32), times_of(2))
    assert segment.latent.tolist() == [-1, 0]


# --- Uniform


@given(
    rate=st.fractions(Fraction(1, 50), 8, max_denominator=60),
    steps=st.integers(1, 200),
    step_rate=st.sampled_from([1, 2, 3, 5, 25]),
    origin=st.sampled_from([0.0, 0.1, 12345.7]),
)
@settings(max_examples=200, deadline=None)
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


# --- Ward


def sse(latents: np.ndarray) -> float:
    return float(np.sum((latents - latents.mean(axis=0)) ** 2))


def brute_force_ward(latents: np.ndarray) -> list[list[int]]:
    """First steps of the segments after each merger, by trying every pair of neighbours on the raw data."""
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
@settings(max_examples=30, deadline=None)
def test_ward_equals_brute_force_at_every_number_of_segments(seed: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    latents = unit(rng.standard_normal((steps, 4)).cumsum(axis=0) + 0.3 * rng.standard_normal((steps, 4)))
    times = times_of(steps)
    for number, firsts in enumerate(brute_force_ward(latents), start=1):
        assert [0, *sorted(ward_boundaries(latents)[: number - 1])] == firsts
        duration = steps * 0.5 if steps > 1 else 1.0
        segments = Ward(number / duration, "mean").segment(latents, times)
        assert [s.first for s in segments] == firsts


def test_unit_latents_spread_by_one_minus_their_mean() -> None:
    latents = noisy_events(0, 50).astype(np.float64)
    mean = latents.mean(axis=0)
    assert math.isclose(sse(latents), 50 * (1 - mean @ mean), rel_tol=1e-5)


@pytest.mark.parametrize(("rate", "number"), [(0.001, 1), (0.35, 21), (1.0, 60), (2.0, 120), (9.0, 120)])
def test_ward_makes_as_many_segments_as_asked(rate: float, number: int) -> None:
    assert len(Ward(rate, "mean").segment(noisy_events(1, 120), times_of(120))) == number


def test_ward_midpoint_decodes_the_middle_step() -> None:
    latents, times = noisy_events(2, 61), times_of(61)
    for s in Ward(0.3, "midpoint").segment(latents, times):
        middle = (s.first + s.last) // 2
        assert s.time == times[middle]
        np.testing.assert_array_equal(s.latent, latents[middle])


def test_ward_clusters_a_stream_once_for_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, cluster = [], ward_module._cluster

    def counted(latents: np.ndarray) -> np.ndarray:
        calls.append(len(latents))
        return cluster(latents)

    monkeypatch.setattr(ward_module, "_boundaries", type(ward_module._boundaries)())
    monkeypatch.setattr(ward_module, "_cluster", counted)
    one, other = noisy_events(5, 30), noisy_events(6, 30)
    for rate in (0.1, 0.3, 1.0):
        Ward(rate, "mean").segment(one, times_of(30))
        Ward(rate, "midpoint").segment(other, times_of(30))
    assert len(calls) == 2
    monkeypatch.setattr(ward_module, "_CACHED_STREAMS", 2)
    ward_boundaries(one)  # the newest now
    ward_boundaries(noisy_events(7, 30))
    assert len(ward_module._boundaries) == 2
    ward_boundaries(one)
    assert len(calls) == 3


# --- Gate


def naive_gate(latents: np.ndarray, threshold: float, pending: int, floor: float) -> list[int]:
    """Where the gate cuts, by its docstring, with every mean taken anew from the raw steps."""
    rows = latents.astype(np.float64)
    firsts, joined, deviations = [0], 0, []  # the open segment is firsts[-1] .. joined - 1

    def join() -> None:
        nonlocal joined
        n = joined - firsts[-1]
        if n:
            mean = rows[firsts[-1] : joined].mean(axis=0)
            deviations.append(n / (n + 1) * np.sum((rows[joined] - mean) ** 2))
        joined += 1

    def noise() -> float:
        value, weight = floor, 4
        for deviation in deviations:
            weight = min(weight + 1, 64)
            value = (1 - 1 / weight) * value + deviation / weight
        return value

    while joined + pending <= len(rows):
        open_, window = rows[firsts[-1] : joined], rows[joined : joined + pending]
        if len(open_):
            before, after = sse(open_) + sse(window), sse(rows[firsts[-1] : joined + pending])
            changed = after - before > threshold * (noise() + floor)
            if pending > 1:
                there = np.linalg.norm(window[0] - window[1:].mean(axis=0))
                changed = changed and there < np.linalg.norm(window[0] - open_.mean(axis=0))
            if not changed:
                join()
                continue
            firsts.append(joined)
        for _ in range(pending):
            join()
    return firsts


def firsts_of(policy: Policy, latents: np.ndarray) -> list[int]:
    return [s.first for s in segments_of(policy, latents, times_of(len(latents)))]


@pytest.mark.parametrize("pending", [1, 2, 3])
@pytest.mark.parametrize("threshold", [0.3, 1.0, 2.0])
def test_the_gate_does_what_its_docstring_says(pending: int, threshold: float) -> None:
    for seed in range(6):
        latents = noisy_events(seed, 120)
        gate = Gate(threshold, pending=pending, noise_floor=0.1)
        assert firsts_of(gate, latents) == naive_gate(latents, threshold, pending, 0.1)


@pytest.mark.parametrize("pending", [1, 2, 3])
@pytest.mark.parametrize("threshold", [0.2, 1.0, 1.5])
@given(lengths=st.lists(st.integers(3, 12), min_size=1, max_size=12), seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_the_gate_finds_clean_boundaries_exactly(pending: int, threshold: float, lengths: list[int], seed: int) -> None:
    centres, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((16, 16)))
    latents = np.repeat(unit(centres[: len(lengths)]), lengths, axis=0)
    expected = np.cumsum([0, *lengths[:-1]]).tolist()
    assert firsts_of(Gate(threshold, pending=pending), latents) == expected


@pytest.mark.parametrize("share", [0.1, 0.3, 0.49, 0.51, 0.7, 0.9])
def test_a_blended_step_goes_to_the_nearer_side(share: float) -> None:
    one, other = np.eye(2, 8)
    blend = (1 - share) * one + share * other
    latents = unit(np.array([one] * 8 + [blend] + [other] * 8))
    assert firsts_of(Gate(1.0), latents) == [0, 8 if share > 0.5 else 9]


def test_an_outlier_starts_a_segment_only_if_one_step_is_enough() -> None:
    usual = np.eye(1, 8)[0]
    outlier = unit(usual + 0.8 * np.eye(8)[1])
    latents = np.array([usual] * 9 + [outlier] + [usual] * 9, np.float32)
    assert firsts_of(Gate(1.5, pending=1), latents) == [0, 9]
    assert firsts_of(Gate(1.5), latents) == [0]


@given(seed=SEEDS, steps=st.integers(2, 60), pending=st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_segments_of_the_gate_are_no_shorter_than_its_window(seed: int, steps: int, pending: int) -> None:
    segments = segments_of(Gate(0.2, pending=pending), noisy_events(seed, steps), times_of(steps))
    assert min(s.last - s.first + 1 for s in segments) >= min(pending, steps)


@given(seed=SEEDS, pending=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_the_gate_emits_as_late_as_it_says(seed: int, pending: int) -> None:
    gate = Gate(0.5, pending=pending)
    assert gate.latency.startswith(f"{pending} step")
    for i, latent in enumerate(noisy_events(seed, 80)):
        for segment in gate.step(latent, 0.5 * i):
            assert i - segment.last == pending


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_the_gate_does_not_depend_on_the_axes(seed: int) -> None:
    latents = noisy_events(seed, 100)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((8, 8)))
    assert firsts_of(Gate(1.0), latents) == firsts_of(Gate(1.0), unit(latents @ rotation))


@pytest.mark.parametrize("threshold", [1.0, 1e9])
def test_the_state_of_the_gate_does_not_grow(threshold: float) -> None:
    gate, latents, sizes = Gate(threshold), noisy_events(0, 10_000, width=16), []
    for i, latent in enumerate(latents):
        gate.step(latent, 0.5 * i)
        if i >= 10:
            sizes.append(len(pickle.dumps(gate)) if i % 50 == 0 else 0)
    latents_held = sum(np.size(v) for v in vars(gate).values() if isinstance(v, np.ndarray))
    latents_held += sum(latent.size for latent, _ in gate._waiting)
    assert latents_held <= 4 * 16
    assert gate.state.startswith("4 latents")
    assert max(sizes) <= sizes[next(i for i, size in enumerate(sizes) if size)] + 200  # integers get longer


# --- Construction


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Uniform(0.0), "rate_hz must be finite and > 0, got 0.0"),
        (lambda: Uniform(math.inf), "rate_hz must be finite and > 0, got inf"),
        (lambda: Ward(-1.0, "mean"), "rate_hz must be finite and > 0, got -1.0"),
        (lambda: Ward(1.0, "median"), "representative must be one of midpoint, mean, got 'median'"),
        (lambda: Gate(-0.5), "threshold must be finite and >= 0, got -0.5"),
        (lambda: Gate(math.nan), "threshold must be finite and >= 0, got nan"),
        (lambda: Gate(1.0, pending=0), "pending must be a whole number >= 1, got 0"),
        (lambda: Gate(1.0, pending=1.5), "pending must be a whole number >= 1, got 1.5"),  # type: ignore[arg-type]
        (lambda: Gate(1.0, noise_floor=0.0), "noise_floor must be finite and > 0, got 0.0"),
    ],
)
def test_bad_arguments_are_named(build: Callable[[], Policy], message: str) -> None:
    with pytest.raises(InputError) as error:
        build()
    assert str(error.value) == message


def test_policies_say_what_they_are() -> None:
    found = {policy.name: (policy.causal, policy.latency) for policy in (build() for build in POLICIES.values())}
    assert found == {
        "uniform": (True, "none"),
        "uniform_pool": (True, "none"),
        "ward_midpoint": (False, "at the end of the stream"),
        "ward_mean": (False, "at the end of the stream"),
        "gate": (True, "3 steps after the segment's last step"),
    }
