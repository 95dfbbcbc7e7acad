"""Local variance: the rule that VL-JEPA describes for live streams."""

from __future__ import annotations

from collections import deque

import numpy as np

from jepa.selective.policies.base import CausalPolicy, OpenSegment, Segment, not_negative, whole


class LocalVariance(CausalPolicy):
    """Cuts the stream where the variance of a local window passes a threshold.

    VL-JEPA (arXiv 2512.10942, section 4.6) describes such a rule for live streams and does not evaluate it: it
    gives no window and no threshold, and leaves open which latent is decoded, where the cut falls, and when
    the rule is ready again. Here:

    - *The window* is the newest step and those before it in its segment, `window` steps at most. Its variance
      is their mean squared distance from their mean, which for unit latents is 1 − ||mean||².
    - *The cut* falls before the newest step when the variance is above `threshold`.
    - *What is decoded* is the renormalised mean of the segment finished by the cut, for the midpoint of its
      times.
    - *Ready again* is the rule at once: the window holds no step from before a cut, so that one change does
      not cut twice, and a lower threshold does not silence the policy by a variance that never falls.

    A lone new step in a window of w at squared distance d² from the others, all equal, raises the variance to
    d²·(w − 1)/w², and k of them to d²·k·(w − k)/w²: the longer the window, the later a change of given size
    is noticed, and with it the cut. With `window=2` the rule is that of `Drift` at twice the threshold.

    Args:
        threshold: variance of unit latents, squared distance, >= 0; never reached above 1.
        window: w, steps, >= 2.

    Raises:
        InputError: `threshold` is not finite and >= 0, or `window` is not a whole number >= 2.
    """

    name = "local_variance"
    latency = "1 step after the segment's last step"

    def __init__(self, threshold: float, *, window: int = 4) -> None:
        self.threshold = not_negative("threshold", threshold)
        self.window = whole("window", window, 2)
        self.state = f"{window + 1} latents: the open segment's sum, the newest {window - 1} steps and their sum"
        self.start()

    def start(self) -> None:
        self._open = OpenSegment()
        self._forget_window()

    def _forget_window(self) -> None:
        self._recent: deque[np.ndarray] = deque()  # the window without the step to come
        self._total: np.ndarray = np.zeros(())  # their sum

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        row = latent.astype(np.float64)
        segments = self.close() if self._recent and self._variance_with(row) > self.threshold else []
        self._open.add(row, time)
        self._recent.append(row)
        self._total = self._total + row
        if len(self._recent) == self.window:
            self._total -= self._recent.popleft()
        return segments

    def close(self) -> list[Segment]:
        self._forget_window()
        return self._open.close()

    def _variance_with(self, row: np.ndarray) -> float:
        """Variance of the window that ends with this step."""
        mean = (self._total + row) / (len(self._recent) + 1)
        return 1 - float(mean @ mean)
