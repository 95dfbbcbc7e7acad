"""Readers of annotated timelines in the `FORMATS` in which data sets publish them, into `StreamRecord`s.

A missing key, a wrong type or an unknown video is an `InputError` with the file and the line or key path.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from jepa.data.json_lines import JsonObject, located, parse_any, read_lines
from jepa.data.records import Event, StreamRecord
from jepa.errors import InputError, check_int, check_nonnegative, check_positive

_CLOCK = re.compile(r"(\d{2,}):([0-5]\d):([0-5]\d(?:\.\d+)?)")
_EPIC_COLUMNS = ("video_id", "participant_id", "start_timestamp", "stop_timestamp", "narration")
_TAG = re.compile(r"^#[A-Za-z]+\s+")  # `#C C opens a drawer`: who acts


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
    reader = FORMATS[format]
    if (durations is None) != (reader.durations is None):
        rule = "be null: the annotations have them" if reader.durations is None else f"name {reader.durations}"
        raise InputError(f"durations of the format {format} must {rule}, got {durations}")
    dropped: Counter[str] = Counter()
    lengths = {} if reader.lengths is None else reader.lengths(Path(str(durations)))
    records, groups = [], {}
    for place, stream in reader.streams(Path(path), lengths, dropped):
        if stream.video_id in groups:
            raise InputError(f"{place}: a video must be listed once, got {stream.video_id!r} again")
        groups[stream.video_id] = stream.group
        if events := make_events(stream.annotations, stream.duration, point_seconds, dropped):
            records.append(StreamRecord(stream.video_id, stream.duration, events))
        else:
            dropped["videos without annotations"] += 1
    if not records:
        raise InputError(f"{path}: must hold at least one usable annotation, got none (dropped: {dict(dropped)})")
    return Timeline(tuple(records), {r.video_id: groups[r.video_id] for r in records}, dict(dropped))


class Annotation(NamedTuple):
    """A text from `start` to `end` seconds; a point has no end."""

    start: float
    end: float | None
    text: str


class _Stream(NamedTuple):
    video_id: str
    group: str
    duration: float
    annotations: list[Annotation]


_Lengths = Mapping[str, tuple[float, str]]  # seconds and group of each video
_Streams = Iterator[tuple[str, _Stream]]  # with the place in the file, for errors


class _Format(NamedTuple):
    streams: Callable[[Path, _Lengths, Counter[str]], _Streams]
    durations: str | None = None
    lengths: Callable[[Path], _Lengths] | None = None


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
    text = _read(path)
    with located(str(path)):
        return _Json(parse_any(text), f"{path}: $")


def _length(lengths: _Lengths, video: str, where: str) -> tuple[float, str]:
    if video not in lengths:
        raise InputError(f"{where} must be a video of the durations file, got {video!r}")
    return lengths[video]


def _ego_exo4d(path: Path, lengths: _Lengths, dropped: Counter[str]) -> _Streams:
    for take, passes in _read_json(path)["annotations"].items():
        seconds, group = _length(lengths, take, passes.where)
        seen: Counter[str] = Counter()
        for item in passes.array():
            descriptions = item["descriptions"].array()
            if item["rejected"].flag():
                dropped["rejected"] += len(descriptions)
                continue
            annotator = item["annotator_id"].name()
            seen[annotator] += 1
            if seen[annotator] > 1:
                annotator = f"{annotator}-{seen[annotator]}"
            sure = [description for description in descriptions if not description["unsure"].flag()]
            dropped["unsure"] += len(descriptions) - len(sure)
            points = [Annotation(d["timestamp"].number(), None, d["text"].text()) for d in sure]
            yield item.where, _Stream(f"{take}/{annotator}", group, seconds, points)


def _takes(path: Path) -> _Lengths:
    lengths = {}
    for take in _read_json(path).array():
        group = take["participant_uid" if "participant_uid" in take.object() else "take_uid"].name()
        lengths[take["take_uid"].text()] = take["duration_sec"].number(positive=True), group
    return lengths


def _ego4d(path: Path, lengths: _Lengths, dropped: Counter[str]) -> _Streams:
    for video, passes in _read_json(path).items():
        names = [name for name in passes.object() if name.startswith("narration_pass_")]
        if not names:  # a redacted video has its status alone
            dropped["videos without annotations"] += 1
        for name in names:
            seconds, group = _length(lengths, video, passes.where)
            points = []
            for item in passes[name]["narrations"].array():
                text = item["narration_text"].text()
                if "#unsure" in text.lower():
                    dropped["unsure"] += 1
                else:
                    points.append(Annotation(item["timestamp_sec"].number(), None, _TAG.sub("", text.strip())))
            yield passes[name].where, _Stream(f"{video}/{name}", group, seconds, points)


def _ego4d_videos(path: Path) -> _Lengths:
    videos = {video["video_uid"].text(): video for video in _read_json(path)["videos"].array()}
    return {name: (video["duration_sec"].number(positive=True), name) for name, video in videos.items()}


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file, each with its place; a row must have as many fields as the header."""
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
            if None in row or None in row.values():
                raise InputError(f"{where}: a row must have {len(header)} fields, got more or fewer")
            yield where, row
    except csv.Error as error:
        raise InputError(f"{path}:{reader.reader.line_num}: must be CSV, got an error: {error}") from None


def _epic(path: Path, lengths: _Lengths, dropped: Counter[str]) -> _Streams:
    videos: dict[str, tuple[str, _Stream]] = {}
    for where, row in _rows(path, _EPIC_COLUMNS):
        video = row["video_id"]
        if video not in videos:
            seconds, _ = _length(lengths, video, f"{where}: video_id")
            videos[video] = where, _Stream(video, row["participant_id"], seconds, [])
        start, stop = (_clock(row[name], f"{where}: {name}") for name in ("start_timestamp", "stop_timestamp"))
        videos[video][1].annotations.append(Annotation(start, stop, row["narration"]))
    yield from videos.values()


def _clock(text: str, where: str) -> float:
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise InputError(f"{where} must be HH:MM:SS.ss, got {text!r}")
    hours, minutes, seconds = match.groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _csv_lengths(path: Path) -> _Lengths:
    lengths = {}
    for where, row in _rows(path, ("video_id", "duration")):
        try:
            lengths[row["video_id"]] = check_positive("duration", float(row["duration"])), row["video_id"]
        except ValueError:
            raise InputError(f"{where}: duration must be a number > 0, got {row['duration']!r}") from None
    return lengths


def _activitynet(path: Path, lengths: _Lengths, dropped: Counter[str]) -> _Streams:
    for video, item in _read_json(path).items():
        spans = item["timestamps"].array()
        pairs = zip(spans, item["sentences"].array(len(spans)), strict=True)
        annotations = [_span(span, sentence) for span, sentence in pairs]
        yield item.where, _Stream(video, video, item["duration"].number(positive=True), annotations)


def _database(path: Path, lengths: _Lengths, dropped: Counter[str], annotations: str, text: str) -> _Streams:
    """YouCook2 and COIN: `segment`s [start, end] with a text."""
    for video, item in _read_json(path)["database"].items():
        spans = [_span(span["segment"], span[text]) for span in item[annotations].array()]
        yield item.where, _Stream(video, video, item["duration"].number(positive=True), spans)


def _span(span: _Json, text: _Json) -> Annotation:
    start, end = (bound.number() for bound in span.array(2))
    return Annotation(start, end, text.text())


def _vitt(path: Path, lengths: _Lengths, dropped: Counter[str]) -> _Streams:
    seen: Counter[str] = Counter()
    for number, line in read_lines(path, "annotations"):
        item = _Json(line, f"{path}:{number}: $")
        video = item["id"].text()
        seen[video] += 1  # one line an annotator
        tags = item["annotations"].array()
        points = [Annotation(tag["timestamp"].number() / 1000, None, tag["tag"].text()) for tag in tags]
        seconds, group = _length(lengths, video, f"{item.where}.id")
        yield item.where, _Stream(f"{video}/{seen[video]}", group, seconds, points)


FORMATS: Mapping[str, _Format] = {  # by name, with the files of annotations and of durations, where these are apart
    "ego_exo4d": _Format(_ego_exo4d, "takes.json", _takes),  # atomic_descriptions_{split}.json
    "ego4d": _Format(_ego4d, "ego4d.json", _ego4d_videos),  # narration.json
    "epic": _Format(_epic, "EPIC_100_video_info.csv", _csv_lengths),  # a CSV of EPIC-KITCHENS-100 segments
    "activitynet": _Format(_activitynet),  # {train,val_1,val_2}.json of ActivityNet Captions
    "youcook2": _Format(partial(_database, annotations="annotations", text="sentence")),  # youcookii_annotations_*.json
    "coin": _Format(partial(_database, annotations="annotation", text="label")),  # COIN.json
    "vitt": _Format(_vitt, "a CSV file with the columns video_id and duration", _csv_lengths),  # ViTT-annotations.json
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
