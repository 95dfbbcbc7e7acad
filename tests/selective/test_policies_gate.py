"""The gate against a reference that shares no code with it, and invariants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_streams import SEEDS, firsts_of, noisy_events, running, segments_of, sse, times_of, unit

from jepa.selective import Gate


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

    while joined + pending <= len(rows):
        open_, window = rows[firsts[-1] : joined], rows[joined : joined + pending]
        if len(open_):
            before, after = sse(open_) + sse(window), sse(rows[firsts[-1] : joined + pending])
            changed = after - before > threshold * (running(floor, deviations) + floor)
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


@pytest.mark.parametrize("pending", [1, 2, 3])
@pytest.mark.parametrize("threshold", [0.3, 1.0, 2.0])
def test_the_gate_does_what_its_docstring_says(pending: int, threshold: float) -> None:
    for seed in range(6):
        latents = noisy_events(seed, 120)
        gate = Gate(threshold, pending=pending, noise_floor=0.1)
        assert firsts_of(gate, latents) == naive_gate(latents, threshold, pending, 0.1)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.49, 0.51, 0.7, 0.9])
def test_a_blended_step_goes_to_the_nearer_side(fraction: float) -> None:
    one, other = np.eye(2, 8)
    blend = (1 - fraction) * one + fraction * other
    latents = unit(np.array([one] * 8 + [blend] + [other] * 8))
    assert firsts_of(Gate(1.0), latents) == [0, 8 if fraction > 0.5 else 9]


def test_an_outlier_starts_a_segment_only_if_one_step_is_enough() -> None:
    usual = np.eye(1, 8)[0]
    outlier = unit(usual + 0.8 * np.eye(8)[1])
    latents = np.array([usual] * 9 + [outlier] + [usual] * 9, np.float32)
    assert firsts_of(Gate(1.5, pending=1), latents) == [0, 9]
    assert firsts_of(Gate(1.5), latents) == [0]


@given(seed=SEEDS, steps=st.integers(2, 60), pending=st.integers(1, 4))
@settings(max_examples=50)
def test_segments_of_the_gate_are_no_shorter_than_its_window(seed: int, steps: int, pending: int) -> None:
    segments = segments_of(Gate(0.2, pending=pending), noisy_events(seed, steps), times_of(steps))
    assert min(s.last - s.first + 1 for s in segments) >= min(pending, steps)


@given(seed=st.integers(0, 99), steps=st.integers(1, 40))
def test_agreement_weighs_the_steps_by_their_cosine_to_the_mean(seed: int, steps: int) -> None:
    """Up to 16 steps exactly; with more, the older ones by the mean when they left."""
    rng = np.random.default_rng(seed)
    latents = rng.normal(size=(steps, 8)) + 1.0
    latents = (latents / np.linalg.norm(latents, axis=1, keepdims=True)).astype(np.float32)
    [(segment, _)] = Gate(1e9, agreement=8.0).run(latents, np.arange(steps) / 2)
    total = latents.astype(np.float64).sum(0)
    weights = np.exp(8 * (latents @ (total / np.linalg.norm(total)) - 1))
    expected = weights @ latents
    close = float(segment.latent @ (expected / np.linalg.norm(expected)))
    assert close > (1 - 1e-5 if steps <= 16 else 0.98)
