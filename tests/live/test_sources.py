"""Sources: what reaches the model of files, URLs, raw and pushed frames; clocks that jump, failures, overload."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import av
import numpy as np
import pytest
from browser import wait
from conftest import refuses, write_video
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jepa.data.records import StreamRecord
from jepa.data.video import VideoStream
from jepa.data.world import World
from jepa.errors import InputError
from jepa.live import sources
from jepa.live.sources import (
    EndlessWorld,
    Feed,
    FrameClock,
    Mailbox,
    Source,
    SourceNews,
    camera,
    check_allowed,
    parse_source,
    pushed_picture,
    video_shots,
)

SIZE, FPS = 32, 8


def shot(value: int, width: int = SIZE, height: int = SIZE):
    return av.VideoFrame.from_ndarray(np.full((height, width, 3), value, np.uint8), format="rgb24")


def runs(mailbox: Mailbox) -> list[tuple[int, np.ndarray]]:
    """Everything that waits, run by run."""
    found = []
    while (run := mailbox.take()) is not None:
        found.append((run.first, run.frames))
    return found


def played(source: Source, news: list[SourceNews] | None = None) -> np.ndarray:
    """The frames of a source from its beginning to its end, as fast as they can be taken."""
    ended, ready = threading.Event(), threading.Event()

    def tell(told: SourceNews) -> None:
        (news if news is not None else []).append(told)
        if told.status == "ended":
            ended.set()
            ready.set()

    mailbox = Mailbox(SIZE, FPS, 4, ready.set)
    feed = Feed(source, mailbox, tell, fast=True)
    frames = []
    while not (ended.is_set() and not mailbox.waiting):
        assert ready.wait(10)
        ready.clear()
        frames += [frame for _, run in runs(mailbox) for frame in run]
    feed.stop(5)
    assert not feed.alive
    assert mailbox.dropped == 0
    assert mailbox.taken == len(frames)
    return np.stack(frames)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    write_video(path, seed=1, seconds=6)
    return path


def test_a_file_reaches_the_model_as_the_evaluation_reads_it(video):
    recorded = np.concatenate(list(VideoStream(video, StreamRecord("a", 6.0, ()), SIZE, FPS).frames()))
    news: list[SourceNews] = []
    frames = played(parse_source(str(video), World(size=SIZE)), news)
    np.testing.assert_array_equal(frames, recorded)
    assert [each.status for each in news] == ["connected", "ended"]


def test_raw_frames_and_a_change_of_resolution_midway(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 255, (6, SIZE, SIZE, 3), dtype=np.uint8)
    path = tmp_path / "raw"
    path.write_bytes(pixels.tobytes() + b"half a frame")
    with path.open("rb") as file:
        monkeypatch.setattr("builtins.open", lambda *_, **__: file)
        frames = played(parse_source(f"stdin:{SIZE}x{SIZE}@{FPS}", World(size=SIZE)))
    np.testing.assert_array_equal(frames, pixels)
    sizes = [(64, 48), (64, 48), (48, 64), (320, 240)]
    shots = [(i / FPS, shot(50 * i, *size)) for i, size in enumerate(sizes)]
    changed = played(Source("sizes", lambda: iter(shots)))
    assert changed.shape == (4, SIZE, SIZE, 3)
    assert changed.mean((1, 2, 3)).tolist() == pytest.approx([0, 50, 100, 150], abs=2)


def test_a_transport_stream_that_changes_its_resolution_and_rate(tmp_path):
    whole = b""
    for number, (width, height, rate) in enumerate([(64, 48, 25), (96, 80, 50)]):
        path = tmp_path / f"{number}.ts"
        with av.open(str(path), "w", format="mpegts") as container:
            stream = container.add_stream("mpeg2video", rate=rate)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for _ in range(2 * rate):
                container.mux(stream.encode(shot(100 + 100 * number, width, height)))
            container.mux(stream.encode(None))
        whole += path.read_bytes()
    (tmp_path / "both.ts").write_bytes(whole)
    path = tmp_path / "both.ts"
    frames = played(Source("both", lambda: video_shots("both", path, live=True)))
    assert len(frames) == pytest.approx(4 * FPS, abs=2)
    means = frames.mean((1, 2, 3))
    assert means[0] == pytest.approx(100, abs=5)
    assert means[-1] == pytest.approx(200, abs=5)


@given(st.lists(st.one_of(st.floats(0, 1), st.floats(-1e6, 1e6)), max_size=60))
def test_a_clock_never_loses_or_repeats_a_frame(gaps):
    """However times jump, frames are numbered in order, and a jump is no gap in the stream."""
    clock, time, numbers, kept, usual = FrameClock(FPS), 0.0, [], 0.0, 1 / FPS
    for number, gap in enumerate(gaps):
        before, time = time, time + gap
        gap = time - before  # as floats have it
        numbers += clock.advance(time)
        if number and 0 <= gap <= 4:
            usual = gap or usual
            kept += gap
        elif number:  # the clock was set anew
            kept += usual
    assert numbers == list(range(len(numbers)))
    assert len(numbers) <= FPS * kept + 1


def test_an_hour_without_change_at_a_changing_rate_is_an_hour():
    clock = FrameClock(FPS)
    times = np.concatenate([np.arange(0, 1800, 1 / 30), np.arange(1800, 3600, 1 / 3)])
    assert sum(len(clock.advance(time)) for time in times) == pytest.approx(3600 * FPS, abs=FPS)


def test_frames_that_come_too_fast_are_dropped_and_counted_and_the_newest_window_wins():
    mailbox = Mailbox(SIZE, FPS, window=4)
    for number in range(100):
        mailbox.offer(number / FPS, shot(number))
        assert mailbox.waiting <= 8
    waiting = mailbox.waiting
    [(first, frames)] = runs(mailbox)
    assert first == 99 - len(frames)
    assert frames[:, 0, 0, 0].tolist() == list(range(first, 99))  # the newest picture is still held
    assert 4 <= waiting == mailbox.taken
    assert mailbox.taken + mailbox.dropped == 99
    mailbox.pause(True)
    mailbox.offer(100 / FPS, shot(100))
    mailbox.pause(False)
    mailbox.offer(101 / FPS, shot(101))
    assert [first for first, _ in runs(mailbox)] == [100]
    assert mailbox.dropped == 99 - waiting  # what passes by is not counted


@contextmanager
def told_until(
    source: Source, count: int, longest: float = 0.01
) -> Iterator[tuple[list[SourceNews], Mailbox, threading.Event]]:
    """What a source tells, from which on something is set once there is so much; it is stopped in the end."""
    news, enough = list[SourceNews](), threading.Event()

    def tell(told: SourceNews) -> None:
        news.append(told)
        if len(news) == count:
            enough.set()

    mailbox = Mailbox(SIZE, FPS, 4)
    feed = Feed(source, mailbox, tell, back_off=(0.01, longest))
    try:
        yield news, mailbox, enough
    finally:
        feed.stop(10)
        assert not feed.alive


def test_a_source_that_breaks_off_comes_back_later_each_time():
    failures = iter([None, None, 2, None, 3])

    def flaky():
        pictures = next(failures, 1)
        if pictures is None:
            raise OSError("no route")
        for number in range(pictures):
            yield number / FPS, shot(number)
        raise InputError("camera: went away")

    with told_until(Source("camera", flaky, returns=True), 9, longest=0.03) as (news, _, ready):
        assert ready.wait(10)
    told = [(each.status, each.attempt, each.retry_seconds) for each in news[:8]]
    assert told == [
        ("lost", 1, 0.01), ("lost", 2, 0.02), ("connected", 0, 0.0), ("lost", 1, 0.01), ("lost", 2, 0.02),
        ("connected", 0, 0.0), ("lost", 1, 0.01), ("connected", 0, 0.0),
    ]  # fmt: skip
    assert "no route" in news[0].message
    assert news[3].message == "camera: went away"


@pytest.mark.parametrize("name", ["a.mp4", "a.m3u8"])
def test_a_url_that_ends_is_opened_again(tmp_path, name):
    hls = {"format": "hls", "options": {"hls_time": "1"}} if name == "a.m3u8" else {}
    with av.open(str(tmp_path / name), "w", **hls) as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for value in range(60):
            container.mux(stream.encode(shot(4 * value, 64, 48)))
        container.mux(stream.encode(None))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    source = parse_source(f"http://me:secret@127.0.0.1:{server.server_port}/{name}", World(size=SIZE))
    assert source.paced
    with told_until(replace(source, paced=False), 4) as (news, mailbox, twice):
        assert twice.wait(20)
    missing = parse_source(f"http://me:secret@127.0.0.1:{server.server_port}/none", World(size=SIZE))
    with told_until(missing, 1) as (lost, _, once):
        assert once.wait(20)
    server.shutdown()
    thread.join()
    server.server_close()
    assert [each.status for each in news[:4]] == ["connected", "lost", "connected", "lost"]
    assert mailbox.newest[0] == 2 * 60  # all pictures, twice
    assert "Not Found" in lost[0].message
    assert "secret" not in source.name + lost[0].message


def test_pictures_that_come_in_bursts_are_shown_at_their_times(monkeypatch):
    now, waits = [100.0], list[float]()

    def bursts():
        yield from ((7.0 + i / 2, i) for i in range(4))
        now[0] += 9.5  # nothing came for long
        yield from ((9.0 + i / 2, i) for i in range(2))
        yield 3.0, 0  # the clock was set anew

    def wait(seconds):
        waits.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(sources, "time", SimpleNamespace(monotonic=lambda: now[0]))
    feed = Feed(Source("push", paced=True), Mailbox(SIZE, FPS, 4), print)
    feed._source = Source("bursts", bursts, paced=True)
    monkeypatch.setattr(feed._stopped, "wait", wait)
    assert len(list(feed._shots())) == 7
    assert waits == [0, 0.5, 0.5, 0.5, 0, 0.5, 0]


RTSP = """
import sys, gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server, factory = GstRtspServer.RTSPServer(), GstRtspServer.RTSPMediaFactory()
server.set_service(sys.argv[1])
picture = f"videotestsrc is-live=true ! video/x-raw,width={sys.argv[2]},height=48,framerate=15/1"
factory.set_launch(f"( {picture} ! x264enc tune=zerolatency key-int-max=15 ! rtph264pay name=pay0 )")
server.get_mount_points().add_factory("/x", factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""


@contextmanager
def rtsp_server(port: str, width: int) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    python = shutil.which("python3", path="/usr/bin") or sys.executable
    command = [python, "-c", RTSP, port, str(width)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            if not server.stdout or not (bound := server.stdout.readline().strip()):
                pytest.skip("no RTSP server: gir1.2-gst-rtsp-server-1.0, python3-gi and gstreamer1.0-plugins-ugly")
            yield bound, server
        finally:
            server.kill()


def test_an_rtsp_server_that_dies_comes_back_with_other_pictures():
    with rtsp_server("0", 64) as (port, first):
        source = parse_source(f"rtsp://me:secret@127.0.0.1:{port}/x", World(size=SIZE))
        with told_until(source, 2) as (news, mailbox, lost):
            wait(lambda: mailbox.newest[0])
            assert mailbox.newest[1].width == 64
            first.kill()
            assert lost.wait(30)
            seen = mailbox.newest[0]
            with rtsp_server(port, 96):
                wait(lambda: mailbox.newest[0] > seen)
    assert mailbox.newest[1].width == 96
    assert [each.status for each in news[:2]] == ["connected", "lost"]
    assert "connected" in [each.status for each in news[2:]]
    assert not any("secret" in each.message for each in news)


@pytest.mark.parametrize(
    ("platform", "name", "device", "form"),
    [
        ("linux", "1", "/dev/video1", "v4l2"),
        ("darwin", "0", "0:none", "avfoundation"),
        ("win32", "USB Camera", "video=USB Camera", "dshow"),
    ],
)
def test_a_camera_that_is_missing_ends_with_its_device_and_where_cameras_are_listed(
    monkeypatch, platform, name, device, form
):
    asked = []

    def refuse(file, mode, **options):
        asked.append((file, options["format"]))
        raise FileNotFoundError(2, "No such file or directory", file)

    monkeypatch.setattr(av, "open", refuse)
    monkeypatch.setattr(sys, "platform", platform)
    with told_until(parse_source(f"webcam:{name}", World(size=SIZE)), 1) as (news, _, ended):
        assert ended.wait(10)
    assert asked == [(device, form)]
    assert news[0].status == "ended"
    for part in (device, "No such file", "lists the cameras"):
        assert part in news[0].message
    monkeypatch.setattr(sys, "platform", "sunos5")
    refuses("a webcam is read on linux, darwin, win32, got sunos5", lambda: next(camera("0")))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_the_world_goes_on_and_knows_its_events():
    endless = EndlessWorld(World(size=SIZE), 3)
    times = [time for (time, _), _ in zip(endless.shots(), range(125 * FPS), strict=False)]
    assert times == pytest.approx(np.arange(125 * FPS) / FPS)
    ends = [event.end for event in endless.events]
    assert ends == sorted(ends)
    assert ends[0] < 120 < ends[-1]


@pytest.mark.parametrize(
    ("name", "allowed", "good"),
    [
        ("world", ["world", "push"], True),
        ("webcam", ["world"], False),
        ("rtsp://camera/1", ["rtsp://camera/"], True),
        ("rtsp://camera.evil.org/1", ["rtsp://camera"], False),
        ("rtsp://camera:80@evil.org/1", ["rtsp://camera/"], False),
        ("/etc/passwd", ["world", "file:/videos/"], False),
        ("file:/videos/a.mp4", ["file:/videos/"], True),
        ("file:/videos/../etc/passwd", ["file:/videos/"], False),
        ("file:///etc/passwd", ["world"], False),
        ("worldly", ["world"], False),
    ],
)
def test_only_allowed_sources_come_through_the_api(name, allowed, good):
    if good:
        check_allowed(name, allowed)
    else:
        refuses("source must be allowed on the command line", check_allowed, name, allowed)


@pytest.mark.parametrize("name", ["nowhere.mp4", "world:x", "stdin:0x2@8", "stdin:2x2", "webcam:front", "file:"])
def test_a_bad_name_is_named(name):
    refuses("got '", lambda: parse_source(name, World(size=SIZE)))


def test_a_pushed_picture_is_a_whole_jpeg_or_png():
    buffer = io.BytesIO()
    Image.fromarray(np.full((10, 20, 3), 90, np.uint8)).save(buffer, format="PNG")
    assert (pushed_picture(buffer.getvalue()).width, pushed_picture(buffer.getvalue()).height) == (20, 10)
    huge = io.BytesIO()
    Image.new("1", (5000, 5000)).save(huge, format="PNG")
    for bad in (b"", b"GIF89a", buffer.getvalue()[:40], huge.getvalue()):
        refuses("a frame must", pushed_picture, bad)
