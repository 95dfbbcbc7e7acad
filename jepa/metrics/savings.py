"""The saving at equal quality: how many fewer decodes a policy needs to be as good as a reference.

A policy has a parameter (a rate, a threshold). Swept over its values, it draws a curve of quality against decodes per
second. The value is chosen on calibration streams alone; every figure comes from other streams, the test streams.

Streams, not annotations, are what is drawn at random, so every interval is a percentile bootstrap over streams (Efron
& Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13). It is paired: in each of `resamples` all curves have
the same streams, and equal seeds draw equal streams in all functions. Fewer than 2 streams, other shapes, and scores
that are not finite raise `InputError`.

S: streams; A_s: annotations of stream s; R: resamples.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from jepa.errors import InputError, check_int
from jepa.metrics.checks import equally_many, finite_array

_TAILS = (0.025, 0.975)  # a 95 % interval


@dataclass(frozen=True, eq=False)
class SweepPoint:
    """One policy at one value of its parameter, over a set of streams.

    For each of S >= 1 streams `scores` has (A_s,) of its annotations, A_s >= 1, `decodes` (S,) those made, >= 0, and
    `seconds` (S,) its length, > 0.

    >>> point = SweepPoint(0.5, scores=([1.0, 0.0], [1.0]), decodes=[4, 2], seconds=[10.0, 20.0])
    >>> point.decodes_per_second
    0.2
    """

    value: float
    scores: tuple[np.ndarray, ...]
    decodes: np.ndarray
    seconds: np.ndarray

    def __post_init__(self) -> None:
        decodes, seconds = finite_array("decodes", self.decodes), finite_array("seconds", self.seconds)
        for name, value in (("scores", _scores(self.scores)), ("decodes", decodes), ("seconds", seconds)):
            object.__setattr__(self, name, value)
        if not len(self.scores) == len(decodes) == len(seconds) or not len(seconds):
            got = f"{len(self.scores)}, {len(decodes)} and {len(seconds)}"
            raise InputError(f"scores, decodes and seconds must be of the same streams, one or more, got {got}")
        if decodes.min() < 0 or not seconds.min() > 0:
            got = f"{decodes.tolist()} and {seconds.tolist()}"
            raise InputError(f"decodes must be >= 0 and seconds > 0, got {got}")

    @property
    def quality(self) -> float:
        """Mean score over all annotations of all streams, rounded once: their order does not matter."""
        return _mean(self.scores)

    @property
    def decodes_per_second(self) -> float:
        """All decodes over the length of all streams, in Hz."""
        return float(self.decodes.sum() / self.seconds.sum())


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class CurveDifference:
    """What ``area_between_curves`` found, from `low_rate` to `high_rate` in Hz; None without such a range."""

    difference: Interval | None = None
    low_rate: float | None = None
    high_rate: float | None = None


@dataclass(frozen=True)
class Saving:
    """What ``saving_at_equal_quality`` found on the test streams; ``value`` is None where none qualified.

    ``ratio`` is reference decodes over the policy's, to be claimed only where ``reached``.
    """

    reference_quality: float
    reference_decodes_per_second: float
    reason: str
    value: float | None = None
    reached: bool = False
    quality: float | None = None
    quality_difference: Interval | None = None
    decodes_per_second: float | None = None
    ratio: Interval | None = None


def saving_at_equal_quality(
    reference_calibration: SweepPoint,
    candidates_calibration: Sequence[SweepPoint],
    reference_test: SweepPoint,
    candidates_test: Sequence[SweepPoint],
    *,
    confidence: float = 0.9,
    tolerance: float = 0.0,
    resamples: int = 2000,
    seed: int = 0,
) -> Saving:
    """Choose a value on calibration streams, then measure the saving on test streams.

    The quality asked for is (1 − ``tolerance``) times the reference's. The value is the cheapest (fewest decodes per
    second; of equals the better one) that has it on the calibration streams in a fraction ``confidence`` of the paired
    resamples, which guards the choice against the luck of few streams. ``reached`` says whether it has it on the test
    streams, as the two numbers stand. Whether another measure (``jepa.metrics.dense``) is lower there is a question for
    ``bootstrap_mean`` of the differences.

    The candidates are the policy at each value, the same values in any order on both sets of streams; the reference
    decodes on every test stream. The upper end of the saving is infinite if the policy decodes nothing at all in more
    than 2.5 % of the resamples.

    >>> scores = ([0.9, 0.8], [0.7])
    >>> reference = SweepPoint(1.0, scores, decodes=[30, 30], seconds=[30.0, 30.0])
    >>> policy = SweepPoint(0.5, scores, decodes=[10, 10], seconds=[30.0, 30.0])
    >>> saving_at_equal_quality(reference, [policy], reference, [policy]).ratio
    Interval(value=3.0, low=3.0, high=3.0)
    """
    if not 0 < confidence <= 1:
        raise InputError(f"confidence must be in (0, 1], got {confidence}")
    if not 0 <= tolerance < 1:
        raise InputError(f"tolerance must be in [0, 1), got {tolerance}")
    wanted = "the reference's quality"
    if tolerance:
        wanted = f"{100 * (1 - tolerance):g}% of {wanted}"
    calibration = _by_value("candidates_calibration", candidates_calibration, reference_calibration)
    test = _by_value("candidates_test", candidates_test, reference_test)
    if calibration.keys() != test.keys():
        got = f"{sorted(test)} and {sorted(calibration)}"
        raise InputError(f"candidates_test must have the values of candidates_calibration, got {got}")

    weights = resample(len(reference_calibration.scores), resamples, seed)
    allowed = tolerance * _means(reference_calibration.scores, weights)
    held = {
        value: float(np.mean(_drawn_differences(point, reference_calibration, resamples, seed) + allowed >= 0))
        for value, point in calibration.items()
    }
    value = min(
        (value for value in calibration if held[value] >= confidence),
        key=lambda value: (calibration[value].decodes_per_second, -calibration[value].quality),
        default=None,
    )
    theirs = reference_test.quality, reference_test.decodes_per_second
    if value is None:
        best = max(held, key=held.__getitem__)
        reason = (
            f"no value keeps {wanted} in {confidence:.0%} of the resamples of the calibration streams; "
            f"the nearest is {best:g}, with {held[best]:.1%}"
        )
        return Saving(*theirs, reason)

    chosen = test[value]
    difference = chosen.quality - reference_test.quality
    reached = chosen.quality >= (1 - tolerance) * reference_test.quality
    reason = (
        f"value {value:g}, chosen on the calibration streams, {'keeps' if reached else 'misses'} "
        f"{wanted} on the test streams ({chosen.quality:.4f} against {reference_test.quality:.4f})"
    )
    ratio = bootstrap_ratio(reference_test.decodes, chosen.decodes, resamples=resamples, seed=seed)
    if ratio is None:
        reason += "; it decodes nothing on the test streams, so there is no ratio"
    return Saving(
        *theirs,
        reason,
        value=value,
        reached=reached,
        quality=chosen.quality,
        quality_difference=_interval(difference, _drawn_differences(chosen, reference_test, resamples, seed)),
        decodes_per_second=chosen.decodes_per_second,
        ratio=ratio,
    )


def bootstrap_mean(scores: Sequence[ArrayLike], *, resamples: int = 2000, seed: int = 0) -> Interval:
    """The mean over all scores of all streams, for each (A_s,) with A_s >= 1, with its 95 % interval over streams.

    Given the differences of two methods on the same streams, the one is not lower, as the numbers stand, where the
    value is >= 0; that it is higher is beyond the luck of streams where `low` > 0.

    >>> bootstrap_mean([[0.5, 0.5], [0.5]])
    Interval(value=0.5, low=0.5, high=0.5)
    """
    streams = _scores(scores)
    return _interval(_mean(streams), _means(streams, resample(len(streams), resamples, seed)))


def bootstrap_ratio(reference: ArrayLike, ours: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Interval | None:
    """How many times as much a reference takes in all as we do, with its 95 % interval over streams.

    `reference` (S,) > 0 is what it takes on each stream (decodes, FLOPs, seconds), `ours` (S,) >= 0 what we take there.
    The value is the sum of the one over that of the other; None where ``ours`` is 0 on every stream. The upper end is
    infinite if ``ours`` is 0 in more than 2.5 % of the resamples.

    >>> bootstrap_ratio([20, 40], ours=[10, 20])
    Interval(value=2.0, low=2.0, high=2.0)
    """
    theirs, mine = finite_array("reference", reference), finite_array("ours", ours)
    equally_many(reference=theirs, ours=mine)
    weights = resample(len(mine), resamples, seed)
    if theirs.min() <= 0 or mine.min() < 0:
        raise InputError(f"reference must be > 0 and ours >= 0, got {theirs.tolist()} and {mine.tolist()}")
    if not mine.any():
        return None
    # The inverse ratio is finite in every resample; its quantiles, inverted, are those of the ratio.
    with np.errstate(divide="ignore"):
        high, low = 1 / np.quantile((weights @ mine) / (weights @ theirs), _TAILS)
    return Interval(float(theirs.sum() / mine.sum()), float(low), float(high))


@functools.lru_cache(maxsize=4)  # a sweep asks for the same again and again
def resample(streams: int, resamples: int, seed: int) -> np.ndarray:
    """(R, S) float64, read-only: how often each stream is drawn in each resample; S draws each, with replacement."""
    if streams < 2:
        raise InputError(f"a bootstrap over streams must have at least 2 streams, got {streams}")
    rng, size = np.random.default_rng(seed), check_int("resamples", resamples, 1)
    drawn = rng.multinomial(streams, np.full(streams, 1 / streams), size=size).astype(np.float64)
    drawn.flags.writeable = False
    return drawn


def area_between_curves(
    reference: Sequence[SweepPoint], policy: Sequence[SweepPoint], *, resamples: int = 2000, seed: int = 0
) -> CurveDifference:
    """How much better a policy is than a reference over all rates at which both can be compared.

    The curve of quality against the logarithm of decodes per second is linear between points, one or more of different
    values on the same streams. The value is the area between the two curves over the rates that both cover, divided by
    the width of that range: a mean difference in quality. Where only one curve is, nothing is extrapolated and nothing
    counts; points that decode nothing have no place on the axis and are left out.

    In a resample both the rates and the qualities of all points are drawn anew, while the range stays; a curve that
    then ends within the range goes on at its level.
    """
    curves = [
        [point for point in _by_value(name, points, reference[0]).values() if point.decodes.any()]
        for name, points in (("reference", reference), ("policy", policy))
    ]
    weights = resample(len(reference[0].scores), resamples, seed)
    if not all(curves):
        return CurveDifference()
    rates = [[point.decodes_per_second for point in curve] for curve in curves]
    low, high = max(map(min, rates)), min(map(max, rates))
    if not low < high:
        return CurveDifference()
    everything = np.ones((1, weights.shape[1]))
    theirs, ours = (_mean_level(curve, everything, low, high)[0] for curve in curves)
    drawn = [_mean_level(curve, weights, low, high) for curve in curves]
    return CurveDifference(_interval(float(ours - theirs), drawn[1] - drawn[0]), low, high)


def _mean_level(curve: Sequence[SweepPoint], weights: np.ndarray, low: float, high: float) -> np.ndarray:
    """(R,) mean over log rate, from `low` to `high`, of the curve through the points as weighted (R, S)."""
    rates = np.stack([(weights @ point.decodes) / (weights @ point.seconds) for point in curve], axis=1)
    x = np.log(rates.clip(min=np.finfo(np.float64).tiny))  # a resample without decodes lies far to the left
    y = np.stack([_means(point.scores, weights) for point in curve], axis=1)
    order = np.argsort(x, axis=1, kind="stable")
    x, y = np.take_along_axis(x, order, axis=1), np.take_along_axis(y, order, axis=1)
    start, end = math.log(low), math.log(high)
    width = np.diff(x, axis=1)
    slope = np.divide(np.diff(y, axis=1), width, out=np.zeros_like(width), where=width > 0)
    left, right = x[:, :-1].clip(start, end), x[:, 1:].clip(start, end)
    middle = y[:, :-1] + slope * ((left + right) / 2 - x[:, :-1])
    area = ((right - left) * middle).sum(axis=1)
    area += (x[:, 0].clip(start, end) - start) * y[:, 0] + (end - x[:, -1].clip(start, end)) * y[:, -1]
    return area / (end - start)


def _scores(scores: Sequence[ArrayLike]) -> tuple[np.ndarray, ...]:
    """(A_s,) float64 scores of each stream, checked."""
    streams = tuple(finite_array(f"scores[{index}]", stream) for index, stream in enumerate(scores))
    if not all(stream.size for stream in streams):
        raise InputError(f"scores must hold at least one score of each stream, got {[*map(len, streams)]}")
    return streams


def _mean(scores: Sequence[np.ndarray]) -> float:
    """Over all scores of all streams, rounded once: their order does not matter."""
    every = np.concatenate(scores)
    return math.fsum(every.tolist()) / len(every)


def _means(scores: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """(R,) mean over all scores of all streams, weighted by (R, S)."""
    totals, counts = (np.array([of(stream) for stream in scores]) for of in (np.sum, len))
    return np.asarray((weights @ totals) / (weights @ counts))


@functools.lru_cache(maxsize=256)  # for each tolerance the same
def _drawn_differences(point: SweepPoint, reference: SweepPoint, resamples: int, seed: int) -> np.ndarray:
    """(R,) mean difference in each resample, exactly 0 where all scores are equal."""
    differences = [ours - theirs for ours, theirs in zip(point.scores, reference.scores, strict=True)]
    return _means(differences, resample(len(reference.scores), resamples, seed))


def _interval(value: float, samples: np.ndarray) -> Interval:
    low, high = np.quantile(samples, _TAILS)
    return Interval(value, float(low), float(high))


def _by_value(name: str, points: Sequence[SweepPoint], reference: SweepPoint) -> dict[float, SweepPoint]:
    """Points of different values, one or more, on the streams of the reference."""
    values = sorted(point.value for point in points)
    if not values or len(set(values)) < len(values):
        raise InputError(f"{name} must be one point or more, each of another value, got values {values}")
    for point in points:
        same_annotations = [*map(len, point.scores)] == [*map(len, reference.scores)]
        if not same_annotations or not np.array_equal(point.seconds, reference.seconds):
            got = f"others at value {point.value:g}"
            raise InputError(f"{name} must have the annotations and the seconds of the reference's streams, got {got}")
    return {point.value: point for point in points}
