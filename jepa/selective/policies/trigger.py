"""Decode only when a trigger fires."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jepa.errors import InputError, check_finite
from jepa.selective.policies.base import CausalPolicy, step_segment
from jepa.selective.triggers import RELEASE, Trigger
from jepa.selective.types import Segment


class OnTrigger(CausalPolicy):
    """Decodes the step at which one of several sentences raises its alarm: see `Trigger`.

    Args:
        threshold: on the cosine of latent and sentence.
        sentences: watched for. `watch` gives their embeddings, before the first step.
        release: seconds between two alarms of a sentence.

    >>> policy = OnTrigger(0.9, ["a star blinks"])
    >>> policy.watch(np.eye(2, dtype=np.float32)[1:])
    >>> latents = np.eye(2, dtype=np.float32)[[0, 1, 1, 0]]
    >>> [segment.time for segment, _ in policy.run(latents, np.arange(4.0))]
    [1.0]
    """

    name = "on_trigger"
    latency, lag = "none", 0
    state = "2 latents: a sentence's embedding, the newest step"

    def __init__(self, threshold: float, sentences: Sequence[str] = (), release: float = RELEASE) -> None:
        self._threshold = check_finite("threshold", threshold)
        self.sentences, self.release = tuple(sentences), release
        self.triggers: list[Trigger] | None = None  # None: nobody has given the embeddings yet
        self.start()

    @property
    def threshold(self) -> float:
        """On the cosine; set, it is that of every sentence."""
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        self._threshold = value
        for trigger in self.triggers or ():
            trigger.threshold = value

    def watch(self, embeddings: np.ndarray, thresholds: Sequence[float] | None = None) -> None:
        """Embeddings (K, E) of the sentences by the Y-Encoder; each at a threshold of its own, if these are given."""
        each = [self._threshold] * len(embeddings) if thresholds is None else thresholds
        self.triggers = [Trigger(row, value, self.release) for row, value in zip(embeddings, each, strict=True)]

    def start(self) -> None:
        for trigger in self.triggers or ():
            trigger.start()
        self._index = -1  # of the newest step
        self._newest: Segment | None = None  # until it is decoded

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        if self.triggers is None:
            raise InputError("OnTrigger needs the embeddings of its sentences, by watch(), got none")
        self._index += 1
        self._newest = step_segment(np.array(latent, dtype=np.float32), time, self._index)
        found = [(trigger, *trigger.step(latent, time)) for trigger in self.triggers]
        self.signal = max((1 + score - trigger.threshold for trigger, score, _ in found), default=None)
        return self.close() if any(alarm for _, _, alarm in found) else []

    def close(self) -> list[Segment]:
        newest, self._newest = self._newest, None
        return [newest] if newest is not None else []

    def finish(self) -> list[Segment]:
        self.start()
        return []
