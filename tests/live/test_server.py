"""The server as clients meet it: over sockets, by its limits, and when they go away."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pytest
from browser import wait
from conftest import tiny_config
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from jepa.data import media
from jepa.data.world import CAPTION_QUERIES, StreamStyle, World
from jepa.live import Changes, Engine, LimitsConfig, Saver, Server, Source
from jepa.live.command import bind, serve
from jepa.results import StreamEvaluation, read_document

WORLD = World()
LIMITS = LimitsConfig(
    sessions=6, readers=5, frame_bytes=30_000, frames_per_second=1000.0, text_length=40, triggers=2,
    saves_per_minute=6000.0,
)  # fmt: skip


class Client(NamedTuple):
    """Requests to a server, each on a connection of its own."""

    server: Server
    host: str
    port: int

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, data, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        is_json = (answer.getheader("content-type") or "").startswith("application/json")
        return answer.status, json.loads(content) if is_json else content

    def events(self, id: str, after: int = 0) -> Iterator[tuple[int | None, str, Any]]:
        """(id, kind, data) as they come, until the connection ends."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request("GET", f"/sessions/{id}/events", headers={"Last-Event-ID": str(after)})
            answer = connection.getresponse()
            assert answer.status == 200
            told: dict[str, str] = {}
            for line in map(bytes.decode, answer):
                if line.strip() and not line.startswith(":"):
                    name, _, value = line.strip().partition(": ")
                    told[name] = value
                elif told:
                    yield int(told["id"]) if "id" in told else None, told["event"], json.loads(told["data"])
                    told = {}
        finally:
            connection.close()


@contextmanager
def served(server: Server) -> Iterator[Client]:
    listening, stop, urls = bind("127.0.0.1", 0), threading.Event(), list[str]()
    thread = threading.Thread(target=lambda: asyncio.run(serve(server, listening, urls.append, stop.is_set)))
    thread.start()
    try:
        while not urls:
            time.sleep(0.01)
        parts = urlsplit(urls[0])
        yield Client(server, str(parts.hostname), int(parts.port or 0))
    finally:
        stop.set()
        thread.join(20)
        server.engine.stop()
        listening.close()
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def make(live_setup, tiny_checkpoint, tmp_path_factory):
    def made(**options: Any) -> Server:
        saver = Saver(live_setup.model, "cpu", tiny_checkpoint, tiny_config(), WORLD, {}, candidates=20)
        first = Changes(policy="send_on_delta", threshold=0.001, cache_threshold=-1.0, triggers=[])
        options = {"limits": LIMITS, **options}
        engine = Engine(live_setup, WORLD, options["limits"].sessions)
        return Server(engine, saver, tmp_path_factory.mktemp("saved"), first, CAPTION_QUERIES[0], **options)

    return made


@pytest.fixture(scope="module")
def client(make):
    with served(make()) as client:
        yield client


@pytest.fixture(scope="module")
def shots() -> list[bytes]:
    """30 seconds of the world as PNGs, 8 a second."""
    stream = WORLD.stream("s", (0,), 30.0, StreamStyle(mean_event=3.0))
    return [base64.b64decode(media.png(frame)) for chunk in stream.frames() for frame in chunk]


@pytest.fixture
def session(client):
    """The id of a session that frames are pushed to."""
    status, made = client.ask("POST", "/sessions", {"source": "push"})
    assert status == 201
    yield made["id"]
    client.ask("DELETE", f"/sessions/{made['id']}")


def push(client: Client, id: str, shots: list[bytes], first: int = 0) -> None:
    """Pushes frames no faster than they are taken, and waits until they are."""
    for number, shot in enumerate(shots, first):
        status, counts = client.ask("POST", f"/sessions/{id}/frames", shot, X_Time=str(number / 8))
        assert (status, counts["dropped"]) == (200, 0)
        while counts["waiting"] > 4:
            time.sleep(0.005)
            counts = {"waiting": client.server.engine.sessions[id].mailbox.waiting}
    steps = (first + len(shots) - 1 - 8) // 4 + 1  # the newest picture is still held
    wait(lambda: client.server.engine.sessions[id].counters()["steps"] == steps)


def test_a_session_from_its_first_frame_to_its_saved_evaluation(client, session, shots):
    """What one reader hears in three connections is all that was told; the counters are the ledger's."""
    push(client, session, shots[:120])
    first = []
    for id, kind, data in client.events(session):
        first.append((id, kind, data))
        if len(first) == 20:
            break
    assert first[0][:2] == (None, "session")
    assert first[0][2]["settings"]["policy"] == "send_on_delta"
    status, changed = client.ask("PATCH", f"/sessions/{session}", {"threshold": 0.002, "uniform_rate_hz": 0.5})
    assert (status, changed["settings"]["threshold"], changed["settings"]["uniform_rate_hz"]) == (200, 0.002, 0.5)
    push(client, session, shots[120:], 120)
    live = client.server.engine.sessions[session]
    client.ask("PATCH", f"/sessions/{session}", {"query": "how many objects are there?"})
    heard, after = first[1:], first[-1][0]
    for id, kind, data in client.events(session, after):
        heard += [(id, kind, data)] if id else []
        if id == live.log.newest:
            break
    assert heard == [tuple(event) for event in live.log.after(0)]
    assert [data["text"] for _, kind, data in heard if kind == "emission"] == [each.text for each in live.emissions]
    status, saved = client.ask("POST", f"/sessions/{session}/save")
    assert status == 200
    counters, document = live.counters()["selective"], read_document(saved["folder"], StreamEvaluation)
    assert counters["decoder_calls"] == document.session.ledger.decoder.calls == len(live.emissions)
    assert counters["flops"] == document.session.ledger.total_flops
    metrics = client.ask("GET", "/metrics")[1].decode()
    assert f'jepa_live_decoder_flops_total{{session="{session}"}} {counters["decoder_flops"]}' in metrics
    status, png = client.ask("GET", f"/sessions/{session}/picture")
    assert status == 200
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(png))), np.array(Image.open(io.BytesIO(shots[-1]))))
    assert client.ask("GET", f"/sessions/{session}/picture?after=240")[0] == 204


def test_a_websocket_takes_frames_and_settings_and_gives_events(client, session, shots):
    with connect(f"ws://{client.host}:{client.port}/sessions/{session}") as socket_:
        assert json.loads(socket_.recv())["event"] == "session"
        for shot in shots[:16]:
            socket_.send(shot)
        socket_.send(json.dumps({"triggers": [{"sentence": "a star blinks", "threshold": -1.0}]}))
        socket_.send(json.dumps({"policy": "none"}))
        socket_.send(b"no picture")
        told = [json.loads(socket_.recv()) for _ in range(3)]
        errors = [each["data"]["error"] for each in told if each["event"] == "error"]
        while len(errors) < 2:
            event = json.loads(socket_.recv())
            errors += [event["data"]["error"]] if event["event"] == "error" else []
    assert "policy must be one of gate" in errors[0]
    assert "whole JPEG or PNG" in errors[1]
    assert client.server.engine.sessions[session].watched[0].sentence == "a star blinks"
    wait(lambda: client.server.readers == 0)
    with pytest.raises((InvalidStatus, ConnectionClosed)), connect(f"ws://{client.host}:{client.port}/sessions/none"):
        pass


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/sessions", {"source": "file:/etc/passwd"}, 403, "allowed on the command line"),
        ("POST", "/sessions", {"source": "/etc/passwd"}, 403, "allowed on the command line"),
        ("POST", "/sessions", {"source": "rtsp://10.0.0.1/"}, 403, "allowed on the command line"),
        ("POST", "/sessions", {"source": "push", "extra": 1}, 422, "extra"),
        ("POST", "/sessions", {"source": "push", "query": "x" * 41}, 422, "query must have 1 to 40"),
        ("POST", "/sessions", {"source": "push", "triggers": ["a", "b", "c"]}, 422, "triggers must be 2 at most"),
        ("POST", "/sessions", {"source": "push", "policy": "none"}, 422, "policy must be one of"),
        ("POST", "/sessions", b"no json", 422, "the body"),
        ("POST", "/sessions", b"x" * 70_000, 413, "bytes at most"),
        ("GET", "/sessions/none", None, 404, "no session 'none'"),
        ("PATCH", "/sessions/{id}", {"threshold": -1}, 422, "threshold must be finite and >= 0"),
        ("PATCH", "/sessions/{id}", b'{"threshold": NaN}', 422, "threshold"),
        ("PATCH", "/sessions/{id}", {"query": " "}, 422, "query must have 1 to 40"),
        ("POST", "/sessions/{id}/frames", b"x" * 30_001, 413, "30000 bytes at most"),
        ("POST", "/sessions/{id}/frames", b"GIF89a", 422, "whole JPEG or PNG"),
        ("POST", "/sessions/{id}/save", None, 422, "32 steps to be saved, got 0"),
        ("GET", "/sessions/{id}/picture?after=x", None, 422, "after must be a whole number"),
    ],
)
def test_a_refusal_has_a_status_and_a_reason(client, session, method, path, body, status, said):
    got, answer = client.ask(method, path.replace("{id}", session), body)
    assert (got, said in answer["error"]) == (status, True), answer
    live = client.server.engine.sessions[session]
    assert live.described()["settings"]["threshold"] == 0.001
    assert set(client.server.engine.sessions) == {session}


def test_numbers_and_rates_are_limited(make, shots):
    limits = LIMITS.model_copy(update={"sessions": 2, "frames_per_second": 3.0, "readers": 1})
    with served(make(limits=limits)) as client:
        world = client.ask("POST", "/sessions", {"source": "world"})[1]["id"]
        push = client.ask("POST", "/sessions", {"source": "push"})[1]["id"]
        assert client.ask("POST", "/sessions", {"source": "push"})[0] == 429
        assert client.ask("POST", f"/sessions/{world}/frames", shots[0])[0] == 409
        assert {client.ask("POST", f"/sessions/{push}/frames", shots[0])[0] for _ in range(12)} == {200, 429}
        reading = client.events(push)
        next(reading)
        assert client.ask("GET", f"/sessions/{push}/events")[0] == 429
        reading.close()
        client.ask("DELETE", f"/sessions/{world}")
        assert client.ask("POST", "/sessions", {"source": "push"})[0] == 201


def test_a_token_a_foreign_origin_and_a_foreign_host(make, client, session):
    here = f"{client.host}:{client.port}"
    assert client.ask("GET", "/health", Origin=f"http://{here}") == (200, client.ask("GET", "/health")[1])
    assert client.ask("GET", "/health", Origin="http://evil.example")[0] == 403
    assert client.ask("GET", "/health", Host="evil.example")[0] == 403
    with pytest.raises(InvalidStatus):
        connect(f"ws://{here}/sessions/{session}", origin="http://evil.example")
    with served(make(token="päss", hosts=None)) as guarded:
        assert guarded.ask("GET", "/sessions")[0] == 401
        assert guarded.ask("GET", "/sessions?token=no")[0] == 401
        assert guarded.ask("GET", "/sessions?token=p%C3%A4ss", Host="camera.local") == (200, [])
    with served(make(token="secret", hosts=None)) as guarded:
        assert guarded.ask("GET", "/sessions", Authorization="Bearer secret")[0] == 200
        assert guarded.ask("GET", "/", Authorization="Bearer secre")[0] == 401


def test_the_document_lists_every_route_and_what_it_takes(client):
    status, document = client.ask("GET", "/openapi.json")
    assert status == 200
    for path, operations in document["paths"].items():
        for method in operations:
            # Starlette answers 405 for a method, and 404 for a path, that no route has.
            answer = client.ask(method.upper(), path.replace("{id}", "none"))
            assert answer[0] in ((404,) if "{id}" in path else (200, 422, 201)), (method, path, answer)
    body = document["paths"]["/sessions/{id}"]["patch"]["requestBody"]["content"]["application/json"]["schema"]
    schema = document["components"]["schemas"][body["$ref"].rpartition("/")[2]]
    assert {"policy", "threshold", "query", "triggers"} <= schema["properties"].keys()
    for id in list(client.server.engine.sessions):
        client.ask("DELETE", f"/sessions/{id}")


def test_nothing_leaks_when_clients_and_sources_come_and_go(client, session, shots):
    """Readers that close, are killed, or never read; sources that fail; threads and files are as before."""
    push(client, session, shots[:40])
    before = threading.active_count(), len(os.listdir("/proc/self/fd"))

    def raw(reset: bool) -> socket.socket:
        opened = socket.create_connection((client.host, client.port))
        opened.sendall(f"GET /sessions/{session}/events HTTP/1.1\r\nHost: {client.host}\r\n\r\n".encode())
        assert opened.recv(15) == b"HTTP/1.1 200 OK"
        if reset:  # as of a process that was killed
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        opened.close()
        return opened

    for number in range(20):
        raw(reset=number % 2 == 0)
    slow = socket.create_connection((client.host, client.port))
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    slow.sendall(f"GET /sessions/{session}/events HTTP/1.1\r\nHost: {client.host}\r\n\r\n".encode())
    live = client.server.engine.sessions[session]
    for number in range(2000):  # far more than the socket holds: the reader is behind, and holds nobody up
        live.log.add("step", {"number": number, "rest": "x" * 200})
    seen = [data for _, kind, data in take(client.events(session, live.log.newest - 10), 11) if kind == "step"]
    assert len(seen) == 10
    slow.close()

    def fails() -> Iterator[Any]:
        raise OSError("gone")
        yield

    for _ in range(5):
        failing = client.server.engine.add(Source("camera", fails, returns=True), Changes(policy="gate"), query="what?")
        wait(lambda failing=failing: failing.described()["status"] == "reconnecting")
        client.server.engine.remove(failing.id, seconds=5.0)
        assert not failing.alive
    wait(lambda: client.server.readers == 0)
    wait(lambda: threading.active_count() <= before[0] and len(os.listdir("/proc/self/fd")) <= before[1] + 1)


def take(events: Iterator[Any], count: int) -> list[Any]:
    found = [event for _, event in zip(range(count), events, strict=False)]
    events.close()
    return found


def test_the_client_of_the_documentation(client, shots):
    page = (Path(__file__).parents[2] / "docs" / "live.md").read_text(encoding="utf-8")
    scope: dict[str, Any] = {}
    exec(page.partition("```python\n")[2].partition("```")[0], scope)
    live = scope["Live"](f"http://{client.host}:{client.port}", source="push", policy="uniform")
    for number, shot in enumerate(shots[:24]):
        live.push(shot, number / 8)
    assert live.change(threshold=0.5)["settings"]["threshold"] == 0.5
    texts = take((data["text"] for _, kind, data in live.events() if kind == "emission"), 2)
    session = client.server.engine.sessions[live.url.rpartition("/")[2]]
    assert texts == [emission.text for emission in list(session.emissions)[:2]]
    live.send("DELETE", live.url)
