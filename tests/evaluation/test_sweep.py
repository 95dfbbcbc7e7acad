"""Sweeps: counts by hand, calibration before test, errors that name the stream."""

from __future__ import annotations

import copy
import json
import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch

from jepa.data.records import Event, StreamRecord
from jepa.errors import InputError
from jepa.evaluation.streams import StreamSet, load_streams, save_streams
from jepa.evaluation.sweep import RememberingDecoder, RememberingPolicy, sweep_setting, sweeps
from jepa.operations import OperationLedger
from jepa.selective import Decoded, Gate, LatentCache, Oracle, Policy, StepSelection, Uniform, calibration

WORDS = ["red circle grows", "blue star spins", "green ring blinks", "white cross shakes", "cyan bar bounces"]
POLICIES = {
    "uniform": {
        "label": "uniform",
        "policy": {"_target_": "jepa.selective.Uniform"},
        "parameter": "rate_hz",
        "values": [2.0, 1.0, 0.5, 0.1],
        "cache": None,
        "steps": None,
    },
    "gate": {
        "label": "gate",
        "policy": {"_target_": "jepa.selective.Gate"},
        "parameter": "threshold",
        "values": [0.5, 1.0, 1.5, 2.0],
        "cache": None,
        "steps": None,
    },
}
REFERENCES = [{"policy": "uniform", "rate_hz": 1.0}, {"policy": "uniform", "rate_hz": 0.5}]


class NearestWord:
    """Latents are noisy one-hot vectors over WORDS; says the nearest, three tokens each, and counts its calls."""

    def __init__(self) -> None:
        self.decoded = 0

    def decode(self, latents: torch.Tensor) -> list[Decoded]:
        self.decoded += len(latents)
        return [Decoded(WORDS[i], 3, 3) for i in latents[:, : len(WORDS)].argmax(-1).tolist()]


def stream_set(split: str, seed: int, noise: float = 0.25, streams: int = 6) -> StreamSet:
    """Streams of 60 s at 2 Hz; an event lasts 6 s."""
    rng = np.random.default_rng(seed)
    made = StreamSet([], [], [], [])
    for number in range(streams):
        order = [int(rng.integers(len(WORDS)))]
        while len(order) < 10:
            word = int(rng.integers(len(WORDS)))
            if word != order[-1]:
                order.append(word)
        times = 0.25 + 0.5 * np.arange(120)
        latents = np.eye(16, dtype=np.float32)[[order[int(t // 6)] for t in times]]
        latents += noise * rng.normal(size=latents.shape).astype(np.float32)
        latents /= np.linalg.norm(latents, axis=1, keepdims=True)
        events = tuple(Event(6.0 * i, 6.0 * (i + 1), WORDS[word]) for i, word in enumerate(order))
        ledger = OperationLedger()
        ledger.count("encoder", calls=240, forward_passes=240)
        ledger.count("predictor", calls=120, forward_passes=120)
        ledger.stream(60.0)
        made.records.append(StreamRecord(f"{split}-{number}", 60.0, events))
        made.latents.append(latents)
        made.times.append(times)
        made.ledgers.append(ledger)
        moved = 1 - (latents[1:] * latents[:-1]).sum(1)
        made.changes.append(np.append(0.0, moved).astype(np.float32))
        made.states.append(latents[:, ::-1].copy())
    return made


def family(policy: dict, knob: str, values: list[float], cache: dict | None = None, steps: dict | None = None) -> dict:
    return {
        "label": policy["_target_"],
        "policy": policy,
        "parameter": knob,
        "values": values,
        "cache": None if cache is None else {"bank": False} | cache,
        "steps": steps,
    }


GATE = {"_target_": "jepa.selective.Gate"}
ON_DEMAND = {"_target_": "jepa.selective.OnDemand", "policy": GATE | {"threshold": 1.0}}
BANK = {"capacity": 8, "shared": True, "error_rate": 0.2, "bank": True}
SELECTION = {"_target_": "jepa.selective.StepSelection", "threshold": 0.5, "burst": 2, "hold": 4}


def first_of(streams: StreamSet, count: int) -> StreamSet:
    parts = (streams.records, streams.latents, streams.times, streams.ledgers, streams.changes, streams.states)
    return StreamSet(*(part[:count] for part in parts))


def run(calibration: StreamSet, test: StreamSet, decoder=None) -> dict:
    splits = {"calibration": calibration, "test": test}
    return sweep_setting(splits, decoder or NearestWord(), sweeps(POLICIES), REFERENCES, 0.5, 0.9, 0, "made")


def test_the_gate_saves_what_the_events_allow_and_counts_are_exact():
    swept = run(stream_set("calibration", 1), stream_set("test", 2))
    gate = next(s for s in swept["savings"] if s["policy"] == "gate" and s["headline"])
    assert gate["reached"]
    assert gate["saving"]["value"] == pytest.approx(6.0, rel=0.15)  # one decode an event, against six
    uniform, chosen = (next(o for o in swept["operations"] if o["policy"] == p) for p in ("uniform", "gate"))
    assert uniform["knob"] == 1.0
    assert uniform["ledger"]["decoder"]["calls"] == 6 * 60
    assert uniform["ledger"]["decoder"]["tokens"] == 3 * 6 * 60
    for row in (uniform, chosen):
        assert row["ledger"]["encoder"]["calls"] == 6 * 240
        assert row["ledger"]["predictor"]["calls"] == 6 * 120
        assert row["ledger"]["stream_seconds"] == 360.0
        assert row["ledger"]["steps"] == 6 * 120
    point = next(p for p in swept["curves"]["gate"]["test"] if p["knob"] == chosen["knob"])
    assert chosen["ledger"]["decoder"]["calls"] == round(point["decodes_per_second"] * 360)
    assert len(swept["emissions"]["uniform"]) == 60


def test_no_knob_and_no_threshold_sees_the_test_streams():
    """Whatever the test streams are, what is chosen and what is calibrated stay the same."""
    calibration = stream_set("calibration", 1)
    cached = family(GATE, "threshold", [1.0, 2.0], {"capacity": 8, "shared": False, "error_rate": 0.05})
    banked = family(GATE, "threshold", [1.0, 2.0], BANK)
    chosen, scores = set(), set()
    for seed, noise in ((2, 0.25), (3, 0.05), (4, 0.6)):
        splits = {"calibration": calibration, "test": stream_set("test", seed, noise)}
        families = sweeps({**POLICIES, "cached": cached, "banked": banked})
        swept = sweep_setting(splits, NearestWord(), families, REFERENCES, 0.5, 0.9, 0, "made", (0.0, 0.1))
        knobs = tuple((s["policy"], s["tolerance"], s["knob"]) for s in swept["savings"])
        thresholds = tuple(
            point["cache"]["threshold"] for name in ("cached", "banked") for point in swept["curves"][name]["test"]
        )
        assert min(thresholds) >= 0
        chosen.add((knobs, thresholds))
        scores.add(tuple(s["quality"] for s in swept["savings"]))
    assert len(chosen) == 1
    assert len(scores) == 3


def test_remembering_changes_no_emission_and_no_count():
    decoder = NearestWord()
    remembering = RememberingDecoder(decoder)
    latents = torch.nn.functional.normalize(torch.randn(9, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    twice = torch.cat([latents, latents[:4]])
    assert remembering.decode(twice) == NearestWord().decode(twice)
    assert decoder.decoded == 9
    assert remembering.decode(latents) == NearestWord().decode(latents)
    assert decoder.decoded == 9


def test_streams_survive_the_disk(tmp_path):
    streams = stream_set("test", 5, streams=2)
    save_streams(streams, tmp_path)
    loaded = load_streams(tmp_path)
    assert loaded.records == streams.records
    assert loaded.ledgers == streams.ledgers
    for ours, theirs in zip(loaded.latents + loaded.times, streams.latents + streams.times, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours == theirs).all()


def test_broken_streams_are_named(tmp_path):
    streams = stream_set("test", 5, streams=2)
    save_streams(streams, tmp_path)
    path = tmp_path / "latents.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"latents.safetensors: not a whole safetensors file"):
        load_streams(tmp_path)
    save_streams(first_of(streams, 1), tmp_path)
    records = tmp_path / "records.jsonl"
    records.write_text(records.read_text(encoding="utf-8").replace("test-0", "test-7"), encoding="utf-8")
    with pytest.raises(InputError, match=r"no latents of the stream 'test-7' that records.jsonl lists"):
        load_streams(tmp_path)


def test_streams_whose_files_disagree_are_named(tmp_path):
    streams = stream_set("test", 5, streams=2)
    steps = len(streams.times[0])
    for part in ("times", "changes"):
        kept = list(getattr(streams, part))
        cut = replace(streams, **{part: [kept[0][:-1], *kept[1:]]})
        save_streams(cut, tmp_path)
        with pytest.raises(InputError, match=rf"{part} of the stream 'test-0' must be of {steps} steps, got shape"):
            load_streams(tmp_path)
    save_streams(streams, tmp_path)
    path = tmp_path / "encoding.json"
    encoding = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(encoding | {"ledgers": encoding["ledgers"][:1]}), encoding="utf-8")
    with pytest.raises(InputError, match=r"encoding.json: ledgers must be one for each of 2 streams, got 1"):
        load_streams(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda s: s.latents[3].__setitem__((7, 2), np.nan),
            "stream test-3: latents must be finite, got nan at step 7",
        ),
        (lambda s: s.times[2].__setitem__(9, 0.1), "stream test-2: times must strictly increase, got 0.1 after 4.25"),
        (lambda s: s.latents[0].__imul__(2), "stream test-0: latents must have unit norm"),
        (
            lambda s: (s.latents.__setitem__(1, s.latents[1][:0]), s.times.__setitem__(1, s.times[1][:0])),
            "stream test-1: stream is empty",
        ),
    ],
)
def test_bad_latents_name_the_stream(spoil, message):
    test = copy.deepcopy(stream_set("test", 2))
    spoil(test)
    with pytest.raises(InputError, match=message):
        run(stream_set("calibration", 1), test)


def test_a_reference_that_is_not_swept_is_named():
    splits = {"calibration": stream_set("calibration", 1), "test": stream_set("test", 2)}
    reference = [{"policy": "uniform", "rate_hz": 3.0}]
    decoder = NearestWord()
    with pytest.raises(InputError, match=r"references\[0\] must be one of the swept .* got uniform at 3 Hz"):
        sweep_setting(splits, decoder, sweeps(POLICIES), reference, 0.5, 0.9, 0, "made")
    assert decoder.decoded == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"references": []}, "references must hold at least one, got none"),
        ({"tolerances": ()}, "tolerances must hold at least one, got none"),
        ({"tolerances": (0.0, 1.0)}, r"tolerances\[1\] must be in \[0, 1\), got 1\.0"),
        ({"confidence": 1.5}, r"confidence must be in \(0, 1\], got 1\.5"),
        ({"gate": {"values": []}}, r"policies\.gate\.values must be one or more distinct values, got \[\]"),
        ({"gate": {"values": [1.0, 1.0]}}, r"policies\.gate\.values must be one or more distinct values"),
        (
            {"gate": {"values": [1.0, -1.0]}},
            r"^policies\.gate\.policy, threshold=-1: jepa\.selective\.Gate: threshold must be .* got -1\.0",
        ),
        (
            {"gate": {"parameter": "foo"}},
            r"^policies\.gate\.policy, foo=0\.5: jepa\.selective\.Gate has no argument 'foo'",
        ),
        (
            {"gate": {"cache": BANK | {"shared": False}}},
            r"policies\.gate\.cache must be shared and hold 1 or more to be a bank, got .*'shared': False",
        ),
        (
            {"gate": {"cache": BANK | {"capacity": 0}}},
            r"policies\.gate\.cache must be shared and hold 1 or more to be a bank, got .*'capacity': 0",
        ),
        ({"gate": {"steps": SELECTION}}, r"policies\.gate\.steps must be null: no change detector"),
        ({"gate": {"policy": ON_DEMAND}}, r"policies\.gate predicts on demand, and these streams have no X-Encoder"),
    ],
)
def test_what_no_sweep_can_have_is_refused_before_it(change, message):
    streams = replace(stream_set("test", 2), changes=[], states=[])
    settings = {"references": REFERENCES, "tolerances": (0.0,), "confidence": 0.9, "gate": {}, **change}
    families = sweeps(POLICIES | {"gate": POLICIES["gate"] | settings.pop("gate")})
    decoder = NearestWord()
    with pytest.raises(InputError, match=message):
        sweep_setting(
            {"calibration": streams, "test": streams}, decoder, families, latent_delay=0.5, seed=0, name="", **settings
        )
    assert decoder.decoded == 0


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (SELECTION | {"hold": 0}, "policies.gate.steps: jepa.selective.StepSelection: hold must be a whole"),
        (GATE | {"threshold": 1.0}, "policies.gate.steps._target_ must build StepSelection, got Gate"),
    ],
)
def test_steps_that_cannot_be_name_their_key(steps, message):
    with pytest.raises(InputError) as error:
        sweeps({"gate": POLICIES["gate"] | {"steps": steps}})
    assert str(error.value).startswith(message)


def run_families(policies: dict, tolerances=(0.0,), decoder=None, workers: int = 0) -> dict:
    splits = {"calibration": stream_set("calibration", 1), "test": stream_set("test", 2)}
    every = sweeps({"uniform": POLICIES["uniform"], **policies})
    return sweep_setting(splits, decoder or NearestWord(), every, REFERENCES, 0.5, 0.9, 0, "made", tolerances, workers)


def test_each_point_says_the_latency_and_the_state_of_its_own_knob():
    gap = {"_target_": "jepa.selective.LongestGap", "policy": GATE | {"threshold": 2.0}}
    points = run_families({"gap": family(gap, "seconds", [2.0, 15.0])})["curves"]["gap"]["test"]
    late = "2 steps after the segment's last step, or {} s after the last text if that is sooner"
    assert [point["latency"] for point in points] == [late.format(2), late.format(15)]
    assert {point["state"] for point in points} == {Gate(2.0).state}


def test_a_cache_is_counted_as_what_it_is_and_audited():
    cache = {"capacity": 8, "shared": False, "error_rate": 0.05}
    swept = run_families(
        {"gate": family(GATE, "threshold", [1.0]), "cached": family(GATE, "threshold", [1.0], cache)}, (0.5,)
    )
    plain, cached = (next(o for o in swept["operations"] if o["policy"] == p)["ledger"] for p in ("gate", "cached"))
    counts = cached["cache"]
    assert counts["lookups"] == plain["decoder"]["calls"]
    assert counts["hits"] == counts["lookups"] - cached["decoder"]["calls"] > 0
    assert counts["audited"] == counts["hits"]
    point = swept["curves"]["cached"]["test"][0]
    assert point["decodes_per_second"] == pytest.approx(cached["decoder"]["calls"] / 360)
    error = point["cache"]["error"]
    assert (error["wrong"], error["hits"], error["lookups"]) == tuple(
        counts[key] for key in ("wrong_hits", "hits", "lookups")
    )
    assert {e["source"] for e in swept["emissions"]["cached"]} == {"decoder", "cache"}
    assert len(swept["emissions"]["cached"]) == len(swept["emissions"]["gate"])


def test_a_bank_answers_for_the_decoder_and_is_counted_and_audited_as_a_cache():
    policies = {"gate": family(GATE, "threshold", [1.0]), "banked": family(GATE, "threshold", [1.0], BANK)}
    swept = run_families(policies, (0.5,))
    plain, banked = (next(o for o in swept["operations"] if o["policy"] == p)["ledger"] for p in ("gate", "banked"))
    counts = banked["cache"]
    assert counts["lookups"] == plain["decoder"]["calls"]
    assert counts["hits"] == counts["audited"] == counts["lookups"] - banked["decoder"]["calls"] > 0
    assert counts["flops"] == 2 * 5 * 16 * counts["lookups"]  # of the five texts that any half of the streams has
    assert swept["curves"]["banked"]["cache"] == BANK
    point = swept["curves"]["banked"]["test"][0]
    assert point["decodes_per_second"] == pytest.approx(banked["decoder"]["calls"] / 360)
    assert point["cache"]["error"]["wrong"] == counts["wrong_hits"]
    assert point["cache"]["error"]["value"] <= BANK["error_rate"]


def test_a_bank_needs_streams_to_be_filled_from_and_others():
    splits = {"calibration": first_of(stream_set("calibration", 1), 3), "test": stream_set("test", 2)}
    families = sweeps(POLICIES | {"banked": family(GATE, "threshold", [1.0], BANK)})
    with pytest.raises(InputError, match=r"policies\.banked\.cache\.bank needs at least 4 calibration streams, got 3"):
        sweep_setting(splits, NearestWord(), families, REFERENCES, 0.5, 0.9, 0, "made")


def test_selected_steps_take_only_their_share_of_the_encoder():
    swept = run_families({"selected": family(GATE | {"pending": 1}, "threshold", [0.5], steps=SELECTION)}, (0.5,))
    row = next(o for o in swept["operations"] if o["policy"] == "selected")
    test = stream_set("test", 2)
    selection = StepSelection(0.5, burst=2, hold=4)
    steps = sum(int(selection.select(changes).sum()) for changes in test.changes)
    assert row["seconds_estimated"]
    assert row["ledger"]["steps"] == row["ledger"]["predictor"]["calls"] == steps < 6 * 120
    assert row["ledger"]["encoder"]["calls"] == steps  # windows of one slot


@pytest.mark.parametrize("steps", [None, SELECTION])
def test_predictions_on_demand_are_one_a_segment(steps):
    """Cut by the states, which are cut like the latents here; decoded is what was predicted at a step."""
    cache = {"capacity": 8, "shared": False, "error_rate": 0.05}
    plain, cached = (family(ON_DEMAND, "threshold", [0.5, 1.0], each, steps) for each in (None, cache))
    twice = family(ON_DEMAND | {"predictions": 2}, "threshold", [0.5, 1.0], None, steps)
    every = {
        "demand": plain,
        "cached": cached,
        "twice": twice,
        "gate": family(GATE, "threshold", [0.5, 1.0], steps=steps),
    }
    swept = run_families(every, (0.5,))
    rows = {row["policy"]: row["ledger"] for row in swept["operations"]}
    found, usual = rows["demand"], rows["gate"]
    assert found["predictor"]["calls"] == found["decoder"]["calls"] < usual["predictor"]["calls"]
    assert found["decoder"]["calls"] < rows["twice"]["predictor"]["calls"] <= 2 * rows["twice"]["decoder"]["calls"]
    assert rows["cached"]["predictor"]["calls"] == rows["cached"]["cache"]["lookups"]
    assert rows["cached"]["decoder"]["calls"] < rows["cached"]["predictor"]["calls"]
    assert found["encoder"]["calls"] == usual["encoder"]["calls"]
    assert found["steps"] == usual["steps"]
    for name in ("demand", "cached"):
        assert swept["curves"][name]["selects_steps"]
        assert swept["curves"][name]["causal"]
    ours, theirs = [[p["decodes_per_second"] for p in swept["curves"][name]["test"]] for name in ("demand", "gate")]
    assert ours == theirs
    texts = [p["cider_d"]["value"] for p in swept["curves"]["demand"]["test"]]
    assert min(texts) > 5  # decoded are latents, in which the words are, and not states


def test_the_oracle_cuts_at_the_annotations():
    oracle = {"_target_": "jepa.selective.Oracle", "representative": "mean"}
    swept = run_families({"oracle": family(oracle, "none", [0.0])})
    point = swept["curves"]["oracle"]["test"][0]
    assert point["decodes_per_second"] == pytest.approx(10 / 60)
    assert point["dense"]["temporal_f1"] == 1.0
    assert point["dense"]["tim_cover"] == 1.0


def test_an_oracle_with_a_cache_decodes_each_text_once():
    oracle = {"_target_": "jepa.selective.Oracle", "representative": "mean"}
    cache = {"capacity": 8, "shared": False, "error_rate": 0.5}
    swept = run_families(
        {"oracle": family(oracle, "none", [0.0]), "cached": family(oracle, "none", [0.0], cache)}, (0.5,)
    )
    plain, cached = (next(o for o in swept["operations"] if o["policy"] == p)["ledger"] for p in ("oracle", "cached"))
    assert cached["cache"]["lookups"] == plain["decoder"]["calls"] == 6 * 10
    assert cached["cache"]["hits"] == 60 - cached["decoder"]["calls"]
    texts = [len({event.text for event in record.events}) for record in stream_set("test", 2).records]
    assert cached["decoder"]["calls"] <= sum(texts)  # at most one of each text of a stream
    assert [e["time"] for e in swept["emissions"]["cached"]] == [e["time"] for e in swept["emissions"]["oracle"]]


class CountedCuts(Oracle):
    """An oracle that counts the streams it cuts."""

    cut = 0

    def firsts(self, latents, times):
        self.cut += 1
        return super().firsts(latents, times)


def test_remembered_cuts_are_those_of_each_stream():
    streams = stream_set("test", 2, streams=2)
    one, other = streams.records[0], replace(streams.records[1], events=streams.records[1].events[:3])
    latents, times = streams.latents[0], streams.times[0]  # of both: one video, annotated twice
    expected = []
    for record in (one, other):
        oracle = Oracle("mean")
        oracle.boundaries = [second for event in record.events for second in (event.start, event.end)]
        expected.append([(segment.first, segment.last, step) for segment, step in oracle.run(latents, times)])
    assert expected[0] != expected[1]
    policy = CountedCuts("mean")
    remembering = RememberingPolicy(policy, [one, other])
    for _ in range(3):
        found = [[(s.first, s.last, step) for s, step in remembering.run(latents, times)] for _ in range(2)]
        assert found == expected
    remembering.run(latents, times)
    remembering.start()  # the first stream again
    assert [(s.first, s.last, step) for s, step in remembering.run(latents, times)] == expected[0]
    assert policy.cut == 2


def test_a_decode_is_what_no_cache_answered():
    class Bank(NearestWord):
        def decode(self, latents):
            return [Decoded(decoded.text, 0, 0) for decoded in super().decode(latents)]

    cache = {"capacity": 8, "shared": False, "error_rate": 0.5}
    cached = {"cached": family(GATE, "threshold", [1.0], cache)}
    splits = {"calibration": stream_set("calibration", 1), "test": stream_set("test", 2)}
    every = sweeps({"uniform": POLICIES["uniform"], **cached})
    outcomes = [
        sweep_setting(splits, decoder, every, REFERENCES, 0.5, 0.9, 0, "made")["curves"]["cached"]
        for decoder in (NearestWord(), Bank())
    ]
    assert outcomes[0] == outcomes[1]
    assert outcomes[1]["test"][0]["cache"]["error"]["hits"] > 0


def test_a_tolerance_is_a_saving_of_its_own():
    swept = run_families({"gate": POLICIES["gate"]}, tolerances=(0.0, 0.5))
    rows = [s for s in swept["savings"] if s["policy"] == "gate" and s["reference"] == REFERENCES[0]]
    assert [row["tolerance"] for row in rows] == [0.0, 0.5]
    assert [row["headline"] for row in rows] == [True, False]
    assert rows[1]["saving"]["value"] >= rows[0]["saving"]["value"]
    assert rows[0]["temporal_f1_difference"]["value"] > 0  # a segment an event against six decodes an event
    assert swept["areas"]["gate"]["difference"]["value"] > 0


EVERY_KIND = {
    "pooled": family({"_target_": "jepa.selective.Uniform", "pool": True}, "rate_hz", [1.0, 0.3]),
    "gate": family(GATE | {"agreement": 8.0}, "threshold", [0.5, 1.0, 1.5, 2.0]),
    "cached": family(
        GATE | {"agreement": 8.0}, "threshold", [1.0, 2.0], {"capacity": 4, "shared": False, "error_rate": 0.1}
    ),
    "shared": family(GATE | {"agreement": 8.0}, "threshold", [1.0], {"capacity": 9, "shared": True, "error_rate": 0.1}),
    "sparse": family(GATE | {"pending": 1}, "threshold", [0.5, 1.0], None, SELECTION),
    "oracle": family({"_target_": "jepa.selective.Oracle", "representative": "mean"}, "none", [0.0]),
}


def without_wall_times(swept: dict) -> str:
    """The digits of a sweep."""

    def counted(node):
        if isinstance(node, dict):
            return {key: counted(value) for key, value in node.items() if key != "seconds"}
        return [counted(each) for each in node] if isinstance(node, list) else node

    return json.dumps(counted(swept))


def test_a_sweep_has_the_digits_of_single_steps_and_single_look_ups(monkeypatch):
    swept = without_wall_times(run_families(EVERY_KIND))

    def one_by_one(threshold, capacity, streams):
        cache, counts = LatentCache(threshold, capacity), []
        for latents, texts in streams:
            cache.start()
            wrong = hits = 0
            for latent, text in zip(latents, texts, strict=True):
                entry, hit = cache.look_up(latent)
                entry.decoded = entry.decoded or Decoded(text, 1, 1)
                hits, wrong = hits + hit, wrong + (entry.decoded.text != text)
            counts.append((wrong, hits))
        return np.array(counts).T

    monkeypatch.setattr(Gate, "run", Policy.run)
    monkeypatch.setattr(Uniform, "run", Policy.run)
    monkeypatch.setattr(calibration, "_replay_apart", one_by_one)
    assert without_wall_times(run_families(EVERY_KIND)) == swept


@pytest.mark.parametrize("workers", [2, 5])
def test_processes_change_no_digit(workers):
    here = NearestWord()
    alone = run_families(EVERY_KIND, decoder=here)
    parent = NearestWord()
    assert without_wall_times(run_families(EVERY_KIND, decoder=parent, workers=workers)) == without_wall_times(alone)
    operations = sum(row["ledger"]["decoder"]["calls"] for row in alone["operations"])
    assert operations <= parent.decoded < here.decoded  # here it only runs what the ledgers count, and checks hits


def test_an_error_in_a_process_is_told_as_without():
    test = stream_set("test", 2)
    test.latents[3][7, 2] = np.nan
    splits = {"calibration": stream_set("calibration", 1), "test": test}
    with pytest.raises(InputError, match="stream test-3: latents must be finite, got nan at step 7"):
        sweep_setting(splits, NearestWord(), sweeps(POLICIES), REFERENCES, 0.5, 0.9, 0, "made", workers=2)
    assert not multiprocessing.active_children()


class OnADevice(torch.nn.Module):
    """Decodes as `NearestWord`, with a parameter that is not on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(1, device="meta"))
        self.word = NearestWord()

    def decode(self, latents: torch.Tensor) -> list[Decoded]:
        return self.word.decode(latents)


def test_a_decoder_that_is_not_on_the_cpu_stays_in_this_process():
    alone, decoder = NearestWord(), OnADevice()
    swept = run_families(EVERY_KIND, decoder=decoder, workers=2)
    assert without_wall_times(swept) == without_wall_times(run_families(EVERY_KIND, decoder=alone))
    assert decoder.word.decoded == alone.decoded
