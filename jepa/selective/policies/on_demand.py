"""Prediction on demand: the stream is cut by what is known without the Predictor, which runs for its segments alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from jepa.errors import InputError, check_int
from jepa.selective.policies.base import Policy, unit_mean
from jepa.selective.policies.wrappers import Around
from jepa.selective.types import Segment


class OnDemand(Around):
    """Another policy that watches X-Encoder states, and embeddings predicted for the segments that it cuts alone.

    Elsewhere the Predictor runs at every step, since a policy compares what it predicts. Here the policy is given what
    costs no more than the X-Encoder: the mean of a step's states, scaled to unit norm. When it closes a segment, the
    Predictor runs for `predictions` of its newest `keep` steps, which part these into equal stretches (one: the middle
    one), and their renormalised mean is decoded. The time of the segment is the policy's.

    Means of states lie closer together than predicted embeddings: a `Gate` needs a smaller `noise_floor` for them.

    Args:
        policy: a causal policy; it must not be used elsewhere.
        predict: from the number of a step, counted from the start of the stream, to its predicted embedding (E,), unit
            float32; it is asked for the newest `keep` steps of a segment at most. `PredictorOnDemand.predict` of a
            VL-JEPA. It may be set later, as `predict`.
        predictions: embeddings a segment, >= 1; of a short one as many as it has steps at most.
        keep: steps, >= 1.
        threshold: set on `policy`; None leaves its own.

    Raises:
        InputError: `policy` is not causal, or `predictions` or `keep` is not a whole number >= 1; in `step` and `run`,
            there is no `predict`.

    >>> from jepa.selective import Gate
    >>> states, embeddings = np.eye(2, dtype=np.float32)[[0, 0, 0, 1, 1, 1]], np.eye(6, dtype=np.float32)
    >>> policy = OnDemand(Gate(1.0), predict=lambda step: embeddings[step])
    >>> [int(segment.latent.argmax()) for segment, _ in policy.run(states, np.arange(6.0))]  # the middle steps
    [1, 4]
    """

    def __init__(
        self,
        policy: Policy,
        predict: Callable[[int], np.ndarray] | None = None,
        *,
        predictions: int = 1,
        keep: int = 16,
        threshold: float | None = None,
    ) -> None:
        super().__init__(policy)
        self.predict, self.decodes_input = predict, False
        self.predictions, self.keep = check_int("predictions", predictions, 1), check_int("keep", keep, 1)
        if threshold is not None:
            self.threshold = threshold
        self.name = f"on_demand_{self.policy.name}"
        self.latency = self.policy.latency
        self.state = f"{self.policy.state}, of X-Encoder states; the windows of the segment's newest {keep} steps"

    def start(self) -> None:
        self.policy.start()

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        return [self._predicted(segment) for segment in self.policy.step(latent, time)]

    def close(self) -> list[Segment]:
        return [self._predicted(segment) for segment in self.policy.close()]

    def finish(self) -> list[Segment]:
        return [self._predicted(segment) for segment in self.policy.finish()]

    def _predicted(self, segment: Segment) -> Segment:
        if self.predict is None:
            raise InputError("OnDemand needs predict, which gives the predicted embedding of a step, got none")
        oldest = max(segment.first, segment.last - self.keep + 1)
        parts, span = self.predictions + 1, segment.last - oldest
        latents = [self.predict(step) for step in sorted({oldest + i * span // parts for i in range(1, parts)})]
        if len(latents) == 1:
            return replace(segment, latent=latents[0])
        total = np.stack(latents).astype(np.float64).sum(axis=0)
        return replace(segment, latent=unit_mean(total, len(latents), latents[-1]))
