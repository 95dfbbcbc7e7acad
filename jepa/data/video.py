"""Video files: streams of small square frames at a steady rate, and frames at given times.

M frames, S their side in pixels. Times are seconds after the file's first frame.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np

from jepa.data.records import StreamRecord
from jepa.errors import InputError

SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v")
JUMP = 4.0  # seconds; frames closer than this are reached by decoding on, others by seeking
HOLD = 1.0  # seconds that the last frame may be shown beyond its time; a file that ends earlier is truncated


class VideoFile:
    """An open video file, which errors call `name`; one frame is in memory at a time. Use it by `with`.

    A file that is missing, has no video or cannot be decoded is an `InputError` with the time that was reached. Of a
    `live` source, a URL or a device, frames that are corrupt or have no timestamp are left out instead. `options` are
    those of `av.open`.
    """

    def __init__(self, name: str, source: Path | str | bytes, live: bool = False, **options: Any) -> None:
        self.name, self.source, self.live, self._options = name, source, live, options
        self._reached = 0.0

    def __enter__(self) -> VideoFile:
        try:
            file = io.BytesIO(self.source) if isinstance(self.source, bytes) else str(self.source)
            self._container = av.open(file, "r", **self._options)
        except (av.FFmpegError, OSError) as error:
            raise self._broken(error) from None
        if not self._container.streams.video:
            self._container.close()
            raise InputError(f"{self.name}: must have a video stream, got none")
        self._stream = self._container.streams.video[0]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._container.close()
        if isinstance(error, av.FFmpegError | OSError):
            raise self._broken(error) from None

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
            self._container.seek(max(0, int(near / self._stream.time_base)), stream=self._stream)
        for frame in self._container.decode(self._stream):
            if self.live and (frame.time is None or frame.is_corrupt):
                continue
            if frame.time is None:
                raise InputError(f"{self.name}: a frame must have a timestamp, got none after {self._reached:.2f} s")
            if frame.is_corrupt:
                raise self._broken("the frame is corrupt")
            self._reached = frame.time
            yield frame

    def at(self, times: Iterable[float], size: int) -> Iterator[np.ndarray]:
        """The newest frame at each of `times`, in order: (S, S, 3) uint8. A file that ends early is an `InputError`."""
        held: Any = None
        ahead: Any = None
        for time in times:
            moment = self.first + time + 1e-6
            if held is None or moment > held.time + JUMP:
                frames = self.decode(moment)
                held = next(frames, None)
                if held is None or held.time > moment:  # a file without an index, or with a wrong one
                    frames = self.decode(0.0)
                    held = next(frames, None)
                ahead = next(frames, None)
                shown = None
            while ahead is not None and ahead.time <= moment:
                held, ahead, shown = ahead, next(frames, None), None
            if held is None or (ahead is None and moment > held.time + HOLD):
                end = 0.0 if held is None else held.time - self.first
                raise InputError(f"{self.name}: must have a frame at {time:.2f} s, got its last at {end:.2f} s")
            shown = picture(held, size) if shown is None else shown
            yield shown

    def _broken(self, error: object) -> InputError:
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
        with VideoFile(str(self.path), self.path) as file:
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
        end = 0.0 if held is None else held.time + period - first
        if held is None or end + HOLD < self.record.duration:
            raise InputError(f"{file.name}: must last {self.record.duration:.2f} s as annotated, got {end:.2f} s")
        yield held, self.frame_count - given


def picture(frame: Any, size: int) -> np.ndarray:
    """A decoded frame with its shorter side scaled to S, cut to the middle square, turned as it says: (S, S, 3)."""
    scale = size / min(frame.width, frame.height)
    width, height = (max(size, round(side * scale)) for side in (frame.width, frame.height))
    whole = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
    top, left = (height - size) // 2, (width - size) // 2
    return np.rot90(whole[top : top + size, left : left + size], round((frame.rotation or 0) / 90))


def find_video(folder: Path, name: str) -> Path | None:
    """The file of a video in a folder, `name` with one of `SUFFIXES`; None if there is none."""
    return next((path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)
