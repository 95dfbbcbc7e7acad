"""One stream on a time axis that wraps like a score: frames, events, and the decodes of each policy."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.image
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.figure import SubFigure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from jepa.errors import InputError
from jepa.report.blocks import Colours
from jepa.report.figures import BESIDE, INCH, SMALL, fit, frame, short, sized, tooltip
from jepa.report.sweep_figures import colour_of, series_of
from jepa.results import Decode, Event, Setting, Thumbnail, Timeline, analysis

_LEFT, _RIGHT = 96, 22  # CSS pixels beside the time axis
_FRAMES, _TALL, _TICK = 72, 31, 9  # heights in CSS pixels: pictures, bars with text, ticks of decodes
_GAP, _AXIS = 7, 42  # below each of them; below each line of the timeline, for the axis and its numbers


def timeline(settings: Mapping[str, Setting], name: str, colours: Colours, width: float = 1060) -> Drawing:
    """The stream of a setting, `width` CSS pixels wide. Text is cut to its bar; the SVG tells it when pointed at."""
    figure = sized(width, timeline_height(settings[name]))
    draw_timeline(figure, settings, name, colours, width)
    return figure


def timeline_height(setting: Setting) -> float:
    return _lines(setting.timeline) * _line_height(setting)


def draw_timeline(
    figure: Drawing | SubFigure, settings: Mapping[str, Setting], name: str, colours: Colours, width: float
) -> None:
    """The stream of a setting on a whole figure."""
    setting, series = settings[name], series_of(settings)
    lines, height = _lines(setting.timeline), _line_height(setting)
    total, span = lines * height, setting.timeline.duration / lines
    across, down = width - _LEFT - _RIGHT, height - _AXIS
    for line in range(lines):
        bottom = total - (line + 1) * height + 0.75 * _AXIS
        axes = figure.add_axes((_LEFT / width, bottom / total, across / width, down / total))
        axes.set(xlim=(line * span, (line + 1) * span), ylim=(down, 0))
        _Line(axes, across / span, colours).draw(setting, series)


def _lines(stream: Timeline) -> int:
    """The number of lines a stream wraps into: about one for each minute or 14 events, five at most."""
    return min(max(round(stream.duration / 60), round(len(stream.events) / 14), 1), 5)


def _line_height(setting: Setting) -> float:
    return sum(height + _GAP for _, height in _rows(setting)) + _AXIS


def _rows(setting: Setting) -> list[tuple[str, float]]:
    """(row, height in CSS pixels) from top to bottom; a policy that decodes single steps has only ticks."""
    stream = setting.timeline
    rows = [("frames", float(_FRAMES))] if stream.thumbnails else []
    rows.append(("events", float(_TALL * (max(_event_rows(stream.events), default=0) + 1))))
    for policy, decodes in analysis.timeline_decodes(setting).items():
        tall = any(decode.end > decode.start for decode in decodes)
        rows.append((policy, float(_TALL * tall + _TICK)))
    return rows


def _event_rows(events: Sequence[Event]) -> list[int]:
    """The row of each event, so that events that overlap do not share one: the first free row by start."""
    ends: list[float] = []
    rows = {}
    for index, event in sorted(enumerate(events), key=lambda pair: pair[1].start):
        row = next((r for r, end in enumerate(ends) if end <= event.start), len(ends))
        ends[row : row + 1] = [event.end]
        rows[index] = row
    return [rows[index] for index in sorted(rows)]


@dataclass(frozen=True)
class _Line:
    """One line of the timeline: its stretch of every row. `scale`: CSS pixels per second."""

    axes: Axes
    scale: float
    colours: Colours

    def draw(self, setting: Setting, series: Mapping[str, int]) -> None:
        axes, stream, top = self.axes, setting.timeline, 0.0
        frame(axes, self.colours)
        axes.set_yticks([])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=12, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g} s"))
        for row, height in _rows(setting):
            title = row
            if row == "frames":
                self._frames(stream.thumbnails, top)
            elif row == "events":
                self._events(stream.events, top, height)
            else:
                title = analysis.label(setting.curves[row])
                for decode in stream.decodes[row]:
                    self._decode(decode, title, top, height, colour_of(series, row, self.colours))
            place: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "fontsize": SMALL, **BESIDE}
            at, left = (0, top + height / 2), (-_LEFT * 72 / INCH, 0)
            axes.annotate(short(title, _LEFT - 8), at, left, color=self.colours["muted"], **place)
            top += height + _GAP

    def _frames(self, thumbnails: Sequence[Thumbnail], top: float) -> None:
        """The pictures nearest to the middles of equal slots, unsmoothed."""
        (left, right), down = self.axes.get_xlim(), self.axes.get_ylim()
        shown = sum(left <= each.time < right for each in thumbnails)
        slots = max(min(int((right - left) * self.scale / (_FRAMES + 3)), shown), 1)
        slot = (right - left) / slots
        for index in range(slots):
            middle = left + (index + 0.5) * slot
            nearest = min(thumbnails, key=lambda each: abs(each.time - middle))
            if -slot / 2 <= nearest.time - middle < slot / 2:
                pixels = _pixels(nearest.png)
                tall, wide = pixels.shape[:2]
                half = _FRAMES / self.scale / 2 * min(wide / tall, 1)
                extent = (middle - half, middle + half, top + _FRAMES, top)
                small = pixels[:: max(tall // 64, 1), :: max(wide // 64, 1)]
                self.axes.imshow(small, extent=extent, aspect="auto", interpolation="none", cmap="gray", vmin=0, vmax=1)
        self.axes.set(xlim=(left, right), ylim=down)

    def _events(self, events: Sequence[Event], top: float, height: float) -> None:
        """Grey bars, and a faint line down from each of their ends."""
        bottom, (left, right) = self.axes.get_ylim()[0], self.axes.get_xlim()
        style = {"facecolor": self.colours["muted"], "alpha": 0.22, "linewidth": 0}
        for event, row in zip(events, _event_rows(events), strict=True):
            tip = f"{event.start:.1f}–{event.end:.1f} s: {event.text}"
            self._box(event, top + row * _TALL, _TALL - 2, tip, style)
            for edge in (event.start, event.end):
                if left <= edge <= right:
                    line: dict[str, Any] = {"color": self.colours["grid"], "linewidth": 0.8, "zorder": 0}
                    self.axes.plot([edge, edge], [top + height, bottom], **line)

    def _decode(self, decode: Decode, policy: str, top: float, height: float, colour: str) -> None:
        """The bar that a decode stands for, and the tick of its moment; hollow where it took no decoder call."""
        moment = f"{policy} at {decode.time:.1f} s, known at {decode.emitted_at:.1f} s"
        tip, hollow = f"{moment}, from the {decode.source}: {decode.text}", decode.source != "decoder"
        style: dict[str, Any] = {"facecolor": colour, "alpha": 0.24, "linewidth": 0}
        if hollow:
            style = {"facecolor": "none", "edgecolor": colour, "linewidth": 0.9, "linestyle": (0, (2, 1.5))}
        self._box(decode, top, height - _TICK, tip, style)
        if self.axes.get_xlim()[0] <= decode.time <= self.axes.get_xlim()[1]:
            tick, width = [top + height - _TICK, top + height], 0.8 if hollow else 1.8
            self.axes.plot([decode.time] * 2, tick, color=colour, linewidth=width, gid=tooltip(tip))

    def _box(self, item: Event | Decode, top: float, height: float, tip: str, style: Mapping[str, Any]) -> None:
        """A tinted or hollow box over [start, end] with as much of the text as fits in it."""
        left, right = self.axes.get_xlim()
        start, end = max(item.start, left), min(item.end, right)
        if start >= end:
            return
        length = max(end - start - 1.5 / self.scale, 0.5 / self.scale)
        self.axes.add_artist(Rectangle((start, top), length, height, gid=tooltip(tip), **style))
        lines = fit(item.text, (end - start) * self.scale - 6, lines=2)
        font: dict[str, Any] = {"va": "center_baseline", "fontsize": SMALL, "parse_math": False, "clip_on": True}
        for index, line in enumerate(lines):
            y = top + height / 2 + (index - (len(lines) - 1) / 2) * 12.5
            self.axes.text(start + 3.5 / self.scale, y, line, color=self.colours["ink"], gid=tooltip(tip), **font)


def _pixels(png: str) -> Any:
    """The pixels (H, W, channels) of a PNG in base64; raises InputError if it is broken."""
    try:
        return matplotlib.image.imread(io.BytesIO(base64.b64decode(png)), format="png")
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"a thumbnail of the timeline must be a whole PNG file, got an error: {error}") from error
