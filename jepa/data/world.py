"""A procedural video world: coloured shapes that act on moving, noisy backgrounds.

Pixels change at every frame; the meaning changes only at the boundary of two events. Everything is a function of seeds:
the same seed gives the same pixels, texts and timelines on every machine, whatever the number of workers.

N clips, M frames, O = 2 object slots, S pixels a side, T frames a clip.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import permutations, product
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from jepa.data.records import Event, StreamRecord
from jepa.errors import InputError, check_int, check_nonnegative, check_positive

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 90, 240),
    "yellow": (240, 220, 50),
    "purple": (160, 60, 200),
    "orange": (250, 140, 30),
    "white": (245, 245, 245),
    "cyan": (50, 210, 220),
}
SHAPES = ("circle", "bar", "triangle", "star", "cross", "ring")

# Each action: its paraphrases; the first is the short answer to "what does it do?". {o} is the second object.
SOLO_ACTIONS: dict[str, tuple[str, ...]] = {
    "left": ("moves left", "slides to the left", "drifts leftwards"),
    "right": ("moves right", "slides to the right", "drifts rightwards"),
    "up": ("moves up", "rises to the top", "climbs upwards"),
    "down": ("moves down", "sinks to the bottom", "falls downwards"),
    "grow": ("grows", "gets bigger", "becomes larger"),
    "shrink": ("shrinks", "gets smaller", "becomes tiny"),
    "blink": ("blinks", "flashes on and off", "keeps flickering"),
    "spin": ("spins", "turns around itself", "rotates in place"),
    "shake": ("shakes", "trembles quickly", "wobbles from side to side"),
    "bounce": ("bounces", "hops up and down", "keeps jumping"),
}
PAIR_ACTIONS: dict[str, tuple[str, ...]] = {
    "collide": ("bumps into {o}", "collides with {o}", "hits {o} again and again"),
    "orbit": ("circles {o}", "orbits around {o}", "goes round {o}"),
    "chase": ("chases {o}", "runs after {o}", "follows {o}"),
}
ACTIONS = (*SOLO_ACTIONS, *PAIR_ACTIONS)
TRANSITIONS = ("left", "right", "up", "down", "grow", "shrink")  # that two moments half a second apart tell apart
PHRASES = SOLO_ACTIONS | PAIR_ACTIONS
IDLE = "idle"
IDLE_TEXTS = ("nothing happens", "nothing moves", "all is still")
CAPTION_QUERIES = ("what happens?", "describe what happens", "what is going on?")
VARIATIONS = ("action", "shape", "colour")
BINDING = "binding"  # who acts on whom, or whose colour and shape it is: of pairs alone
NUMBERS = ("none", "one", "two")


@dataclass(frozen=True)
class Scene:
    """What a window of video means: an action and the (colour, shape) of who takes part, the acting object first.

    A solo action has one object, a pair action two, a pause none to two.
    """

    action: str
    objects: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Question:
    """A question about a scene, its short answer, and the candidates that this is chosen from."""

    kind: str
    text: str
    answer: str
    candidates: tuple[str, ...]


def names(scene: Scene, article: str = "the") -> list[str]:
    """Noun phrases of the scene's objects: `the red bar`."""
    return [f"{article} {colour} {shape}" for colour, shape in scene.objects]


def captions(scene: Scene) -> list[str]:
    """Every paraphrase of the scene's caption; the first is the canonical one."""
    if scene.action == IDLE:
        return list(IDLE_TEXTS)
    texts = []
    for phrase, article in product(PHRASES[scene.action], ("the", "a")):
        subject, *others = names(scene, article)
        texts.append(f"{subject} {phrase.format(o=others[0]) if others else phrase}")
    return texts


def questions(scene: Scene) -> list[Question]:
    """The questions that have one right answer in the scene."""
    asked = [Question("how many", "how many objects are there?", NUMBERS[len(scene.objects)], NUMBERS)]
    for colour, shape in scene.objects:
        asked.append(Question("what colour", f"what colour is the {shape}?", colour, tuple(COLOURS)))
        asked.append(Question("what shape", f"what shape is the {colour} object?", shape, SHAPES))
    if scene.action in SOLO_ACTIONS:
        answers = tuple(phrases[0] for phrases in SOLO_ACTIONS.values())
        asked.append(Question("what does it do", f"what does {names(scene)[0]} do?", PHRASES[scene.action][0], answers))
    return asked


@cache
def corpus() -> tuple[str, ...]:
    """Every word form the world can say, for training a tokenizer: captions, queries, questions, answers."""
    texts = [*CAPTION_QUERIES, *IDLE_TEXTS, *NUMBERS, *COLOURS, *SHAPES]
    for scene in all_scenes():
        texts += [*captions(scene), *(text for asked in questions(scene) for text in (asked.text, asked.answer))]
    return tuple(texts)


def all_scenes() -> list[Scene]:
    """Every composition with an event, in a fixed order; a circle or ring cannot be seen to spin, so it does not."""
    things = list(product(COLOURS, SHAPES))
    pairs = [(a, b) for a, b in permutations(things, 2) if a[0] != b[0] and a[1] != b[1]]
    scenes = [Scene(action, (thing,)) for action, thing in product(SOLO_ACTIONS, things)]
    scenes += [Scene(action, pair) for action, pair in product(PAIR_ACTIONS, pairs)]
    return [s for s in scenes if s.action != "spin" or s.objects[0][1] not in ("circle", "ring")]


def is_held_out(scene: Scene, percent: int) -> bool:
    """Whether the composition is kept out of training: a fixed hash of its words, the same for every seed."""
    return zlib.crc32(repr((scene.action, scene.objects)).encode()) % 100 < percent


@dataclass(frozen=True)
class StreamStyle:
    """How the events of a stream follow each other. Times in seconds."""

    mean_event: float  # of log-normal durations
    spread: float = 0.5  # of their logarithms
    shortest: float = 1.0
    pause_probability: float = 0.15  # of a pause after an event
    mean_pause: float = 3.0  # of exponential durations
    recurrence: float = 0.35  # fraction of events like an earlier one, not the last (EPIC-KITCHENS-100: 35 %)

    def __post_init__(self) -> None:
        for name in ("mean_event", "shortest", "mean_pause"):
            check_positive(name, getattr(self, name))
        for name in ("pause_probability", "recurrence"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.spread < 0 or self.shortest >= self.mean_event:
            got = f"spread {self.spread}, shortest {self.shortest}, mean_event {self.mean_event}"
            raise InputError(f"spread must be >= 0 and shortest < mean_event, got {got}")


@dataclass(frozen=True)
class Span:
    """A stretch of a timeline with one meaning, or a pause."""

    start: float
    end: float
    scene: Scene
    text: str


class World:
    """Scenes, clips and streams of `size` x `size` pixels at `fps` frames per second.

    Pixels have normal `noise`, and drifting waves of the amplitude `background`, both in grey levels (0-255).
    `held_out_percent` of all compositions never occur in training.

    >>> stream = World(size=32).stream("s", seed=(0,), duration=9.0, style=StreamStyle(mean_event=3.0))
    >>> next(stream.frames(chunk=8)).shape
    (8, 32, 32, 3)
    """

    def __init__(
        self, size: int = 48, fps: int = 8, noise: float = 10.0, background: float = 24.0, held_out_percent: int = 25
    ) -> None:
        self.size, self.fps = check_int("size", size, 16), check_int("fps", fps, 1)
        self.noise, self.background = check_nonnegative("noise", noise), check_nonnegative("background", background)
        if not 0 < held_out_percent < 100:
            raise InputError(f"held_out_percent must be between 0 and 100, got {held_out_percent}")
        self.held_out_percent = held_out_percent
        self._varied: dict[tuple[str, Scene, str, int], list[Scene]] = {}

    @cached_property
    def splits(self) -> dict[str, tuple[list[Scene], list[Scene]]]:
        """`train` and `held_out` compositions, each as (solo, pair) lists."""
        split: dict[str, tuple[list[Scene], list[Scene]]] = {"train": ([], []), "held_out": ([], [])}
        for scene in all_scenes():
            name = "held_out" if is_held_out(scene, self.held_out_percent) else "train"
            split[name][len(scene.objects) - 1].append(scene)
        return split

    @cached_property
    def _members(self) -> dict[str, frozenset[Scene]]:
        return {name: frozenset(solo + pairs) for name, (solo, pairs) in self.splits.items()}

    def sample_scene(self, rng: Generator, split: str) -> Scene:
        """A random composition of the split (or of `all`), a pair action with probability 0.3."""
        is_pair = int(rng.random() < 0.3)
        if split == "all":
            split = "held_out" if rng.random() < self.held_out_percent / 100 else "train"
        pool = self.splits[split][is_pair]
        return pool[rng.integers(len(pool))]

    def vary(self, scene: Scene, what: str, rng: Generator, split: str) -> Scene | None:
        """A scene of the split that differs from `scene` in its `what` alone; None if there is none."""
        key = split, scene, what, int(rng.integers(len(scene.objects)))
        if (options := self._varied.get(key)) is None:
            options = self._varied[key] = self._variations(*key)
        return options[rng.integers(len(options))] if options else None

    def _variations(self, split: str, scene: Scene, what: str, slot: int) -> list[Scene]:
        colour, shape = scene.objects[slot]
        if what == "action":
            options = [Scene(action, scene.objects) for action in ACTIONS]
        elif what == BINDING:
            colours, shapes = zip(*scene.objects, strict=True)
            orders = [(colours[::-1], shapes[::-1]), (colours[::-1], shapes), (colours, shapes[::-1])]
            options = [Scene(scene.action, tuple(zip(*order, strict=True))) for order in orders]
        else:
            things = [(c, shape) for c in COLOURS] if what == "colour" else [(colour, s) for s in SHAPES]
            before, after = scene.objects[:slot], scene.objects[slot + 1 :]
            options = [Scene(scene.action, (*before, thing, *after)) for thing in things]
        members = self._members[split]
        return [option for option in options if option != scene and option in members]

    def clips(self, spans: list[list[Span]], windows: np.ndarray, rng: Generator) -> np.ndarray:
        """One clip for each timeline in `spans`: the frames at `windows` (N, T) seconds, as (N, T, S, S, 3) uint8.

        Every clip gets a background of its own.
        """
        count, length = windows.shape
        motion = _Motion.draw([span for timeline in spans for span in timeline], rng)
        offsets = np.cumsum([0] + [len(timeline) for timeline in spans])
        index = np.empty((count, length), dtype=np.int64)
        for i, timeline in enumerate(spans):
            index[i] = offsets[i] + np.searchsorted([s.start for s in timeline[1:]], windows[i], side="right")
        backdrop = _Backdrop.draw(count, self.background, rng)
        row = np.repeat(np.arange(count), length)
        frames = self._render(motion, index.ravel(), backdrop, row, windows.ravel(), rng)
        return frames.reshape(count, length, self.size, self.size, 3)

    def transitions(self, scenes: list[Scene], rng: Generator) -> np.ndarray:
        """Two moments of each scene, half a second apart: before and after, (N, 2, S, S, 3) uint8.

        What grows or shrinks does not start over in between.
        """
        motion = _Motion.draw([Span(0.0, np.inf, scene, "") for scene in scenes], rng)
        motion.phase /= 2  # of a cycle that lasts 1.8 s or longer
        backdrop = _Backdrop.draw(len(scenes), self.background, rng)
        row = np.repeat(np.arange(len(scenes)), 2)
        frames = self._render(motion, row, backdrop, row, np.tile([0.0, 0.5], len(scenes)), rng)
        return frames.reshape(len(scenes), 2, self.size, self.size, 3)

    def timeline(self, rng: Generator, duration: float, style: StreamStyle, split: str) -> list[Span]:
        """Events and pauses that fill `duration` seconds, in order and without a gap; scenes of `split` (or `all`)."""
        spans, events, now = list[Span](), list[Span](), 0.0
        log_mean = np.log(style.mean_event) - 0.5 * style.spread**2
        while now < duration:
            earlier = [e for e in events[:-1] if e.scene != events[-1].scene]
            if earlier and rng.random() < style.recurrence:
                scene, text = (again := earlier[rng.integers(len(earlier))]).scene, again.text
            else:
                scene = self.sample_scene(rng, split)
                while events and scene == events[-1].scene:
                    scene = self.sample_scene(rng, split)
                text = str(rng.choice(captions(scene)))
            length = max(style.shortest, float(rng.lognormal(log_mean, style.spread)))
            spans.append(Span(now, min(now + length, duration), scene, text))
            events.append(spans[-1])
            now += length
            if now < duration and rng.random() < style.pause_probability:
                pause = max(style.shortest, float(rng.exponential(style.mean_pause)))
                still = Scene(IDLE, scene.objects if rng.random() < 0.5 else ())
                spans.append(Span(now, min(now + pause, duration), still, str(rng.choice(IDLE_TEXTS))))
                now += pause
        if len(spans) > 1 and spans[-1].end - spans[-1].start < style.shortest:  # a stub at the stream's end
            spans[-2:] = [Span(spans[-2].start, duration, spans[-2].scene, spans[-2].text)]
        return spans

    def stream(
        self, video_id: str, seed: tuple[int, ...], duration: float, style: StreamStyle, split: str = "all"
    ) -> Stream:
        """The stream of a seed; its frames are drawn when they are asked for."""
        check_positive(f"duration of {video_id!r}", duration)
        spans = self.timeline(np.random.default_rng([*seed, 0]), duration, style, split)
        events = tuple(
            Event(s.start, s.end, s.text, tuple(text for text in captions(s.scene) if text != s.text))
            for s in spans
            if s.scene.action != IDLE
        )
        return Stream(self, seed, spans, StreamRecord(video_id, duration, events))

    def _render(
        self, motion: _Motion, scene: np.ndarray, backdrop: _Backdrop, row: np.ndarray, now: np.ndarray, rng: Generator
    ) -> np.ndarray:
        """(M, S, S, 3) uint8: frame m shows `scene[m]` at `now[m]` seconds before backdrop `row[m]`."""
        frames = np.empty((len(now), 3, self.size, self.size), dtype=np.uint8)
        grains = np.lib.stride_tricks.sliding_window_view(_noise_bank(), self.size**2)
        start = rng.integers(len(grains) - 1, size=len(now))
        for first in range(0, len(now), _FRAMES_AT_ONCE):
            some = slice(first, first + _FRAMES_AT_ONCE)
            image = self._without_noise(motion, scene[some], backdrop, row[some], now[some])
            image += self.noise * grains[start[some]].reshape(-1, 1, self.size, self.size)
            frames[some] = np.clip(image, 0, 255, out=image)
        return frames.transpose(0, 2, 3, 1)

    def _without_noise(
        self, motion: _Motion, scene: np.ndarray, backdrop: _Backdrop, row: np.ndarray, now: np.ndarray
    ) -> np.ndarray:
        """(M, 3, S, S) float32, of the arguments of `_render`."""
        image = backdrop.paint(row, now, self.size)
        state = motion.at(scene, now)
        for slot in range(2):
            shown = np.flatnonzero(state.opacity[:, slot] > 0)
            if len(shown):
                cover = _coverage(_State(*(values[shown, slot] for values in state)), self.size)
                colour = motion.colour[scene[shown], slot].reshape(-1, 3, 1, 1)
                image[shown] += cover[:, None] * (colour - image[shown])
        return image


@dataclass(frozen=True)
class Stream:
    """One procedural stream: its annotation `record`, its `spans` with the pauses, and its frames on demand."""

    world: World
    seed: tuple[int, ...]
    spans: list[Span]
    record: StreamRecord

    @property
    def fps(self) -> int:
        return self.world.fps

    @property
    def frame_count(self) -> int:
        return int(self.record.duration * self.fps)

    def frames(self, chunk: int = 128) -> Iterator[np.ndarray]:
        """The frames in order, at most `chunk` at a time: (M, S, S, 3) uint8; frame m is at m / fps seconds."""
        rng = np.random.default_rng([*self.seed, 1])
        motion = _Motion.draw(self.spans, rng)
        backdrop = _Backdrop.draw(1, self.world.background, rng)
        for first in range(0, self.frame_count, chunk):
            now = np.arange(first, min(first + chunk, self.frame_count)) / self.world.fps
            scene = np.searchsorted(motion.start[1:], now, side="right")
            yield self.world._render(motion, scene, backdrop, np.zeros(len(now), dtype=np.int64), now, rng)


class _State(NamedTuple):
    """Where the objects are: each (M, O), positions and radii as fractions of the frame, angles in radians."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    angle: np.ndarray
    opacity: np.ndarray
    shape: np.ndarray


@dataclass
class _Motion:
    """The free parameters of each scene's motion, drawn once a scene (first axis: scenes)."""

    start: np.ndarray  # seconds
    action: np.ndarray  # index into ACTIONS, -1 idle
    present: np.ndarray  # (·, O)
    colour: np.ndarray  # (·, O, 3)
    shape: np.ndarray  # (·, O)
    radius: np.ndarray  # (·, O)
    x: np.ndarray
    y: np.ndarray
    heading: np.ndarray
    pace: np.ndarray  # uniform in [0, 1): how fast, within the action's range
    phase: np.ndarray  # uniform in [0, 1)
    tilt: np.ndarray  # (·, O) starting angle

    @classmethod
    def draw(cls, spans: list[Span], rng: Generator) -> _Motion:
        count = len(spans)
        present = np.zeros((count, 2), dtype=bool)
        colour = np.zeros((count, 2, 3), dtype=np.float32)
        shape = np.zeros((count, 2), dtype=np.int64)
        action = np.array([-1 if span.scene.action == IDLE else ACTIONS.index(span.scene.action) for span in spans])
        for i, span in enumerate(spans):
            for slot, (name, form) in enumerate(span.scene.objects):
                present[i, slot], colour[i, slot], shape[i, slot] = True, COLOURS[name], SHAPES.index(form)
        colour = np.clip(colour + rng.uniform(-18, 18, colour.shape).astype(np.float32), 0, 255)
        pair = present[:, 1]
        radius = np.where(pair[:, None], rng.uniform(0.17, 0.2, (count, 2)), rng.uniform(0.24, 0.32, (count, 2)))
        x, y = rng.uniform(0.25, 0.75, (2, count))  # mostly whole in the frame until they move
        pace, phase = rng.random((2, count))
        heading = rng.uniform(0, 2 * np.pi, count)
        tilt = rng.uniform(-0.3, 0.3, (count, 2))
        start = np.array([span.start for span in spans])
        return cls(start, action, present, colour, shape, radius, x, y, heading, pace, phase, tilt)

    def at(self, scene: np.ndarray, now: np.ndarray) -> _State:
        """The state of frames that show `scene` (M,) at `now` (M,) seconds. The frame is a torus."""
        t = now - self.start[scene]
        act, pace, phase, heading = (values[scene] for values in (self.action, self.pace, self.phase, self.heading))
        x, y = np.repeat(self.x[scene, None], 2, 1), np.repeat(self.y[scene, None], 2, 1)
        radius, angle = self.radius[scene].copy(), self.tilt[scene].copy()
        opacity = self.present[scene].astype(np.float32)
        still_pair = self.present[scene, 1] & (act < 0)
        x[still_pair, 1] += 0.45

        def doing(name: str) -> np.ndarray:
            return np.flatnonzero(act == ACTIONS.index(name))

        speed = 0.4 + 0.35 * pace  # frame widths per second
        for name, sx, sy in (("left", -1, 0), ("right", 1, 0), ("up", 0, -1), ("down", 0, 1)):
            i = doing(name)
            x[i, 0] += sx * speed[i] * t[i]
            y[i, 0] += sy * speed[i] * t[i]
        cycle = (t / (1.8 + 0.8 * pace) + phase) % 1  # a saw tooth of 1.8-2.6 s
        i = doing("grow")
        radius[i, 0] = 0.1 + 0.25 * cycle[i]
        i = doing("shrink")
        radius[i, 0] = 0.35 - 0.25 * cycle[i]
        i = doing("blink")
        opacity[i, 0] = ((t[i] / (0.45 + 0.2 * pace[i]) + phase[i]) % 1 < 0.55).astype(np.float32)
        i = doing("spin")
        angle[i, 0] += 2 * np.pi * (0.45 + 0.3 * pace[i]) * t[i]
        i = doing("shake")
        x[i, 0] += 0.07 * np.sin(2 * np.pi * ((2.1 + 0.8 * pace[i]) * t[i] + phase[i]))
        i = doing("bounce")
        y[i, 0] -= 0.3 * np.abs(np.sin(np.pi * ((0.9 + 0.4 * pace[i]) * t[i] + phase[i]))) - 0.15

        i = doing("collide")
        reach = radius[i].sum(1) + 0.25 * np.abs(1 - 2 * ((t[i] / (0.9 + 0.4 * pace[i]) + phase[i]) % 1))
        x[i, 0] += reach * np.cos(heading[i])
        y[i, 0] += reach * np.sin(heading[i])
        i = doing("orbit")
        turn = heading[i] + 2 * np.pi * t[i] / (1.2 + 0.6 * pace[i])
        x[i, 0] += 0.34 * np.cos(turn)
        y[i, 0] += 0.34 * np.sin(turn)
        i = doing("chase")
        for slot, behind in ((0, 0.36), (1, 0.0)):
            x[i, slot] += (speed[i] * t[i] - behind) * np.cos(heading[i])
            y[i, slot] += (speed[i] * t[i] - behind) * np.sin(heading[i])
        return _State(x % 1, y % 1, radius, angle, opacity, self.shape[scene])


@dataclass(frozen=True)
class _Backdrop:
    """Drifting coloured waves: for each row, a base colour and K = 3 plane waves."""

    base: np.ndarray  # (R, 3)
    tint: np.ndarray  # (R, K, 3)
    wave: np.ndarray  # (R, K, 2) cycles per frame width
    drift: np.ndarray  # (R, K) cycles per second
    phase: np.ndarray  # (R, K)

    @classmethod
    def draw(cls, rows: int, amplitude: float, rng: Generator) -> _Backdrop:
        return cls(
            base=rng.uniform(55, 115, (rows, 1)) + rng.uniform(-20, 20, (rows, 3)),
            tint=amplitude / np.sqrt(3) * rng.normal(size=(rows, 3, 3)),
            wave=rng.integers(-2, 3, (rows, 3, 2)).astype(np.float64),
            drift=rng.uniform(-0.6, 0.6, (rows, 3)),
            phase=rng.random((rows, 3)),
        )

    def paint(self, row: np.ndarray, now: np.ndarray, size: int) -> np.ndarray:
        """(M, 3, S, S) float32; sin(a + b) = sin a cos b + cos a sin b makes each channel one matrix product."""
        grid = 2 * np.pi * np.arange(size) / size
        across = self.wave[row, :, 0, None] * grid
        along = self.wave[row, :, 1, None] * grid
        along += 2 * np.pi * (self.phase[row] + self.drift[row] * now[:, None])[:, :, None]
        left = np.concatenate([np.sin(along), np.cos(along)], axis=1).astype(np.float32).transpose(0, 2, 1)
        right = np.concatenate([np.cos(across), np.sin(across)], axis=1).astype(np.float32)
        tint = np.tile(self.tint, (1, 2, 1)).astype(np.float32)[row].transpose(0, 2, 1)
        image = (left[:, None] * tint[:, :, None, :]) @ right[:, None]
        image += self.base[row].astype(np.float32)[:, :, None, None]
        return image


_FRAMES_AT_ONCE = 32  # to draw: of 64 pixels they stay in a processor's caches
_TEXTURE = 128  # texels a side of a shape's signed-distance map
_EXTENT = 1.5  # in radii


def _coverage(state: _State, size: int) -> np.ndarray:
    """How much of each pixel one object a frame covers: (M, S, S) float32 in [0, 1], anti-aliased."""
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    scale = (_TEXTURE / (2 * _EXTENT) / state.radius)[:, None].astype(np.float32)
    dx = ((grid - state.x[:, None].astype(np.float32) + 0.5) % 1 - 0.5) * scale
    dy = ((grid - state.y[:, None].astype(np.float32) + 0.5) % 1 - 0.5) * scale
    cos = np.cos(state.angle).astype(np.float32)[:, None]
    sin = np.sin(state.angle).astype(np.float32)[:, None]
    half = np.float32(_TEXTURE / 2)
    u = (cos * dx)[:, None, :] + ((sin * dy) + half)[:, :, None]
    v = (-sin * dx)[:, None, :] + ((cos * dy) + half)[:, :, None]
    np.clip(u, 0, _TEXTURE - 1, out=u)
    np.clip(v, 0, _TEXTURE - 1, out=v)
    flat = v.astype(np.int32)
    flat *= _TEXTURE
    flat += u.astype(np.int32)
    flat += (state.shape[:, None, None] * _TEXTURE**2).astype(np.int32)
    distance = _shape_maps().take(flat)
    distance *= (state.radius * size).astype(np.float32)[:, None, None]
    distance += np.float32(0.5)
    np.clip(distance, 0, 1, out=distance)
    distance *= state.opacity[:, None, None]
    return distance


@cache
def _shape_maps() -> np.ndarray:
    """Approximate distance to each shape's outline, positive inside, in radii: (shapes * texels,) float32."""
    axis = (np.arange(_TEXTURE) + 0.5) / _TEXTURE * 2 * _EXTENT - _EXTENT
    u, v = np.meshgrid(axis, axis)
    rho, theta = np.hypot(u, v), np.arctan2(v, u)

    sector = (theta + np.pi / 2 + np.pi / 3) % (2 * np.pi / 3) - np.pi / 3
    triangle = 1.15 * np.cos(np.pi / 3) - rho * np.cos(np.abs(sector) - np.pi / 3)  # points up
    fold = np.abs((theta + np.pi / 2) % (2 * np.pi / 5) - np.pi / 5)  # 0 between two points of the star
    tip, notch = np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)]) * 1.25, np.array([0.38, 0.0])
    normal = np.array([tip[1] - notch[1], notch[0] - tip[0]])
    normal /= np.hypot(*normal)
    star = normal @ notch - (rho * np.cos(fold) * normal[0] + rho * np.sin(fold) * normal[1])
    cross = np.maximum(np.minimum(0.2 - np.abs(u), 1.1 - np.abs(v)), np.minimum(0.2 - np.abs(v), 1.1 - np.abs(u)))
    bar = np.minimum(1.15 - np.abs(u), 0.32 - np.abs(v))
    maps = [0.9 - rho, bar, triangle, star, cross, 0.22 - np.abs(rho - 0.78)]  # in the order of SHAPES
    return np.stack(maps).astype(np.float32).ravel()


@cache
def _noise_bank() -> np.ndarray:
    """A fixed strip of standard normal samples; frames read it at random offsets."""
    return np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
