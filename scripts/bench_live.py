"""Live streams: how many one process serves, how late texts come, what stays in memory, what clients leave behind.

    python scripts/bench_live.py [--quick] [--checkpoint outputs/demo/checkpoint] [--hours 24]

Without a checkpoint the model is that of conf/model/vl_jepa_small.yaml with random weights, whose texts are as long as
they may be. Sessions take 2 steps and decode 0.25 times a second, from pictures drawn before. "Served" are the seconds
of streams computed in a second by the wall. Latency is from the arrival of a step's last frame to its text, in real
time. Memory is the peak of the process, a tenth of the way and at the end. Then clients connect and go, some killed,
some that never read, and sources fail: what is left of threads and files is counted, and whether a reader that comes
back misses an emission. With a checkpoint, triggers are measured: recall and delay at one false alarm an hour, for
compositions kept out of training and in other words than the annotations, beside decoding at 1 Hz and matching the
text. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
import torch
from omegaconf import OmegaConf

from jepa import checkpoint
from jepa.checkpoint import build_model
from jepa.cli import compose
from jepa.config import PolicyConfig, validate
from jepa.data.tokenizer import Tokenizer
from jepa.data.world import CAPTION_QUERIES, StreamStyle, World, captions, corpus, is_held_out
from jepa.evaluation.streams import encode_stream
from jepa.live import Changes, Engine, Saver, Server, Setup, Source
from jepa.live.command import bind, serve
from jepa.live.session import percentiles
from jepa.models.vl_jepa import VLJEPA
from jepa.selective import ScoredStream, Uniform, calibrate_trigger
from jepa.training.configs import TrainConfig

WORLD, STYLE, FPS = World(), StreamStyle(mean_event=6.0), 8
DECODES = Changes(policy="uniform", threshold=0.25)  # a second: about as many as the gate's on everyday streams
ALARMS_PER_HOUR = 1.0


def make_setup(folder: str | None) -> Setup:
    """The model, and the policies of `jepa live`."""
    if folder is None:
        config = validate(compose("train", ["name=bench"]), TrainConfig)
        torch.manual_seed(0)
        tokenizer = Tokenizer.train(corpus(), config.tokenizer.vocab_size)
        model: VLJEPA = build_model(config.model_dump(), tokenizer).eval()
    else:
        model = checkpoint.load(folder)
    policies: Any = OmegaConf.to_container(compose("live", ["checkpoint=none"]).policies)
    model.requires_grad_(False)
    return Setup(model, {name: validate(node, PolicyConfig) for name, node in policies.items()}, keep_seconds=600)


def pictures(seconds: float = 60.0) -> list[Any]:
    """A minute of the world."""
    frames = (frame for chunk in WORLD.stream("bench", (1,), seconds, STYLE).frames() for frame in chunk)
    return [av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24") for frame in frames]


def served(setup: Setup, shots: list[Any], streams: int, seconds: float) -> float:
    """Seconds of streams computed in a second, one process and thread."""
    engine = Engine(setup, WORLD, most=streams)
    sessions = [engine.add(Source("push"), DECODES, query=CAPTION_QUERIES[0]) for _ in range(streams)]
    begun = time.perf_counter()
    for number in range(round(seconds * FPS)):
        for place, session in enumerate(sessions):
            session.mailbox.offer(number / FPS, shots[(number + 37 * place) % len(shots)])
        if number % 4 == 3:
            engine.work()
    taken = time.perf_counter() - begun
    engine.stop()
    return streams * seconds / taken


def latency(setup: Setup, shots: list[Any], streams: int, seconds: float) -> dict[str, Any]:
    """Seconds from frame to text in real time, and the fraction of frames dropped."""
    engine = Engine(setup, WORLD, most=streams)
    sessions = [engine.add(Source("push"), DECODES, query=CAPTION_QUERIES[0]) for _ in range(streams)]
    engine.start()
    begun = time.monotonic()
    for number in range(round(seconds * FPS)):
        time.sleep(max(0.0, begun + number / FPS - time.monotonic()))
        for place, session in enumerate(sessions):
            session.mailbox.offer(number / FPS, shots[(number + 37 * place) % len(shots)])
    engine.stop()
    taken, dropped = (sum(getattr(s.mailbox, name) for s in sessions) for name in ("taken", "dropped"))
    found = [late for session in sessions for late in session.compute_seconds()]
    return {**percentiles(found), "texts": len(found), "dropped": round(dropped / max(1, taken + dropped), 4)}


def memory(setup: Setup, shots: list[Any], hours: float) -> dict[str, float]:
    """Peak megabytes of the process, a tenth of the way and at the end."""
    engine, peaks = Engine(setup, WORLD), list[float]()
    session = engine.add(Source("push"), DECODES, query=CAPTION_QUERIES[0])
    frames = round(hours * 3600 * FPS)
    for number in range(frames):
        session.mailbox.offer(number / FPS, shots[number % len(shots)])
        if number % 8 == 7:
            engine.work()
        if number in (frames // 10, frames - 1):
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    engine.stop()
    return {"hours": hours, "first_mb": round(peaks[0], 1), "last_mb": round(peaks[-1], 1)}


def clients(setup: Setup, shots: list[Any], connects: int, failures: int) -> dict[str, Any]:
    """Clients and sources that come and go; what they leave, and what a reader that comes back has missed."""
    engine, stop, urls = Engine(setup, WORLD), threading.Event(), list[str]()
    session = engine.add(Source("push"), Changes(policy="uniform", threshold=2.0), query=CAPTION_QUERIES[0])
    with TemporaryDirectory() as folder:
        saver = Saver(setup.model, "cpu", Path(folder), {}, WORLD, {})
        server, listening = Server(engine, saver, Path(folder), DECODES, CAPTION_QUERIES[0]), bind("127.0.0.1", 0)
        thread = threading.Thread(target=lambda: asyncio.run(serve(server, listening, urls.append, stop.is_set)))
        thread.start()
        while not urls:
            time.sleep(0.01)
        address = listening.getsockname()
        play = threading.Thread(target=_play, args=(session, shots, stop))
        play.start()
        before = _held()
        heard, after, broken = list[int](), 0, 0
        slow = _reader(address, session.id)
        for number in range(connects):
            if number % 10 == 0:  # the reader that comes back
                for id, kind in _events(address, session.id, after):
                    heard += [id] if kind == "emission" else []
                    after = id
            else:
                opened = _reader(address, session.id)
                if number % 2:
                    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                opened.close()
        slow.close()
        for _ in range(failures):
            failing = engine.add(Source("camera", _fail, returns=True), DECODES, query=CAPTION_QUERIES[0])
            while failing.described()["status"] != "reconnecting":
                time.sleep(0.001)
            engine.remove(failing.id, seconds=5.0)
            broken += failing.alive
        told = [event.id for event in session.log.after(0) if event.kind == "emission" and event.id <= after]
        deadline = time.monotonic() + 20
        while (
            server.readers or any(now > was for was, now in zip(before, _held(), strict=True))
        ) and time.monotonic() < deadline:
            time.sleep(0.1)
        held = zip(("threads", "files"), before, _held(), strict=True)
        left = {name: max(0, now - was) for name, was, now in held}
        left |= {"readers": server.readers, "sources": broken}
        stop.set()
        play.join()
        thread.join()
        engine.stop()
        listening.close()
    counts = {"connects": connects, "failures": failures, "emissions": len(told), "missed": len(set(told) - set(heard))}
    return counts | {"left": left}


def _play(session: Any, shots: list[Any], stop: threading.Event) -> None:
    number = 0
    while not stop.wait(1 / FPS):
        session.mailbox.offer(number / FPS, shots[number % len(shots)])
        number += 1


def _fail() -> Iterator[Any]:
    raise OSError("gone")


def _held() -> tuple[int, int]:
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


def _reader(address: tuple[str, int], id: str) -> socket.socket:
    opened = socket.create_connection(address)
    opened.sendall(f"GET /sessions/{id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    opened.recv(15)
    return opened


def _events(address: tuple[str, int], id: str, after: int, count: int = 5) -> Iterator[tuple[int, str]]:
    connection = http.client.HTTPConnection(*address, timeout=10)
    connection.request("GET", f"/sessions/{id}/events?after={after}")
    told: dict[str, str] = {}
    for line in map(bytes.decode, connection.getresponse()):
        name, _, value = line.strip().partition(": ")
        if name:
            told[name] = value
        elif "id" in told:
            yield int(told["id"]), told["event"]
            count -= 1
            if not count:
                break
            told = {}
    connection.close()


def triggers(setup: Setup, hours: float, sentences: int) -> dict[str, Any]:
    """Recall and delay of triggers at one false alarm an hour, and of matching the texts of decoding at 1 Hz."""
    model, each, rng = setup.model, 300.0, np.random.default_rng(0)
    seeds = range(max(2, round(hours * 3600 / each)))
    streams = {
        split: [WORLD.stream(f"{split}-{seed}", (7, number, seed), each, STYLE) for seed in seeds]
        for number, split in enumerate(("calibration", "test"))
    }
    encoded = {split: [encode_stream(model, stream, 2.0) for stream in of] for split, of in streams.items()}
    spans = [span for stream in streams["test"] for span in stream.spans if span.scene.action != "idle"]
    scenes = list(dict.fromkeys(span.scene for span in spans if is_held_out(span.scene, WORLD.held_out_percent)))
    said = []  # of each test stream, (time known, text) of decoding at 1 Hz
    for stream in encoded["test"]:
        cut = [segment for segment, _ in Uniform(1.0).run(stream.latents, stream.times)]
        texts = model.decode(torch.from_numpy(np.stack([segment.latent for segment in cut])))
        said.append([(segment.time, told.text) for segment, told in zip(cut, texts, strict=True)])
    events, found, matched = 0, list[float](), list[float]()
    false, wrong, kept = 0, 0, 0
    for scene in [scenes[i] for i in rng.permutation(len(scenes))[:sentences]]:
        told = {span.text for span in spans if span.scene == scene}
        others = [text for text in captions(scene) if text not in told]
        sentence, meant = str(rng.choice(others or captions(scene))), set(captions(scene))
        embedding = model.embed_all([sentence]).numpy()[0]

        def score(split: str, meant: set[str] = meant, embedding: np.ndarray = embedding) -> list[ScoredStream]:
            happens = [[(x.start, x.end) for x in e.record.events if x.text in meant] for e in encoded[split]]
            pairs = zip(encoded[split], happens, strict=True)
            return [ScoredStream(e.latents @ embedding, e.times, each, when) for e, when in pairs]

        calibration = calibrate_trigger(score("calibration"), ALARMS_PER_HOUR)
        kept += calibration.kept
        for tested, texts in zip(score("test"), said, strict=True):
            alarms, delays = tested.judged(calibration.threshold)
            false, events = false + len(alarms), events + len(tested.happens)
            found += [delay + model.window / 2 for delay in delays]
            hits = np.array([time for time, text in texts if text in meant])
            alarms, delays = ScoredStream(np.ones(len(hits)), hits, each, tested.happens).judged(0.5)
            matched += [delay + model.window / 2 for delay in delays]
            wrong += len(alarms)
    listened = max(1, min(sentences, len(scenes))) * len(seeds) * each / 3600

    def row(delays: list[float], alarms: int) -> dict[str, Any]:
        late = round(float(np.median(delays)), 2) if delays else None
        return {
            "recall": round(len(delays) / max(1, events), 3),
            "median_delay": late,
            "false_per_hour": round(alarms / listened, 3),
        }

    counts = {"hours": len(seeds) * each / 3600, "events": events, "promises_kept": kept}
    return counts | {"trigger": row(found, false), "matching_at_1_hz": row(matched, wrong)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer streams and seconds, under 50 s")
    parser.add_argument("--checkpoint", help="folder of a trained VL-JEPA")
    parser.add_argument("--hours", type=float, default=24.0, help="of stream time, for memory")
    arguments = parser.parse_args()
    quick = arguments.quick
    torch.set_num_threads(1)
    setup, shots = make_setup(arguments.checkpoint), pictures(10.0 if quick else 60.0)
    numbers = (1, 8) if quick else (1, 8, 32)
    served(setup, shots, 1, 1.0)  # FLOPs are counted once
    capacity = {n: round(served(setup, shots, n, 4.0 if quick else 20.0), 1) for n in numbers}
    most = max(1, int(0.8 * max(capacity.values())))
    late = {
        n: latency(setup, shots, n, 3.0 if quick else 30.0) for n in sorted({*numbers, *(() if quick else (most,))})
    }
    grown = memory(setup, shots, 0.02 if quick else arguments.hours)
    soak = clients(setup, shots, *((40, 5) if quick else (1000, 100)))
    figures = {
        "bench": "live",
        "checkpoint": arguments.checkpoint,
        "threads": torch.get_num_threads(),
        "streams_served": capacity,
        "latency_seconds": late,
        "memory": grown,
        "clients": soak,
    }
    if arguments.checkpoint is not None:
        figures["triggers"] = triggers(setup, 0.2 if quick else 3.2, 3 if quick else 40)
    print(f"{max(capacity.values()):.1f} streams at 2 steps a second: {capacity}")
    for number, row in late.items():
        print(f"{number} streams, frame to text: {row}")
    print(f"memory: {grown}\nclients: {soak}\ntriggers: {figures.get('triggers', 'need a checkpoint')}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
