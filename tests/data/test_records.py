"""The common record: round trip and errors that name file, line and field."""

from __future__ import annotations

import json

import pytest
from conftest import refuses

from jepa.data.records import Event, StreamRecord, read_records, write_records

RECORD = StreamRecord(
    "kitchen-1", 12.5, (Event(0.0, 3.25, "a man cuts «onions»"), Event(3.25, 12.5, "he fries them", ("he cooks",)))
)


def test_round_trip(tmp_path):
    path = tmp_path / "records.jsonl"
    write_records([RECORD, StreamRecord("empty", 1.0, ())], path)
    assert read_records(path) == [RECORD, StreamRecord("empty", 1.0, ())]
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert first["events"] == [[0.0, 3.25, "a man cuts «onions»"], [3.25, 12.5, "he fries them", "he cooks"]]
    assert RECORD.events[0].midpoint == 1.625


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "records.jsonl:2: not JSON: .* at column 2"),
        ("[]", "records.jsonl:2: must be a JSON object, got list"),
        ('{"duration": 1, "events": []}', "records.jsonl:2: a stream record needs 'video_id', got None"),
        ('{"video_id": "a", "duration": -1, "events": []}', "duration of 'a' must be > 0 seconds, got -1.0"),
        ('{"video_id": "a", "duration": 1, "events": [[0, 1]]}', r"events\[0\] must be \[start, end, text\]"),
        ('{"video_id": "a", "duration": 1, "events": [[0, 2, "x"]]}', "event 0 of 'a' must end within"),
        ('{"video_id": "a", "duration": 9, "events": [[1, 0, "x"]]}', "0 <= start <= end, got start 1.0, end 0.0"),
        ('{"video_id": "a", "duration": 9, "events": [[4, 5, "x"], [3, 9, "y"]]}', "event 1 .* got 3.0"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = tmp_path / "records.jsonl"
    path.write_text('{"video_id": "ok", "duration": 1, "events": []}\n' + line + "\n", encoding="utf-8")
    refuses(message, read_records, path)


def test_a_missing_file_is_named(tmp_path):
    refuses(r"stream records not found: .*nowhere.jsonl", read_records, tmp_path / "nowhere.jsonl")
