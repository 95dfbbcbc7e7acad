"""The server: sessions over HTTP, their events as server-sent events and over WebSockets, the page, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jinja2

from jepa import __version__
from jepa.data.json_lines import JsonObject
from jepa.errors import InputError, needs_extra
from jepa.live.api import OPERATIONS, NewSession, NewSettings, WatchedSentence, openapi
from jepa.live.configs import LimitsConfig
from jepa.live.engine import Engine
from jepa.live.events import LiveEvent
from jepa.live.saving import Saver
from jepa.live.session import Changes, Session, Watched
from jepa.live.sources import check_allowed, pushed_picture

with needs_extra("live"):
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.requests import HTTPConnection, Request
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
    from starlette.routing import Route, WebSocketRoute
    from starlette.types import ASGIApp, Receive, Scope, Send
    from starlette.websockets import WebSocket, WebSocketDisconnect

PAGE = Path(__file__).parent / "page"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HEARTBEAT = 10.0  # seconds without an event until a comment is sent, which finds readers that have gone
_BODY = 64 * 1024  # bytes of a JSON body
_AT_ONCE = 100  # events in one write
_SIDE = 640  # pixels of a picture on the page


class Rate:
    """So many of something a second at most, and as many at once.

    >>> rate = Rate(2.0)
    >>> [rate.take() for _ in range(3)]
    [True, True, False]
    """

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._left, self._time = max(1.0, per_second), time.monotonic()

    def take(self) -> bool:
        """Whether one more is within the rate."""
        now = time.monotonic()
        self._left = min(max(1.0, self._per_second), self._left + (now - self._time) * self._per_second)
        self._time = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


@dataclass
class Server:
    """The handlers of the API, and what they share.

    Args:
        engine: runs the sessions.
        saver: saves them, into folders of `output`.
        first: what a session begins with unless a client says otherwise.
        query: likewise.
        allowed: sources that clients may ask for: see `check_allowed`.
        limits: of what clients may ask for.
        token: that they must give; None: none.
        hosts: names that a client may call the server by; None: any.
    """

    engine: Engine
    saver: Saver
    output: Path
    first: Changes
    query: str
    allowed: Sequence[str] = ("world", "push")
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    token: str | None = None
    hosts: Sequence[str] | None = LOOPBACK
    closing: bool = False
    readers: int = 0
    _rates: dict[str, Rate] = field(default_factory=dict)
    _pictures: dict[str, tuple[int, bytes, str]] = field(default_factory=dict)

    def app(self) -> ASGIApp:
        """The application; whoever serves it starts and stops the engine."""
        routes: list[Any] = [Route(op.path, getattr(self, op.handler), methods=[op.method]) for op in OPERATIONS]
        errors = {InputError: _refused, HTTPException: _refused}
        inner = Starlette(routes=[*routes, WebSocketRoute("/sessions/{id}", self.socket)], exception_handlers=errors)
        return Guard(inner, self.token, self.hosts)

    def close(self) -> None:
        """Readers of events are let go, so that the server can end."""
        self.closing = True
        for session in self.engine.sessions.values():
            session.log.close()

    # --- Sessions.

    async def page(self, request: Request) -> Response:
        environment = jinja2.Environment(loader=jinja2.FileSystemLoader(PAGE), autoescape=True)
        return HTMLResponse(environment.get_template("index.html").render(version=__version__))

    async def list_sessions(self, request: Request) -> Response:
        return JSONResponse([session.described() for session in self.engine.sessions.values()])

    async def show_session(self, request: Request) -> Response:
        return JSONResponse(self._session(request).described())

    async def new_session(self, request: Request) -> Response:
        asked = NewSession.read(await _body(request, _BODY))
        try:
            check_allowed(asked.source, self.allowed)
        except InputError as error:
            raise HTTPException(403, str(error)) from None
        if len(self.engine.sessions) >= self.engine.most:
            raise HTTPException(429, f"sessions must be {self.engine.most} at most: end one first")
        self._check_length("query", asked.query)

        def begin() -> Session:
            triggers = self.first.triggers if asked.triggers is None else self._watched(asked.triggers, ())
            same = asked.policy in (None, self.first.policy)
            first = Changes(
                policy=asked.policy or self.first.policy,
                threshold=self.first.threshold if same else None,
                cache_threshold=self.first.cache_threshold,
                uniform_rate_hz=self.first.uniform_rate_hz,
                triggers=triggers,
            )
            return self.engine.add(asked.source, first, query=asked.query or self.query)

        return JSONResponse((await run_in_threadpool(begin)).described(), 201)

    async def change_session(self, request: Request) -> Response:
        session, asked = self._session(request), NewSettings.read(await _body(request, _BODY))
        return JSONResponse(await run_in_threadpool(self._change, session, asked))

    async def end_session(self, request: Request) -> Response:
        session = self._session(request)
        await run_in_threadpool(self.engine.remove, session.id)
        self._rates.pop(session.id, None)
        self._pictures.pop(session.id, None)
        return Response(status_code=204)

    async def save(self, request: Request) -> Response:
        session = self._session(request)
        if not self._rate("saves", self.limits.saves_per_minute / 60).take():
            raise HTTPException(429, f"saves must be {self.limits.saves_per_minute:g} a minute at most")
        folder = self.output / f"session_{session.id}_{time.strftime('%Y%m%d_%H%M%S')}_{secrets.token_hex(2)}"
        written = await run_in_threadpool(self.saver.save, session, folder / "evaluation")  # its report goes beside it
        return JSONResponse({"folder": str(written)})

    def _change(self, session: Session, asked: NewSettings) -> JsonObject:
        self._check_length("query", asked.query)
        settings = asked.model_dump(exclude={"triggers"})
        triggers = None if asked.triggers is None else self._watched(asked.triggers, session.watched)
        return session.change(Changes(**settings, triggers=triggers))

    def _watched(self, asked: Sequence[str | WatchedSentence], known: Sequence[Watched]) -> list[Watched]:
        """Triggers for sentences; what is known and asked for by its sentence alone stays as it is."""
        if len(asked) > self.limits.triggers:
            raise InputError(f"triggers must be {self.limits.triggers} at most, got {len(asked)}")
        by_sentence, found = {each.sentence: each for each in known}, list[Watched]()
        for each in asked:
            wanted = WatchedSentence(sentence=each) if isinstance(each, str) else each
            self._check_length("a sentence", wanted.sentence)
            if wanted.threshold is None and wanted.false_alarms_per_hour is None and wanted.sentence in by_sentence:
                found.append(by_sentence[wanted.sentence])
            else:
                found.append(self.engine.setup.watch(wanted.sentence, wanted.false_alarms_per_hour, wanted.threshold))
        return found

    def _check_length(self, name: str, text: str | None) -> None:
        if text is not None and not 0 < len(text.strip()) <= len(text) <= self.limits.text_length:
            raise InputError(f"{name} must have 1 to {self.limits.text_length} characters, got {len(text)}")

    def _session(self, connection: HTTPConnection) -> Session:
        id = connection.path_params["id"]
        if id not in self.engine.sessions:
            raise HTTPException(404, f"there is no session {id!r}")
        return self.engine.sessions[id]

    def _rate(self, name: str, per_second: float) -> Rate:
        return self._rates.setdefault(name, Rate(per_second))

    # --- Frames and pictures.

    async def push_frame(self, request: Request) -> Response:
        session = self._session(request)
        self._check_push(session)
        given = request.headers.get("x-time")
        try:
            at = None if given is None else float(given)
        except ValueError:
            raise InputError(f"X-Time must be seconds, got {given!r}") from None
        await run_in_threadpool(_push, session, await _body(request, self.limits.frame_bytes), at)
        counts = {"taken": session.mailbox.taken, "dropped": session.mailbox.dropped}
        return JSONResponse(counts | {"waiting": session.mailbox.waiting})

    def _check_push(self, session: Session) -> None:
        if session.source.open is not None:
            raise HTTPException(409, f"frames are pushed to sessions of the source push, got {session.source.name}")
        if not self._rate(session.id, self.limits.frames_per_second).take():
            raise HTTPException(429, f"frames must be {self.limits.frames_per_second:g} a second at most")

    async def picture(self, request: Request) -> Response:
        session, after = self._session(request), _whole(request, "after")
        number, shot = session.mailbox.newest
        if shot is None or number <= after:
            return Response(status_code=204)
        held = self._pictures.get(session.id)
        if held is None or held[0] != number:  # every client gets the same bytes
            held = self._pictures[session.id] = (number, *await run_in_threadpool(_encoded, shot))
        headers = {"X-Picture": str(held[0]), "Cache-Control": "no-store"}
        return Response(held[1], media_type=held[2], headers=headers)

    # --- Events.

    async def events(self, request: Request) -> Response:
        session = self._session(request)
        after = _whole(request, "after", request.headers.get("last-event-id"))
        if self.readers >= self.limits.readers:
            raise HTTPException(429, f"readers of events must be {self.limits.readers} at most")
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._stream(session, after), media_type="text/event-stream", headers=headers)

    async def _stream(self, session: Session, after: int) -> AsyncIterator[str]:
        yield f"event: session\ndata: {json.dumps(session.described())}\n\n"
        async with contextlib.aclosing(self._told(session, after)) as told:
            async for events in told:
                lines = (f"id: {id}\nevent: {kind}\ndata: {json.dumps(data)}\n\n" for id, kind, data in events)
                yield "".join(lines) or ": nothing new\n\n"

    async def _told(self, session: Session, after: int) -> AsyncGenerator[list[LiveEvent], None]:
        """What comes after an id, some at a time; nothing if there was nothing for a while. Readers have no queues."""
        after = after if after <= session.log.newest else 0  # of a server that has begun anew
        self.readers += 1
        try:
            while not self.closing:
                events = await session.log.wait(after, _HEARTBEAT)
                if not events and session.log.closed:
                    return
                for first in range(0, max(1, len(events)), _AT_ONCE):
                    yield events[first : first + _AT_ONCE]
                after = events[-1].id if events else after
        finally:
            self.readers -= 1

    async def socket(self, websocket: WebSocket) -> None:
        """Both ways: bytes are frames, text is settings as of PATCH; back come events, and errors."""
        try:
            session, after = self._session(websocket), _whole(websocket, "after")
            if self.readers >= self.limits.readers:
                raise HTTPException(429, f"readers of events must be {self.limits.readers} at most")
        except (InputError, HTTPException) as error:
            return await websocket.close(1008, getattr(error, "detail", str(error))[:100])
        await websocket.accept()

        async def send() -> None:
            await websocket.send_json({"event": "session", "data": session.described()})
            async with contextlib.aclosing(self._told(session, after)) as told:
                async for events in told:
                    for id, kind, data in events:
                        await websocket.send_json({"id": id, "event": kind, "data": data})
                        await asyncio.sleep(0)  # in which a connection that broke is seen
            await websocket.close()

        sending = asyncio.create_task(send())
        try:
            while (message := await websocket.receive())["type"] == "websocket.receive":
                try:
                    await self._heard(session, message)
                except (InputError, HTTPException) as error:
                    said = getattr(error, "detail", str(error))
                    await websocket.send_json({"event": "error", "data": {"error": said}})
        except (WebSocketDisconnect, RuntimeError):  # it has gone, perhaps while it was written to
            pass
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                await sending

    async def _heard(self, session: Session, message: Mapping[str, Any]) -> None:
        if (data := message.get("bytes")) is not None:
            self._check_push(session)
            if len(data) > self.limits.frame_bytes:
                raise HTTPException(413, f"a frame must have {self.limits.frame_bytes} bytes at most, got {len(data)}")
            await run_in_threadpool(_push, session, data, None)
        else:
            await run_in_threadpool(self._change, session, NewSettings.read(message["text"].encode()))

    # --- About the server.

    async def options(self, request: Request) -> Response:
        policies = [
            {
                "name": name,
                "label": policy.label,
                "parameters": {policy.parameter: self.engine.setup.default(name)},
                "range": [min(policy.values), max(policy.values)],
            }
            for name, policy in self.engine.setup.policies.items()
        ]
        limits = self.limits.model_dump()
        return JSONResponse({"policies": policies, "sources": list(self.allowed), "limits": limits})

    async def metrics(self, request: Request) -> Response:
        return PlainTextResponse("\n".join(self._samples()) + "\n", media_type="text/plain; version=0.0.4")

    def _samples(self) -> Iterator[str]:
        rows: dict[str, list[tuple[str, object]]] = {}
        for id, session in self.engine.sessions.items():
            counters, label = session.counters(), f'session="{id}"'
            for state, count in counters["frames"].items():
                rows.setdefault("frames", []).append((f'{label},state="{state}"', count))
            rows.setdefault("steps", []).append((label, counters["steps"]))
            rows.setdefault("events", []).append((label, session.log.newest))
            for name, value in counters["selective"].items():
                rows.setdefault(name, []).append((label, value))
        for name, samples in rows.items():
            yield f"# TYPE jepa_live_{name}_total counter"
            yield from (f"jepa_live_{name}_total{{{label}}} {value}" for label, value in samples)
        for name, value in (("sessions", len(self.engine.sessions)), ("readers", self.readers)):
            yield f"# TYPE jepa_live_{name} gauge"
            yield f"jepa_live_{name} {value}"

    async def health(self, request: Request) -> Response:
        well, error = self.engine.healthy, self.engine.error
        said = {"status": "ok" if well else "failed", "version": __version__, "sessions": len(self.engine.sessions)}
        return JSONResponse(said | ({"error": repr(error)} if error else {}), 200 if well else 503)

    async def document(self, request: Request) -> Response:
        return JSONResponse(openapi())


class Guard:
    """In front of the application: the host's name, the origin of a page, the token.

    A page of another site that a browser shows can reach 127.0.0.1: what such a page sends has a foreign origin, or
    a foreign name for this host.
    """

    def __init__(self, app: ASGIApp, token: str | None, hosts: Sequence[str] | None) -> None:
        self._app, self._token, self._hosts = app, token, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            return await self._app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008, "reason": refusal[1]})
        await JSONResponse({"error": refusal[1]}, refusal[0])(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._hosts is not None and urlsplit(f"//{host}").hostname not in self._hosts:
            return 403, f"the host must be one of {', '.join(self._hosts)}"
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, "the origin must be this server"
        if self._token is not None:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            given = given or parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            if not secrets.compare_digest(given.encode(), self._token.encode()):
                return 401, "a token is needed: Authorization: Bearer <token>, or ?token=<token>"
        return None


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code)
    return JSONResponse({"error": str(error)}, 422)


async def _body(request: Request, most: int) -> bytes:
    """The body; one that is larger is not read to its end."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > most:
            raise HTTPException(413, f"a body must have {most} bytes at most")
    return bytes(data)


def _whole(connection: HTTPConnection, name: str, header: str | None = None) -> int:
    value = header or connection.query_params.get(name) or "0"
    if not value.isdecimal():
        raise InputError(f"{name} must be a whole number >= 0, got {value!r}")
    return int(value)


def _push(session: Session, data: bytes, at: float | None) -> None:
    session.mailbox.offer(time.time() - session.started_at if at is None else at, pushed_picture(data))


def _encoded(shot: Any) -> tuple[bytes, str]:
    """A picture for the page: small ones as they are, photographs as JPEG."""
    image, buffer = shot.to_image(), io.BytesIO()
    small = max(image.size) <= 128
    image.thumbnail((_SIDE, _SIDE))
    image.save(buffer, format="PNG" if small else "JPEG", quality=80)
    return buffer.getvalue(), "image/png" if small else "image/jpeg"
