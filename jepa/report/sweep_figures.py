"""Figures of swept policies: quality against decodes, and operations by part. A policy has one colour in all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import Patch

from jepa.report import figures
from jepa.report import format as fmt
from jepa.report.blocks import Colours
from jepa.report.figures import Line, fill, frame, short, tooltip
from jepa.results import PARTS, Curve, Saving, Sweep, analysis

# Two uniform policies in greys, two Ward policies in oranges; other policies take the colours that are left.
_SERIES = {"uniform": 1, "uniform_pool": 0, "ward_midpoint": 2, "ward_mean": 3, "gate": 4}
_ABOVE = 16.0  # points from the curves to their title: the event rate is named between them
UNITS = {"flops": "FLOPs", "seconds": "Wall time"}


def series_of(sweeps: Mapping[str, Sweep]) -> dict[str, int]:
    """Highlighted policy -> the number of its colour, marker and dash."""
    shown = analysis.highlighted(sweeps)
    series = {policy: _SERIES[policy] for policy in shown if policy in _SERIES}
    free = [number for number in (5, 6, 7, 4, 3, 2, 1, 0) if number not in series.values()]  # greys last
    return series | dict(zip(sorted(set(shown) - set(series)), free, strict=False))


def colour_of(series: Mapping[str, int], policy: str, colours: Colours) -> str:
    """The colour of a policy; muted if it has none of its own."""
    return colours[f"series-{series[policy]}" if policy in series else "muted"]


# --- Quality against decodes.


def curves(sweeps: Mapping[str, Sweep], name: str, colours: Colours) -> Drawing:
    """CIDEr-D against decodes per second of every policy of one sweep."""
    figure = figures.sized(470, 370)
    draw_curves(figures.panel(figure, 26, figures.NAMES, 44, 46), sweeps, name, colours)
    return figure


def draw_curves(axes: Axes, sweeps: Mapping[str, Sweep], name: str, colours: Colours) -> None:
    """The policies with a colour in front and named at the right, the others thin and grey behind them."""
    sweep, series = sweeps[name], series_of(sweeps)
    savings, best = analysis.headline_savings(sweep), analysis.best_causal(sweep)
    level = savings[0].reference_quality
    banded = {savings[0].reference.policy} | ({best.policy} if best is not None else set())
    lines = [_line(curve, series.get(name), name in banded) for name, curve in sweep.curves.items()]
    found = [p.cider_d for curve in sweep.curves.values() for p in curve.test if p.decodes_per_second > 0]
    lowest = min([level, *(min(each.low, each.value) for each in found)])
    highest = max([level, *(max(each.high, each.value) for each in found)])
    spread = highest - lowest or 1.0
    floor = lowest - 0.13 * spread
    figures.log_axis(axes)
    axes.set_ylim(floor, highest + 0.05 * spread)
    for line in lines:
        figures.draw_line(axes, line, colours)
    frame(axes, colours, "y")
    axes.set_xlabel("decodes per second", color=colours["muted"])
    axes.axvline(sweep.events_per_second, color=colours["muted"], linewidth=0.9, linestyle=(0, (1, 2)))
    place: dict[str, Any] = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
    axes.annotate("event rate", (sweep.events_per_second, 1), (-2, 4), color=colours["muted"], **place)
    axes.axhline(level, color=colours["ink"], linewidth=1, linestyle=(0, (5, 3)))
    figures.title(axes, f"CIDEr-D; dashed: {analysis.reference_name(sweep)}", colours, 300, pad=_ABOVE)
    for saving in savings:
        if saving.policy in series:
            _mark(axes, sweep, saving, colour_of(series, saving.policy, colours), colours)
    if best is not None and best.reached and best.ratio is not None and best.ratio.value > 1:
        words = f"{fmt.factor(best.ratio.value)} fewer{': void' * (analysis.without_contrast(sweep) is not None)}"
        _draw_saving(axes, words, best, floor + 0.05 * spread, colours)
    figures.name_lines(axes, lines, colours)


def _line(curve: Curve, series: int | None, band: bool = False) -> Line:
    """The test curve of a policy, without the points that decode nothing: the axis is logarithmic."""
    points = sorted((p for p in curve.test if p.decodes_per_second > 0), key=lambda p: p.decodes_per_second)
    low, high = ([getattr(p.cider_d, end) for p in points] if band else None for end in ("low", "high"))
    x, y = [p.decodes_per_second for p in points], [p.cider_d.value for p in points]
    return Line(analysis.label(curve), x, y, series, low, high)


def _mark(axes: Axes, sweep: Sweep, saving: Saving, colour: str, colours: Colours) -> None:
    """A ring at the operating point of a saving, or a cross where it falls short."""
    if not saving.decodes_per_second or saving.quality is None or saving.value is None:
        return
    name = analysis.point_name(sweep, saving.policy, saving.value)
    style: dict[str, Any] = {"marker": "o", "markersize": 10, "markerfacecolor": "none"}
    if not saving.reached:
        style = {"marker": "X", "markersize": 8, "markerfacecolor": colours["surface"]}
    style |= {"markeredgecolor": colour, "markeredgewidth": 1.8, "linestyle": "none", "zorder": 5}
    tip = tooltip(f"{name}: CIDEr-D {fmt.quality(saving.quality)}")
    axes.plot([saving.decodes_per_second], [saving.quality], gid=tip, **style)


def _draw_saving(axes: Axes, words: str, best: Saving, y: float, colours: Colours) -> None:
    """An arrow along the bottom, with `words`, from the reference's decodes per second to the policy's."""
    start, x = best.reference_decodes_per_second, best.decodes_per_second or 0.0
    for at, top in ((start, best.reference_quality), (x, best.quality or 0.0)):
        axes.plot([at, at], [y, top], color=colours["ink"], linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    arrow = {"arrowstyle": "-|>", "color": colours["ink"], "shrinkA": 0, "shrinkB": 0, "linewidth": 1}
    axes.annotate("", (x, y), (start, y), arrowprops=arrow)
    box = {"facecolor": colours["surface"], "edgecolor": "none", "pad": 1}
    style: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "weight": "bold", "bbox": box}
    axes.annotate(words, ((x * start) ** 0.5, y), (0, 4), color=colours["ink"], **style)


# --- Operations by part.

# Of grey; decoder and cache have the policy's colour.
_SHADES = {"detector": 0.9, "encoder": 0.5, "predictor": 0.27, "decoder": 1.0, "cache": 0.45}
_OWN = ("decoder", "cache")


def flops_unit(sweep: Sweep) -> tuple[float, str]:
    """The unit in which the largest part, per second of stream, is a handy number."""
    rows = [row for row in sweep.operations if row.ledger.stream_seconds]
    each = (analysis.part_amount(row, part, "flops") / row.ledger.stream_seconds for row in rows for part in PARTS)
    scale, letter = fmt.prefix(max(each, default=0.0))
    return scale, f"{letter}FLOP"


def operations(sweeps: Mapping[str, Sweep], name: str, measure: str, colours: Colours) -> Drawing:
    """What each part takes per second of stream, one stacked bar an operating point.

    `measure` is "flops", as they were counted, or "seconds" of wall time, in which estimates are hatched.
    """
    sweep, series = sweeps[name], series_of(sweeps)
    scale, unit = flops_unit(sweep) if measure == "flops" else (1e-3, "millisecond")
    own = {row.policy: colour_of(series, row.policy, {**colours, "muted": colours["ink"]}) for row in sweep.operations}
    figure = figures.sized(470, 70 + 31 * len(sweep.operations))
    axes = figures.panel(figure, 160, 16, 42, 28)
    frame(axes, colours)
    longest, labels = 0.0, []
    for y, row in enumerate(sweep.operations):
        left, span, curve = 0.0, row.ledger.stream_seconds, sweep.curves[row.policy]
        for part, shade in _SHADES.items():
            length = analysis.part_amount(row, part, measure) / span / scale if span else 0.0
            estimated = measure == "seconds" and analysis.estimated_seconds(row, part) > 0
            filled = fill(own[row.policy] if part in _OWN else colours["muted"], shade, estimated)
            tip = tooltip(f"{part}: {length:.3g} {unit}s per second of stream")
            axes.barh(y, length, 0.56, left, gid=tip, **filled)
            left += length
        ratio = getattr(analysis.operations_ratio(sweep, row), measure)
        counted = measure == "seconds" or analysis.counted_flops(row.ledger)
        words = f"{left:.3g} · {fmt.factor(ratio)}" if counted else fmt.UNCOUNTED
        axes.annotate(words, (left, y), (5, 0), color=colours["ink"], **figures.BESIDE)
        longest = max(longest, left)
        labels.append(f"{short(analysis.label(curve), 150)}\n{short(analysis.operating_point(curve, row.value), 150)}")
    figures.label_bars(axes, labels, colours)
    axes.set(xlim=(0, longest * 1.45 or 1))
    axes.set_xlabel(f"{unit}s per second of stream", color=colours["muted"])
    first = next(iter(own.values()), colours["ink"])  # decoder and cache stand in the colour of the first policy
    keys = [
        Patch(color=first if part in _OWN else colours["muted"], alpha=shade, linewidth=0, label=part)
        for part, shade in _SHADES.items()
    ]
    style = {"handlelength": 1.4, "handleheight": 1, "columnspacing": 1.1, "labelcolor": colours["muted"]}
    figure.legend(handles=keys, loc="upper left", ncols=len(keys), frameon=False, **style)
    return figure
