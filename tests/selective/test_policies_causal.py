"""Send-on-delta, local variance and prediction error against references by their docstrings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from policy_streams import LENGTHS, SEEDS, closed_by, firsts_of, noisy_events, running, times_of, unit

from jepa.selective import Gate, LocalVariance, Policy, PredictionError, SendOnDelta

THRESHOLDS = st.floats(0.01, 1.5)


# --- SendOnDelta


@given(seed=SEEDS, steps=LENGTHS, threshold=THRESHOLDS)
@settings(max_examples=60)
def test_send_on_delta_decodes_a_step_far_from_the_last_decoded(seed: int, steps: int, threshold: float) -> None:
    latents = noisy_events(seed, steps)
    expected = [0]
    for i in range(1, steps):
        distance = 1 - np.vecdot(*latents[[i, expected[-1]]].astype(np.float64))
        assume(abs(distance - threshold) > 1e-6)
        if distance > threshold:
            expected.append(i)
    closed = closed_by(SendOnDelta(threshold), latents, times_of(steps))
    assert [i for _, i in closed] == [s.first for s, _ in closed] == expected


# --- LocalVariance


@given(seed=SEEDS, steps=LENGTHS, threshold=st.floats(0.01, 0.9), window=st.integers(2, 6))
@settings(max_examples=80)
def test_local_variance_does_what_its_docstring_says(seed: int, steps: int, threshold: float, window: int) -> None:
    latents = noisy_events(seed, steps)
    expected = [0]
    for i in range(1, steps):
        recent = latents[max(expected[-1], i + 1 - window) : i + 1].astype(np.float64)
        variance = recent.var(axis=0).sum()
        assume(abs(variance - threshold) > 1e-6)
        if variance > threshold:
            expected.append(i)
    assert firsts_of(LocalVariance(threshold, window=window), latents) == expected


@pytest.mark.parametrize("window", [2, 3, 4, 8])
def test_a_longer_window_notices_a_change_later(window: int) -> None:
    latents = np.repeat(np.eye(2, 8, dtype=np.float32), 20, axis=0)  # squared distance 2
    late = next(k for k in range(1, window) if 2 * k * (window - k) / window**2 > 0.4)
    first = firsts_of(LocalVariance(0.4, window=window), latents)[1]
    assert first == 20 + late - 1


@pytest.mark.parametrize(("fraction", "cuts"), [(0.999, True), (1.001, False)])
def test_the_variance_of_a_long_segment_stays_exact(fraction: float, cuts: bool) -> None:
    latents = noisy_events(1, 20_000)
    policy = LocalVariance(2.0, window=4)
    for i, latent in enumerate(latents[:-1]):
        assert policy.step(latent, 0.5 * i) == []
    policy.threshold = fraction * float(latents[-4:].astype(np.float64).var(axis=0).sum())
    assert bool(policy.step(latents[-1], 1e6)) == cuts


# --- PredictionError


def naive_prediction_error(latents: np.ndarray, threshold: float, floor: float) -> list[int]:
    """Where it cuts, by its docstring, with every mean taken anew from the raw steps."""
    rows = latents.astype(np.float64)
    firsts, errors, products, squares = [0], [], [], []

    for i in range(1, len(rows)):
        n = i - firsts[-1]
        mean = rows[firsts[-1] : i].mean(axis=0)
        phi = np.clip(running(0.0, products) / running(floor, squares), 0, 1)
        error = n / (n + 1) * np.sum((rows[i] - mean - phi * (rows[i - 1] - mean)) ** 2)
        limit = threshold * (running(floor, errors) + floor)
        errors.append(min(error, limit))
        if error > limit:
            firsts.append(i)
        elif n > 1:
            products.append((rows[i] - mean) @ (rows[i - 1] - mean))
            squares.append(np.sum((rows[i - 1] - mean) ** 2))
    return firsts


@pytest.mark.parametrize("threshold", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("floor", [0.05, 0.15])
def test_prediction_error_does_what_its_docstring_says(threshold: float, floor: float) -> None:
    for seed in range(6):
        latents = noisy_events(seed, 120)
        found = firsts_of(PredictionError(threshold, noise_floor=floor), latents)
        assert found == naive_prediction_error(latents, threshold, floor)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_the_forecast_learns_how_the_noise_is_correlated(correlation: float) -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((400, 256)) * 0.4 / 16
    for i in range(1, len(noise)):
        noise[i] = correlation * noise[i - 1] + math.sqrt(1 - correlation**2) * noise[i]
    policy = PredictionError(3.0)
    for i, latent in enumerate(unit(np.eye(1, 256) + noise)):
        assert policy.step(latent, 0.5 * i) == []
    assert math.isclose(policy._product.value / policy._square.value, correlation, abs_tol=0.1)


def test_prediction_error_learns_a_stream_noisier_than_expected() -> None:
    rng = np.random.default_rng(0)
    latents = unit(unit(rng.standard_normal((1, 64))) + 1.5 * unit(rng.standard_normal((300, 64))))
    firsts = firsts_of(PredictionError(1.3, noise_floor=0.15), latents)
    assert len(firsts) > 1  # it began with too low an error
    assert max(firsts) < 60


# --- All of them


GATES = [Gate(threshold, pending=pending) for threshold in (0.2, 1.0, 1.5) for pending in (1, 2, 3)]


@pytest.mark.parametrize("policy", [LocalVariance(0.3), PredictionError(1.0), *GATES], ids=lambda policy: policy.name)
@given(lengths=st.lists(st.integers(4, 12), min_size=1, max_size=12), seed=SEEDS)
@settings(max_examples=15)
def test_clean_boundaries_are_found_exactly(policy: Policy, lengths: list[int], seed: int) -> None:
    centres, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((16, 16)))
    latents = np.repeat(unit(centres[: len(lengths)]), lengths, axis=0)
    assert firsts_of(policy, latents) == np.cumsum([0, *lengths[:-1]]).tolist()


@pytest.mark.parametrize("kind", [Gate, LocalVariance, PredictionError, SendOnDelta])
@pytest.mark.parametrize("norm", [0.999, 1.0, 1.001])
@given(seed=SEEDS)
@settings(max_examples=10)
def test_equal_steps_are_one_segment_at_threshold_0(kind: type, norm: float, seed: int) -> None:
    latents = np.repeat(noisy_events(seed, 1), 300, axis=0) * np.float32(norm)
    assert firsts_of(kind(0.0), latents) == [0]
