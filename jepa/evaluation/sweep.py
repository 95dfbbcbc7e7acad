"""Policies swept over saved latents: curves, savings at equal quality, operation counts. No encoder runs here.

A policy's segments are found once, as plain data. Calibration of caches, decoding, audit and scores work on them.

S streams, T steps, E embedding dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, astuple, dataclass
from itertools import chain, product
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from jepa.build import build, build_as
from jepa.config import PolicyConfig
from jepa.data.records import StreamRecord
from jepa.errors import InputError
from jepa.evaluation.processes import can_fork, in_processes
from jepa.evaluation.segments import CachedDecoder, Recorded, encoding_operations, segment_streams
from jepa.evaluation.streams import StreamSet, density
from jepa.metrics import (
    CaptionPairs,
    DenseScores,
    SweepPoint,
    area_between_curves,
    bootstrap_mean,
    dense_scores,
    document_frequency,
    saving_at_equal_quality,
    stream_scores,
    tokenize,
)
from jepa.models.bank import fill_bank
from jepa.results import Ratio, Sweep, documents
from jepa.results.documents import CacheSettings, Decode, EstimatedSeconds, Operations, Point, Reference, Saving
from jepa.selective import (
    Decoder,
    Emission,
    ErrorRate,
    LatentCache,
    OnDemand,
    Oracle,
    Policy,
    SelectiveDecoder,
    StepSelection,
    calibrate_threshold,
    measured_error,
)

NO_PARAMETER = "none"


@dataclass(frozen=True)
class Family:
    """A policy over the values of its parameter: `make(value)` builds it from the node `policy`.

    With a `cache` the texts of near latents are used again; its threshold is calibrated anew for each value. A bank is
    filled from half the calibration streams and calibrated on the other half. With `steps`, the node of a
    `StepSelection`, the encoder runs at the selected steps alone.

    >>> Family("uniform", "uniform", {"_target_": "jepa.selective.Uniform"}, "rate_hz", (2.0, 1.0)).make(2.0).causal
    True
    """

    name: str
    label: str
    policy: Mapping[str, Any]
    parameter: str
    values: tuple[float, ...]
    cache: CacheSettings | None = None
    steps: Mapping[str, Any] | None = None

    @property
    def on_demand(self) -> bool:
        """Whether the Predictor runs once a segment."""
        return str(self.policy["_target_"]).endswith(f".{OnDemand.__name__}")

    @property
    def selects_steps(self) -> bool:
        """Whether the X-Encoder or the Predictor runs at some steps only."""
        return self.steps is not None or self.on_demand

    @property
    def selection(self) -> StepSelection | None:
        """The selection of steps, built anew."""
        key = f"policies.{self.name}.steps"
        with _naming(key):
            return None if self.steps is None else build_as(StepSelection, key, self.steps)

    def make(self, value: float) -> Policy:
        """The policy at a value of its parameter."""
        policy: Policy = build(self.policy, **({} if self.parameter == NO_PARAMETER else {self.parameter: value}))
        return policy

    @property
    def segmentation(self) -> str:
        """Equal for families that segment streams alike at equal values: they differ in their cache at most."""
        return json.dumps([self.policy, self.parameter, self.steps], sort_keys=True)


def sweep_families(policies: Mapping[str, PolicyConfig]) -> dict[str, Family]:
    """The policy families of a report's configuration (`PolicyConfig` by name).

    Raises:
        InputError: the `steps` of a family are no `StepSelection`, or one that refuses a value.
    """
    families = {}
    for name, each in policies.items():
        cache = None if each.cache is None else CacheSettings.model_validate(each.cache, from_attributes=True)
        families[name] = Family(name, each.label, each.policy, each.parameter, tuple(each.values), cache, each.steps)
        families[name].selection  # noqa: B018  (refuses what it cannot be)
    return families


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """An error that does not begin with the configuration's key gets it."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(key) else f"{key}: {error}") from error


class Swept(NamedTuple):
    """A sweep, and for each policy with operations its emissions on the first test stream."""

    sweep: Sweep
    emissions: dict[str, tuple[Decode, ...]]


def sweep_setting(
    streams: Mapping[str, StreamSet],
    decoder: Decoder,
    families: Mapping[str, Family],
    references: Sequence[Reference],
    *,
    latent_delay: float,
    confidence: float,
    seed: int,
    name: str,
    tolerances: Sequence[float] = (0.0,),
    workers: int = 0,
) -> Swept:
    """Curves, savings and operations of one setting.

    Parameters and cache thresholds are chosen on the calibration streams alone. The first reference at the first of
    the `tolerances` is the headline. Document frequencies come from all annotations of a split.

    Two or more `workers` are forked processes that share the work, where the decoder is on the CPU. The results are
    the same. The ledgers of the operations are counted in this process, when the others have ended.

    Args:
        streams: the splits `calibration` and `test`.
        latent_delay: seconds from a latent's time until it can be known.
        confidence: as for `saving_at_equal_quality`.
        name: of the setting, in the progress bar and in errors.
        tolerances: fractions of the reference's quality that may be lost.

    Raises:
        InputError: before anything runs, for options that no sweep can have, streams without annotations, and latents
            that no decoder takes.
    """
    check_sweep(families, references, confidence, tolerances)
    _check_streams(streams, decoder, families, name)
    scorers = {split: _Scorer(streams[split].records) for split in ("calibration", "test")}
    once = CachedDecoder(decoder)

    def work(jobs: Sequence[_Job]) -> Iterator[tuple[str, float, _Run]]:
        for job in jobs:
            yield from _runs(streams, scorers, job, once, latent_delay, seed)

    workers = workers if workers > 1 and can_fork() and _on_cpu(decoder) else 0
    found: dict[tuple[str, float], _Run] = {}
    with closing(in_processes(work, _tasks(families.values(), max(1, workers)), workers)) as results:
        total = sum(len(family.values) for family in families.values())
        for _, (family, value, run) in tqdm(results, desc=f"policies, {name}", unit="run", total=total):
            found[family, value] = run
    runs = {name: {value: found[name, value] for value in family.values} for name, family in families.items()}
    savings = tuple(_savings(runs, references, tolerances, confidence, seed))
    operations, emissions = [], {}
    for policy, value in _operating_points(savings, references[0]):
        row, emitted = _operations(streams["test"], families[policy], value, runs[policy][value], decoder, latent_delay)
        operations.append(row)
        emissions[policy] = tuple(Decode(**asdict(emission)) for emission in emitted)
    test = {policy: [run.points["test"] for run in by_value.values()] for policy, by_value in runs.items()}
    baseline = test.pop(references[0].policy)
    areas = {policy: area_between_curves(baseline, points, seed=seed) for policy, points in test.items()}
    sweep = Sweep(
        **density(streams["test"].records),
        curves={policy: _curve(families[policy], by_value, seed) for policy, by_value in runs.items()},
        savings=savings,
        areas=areas,
        operations=tuple(operations),
    )
    return Swept(sweep, emissions)


def check_sweep(
    families: Mapping[str, Family],
    references: Sequence[Reference],
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
        if cache is not None and cache.bank and not (cache.shared and cache.capacity):
            raise InputError(f"policies.{name}.cache must be shared and hold 1 or more to be a bank, got {cache}")
        for value in family.values:
            with _naming(f"policies.{name}.policy, {family.parameter}={value:g}"):
                family.make(value)
    for index, (policy, rate) in enumerate((reference.policy, reference.rate_hz) for reference in references):
        if policy not in families or rate not in families[policy].values:
            raise InputError(
                f"references[{index}] must be one of the swept policies and values, got {policy} at {rate:g} Hz"
            )


def _check_streams(
    streams: Mapping[str, StreamSet], decoder: Decoder, families: Mapping[str, Family], name: str
) -> None:
    """Raises `InputError` for streams that a family cannot do with, or that the selective decoder refuses."""
    if not any(record.events for record in streams["test"].records):
        raise InputError(f"{name}: the test streams must hold at least one annotated event")
    for family in families.values():
        if family.steps is not None and not all(split.changes for split in streams.values()):
            raise InputError(f"policies.{family.name}.steps must be null: no change detector looked at these streams")
        if family.on_demand and not all(split.states for split in streams.values()):
            raise InputError(f"policies.{family.name} predicts on demand, and these streams have no X-Encoder states")
        if family.cache is not None and family.cache.bank and (count := len(streams["calibration"].records)) < 4:
            raise InputError(f"policies.{family.name}.cache.bank needs at least 4 calibration streams, got {count}")
    for split in streams.values():
        for record, latents, times in zip(split.records, split.latents, split.times, strict=True):
            with _naming(f"stream {record.video_id}"):
                SelectiveDecoder(Recorded([[]]), decoder).run(latents, times)


def _on_cpu(decoder: Decoder) -> bool:
    return not isinstance(decoder, torch.nn.Module) or all(p.device.type == "cpu" for p in decoder.parameters())


# --- Runs: a family at one value, on both splits.


class _Job(NamedTuple):
    """Families whose segments at `value` are the same."""

    value: float
    families: tuple[Family, ...]

    @property
    def length(self) -> int:
        """In runs; a cache counts for two more, which calibrate it."""
        return sum(1 if family.cache is None else 3 for family in self.families)


class _Run(NamedTuple):
    """What a family did at one value: points by split, scores and cache errors of the test streams."""

    points: dict[str, SweepPoint]
    dense: list[DenseScores]
    cache: LatentCache | None
    error: ErrorRate | None


def _tasks(families: Iterable[Family], processes: int) -> list[list[_Job]]:
    """All jobs, in tasks for processes, the longest first.

    Values of the same families stand together, since they have latents and texts in common. No task is longer than one
    process's part, if it can be cut.
    """
    groups: dict[str, list[Family]] = {}
    for family in families:
        groups.setdefault(family.segmentation, []).append(family)
    jobs = []
    for group in groups.values():
        values = dict.fromkeys(chain.from_iterable(family.values for family in group))
        jobs.append([_Job(value, tuple(family for family in group if value in family.values)) for value in values])
    longest = sum(job.length for each in jobs for job in each) / processes
    tasks: list[list[_Job]] = []
    for each in jobs:
        tasks.append([])
        for job in each:
            if tasks[-1] and sum(other.length for other in tasks[-1]) + job.length > longest:
                tasks.append([])
            tasks[-1].append(job)
    return sorted(tasks, key=lambda task: -sum(job.length for job in task))


def _runs(
    streams: Mapping[str, StreamSet],
    scorers: Mapping[str, _Scorer],
    job: _Job,
    decoder: Decoder,
    latent_delay: float,
    seed: int,
) -> Iterator[tuple[str, float, _Run]]:
    """Runs the families of a job over the segments that they share."""
    family = job.families[0]
    segments = {split: segment_streams(streams[split], family.make(job.value), family.selection) for split in scorers}
    for family in job.families:
        cache, error = None, None
        if family.cache is not None:
            cache = _calibrated(segments["calibration"].decoded(decoder), family.cache, seed)
        emissions = {split: found.emissions(decoder, cache, latent_delay)[0] for split, found in segments.items()}
        if cache is not None:
            error = _audit(segments["test"].decoded(decoder), emissions["test"])
        points = {split: scorers[split].point(job.value, emitted) for split, emitted in emissions.items()}
        yield family.name, job.value, _Run(points, scorers["test"].dense(emissions["test"]), cache, error)


def _calibrated(decoded: Sequence[tuple[np.ndarray, list[str]]], settings: CacheSettings, seed: int) -> LatentCache:
    """A cache, or a bank, calibrated on decoded streams."""
    if settings.bank:
        return fill_bank(decoded, settings.error_rate, capacity=settings.capacity, seed=seed)[0]
    found = calibrate_threshold(
        decoded, settings.error_rate, capacity=settings.capacity, shared=settings.shared, seed=seed
    )
    return LatentCache(found.threshold, settings.capacity, shared=settings.shared)


def _audit(decoded: Sequence[tuple[np.ndarray, list[str]]], emissions: Sequence[Sequence[Emission]]) -> ErrorRate:
    """How often the text of a hit is not what the decoder says for its own latent."""
    hits, wrong = [], []
    for (_, texts), emitted in zip(decoded, emissions, strict=True):
        reused = [
            emission.text != text for text, emission in zip(texts, emitted, strict=True) if emission.source == "cache"
        ]
        hits.append(len(reused))
        wrong.append(sum(reused))
    return measured_error(np.array(wrong), np.array(hits), np.array([len(emitted) for emitted in emissions]))


class _Scorer:
    """Scores emissions against the annotations of a split, which are the pool of document frequencies."""

    def __init__(self, records: Sequence[StreamRecord]) -> None:
        self.records, self.texts = records, [[event.text for event in record.events] for record in records]
        self.pairs = CaptionPairs(document_frequency([[tokenize(text)] for texts in self.texts for text in texts]))

    def point(self, value: float, emissions: Sequence[Sequence[Emission]]) -> SweepPoint:
        """Quality, and decoder calls: what a cache answered is none."""
        scores = []
        for record, texts, emitted in zip(self.records, self.texts, emissions, strict=True):
            middles, times = np.array([event.midpoint for event in record.events]), np.array([e.time for e in emitted])
            scores.append(stream_scores(texts, middles, [e.text for e in emitted], times, self.pairs))
        calls = np.array([sum(emission.source != "cache" for emission in emitted) for emitted in emissions])
        return SweepPoint(value, tuple(scores), calls, np.array([record.duration for record in self.records]))

    def dense(self, emissions: Sequence[Sequence[Emission]]) -> list[DenseScores]:
        """What nearest-in-time scores do not see, of each stream."""
        return [
            dense_scores(
                texts,
                [(event.start, event.end) for event in record.events],
                [emission.text for emission in emitted],
                [emission.time for emission in emitted],
                np.array([(emission.start, emission.end) for emission in emitted]).reshape(-1, 2),
                record.duration,
                self.pairs.similarity,
            )
            for record, texts, emitted in zip(self.records, self.texts, emissions, strict=True)
        ]


# --- What the document says of the runs.


Runs = Mapping[str, Mapping[float, _Run]]


def _savings(
    runs: Runs, references: Sequence[Reference], tolerances: Sequence[float], confidence: float, seed: int
) -> Iterator[Saving]:
    for number, (reference, tolerance) in enumerate(product(references, tolerances)):
        theirs = runs[reference.policy][reference.rate_hz]
        for policy, ours in runs.items():
            found = saving_at_equal_quality(
                theirs.points["calibration"],
                [run.points["calibration"] for run in ours.values()],
                theirs.points["test"],
                [run.points["test"] for run in ours.values()],
                confidence=confidence,
                tolerance=tolerance,
                seed=seed,
            )
            difference = None
            if found.value is not None:
                pairs = zip(ours[found.value].dense, theirs.dense, strict=True)
                f1_differences = [[mine.temporal_f1_merged - other.temporal_f1_merged] for mine, other in pairs]
                difference = bootstrap_mean(f1_differences, seed=seed)
            yield Saving(
                reference=reference,
                tolerance=tolerance,
                headline=number == 0,
                policy=policy,
                temporal_f1_difference=difference,
                **vars(found) | {"ratio": Ratio.of(found.ratio)},
            )


def _operating_points(savings: Sequence[Saving], first: Reference) -> list[tuple[str, float]]:
    """The headline reference itself, then each policy where it is as good, or loses the least of the tolerances."""
    chosen = {first.policy: first.rate_hz}
    for saving in savings:
        if saving.reference == first and saving.value is not None:
            chosen.setdefault(saving.policy, saving.value)
    return list(chosen.items())


def _operations(
    streams: StreamSet, family: Family, value: float, run: _Run, decoder: Decoder, latent_delay: float
) -> tuple[Operations, list[Emission]]:
    """What an operating point takes on the test streams, and its emissions on the first one."""
    segments = segment_streams(streams, family.make(value), family.selection)
    emissions, ledger = segments.emissions(decoder, run.cache, latent_delay)
    if run.error is not None:
        ledger.count_cache(audited=run.error.hits, wrong_hits=run.error.wrong)
    encoder = predictor = 0.0
    for index in range(len(streams.records)):
        predicted = None if segments.predicted is None else segments.predicted[index]
        encoding, estimated = encoding_operations(streams, index, family.selection, predicted)
        ledger.merge(encoding)
        encoder, predictor = encoder + estimated.encoder, predictor + estimated.predictor
    seconds = EstimatedSeconds(encoder=encoder, predictor=predictor) if family.selects_steps else None
    return Operations(policy=family.name, value=value, ledger=ledger, estimated=seconds), emissions[0]


def _curve(family: Family, runs: Mapping[float, _Run], seed: int) -> documents.Curve:
    policies = {value: family.make(value) for value in family.values}
    first = policies[family.values[0]]
    return documents.Curve(
        label=family.label,
        causal=first.causal,
        oracle=isinstance(first, Oracle),
        parameter=family.parameter,
        cache=family.cache,
        selects_steps=family.selects_steps,
        calibration=tuple(_point(run.points["calibration"], seed) for run in runs.values()),
        test=tuple(
            documents.TestPoint(
                **dict(_point(run.points["test"], seed)),
                latency=policies[value].latency,
                state=policies[value].state,
                dense=DenseScores(*(float(np.mean(scores)) for scores in zip(*map(astuple, run.dense), strict=True))),
                cache=_cache_result(run),
            )
            for value, run in runs.items()
        ),
    )


def _point(point: SweepPoint, seed: int) -> Point:
    quality = bootstrap_mean(point.scores, seed=seed)
    return Point(value=point.value, decodes_per_second=point.decodes_per_second, cider_d=quality)


def _cache_result(run: _Run) -> documents.CacheResult | None:
    if run.cache is None or run.error is None:
        return None
    return documents.CacheResult(threshold=run.cache.threshold, error=documents.CacheError(**vars(run.error)))
