"""The saving at equal quality against a slow bootstrap that literally repeats streams."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from conftest import refusals
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.metrics import (
    CurveDifference,
    Interval,
    Saving,
    SweepPoint,
    area_between_curves,
    bootstrap_mean,
    bootstrap_ratio,
    saving_at_equal_quality,
)

STREAMS, RESAMPLES = 6, 200


def sweep(seed: int, offsets: dict[float, float], decodes: dict[float, int]) -> tuple[SweepPoint, list[SweepPoint]]:
    """A reference and a point for each value, with the reference's scores shifted and noised."""
    rng = np.random.default_rng(seed)
    seconds = rng.uniform(60, 120, STREAMS)
    scores = [rng.uniform(0, 10, rng.integers(3, 9)) for _ in range(STREAMS)]
    reference = SweepPoint(1.0, tuple(scores), seconds.round(), seconds)
    points = [
        SweepPoint(
            value,
            tuple(stream + offset + 0.5 * rng.standard_normal(len(stream)) for stream in scores),
            decodes[value] + rng.integers(0, 4, STREAMS),
            seconds,
        )
        for value, offset in offsets.items()
    ]
    return reference, points


def splits(seed: int) -> tuple[SweepPoint, list[SweepPoint], SweepPoint, list[SweepPoint]]:
    """Of calibration and of test streams: the reference, and the points."""
    return *sweep(seed, OFFSETS, DECODES), *sweep(seed + 100, OFFSETS, DECODES)


OFFSETS = {0.5: 1.0, 1.0: 0.6, 2.0: 0.1, 4.0: -0.05, 8.0: -1.0}
DECODES = {0.5: 60, 1.0: 40, 2.0: 25, 4.0: 12, 8.0: 5}


def slow_bootstrap(points: list[SweepPoint], statistic, seed: int) -> np.ndarray:
    """The statistic of points whose streams are written out as often as they were drawn."""
    draws = np.random.default_rng(seed).multinomial(STREAMS, [1 / STREAMS] * STREAMS, size=RESAMPLES)
    values = []
    for counts in draws:
        chosen = [stream for stream, count in enumerate(counts) for _ in range(count)]
        resampled = [
            SweepPoint(p.value, tuple(p.scores[s] for s in chosen), p.decodes[chosen], p.seconds[chosen])
            for p in points
        ]
        values.append(statistic(*resampled))
    return np.array(values)


def slow_interval(value: float, values: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return {"value": value, "low": low, "high": high}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("confidence", [0.6, 0.9])
@pytest.mark.parametrize("tolerance", [0.0, 0.03, 0.3])
def test_equals_a_slow_bootstrap(seed, confidence, tolerance):
    reference_calibration, calibration, reference_test, test = splits(seed)
    options = {"confidence": confidence, "tolerance": tolerance, "resamples": RESAMPLES, "seed": seed}
    turned = test[::-1]  # paired by value, not by place
    saving = saving_at_equal_quality(reference_calibration, calibration, reference_test, turned, **options)

    def enough(point: SweepPoint, reference: SweepPoint) -> bool:
        return point.quality >= (1 - tolerance) * reference.quality

    held = [slow_bootstrap([point, reference_calibration], enough, seed).mean() for point in calibration]
    qualifying = [point for point, fraction in zip(calibration, held, strict=True) if fraction >= confidence]
    best = min(qualifying, key=lambda point: point.decodes_per_second)
    chosen = next(point for point in test if point.value == best.value)
    differences = slow_bootstrap([chosen, reference_test], lambda p, r: p.quality - r.quality, seed)
    ratios = slow_bootstrap([chosen, reference_test], lambda p, r: r.decodes_per_second / p.decodes_per_second, seed)

    assert saving.value == best.value
    assert saving.quality == chosen.quality
    assert saving.reference_quality == reference_test.quality
    assert saving.reached == (chosen.quality >= (1 - tolerance) * reference_test.quality)
    assert saving.decodes_per_second == chosen.decodes_per_second
    assert saving.reference_decodes_per_second == reference_test.decodes_per_second
    difference = chosen.quality - reference_test.quality
    assert dataclasses.asdict(saving.quality_difference) == pytest.approx(slow_interval(difference, differences))
    ratio = reference_test.decodes_per_second / chosen.decodes_per_second
    # Quantiles between two resamples are interpolated in the inverse ratio, hence the wider tolerance.
    assert dataclasses.asdict(saving.ratio) == pytest.approx(slow_interval(ratio, ratios), rel=1e-3)


def test_quality_and_rate_weigh_annotations_and_seconds():
    point = SweepPoint(1.0, (np.array([1.0, 2.0, 6.0]), np.array([11.0])), np.array([3, 1]), np.array([10.0, 90.0]))
    assert point.quality == 5.0  # of annotations, not of streams (7.0)
    assert point.decodes_per_second == 0.04


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["permuted", "random", "zero"]))
def test_no_test_score_influences_the_value(seed, how):
    *chosen_on, reference, test = splits(0)
    rng = np.random.default_rng(seed)
    drawn = lambda scores: rng.uniform(0, 10, len(scores))  # noqa: E731
    changes = {"permuted": rng.permutation, "random": drawn, "zero": np.zeros_like}

    def other(point: SweepPoint) -> SweepPoint:
        scores = tuple(map(changes[how], point.scores))
        return dataclasses.replace(point, scores=scores, decodes=rng.integers(1, 99, STREAMS))

    plain = saving_at_equal_quality(*chosen_on, reference, test, resamples=RESAMPLES)
    changed = saving_at_equal_quality(*chosen_on, other(reference), [other(p) for p in test], resamples=RESAMPLES)
    assert plain.value == changed.value == 1.0  # neither the cheapest nor the best: calibration decides


def uniform_points(scores: float, decodes: int, value: float = 1.0) -> SweepPoint:
    return SweepPoint(value, (np.full(3, scores), np.full(2, scores)), np.full(2, decodes), np.full(2, 30.0))


@pytest.mark.parametrize(("test_score", "reached"), [(5.0, True), (5.0 + 1e-12, True), (5.0 - 1e-12, False)])
def test_reached_has_no_tolerance(test_score, reached):
    reference = uniform_points(5.0, 30)
    saving = saving_at_equal_quality(reference, [uniform_points(5.0, 10)], reference, [uniform_points(test_score, 10)])
    assert saving.value == 1.0
    assert saving.reached is reached
    assert saving.ratio == Interval(3.0, 3.0, 3.0)
    assert ("keeps" if reached else "misses") in saving.reason


@pytest.mark.parametrize(("score", "tolerance", "reached"), [(4.5, 0.1, True), (4.5, 0.09, False), (4.5, 0.0, False)])
def test_reached_within_a_tolerance(score, tolerance, reached):
    reference, point = uniform_points(5.0, 30), uniform_points(score, 10)
    saving = saving_at_equal_quality(reference, [point], reference, [point], tolerance=tolerance)
    assert (saving.value is not None) is reached  # the calibration streams ask for the same
    better = uniform_points(5.0, 10)
    saving = saving_at_equal_quality(reference, [better], reference, [point], tolerance=tolerance)
    assert saving.reached is reached
    assert saving.quality_difference == Interval(-0.5, -0.5, -0.5)  # always against the reference itself
    assert (f"{100 * (1 - tolerance):g}% of the reference's quality" in saving.reason) is (tolerance > 0)


def test_a_higher_tolerance_never_saves_less():
    tolerances = (0.0, 0.02, 0.05, 0.1, 0.3)
    rates = [saving_at_equal_quality(*splits(0), tolerance=tolerance).decodes_per_second for tolerance in tolerances]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1]


def test_the_order_of_scores_does_not_decide_a_tie():
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 10, 1000)
    points = [SweepPoint(1.0, (s[:500], s[500:]), np.full(2, 9), np.full(2, 9.0)) for s in (scores, scores[::-1])]
    assert points[0].quality == points[1].quality


def test_the_reference_against_itself_saves_nothing():
    reference, _ = sweep(0, OFFSETS, DECODES)
    saving = saving_at_equal_quality(reference, [reference], reference, [reference], confidence=1.0)
    assert saving.reached
    assert saving.quality_difference == Interval(0.0, 0.0, 0.0)
    assert dataclasses.astuple(saving.ratio) == pytest.approx((1.0, 1.0, 1.0))


def test_of_equally_cheap_values_the_better_is_chosen():
    reference = uniform_points(5.0, 30)
    calibration = [uniform_points(6.0, 10, 1.0), uniform_points(7.0, 10, 2.0), uniform_points(9.0, 11, 3.0)]
    test = [uniform_points(9.0, 10, 1.0), uniform_points(4.0, 10, 2.0), uniform_points(9.0, 10, 3.0)]
    assert saving_at_equal_quality(reference, calibration, reference, test).value == 2.0


def test_no_value_qualifies():
    reference, points = sweep(0, {1.0: -2.0, 3.0: -1.0}, {1.0: 10, 3.0: 20})
    saving = saving_at_equal_quality(reference, points, reference, points)
    assert saving == Saving(reference.quality, reference.decodes_per_second, saving.reason)
    assert saving.value is saving.ratio is None
    assert "no value keeps the reference's quality in 90% of the resamples" in saving.reason


def test_streams_without_any_decode():
    reference = uniform_points(0.0, 30)
    silent = uniform_points(0.0, 0)
    assert saving_at_equal_quality(reference, [silent], reference, [silent]).ratio is None
    assert bootstrap_ratio([1, 2], [0, 0]) is None
    half = dataclasses.replace(silent, decodes=np.array([0, 20]))  # a quarter of the resamples decodes nothing
    saving = saving_at_equal_quality(reference, [half], reference, [half])
    assert saving.ratio == Interval(3.0, 1.5, math.inf)


def test_interval_of_a_mean_equals_a_slow_bootstrap():
    reference, _ = sweep(3, OFFSETS, DECODES)
    interval = bootstrap_mean(reference.scores, resamples=RESAMPLES, seed=5)
    values = slow_bootstrap([reference], lambda point: point.quality, seed=5)
    assert dataclasses.asdict(interval) == pytest.approx(slow_interval(reference.quality, values))


def curve(seed: int, height: float, rates: list[float]) -> list[SweepPoint]:
    """Points at about these rates, of a quality that grows with the logarithm of the rate, on the same streams."""
    rng = np.random.default_rng(seed)
    seconds = np.linspace(60, 120, STREAMS)
    return [
        SweepPoint(
            rate,
            tuple(rng.normal(5 + height + np.log(rate), 1, 3 + stream % 4) for stream in range(STREAMS)),
            np.maximum(rng.poisson(rate * seconds), 1),
            seconds,
        )
        for rate in rates
    ]


def slow_level(points: list[SweepPoint], low: float, high: float) -> float:
    """The mean over log rate, by a fine grid; numpy interpolates, and is level beyond the ends."""
    ordered = sorted(points, key=lambda point: point.decodes_per_second)
    x = [math.log(point.decodes_per_second) for point in ordered]
    grid = np.linspace(math.log(low), math.log(high), 4001)
    values = np.interp(grid, x, [point.quality for point in ordered])
    return float((values[1:] + values[:-1]).mean() / 2)


@pytest.mark.parametrize("seed", range(3))
def test_area_between_curves_equals_a_slow_one(seed):
    reference = curve(seed, 0.0, [2.0, 1.0, 0.5, 0.1])
    policy = curve(seed + 50, 0.4, [0.05, 0.3, 0.7])
    area = area_between_curves(reference, policy, resamples=RESAMPLES, seed=seed)
    low, high = (point.decodes_per_second for point in (reference[-1], policy[-1]))
    assert (area.low_rate, area.high_rate) == (low, high)

    def difference(*points: SweepPoint) -> float:
        return slow_level(list(points[4:]), low, high) - slow_level(list(points[:4]), low, high)

    values = slow_bootstrap([*reference, *policy], difference, seed)
    expected = slow_interval(difference(*reference, *policy), values)
    assert dataclasses.asdict(area.difference) == pytest.approx(expected, abs=1e-4)


def test_area_is_over_the_logarithm_of_the_rate():
    def point(rate: float, score: float) -> SweepPoint:
        return SweepPoint(rate, (np.full(2, score), np.full(3, score)), np.full(2, 100 * rate), np.full(2, 100.0))

    reference = [point(0.1, 1.0), point(10.0, 1.0)]
    policy = [point(0.1, 1.0), point(1.0, 3.0), point(10.0, 1.0)]  # a tent, its top in the middle of the log axis
    assert area_between_curves(reference, policy).difference == Interval(1.0, 1.0, 1.0)
    assert area_between_curves(reference, policy[:2]) == CurveDifference(Interval(1.0, 1.0, 1.0), 0.1, 1.0)


def test_curves_without_a_common_range_have_no_area():
    nothing = CurveDifference(None, None, None)
    assert area_between_curves(curve(0, 0.0, [1.0, 2.0]), curve(1, 0.0, [0.1, 0.2])) == nothing
    reference = curve(0, 0.0, [1.0, 2.0])
    assert area_between_curves(reference, reference[:1]) == nothing  # one point has no width
    silent = [dataclasses.replace(point, decodes=np.zeros(STREAMS)) for point in reference]
    assert area_between_curves(reference, silent) == nothing


def test_a_point_without_decodes_is_left_out_of_the_curve():
    reference = curve(0, 0.0, [0.5, 1.0, 2.0])
    silent = dataclasses.replace(reference[0], value=99.0, decodes=np.zeros(STREAMS))
    assert area_between_curves(reference, [*reference, silent]) == area_between_curves(reference, reference)


def test_area_survives_resamples_without_decodes():
    reference = curve(0, 0.0, [0.01, 1.0])
    rare = dataclasses.replace(reference[0], decodes=np.array([9.0] + [0.0] * (STREAMS - 1)))
    area = area_between_curves(reference, [rare, reference[1]])
    assert np.isfinite(dataclasses.astuple(area.difference)).all()
    assert area.difference.low <= area.difference.value <= area.difference.high


A = uniform_points(5.0, 10)
ONE = SweepPoint(1.0, (np.ones(3),), np.ones(1), np.ones(1))
MORE = dataclasses.replace(A, scores=(np.ones(3), np.ones(4)))  # annotations
LONGER, HALF = (dataclasses.replace(A, seconds=np.array([31.0, 30])), dataclasses.replace(A, decodes=np.array([1, 0])))


test_bad_input_is_refused = refusals(
    (lambda: SweepPoint(1.0, (), [], []), "of the same streams, one or more, got 0, 0 and 0"),
    (lambda: SweepPoint(1.0, ([1.0, 1.0], []), [1, 1], [1, 1]), r"at least one score of each stream, got \[2, 0\]"),
    (lambda: SweepPoint(1.0, ([math.nan],), [1], [1]), r"scores\[0\] must be finite, got nan at index 0"),
    (lambda: dataclasses.replace(A, decodes=np.ones(3)), "of the same streams, one or more, got 2, 3 and 2"),
    (lambda: dataclasses.replace(A, decodes=np.array([1, -1])), r"decodes must be >= 0 .* got \[1.0, -1.0\]"),
    (lambda: dataclasses.replace(A, seconds=np.zeros(2)), "seconds > 0, got .*0"),
    (lambda: saving_at_equal_quality(A, [A], A, [A], confidence=0), r"confidence must be in \(0, 1\], got 0"),
    (lambda: saving_at_equal_quality(A, [A], A, [A], tolerance=1.0), r"tolerance must be in \[0, 1\), got 1.0"),
    (lambda: saving_at_equal_quality(A, [A], A, [A], resamples=0), "resamples must be a whole number >= 1, got 0"),
    (lambda: area_between_curves([A], []), r"policy must be one point or more, .* got values \[\]"),
    (lambda: area_between_curves([A], [ONE]), "policy must have the annotations .* got others at value 1"),
    (lambda: bootstrap_ratio([1, 0], [1, 1]), r"reference must be > 0 and ours >= 0, got \[1.0, 0.0\] and"),
    (lambda: bootstrap_ratio([1, 1], [-1, 1]), r"ours >= 0, got .* and \[-1.0, 1.0\]"),
    (lambda: bootstrap_ratio([1, 1], [1, math.nan]), "ours must be finite, got nan at index 1"),
    (lambda: bootstrap_ratio([1, 1], [1]), "reference and ours must be equally many, got 2 and 1"),
    (lambda: bootstrap_ratio([1], [1]), "at least 2 streams, got 1"),
    (lambda: saving_at_equal_quality(A, [A, A], A, [A]), r"each of another value, got values \[1.0, 1.0\]"),
    (lambda: saving_at_equal_quality(A, [A], A, [uniform_points(5.0, 10, 2.0)]), r"values .* \[2.0\] and \[1.0\]"),
    (lambda: saving_at_equal_quality(ONE, [ONE], A, [A]), "must have at least 2 streams, got 1"),
    (lambda: saving_at_equal_quality(A, [MORE], A, [A]), "candidates_calibration must .* got others at value 1"),
    (lambda: saving_at_equal_quality(A, [A], A, [LONGER]), "candidates_test must .* got others at value 1"),
    (lambda: saving_at_equal_quality(A, [A], HALF, [A]), r"reference must be > 0 .* got \[1.0, 0.0\]"),
)
