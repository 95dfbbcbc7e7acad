"""Live streams: how many one process serves, how late texts come, what stays in memory, what clients leave behind.

    python scripts/bench_live.py [served] [latency] [memory] [clients] [triggers] [--quick]
        [--checkpoint outputs/demo/checkpoint | --tiny] [--hours 24] [--connects 1000] [--failures 100]

Without a checkpoint the model is that of conf/model/vl_jepa_small.yaml with random weights, whose texts are as long as
they may be; with `--tiny` one block of width 32. Sessions take 2 steps and decode 0.25 times a second, from pictures
drawn before.

- served: seconds of streams computed in a second by the wall, also where every step is decoded; each beside a decoder
  that is called for each text alone.
- latency: seconds from the arrival of a step's last frame to its text, in real time, at 1, 8 and 32 streams and at the
  most that hold 2 steps a second without dropping a frame.
- memory: resident megabytes of the process at the start of a stream and after each hour of it, as fast as it can be
  computed, and the slope over its second half.
- clients: they connect and go, read (slowly, too) or are killed in the middle of a frame, and sources fail. What is
  left of threads, tasks and files is counted, and whether a reader that comes back, or a slow one, missed an emission.
- triggers, of a checkpoint: recall and delay at one false alarm an hour, for compositions kept out of training and in
  other words than the annotations, beside decoding at 1 Hz and matching the text.

Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import av
import numpy as np
import torch
from omegaconf import OmegaConf

from jepa import checkpoint
from jepa.build import build_as
from jepa.checkpoint import build_model, read_config
from jepa.cli import compose
from jepa.config import PolicyConfig, validate
from jepa.data.tokenizer import Tokenizer
from jepa.data.world import CAPTION_QUERIES, StreamStyle, World, captions, corpus, is_held_out
from jepa.evaluation.streams import encode_stream
from jepa.live import Changes, Engine, Saver, Server, Setup, Source
from jepa.live.command import bind, serve
from jepa.live.session import Session, percentiles
from jepa.models.vl_jepa import VLJEPA
from jepa.selective import Decoded, ScoredStream, Uniform, calibrate_trigger
from jepa.training.configs import TrainConfig

WORLD, STYLE, FPS = World(), StreamStyle(mean_event=6.0), 8
DECODES = Changes(policy="uniform", threshold=0.25)  # a second: about as many as the gate's on everyday streams
ALARMS_PER_HOUR = 1.0
PARTS = ("served", "latency", "memory", "clients", "triggers")
TINY = [
    *(f"model.x_encoder.{size}" for size in ("embed_dim=32", "depth=1", "num_heads=2")),
    *(f"model.{role}.{size}" for role in ("predictor", "y_encoder", "y_decoder") for size in ("width=32", "depth=1")),
    "model.predictor.state_dim=32",
    "+model.y_decoder.max_length=12",
]


def make_setup(folder: str | None, tiny: bool = False) -> Setup:
    """The model, and the policies of `jepa live`."""
    if folder is None:
        config = validate(compose("train", ["name=bench", *(TINY if tiny else ())]), TrainConfig)
        torch.manual_seed(0)
        tokenizer = Tokenizer.train(corpus(), config.tokenizer.vocab_size)
        model: VLJEPA = build_model(config.model_dump(), tokenizer).eval()
    else:
        model = checkpoint.load(folder)
    policies: Any = OmegaConf.to_container(compose("live", ["checkpoint=none"]).policies)
    model.requires_grad_(False)
    return Setup(model, {name: validate(node, PolicyConfig) for name, node in policies.items()})


def pictures(seconds: float = 60.0) -> list[Any]:
    """A minute of the world."""
    frames = (frame for chunk in WORLD.stream("bench", (1,), seconds, STYLE).frames() for frame in chunk)
    return [av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24") for frame in frames]


def offered(sessions: list[Session], shots: list[Any], number: int) -> None:
    """A frame for each session, half a second of stream later for each, so that they do not decode in step."""
    for place, session in enumerate(sessions):
        if number >= 4 * (place % 8):
            session.mailbox.offer(number / FPS, shots[(number + 37 * place) % len(shots)])


def served(
    setup: Setup, shots: list[Any], streams: int, seconds: float, first: Changes = DECODES, *, alone: bool = False
) -> float:
    """Seconds of streams computed in a second, one process and thread; `alone`: each text by a call of its own."""
    decode, engine = setup.model.decode, Engine(setup, WORLD, most=streams)
    sessions = [engine.add(Source("push"), first, query=CAPTION_QUERIES[0]) for _ in range(streams)]

    def each(latents: torch.Tensor) -> list[Decoded]:
        return [decode(latent[None])[0] for latent in latents]

    with patch.object(setup.model, "decode", each if alone else decode):
        begun = time.perf_counter()
        for number in range(round(seconds * FPS)):
            offered(sessions, shots, number)
            if number % 4 == 3:
                engine.work()
        taken = time.perf_counter() - begun
    engine.stop()
    return sum(session.ledger.stream_seconds for session in sessions) / taken


def latency(setup: Setup, shots: list[Any], streams: int, seconds: float) -> dict[str, Any]:
    """Seconds from frame to text in real time, and the fraction of frames dropped."""
    engine = Engine(setup, WORLD, most=streams)
    sessions = [engine.add(Source("push"), DECODES, query=CAPTION_QUERIES[0]) for _ in range(streams)]
    engine.start()
    begun = time.monotonic()
    for number in range(round(seconds * FPS)):
        time.sleep(max(0.0, begun + number / FPS - time.monotonic()))
        offered(sessions, shots, number)
    late = time.monotonic() - begun > seconds + 1  # who gives the frames did not keep up
    engine.stop()
    taken, dropped = (sum(getattr(s.mailbox, name) for s in sessions) for name in ("taken", "dropped"))
    found = [late for session in sessions for late in session.compute_seconds()]
    counts = {"texts": len(found), "dropped": round(dropped / max(1, taken + dropped), 4)}
    return {**percentiles(found), **counts, "held": not dropped and not late}


def most_held(setup: Setup, shots: list[Any], capacity: float, seconds: float) -> tuple[int, dict[str, Any]]:
    """The most streams that hold 2 steps a second, to a tenth, from as many as were `served` downwards."""
    streams = max(1, int(capacity))
    while not (found := latency(setup, shots, streams, seconds))["held"] and streams > 1:
        streams = max(1, min(streams - 1, int(0.9 * streams)))
    return streams, found


def memory(setup: Setup, shots: list[Any], hours: float) -> dict[str, Any]:
    """Resident megabytes at the start and after each hour (of less than four: each quarter), and their late slope."""
    engine = Engine(setup, WORLD)
    session = engine.add(Source("push"), DECODES, query=CAPTION_QUERIES[0])
    frames, parts = round(hours * 3600 * FPS), max(4, round(hours))
    begun, measured = time.perf_counter(), [_resident_mb()]
    for part in range(parts):
        for number in range(frames * part // parts, frames * (part + 1) // parts):
            session.mailbox.offer(number / FPS, shots[number % len(shots)])
            if number % 16 == 15:
                engine.work()
        measured.append(_resident_mb())
    counts = {"steps": session.ledger.step_count, "dropped": session.mailbox.dropped}
    engine.stop()
    late = measured[parts // 2 :]
    slope = float(np.polyfit(np.arange(len(late)) * hours / parts, late, 1)[0])
    seconds = round(time.perf_counter() - begun, 1)
    return {"hours": hours, "seconds": seconds, **counts, "mb": measured, "late_mb_per_hour": round(slope, 3)}


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def clients(setup: Setup, shots: list[Any], connects: int, failures: int) -> dict[str, Any]:
    """Clients and sources that come and go; what they leave, and what a reader that comes back has missed."""
    engine, stop, urls, loops = Engine(setup, WORLD), threading.Event(), list[str](), list[asyncio.AbstractEventLoop]()
    session = engine.add(Source("push"), Changes(policy="uniform", threshold=2.0), query=CAPTION_QUERIES[0])
    with TemporaryDirectory() as folder:
        saver = Saver(setup.model, "cpu", Path(folder), {}, WORLD, {})
        server, listening = Server(engine, saver, Path(folder), DECODES, CAPTION_QUERIES[0]), bind("127.0.0.1", 0)

        async def run() -> None:
            loops.append(asyncio.get_running_loop())
            await serve(server, listening, urls.append, stop.is_set)

        def held() -> dict[str, int]:
            tasks, files = len(asyncio.all_tasks(loops[0])), len(os.listdir("/proc/self/fd"))
            return {"threads": threading.active_count(), "tasks": tasks, "files": files}

        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()
        while not urls:
            time.sleep(0.01)
        address = listening.getsockname()
        _reader(address, session.id).close()  # it answers: all its tasks have begun
        play = threading.Thread(target=_play, args=(session, shots, stop))
        play.start()
        before = held()
        heard, after, broken = list[int](), 0, 0
        slow, slowly, told_slow = _reader(address, session.id, slow=True), dict[str, str](), list[int]()
        for number in range(connects):
            if number % 10 == 0:  # the reader that comes back, and the slow one
                for id, kind in _events(address, session.id, after):
                    heard += [id] if kind == "emission" else []
                    after = id
                told_slow += _read(slow, slowly, 1)
                continue
            opened = (_pusher if number % 5 == 1 else _reader)(address, session.id)
            if number % 2:  # killed, not closed
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            opened.close()
        while not told_slow or told_slow[-1] < after:
            told_slow += _read(slow, slowly, 1)
        slow.close()
        for _ in range(failures):
            failing = engine.add(Source("camera", _fail, returns=True), DECODES, query=CAPTION_QUERIES[0])
            while failing.described()["status"] != "reconnecting":
                time.sleep(0.001)
            engine.remove(failing.id, seconds=5.0)
            broken += failing.alive
        told = {event.id for event in session.log.after(0) if event.kind == "emission" and event.id <= after}
        deadline = time.monotonic() + 20
        while (server.readers or any(held()[name] > before[name] for name in before)) and time.monotonic() < deadline:
            time.sleep(0.1)
        now = held()
        left = {name: max(0, now[name] - before[name]) for name in before}
        left |= {"readers": server.readers, "sources": broken}
        stop.set()
        play.join()
        thread.join()
        engine.stop()
        listening.close()
    missed = {"missed": len(told - set(heard)), "missed_slowly": len(told - set(told_slow))}
    return {"connects": connects, "failures": failures, "emissions": len(told), **missed, "left": left}


def _play(session: Session, shots: list[Any], stop: threading.Event) -> None:
    """Four times as fast as in real time."""
    number = 0
    while not stop.wait(1 / FPS / 4):
        session.mailbox.offer(number / FPS, shots[number % len(shots)])
        number += 1


def _fail() -> Iterator[Any]:
    raise OSError("gone")


def _reader(address: tuple[str, int], id: str, *, slow: bool = False) -> socket.socket:
    opened = socket.socket()
    if slow:  # so that the server cannot write ahead of it
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    opened.connect(address)
    opened.sendall(f"GET /sessions/{id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    opened.recv(15)
    return opened


def _read(opened: socket.socket, rest: dict[str, str], kilobytes: int) -> list[int]:
    """Ids of the emissions in the next bytes of a reader; `rest` holds the line that they end in."""
    lines = (rest.get("line", "") + opened.recv(1024 * kilobytes).decode()).split("\n")
    rest["line"], found = lines.pop(), list[int]()
    for line in lines:
        name, _, value = line.strip().partition(": ")
        rest[name] = value
        if name == "event" and value == "emission":
            found.append(int(rest["id"]))
    return found


def _pusher(address: tuple[str, int], id: str) -> socket.socket:
    """A WebSocket in the middle of a frame: ten bytes of two hundred."""
    opened = socket.create_connection(address)
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13"
    key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
    opened.sendall(f"GET /sessions/{id} HTTP/1.1\r\nHost: 127.0.0.1\r\n{upgrade}\r\n{key}\r\n\r\n".encode())
    opened.recv(15)
    opened.sendall(b"\x82\xfe\x00\xc8" + bytes(4 + 10))
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


def triggers(setup: Setup, world: World, hours: float, sentences: int) -> dict[str, Any]:
    """Recall and delay of triggers at one false alarm an hour, and of matching the texts of decoding at 1 Hz."""
    model, each, rng = setup.model, 300.0, np.random.default_rng(0)
    seeds = range(max(2, round(hours * 3600 / each)))
    streams = {
        split: [world.stream(f"{split}-{seed}", (7, number, seed), each, STYLE) for seed in seeds]
        for number, split in enumerate(("calibration", "test"))
    }
    encoded = {split: [encode_stream(model, stream, 2.0) for stream in of] for split, of in streams.items()}
    spans = [span for stream in streams["test"] for span in stream.spans if span.scene.action != "idle"]
    scenes = list(dict.fromkeys(span.scene for span in spans if is_held_out(span.scene, world.held_out_percent)))
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
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; none: all that can be")
    parser.add_argument("--quick", action="store_true", help="a small share of each part")
    parser.add_argument("--checkpoint", help="folder of a trained VL-JEPA")
    parser.add_argument("--tiny", action="store_true", help="a model of one block and width 32, with random weights")
    parser.add_argument("--hours", type=float, help="of stream time, for memory; default 24, quick 0.02")
    parser.add_argument("--connects", type=int, help="of clients; default 1000, quick 40")
    parser.add_argument("--failures", type=int, help="of sources; default 100, quick 5")
    arguments = parser.parse_args()
    quick, folder, parts = arguments.quick, arguments.checkpoint, arguments.parts
    if unknown := set(parts) - set(PARTS):
        parser.error(f"part must be one of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    if folder is None and "triggers" in parts:
        parser.error("triggers need a --checkpoint")
    parts = parts or [part for part in PARTS if folder is not None or part != "triggers"]
    torch.set_num_threads(1)
    setup, shots = make_setup(folder, arguments.tiny), pictures(10.0 if quick else 60.0)
    served(setup, shots, 8, 8.0)  # FLOPs are counted once
    figures: dict[str, Any] = {"bench": "live", "checkpoint": folder, "tiny": arguments.tiny, "threads": 1}
    numbers, seconds = ((1, 8), 4.0) if quick else ((1, 8, 32), 20.0)

    def told(name: str, found: Any) -> None:
        figures[name] = found
        print(f"{name}: {found}", flush=True)

    if "served" in parts:
        for name, first in (("", DECODES), ("_decoding_every_step", Changes(policy="uniform", threshold=2.0))):
            for more, alone in (("", False), ("_each_text_alone", True)):
                rates = {n: round(served(setup, shots, n, seconds, first, alone=alone), 1) for n in numbers}
                told(f"streams_served{name}{more}", rates)
    if "latency" in parts:
        real = 3.0 if quick else 30.0
        for n in numbers:
            told(f"latency_of_{n}_streams", latency(setup, shots, n, real))
        most, found = most_held(setup, shots, served(setup, shots, numbers[-1], seconds), real)
        told("most_streams", {"streams": most, **found})
    if "memory" in parts:
        told("memory", memory(setup, shots, arguments.hours or (0.02 if quick else 24.0)))
    if "clients" in parts:
        many = (arguments.connects or (40 if quick else 1000), arguments.failures or (5 if quick else 100))
        told("clients", clients(setup, shots, *many))
    if folder is not None and "triggers" in parts:
        world = build_as(World, "world", read_config(Path(folder))["world"])
        told("triggers", triggers(setup, world, 0.2 if quick else 3.2, 3 if quick else 40))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
