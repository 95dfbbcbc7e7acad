"""Policies swept over saved latents: curves, savings at equal quality, operation counts. No encoder runs here.

S streams, T steps, E embedding dimensions, N latents.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from jepa.config import build, build_as
from jepa.data.records import StreamRecord
from jepa.errors import InputError
from jepa.evaluation.processes import can_fork, in_processes
from jepa.evaluation.record import plain_ratio
from jepa.evaluation.streams import StreamSet
from jepa.metrics import (
    CaptionPairs,
    DenseScores,
    SweepPoint,
    area_between_curves,
    bootstrap_mean,
    dense_scores,
    document_frequency,
    paired_difference,
    saving_at_equal_quality,
    stream_scores,
    tokenize,
)
from jepa.models.bank import fill_bank
from jepa.operations import OperationLedger
from jepa.selective import (
    Decoded,
    Decoder,
    Emission,
    ErrorRate,
    LatentCache,
    OnDemand,
    Oracle,
    Policy,
    Segment,
    SelectiveDecoder,
    StepSelection,
    calibrate_threshold,
    decode_segments,
    measured_error,
    slots_needed,
)
from jepa.selective.decoder import collection_paused

NO_KNOB = "none"
_AUDITED = 256  # latents in a call of the decoder


@dataclass(frozen=True)
class Sweep:
    """A policy family: `make(value)` builds its `policy` with the `knob` at `value`.

    With a `cache` (`{capacity, shared, error_rate, bank}`) the texts of near latents are used again; its threshold is
    calibrated anew for each value of the knob. A `bank` is filled beforehand, with what the policy decodes of half the
    calibration streams, and calibrated on the other half. With `steps` the encoder runs at the steps that they select
    alone.
    """

    name: str
    label: str
    policy: Mapping[str, Any]
    knob: str
    values: tuple[float, ...]
    cache: Mapping[str, Any] | None = None
    steps: StepSelection | None = None

    @property
    def on_demand(self) -> bool:
        """Whether the Predictor runs once a segment."""
        return str(self.policy["_target_"]).endswith(f".{OnDemand.__name__}")

    @property
    def selects_steps(self) -> bool:
        """Whether the X-Encoder or the Predictor runs at some steps only."""
        return self.steps is not None or self.on_demand

    def make(self, value: float) -> Policy:
        policy: Policy = build(self.policy, **({} if self.knob == NO_KNOB else {self.knob: value}))
        return policy

    def cuts(self, value: float | None) -> str:
        """Equal for families that cut streams alike at this value; of None, for those that differ in their values."""
        return json.dumps([self.policy, self.knob, value, _key(self.steps)], sort_keys=True)


def _key(steps: StepSelection | None) -> tuple[float | None, int, int, int] | None:
    """Equal for selections of the same steps."""
    return None if steps is None else (steps.threshold, steps.burst, steps.hold, steps.refractory)


def sweeps(policies: Mapping[str, Mapping[str, Any]]) -> dict[str, Sweep]:
    """The policy families of a validated report configuration; the knob "none" is that of a policy without one.

    Raises:
        InputError: the `steps` of a family are no `StepSelection`, or one that refuses a value.
    """
    families = {}
    for name, p in policies.items():
        steps = None
        if p["steps"] is not None:
            with _naming(key := f"policies.{name}.steps"):
                steps = build_as(StepSelection, key, p["steps"])
        families[name] = Sweep(name, p["label"], p["policy"], p["knob"], tuple(p["values"]), p["cache"], steps)
    return families


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """Errors that do not name the key of the configuration that they are about do so."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(key) else f"{key}: {error}") from error


class RememberingDecoder:
    """Decodes equal latents once. For sweeps only: every policy's calls are counted all the same."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._known: dict[bytes, Decoded] = {}

    def decode(self, latents: torch.Tensor, payloads: Sequence[object] | None = None) -> list[Decoded]:
        keys = [row.tobytes() for row in latents.numpy()]
        new = {key: row for row, key in enumerate(keys) if key not in self._known}
        if new:
            decoded = self.decoder.decode(latents[list(new.values())])
            self._known.update(zip(new, decoded, strict=True))
        return [self._known[key] for key in keys]


class RememberingPolicy(Policy):
    """Cuts each stream of a split once. For sweeps only: they run all streams of a split, in order, several times.

    Args:
        policy: cuts.
        records: of the streams; an oracle is told where their events begin and end.
        states: of the streams, (T, D) each; what a policy that predicts on demand watches in place of the latents.
    """

    def __init__(
        self, policy: Policy, records: Sequence[StreamRecord], states: Sequence[np.ndarray] | None = None
    ) -> None:
        self.policy, self.records, self.states = policy, records, states
        self.name, self.causal, self.latency, self.state = policy.name, policy.causal, policy.latency, policy.state
        self._cuts: list[list[tuple[Segment, int]]] = []
        self.predicted: list[int] = []  # of each stream the embeddings that were asked for
        self._next = 0

    def start(self) -> None:
        """The next stream is the first one."""
        self._next = 0
        self.policy.start()

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        return self.policy.step(latent, time)

    def finish(self) -> list[Segment]:
        return self.policy.finish()

    def run(self, latents: np.ndarray, times: np.ndarray) -> list[tuple[Segment, int]]:
        if self._next == len(self._cuts):
            if isinstance(self.policy, Oracle):
                events = self.records[self._next].events
                self.policy.boundaries = [second for event in events for second in (event.start, event.end)]
            watched = latents
            if isinstance(self.policy, OnDemand) and self.states is not None:
                watched, self.policy.predict = self.states[self._next], self._recorded(latents)
            self._cuts.append(self.policy.run(watched, times))
        cut = self._cuts[self._next]
        self._next = (self._next + 1) % len(self.records)
        return cut

    def _recorded(self, latents: np.ndarray) -> Callable[[int], np.ndarray]:
        """The embeddings of a recorded stream, (T, E), which were all predicted; those asked for are counted."""
        self.predicted.append(0)

        def predict(step: int) -> np.ndarray:
            self.predicted[-1] += 1
            return latents[step]

        return predict


@dataclass(frozen=True)
class _Outcome:
    """A policy at one value of its knob, on the streams of a split."""

    emissions: list[list[Emission]]
    ledger: OperationLedger  # of the steps and of what was decoded, not of the encoding
    wrong: ErrorRate | None = None  # of the cache


@dataclass(frozen=True)
class _Run:
    """A family at one value of its knob, on both splits."""

    points: dict[str, SweepPoint]  # by split
    dense: list[DenseScores]  # of the test streams
    calibrated: LatentCache | None  # its cache
    wrong: ErrorRate | None  # of the cache, on the test streams


@dataclass(frozen=True)
class _Steps:
    """Latents and times of each stream, and its states, at the steps that are computed."""

    steps: list[tuple[np.ndarray, np.ndarray]]
    states: list[np.ndarray]


class _Split:
    """The streams of one split, what cuts them, and what scores emissions on them: the pool is one for all policies."""

    def __init__(self, streams: StreamSet, families: Collection[Sweep]) -> None:
        self.streams = streams
        events = [event for record in streams.records for event in record.events]
        self.pairs = CaptionPairs(document_frequency([[tokenize(event.text)] for event in events]))
        self._families = Counter(family.cuts(value) for family in families for value in family.values)
        self._remembering: dict[str, RememberingPolicy] = {}
        self._steps: dict[Any, _Steps] = {}

    def policy(self, family: Sweep, value: float) -> Policy:
        """A family's policy at a value, remembering its cuts where others need them too, and where it is an oracle."""
        key = family.cuts(value)
        if key in self._remembering:
            return self._remembering[key]
        policy = family.make(value)
        if self._families[key] > 1 or family.cache is not None or isinstance(policy, Oracle | OnDemand):
            states = self._chosen(family.steps).states if isinstance(policy, OnDemand) else None
            self._remembering[key] = RememberingPolicy(policy, self.streams.records, states)
            return self._remembering[key]
        return policy

    def forget_cuts(self) -> None:
        """Of the policies that came so far."""
        self._remembering.clear()

    def steps(self, selection: StepSelection | None) -> list[tuple[np.ndarray, np.ndarray]]:
        """Latents and times of each stream, at the steps that are computed."""
        return self._chosen(selection).steps

    def _chosen(self, selection: StepSelection | None) -> _Steps:
        key = _key(selection)
        if key not in self._steps:
            steps, states = list(zip(self.streams.latents, self.streams.times, strict=True)), self.streams.states
            if selection is not None:
                chosen = [selection.select(changes) for changes in self.streams.changes]
                steps = [(latents[mask], times[mask]) for (latents, times), mask in zip(steps, chosen, strict=True)]
                states = [each[mask] for each, mask in zip(states, chosen, strict=True)] if states else []
            self._steps[key] = _Steps(steps, states)
        return self._steps[key]

    def point(self, knob: float, emissions: Sequence[Sequence[Emission]]) -> SweepPoint:
        """Quality, and decoder calls: what a cache answered is none."""
        records = self.streams.records
        scores = [
            stream_scores(
                [event.text for event in record.events],
                np.array([event.midpoint for event in record.events]),
                [emission.text for emission in emitted],
                np.array([emission.time for emission in emitted]),
                self.pairs,
            )
            for record, emitted in zip(records, emissions, strict=True)
        ]
        calls = [sum(emission.source != "cache" for emission in emitted) for emitted in emissions]
        return SweepPoint(knob, tuple(scores), np.array(calls), np.array([record.duration for record in records]))

    def dense(self, emissions: Sequence[Sequence[Emission]]) -> list[DenseScores]:
        """What nearest-in-time scores do not see, of each stream."""
        return [
            dense_scores(
                [event.text for event in record.events],
                [(event.start, event.end) for event in record.events],
                [emission.text for emission in emitted],
                [emission.time for emission in emitted],
                np.array([(emission.start, emission.end) for emission in emitted]).reshape(-1, 2),
                record.duration,
                self.pairs.similarity,
            )
            for record, emitted in zip(self.streams.records, emissions, strict=True)
        ]


def sweep_setting(
    streams: Mapping[str, StreamSet],
    decoder: Decoder,
    families: Mapping[str, Sweep],
    references: Sequence[Mapping[str, Any]],
    latent_delay: float,
    confidence: float,
    seed: int,
    name: str,
    tolerances: Sequence[float] = (0.0,),
    workers: int = 0,
) -> dict[str, Any]:
    """Curves, savings, operations and emissions of one setting.

    `streams` has the splits `calibration` and `test`. Whatever is chosen or calibrated (the value of a knob, the
    threshold of a cache) is so on the calibration streams. A reference is `{policy, rate_hz}`; the first one, at the
    first of the `tolerances`, is the headline. The pool of document frequencies is one for all policies of a split:
    its annotations.

    With two or more `workers` as many forked processes share the families and values, each with a copy of the decoder
    in memory that they share. With fewer, with a decoder that is on a GPU, or on a system that cannot fork, they run
    one after the other in this process. The results are the same. What the operations' ledgers hold, wall times among
    it, is always counted in this process, when the others have ended.

    Raises:
        InputError: before anything runs, for references, values, tolerances or a confidence that no sweep can have.

    Returns:
        `curves`, `savings`, `areas` and `operations` of the results schema, and `emissions`: for the policies that the
        strip shows, those on the first test stream.
    """
    check_sweep(families, references, confidence, tolerances)
    for family in families.values():
        if family.steps is not None and not all(split.changes for split in streams.values()):
            raise InputError(f"policies.{family.name}.steps must be null: no change detector looked at these streams")
        if family.on_demand and not all(split.states for split in streams.values()):
            raise InputError(f"policies.{family.name} predicts on demand, and these streams have no X-Encoder states")
        if family.cache is not None and family.cache["bank"] and (count := len(streams["calibration"].records)) < 4:
            raise InputError(f"policies.{family.name}.cache.bank needs at least 4 calibration streams, got {count}")
    remembering = RememberingDecoder(decoder)
    splits = {split: _Split(streams[split], families.values()) for split in ("calibration", "test")}
    if not (can_fork() and _on_cpu(decoder)):
        workers = 0

    def work(part: Sequence[tuple[Sweep, float]]) -> Iterator[_Run]:
        return _runs(splits, part, remembering, latent_delay, seed)

    runs: dict[tuple[str, float], _Run] = {}
    parts = _parts(families.values(), max(1, workers))
    with closing(in_processes(work, parts, workers) if workers > 1 else _in_order(work, parts)) as results:
        waiting = [iter(part) for part in parts]
        total = sum(map(len, parts))
        for number, run in tqdm(results, desc=f"policies, {name}", unit="run", total=total):
            family, value = next(waiting[number])
            runs[family.name, value] = run
    points: dict[str, dict[str, dict[float, SweepPoint]]] = {
        family.name: {
            kind: {value: runs[family.name, value].points[kind] for value in family.values} for kind in splits
        }
        for family in families.values()
    }
    dense = {key: run.dense for key, run in runs.items()}
    caches = {key: run.calibrated for key, run in runs.items() if run.calibrated is not None}
    wrong = {key: run.wrong for key, run in runs.items()}
    savings = list(_savings(points, dense, families, references, tolerances, confidence, seed))
    operations: list[dict[str, Any]] = []
    strip: dict[str, list[dict[str, Any]]] = {}
    test = streams["test"]
    for policy, knob in _operating_points(savings, references):
        family = families[policy]
        outcome = _decode(splits["test"], family, knob, decoder, remembering, latent_delay, caches.get((policy, knob)))
        ledger, ran = outcome.ledger, splits["test"].policy(family, knob)
        for index in range(len(test.records)):
            predicted = ran.predicted[index] if isinstance(ran, RememberingPolicy) and family.on_demand else None
            ledger = ledger + _encoding(test, index, family.steps, predicted)
        operations.append(
            {
                "policy": policy,
                "knob": knob,
                "ledger": ledger.to_dict(),
                "seconds_estimated": family.selects_steps,
            }
        )
        strip.setdefault(policy, [asdict(emission) for emission in outcome.emissions[0]])
    curves = {
        family.name: _curve(family, points[family.name], dense, caches, wrong, seed) for family in families.values()
    }
    baseline = list(points[references[0]["policy"]]["test"].values())
    areas = {
        family: asdict(area_between_curves(baseline, list(found["test"].values()), seed=seed))
        for family, found in points.items()
        if family != references[0]["policy"]
    }
    return {"curves": curves, "savings": savings, "areas": areas, "operations": operations, "emissions": strip}


def check_sweep(
    families: Mapping[str, Sweep],
    references: Sequence[Mapping[str, Any]],
    confidence: float,
    tolerances: Sequence[float] = (0.0,),
) -> None:
    """Raises `InputError` for what `sweep_setting` would stumble over after minutes, as far as no stream is needed."""
    if not 0 < confidence <= 1:
        raise InputError(f"confidence must be in (0, 1], got {confidence}")
    for key, values in (("references", references), ("tolerances", tolerances)):
        if not values:
            raise InputError(f"{key} must hold at least one, got none")
    for index, tolerance in enumerate(tolerances):
        if not 0 <= tolerance < 1:
            raise InputError(f"tolerances[{index}] must be in [0, 1), got {tolerance}")
    for name, family in families.items():
        if not family.values or len(set(family.values)) < len(family.values):
            raise InputError(f"policies.{name}.values must be one or more distinct values, got {list(family.values)}")
        cache = family.cache
        if cache is not None and cache["bank"] and not (cache["shared"] and cache["capacity"]):
            raise InputError(f"policies.{name}.cache must be shared and hold 1 or more to be a bank, got {dict(cache)}")
        for value in family.values:
            with _naming(f"policies.{name}.policy, {family.knob}={value:g}"):
                family.make(value)
    for index, reference in enumerate(references):
        policy, rate = reference["policy"], reference["rate_hz"]
        if policy not in families or rate not in families[policy].values:
            raise InputError(
                f"references[{index}] must be one of the swept policies and values, got {policy} at {rate:g} Hz"
            )


def _on_cpu(decoder: Decoder) -> bool:
    return not isinstance(decoder, torch.nn.Module) or all(p.device.type == "cpu" for p in decoder.parameters())


def _parts(families: Collection[Sweep], processes: int) -> list[list[tuple[Sweep, float]]]:
    """All families and values, in parts for processes, the longest first.

    What is cut alike stands together, then what differs in the value alone: it has latents and texts in common. No part
    is longer than one process's fraction, if it can be cut; a cache counts for two more runs, which calibrate it.
    """
    groups: dict[str, dict[str, list[tuple[Sweep, float]]]] = {}
    for family in families:
        for value in family.values:
            alike = groups.setdefault(family.cuts(None), {}).setdefault(family.cuts(value), [])
            alike.append((family, value))

    def length(runs: Sequence[tuple[Sweep, float]]) -> int:
        return sum(1 if family.cache is None else 3 for family, _ in runs)

    fraction = sum(length(runs) for group in groups.values() for runs in group.values()) / processes
    parts: list[list[tuple[Sweep, float]]] = []
    for group in groups.values():
        part: list[tuple[Sweep, float]] = []
        for runs in group.values():
            if part and length(part) + length(runs) > fraction:
                parts.append(part)
                part = []
            part = part + runs
        parts.append(part)
    return sorted(parts, key=length, reverse=True)


def _in_order(
    work: Callable[[Sequence[tuple[Sweep, float]]], Iterator[_Run]], parts: Sequence[Sequence[tuple[Sweep, float]]]
) -> Generator[tuple[int, _Run]]:
    """`in_processes` without processes."""
    with collection_paused():
        for number, part in enumerate(parts):
            for run in work(part):
                yield number, run


def _runs(
    splits: Mapping[str, _Split],
    part: Sequence[tuple[Sweep, float]],
    decoder: Decoder,
    latent_delay: float,
    seed: int,
) -> Iterator[_Run]:
    """Runs the families at the values of a part, first on the calibration streams, then on the test streams."""
    cuts = ""
    for family, value in part:
        if family.cuts(value) != cuts:
            cuts = family.cuts(value)
            for split in splits.values():
                split.forget_cuts()
        calibrated = wrong = None
        points: dict[str, SweepPoint] = {}
        dense: list[DenseScores] = []
        for kind, split in splits.items():
            if family.cache is not None and kind == "calibration":
                calibrated = _calibrate(split, family, value, decoder, seed)
            auditor = decoder if kind == "test" else None
            outcome = _decode(split, family, value, decoder, auditor, latent_delay, calibrated)
            points[kind] = split.point(value, outcome.emissions)
            if kind == "test":
                dense, wrong = split.dense(outcome.emissions), outcome.wrong
        yield _Run(points, dense, calibrated, wrong)


def _calibrate(split: _Split, family: Sweep, value: float, decoder: Decoder, seed: int) -> LatentCache:
    """A family's cache, calibrated on what its policy cuts."""
    settings = family.cache or {}
    capacity, error_rate = settings["capacity"], settings["error_rate"]
    with _naming_streams(split.streams):
        decoded = decode_segments(split.policy(family, value), decoder, split.steps(family.steps))
        if settings["bank"]:
            return fill_bank(decoded, error_rate, capacity=capacity, seed=seed)[0]
        shared = settings["shared"]
        found = calibrate_threshold(decoded, error_rate, capacity=capacity, shared=shared, seed=seed)
        return LatentCache(found.threshold, capacity, shared=shared)


def _decode(
    split: _Split,
    family: Sweep,
    value: float,
    decoder: Decoder,
    auditor: Decoder | None,
    latent_delay: float,
    calibrated: LatentCache | None,
) -> _Outcome:
    """Runs a policy; the hits of its cache are checked against `auditor`, if given, which counts as no operation."""
    policy, wrong = split.policy(family, value), None
    cache = None if calibrated is None else calibrated.fresh()
    selective = SelectiveDecoder(policy, decoder, cache=cache, latent_delay=latent_delay)
    steps = split.steps(family.steps)
    with _naming_streams(split.streams):
        emissions = selective.run_many(steps)
    if cache is not None and auditor is not None:
        wrong = _audit(policy, emissions, steps, auditor)
        selective.ledger.count_cache(audited=wrong.hits, wrong_hits=wrong.wrong)
    return _Outcome(emissions, selective.ledger, wrong)


def _audit(
    policy: Policy,
    emissions: Sequence[Sequence[Emission]],
    steps: Sequence[tuple[np.ndarray, np.ndarray]],
    decoder: Decoder,
) -> ErrorRate:
    """How often the text of a hit is not what the decoder says for its own latent."""
    wrong, hits = [], []
    for stream, emitted in zip(steps, emissions, strict=True):
        pairs = zip(policy.run(*stream), emitted, strict=True)
        reused = [(segment.latent, emission.text) for (segment, _), emission in pairs if emission.source == "cache"]
        own: list[str] = []
        for start in range(0, len(reused), _AUDITED):
            latents = np.stack([latent for latent, _ in reused[start : start + _AUDITED]])
            own += [decoded.text for decoded in decoder.decode(torch.from_numpy(latents))]
        wrong.append(sum(text != said for (_, text), said in zip(reused, own, strict=True)))
        hits.append(len(reused))
    return measured_error(np.array(wrong), np.array(hits), np.array([len(emitted) for emitted in emissions]))


def _encoding(
    streams: StreamSet, index: int, selection: StepSelection | None, predicted: int | None = None
) -> OperationLedger:
    """What encoding one stream takes, and predicting at every step computed, or at `predicted` of them.

    The whole stream was encoded once. Of the steps that a selection takes, calls and FLOPs are exact (all calls cost
    the same FLOPs), wall time is estimated by the mean of a call; so of the embeddings predicted on demand.
    """
    whole, ledger = streams.ledgers[index], OperationLedger()
    ledger.stream(whole.stream_seconds)
    calls = {"encoder": whole.encoder.calls, "predictor": whole.predictor.calls}
    if selection is not None:
        mask = selection.select(streams.changes[index])
        calls = {"encoder": slots_needed(mask, streams.hop, streams.length), "predictor": int(mask.sum())}
        if selection.threshold is not None:
            ledger.count("detector", **asdict(whole.detector))
    if predicted is not None:
        calls["predictor"] = predicted
    for part, count in calls.items():
        once = getattr(whole, part)
        fraction = count / once.calls if once.calls else 0.0
        ledger.count(
            part,
            calls=count,
            forward_passes=round(once.forward_passes * fraction),
            flops=round(once.flops * fraction),
            seconds=once.seconds * fraction,
            weight_bytes=round(once.weight_bytes * fraction),
        )
    return ledger


@contextmanager
def _naming_streams(streams: StreamSet) -> Iterator[None]:
    """Errors about `stream 3` name its video instead."""
    try:
        yield
    except InputError as error:
        number, colon, rest = str(error).removeprefix("stream ").partition(": ")
        if not (colon and number.isdigit()):
            raise
        raise InputError(f"stream {streams.records[int(number)].video_id}: {rest}") from None


def _savings(
    points: Mapping[str, Mapping[str, Mapping[float, SweepPoint]]],
    dense: Mapping[tuple[str, float], Sequence[DenseScores]],
    families: Mapping[str, Sweep],
    references: Sequence[Mapping[str, Any]],
    tolerances: Sequence[float],
    confidence: float,
    seed: int,
) -> Iterator[dict[str, Any]]:
    for number, (reference, tolerance) in enumerate(product(references, tolerances)):
        name, rate = reference["policy"], reference["rate_hz"]
        for family in families.values():
            saving = saving_at_equal_quality(
                points[name]["calibration"][rate],
                list(points[family.name]["calibration"].values()),
                points[name]["test"][rate],
                list(points[family.name]["test"].values()),
                confidence=confidence,
                tolerance=tolerance,
                seed=seed,
            )
            difference = None
            if saving.knob is not None:
                ours, theirs = (
                    [scores.temporal_f1_merged for scores in dense[key]]
                    for key in ((family.name, saving.knob), (name, rate))
                )
                difference = asdict(paired_difference(ours, theirs, seed=seed))
            found = asdict(saving) | {"saving": plain_ratio(saving.saving)}
            yield {
                "reference": dict(reference),
                "tolerance": tolerance,
                "headline": number == 0,
                "policy": family.name,
                **found,
                "temporal_f1_difference": difference,
            }


def _operating_points(
    savings: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]
) -> list[tuple[str, float]]:
    """The headline reference itself, then each policy where it is as good, or loses the least of the tolerances."""
    first = references[0]
    chosen = {first["policy"]: first["rate_hz"]}
    for saving in savings:
        if saving["reference"] == first and saving["knob"] is not None:
            chosen.setdefault(saving["policy"], saving["knob"])
    return list(chosen.items())


def _curve(
    family: Sweep,
    points: Mapping[str, Mapping[float, SweepPoint]],
    dense: Mapping[tuple[str, float], Sequence[DenseScores]],
    caches: Mapping[tuple[str, float], LatentCache],
    wrong: Mapping[tuple[str, float], ErrorRate | None],
    seed: int,
) -> dict[str, Any]:
    policy = family.make(family.values[0])
    curve: dict[str, Any] = {
        "label": family.label,
        "causal": policy.causal,
        "oracle": isinstance(policy, Oracle),
        "knob": family.knob,
        "cache": None if family.cache is None else dict(family.cache),
        "selects_steps": family.selects_steps,
    }
    for kind, by_knob in points.items():
        curve[kind] = [
            {
                "knob": knob,
                "decodes_per_second": point.decodes_per_second,
                "cider_d": asdict(bootstrap_mean(point.scores, seed=seed)),
            }
            for knob, point in by_knob.items()
        ]
    for row in curve["test"]:
        key = (family.name, row["knob"])
        scores = [asdict(stream) for stream in dense[key]]
        policy = family.make(row["knob"])
        row["latency"], row["state"] = policy.latency, policy.state
        row["dense"] = {name: float(np.mean([stream[name] for stream in scores])) for name in scores[0]}
        error = wrong[key]
        if error is not None:
            row["cache"] = {"threshold": caches[key].threshold, "error": asdict(error)}
    return curve
