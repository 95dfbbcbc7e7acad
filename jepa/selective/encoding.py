"""Selective encoding: a cheap change detector in front of the X-Encoder, and the steps that it lets through.

Encoder and predictor cost the same at every step, however little of it is decoded. Here few steps are computed while
nothing seems to change, several in a row after a change. F frames, S their side in pixels, T steps.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from jepa.errors import check_int, check_nonnegative

_BINS = 12  # hues
_CELLS = 12  # along each side, that a frame is averaged to
_GREY = 0.15  # chroma (0 to 1) below which a cell has no hue to speak of
_SPREAD_FLOOR = 0.05  # added to the spread: where nothing moves, its estimate is 0
_OPERATIONS_PER_CELL = 24  # of hue, chroma and the two bins that a cell falls between


class ColourChange:
    """How much the colours of the newest frames differ from those of the frames before; it never looks ahead.

    Each frame becomes a histogram of hues over 12 x 12 cells, weighted by how colourful a cell is and split linearly
    between neighbouring bins: motion alone leaves it as it is. The statistic compares the newest `after` frames with
    the `before` frames ahead of them, as a two-sample test does: the distance of their mean histograms over the spread,

        |mean_after - mean_before|_1  /  (|std_after|_1 + |std_before|_1 + 0.05),

    so that what flickers within both does not count. State: the histograms of `before` + `after` frames.

    Args:
        before: frames to compare with, >= 1.
        after: newest frames, >= 1; a change is seen once they lie behind it.

    >>> frames = np.zeros((2, 14, 16, 16, 3), np.uint8)
    >>> frames[0, ..., 0], frames[1, ..., 1] = 255, 255  # 14 red frames, then 14 green ones
    >>> (ColourChange().run(frames.reshape(4, 7, 16, 16, 3)) > 1).tolist()
    [False, False, True, False]
    """

    def __init__(self, before: int = 8, after: int = 6) -> None:
        self.before, self.after = check_int("before", before, 1), check_int("after", after, 1)
        self.start()

    def start(self) -> None:
        """Forgets the stream so far."""
        self._recent = np.zeros((0, _BINS))

    def run(self, slots: np.ndarray) -> np.ndarray:
        """Takes the next slots (N, F, S, S, 3) uint8; the statistics (N,) after each, 0 until enough frames came."""
        histograms = self.histograms(slots.reshape(-1, *slots.shape[2:])).reshape(*slots.shape[:2], _BINS)
        return np.array([self._statistic(slot) for slot in histograms])

    def _statistic(self, histograms: np.ndarray) -> float:
        self._recent = np.concatenate([self._recent, histograms])[-self.before - self.after :]
        if len(self._recent) < self.before + self.after:
            return 0.0
        old, new = self._recent[: self.before], self._recent[self.before :]
        distance = np.abs(new.mean(0) - old.mean(0)).sum()
        return float(distance / (new.std(0).sum() + old.std(0).sum() + _SPREAD_FLOOR))

    def histograms(self, frames: np.ndarray) -> np.ndarray:
        """Colour histograms (F, bins) float64 of frames (F, S, S, 3) uint8."""
        colours = _cell_means(frames).astype(np.float64)  # (F, 3, cells²)
        red, green, blue = colours[:, 0], colours[:, 1], colours[:, 2]
        largest = colours.max(1)
        chroma = largest - colours.min(1)
        safe = np.where(chroma > 0, chroma, 1.0)
        turn = np.select(
            [largest == red, largest == green],
            [(green - blue) / safe % 6, (blue - red) / safe + 2],
            (red - green) / safe + 4,
        )
        place = turn / 6 * _BINS
        lower = np.floor(place).astype(np.int64)
        upper_fraction = place - lower
        weight = np.clip(chroma - _GREY, 0, None) * (10 / _CELLS**2)
        count = len(frames)
        row = np.arange(count)[:, None] * _BINS
        total = np.zeros(count * _BINS)
        for shift, fraction in ((0, 1 - upper_fraction), (1, upper_fraction)):
            index = row + (lower + shift) % _BINS
            total += np.bincount(index.ravel(), (fraction * weight).ravel(), minlength=len(total))
        return total.reshape(count, _BINS)

    def flops(self, frames: int, size: int) -> int:
        """Arithmetic operations of a slot of `frames` frames of `size`² pixels, elementwise ones included."""
        statistic = 8 * _BINS * (self.before + self.after)
        return frames * (3 * size**2 + _OPERATIONS_PER_CELL * _CELLS**2) + statistic


def _cell_means(frames: np.ndarray) -> np.ndarray:
    """Mean colours (F, 3, cells²) float32, 0 to 1, of the cells of frames (F, S, S, 3) uint8.

    Cells overlap where S is no multiple of them. Pixels add up in the order of torch's `adaptive_avg_pool2d`.
    """
    count, size = frames.shape[:2]
    index, pixels = _cell_pixels(size)
    padded = np.zeros((size + 1, size + 1, count, 3), np.float32)  # a cell with fewer pixels has zeros at the end
    np.divide(frames.transpose(1, 2, 0, 3), np.float32(255), out=padded[:-1, :-1])
    cells = padded[index[:, None, :, None], index[None, :, None, :]]
    total = np.add.reduce(cells.reshape(-1, *cells.shape[2:]), axis=0) / pixels[:, None, None, None]
    means: np.ndarray = (total / pixels[:, None, None]).transpose(2, 3, 0, 1).reshape(count, 3, _CELLS**2)
    return means


@lru_cache
def _cell_pixels(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Along a side of `size` pixels: the pixels of each cell, a column each, `size` for none; and how many they are."""
    first = np.arange(_CELLS) * size // _CELLS
    pixels = -(-(np.arange(_CELLS) + 1) * size // _CELLS) - first
    within = np.arange(pixels.max())[:, None]
    return np.where(within < pixels, first + within, size), pixels.astype(np.float32)


class StepSelection:
    """Which steps of a stream are computed: `burst` of them when a change is seen, and one every `hold` steps anyway.

    The first step is always computed. A policy sees the computed steps at their times, and nothing in place of others.

    Args:
        threshold: of the change detector's statistic, >= 0; None: no detector but a fixed rate, one step in `hold`.
        burst: steps computed in a row after a change, >= 1.
        hold: most steps from one that is computed to the next, >= 1.
        refractory: fewest steps from one change to the next, >= 1: the statistic stays high while the boundary passes
            through the frames that it compares.

    >>> changes = np.array([0, 0, 0, 0, 5, 5, 0, 0, 0])
    >>> StepSelection(1.0, burst=2, hold=4).select(changes).astype(int).tolist()
    [1, 0, 0, 0, 1, 1, 0, 0, 0]
    """

    def __init__(self, threshold: float | None, *, burst: int = 2, hold: int = 4, refractory: int = 3) -> None:
        self.threshold = None if threshold is None else check_nonnegative("threshold", threshold)
        self.burst, self.hold = check_int("burst", burst, 1), check_int("hold", hold, 1)
        self.refractory = check_int("refractory", refractory, 1)
        self.start()

    def start(self) -> None:
        """Forgets the stream so far."""
        self._since_change = self.refractory
        self._since_computed = self.hold
        self._left = 0

    def step(self, change: float) -> bool:
        """Whether the next step is computed, given the change statistic at its end."""
        seen = self.threshold is not None and change > self.threshold
        if seen and self._since_change >= self.refractory:
            self._since_change, self._left = 0, self.burst
        computed = self._left > 0 or self._since_computed >= self.hold
        self._left = max(0, self._left - 1)
        self._since_change += 1
        self._since_computed = 1 if computed else self._since_computed + 1
        return computed

    def select(self, changes: np.ndarray) -> np.ndarray:
        """(T,) bool: the steps of a recorded stream that are computed, given its statistics (T,)."""
        self.start()
        return np.array([self.step(float(change)) for change in changes], dtype=bool)


class SelectiveEncoding:
    """A change detector that looks at every slot of frames, and the steps that the X-Encoder of a live stream computes.

    >>> encoding = SelectiveEncoding(ColourChange(), StepSelection(1.3, hold=4))
    >>> encoding.look(np.zeros((6, 2, 16, 16, 3), np.uint8), hop=1, length=2)  # 6 slots of 2 frames
    [True, False, False, False, True]
    """

    def __init__(self, detector: ColourChange, steps: StepSelection) -> None:
        self.detector, self.steps = detector, steps
        self.start()

    def start(self) -> None:
        """Forgets the stream so far."""
        self.detector.start()
        self.steps.start()
        self.seen = 0  # slots looked at
        self._change = 0.0  # the largest statistic since the last step

    def look(self, slots: np.ndarray, hop: int, length: int) -> list[bool]:
        """Looks at the next slots (N, F, S, S, 3) uint8; for each step that they complete, whether it is computed.

        A step ends with every `hop`-th slot from slot `length - 1` on, `length` being the slots of a window.
        """
        due: list[bool] = []
        for change in self.detector.run(slots) if len(slots) else ():
            self._change = max(self._change, float(change))
            self.seen += 1
            if self.seen >= length and (self.seen - length) % hop == 0:
                due.append(self.steps.step(self._change))
                self._change = 0.0
        return due


class EveryStep(StepSelection):
    """Takes every step, and keeps what the change detector said of it."""

    def __init__(self) -> None:
        super().__init__(None, hold=1)

    def start(self) -> None:
        super().start()
        self.changes: list[float] = []

    def step(self, change: float) -> bool:
        self.changes.append(change)
        return super().step(change)


def slots_needed(selected: np.ndarray, hop: int, length: int) -> int:
    """Slots in the windows of the steps selected (T,) bool, each counted once; step i has those from `i * hop` on."""
    needed = np.zeros(hop * len(selected) + length, dtype=bool)
    for offset in range(length):
        needed[np.flatnonzero(selected) * hop + offset] = True
    return int(needed.sum())
