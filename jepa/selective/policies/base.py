"""What a policy is: a stream of latents in, segments to decode out.

Dimension letters: T steps of a stream, E width of the latent space. Latents are float32 of unit norm, times
are seconds. Policies trust their input; `jepa.selective.SelectiveDecoder` is where a stream is checked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Segment:
    """A stretch of the stream that is decoded once.

    Args:
        latent: (E,) float32 of unit norm, what to decode.
        time: the moment it stands for, in seconds.
        start: time of the first step covered, in seconds.
        end: time of the last step covered, in seconds.
        first: index of the first step covered.
        last: index of the last step covered (inclusive).
    """

    latent: np.ndarray
    time: float
    start: float
    end: float
    first: int
    last: int


class Policy(ABC):
    """Takes one latent at a time and says which segments to decode.

    A stream is `start`, then `step` for each latent, then `finish`. A new policy is ready for its first
    stream, and `finish` leaves it ready for the next. Latents passed in are not kept by reference.

    Attributes:
        name: the policy's name in results.
        causal: True if segments come out of `step`, from the past alone; False if the whole stream is needed.
        latency: how long after the end of a segment it comes out, in words.
        state: what is kept between two steps, in words.
    """

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


class OfflinePolicy(Policy):
    """A policy that sees the whole stream before it cuts: it stores the steps and cuts in `finish`."""

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


def unit_mean(total: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The direction of the mean of unit latents, given their sum.

    Args:
        total: (E,) float64, their sum.
        last: (E,) the last of them, which stands in where they cancel out and the mean has no direction.

    Returns:
        (E,) float32 of unit norm.
    """
    norm = float(np.sqrt(total @ total))
    return (total / norm if norm > 1e-6 else last).astype(np.float32)
