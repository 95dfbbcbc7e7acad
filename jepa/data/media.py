"""What a model looks at: a part of a video file, a picture, or a folder of frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jepa.data.video import SUFFIXES as VIDEOS
from jepa.errors import InputError, not_negative

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class Media:
    """A video, a picture, or frames in their order; of a video the part from `start` to `end` seconds, if they are set.

    `name` is what the manifest calls it, and what errors and cached features know it by. `source` is its file or
    folder, or what a shard holds in its place: the bytes of a file, or of each frame.

    Raises:
        InputError: `name` ends like neither a video nor a picture and `source` is no set of frames; times that are not
            0 <= start < end, or not of a video.
    """

    name: str
    source: Path | bytes | tuple[bytes, ...]
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        if not (self.is_frames or self.name.lower().endswith(VIDEOS + PICTURES)):
            raise InputError(
                f"{self.name}: must be a folder of frames or end in one of {', '.join(VIDEOS + PICTURES)}, got another"
            )
        if self.start is None and self.end is None:
            return
        if not self.is_video:
            raise InputError(f"{self.name}: only a video can have start and end, got {self.start} and {self.end}")
        start = not_negative("start", self.start or 0.0)
        if self.end is not None and not_negative("end", self.end) <= start:
            raise InputError(f"{self.name}: end must be after start, got start {start}, end {self.end}")

    @property
    def is_frames(self) -> bool:
        return isinstance(self.source, tuple) or (isinstance(self.source, Path) and self.source.is_dir())

    @property
    def is_video(self) -> bool:
        return not self.is_frames and self.name.lower().endswith(VIDEOS)

    @property
    def key(self) -> str:
        """The name with the times: `kitchen.mp4`, `kitchen.mp4#1.5-4.0`; one key for one part of one file."""
        if self.start is None and self.end is None:
            return self.name
        return f"{self.name}#{self.start or 0.0}-{'' if self.end is None else self.end}"
