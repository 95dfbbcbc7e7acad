"""The paired t test against scipy's and a textbook case."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import refusals
from scipy import stats

from jepa.metrics.paired import corrected, paired_test


def test_it_equals_scipy():
    first, second = np.random.default_rng(0).normal(size=(2, 7))
    first += 0.8
    ours, theirs = paired_test(first - second), stats.ttest_rel(first, second)
    interval = theirs.confidence_interval(0.95)
    assert ours.n == 7
    assert (ours.p, ours.low, ours.high) == pytest.approx((theirs.pvalue, interval.low, interval.high), rel=1e-9)
    assert ours.mean == pytest.approx((first - second).mean())


def test_students_sleep_data():
    result = paired_test([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
    assert result.mean == pytest.approx(1.58)
    assert (result.low, result.high, result.p) == pytest.approx((0.7001142, 2.4598858, 0.002833), rel=1e-4)


def test_one_seed_says_nothing_about_chance():
    result = paired_test([0.5])
    assert (result.n, result.mean, result.low, result.high, result.p) == (1, 0.5, None, None, None)


@pytest.mark.parametrize(("differences", "p"), [([0.1, 0.1, 0.1], 0.0), ([0.0, 0.0], 1.0)])
def test_equal_differences(differences, p):
    result = paired_test(differences)
    assert result.p == p
    assert result.low == result.mean == result.high == pytest.approx(differences[0])


def test_holm():
    assert corrected([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])  # never below a smaller p's
    assert corrected([0.6, 0.9, 0.2]) == pytest.approx([1.0, 1.0, 0.6])
    assert corrected([]) == []


test_bad_input_is_refused = refusals(
    ([], "at least one, got none"),
    ([[1.0]], r"got shape \(1, 1\)"),
    ([1.0, math.nan], "finite, got nan at index 1"),
    of=paired_test,
)
