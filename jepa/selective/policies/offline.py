"""What the offline policies share: segments from their first steps, and a memory of streams seen before."""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

import numpy as np

from jepa.errors import InputError, check_positive
from jepa.selective.policies.base import OfflinePolicy, unit_mean, weighed_sum
from jepa.selective.types import Segment

REPRESENTATIVES = ("midpoint", "mean", "agreement")
_AGREEMENT = 8.0


class Segmentation(OfflinePolicy):
    """An offline policy that partitions the stream and decodes one latent for each part.

    Args:
        representative: "midpoint" decodes the latent of the segment's middle step (of two, the earlier) at
            that step's time; "mean" decodes the renormalised mean of the segment at the midpoint of its
            times; "agreement" the same with the weights of `Gate(agreement=8)`.

    Attributes:
        method: how it partitions; with the representative it makes the `name`.

    Raises:
        InputError: `representative` is none of these.
    """

    method: str

    def __init__(self, representative: str) -> None:
        if representative not in REPRESENTATIVES:
            names = ", ".join(REPRESENTATIVES)
            raise InputError(f"representative must be one of {names}, got {representative!r}")
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
            steps = latents[first : last + 1].astype(np.float64)
            total, weight = steps.sum(axis=0), float(len(steps))
            if self.representative == "agreement":
                total, weight = weighed_sum(steps, total, _AGREEMENT)
            latent, time = unit_mean(total, weight, latents[last]), (start + end) / 2
        return Segment(latent, time=time, start=start, end=end, first=first, last=last)


class RateSegmentation(Segmentation):
    """A segmentation into as many segments as the rate asks for: N of `segment_count`.

    Args:
        rate_hz: segments per second of stream.
        representative: as for `Segmentation`.

    Raises:
        InputError: `rate_hz` is not finite and > 0, or `representative` is none of the three.
    """

    def __init__(self, rate_hz: float, representative: str) -> None:
        self.rate_hz = check_positive("rate_hz", rate_hz)
        super().__init__(representative)


def segment_count(rate_hz: float, times: np.ndarray) -> int:
    """N = max(1, round(rate · duration)), at most one for each of the T steps at `times` (T,).

    The duration is that which the steps cover: the span of their times and one mean step interval.
    """
    steps = len(times)
    duration = (times[-1] - times[0]) * steps / max(1, steps - 1)
    return min(steps, max(1, math.floor(rate_hz * duration + 0.5)))


class Sized(Protocol):
    """What says how many bytes it holds."""

    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=Sized)


class StreamMemory(Generic[T]):
    """Results for streams, found again by the content of the stream; the least recently used go first.

    Args:
        limit: bytes held at most.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: OrderedDict[tuple[bytes, tuple[int, ...]], T] = OrderedDict()
        self._bytes = 0

    def key(self, latents: np.ndarray) -> tuple[bytes, tuple[int, ...]]:
        """What the result for latents (T, E) float32 is kept under."""
        return hashlib.sha256(np.ascontiguousarray(latents).data).digest(), latents.shape

    def get(self, key: tuple[bytes, tuple[int, ...]]) -> T | None:
        """The result kept under a key, if there is one."""
        if key not in self._held:
            return None
        self._held.move_to_end(key)
        return self._held[key]

    def take(self, key: tuple[bytes, tuple[int, ...]]) -> T | None:
        """The result kept under a key, if there is one, which is kept no longer: it may grow before it is put back."""
        result = self._held.pop(key, None)
        self._bytes -= result.nbytes if result is not None else 0
        return result

    def put(self, key: tuple[bytes, tuple[int, ...]], result: T) -> None:
        """Keep a result, in place of one under the same key."""
        self._bytes += result.nbytes - (self._held.pop(key).nbytes if key in self._held else 0)
        self._held[key] = result
        while self._bytes > self.limit:
            self._bytes -= self._held.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()
        self._bytes = 0
