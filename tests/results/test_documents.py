"""Documents: JSON in and out, and the rules that a file must keep."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import refuses

from jepa.results import AnswerResults, StreamEvaluation, StreamResults, is_kind, read_document


def test_a_document_survives_the_disk(stream_results, tmp_path):
    path = stream_results.save(tmp_path / "deep" / "folder")
    assert path.name == "results.json"
    for place in (path, path.parent):
        assert read_document(place, StreamResults, AnswerResults) == stream_results
    assert is_kind(path, StreamResults)
    assert not is_kind(path, StreamEvaluation)
    assert not is_kind(tmp_path / "none.json", StreamResults)


def test_the_real_sweep_has_something_to_say(stream_results):
    """The fixture that reports are tested on: policies that save and policies that do not, in two settings."""
    for setting in stream_results.settings.values():
        savings = {row.policy: row for row in setting.savings if row.headline}
        assert savings["gate"].reached
        assert savings["gate"].ratio.value > 1.2
        assert {row.policy for row in setting.operations} >= {"uniform", "gate", "gate_cache", "on_demand", "oracle"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(kind="jepa.streams/9"), "kind must be one of jepa.streams/4, jepa.answers/5, got"),
        (lambda d: d.update(kind={"a": 1}), "kind must be one of jepa.streams/4, jepa.answers/5, got {'a': 1}"),
        (lambda d: d.pop("seed"), "seed: Field required"),
        (lambda d: d.update(speed=1), "speed: Extra inputs are not permitted, got 1"),
        (lambda d: d["settings"]["dense"].update(step_rate_hz=0), r"settings.dense.step_rate_hz: .*, got 0"),
        (lambda d: d["settings"]["dense"]["curves"]["gate"].update(test=[]), r"settings.dense.curves.gate.test: "),
        (lambda d: d["settings"]["dense"]["areas"].update(lost={"speed": 1}), "settings.dense.areas.lost"),
        (lambda d: d["settings"]["dense"]["savings"][0].update(value=3.0), r"value of uniform must be one of its test"),
        (lambda d: d["settings"]["dense"]["savings"][0].update(reference_quality=float("nan")), "be a finite number"),
        (lambda d: d["settings"]["dense"]["operations"][0].update(policy="lost"), "'lost' must be a policy of curves"),
        (lambda d: [s.update(headline=False) for s in d["settings"]["dense"]["savings"]], "exactly one reference"),
        (lambda d: d["settings"]["dense"]["operations"][0]["ledger"]["encoder"].update(calls=-1), "ledger"),
    ],
)  # fmt: skip
def test_a_broken_rule_names_the_file_and_the_place(
    stream_results, tmp_path, change: Callable[[Any], object], message: str
):
    plain = json.loads(stream_results.to_json())
    change(plain)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(plain), encoding="utf-8")
    said = refuses(message, read_document, path, StreamResults, AnswerResults)
    assert said.startswith(f"results file {path}")
    assert "\n" not in said


@pytest.mark.parametrize("content", [None, b"", b"[1]", b'{"kind": "jepa.streams/4"', b"\xff", b"[" * 100_000])
def test_a_file_that_is_no_document_is_refused(tmp_path, content):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_bytes(content)
    refuses(f"results file {path}", read_document, path, StreamResults)


def test_a_failing_write_leaves_the_old_file_whole(stream_results, tmp_path, monkeypatch):
    path = stream_results.save(tmp_path)
    before = path.read_bytes()

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    refuses(r"results\.json must be writable, got: No space left on device", stream_results.save, tmp_path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
