"""Offline policies: they see the whole stream before they cut it. One of them is told where, as an upper bound."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial

import numpy as np

from jepa.errors import InputError
from jepa.selective.policies.base import Policy, mean_segment
from jepa.selective.types import Segment


class OfflinePolicy(Policy):
    """Stores the steps, partitions the stream in `finish` and decodes one latent for each part.

    Args:
        representative: "midpoint" decodes the latent of the segment's middle step (of two, the earlier) at that step's
            time; "mean" decodes the renormalised mean of the segment at the midpoint of its times.

    >>> from jepa.selective import Ward
    >>> isinstance(Ward(0.5, "mean"), OfflinePolicy)
    True
    """

    causal = False
    latency = "at the end of the stream"
    state = "the whole stream"
    method: str  # how it partitions; with the representative it makes the `name`

    def __init__(self, representative: str) -> None:
        if representative not in ("midpoint", "mean"):
            raise InputError(f"representative must be midpoint or mean, got {representative!r}")
        self.representative = representative
        self.name = f"{self.method}_{representative}"
        self.start()

    @abstractmethod
    def firsts(self, latents: np.ndarray, times: np.ndarray) -> np.ndarray:
        """The first step of each segment of a stream, latents (T, E) at times (T,) with T >= 1, in their order."""

    def start(self) -> None:
        self._latents: list[np.ndarray] = []
        self._times: list[float] = []

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        self._latents.append(np.array(latent, dtype=np.float32))
        self._times.append(time)
        return []

    def finish(self) -> list[Segment]:
        closed = self.run(np.array(self._latents), np.array(self._times))
        return [segment for segment, _ in closed]

    def run(self, latents: np.ndarray, times: np.ndarray) -> list[tuple[Segment, int]]:
        self.start()
        if not len(times):
            return []
        firsts = self.firsts(latents, times)
        lasts = np.append(firsts[1:], len(times)) - 1
        pairs = zip(firsts.tolist(), lasts.tolist(), strict=True)
        make = partial(self._segment, latents, times)
        return [(self.remembered((f, last), partial(make, f, last)), len(times) - 1) for f, last in pairs]

    def _segment(self, latents: np.ndarray, times: np.ndarray, first: int, last: int) -> Segment:
        if self.representative == "mean":
            return mean_segment(latents, times, first, last)
        middle = (first + last) // 2
        start, end = float(times[first]), float(times[last])
        row = self.remembered(middle, latents[middle].copy)
        return Segment(row, float(times[middle]), start, end, first, last)


class Oracle(OfflinePolicy):
    """Segments between annotated boundaries: an upper bound, and no method, since it is told the answer.

    Before each stream `boundaries` is set to the times where its events begin and end, in any order; the stream uses
    them up. A step on a boundary is after it. Fewer decodes may be enough where events repeat.

    Raises:
        InputError: a stream ends for which no `boundaries` were set.

    >>> oracle = Oracle("mean")
    >>> oracle.boundaries = [2.0]
    >>> [(segment.start, segment.end) for segment, _ in oracle.run(np.ones((4, 1), np.float32), np.arange(4.0))]
    [(0.0, 1.0), (2.0, 3.0)]
    """

    method = "oracle"
    boundaries: Sequence[float] | None = None

    def firsts(self, latents: np.ndarray, times: np.ndarray) -> np.ndarray:
        if self.boundaries is None:
            raise InputError("boundaries must be set before each stream, got None")
        boundaries, self.boundaries = np.sort(self.boundaries), None
        return np.unique(np.searchsorted(boundaries, times, side="right"), return_index=True)[1]
