"""A causal gate: decodes a segment once, when the latents have moved on to the next."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from jepa.errors import InputError
from jepa.selective.policies.base import Policy, Segment, unit_mean

_MEMORY = 64  # steps over which the noise is averaged
_HEAD_START = 4  # steps that the initial noise counts for


class Gate(Policy):
    """Cuts the stream where the newest steps no longer fit the open segment.

    The open segment is known by the mean μ of its n steps; the newest m = `pending` steps wait, with mean
    μ'. Joining them would raise the within-segment sum of squares by Ward's merge cost. The gate cuts
    between the two when that is large for the noise,

        n·m / (n + m) · ||μ − μ'||²  >  threshold · (noise + noise_floor),

    and the oldest pending step is nearer to the mean of the other pending steps than to μ. Without a cut
    that step joins the open segment.

    *The threshold* is the knob: the higher, the fewer segments. While nothing changes the cost is about the
    noise (up to twice that for steps correlated in time); at a change the squared distance of the two
    meanings comes on top, which does not depend on the noise. A threshold on the noise alone is therefore
    too low where latents are clean and too high where they are noisy; the constant added to it balances the
    two. Simulated streams come out at one segment per event between 0.8 and 2.3: choose it on streams like
    those to be decoded.

    *The noise* is the squared distance of single steps from their segment: for a step that joins n others,
    n / (n + 1) · ||z − μ||², whose expectation is the variance of a step. It is averaged over the stream,
    exponentially over 64 steps, and starts as `noise_floor` with the weight of 4 steps.

    *The transition.* A step whose window straddles a boundary is a blend of both sides, and the pair of an
    old step and a new one is as well. The second condition lets such a pair wait one step longer, until the
    cut falls on the nearer side of the blend. Each step belongs to exactly one segment, and none is shorter
    than m steps (unless the stream is).

    When a segment closes its renormalised mean is emitted, for the midpoint of its times; `finish` closes
    the last one.

    Args:
        threshold: dimensionless, >= 0.
        pending: m, the steps that must agree on a change. With 1 a single outlier starts a segment; with m
            no event shorter than m steps is found.
        noise_floor: added to the noise; squared distance, where unrelated unit latents are 2 apart. Smaller
            if all latents of a model are close together.

    Raises:
        InputError: `threshold` is not finite and >= 0, `pending` is not a whole number >= 1, or
            `noise_floor` is not finite and > 0.
    """

    name = "gate"
    causal = True

    def __init__(self, threshold: float, *, pending: int = 2, noise_floor: float = 0.15) -> None:
        if not (math.isfinite(threshold) and threshold >= 0):
            raise InputError(f"threshold must be finite and >= 0, got {threshold}")
        if not isinstance(pending, int) or pending < 1:
            raise InputError(f"pending must be a whole number >= 1, got {pending}")
        if not (math.isfinite(noise_floor) and noise_floor > 0):
            raise InputError(f"noise_floor must be finite and > 0, got {noise_floor}")
        self.threshold = threshold
        self.pending = pending
        self.noise_floor = noise_floor
        self.latency = f"{pending} step{'s' * (pending > 1)} after the segment's last step"
        self.state = f"{pending + 2} latents: the open segment's sum and last step, {pending} pending"
        self.start()

    def start(self) -> None:
        self._noise = self.noise_floor
        self._weight = _HEAD_START
        self._waiting: deque[tuple[np.ndarray, float]] = deque()
        self._count = 0  # steps of the open segment
        self._first = 0  # index of its first step
        self._start = self._end = 0.0  # times of its first and last step
        self._total = self._last = np.zeros(0)  # sum of its steps, and the last one

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        self._waiting.append((latent.astype(np.float64), time))
        if len(self._waiting) < self.pending:
            return []
        if self._count and not self._changed():
            self._join()
            return []
        segments = [self._close()] if self._count else []
        while self._waiting:
            self._join()
        return segments

    def finish(self) -> list[Segment]:
        while self._waiting:
            self._join()
        segments = [self._close()] if self._count else []
        self.start()
        return segments

    def _changed(self) -> bool:
        n, m = self._count, self.pending
        mean = self._total / n
        oldest = self._waiting[0][0]
        total = sum((latent for latent, _ in self._waiting), start=np.zeros(()))
        gap = total / m - mean
        if n * m / (n + m) * (gap @ gap) <= self.threshold * (self._noise + self.noise_floor):
            return False
        if m == 1:
            return True
        to_mean = oldest - mean
        to_others = oldest - (total - oldest) / (m - 1)
        return bool(to_others @ to_others < to_mean @ to_mean)

    def _join(self) -> None:
        """Move the oldest pending step into the open segment, and learn the noise from it."""
        latent, time = self._waiting.popleft()
        n = self._count
        if n == 0:
            self._start, self._total = time, latent
        else:
            deviation = latent - self._total / n
            self._weight = min(self._weight + 1, _MEMORY)
            self._noise += (n / (n + 1) * float(deviation @ deviation) - self._noise) / self._weight
            self._total = self._total + latent
        self._last, self._end = latent, time
        self._count = n + 1

    def _close(self) -> Segment:
        segment = Segment(
            unit_mean(self._total, self._last),
            time=(self._start + self._end) / 2,
            start=self._start,
            end=self._end,
            first=self._first,
            last=self._first + self._count - 1,
        )
        self._first += self._count
        self._count = 0
        return segment
