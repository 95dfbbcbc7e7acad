"""A waterfall: what each optimisation takes off a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from jepa.report.blocks import Colours
from jepa.report.figures import BESIDE, fill, frame, label_bars, tooltip
from jepa.report.format import clean


@dataclass(frozen=True)
class Fall:
    """A bar of a waterfall, from `start` to `end`, fractions of the baseline > 0; without a `start` it is a total.

    `low` and `high` are the ends of a total's range, where it has one. A bar that is not `measured` is hatched, a
    `faint` one is only outlined.
    """

    label: str
    words: str
    end: float
    start: float | None = None
    low: float | None = None
    high: float | None = None
    measured: bool = True
    faint: bool = False


def draw_waterfall(axes: Axes, falls: Sequence[Fall], xlabel: str, room: float, colours: Colours) -> None:
    """What each optimisation takes off a baseline of 1, on a logarithmic axis: equal lengths are equal ratios.

    `room` is the fraction of the width that is kept for the words at the right.
    """
    floor = min(0.4, *(0.8 * (fall.low or fall.end) for fall in falls))
    highest = max(fall.high or fall.end for fall in falls)
    frame(axes, colours)
    for y, fall in enumerate(falls):
        start = floor if fall.start is None else fall.start
        colour = colours["muted" if fall.start is None else "series-4" if fall.end <= fall.start else "series-3"]
        filled = fill(colour, 1.0, not fall.measured)
        if fall.faint:
            filled = {"facecolor": "none", "edgecolor": colour, "linestyle": ":", "linewidth": 1.2}
        tip = tooltip(f"{fall.label}: {fall.words}")
        axes.barh(y, abs(fall.end - start), 0.6, min(start, fall.end), gid=tip, **filled)
        if fall.low is not None and fall.high is not None:
            axes.plot([fall.low, fall.high], [y, y], color=colours["ink"], linewidth=2)
        place = (max(start, fall.end, fall.high or 0), y)
        axes.annotate(clean(fall.words), place, (5, 0), color=colours["muted" if fall.faint else "ink"], **BESIDE)
        if y + 1 < len(falls) and not fall.faint:  # the rest, carried to the next bar
            axes.plot([fall.end] * 2, [y + 0.3, y + 0.7], color=colours["muted"], linewidth=0.8)
    label_bars(axes, [fall.label for fall in falls], colours)
    axes.set_xscale("log")
    axes.set_xlim(floor, highest * (highest / floor) ** (room / (1 - room)))
    axes.grid(axis="x", color=colours["grid"], linewidth=0.8)
    ticks = [tick for tick in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if tick >= floor]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(clean(xlabel), color=colours["muted"], parse_math=False)
