"""Video files: what is shown when, orientation, and files that cannot be read."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import real_data, refuses

from jepa.data.media import Media, read_clip
from jepa.data.records import StreamRecord
from jepa.data.video import VideoFile, VideoStream, find_videos
from jepa.errors import InputError

LONG = 240  # seconds
MEASURE = """
import resource, sys
from pathlib import Path
from jepa.data.media import Media, read_clip
from jepa.data.records import StreamRecord
from jepa.data.video import VideoStream

path, seconds = Path(sys.argv[1]), int(sys.argv[2])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
next(iter(VideoStream(path, StreamRecord("v", 60.0, ()), 86, 8).frames()))
before = peak()
read_clip(Media(path.name, path), 16, 86)
parts = VideoStream(path, StreamRecord("v", float(seconds), ()), 86, 8).frames()
print(sum(len(part) for part in parts), peak() - before)
"""


def write(path: Path, times: list[float], greys: list[int], size: tuple[int, int] = (96, 64)) -> Path:
    """A video whose frame i, at `times[i]` seconds, is `greys[i]` all over, but for a bright top left corner."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=100)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, "yuv420p", 4_000_000
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for time, grey in zip(times, greys, strict=True):
            picture = np.full((size[1], size[0], 3), grey, dtype=np.uint8)
            picture[: size[1] // 4, : size[0] // 4] = 255
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read(path: Path, duration: float, size: int = 32, fps: int = 8, chunk: int = 5) -> np.ndarray:
    return np.concatenate(list(VideoStream(path, StreamRecord("v", duration, ()), size, fps).frames(chunk)))


def test_the_newest_frame_by_each_moment_is_shown_whatever_the_frame_rate(tmp_path):
    """A second of 20 frames a second, then one frame every half second."""
    times = [i / 20 for i in range(20)] + [1.0 + i / 2 for i in range(5)]
    greys = [20 + 8 * i for i in range(25)]
    found = read(write(tmp_path / "v.mp4", times, greys), duration=3.0)
    assert found.shape == (24, 32, 32, 3)
    moments = np.arange(24) / 8
    expected = [greys[int(np.searchsorted(times, t + 1e-6)) - 1] for t in moments]
    np.testing.assert_allclose(found[:, 20:28, 20:28].mean((1, 2, 3)), expected, atol=4)


def test_a_video_that_ends_early_is_refused_and_its_last_frame_held_for_a_second(tmp_path):
    path = write(tmp_path / "v.mp4", [i / 10 for i in range(10)], [20 + 20 * i for i in range(10)])  # lasts 1.0 s
    held = read(path, duration=2.0)
    assert held.shape == (16, 32, 32, 3)
    np.testing.assert_array_equal(held[8:], np.broadcast_to(held[8], (8, 32, 32, 3)))
    assert held[8, 24, 24].mean() == pytest.approx(200, abs=4)
    for duration in (2.01, 60.0):
        refuses(rf"v\.mp4: must last {duration:.2f} s as annotated, got 1\.00 s", read, path, duration)
    assert len(read(path, duration=0.5)) == 4  # what lies beyond is not missed


def test_the_memory_of_a_long_video_is_bounded(tmp_path):
    """Four minutes of small frames, together 44 MB, through a clip and a stream, in a process of their own."""
    path = tmp_path / "long.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(10 * LONG):
            picture = np.full((64, 96, 3), number % 250, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    command = [sys.executable, "-c", MEASURE, str(path), str(LONG)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    count, grown = map(int, found.stdout.split())
    assert count == 8 * LONG
    assert grown < 20 * 2**10  # KiB


def test_frames_are_cut_to_the_middle_square(tmp_path):
    found = read(write(tmp_path / "v.mp4", [0.0, 0.5, 1.0], [60] * 3, size=(128, 64)), duration=1.0)
    assert found.shape[1:] == (32, 32, 3)
    assert found.max() < 110  # the bright corner lies outside the middle


def test_real_files():
    pancake = read(real_data("video/flipping_a_pancake.mkv"), duration=10.0, size=48)
    assert pancake.shape == (80, 48, 48, 3)
    assert np.abs(np.diff(pancake.astype(float), axis=0)).mean() > 1
    with pytest.raises(InputError, match=r"pancake\.mkv: .* 100\.00 s .*, got 10\.33 s"):
        read(real_data("video/flipping_a_pancake.mkv"), duration=100.0)
    refuses(r"corrupted\.mp4: .* beyond \d+\.\d\d s: ", lambda: read(real_data("video/corrupted.mp4"), duration=60.0))
    keyboard = read(real_data("video/rotated_90.mov"), duration=0.1, size=48, fps=30)[0].astype(float).mean(2)
    bright = np.quantile(keyboard, 0.95)
    letters = {"I": (8, 15), "O": (8, 31), "K": (21, 19), "L": (21, 34), "M": (36, 12)}  # white, as the eye sees them
    for row, column in letters.values():
        assert keyboard[row - 2 : row + 3, column - 2 : column + 3].max() > bright


def test_files_that_are_no_video_are_named(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video", encoding="utf-8")
    for name in ("none.mp4", "text.mp4"):
        refuses(f"{name}: cannot be decoded", read, tmp_path / name, 1.0)


def encode(path: Path, codec: str, greys: list[int], matrix: list[int] | None = None, **stated: Any) -> Path:
    """Ten frames a second, each of its grey in the top left quarter, 40, 80 and 120 in the others, clockwise."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 64, "yuv420p", 4_000_000
        stream.codec_context.gop_size = 8
        for name, value in stated.items():
            setattr(stream.codec_context, name, value)
        if matrix is not None:
            stream.set_display_matrix(matrix)
        for grey in greys:
            picture = np.zeros((64, 64, 3), np.uint8)
            for (row, column), value in zip(((0, 0), (0, 32), (32, 32), (32, 0)), (grey, 40, 80, 120), strict=True):
                picture[row : row + 32, column : column + 32] = value
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("axes", [(1, 0, 0, 1), (0, 1, 1, 0)], ids=["upright", "transposed"])
@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_frames_are_turned_and_mirrored_as_their_matrix_says(tmp_path, axes, signs):
    """The quarter around (x, y) from the middle is shown around (ax + cy, bx + dy)."""
    a, b, c, d = (axis * signs[at] for axis, at in zip(axes, (0, 1, 0, 1), strict=True))
    one, last = 1 << 16, 1 << 30
    path = encode(tmp_path / "v.mp4", "mpeg4", [200] * 2, [a * one, b * one, 0, c * one, d * one, 0, 0, 0, last])
    with VideoFile("v", path) as file:
        [shown] = file.at([0.0], 32)
    for (x, y), grey in {(-8, -8): 200, (8, -8): 40, (8, 8): 80, (-8, 8): 120}.items():
        assert shown[16 + b * x + d * y, 16 + a * x + c * y].mean() == pytest.approx(grey, abs=6)


@pytest.mark.parametrize(("codec", "stated"), [("mpeg4", {"max_b_frames": 2}), ("libx264", {"max_b_frames": 3})])
def test_frame_n_of_an_avi_is_shown_at_n_over_its_rate(tmp_path, codec, stated):
    """AVI has no times of showing, and its frames are stored in another order."""
    greys = [10 + 10 * i for i in range(24)]
    path = encode(tmp_path / "v.avi", codec, greys, **stated)
    with VideoFile("v", path) as file:
        times = [i / 10 + 0.05 for i in (23, 0, 17, 3, 4, 20)]  # in any order
        found = file.at(times, 64)
    expected = [greys[int(10 * time)] for time in times]
    np.testing.assert_allclose(found[:, 8:24, 8:24].mean((1, 2, 3)), expected, atol=4.9)
    stream = read(path, duration=2.4, size=64, fps=10)
    np.testing.assert_allclose(stream[:, 8:24, 8:24].mean((1, 2, 3)), greys, atol=4.9)


@pytest.mark.parametrize("name", ["slideshow.mp4", "one_picture_10s.mp4"])
@pytest.mark.parametrize("frames", [1, 8])
def test_the_last_picture_holds_to_the_end(name, frames):
    path = real_data(f"cases/video/{name}")
    with av.open(str(path)) as container:
        frame_times = [frame.time for frame in container.decode(video=0)]
        seconds = container.duration / 1e6
    clip = read_clip(Media(name, path), frames, 16)
    shown = np.searchsorted(frame_times, seconds * (np.arange(frames) + 0.5) / frames + 1e-6) - 1
    assert [(clip[i] == clip[0]).all() for i in range(frames)] == (shown == shown[0]).tolist()
    assert len(read(path, seconds, size=16, fps=1)) == seconds


def test_cover_art_tags_and_pixels_that_are_not_square():
    folder = real_data("cases/video")
    cover, tagged = (read_clip(Media(name, folder / name), 8, 32) for name in ("cover_stream0.mp4", "tag_latin1.mp4"))
    np.testing.assert_array_equal(cover, tagged)  # the same track
    circle = read_clip(Media("sar2.mp4", folder / "sar2.mp4"), 1, 64)[0].astype(int)
    inside = np.abs(circle - circle[0, 0]).sum(2) > 100
    assert inside.any(0).sum() == pytest.approx(inside.any(1).sum(), abs=2)


def test_no_name_is_a_url_and_no_file_opens_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = encode(tmp_path / "whole.mp4", "mpeg4", [100] * 3)
    for name in ("2024-05-01T10:30:00.mp4", "http:a%20b.MP4", "concat:x|y.mp4", "frame_%03d.mp4"):
        Path(name).write_bytes(path.read_bytes())
        assert len(read(Path(name), 0.3, fps=10)) == 3
        Media(name, Path(name))
    lists = ("#EXTM3U\n#EXTINF:1,\nwhole.mp4\n", "ffconcat version 1.0\nfile whole.mp4\n")
    for name, text in zip(("list.mp4", "concat.mp4"), lists, strict=True):
        Path(name).write_text(text, encoding="utf-8")
        refuses(f"{name}: cannot be decoded", read, Path(name), 0.3)


def test_videos_are_found_by_their_name(tmp_path):
    names = ("P01_01.mkv", "P01_02.MP4", "a.b.webm", "._P01_03.mp4", "notes.txt")
    for name in names:
        (tmp_path / name).touch()
    assert find_videos(tmp_path) == {Path(name).stem: tmp_path / name for name in names[:3]}
    assert find_videos(tmp_path / "none") == {}
