"""What a policy is: a stream of latents in, segments to decode out.

Dimension letters: T steps of a stream, E width of the latent space. Latents are float32 of unit norm, times
are seconds. Policies trust their input; `jepa.selective.SelectiveDecoder` is where a stream is checked.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque

import numpy as np

from jepa.selective.types import Segment


class Policy(ABC):
    """Takes one latent at a time and says which segments to decode.

    A stream is `start`, then `step` for each latent, then `finish`. A new policy is ready for its first
    stream, and `finish` leaves it ready for the next. Latents passed in are not kept by reference, and nothing
    is kept of earlier streams.

    Attributes:
        name: the policy's name in results.
        causal: True if segments come out of `step`, from the past alone; False if the whole stream is needed.
        latency: how long after the end of a segment it comes out, in words.
        state: what is kept between two steps, in words.
        decodes_input: False if its segments hold other latents than it is given, perhaps of another width.
        reads_latents: False if times alone decide: such a policy may be run without latents.
        lag: steps after a segment's last step at which it comes out, at most; None: there is no such bound.

    >>> class Odd(Policy):
    ...     name, causal, latency, state, reads_latents = "odd", True, "none", "1 number", False
    ...     def start(self):
    ...         self.index = -1
    ...     def step(self, latent, time):
    ...         self.index += 1
    ...         return [step_segment(latent, time, self.index)] if self.index % 2 else []
    ...     def finish(self):
    ...         self.start()
    ...         return []
    >>> [segment.first for segment, _ in Odd().run(np.ones((5, 1), np.float32), np.arange(5.0))]
    [1, 3]
    """

    decodes_input = True
    reads_latents = True
    lag: int | None = None
    name: str
    causal: bool
    latency: str
    state: str

    @abstractmethod
    def start(self) -> None:
        """Forget the stream so far and get ready for a new one."""

    @abstractmethod
    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        """Take the next latent (E,), unit float32, at `time` seconds; return the segments that it closes."""

    @abstractmethod
    def finish(self) -> list[Segment]:
        """End the stream; return the segments still open."""

    def run(self, latents: np.ndarray, times: np.ndarray) -> list[tuple[Segment, int]]:
        """Take a recorded stream from its start to its end; an earlier one that is still open is dropped.

        Args:
            latents: (T, E) unit float32.
            times: (T,) float64 seconds, strictly increasing.

        Returns:
            Each segment with the index of the step at which it came out, T − 1 for those of `finish`.
        """
        self.start()
        closed = [
            (segment, i)
            for i, (latent, time) in enumerate(zip(latents, times.tolist(), strict=True))
            for segment in self.step(latent, time)
        ]
        return closed + [(segment, len(times) - 1) for segment in self.finish()]


class CausalPolicy(Policy):
    """A policy whose segments come out of `step`, from the steps so far, with a state of O(E).

    Attributes:
        threshold: the parameter of a threshold policy, the higher the fewer segments; other policies have none.
            It may change between two steps.

    >>> from jepa.selective import SendOnDelta
    >>> policy = SendOnDelta(0.5)
    >>> [len(policy.step(latent, 0.0)) for latent in np.eye(2, dtype=np.float32)[[0, 0, 1]]]
    [1, 0, 1]
    """

    causal = True
    threshold: float

    @abstractmethod
    def close(self) -> list[Segment]:
        """Close the open segment at the newest step, so that its text waits no longer; the stream goes on.

        What was learned of the stream stays, as does what is due. A policy that decodes single steps decodes
        the newest one.

        Returns:
            The segment, or nothing if all that has come was decoded.
        """

    def finish(self) -> list[Segment]:
        segments = self.close()
        self.start()
        return segments


class OfflinePolicy(Policy):
    """A policy that sees the whole stream before it cuts: it stores the steps and cuts in `finish`.

    >>> from jepa.selective import Ward
    >>> isinstance(Ward(0.5, "mean"), OfflinePolicy)
    True
    """

    causal = False
    latency = "at the end of the stream"
    state = "the whole stream"

    def __init__(self) -> None:
        self.start()

    @abstractmethod
    def segment(self, latents: np.ndarray, times: np.ndarray) -> list[Segment]:
        """Cut a stream of T >= 1 steps: latents (T, E), unit float32; times (T,), float64 seconds."""

    def start(self) -> None:
        self._latents: list[np.ndarray] = []
        self._times: list[float] = []

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        self._latents.append(np.array(latent, dtype=np.float32))
        self._times.append(time)
        return []

    def finish(self) -> list[Segment]:
        segments = self.segment(np.stack(self._latents), np.array(self._times)) if self._latents else []
        self.start()
        return segments

    def run(self, latents: np.ndarray, times: np.ndarray) -> list[tuple[Segment, int]]:
        self.start()
        return [(segment, len(times) - 1) for segment in self.segment(latents, times)] if len(times) else []


class OpenSegment:
    """The steps since the last cut, in O(E): what a causal policy adds to and closes.

    Args:
        agreement: κ of the weights exp(κ · (cos − 1)) of the mean that closes, cos between a step and the sum of its
            segment; 0: the plain mean. Steps that blend two meanings, or are outliers, then count for less. This is
            one step of the mean shift with a von Mises-Fisher kernel (Kobayashi & Otsu 2010, ICPR). The newest 16
            steps are kept and weighed when the segment closes, an older one when it leaves them.

    Attributes:
        count: n, its steps.
        first: index of its first step.
        total: (E,) float64, the sum of its steps; unset while there is none.
        last: (E,) float64, its last step; unset while there is none.
    """

    _KEPT = 16

    def __init__(self, agreement: float = 0.0) -> None:
        self.agreement = agreement
        self._kept: deque[np.ndarray] = deque()
        self._weighed = np.zeros(0)  # sum of the steps that left the kept ones, weighed
        self._weight = 0.0  # sum of their weights
        self.count = 0
        self.first = 0
        self.total = self.last = np.zeros(0)
        self._square: float | None = None  # of `total`, once asked for
        self._start = self._end = 0.0

    def add(self, latent: np.ndarray, time: float) -> None:
        """Append a step: latent (E,) float64, which is kept and must not change afterwards."""
        if self.count:
            self.total += latent
        else:
            self.total, self._start = latent.copy(), time
            self._weighed, self._weight = np.zeros(len(latent) if self.agreement else 0), 0.0
        self.last, self._end = latent, time
        self.count += 1
        self._square = None
        if self.agreement:
            self._kept.append(latent)
            if len(self._kept) > self._KEPT:
                leaving = self._kept.popleft()
                cosine = float(leaving.dot(self.total)) / _norm(self.square())
                weight = math.exp(self.agreement * (cosine - 1))
                self._weighed += weight * leaving
                self._weight += weight

    def mean(self) -> np.ndarray:
        """(E,) float64, the mean of its n >= 1 steps, not renormalised."""
        return self.total / self.count

    def square(self) -> float:
        """Squared norm of the sum of its n >= 1 steps."""
        if self._square is None:
            self._square = float(self.total.dot(self.total))
        return self._square

    def distance(self, total: np.ndarray, count: int) -> float:
        """Squared distance from the mean of its n >= 1 steps to the mean of `count` steps with the sum `total` (E,).

        By their products: for unit latents of float64 it is off by about 1e-15.
        """
        here, there = self.square() / self.count**2, float(total.dot(total)) / count**2
        return here + there - 2 * float(total.dot(self.total)) / (self.count * count)

    def close(self) -> list[Segment]:
        """The steps as a segment with their renormalised mean, at the midpoint of their times; then none are left.

        Returns:
            The segment, or nothing if there is no step.
        """
        if not self.count:
            return []
        total, weight = self.total, float(self.count)
        if self.agreement and self.count > 1:
            kept = np.array(self._kept)
            weights = np.exp(self.agreement * (kept @ total / _norm(self.square()) - 1))
            total, weight = self._weighed + weights @ kept, self._weight + float(weights.sum())
        self._kept.clear()
        segment = Segment(
            unit_mean(total, weight, self.last),
            time=(self._start + self._end) / 2,
            start=self._start,
            end=self._end,
            first=self.first,
            last=self.first + self.count - 1,
        )
        self.first += self.count
        self.count = 0
        return [segment]


class RunningMean:
    """An average over a stream, exponential over 64 values; its first value has the weight of 4.

    Attributes:
        value: the average.
    """

    _MEMORY = 64
    _HEAD_START = 4

    def __init__(self, value: float) -> None:
        self.value = value
        self._weight = self._HEAD_START

    def add(self, value: float) -> None:
        """Take the next value."""
        self._weight = min(self._weight + 1, self._MEMORY)
        self.value += (value - self.value) / self._weight


ROUNDING = 1e-12  # squared distance of two means, float64, of equal latents


def step_segment(latent: np.ndarray, time: float, index: int) -> Segment:
    """A single step (E,), number `index` of its stream, as a segment."""
    return Segment(latent, time=time, start=time, end=time, first=index, last=index)


def unit_mean(total: np.ndarray, weight: float, last: np.ndarray) -> np.ndarray:
    """The direction of the mean of unit latents, given their sum.

    Args:
        total: (E,) float64, their weighted sum.
        weight: the sum of their weights, > 0.
        last: (E,) the last of them, for latents that cancel out: their mean has no direction.

    Returns:
        (E,) float32 of unit norm.
    """
    norm = float(np.sqrt(total @ total))
    return (total / norm if norm > 1e-6 * weight else last).astype(np.float32)


def _norm(square: float) -> float:
    """The norm of a sum of unit latents of this squared norm; 1 where they cancel out."""
    return math.sqrt(square) if square > 1e-12 else 1.0
