"""Readers of annotated timelines in the `FORMATS` in which data sets publish them, into `StreamRecord`s.

A missing key, a wrong type or an unknown video is an `InputError` with the file and the line or key path. All that are
found in a file are reported in one go.

*Points.* Ego-Exo4D, Ego4D and ViTT give a moment, not a span. A point is in force until the next later point of the
same annotator, at most `point_seconds`, and not beyond the video's end.

*Annotators* are kept apart: each pass over a video is its own record, with the annotator in its `video_id`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from jepa.data.json_lines import JsonObject, read_json, read_lines
from jepa.data.records import Event, StreamRecord
from jepa.errors import InputError, Problems, check_int, check_nonnegative, check_positive

_CLOCK = re.compile(r"(\d{2,4}):([0-5]\d):([0-5]\d(?:\.\d+)?)")
_EPIC_COLUMNS = ("video_id", "participant_id", "start_timestamp", "stop_timestamp", "narration")
_TAG = re.compile(r"^#\s*(?:C(?=C\b)|[A-Za-z]+)\W*", re.IGNORECASE)  # `#C C opens a drawer`: who acts, also `#CC opens`
_UNSURE = re.compile(r"#\s*unsure\b", re.IGNORECASE)


@dataclass(frozen=True)
class Timeline:
    """The streams of a file that have annotations, in its order.

    `groups` names for each `video_id` what a split must not divide: the participant where the format has one, otherwise
    the video with all its annotators. `dropped` counts the annotations left out by reason, and "videos without
    annotations".
    """

    records: tuple[StreamRecord, ...]
    groups: Mapping[str, str]
    dropped: Mapping[str, int]

    @property
    def overlapping(self) -> int:
        """How many events begin before an earlier one of their record has ended. They are kept."""
        count = 0
        for record in self.records:
            ends = accumulate((event.end for event in record.events), max)
            count += sum(event.start < end for event, end in zip(record.events[1:], ends, strict=False))
        return count


def read_timeline(
    path: str | Path, format: str, *, durations: str | Path | None = None, point_seconds: float = 8.0
) -> Timeline:
    """Reads annotations in one of `FORMATS`; `durations` is the file with the videos' lengths, if they lack them.

    Annotations are dropped and counted if they are marked as rejected or unsure, begin at the video's end or later, do
    not last, or have no text. A span that runs over the video's end is cut there. White space in texts becomes single
    spaces, and the tag in front of an Ego4D narration (`#C`, `#O`) is removed.
    """
    if format not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    check_positive("point_seconds", point_seconds)
    reader, path, lengths = FORMATS[format], Path(path), dict[str, tuple[float, str]]()
    if (durations is None) != (reader.durations is None):
        rule = "be null: the annotations have them" if reader.durations is None else f"name {reader.durations}"
        raise InputError(f"durations of the format {format} must {rule}, got {durations}")
    if reader.lengths is not None:
        lengths = _once(reader.lengths, Path(str(durations)))
    reading = _Reading(lengths, Counter(), Counter(), Problems(path))
    records, groups = [], dict[str, str]()

    def add(entry: Any) -> None:
        for stream in reader.streams(entry, reading):
            if stream.video_id in groups:
                raise InputError(f"{stream.place}: a video must be listed once, got {stream.video_id!r} again")
            groups[stream.video_id] = stream.group
            if events := make_events(stream.annotations, stream.duration, point_seconds, reading.dropped):
                records.append(StreamRecord(stream.video_id, stream.duration, events))
            else:
                reading.dropped["videos without annotations"] += 1

    reading.problems.each(reader.entries(path, reading.problems), add)
    reading.problems.raise_any()
    dropped = dict(reading.dropped)
    if not records:
        raise InputError(f"{path}: must hold at least one usable annotation, got none (dropped: {dropped})")
    return Timeline(tuple(records), {r.video_id: groups[r.video_id] for r in records}, dropped)


class Annotation(NamedTuple):
    """A text from `start` to `end` seconds; a point has no end."""

    start: float
    end: float | None
    text: str


class _Stream(NamedTuple):
    place: str  # in the file, for errors
    video_id: str
    group: str
    duration: float
    annotations: list[Annotation]


class _Reading(NamedTuple):
    """What a reader has at hand: seconds and group of each video, counters, and where refused annotations go."""

    lengths: Mapping[str, tuple[float, str]]
    dropped: Counter[str]
    seen: Counter[str]  # lines of a video, where each is an annotator's
    problems: Problems

    def length(self, video: str, where: str) -> tuple[float, str]:
        if video not in self.lengths:
            raise InputError(f"{where} must be a video of the durations file, got {video!r}")
        return self.lengths[video]


class _Format(NamedTuple):
    """`entries` of the annotations' file, and the streams of each; `lengths` of the videos (video, seconds, group)."""

    entries: Callable[[Path, Problems], Iterable[Any]]
    streams: Callable[[Any, _Reading], Iterable[_Stream]]
    durations: str | None = None
    lengths: Callable[[Path, Problems], Iterable[tuple[str, float, str]]] | None = None


def _once(
    read: Callable[[Path, Problems], Iterable[tuple[str, float, str]]], path: Path
) -> dict[str, tuple[float, str]]:
    """Seconds and group of each video, which must be listed once."""
    lengths, problems = dict[str, tuple[float, str]](), Problems(path)
    for video, seconds, group in read(path, problems):
        if video in lengths:
            problems.add(f"{path}: a video must be listed once, got {video!r} again")
        lengths[video] = seconds, group
    problems.raise_any()
    return lengths


def make_events(
    annotations: Sequence[Annotation], duration: float, point_seconds: float, dropped: Counter[str]
) -> tuple[Event, ...]:
    """The usable annotations of a stream in order of their start (then end); points get their end."""
    kept = []
    for start, stop, text in annotations:
        text = " ".join(text.split())
        if not text:
            dropped["without text"] += 1
        elif start >= duration:
            dropped["beyond the video's end"] += 1
        elif stop is not None and stop <= start:
            dropped["without length"] += 1
        else:
            kept.append(Annotation(start, stop, text))
    starts = sorted({annotation.start for annotation in kept})
    following = dict(zip(starts, [*starts[1:], math.inf], strict=False))
    events = []
    for start, stop, text in kept:
        end = min(following[start], start + point_seconds) if stop is None else stop
        events.append(Event(start, min(end, duration), text))
    return tuple(sorted(events, key=lambda event: (event.start, event.end)))


class _Json:
    """A value of a JSON file and where it stands. Every access checks what it asks for."""

    def __init__(self, value: Any, where: str) -> None:
        self.value, self.where = value, where

    def __getitem__(self, key: str) -> _Json:
        if key not in self.object():
            raise InputError(f"{self.where}.{key} must be there, got nothing")
        return _Json(self.value[key], f"{self.where}.{key}")

    def items(self) -> list[tuple[str, _Json]]:
        return [(key, self[key]) for key in self.object()]

    def object(self) -> JsonObject:
        return self._checked(isinstance(self.value, dict), "be an object")

    def array(self, length: int | None = None) -> list[_Json]:
        good = isinstance(self.value, list) and length in (None, len(self.value))
        self._checked(good, "be a list" if length is None else f"be a list of {length}")
        return [_Json(item, f"{self.where}[{index}]") for index, item in enumerate(self.value)]

    def text(self) -> str:
        return self._checked(isinstance(self.value, str), "be text")

    def flag(self) -> bool:
        return self._checked(isinstance(self.value, bool), "be true or false")

    def name(self) -> str:
        """Text, or a whole number as text."""
        good = isinstance(self.value, (str, int)) and not isinstance(self.value, bool)
        return str(self._checked(good, "be text or a whole number"))

    def number(self, positive: bool = False) -> float:
        return float((check_positive if positive else check_nonnegative)(self.where, self.value))

    def _checked(self, good: bool, rule: str) -> Any:
        if not good:
            shown = repr(self.value)
            raise InputError(f"{self.where} must {rule}, got {shown if len(shown) <= 80 else shown[:77] + '...'}")
        return self.value


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _read_json(path: Path) -> _Json:
    return _Json(read_json(path, "annotations"), f"{path}: $")


def _ego_exo4d(entry: tuple[str, _Json], reading: _Reading) -> Iterator[_Stream]:
    take, passes = entry
    seconds, group = reading.length(take, passes.where)
    seen: Counter[str] = Counter()
    for item in passes.array():
        descriptions = item["descriptions"].array()
        if item["rejected"].flag():
            reading.dropped["rejected"] += len(descriptions)
            continue
        annotator = item["annotator_id"].name()
        seen[annotator] += 1
        if seen[annotator] > 1:
            annotator = f"{annotator}-{seen[annotator]}"
        points = reading.problems.each(descriptions, partial(_description, dropped=reading.dropped))
        yield _Stream(item.where, f"{take}/{annotator}", group, seconds, list(filter(None, points)))


def _description(item: _Json, dropped: Counter[str]) -> Annotation | None:
    if item["unsure"].flag():
        dropped["unsure"] += 1
        return None
    return Annotation(item["timestamp"].number(), None, item["text"].text())


def _takes(path: Path, problems: Problems) -> list[tuple[str, float, str]]:
    def read(take: _Json) -> tuple[str, float, str]:
        group = take["participant_uid" if "participant_uid" in take.object() else "take_uid"].name()
        return take["take_uid"].text(), take["duration_sec"].number(positive=True), group

    return problems.each(_read_json(path).array(), read)


def _ego4d(entry: tuple[str, _Json], reading: _Reading) -> Iterator[_Stream]:
    video, passes = entry
    names = [name for name in passes.object() if name.startswith("narration_pass_")]
    if not names:  # a redacted video has its status alone
        reading.dropped["videos without annotations"] += 1
    for name in names:
        seconds, group = reading.length(video, passes.where)
        narrations = passes[name]["narrations"].array()
        points = reading.problems.each(narrations, partial(_narration, dropped=reading.dropped))
        yield _Stream(passes[name].where, f"{video}/{name}", group, seconds, list(filter(None, points)))


def _narration(item: _Json, dropped: Counter[str]) -> Annotation | None:
    text = item["narration_text"].text()
    if _UNSURE.search(text):
        dropped["unsure"] += 1
        return None
    said = re.sub(r"^c\b", "C", _TAG.sub("", text.strip()))  # the camera's wearer
    return Annotation(item["timestamp_sec"].number(), None, said)


def _ego4d_videos(path: Path, problems: Problems) -> list[tuple[str, float, str]]:
    def read(video: _Json) -> tuple[str, float, str]:
        return (name := video["video_uid"].text()), video["duration_sec"].number(positive=True), name

    return problems.each(_read_json(path)["videos"].array(), read)


def _rows(path: Path, columns: tuple[str, ...], problems: Problems) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file, each with its place; a row must have as many fields as the header, or be blank."""
    try:
        text = _read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(f"{path}: must be UTF-8, got byte 0x{byte:02x} at {error.start}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header = reader.fieldnames or []
        for column in columns:
            if column not in header:
                raise InputError(f"{path}:1: the header must have the column {column}, got {', '.join(header)}")
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if not any(field and field.strip() for field in row.values() if not isinstance(field, list)):
                continue
            if None in row or None in row.values():
                problems.add(f"{where}: a row must have {len(header)} fields, got more or fewer")
            else:
                yield where, row
    except csv.Error as error:
        problems.add(f"{path}:{reader.reader.line_num}: must be CSV, got an error: {error}")


def _epic_videos(path: Path, problems: Problems) -> list[list[tuple[str, dict[str, str]]]]:
    """The rows of each video."""
    videos: dict[str, list[tuple[str, dict[str, str]]]] = {}
    for where, row in _rows(path, _EPIC_COLUMNS, problems):
        videos.setdefault(row["video_id"], []).append((where, row))
    return list(videos.values())


def _epic(rows: list[tuple[str, dict[str, str]]], reading: _Reading) -> list[_Stream]:
    where, first = rows[0]
    seconds, _ = reading.length(first["video_id"], f"{where}: video_id")
    segments = reading.problems.each(rows, _segment)
    return [_Stream(where, first["video_id"], first["participant_id"], seconds, segments)]


def _segment(placed: tuple[str, dict[str, str]]) -> Annotation:
    where, row = placed
    start, stop = (_clock(row[name], f"{where}: {name}") for name in ("start_timestamp", "stop_timestamp"))
    return Annotation(start, stop, row["narration"])


def _clock(text: str, where: str) -> float:
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise InputError(f"{where} must be HH:MM:SS.ss, got {text!r}")
    hours, minutes, seconds = match.groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _csv_lengths(path: Path, problems: Problems) -> list[tuple[str, float, str]]:
    def read(placed: tuple[str, dict[str, str]]) -> tuple[str, float, str]:
        where, row = placed
        try:
            return row["video_id"], check_positive("duration", float(row["duration"])), row["video_id"]
        except ValueError:
            raise InputError(f"{where}: duration must be a number > 0, got {row['duration']!r}") from None

    return problems.each(_rows(path, ("video_id", "duration"), problems), read)


def _activitynet(entry: tuple[str, _Json], reading: _Reading) -> list[_Stream]:
    video, item = entry
    spans = item["timestamps"].array()
    pairs = zip(spans, item["sentences"].array(len(spans)), strict=True)
    annotations = reading.problems.each(pairs, lambda pair: _span(*pair))
    return [_Stream(item.where, video, video, item["duration"].number(positive=True), annotations)]


def _database(entry: tuple[str, _Json], reading: _Reading, annotations: str, text: str) -> list[_Stream]:
    """YouCook2 and COIN: `segment`s [start, end] with a text."""
    video, item = entry
    spans = reading.problems.each(item[annotations].array(), lambda span: _span(span["segment"], span[text]))
    return [_Stream(item.where, video, video, item["duration"].number(positive=True), spans)]


def _span(span: _Json, text: _Json) -> Annotation:
    start, end = (bound.number() for bound in span.array(2))
    return Annotation(start, end, text.text())


def _vitt_lines(path: Path, problems: Problems) -> list[_Json]:
    return read_lines(path, "annotations", lambda line, number: _Json(line, f"{path}:{number}: $"))


def _vitt(item: _Json, reading: _Reading) -> list[_Stream]:
    video = item["id"].text()
    reading.seen[video] += 1  # one line an annotator
    points = reading.problems.each(
        item["annotations"].array(), lambda tag: Annotation(tag["timestamp"].number() / 1000, None, tag["tag"].text())
    )
    seconds, group = reading.length(video, f"{item.where}.id")
    return [_Stream(item.where, f"{video}/{reading.seen[video]}", group, seconds, points)]


def _items(path: Path, problems: Problems, key: str | None = None) -> list[tuple[str, _Json]]:
    """The values of the object that a JSON file holds, or of its object `key`, by name."""
    whole = _read_json(path)
    return (whole if key is None else whole[key]).items()


_DURATIONS_CSV = "a CSV file with the columns video_id and duration"
_YOUCOOK2 = partial(_database, annotations="annotations", text="sentence")
_COIN = partial(_database, annotations="annotation", text="label")
FORMATS: Mapping[str, _Format] = {  # by name, with the files of annotations and of durations, where these are apart
    # atomic_descriptions_{split}.json
    "ego_exo4d": _Format(partial(_items, key="annotations"), _ego_exo4d, "takes.json", _takes),
    "ego4d": _Format(_items, _ego4d, "ego4d.json", _ego4d_videos),  # narration.json
    # a CSV of EPIC-KITCHENS-100 segments
    "epic": _Format(_epic_videos, _epic, "EPIC_100_video_info.csv", _csv_lengths),
    "activitynet": _Format(_items, _activitynet),  # {train,val_1,val_2}.json of ActivityNet Captions
    "youcook2": _Format(partial(_items, key="database"), _YOUCOOK2),  # youcookii_annotations_*.json
    "coin": _Format(partial(_items, key="database"), _COIN),  # COIN.json
    "vitt": _Format(_vitt_lines, _vitt, _DURATIONS_CSV, _csv_lengths),  # ViTT-annotations.json
}


@dataclass(frozen=True)
class Excerpt:
    """The part of a timeline that is replayed, in the splits `calibration` and `test`; no group has streams in both.

    `cut` annotations are left out because they end after the excerpt of their video.
    """

    splits: Mapping[str, list[StreamRecord]]
    cut: int


def excerpt(timeline: Timeline, videos: int, minutes: float, calibration_fraction: float, split_by: str) -> Excerpt:
    """Chooses and splits streams by a fixed hash of their names: no seed changes them.

    At most `videos` streams are taken, `minutes` of each from its beginning; 0 takes all. A fraction of the groups
    calibrates: the participants' videos (see `Timeline.groups`) if `split_by` is "group", a video's passes if "video".
    Each split must get 2 streams.
    """
    check_int("videos", videos, 0)
    check_nonnegative("minutes", minutes)
    if not 0 < calibration_fraction < 1:
        raise InputError(f"calibration_fraction must be in (0, 1), got {calibration_fraction}")
    if split_by not in ("group", "video"):
        raise InputError(f"split_by must be group or video, got {split_by!r}")
    chosen = sorted(timeline.records, key=lambda record: name_fraction(record.video_id))[: videos or None]
    whole = {r.video_id: timeline.groups[r.video_id] if split_by == "group" else video_of(r.video_id) for r in chosen}
    names = sorted(set(whole.values()), key=lambda name: name_fraction(f"split {name}"))
    calibrating = set(names[: round(calibration_fraction * len(names))])
    splits: dict[str, list[StreamRecord]] = {"calibration": [], "test": []}
    cut = 0
    for record in chosen:
        duration = min(record.duration, 60 * minutes) if minutes else record.duration
        events = tuple(event for event in record.events if event.end <= duration)
        cut += len(record.events) - len(events)
        if events:
            split = "calibration" if whole[record.video_id] in calibrating else "test"
            splits[split].append(StreamRecord(record.video_id, duration, events))
    for split, records in splits.items():
        if len(records) < 2:
            raise InputError(f"the {split} split must have at least 2 streams, got {len(records)}: take more videos")
    return Excerpt(splits, cut)


def video_of(video_id: str) -> str:
    """The video of a `video_id`, without the annotator."""
    return video_id.partition("/")[0]


def name_fraction(name: str) -> float:
    """A hash of a name in [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48
