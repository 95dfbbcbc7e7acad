"""Offline policies that partition a stream, given the first step of each segment."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from jepa.errors import InputError
from jepa.selective.policies.base import OfflinePolicy, unit_mean
from jepa.selective.types import Segment


class Segmentation(OfflinePolicy):
    """An offline policy that partitions the stream and decodes one latent for each part.

    Args:
        representative: "midpoint" decodes the latent of the segment's middle step (of two, the earlier) at that step's
            time; "mean" decodes the renormalised mean of the segment at the midpoint of its times.

    Attributes:
        method: how it partitions; with the representative it makes the `name`.

    Raises:
        InputError: `representative` is neither.
    """

    method: str

    def __init__(self, representative: str) -> None:
        if representative not in ("midpoint", "mean"):
            raise InputError(f"representative must be midpoint or mean, got {representative!r}")
        self.representative = representative
        self.name = f"{self.method}_{representative}"
        super().__init__()

    @abstractmethod
    def firsts(self, latents: np.ndarray, times: np.ndarray) -> np.ndarray:
        """The first step of each segment, in their order, step 0 among them.

        Args:
            latents: (T, E) unit float32, T >= 1.
            times: (T,) float64 seconds.
        """

    def segment(self, latents: np.ndarray, times: np.ndarray) -> list[Segment]:
        firsts = self.firsts(latents, times)
        lasts = np.append(firsts[1:], len(times)) - 1
        return [self._represent(latents, times, int(i), int(j)) for i, j in zip(firsts, lasts, strict=True)]

    def _represent(self, latents: np.ndarray, times: np.ndarray, first: int, last: int) -> Segment:
        start, end = float(times[first]), float(times[last])
        if self.representative == "midpoint":
            middle = (first + last) // 2
            latent, time = latents[middle].copy(), float(times[middle])
        else:
            total = latents[first : last + 1].astype(np.float64).sum(axis=0)
            latent, time = unit_mean(total, last - first + 1, latents[last]), (start + end) / 2
        return Segment(latent, time=time, start=start, end=end, first=first, last=last)
