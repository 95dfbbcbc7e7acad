"""The report room, on a made-up results document of two settings and twelve policies of all kinds."""

from __future__ import annotations

import base64
import copy
import html.parser as html_parser
import io
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.font_manager
import matplotlib.image
import numpy as np
import PIL.ImageFont
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepa.errors import InputError
from jepa.report import (
    SCHEMA,
    html,
    markdown,
    plots,
    read_results,
    summary,
    tables,
    validate_results,
    write_report,
    write_results,
)
from jepa.report.schema import write_whole

HOSTILE = '<script>alert("1")</script> & $x_1$ | `code` *bold* \x00\x1b[31m\nnext #010203'

# --- A results document.


def _interval(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def _part(calls: int, forward_passes: int, tokens: int, seconds: float, flops: int = 0) -> dict[str, Any]:
    return {"calls": calls, "forward_passes": forward_passes, "tokens": tokens, "flops": flops, "seconds": seconds}


def _thumbnail(rng: np.random.Generator, time: float) -> dict[str, Any]:
    pixels = rng.normal(0.35, 0.06, (32, 32, 3))
    x, y = 13 + 9 * np.sin(time / 5), 13 + 9 * np.cos(time / 7)
    pixels[int(y) : int(y) + 7, int(x) : int(x) + 7] = [(0.8, 0.3, 0.2), (0.2, 0.5, 0.8)][int(time / 20) % 2]
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, pixels.clip(0, 1), format="png")
    return {"time": time, "png": base64.b64encode(buffer.getvalue()).decode()}


POLICIES = {  # label, causal, latency, knob, quality at high rates, rate at which half of it is reached
    "uniform": ("uniform", True, "none", "rate_hz", 6.9, 0.12),
    "uniform_pool": ("uniform, pooled", True, "none", "rate_hz", 7.1, 0.13),
    "ward_midpoint": ("Ward, midpoint", False, "the whole stream", "rate_hz", 7.0, 0.05),
    "ward_mean": ("Ward, mean", False, "the whole stream", "rate_hz", 7.5, 0.045),
    "gate": ("gate", True, "2 steps after a boundary", "threshold", 7.4, 0.055),
    "drift": ("cosine drift", True, "1 step", "threshold", 6.95, 0.11),
    "forecast": ("forecast error", True, "1 step", "threshold", 6.8, 0.2),
    "variance": ("local variance", True, "1 step", "threshold", 6.5, 0.3),
    "optimal": ("optimal segments", False, "the whole stream", "rate_hz", 7.45, 0.047),
    "gate_cache": ("gate + cache", True, "2 steps after a boundary", "threshold", 7.1, 0.06),
    "selective": ("selective encoding", True, "1 step", "threshold", 6.6, 0.06),
    "oracle": ("oracle boundaries", False, "the whole stream", "none", 7.6, 0.05),
}
RATES = (0.03, 0.05, 0.08, 0.12, 0.2, 0.35, 0.6, 1.0, 2.0)
TOLERANCES = (0.0, 0.05)
STEPS = 2.0  # a second
# FLOPs of a slot, a step, a step and a decode
FLOPS = {"detector": 10_000, "encoder": 5_000_000, "predictor": 2_000_000, "decoder": 40_000_000}
PHRASES = (
    "a small red circle starts to blink",
    "the blue square moves to the left",
    "the green triangle grows",
    "two shapes collide and move apart",
    "nothing happens",
    "a large yellow star leaves the picture",
)


def _curve(policy: str, hardness: float) -> dict[str, Any]:
    name, causal, latency, knob, best, half = POLICIES[policy]
    points = []
    for rate in RATES if knob != "none" else (0.2,):
        value = best / (1 + (half * hardness / rate) ** 1.6)
        shown = {"rate_hz": rate, "threshold": 2.0 / rate, "none": 0.0}[knob]
        points.append({"knob": shown, "decodes_per_second": rate, "cider_d": _interval(value, 0.3)})
    test: list[dict[str, Any]] = copy.deepcopy(points)
    for point in test:
        overlap = 0.09 * point["cider_d"]["value"]
        point["latency"], point["state"] = f"{latency}, knob {point['knob']:g}", "2 latents"
        point["dense"] = {
            "temporal_f1": overlap, "temporal_f1_merged": overlap + 0.01, "soda_c": overlap / 2,
            "tim_redun": 1.5 * point["decodes_per_second"], "tim_cover": overlap + 0.2,
        }  # fmt: skip
        if policy == "gate_cache":
            error = {"value": 0.08, "low": 0.06, "high": 0.11, "wrong": 80, "hits": 310, "lookups": 1000}
            point["cache"] = {"threshold": 0.0432, "error": error}
    return {
        "label": name, "causal": causal, "oracle": policy == "oracle",
        "knob": knob, "selects_steps": policy == "selective",
        "cache": {"capacity": 64, "shared": False, "error_rate": 0.1} if policy == "gate_cache" else None,
        "test": test, "calibration": points,
    }  # fmt: skip


def _saving(curves: dict[str, Any], policy: str, reference: float, tolerance: float, dense: bool) -> dict[str, Any]:
    target = next(p for p in curves["uniform"]["test"] if p["knob"] == reference)
    level = target["cider_d"]["value"]
    wanted = level * (1 - tolerance)
    chosen = next((p for p in curves[policy]["test"] if p["cider_d"]["value"] >= wanted), None)
    row: dict[str, Any] = {
        "reference": {"policy": "uniform", "rate_hz": reference}, "tolerance": tolerance,
        "headline": reference == 1.0 and tolerance == 0, "policy": policy, "knob": None, "reached": False,
        "quality": None, "reference_quality": level, "quality_difference": None,
        "temporal_f1_difference": None, "decodes_per_second": None,
        "reference_decodes_per_second": reference, "saving": None,
        "reason": "no knob kept the quality on the calibration streams",
    }  # fmt: skip
    if chosen is None or (dense and policy == "ward_midpoint"):
        return row
    short = 0.4 if dense and policy in ("gate", "uniform_pool") else 0.0
    value, ratio = chosen["cider_d"]["value"] - short, reference / chosen["decodes_per_second"]
    merged = chosen["dense"]["temporal_f1_merged"] - target["dense"]["temporal_f1_merged"]
    return row | {
        "knob": chosen["knob"], "reached": short == 0, "quality": value,
        "quality_difference": _interval(value - level, 0.11), "temporal_f1_difference": _interval(merged, 0.02),
        "decodes_per_second": chosen["decodes_per_second"], "saving": _interval(ratio, 0.12 * ratio),
        "reason": "the test quality is below the reference's" if short else "",
    }  # fmt: skip


def _operating(policy: str, knob: float, rate: float) -> dict[str, Any]:
    seconds, selects = 16 * 180.0, policy == "selective"
    steps, calls = int(seconds * STEPS * (0.25 if selects else 1)), int(rate * seconds)
    slots = int(seconds * STEPS) if selects else 0
    wait = 0.0 if policy.startswith("uniform") else 3.4
    lookups, hits = (1000, 310) if policy == "gate_cache" else (0, 0)
    flops = {"detector": slots, "encoder": steps, "predictor": steps, "decoder": calls}
    flops = {part: count * FLOPS[part] for part, count in flops.items()}
    return {
        "policy": policy,
        "knob": knob,
        "seconds_estimated": selects,
        "ledger": {
            "detector": _part(slots, 0, 0, 0.0005 * slots, flops["detector"]),
            "encoder": _part(steps, steps, 0, 21.3 * steps / 5760, flops["encoder"]),
            "predictor": _part(steps, steps, 0, 6.1 * steps / 5760, flops["predictor"]),
            "decoder": _part(calls, 9 * calls, 9 * calls, 0.011 * calls, flops["decoder"]),
            "cache": {
                "lookups": lookups, "hits": hits, "audited": hits, "wrong_hits": 80 if hits else 0,
                "seconds": 0.0001 * lookups, "flops": 2 * 64 * 128 * lookups,
            },
            "stream_seconds": seconds,
            "steps": steps,
            "latency_seconds": {"count": calls, "mean": wait, "p50": wait, "p95": 2 * wait, "max": 3 * wait},
        },
    }  # fmt: skip


def _setting(rng: np.random.Generator, name: str, density: float, hardness: float) -> dict[str, Any]:
    curves = {policy: _curve(policy, hardness) for policy in POLICIES}
    savings = [
        _saving(curves, policy, reference, tolerance, name == "dense")
        for reference in (1.0, 0.35)
        for tolerance in TOLERANCES
        for policy in curves
    ]
    operations = [_operating("uniform", 1.0, 1.0)]
    for row in savings:
        if row["headline"] and row["knob"] is not None and row["policy"] != "uniform":
            operations.append(_operating(row["policy"], row["knob"], row["decodes_per_second"]))
    lean = next(row for row in savings if row["policy"] == "selective" and row["tolerance"] and row["knob"])
    operations.append(_operating("selective", lean["knob"], lean["decodes_per_second"]))
    area = {"difference": _interval(0.43, 0.1), "low_rate": 0.03, "high_rate": 2.0}
    areas: dict[str, Any] = {policy: copy.deepcopy(area) for policy in curves if policy != "uniform"}
    areas["oracle"] = {"difference": None, "low_rate": None, "high_rate": None}
    events, time = [], 1.0
    while time < 174:
        end = min(time + float(rng.uniform(0.5, 1.5)) / density * 0.9, 179.0)
        events.append({"start": time, "end": end, "text": str(rng.choice(PHRASES))})
        time = end + float(rng.choice([0.0, 0.5, 2.0]))
    uniform = [
        {"time": t, "start": t, "end": t, "emitted_at": t + 0.4, "text": str(rng.choice(PHRASES)), "source": "decoder"}
        for t in np.arange(0.0, 180.0).tolist()
    ]
    gate = [
        {
            "time": (e["start"] + e["end"]) / 2, "start": e["start"] + 0.5, "end": e["end"],
            "emitted_at": e["end"] + 1.4, "text": e["text"], "source": "decoder",
        }
        for e in events
    ]  # fmt: skip
    cached = [decode | {"source": "cache" if index % 3 else "decoder"} for index, decode in enumerate(gate)]
    return {
        "description": "Coloured shapes on moving, noisy backgrounds.",
        "step_rate_hz": STEPS,
        "events_per_second": density,
        "mean_event_seconds": 0.95 / density,
        "repeated_events": 0.35,
        "streams": {"calibration": 8, "test": 16, "seconds_each": 180.0},
        "curves": curves,
        "savings": savings,
        "areas": areas,
        "operations": operations,
        "strip": {
            "video_id": f"{name}-test-0003",
            "duration": 180.0,
            "thumbnails": [_thumbnail(rng, float(t)) for t in range(0, 180, 2)],
            "events": events,
            "decodes": {"uniform": uniform, "gate": gate, "gate_cache": cached},
        },
    }


def make_results() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    curve: list[dict[str, Any]] = [
        {"step": step, "loss": 5 * 0.996**step + 0.4 + 0.1 * float(rng.normal())} for step in range(0, 900, 15)
    ]
    for row in curve[::6]:
        row["retrieval@1"] = 0.75 * (1 - 0.995 ** row["step"])
        row["rankme"] = 8 + 0.04 * row["step"]
        row["unpaired_cosine"] = None if row["step"] == 0 else 0.1
    questions = {
        text: {"accuracy": 0.8, "candidates": n, "chance": 1 / n, "queries": 120}
        for text, n in (("what colour", 8), ("what happens", 11), ("how many", 2))
    }
    return {
        "schema": SCHEMA,
        "created": "2026-11-23T10:00:00Z",
        "name": "demo",
        "seed": 0,
        "config": {"model": {"width": 192}, "rates": [1.0, 0.35], "note": None},
        "code": {"version": "0.1.0", "commit": "3f9c2ab81d", "dirty": False},
        "libraries": {"python": "3.11.7", "torch": "2.11.0", "numpy": "2.4.6"},
        "device": {"type": "cpu", "name": "AMD EPYC 7763", "threads": 2},
        "parameters": [
            {"role": "X-Encoder", "total": 811_264, "trainable": 811_264, "modules": "timm ViT, 6 × 128"},
            {"role": "Predictor", "total": 606_080, "trainable": 606_080, "modules": "transformer, 3 × 128"},
            {"role": "Y-Encoder", "total": 421_504, "trainable": 421_504, "modules": "transformer, 2 × 128"},
            {"role": "Y-Decoder", "total": 540_992, "trainable": 0, "modules": "prefix decoder, 2 × 128"},
        ],
        "training": {
            "steps": 900, "samples": 115_200, "seconds": 250.4, "curve": curve,
            "stages": [
                {"name": "jepa", "steps": 900, "seconds": 190.2},
                {"name": "decoder", "steps": 600, "seconds": 60.2},
            ],
        },
        "scores": {
            "retrieval": {"candidates": 240, "queries": 240, "r@1": 0.712, "r@5": 0.93, "chance": 1 / 240},
            "classification": {"candidates": 11, "queries": 480, "accuracy": 0.886, "chance": 1 / 11},
            "question_answering": {"queries": 360, "accuracy": 0.8, "by_question": questions},
            "captioning": {"queries": 240, "cider_d": 6.48, "exact_match": 0.61},
            "geometry": {
                "retrieval@1": 0.71, "rankme": 44.2, "paired_cosine": 0.91, "unpaired_cosine": -0.013,
            },
        },
        "settings": {
            "everyday": _setting(rng, "everyday", 0.16, 1.0), "dense": _setting(rng, "dense", 0.4, 2.2),
        },
    }  # fmt: skip


def make_operations() -> dict[str, Any]:
    """Of 900 steps of training: the decoder had no part in them."""
    parts = {
        "encoder": (115_200, 6e12, 4e9, 60.0), "predictor": (115_200, 3e12, 3e9, 30.0),
        "y_encoder": (230_400, 9.9e11, 2e9, 20.0), "decoder": (0, 0, 0, 0.0), "loss": (900, 1e10, 7200, 4.0),
        "optimizer": (900, 0, 1e9, 6.0),
    }  # fmt: skip
    keys = ("calls", "flops", "weight_bytes", "seconds")
    counts = {part: (calls, int(flops), int(read), time) for part, (calls, flops, read, time) in parts.items()}
    return {"steps": 900, "parts": {part: dict(zip(keys, row, strict=True)) for part, row in counts.items()}}


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return make_results()


@pytest.fixture(scope="module")
def page(results: dict[str, Any]) -> str:
    return html(results)


@pytest.fixture
def small(results: dict[str, Any]) -> dict[str, Any]:
    """One setting and short lists, to be changed by a test."""
    document = copy.deepcopy(results)
    setting = document["settings"] = {"everyday": document["settings"]["everyday"]}
    strip = setting["everyday"]["strip"]
    strip["duration"] = 60.0
    for name in ("thumbnails", "events"):
        del strip[name][2:]
    for decodes in strip["decodes"].values():
        del decodes[2:]
    everyday = setting["everyday"]
    for policy in ("ward_midpoint", "drift", "forecast", "variance", "optimal"):
        del everyday["curves"][policy], everyday["areas"][policy]
    for kind in ("savings", "operations"):
        everyday[kind] = [row for row in everyday[kind] if row["policy"] in everyday["curves"]]
    del everyday["savings"][2 * len(everyday["curves"]) :]  # one reference, two tolerances
    for policy, curve in everyday["curves"].items():
        rows = [*everyday["savings"], *everyday["operations"]]
        knobs = {row["knob"] for row in rows if row["policy"] == policy}
        for split in ("test", "calibration"):
            curve[split] = [point for point in curve[split] if point["knob"] in knobs]
    del document["training"]["curve"][8:]
    return document


# --- The schema.

FREE = re.compile(  # objects whose keys are names
    r"results\.(config.*|libraries|settings|settings\.\w+\.(curves|areas|strip\.decodes)|training\.curve\[\d+\]"
    r"|scores\.question_answering\.by_question)$"
)
OPTIONAL = re.compile(r"results\.settings\.\w+\.operations\[\d+\]\.ledger\.cache\.flops$")


def _kinds(document: Any) -> Iterator[tuple[str, Any, Any]]:
    """Of `_walk`, the first two items of each list and of each kind of policy: the others have the same checks."""
    seen: dict[str, int] = {}
    for place, container, key in list(_walk(document)):
        kind = re.sub(r"\[\d+\]", "[]", re.sub(r"\.(curves|areas|decodes)\.\w+", r".\1.*", place))
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] <= 2 or ".cache" in place:
            yield place, container, key


def _walk(value: Any, path: str = "results") -> Iterator[tuple[str, Any, Any]]:
    """(path, container, key) of everything inside a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        place = f"{path}.{key}" if isinstance(value, dict) else f"{path}[{key}]"
        yield place, value, key
        yield from _walk(item, place)


def test_every_required_key_is_named_when_it_is_missing(small):
    validate_results(small)
    tried = 0
    for place, container, key in _kinds(small):
        parent = place.removesuffix(f".{key}")
        if isinstance(container, dict) and not FREE.match(parent) and not OPTIONAL.match(place):
            value = container.pop(key)
            with pytest.raises(InputError, match=re.escape(f"{parent} must have the key '{key}', got [")):
                validate_results(small)
            container[key] = value
            tried += 1
    assert tried > 200
    validate_results(small)


@pytest.mark.parametrize("wrong", [float("nan"), float("-inf"), {1, 2}, b"bytes", []])
def test_every_leaf_refuses_what_is_not_finite_plain_data(small, wrong):
    """A list is plain data: it is for the schema alone to refuse, where it says what a leaf is."""
    for place, container, key in _kinds(small):
        free = wrong == [] and place.startswith("results.config")
        if not isinstance(container[key], (dict, list)) and not free:
            value, container[key] = container[key], wrong
            with pytest.raises(InputError, match=re.escape(f"{place} must ")):
                validate_results(small)
            container[key] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("seed", True, "results.seed must be a whole number, got True"),
        ("device.threads", -1, "results.device.threads must be a whole number >= 0, got -1"),
        ("scores.retrieval.r@1", 1.5, "results.scores.retrieval.r@1 must be a finite number >= 0 and <= 1"),
        ("settings", {}, "results.settings must be an object with at least one entry, got {}"),
        ("settings.everyday.step_rate_hz", 0, "step_rate_hz must be a finite number > 0, got 0"),
        ("settings.everyday.curves.gate.test", [], "curves.gate.test must be a list of at least 1, got []"),
        (
            "settings.everyday.curves.gate.causal",
            "yes",
            "curves.gate.causal must be true or false, got 'yes'",
        ),
        (
            "settings.everyday.strip.thumbnails.0.png",
            "AAAA",
            "thumbnails[0].png must be a PNG file in base64",
        ),
        ("settings.everyday.strip.events.0.end", 0.0, "strip.events[0] must have start <= end, got"),
        ("settings.everyday.savings.0.saving.low", 9.0, "savings[0].saving must have low <= high, got"),
        ("settings.everyday.savings.4.policy", "other", "savings[4].policy must be a policy of"),
        ("settings.everyday.savings.4.reference.policy", "other", "savings[4].reference.policy must be a policy of"),
        ("settings.everyday.operations.1.policy", "other", "operations[1].policy must be a policy of"),
        ("settings.everyday.strip.decodes.other", [], "strip.decodes.other must be a policy of"),
        ("settings.everyday.areas.other", None, "areas.other must be an object, got None"),
        ("settings.everyday.operations.1.knob", 0.7, "operations[1].knob must be a knob of the policy's test curve ["),
        ("settings.everyday.savings.3.knob", 0.7, "savings[3].knob must be a knob of the policy's test curve ["),
        ("settings.everyday.savings.0.saving", None, "savings[0].saving must be null exactly when the policy decodes"),
        ("settings.everyday.curves.gate_cache.test.0.cache.error.low", 0.09, "error must have low <= value <= high"),
        ("settings.everyday.curves.gate_cache.test.0.cache.error.wrong", 311, "must have wrong <= hits <= lookups"),
        ("settings.everyday.strip.decodes.gate.0.source", "memory", "source must be one of decoder, cache, bank, got"),
        (
            "settings.everyday.savings.0.knob",
            None,
            "savings[0].quality must be null exactly when the knob is",
        ),
        ("settings.everyday.savings.9.headline", True, "savings must have a headline against exactly one"),
    ],
)
def test_a_broken_rule_names_place_rule_and_value(small, path, value, message):
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    container = small
    for key in parents:
        container = container[key]
    container[last] = value
    with pytest.raises(InputError, match=re.escape(message)):
        validate_results(small)


def test_another_version_is_refused_with_both_versions_named(small):
    small["schema"] = "jepa.results/1"
    with pytest.raises(InputError, match=r"'jepa\.results/2'.*, got 'jepa\.results/1'"):
        validate_results(small)


def test_keys_beyond_the_schema_are_kept(small, tmp_path):
    small["settings"]["everyday"]["operations"][0]["ledger"]["latencies"] = [0.5, 1.5]
    write_results(small, tmp_path / "results.json")
    assert read_results(tmp_path / "results.json") == small


# --- Files.


def test_round_trip(results, tmp_path):
    write_results(results, tmp_path / "deep" / "results.json")
    assert read_results(tmp_path / "deep" / "results.json") == results
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["results.json"]


def test_a_bad_document_is_not_written(small, tmp_path):
    path = tmp_path / "results.json"
    write_results(small, path)
    before = path.read_bytes()
    small["training"]["curve"][0]["loss"] = float("nan")
    with pytest.raises(InputError, match=r"results\.training\.curve\[0\]\.loss must be a finite number, got nan"):
        write_results(small, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"", "must be whole, valid JSON"),
        (b'{"schema": "jepa.results/2", "name": "de', "must be whole, valid JSON"),
        (b"\xff\xfe\x00", "must be whole, valid JSON"),
        (b"[1, 2]", "results must be an object, got [1, 2]"),
        (b'{"schema": "jepa.results/0"}', "got 'jepa.results/0'"),
    ],
)
def test_a_file_that_is_no_results_document(tmp_path, content, message):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_results(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nan_in_a_file_is_refused(small, tmp_path):
    small["scores"]["captioning"]["cider_d"] = float("nan")
    (tmp_path / "results.json").write_text(json.dumps(small))
    with pytest.raises(InputError, match=r"scores\.captioning\.cider_d must be a finite number, got nan"):
        read_results(tmp_path / "results.json")


def test_a_report_made_elsewhere_compares_no_wall_times(small):
    device = {"type": "cpu", "name": "another", "threads": 1}
    code = {"version": "0.2.0", "commit": None, "dirty": None}
    small["report"] = {"created": "2026-12-01T00:00:00Z", "code": code, "device": device}
    small["settings"]["everyday"]["one_device"] = False
    validate_results(small)
    rows = dict(tables.provenance_table(small).groups[0][1])
    assert rows["report"] == (
        "2026-12-01T00:00:00Z; version 0.2.0, commit unknown, state of the tree unknown; cpu, another, 1 threads"
    )
    assert rows["device"] == "cpu, AMD EPYC 7763, 2 threads"
    setting = small["settings"]["everyday"]
    timed = [tables.operations_ratio(setting, row) for row in setting["operations"]]
    assert all(ratios.seconds is None and ratios.flops is not None for ratios in timed)
    assert "wall time: " not in tables.headline(setting).compute
    del small["report"]["device"]
    with pytest.raises(InputError, match=r"results\.report must have the key 'device'"):
        validate_results(small)


def test_a_failing_write_leaves_the_old_files_whole(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("results.json", "report.md", "report.html")]
    write_whole({path: path.name.encode() for path in paths})
    whole, written = Path.write_bytes, []

    def full(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) == 3:
            whole(path, content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        return whole(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="must be writable, got: No space left on device"):
        write_whole(dict.fromkeys(paths, b"second run"))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == {path: path.name.encode() for path in paths}


def test_a_folder_that_cannot_be_made(small, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="must be writable"):
        write_results(small, tmp_path / "file" / "results.json")


def test_report_files(small, tmp_path):
    paths = write_report(small, tmp_path / "report")
    assert {path.name for path in (tmp_path / "report").iterdir()} == set(paths)
    assert set(paths) == {"results.json", "report.md", "report.html", "report.png"}
    assert read_results(paths["results.json"]) == small
    assert paths["report.md"].read_text(encoding="utf-8") == markdown(small)
    assert paths["report.html"].read_text(encoding="utf-8") == html(small)
    pixels = matplotlib.image.imread(paths["report.png"])
    assert pixels.shape[1] == 1800
    surface = np.array([int(plots.LIGHT["surface"][i : i + 2], 16) for i in (1, 3, 5)]) / 255
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):  # nothing is cut off at the borders
        np.testing.assert_allclose(edge[:, :3], np.broadcast_to(surface, edge[:, :3].shape), atol=1e-3)


# --- The page.


class Reader(html_parser.HTMLParser):
    """Checks nesting; collects the text, the ids and whatever is loaded or referred to."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.titles: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for key, value in attrs:
            value = value or ""
            if key == "id":
                self.ids.append(value)
            if key in ("src", "href", "xlink:href"):
                self.references.append(value)
            self.references += re.findall(r"url\(([^)]*)\)", value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["style"]:
            assert "url(" not in data
            assert "@import" not in data
        elif self.open[-1:] == ["title"]:
            self.titles.append(data)
        else:
            self.text += data


def _words(text: str) -> str:
    return " ".join(text.split())


def test_page_is_well_formed_and_loads_nothing(page):
    reader = Reader(page)
    assert len(page.encode()) < 2e6
    assert len(reader.ids) == len(set(reader.ids))
    assert not {"script", "link", "iframe", "object", "base"} & set(reader.tags)
    assert "http" not in page
    for reference in reader.references:
        if reference.startswith("#"):
            assert reference[1:] in reader.ids
        else:
            assert reference.startswith("data:image/png;base64,")
    assert reader.tags.count("h1") == 1
    assert reader.tags.count("image") > 50


def test_figures_follow_the_theme(page):
    assert not any(colour in page for colour in plots.THEMED.values())
    used = set(re.findall(r"var\((--[\w-]+)\)", page))
    light, dark = re.search(r":root \{(.*?)\}.*?:root \{(.*?)\}", page, re.S).groups()
    defined = set(re.findall(r"(--[\w-]+):", light))
    assert used <= defined
    assert {f"--{role}" for role in plots.DARK} <= set(re.findall(r"(--[\w-]+):", dark))
    assert "@media screen and (prefers-color-scheme: dark)" in page


@pytest.mark.parametrize("colours", [plots.LIGHT, plots.DARK])
def test_contrast(colours):
    """WCAG 2.2, 1.4.3 and 1.4.11: 4.5 for text, 3 for graphics (relative luminance as defined there)."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(colour: str) -> float:
        dark, light = sorted((luminance(colour), luminance(colours["surface"])))
        return (light + 0.05) / (dark + 0.05)

    for role, colour in colours.items():
        if role not in ("surface", "grid"):
            assert contrast(colour) >= (4.5 if role in ("ink", "muted") else 3), role


def _signed(change: dict[str, float]) -> str:
    value, low, high = (f"{round(change[key], 2) + 0:+.2f}".replace("-", "−") for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def test_every_number_of_the_savings_is_in_page_and_markdown(results, page):
    texts = [_words(Reader(page).text), _words(markdown(results))]
    checked = 0
    for setting in results["settings"].values():
        for saving in filter(lambda saving: saving["headline"], setting["savings"]):
            expected = [f"{saving['reference_quality']:.2f}", f"{saving['reference_decodes_per_second']:.3f}"]
            if saving["knob"] is None:
                expected.append(saving["reason"])
            else:
                ratio = saving["saving"]
                expected += [
                    f"{saving['quality']:.2f}",
                    f"{saving['decodes_per_second']:.3f}",
                    f"{ratio['value']:.2f}× ({ratio['low']:.2f} to {ratio['high']:.2f})",
                    _signed(saving["quality_difference"]),
                    _signed(saving["temporal_f1_difference"]),
                ]
            for text in texts:
                for number in expected:
                    assert number in text
                    checked += 1
    assert checked > 200


def _cells(table: tables.Table, policy: str) -> dict[str, str]:
    """Column -> cell of the first row of a policy."""
    rows = [row for _, rows in table.groups for row in rows]
    assert all(len(row) == len(table.header) for row in rows)
    return dict(zip(table.header, next(row for row in rows if row[0] == policy), strict=True))


def test_all_references_and_tolerances_stand_in_one_table(results):
    """A column for each pair, a row for each policy; intervals, brackets and stars as the savings say."""
    setting = results["settings"]["dense"]
    table = tables.matrix_table(setting)
    names = ("uniform at 1 Hz", "uniform at 1 Hz, −5 %", "uniform at 0.35 Hz", "uniform at 0.35 Hz, −5 %")
    assert table.header[1:5] == names
    marks = set()
    for saving in setting["savings"]:
        shift = ", −5 %" if saving["tolerance"] else ""
        column = f"uniform at {saving['reference']['rate_hz']:g} Hz{shift}"
        cell = _cells(table, tables.label(setting["curves"][saving["policy"]]))[column]
        if saving["knob"] is None:
            assert cell == "–"
            continue
        found = re.fullmatch(r"(\[?)([\d.]+)×(\*?) \(([\d.]+) to ([\d.]+)\)(\]?)", cell)
        numbers = [saving["saving"][end] for end in ("value", "low", "high")]
        assert [float(found[group]) for group in (2, 4, 5)] == pytest.approx(numbers, abs=0.005)
        assert (found[1] + found[6] == "[]") == (not saving["reached"])
        assert (found[3] == "*") == (saving["temporal_f1_difference"]["value"] < 0)
        marks |= set(cell)
    assert {"[", "*"} <= marks
    assert _cells(table, "gate")["curves, CIDEr-D"] == "+0.43 (+0.33 to +0.53)"
    assert _cells(table, "gate")["at decodes/s"] == "0.03–2"
    for policy in ("uniform", "oracle boundaries (upper bound)"):  # the reference's own curve; no common range
        assert _cells(table, policy)["curves, CIDEr-D"] == "–"


def test_the_intervals_of_a_wide_table_stand_below_their_values_in_one_piece(results, page):
    """A cell breaks before its bracket and nowhere else: a phone shows two short lines."""
    setting = results["settings"]["dense"]
    cells = [cell for _, rows in tables.matrix_table(setting).groups for row in rows for cell in row[1:]]
    wanted = [cell.replace(" to ", "&nbsp;to&nbsp;") for cell in cells]
    assert sum("&nbsp;" in cell for cell in wanted) > 10
    stacked = re.findall(r'<div class="stacked">(.*?)</table>', page, re.DOTALL)
    found = [re.findall(r'<td class="n">(.*?)</td>', each) for each in stacked]
    assert wanted in found
    assert all(cell.count(" ") == 1 for cell in wanted if "&nbsp;" in cell)
    assert ".stacked td.n { white-space: normal; }" in page


def test_headline_is_the_best_causal_policy(results, page):
    words = tables.headline(results["settings"]["everyday"])
    gate = next(s for s in results["settings"]["everyday"]["savings"] if s["headline"] and s["policy"] == "gate")
    assert words.figure == f"{gate['saving']['value']:.2f}×"  # Ward's is larger, and not causal
    assert "fewer decoder calls at the quality of uniform at 1 Hz" in words.claim
    text = _words(Reader(page).text)
    assert text.index(words.figure) < text.index(_words(words.claim)) < text.index("Quality against operations")
    assert f"- **everyday: {words.figure}** fewer decoder calls" in markdown(results)
    for figure in (words, tables.headline(results["settings"]["dense"])):
        for shown in (text, _words(markdown(results))):
            assert figure.compute_figure in shown
            assert _words(figure.compute) in shown


def test_what_streams_share_is_no_headline(results):
    setting = copy.deepcopy(results["settings"]["everyday"])
    best = tables.best_causal(setting)["policy"]
    setting["curves"][best]["cache"] = {"capacity": 64, "shared": True, "error_rate": 0.1, "bank": False}
    assert tables.best_causal(setting)["policy"] != best


def test_headline_of_compute_says_what_is_lost(results, small):
    """What saves most FLOPs at equal quality and what saves more; without the former the latter, with its loss.

    Never an oracle's; in words where none were counted.
    """
    dense = copy.deepcopy(results["settings"]["dense"])
    selective = dense["operations"][-1]
    quality = next(p for p in dense["curves"]["selective"]["test"] if p["knob"] == selective["knob"])["cider_d"][
        "value"
    ]
    level = dense["savings"][0]["reference_quality"]
    spent = {part: selective["ledger"][part]["flops"] for part in tables.PARTS}
    calls = 16 * 180
    most = f"{(2 * calls * 7e6 + calls * 40e6) / sum(spent.values()):.2f}×"
    words = tables.headline(dense)
    assert words.compute_figure < most
    assert f"at equal quality: {most} by selective encoding (threshold 3.33), CIDEr-D difference −" in words.compute
    for saving in dense["savings"]:
        saving["reached"] = False
    words = tables.headline(dense)
    assert words.compute_figure == most
    assert "selective encoding (threshold 3.33), which needs the past" in words.compute
    assert f"{100 * (level - quality) / level:.3g} % of the quality is lost: CIDEr-D {quality:.2f}" in words.compute
    assert words.compute.endswith("(estimated).")

    setting = small["settings"]["everyday"]
    assert "Ward, mean (0.2 Hz), which needs the whole stream; quality is kept" in tables.headline(setting).compute
    for row in setting["operations"]:
        if row["policy"] == "oracle":
            row["ledger"]["encoder"]["flops"] = row["ledger"]["decoder"]["flops"] = 1
    assert "Ward, mean (0.2 Hz)" in tables.headline(setting).compute
    setting["operations"][0]["ledger"]["decoder"]["flops"] = 0
    words = tables.headline(setting)
    assert words.compute_figure == "not counted"
    assert "FLOPs end to end were not counted" in words.compute
    assert "compute: not counted**" in markdown(small)


def test_not_reached_is_said_in_words(small):
    """Short on the test streams; no operating point at all; reached only with more decodes."""
    setting = small["settings"]["everyday"]
    setting["savings"] = [s for s in setting["savings"] if s["policy"] not in ("gate_cache", "selective")]
    causal = [s for s in setting["savings"] if s["headline"] and s["policy"] in ("uniform_pool", "gate")]
    for saving, quality in zip(causal, (5.25, 5.5), strict=True):
        saving |= {"reached": False, "quality": quality, "reason": "fell short"}
        saving["quality_difference"] = _interval(quality - saving["reference_quality"], 0.1)
    words = tables.headline(setting)
    assert words.figure == "not reached"
    assert words.claim.startswith("No causal policy reaches the quality of uniform at 1 Hz")
    assert words.detail.startswith("gate (threshold 5.71) comes closest: CIDEr-D 5.50")
    for text in (Reader(html(small)).text, markdown(small), summary(small)):
        assert "not reached" in text

    for saving in causal:
        keys = ("knob", "quality", "quality_difference", "temporal_f1_difference", "decodes_per_second", "saving")
        saving |= dict.fromkeys(keys, None)
        saving["reason"] = "no threshold is good enough"
    words = tables.headline(setting)
    assert words.detail == ("No operating point qualified on the calibration streams (no threshold is good enough).")
    for text in (Reader(html(small)).text, markdown(small)):
        assert "not reached: no threshold is good enough" in _words(text)

    causal[0] |= {
        "knob": 1.0, "reached": True, "quality": 6.9, "decodes_per_second": 2.0,
        "quality_difference": _interval(0.2, 0.1), "saving": _interval(0.5, 0.0),
        "temporal_f1_difference": _interval(0.0, 0.1),
    }  # fmt: skip
    words = tables.headline(setting)
    assert words.figure == "0.50×"
    assert "more of them" in words.claim


def test_a_policy_that_decodes_nothing_or_may_do_so(small):
    """No ratio, or a ratio without an upper bound; a rate of 0 has no place on the axis and breaks no figure."""
    setting = small["settings"]["everyday"]
    gate, cached = (
        next(s for s in setting["savings"] if s["headline"] and s["policy"] == policy)
        for policy in ("gate", "gate_cache")
    )
    gate["saving"]["high"] = None
    cached |= {"decodes_per_second": 0, "saving": None, "reached": False}
    for point in setting["curves"]["gate_cache"]["test"]:
        point["decodes_per_second"] = 0.0
    words = tables.headline(setting)
    assert words.claim.endswith(f"95 % interval from {gate['saving']['low']:.2f}.")
    assert _cells(tables.savings_table(setting), "gate + cache")["saving"].startswith("not reached; decodes nothing")
    plots.curves(small, "everyday")
    for text in (_words(markdown(small)), summary(small)):
        assert f"2.86× (from {gate['saving']['low']:.2f})" in text


def test_operations(results, page):
    """Counts as they are; the savings from the generator's own numbers."""
    calls = int(0.35 * 16 * 180)
    wall = (21.3 + 6.1 + 0.011 * 2880) / (21.3 + 6.1 + 0.011 * calls)
    flops = (2 * 2880 * 7e6 + 2880 * 40e6) / (2 * 2880 * 7e6 + calls * 40e6)
    for text in (Reader(page).text, markdown(results)):
        for number in ("5,760", "2,880", f"{calls:,}", f"{9 * calls:,}", "21.30", "6.80", "5.33 est.", "28.74 est."):
            assert number in text
        assert f"{wall:.2f}×" in text
        assert f"{flops:.2f}×" in text
    setting = results["settings"]["everyday"]
    row = next(row for row in setting["operations"] if row["policy"] == "gate")
    ratios = tables.operations_ratio(setting, row)
    assert ratios == pytest.approx((2880 / calls, flops, wall))
    cached = next(row for row in setting["operations"] if row["policy"] == "gate_cache")
    reference = 21.3 + 6.1 + 0.011 * 2880
    assert tables.operations_ratio(setting, cached).seconds == pytest.approx(reference / (reference / wall + 0.1))
    row = copy.deepcopy(row)
    for part in tables.PARTS:  # twice the streams: the same saving
        row["ledger"][part] = {key: 2 * value for key, value in row["ledger"][part].items()}
    row["ledger"]["stream_seconds"] *= 2
    row["ledger"]["steps"] *= 2
    assert tables.operations_ratio(setting, row) == pytest.approx(ratios)
    assert tables.break_even(setting, row) == pytest.approx((40e6 - calls / 2880 * 40e6) / 7e6)


def test_compute(small):
    """MFLOPs a second of stream from the generator's own numbers; what was not counted is said."""
    setting = small["settings"]["everyday"]
    table = tables.compute_table(setting)
    assert table.groups[0][0] == "MFLOPs per second of stream; savings against uniform at 1 Hz"
    row = _cells(table, "selective encoding")
    rate = setting["operations"][-1]["ledger"]["decoder"]["calls"] / 2880
    parts = {"detector": 0.02, "encoder": 2.5, "predictor": 1.0, "decoder": 40 * rate}
    for part, value in parts.items():
        assert float(row[part]) == pytest.approx(value, rel=0.005)
    whole = sum(parts.values())
    assert float(row["all"]) == pytest.approx(whole, rel=0.005)
    assert row["saving, FLOPs"] == f"{54 / whole:.2f}×"
    assert row["saving, decoder calls"] == f"{1 / rate:.2f}×"
    assert row["saving, wall time"].endswith("× est.")
    assert row["steps/s"] == "0.5"
    assert float(row["break-even steps/s"]) == pytest.approx(40 * (1 - rate) / 7, rel=0.005)
    lean = next(s for s in setting["savings"] if s["policy"] == "selective" and s["tolerance"])
    assert row["CIDEr-D difference"] == _signed(lean["quality_difference"])
    assert _cells(table, "uniform")["break-even steps/s"] == "–"
    assert _cells(table, "uniform, pooled")["break-even steps/s"] == "none"  # as many decodes as the reference
    assert not _cells(table, "gate")["saving, wall time"].endswith("est.")

    cached = next(row for row in setting["operations"] if row["policy"] == "gate_cache")
    row, calls = _cells(table, "gate + cache"), cached["ledger"]["decoder"]["calls"]
    look_ups = 2 * 64 * 128 * 1000 / 2880 / 1e6
    assert float(row["cache"]) == pytest.approx(look_ups, rel=0.005)
    assert tables.total_flops(cached["ledger"]) / 2880e6 == pytest.approx(14 + 40 * calls / 2880 + look_ups)
    assert tables.break_even(setting, cached) == pytest.approx((40 - 40 * calls / 2880 - look_ups) / 7)
    assert _cells(table, "gate")["cache"] == "0"
    del cached["ledger"]["cache"]["flops"]  # a document from before they were counted
    validate_results(small)
    assert tables.total_flops(cached["ledger"]) / 2880e6 == pytest.approx(14 + 40 * calls / 2880)

    gate = next(row for row in setting["operations"] if row["policy"] == "gate")
    gate["ledger"]["encoder"]["flops"] = 0
    row = _cells(tables.compute_table(setting), "gate")
    assert [row[key] for key in ("encoder", "all", "break-even steps/s")] == ["not counted"] * 3
    assert row["saving, FLOPs"] == "–"
    assert row["saving, decoder calls"] == _cells(table, "gate")["saving, decoder calls"]
    assert tables.COMPUTE_NOTE in markdown(small)


def test_stream_quality(results):
    setting = results["settings"]["everyday"]
    table = tables.quality_table(setting)
    columns = {
        "temporal F1, merged": "temporal_f1_merged",
        "temporal F1": "temporal_f1",
        "SODA_c": "soda_c",
        "TimRedun": "tim_redun",
        "TimCover": "tim_cover",
    }
    for operating in setting["operations"][:-1]:
        curve = setting["curves"][operating["policy"]]
        point = next(p for p in curve["test"] if p["knob"] == operating["knob"])
        row = _cells(table, tables.label(curve))
        for column, key in columns.items():
            assert row[column] == f"{point['dense'][key]:.3f}"
        assert row["CIDEr-D"] == f"{point['cider_d']['value']:.2f}"
        assert (row["state"], row["latency"]) == (point["state"], point["latency"])  # of the knob, not of the curve
    assert _cells(table, "gate")["needs"] == "the past"
    assert _cells(table, "Ward, mean")["needs"] == "the whole stream"
    assert _cells(table, "oracle boundaries (upper bound)")["needs"] == "the annotations"
    assert _cells(table, "gate")["latency, 95th percentile s"] == "6.80"


def test_documents_from_before_points_had_a_latency_are_shown_with_the_curves(small):
    curve = small["settings"]["everyday"]["curves"]["gate"]
    for point in curve["test"]:
        del point["latency"], point["state"]
    with pytest.raises(InputError, match=r"curves\.gate\.test\[0\] must have the key 'latency'"):
        validate_results(small)
    curve |= {"latency": "3 steps", "state": "4 latents"}
    validate_results(small)
    row = _cells(tables.quality_table(small["settings"]["everyday"]), "gate")
    assert (row["latency"], row["state"]) == ("3 steps", "4 latents")


def test_cache(small):
    """Errors as measured; thresholds that keep nothing, and policies without an operating point, in words."""
    setting = small["settings"]["everyday"]
    row = _cells(tables.cache_table(setting), "gate + cache")
    assert [row[key] for key in ("requested error", "threshold", "look-ups", "hits", "wrong hits", "kept")] == [
        "10 %", "0.0432", "1,000", "310", "80", "yes",
    ]  # fmt: skip
    assert row["error (95 % interval)"] == "8 % (6 to 11)"
    cached = next(row for row in setting["operations"] if row["policy"] == "gate_cache")
    point = next(p for p in setting["curves"]["gate_cache"]["test"] if p["knob"] == cached["knob"])
    point["cache"]["error"] |= {"value": 0.105, "wrong": 105}
    assert _cells(tables.cache_table(setting), "gate + cache")["kept"] == "no"
    point["cache"]["threshold"] = -1.0
    for text in (_words(Reader(html(small)).text), _words(markdown(small))):
        assert "no threshold kept the requested error" in text
    setting["operations"].remove(cached)
    assert _cells(tables.cache_table(setting), "gate + cache")["operating point"] == "no operating point"
    setting["curves"]["gate_cache"]["cache"] = None
    assert "## Cache" not in markdown(small)


def test_scores_show_chance(results, page):
    chance = (120 / 8 + 120 / 11 + 120 / 2) / 360
    for text in (_words(Reader(page).text), markdown(results)):
        for number in (
            "0.712",
            "0.0042",
            "0.021",
            "0.886",
            f"{chance:.3f}",
            "−0.013",
            "811,264",
            "2,379,840",
        ):
            assert number in text


def test_hostile_text_is_shown_and_does_nothing(small):
    setting = small["settings"].pop("everyday")
    small["settings"][HOSTILE] = setting
    small["name"] = small["code"]["commit"] = setting["description"] = HOSTILE
    setting["strip"]["video_id"] = setting["strip"]["events"][0]["text"] = HOSTILE
    setting["strip"]["decodes"]["gate"][0]["text"] = HOSTILE
    setting["curves"]["gate"] |= {"label": HOSTILE, "knob": HOSTILE}
    for point in setting["curves"]["gate"]["test"]:
        point["latency"] = HOSTILE
    small["scores"]["question_answering"]["by_question"][HOSTILE] = {
        "accuracy": 0.5, "candidates": 2, "chance": 0.5, "queries": 2,
    }  # fmt: skip
    small["parameters"][0]["role"] = small["config"]["note"] = HOSTILE
    small["training"]["curve"][0][HOSTILE] = 1.0
    shown = '<script>alert("1")</script> & $x_1$ | `code` *bold* [31m next #010203'
    page = html(small)
    reader = Reader(page)
    assert "script" not in reader.tags
    assert "<script" not in page
    assert reader.text.count(shown) > 10
    assert any(title.endswith(shown) for title in reader.titles)
    text = markdown(small)
    assert "<script" not in text.replace("\\<", "")
    assert "\x1b" not in text + page + summary(small)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1
    save = plots.overview_png(small)
    assert save.startswith(b"\x89PNG")


def test_sparse_documents_are_rendered(small):
    """No pictures, events, decodes, operations or curve; one point a curve; nulls; letters no font has."""
    setting = small["settings"]["everyday"]
    setting["strip"] |= {"thumbnails": [], "events": [], "decodes": {}, "duration": 3.0}
    setting["areas"] = {}
    for row in setting["operations"]:
        row["ledger"]["latency_seconds"] = {"count": 0, "mean": None, "p50": None, "p95": None, "max": None}
        for part in ("encoder", "predictor", "decoder"):
            row["ledger"][part] = _part(0, 0, 0, 0.0)
    small["code"] |= {"commit": None, "dirty": None}
    small["training"] |= {"curve": [], "stages": []}
    for policy, curve in setting["curves"].items():  # the points of the operations, which come first there
        knob = next((row["knob"] for row in setting["operations"] if row["policy"] == policy), None)
        curve["test"] = [point for point in curve["test"] if point["knob"] == knob] or curve["test"][:1]
    for kind in ("savings", "operations"):
        kept = {policy: {point["knob"] for point in curve["test"]} for policy, curve in setting["curves"].items()}
        setting[kind] = [row for row in setting[kind] if row["knob"] in kept[row["policy"]]]
    setting["curves"]["gate"]["label"] = "門 🚪"
    for text in (Reader(html(small)).text, markdown(small)):
        assert "commit unknown" in text
        assert "門 🚪" in text
    setting["operations"] = []
    assert "None were recorded." in Reader(html(small)).text
    assert "None were recorded." in markdown(small)


def test_a_broken_picture_is_refused(small, tmp_path):
    signature = base64.b64encode(b"\x89PNG\r\n\x1a\n and then nothing").decode()
    for thumbnail in small["settings"]["everyday"]["strip"]["thumbnails"]:
        thumbnail["png"] = signature
    with pytest.raises(InputError, match="thumbnail of the strip must be a whole PNG"):
        write_report(small, tmp_path)
    assert not list(tmp_path.iterdir())


# --- Pieces.


def test_highlighted_policies_have_one_colour_in_all_settings(results):
    """Eight of twelve, no colour twice, the reference and the headline policies among them."""
    series = plots.series_of(results)
    assert len(set(series.values())) == len(series) == tables.SHOWN
    assert set(series.values()) <= set(range(len(plots.MARKERS)))
    for setting in results["settings"].values():
        best, lean = tables.best_causal(setting), tables.leanest(setting)
        assert {"uniform", best["policy"], lean["policy"], "oracle"} <= set(series)
    single = copy.deepcopy(results)
    del single["settings"]["dense"]
    shared = set(series) & set(plots.series_of(single)) & {"uniform", "ward_mean", "gate"}
    assert {p: series[p] for p in shared} == {p: plots.series_of(single)[p] for p in shared}
    assert len(shared) == 3


def test_curves_name_the_coloured_policies_and_count_the_others(results):
    setting, series = results["settings"]["everyday"], plots.series_of(results)
    axes = plots.curves(results, "everyday").axes[0]
    names = [text.get_text() for text in axes.texts]
    lines = {line.get_gid(): line for line in axes.lines if line.get_gid()}
    for policy, curve in setting["curves"].items():
        drawn = lines[plots.tooltip(tables.label(curve))]
        expected = plots.LIGHT[f"series-{series[policy]}"] if policy in series else plots.LIGHT["muted"]
        assert drawn.get_color() == expected
        assert (tables.label(curve).split(" (")[0] in names) == (policy in series)
    assert "4 others" in names


@given(
    st.lists(st.tuples(st.floats(-50, 400), st.sampled_from((14.5, 27.0))), max_size=9),
    st.floats(0, 30),
)
def test_names_do_not_overlap(boxes, first):
    boxes = sorted(boxes)
    wanted, sizes = [middle for middle, _ in boxes], [size for _, size in boxes]
    middles = plots._apart(wanted, sizes, first, 300.0)
    ends = [(m - size / 2, m + size / 2) for m, size in zip(middles, sizes, strict=True)]
    for (_, top), (bottom, _) in itertools.pairwise(ends):
        assert bottom >= top - 1e-6
    if ends:
        assert ends[0][0] >= first - 1e-6
        assert ends[-1][1] <= max(300.0, first + sum(sizes)) + 1e-6
    free = all(b - a >= 27 for a, b in itertools.pairwise(wanted))
    if free and wanted and wanted[0] >= first + 14 and wanted[-1] <= 286:
        assert middles == wanted


def test_texts_from_the_cache_are_hollow(results):
    """On the strip, what took no decoder call has an outline and no filling."""
    setting = results["settings"]["everyday"]
    hollow, filled = set(), set()
    for axes in plots.strip(results, "everyday").axes:
        for box in axes.patches:
            kind = hollow if box.get_facecolor()[3] == 0 else filled
            kind.add(box.get_gid())
    decodes = [d for d in setting["strip"]["decodes"]["gate_cache"] if d["source"] == "cache"]
    assert len(hollow) == len(decodes) > 5
    assert all("from the cache" in tip for tip in hollow)
    assert not any("from the cache" in tip for tip in filled)


def test_the_strip_shows_the_first_policies_alone(small):
    strip = small["settings"]["everyday"]["strip"]
    strip["decodes"] = dict.fromkeys(reversed(small["settings"]["everyday"]["curves"]), strip["decodes"]["gate"])
    shown = list(tables.strip_decodes(small["settings"]["everyday"]))
    assert shown == tables.prominent(small["settings"]["everyday"])[: tables.LANES]
    assert shown[:2] == ["uniform", "gate"]
    assert len(tables.strip_table(small["settings"]["everyday"]).header) == 2 + tables.LANES


def test_strip_table_takes_the_nearest_decode(results):
    setting = results["settings"]["everyday"]
    rows = tables.strip_table(setting).groups[0][1]
    for event, row in zip(setting["strip"]["events"], rows, strict=True):
        assert row[1] == row[3] == event["text"]  # the made-up gate decodes each event at its middle
        times = np.array([decode["time"] for decode in setting["strip"]["decodes"]["uniform"]])
        nearest = np.abs(times - (event["start"] + event["end"]) / 2).argmin()
        assert row[2] == setting["strip"]["decodes"]["uniform"][nearest]["text"]


@pytest.mark.parametrize("width", [5, 20, 45, 80, 140, 400])
@pytest.mark.parametrize("text", [*PHRASES, "", "a", "antidisestablishmentarianism"])
def test_fitted_text_is_the_beginning_of_the_text_and_fits(text, width):
    lines = plots.fit(text, width, lines=2)
    shown = " ".join(lines)
    assert len(lines) <= 2
    assert shown in ("", text) or (shown.endswith("…") and text.startswith(shown[:-1].rstrip()))
    font = PIL.ImageFont.truetype(matplotlib.font_manager.findfont("DejaVu Sans"), size=1000)
    for line in lines:
        assert font.getlength(line) / 100 <= width + 0.5  # 7.5 points are 10 pixels
    if width == 400:
        assert lines == ([text] if text else [])


def test_overlapping_events_have_rows_of_their_own():
    rng = np.random.default_rng(1)
    events = [{"start": float(s), "end": float(s + d)} for s, d in rng.uniform(0, 20, (60, 2))]
    rows = plots._rows(events)
    depth = max(sum(e["start"] <= event["start"] < e["end"] for e in events) for event in events)
    assert max(rows) + 1 == depth  # as few rows as the deepest overlap
    for i, a in enumerate(events):
        for j, b in enumerate(events[:i]):
            if rows[i] == rows[j]:
                assert a["end"] <= b["start"] or b["end"] <= a["start"]


def add_costs(scores: dict[str, Any]) -> None:
    """Answers of 2e8 FLOPs, captions of 3e8 and 8 tokens."""

    def cost(value: float, tokens: float, flops: float) -> dict[str, float]:
        right = {"tokens_per_right_answer": tokens / value, "flops_per_right_answer": flops / value}
        return {"tokens_per_answer": tokens, "flops_per_answer": flops} | right

    scores["retrieval"]["cost"] = {f"r@{k}": cost(scores["retrieval"][f"r@{k}"], 0, 2e8) for k in (1, 5)}
    answers = scores["question_answering"]
    for part in (scores["classification"], answers, *answers["by_question"].values()):
        part["cost"] = cost(part["accuracy"], 0, 2e8)
    scores["captioning"]["cost"] = cost(scores["captioning"]["exact_match"], 8, 3e8)


def test_every_score_stands_beside_what_it_cost(small):
    assert "of a right answer" not in summary(small)  # an older document, whose costs were not counted
    add_costs(small["scores"])
    rows = {row[0]: row[-2:] for _, group in tables.scores_table(small["scores"]).groups for row in group}
    assert rows["R@1"] == ("0, 2e+08", "0, 2.81e+08")  # 2e8 / 0.712
    assert rows["R@5"] == ("0, 2e+08", "0, 2.15e+08")
    assert rows["accuracy"] == ("0, 2e+08", "0, 2.26e+08")
    assert rows["accuracy, all questions"] == rows["how many"] == ("0, 2e+08", "0, 2.5e+08")
    assert rows["exact match"] == ("8, 3e+08", "13.1, 4.92e+08")
    for shown in (_words(markdown(small)), Reader(html(small)).text):
        assert "13.1, 4.92e+08" in shown
        assert "bear equal parts" in shown
    lines = summary(small).splitlines()
    assert lines[-2:] == [
        "tokens, FLOPs of a right answer:",
        "R@1 0, 2.81e+08 · classification 0, 2.26e+08 · questions 0, 2.5e+08 · captions 13.1, 4.92e+08",
    ]
    assert max(map(len, lines)) <= 100
    small["scores"]["classification"]["cost"]["flops_per_right_answer"] = None
    assert "classification –" in summary(small)
    small["scores"]["classification"]["cost"]["flops_per_answer"] = -1
    with pytest.raises(InputError, match=r"scores\.classification\.cost\.flops_per_answer must be .*>= 0, got -1"):
        validate_results(small)


def test_summary_fits_100_columns(results):
    document = copy.deepcopy(results)
    setting = document["settings"].pop("dense")
    document["settings"]["a setting with quite a long name indeed"] = setting
    setting["curves"]["gate"] |= {"label": "a gate with quite a long name", "knob": "a knob of some length"}
    lines = summary(document).splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith(("everyday, against", "a setting with")) for line in lines) == 2
    rows = lines[2 : next(i for i, line in enumerate(lines) if line.startswith("* offline"))]
    assert len(rows) == 2 * (1 + len(POLICIES))
    assert any(line.startswith("†oracle") for line in rows)
    assert any(line.startswith("*Ward, mean") and "2.45×" in line for line in rows)
    assert "retrieval R@1 0.712 (chance 0.0042)" in lines[-1]


# --- Operations by part, and levers.


def test_the_parts_are_stacked_to_the_whole_and_what_is_estimated_is_hatched(results):
    """Of FLOPs and of wall time, cache look-ups included; only the latter has estimates."""
    setting = results["settings"]["everyday"]
    for measure in plots.MEASURES:
        axes = plots.operations(results, "everyday", measure).axes[0]
        for y, row in enumerate(setting["operations"]):
            bars = [bar for bar in axes.patches if bar.get_y() + bar.get_height() / 2 == pytest.approx(y)]
            parts = (*tables.PARTS, "cache")
            assert len(bars) == len(parts)
            whole = sum(row["ledger"][part][measure] for part in parts) / row["ledger"]["stream_seconds"]
            widths = sum(bar.get_width() for bar in bars)
            unit = 1e-3 if measure == "seconds" else tables.flops_unit(setting["operations"])[0]
            assert widths * unit == pytest.approx(whole)
            hatched = [part for part, bar in zip(parts, bars, strict=True) if bar.get_hatch()]
            estimated = measure == "seconds" and row["seconds_estimated"]
            assert hatched == (["encoder", "predictor"] if estimated else [])


def test_levers_end_at_what_was_measured_together(results):
    """Each fall starts where the one before it ends; the last is the ledger of the last operating point."""
    setting = results["settings"]["everyday"]
    for measure in plots.MEASURES:
        chain = tables.lever_chain(setting, measure)
        assert [title for title, _ in chain] == ["uniform", "selective decoding", "+ cache"]  # as policies have levers
        first, *falls, total = plots.levers(results, "everyday", measure).axes[0].patches
        ends = [1 / getattr(tables.operations_ratio(setting, row), measure) for _, row in chain]
        for bar, start, end in zip(falls, ends, ends[1:], strict=False):
            low, high = sorted((start, end))
            assert (bar.get_x(), bar.get_x() + bar.get_width()) == pytest.approx((low, high))
        assert total.get_x() + total.get_width() == pytest.approx(ends[-1])
        assert first.get_x() + first.get_width() == pytest.approx(1)
    setting = copy.deepcopy(setting) | {"one_device": False}
    assert tables.lever_chain(setting, "flops")
    assert tables.lever_chain(setting, "seconds") == []


# --- The operations of training.


def test_training_shows_what_each_part_took(small):
    """Shares are those of a stage's parts; a part that had no part is left out, an uncounted stage is said to be."""
    small["training"]["stages"][0]["operations"] = make_operations()
    table = tables.training_table(small)
    assert table.header[1:4] == ("TFLOPs", "fraction of FLOPs", "GB of weights read")
    (first, rows), (second, old) = table.groups
    assert first == "jepa: 900 steps in 190.2 s"
    assert rows == (
        ("X-Encoder", "6", "60.0 %", "4", "60.00", "50.0 %"),
        ("Predictor", "3", "30.0 %", "3", "30.00", "25.0 %"),
        ("Y-Encoder", "0.99", "9.9 %", "2", "20.00", "16.7 %"),
        ("loss", "0.01", "0.1 %", "< 0.001", "4.00", "3.3 %"),
        ("optimizer", "0", "0.0 %", "1", "6.00", "5.0 %"),
        ("all parts", "10", "100.0 %", "10", "120.0", "100.0 %"),
    )
    assert second == "decoder: 600 steps in 60.20 s"
    assert old == (("all parts", *["not counted"] * 5),)
    for shown, mark in ((markdown(small), "(measured)"), (html(small), '<span class="badge measured">')):
        assert f"Operations of training {mark}" in shown
        assert "16.7" in shown


@pytest.mark.parametrize("missing", [True, False])
def test_results_from_before_training_was_counted_have_no_table_of_it(small, missing):
    if not missing:
        for stage in small["training"]["stages"]:
            stage["operations"] = None
    for shown in (markdown(small), html(small)):
        assert "Operations of training" not in shown


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("steps",), None, "operations.steps must be a whole number >= 0, got None"),
        (("parts", "loss"), None, "operations.parts.loss must be an object, got None"),
        (("parts", "encoder", "flops"), 1.5, "operations.parts.encoder.flops must be a whole number >= 0, got 1.5"),
        (("parts", "encoder", "seconds"), -1.0, "operations.parts.encoder.seconds must be a finite number >= 0"),
    ],
)
def test_operations_of_training_are_checked(small, keys, value, message):
    node = small["training"]["stages"][0]["operations"] = make_operations()
    validate_results(small)
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    with pytest.raises(InputError, match=re.escape(f"results.training.stages[0].{message}")):
        validate_results(small)
    del node[keys[-1]]
    with pytest.raises(InputError, match=re.escape(f"must have the key '{keys[-1]}'")):
        validate_results(small)
