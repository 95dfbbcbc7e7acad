"""Policies around a causal policy: a longest gap between texts, a budget of decodes, and prediction on demand."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from jepa.errors import InputError, check_finite, check_int, check_nonnegative, check_positive
from jepa.selective.policies.base import CausalPolicy, Policy, unit_mean
from jepa.selective.types import Segment

_SLACK = 1e-6  # seconds: a gap that is over by exact arithmetic is not missed for the rounding of its times


class _Around(CausalPolicy):
    """A policy around another causal policy, which must not be used elsewhere and whose threshold it has."""

    prefix: str  # of its name

    def __init__(self, policy: Policy) -> None:
        if not isinstance(policy, CausalPolicy):
            raise InputError(f"policy must be causal, got {getattr(policy, 'name', policy)}")
        self.policy = policy
        self.name = f"{self.prefix}_{policy.name}"
        self.latency, self.state, self.lag = policy.latency, policy.state, policy.lag
        self.decodes_input, self.reads_latents = policy.decodes_input, policy.reads_latents

    @property
    def threshold(self) -> float:
        """That of the policy inside. Raises `AttributeError` if it has none."""
        return self.policy.threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        self.policy.threshold = value

    @property
    def signal(self) -> float | None:  # type: ignore[override]
        """That of the policy inside."""
        return self.policy.signal

    def start(self) -> None:
        self.policy.start()

    def finish(self) -> list[Segment]:
        segments = self.policy.finish()
        self.start()
        return segments


class LongestGap(_Around):
    """Another policy, and a text at the latest when none has come for so long.

    At the first step `seconds` or more after the last segment came out (at first: after the stream began), what is open
    is closed and comes out as `policy.close()` gives it. At a steady step rate no gap between two texts is longer than
    `seconds` rounded up to the step interval.

    Args:
        policy: a causal policy; it must not be used elsewhere.
        seconds: the longest gap, > 0.

    >>> from jepa.selective import Gate
    >>> still = np.ones((9, 1), np.float32), np.arange(9.0)
    >>> [segment.end for segment, _ in LongestGap(Gate(1.0), 4.0).run(*still)]
    [4.0, 8.0]
    """

    prefix = "longest_gap"

    def __init__(self, policy: Policy, seconds: float) -> None:
        super().__init__(policy)
        self.seconds = check_positive("seconds", seconds)
        self.latency = f"{self.policy.latency}, or {seconds:g} s after the last text if that is sooner"
        self.start()

    def start(self) -> None:
        super().start()
        self._time = 0.0  # of the newest step
        self._since: float | None = None  # when the last segment came out, or the stream began

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        self._time = time
        segments = self.policy.step(latent, time)
        if segments or self._since is None:
            self._since = time
        elif time - self._since >= self.seconds - _SLACK:
            segments = self.close()
        return segments

    def close(self) -> list[Segment]:
        segments = self.policy.close()
        if segments:
            self._since = self._time
        return segments


class Budget(_Around):
    """A threshold policy whose threshold is steered so that it decodes at a given rate on a live stream.

    After each step at time t, with N(t) the segments that came out so far,

        log(threshold / threshold₀) = gain · (N(t) − rate_hz · (t − t₀)),

    the integral control of the rate: each decode raises the threshold by the factor e^gain, and between two it falls
    steadily. The threshold stays within a factor of `span` of where it began, and the integral with it: what a still
    stream leaves unspent beyond that is not made up for.

    On synthetic streams of 20 minutes at 2 Hz whose events come every 6 s on average and from half-way every 2 s, each
    threshold policy kept 0.15 Hz within 12 % over each half.

    Args:
        policy: a causal policy with a threshold > 0, with which every stream begins; it must not be used elsewhere.
        rate_hz: decodes per second, > 0.
        gain: change of the logarithm of the threshold for a decode, > 0; it acts over about 1 / (gain · rate_hz) s.
        span: > 1.

    >>> from jepa.selective import Gate
    >>> budget = Budget(Gate(1.0), rate_hz=0.1)
    >>> _ = [budget.step(np.ones(1, np.float32), time) for time in (0.0, 10.0)]
    >>> round(budget.threshold, 3)  # a decode is due, and none came
    0.819
    """

    prefix = "budget"

    def __init__(self, policy: Policy, rate_hz: float, *, gain: float = 0.2, span: float = 10.0) -> None:
        super().__init__(policy)
        if not hasattr(policy, "threshold"):
            raise InputError(f"policy must have a threshold, got {policy.name}")
        self._initial = check_positive("policy.threshold", self.threshold)
        self.rate_hz = check_positive("rate_hz", rate_hz)
        self.gain = check_positive("gain", gain)
        if check_finite("span", span) <= 1:
            raise InputError(f"span must be > 1, got {span}")
        self._limit = math.log(span) / gain
        self.start()

    def start(self) -> None:
        super().start()
        self.threshold = self._initial
        self._excess = 0.0  # decodes above the budget, within ±_limit
        self._time: float | None = None  # of the newest step

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        segments = self.policy.step(latent, time)
        due = 0.0 if self._time is None else self.rate_hz * (time - self._time)
        self._time = time
        self._spend(len(segments) - due)
        return segments

    def close(self) -> list[Segment]:
        segments = self.policy.close()
        self._spend(len(segments))
        return segments

    def _spend(self, decodes: float) -> None:
        self._excess = min(self._limit, max(-self._limit, self._excess + decodes))
        self.threshold = self._initial * math.exp(self.gain * self._excess)


class OnDemand(_Around):
    """Another policy that watches X-Encoder states, and embeddings predicted for the segments that it cuts alone.

    The policy is given what a `Readout` makes of a step's states. When it closes a segment, the Predictor runs for
    `predictions` of its newest `keep` steps, in the middle, at three quarters, a quarter, seven eighths (the sequence
    of van der Corput), and their renormalised mean is decoded. With a `doubt` it runs no further once a prediction is
    so near to its step's read-out. With a `correction` c read-outs are a control variate, so that steps without a
    prediction count as well: c · (r − mean r_i) is added, of the segment's own latent r and those steps' read-outs r_i.

    Args:
        policy: a causal policy; it must not be used elsewhere.
        predict: from the number of a step of the stream to its predicted embedding (E,), unit float32, such as
            `PredictorOnDemand.predict`. It may be set later.
        predictions: most embeddings a segment, >= 1; steps that coincide in a short one are predicted once.
        keep: steps, >= 1.
        correction: c, >= 0. For it and a `doubt` the policy has to watch unit latents as wide as the predictions.
        doubt: on 1 − cos of a prediction and its step's read-out, >= 0; 0 asks for all predictions.
        threshold: set on `policy`; None leaves its own.

    >>> from jepa.selective import Gate
    >>> states, embeddings = np.eye(2, dtype=np.float32)[[0, 0, 0, 1, 1, 1]], np.eye(6, dtype=np.float32)
    >>> policy = OnDemand(Gate(1.0), predict=lambda step: embeddings[step])
    >>> [int(segment.latent.argmax()) for segment, _ in policy.run(states, np.arange(6.0))]  # the middle steps
    [1, 4]
    """

    prefix = "on_demand"

    def __init__(
        self,
        policy: Policy,
        predict: Callable[[int], np.ndarray] | None = None,
        *,
        predictions: int = 1,
        keep: int = 16,
        correction: float = 0.0,
        doubt: float = 0.0,
        threshold: float | None = None,
    ) -> None:
        super().__init__(policy)
        self.predict, self.decodes_input = predict, False
        self.predictions, self.keep = check_int("predictions", predictions, 1), check_int("keep", keep, 1)
        self.correction, self.doubt = check_nonnegative("correction", correction), check_nonnegative("doubt", doubt)
        if threshold is not None:
            self.threshold = threshold
        self.state = f"{self.policy.state}, of X-Encoder states; the newest {keep} steps' windows and read-outs"
        self.start()

    def start(self) -> None:
        super().start()
        most = None if self.lag is None else self.keep + self.lag
        self._steps, self._watched = 0, deque[np.ndarray](maxlen=most)  # what the policy saw of the newest steps

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        self._steps += 1
        if self.correction or self.doubt:
            self._watched.append(latent.copy())
        return [self._predicted(segment) for segment in self.policy.step(latent, time)]

    def run(self, latents: np.ndarray, times: np.ndarray) -> list[tuple[Segment, int]]:
        self.policy.shared, key = self.shared, (self.name, self.predictions, self.correction, self.doubt)
        found = self.policy.run(latents, times)
        self._steps, self._watched = len(latents), deque(latents)
        segments = [
            (self.remembered((*key, each.first, each.last), partial(self._predicted, each)), step)
            for each, step in found
        ]
        self.start()
        return segments

    def close(self) -> list[Segment]:
        return [self._predicted(segment) for segment in self.policy.close()]

    def finish(self) -> list[Segment]:
        segments = [self._predicted(segment) for segment in self.policy.finish()]
        self.start()
        return segments

    def _predicted(self, segment: Segment) -> Segment:
        if self.predict is None:
            raise InputError("OnDemand needs predict, which gives the predicted embedding of a step, got none")
        oldest, found = max(segment.first, segment.last - self.keep + 1), dict[int, np.ndarray]()
        for number in range(1, self.predictions + 1):
            part = 1 - int(bin(number)[:1:-1], 2) / 2 ** number.bit_length()  # 1/2, 3/4, 1/4, 7/8
            step = oldest + int(part * (segment.last - oldest))
            if step not in found:
                found[step] = latent = self.predict(step)
                if self.doubt and 1 - float(latent @ self._seen(step, latent)) <= self.doubt:
                    break
        if len(found) == 1 and not self.correction:
            return replace(segment, latent=latent, predictions=1)
        total = np.stack([*found.values()]).astype(np.float64).sum(axis=0)
        if self.correction:
            total += self.correction * sum(segment.latent - self._seen(step, total) for step in found)
        return replace(segment, latent=unit_mean(total, len(found), latent), predictions=len(found))

    def _seen(self, step: int, predicted: np.ndarray) -> np.ndarray:
        """What the policy saw of a step, as wide as what is predicted (E,)."""
        watched = self._watched[step - self._steps]
        if watched.shape != predicted.shape:
            raise InputError(f"watched latents must be {len(predicted)} wide, as predictions are, got {len(watched)}")
        return watched
