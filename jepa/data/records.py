"""The annotations of a stream, and their JSON-lines files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jepa.data.json_lines import JsonObject, read_lines, write_lines
from jepa.errors import InputError


@dataclass(frozen=True)
class Event:
    """One annotated event: from `start` to `end`, in seconds, described by `text`, and as well by `others`.

    >>> Event(2.0, 5.0, "a man cuts onions").midpoint
    3.5
    """

    start: float
    end: float
    text: str
    others: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and math.isfinite(self.end) and 0 <= self.start <= self.end):
            raise InputError(f"an event must satisfy 0 <= start <= end, got start {self.start}, end {self.end}")

    @property
    def midpoint(self) -> float:
        """The moment the event is matched at, in seconds."""
        return 0.5 * (self.start + self.end)

    @property
    def references(self) -> tuple[str, ...]:
        """All texts that describe it."""
        return (self.text, *self.others)


@dataclass(frozen=True)
class StreamRecord:
    """A stream's annotations: `events` in order of their start, within `duration` seconds."""

    video_id: str
    duration: float
    events: tuple[Event, ...]

    def __post_init__(self) -> None:
        if not (math.isfinite(self.duration) and self.duration > 0):
            raise InputError(f"duration of {self.video_id!r} must be > 0 seconds, got {self.duration}")
        latest = 0.0
        for index, event in enumerate(self.events):
            name = f"event {index} of {self.video_id!r}"
            if event.end > self.duration:
                raise InputError(f"{name} must end within the {self.duration} s stream, got {event.end}")
            if event.start < latest:
                raise InputError(f"{name} must start after the one before, at {latest}, got {event.start}")
            latest = event.start


def write_records(records: Iterable[StreamRecord], path: Path) -> None:
    """One JSON object a line: `{video_id, duration, events: [[start, end, text, *others], ...]}`."""
    rows = ((r.video_id, r.duration, [[e.start, e.end, *e.references] for e in r.events]) for r in records)
    write_lines(path, (dict(zip(("video_id", "duration", "events"), row, strict=True)) for row in rows))


def read_records(path: Path) -> list[StreamRecord]:
    """The records of a JSON-lines file. Raises `InputError` naming file, line and field."""
    return read_lines(path, "stream records", lambda data, _: _record(data))


def density(records: Sequence[StreamRecord]) -> dict[str, float]:
    """How many events streams have, how long these are, and the fraction that repeats an earlier one of its stream."""
    events = [event for record in records for event in record.events]
    repeated = sum(len(r.events) - len({event.text for event in r.events}) for r in records)
    return {
        "events_per_second": len(events) / sum(record.duration for record in records),
        "mean_event_seconds": sum(event.end - event.start for event in events) / len(events),
        "repeated_events": repeated / len(events),
    }


def _record(data: JsonObject) -> StreamRecord:
    for key, kind in (("video_id", str), ("duration", (int, float)), ("events", list)):
        if not isinstance(data.get(key), kind):
            raise InputError(f"a stream record needs {key!r}, got {data.get(key)!r}")
    events = []
    for index, item in enumerate(data["events"]):
        match item:
            case [int() | float() as start, int() | float() as end, str(text), *others] if all(
                isinstance(other, str) for other in others
            ):
                events.append(Event(float(start), float(end), text, tuple(others)))
            case _:
                raise InputError(f"events[{index}] must be [start, end, text] or more texts, got {item!r}")
    return StreamRecord(data["video_id"], float(data["duration"]), tuple(events))
