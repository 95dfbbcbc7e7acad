"""Figures of a results document, as matplotlib figures and as SVG for the page.

Each figure function takes the colours to draw with: :data:`LIGHT` or :data:`DARK` for a picture, or
:data:`THEMED`, stand-in colours that :func:`inline_svg` turns into CSS variables, so that one SVG follows
the light or dark theme of the page it stands in. A policy has the same colour in every figure.
"""

from __future__ import annotations

import base64
import io
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.image
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from jepa.errors import InputError
from jepa.report.schema import Results, validate_results, write_whole
from jepa.report.tables import (
    PARTS,
    best_causal,
    clean,
    factor,
    headline_savings,
    operating_point,
    operations_ratio,
    quality,
    reference_name,
)

# Role -> (light, dark). The series are Okabe and Ito's palette, safe for colour-blind readers, with the two
# uniform policies in greys and the two Ward policies in oranges; other policies take the last three.
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
_SERIES = {"uniform": 0, "uniform_pool": 1, "ward_midpoint": 2, "ward_mean": 3, "gate": 4}
MARKERS = ("o", "s", "v", "^", "D", "P", "X", "*")
DASHES = ("-", (0, (4, 1.5)), (0, (4, 1.5)), "-", "-", "-", (0, (4, 1.5)), (0, (1, 1)))

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


def series_of(results: Results) -> dict[str, int]:
    """Policy -> number of its colour, marker and dash, the same in all figures of a document."""
    others = sorted({p for s in results["settings"].values() for p in s["curves"]} - set(_SERIES))
    free = range(len(_SERIES), len(MARKERS))
    return _SERIES | {policy: free[index % len(free)] for index, policy in enumerate(others)}


def css_variables(colours: Colours) -> str:
    """The colours as CSS custom properties, for the page that holds the figures."""
    return " ".join(f"--{role}: {colour};" for role, colour in colours.items())


# --- Quality against operations.


def curves(results: Results, name: str, colours: Colours = LIGHT) -> Figure:
    """CIDEr-D against decodes per second of every policy on one setting's test streams."""
    figure = Figure(figsize=(430 / INCH, 350 / INCH), layout="constrained")
    _draw_curves(figure.add_subplot(), results, name, colours)
    return figure


def _draw_curves(axes: Axes, results: Results, name: str, colours: Colours) -> None:
    setting, series = results["settings"][name], series_of(results)
    lowest, highest = [], []
    for policy, curve in setting["curves"].items():
        points = sorted(curve["test"], key=lambda point: point["decodes_per_second"])
        x = [point["decodes_per_second"] for point in points]
        value, low, high = ([point["cider_d"][key] for point in points] for key in ("value", "low", "high"))
        colour, index = colours[f"series-{series[policy]}"], series[policy]
        axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(
            x,
            value,
            color=colour,
            linewidth=1.6,
            linestyle=DASHES[index],
            marker=MARKERS[index],
            markersize=3.5,
        )
        lowest += [min(low), min(value)]
        highest += [max(high), max(value)]
    savings = headline_savings(setting)
    rate, level = savings[0]["reference_decodes_per_second"], savings[0]["reference_quality"]
    spread = max(highest) - min(lowest) or 1.0
    floor = min([*lowest, level]) - 0.13 * spread
    axes.set(xscale="log", ylim=(floor, max([*highest, level]) + 0.05 * spread))
    frame(axes, colours)
    axes.grid(axis="y", color=colours["grid"], linewidth=0.8)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.set_xlabel("decodes per second", color=colours["muted"])
    axes.set_title("CIDEr-D", loc="left", fontsize=FONT, color=colours["muted"])

    axes.axhline(level, color=colours["ink"], linewidth=1, linestyle=(0, (5, 3)))
    axes.annotate(
        short(reference_name(setting, savings[0]), 250),
        (0, level),
        (4, 4),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        color=colours["ink"],
        parse_math=False,
    )
    axes.axvline(setting["events_per_second"], color=colours["muted"], linewidth=0.9, linestyle=(0, (1, 2)))
    axes.annotate(
        "event rate",
        (setting["events_per_second"], 1),
        (0, 4),
        xycoords=axes.get_xaxis_transform(),
        textcoords="offset points",
        ha="center",
        color=colours["muted"],
    )
    for saving in savings:
        if saving["knob"] is not None:
            index = series[saving["policy"]]
            axes.plot(
                [saving["decodes_per_second"]],
                [saving["quality"]],
                linestyle="none",
                marker="o" if saving["reached"] else "X",
                markersize=10 if saving["reached"] else 8,
                markerfacecolor="none" if saving["reached"] else colours["surface"],
                markeredgecolor=colours[f"series-{index}"],
                markeredgewidth=1.8,
                zorder=5,
                gid=tooltip(f"{_policy_name(setting, saving)}: CIDEr-D {quality(saving['quality'])}"),
            )
    best = best_causal(setting)
    if best is not None and best["reached"] and best["saving"]["value"] > 1:
        _draw_saving(axes, best, (rate, level), floor + 0.05 * spread, colours)


def _draw_saving(axes: Axes, best: dict[str, Any], reference: tuple[float, float], y: float, colours: Colours) -> None:
    """An arrow along the bottom from the reference's decodes per second to the policy's."""
    x = best["decodes_per_second"]
    for at, top in (reference, (x, best["quality"])):
        axes.plot([at, at], [y, top], color=colours["ink"], linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    arrow = {"arrowstyle": "-|>", "color": colours["ink"], "shrinkA": 0, "shrinkB": 0, "linewidth": 1}
    axes.annotate("", (x, y), (reference[0], y), arrowprops=arrow)
    axes.annotate(
        f"{factor(best['saving']['value'])} fewer",
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

    `width` is in CSS pixels. Text is abbreviated to its bar; the SVG tells it in full when pointed at.
    """
    figure = Figure(figsize=(width / INCH, strip_height(results, name) / INCH))
    _draw_strip(figure, results, name, colours, width)
    return figure


def _systems(stream: dict[str, Any]) -> int:
    """The number of lines a stream wraps into: about one for each minute or 14 events, five at most."""
    return min(max(round(stream["duration"] / 60), round(len(stream["events"]) / 14), 1), 5)


def _lanes(stream: dict[str, Any]) -> list[tuple[str, float]]:
    """(lane, height in CSS pixels) from top to bottom; a policy that decodes single steps has only ticks."""
    lanes = [("frames", float(_FRAMES))] if stream["thumbnails"] else []
    lanes.append(("events", float(_TALL * (max(_rows(stream["events"]), default=0) + 1))))
    for policy, decodes in stream["decodes"].items():
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
    stream = results["settings"][name]["strip"]
    return _systems(stream) * _system_height(stream)


def _system_height(stream: dict[str, Any]) -> float:
    return sum(height + _GAP for _, height in _lanes(stream)) + _AXIS


def _draw_strip(
    figure: Figure | SubFigure,
    results: Results,
    name: str,
    colours: Colours,
    width: float,
    margin: float = 0,
) -> None:
    """`margin`: CSS pixels to the left of everything."""
    stream = results["settings"][name]["strip"]
    systems, height = _systems(stream), _system_height(stream)
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

    def bar(top: float, height: float, item: dict[str, Any], colour: str, alpha: float, tip: str) -> None:
        """A tinted box over [start, end] with as much of the text as fits in it."""
        left, right = axes.get_xlim()
        start, end = max(item["start"], left), min(item["end"], right)
        if start >= end:
            return
        length = max(end - start - 1.5 / pixels_per_second, 0.5 / pixels_per_second)
        box = Rectangle((start, top), length, height, facecolor=colour, alpha=alpha, linewidth=0)
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
    for lane, height in _lanes(stream):
        if lane == "frames":
            label = "frames"
            _draw_frames(axes, images, top, pixels_per_second)
        elif lane == "events":
            label = "events"
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
            label = clean(setting["curves"][lane]["label"])
            colour = colours[f"series-{series[lane]}"]
            for decode in stream["decodes"][lane]:
                tip = (
                    f"{label} at {decode['time']:.1f} s, known at {decode['emitted_at']:.1f} s: {clean(decode['text'])}"
                )
                bar(top, height - _TICK, decode, colour, 0.24, tip)
                if axes.get_xlim()[0] <= decode["time"] <= axes.get_xlim()[1]:
                    tick = [top + height - _TICK, top + height]
                    axes.plot([decode["time"]] * 2, tick, color=colour, linewidth=1.8, gid=tooltip(tip))
        axes.annotate(
            short(label, _LEFT - 8),
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


def fit(text: str, width: float, lines: int) -> list[str]:
    """Break text into at most `lines` lines of `width` CSS pixels.

    Text that is too long ends in "…"; where less than six characters of it would remain, nothing does: [].
    """
    font = FontProperties(family="DejaVu Sans", size=_SMALL)

    def fits(line: str) -> bool:
        return text_to_path.get_text_width_height_descent(line, font, ismath=False)[0] * INCH / 72 <= width

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


# --- The legend, operations and training.


def swatch(series: int, colours: Colours = LIGHT) -> Figure:
    """The line and the marker of a policy, for a legend beside the figures."""
    figure = Figure(figsize=(34 / INCH, 12 / INCH))
    figure.add_artist(_handle(series, colours, xdata=[0.06, 0.5, 0.94], ydata=[0.5] * 3, markevery=[1]))
    return figure


def _handle(
    series: int, colours: Colours, xdata: Sequence[float] = (), ydata: Sequence[float] = (), **style: Any
) -> Line2D:
    style |= {"linewidth": 1.6, "linestyle": DASHES[series], "marker": MARKERS[series], "markersize": 4.5}
    return Line2D(xdata, ydata, color=colours[f"series-{series}"], **style)


def operations(results: Results, name: str, colours: Colours = LIGHT) -> Figure:
    """Wall seconds of each part per minute of stream, one bar an operating point."""
    setting, series = results["settings"][name], series_of(results)
    rows = setting["operations"]
    figure = Figure(figsize=(430 / INCH, (84 + 40 * len(rows)) / INCH), layout="constrained")
    axes = figure.add_subplot()
    frame(axes, colours)
    shades = {"encoder": 0.5, "predictor": 0.27}
    longest = 0.0
    for y, row in enumerate(rows):
        ledger = row["ledger"]
        scale = 60 / ledger["stream_seconds"] if ledger["stream_seconds"] else 0.0
        left = 0.0
        for part in PARTS:
            length = ledger[part]["seconds"] * scale
            colour = colours["muted"] if part in shades else colours[f"series-{series[row['policy']]}"]
            axes.barh(y, length, 0.56, left, color=colour, alpha=shades.get(part, 1.0), linewidth=0)
            left += length
        wall = operations_ratio(setting, row)[1]
        axes.annotate(
            f"{left:.3g} s · {factor(wall)}",
            (left, y),
            (5, 0),
            textcoords="offset points",
            va="center_baseline",
            color=colours["ink"],
        )
        longest = max(longest, left)
    labels = []
    for row in rows:
        curve = setting["curves"][row["policy"]]
        words = (clean(curve["label"]), operating_point(curve, row["knob"]))
        labels.append("\n".join(short(text, 100) for text in words))
    axes.set_yticks(range(len(rows)), labels, color=colours["ink"], parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set(xlim=(0, longest * 1.35 or 1), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xlabel("wall seconds per minute of stream", color=colours["muted"])
    parts: list[Any] = [Patch(color=colours["muted"], alpha=shade, linewidth=0) for shade in shades.values()]
    parts.append(tuple(Patch(color=colours[f"series-{series[row['policy']]}"], linewidth=0) for row in rows))
    figure.legend(
        parts,
        PARTS,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0)},
        loc="outside upper left",
        ncols=3,
        frameon=False,
        labelcolor=colours["muted"],
        handlelength=1.6,
        handleheight=1,
        columnspacing=1.2,
    )
    return figure


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


def save_png(results: Results, path: str | Path) -> None:
    """Write the overview: the curves of all settings above the strip of the first one, on light ground.

    Raises InputError for a bad document or a path that cannot be written.
    """
    validate_results(results)
    write_whole({Path(path): overview_png(results)})


TITLE: dict[str, Any] = {"fontsize": 11, "weight": "bold", "color": LIGHT["ink"], "parse_math": False}


def overview_png(results: Results) -> bytes:
    """The picture of :func:`save_png` as the content of a PNG file."""
    names, series = list(results["settings"]), series_of(results)
    heights = (460.0, 40.0, strip_height(results, names[0]))
    width = 1200.0
    with drawing():
        figure = Figure(figsize=(width / INCH, sum(heights) / INCH), facecolor=LIGHT["surface"])
        upper, between, lower = figure.subfigures(3, 1, squeeze=False, height_ratios=heights).flat
        for part in (upper, between, lower):
            part.set_facecolor(LIGHT["surface"])
        panels = upper.subplots(1, len(names), squeeze=False)[0]
        upper.subplots_adjust(0.045, 0.11, 0.985, 0.79, wspace=0.13)
        for axes, name in zip(panels, names, strict=True):
            _draw_curves(axes, results, name, LIGHT)
            place = {"xycoords": "axes fraction", "textcoords": "offset points"}
            axes.annotate(short(f"{clean(name)} streams", 350), (0, 1), (0, 22), **place, **TITLE)
        policies = {p: c["label"] for s in results["settings"].values() for p, c in s["curves"].items()}
        handles = [_handle(series[policy], LIGHT, label=short(clean(label), 150)) for policy, label in policies.items()]
        upper.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(0.037, 0.99),
            ncols=min(len(handles), 6),
            frameon=False,
            labelcolor=LIGHT["ink"],
            fontsize=9.5,
            handlelength=2.6,
        )
        title = short(f"One of the {clean(names[0])} streams", 700)
        between.text(0.045, 0.5, title, **TITLE)
        _draw_strip(lower, results, names[0], LIGHT, width, margin=0.045 * width)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=1.5 * INCH)
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


def _policy_name(setting: dict[str, Any], saving: dict[str, Any]) -> str:
    curve = setting["curves"][saving["policy"]]
    return f"{clean(curve['label'])}, {operating_point(curve, saving['knob'])}"


def frame(axes: Axes, colours: Colours) -> None:
    """No box; one thin line below, words and numbers in muted ink."""
    axes.set_facecolor("none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(colours["muted"])
    axes.tick_params(colors=colours["muted"], labelsize=FONT, width=0.8, length=3)
    axes.tick_params(axis="y", length=0)
    axes.set_axisbelow(True)
