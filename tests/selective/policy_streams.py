"""Streams and helpers that the tests of policies share."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from jepa.selective import Oracle, Policy, Segment

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


def begin(policy: Policy, times: np.ndarray) -> None:
    """Start a stream; an oracle is told of a boundary at every seventh step and a little before it."""
    policy.start()
    if isinstance(policy, Oracle):
        policy.boundaries = [t for i in range(0, len(times), 7) for t in (times[i] - 0.1, times[i])]


def closed_by(policy: Policy, latents: np.ndarray, times: np.ndarray) -> list[tuple[Segment, int]]:
    """What `start`, `step` and `finish` give, with the index of the step at which it came out."""
    begin(policy, times)
    closed = [(s, i) for i, t in enumerate(times) for s in policy.step(latents[i], float(t))]
    return closed + [(s, len(times) - 1) for s in policy.finish()]


def segments_of(policy: Policy, latents: np.ndarray, times: np.ndarray) -> list[Segment]:
    return [segment for segment, _ in closed_by(policy, latents, times)]


def firsts_of(policy: Policy, latents: np.ndarray) -> list[int]:
    return [s.first for s in segments_of(policy, latents, times_of(len(latents)))]


def plain(segments: list[Segment]) -> list[tuple[Any, ...]]:
    """Segments as what compares bit for bit."""
    return [(s.latent.tobytes(), s.time, s.start, s.end, s.first, s.last) for s in segments]


def running(first: float, values: list[float]) -> float:
    """The average that causal policies keep, anew from all values: of weight 4 at first, and of 64 at most."""
    value, weight = first, 4
    for each in values:
        weight = min(weight + 1, 64)
        value = (1 - 1 / weight) * value + each / weight
    return value


def sse(latents: np.ndarray) -> float:
    """Within-segment sum of squares of one segment."""
    rows = latents.astype(np.float64)
    return float(np.sum((rows - rows.mean(axis=0)) ** 2))
