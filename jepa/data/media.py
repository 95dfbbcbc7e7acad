"""Media: a part of a video file, a picture, or a folder of frames, read as a clip.

F frames, S their side in pixels.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from jepa.data.video import SUFFIXES as VIDEOS
from jepa.data.video import VideoFile
from jepa.errors import InputError, check_nonnegative

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_FORMATS = (
    "BMP",
    "GIF",
    "JPEG",
    "PNG",
    "TIFF",
    "WEBP",
)  # by content; those of Pillow's others that run programs are not


@dataclass(frozen=True)
class Media:
    """A video (or its part from `start` to `end` seconds), a picture, or frames in their order.

    Manifests and errors call it by `name`, whose ending tells videos from pictures. `source` is its file or folder, or
    the bytes of the file or of each frame, as shards hold them. Only a video has times, with 0 <= start < end.

    >>> Media("kitchen.mp4", Path("clips/kitchen.mp4"), start=1.5, end=4.0).is_video
    True
    """

    name: str
    source: Path | bytes | tuple[bytes, ...]
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        if not (self.is_frames or self.name.lower().endswith(VIDEOS + PICTURES)):
            endings = ", ".join(VIDEOS + PICTURES)
            raise InputError(f"{self.name}: must be a folder of frames or end in one of {endings}, got another")
        if self.start is None and self.end is None:
            return
        if not self.is_video:
            raise InputError(f"{self.name}: only a video can have start and end, got {self.start} and {self.end}")
        start = check_nonnegative("start", 0.0 if self.start is None else self.start)
        if self.end is not None and check_nonnegative("end", self.end) <= start:
            raise InputError(f"{self.name}: end must be after start, got start {start}, end {self.end}")

    @property
    def is_frames(self) -> bool:
        return isinstance(self.source, tuple) or (isinstance(self.source, Path) and self.source.is_dir())

    @property
    def is_video(self) -> bool:
        return not self.is_frames and self.name.lower().endswith(VIDEOS)


def read_clip(media: Media, frames: int, size: int, fps: float | None = None) -> np.ndarray:
    """A clip of a medium: (F, S, S, 3) uint8, turned upright, cut to the square in the middle.

    A picture fills the clip. Of a folder of frames, F are taken at equal distances. Of a video, F frames in the middles
    of F equal parts (VL-JEPA section 3.1); at a rate `fps`, F frames around the middle of its part, and its first or
    last one is held where the part is shorter.

    Raises:
        InputError: a file that is missing, truncated or cannot be decoded, or a part that begins after the video's end.
    """
    if media.is_video and not isinstance(media.source, tuple):
        with VideoFile(media.name if isinstance(media.source, bytes) else str(media.source), media.source) as file:
            start = media.start or 0.0
            end = file.duration if media.end is None else media.end
            if end <= start:
                raise InputError(f"{media.name}: start must be before the video's end, {end:.2f} s, got {start}")
            if fps is None:
                times = start + (end - start) * ((np.arange(frames) + 0.5) / frames)
            else:
                times = np.clip((start + end) / 2 + (np.arange(frames) - frames / 2) / fps, start, end)
            return file.at(times.tolist(), size)
    pictures = _pictures(media)
    chosen = [i * len(pictures) // frames for i in range(frames)] if len(pictures) > 1 else [0] * frames
    read = {i: _read_picture(*pictures[i], size) for i in sorted(set(chosen))}
    return np.stack([read[i] for i in chosen])


def picture_files(folder: Path, pattern: str = "*") -> list[Path]:
    """The pictures of a folder in natural order, 2.jpg before 10.jpg; what is hidden (`._1.jpg`) is left out."""

    def is_shown(file: Path) -> bool:
        return not any(part.startswith(".") for part in file.relative_to(folder).parts)

    files = (file for file in folder.glob(pattern) if file.suffix.lower() in PICTURES and is_shown(file))
    return sorted(files, key=lambda file: natural(file.relative_to(folder).as_posix()))


def frame_files(folder: Path) -> list[Path]:
    """The frames of a folder in natural order of their names. Raises `InputError` if it has none."""
    if files := picture_files(folder):
        return files
    raise InputError(f"{folder}: a folder of frames must have pictures ({', '.join(PICTURES)}), got none")


def natural(name: str) -> tuple[list[str | int], str]:
    """What sorts names as people count: numbers by their value.

    >>> sorted(["10.jpg", "9.jpg"], key=natural)
    ['9.jpg', '10.jpg']
    """
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name


def _pictures(media: Media) -> list[tuple[str, Path | bytes]]:
    """Names and sources of a medium's pictures."""
    if isinstance(media.source, tuple):
        return [(f"{media.name} (frame {number})", frame) for number, frame in enumerate(media.source)]
    if isinstance(media.source, bytes):
        return [(media.name, media.source)]
    files = frame_files(media.source) if media.source.is_dir() else [media.source]
    return [(str(file), file) for file in files]


def _read_picture(name: str, source: Path | bytes, size: int) -> np.ndarray:
    """(S, S, 3) uint8, turned as its EXIF data say; what is transparent shows its colour."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about tags and sizes
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as image:
                upright = ImageOps.exif_transpose(image)
                if upright.mode.startswith("I;16"):  # `convert` would cut values at 255
                    upright = Image.fromarray((np.asarray(upright, np.float32) / 257 + 0.5).astype(np.uint8))
                if upright.mode in ("I", "F"):
                    raise InputError(f"must have 8 or 16 bits a channel, got Pillow's mode {upright.mode}")
                return np.array(ImageOps.fit(upright.convert("RGB"), (size, size), Image.Resampling.BICUBIC))
    except Image.UnidentifiedImageError:  # whose message has the address of bytes in memory
        raise InputError(f"{name}: cannot be read as a picture: its format is not known") from None
    except Exception as error:  # on broken bytes Pillow raises whatever its parsers stumble over
        raise InputError(f"{name}: cannot be read as a picture: {error}") from None


def png(pixels: np.ndarray) -> str:
    """A frame (S, S, 3) uint8 as a PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
