"""Whether one method beats another over seeds: the paired t test (Student 1908).

Each pair is one seed, which is what is drawn at random, run with both methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from jepa.errors import InputError
from jepa.metrics.checks import finite_array


@dataclass(frozen=True)
class PairedTest:
    """The mean difference of n pairs, its 95 % interval and the two-sided p; None for a single pair."""

    n: int
    mean: float
    low: float | None
    high: float | None
    p: float | None


def paired_test(differences: Sequence[float]) -> PairedTest:
    """Paired t test of the hypothesis that the mean of n >= 1 differences, one of each seed, is 0.

    Where all differences are equal the test knows no chance: the interval is the mean, and p is 0, or 1 if they are 0.

    >>> found = paired_test([0.1, 0.2, 0.3])
    >>> round(found.mean, 3), round(found.p, 3)
    (0.2, 0.074)
    """
    values = finite_array("differences", differences)
    if not values.size:
        raise InputError("differences must hold at least one, got none")
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return PairedTest(n, mean, low=None, high=None, p=None)
    if (values == values[0]).all():
        return PairedTest(n, mean, low=mean, high=mean, p=0.0 if mean else 1.0)
    error = float(values.std(ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * error
    return PairedTest(n, mean, mean - half, mean + half, p=2 * float(stats.t.sf(abs(mean) / error, n - 1)))


def corrected(ps: Sequence[float]) -> list[float]:
    """p of N tests made at once, corrected for their number (Holm 1979): below α, one of them is right with 1 − α.

    >>> corrected([0.01, 0.04, 0.5])
    [0.03, 0.08, 0.5]
    """
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    found, least = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        found[i] = least = max(least, min(1.0, (len(ps) - rank) * ps[i]))
    return found
