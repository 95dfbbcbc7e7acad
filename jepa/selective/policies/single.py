"""Policies that decode single steps: at once when they are far from the last, or when nothing follows them."""

from __future__ import annotations

import numpy as np

from jepa.errors import check_nonnegative
from jepa.selective.policies.base import ROUNDING, CausalPolicy, step_segment
from jepa.selective.types import Segment


class SendOnDelta(CausalPolicy):
    """Decodes a step at once when its latent is far from the one decoded last.

    The first step is decoded, and then each step with 1 − cos(z_t, z_last) > `threshold`, where z_last is the latent
    decoded last: send-on-delta sampling (Miskowicz 2006, Sensors 6(1), 49-63). Nothing is pooled or waits: for typed
    text, or wherever a late answer is worth less than a noisy one. A segment is one step; `finish` decodes none.

    Args:
        threshold: cosine distance, >= 0; unrelated latents are 1 apart, opposite ones 2.

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
        self._newest: Segment | None = None
        self._sent: Segment | None = None  # what was decoded last

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        self._index += 1
        self._newest = step_segment(np.array(latent, dtype=np.float32), time, self._index)
        if self._sent is not None:
            gap = self._newest.latent - self._sent.latent
            distance = float(gap @ gap) / 2  # = 1 − cos of unit latents, and exactly 0 for equal ones
            self.signal = distance / max(self.threshold, ROUNDING)
            if distance <= self.threshold:
                return []
        return self.close()

    def close(self) -> list[Segment]:
        if self._newest is None or self._newest is self._sent:
            return []
        self._sent = self._newest
        return [self._newest]

    def finish(self) -> list[Segment]:
        self.start()
        return []


class Debounce(CausalPolicy):
    """Decodes a step once nothing has followed it for some time, as input fields on web pages do.

    A step that is followed by another within `seconds` is never decoded. What a timer would set off comes out with the
    next step, and the last one with `finish`; whoever has a timer calls `close`. A segment is one step.

    Args:
        seconds: to wait, >= 0; 0 decodes every step, one step late.

    >>> times = np.array([0.0, 0.5, 3.0])
    >>> [segment.time for segment, _ in Debounce(1.0).run(np.ones((3, 1), np.float32), times)]
    [0.5, 3.0]
    """

    name = "debounce"
    reads_latents = False
    state = "1 latent: the newest step"

    def __init__(self, seconds: float) -> None:
        self.seconds = check_nonnegative("seconds", seconds)
        self.latency = f"{seconds:g} s"
        self.start()

    def start(self) -> None:
        self._index = -1  # of the newest step
        self._newest: Segment | None = None  # unless it was decoded

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        self._index += 1
        paused = self._newest is not None and time - self._newest.time >= self.seconds
        closed = self.close() if paused else []
        self._newest = step_segment(np.array(latent, dtype=np.float32), time, self._index)
        return closed

    def close(self) -> list[Segment]:
        newest, self._newest = self._newest, None
        return [newest] if newest is not None else []
