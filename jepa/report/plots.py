"""Figures of a results document, as matplotlib figures and as SVG for the page.

Each figure function takes the colours to draw with: :data:`LIGHT` or :data:`DARK` for a picture, or
:data:`THEMED`, stand-in colours that :func:`inline_svg` turns into CSS variables, so that one SVG follows
the light or dark theme of the page it stands in. A policy has the same colour in every figure; those that the
palette has no colour for are thin and grey.
"""

from __future__ import annotations

import base64
import functools
import io
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import matplotlib.image
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patches import Patch, Rectangle
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image

from jepa.errors import InputError
from jepa.report.schema import Results
from jepa.report.tables import (
    ESTIMATED_PARTS,
    PARTS,
    UNCOUNTED,
    best_causal,
    cache_flops,
    clean,
    factor,
    flops_unit,
    headline_savings,
    highlighted,
    label,
    lever_chain,
    operating_point,
    operations_ratio,
    point,
    quality,
    reference_name,
    strip_decodes,
    total_flops,
    without_contrast,
)

# Role -> (light, dark). The series are Okabe and Ito's palette, safe for colour-blind readers, with the two
# uniform policies in greys and the two Ward policies in oranges; other policies take those that are left.
_PALETTE = {
    "surface": ("#fdfcfa", "#15171b"),
    "ink": ("#1e2024", "#e8e6e1"),
    "muted": ("#5d626b", "#a0a6b0"),
    "grid": ("#e3e1dc", "#2d3138"),
    "series-0": ("#8b919b", "#8d95a3"),
    "series-1": ("#3f444d", "#d3d7de"),
    "series-2": ("#c98400", "#f0b542"),
    "series-3": ("#b8480a", "#ec7d45"),
    "series-4": ("#0068a9", "#5bb5f2"),
    "series-5": ("#00855f", "#3fc79c"),
    "series-6": ("#b65a93", "#e29ac4"),
    "series-7": ("#6a57c2", "#a99cf5"),
}
_SERIES = {"uniform": 1, "uniform_pool": 0, "ward_midpoint": 2, "ward_mean": 3, "gate": 4}
MARKERS = ("s", "o", "v", "^", "D", "P", "X", "*")
DASHES = ((0, (4, 1.5)), "-", (0, (4, 1.5)), "-", "-", "-", (0, (4, 1.5)), (0, (1, 1)))

Colours = Mapping[str, str]

LIGHT: Colours = {role: pair[0] for role, pair in _PALETTE.items()}
DARK: Colours = {role: pair[1] for role, pair in _PALETTE.items()}
THEMED: Colours = {role: f"#0102{index:02x}" for index, role in enumerate(_PALETTE)}

FONT, _SMALL = 8.5, 7.5  # points; the figures are laid out for a page that shows one point as 4/3 CSS pixels
INCH = 96.0  # CSS pixels
_RC: Any = {"svg.fonttype": "none", "svg.hashsalt": "jepa", "font.family": "DejaVu Sans", "font.size": FONT}


@contextmanager
def drawing() -> Iterator[None]:
    """Our fonts; a character that the font of the PNG lacks is an empty box there, not a warning."""
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def series_of(results: Mapping[str, Any]) -> dict[str, int]:
    """Highlighted policy -> number of its colour, marker and dash, the same in all figures of a document."""
    shown = highlighted(results)
    series = {policy: _SERIES[policy] for policy in shown if policy in _SERIES}
    free = [number for number in (5, 6, 7, 4, 3, 2, 1, 0) if number not in series.values()]  # greys last
    return series | dict(zip(sorted(set(shown) - set(series)), free, strict=False))


def _colour(series: Mapping[str, int], policy: str, colours: Colours) -> str:
    return colours[f"series-{series[policy]}" if policy in series else "muted"]


def css_variables(colours: Colours) -> str:
    """The colours as CSS custom properties, for the page that holds the figures."""
    return " ".join(f"--{role}: {colour};" for role, colour in colours.items())


# --- Quality against operations.

NAMES = 168  # CSS pixels to the right of the curves, for the names of the policies
_LINE = 12.5  # CSS pixels from one line of names to the next
_ABOVE = 16.0  # points from the curves to their title: the event rate is named between them


def curves(results: Results, name: str, colours: Colours = LIGHT) -> Figure:
    """CIDEr-D against decodes per second of every policy on one setting's test streams."""
    width, height = 470, 370
    figure = Figure(figsize=(width / INCH, height / INCH))
    left, bottom, top = 26, 44, 46
    inside = (width - left - NAMES, height - bottom - top)
    axes = figure.add_axes((left / width, bottom / height, inside[0] / width, inside[1] / height))
    draw_curves(axes, results, name, colours)
    return figure


def draw_curves(axes: Axes, results: Mapping[str, Any], name: str, colours: Colours) -> None:
    """The policies with a colour in front and named at the right, the others thin and grey behind them."""
    setting, series = results["settings"][name], series_of(results)
    savings = headline_savings(setting)
    rate, level = savings[0]["reference_decodes_per_second"], savings[0]["reference_quality"]
    lines = {
        policy: sorted(
            (point for point in curve["test"] if point["decodes_per_second"] > 0),  # the axis is logarithmic
            key=lambda point: point["decodes_per_second"],
        )
        for policy, curve in setting["curves"].items()
    }
    values = [point["cider_d"] for points in lines.values() for point in points]
    lowest = min([level, *(min(value["low"], value["value"]) for value in values)])
    highest = max([level, *(max(value["high"], value["value"]) for value in values)])
    spread = highest - lowest or 1.0
    floor = lowest - 0.13 * spread
    axes.set(xscale="log", ylim=(floor, highest + 0.05 * spread))
    best = best_causal(setting)
    claimed = {savings[0]["reference"]["policy"]} | ({best["policy"]} if best is not None else set())
    for policy, points in lines.items():
        _draw_curve(axes, label(setting["curves"][policy]), points, series.get(policy), policy in claimed, colours)
    _frame_curves(axes, setting, colours)
    axes.axhline(level, color=colours["ink"], linewidth=1, linestyle=(0, (5, 3)))
    title = f"CIDEr-D; dashed: {reference_name(setting, savings[0])}"
    axes.set_title(short(title, 300), loc="left", pad=_ABOVE, fontsize=FONT, color=colours["muted"], parse_math=False)
    for saving in savings:
        if saving["decodes_per_second"] and saving["policy"] in series:
            reached = saving["reached"]
            axes.plot(
                [saving["decodes_per_second"]],
                [saving["quality"]],
                linestyle="none",
                marker="o" if reached else "X",
                markersize=10 if reached else 8,
                markerfacecolor="none" if reached else colours["surface"],
                markeredgecolor=_colour(series, saving["policy"], colours),
                markeredgewidth=1.8,
                zorder=5,
                gid=tooltip(f"{_policy_name(setting, saving)}: CIDEr-D {quality(saving['quality'])}"),
            )
    if best is not None and best["reached"] and best["saving"] is not None and best["saving"]["value"] > 1:
        words = f"{factor(best['saving']['value'])} fewer{': void' * (without_contrast(setting) is not None)}"
        _draw_saving(axes, words, best, (rate, level), floor + 0.05 * spread, colours)
    ends = {
        p: (points[-1]["decodes_per_second"], points[-1]["cider_d"]["value"]) for p, points in lines.items() if points
    }
    _name_curves(axes, setting, ends, series, colours)


def _draw_curve(
    axes: Axes, name: str, points: list[dict[str, Any]], series: int | None, band: bool, colours: Colours
) -> None:
    """One policy: with colour, marker and dash of its series, or thin and grey."""
    x = [point["decodes_per_second"] for point in points]
    value, low, high = ([point["cider_d"][key] for point in points] for key in ("value", "low", "high"))
    if series is None:
        marker = "." if len(points) == 1 else ""
        colour = colours["muted"]
        axes.plot(x, value, color=colour, linewidth=0.8, alpha=0.5, marker=marker, zorder=1.5, gid=tooltip(name))
        return
    colour = colours[f"series-{series}"]
    if band:
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(x, value, gid=tooltip(name), **style(series, colours))


def style(series: int, colours: Colours) -> dict[str, Any]:
    """The line of a policy with a colour of its own."""
    return {
        "color": colours[f"series-{series}"],
        "linewidth": 1.6,
        "linestyle": DASHES[series],
        "marker": MARKERS[series],
        "markersize": 3.5,
    }


def _frame_curves(axes: Axes, setting: dict[str, Any], colours: Colours) -> None:
    """The axes, their names, and the rate of the events."""
    frame(axes, colours)
    axes.grid(axis="y", color=colours["grid"], linewidth=0.8)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.set_xlabel("decodes per second", color=colours["muted"])
    axes.axvline(setting["events_per_second"], color=colours["muted"], linewidth=0.9, linestyle=(0, (1, 2)))
    axes.annotate(
        "event rate",
        (setting["events_per_second"], 1),
        (-2, 4),
        xycoords=axes.get_xaxis_transform(),
        textcoords="offset points",
        color=colours["muted"],
    )


def _name_curves(
    axes: Axes,
    setting: dict[str, Any],
    ends: Mapping[str, tuple[float, float]],
    series: Mapping[str, int],
    colours: Colours,
) -> None:
    """The names of the coloured policies at the right, in the order of their ends, each led to its line."""
    named = sorted((policy for policy in ends if policy in series), key=lambda policy: ends[policy][1])
    room = (NAMES - 44) * _SMALL / FONT  # `fit` measures in the smaller size
    texts = [fit(label(setting["curves"][policy]), room, lines=2) for policy in named]
    width, height = (side / axes.figure.dpi * INCH for side in (axes.bbox.width, axes.bbox.height))
    beside = [1 + pixels / width for pixels in (10, 12, 22, 32, 39)]  # the end of a leader, the swatch, the name
    bottom, top = axes.get_ylim()
    unit = (top - bottom) / height  # of the y axis in a CSS pixel
    others = len(ends) - len(named)
    first = 1.5 * _LINE if others else 0.0
    if others:
        _name(axes, [f"{others} other{'s' * (others > 1)}"], beside[4], bottom + _LINE / 2 * unit, colours["muted"])
    sizes = [_LINE * len(lines) + 2 for lines in texts]
    middles = _apart([(ends[policy][1] - bottom) / unit for policy in named], sizes, first, height)
    across = axes.get_yaxis_transform()
    for policy, lines, middle in zip(named, texts, middles, strict=True):
        y, number = bottom + middle * unit, series[policy]
        colour = colours[f"series-{number}"]
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.7, "shrinkA": 3, "shrinkB": 0}
        axes.annotate(
            "",
            (beside[0], y),
            ends[policy],
            xycoords=across,
            textcoords="data",
            arrowprops=arrow,
            annotation_clip=False,
        )
        style: dict[str, Any] = {"color": colour, "transform": across, "clip_on": False}
        axes.plot(beside[1:4:2], [y, y], linewidth=1.6, linestyle=DASHES[number], **style)
        axes.plot(beside[2:3], [y], marker=MARKERS[number], markersize=4, **style)
        _name(axes, lines, beside[4], y, colours["ink"])


def _name(axes: Axes, lines: list[str], x: float, y: float, colour: str) -> None:
    """The lines of a name, from `x` as a fraction of the axes' width on, around the height `y` of the y axis."""
    for index, line in enumerate(lines):
        axes.annotate(
            line,
            (x, y),
            (0, ((len(lines) - 1) / 2 - index) * _LINE * 72 / INCH),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="center_baseline",
            color=colour,
            parse_math=False,
            annotation_clip=False,
        )


def _apart(wanted: list[float], sizes: list[float], first: float, last: float) -> list[float]:
    """Middles, near the ascending ones wanted, of boxes apart from each other: from `first` to `last`, if they fit."""
    middles: list[float] = []
    low = first
    for middle, size in zip(wanted, sizes, strict=True):
        middles.append(max(middle, low + size / 2))
        low = middles[-1] + size / 2
    high = max(last, first + sum(sizes))
    for index in reversed(range(len(middles))):
        middles[index] = min(middles[index], high - sizes[index] / 2)
        high = middles[index] - sizes[index] / 2
    return middles


def _draw_saving(
    axes: Axes, words: str, best: dict[str, Any], reference: tuple[float, float], y: float, colours: Colours
) -> None:
    """An arrow along the bottom, with `words`, from the reference's decodes per second to the policy's."""
    x = best["decodes_per_second"]
    for at, top in (reference, (x, best["quality"])):
        axes.plot([at, at], [y, top], color=colours["ink"], linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    arrow = {"arrowstyle": "-|>", "color": colours["ink"], "shrinkA": 0, "shrinkB": 0, "linewidth": 1}
    axes.annotate("", (x, y), (reference[0], y), arrowprops=arrow)
    axes.annotate(
        words,
        ((x * reference[0]) ** 0.5, y),
        (0, 4),
        textcoords="offset points",
        ha="center",
        color=colours["ink"],
        weight="bold",
        bbox={"facecolor": colours["surface"], "edgecolor": "none", "pad": 1},
    )


# --- One stream.

_LEFT, _RIGHT = 96, 22  # CSS pixels beside the time axis
_FRAMES, _TALL, _TICK = 46, 31, 9  # heights in CSS pixels: pictures, bars with text, ticks of decodes
_GAP, _AXIS = 7, 42  # below each of them; below each line of the strip, for the axis and its numbers


def strip(results: Results, name: str, colours: Colours = LIGHT, width: float = 1060) -> Figure:
    """One stream on a time axis that wraps like a score: frames, events, and the decodes of each policy.

    A bar without a filling is a text that took no decoder call. `width` is in CSS pixels. Text is abbreviated to its
    bar; the SVG tells it in full when pointed at.
    """
    figure = Figure(figsize=(width / INCH, strip_height(results, name) / INCH))
    _draw_strip(figure, results, name, colours, width)
    return figure


def _systems(stream: dict[str, Any]) -> int:
    """The number of lines a stream wraps into: about one for each minute or 14 events, five at most."""
    return min(max(round(stream["duration"] / 60), round(len(stream["events"]) / 14), 1), 5)


def _lanes(setting: dict[str, Any]) -> list[tuple[str, float]]:
    """(lane, height in CSS pixels) from top to bottom; a policy that decodes single steps has only ticks."""
    stream = setting["strip"]
    lanes = [("frames", float(_FRAMES))] if stream["thumbnails"] else []
    lanes.append(("events", float(_TALL * (max(_rows(stream["events"]), default=0) + 1))))
    for policy, decodes in strip_decodes(setting).items():
        tall = any(decode["end"] > decode["start"] for decode in decodes)
        lanes.append((policy, float(_TALL * tall + _TICK)))
    return lanes


def _rows(events: Iterable[dict[str, Any]]) -> list[int]:
    """The row of each event, so that events that overlap do not share one: the first free row by start."""
    ends: list[float] = []
    rows = {}
    for index, event in sorted(enumerate(events), key=lambda pair: pair[1]["start"]):
        row = next((r for r, end in enumerate(ends) if end <= event["start"]), len(ends))
        ends[row : row + 1] = [event["end"]]
        rows[index] = row
    return [rows[index] for index in sorted(rows)]


def strip_height(results: Results, name: str) -> float:
    """CSS pixels."""
    setting = results["settings"][name]
    return _systems(setting["strip"]) * _system_height(setting)


def _system_height(setting: dict[str, Any]) -> float:
    return sum(height + _GAP for _, height in _lanes(setting)) + _AXIS


def _draw_strip(
    figure: Figure | SubFigure,
    results: Results,
    name: str,
    colours: Colours,
    width: float,
    margin: float = 0,
) -> None:
    """`margin`: CSS pixels to the left of everything."""
    setting = results["settings"][name]
    stream = setting["strip"]
    systems, height = _systems(stream), _system_height(setting)
    total, span = systems * height, stream["duration"] / systems
    images = [(item["time"], item["png"]) for item in stream["thumbnails"]]
    left = margin + _LEFT
    across, down = width - left - _RIGHT, height - _AXIS
    for system in range(systems):
        bottom = total - (system + 1) * height + 0.75 * _AXIS
        axes = figure.add_axes((left / width, bottom / total, across / width, down / total))
        axes.set(xlim=(system * span, (system + 1) * span), ylim=(down, 0))
        _draw_system(axes, results, name, colours, across / span, images)


def _draw_system(
    axes: Axes,
    results: Results,
    name: str,
    colours: Colours,
    pixels_per_second: float,
    images: list[tuple[float, str]],
) -> None:
    setting, series = results["settings"][name], series_of(results)
    stream = setting["strip"]
    frame(axes, colours)
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g} s"))
    bottom = axes.get_ylim()[0]

    def bar(
        top: float, height: float, item: dict[str, Any], colour: str, alpha: float, tip: str, hollow: bool = False
    ) -> None:
        """A tinted or hollow box over [start, end] with as much of the text as fits in it."""
        left, right = axes.get_xlim()
        start, end = max(item["start"], left), min(item["end"], right)
        if start >= end:
            return
        length = max(end - start - 1.5 / pixels_per_second, 0.5 / pixels_per_second)
        style: dict[str, Any] = {"facecolor": colour, "alpha": alpha, "linewidth": 0}
        if hollow:
            style = {"facecolor": "none", "edgecolor": colour, "linewidth": 0.9, "linestyle": (0, (2, 1.5))}
        box = Rectangle((start, top), length, height, **style)
        box.set_gid(tooltip(tip))
        axes.add_patch(box)
        lines = fit(clean(item["text"]), (end - start) * pixels_per_second - 6, lines=2)
        for index, line in enumerate(lines):
            y = top + height / 2 + (index - (len(lines) - 1) / 2) * 12.5
            axes.text(
                start + 3.5 / pixels_per_second,
                y,
                line,
                va="center_baseline",
                fontsize=_SMALL,
                color=colours["ink"],
                gid=tooltip(tip),
                parse_math=False,
                clip_on=True,
            )

    top = 0.0
    for lane, height in _lanes(setting):
        if lane == "frames":
            title = "frames"
            _draw_frames(axes, images, top, pixels_per_second)
        elif lane == "events":
            title = "events"
            for event, row in zip(stream["events"], _rows(stream["events"]), strict=True):
                tip = f"{event['start']:.1f}–{event['end']:.1f} s: {clean(event['text'])}"
                bar(top + row * _TALL, _TALL - 2, event, colours["muted"], 0.22, tip)
                for edge in (event["start"], event["end"]):
                    if axes.get_xlim()[0] <= edge <= axes.get_xlim()[1]:
                        axes.plot(
                            [edge, edge],
                            [top + height, bottom],
                            color=colours["grid"],
                            linewidth=0.8,
                            zorder=0,
                        )
        else:
            title = label(setting["curves"][lane])
            colour = _colour(series, lane, colours)
            for decode in stream["decodes"][lane]:
                tip = (
                    f"{title} at {decode['time']:.1f} s, known at {decode['emitted_at']:.1f} s, from the "
                    f"{decode['source']}: {clean(decode['text'])}"
                )
                hollow = decode["source"] != "decoder"
                bar(top, height - _TICK, decode, colour, 0.24, tip, hollow)
                if axes.get_xlim()[0] <= decode["time"] <= axes.get_xlim()[1]:
                    tick, line = [top + height - _TICK, top + height], 0.8 if hollow else 1.8
                    axes.plot([decode["time"]] * 2, tick, color=colour, linewidth=line, gid=tooltip(tip))
        axes.annotate(
            short(title, _LEFT - 8),
            (0, top + height / 2),
            (-_LEFT * 72 / INCH, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="center_baseline",
            fontsize=_SMALL,
            color=colours["muted"],
            parse_math=False,
        )
        top += height + _GAP


def _draw_frames(axes: Axes, images: list[tuple[float, str]], top: float, pixels_per_second: float) -> None:
    """The pictures nearest to the middles of equal slots, unsmoothed."""
    left, right = axes.get_xlim()
    slots = max(int((right - left) * pixels_per_second / (_FRAMES + 3)), 1)
    slot, side = (right - left) / slots, _FRAMES / pixels_per_second
    limits = axes.get_xlim(), axes.get_ylim()
    shown = set()
    for index in range(slots):
        middle = left + (index + 0.5) * slot
        time, png = min(images, key=lambda image: abs(image[0] - middle))
        if abs(time - middle) > slot / 2 or time in shown:
            continue
        shown.add(time)
        pixels = decode_png(png)
        tall, wide = pixels.shape[:2]
        half = side / 2 * min(wide / tall, 1)
        axes.imshow(
            pixels[:: max(tall // 64, 1), :: max(wide // 64, 1)],
            extent=(middle - half, middle + half, top + _FRAMES, top),
            aspect="auto",
            interpolation="none",
            cmap="gray",
            vmin=0,
            vmax=1,
        )
    axes.set(xlim=limits[0], ylim=limits[1])


def decode_png(png: str) -> Any:
    """The pixels (H, W, channels) of a PNG in base64; raises InputError if it is broken."""
    try:
        return matplotlib.image.imread(io.BytesIO(base64.b64decode(png)), format="png")
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"a thumbnail of the strip must be a whole PNG file, got an error: {error}") from error


@functools.lru_cache(maxsize=8192)
def _text_width(line: str) -> float:
    """CSS pixels of a line at the small size."""
    font = FontProperties(family="DejaVu Sans", size=_SMALL)
    points: float = text_to_path.get_text_width_height_descent(line, font, ismath=False)[0]
    return points * INCH / 72


def fit(text: str, width: float, lines: int) -> list[str]:
    """Break text into at most `lines` lines of `width` CSS pixels.

    Text that is too long ends in "…"; where less than six characters of it would remain, nothing does: [].
    """

    def fits(line: str) -> bool:
        return _text_width(line) <= width

    broken: list[str] = []
    words = text.split()
    while words:
        count = len(words)
        while count > 0 and not fits(" ".join(words[:count])):
            count -= 1
        if count == 0 or (count < len(words) and len(broken) == lines - 1):
            line = " ".join(words)
            while line and not fits(f"{line.rstrip()}…"):
                line = line[:-1]
            broken.append(f"{line.rstrip()}…")
            return broken if len("".join(broken)) > 6 else []
        broken.append(" ".join(words[:count]))
        words = words[count:]
    return broken


# --- Operations and training.


_SHADES = {"detector": 0.9, "encoder": 0.5, "predictor": 0.27}  # of grey; decoder and cache have the policy's colour
_CACHE_SHADE = 0.45
ESTIMATED = "/////"  # the hatch of whatever is estimated, not measured; what is measured is solid
MEASURES = ("flops", "seconds")


def operations(results: Results, name: str, measure: str, colours: Colours = LIGHT) -> Figure:
    """What each part takes per second of stream, one stacked bar an operating point.

    `measure` is one of `MEASURES`: FLOPs as they were counted, or wall time, in which what is estimated is hatched;
    cache look-ups are a part of both.
    """
    setting, series = results["settings"][name], series_of(results)
    rows = setting["operations"]
    scale, unit = flops_unit(rows) if measure == "flops" else (1e-3, "millisecond")
    parts = (*PARTS, "cache")
    width, height = 470, 70 + 31 * len(rows)
    figure = Figure(figsize=(width / INCH, height / INCH))
    axes = figure.add_axes((160 / width, 42 / height, 1 - 176 / width, 1 - 70 / height))
    frame(axes, colours)
    longest = 0.0
    for y, row in enumerate(rows):
        ledger, left = row["ledger"], 0.0
        for part in parts:
            amount = cache_flops(ledger) if (part, measure) == ("cache", "flops") else ledger[part][measure]
            length = amount / ledger["stream_seconds"] / scale if ledger["stream_seconds"] else 0.0
            estimated = measure == "seconds" and row["seconds_estimated"] and part in ESTIMATED_PARTS
            colour = colours["muted"] if part in _SHADES else _decoder_colour(series, row["policy"], colours)
            fill = _fill(colour, _SHADES.get(part, _CACHE_SHADE if part == "cache" else 1.0), estimated)
            axes.barh(y, length, 0.56, left, gid=tooltip(f"{part}: {length:.3g} {unit}s per second of stream"), **fill)
            left += length
        ratio = getattr(operations_ratio(setting, row), measure)
        words = f"{left:.3g} · {factor(ratio)}" if measure == "seconds" or total_flops(ledger) else UNCOUNTED
        place: Any = {"textcoords": "offset points", "va": "center_baseline"}
        axes.annotate(words, (left, y), (5, 0), color=colours["ink"], **place)
        longest = max(longest, left)
    swept = [setting["curves"][row["policy"]] for row in rows]
    labels = [
        f"{short(label(curve), 150)}\n{short(operating_point(curve, row['knob']), 150)}"
        for curve, row in zip(swept, rows, strict=True)
    ]
    _label_bars(axes, labels, colours)
    axes.set(xlim=(0, longest * 1.45 or 1))
    axes.set_xlabel(f"{unit}s per second of stream", color=colours["muted"])
    decoders = [*dict.fromkeys(_decoder_colour(series, row["policy"], colours) for row in rows)][:3]
    keys: list[Any] = [Patch(color=colours["muted"], alpha=shade, linewidth=0) for shade in _SHADES.values()]
    for part in parts[len(_SHADES) :]:
        alpha = _CACHE_SHADE if part == "cache" else 1.0
        keys.append(tuple(Patch(color=colour, alpha=alpha, linewidth=0) for colour in decoders))
    figure.legend(
        keys,
        parts,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0)},
        loc="upper left",
        ncols=len(parts),
        frameon=False,
        labelcolor=colours["muted"],
        handlelength=1.4,
        handleheight=1,
        columnspacing=1.1,
    )
    return figure


def _fill(colour: str, alpha: float, estimated: bool) -> dict[str, Any]:
    """How a bar is filled: solid where it is measured, hatched where it is estimated."""
    if not estimated:
        return {"facecolor": colour, "alpha": alpha, "linewidth": 0}
    return {"facecolor": "none", "edgecolor": colour, "alpha": alpha, "linewidth": 0.8, "hatch": ESTIMATED}


def _label_bars(axes: Axes, labels: list[str], colours: Colours) -> None:
    """Names at the left of horizontal bars, the first one at the top."""
    axes.set_yticks(range(len(labels)), labels, color=colours["ink"], parse_math=False)
    axes.tick_params(axis="y", length=0, labelsize=_SMALL)
    axes.set(ylim=(len(labels) - 0.5, -0.5))


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
    """What each lever takes off a baseline of 1, in order, on a logarithmic axis: equal lengths are equal ratios.

    `room` is the fraction of the width that is kept for the words at the right.
    """
    floor = min(0.4, *(0.8 * (fall.low or fall.end) for fall in falls))
    highest = max(fall.high or fall.end for fall in falls)
    frame(axes, colours)
    for y, fall in enumerate(falls):
        start = floor if fall.start is None else fall.start
        colour = colours["muted" if fall.start is None else "series-4" if fall.end <= fall.start else "series-3"]
        fill = _fill(colour, 1.0, not fall.measured)
        if fall.faint:
            fill = {"facecolor": "none", "edgecolor": colour, "linestyle": ":", "linewidth": 1.2}
        tip = tooltip(f"{' '.join(fall.label.split())}: {fall.words}")
        axes.barh(y, abs(fall.end - start), 0.6, min(start, fall.end), gid=tip, **fill)
        if fall.low is not None and fall.high is not None:
            axes.plot([fall.low, fall.high], [y, y], color=colours["ink"], linewidth=2)
        place = (max(start, fall.end, fall.high or 0), y)
        style: Any = {"textcoords": "offset points", "va": "center_baseline", "parse_math": False}
        axes.annotate(fall.words, place, (5, 0), color=colours["muted" if fall.faint else "ink"], **style)
        if y + 1 < len(falls) and not fall.faint:  # what is left, carried to the next bar
            axes.plot([fall.end] * 2, [y + 0.3, y + 0.7], color=colours["muted"], linewidth=0.8)
    _label_bars(axes, [fall.label for fall in falls], colours)
    axes.set_xscale("log")
    axes.set_xlim(floor, highest * (highest / floor) ** (room / (1 - room)))
    axes.grid(axis="x", color=colours["grid"], linewidth=0.8)
    ticks = [tick for tick in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if tick >= floor]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(xlabel, color=colours["muted"])


def levers(results: Results, name: str, measure: str, colours: Colours = LIGHT) -> Figure:
    """What deciding when to decode, a cache and encoding only some steps each take off, one after the other.

    Every bar ends at the total of a ledger of its own, relative to the reference's: nothing is multiplied.
    """
    setting = results["settings"][name]
    falls: list[Fall] = []
    left = 1.0
    chain = lever_chain(setting, measure)
    for title, row in chain:
        curve = setting["curves"][row["policy"]]
        ratio = getattr(operations_ratio(setting, row), measure)
        level = f"CIDEr-D {quality(point(setting, row)['cider_d']['value'])}"
        if not falls:
            falls.append(Fall(f"{short(label(curve), 140)}\n{operating_point(curve, row['knob'])}", level, 1.0))
            continue
        words = f"{factor(left * ratio)}, {level}"
        named = f"{title}\n{short(label(curve), 140)}"
        measured = measure == "flops" or not row["seconds_estimated"]
        falls.append(Fall(named, words, 1 / ratio, left, measured=measured))
        left = 1 / ratio
    estimated = measure == "seconds" and any(row["seconds_estimated"] for _, row in chain)
    falls.append(Fall("all together", factor(1 / left), left, measured=not estimated))
    width, height = 470, 60 + 38 * len(falls)
    figure = Figure(figsize=(width / INCH, height / INCH))
    axes = figure.add_axes((150 / width, 42 / height, 1 - 156 / width, 1 - 50 / height))
    unit = {"flops": "FLOPs", "seconds": "wall time"}[measure]
    draw_waterfall(axes, falls, f"{unit} per second of stream, fraction of the first", 0.42, colours)
    return figure


def within_tokens(curves: Mapping[str, tuple[Sequence[float], str]], title: str, colours: Colours = LIGHT) -> Figure:
    """Accuracy that answers of at most b tokens reach, b = 0, 1, …: name -> (fractions, colour); areas in the
    legend.
    """
    width, height = 560, 250 + 18 * len(curves)
    figure = Figure(figsize=(width / INCH, height / INCH), layout="constrained")
    axes = figure.add_subplot()
    for name, (fractions, colour) in curves.items():
        area = sum(fractions[:-1]) / (len(fractions) - 1)
        words = f"{short(clean(name), 200)}: {fractions[-1]:.3f}, area {area:.3f}"
        tip = tooltip(f"{clean(name)}: {fractions[-1]:.3f} within {len(fractions) - 1} tokens")
        axes.step(range(len(fractions)), fractions, where="post", color=colour, linewidth=1.6, label=words, gid=tip)
    frame(axes, colours)
    axes.grid(axis="y", color=colours["grid"], linewidth=0.8)
    axes.set_ylim(0, min(1.02, 1.15 * max(fractions[-1] for fractions, _ in curves.values()) or 1.0))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("tokens of an answer, at most", color=colours["muted"])
    axes.set_title(f"{title} within a budget", loc="left", fontsize=FONT, color=colours["muted"], parse_math=False)
    figure.legend(loc="outside lower left", ncols=1, frameon=False, labelcolor=colours["ink"], handlelength=1.4)
    return figure


def _decoder_colour(series: Mapping[str, int], policy: str, colours: Colours) -> str:
    return _colour(series, policy, colours) if policy in series else colours["ink"]


def training(results: Results, colours: Colours = LIGHT) -> Figure:
    """Every quantity of the training record against the step, each in its own panel."""
    record = results["training"]["curve"]
    keys = list(dict.fromkeys(key for row in record for key in row if key != "step"))
    rows = max((len(keys) + 1) // 2, 1)
    figure = Figure(figsize=(1060 / INCH, (30 + 150 * rows) / INCH), layout="constrained")
    for index, key in enumerate(keys):
        axes = figure.add_subplot(rows, 2, index + 1)
        points = [(row["step"], row[key]) for row in record if row.get(key) is not None]
        axes.set_xlim(0, max(row["step"] for row in record) or 1)
        axes.plot(*zip(*points, strict=True), color=colours["series-4"], linewidth=1.6)
        frame(axes, colours)
        axes.grid(axis="y", color=colours["grid"], linewidth=0.8)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.set_title(short(clean(key), 300), loc="left", fontsize=FONT, color=colours["ink"], parse_math=False)
        axes.set_xlabel("step", color=colours["muted"])
    return figure


# --- The picture for a README, and SVG for the page.


TITLE: dict[str, Any] = {"fontsize": 11, "weight": "bold", "color": LIGHT["ink"], "parse_math": False}


def overview_png(results: Results) -> bytes:
    """The curves of all settings above the strip of the first one, on light ground, as the content of a PNG file."""
    names = list(results["settings"])
    heights = (460.0, 40.0, strip_height(results, names[0]))
    width = 1200.0
    with drawing():
        figure = Figure(figsize=(width / INCH, sum(heights) / INCH), facecolor=LIGHT["surface"])
        upper, between, lower = figure.subfigures(3, 1, squeeze=False, height_ratios=heights).flat
        for part in (upper, between, lower):
            part.set_facecolor(LIGHT["surface"])
        panels = upper.subplots(1, len(names), squeeze=False)[0]
        upper.subplots_adjust(0.045, 0.11, 1 - NAMES / width, 0.83, wspace=0.52)
        for axes, name in zip(panels, names, strict=True):
            draw_curves(axes, results, name, LIGHT)
            place = {"xycoords": "axes fraction", "textcoords": "offset points"}
            axes.annotate(short(f"{clean(name)} streams", 350), (0, 1), (0, 34), **place, **TITLE)
        title = short(f"One of the {clean(names[0])} streams", 700)
        between.text(0.045, 0.5, title, **TITLE)
        _draw_strip(lower, results, names[0], LIGHT, width, margin=0.045 * width)
        return png(figure)


def png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file of 256 colours: a third of the size, and the eye sees no difference."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=1.5 * INCH)
    picture = Image.open(buffer).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(dither=Image.Dither.NONE).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def inline_svg(draw: Callable[[Colours], Figure], uid: str, label: str) -> str:
    """A figure as an SVG element for an HTML page: themed by CSS variables, ids made unique by `uid`.

    `draw` makes the figure in the colours it is given; `label` tells it to those who cannot see it ("": it
    is an ornament). The element has a viewBox and no size of its own.
    """
    buffer = io.BytesIO()
    with drawing():
        draw(THEMED).savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())
    variables = {colour: f"var(--{role})" for role, colour in THEMED.items()}
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag.endswith(("}metadata", "}style", "}title"))]:
            parent.remove(child)
    for element in list(root.iter()):
        element.tag = element.tag.rpartition("}")[2]
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            key = key.rpartition("}")[2]
            if key == "id" and value.startswith(_TIP):
                title = ET.Element("title")
                title.text = value[len(_TIP) :]
                element.insert(0, title)
                continue
            if key == "id":
                value = f"{uid}-{value}"
            elif key == "href" and value.startswith("#"):
                value = f"#{uid}-{value[1:]}"
            elif key != "href":
                value = value.replace("url(#", f"url(#{uid}-")
                for colour, variable in variables.items():
                    value = value.replace(colour, variable)
            element.set(key, value)
    for key in ("width", "height", "version", "id"):
        root.attrib.pop(key, None)
    for key, value in {"role": "img", "aria-label": clean(label)}.items() if label else [("aria-hidden", "true")]:
        root.set(key, value)
    return ET.tostring(root, encoding="unicode", short_empty_elements=False)


def short(text: str, width: float) -> str:
    """Text on one line of `width` CSS pixels."""
    return " ".join(fit(text, width, lines=1))


_TIP = "tip:"


def tooltip(text: str) -> str:
    """The id of an artist that, in SVG, tells `text` when pointed at."""
    return _TIP + text


def _policy_name(setting: dict[str, Any], row: dict[str, Any]) -> str:
    """Of a saving or of operations: the policy and its operating point."""
    curve = setting["curves"][row["policy"]]
    return f"{label(curve)}, {operating_point(curve, row['knob'])}"


def frame(axes: Axes, colours: Colours) -> None:
    """No box; one thin line below, words and numbers in muted ink."""
    axes.set_facecolor("none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(colours["muted"])
    axes.tick_params(colors=colours["muted"], labelsize=FONT, width=0.8, length=3)
    axes.tick_params(axis="y", length=0)
    axes.set_axisbelow(True)
