"""Video files: streams of small square frames at a steady rate, and frames at given times.

M frames, S their side in pixels. Times are seconds after the file's first frame.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from jepa.data.records import StreamRecord
from jepa.errors import InputError, needs_extra

SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v")
JUMP = 4.0  # seconds; frames closer than this are reached by decoding on, others by seeking
_RATIO, _PIXELS = 100, 1 << 27  # of a frame: its longer side over its shorter one, and all, at most
HOLD = 1.0  # seconds that the last frame may be shown beyond its own; a file that ends earlier is truncated
# No file opens another: playlists, patterns of names and URLs are no videos.
_OPENING = {"protocol_whitelist": "file", "format_whitelist": "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf,h264,hevc,m4v"}


class VideoFile:
    """An open video file, which errors call `name`; one frame is in memory at a time. Use it by `with`.

    The track is the one that FFmpeg finds best, without cover art. `picture` shows its frames as FFmpeg does: turned,
    mirrored, and with square pixels. `threads` decode ahead, for frames that are all read in order.

    A file that is missing, has no video or cannot be decoded is an `InputError` with the time that was reached. Of a
    `live` source, a URL or a device, frames that are corrupt or have no timestamp are left out instead. `options` are
    those of `av.open`.
    """

    def __init__(
        self, name: str, source: Path | str | bytes, live: bool = False, threads: bool = False, **options: Any
    ) -> None:
        self.name, self.source, self.live, self.threads = name, source, live, threads
        self._options = options if live else {"options": _OPENING, **options}
        self._reached = 0.0

    def __enter__(self) -> VideoFile:
        with needs_extra("video"):
            import av
            from av.stream import Disposition
        try:  # "file:", as a name may look like a URL; tags may be in any encoding
            source = self.source
            file = io.BytesIO(source) if isinstance(source, bytes) else str(source) if self.live else f"file:{source}"
            self._container = av.open(file, "r", metadata_errors="replace", **self._options)
        except (av.FFmpegError, OSError, ValueError) as error:  # a ValueError: a NUL in the name
            raise self._broken(error) from None
        track = self._container.streams.best("video")
        if not isinstance(track, av.VideoStream) or track.disposition & Disposition.attached_pic:
            self._container.close()
            raise InputError(f"{self.name}: must have a video stream, got none")
        self._stream = track
        codec: Any = track.codec_context
        if codec is None:  # there is no decoder
            self._container.close()
            raise InputError(f"{self.name}: must have a video stream of a known codec, got another")
        if self.threads:
            track.thread_type = "AUTO"
        codec.options = {"max_pixels": str(_PIXELS)}
        # AVI has times in the order of decoding alone: the n-th frame that is shown takes the n-th of them.
        self._ranked = self._container.format.name == "avi"
        self._seekable = not (self._ranked and track.codec_context.has_b_frames)
        pixel = float(track.sample_aspect_ratio or 1)
        self._pixel = pixel if 0.1 <= pixel <= 10 else 1.0  # its width over its height
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._container.close()
        import av

        if isinstance(error, av.FFmpegError | OSError):
            raise self._broken(error) from None

    @property
    def timed(self) -> bool:
        """Whether its times are its own; a stream of JPEGs has none, and its frames are counted at a made-up rate."""
        return self._container.format.name not in ("mpjpeg", "mjpeg")

    @property
    def first(self) -> float:
        """The timestamp of the first frame in seconds, as the file states it."""
        return float((self._stream.start_time or 0) * (self._stream.time_base or 0))

    @property
    def duration(self) -> float:
        """Seconds to the end of the video track, as the file states it.

        Where the track states none (Matroska, WebM), packets are read from the last key frame on. The whole file's
        duration may be that of the sound. It counts where no track lasts that long: the file is truncated.
        """
        if self._stream.duration is not None and self._stream.time_base is not None:
            return float(self._stream.duration * self._stream.time_base)
        if self._container.duration is None:
            return self._ends(None)[0] - self.first
        import av

        stated = self._container.duration / av.time_base
        video, longest = self._ends(stated)
        return (video if longest > stated - HOLD else stated) - self.first

    def _ends(self, near: float | None) -> tuple[float, float]:
        """Where the last packets of the video and of any track end, by timestamp: read from before `near`, or all."""
        if near is not None and self._stream.time_base is not None:
            self._container.seek(int(near / self._stream.time_base), stream=self._stream)
        video = longest = self.first
        for packet in self._container.demux():
            if packet.pts is not None and packet.time_base:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                longest = max(longest, end)
                if packet.stream.index == self._stream.index:
                    video = max(video, end)
        return video, longest

    def decode(self, near: float | None = None) -> Iterator[Any]:
        """Frames with their timestamps: from the start, or from the last key frame before the timestamp `near` on."""
        if near is not None and self._stream.time_base is not None:
            near = max(0.0, near) if self._seekable else 0.0
            self._container.seek(int(near / self._stream.time_base), stream=self._stream)
        times: list[int] = []
        timed = True
        for packet in self._container.demux(self._stream):
            if self._ranked and packet.size and packet.dts is not None:
                heappush(times, packet.dts)
            for frame in packet.decode():
                if self._ranked:
                    frame.pts = heappop(times) if times else None
                if frame.is_corrupt and not self.live:
                    raise self._broken("the frame is corrupt")
                if max(frame.width, frame.height) > _RATIO * min(frame.width, frame.height):  # scaled, it would be vast
                    raise self._broken(
                        f"sides must differ by {_RATIO} times at most, got {frame.width} x {frame.height}"
                    )
                timed = frame.time is not None  # those before the first one with a time are before the start
                if frame.time is not None and not frame.is_corrupt:
                    self._reached = frame.time
                    frame.opaque = [self._pixel]  # an object for each frame: PyAV drops it with the first that has it
                    yield frame
        if not timed and not self.live:
            raise InputError(f"{self.name}: a frame must have a timestamp, got none after {self._reached:.2f} s")

    def at(self, times: Sequence[float], size: int) -> np.ndarray:
        """The newest frame at each of M `times`: (M, S, S, 3) uint8. A file that ends early is an `InputError`."""
        found = np.empty((len(times), size, size, 3), np.uint8)
        held: Any = None
        ahead: Any = None
        for index in np.argsort(times, kind="stable").tolist():
            moment = self.first + times[index] + 1e-6
            if held is None or (self._seekable and moment > held.time + JUMP):
                frames = self.decode(moment)
                held = next(frames, None)
                if held is None or held.time > moment:  # a file without an index, or with a wrong one
                    frames = self.decode(0.0)
                    held = next(frames, None)
                ahead = next(frames, None)
                shown = None
            while ahead is not None and ahead.time <= moment:
                held, ahead, shown = ahead, next(frames, None), None
            if held is None or (ahead is None and moment > held.time + max(HOLD, length(held))):
                end = 0.0 if held is None else held.time - self.first
                raise InputError(f"{self.name}: must have a frame at {times[index]:.2f} s, got its last at {end:.2f} s")
            found[index] = shown = picture(held, size) if shown is None else shown
        return found

    def _broken(self, error: object) -> InputError:
        if self.live:  # without the file name of FFmpeg's error, a URL perhaps with a password
            import av

            late = isinstance(error, av.error.ExitError | TimeoutError)
            reason = "nothing came in time" if late else getattr(error, "strerror", None) or error
            return InputError(f"{self.name}: cannot be read: {reason}")
        return InputError(f"{self.name}: cannot be decoded beyond {self._reached:.2f} s: {error}")


@dataclass(frozen=True)
class VideoStream:
    """A video file `path` with its annotations, in the form of a `jepa.data.world.Stream`.

    Frame m is the newest `picture` at m / fps seconds, whatever the frame rate of the file. Frames beyond
    `record.duration` are not read. The last one is held for at most `HOLD` seconds: annotations are often rounded.
    """

    path: Path
    record: StreamRecord
    size: int
    fps: int

    @property
    def frame_count(self) -> int:
        """Frames within the annotated duration."""
        return int(self.record.duration * self.fps)

    def frames(self, chunk: int = 128) -> Iterator[np.ndarray]:
        """The frames in order, at most `chunk` at a time: (M, S, S, 3) uint8. A file that ends early is an error."""
        waiting: list[np.ndarray] = []
        with VideoFile(str(self.path), self.path, threads=True) as file:
            for frame, repeats in self._shown(file):
                waiting += [picture(frame, self.size)] * repeats
                while len(waiting) >= chunk:
                    yield np.stack(waiting[:chunk])
                    waiting = waiting[chunk:]
        if waiting:
            yield np.stack(waiting)

    def _shown(self, file: VideoFile) -> Iterator[tuple[Any, int]]:
        """Frames of the file that are shown at some moment, and at how many moments."""
        held: Any = None
        first = period = 0.0
        given = 0
        for frame in file.decode():
            first = frame.time if held is None else first
            due = min(self.frame_count, int(np.ceil((frame.time - first) * self.fps - 1e-6)))
            if held is not None:
                period = frame.time - held.time
                if due > given:
                    yield held, due - given
                    given = due
            held = frame
            if given >= self.frame_count:
                return
        end = 0.0 if held is None else held.time + max(period, length(held)) - first
        if held is None or end + HOLD < self.record.duration:
            raise InputError(f"{file.name}: must last {self.record.duration:.2f} s as annotated, got {end:.2f} s")
        yield held, self.frame_count - given


class _Scaler(threading.local):
    """One for all frames of a thread: to prepare another for each takes as long as to scale it."""

    reformat: Any = None


_scaler = _Scaler()


def picture(frame: Any, size: int) -> np.ndarray:
    """A frame with its shorter side scaled to S, cut to the middle square, turned and mirrored: (S, S, 3) uint8."""
    from av.sidedata.sidedata import Type as SideData
    from av.video.reformatter import VideoReformatter

    if _scaler.reformat is None:
        _scaler.reformat = VideoReformatter().reformat
    [pixel] = frame.opaque or [1.0]
    shape = frame.width * pixel, frame.height
    width, height = (max(size, round(side * size / min(shape))) for side in shape)
    whole = _scaler.reformat(frame, width=width, height=height, format="rgb24").to_ndarray()
    top, left = (height - size) // 2, (width - size) // 2
    square = whole[top : top + size, left : left + size]
    if (matrix := frame.side_data.get(SideData.DISPLAYMATRIX)) is None:
        return square
    # A pixel at (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        square, a, d = square.swapaxes(0, 1), c, b
    return square[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def length(frame: Any) -> float:
    """Seconds that a decoded frame is shown, as its file states."""
    return float((frame.duration or 0) * frame.time_base)


def find_videos(folder: Path) -> dict[str, Path]:
    """The videos of a folder by their names without the ending, which may be one of `SUFFIXES` in any case."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {file.stem: file for file in files if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")}
