"""Offline segmentation by agglomerative clustering along time, as in VL-JEPA."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict

import numpy as np

from jepa.errors import InputError
from jepa.selective.policies.base import OfflinePolicy, Segment, unit_mean

REPRESENTATIVES = ("midpoint", "mean")

_CACHED_STREAMS = 64
_boundaries: OrderedDict[tuple[bytes, tuple[int, ...]], np.ndarray] = OrderedDict()  # by digest and shape


class Ward(OfflinePolicy):
    """Ward clustering with temporal connectivity into a number of segments set by the rate.

    VL-JEPA (arXiv 2512.10942, section 4.6): starting from single steps, the two neighbouring segments of n
    and m steps whose merger raises the within-segment sum of squares least, by nm / (n + m) · ||μ₁ − μ₂||²,
    become one, until N = max(1, round(`rate_hz` · duration)) are left, at most one per step. The duration
    is that which the T steps cover: the span of their times and one mean step interval. The tree is cut by
    the number of segments, never by a cost: along time the cost of successive mergers may fall.

    The tree of a stream does not depend on the rate. Those of the last 64 streams are kept (T − 1 integers
    each), so that a sweep over rates clusters each stream once.

    Args:
        rate_hz: segments per second of stream.
        representative: "midpoint" decodes the latent of the segment's middle step (of two, the earlier) at
            that step's time; "mean" decodes the renormalised mean of the segment at the midpoint of its
            times.

    Raises:
        InputError: `rate_hz` is not finite and > 0, or `representative` is neither of the two.
    """

    def __init__(self, rate_hz: float, representative: str) -> None:
        if not (math.isfinite(rate_hz) and rate_hz > 0):
            raise InputError(f"rate_hz must be finite and > 0, got {rate_hz}")
        if representative not in REPRESENTATIVES:
            names = ", ".join(REPRESENTATIVES)
            raise InputError(f"representative must be one of {names}, got {representative!r}")
        self.rate_hz = rate_hz
        self.representative = representative
        self.name = f"ward_{representative}"
        super().__init__()

    def segment(self, latents: np.ndarray, times: np.ndarray) -> list[Segment]:
        steps = len(times)
        duration = (times[-1] - times[0]) * steps / max(1, steps - 1)
        number = min(steps, max(1, math.floor(self.rate_hz * duration + 0.5)))
        firsts = np.sort(np.append(ward_boundaries(latents)[: number - 1], 0))
        lasts = np.append(firsts[1:], steps) - 1
        return [self._represent(latents, times, int(i), int(j)) for i, j in zip(firsts, lasts, strict=True)]

    def _represent(self, latents: np.ndarray, times: np.ndarray, first: int, last: int) -> Segment:
        start, end = float(times[first]), float(times[last])
        if self.representative == "midpoint":
            middle = (first + last) // 2
            latent, time = latents[middle].copy(), float(times[middle])
        else:
            total = latents[first : last + 1].sum(axis=0, dtype=np.float64)
            latent, time = unit_mean(total, latents[last]), (start + end) / 2
        return Segment(latent, time=time, start=start, end=end, first=first, last=last)


def ward_boundaries(latents: np.ndarray) -> np.ndarray:
    """The hierarchy of segments that Ward's criterion makes of a stream, as an order of its boundaries.

    Args:
        latents: (T, E).

    Returns:
        (T − 1,) the steps at which a segment begins, step 0 apart, the last merged first: the first N − 1
        of them cut the stream into N segments. Read-only.
    """
    key = (hashlib.blake2b(latents.tobytes()).digest(), latents.shape)
    if key not in _boundaries:
        _boundaries[key] = _cluster(latents)
        _boundaries[key].setflags(write=False)
        while len(_boundaries) > _CACHED_STREAMS:
            _boundaries.popitem(last=False)
    _boundaries.move_to_end(key)
    return _boundaries[key]


def _cluster(latents: np.ndarray) -> np.ndarray:
    from sklearn.cluster import ward_tree  # takes a second to import, and only this policy needs it
    from sklearn.feature_extraction.image import grid_to_graph

    steps = len(latents)
    if steps == 1:
        return np.zeros(0, dtype=np.int64)
    mergers = ward_tree(latents.astype(np.float64), connectivity=grid_to_graph(steps, 1))[0]
    first = list(range(steps))  # first step of each node: the steps, then the mergers in their order
    boundaries = []
    for one, other in mergers:
        boundaries.append(max(first[one], first[other]))
        first.append(min(first[one], first[other]))
    return np.array(boundaries[::-1], dtype=np.int64)
