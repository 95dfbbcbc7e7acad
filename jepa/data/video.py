"""Video files as streams of small square frames at a steady rate.

M frames, S their side in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jepa.data.records import StreamRecord
from jepa.errors import InputError

SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v")


class VideoStream:
    """A video file with its annotations, read by PyAV: the same frames as a stream of `jepa.data.world` gives.

    Frame m is what the video shows at m / fps seconds after its first frame: the newest frame by then, whatever the
    frame rate of the file and however it varies. It is turned as its rotation says, scaled so that its shorter side
    is `size`, and cut to the square in the middle. One frame is held at a time.

    Args:
        path: the file.
        record: its annotations; frames beyond `record.duration` are not read.
        size: S.
        fps: frames a second.
    """

    def __init__(self, path: Path, record: StreamRecord, size: int, fps: int) -> None:
        self.path, self.record, self.size, self.fps = path, record, size, fps

    @property
    def frame_count(self) -> int:
        """Frames within the annotated duration; the file may end earlier."""
        return int(self.record.duration * self.fps)

    def frames(self, chunk: int = 128) -> Iterator[np.ndarray]:
        """The frames in order, at most `chunk` at a time: (M, S, S, 3) uint8.

        Raises:
            InputError: the file is missing, has no video, or cannot be decoded, with the time that was reached.
        """
        import av

        waiting: list[np.ndarray] = []
        reached = 0.0
        try:
            with av.open(str(self.path)) as container:
                if not container.streams.video:
                    raise InputError(f"{self.path}: must have a video stream, got none")
                for frame, repeats in self._shown(container):
                    reached = frame.time or 0.0
                    waiting += [self._picture(frame)] * repeats
                    while len(waiting) >= chunk:
                        yield np.stack(waiting[:chunk])
                        waiting = waiting[chunk:]
        except (av.FFmpegError, OSError) as error:
            raise InputError(f"{self.path}: cannot be decoded beyond {reached:.2f} s: {error}") from None
        if waiting:
            yield np.stack(waiting)

    def _shown(self, container: Any) -> Iterator[tuple[Any, int]]:
        """Frames of the file that are shown at some moment, and at how many moments."""
        held: Any = None
        first = period = 0.0
        given = 0
        for frame in container.decode(video=0):
            if frame.time is None:
                raise InputError(f"{self.path}: every frame must have a timestamp, got none after {given / self.fps} s")
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
        if held is not None:
            last = min(self.frame_count, int(np.ceil((held.time + period - first) * self.fps - 1e-6)))
            if last > given:
                yield held, last - given

    def _picture(self, frame: Any) -> np.ndarray:
        """(S, S, 3) uint8."""
        scale = self.size / min(frame.width, frame.height)
        width, height = (max(self.size, round(side * scale)) for side in (frame.width, frame.height))
        picture = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
        top, left = (height - self.size) // 2, (width - self.size) // 2
        square = picture[top : top + self.size, left : left + self.size]
        return np.rot90(square, round((frame.rotation or 0) / 90))


def find_video(folder: Path, name: str) -> Path | None:
    """The file of a video in a folder, `name` with one of `SUFFIXES`; None if there is none."""
    return next((path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)
