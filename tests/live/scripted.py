"""A server of the live page's contract whose events are told by hand."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import AsyncIterator
from contextlib import contextmanager
from typing import Any

import jinja2
import uvicorn
from browser import wait
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from jepa.data.world import StreamStyle, World

POLICIES = [
    {"name": "gate", "label": "causal gate", "parameters": {"threshold": 2.0}, "range": [0.2, 5.0]},
    {"name": "uniform", "label": "uniform", "parameters": {"rate_hz": 1.0}, "range": [0.1, 2.0]},
]


class Script:
    """One session `a`: what the page asked of it, and what it is told.

    >>> script = Script()
    >>> script.tell("step", time=0.5, step=0, signal=None, decoded=False, uniform=True)
    >>> script.events[0][0]
    'step'
    """

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.asked: list[dict[str, Any]] = []  # bodies of PATCH
        settings = {"policy": "gate", "threshold": 1.9, "cache_threshold": 0.05, "uniform_rate_hz": 1.0}
        self.session: dict[str, Any] = {
            "id": "a", "source": "world", "query": "what happens?", "status": "running", "message": "",
            "started_at": 1.0, "step_rate_hz": 2.0, "window_seconds": 1.0, "settings": settings, "triggers": [],
        }  # fmt: skip
        stream = World(size=32).stream("a", (3,), 4.0, StreamStyle(mean_event=2.0))
        encoded = io.BytesIO()
        Image.fromarray(next(stream.frames(chunk=1))[0]).save(encoded, "PNG")
        self.picture = encoded.getvalue()
        self.port = 0
        names = ("page", "sessions", "change", "stream", "shot", "save")
        page, sessions, change, stream_, shot, save = (getattr(self, f"_{name}") for name in names)
        self._app = Starlette(
            routes=[
                Route("/", page),
                Route("/options", lambda _: JSONResponse({"policies": POLICIES, "sources": ["world"], "limits": {}})),
                Route("/sessions", sessions),
                Route("/sessions/a", change, methods=["PATCH"]),
                Route("/sessions/a/events", stream_),
                Route("/sessions/a/picture", shot),
                Route("/sessions/a/save", save, methods=["POST"]),
            ]
        )

    def tell(self, event: str, **data: Any) -> None:
        self.events.append((event, data))

    @contextmanager
    def serve(self) -> Any:
        """Its address. The second time it has the port of the first."""
        config = uvicorn.Config(self._app, port=self.port, log_level="error", timeout_graceful_shutdown=1, ws="none")
        self._server = uvicorn.Server(config)
        thread = threading.Thread(target=self._server.run)
        thread.start()
        try:
            wait(lambda: self._server.started)
            self.port = self._server.servers[0].sockets[0].getsockname()[1]
            yield f"http://127.0.0.1:{self.port}/"
        finally:
            self._server.should_exit = True
            thread.join()

    async def _page(self, _: Request) -> Response:
        loader = jinja2.PackageLoader("jepa.live", "page")
        return HTMLResponse(
            jinja2.Environment(loader=loader, autoescape=True).get_template("index.html").render(version="0")
        )

    async def _sessions(self, _: Request) -> Response:
        return JSONResponse([self.session])

    async def _change(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        if body.get("query") == "":
            return JSONResponse({"error": "query must not be empty"}, 400)
        settings = self.session["settings"]
        changed = {key: body[key] for key in settings if key in body}
        triggers = [
            {"sentence": each, "threshold": 0.5, "false_alarms_per_hour": 1.0, "note": ""}
            for each in body.get("triggers", [])
        ]
        self.session = {**self.session, "settings": {**settings, **changed}, "triggers": triggers}
        self.tell("session", **self.session)
        return JSONResponse(self.session)

    async def _stream(self, request: Request) -> Response:
        async def lines(after: int) -> AsyncIterator[str]:
            yield f"event: session\ndata: {json.dumps(self.session)}\n\n"
            while not self._server.should_exit:
                for number, (event, data) in enumerate(self.events[after:], after + 1):
                    yield f"id: {number}\nevent: {event}\ndata: {json.dumps(data)}\n\n"
                    after = number
                await asyncio.sleep(0.02)

        return StreamingResponse(lines(int(request.query_params["after"])), media_type="text/event-stream")

    async def _shot(self, request: Request) -> Response:
        if int(request.query_params["after"]) >= 7:
            return Response(status_code=204)
        return Response(self.picture, media_type="image/png", headers={"X-Picture": "7"})

    async def _save(self, _: Request) -> Response:
        return JSONResponse({"folder": "outputs/live/evaluation"})
