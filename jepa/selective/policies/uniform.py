"""Uniform decoding: the baseline that every other policy is compared with."""

from __future__ import annotations

import math

import numpy as np

from jepa.errors import positive
from jepa.selective.policies.base import CausalPolicy, OpenSegment, Segment, step_segment

_SLACK = 1e-6  # in periods: a step due by exact arithmetic is not missed for the rounding of its time


class Uniform(CausalPolicy):
    """Decodes the first step, and from there the step nearest to every 1 / `rate_hz` seconds.

    The due moments are counted from the first step, so that rates which do not divide the step rate keep
    their average. A step decides without the next one: it is the nearest to a due moment if that moment is
    less than half a step interval away, the shortest interval seen so far (of two steps equally near it is
    the earlier). A rate above the step rate decodes every step; due moments that fall in a gap of the
    stream are decoded once, after it.

    With `pool`, what is decoded is the renormalised mean of all steps since the last decode, this one
    included, at the midpoint of their times; steps left at the end of the stream make a last segment.
    Without, it is the step alone. Both are baselines of VL-JEPA (arXiv 2512.10942, section 4.6).

    Args:
        rate_hz: decodes per second.
        pool: decode the mean of the steps since the last decode.

    Raises:
        InputError: `rate_hz` is not finite and > 0.
    """

    latency = "none"

    def __init__(self, rate_hz: float, *, pool: bool = False) -> None:
        self.rate_hz = positive("rate_hz", rate_hz)
        self.pool = pool
        self.name = "uniform_pool" if pool else "uniform"
        self.state = "2 latents: the pool's sum and last step" if pool else "1 latent: the newest step"
        self.start()

    def start(self) -> None:
        self._index = -1  # of the newest step
        self._origin = self._time = 0.0  # times of the first and of the newest step
        self._interval = math.inf  # the shortest between two steps so far
        self._due = 0  # decode number `due` is due `due` periods after the origin
        self._open = OpenSegment()  # the pool
        self._newest: np.ndarray | None = None  # without a pool: the newest step, until it is decoded

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        self._index += 1
        if self._index == 0:
            self._origin, passed = time, 0
        else:
            self._interval = min(self._interval, time - self._time)
            passed = math.floor((time + self._interval / 2 - self._origin) * self.rate_hz + _SLACK)
        self._time = time
        if self.pool:
            self._open.add(latent.astype(np.float64), time)
        else:
            self._newest = np.array(latent, dtype=np.float32)
        if passed < self._due:
            return []
        self._due = passed + 1
        return self.close()

    def run(self, latents: np.ndarray, times: np.ndarray) -> list[tuple[Segment, int]]:
        self.start()
        if not len(times):
            return []
        interval = np.minimum.accumulate(np.diff(times))
        passed = np.floor((times[1:] + interval / 2 - times[0]) * self.rate_hz + _SLACK)
        decoded, due = [0], 1.0
        for index, moments in enumerate(passed.tolist(), start=1):
            if moments >= due:
                due = moments + 1
                decoded.append(index)
        if not self.pool:
            return [(step_segment(latents[i].copy(), float(times[i]), i), i) for i in decoded]
        lasts = decoded if decoded[-1] == len(times) - 1 else [*decoded, len(times) - 1]
        closed = []
        for first, last in zip([0, *(i + 1 for i in lasts)], lasts, strict=False):
            self._open.fill(latents[first : last + 1].astype(np.float64), float(times[first]), float(times[last]))
            closed += [(segment, last) for segment in self._open.close()]
        self.start()
        return closed

    def close(self) -> list[Segment]:
        if self.pool:
            return self._open.close()
        if self._newest is None:
            return []
        latent, self._newest = self._newest, None
        return [step_segment(latent, self._time, self._index)]

    def finish(self) -> list[Segment]:
        segments = self._open.close()
        self.start()
        return segments
