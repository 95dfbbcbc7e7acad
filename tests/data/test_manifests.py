"""Manifests: every kind of sample, what is refused and how it is named, image folders, and the way back."""

from __future__ import annotations

import json

import pytest
from conftest import refuses, write_manifest

from jepa.data.manifests import (
    CaptionSample,
    ClassSample,
    QuestionSample,
    WorldPredictionSample,
    media_of,
    read_manifest,
)
from jepa.data.media import Media
from jepa.errors import CollectedError

LINES = [
    {"media": "a.mp4", "start": 1.5, "end": 4.0, "captions": ["A man cuts onions.", "Onions «are» cut."]},
    {"media": "b.JPG", "question": "Is it raining?", "answer": "no", "candidates": ["yes", "no"]},
    {"media": "b.JPG", "question": "What falls?", "answer": "rain", "alternatives": ["drizzle"], "id": "b-2"},
    {"media": "frames", "label": "chopping", "id": "c-17"},
    {
        "before": "b.JPG",
        "after": {"media": "a.mp4", "start": 9},
        "candidates": ["a.mp4", {"media": "a.mp4", "start": 0, "end": 2}],
        "answer": 1,
    },
]


@pytest.fixture
def folder(tmp_path):
    for name in ("a.mp4", "b.JPG", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "frames").mkdir()
    return tmp_path


def write(folder, *lines):
    path = folder / "m.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return path


def test_every_kind_of_sample(folder):
    samples = read_manifest(write(folder, *LINES))
    clip, picture = folder / "a.mp4", Media("b.JPG", folder / "b.JPG")
    assert samples == [
        CaptionSample("1", Media("a.mp4", clip, 1.5, 4.0), ("A man cuts onions.", "Onions «are» cut.")),
        QuestionSample("2", picture, "Is it raining?", "no", candidates=("yes", "no")),
        QuestionSample("b-2", picture, "What falls?", "rain", alternatives=("drizzle",)),
        ClassSample("c-17", Media("frames", folder / "frames"), "chopping"),
        WorldPredictionSample(
            "5", picture, Media("a.mp4", clip, 9), (Media("a.mp4", clip), Media("a.mp4", clip, 0, 2)), 1
        ),
    ]
    assert [sample.kind for sample in samples] == ["caption", "question", "question", "class", "world_prediction"]
    assert [len(media_of(sample)) for sample in samples] == [1, 1, 1, 1, 4]


def test_what_is_written_is_read_again(folder):
    samples = read_manifest(write(folder, *LINES))
    assert read_manifest(write_manifest(folder / "again.jsonl", samples)) == samples


def test_image_folders_are_class_samples(tmp_path):
    hidden = (".ipynb_checkpoints/1.jpg", "cat/._1.jpg")
    for name in ("cat/2.png", "cat/1.jpg", "a dog/1.JPEG", "cat/notes.txt", "stray.jpg", *hidden):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [(s.id, s.media.source, s.label) for s in read_manifest(tmp_path, {"class"})]
    names = [("a dog/1.JPEG", "a dog"), ("cat/1.jpg", "cat"), ("cat/2.png", "cat")]
    assert found == [(name, tmp_path / name, label) for name, label in names]


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("{", "not JSON"),
        ("[]", "list"),
        ({"media": "a.mp4", "caption": ["x"]}, "did you mean 'captions'?"),
        ({"media": "a.mp4"}, "got none"),
        ({"media": "a.mp4", "label": "x", "captions": ["x"]}, "got captions and label"),
        ({"media": "a.mp4", "question": "x"}, "'answer'"),
        ({"media": "a.mp4", "label": "x", "answer": "y"}, "'answer'"),
        ({"media": "a.mp4", "captions": []}, "captions"),
        ({"media": "a.mp4", "captions": "x"}, "captions"),
        ({"media": "a.mp4", "captions": ["x", " "]}, "captions"),
        ({"media": "a.mp4", "label": 3}, "label"),
        ({"media": "a.mp4", "label": "x", "id": ""}, "id"),
        ({"media": "a.mp4", "label": "x", "id": "one"}, "'one' as in line 1"),
        ({"media": "none.mp4", "label": "x"}, "media not found: .*none.mp4"),
        ({"media": 4, "label": "x"}, "media"),
        ({"media": "notes.txt", "label": "x"}, "notes.txt: must be"),
        ({"media": "a.mp4", "label": "x", "start": "1"}, "start"),
        ({"media": "a.mp4", "label": "x", "start": 4, "end": 4}, "a.mp4: end must be after start"),
        ({"media": "a.mp4", "label": "x", "end": float("nan")}, "end"),
        ({"media": "b.JPG", "label": "x", "end": 4}, "b.JPG: only a video"),
        ({"media": "a.mp4", "question": "x", "answer": "y", "candidates": ["n"]}, "candidates must hold the answer"),
        ({**LINES[4], "answer": 2}, "answer"),
        ({**LINES[4], "answer": True}, "answer"),
        ({**LINES[4], "candidates": [[]]}, "candidates"),
        ({**LINES[4], "before": {"media": "a.mp4", "from": 3}}, "before"),
        ({**LINES[4], "media": "a.mp4"}, "'media'"),
        ({"media": "a.mp4", "label": "x", "start": ""}, "start"),
        ({"media": "a" * 300 + ".mp4", "label": "x"}, "media not found"),
        ('{"media": "a.mp4", "label": "half \\ud83d"}', "lone surrogate"),
        ('{"media": "a.mp4", "label": "x", "start": ' + "9" * 5000 + "}", "at most 300 digits"),
        ('{"media": "a.mp4", "label": "x", "end": 1e999}', "end"),
        ('{"media": "a.mp4", "label": "x", "label": "y"}', "'label' 2 times"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_bad_lines_are_named(folder, line, field):
    path = write(folder, {"media": "a.mp4", "label": "x", "id": "one"}, line)
    refuses(rf"m\.jsonl:2: .*{field}", read_manifest, path)


def test_bad_manifests_are_named(folder):
    refuses(r"manifest not found: .*nowhere\.jsonl", read_manifest, folder / "nowhere.jsonl")
    refuses(r"m\.jsonl: a manifest must have at least 1 sample, got none", lambda: read_manifest(write(folder)))
    refuses("frames: a manifest must have at least 1 sample", read_manifest, folder / "frames")
    refuses("or question, got class: 'c-17'", lambda: read_manifest(write(folder, *LINES[:4]), ["caption", "question"]))


def test_every_problem_is_reported_and_the_first_twenty_shown(folder):
    good = {"media": "a.mp4", "label": " two\u00a0 words "}
    path = write(folder, "\ufeff", good, "", "{", {"media": "none.mp4", "label": "x"}, *[{"media": "a.mp4"}] * 20)
    with pytest.raises(CollectedError) as found:
        read_manifest(path)
    first, *lines = str(found.value).splitlines()
    assert first == f"{path}: 22 problems, the first 20"
    assert [line.split(": ")[0] for line in lines] == [f"  {path}:{number}" for number in range(4, 24)]
    [sample] = read_manifest(write(folder, "\ufeff" + json.dumps(good), ""))
    assert sample.label == "two words"
