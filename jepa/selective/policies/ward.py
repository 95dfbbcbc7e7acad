"""Offline segmentation by agglomerative clustering along time, as in VL-JEPA."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np

from jepa.errors import check_nonnegative
from jepa.selective.policies.offline import RateSegmentation, Segmentation, StreamMemory, segment_count

_memory: StreamMemory[WardTree] = StreamMemory(256 << 20)
_ROWS = 32  # compared with their neighbours at a time, so that they stay in the processor's cache


class Ward(RateSegmentation):
    """Ward clustering with temporal connectivity into a number of segments set by the rate.

    VL-JEPA (arXiv 2512.10942, section 4.6): starting from single steps, the two neighbouring segments of n
    and m steps whose merger raises the within-segment sum of squares least, by nm / (n + m) · ||μ₁ − μ₂||²,
    become one, until N = max(1, round(`rate_hz` · duration)) are left, at most one per step. The duration
    is that which the T steps cover: the span of their times and one mean step interval. The tree is cut by
    the number of segments, never by a cost: along time the cost of successive mergers may fall.

    The tree of a stream does not depend on the rate. Trees are kept (16 bytes a step, 256 MiB in all, the
    least recently used go first), so that a sweep over rates clusters each stream once.

    Args:
        rate_hz: segments per second of stream.
        representative: "midpoint" decodes the latent of the segment's middle step (of two, the earlier) at
            that step's time; "mean" decodes the renormalised mean of the segment at the midpoint of its
            times; "agreement" the same with the weights of `Gate(agreement=8)`.

    Raises:
        InputError: `rate_hz` is not finite and > 0, or `representative` is none of the three.
    """

    method = "ward"

    def firsts(self, latents: np.ndarray, times: np.ndarray) -> np.ndarray:
        return ward_tree(latents).firsts(segment_count(self.rate_hz, times))


class WardCut(Segmentation):
    """Ward clustering with temporal connectivity, all streams cut at one merge cost.

    The tree is that of `Ward`; in place of N for each stream there is one cost for all, so that a stream
    where much happens gets more segments than one where little does. Mergers are undone from the last to
    the first for as long as the highest cost among those up to and including it is above `cost`:
    N = 1 + the number of mergers whose running maximum of costs exceeds `cost`. The cost of a merger alone
    would be no cut, since along time the cost of successive mergers may fall.

    Args:
        cost: nm / (n + m) · ||μ₁ − μ₂||², squared distance times steps, >= 0: two segments of n unrelated
            steps each, all equal within a segment, merge at n.
        representative: as for `Ward`.

    Raises:
        InputError: `cost` is not finite and >= 0, or `representative` is none of the three.
    """

    method = "ward_cut"

    def __init__(self, cost: float, representative: str) -> None:
        self.cost = check_nonnegative("cost", cost)
        super().__init__(representative)

    def firsts(self, latents: np.ndarray, times: np.ndarray) -> np.ndarray:
        tree = ward_tree(latents)
        return tree.firsts(1 + int(np.count_nonzero(np.maximum.accumulate(tree.costs) > self.cost)))


@dataclass(frozen=True)
class WardTree:
    """The hierarchy of segments that Ward's criterion makes of T steps, merger by merger.

    Args:
        boundaries: (T − 1,) int64, the first step of the later of the two segments that each merger joins.
        costs: (T − 1,) float64, by how much it raises the within-segment sum of squares.
    """

    boundaries: np.ndarray
    costs: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return int(self.boundaries.nbytes + self.costs.nbytes)

    def firsts(self, number: int) -> np.ndarray:
        """(N,) the first steps of the N segments left when all but the last N − 1 mergers are made."""
        undone = self.boundaries[len(self.boundaries) + 1 - number :]
        return np.sort(np.append(undone, 0))


def ward_tree(latents: np.ndarray) -> WardTree:
    """The tree of a stream, latents (T, E) float32; from memory if it was asked for before."""
    key = _memory.key(latents)
    tree = _memory.get(key)
    if tree is None:
        tree = _cluster(latents)
        _memory.put(key, tree)
    return tree


def _cluster(latents: np.ndarray) -> WardTree:
    """Merges the two neighbours of least cost until one segment is left: O(T·E + T·log T).

    Segments are numbered as they come to be, the T steps first. Of equal costs, the pair goes first whose newer segment
    has the lower number, then its older one, as in scikit-learn's `ward_tree` with the steps connected along time.
    """
    steps = len(latents)
    values = latents.astype(np.float64)
    means = list(values)  # of a segment, at its first step; so its size and its number
    sizes = [1] * steps
    numbers = list(range(steps))  # −1 where no segment begins any more
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
    costs: list[float] = []
    while len(costs) < steps - 1:
        cost, newer, older, left, right = heappop(pairs)
        if {numbers[left], numbers[right]} != {newer, older}:
            continue  # one of the two has been merged
        size = sizes[left] + sizes[right]
        np.subtract(means[right], means[left], gap)
        gap *= sizes[right] / size
        means[left] += gap
        sizes[left], numbers[left], numbers[right] = size, steps + len(costs), -1
        firsts[left + size - 1] = left
        boundaries.append(right)
        costs.append(cost)
        if left > 0:
            pair(firsts[left - 1], left)
        if left + size < steps:
            pair(left, left + size)
    return WardTree(np.array(boundaries, dtype=np.int64), np.array(costs))
