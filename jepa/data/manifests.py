"""Manifests: which captions, questions, classes or states belong to which media. One sample a line of JSON.

    {"media": "clips/a.mp4", "start": 1.5, "end": 4.0, "captions": ["A man cuts onions.", "Onions are cut."]}
    {"media": "b.jpg", "question": "Is it raining?", "answer": "no", "candidates": ["yes", "no"]}
    {"media": "frames_of_c", "label": "chopping", "id": "c-17"}
    {"before": "d0.jpg", "after": "d1.jpg", "candidates": ["d_cut.mp4", "d_fry.mp4"], "answer": 0}

Media are named relative to the manifest; docs/data.md describes every field.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from jepa.data.json_lines import JsonObject, check_text, located, read_lines
from jepa.data.media import PICTURES, Media
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


@dataclass(frozen=True)
class ClassSample:
    """What class the medium belongs to. The classes are the labels of the whole manifest."""

    kind: ClassVar[Kind] = "class"
    id: str
    media: Media
    label: str


@dataclass(frozen=True)
class WorldPredictionSample:
    """The candidate that leads from one state to the other is number `answer`, from 0 (WorldPrediction, 2506.04363)."""

    kind: ClassVar[Kind] = "world_prediction"
    id: str
    before: Media
    after: Media
    candidates: tuple[Media, ...]
    answer: int


Sample: TypeAlias = CaptionSample | QuestionSample | ClassSample | WorldPredictionSample
# The source of a medium by its name: a path, or the bytes that a shard holds.
Find: TypeAlias = Callable[[str], Path | bytes | tuple[bytes, ...]]

# By the field that tells a kind: the kind, the fields it needs, and those it may have.
_FORMS: dict[str, tuple[Kind, tuple[str, ...], tuple[str, ...]]] = {
    "captions": ("caption", ("media", "captions"), ("start", "end")),
    "question": ("question", ("media", "question", "answer"), ("start", "end", "candidates", "alternatives")),
    "label": ("class", ("media", "label"), ("start", "end")),
    "before": ("world_prediction", ("before", "after", "candidates", "answer"), ()),
}
_ALL_FIELDS = sorted({"id", *(name for _, needed, optional in _FORMS.values() for name in needed + optional)})


def read_manifest(path: str | Path, kinds: Collection[Kind] = KINDS) -> list[Sample]:
    """The samples of a manifest, or of an image folder (`root/<label>/picture.jpg`) as class samples.

    A sample without an `id` has the number of its line. Blank lines and a byte order mark are passed over.

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
    """The sample of line `number`; `find` gives the source of a medium, or raises `InputError` if there is none.

    Raises:
        InputError: an unknown, missing or wrong field, or not exactly one of `captions`, `question`, `label`, `before`.
    """
    for name in data:
        if name not in _ALL_FIELDS:
            near = difflib.get_close_matches(name, _ALL_FIELDS, n=1)
            raise InputError(f"unknown field {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    marks = [mark for mark in _FORMS if mark in data]
    if len(marks) != 1:
        raise InputError(f"a sample must have exactly one of {', '.join(_FORMS)}, got {' and '.join(marks) or 'none'}")
    kind, needed, optional = _FORMS[marks[0]]
    for name in needed:
        if name not in data:
            raise InputError(f"a {kind} sample must have {name!r}, got {', '.join(data)}")
    for name in data:
        if name not in (*needed, *optional, "id"):
            raise InputError(f"a {kind} sample has no field {name!r}")
    identifier = check_text("id", data.get("id", str(number)))
    if kind == "world_prediction":
        candidates = tuple(_media(item, "candidates", find) for item in _list(data, "candidates"))
        answer = check_int("answer", data["answer"], 0)
        if answer >= len(candidates):
            raise InputError(f"answer must be the number of one of {len(candidates)} candidates, from 0, got {answer}")
        before, after = (_media(data[name], name, find) for name in ("before", "after"))
        return WorldPredictionSample(identifier, before, after, candidates, answer)
    media = _media({name: data[name] for name in ("media", "start", "end") if name in data}, "media", find)
    if kind == "caption":
        return CaptionSample(identifier, media, _texts(data, "captions"))
    if kind == "class":
        return ClassSample(identifier, media, check_text("label", data["label"]))
    question, right = (check_text(name, data[name]) for name in ("question", "answer"))
    choices, alternatives = (_texts(data, name) if name in data else () for name in ("candidates", "alternatives"))
    if choices and right not in choices:
        raise InputError(f"candidates must hold the answer {right!r}, got {list(choices)!r}")
    return QuestionSample(identifier, media, question, right, choices, alternatives)


def sample_fields(sample: Sample, rename: Callable[[str, Media], str]) -> JsonObject:
    """The object that `parse_sample` reads as `sample`, with media named by `rename(field, medium)`."""

    def medium(field: str, media: Media) -> JsonObject:
        times = {"start": media.start, "end": media.end}
        return {"media": rename(field, media)} | {name: time for name, time in times.items() if time is not None}

    fields: JsonObject = {}
    for name, value in vars(sample).items():
        if name == "media":
            fields |= medium(name, value)
        elif isinstance(value, Media):
            fields[name] = medium(name, value)
        elif not isinstance(value, tuple):
            fields[name] = value
        elif value:
            fields[name] = [
                medium(f"candidate{i}", item) if isinstance(item, Media) else item for i, item in enumerate(value)
            ]
    return fields


def media_of(sample: Sample) -> tuple[Media, ...]:
    """Every medium of a sample: one, or both states and the candidates."""
    if isinstance(sample, WorldPredictionSample):
        return (sample.before, sample.after, *sample.candidates)
    return (sample.media,)


def _read_lines(path: Path) -> list[Sample]:
    def find(name: str) -> Path:
        source = path.parent / name
        if not source.exists():
            raise InputError(f"media not found: {source}")
        return source

    samples, lines = [], dict[str, int]()
    for number, data in read_lines(path, "manifest"):
        with located(f"{path}:{number}"):
            sample = parse_sample(data, number, find)
            if (first := lines.setdefault(sample.id, number)) != number:
                raise InputError(f"ids must differ, got {sample.id!r} as in line {first}")
        samples.append(sample)
    return samples


def _image_folder(root: Path) -> list[Sample]:
    files = sorted(file for file in root.glob("*/*") if file.suffix.lower() in PICTURES)
    names = [file.relative_to(root).as_posix() for file in files]
    return [ClassSample(name, Media(name, file), file.parent.name) for name, file in zip(names, files, strict=True)]


def _media(value: object, field: str, find: Find) -> Media:
    """A medium by its name, or by an object `{"media": name, "start": seconds, "end": seconds}`."""
    if isinstance(value, dict):
        if "media" not in value or value.keys() - {"media", "start", "end"}:
            raise InputError(f"{field} must have media, and may have start and end, got {', '.join(value)}")
        name, start, end = check_text("media", value["media"]), value.get("start"), value.get("end")
    elif isinstance(value, str) and value.strip():
        name, start, end = value, None, None
    else:
        raise InputError(f"{field} must be the name of a medium, got {value!r}")
    return Media(name, find(name), start, end)


def _list(data: JsonObject, name: str) -> list[Any]:
    value = data[name]
    if not isinstance(value, list) or not value:
        raise InputError(f"{name} must be a list that is not empty, got {value!r}")
    return value


def _texts(data: JsonObject, name: str) -> tuple[str, ...]:
    return tuple(check_text(name, value) for value in _list(data, name))
