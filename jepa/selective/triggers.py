"""Triggers: a sentence that is watched for in a stream of latents, by its embedding. No decoder runs.

T steps of a stream, E width of the latent space, S streams. Latents, embeddings: unit float32; times: seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jepa.errors import InputError, check_finite, check_nonnegative, check_positive

_CANDIDATES, _RESAMPLES = 511, 2000
RELEASE = 2.0  # seconds below the threshold between two alarms
LATE = 2.0  # seconds after an event in which an alarm is its own


class Trigger:
    """Raises an alarm when a latent comes near the embedding of a sentence.

    The score of a step is the cosine of its latent and the embedding. An alarm is a step whose score is at least
    `threshold`, while no step of the `release` seconds before it was: an event raises one. State: a time.

    Args:
        embedding: (E,), of the sentence by the Y-Encoder.
        threshold: on the cosine; see `calibrate_trigger`.
        release: seconds, >= 0.

    >>> trigger = Trigger(np.array([0.0, 1.0], np.float32), threshold=0.9)
    >>> [trigger.step(latent, time)[1] for time, latent in enumerate(np.eye(2, dtype=np.float32)[[0, 1, 1, 0]])]
    [False, True, False, False]
    """

    def __init__(self, embedding: np.ndarray, threshold: float, release: float = RELEASE) -> None:
        self.embedding = embedding
        self.threshold = check_finite("threshold", threshold)
        self.release = check_nonnegative("release", release)
        self.start()

    def start(self) -> None:
        """Forget the stream so far."""
        self._above = -math.inf  # time of the newest step with a high score

    def step(self, latent: np.ndarray, time: float) -> tuple[float, bool]:
        """The score of the next step, and whether it raises the alarm."""
        score = float(latent @ self.embedding)
        if score < self.threshold:
            return score, False
        alarm, self._above = time - self._above > self.release, time
        return score, alarm


def alarms(scores: np.ndarray, times: np.ndarray, threshold: float, release: float = RELEASE) -> np.ndarray:
    """Indices of the steps of a recorded stream that raise the alarm, given their scores (T,) and times (T,).

    >>> alarms(np.array([0.1, 0.9, 0.8, 0.1, 0.9]), np.arange(5.0), threshold=0.5, release=1.0).tolist()
    [1, 4]
    """
    high = np.flatnonzero(scores >= threshold)
    return high[np.diff(times[high], prepend=-math.inf) > release]


@dataclass(frozen=True)
class ScoredStream:
    """Scores (T,) of a sentence on a recorded stream at `times` (T,); when what it says happens, as (start, end).

    >>> stream = ScoredStream(np.array([0.1, 0.9, 0.1]), np.arange(3.0), seconds=3.0, happens=((1.0, 2.0),))
    >>> [len(each) for each in stream.judged(0.5)]
    [0, 1]
    """

    scores: np.ndarray
    times: np.ndarray
    seconds: float
    happens: Sequence[tuple[float, float]] = ()

    def judged(self, threshold: float, release: float = RELEASE) -> tuple[list[float], list[float]]:
        """Times of the false alarms, and for each event that raised one the seconds from its start to the first.

        An alarm up to 2 s after an event is its own: the newest window still shows it.
        """
        raised = self.times[alarms(self.scores, self.times, threshold, release)].tolist()
        inside = [[t for t in raised if start <= t <= end + LATE] for start, end in self.happens]
        true = {time for each in inside for time in each}
        delays = [each[0] - start for (start, _), each in zip(self.happens, inside, strict=True) if each]
        return [time for time in raised if time not in true], delays


@dataclass(frozen=True)
class TriggerCalibration:
    """The threshold that `calibrate_trigger` chose: at most `per_hour` false alarms are promised there, or none is.

    >>> calibrate_trigger([ScoredStream(np.zeros(9), np.arange(9.0), 9.0)], 1.0).kept
    False
    """

    threshold: float
    requested: float  # false alarms per hour
    per_hour: float  # upper confidence bound
    alarms: int  # false, on the recorded streams at `threshold`
    hours: float  # of these streams
    confidence: float

    @property
    def kept(self) -> bool:
        """Whether the bound is as low as requested."""
        return self.per_hour <= self.requested

    @property
    def note(self) -> str:
        """What is promised, and what is not, in words."""
        found = f"{self.alarms} false alarms in {self.hours:.2f} h of recorded streams"
        bound = f"at most {self.per_hour:.2g} an hour with {self.confidence:.0%} confidence on streams like these"
        if self.kept:
            return f"{found}: {bound}"
        least = zero_alarm_hours(self.requested, self.confidence)
        return f"{found}: {bound}. For {self.requested:g} an hour, record {least:.1f} h or more without an alarm"


def zero_alarm_hours(per_hour: float, confidence: float = 0.95) -> float:
    """Hours without a false alarm that it takes to promise at most `per_hour`: about 3 / `per_hour`.

    >>> round(zero_alarm_hours(1.0), 2)
    3.0
    """
    return -math.log(1 - confidence) / per_hour


def calibrate_trigger(
    streams: Sequence[ScoredStream],
    per_hour: float,
    *,
    confidence: float = 0.95,
    release: float = RELEASE,
    seed: int = 0,
) -> TriggerCalibration:
    """Find the lowest threshold of a trigger whose false alarms on recorded streams are rare enough with confidence.

    The upper confidence bound of the rate must be at most `per_hour`: the larger of the exact one for a Poisson count
    (Garwood 1936) and, of several streams, the percentile bootstrap over them, as false alarms of one stream come
    together. It is a promise for streams drawn as these were. Where the streams are too short to promise the rate, the
    threshold is just above their highest score outside the events.

    Args:
        streams: with the times at which what the sentence says happens; there an alarm is none of the false ones.
        per_hour: false alarms per hour, > 0.
        confidence: of the bound, one-sided.
        release: of the trigger.
        seed: of the bootstrap.
    """
    from scipy.stats import chi2  # a trigger alone needs NumPy and no more

    from jepa.metrics import resample

    check_positive("per_hour", per_hour)
    if not streams or not all(len(stream.scores) for stream in streams):
        raise InputError("streams must hold at least one recorded stream with steps, got none")
    hours = np.array([stream.seconds for stream in streams]) / 3600
    weights = resample(len(streams), _RESAMPLES, seed) if len(streams) > 1 else np.ones((1, 1))

    def measure(threshold: float) -> TriggerCalibration:
        false = np.array([len(stream.judged(threshold, release)[0]) for stream in streams])
        count, total = int(false.sum()), float(hours.sum())
        bound = max(
            float(chi2.ppf(confidence, 2 * count + 2)) / 2 / total,
            float(np.quantile((weights @ false) / (weights @ hours), confidence)),
        )
        return TriggerCalibration(threshold, per_hour, bound, count, total, confidence)

    scores = np.concatenate([stream.scores for stream in streams])
    levels = np.unique(np.quantile(scores, 1 - np.geomspace(1 / len(scores), 1, _CANDIDATES)))
    candidates = [*levels.tolist(), float(np.nextafter(np.float32(scores.max()), np.float32(2)))]
    chosen = measure(candidates[-1])  # without any alarm
    limit = max(per_hour, chosen.per_hour)
    for threshold in reversed(candidates[:-1]):
        found = measure(threshold)
        if found.per_hour > limit:
            break
        chosen = found
    return chosen
