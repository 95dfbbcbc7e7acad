"""Debounce: decodes a step when nothing has followed it for some time."""

from __future__ import annotations

import numpy as np

from jepa.errors import check_nonnegative
from jepa.selective.policies.base import CausalPolicy, step_segment
from jepa.selective.types import Segment


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
