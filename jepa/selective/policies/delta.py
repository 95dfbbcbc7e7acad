"""Send-on-delta: decodes a step at once when it is far from the latent decoded last."""

from __future__ import annotations

import numpy as np

from jepa.errors import check_nonnegative
from jepa.selective.policies.base import CausalPolicy, step_segment
from jepa.selective.types import Segment


class SendOnDelta(CausalPolicy):
    """Decodes a step at once when its latent is far from the one decoded last.

    The first step is decoded, and then each step with 1 − cos(z_t, z_last) > `threshold`, where z_last is the
    latent decoded last: send-on-delta sampling (Miskowicz 2006, Sensors 6(1), 49-63). The latent decoded last
    is therefore always within `threshold` of the stream. Nothing is pooled and nothing waits: for a text while
    it is typed, or wherever a late answer is worth less than a noisy one.

    A segment is one step. `finish` decodes nothing; `close` decodes the newest step, if it was not yet.

    Args:
        threshold: cosine distance, >= 0; unrelated latents are 1 apart, opposite ones 2.

    Raises:
        InputError: `threshold` is not finite and >= 0.

    >>> latents = np.eye(2, dtype=np.float32)[[0, 0, 1]]
    >>> [segment.time for segment, _ in SendOnDelta(0.5).run(latents, np.arange(3.0))]
    [0.0, 2.0]
    """

    name = "send_on_delta"
    latency, lag = "none", 0
    state = "2 latents: the one decoded last, the newest step"

    def __init__(self, threshold: float) -> None:
        self.threshold = check_nonnegative("threshold", threshold)
        self.start()

    def start(self) -> None:
        self._index = -1  # of the newest step
        self._time = 0.0
        self._newest: np.ndarray | None = None
        self._sent: np.ndarray | None = None  # what was decoded last

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        self._index += 1
        self._time = time
        self._newest = np.array(latent, dtype=np.float32)
        if self._sent is None or _cosine_distance(self._newest, self._sent) > self.threshold:
            return self.close()
        return []

    def close(self) -> list[Segment]:
        if self._newest is None or self._newest is self._sent:
            return []
        self._sent = self._newest
        return [step_segment(self._newest, self._time, self._index)]

    def finish(self) -> list[Segment]:
        self.start()
        return []


def _cosine_distance(one: np.ndarray, other: np.ndarray) -> float:
    """1 − cos of unit latents (E,), as half their squared distance: exactly 0 if they are equal, 2 if opposite."""
    gap = one - other
    return float(gap @ gap) / 2
