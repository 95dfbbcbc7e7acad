"""Prediction error: a new segment where the next latent is not what the stream so far lets expect."""

from __future__ import annotations

import numpy as np

from jepa.errors import check_nonnegative, check_positive
from jepa.selective.policies.base import ROUNDING, CausalPolicy, Comparisons, OpenSegment, RunningMean
from jepa.selective.types import Segment


class PredictionError(CausalPolicy):
    """Cuts the stream where the error of a one-step forecast is large for this stream.

    Each latent is forecast as an autoregressive step of order 1 around the mean μ of the n steps of the open segment,
    and a new segment begins where the error is large:

        ẑ_t = μ + φ · (z_{t−1} − μ),        e_t = n / (n + 1) · ||z_t − ẑ_t||²,
        e_t  >  threshold · (error + noise_floor).

    n / (n + 1) makes up for the noise in the mean of few steps. A segment's mean is decoded, for the midpoint of its
    times. A single outlier makes two cuts.

    *The coefficient* φ, from 0 to 1, is learned from the steps that join a segment by discounted least squares: the
    running mean of (z_t − μ)·(z_{t−1} − μ) over that of ||z_{t−1} − μ||². It starts at 0; noise correlated in time
    raises it. *The error* is the running mean of e_t from `noise_floor` on. A step that cuts counts with the limit that
    it broke: changes weigh little, and a noisier stream is learned still. For these means see `RunningMean`.

    This is the sequentially discounted autoregression of ChangeFinder (Takeuchi & Yamanishi 2006, IEEE TKDE 18(4),
    482-492), around the segment's mean, not the stream's, by squared error, not likelihood, and without second stage.

    Args:
        threshold: dimensionless, >= 0.
        noise_floor: added to the error, > 0; squared distance, where unrelated unit latents are 2 apart.

    >>> latents = np.repeat(np.eye(2, dtype=np.float32), 4, axis=0)  # the meaning changes after four steps
    >>> [(segment.first, segment.last) for segment, _ in PredictionError(1.0).run(latents, np.arange(8.0))]
    [(0, 3), (4, 7)]
    """

    name = "prediction_error"
    latency, lag = "1 step after the segment's last step", 1
    state = "2 latents: the open segment's sum and last step"

    def __init__(self, threshold: float, *, noise_floor: float = 0.15) -> None:
        self.threshold = check_nonnegative("threshold", threshold)
        self.noise_floor = check_positive("noise_floor", noise_floor)
        self.start()

    def start(self) -> None:
        self._open = OpenSegment()
        self._error = RunningMean(self.noise_floor)
        self._product = RunningMean(0.0)
        self._square = RunningMean(self.noise_floor)

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        row = latent.astype(np.float64)
        opened, segments = self._open, list[Segment]()
        if opened.count and not self._expected(opened.count, *_products(opened, row)):
            segments = opened.close()
        opened.add(row, time)
        return segments

    def run(self, latents: np.ndarray, times: np.ndarray) -> list[tuple[Segment, int]]:
        if self.shared is None:
            return super().run(latents, times)

        def compare(
            n: np.ndarray, step: np.ndarray, square: np.ndarray, last: np.ndarray, products: np.ndarray
        ) -> tuple[np.ndarray, ...]:
            """As `_products`, of the step after the open segment and the last one in it."""
            mean, before, now = square / n**2, last / n, products[0] / n
            product = nexts[step - 1] - now - before + mean
            return product, squares[step - 1] - 2 * before + mean, squares[step] - 2 * now + mean

        self.start()
        found = Comparisons(self.shared, self.name, latents, times, compare)
        squares, nexts = found.products(2)
        segments = found.cut(lambda n, step, numbers: not self._expected(n, *numbers))
        self.start()
        return segments

    def close(self) -> list[Segment]:
        return self._open.close()

    def _expected(self, n: int, product: float, square: float, now: float) -> bool:
        """Whether a step goes on with n open ones, by its `_products`; if so, the forecast learns from it."""
        fraction = min(1.0, max(0.0, self._product.value / self._square.value))
        error = n / (n + 1) * max(0.0, now - 2 * fraction * product + fraction**2 * square)
        limit = self.threshold * (self._error.value + self.noise_floor) + ROUNDING
        self.signal = error / limit
        self._error.add(min(error, limit))
        if error > limit:
            return False
        if n > 1:  # the mean of one step is that step
            self._product.add(product)
            self._square.add(square)
        return True


def _products(opened: OpenSegment, row: np.ndarray) -> tuple[float, float, float]:
    """now·before, before·before and now·now: a step (E,) and the last one, from the mean of the open segment."""
    mean = opened.total / opened.count
    before, now = opened.last - mean, row - mean
    return float(now @ before), float(before @ before), float(now @ now)
