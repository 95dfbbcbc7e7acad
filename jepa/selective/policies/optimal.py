"""Optimal offline segmentation, by dynamic programming."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jepa.selective.policies.offline import RateSegmentation, StreamMemory, segment_count

_memory: StreamMemory[OptimalCuts] = StreamMemory(256 << 20)


class Optimal(RateSegmentation):
    """The segmentation into N segments whose within-segment sum of squares is least.

    The criterion is Ward's, and N is chosen as `Ward` does; where Ward merges greedily, this is the exact
    minimum, by dynamic programming over all segmentations (Truong et al. 2020, arXiv 1801.00718, section
    5.1.1, by their library ruptures). It shows how much a better choice of cuts could give.

    Time is O(T²·E + N·T²) for T steps. One pass for N gives the cuts of every smaller number as well. They
    are kept (N·T bits a stream, 256 MiB in all, the least recently used go first): a sweep over rates from
    the highest to the lowest takes one pass a stream.

    Args:
        rate_hz: segments per second of stream.
        representative: as for `Ward`.

    Raises:
        InputError: `rate_hz` is not finite and > 0, or `representative` is none of the three.
    """

    method = "optimal"

    def firsts(self, latents: np.ndarray, times: np.ndarray) -> np.ndarray:
        number, steps = segment_count(self.rate_hz, times), len(times)
        if number in (1, steps):
            return np.arange(number)
        key = _memory.key(latents)
        cuts = _memory.get(key)
        if cuts is None or cuts.number < number:
            cuts = _solve(latents, number)
            _memory.put(key, cuts)
        return cuts.firsts(number)


@dataclass(frozen=True)
class OptimalCuts:
    """The optimal segmentations of T steps into 2 up to N segments.

    Args:
        bits: (N − 1, ceil(T / 8)) uint8, for each number of segments a bit for each step, set if it is the
            first of a segment.
    """

    bits: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return int(self.bits.nbytes)

    @property
    def number(self) -> int:
        """N, the largest number of segments."""
        return len(self.bits) + 1

    def firsts(self, number: int) -> np.ndarray:
        """First steps of the segments, 2 <= `number` <= N of them."""
        return np.flatnonzero(np.unpackbits(self.bits[number - 2]))


def _solve(latents: np.ndarray, number: int) -> OptimalCuts:
    from ruptures import KernelCPD  # only this policy needs it

    search = KernelCPD(kernel="linear", min_size=1).fit(latents)
    search.predict(n_bkps=number - 1)
    starts = np.zeros((number - 1, len(latents)), dtype=bool)
    starts[:, 0] = True
    for row, cuts in enumerate(starts, start=1):
        cuts[search.predict(n_bkps=row)[:-1]] = True  # found in the first call; the last one is T
    return OptimalCuts(np.packbits(starts, axis=1))
