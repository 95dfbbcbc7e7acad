"""Timelines: every format from files as they are published, what is dropped, and errors that name the place."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import real_data, refuses
from hypothesis import given
from hypothesis import strategies as st

from jepa.data.records import Event, StreamRecord
from jepa.data.timelines import FORMATS, Annotation, Timeline, excerpt, make_events, read_timeline
from jepa.errors import CollectedError, InputError


def point(text: str, timestamp: Any, unsure: Any = False) -> dict[str, Any]:
    return {"text": text, "timestamp": timestamp, "subject": "C", "best_exo": None, "unsure": unsure}


def passing(annotator: str, *points: dict[str, Any], rejected: Any = False) -> dict[str, Any]:
    return {"annotator_id": annotator, "rejected": rejected, "reject_reason": None, "descriptions": list(points)}


EGO_EXO4D = {
    "take_cam_id_map": {},
    "annotations": {
        "take-1": [
            passing("9", point("C opens\n the  box", 2.0), point("C takes a bolt", 4.5), point("C waits", 4.5)),
            passing("12", point("C opens a box", 2.5), point("hm", 7.0, unsure=True), point("late", 20.0)),
            passing("13", point("nonsense", 1.0), point("more", 2.0), rejected=True),
            passing("9", point("C opens it again", 19.0)),
        ],
        "take-2": [passing("9", point(" ", 1.0))],
    },
}
TAKES = [
    {"take_uid": "take-1", "duration_sec": 20.0, "participant_uid": 317},
    {"take_uid": "take-2", "duration_sec": 5.5},
]
EGO4D = {
    "v1": {
        "status": "complete",
        "narration_pass_1": {
            "narrations": [
                {"timestamp_sec": 3.0, "timestamp_frame": 90, "narration_text": "#C C picks a cup"},
                {"timestamp_sec": 0.5, "timestamp_frame": 15, "narration_text": "#O man X  sits "},
                {"timestamp_sec": 4.0, "timestamp_frame": 120, "narration_text": "#C C turns #Unsure"},
            ],
            "summaries": [],
        },
        "narration_pass_2": {"narrations": [{"timestamp_sec": 9.0, "narration_text": "#C C eats"}]},
    },
    "v2": {"status": "redacted"},
}  # fmt: skip
EGO4D_VIDEOS = {"videos": [{"video_uid": "v1", "duration_sec": 10.0}, {"video_uid": "v2", "duration_sec": 4.0}]}
ACTIVITYNET = {
    "v_a": {"duration": 82.73, "timestamps": [[17.37, 60.81], [0.83, 99.0], [5, 5]], "sentences": [" A man", "he", "x"]}
}
YOUCOOK2 = {
    "database": {
        "GLd3aX16zBg": {
            "duration": 241.62,
            "subset": "training",
            "recipe_type": "113",
            "annotations": [{"segment": [90, 102], "id": 0, "sentence": "spread margarine on slices of white bread"}],
            "video_url": "https://www.youtube.com/watch?v=GLd3aX16zBg",
        }
    }
}
COIN = {
    "database": {
        "0fQF": {
            "duration": 57.0,
            "class": "PutOnHairExtensions",
            "recipe_type": 3,
            "subset": "training",
            "annotation": [{"id": "203", "segment": [4.0, 9.0], "label": "comb the hair"}],
        }
    }
}
VITT = [
    {"id": "FmTp", "annotations": [{"timestamp": 260, "tag": "Opening"}, {"timestamp": 16000, "tag": "Technique"}]},
    {"id": "FmTp", "annotations": [{"timestamp": 500, "tag": "Start"}]},
]
EPIC_HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
)
EPIC_ROWS = [
    "P01_01_1,P01,P01_01,00:00:02.629,00:00:04.37,00:00:06.17,2,3,turn on light,turn-on,6,light,1,['light'],[1]",
    "P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:05.00,8,202,open door,open,3,door,3,['door'],[3]",
    'P02_01_0,P02,P02_01,00:00:01.0,01:00:01,01:00:02.5,8,9,"put pan, lid",put,3,pan,3,"[\'pan\', \'lid\']","[3, 4]"',
]
EPIC_VIDEOS = "video_id,duration,fps,resolution\nP01_01,1652.15,59.9,1920x1080\nP02_01,3602.0,59.9,1920x1080\n"
DOCUMENTS: dict[str, tuple[Any, Any]] = {
    "ego_exo4d": (EGO_EXO4D, TAKES),
    "ego4d": (EGO4D, EGO4D_VIDEOS),
    "activitynet": (ACTIVITYNET, None),
    "youcook2": (YOUCOOK2, None),
    "coin": (COIN, None),
}


def read(folder: Path, format: str, document: Any = None, durations: Any = None, **settings: Any) -> Timeline:
    """Writes the documents (those above unless given) as the format's files, and reads them."""
    suffix = {"epic": "csv", "vitt": "jsonl"}.get(format, "json")
    path, lengths = folder / f"{format}.{suffix}", None
    if format == "epic":
        path.write_text("\n".join([EPIC_HEADER, *(document or EPIC_ROWS)]) + "\n", encoding="utf-8")
        lengths = folder / "video_info.csv"
        lengths.write_text(durations or EPIC_VIDEOS, encoding="utf-8")
    elif format == "vitt":
        path.write_text("".join(json.dumps(line) + "\n" for line in document or VITT), encoding="utf-8")
        lengths = folder / "lengths.csv"
        lengths.write_text(durations or "video_id,duration\nFmTp,30.5\n", encoding="utf-8")
    else:
        path.write_text(json.dumps(document or DOCUMENTS[format][0]), encoding="utf-8")
        if DOCUMENTS[format][1] is not None:
            lengths = folder / "lengths.json"
            lengths.write_text(json.dumps(durations or DOCUMENTS[format][1]), encoding="utf-8")
    return read_timeline(path, format, durations=lengths, **settings)


def events(timeline: Timeline) -> dict[str, list[tuple[float, float, str]]]:
    return {r.video_id: [(e.start, e.end, e.text) for e in r.events] for r in timeline.records}


def test_ego_exo4d_keeps_annotators_apart_and_counts_what_it_drops(tmp_path):
    timeline = read(tmp_path, "ego_exo4d")
    assert events(timeline) == {
        "take-1/9": [(2.0, 4.5, "C opens the box"), (4.5, 12.5, "C takes a bolt"), (4.5, 12.5, "C waits")],
        "take-1/12": [(2.5, 10.5, "C opens a box")],
        "take-1/9-2": [(19.0, 20.0, "C opens it again")],
    }
    assert timeline.dropped == {
        "rejected": 2,
        "unsure": 1,
        "beyond the video's end": 1,
        "without text": 1,
        "videos without annotations": 1,
    }
    assert set(timeline.groups.values()) == {"317"}
    assert timeline.overlapping == 1
    assert [record.duration for record in timeline.records] == [20.0] * 3


def test_ego4d_reads_each_pass_and_drops_unsure_narrations(tmp_path):
    timeline = read(tmp_path, "ego4d", point_seconds=3.5)
    assert events(timeline) == {
        "v1/narration_pass_1": [(0.5, 3.0, "man X sits"), (3.0, 6.5, "C picks a cup")],
        "v1/narration_pass_2": [(9.0, 10.0, "C eats")],
    }
    assert timeline.dropped == {"unsure": 1, "videos without annotations": 1}
    assert set(timeline.groups.values()) == {"v1"}


def test_formats_with_durations_of_their_own(tmp_path):
    timeline = read(tmp_path, "activitynet")
    assert events(timeline) == {"v_a": [(0.83, 82.73, "he"), (17.37, 60.81, "A man")]}
    assert timeline.dropped == {"without length": 1}
    recipe = "spread margarine on slices of white bread"
    assert events(read(tmp_path, "youcook2")) == {"GLd3aX16zBg": [(90.0, 102.0, recipe)]}
    assert events(read(tmp_path, "coin")) == {"0fQF": [(4.0, 9.0, "comb the hair")]}


def test_vitt_has_a_line_for_each_annotator_and_milliseconds(tmp_path):
    timeline = read(tmp_path, "vitt", point_seconds=100.0)
    assert events(timeline) == {
        "FmTp/1": [(0.26, 16.0, "Opening"), (16.0, 30.5, "Technique")],
        "FmTp/2": [(0.5, 30.5, "Start")],
    }
    assert timeline.groups == {"FmTp/1": "FmTp", "FmTp/2": "FmTp"}


def test_epic_rows_in_any_order_become_ordered_events(tmp_path):
    timeline = read(tmp_path, "epic")
    assert events(timeline) == {
        "P01_01": [(0.14, 5.0, "open door"), (4.37, 6.17, "turn on light")],
        "P02_01": [(3601.0, 3602.0, "put pan, lid")],
    }
    assert timeline.groups == {"P01_01": "P01", "P02_01": "P02"}
    assert timeline.overlapping == 1


def test_the_real_epic_files():
    folder = real_data("epic")
    path = folder / "EPIC_100_uda_source_train.csv"
    timeline = read_timeline(path, "epic", durations=folder / "EPIC_100_video_info.csv")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(timeline.records) == len({row["video_id"] for row in rows}) == 148
    assert sum(len(record.events) for record in timeline.records) == len(rows) == 16_115
    assert timeline.dropped == {}
    assert len(set(timeline.groups.values())) == 12
    assert all(timeline.groups[r.video_id] == r.video_id[:3] for r in timeline.records)
    said = sorted(event.text for record in timeline.records for event in record.events)
    assert said == sorted(row["narration"] for row in rows)


@given(
    st.lists(st.floats(0, 50, allow_nan=False), max_size=12), st.floats(0.1, 20), st.floats(1, 60), st.integers(0, 12)
)
def test_points_are_in_force_until_the_next_capped_and_within_the_video(starts, longest, duration, spans):
    annotations = [Annotation(start, start + 1.0 if i < spans else None, "x") for i, start in enumerate(starts)]
    made = make_events(annotations, duration, longest, dropped := Counter())
    assert len(made) + sum(dropped.values()) == len(starts)
    times = [start for start in starts if start < duration]
    for event in made:
        later = [time for time in times if time > event.start]
        ends = {min(event.start + 1.0, duration), min([event.start + longest, duration, *later])}
        assert event.end in ends
    assert list(made) == sorted(made, key=lambda event: (event.start, event.end))


def wrong(document: Any, keys: list[Any], value: Any) -> Any:
    """A copy with another value at a path of keys; `...` removes the key."""
    document = json.loads(json.dumps(document))
    node = document
    for key in keys[:-1]:
        node = node[key]
    if value is ...:
        del node[keys[-1]]
    else:
        node[keys[-1]] = value
    return document


RECIPE = ["database", "GLd3aX16zBg", "annotations", 0]
FIRST = ["annotations", "take-1", 0]


@pytest.mark.parametrize(
    ("format", "keys", "value", "place"),
    [
        ("ego_exo4d", [*FIRST, "descriptions", 1, "timestamp"], None, r"take-1\[0\]\.descriptions\[1\]\.timestamp"),
        ("ego_exo4d", [*FIRST, "rejected"], "no", r"take-1\[0\]\.rejected"),
        ("ego_exo4d", [*FIRST, "annotator_id"], ..., r"take-1\[0\]\.annotator_id must be there"),
        ("ego_exo4d", ["annotations"], [], r"\$\.annotations"),
        ("ego_exo4d", ["annotations", "take-3"], [], "take-3 must be a video of the durations file"),
        ("ego4d", ["v1", "narration_pass_1", "narrations", 0, "narration_text"], 3, r"narrations\[0\]\.narration_text"),
        ("ego4d", ["v1", "narration_pass_2", "narrations"], ..., r"narration_pass_2\.narrations must be there"),
        ("activitynet", ["v_a", "sentences"], ["x"], r"v_a\.sentences must be a list of 3"),
        ("activitynet", ["v_a", "timestamps", 1], [1, 2, 3], r"timestamps\[1\] must be a list of 2"),
        ("activitynet", ["v_a", "duration"], 0, r"v_a\.duration"),
        ("youcook2", [*RECIPE, "segment", 0], -1, r"segment\[0\]"),
        ("coin", ["database", "0fQF", "annotation", 0, "label"], ..., r"annotation\[0\]\.label must be there"),
    ],
)
def test_json_errors_name_file_and_key_path(tmp_path, format, keys, value, place):
    refuses(rf"{format}\.json: .*{place}", lambda: read(tmp_path, format, wrong(DOCUMENTS[format][0], keys, value)))


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        (EPIC_ROWS[0].replace("00:00:04.37", "4.37"), "start_timestamp"),
        (EPIC_ROWS[0].replace("00:00:06.17", "00:61:06.17"), "stop_timestamp"),
        (EPIC_ROWS[0].replace("P01_01,", "P09_09,"), "video_id must be a video"),
        (EPIC_ROWS[0] + ",more", "15 fields"),
        ('"' + EPIC_ROWS[0], "must be CSV"),
    ],
)
def test_epic_errors_name_the_line(tmp_path, row, rule):
    refuses(rf"epic\.csv:3: .*{rule}", lambda: read(tmp_path, "epic", [EPIC_ROWS[1], row]))


def test_other_errors_name_the_file(tmp_path):
    with pytest.raises(InputError, match=r"video_info\.csv:2: duration .*, got '-1'"):
        read(tmp_path, "epic", durations="video_id,duration\nP01_01,-1\n")
    refuses(r"video_info\.csv:1: .* column duration", read, tmp_path, "epic", durations="video_id\nP01_01\n")
    refuses(r"vitt\.jsonl:2: \$\.id must be there", lambda: read(tmp_path, "vitt", [VITT[0], {"annotations": []}]))
    refuses(r"annotations not found: .*nowhere", read_timeline, tmp_path / "nowhere.json", "coin")
    broken = tmp_path / "broken.json"
    for content, rule in ((b'{"database": ', "JSON"), (b'{"database": "\xff"}', "UTF-8, got byte 0xff at 14")):
        broken.write_bytes(content)
        refuses(rf"broken\.json: .*{rule}", read_timeline, broken, "coin")
    nothing = {"database": {"v": {"duration": 5, "annotation": []}}}
    refuses(r"coin\.json: must hold at least one usable annotation", read, tmp_path, "coin", nothing)


def test_ego4d_narrations_lose_their_tags_however_they_are_written(tmp_path):
    tagged = {
        "C picks": ["#C C picks", "# C C picks", "#c c picks", "#C  C  picks", "#CC picks", "C picks"],
        "man A walks": ["#O man A walks", "# O man A walks"],
    }
    texts = [text for each in tagged.values() for text in each] + ["#C C picks # unsure", "#Unsure"]
    points = [{"timestamp_sec": 0.1 * i, "narration_text": text} for i, text in enumerate(texts)]
    timeline = read(tmp_path, "ego4d", {"v1": {"narration_pass_1": {"narrations": points}}})
    [record] = timeline.records
    assert [event.text for event in record.events] == [text for text, each in tagged.items() for _ in each]
    assert timeline.dropped == {"unsure": 2}


def test_every_problem_of_a_timeline_is_reported(tmp_path):
    span = {"duration": 9, "timestamps": [[0, 4], [5]], "sentences": ["a", 3]}
    cases = {
        "activitynet": ({"v_1": span, "v_2": span, "v_3": {}}, None, 3),
        "epic": (
            [*EPIC_ROWS, EPIC_ROWS[0].replace("04.37", "x"), "a,b", EPIC_ROWS[0].replace("P01_01,", "P9,")],
            None,
            3,
        ),
        "vitt": ([{"id": 3}, {"id": "other", "annotations": []}, VITT[0]], None, 2),
        "ego4d": (EGO4D, {"videos": [{"video_uid": "v1"}, *EGO4D_VIDEOS["videos"], EGO4D_VIDEOS["videos"][0]]}, 2),
    }
    for format, (document, durations, count) in cases.items():
        with pytest.raises(CollectedError) as found:
            read(tmp_path, format, document, durations)
        assert f": {count} problems\n" in str(found.value), format


def test_files_with_a_blank_end_and_videos_that_are_listed_twice(tmp_path):
    assert len(read(tmp_path, "epic", [*EPIC_ROWS, "", "   ", "," * 14]).records) == 2
    path = real_data("cases/timelines/anet_dup_video.json")
    refuses(r"anet_dup_video\.json: .*'v_1' 2 times", read_timeline, path, "activitynet")


def test_formats_are_named_and_never_guessed(tmp_path):
    refuses(r"format must be one of ego_exo4d, .*, got 'coco'", read_timeline, tmp_path / "x.json", "coco")
    for format, reader in FORMATS.items():
        lengths, rule = None if reader.durations else tmp_path, f"durations of the format {format} must (name|be null)"
        refuses(rule, read_timeline, tmp_path / "x.json", format, durations=lengths)
    refuses("point_seconds must be finite and > 0, got 0", read_timeline, tmp_path / "x.json", "coin", point_seconds=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("videos", -1), ("minutes", float("nan")), ("calibration_fraction", 1.0), ("split_by", "person")],
)
def test_an_excerpt_that_cannot_be_is_refused(name, value):
    records = tuple(StreamRecord(f"v{i}", 9.0, (Event(1.0, 2.0, "a"),)) for i in range(8))
    made = Timeline(records, {record.video_id: record.video_id for record in records}, {})
    chosen = {"videos": 0, "minutes": 0.0, "calibration_fraction": 0.5, "split_by": "group"}
    assert len(excerpt(made, **chosen).splits["test"]) == 4
    refuses(name, excerpt, made, **chosen | {name: value})
