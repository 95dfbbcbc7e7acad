"""What a policy is: a stream of latents in, segments to decode out.

T steps of a stream, E width of the latent space. Latents are float32 of unit norm, times are seconds. Policies trust
their input; `SelectiveDecoder` checks it. An argument of a policy that breaks its rule is an `InputError`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeAlias, TypeVar

import numpy as np

from jepa.selective.types import Segment

Remembered = TypeVar("Remembered")
Numbers: TypeAlias = tuple[float, ...]
Compare: TypeAlias = Callable[..., tuple[np.ndarray, ...]]  # see `Comparisons`


class Policy(ABC):
    """Takes one latent at a time and says which segments to decode.

    A stream is `start`, then `step` for each latent, then `finish`. A new policy has started, as has one that finished.
    Latents passed in are not kept by reference.

    >>> from jepa.selective import Uniform
    >>> [segment.first for segment, _ in Uniform(0.5).run(np.ones((5, 1), np.float32), np.arange(5.0))]
    [0, 2, 4]
    """

    name: str  # in results
    causal: bool  # whether segments come out of `step`, from the past alone; if not, the whole stream is needed
    latency: str  # how long after the end of a segment it comes out, in words
    state: str  # what is kept between two steps, in words
    lag: int | None = None  # most steps after a segment's last one until it comes out; None: there is no such bound
    decodes_input = True  # False if segments hold other latents than it is given, perhaps of another width
    reads_latents = True  # False if times alone decide: it runs without latents, and needs those alone that it decodes
    shared: dict[Any, Any] | None = None  # what policies of one kind have in common of a stream, set before it is run

    @abstractmethod
    def start(self) -> None:
        """Forget the stream so far and get ready for a new one."""

    @abstractmethod
    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        """Take the next latent (E,), unit float32, at `time` seconds; return the segments that it closes."""

    @abstractmethod
    def finish(self) -> list[Segment]:
        """End the stream; return the segments still open."""

    def remembered(self, key: object, make: Callable[[], Remembered]) -> Remembered:
        """What `make` gives, made once in a stream for all policies that share it; anew where nothing is `shared`."""
        if self.shared is None:
            return make()
        if key not in self.shared:
            self.shared[key] = make()
        found: Remembered = self.shared[key]
        return found

    def run(self, latents: np.ndarray, times: np.ndarray) -> list[tuple[Segment, int]]:
        """Take a recorded stream, latents (T, E) at times (T,) float64, from its start to its end.

        Each segment comes with the index of the step at which it came out, T − 1 for those of `finish`.
        """
        self.start()
        closed = [
            (segment, i)
            for i, (latent, time) in enumerate(zip(latents, times.tolist(), strict=True))
            for segment in self.step(latent, time)
        ]
        return closed + [(segment, len(times) - 1) for segment in self.finish()]


class CausalPolicy(Policy):
    """A policy whose segments come out of `step`, from the steps so far, with a state of O(E).

    >>> from jepa.selective import SendOnDelta
    >>> policy = SendOnDelta(0.5)
    >>> [len(policy.step(latent, 0.0)) for latent in np.eye(2, dtype=np.float32)[[0, 0, 1]]]
    [1, 0, 1]
    """

    causal = True
    threshold: float  # of a threshold policy, the higher the fewer segments; it may change between two steps
    signal: float | None = None  # of a threshold policy, at its newest step: above 1, what it watches is over its limit

    @abstractmethod
    def close(self) -> list[Segment]:
        """Close the open segment at the newest step, so that its text waits no longer; nothing if all was decoded.

        The stream goes on, and what was learned of it stays. A policy of single steps decodes the newest one.
        """

    def finish(self) -> list[Segment]:
        segments = self.close()
        self.start()
        return segments


class Recorded(Policy):
    """Gives the segments that were found before, stream by stream.

    >>> policy = Recorded([[], []])
    >>> policy.run(np.zeros((1, 2)), np.zeros(1))
    []
    """

    name, causal, latency, state = "recorded", False, "as it was", "none"
    reads_latents = False

    def __init__(self, found: Iterable[list[tuple[Segment, int]]]) -> None:
        self._streams = iter(found)

    def start(self) -> None: ...

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        return []

    def finish(self) -> list[Segment]:
        return []

    def run(self, latents: np.ndarray, times: np.ndarray) -> list[tuple[Segment, int]]:
        return next(self._streams)


class OpenSegment:
    """The steps since the last cut, in O(E): what a causal policy adds to and closes.

    With an `agreement` κ > 0 the mean that closes has the weights exp(κ · (cos − 1)), cos between a step and the sum of
    its segment: steps that blend two meanings, or are outliers, count for less. This is one step of the mean shift with
    a von Mises-Fisher kernel (Kobayashi & Otsu 2010, ICPR). The newest 16 steps are weighed when the segment closes, an
    older one when it leaves them.

    >>> opened = OpenSegment()
    >>> for time, latent in enumerate(np.eye(2)[[0, 1]]):
    ...     opened.add(latent, float(time))
    >>> [(segment.first, segment.last, segment.time) for segment in opened.close()]
    [(0, 1, 0.5)]
    """

    kept = 16

    def __init__(self, agreement: float = 0.0) -> None:
        self.agreement = agreement
        self.count = 0  # n, its steps
        self.first = 0  # index of its first step
        self.total = self.last = np.zeros(0)  # (E,) float64, the sum of its steps, and the last one
        self.square = 0.0  # squared norm of `total`
        self._start = self._end = 0.0
        self._kept: deque[np.ndarray] = deque()
        self._weighed = np.zeros(0)  # sum of the steps that left the kept ones, weighed
        self._weight = 0.0  # sum of their weights

    def add(self, latent: np.ndarray, time: float) -> None:
        """Append a step: latent (E,) float64, which is kept and must not change afterwards."""
        if self.count:
            self.total += latent
        else:
            self.total, self._start = latent.copy(), time
            self._weighed, self._weight = np.zeros(len(latent) if self.agreement else 0), 0.0
        self.last, self._end = latent, time
        self.count += 1
        self.square = float(self.total.dot(self.total))
        if self.agreement:
            self._kept.append(latent)
            if len(self._kept) > self.kept:
                leaving = self._kept.popleft()
                weight = math.exp(self.agreement * (float(leaving.dot(self.total)) / _norm(self.square) - 1))
                self._weighed += weight * leaving
                self._weight += weight

    def distance(self, total: np.ndarray, count: int) -> float:
        """Squared distance, within 1e-15, from the mean of its n >= 1 steps to that of `count` with the sum `total`."""
        here, there = self.square / self.count**2, float(total.dot(total)) / count**2
        return here + there - 2 * float(total.dot(self.total)) / (self.count * count)

    def close(self) -> list[Segment]:
        """The steps, if any, as a segment: their renormalised mean, at the midpoint of their times. None are left."""
        if not self.count:
            return []
        total, weight = self.total, float(self.count)
        if self.agreement and self.count > 1:
            kept = np.array(self._kept)
            weights = np.exp(self.agreement * (kept @ total / _norm(self.square) - 1))
            total, weight = self._weighed + weights @ kept, self._weight + float(weights.sum())
        self._kept.clear()
        latent, last = unit_mean(total, weight, self.last), self.first + self.count - 1
        segment = Segment(latent, (self._start + self._end) / 2, self._start, self._end, self.first, last)
        self.first, self.count = last + 1, 0
        return [segment]


class Comparisons:
    """What policies that differ in their threshold alone find in one recorded stream, found once and kept in `shared`.

    That is what `compare` makes of the inner products of steps with the open segment before them, which no threshold
    changes, and the segments. A policy that has them decides on numbers, which agree with those of single steps within
    `ROUNDING`. The latents of segments agree with those of single steps within the rounding of float32.

    Args:
        shared: a dictionary of the stream; what it holds of one policy is under its `key`.
        compare: to some numbers of N segments at once, (N,) each, from (N,) the numbers n of their steps, the steps
            after them, the squares of their sums, the products of each sum with its last step, and (m, N) with the
            m = `pending` steps after it, 0 behind the stream's end. None: there is nothing to compare.
        pending: steps after the open segment that are compared with it at once.
        agreement: as for `OpenSegment`.

    >>> def apart(n, step, square, last, products):
    ...     return (square / n**2 + 1 - 2 * products[0] / n,)
    >>> found = Comparisons({}, "apart", np.eye(3, dtype=np.float32), np.arange(3.0), apart)
    >>> found.at(0, 1), [segment.last for segment, _ in found.cut(lambda n, step, numbers: numbers[0] > 1.8)]
    ((2.0,), [0, 1, 2])
    """

    def __init__(
        self,
        shared: dict[Any, Any],
        key: object,
        latents: np.ndarray,
        times: np.ndarray,
        compare: Compare | None,
        pending: int = 1,
        agreement: float = 0.0,
    ) -> None:
        self._known: dict[int, list[Numbers]]
        self._sums: dict[int, tuple[list[float], float]]
        self._segments: dict[tuple[int, int], Segment]
        self._known, self._sums, self._segments, self._kept = shared.setdefault(key, ({}, {}, {}, {}))
        self.steps, self._latents, self._times, self._compare = len(times), latents, times, compare
        self._pending, self._agreement = pending, agreement
        self._first, self._count, self._total = -1, 0, np.zeros(0)  # of the open segment that was added to last

    def products(self, count: int) -> np.ndarray:
        """(count, T) of each step with itself and the `count` − 1 after it; 0 behind the stream's end."""
        if count not in self._kept:
            found = self._kept[count] = np.zeros((count, self.steps))
            for begin in range(0, self.steps, _ROWS):
                rows = self._latents[begin : begin + _ROWS + count - 1].astype(np.float64)
                for after in range(min(count, len(rows))):
                    size = min(_ROWS, len(rows) - after)
                    found[after, begin : begin + size] = np.vecdot(rows[:size], rows[after : after + size])
        products: np.ndarray = self._kept[count]
        return products

    def known(self, first: int) -> list[Numbers]:
        """What is known so far of the segments from `first` on: see `at`."""
        if self._compare and not self._known:  # of single steps all at once
            products = self.products(self._pending + 1)[:, :-1]
            n, step = np.ones(self.steps - 1), np.arange(1, self.steps)
            numbers = self._compare(n, step, products[0], products[0], products[1:])
            self._known.update((first, [each]) for first, each in enumerate(_rows(numbers)))
        return self._known.setdefault(first, [])

    def at(self, first: int, step: int) -> Numbers:
        """What `compare` gives of the segment from `first` on and the `step` after its last."""
        known = self.known(first)
        while self._compare and len(known) < step - first:
            known += self._longer(self._compare, first, len(known))
        return known[step - first - 1] if known else ()

    def _longer(self, compare: Compare, first: int, count: int) -> Iterator[Numbers]:
        """What `compare` gives of segments from `first` on that are longer than `count` >= 1 steps."""
        m, products = self._pending, self.products(self._pending + 1)
        sums, square = self._sums.get(first, ([float(products[1, first])], float(products[0, first])))
        self._add(first, sums, min(count + min(max(count, _FEWEST), _ROWS) + m - 1, self.steps - 1 - first))
        found = len(sums) - m + 1 if first + len(sums) < self.steps - 1 else len(sums)
        n = np.arange(count + 1, found + 1)
        after = np.array(sums[count - 1 :] + [0.0] * m)  # of `count` steps, and more, with the one after them
        last = after[: len(n)] + products[0, first + count : first + found]
        squares = square + np.cumsum(after[: len(n)] + last)
        self._sums[first] = sums, float(squares[-1])
        pending = np.zeros((m, len(n)))
        for apart in range(m):
            known = max(0, min(len(n), self.steps - first - apart - count - 1))  # none behind the stream's end
            steps = first + count + 1 + np.arange(known)
            pending[apart, :known] = after[apart + 1 : apart + 1 + known]
            for between in range(apart):
                pending[apart, :known] -= products[apart - between, steps + between]
        return _rows(compare(n, first + n, squares, last, pending))

    def _add(self, first: int, sums: list[float], count: int) -> None:
        """Products of the sum of n steps from `first` on with the one after them, until there are `count`, by n."""
        n = len(sums)
        if (self._first, self._count) != (first, n):
            self._total = np.add.reduce(self._latents[first : first + n].astype(np.float64))
        for begin in range(first + n, first + count, _ROWS):
            rows = self._latents[begin : min(begin + _ROWS, first + count) + 1].astype(np.float64)
            for row, after in pairwise(rows):
                self._total += row
                sums.append(float(self._total.dot(after)))
        self._first, self._count = first, len(sums)

    def segment(self, first: int, last: int) -> Segment:
        """These steps as a segment."""
        if (first, last) not in self._segments:
            self._segments[first, last] = mean_segment(self._latents, self._times, first, last, self._agreement)
        return self._segments[first, last]

    def cut(self, cuts: Callable[[int, int, Numbers], bool]) -> list[tuple[Segment, int]]:
        """A stream whose segment from `first` on ends before the step where `cuts(n, step, at(first, step))`, n steps.

        As `Policy.run`.
        """
        segments, first, known = list[tuple[Segment, int]](), 0, self.known(0)
        for step in range(1, self.steps):
            n = step - first
            if cuts(n, step, known[n - 1] if n <= len(known) else self.at(first, step)):
                segments.append((self.segment(first, step - 1), step))
                first, known = step, self.known(step)
        if self.steps:
            segments.append((self.segment(first, self.steps - 1), self.steps - 1))
        return segments


class RunningMean:
    """The average `value` over a stream, exponential over 64 values; its first value has the weight of 4.

    >>> average = RunningMean(1.0)
    >>> average.add(6.0)
    >>> average.value
    2.0
    """

    _MEMORY = 64
    _HEAD_START = 4

    def __init__(self, value: float) -> None:
        self.value = value
        self._weight = self._HEAD_START

    def add(self, value: float) -> None:
        """Take the next value."""
        self._weight = min(self._weight + 1, self._MEMORY)
        self.value += (value - self.value) / self._weight


_ROWS = 64  # latents in float64 that stay in the processor's cache
_FEWEST = 8  # segments compared at once
_NO_SUM = 1e-12  # squared norm of a sum of unit latents that cancel out
ROUNDING = 1e-12  # squared distance of two means, float64, of equal latents


def step_segment(latent: np.ndarray, time: float, index: int) -> Segment:
    """A single step (E,), number `index` of its stream, as a segment."""
    return Segment(latent, time=time, start=time, end=time, first=index, last=index)


def mean_segment(latents: np.ndarray, times: np.ndarray, first: int, last: int, agreement: float = 0.0) -> Segment:
    """Steps of a stream, latents (T, E) at times (T,), as a segment: as `OpenSegment` gives it."""
    start, end = float(times[first]), float(times[last])
    rows = latents[first : last + 1].astype(np.float64)
    total, weight = rows[0] if first == last else np.add.reduce(rows), float(len(rows))
    if agreement and len(rows) > 1:
        weights = _agreeing(rows, total, agreement)
        total, weight = weights @ rows, float(weights.sum())
    return Segment(unit_mean(total, weight, latents[last]), (start + end) / 2, start, end, first, last)


def _agreeing(rows: np.ndarray, total: np.ndarray, agreement: float) -> np.ndarray:
    """The weights (n,) of `OpenSegment` of steps (n, E) float64 with this sum (E,)."""
    older = len(rows) - OpenSegment.kept
    cosines = rows @ total / _norm(float(total.dot(total)))
    if older > 0:
        totals = rows[OpenSegment.kept :].copy()  # when each of the older ones left
        totals[0] += np.add.reduce(rows[: OpenSegment.kept])
        for before, row in pairwise(totals):
            row += before
        squares = np.vecdot(totals, totals)
        cosines[:older] = np.vecdot(rows[:older], totals) / np.where(squares > _NO_SUM, np.sqrt(squares), 1.0)
    weights: np.ndarray = np.exp(agreement * (cosines - 1))
    return weights


def _rows(columns: Sequence[np.ndarray]) -> Iterator[Numbers]:
    return zip(*(column.tolist() for column in columns), strict=True)


def unit_mean(total: np.ndarray, weight: float, last: np.ndarray) -> np.ndarray:
    """(E,) float32, the direction of the mean of unit latents, given their sum (E,) by weights and the sum of these.

    The mean of latents that cancel out has no direction: the `last` of them (E,) stands in.
    """
    norm = math.sqrt(total.dot(total))
    return (total / norm if norm > 1e-6 * weight else last).astype(np.float32)


def _norm(square: float) -> float:
    """The norm of a sum of unit latents of this squared norm; 1 where they cancel out."""
    return math.sqrt(square) if square > _NO_SUM else 1.0
