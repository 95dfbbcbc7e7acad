"""Themes, drawings that reports share, and figures as SVG for the page or PNG.

A drawing is made in the colours of a theme: `LIGHT` or `DARK` for a picture. For the page it is made in stand-in
colours, which `svg` turns into CSS variables, so that one SVG follows the theme of the page.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image

from jepa.report.blocks import Colours, Figure
from jepa.report.format import clean, fixed

# Role -> (light, dark). The series are the palette of Okabe and Ito, safe for colour-blind readers.
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
MARKERS = ("s", "o", "v", "^", "D", "P", "X", "*")
DASHES = ((0, (4, 1.5)), "-", (0, (4, 1.5)), "-", "-", "-", (0, (4, 1.5)), (0, (1, 1)))

LIGHT: Colours = {role: pair[0] for role, pair in _PALETTE.items()}
DARK: Colours = {role: pair[1] for role, pair in _PALETTE.items()}
_THEMED: Colours = {role: f"#0102{index:02x}" for index, role in enumerate(_PALETTE)}

FONT, SMALL = 8.5, 7.5  # points; figures are laid out for a page that shows one point as 4/3 CSS pixels
INCH = 96.0  # CSS pixels
HATCH = "/////"  # of estimates; what is measured is solid
BESIDE: Mapping[str, Any] = {"textcoords": "offset points", "va": "center_baseline", "parse_math": False}
_RC: Any = {"svg.fonttype": "none", "svg.hashsalt": "jepa", "font.family": "DejaVu Sans", "font.size": FONT}
_TIP = "tip:"


# --- Drawings as files.


@contextmanager
def drawing() -> Iterator[None]:
    """Our fonts; a character that the font of the PNG lacks is an empty box there, not a warning."""
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def png(figure: Drawing) -> bytes:
    """The content of a PNG file of 256 colours, a third of the size, on the ground of the light theme."""
    buffer = io.BytesIO()
    with drawing():
        figure.savefig(buffer, format="png", dpi=1.5 * INCH, facecolor=LIGHT["surface"])
    picture = Image.open(buffer).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(dither=Image.Dither.NONE).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def svg(figure: Figure) -> str:
    """An SVG element without a size, themed by CSS variables. Its ids are made unique by the figure's name."""
    buffer = io.BytesIO()
    with drawing():
        figure.draw(_THEMED).savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())
    variables = {colour: f"var(--{role})" for role, colour in _THEMED.items()}

    def own(key: str, value: str) -> str:
        if key == "id":
            return f"{figure.name}-{value}"
        if key == "href":
            return f"#{figure.name}-{value[1:]}" if value.startswith("#") else value
        value = value.replace("url(#", f"url(#{figure.name}-")
        return re.sub("#0102..", lambda found: variables[found[0]], value)

    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag.endswith(("}metadata", "}style", "}title"))]:
            parent.remove(child)
    for element in list(root.iter()):
        element.tag = element.tag.rpartition("}")[2]
        given = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        if given.get("id", "").startswith(_TIP):
            title = ET.Element("title")
            title.text = given.pop("id")[len(_TIP) :]
            element.insert(0, title)
        element.attrib = {key: own(key, value) for key, value in given.items()}
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": clean(figure.title)}
    return ET.tostring(root, encoding="unicode", short_empty_elements=False)


def tooltip(text: str) -> str:
    """The id of an artist that, in SVG, tells `text` when pointed at."""
    return _TIP + clean(text)


# --- Text that fits.

_CHARACTER = 6.0  # CSS pixels, on average, at the small size


def fit(text: str, width: float, lines: int) -> list[str]:
    """Break text into at most `lines` lines of about `width` CSS pixels.

    Text that is too long ends in "…"; where less than six characters of it would remain, nothing does: [].

    >>> fit("a red circle grows", 60, lines=2)
    ['a red', 'circle gr…']
    """
    room = max(int(width / _CHARACTER), 1)
    broken = textwrap.wrap(clean(text), room)
    if len(broken) <= lines:
        return broken
    rest = " ".join(broken[lines - 1 :])
    cut = [*broken[: lines - 1], f"{rest[: room - 1].rstrip()}…"]
    return cut if len("".join(cut)) > 6 else []


def short(text: str, width: float) -> str:
    """Text on one line of `width` CSS pixels."""
    return " ".join(fit(text, width, lines=1))


# --- Axes.


def sized(width: float, height: float, layout: Literal["constrained"] | None = None) -> Drawing:
    """An empty drawing of so many CSS pixels."""
    return Drawing(figsize=(width / INCH, height / INCH), layout=layout)


def panel(figure: Drawing, left: float, right: float, bottom: float, top: float) -> Axes:
    """The only panel of a drawing, with margins in CSS pixels."""
    width, height = figure.get_size_inches() * INCH
    return figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height))


def frame(axes: Axes, colours: Colours, grid: Literal["x", "y", "both"] | None = None) -> None:
    """No box; one thin line below, words and numbers in muted ink. `grid`: the axes with grid lines."""
    axes.set_facecolor("none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(colours["muted"])
    axes.tick_params(colors=colours["muted"], labelsize=FONT, width=0.8, length=3)
    axes.tick_params(axis="y", length=0)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color=colours["grid"], linewidth=0.8)


def title(axes: Axes, text: str, colours: Colours, width: float = 400, **style: Any) -> None:
    """The title of a panel, shortened to `width` CSS pixels."""
    given: dict[str, Any] = {"fontsize": FONT, "color": colours["muted"], "parse_math": False, **style}
    axes.set_title(short(text, width), loc="left", **given)


def heading(colours: Colours) -> dict[str, Any]:
    return {"fontsize": 11, "weight": "bold", "color": colours["ink"], "parse_math": False}


def log_axis(axes: Axes) -> None:
    """A logarithmic x axis, with ticks at 1, 2 and 5 of each decade."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def label_bars(axes: Axes, labels: Sequence[str], colours: Colours) -> None:
    """Names at the left of horizontal bars, the first one at the top."""
    cleaned = ["\n".join(map(clean, label.splitlines())) for label in labels]
    axes.set_yticks(range(len(labels)), cleaned, color=colours["ink"], parse_math=False)
    axes.tick_params(axis="y", length=0, labelsize=SMALL)
    axes.set(ylim=(len(labels) - 0.5, -0.5))


def fill(colour: str, alpha: float, estimated: bool) -> dict[str, Any]:
    """How a bar is filled: solid where it is measured, hatched where it is estimated."""
    if not estimated:
        return {"facecolor": colour, "alpha": alpha, "linewidth": 0}
    return {"facecolor": "none", "edgecolor": colour, "alpha": alpha, "linewidth": 0.8, "hatch": HATCH}


# --- Curves with bands, and their names.

NAMES = 168  # CSS pixels to the right of curves, for their names


@dataclass(frozen=True)
class Line:
    """A curve in the order of `x`. `low` and `high` make its band; without a `series` it is thin and grey."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    series: int | None = None
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def style(series: int, colours: Colours) -> dict[str, Any]:
    """Colour, marker and dash of a series."""
    line = {"color": colours[f"series-{series}"], "linewidth": 1.6, "linestyle": DASHES[series]}
    return line | {"marker": MARKERS[series], "markersize": 3.5}


def draw_line(axes: Axes, line: Line, colours: Colours, **changes: Any) -> None:
    """A curve and its band; `changes` of its style."""
    if line.series is None:
        grey: dict[str, Any] = {"color": colours["muted"], "linewidth": 0.8, "alpha": 0.5, "zorder": 1.5}
        axes.plot(line.x, line.y, marker="." if len(line.x) == 1 else "", gid=tooltip(line.name), **grey)
        return
    if line.low is not None and line.high is not None:
        axes.fill_between(line.x, line.low, line.high, color=colours[f"series-{line.series}"], alpha=0.15, linewidth=0)
    axes.plot(line.x, line.y, gid=tooltip(line.name), **{**style(line.series, colours), **changes})


def name_lines(axes: Axes, lines: Sequence[Line], colours: Colours) -> None:
    """The names of the curves with a series, at the right, in the order of their ends."""
    named = sorted((line for line in lines if line.x and line.series is not None), key=lambda line: -line.y[-1])
    keys = [Line2D([], [], **style(line.series or 0, colours)) for line in named]
    names = ["\n".join(fit(line.name, NAMES - 40, lines=2)) for line in named]
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "frameon": False, "handlelength": 2}
    for text in axes.legend(keys, names, labelcolor=colours["ink"], **place).get_texts():
        text.set_parse_math(False)


# --- Dots with intervals.


@dataclass(frozen=True)
class Dots:
    """A row of a panel: a faint dot for each (name, value) of `values`, a bar at the mean, a line for its interval."""

    series: int
    values: Sequence[tuple[str, float]]
    mean: float | None
    low: float | None = None
    high: float | None = None


def draw_dots(axes: Axes, name: str, rows: Sequence[Dots], colours: Colours, digits: int = 3) -> None:
    """One panel, the first row at the top; `digits` are the decimals of its numbers."""
    for y, row in enumerate(rows):
        colour = colours[f"series-{row.series}"]
        for tip, value in row.values:
            faint: dict[str, Any] = {"color": colour, "alpha": 0.5, "markeredgewidth": 0}
            axes.plot(value, y, "o", markersize=5, gid=tooltip(f"{tip}: {fixed(value, digits)}"), **faint)
        if row.mean is None:
            continue
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [y, y], color=colour, linewidth=1.6)
        axes.plot([row.mean] * 2, [y - 0.24, y + 0.24], color=colour, linewidth=2.2)
        above: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": FONT - 1}
        axes.annotate(fixed(row.mean, digits), (row.mean, y - 0.24), (0, 2), color=colours["ink"], **above)
    frame(axes, colours, "x")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    axes.margins(x=0.12)
    axes.set(ylim=(len(rows) - 0.45, -0.55))
    title(axes, name, colours, fontsize=FONT + 1, color=colours["ink"])


# --- Lines over a common x.

Points = Sequence[tuple[int, Sequence[tuple[float, float]]]]  # of lines: the series, and (x, y)


def panels(
    lines: Mapping[str, Points], xlabel: str, colours: Colours, names: Mapping[str, int] | None = None
) -> Drawing:
    """A panel of lines for each title, two abreast; `names` of series stand in a legend."""
    rows = (len(lines) + 1) // 2
    figure = sized(1060, 30 + 150 * rows + 25 * bool(names), "constrained")
    for index, (name, drawn) in enumerate(lines.items()):
        axes = figure.add_subplot(rows, 2, index + 1)
        for series, points in drawn:
            axes.plot(*zip(*points, strict=True), color=colours[f"series-{series}"], linewidth=1.6)
        frame(axes, colours, "y")
        axes.set_xlim(left=0)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.xaxis.set_major_formatter(EngFormatter())
        title(axes, name, colours, 300, color=colours["ink"])
        axes.set_xlabel(xlabel, color=colours["muted"])
    if names:
        keys = [Line2D([], [], color=colours[f"series-{series}"], label=short(n, 200)) for n, series in names.items()]
        figure.legend(handles=keys, loc="outside upper left", ncols=6, frameon=False, labelcolor=colours["ink"])
    return figure
