"""Uniform decoding: the baseline that every other policy is compared with."""

from __future__ import annotations

import math
from functools import lru_cache, partial

import numpy as np

from jepa.errors import check_positive
from jepa.selective.policies.base import CausalPolicy, OpenSegment, mean_segment, step_segment
from jepa.selective.types import Segment

_SLACK = 1e-6  # in periods: a step due by exact arithmetic is not missed for the rounding of its time


class Uniform(CausalPolicy):
    """Decodes the step nearest to every due moment, k / `rate_hz` seconds after the first step, k >= 0.

    Counting due moments from the first step keeps the average of rates that do not divide the step rate. A step decides
    without the next one: it is the nearest to a due moment less than half a step interval away, the shortest interval
    seen so far (of two steps equally near, the earlier). A rate above the step rate decodes every step; due moments in
    a gap of the stream are decoded once, after it. Where a step comes sooner than any before, due moments that the step
    before it had claimed, and that lie more than half the new interval after it, are due again.

    With `pool`, the renormalised mean of all steps since the last decode is decoded, this one included, at the midpoint
    of their times; steps left at the end make a last segment. Without, the step alone is decoded, and latents are not
    read. Both are baselines of VL-JEPA (arXiv 2512.10942, section 4.6).

    Args:
        rate_hz: decodes per second, > 0.
        pool: decode the mean of the steps since the last decode.

    >>> stream = np.ones((8, 1), np.float32), np.arange(8) / 2
    >>> [segment.time for segment, _ in Uniform(1.0).run(*stream)]
    [0.0, 1.0, 2.0, 3.0]
    """

    latency, lag = "none", 0

    def __init__(self, rate_hz: float, *, pool: bool = False) -> None:
        self.rate_hz = check_positive("rate_hz", rate_hz)
        self.pool = self.reads_latents = pool
        self.name = "uniform_pool" if pool else "uniform"
        self.state = "2 latents: the pool's sum and last step" if pool else "1 latent: the newest step"
        self.start()

    def start(self) -> None:
        self._index = -1  # of the newest step
        self._origin = self._time = 0.0  # times of the first and of the newest step
        self._interval = math.inf  # the shortest between two steps so far
        self._due = 0  # number of the next due moment
        self._decoded_for = -1  # number of the first due moment that the last decode was for
        self._open = OpenSegment()  # the pool
        self._newest: Segment | None = None  # without a pool: the newest step, until it is decoded

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        due = self._is_due(time)
        if self.pool:
            self._open.add(latent.astype(np.float64), time)
        else:
            self._newest = step_segment(np.array(latent, dtype=np.float32), time, self._index)
        return self.close() if due else []

    def run(self, latents: np.ndarray, times: np.ndarray) -> list[tuple[Segment, int]]:
        self.start()
        seconds = times.tolist()
        due = list(_due(self.rate_hz, times.astype(np.float64).tobytes()))
        if not self.pool:
            made = {i: partial(step_segment, latents[i].astype(np.float32), seconds[i], i) for i in due}
            return [(self.remembered(i, make), i) for i, make in made.items()]
        if not seconds:
            return []
        if due[-1] != len(seconds) - 1:
            due.append(len(seconds) - 1)
        firsts = [0, *(last + 1 for last in due[:-1])]
        return [
            (self.remembered((first, last), partial(mean_segment, latents, times, first, last)), last)
            for first, last in zip(firsts, due, strict=True)
        ]

    def _is_due(self, time: float) -> bool:
        """Takes the time of the next step: whether it is decoded."""
        self._index += 1
        if self._index == 0:
            self._origin, passed = time, 0
        else:
            if time - self._time < self._interval:
                self._interval = time - self._time
                self._due = max(self._decoded_for + 1, min(self._due, self._passed(self._time) + 1))
            passed = self._passed(time)
        self._time = time
        if passed < self._due:
            return False
        self._decoded_for, self._due = self._due, passed + 1
        return True

    def _passed(self, time: float) -> int:
        """Number of the last due moment that is at most half an interval after `time`, −1 before the first."""
        return math.floor((time + self._interval / 2 - self._origin) * self.rate_hz + _SLACK)

    def close(self) -> list[Segment]:
        if self.pool:
            return self._open.close()
        newest, self._newest = self._newest, None
        return [newest] if newest is not None else []

    def finish(self) -> list[Segment]:
        segments = self._open.close()
        self.start()
        return segments


@lru_cache(maxsize=256)  # streams of equal length and rate have equal times
def _due(rate_hz: float, times: bytes) -> list[int]:
    """The steps at times (T,) float64 that are decoded."""
    policy = Uniform(rate_hz)
    return [step for step, time in enumerate(np.frombuffer(times).tolist()) if policy._is_due(time)]
