"""The saving at equal quality: how many fewer decodes a policy needs to be as good as a reference.

A policy has a parameter (a rate, a threshold). Swept over its values, the policy draws a curve of quality against
decodes per second. The value is chosen on calibration streams alone; every figure comes from other streams, the test
streams.

Streams, not annotations, are what is drawn at random, so every interval is a percentile bootstrap over
streams (Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13). It is paired: in each
resample all curves have the same streams.

S: streams; A_s: annotations of stream s; R: resamples; K: points of a curve.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from jepa.errors import InputError

_TAILS = (0.025, 0.975)  # a 95 % interval


@dataclass(frozen=True, eq=False)
class SweepPoint:
    """One policy at one value of its parameter, over a set of streams.

    Args:
        value: of the parameter, in the policy's own unit.
        scores: for each of S streams (A_s,) scores of its annotations, A_s >= 1.
        decodes: (S,) decodes made.
        seconds: (S,) length of the streams.

    Raises:
        InputError: no stream, arrays of other shapes, a stream without annotations, a value that is not
            finite, decodes below 0, or seconds not above 0.

    >>> point = SweepPoint(0.5, scores=([1.0, 0.0], [1.0]), decodes=[4, 2], seconds=[10.0, 20.0])
    >>> point.decodes_per_second
    0.2
    """

    value: float
    scores: tuple[np.ndarray, ...]
    decodes: np.ndarray
    seconds: np.ndarray

    def __post_init__(self) -> None:
        for name, value in {
            "scores": _scores(self.scores),
            "decodes": np.asarray(self.decodes, dtype=np.float64),
            "seconds": np.asarray(self.seconds, dtype=np.float64),
        }.items():
            object.__setattr__(self, name, value)
        streams = len(self.scores)
        if not streams:
            raise InputError("scores must hold at least one stream, got none")
        for name in ("decodes", "seconds"):
            values = getattr(self, name)
            if values.shape != (streams,):
                raise InputError(f"{name} must be ({streams},), one per stream of scores, got shape {values.shape}")
        if not (np.isfinite(self.decodes) & (self.decodes >= 0)).all():
            raise InputError(f"decodes must be finite and >= 0, got {self.decodes.tolist()}")
        if not (np.isfinite(self.seconds) & (self.seconds > 0)).all():
            raise InputError(f"seconds must be finite and > 0, got {self.seconds.tolist()}")

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
    """What ``area_between_curves`` found, over the rates from `low_rate` to `high_rate` (decodes per second).

    All are None where the curves have no such range in common.
    """

    difference: Interval | None
    low_rate: float | None
    high_rate: float | None


@dataclass(frozen=True)
class Saving:
    """What ``saving_at_equal_quality`` found.

    All figures are of the test streams. ``value`` and what depends on it are None where no value qualified;
    ``ratio`` is reference decodes over the policy's, to be claimed only where ``reached``.
    """

    value: float | None
    reached: bool
    quality: float | None
    reference_quality: float
    quality_difference: Interval | None
    decodes_per_second: float | None
    reference_decodes_per_second: float
    ratio: Interval | None
    reason: str


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

    The quality asked for is (1 − ``tolerance``) times the reference's. The value is the cheapest (fewest decodes
    per second; of equals the better one) that has it on the calibration streams in a fraction ``confidence`` of the
    paired resamples, which guards the choice against the luck of few streams. ``reached`` says whether it has it on
    the test streams, as the two numbers stand.

    Whether another measure (``jepa.metrics.dense``) is lower there is a question for ``paired_difference``.

    Args:
        reference_calibration: the reference on the calibration streams.
        candidates_calibration: the policy at each value, on the same streams.
        reference_test: the reference on the test streams.
        candidates_test: the policy at the same values, in any order, on the test streams.
        confidence: in (0, 1].
        tolerance: fraction of the reference's quality that may be lost, in [0, 1).
        resamples: R, at least 1.
        seed: of the resampling.

    Returns:
        With 95 % intervals of the difference in quality and of the saving. The upper end of the saving is
        infinite if the policy decodes nothing at all in more than 2.5 % of the resamples.

    Raises:
        InputError: fewer than 2 streams, points that are not of the same streams, values that are repeated or
            differ between calibration and test, a reference that decodes nothing on some stream, or an option
            out of range.

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
        raise InputError(
            "candidates_test must have the values of candidates_calibration, "
            f"got {sorted(test)} and {sorted(calibration)}"
        )
    if not reference_test.decodes.all():
        stream = int(np.flatnonzero(reference_test.decodes == 0)[0])
        raise InputError(f"reference_test must decode at least once on every stream, got 0 on stream {stream}")

    weights = resample(len(reference_calibration.scores), resamples, seed)
    allowed = tolerance * _quality(reference_calibration, weights)
    held = {
        value: float(np.mean(_quality_difference(point, reference_calibration, weights) + allowed >= 0))
        for value, point in calibration.items()
    }
    value = min(
        (value for value in calibration if held[value] >= confidence),
        key=lambda value: (calibration[value].decodes_per_second, -calibration[value].quality),
        default=None,
    )
    if value is None:
        best = max(held, key=held.__getitem__)
        return Saving(
            value=None,
            reached=False,
            quality=None,
            reference_quality=reference_test.quality,
            quality_difference=None,
            decodes_per_second=None,
            reference_decodes_per_second=reference_test.decodes_per_second,
            ratio=None,
            reason=f"no value keeps {wanted} in {confidence:.0%} of the resamples of the "
            f"calibration streams; the nearest is {best:g}, with {held[best]:.1%}",
        )

    chosen = test[value]
    weights = resample(len(reference_test.scores), resamples, seed)
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
        value=value,
        reached=reached,
        quality=chosen.quality,
        reference_quality=reference_test.quality,
        quality_difference=_interval(difference, _quality_difference(chosen, reference_test, weights)),
        decodes_per_second=chosen.decodes_per_second,
        reference_decodes_per_second=reference_test.decodes_per_second,
        ratio=ratio,
        reason=reason,
    )


def bootstrap_mean(scores: Sequence[ArrayLike], *, resamples: int = 2000, seed: int = 0) -> Interval:
    """The mean over all scores of all streams with its 95 % interval over streams, for the error bar of a curve.

    `scores` has for each of S >= 2 streams (A_s,) finite scores, A_s >= 1, else `InputError` is raised.

    >>> bootstrap_mean([[0.5, 0.5], [0.5]])
    Interval(value=0.5, low=0.5, high=0.5)
    """
    streams = _scores(scores)
    return _interval(_mean(streams), _means(streams, resample(len(streams), resamples, seed)))


def bootstrap_ratio(reference: ArrayLike, ours: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Interval | None:
    """How many times as much a reference takes in all as we do, with its 95 % interval over streams.

    Args:
        reference: (S,) what the reference takes on each stream (decodes, FLOPs, seconds), > 0; S >= 2.
        ours: (S,) what we take on the same streams, >= 0.
        resamples: R, at least 1.
        seed: of the resampling; equal seeds draw equal streams, here as in the other intervals.

    Returns:
        The sum of ``reference`` over that of ``ours``; None where ``ours`` is 0 on every stream. The upper end is
        infinite if ``ours`` is 0 in more than 2.5 % of the resamples.

    Raises:
        InputError: the shapes differ or are not (S,), a value is out of range or not finite, fewer than 2 streams, or
            ``resamples`` is below 1.

    >>> bootstrap_ratio([20, 40], ours=[10, 20])
    Interval(value=2.0, low=2.0, high=2.0)
    """
    theirs, mine = np.asarray(reference, dtype=np.float64), np.asarray(ours, dtype=np.float64)
    if theirs.ndim != 1 or theirs.shape != mine.shape:
        raise InputError(f"reference and ours must both be (S,), got shapes {theirs.shape} and {mine.shape}")
    for name, values, relation, good in (("reference", theirs, "> 0", theirs > 0), ("ours", mine, ">= 0", mine >= 0)):
        if not (good & np.isfinite(values)).all():
            stream = int(np.flatnonzero(~(good & np.isfinite(values)))[0])
            raise InputError(f"{name} must be finite and {relation}, got {values[stream]} on stream {stream}")
    weights = resample(len(mine), resamples, seed)
    if not mine.any():
        return None
    # The inverse ratio is finite in every resample; its quantiles, inverted, are those of the ratio.
    with np.errstate(divide="ignore"):
        high, low = 1 / np.quantile((weights @ mine) / (weights @ theirs), _TAILS)
    return Interval(float(theirs.sum() / mine.sum()), float(low), float(high))


def resample(streams: int, resamples: int, seed: int) -> np.ndarray:
    """(R, S) float64, read-only: how often each stream is drawn in each resample; S draws each, with replacement.

    Raises:
        InputError: fewer than 2 streams, or ``resamples`` is below 1.
    """
    if streams < 2:
        raise InputError(f"a bootstrap over streams must have at least 2 streams, got {streams}")
    if resamples < 1:
        raise InputError(f"resamples must be >= 1, got {resamples}")
    return _drawn(streams, resamples, seed)


@functools.lru_cache(maxsize=4)  # a sweep asks for the same again and again
def _drawn(streams: int, resamples: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(streams, np.full(streams, 1 / streams), size=resamples).astype(np.float64)
    drawn.flags.writeable = False
    return drawn


def paired_difference(values: ArrayLike, reference: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """How much higher one method scores than another on the same streams, with its 95 % interval over streams.

    For scores that are one number a stream, such as those of ``jepa.metrics.dense``. The method is not lower, as
    the numbers stand, where the value is >= 0; that it is higher is beyond the luck of streams where `low` > 0.

    Args:
        values: (S,) scores of the method; S >= 2.
        reference: (S,) scores of the other on the same streams, in their order.
        resamples: R, at least 1.
        seed: of the resampling; equal seeds draw equal streams, here as in the other intervals.

    Returns:
        The mean over streams of the difference.

    Raises:
        InputError: the shapes differ or are not (S,), a value is not finite, fewer than 2 streams, or ``resamples``
            is below 1.

    >>> paired_difference([0.75, 0.5], reference=[0.5, 0.25])
    Interval(value=0.25, low=0.25, high=0.25)
    """
    ours, theirs = np.asarray(values, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if ours.ndim != 1 or ours.shape != theirs.shape:
        raise InputError(f"values and reference must both be (S,), got shapes {ours.shape} and {theirs.shape}")
    differences = ours - theirs
    if not np.isfinite(differences).all():
        stream = int(np.flatnonzero(~np.isfinite(differences))[0])
        raise InputError(
            f"values and reference must be finite, got {ours[stream]} and {theirs[stream]} on stream {stream}"
        )
    weights = resample(len(differences), resamples, seed)
    return _interval(math.fsum(differences) / len(differences), (weights @ differences) / len(differences))


def area_between_curves(
    reference: Sequence[SweepPoint], policy: Sequence[SweepPoint], *, resamples: int = 2000, seed: int = 0
) -> CurveDifference:
    """How much better a policy is than a reference over all rates at which both can be compared.

    The curve of quality against the logarithm of decodes per second is linear between points. The value is the area
    between the two curves over the rates that both cover, divided by the width of that range: a mean difference in
    quality. Where only one curve is, nothing is extrapolated and nothing counts; points that decode nothing have no
    place on the axis and are left out.

    In a resample both the rates and the qualities of all points are drawn anew, while the range stays; a curve that
    then ends within the range goes on at its level.

    Args:
        reference: K points on a set of streams, such as uniform decoding at several rates.
        policy: points on the same streams.
        resamples: R, at least 1.
        seed: of the resampling.

    Raises:
        InputError: no point, fewer than 2 streams, points that are not of the same streams, a value that is repeated
            within a curve, or ``resamples`` below 1.
    """
    if not reference:
        raise InputError("reference must hold at least one point, got none")
    curves = [
        [point for point in _by_value(name, points, reference[0]).values() if point.decodes.any()]
        for name, points in (("reference", reference), ("policy", policy))
    ]
    weights = resample(len(reference[0].scores), resamples, seed)
    if not all(curves):
        return CurveDifference(None, None, None)
    rates = [[point.decodes_per_second for point in curve] for curve in curves]
    low, high = max(map(min, rates)), min(map(max, rates))
    if not low < high:
        return CurveDifference(None, None, None)
    everything = np.ones((1, weights.shape[1]))
    theirs, ours = (_mean_level(curve, everything, low, high)[0] for curve in curves)
    drawn = [_mean_level(curve, weights, low, high) for curve in curves]
    return CurveDifference(_interval(float(ours - theirs), drawn[1] - drawn[0]), low, high)


def _mean_level(curve: Sequence[SweepPoint], weights: np.ndarray, low: float, high: float) -> np.ndarray:
    """(R,) mean over log rate, from `low` to `high`, of the curve through the points as weighted (R, S)."""
    rates = np.stack([(weights @ point.decodes) / (weights @ point.seconds) for point in curve], axis=1)
    x = np.log(rates.clip(min=np.finfo(np.float64).tiny))  # a resample without decodes lies far to the left
    y = np.stack([_quality(point, weights) for point in curve], axis=1)
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
    streams = tuple(np.asarray(stream, dtype=np.float64) for stream in scores)
    for index, stream in enumerate(streams):
        if stream.ndim != 1 or not stream.size:
            raise InputError(f"scores[{index}] must be (A,) with A >= 1, got shape {stream.shape}")
        if not np.isfinite(stream).all():
            raise InputError(f"scores[{index}] must be finite, got {stream[~np.isfinite(stream)][0]}")
    return streams


def _mean(scores: Sequence[np.ndarray]) -> float:
    """Over all scores of all streams, rounded once: their order does not matter."""
    every = np.concatenate(scores)
    return math.fsum(every.tolist()) / len(every)


def _means(scores: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """(R,) mean over all scores of all streams, weighted by (R, S)."""
    totals, counts = (np.array([of(stream) for stream in scores]) for of in (np.sum, len))
    return np.asarray((weights @ totals) / (weights @ counts))


def _annotations(point: SweepPoint) -> np.ndarray:
    return np.array([len(stream) for stream in point.scores])


def _quality(point: SweepPoint, weights: np.ndarray) -> np.ndarray:
    """(R,) quality of the point over streams weighted by (R, S)."""
    return _means(point.scores, weights)


def _quality_difference(point: SweepPoint, reference: SweepPoint, weights: np.ndarray) -> np.ndarray:
    """(R,) quality of the point less that of the reference; exactly 0 where all scores are equal."""
    differences = np.array([(a - b).sum() for a, b in zip(point.scores, reference.scores, strict=True)])
    return (weights @ differences) / (weights @ _annotations(point))


def _interval(value: float, samples: np.ndarray) -> Interval:
    low, high = np.quantile(samples, _TAILS)
    return Interval(value, float(low), float(high))


def _by_value(name: str, points: Sequence[SweepPoint], reference: SweepPoint) -> dict[float, SweepPoint]:
    if not points:
        raise InputError(f"{name} must hold at least one point, got none")
    for point in points:
        if len(point.scores) != len(reference.scores):
            raise InputError(
                f"{name} at value {point.value:g} must have the reference's {len(reference.scores)} streams, "
                f"got {len(point.scores)}"
            )
        for what, ours, theirs in (
            ("annotations", _annotations(point), _annotations(reference)),
            ("seconds", point.seconds, reference.seconds),
        ):
            if not np.array_equal(ours, theirs):
                stream = int(np.flatnonzero(ours != theirs)[0])
                raise InputError(
                    f"{name} at value {point.value:g} must have the reference's {what} on every stream, "
                    f"got {ours[stream]:g} instead of {theirs[stream]:g} on stream {stream}"
                )
    by_value = {point.value: point for point in points}
    if len(by_value) < len(points):
        raise InputError(f"{name} must have each value once, got {sorted(point.value for point in points)}")
    return by_value
