"""A slice of `scripts/fuzz.py`, and that it finds what it looks for."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from jepa.errors import InputError

SLOW = ("language", "results", "overrides", "checkpoint", "vjepa", "shard", "video")


@pytest.fixture
def fuzz(script):
    return script("fuzz")


def test_a_slice_of_the_inputs_gives_values_and_refusals_alone(fuzz, tmp_path, monkeypatch):
    names = [name for name in fuzz.READERS if not name.startswith(SLOW)]
    found = Counter[str]()
    with fuzz.listening() as opened:
        for name in names:
            (folder := tmp_path / name).mkdir()
            monkeypatch.chdir(folder)
            reader = fuzz.READERS[name]
            path, seeds = fuzz.seeds_of(reader, folder)
            for number in range(5 * reader.share // 4):
                rng = Random(f"0 {name} {number}")
                data = fuzz.changed(rng.choice(seeds), seeds, reader.form, rng)
                found[fuzz.outcome(reader, path, folder, data)] += 1
        assert not opened()
    assert found.keys() == {"value", "refusal"}
    assert min(found.values()) > 100


def _write_outside(path: Path) -> None:
    (path.parents[1] / "outside").write_text("x")


def _connect(path: Path) -> None:
    socket.create_connection(("127.0.0.1", 9))


def _refuse(path: Path) -> None:
    raise InputError("a name: \ud800")


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda path: path.read_text(), "value"),
        (lambda path: {}["a"], "KeyError at ?: 'a'"),
        (lambda path: os.system("true"), "reached os.system"),
        (_write_outside, "reached open"),
        (_connect, "reached socket."),
        (_refuse, "a message that cannot be printed"),
        (lambda path: (path.parent / "was_run").touch(), "code was run"),
    ],
)
def test_what_is_wrong_is_seen(fuzz, tmp_path, read, expected):
    (folder := tmp_path / "folder").mkdir()
    found = fuzz.outcome(fuzz.Reader(lambda folder: [folder / "a"], read), folder / "a", folder, b"x")
    assert found.startswith(expected)
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda path: time.sleep(60), "more than"),
        (lambda path: os.abort(), "ended by -6"),
        (lambda path: bytearray(4 << 30), "MemoryError at ?"),
    ],
)
def test_a_reader_that_does_not_come_back_is_found_and_kept(fuzz, tmp_path, monkeypatch, read, expected):
    def make(folder: Path) -> list[Path]:
        (folder / "a").write_bytes(b"abc")
        return [folder / "a"]

    monkeypatch.setattr(fuzz, "READERS", {"odd": fuzz.Reader(make, read)})
    monkeypatch.setattr(fuzz, "SECONDS", 0.2 if expected == "more than" else 20.0)  # to end otherwise may take a while
    monkeypatch.setattr(fuzz, "atheris", None)
    tally = fuzz.fuzz("odd", 0, 2, tmp_path, fuzz.tqdm(disable=True))
    assert (tally["inputs"], tally["findings"]) == (2, 2)
    assert expected in (tmp_path / "findings.txt").read_text(encoding="utf-8")
    [kept] = tmp_path.glob("odd-*.bin")
    if expected.startswith("Memory"):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(fuzz, "READERS", {"odd": fuzz.Reader(make, Path.read_bytes)})
        assert fuzz.replay(kept) == f"value: {kept.read_bytes()!r}"
