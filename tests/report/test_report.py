"""The report room, on a made-up results document of two settings and five policies."""

from __future__ import annotations

import base64
import copy
import html.parser as html_parser
import io
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

from jepa.errors import InputError
from jepa.report import (
    SCHEMA,
    html,
    markdown,
    plots,
    read_results,
    save_png,
    summary,
    tables,
    validate_results,
    write_report,
    write_results,
)

HOSTILE = '<script>alert("1")</script> & $x_1$ | `code` *bold* \x00\x1b[31m\nnext #010203'

# --- A results document.


def _interval(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def _part(calls: int, forward_passes: int, tokens: int, seconds: float) -> dict[str, Any]:
    return {"calls": calls, "forward_passes": forward_passes, "tokens": tokens, "seconds": seconds}


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
}
PHRASES = (
    "a small red circle starts to blink",
    "the blue square moves to the left",
    "the green triangle grows",
    "two shapes collide and move apart",
    "nothing happens",
    "a large yellow star leaves the picture",
)


def _setting(rng: np.random.Generator, name: str, density: float, hardness: float) -> dict[str, Any]:
    step = 2.0
    curves: dict[str, Any] = {}
    for policy, (label, causal, latency, knob, best, half) in POLICIES.items():
        points = []
        for rate in (0.03, 0.05, 0.08, 0.12, 0.2, 0.35, 0.6, 1.0, 2.0):
            value = best / (1 + (half * hardness / rate) ** 1.6)
            shown = rate if knob == "rate_hz" else 2.0 / rate
            points.append({"knob": shown, "decodes_per_second": rate, "cider_d": _interval(value, 0.3)})
        curves[policy] = {
            "label": label, "causal": causal, "latency": latency, "knob": knob,
            "test": points, "calibration": copy.deepcopy(points),
        }  # fmt: skip
    savings = []
    for reference in (1.0, 0.35):
        target = next(p for p in curves["uniform"]["test"] if p["knob"] == reference)["cider_d"]["value"]
        for policy, curve in curves.items():
            chosen = next((p for p in curve["test"] if p["cider_d"]["value"] >= target), None)
            row: dict[str, Any] = {
                "reference": {"policy": "uniform", "rate_hz": reference},
                "headline": reference == 1.0, "policy": policy, "knob": None, "reached": False,
                "quality": None, "reference_quality": target, "quality_difference": None,
                "decodes_per_second": None, "reference_decodes_per_second": reference, "saving": None,
                "reason": "no knob kept the quality on the calibration streams",
            }  # fmt: skip
            if chosen is not None and not (name == "dense" and policy == "ward_midpoint"):
                short = 0.4 if name == "dense" and policy in ("gate", "uniform_pool") else 0.0
                value, ratio = chosen["cider_d"]["value"] - short, reference / chosen["decodes_per_second"]
                row |= {
                    "knob": chosen["knob"], "reached": short == 0, "quality": value,
                    "quality_difference": _interval(value - target, 0.11),
                    "decodes_per_second": chosen["decodes_per_second"],
                    "saving": _interval(ratio, 0.12 * ratio),
                    "reason": "the test quality is below the reference's" if short else "",
                }  # fmt: skip
            savings.append(row)
    operations = []
    for row in savings:
        if row["headline"] and row["knob"] is not None:
            seconds = 16 * 180.0
            steps, calls = int(seconds * step), int(row["decodes_per_second"] * seconds)
            wait = 0.0 if row["policy"].startswith("uniform") else 3.4
            latency = {"count": calls, "mean": wait, "p50": wait, "p95": 2 * wait, "max": 3 * wait}
            operations.append(
                {
                    "policy": row["policy"],
                    "knob": row["knob"],
                    "ledger": {
                        "encoder": _part(steps, steps, 0, 21.3),
                        "predictor": _part(steps, steps, 0, 6.1),
                        "decoder": _part(calls, 9 * calls, 9 * calls, 0.011 * calls),
                        "stream_seconds": seconds,
                        "steps": steps,
                        "latency_seconds": latency,
                    },
                }
            )
    operations[0]["knob"] = 1.0
    events, time = [], 1.0
    while time < 174:
        end = min(time + float(rng.uniform(0.5, 1.5)) / density * 0.9, 179.0)
        events.append({"start": time, "end": end, "text": str(rng.choice(PHRASES))})
        time = end + float(rng.choice([0.0, 0.5, 2.0]))
    uniform = [
        {"time": t, "start": t, "end": t, "emitted_at": t + 0.4, "text": str(rng.choice(PHRASES))}
        for t in np.arange(0.0, 180.0).tolist()
    ]
    gate = [
        {
            "time": (e["start"] + e["end"]) / 2, "start": e["start"] + 0.5, "end": e["end"],
            "emitted_at": e["end"] + 1.4, "text": e["text"],
        }
        for e in events
    ]  # fmt: skip
    return {
        "description": "Coloured shapes on moving, noisy backgrounds.",
        "step_rate_hz": step,
        "events_per_second": density,
        "mean_event_seconds": 0.95 / density,
        "repeated_events": 0.35,
        "streams": {"calibration": 8, "test": 16, "seconds_each": 180.0},
        "curves": curves,
        "savings": savings,
        "operations": operations,
        "strip": {
            "video_id": f"{name}-test-0003",
            "duration": 180.0,
            "thumbnails": [_thumbnail(rng, float(t)) for t in range(0, 180, 2)],
            "events": events,
            "decodes": {"uniform": uniform, "gate": gate},
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
    for curve in setting["everyday"]["curves"].values():
        del curve["test"][2:], curve["calibration"][2:]
    del document["training"]["curve"][8:]
    return document


# --- The schema.

FREE = re.compile(  # objects whose keys are names
    r"results\.(config.*|libraries|settings|settings\.\w+\.(curves|strip\.decodes)|training\.curve\[\d+\]"
    r"|scores\.question_answering\.by_question)$"
)


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
    for place, container, key in _walk(small):
        parent = place.removesuffix(f".{key}")
        if isinstance(container, dict) and not FREE.match(parent):
            value = container.pop(key)
            with pytest.raises(InputError, match=re.escape(f"{parent} must have the key '{key}', got [")):
                validate_results(small)
            container[key] = value
            tried += 1
    assert tried > 300
    validate_results(small)


@pytest.mark.parametrize("wrong", [float("nan"), float("-inf"), {1, 2}, b"bytes"])
def test_every_leaf_refuses_what_is_not_finite_plain_data(small, wrong):
    for place, container, key in _walk(small):
        if not isinstance(container[key], (dict, list)):
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
        ("settings.everyday.savings.4.policy", "oracle", "savings[4].policy must be a policy of"),
        ("settings.everyday.operations.1.policy", "oracle", "operations[1].policy must be a policy of"),
        ("settings.everyday.strip.decodes.oracle", [], "strip.decodes.oracle must be a policy of"),
        (
            "settings.everyday.savings.0.knob",
            None,
            "savings[0].quality must be null exactly when the knob is",
        ),
        ("settings.everyday.savings.5.headline", True, "savings must have a headline against exactly one"),
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
    small["schema"] = "jepa.results/2"
    with pytest.raises(InputError, match=r"'jepa\.results/1'.*, got 'jepa\.results/2'"):
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
        (b'{"schema": "jepa.results/1", "name": "de', "must be whole, valid JSON"),
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


def test_a_failing_write_leaves_the_old_report_whole(small, tmp_path, monkeypatch):
    paths = write_report(small, tmp_path)
    before = {name: path.read_bytes() for name, path in paths.items()}
    small["name"] = "second run"
    whole, written = Path.write_bytes, []

    def full(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) == 3:
            whole(path, content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        return whole(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="must be writable, got: No space left on device"):
        write_report(small, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_made(small, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="must be writable"):
        write_results(small, tmp_path / "file" / "results.json")
    with pytest.raises(InputError, match="must be writable"):
        save_png(small, tmp_path / "file" / "overview.png")


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


def test_every_number_of_the_savings_is_in_page_and_markdown(results, page):
    texts = [_words(Reader(page).text), _words(markdown(results))]
    checked = 0
    for setting in results["settings"].values():
        for saving in setting["savings"]:
            expected = [f"{saving['reference_quality']:.2f}", f"{saving['reference_decodes_per_second']:.3f}"]
            if saving["knob"] is None:
                expected.append(saving["reason"])
            else:
                ratio, change = saving["saving"], saving["quality_difference"]
                signed = [f"{round(change[key], 2) + 0:+.2f}".replace("-", "−") for key in ("value", "low", "high")]
                expected += [
                    f"{saving['quality']:.2f}",
                    f"{saving['decodes_per_second']:.3f}",
                    f"{ratio['value']:.2f}× ({ratio['low']:.2f} to {ratio['high']:.2f})",
                    f"{signed[0]} ({signed[1]} to {signed[2]})",
                ]
            for text in texts:
                for number in expected:
                    assert number in text
                    checked += 1
    assert checked > 200


def test_headline_is_the_best_causal_policy(results, page):
    words = tables.headline(results["settings"]["everyday"])
    gate = results["settings"]["everyday"]["savings"][4]
    assert words.figure == f"{gate['saving']['value']:.2f}×"  # Ward's is larger, and not causal
    assert "fewer decoder calls at the quality of uniform at 1 Hz" in words.claim
    text = _words(Reader(page).text)
    assert text.index(words.figure) < text.index(_words(words.claim)) < text.index("Quality against operations")
    assert f"- **everyday: {words.figure}** fewer decoder calls" in markdown(results)


def test_not_reached_is_said_in_words(small):
    """Short on the test streams; no operating point at all; reached only with more decodes."""
    setting = small["settings"]["everyday"]
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
        saving |= dict.fromkeys(("knob", "quality", "quality_difference", "decodes_per_second", "saving"), None)
        saving["reason"] = "no threshold is good enough"
    words = tables.headline(setting)
    assert words.detail == ("No operating point qualified on the calibration streams (no threshold is good enough).")
    for text in (Reader(html(small)).text, markdown(small)):
        assert "not reached: no threshold is good enough" in _words(text)

    causal[0] |= {
        "knob": 2.0, "reached": True, "quality": 6.9, "decodes_per_second": 2.0,
        "quality_difference": _interval(0.2, 0.1), "saving": _interval(0.5, 0.0),
    }  # fmt: skip
    words = tables.headline(setting)
    assert words.figure == "0.50×"
    assert "more of them" in words.claim


def test_operations(results, page):
    """Counts as they are; both savings from the generator's own numbers."""
    calls = int(0.35 * 16 * 180)
    wall = (21.3 + 6.1 + 0.011 * 2880) / (21.3 + 6.1 + 0.011 * calls)
    for text in (Reader(page).text, markdown(results)):
        for number in ("5,760", "2,880", f"{calls:,}", f"{9 * calls:,}", "21.30", "6.80"):
            assert number in text
        assert f"{wall:.2f}×" in text
    row = results["settings"]["everyday"]["operations"][-1]
    ratios = tables.operations_ratio(results["settings"]["everyday"], row)
    assert ratios == pytest.approx((2880 / calls, wall))
    row = copy.deepcopy(row)
    for part in ("encoder", "predictor", "decoder"):  # twice the streams: the same saving
        row["ledger"][part] = {key: 2 * value for key, value in row["ledger"][part].items()}
    row["ledger"]["stream_seconds"] *= 2
    assert tables.operations_ratio(results["settings"]["everyday"], row) == pytest.approx(ratios)


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
    setting["curves"]["gate"] |= {"label": HOSTILE, "latency": HOSTILE, "knob": HOSTILE}
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
    for row in setting["operations"]:
        row["ledger"]["latency_seconds"] = {"count": 0, "mean": None, "p50": None, "p95": None, "max": None}
        for part in ("encoder", "predictor", "decoder"):
            row["ledger"][part] = _part(0, 0, 0, 0.0)
    small["code"] |= {"commit": None, "dirty": None}
    small["training"] |= {"curve": [], "stages": []}
    for curve in setting["curves"].values():
        del curve["test"][1:]
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


def test_a_policy_has_one_colour_in_all_settings(results):
    document = copy.deepcopy(results)
    everyday, dense = (document["settings"][name]["curves"] for name in ("everyday", "dense"))
    dense["optimal"], everyday["cached"] = dense["gate"], everyday["gate"]
    series = plots.series_of(document)
    assert {policy: series[policy] for policy in POLICIES} == plots.series_of(results)
    assert len(set(series.values())) == len(series) == 7


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


def test_summary_fits_100_columns(results):
    document = copy.deepcopy(results)
    setting = document["settings"].pop("dense")
    document["settings"]["a setting with quite a long name indeed"] = setting
    setting["curves"]["gate"] |= {"label": "a gate with quite a long name", "knob": "a knob of some length"}
    lines = summary(document).splitlines()
    assert max(map(len, lines)) <= 100
    assert len([line for line in lines if "Hz" in line or "knob" in line or "thresh" in line]) == 9
    assert "retrieval R@1 0.712 (chance 0.0042)" in lines[-1]
