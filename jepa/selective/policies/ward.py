"""Offline segmentation by agglomerative clustering along time, as in VL-JEPA."""

from __future__ import annotations

import math
from functools import partial
from heapq import heapify, heappop, heappush

import numpy as np

from jepa.errors import check_positive
from jepa.selective.policies.offline import OfflinePolicy

_ROWS = 32  # compared with their neighbours at a time, so that they stay in the processor's cache


class Ward(OfflinePolicy):
    """Ward clustering with temporal connectivity into a number of segments set by the rate.

    VL-JEPA (arXiv 2512.10942, section 4.6): starting from single steps, the two neighbouring segments of n and m steps
    whose merger raises the within-segment sum of squares least, by nm / (n + m) · ||μ₁ − μ₂||², become one, until
    `segment_count` are left. Costs could not decide: along time they may fall from one merger to the next.

    Args:
        rate_hz: segments per second of stream.
        representative: as for `OfflinePolicy`.

    >>> latents = np.repeat(np.eye(2, dtype=np.float32), 4, axis=0)  # the meaning changes after four steps
    >>> [(segment.first, segment.last) for segment, _ in Ward(0.25, "mean").run(latents, np.arange(8.0))]
    [(0, 3), (4, 7)]
    """

    method = "ward"

    def __init__(self, rate_hz: float, representative: str) -> None:
        self.rate_hz = check_positive("rate_hz", rate_hz)
        super().__init__(representative)

    def firsts(self, latents: np.ndarray, times: np.ndarray) -> np.ndarray:
        mergers = self.remembered(self.method, partial(ward_mergers, latents))
        return np.sort(np.append(mergers[len(latents) - segment_count(self.rate_hz, times) :], 0))


def segment_count(rate_hz: float, times: np.ndarray) -> int:
    """N = max(1, round(rate · duration)), at most T: steps at `times` (T,) last their span and one mean interval.

    >>> segment_count(0.5, np.arange(10.0))
    5
    """
    steps = len(times)
    duration = (times[-1] - times[0]) * steps / max(1, steps - 1)
    return min(steps, max(1, math.floor(rate_hz * duration + 0.5)))


def ward_mergers(latents: np.ndarray) -> np.ndarray:
    """Merges the two neighbours of latents (T, E) of least cost until one segment is left: O(T·E + T·log T).

    Of equal costs, the pair goes first whose newer segment was made earlier, then its older one, as in scikit-learn's
    `ward_tree` with the steps connected along time.

    Returns:
        (T − 1,) int64, for each merger the first step of the later of its two segments.

    >>> ward_mergers(np.repeat(np.eye(2, dtype=np.float32), 2, axis=0)).tolist()
    [1, 3, 2]
    """
    steps = len(latents)
    values = latents.astype(np.float64)
    means = list(values)  # of a segment, at its first step; so its size and its number
    sizes = [1] * steps
    numbers = list(range(steps))  # in the order they were made; −1 where no segment begins any more
    firsts = list(range(steps))  # of a segment, at its last step
    pairs: list[tuple[float, int, int, int, int]] = []
    for begin in range(0, steps - 1, _ROWS):
        apart = np.diff(values[begin : begin + _ROWS + 1], axis=0)
        half = 0.5 * np.einsum("te,te->t", apart, apart)
        pairs += [(cost, step + 1, step, step, step + 1) for step, cost in enumerate(half.tolist(), start=begin)]
    heapify(pairs)
    gap = np.empty_like(means[0])

    def pair(left: int, right: int) -> None:
        n, m, one, other = sizes[left], sizes[right], numbers[left], numbers[right]
        np.subtract(means[right], means[left], gap)
        cost = n * m / (n + m) * float(gap.dot(gap))
        heappush(pairs, (cost, max(one, other), min(one, other), left, right))

    boundaries: list[int] = []
    while len(boundaries) < steps - 1:
        _, newer, older, left, right = heappop(pairs)
        if {numbers[left], numbers[right]} != {newer, older}:
            continue  # one of the two has been merged
        size = sizes[left] + sizes[right]
        np.subtract(means[right], means[left], gap)
        gap *= sizes[right] / size
        means[left] += gap
        sizes[left], numbers[left], numbers[right] = size, steps + len(boundaries), -1
        firsts[left + size - 1] = left
        boundaries.append(right)
        if left > 0:
            pair(firsts[left - 1], left)
        if left + size < steps:
            pair(left, left + size)
    return np.array(boundaries, dtype=np.int64)
