"""A causal gate: decodes a segment once, when the latents have moved on to the next."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from jepa.errors import check_int, check_nonnegative, check_positive
from jepa.selective.policies.base import ROUNDING, CausalPolicy, OpenSegment, RunningMean
from jepa.selective.policies.offline import StreamMemory
from jepa.selective.types import Segment


class Gate(CausalPolicy):
    """Cuts the stream where the newest steps no longer fit the open segment.

    The open segment is known by the mean μ of its n steps; the newest m = `pending` steps wait, with mean
    μ'. Joining them would raise the within-segment sum of squares by Ward's merge cost. The gate cuts
    between the two when that is large for the noise,

        n·m / (n + m) · ||μ − μ'||²  >  threshold · (noise + noise_floor),

    and the oldest pending step is nearer to the mean of the other pending steps than to μ. Without a cut
    that step joins the open segment.

    *The threshold* is the knob: the higher, the fewer segments. While nothing changes the cost is about the
    noise (up to twice that for steps correlated in time); at a change the squared distance of the two
    meanings comes on top, which does not depend on the noise. A threshold on the noise alone is therefore
    too low where latents are clean and too high where they are noisy; the constant added to it balances the
    two. Simulated streams come out at one segment per event between 0.8 and 2.3: choose it on streams like
    those to be decoded.

    *The noise* is the squared distance of single steps from their segment: for a step that joins n others,
    n / (n + 1) · ||z − μ||², whose expectation is the variance of a step. It is averaged over the stream,
    exponentially over 64 steps, and starts as `noise_floor` with the weight of 4 steps.

    *The transition.* A step whose window straddles a boundary is a blend of both sides, and the pair of an
    old step and a new one is as well. The second condition lets such a pair wait one step longer, until the
    cut falls on the nearer side of the blend. Each step belongs to exactly one segment, and none is shorter
    than m steps (unless the stream is).

    When a segment closes its renormalised mean is emitted, for the midpoint of its times; `finish` closes
    the last one. With `agreement` κ it is a mean with the weights exp(κ · (cos − 1)), cos between a step and the
    plain mean: the steps at the edges, which blend two meanings, then count for less.

    `run` has the emissions of `step` to the digit. What it compares does not depend on the threshold and is kept (256
    MiB in all, the least recently used go first), so that a sweep over thresholds computes it once.

    Args:
        threshold: dimensionless, >= 0.
        pending: m, the steps that must agree on a change. With 1 a single outlier starts a segment; with m
            no event shorter than m steps is found.
        noise_floor: added to the noise; squared distance, where unrelated unit latents are 2 apart. Smaller
            if all latents of a model are close together.
        agreement: κ, >= 0; 0: the plain mean.

    Raises:
        InputError: `threshold` or `agreement` is not finite and >= 0, `pending` is not a whole number >= 1, or
            `noise_floor` is not finite and > 0.
    """

    name = "gate"

    def __init__(
        self, threshold: float, *, pending: int = 2, noise_floor: float = 0.15, agreement: float = 0.0
    ) -> None:
        self.threshold = check_nonnegative("threshold", threshold)
        self.pending = check_int("pending", pending, 1)
        self.noise_floor = check_positive("noise_floor", noise_floor)
        self.agreement = check_nonnegative("agreement", agreement)
        self.latency = f"{pending} step{'s' * (pending > 1)} after the segment's last step"
        self.state = f"{pending + 2} latents: the open segment's sum and last step, {pending} pending"
        if agreement:
            self.state = f"{pending + 18} latents: the open segment's sums and newest 16 steps, {pending} pending"
        self.start()

    def start(self) -> None:
        self._noise = RunningMean(self.noise_floor)
        self._waiting: deque[tuple[np.ndarray, float]] = deque()
        self._open = OpenSegment(self.agreement)

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        self._waiting.append((latent.astype(np.float64), time))
        if len(self._waiting) < self.pending:
            return []
        if self._open.count:
            square = self._open.distance(self._waiting[0][0], 1)
            if not self._changed(square):
                self._join(square)
                return []
        segments = self._open.close()
        self._join_all()
        return segments

    def close(self) -> list[Segment]:
        self._join_all()
        return self._open.close()

    def run(self, latents: np.ndarray, times: np.ndarray) -> list[tuple[Segment, int]]:
        self.start()
        steps, m, noise = len(times), self.pending, RunningMean(self.noise_floor)
        if not steps:
            return []
        content, shape = _memory.key(latents)
        key = (content, (*shape, m))
        costs = _memory.take(key) or _Costs(latents, m)
        closed = []
        first = 0  # of the open segment
        count = steps  # of its steps
        opened = 0
        while opened + m <= steps:  # the pending steps become the open segment
            first, count = opened, m
            joins, mergers = costs.rows(latents, first, m)
            for square in joins[: m - 1]:
                noise.add(square)
            opened = steps
            while first + count + m <= steps:
                if count > len(mergers):
                    joins, mergers = costs.rows(latents, first, count)
                if mergers[count - 1] > self.threshold * (noise.value + self.noise_floor) + ROUNDING:
                    opened = first + count
                    closed.append((self._segment(latents, times, first, opened), opened + m - 1))
                    break
                noise.add(joins[count - 1])
                count += 1
        _memory.put(key, costs)
        return [*closed, (self._segment(latents, times, first, steps), steps - 1)]

    def _segment(self, latents: np.ndarray, times: np.ndarray, first: int, end: int) -> Segment:
        """The steps from `first` to before `end`."""
        opened = OpenSegment(self.agreement)
        opened.first = first
        opened.fill(latents[first:end].astype(np.float64), float(times[first]), float(times[end - 1]))
        return opened.close()[0]

    def _changed(self, square: float) -> bool:
        """Whether the pending steps do not fit the open segment.

        `square` is the squared distance of the oldest of them to its mean.
        """
        n, m = self._open.count, self.pending
        oldest = total = self._waiting[0][0]
        for i in range(1, m):
            total = total + self._waiting[i][0]
        gap = square if m == 1 else self._open.distance(total, m)
        if n * m / (n + m) * gap <= self.threshold * (self._noise.value + self.noise_floor) + ROUNDING:
            return False
        if m == 1:
            return True
        to_others = oldest - (total - oldest) / (m - 1)
        return float(to_others @ to_others) < square

    def _join(self, square: float) -> None:
        """Move the oldest pending step, this squared distance from the open segment's mean, into the segment."""
        n = self._open.count
        self._noise.add(n / (n + 1) * square)
        self._open.add(*self._waiting.popleft())

    def _join_all(self) -> None:
        """Move all pending steps into the open segment, or a new one."""
        while self._waiting:
            if self._open.count:
                self._join(self._open.distance(self._waiting[0][0], 1))
            else:
                self._open.add(*self._waiting.popleft())


class _Costs:
    """What a gate with m `pending` steps compares in a recorded stream, for each first step of an open segment.

    Rows are computed as they are asked for, in blocks that double.

    Args:
        latents: (T, E) unit float32.
        pending: m.
    """

    _BLOCK = 8

    def __init__(self, latents: np.ndarray, pending: int) -> None:
        self.pending = pending
        self._rows: dict[int, tuple[list[float], list[float]]] = {}
        self._entries = 0
        steps = latents.astype(np.float64)
        self._squares = np.vecdot(steps, steps)
        totals = self._totals(steps)
        self._total_squares = np.vecdot(totals, totals)
        oldest = steps[: len(totals)]
        self._to_others = np.zeros(len(totals))
        if pending > 1:
            to_others = oldest - (totals - oldest) / (pending - 1)
            self._to_others = np.vecdot(to_others, to_others)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        arrays = self._squares.nbytes + self._total_squares.nbytes + self._to_others.nbytes
        return arrays + _FLOAT_BYTES * self._entries

    def rows(self, latents: np.ndarray, first: int, count: int) -> tuple[list[float], list[float]]:
        """Of an open segment that begins at `first`, for its length n from 1 to at least `count` (where steps follow).

        Returns:
            What the noise is told when the next step joins; and the cost of merging the pending steps with it, −inf
            where the oldest of them is not nearer to the others.
        """
        joins, mergers = self._rows.setdefault(first, ([], []))
        while len(mergers) < count and first + len(mergers) + 1 < len(latents):
            self._extend(latents, first, joins, mergers)
        return joins, mergers

    def _extend(self, latents: np.ndarray, first: int, joins: list[float], mergers: list[float]) -> None:
        m, done = self.pending, len(mergers)
        end = min(2 * done + self._BLOCK, len(latents) - first - 1)  # n of the last row
        steps = latents[first : first + end + m].astype(np.float64)
        sums = np.add.accumulate(steps[:end])[done:]
        n = np.arange(done + 1, end + 1, dtype=np.float64)
        here = np.vecdot(sums, sums) / n**2
        oldest = steps[done + 1 : end + 1]
        there = self._squares[first + done + 1 : first + end + 1]
        square = here + there - 2 * np.vecdot(oldest, sums) / n
        merger = np.full(len(n), -math.inf)
        totals = self._totals(steps[done + 1 :])
        k = len(totals)  # of fewer than m steps none is pending
        if k:
            there = self._total_squares[first + done + 1 : first + done + 1 + k] / m**2
            gap = here[:k] + there - 2 * np.vecdot(totals, sums[:k]) / (n[:k] * m)
            nearer = (self._to_others[first + done + 1 : first + done + 1 + k] < square[:k]) | (m == 1)
            merger[:k] = np.where(nearer, n[:k] * m / (n[:k] + m) * gap, -math.inf)
        joins += (n / (n + 1) * square).tolist()
        mergers += merger.tolist()
        self._entries += 2 * len(n)

    def _totals(self, steps: np.ndarray) -> np.ndarray:
        """(N − m + 1, E) sums of m neighbours of `steps` (N, E), in their order."""
        count = max(0, len(steps) - self.pending + 1)
        totals = steps[:count]
        for i in range(1, self.pending):
            totals = totals + steps[i : i + count]
        return totals


_FLOAT_BYTES = 32  # a float in a list: itself, and the pointer to it
_memory: StreamMemory[_Costs] = StreamMemory(256 * 2**20)
