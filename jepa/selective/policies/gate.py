"""A causal gate: decodes a segment once, when the latents have moved on to the next."""

from __future__ import annotations

from collections import deque
from functools import partial

import numpy as np

from jepa.errors import check_int, check_nonnegative, check_positive
from jepa.selective.policies.base import ROUNDING, CausalPolicy, Comparisons, OpenSegment, RunningMean
from jepa.selective.types import Segment


class Gate(CausalPolicy):
    """Cuts the stream where the newest steps no longer fit the open segment.

    The open segment has the mean μ of its n steps; the newest m = `pending` steps wait, with mean μ'. The gate cuts
    between the two when joining them would raise the within-segment sum of squares (Ward's merge cost) by much,

        n·m / (n + m) · ||μ − μ'||²  >  threshold · (noise + noise_floor),

    and the oldest pending step is nearer to the mean of the other pending steps than to μ: a step that blends both
    sides of a boundary waits until the cut falls on its nearer side. Without a cut that step joins the open segment.
    The mean of a segment is decoded when it closes, for the midpoint of its times. None is shorter than m steps.

    *The noise* is the squared distance of single steps from their segment: for a step that joins n others,
    n / (n + 1) · ||z − μ||², whose expectation is the variance of a step. It is a `RunningMean` from `noise_floor` on.

    *The threshold*: the higher, the fewer segments. While nothing changes the cost is about the noise, up to twice that
    for steps correlated in time. A change adds the squared distance of two meanings, which does not depend on the
    noise: hence the constant beside it. Simulated streams give one segment per event between 0.8 and 2.3.

    Args:
        threshold: dimensionless, >= 0.
        pending: m, the steps that must agree on a change. With 1 a single outlier starts a segment.
        noise_floor: squared distance, where unrelated unit latents are 2 apart; less if a model's are close together.
        agreement: κ of the segment's mean, as for `OpenSegment`; 0: the plain mean.

    >>> latents = np.repeat(np.eye(2, dtype=np.float32), 4, axis=0)  # the meaning changes after four steps
    >>> [(segment.first, segment.last) for segment, _ in Gate(1.0).run(latents, np.arange(8.0))]
    [(0, 3), (4, 7)]
    """

    name = "gate"

    def __init__(
        self, threshold: float, *, pending: int = 2, noise_floor: float = 0.15, agreement: float = 0.0
    ) -> None:
        self.threshold = check_nonnegative("threshold", threshold)
        self.pending = check_int("pending", pending, 1)
        self.noise_floor = check_positive("noise_floor", noise_floor)
        self.agreement = check_nonnegative("agreement", agreement)
        self.lag = pending
        self.latency = f"{pending} step{'s' * (pending > 1)} after the segment's last step"
        self.state = f"{pending + 2} latents: the open segment's sum and last step, {pending} pending"
        if agreement:
            self.state = f"{pending + 18} latents: the open segment's sums and newest 16 steps, {pending} pending"
        self.start()

    def start(self) -> None:
        self._noise = RunningMean(self.noise_floor)
        self._waiting: deque[tuple[np.ndarray, float]] = deque()
        self._open = OpenSegment(self.agreement)

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        self._waiting.append((latent.astype(np.float64), time))
        if len(self._waiting) < self.pending:
            return []
        if self._open.count:
            square = self._open.distance(self._waiting[0][0], 1)
            if not self._changed(square):
                self._join(square)
                return []
        segments = self._open.close()
        self._join_all()
        return segments

    def run(self, latents: np.ndarray, times: np.ndarray) -> list[tuple[Segment, int]]:
        if self.shared is None:
            return super().run(latents, times)
        self.start()
        key, m = (self.name, self.pending, self.agreement), self.pending

        def compare(
            n: np.ndarray, step: np.ndarray, square: np.ndarray, _: np.ndarray, products: np.ndarray
        ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            """What a step adds to the noise, whether it has to wait, and the cost of joining what is pending."""
            mean = square / n**2
            apart = mean + squares[step] - 2 * products[0] / n
            gap = apart if m == 1 else mean + pending[step] - 2 * products.sum(axis=0) / (n * m)
            waits = others[step] >= apart if m > 1 else np.zeros(len(n), dtype=bool)
            return n / (n + 1) * apart, waits, n * m / (n + m) * gap

        found = Comparisons(self.shared, key, latents, times, compare, m, self.agreement)
        squares = found.products(m)[0]
        pending, others = self.remembered((*key, "pending"), partial(self._pending, found))
        segments, first, step = list[tuple[Segment, int]](), 0, 0  # `step`: the oldest pending one
        threshold, floor, noise, known = self.threshold, self.noise_floor, self._noise, found.known(0)
        while step + m <= found.steps:
            if n := step - first:
                added, waits, cost = known[n - 1] if n <= len(known) else found.at(first, step)
                if waits or cost <= threshold * (noise.value + floor) + ROUNDING:  # as `_changed` decides
                    noise.add(added)
                    step += 1
                    continue
                segments.append((found.segment(first, step - 1), step + m - 1))
                first, known = step, found.known(step)
            for joined in range(1, m):
                noise.add(found.at(first, first + joined)[0])
            step = first + m
        if found.steps:
            segments.append((found.segment(first, found.steps - 1), found.steps - 1))
        self.start()
        return segments

    def _pending(self, found: Comparisons) -> tuple[np.ndarray, np.ndarray]:
        """Of the m steps from each on: the square of their mean, and of the first's distance from the others' mean."""
        m, products = self.pending, found.products(self.pending)
        total = np.zeros(found.steps)
        for oldest in range(m):
            for after in range(m - oldest):
                total += (1 if after == 0 else 2) * np.roll(products[after], -oldest)
        gap = m**2 * products[0] + total - 2 * m * products.sum(axis=0)
        return total / m**2, gap / max(1, m - 1) ** 2

    def close(self) -> list[Segment]:
        self._join_all()
        return self._open.close()

    def _changed(self, square: float) -> bool:
        """Whether the pending steps do not fit the open segment, from whose mean the oldest is this far, squared."""
        m, oldest = self.pending, self._waiting[0][0]
        total = _total([latent for latent, _ in self._waiting])
        if not self._over(self._open.count, square if m == 1 else self._open.distance(total, m)):
            return False
        gap = oldest - (total - oldest) / max(1, m - 1)  # to the mean of the other pending steps
        return m == 1 or float(gap @ gap) < square

    def _over(self, n: int, gap: float) -> bool:
        """Whether the pending steps' mean is too far from the mean of the n open ones, by this squared distance."""
        m = self.pending
        cost, limit = n * m / (n + m) * gap, self.threshold * (self._noise.value + self.noise_floor) + ROUNDING
        self.signal = cost / limit
        return cost > limit

    def _join(self, square: float) -> None:
        """Move the oldest pending step, this far from the open segment's mean, squared, into the segment."""
        n = self._open.count
        self._noise.add(n / (n + 1) * square)
        self._open.add(*self._waiting.popleft())

    def _join_all(self) -> None:
        """Move all pending steps into the open segment, or a new one."""
        while self._waiting:
            if self._open.count:
                self._join(self._open.distance(self._waiting[0][0], 1))
            else:
                self._open.add(*self._waiting.popleft())


def _total(pending: list[np.ndarray]) -> np.ndarray:
    """(E,), the sum of the pending steps."""
    total = pending[0]
    for latent in pending[1:]:
        total = total + latent
    return total
