"""Consecutive-cosine drift: a new segment where two neighbouring steps are far apart."""

from __future__ import annotations

import numpy as np

from jepa.errors import check_nonnegative
from jepa.selective.policies.base import CausalPolicy, OpenSegment, cosine_distance
from jepa.selective.types import Segment


class Drift(CausalPolicy):
    """Cuts between two consecutive steps that are far apart.

    A new segment begins with each step where 1 − cos(z_t, z_{t−1}) > `threshold`; the finished one is emitted
    as its renormalised mean, for the midpoint of its times. It is the plain shot-boundary rule on latents: no
    memory beyond one step, so a slow change is never seen, and a single outlier makes two cuts.

    Args:
        threshold: cosine distance, >= 0; unrelated latents are 1 apart, opposite ones 2.

    Raises:
        InputError: `threshold` is not finite and >= 0.
    """

    name = "drift"
    latency = "1 step after the segment's last step"
    state = "2 latents: the open segment's sum and last step"

    def __init__(self, threshold: float) -> None:
        self.threshold = check_nonnegative("threshold", threshold)
        self.start()

    def start(self) -> None:
        self._open = OpenSegment()

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        row = latent.astype(np.float64)
        changed = self._open.count and cosine_distance(row, self._open.last) > self.threshold
        segments = self._open.close() if changed else []
        self._open.add(row, time)
        return segments

    def close(self) -> list[Segment]:
        return self._open.close()
