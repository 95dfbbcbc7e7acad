"""Manifests: which captions, questions, classes or states belong to which media. One sample a line of JSON.

    {"media": "clips/a.mp4", "start": 1.5, "end": 4.0, "captions": ["A man cuts onions.", "Onions are cut."]}
    {"media": "b.jpg", "question": "Is it raining?", "answer": "no", "candidates": ["yes", "no"]}
    {"media": "frames_of_c", "label": "chopping", "id": "c-17"}
    {"before": "d0.jpg", "after": "d1.jpg", "candidates": ["d_cut.mp4", "d_fry.mp4"], "answer": 0}

Media are named relative to the manifest; docs/data.md describes every field.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Collection
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from jepa.data.json_lines import JsonObject, check_text, read_lines
from jepa.data.media import Media, picture_files
from jepa.errors import InputError, check_int

Kind: TypeAlias = Literal["caption", "question", "class", "world_prediction"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class CaptionSample:
    """`captions` describe the medium, each on its own."""

    kind: ClassVar[Kind] = "caption"
    id: str
    media: Media
    captions: tuple[str, ...]


@dataclass(frozen=True)
class QuestionSample:
    """A question about the medium. `alternatives` are right as well; `candidates`, if any, hold the `answer`."""

    kind: ClassVar[Kind] = "question"
    id: str
    media: Media
    question: str
    answer: str
    candidates: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.candidates and self.answer not in self.candidates:
            raise InputError(f"candidates must hold the answer {self.answer!r}, got {list(self.candidates)!r}")


@dataclass(frozen=True)
class ClassSample:
    """What class the medium belongs to. The classes are the labels of the whole manifest, white space made even."""

    kind: ClassVar[Kind] = "class"
    id: str
    media: Media
    label: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", " ".join(self.label.split()))


@dataclass(frozen=True)
class WorldPredictionSample:
    """The candidate that leads from one state to the other is number `answer`, from 0 (WorldPrediction, 2506.04363)."""

    kind: ClassVar[Kind] = "world_prediction"
    id: str
    before: Media
    after: Media
    candidates: tuple[Media, ...]
    answer: int

    def __post_init__(self) -> None:
        if self.answer >= (count := len(self.candidates)):
            raise InputError(f"answer must be the number of one of {count} candidates, from 0, got {self.answer}")


Sample: TypeAlias = CaptionSample | QuestionSample | ClassSample | WorldPredictionSample
# The source of a medium by its name: a path, or the bytes that a shard holds.
Find: TypeAlias = Callable[[str], Path | bytes | tuple[bytes, ...]]

# By the field that tells a kind.
_KINDS: dict[str, type[Sample]] = {
    "captions": CaptionSample,
    "question": QuestionSample,
    "label": ClassSample,
    "before": WorldPredictionSample,
}
_TIMES = ("start", "end")
_ALL_FIELDS = sorted({*_TIMES, *(field.name for kind in _KINDS.values() for field in fields(kind))})


def read_manifest(path: str | Path, kinds: Collection[Kind] = KINDS) -> list[Sample]:
    """The samples of a manifest, or of an image folder (`root/<label>/picture.jpg`) as class samples.

    A sample without an `id` has the number of its line.

    Raises:
        InputError: the manifest is missing or empty; a line breaks the form, names a medium that is not there, or
            repeats an id; a sample is of none of `kinds`. The error names file, line and field.
    """
    path = Path(path)
    samples = _image_folder(path) if path.is_dir() else _read_lines(path)
    if not samples:
        raise InputError(f"{path}: a manifest must have at least 1 sample, got none")
    for sample in samples:
        if sample.kind not in kinds:
            raise InputError(f"{path}: samples must be of kind {' or '.join(kinds)}, got {sample.kind}: {sample.id!r}")
    return samples


def parse_sample(data: JsonObject, number: int, find: Find) -> Sample:
    """The sample of line `number`; `find` gives the source of a medium, or raises `InputError` if there is none."""
    for name in data:
        if name not in _ALL_FIELDS:
            near = difflib.get_close_matches(name, _ALL_FIELDS, n=1)
            raise InputError(f"unknown field {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    marks = [mark for mark in _KINDS if mark in data]
    if len(marks) != 1:
        raise InputError(f"a sample must have exactly one of {', '.join(_KINDS)}, got {' and '.join(marks) or 'none'}")
    kind, values = _KINDS[marks[0]], {"id": str(number), **data}
    known = {field.name: field for field in fields(kind)}
    for name, field in known.items():
        if name not in values and field.default is MISSING:
            raise InputError(f"a {kind.kind} sample must have {name!r}, got {', '.join(data)}")
    for name in data:
        if name not in known and not (name in _TIMES and "media" in known):
            raise InputError(f"a {kind.kind} sample has no field {name!r}")
    if "media" in known:
        values["media"] = {name: values.pop(name) for name in ("media", *_TIMES) if name in values}
    return kind(**{name: _parse(name, value, known[name].type, find) for name, value in values.items()})


def sample_fields(sample: Sample, rename: Callable[[str, Media], str]) -> JsonObject:
    """The object that `parse_sample` reads as `sample`, with media named by `rename(field, medium)`."""

    def medium(field: str, media: Media) -> JsonObject:
        times = {"start": media.start, "end": media.end}
        return {"media": rename(field, media)} | {name: time for name, time in times.items() if time is not None}

    data: JsonObject = {}
    for name, value in vars(sample).items():
        if name == "media":
            data |= medium(name, value)
        elif isinstance(value, Media):
            data[name] = medium(name, value)
        elif not isinstance(value, tuple):
            data[name] = value
        elif value:
            items = enumerate(value)
            data[name] = [medium(f"candidate{i}", item) if isinstance(item, Media) else item for i, item in items]
    return data


def media_of(sample: Sample) -> tuple[Media, ...]:
    """Every medium of a sample: one, or both states and the candidates."""
    if isinstance(sample, WorldPredictionSample):
        return (sample.before, sample.after, *sample.candidates)
    return (sample.media,)


def _read_lines(path: Path) -> list[Sample]:
    lines = dict[str, int]()

    def find(name: str) -> Path:
        source = path.parent / name
        if not os.path.exists(source):  # unlike the method of a path, false for a name that no file can have
            raise InputError(f"media not found: {source}")
        return source

    def read(data: JsonObject, number: int) -> Sample:
        sample = parse_sample(data, number, find)
        if (first := lines.setdefault(sample.id, number)) != number:
            raise InputError(f"ids must differ, got {sample.id!r} as in line {first}")
        return sample

    return read_lines(path, "manifest", read)


def _image_folder(root: Path) -> list[Sample]:
    files = picture_files(root, "*/*")
    names = [file.relative_to(root).as_posix() for file in files]
    return [ClassSample(name, Media(name, file), file.parent.name) for name, file in zip(names, files, strict=True)]


def _parse(name: str, value: Any, kind: Any, find: Find) -> Any:
    """The value of a field of the annotated `kind`."""
    if kind == "int":
        return check_int(name, value, 0)
    if kind == "str":
        return check_text(name, value)
    if kind == "Media":
        return _media(name, value, find)
    if not isinstance(value, list) or not value:
        raise InputError(f"{name} must be a list that is not empty, got {value!r}")
    return tuple(_parse(name, item, "str" if "str" in kind else "Media", find) for item in value)


def _media(field: str, value: object, find: Find) -> Media:
    """A medium by its name, or by an object `{"media": name, "start": seconds, "end": seconds}`."""
    if isinstance(value, dict):
        if "media" not in value or value.keys() - {"media", *_TIMES}:
            raise InputError(f"{field} must have media, and may have start and end, got {', '.join(value)}")
        name, start, end = check_text("media", value["media"]), value.get("start"), value.get("end")
    elif isinstance(value, str) and value.strip():
        name, start, end = value, None, None
    else:
        raise InputError(f"{field} must be the name of a medium, got {value!r}")
    return Media(name, find(name), start, end)
