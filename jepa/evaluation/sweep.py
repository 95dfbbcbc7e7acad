"""Policies swept over saved latents: curves, savings at equal quality, operation counts. No encoder runs here.

A policy's segments are found once, as plain data. Calibration of caches, decoding, audit and scores work on them.

S streams, T steps, E embedding dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, astuple
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from jepa import checkpoint
from jepa.build import build, build_as
from jepa.config import CacheConfig, PolicyConfig, ReportConfig, SweepConfig
from jepa.data.json_lines import located
from jepa.data.records import StreamRecord, density
from jepa.errors import InputError
from jepa.evaluation.provenance import code_version, describe_device, kept_in, now
from jepa.evaluation.streams import (
    SPLITS,
    EncodedStream,
    Said,
    Segments,
    encoding_operations,
    load_streams,
    read_out,
    segment_streams,
)
from jepa.kept import Kept, KeptInMemory
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
from jepa.processes import in_processes
from jepa.results import (
    Ratio,
    Requirement,
    Setting,
    StreamEvaluation,
    StreamResults,
    Sweep,
    documents,
    is_kind,
    read_document,
)
from jepa.results.documents import CacheSettings, Decode, EstimatedSeconds, Operations, Point, Reference, Saving
from jepa.selective import (
    CachedDecoder,
    CheckedStream,
    Decoded,
    Decoder,
    Emission,
    ErrorRate,
    LatentCache,
    OnDemand,
    OnTrigger,
    Oracle,
    Policy,
    Recorded,
    SelectiveDecoder,
    StandingText,
    StepSelection,
    calibrate_standing,
    calibrate_threshold,
    measured_error,
)
from jepa.selective.cache import CacheEntry
from jepa.selective.calibration import checked_streams, errors, replay
from jepa.selective.decoder import collection_paused

Streams = Mapping[str, Sequence[EncodedStream]]  # by split: `calibration` and `test`


def make_policy(config: PolicyConfig, value: float) -> Policy:
    """The policy at a value of its parameter."""
    policy: Policy = build(config.policy, **({} if config.parameter == "none" else {config.parameter: value}))
    return policy


def builds(config: PolicyConfig, kind: type[Policy]) -> bool:
    """Whether the configuration is of a policy of that kind."""
    return str(config.policy["_target_"]).endswith(f".{kind.__name__}")


def _selection(config: PolicyConfig) -> StepSelection | None:
    return None if config.steps is None else build_as(StepSelection, "steps", config.steps)


class Swept(NamedTuple):
    """A sweep, and for each policy with operations its emissions on the first test stream."""

    sweep: Sweep
    emissions: dict[str, tuple[Decode, ...]]


@collection_paused()
def sweep_setting(
    streams: Streams,
    decoder: Decoder,
    config: SweepConfig,
    *,
    latent_delay: float,
    name: str,
    tolerances: Sequence[float] = (0.0,),
    store: Kept | None = None,
) -> Swept:
    """Curves, savings and operations of one setting, called `name`.

    Parameters and cache thresholds are chosen on the calibration streams alone, thresholds anew for each value; half of
    these streams fill a bank. The first reference at the first of the `tolerances` (fractions of its quality that may
    be lost) is the headline. `latent_delay`: seconds from a latent's time until it can be known.

    Where the decoder is on the CPU, two or more `workers` are forked processes that share the work, with the same
    results; the ledgers of the operations are counted in this process.

    Raises:
        InputError: before anything runs, for wrong options, streams without annotations, and latents of a wrong width.
    """
    check_sweep(config)
    _check_streams(streams, decoder, config.policies, name)
    on_gpu = isinstance(decoder, torch.nn.Module) and any(p.device.type != "cpu" for p in decoder.parameters())
    policies, seed, workers = config.policies, config.seed, 0 if on_gpu else config.workers
    streams = read_out(streams) if any(builds(each, OnDemand) for each in policies.values()) else streams
    store, of = store or KeptInMemory(), f"{name} {seed} {latent_delay}"
    made_of = {policy: each.model_dump_json(exclude={"label", "values"}) for policy, each in policies.items()}
    kept_as = {(policy, x): f"{of} {made_of[policy]} {x}" for policy, each in policies.items() for x in each.values}
    found: dict[tuple[str, float], _Run] = {key: run for key in kept_as if (run := store.find(kept_as[key]))}
    left = kept_as.keys() - found.keys()
    setting = _Setting(streams, decoder, config, latent_delay)
    setting.store, setting.kept_as = store, kept_as
    with (
        tqdm(desc=f"policies, {name}", unit="run", total=len(left)) as progress,
        closing(in_processes(setting.runs, _tasks(policies, left, max(1, workers)), workers)) as results,
    ):
        for runs in results:
            found.update(runs)
            progress.update(len(runs))
    by_policy = {policy: {value: found[policy, value] for value in each.values} for policy, each in policies.items()}
    savings = tuple(_savings(by_policy, config, tolerances))
    operations, emissions = [], {}
    for policy, value in tqdm(_operating_points(savings), desc=f"operating points, {name}", unit="policy"):
        row, emitted = setting.operations(policy, value, found[policy, value])
        operations.append(row)
        emissions[policy] = tuple(Decode(**asdict(emission)) for emission in emitted)
    test = {policy: [run.points["test"] for run in runs.values()] for policy, runs in by_policy.items()}
    baseline = test.pop(config.references[0].policy)
    areas = {policy: area_between_curves(baseline, points, seed=seed) for policy, points in test.items()}
    sweep = Sweep(
        **density([stream.record for stream in streams["test"]]),
        curves={policy: _curve(policies[policy], runs, seed) for policy, runs in by_policy.items()},
        savings=savings,
        areas=areas,
        operations=tuple(operations),
    )
    return Swept(sweep, emissions)


def check_sweep(config: SweepConfig) -> None:
    """Raises `InputError` for what a sweep would stumble over after minutes, as far as no stream is needed."""
    for name, policy in config.policies.items():
        key = f"policies.{name}"
        if len(set(policy.values)) < len(policy.values):
            raise InputError(f"{key}.values must be distinct, got {policy.values}")
        if policy.cache is not None and policy.cache.bank and not policy.cache.shared:
            raise InputError(f"{key}.cache must be shared to be a bank, got {policy.cache}")
        with located(f"{key}.steps"):
            _selection(policy)
        for value in policy.values:
            with located(f"{key}.policy, {policy.parameter}={value:g}"):
                make_policy(policy, value)
    for index, reference in enumerate(config.references):
        swept = config.policies.get(reference.policy)
        if swept is None or reference.rate_hz not in swept.values:
            found = f"{reference.policy} at {reference.rate_hz:g} Hz"
            raise InputError(f"references[{index}] must be one of the swept policies and values, got {found}")


def _check_streams(streams: Streams, decoder: Decoder, policies: Mapping[str, PolicyConfig], setting: str) -> None:
    """Raises `InputError` for streams that a policy cannot do with, or that the selective decoder refuses."""
    if not any(stream.record.events for stream in streams["test"]):
        raise InputError(f"{setting}: the test streams must hold at least one annotated event")
    every = [stream for split in streams.values() for stream in split]
    for name, policy in policies.items():
        if policy.steps is not None and any(stream.changes is None for stream in every):
            raise InputError(f"policies.{name}.steps must be null: no change detector looked at these streams")
        if builds(policy, OnDemand) and any(stream.states is None for stream in every):
            raise InputError(f"policies.{name} predicts on demand, and these streams have no X-Encoder states")
        if policy.cache is not None and policy.cache.standing and not hasattr(decoder, "likelihood"):
            raise InputError(f"policies.{name}.cache.standing needs a decoder with likelihood(), got {decoder}")
        if builds(policy, OnTrigger) and not (policy.policy.get("sentences") and hasattr(decoder, "embed_all")):
            raise InputError(f"policies.{name} needs sentences and a model with a Y-Encoder, got {policy.policy}")
        if policy.cache is not None and policy.cache.bank and (count := len(streams["calibration"])) < 4:
            raise InputError(f"policies.{name}.cache.bank needs at least 4 calibration streams, got {count}")
    for stream in every:
        with located(f"stream {stream.record.video_id}"):
            SelectiveDecoder(Recorded([[]]), decoder).run(stream.latents, stream.times)


def stream_results(folder: Path, config: ReportConfig) -> StreamResults | None:
    """Policies swept over the saved latents of an evaluation; None where the folder holds none of a VL-JEPA's streams.

    Raises:
        InputError: a broken evaluation, or bad policies, references or requirements.
    """
    path = folder / StreamEvaluation.file_name
    if not is_kind(path, StreamEvaluation):
        return None
    evaluation: StreamEvaluation = read_document(path, StreamEvaluation)
    if config.fail_under is not None:  # before the sweep
        Requirement.parse(config.fail_under).check("streams", evaluation.settings)
    trained = Path(config.checkpoint or folder / evaluation.checkpoint)
    model, saved = checkpoint.load(trained), sorted(folder.glob("*/*/latents.safetensors"))
    kinds = (_Run, SweepPoint, DenseScores, ErrorRate, LatentCache, CacheEntry, Decoded)
    with kept_in(Path(config.output or folder.parent), trained, kinds, lasting=True, streams=saved) as store:
        return sweep_evaluation(evaluation, folder, model, config, store)


def sweep_evaluation(
    evaluation: StreamEvaluation, folder: Path, decoder: Decoder, config: ReportConfig, store: Kept | None = None
) -> StreamResults:
    """Policies swept over the latents that an evaluation saved in its folder. The decoder is on the CPU."""
    device = describe_device("cpu")

    def swept(name: str, encoded: documents.EncodedStreams) -> Setting:
        streams = {split: load_streams(folder / name / split) for split in SPLITS}
        delay, tolerances = evaluation.latent_delay, config.tolerances
        sweep, emissions = sweep_setting(
            streams, decoder, config, latent_delay=delay, name=name, tolerances=tolerances, store=store
        )
        first, counts = streams["test"][0].record, {split: len(each) for split, each in streams.items()}
        return Setting(
            **dict(sweep),
            description=encoded.description,
            step_rate_hz=encoded.step_rate_hz,
            streams=documents.StreamCounts(**counts, seconds_each=encoded.seconds_each),
            timeline=documents.Timeline(
                video_id=first.video_id,
                duration=first.duration,
                thumbnails=encoded.thumbnails,
                events=tuple(documents.Event(start=e.start, end=e.end, text=e.text) for e in first.events),
                decodes=emissions,
            ),
            one_device=device == evaluation.device,
        )

    common = {"created", "name", "seed", "code", "libraries", "device", "parameters", "training", "scores", "session"}
    return StreamResults(
        **{key: value for key, value in evaluation if key in common},
        config={**evaluation.config, "report": config.model_dump()},
        settings={name: swept(name, encoded) for name, encoded in evaluation.settings.items()},
        sweep=documents.SweepOrigin(created=now(), code=code_version(), device=device),
    )


# --- Runs: a policy at one value, on both splits.


_TOGETHER = 8  # streams cut before their segments are decoded


class _Job(NamedTuple):
    """Policies with the same segments at `value`. `length` is in runs; a cache counts for two more, to calibrate it."""

    value: float
    policies: tuple[str, ...]
    length: int


class _Run(NamedTuple):
    """What a policy did at one value: points by split, scores and cache errors of the test streams."""

    points: dict[str, SweepPoint]
    dense: list[DenseScores]
    cache: LatentCache | None
    error: ErrorRate | None
    single: float | None  # CIDEr-D of the test streams against one text of each event, where events have more


def _tasks(
    policies: Mapping[str, PolicyConfig], left: Container[tuple[str, float]], processes: int
) -> list[list[_Job]]:
    """The jobs left, in tasks for processes, the longest first, none longer than a process's part if it can be cut.

    Values of the same policies stand together, since they have latents and texts in common.
    """
    groups: dict[str, dict[float, list[str]]] = {}
    for name, policy in policies.items():
        group = groups.setdefault(json.dumps([policy.policy, policy.parameter, policy.steps], sort_keys=True), {})
        for value in policy.values:
            if (name, value) in left:
                group.setdefault(value, []).append(name)
    jobs = []
    for group in groups.values():
        lengths = [sum(1 if policies[name].cache is None else 3 for name in names) for names in group.values()]
        jobs.append([_Job(value, tuple(group[value]), length) for value, length in zip(group, lengths, strict=True)])
    longest = sum(job.length for each in jobs for job in each) / processes
    tasks: list[list[_Job]] = []
    for each in jobs:
        tasks.append([])
        for job in each:
            if tasks[-1] and sum(other.length for other in tasks[-1]) + job.length > longest:
                tasks.append([])
            tasks[-1].append(job)
    return sorted(tasks, key=lambda task: -sum(job.length for job in task))


class _Setting:
    """The streams of a setting, how they are decoded, and what keeps their runs, under the names `kept_as`."""

    store: Kept
    kept_as: Mapping[tuple[str, float], str]

    def __init__(self, streams: Streams, decoder: Decoder, config: SweepConfig, latent_delay: float) -> None:
        self.streams, self.decoder, self.config, self.latent_delay = streams, decoder, config, latent_delay
        self.once = CachedDecoder(decoder)
        self.scorers = {split: _Scorer([stream.record for stream in each]) for split, each in streams.items()}

    def _policy(self, config: PolicyConfig, value: float) -> Policy:
        """The policy at a value; the Y-Encoder embeds the sentences that it watches for."""
        policy = make_policy(config, value)
        if isinstance(policy, OnTrigger):
            model: Any = self.decoder
            policy.watch(model.embed_all(policy.sentences).numpy())
        return policy

    def runs(self, jobs: Sequence[_Job]) -> dict[tuple[str, float], _Run]:
        """The runs of jobs, by policy and value."""
        found, known = {}, dict[tuple[int, ...], CheckedStream]()
        said = {split: self._said(jobs, streams) for split, streams in self.streams.items()}
        for number, job in enumerate(jobs):
            splits = {split: each[number] for split, each in said.items()}
            for name in job.policies:
                run = partial(self._run, job.value, self.config.policies[name].cache, splits, known)
                found[name, job.value] = self.store.get(self.kept_as[name, job.value], run)
        return found

    def _said(self, jobs: Sequence[_Job], streams: Sequence[EncodedStream]) -> list[list[Said]]:
        """What is said of the streams by each job; jobs share what they find in a stream, and its texts.

        Few streams at a time: most segments are let go of before memory is touched that was never used.
        """
        configs = [self.config.policies[job.policies[0]] for job in jobs]
        policies = [self._policy(config, job.value) for config, job in zip(configs, jobs, strict=True)]
        said: list[list[Said]] = [[] for _ in jobs]
        for first in range(0, len(streams), _TOGETHER):
            cut = [Segments([], []) for _ in jobs]
            for stream in streams[first : first + _TOGETHER]:
                shared = dict[object, object]()
                for policy, config, segments in zip(policies, configs, cut, strict=True):
                    segments.extend(segment_streams([stream], policy, _selection(config), [shared]))
            known = dict[int, tuple[np.ndarray, str]]()
            for job, segments, own in zip(jobs, cut, said, strict=True):
                found = segments.said(self.once, known)
                cached = any(self.config.policies[name].cache for name in job.policies)
                own += found if cached else [each._replace(latents=[]) for each in found]
        return said

    def _run(
        self,
        value: float,
        settings: CacheConfig | None,
        said: Mapping[str, list[Said]],
        known: dict[tuple[int, ...], CheckedStream],
    ) -> _Run:
        """`known` holds the streams of which a cache was asked, by the identity of their latents."""
        cache = error = None
        if settings is not None:
            decoded = {split: [_checked(each, known) for each in streams] for split, streams in said.items()}
            cache = _calibrated(decoded["calibration"], settings, self.decoder, self.config.seed)
            replayed = {split: replay(cache, each) for split, each in decoded.items()}
            own = [each.texts for each in said["test"]]
            error = measured_error(*errors(own, replayed["test"]), np.array([*map(len, own)]))
            said = {
                split: [each.answered(*found) for each, found in zip(streams, replayed[split], strict=True)]
                for split, streams in said.items()
            }
        points = {split: self.scorers[split].point(value, each) for split, each in said.items()}
        scorer = self.scorers["test"]
        return _Run(points, scorer.dense(said["test"]), cache, error, scorer.single(said["test"]))

    def operations(self, name: str, value: float, run: _Run) -> tuple[Operations, list[Emission]]:
        """What an operating point takes on the test streams, and its emissions on the first one."""
        policy, streams = self.config.policies[name], self.streams["test"]
        selection, made = _selection(policy), self._policy(policy, value)
        segments = segment_streams(streams, made, selection)
        emissions, ledger = segments.emissions(self.decoder, run.cache, self.latent_delay)
        if run.error is not None:
            ledger.count_cache(audited=run.error.hits, wrong_hits=run.error.wrong)
        encoder = predictor = 0.0
        for stream, found in zip(streams, segments.found, strict=True):
            encoding, estimated = encoding_operations(stream, selection, made, found)
            ledger.merge(encoding)
            encoder, predictor = encoder + estimated.encoder, predictor + estimated.predictor
        seconds = EstimatedSeconds(encoder=encoder, predictor=predictor) if encoder or predictor else None
        return Operations(policy=name, value=value, ledger=ledger, estimated=seconds), emissions[0]


def _checked(said: Said, known: dict[tuple[int, ...], CheckedStream]) -> CheckedStream:
    """A stream as caches take it; one object for equal latents, which are compared once."""
    if (key := tuple(map(id, said.latents))) not in known:
        (known[key],) = checked_streams([(np.stack(said.latents), said.texts)], shared=False)
    return known[key]


def _calibrated(decoded: Sequence[CheckedStream], settings: CacheConfig, decoder: Decoder, seed: int) -> LatentCache:
    """A cache, a bank, or a verified standing text, calibrated on decoded streams."""
    if settings.standing:
        verifier: Any = decoder
        return calibrate_standing(StandingText(-1.0, verifier), decoded, settings.error_rate, seed=seed)
    if settings.bank:
        return fill_bank(decoded, settings.error_rate, capacity=settings.capacity, seed=seed)[0]
    found = calibrate_threshold(
        decoded, settings.error_rate, capacity=settings.capacity, shared=settings.shared, seed=seed
    )
    return LatentCache(found.threshold, settings.capacity, shared=settings.shared)


class _Scorer:
    """Scores what was said against the annotations of a split, which are the pool of document frequencies."""

    def __init__(self, records: Sequence[StreamRecord]) -> None:
        self.records, self.texts = records, [[event.references for event in record.events] for record in records]
        self.middles = [np.array([event.midpoint for event in record.events]) for record in records]
        self.events = [np.array([(e.start, e.end) for e in record.events]).reshape(-1, 2) for record in records]
        every = [references for texts in self.texts for references in texts]
        self.pairs = CaptionPairs(document_frequency([list(map(tokenize, references)) for references in every]))

    def point(self, value: float, said: Sequence[Said]) -> SweepPoint:
        """Quality, and decoder calls: what a cache answered is none."""
        calls, seconds = np.array([each.decodes for each in said]), np.array([each.duration for each in self.records])
        return SweepPoint(value, self._scores(self.texts, said), calls, seconds)

    def single(self, said: Sequence[Said]) -> float | None:
        """Quality against one text of each event alone, under the same pool; None where events have but one."""
        if not any(event.others for record in self.records for event in record.events):
            return None
        return float(np.concatenate(self._scores([[e.text for e in r.events] for r in self.records], said)).mean())

    def _scores(self, texts: Sequence[Any], said: Sequence[Said]) -> tuple[np.ndarray, ...]:
        return tuple(
            stream_scores(described, middles, each.texts, each.times, self.pairs)
            for described, middles, each in zip(texts, self.middles, said, strict=True)
        )

    def dense(self, said: Sequence[Said]) -> list[DenseScores]:
        """What nearest-in-time scores do not see, of each stream."""
        return [
            dense_scores(texts, events, each.texts, each.times, each.spans, record.duration, self.pairs.similarity)
            for record, texts, events, each in zip(self.records, self.texts, self.events, said, strict=True)
        ]


# --- What the document says of the runs.


Runs = Mapping[str, Mapping[float, _Run]]


def _savings(runs: Runs, config: SweepConfig, tolerances: Sequence[float]) -> Iterator[Saving]:
    for number, (reference, tolerance) in enumerate(product(config.references, tolerances)):
        theirs = runs[reference.policy][reference.rate_hz]
        for policy, ours in runs.items():
            found = saving_at_equal_quality(
                theirs.points["calibration"],
                [run.points["calibration"] for run in ours.values()],
                theirs.points["test"],
                [run.points["test"] for run in ours.values()],
                confidence=config.confidence,
                tolerance=tolerance,
                seed=config.seed,
            )
            difference = None
            if found.value is not None:
                pairs = zip(ours[found.value].dense, theirs.dense, strict=True)
                f1_differences = [[mine.temporal_f1_merged - other.temporal_f1_merged] for mine, other in pairs]
                difference = bootstrap_mean(f1_differences, seed=config.seed)
            yield Saving(
                reference=Reference(**dict(reference)),
                tolerance=tolerance,
                headline=number == 0,
                policy=policy,
                temporal_f1_difference=difference,
                **vars(found) | {"ratio": Ratio.of(found.ratio)},
            )


def _operating_points(savings: Sequence[Saving]) -> list[tuple[str, float]]:
    """The headline reference itself, then each policy where it is as good, or loses the least of the tolerances."""
    first = savings[0].reference
    chosen = {first.policy: first.rate_hz}
    for saving in savings:
        if saving.reference == first and saving.value is not None:
            chosen.setdefault(saving.policy, saving.value)
    return list(chosen.items())


def _curve(config: PolicyConfig, runs: Mapping[float, _Run], seed: int) -> documents.Curve:
    policies = {value: make_policy(config, value) for value in runs}
    first = policies[config.values[0]]
    return documents.Curve(
        label=config.label,
        causal=first.causal,
        oracle=isinstance(first, Oracle),
        parameter=config.parameter,
        cache=None if config.cache is None else CacheSettings(**dict(config.cache)),
        calibration=tuple(_point(run.points["calibration"], seed) for run in runs.values()),
        test=tuple(
            documents.TestPoint(
                **dict(_point(run.points["test"], seed)),
                latency=policies[value].latency,
                state=policies[value].state,
                one_reference=run.single,
                dense=DenseScores(*(float(np.mean(scores)) for scores in zip(*map(astuple, run.dense), strict=True))),
                cache=None
                if run.cache is None or run.error is None
                else documents.CacheResult(
                    threshold=run.cache.threshold, error=documents.CacheError(**vars(run.error))
                ),
            )
            for value, run in runs.items()
        ),
    )


def _point(point: SweepPoint, seed: int) -> Point:
    quality = bootstrap_mean(point.scores, seed=seed)
    return Point(value=point.value, decodes_per_second=point.decodes_per_second, cider_d=quality)
