"""Policies around a causal policy: a longest gap between texts, and a budget of decodes."""

from __future__ import annotations

import math

import numpy as np

from jepa.errors import InputError, check_finite, check_positive
from jepa.selective.policies.base import CausalPolicy, Policy
from jepa.selective.types import Segment

_SLACK = 1e-6  # seconds: a gap that is over by exact arithmetic is not missed for the rounding of its times


class Around(CausalPolicy):
    """A policy around another causal policy, whose threshold it has.

    Raises:
        InputError: `policy` is not causal.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = _causal(policy)
        self.decodes_input, self.reads_latents, self.lag = policy.decodes_input, policy.reads_latents, policy.lag

    @property
    def threshold(self) -> float:
        """That of the policy inside. Raises `AttributeError` if it has none."""
        return self.policy.threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        self.policy.threshold = value


class LongestGap(Around):
    """Another policy, and a text at the latest when none has come for so long.

    At the first step `seconds` or more after the last segment came out (at first: after the stream began),
    what is open is closed and comes out as `policy.close()` gives it. With steps at a steady interval no gap
    between two texts is longer than `seconds` rounded up to that interval. What the policy has learned of
    the stream stays. `threshold` is that of the policy, if it has one.

    Args:
        policy: a causal policy; it must not be used elsewhere.
        seconds: the longest gap, > 0.

    Raises:
        InputError: `policy` is not causal, or `seconds` is not finite and > 0.

    >>> from jepa.selective import Gate
    >>> still = np.ones((9, 1), np.float32), np.arange(9.0)
    >>> [segment.end for segment, _ in LongestGap(Gate(1.0), 4.0).run(*still)]
    [4.0, 8.0]
    """

    def __init__(self, policy: Policy, seconds: float) -> None:
        super().__init__(policy)
        self.seconds = check_positive("seconds", seconds)
        self.name = f"longest_gap_{self.policy.name}"
        self.latency = f"{self.policy.latency}, or {seconds:g} s after the last text if that is sooner"
        self.state = self.policy.state
        self.start()

    def start(self) -> None:
        self.policy.start()
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

    def finish(self) -> list[Segment]:
        segments = self.policy.finish()
        self.start()
        return segments


class Budget(CausalPolicy):
    """A threshold policy whose threshold is steered so that it decodes at a given rate on a live stream.

    After each step at time t, with N(t) the segments that came out so far,

        log(threshold / threshold₀) = gain · (N(t) − rate_hz · (t − t₀)),

    the integral control of the rate by the logarithm of the threshold: it goes up by the factor e^gain with
    each decode and falls steadily between two. The count is therefore never further from the budget than
    the threshold has to move: |N(t) − rate_hz · (t − t₀)| = |log(threshold / threshold₀)| / gain.

    *Anti-windup.* The threshold stays within a factor of `span` of where it began, and the integral with it: what a
    stream without changes leaves unspent beyond that, or a policy that closes on its own spends beyond it, is forgotten
    and not made up for. Where the limit was not reached, N(t) is within log(span) / gain decodes of the budget.

    *How well it is held.* On synthetic streams of 20 minutes at 2 Hz whose events come every 6 s on average
    and from half-way every 2 s, a budget of 0.15 Hz was kept within 12 % over each half, by each threshold
    policy of this package. A rate above what the policy gives at its lowest threshold is not reached.

    The first threshold, `policy.threshold` at construction, is what every stream begins with. A gain g acts
    over about 1 / (g · rate_hz) seconds: a higher one holds the rate over shorter times, a lower one changes
    the threshold less between the decodes.

    Args:
        policy: a causal policy with a threshold > 0; it must not be used elsewhere.
        rate_hz: decodes per second, > 0.
        gain: change of the logarithm of the threshold for a decode, > 0.
        span: > 1.

    Raises:
        InputError: `policy` is not causal or has no threshold > 0, `rate_hz` or `gain` is not finite and
            > 0, or `span` is not finite and > 1.

    >>> from jepa.selective import Gate
    >>> budget = Budget(Gate(1.0), rate_hz=0.1)
    >>> _ = [budget.step(np.ones(1, np.float32), time) for time in (0.0, 10.0)]
    >>> round(budget.policy.threshold, 3)  # a decode is due, and none came
    0.819
    """

    def __init__(self, policy: Policy, rate_hz: float, *, gain: float = 0.2, span: float = 10.0) -> None:
        self.policy = _causal(policy)
        if not hasattr(self.policy, "threshold"):
            raise InputError(f"policy must have a threshold, got {policy.name}")
        self.decodes_input, self.reads_latents, self.lag = policy.decodes_input, policy.reads_latents, policy.lag
        self._initial = check_positive("policy.threshold", self.policy.threshold)
        self.rate_hz = check_positive("rate_hz", rate_hz)
        self.gain = check_positive("gain", gain)
        if check_finite("span", span) <= 1:
            raise InputError(f"span must be > 1, got {span}")
        self._limit = math.log(span) / gain
        self.name = f"budget_{self.policy.name}"
        self.latency = self.policy.latency
        self.state = self.policy.state
        self.start()

    def start(self) -> None:
        self.policy.start()
        self.policy.threshold = self._initial
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

    def finish(self) -> list[Segment]:
        segments = self.policy.finish()
        self.start()
        return segments

    def _spend(self, decodes: float) -> None:
        self._excess = min(self._limit, max(-self._limit, self._excess + decodes))
        self.policy.threshold = self._initial * math.exp(self.gain * self._excess)


def _causal(policy: Policy) -> CausalPolicy:
    if not isinstance(policy, CausalPolicy):
        raise InputError(f"policy must be causal, got {getattr(policy, 'name', policy)}")
    return policy
