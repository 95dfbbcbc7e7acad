"""Draws the animation at the top of the README from what an evaluation and its report found.

    python scripts/draw_animation.py outputs/demo/results.json docs/images/demo.webp

Nothing is computed by a model: texts, times and counts are those of `timeline` in the results, the first test stream
of a setting at the operating points that other streams chose. The pictures are drawn again from the stream's seed. A
text appears when it was known. `--still 12.5 still.png` writes one frame of that second in place of the animation.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from jepa.build import build_as
from jepa.config import EvaluateConfig, validate
from jepa.data.world import World
from jepa.errors import InputError
from jepa.evaluation.videos import made_streams
from jepa.report.figures import DARK, short
from jepa.results import Decode, Saving, Setting, StreamResults, analysis, read_document

WIDTH, HEIGHT, PIXELS = 1080, 528, 2  # drawn `PIXELS` times as large, then made smaller
PAD, PICTURE, ROW, ROWS = 26, 300, 60, 5
LEFT, RIGHT = 150, 800  # of the time axis
SURFACE, INK, MUTED, GRID = DARK["surface"], DARK["ink"], DARK["muted"], DARK["grid"]
SELECTIVE, UNIFORM = DARK["series-4"], DARK["series-2"]
HOLD = 2.5  # seconds that the last frame stays


@cache
def font(size: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    path = findfont(FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal"))
    return ImageFont.truetype(path, round(size * PIXELS))


class Canvas:
    """A picture in CSS pixels."""

    def __init__(self) -> None:
        self.image = Image.new("RGBA", (WIDTH * PIXELS, HEIGHT * PIXELS), (0, 0, 0, 0))
        self.draw = ImageDraw.Draw(self.image)

    def box(
        self,
        at: Sequence[float],
        fill: str | None = None,
        edge: str | None = None,
        radius: float = 3.0,
        thick: float = 1.2,
    ) -> None:
        place = [value * PIXELS for value in at]
        if place[2] > place[0]:
            self.draw.rounded_rectangle(
                place, radius * PIXELS, fill=fill, outline=edge, width=round(thick * PIXELS) if edge else 0
            )

    def text(
        self, x: float, y: float, words: str, size: float, colour: str = INK, bold: bool = False, anchor: str = "lm"
    ) -> None:
        self.draw.text((x * PIXELS, y * PIXELS), words, font=font(size, bold), fill=colour, anchor=anchor)

    def paste(self, picture: np.ndarray, x: float, y: float, side: int) -> None:
        """A picture (S, S, 3) with round corners."""
        size = (side * PIXELS, side * PIXELS)
        mask = Image.new("L", size, 0)
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), 6 * PIXELS, fill=255)
        large = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
        self.image.paste(large, (round(x * PIXELS), round(y * PIXELS)), mask)

    def done(self) -> Image.Image:
        return self.image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def mixed(colour: str, share: float) -> str:
    """A colour over the surface."""
    parts = zip(*([int(name[i : i + 2], 16) for i in (1, 3, 5)] for name in (colour, SURFACE)), strict=True)
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in parts)


class Film:
    """A stretch of the stream that a report shows: what was decoded, and when it was known."""

    def __init__(self, results: StreamResults, name: str, seconds: float) -> None:
        self.setting = setting = results.settings[name]
        self.saving = _saving(setting)
        self.seconds = min(seconds, setting.timeline.duration)
        self.events = setting.timeline.events
        self.selective = setting.timeline.decodes[self.saving.policy]
        self.uniform = setting.timeline.decodes[self.saving.reference.policy]
        made = results.model_dump(include={"config"})["config"]
        config = validate(made["evaluate"], EvaluateConfig)
        world = build_as(World, "world", made["train"]["world"])
        [stream, *_] = made_streams(world, name, config.streams[name], config.seed)["test"]
        shown = [(event.start, event.end, event.text) for event in stream.record.events]
        if shown != [(event.start, event.end, event.text) for event in self.events]:
            raise InputError(f"the stream {setting.timeline.video_id} must be of the world that its checkpoint names")
        self.fps, self.frames = stream.fps, next(stream.frames(chunk=int(self.seconds * stream.fps)))

    def at(self, time: float) -> np.ndarray:
        picture: np.ndarray = self.frames[min(int(time * self.fps), len(self.frames) - 1)]
        return picture

    def annotated(self, decode: Decode) -> str:
        """What was shown in the middle of a decode's segment."""
        found = [event.text for event in self.events if event.start <= decode.time < event.end]
        return found[0] if found else "nothing happens"

    def frame(self, now: float) -> Image.Image:
        canvas = Canvas()
        canvas.box((0, 0, WIDTH - 1, HEIGHT - 1), SURFACE, GRID, radius=12)
        canvas.paste(self.at(now), PAD, PAD, PICTURE)
        self._texts(canvas, now)
        self._timeline(canvas, now)
        return canvas.done()

    def _texts(self, canvas: Canvas, now: float) -> None:
        """The newest texts, each beside the picture that it is about."""
        known = [decode for decode in self.selective if decode.emitted_at <= now]
        x, y = PAD + PICTURE + 30, PAD
        if not known:
            canvas.text(x, y + 26, "A text appears when the meaning has changed.", 15, MUTED)
        first = max(len(known) - ROWS, 0)
        for place, decode in enumerate(known[first:]):
            top, age = y + place * ROW, now - decode.emitted_at
            if age < 1 and now < self.seconds:
                canvas.box((x - 8, top - 5, WIDTH - PAD + 8, top + 55), mixed(SELECTIVE, 0.25 * (1 - age)), radius=6)
            canvas.paste(self.at(decode.time), x, top, 50)
            canvas.text(x + 64, top + 16, short(decode.text, 330), 16, bold=True)
            canvas.text(x + 64, top + 38, short(f"annotated: {self.annotated(decode)}", 440), 12, MUTED)
            number = sum(each.source == "decoder" for each in known[: first + place + 1])
            if decode.source == "decoder":
                canvas.box((WIDTH - PAD - 118, top + 5, WIDTH - PAD - 4, top + 27), mixed(SELECTIVE, 0.28), radius=11)
                canvas.text(WIDTH - PAD - 61, top + 16, f"decoder call {number}", 11.5, anchor="mm")
            else:
                canvas.box((WIDTH - PAD - 118, top + 5, WIDTH - PAD - 4, top + 27), None, SELECTIVE, radius=11)
                canvas.text(WIDTH - PAD - 61, top + 16, f"from the {decode.source}", 11.5, SELECTIVE, anchor="mm")

    def _timeline(self, canvas: Canvas, now: float) -> None:
        scale = (RIGHT - LEFT) / self.seconds
        top = PAD + PICTURE + 30

        def x(time: float) -> float:
            return LEFT + scale * min(max(time, 0.0), self.seconds)

        rows = {"annotated": top, analysis.reference_name(self.setting): top + 32, "selective": top + 64}
        for name, y in rows.items():
            canvas.text(PAD, y + 11, name, 13, MUTED)
            canvas.box((LEFT, y, RIGHT, y + 22), mixed(GRID, 0.45))
        for event in self.events:
            canvas.box((x(event.start), top, x(min(event.end, now)) - 1.5, top + 22), mixed(MUTED, 0.55))
        uniform = [decode for decode in self.uniform if decode.emitted_at <= now]
        for decode in uniform:
            if decode.time < self.seconds:
                canvas.box((x(decode.time) - 2, top + 34, x(decode.time) + 2, top + 52), UNIFORM, radius=1.5)
        known = [decode for decode in self.selective if decode.emitted_at <= now]
        for decode in known:
            place = (x(decode.start), top + 65, x(decode.end + 0.5) - 2, top + 85)
            if decode.source == "decoder":
                canvas.box(place, SELECTIVE)
            else:
                canvas.box(place, mixed(SELECTIVE, 0.12), SELECTIVE)
        canvas.box((x(now) - 0.7, top - 5, x(now) + 0.7, top + 91), INK, radius=0)
        for second in range(0, int(self.seconds) + 1, 5):
            canvas.text(x(second), top + 101, f"{second} s", 11, MUTED, anchor="mm")
        calls = sum(decode.source == "decoder" for decode in known)
        canvas.text(RIGHT + 56, top + 43, str(len(uniform)), 24, UNIFORM, bold=True, anchor="rm")
        canvas.text(RIGHT + 66, top + 43, "decoder calls", 13, MUTED)
        canvas.text(RIGHT + 56, top + 75, str(calls), 24, SELECTIVE, bold=True, anchor="rm")
        canvas.text(RIGHT + 66, top + 75, f"decoder calls, {len(known) - calls} from cache", 13, MUTED)
        canvas.text(PAD, HEIGHT - 30, self.claim(), 13)

    def claim(self) -> str:
        """What the report found on all test streams of the setting."""
        saving, streams = self.saving, self.setting.streams
        if saving.ratio is None or saving.quality is None:
            raise InputError(f"the {saving.policy} must have an operating point, got none: {saving.reason}")
        return (
            f"All {streams.test} test streams of {streams.seconds_each:.0f} s: {saving.ratio.value:.2f}× fewer decoder "
            f"calls than {analysis.reference_name(self.setting)}, "
            f"CIDEr-D {saving.quality:.2f} against {saving.reference_quality:.2f}."
        )


def _saving(setting: Setting) -> Saving:
    best = analysis.best_causal(setting)
    if best is None:
        raise InputError("a causal policy must have an operating point, got none")
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path, help="results.json of a report on streams of the embedded world")
    parser.add_argument("to", type=Path, help="the file to write, .webp; .png with --still")
    parser.add_argument("--setting", default="dense")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--quality", type=int, default=60, help="of the pictures' compression, up to 100")
    parser.add_argument("--still", type=float, help="the second of a single frame")
    given = parser.parse_args()
    film = Film(read_document(given.results, StreamResults), given.setting, given.seconds)
    if given.still is not None:
        film.frame(given.still).save(given.to)
        return
    times = np.arange(int(film.seconds * film.fps) + 1) / film.fps
    frames = [film.frame(time) for time in times]
    durations = [round(1000 / film.fps)] * (len(frames) - 1) + [round(1000 * HOLD)]
    settings = {"duration": durations, "loop": 0, "quality": given.quality, "method": 4, "allow_mixed": True}
    frames[0].save(given.to, save_all=True, append_images=frames[1:], **settings)
    print(f"{given.to}: {given.to.stat().st_size / 2**20:.2f} MB, {sum(durations) / 1000:.1f} s")


if __name__ == "__main__":
    main()
