"""Clips of videos, pictures and folders of frames: which frame is shown when, and what cannot be read."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import real_data, refuses
from PIL import Image

from jepa.data.media import Media, frame_files, read_clip


def video(
    times: list[float], container: str = "matroska", keyframes: int = 10, sound: float = 0.0, rate: int = 100
) -> bytes:
    """Frame i, at `times[i]` seconds, is the lighter the later: 10 + 12 a second; beside `sound` seconds of silence."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 48, 32, "yuv420p", 4_000_000
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.gop_size = keyframes
        track = out.add_stream("aac", rate=16_000) if sound else None
        for number in range(round(sound * 16_000 / 1024)):
            quiet = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            quiet.sample_rate, quiet.pts, quiet.time_base = 16_000, number * 1024, Fraction(1, 16_000)
            out.mux(track.encode(quiet))
        for time in times:
            picture = np.full((32, 48, 3), round(10 + 12 * (time - times[0])), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        for each in (stream, track):
            out.mux(each.encode(None) if each else [])
    return file.getvalue()


def shown(clip: np.ndarray) -> np.ndarray:
    """The grey of each frame of a clip."""
    return clip.astype(float).mean((1, 2, 3))


def decoded(content: bytes) -> np.ndarray:
    """The grey of each frame of a file, decoded one after the other."""
    with av.open(io.BytesIO(content)) as container:
        frames = (frame.to_ndarray(width=24, height=16, format="rgb24") for frame in container.decode(video=0))
        return np.array([frame.mean() for frame in frames])


STEADY = [i / 5 for i in range(100)]  # to 19.81 seconds
VARIABLE = [i / 20 for i in range(100)] + [5 + 1.0 * i for i in range(15)]


@pytest.mark.parametrize("times", [STEADY, VARIABLE], ids=["steady", "variable"])
@pytest.mark.parametrize("keyframes", [3, 1000])
@pytest.mark.parametrize("container", ["matroska", "mov"])
def test_frames_at_equal_distances_over_the_part(times, keyframes, container):
    """The newest frame in the middle of each fraction, whether it is reached by seeking or by decoding on."""
    name = {"matroska": "v.mkv", "mov": "v.mov"}[container]
    content = video(times, container, keyframes)
    greys = decoded(content)
    for start, end, frames in ((None, 19.0, 4), (3.0, 7.0, 8), (12.5, 13.0, 3), (0.0, 18.0, 2)):
        moments = (start or 0) + (end - (start or 0)) * (np.arange(frames) + 0.5) / frames
        expected = greys[np.searchsorted(times, moments + 1e-6) - 1]
        clip = read_clip(Media(name, content, start, end), frames, 16)
        assert clip.shape == (frames, 16, 16, 3)
        np.testing.assert_allclose(shown(clip), expected, atol=0.5)


def test_at_a_frame_rate_the_middle_of_the_part_is_shown():
    content = video(STEADY)
    clip = read_clip(Media("v.mkv", content), 5, 16)  # no rate, and no part: all of the video, at 1.8, 5.8 ... 17.8 s
    np.testing.assert_allclose(shown(clip), decoded(content)[[9, 29, 49, 69, 89]], atol=0.5)
    clip = read_clip(Media("v.mkv", content, 4.0, 12.0), 6, 16, fps=1.0)
    np.testing.assert_allclose(shown(clip), decoded(content)[[25, 30, 35, 40, 45, 50]], atol=0.5)
    short = read_clip(Media("v.mkv", content, 4.0, 6.0), 6, 16, fps=1.0)
    np.testing.assert_allclose(shown(short), decoded(content)[[20, 20, 20, 25, 30, 30]], atol=0.5)  # held at both ends


def test_a_file_without_a_stated_duration_is_read_through(tmp_path):
    """As browsers record it: a live WebM has no duration in its header."""
    path = tmp_path / "live.mkv"
    content = video(STEADY)
    with av.open(io.BytesIO(content)) as source, av.open(str(path), "w", options={"live": "1"}) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    with av.open(str(path)) as container:
        assert container.duration is None
    clip = read_clip(Media("live.mkv", path), 5, 16)
    np.testing.assert_allclose(shown(clip), decoded(content)[[9, 29, 49, 69, 89]], atol=0.5)


@pytest.mark.parametrize("keyframes", [5, 1000])
@pytest.mark.parametrize("container", ["matroska", "mp4"])
@pytest.mark.parametrize(("starts", "sound"), [(0.0, 8.0), (3.0, 8.0), (3.0, 2.0), (0.0, 1.0)])
def test_a_video_is_as_long_as_its_pictures(starts, sound, container, keyframes):
    """Sound that outlasts the pictures, or pictures that begin after it: their five seconds are shown."""
    content = video([starts + i / 10 for i in range(50)], container, keyframes, sound, rate=10)
    clip = read_clip(Media({"matroska": "v.mkv", "mp4": "v.mp4"}[container], content), 5, 16)
    np.testing.assert_allclose(shown(clip), decoded(content)[[5, 15, 25, 35, 45]], atol=0.5)


def test_a_truncated_video_is_named():
    content, loud = video(STEADY), video(STEADY, sound=20.0)
    early = r"must have a frame at \d+\.\d\d s, got its last at \d+\.\d\d s"
    for media, rule in (
        (Media("v.mkv", content[: len(content) // 2]), early),
        (Media("v.mkv", loud[: len(loud) // 2]), early),
        (Media("v.mkv", content, 33.0, 34.0), r"must have a frame at 33\.\d\d s, got its last at 19\.80 s"),
        (Media("v.mkv", content, 30.0), r"start must be before the video's end, 19\.81 s, got 30"),
        (Media("v.mov", video(STEADY, "mov")[:2000]), r"cannot be decoded beyond 0\.00 s"),
        (Media("none.mp4", Path("none.mp4")), r"cannot be decoded beyond 0\.00 s"),
    ):
        refuses(rf"{media.name}: {rule}", read_clip, media, 8, 16)


def test_a_picture_fills_the_clip_upright(tmp_path):
    image = Image.new("RGB", (60, 20), (0, 0, 0))
    image.paste((255, 255, 255), (20, 0, 40, 5))  # a bar on top of the middle square
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "a.png", exif=exif)
    clip = read_clip(Media("a.png", tmp_path / "a.png"), 3, 20)
    assert clip.shape == (3, 20, 20, 3)
    rows = clip[0].mean((1, 2))
    assert rows[16:].min() > 200
    assert rows[:14].max() < 50
    assert (clip == clip[0]).all()


@pytest.mark.parametrize(("count", "frames", "expected"), [(5, 2, [0, 2]), (2, 4, [0, 0, 1, 1]), (3, 3, [0, 1, 2])])
def test_a_folder_of_frames_is_taken_in_order(tmp_path, count, frames, expected):
    (tmp_path / "notes.txt").touch()
    for i in range(count):
        Image.new("RGB", (8, 8), (30 * i,) * 3).save(tmp_path / f"{i:02}.png")
    clip = read_clip(Media("f", tmp_path), frames, 8)
    assert (clip[:, 0, 0, 0] / 30).tolist() == expected


RAMP = np.tile(np.linspace(0, 255, 16).round().astype(np.uint8), (16, 1))


@pytest.mark.parametrize("mode", ["L", "I;16", "P", "LA", "RGBA", "CMYK"])
def test_pictures_of_any_mode_show_their_ramp(mode, recwarn):
    grey, file = Image.fromarray(RAMP), io.BytesIO()
    image = Image.fromarray(RAMP.astype(np.uint16) * 257) if mode == "I;16" else grey.convert("RGB").convert(mode)
    options = {"transparency": bytes(range(256))} if mode == "P" else {}
    image.save(file, "TIFF" if mode == "CMYK" else "PNG", **options)
    clip = read_clip(Media("a.png", file.getvalue()), 1, 16)
    np.testing.assert_allclose(clip[0].mean(2), RAMP, atol=30 if mode == "P" else 1)  # a palette has steps of 51
    assert not recwarn.list


def test_pictures_that_went_wrong():
    folder = real_data("cases/pictures")
    ramp = read_clip(Media("gray16.png", folder / "gray16.png"), 1, 64)[0, 32, :, 0]
    assert (np.diff(ramp.astype(int)) >= 0).all()
    assert (ramp.min() < 5, ramp.max() > 250) == (True, True)
    assert [file.stem for file in frame_files(folder / "unpadded")] == [str(i) for i in range(1, 13)]
    refuses(r"big_icc\.png: cannot be read.*: ", lambda: read_clip(Media("big_icc.png", folder / "big_icc.png"), 1, 8))


def test_a_start_must_be_a_number(tmp_path):
    for start in ("", "1", True, float("nan")):
        refuses("start must be finite and >= 0", Media, "a.mp4", tmp_path / "a.mp4", start=start)


def test_what_is_no_picture_is_named(tmp_path):
    Image.new("RGB", (80, 80)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:70])
    refuses(r"a\.png: cannot be read as a picture: ", lambda: read_clip(Media("a.png", tmp_path / "a.png"), 1, 8))
    refuses(r"b\.jpg: cannot be read as a picture: ", lambda: read_clip(Media("b.jpg", b"text"), 1, 8))
    (tmp_path / "empty").mkdir()
    refuses(r"empty: a folder of frames must have pictures", read_clip, Media("empty", tmp_path / "empty"), 1, 8)


def test_real_files():
    pancake = read_clip(Media("pancake.mkv", real_data("video/flipping_a_pancake.mkv")), 8, 48)
    assert np.abs(np.diff(pancake.astype(float), axis=0)).mean() > 1
    assert read_clip(Media("unordered.mov", real_data("video/unordered.mov")), 8, 48).shape == (8, 48, 48, 3)
    broken = Media("corrupted.mp4", real_data("video/corrupted.mp4"))
    refuses(r"corrupted\.mp4: cannot be decoded beyond \d+\.\d\d s: ", read_clip, broken, 8, 48)
