"""Where the frames of a live stream come from, and how they wait for the model: bounded, the newest win.

A source gives pictures with times on its own clock. A `Feed` runs it in a thread and comes back after failures. A
`Mailbox` turns its pictures into frames at the model's rate. S is the side of the model's frames in pixels. A picture
is an `av.VideoFrame` of any size.
"""

from __future__ import annotations

import io
import math
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from jepa.data.records import Event
from jepa.data.video import JUMP, VideoFile, picture
from jepa.data.world import StreamStyle, World
from jepa.errors import InputError, needs_extra

with needs_extra("live"):
    import av

Shots = Iterator[tuple[float, Any]]  # seconds on the source's clock, and the picture then
KINDS = ("world", "webcam", "stdin:<width>x<height>@<fps>", "push", "<url>", "<file>")
_PIECE = 120.0  # seconds of the endless world that are drawn at once
_PROTOCOLS = "http,https,tcp,tls,crypto,udp,rtp,rtsp,rtmp,srt,hls"  # of a URL: what it refers to is no local file
_TIMEOUT = 10.0  # seconds to open a URL, and to wait for data; FFmpeg tries twice
_BACK_OFF = (0.5, 30.0)  # seconds before the first attempt to come back, and at most; each is twice the one before
_PIXELS = 4096 * 4096  # of a pushed picture, at most


@dataclass(frozen=True)
class Source:
    """Pictures by the name of their source.

    Args:
        name: as it is shown, without a password.
        open: gives the pictures from the beginning; None of one whose frames are pushed.
        paced: its times do not pass by themselves, as of a file, or pass in jumps, as of HLS: somebody has to wait.
        returns: it is opened again after it broke off or ended.
        there: it must be there at first; else it ends, even if it returns.
        events: what is known to happen in it, with times on its clock.
    """

    name: str
    open: Callable[[], Shots] | None = None
    paced: bool = False
    returns: bool = False
    there: bool = False
    events: Callable[[], Sequence[Event]] = tuple


def parse_source(name: str, world: World) -> Source:
    """The source of a name, one of `KINDS`; a `World` draws the embedded one. Raises `InputError` for a bad name.

    >>> parse_source("rtsp://me:secret@camera/1", World()).name
    'rtsp://camera/1'
    """
    kind, _, rest = name.partition(":")
    if name == "push":
        return Source(name)
    if kind == "world" and (not rest or rest.isdecimal()):
        endless = EndlessWorld(world, int(rest or 0))
        return Source(name, endless.shots, paced=True, events=lambda: tuple(endless.events))
    if kind == "webcam" and (not rest or rest.isdecimal() or sys.platform == "win32"):
        return Source(name, lambda: camera(rest or "0"), returns=True, there=True)
    if kind == "stdin":
        return Source(name, _raw_frames(rest))
    if "://" in name and kind != "file":
        options = {"protocol_whitelist": _PROTOCOLS} | ({"rtsp_transport": "tcp"} if kind == "rtsp" else {})
        shown, paced = re.sub(r"//[^/@]*@", "//", name), kind in ("http", "https")
        opened = partial(video_shots, shown, name, True, timeout=_TIMEOUT, options=options)
        return Source(shown, opened, paced, returns=True)
    path = Path(name.removeprefix("file:"))
    if not path.is_file():
        raise InputError(f"source must be {', '.join(KINDS)}, got {name!r}, which is no file")
    return Source(name, lambda: video_shots(str(path), path), paced=True)


def check_allowed(name: str, allowed: Sequence[str]) -> None:
    """Raises `InputError` unless a source is one of `allowed`, or lies below one that ends in ``/`` or ``:``.

    >>> check_allowed("rtsp://camera/1", ["world", "rtsp://camera/"])
    """
    kind, _, path = name.partition(":")
    if kind == "file":
        name = f"file:{Path(path).resolve()}"  # so that no .. leads out
    if name not in allowed and not any(each[-1:] in ("/", ":") and name.startswith(each) for each in allowed):
        raise InputError(f"source must be allowed on the command line ({', '.join(allowed)}), got {name!r}")


def video_shots(name: str, source: Path | str, live: bool = False, **options: Any) -> Shots:
    """Pictures of a file, a URL or a device; see `VideoFile`."""
    with VideoFile(name, source, live, **options) as file:
        for frame in file.decode():
            yield frame.time if file.timed else time.monotonic(), frame


def camera(name: str) -> Shots:
    """Pictures of a camera: its number, or on Windows its name."""
    devices = {
        "linux": (f"/dev/video{name}", "v4l2", {}, "v4l2-ctl --list-devices"),
        "darwin": (
            f"{name}:none",
            "avfoundation",
            {"framerate": "30"},
            "ffmpeg -f avfoundation -list_devices true -i ''",
        ),
        "win32": (f"video={name}", "dshow", {}, "ffmpeg -f dshow -list_devices true -i dummy"),
    }
    if sys.platform not in devices:
        raise InputError(f"a webcam is read on {', '.join(devices)}, got {sys.platform}")
    device, form, options, listed = devices[sys.platform]
    try:
        yield from video_shots(f"webcam {device}", device, True, format=form, options=options)
    except InputError as error:
        raise InputError(f"{error}; `{listed}` lists the cameras of this machine") from None


def _raw_frames(described: str, file: BinaryIO | None = None) -> Callable[[], Shots]:
    """RGB frames of standard input, three bytes a pixel, by ``<width>x<height>@<fps>``."""
    found = re.fullmatch(r"(\d+)x(\d+)@(\d+(?:\.\d+)?)", described)
    if not found or not (width := int(found[1])) or not (height := int(found[2])) or not (fps := float(found[3])):
        raise InputError(f"raw frames must be described as stdin:<width>x<height>@<fps>, got {described!r}")

    def shots() -> Shots:
        with file or open(0, "rb", buffering=0, closefd=False) as stream:
            for number in count():
                rest, parts = width * height * 3, list[bytes]()
                while rest and (part := stream.read(rest)):
                    parts.append(part)
                    rest -= len(part)
                if rest:
                    return
                pixels = np.frombuffer(b"".join(parts), np.uint8).reshape(height, width, 3)
                yield number / fps, av.VideoFrame.from_ndarray(pixels, format="rgb24")

    return shots


def pushed_picture(data: bytes) -> Any:
    """A JPEG or PNG as a picture. Raises `InputError` if it is none, or has too many pixels."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > _PIXELS or min(image.size) < 2:
                raise InputError(f"a frame must have 2 pixels a side and {_PIXELS} in all at most, got {image.size}")
            return av.VideoFrame.from_image(image.convert("RGB"))
    except UnidentifiedImageError:
        raise InputError("a frame must be a whole JPEG or PNG, got neither") from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"a frame must be a whole JPEG or PNG, got an error: {error}") from None


class EndlessWorld:
    """Everyday streams of the embedded world, one after the other without end. `events` are the newest 1,000 or so."""

    def __init__(self, world: World, seed: int) -> None:
        self._world, self._seed = world, seed
        self.events: deque[Event] = deque(maxlen=1000)

    def shots(self) -> Shots:
        """Its frames from the beginning."""
        self.events.clear()
        for piece in count():
            begin = piece * _PIECE
            stream = self._world.stream("world", (self._seed, 7_003, piece), _PIECE, StreamStyle(mean_event=6.0))
            self.events.extend(replace(e, start=begin + e.start, end=begin + e.end) for e in stream.record.events)
            frames = (frame for chunk in stream.frames(chunk=8) for frame in chunk)
            for number, frame in enumerate(frames):
                pixels = np.ascontiguousarray(frame)
                yield begin + number / stream.fps, av.VideoFrame.from_ndarray(pixels, format="rgb24")


class FrameClock:
    """Numbers frames at `fps`, whatever the times of the pictures: frame m shows the newest picture at m / fps seconds.

    A clock that goes back, or ahead by more than 4 s, was set anew: its next picture follows at the usual interval.

    >>> clock = FrameClock(fps=8)
    >>> [list(clock.advance(time)) for time in (7.0, 7.3, 2.0, 2.3)]  # frames that show the picture before
    [[], [0, 1, 2], [3, 4], [5, 6, 7]]
    """

    def __init__(self, fps: int) -> None:
        self.fps = fps
        self.next = 0  # number of the next frame
        self._last: float | None = None  # time of the newest picture
        self._offset, self._interval = 0.0, 1 / fps  # time of frame 0 on the source's clock; between two pictures

    def advance(self, time: float) -> range:
        """The frames before a picture's time that are still to come."""
        if not math.isfinite(time):
            raise InputError(f"the time of a frame must be finite, got {time}")
        if self._last is None:
            self._offset = time - self.next / self.fps
        elif 0 <= time - self._last <= JUMP:
            self._interval = time - self._last or self._interval
        else:
            self._offset += time - self._last - self._interval
        self._last = time
        numbers = range(self.next, max(self.next, math.ceil((time - self._offset) * self.fps - 1e-6)))
        self.next = numbers.stop
        return numbers

    def restart(self, seconds: float) -> None:
        """The source begins anew, on a clock of its own, so many seconds after its last picture."""
        self._last = None
        self.next += int(seconds * self.fps)

    def finish(self) -> range:
        """The frames that the last picture is still shown at."""
        return self.advance(self._last + self._interval) if self._last is not None else range(0)


@dataclass(frozen=True)
class Run:
    """Frames (M, S, S, 3) uint8 that follow each other, from number `first` on, and when each arrived.

    >>> Run(0, np.zeros((2, 8, 8, 3), np.uint8), arrived=[0.0, 0.1]).frames.shape
    (2, 8, 8, 3)
    """

    first: int
    frames: np.ndarray
    arrived: list[float]  # by `time.monotonic`


class Mailbox:
    """Frames of one source that wait for the model: two windows at most, then all but the newest window are dropped.

    Args:
        size: S.
        fps: of the model.
        window: frames of a window.
        ready: called, in the thread of the source, when frames have come.

    Attributes:
        taken, dropped: frames handed on, and dropped because newer ones came.
        newest: the number of the newest picture, and the picture.
    """

    def __init__(self, size: int, fps: int, window: int, ready: Callable[[], None] = lambda: None) -> None:
        self._size, self._window, self._ready = size, window, ready
        self._clock = FrameClock(fps)
        self._frames: deque[tuple[int, np.ndarray, float]] = deque()
        self._held: Any = None  # the newest picture, not yet shown by a frame
        self._state = threading.Condition()
        self._closed = self._paused = False
        self.taken = self.dropped = self._pictures = 0
        self.newest: tuple[int, Any] = (0, None)

    def offer(self, time_: float, shot: Any, *, wait: bool = False) -> None:
        """Takes a picture at its time; with `wait` nothing is dropped, and the caller waits for room."""
        with self._state:
            self._fill(self._clock.advance(time_), drop=not wait)
            self._held, self._pictures = shot, self._pictures + 1
            self.newest = (self._pictures, shot)
        self._ready()
        with self._state:
            while wait and (self._paused or len(self._frames) >= 2 * self._window) and not self._closed:
                self._state.wait()

    def _fill(self, numbers: range, drop: bool) -> None:
        """The frames `numbers` show the picture held. What one picture brings is not dropped."""
        if self._held is None or not numbers or self._paused or self._closed:
            return
        pixels, now = picture(self._held, self._size), time.monotonic()
        self._frames.extend((number, pixels, now) for number in numbers)
        if drop and len(self._frames) > max(2 * self._window, self._window + len(numbers)):
            while len(self._frames) > self._window:
                self._frames.popleft()
                self.dropped += 1

    def take(self) -> Run | None:
        """The oldest frames up to a gap, None if there are none."""
        with self._state:
            if not self._frames:
                return None
            first, pixels, arrived = self._frames[0][0], list[np.ndarray](), list[float]()
            while self._frames and self._frames[0][0] == first + len(pixels):
                _, frame, at = self._frames.popleft()
                pixels.append(frame)
                arrived.append(at)
            self.taken += len(pixels)
            self._state.notify_all()
        return Run(first, np.stack(pixels), arrived)

    @property
    def waiting(self) -> int:
        """Frames that wait."""
        return len(self._frames)

    def restart(self, seconds: float) -> None:
        """The source broke off so long ago and begins anew."""
        with self._state:
            self._held = None
            self._clock.restart(seconds)

    def finish(self) -> None:
        """The source ended: its last picture is shown."""
        with self._state:
            self._fill(self._clock.finish(), drop=False)
        self._ready()

    def pause(self, paused: bool) -> None:
        """Whether pictures pass by, neither taken nor counted."""
        with self._state:
            self._paused = paused
            if paused:
                self._frames.clear()
            self._state.notify_all()

    def close(self) -> None:
        """Nobody takes frames any more, and nobody waits."""
        with self._state:
            self._closed = True
            self._frames.clear()
            self._state.notify_all()


@dataclass(frozen=True)
class SourceNews:
    """What became of a source: after "lost", attempt number `attempt` comes in `retry_seconds`.

    >>> SourceNews("connected").attempt
    0
    """

    status: Literal["connected", "lost", "ended"]
    message: str = ""
    attempt: int = 0
    retry_seconds: float = 0.0


class Feed:
    """Runs a source in a thread: its pictures go into a mailbox, what became of it to `tell`.

    Args:
        fast: as fast as they can be computed, without dropping; else a file is played at its own speed.
        back_off: seconds before the first attempt to come back, and the most.
    """

    def __init__(
        self,
        source: Source,
        mailbox: Mailbox,
        tell: Callable[[SourceNews], None],
        *,
        fast: bool = False,
        back_off: tuple[float, float] = _BACK_OFF,
    ) -> None:
        self._source, self._mailbox, self._tell, self._fast, self._back_off = source, mailbox, tell, fast, back_off
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"feed {source.name}", daemon=True)
        if source.open is not None:
            self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def stop(self, seconds: float = 0.0) -> None:
        """Ends the thread, at the next picture; waits for that up to `seconds`."""
        self._stopped.set()
        self._mailbox.close()
        if self.alive:
            self._thread.join(seconds)

    def _run(self) -> None:
        attempt, message, seen = 0, "", False
        while not self._stopped.is_set():
            connected = False
            try:
                for at, shot in self._shots():
                    if not connected:
                        connected, seen, attempt = True, True, 0
                        self._tell(SourceNews("connected"))
                    self._mailbox.offer(at, shot, wait=self._fast)
                message = "the source ended"
            except Exception as error:  # of whatever kind: a camera that fails is a camera that fails
                message = f"{error}" if isinstance(error, InputError) else f"{self._source.name}: {error!r}"
            if self._stopped.is_set():
                return
            if not self._source.returns or (self._source.there and not seen):
                self._mailbox.finish()
                return self._tell(SourceNews("ended", message))
            least, most = self._back_off
            attempt, delay = attempt + 1, min(most, least * 2 ** min(attempt, 16))
            broke = time.monotonic()
            self._tell(SourceNews("lost", message, attempt, delay))
            self._stopped.wait(delay)
            self._mailbox.restart(time.monotonic() - broke)

    def _shots(self) -> Shots:
        """The pictures of the source, each when it is due, until somebody stops."""
        assert self._source.open is not None
        start: float | None = None
        before = 0.0
        with closing(self._source.open()) as shots:  # type: ignore[type-var]
            for at, shot in shots:
                if self._source.paced and not self._fast:
                    now = time.monotonic()
                    if start is None or not 0 <= at - before <= JUMP or now > start + at + 1:  # a second late, or more
                        start = now - at
                    self._stopped.wait(max(0.0, start + at - time.monotonic()))
                    before = at
                if self._stopped.is_set():
                    return
                yield at, shot
