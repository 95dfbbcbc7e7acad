"""The common record of an annotated stream, and its JSON-lines files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jepa.errors import InputError


@dataclass(frozen=True)
class Event:
    """One annotated event: from `start` to `end`, in seconds, described by `text`."""

    start: float
    end: float
    text: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and math.isfinite(self.end) and 0 <= self.start <= self.end):
            raise InputError(f"an event must satisfy 0 <= start <= end, got start {self.start}, end {self.end}")

    @property
    def midpoint(self) -> float:
        """The moment the event is matched at, in seconds."""
        return 0.5 * (self.start + self.end)


@dataclass(frozen=True)
class StreamRecord:
    """A stream's annotations: `events` in order of their start, within `duration` seconds."""

    video_id: str
    duration: float
    events: tuple[Event, ...]

    def __post_init__(self) -> None:
        if not (math.isfinite(self.duration) and self.duration > 0):
            raise InputError(f"duration of {self.video_id!r} must be > 0 seconds, got {self.duration}")
        for index, event in enumerate(self.events):
            if event.end > self.duration:
                raise InputError(
                    f"event {index} of {self.video_id!r} must end within the {self.duration} s stream, got {event.end}"
                )
            if index and event.start < self.events[index - 1].start:
                raise InputError(
                    f"events of {self.video_id!r} must be in order of start: event {index} starts at {event.start}, "
                    f"the one before at {self.events[index - 1].start}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain data: `{video_id, duration, events: [[start, end, text], ...]}`."""
        return {
            "video_id": self.video_id,
            "duration": self.duration,
            "events": [[e.start, e.end, e.text] for e in self.events],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> StreamRecord:
        """The record of `to_dict`'s plain data. Raises `InputError` naming the missing or wrong field."""
        for key, kind in (("video_id", str), ("duration", (int, float)), ("events", list)):
            if not isinstance(data.get(key), kind):
                raise InputError(f"a stream record needs {key!r}, got {data.get(key)!r}")
        events = []
        for index, item in enumerate(data["events"]):
            if not (
                isinstance(item, list)
                and len(item) == 3
                and all(isinstance(v, (int, float)) for v in item[:2])
                and isinstance(item[2], str)
            ):
                raise InputError(f"events[{index}] must be [start, end, text], got {item!r}")
            events.append(Event(float(item[0]), float(item[1]), item[2]))
        return cls(data["video_id"], float(data["duration"]), tuple(events))


def write_records(records: Iterable[StreamRecord], path: Path) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(r.to_dict(), ensure_ascii=False) + "\n" for r in records), encoding="utf-8")


def read_records(path: Path) -> list[StreamRecord]:
    """The records of a JSON-lines file. Raises `InputError` naming file, line and field."""
    if not path.is_file():
        raise InputError(f"stream records not found: {path}")
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            data = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{number}: not JSON: {error.msg} at column {error.colno}") from None
        if not isinstance(data, dict):
            raise InputError(f"{path}:{number}: a stream record must be an object, got {type(data).__name__}")
        try:
            records.append(StreamRecord.from_dict(data))
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from None
    return records
