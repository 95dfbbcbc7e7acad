"""What clients may send, and the OpenAPI document that says so."""

from __future__ import annotations

import re
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from jepa import __version__
from jepa.data.json_lines import JsonObject
from jepa.errors import InputError

B = TypeVar("B", bound="Body")


class Body(BaseModel):
    """A JSON body: no unknown keys, finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def read(cls: type[B], data: bytes) -> B:
        """The body of a request; `InputError` names the first fault.

        >>> NewSession.read(b'{"source": "push"}').source
        'push'
        """
        try:
            return cls.model_validate_json(data or b"{}")
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(map(str, fault["loc"])) or "the body"
            given = data.decode(errors="replace") if fault["type"] == "json_invalid" else str(fault["input"])
            rule = "there is no such key" if fault["type"] == "extra_forbidden" else fault["msg"]
            raise InputError(f"{place}: {rule}, got {given[:80]!r}") from None


class WatchedSentence(Body):
    """A trigger. Without a `threshold` it is calibrated to so many false alarms an hour."""

    sentence: str
    threshold: float | None = None
    false_alarms_per_hour: float | None = None


class NewSession(Body):
    """What a session begins with; what is left out is as on the command line."""

    source: str = "world"
    query: str | None = None
    policy: str | None = None
    triggers: tuple[str | WatchedSentence, ...] | None = None


class NewSettings(Body):
    """What changes of a running session. `threshold` is the parameter of the policy, a rate of uniform decoding."""

    policy: str | None = None
    threshold: float | None = None
    cache_threshold: float | None = None
    uniform_rate_hz: float | None = None
    query: str | None = None
    paused: bool | None = None
    triggers: tuple[str | WatchedSentence, ...] | None = None


class Operation(NamedTuple):
    """An operation of the API: the name of the method that handles it, what it does, and the content both ways.

    >>> OPERATIONS[0].path
    '/'
    """

    method: str
    path: str
    handler: str
    summary: str
    body: type[Body] | str | None = None  # a content type
    answer: str = "application/json"


_EVENTS = (
    "Server-sent events with increasing ids; `Last-Event-ID` or `after` resumes. session: itself, on every change; "
    "step: time, step, signal, decoded, uniform; emission: text, start, end, emitted_at, source, latency_seconds; "
    "trigger: sentence, time, score, threshold; counters: what was counted; source: status, message, attempt, "
    "retry_seconds. Times are seconds of the stream."
)
OPERATIONS = (
    Operation("GET", "/", "page", "The page.", answer="text/html"),
    Operation("GET", "/sessions", "list_sessions", "All sessions."),
    Operation("POST", "/sessions", "new_session", "Begin a session of an allowed source.", NewSession),
    Operation("GET", "/sessions/{id}", "show_session", "A session."),
    Operation("PATCH", "/sessions/{id}", "change_session", "Change settings, from the next step on.", NewSettings),
    Operation("DELETE", "/sessions/{id}", "end_session", "End a session."),
    Operation("GET", "/sessions/{id}/events", "events", _EVENTS, answer="text/event-stream"),
    Operation(
        *("GET", "/sessions/{id}/picture", "picture"),
        "The newest picture, its number in `X-Picture`; 204 if that is not above `after`.",
        answer="image/jpeg",
    ),
    Operation(
        *("POST", "/sessions/{id}/frames", "push_frame"),
        "Push a JPEG or PNG to a session of the source push; `X-Time`: its time in seconds, else that of its arrival.",
        "image/*",
    ),
    Operation("POST", "/sessions/{id}/save", "save", "Save as an evaluation that `jepa report` reads."),
    Operation("GET", "/options", "options", "Policies, allowed sources and limits."),
    Operation("GET", "/metrics", "metrics", "For Prometheus.", answer="text/plain"),
    Operation("GET", "/health", "health", "503 where sessions are not computed any more."),
    Operation("GET", "/openapi.json", "document", "This document."),
)


def openapi() -> JsonObject:
    """The OpenAPI 3.1 document."""
    paths: JsonObject = {}
    schemas: JsonObject = {}
    for each in OPERATIONS:
        described: JsonObject = {
            "operationId": each.handler,
            "summary": each.summary,
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in re.findall(r"{(\w+)}", each.path)
            ],
            "responses": {
                "200": {"description": "Done.", "content": {each.answer: {}}},
                "default": {"description": "Refused: {error}.", "content": {"application/json": {}}},
            },
        }
        if isinstance(each.body, str):
            described["requestBody"] = {"required": True, "content": {each.body: {}}}
        elif each.body is not None:
            schema = each.body.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= {**schema.pop("$defs", {}), each.body.__name__: schema}
            reference = {"$ref": f"#/components/schemas/{each.body.__name__}"}
            described["requestBody"] = {"content": {"application/json": {"schema": reference}}}
        paths.setdefault(each.path, {})[each.method.lower()] = described
    token = {"type": "http", "scheme": "bearer", "description": "Or ?token=. Not needed on 127.0.0.1."}
    return {
        "openapi": "3.1.0",
        "info": {"title": "jepa live", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"token": token}},
        "security": [{"token": []}, {}],
    }
