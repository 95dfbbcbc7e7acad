"""Local variance: the rule that VL-JEPA describes for live streams."""

from __future__ import annotations

from collections import deque
from functools import partial

import numpy as np

from jepa.errors import check_int, check_nonnegative
from jepa.selective.policies.base import ROUNDING, CausalPolicy, Comparisons, OpenSegment
from jepa.selective.types import Segment


class LocalVariance(CausalPolicy):
    """Cuts the stream where the variance of a local window passes a threshold.

    VL-JEPA (arXiv 2512.10942, section 4.6) describes such a rule for live streams, without its details, and does not
    evaluate it. Here the window is the newest step and those before it in its segment, `window` steps at most. Its
    variance is their mean squared distance from their mean, for unit latents 1 − ||mean||². The cut falls before the
    newest step, and the mean of the finished segment is decoded, for the midpoint of its times. The window holds no
    step from before a cut, so that no change cuts twice.

    k new steps in a window of w, at squared distance d² from the others, raise the variance to d²·k·(w − k)/w²: a
    longer window notices a change later. With `window=2` the rule compares neighbours: 1 − cos > 2 · `threshold`.

    Args:
        threshold: variance of unit latents, squared distance, >= 0; never reached above 1.
        window: w, steps, >= 2.

    >>> latents = np.repeat(np.eye(2, dtype=np.float32), 4, axis=0)  # the meaning changes after four steps
    >>> [(segment.first, segment.last) for segment, _ in LocalVariance(0.3).run(latents, np.arange(8.0))]
    [(0, 3), (4, 7)]
    """

    name = "local_variance"
    latency, lag = "1 step after the segment's last step", 1

    def __init__(self, threshold: float, *, window: int = 4) -> None:
        self.threshold = check_nonnegative("threshold", threshold)
        self.window = check_int("window", window, 2)
        self.state = f"{window} latents: the open segment's sum and the newest {window - 1} steps"
        self.start()

    def start(self) -> None:
        self._open = OpenSegment()
        self._recent: deque[np.ndarray] = deque(maxlen=self.window - 1)  # the window without the step to come

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        row = latent.astype(np.float64)
        segments = self.close() if self._recent and self._variance_with(row) > self.threshold + ROUNDING else []
        self._open.add(row, time)
        self._recent.append(row)
        return segments

    def run(self, latents: np.ndarray, times: np.ndarray) -> list[tuple[Segment, int]]:
        if self.shared is None:
            return super().run(latents, times)

        found = Comparisons(self.shared, (self.name, self.window), latents, times, None)
        variances = self.remembered((self.name, self.window, "variances"), partial(self._variances, found))
        limit, longest = self.threshold + ROUNDING, self.window
        return found.cut(lambda n, step, _: variances[min(n + 1, longest)][step] > limit)

    def _variances(self, found: Comparisons) -> list[list[float]]:
        """By the number of steps in a window, then by its newest step."""
        products = found.products(min(self.window, found.steps))
        totals = norms = np.zeros(found.steps)  # of the window that ends with each step: its square, its steps' squares
        variances = [[0.0] * found.steps]
        for count in range(1, len(products) + 1):
            for after in range(count):  # the oldest step, `count` − 1 before the newest
                oldest = np.roll(products[after], count - 1)
                totals = totals + (1 if after == 0 else 2) * oldest
            norms = norms + np.roll(products[0], count - 1)
            variances.append((norms / count - totals / count**2).tolist())
        return variances

    def close(self) -> list[Segment]:
        self._recent.clear()
        return self._open.close()

    def _variance_with(self, row: np.ndarray) -> float:
        """Variance of the window that ends with this step."""
        gaps = np.array(self._recent) - row  # from the newest step, whose own is 0: no variance of equal steps
        mean = gaps.sum(axis=0) / (len(gaps) + 1)
        variance = float((gaps * gaps).sum()) / (len(gaps) + 1) - float(mean @ mean)
        self.signal = variance / max(self.threshold, ROUNDING)
        return variance
