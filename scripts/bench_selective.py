"""Speed of the policies: a step of the gate, offline Ward, and the sweep of `jepa report` over recorded streams.

    python scripts/bench_selective.py [--quick] [--processes 1]

The latents are synthetic. The gate takes a stream that does not end, 1,536 wide, and its state is weighed on the way.
Ward is timed beside scikit-learn's `AgglomerativeClustering` with the same connectivity.

The sweep is that of `jepa report`: 200 streams of six minutes at 2 Hz, half to calibrate on and half to test on, with
all families and values of conf/policies/standard.yaml, caches and their calibration, scores, savings and intervals.
The decoder is a stand-in that says the caption of the nearest of 64 meanings. Its times are by the wall and of all
processors together.

Beside it stand the segments alone: each policy and value over the 200 streams, with a decoder that does nothing and
without caches and scores. Families that differ in their cache or their steps alone count once. This time, and the times
of the gate and Ward, are CPU times of one thread. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import pickle
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from sklearn.cluster import AgglomerativeClustering
from sklearn.feature_extraction.image import grid_to_graph
from tqdm import tqdm

from jepa.build import build_as
from jepa.cli import compose
from jepa.config import ReportConfig, validate
from jepa.data.records import Event, StreamRecord
from jepa.evaluation.streams import EncodedStream
from jepa.evaluation.sweep import sweep_setting
from jepa.operations import OperationLedger
from jepa.selective import Decoded, Gate, OnDemand, Oracle, Policy, SelectiveDecoder
from jepa.selective.policies.ward import segment_count, ward_mergers

STEP_RATE = 2.0
STEPS = 720  # six minutes
WORDS = ["red", "blue", "green", "white", "circle", "star", "ring", "cross", "grows", "spins", "blinks", "shakes"]
Stream = tuple[np.ndarray, np.ndarray]


class Silent:
    """A decoder that does nothing."""

    def decode(self, latents: torch.Tensor, payloads: Sequence[object] | None = None) -> Sequence[Decoded]:
        return [Decoded("", tokens=1, forward_passes=1)] * len(latents)


def synthetic(seed: int, steps: int, width: int) -> Stream:
    """A stream of events of 5 s on average: noisy latents (steps, width) and their times."""
    rng = np.random.default_rng(seed)
    events = np.cumsum(rng.random(steps) < 0.2 / STEP_RATE)
    latents = rng.standard_normal((steps + 1, width), dtype=np.float32)[events]
    latents += 0.7 * rng.standard_normal((steps, width), dtype=np.float32)
    latents /= np.linalg.norm(latents, axis=1, keepdims=True)
    return latents, np.arange(steps) / STEP_RATE


class Nearest:
    """A decoder that says the caption of the nearest of 64 meanings (64, width), unit float32."""

    def __init__(self, width: int) -> None:
        rng = np.random.default_rng(0)
        meanings = rng.standard_normal((64, width), dtype=np.float32)
        self.meanings = meanings / np.linalg.norm(meanings, axis=1, keepdims=True)
        self.captions = [" ".join(rng.choice(WORDS, 6)) for _ in range(64)]
        self._transposed = torch.from_numpy(np.ascontiguousarray(self.meanings.T))

    def decode(self, latents: torch.Tensor, payloads: Sequence[object] | None = None) -> Sequence[Decoded]:
        return [Decoded(self.captions[i], 7, 7) for i in (latents @ self._transposed).argmax(dim=1).tolist()]


def annotated(seeds: range, decoder: Nearest) -> list[EncodedStream]:
    """A stream of six minutes a seed: events of 2.5 s on average, noisy latents, which stand for states, too."""
    streams = []
    width = decoder.meanings.shape[1]
    times = 0.25 + np.arange(STEPS) / STEP_RATE
    for seed in seeds:
        rng = np.random.default_rng(seed)
        begins = rng.random(STEPS) < 0.4 / STEP_RATE
        begins[0] = True
        said = rng.integers(64, size=int(begins.sum()))
        latents = decoder.meanings[said[np.cumsum(begins) - 1]]
        latents += 0.8 / np.sqrt(width) * rng.standard_normal((STEPS, width), dtype=np.float32)
        latents /= np.linalg.norm(latents, axis=1, keepdims=True)
        starts = (np.flatnonzero(begins) / STEP_RATE).tolist()
        ends = [*starts[1:], STEPS / STEP_RATE]
        events = [
            Event(start, end, decoder.captions[number]) for start, end, number in zip(starts, ends, said, strict=True)
        ]
        ledger = OperationLedger()
        ledger.stream(STEPS / STEP_RATE)
        ledger.count("predictor", calls=STEPS, forward_passes=STEPS)
        record = StreamRecord(f"stream-{seed}", STEPS / STEP_RATE, tuple(events))
        changes = (2 * begins + rng.random(STEPS)).astype(np.float32)
        streams.append(EncodedStream(record, latents, times, ledger, changes, states=latents))
    return streams


def report_sweep(count: int, width: int, processes: int) -> dict[str, float]:
    """Seconds that the sweep of `jepa report` takes over `count` streams: by the wall, and of all processors."""
    config, decoder = validate(compose("report", [f"workers={processes}"]), ReportConfig), Nearest(width)
    streams = {
        "calibration": annotated(range(count // 2), decoder),
        "test": annotated(range(count // 2, count), decoder),
    }
    wall, processor = time.perf_counter(), processor_seconds()
    sweep_setting(streams, decoder, config, latent_delay=0.5, name=f"{width} wide", tolerances=config.tolerances)
    taken = {"wall": time.perf_counter() - wall, "processor": processor_seconds() - processor}
    return {name: round(seconds, 2) for name, seconds in taken.items()}


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def gate_steps(steps: int, width: int) -> dict[str, float]:
    """Time of a gate's step and what its state weighs, a tenth of the way and at the end.

    Returns:
        Mean microseconds a step, bytes of the pickled state, and megabytes by which the process grew between the two.
    """
    latents, _ = synthetic(0, STEPS, width)
    gate, seconds, sizes, peaks = Gate(1.0), 0.0, [], []
    for part in tqdm(range(10), desc=f"{steps:,} steps of the gate, {width} wide"):
        start = time.process_time()
        for i in range(part * steps // 10, (part + 1) * steps // 10):
            gate.step(latents[i % STEPS], i / STEP_RATE)
        seconds += time.process_time() - start
        sizes.append(len(pickle.dumps(gate)))
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return {
        "microseconds": round(1e6 * seconds / steps, 2),
        "state_bytes_first": sizes[0],
        "state_bytes_last": sizes[-1],
        "grown_mb": round(peaks[-1] - peaks[0], 2),
    }


def ward_times(steps: int, width: int, repetitions: int) -> dict[str, float]:
    """Milliseconds of `Ward`'s mergers and of scikit-learn's clusters for one stream, the best of some repetitions."""
    latents, times = synthetic(1, steps, width)
    number = segment_count(0.35, times)
    connectivity = grid_to_graph(steps, 1)
    clusters = AgglomerativeClustering(number, linkage="ward", connectivity=connectivity)
    ours = 1e3 * best(lambda: ward_mergers(latents), repetitions)
    sklearn = 1e3 * best(lambda: clusters.fit(latents), repetitions)
    return {"ours_ms": round(ours, 2), "sklearn_ms": round(sklearn, 2), "ratio": round(ours / sklearn, 3)}


def best(what: Callable[[], object], repetitions: int) -> float:
    """Seconds of the fastest of some calls."""
    seconds = []
    for _ in range(repetitions):
        start = time.process_time()
        what()
        seconds.append(time.process_time() - start)
    return min(seconds)


def segment_seconds(families: Mapping[str, Mapping[str, Any]], streams: Sequence[Stream]) -> dict[str, float]:
    """Seconds that each family takes over all streams, at all of its values together."""
    seconds = {}
    for name, family in tqdm(families.items(), desc=f"segments, {streams[0][0].shape[1]} wide", unit="family"):
        start, shared = time.process_time(), [dict[Any, Any]() for _ in streams]
        for policy in policies(family):
            decode(policy, streams, shared)
        seconds[name] = round(time.process_time() - start, 2)
    return seconds


def report_configuration() -> dict[str, Any]:
    """The configuration of `jepa report`."""
    configuration: Any = OmegaConf.to_container(compose("report"))
    return dict(configuration)


def configured_families() -> dict[str, Mapping[str, Any]]:
    """The policy families of `jepa report`, the first of each policy and its values."""
    families = report_configuration()["policies"]
    first: dict[str, str] = {}
    for name, family in families.items():
        first.setdefault(json.dumps([family["policy"], family["parameter"], family["values"]]), name)
    return {name: families[name] for name in first.values()}


def policies(family: Mapping[str, Any]) -> Iterator[Policy]:
    """The policy of a family at each of its values."""
    for value in family["values"]:
        given = {} if family["parameter"] == "none" else {family["parameter"]: value}
        yield build_as(Policy, "policy", family["policy"], **given)  # type: ignore[type-abstract]


def decode(policy: Policy, streams: Sequence[Stream], shared: Sequence[dict[Any, Any]]) -> int:
    """Decode all streams, an oracle with a boundary every 5 s, predictions at hand; return the number of texts."""
    decoder = SelectiveDecoder(policy, Silent())
    texts = 0
    for (latents, times), policy.shared in zip(streams, shared, strict=True):
        if isinstance(policy, OnDemand):
            policy.predict = latents.__getitem__
        elif isinstance(policy, Oracle):
            policy.boundaries = np.arange(0.0, times[-1], 5.0).tolist()
        texts += len(decoder.run(latents, times))
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps and streams, under 50 s")
    parser.add_argument("--processes", type=int, default=2, help="that share the sweep, one thread each")
    arguments = parser.parse_args()
    quick, processes = arguments.quick, arguments.processes
    torch.set_num_threads(1)
    families, widths = configured_families(), (128, 1536)
    count = 4 if quick else 200
    gate = gate_steps(50_000 if quick else 1_000_000, 1536)
    wards = {width: ward_times(STEPS, width, 3 if quick else 10) for width in widths}
    reports = {width: report_sweep(count, width, processes) for width in widths}
    segments = {
        width: segment_seconds(families, [synthetic(seed, STEPS, width) for seed in range(count)]) for width in widths
    }
    print(f"gate: {gate['microseconds']:.1f} µs a step, its state {gate['state_bytes_last']:,} bytes")
    for width, times in wards.items():
        print(f"Ward, {STEPS} steps, {width} wide: {times['ours_ms']} ms, scikit-learn {times['sklearn_ms']} ms")
    for width, taken in reports.items():
        print(
            f"sweep of jepa report, {count} streams, {width} wide, {processes} processes: {taken['wall']} s, "
            f"{taken['processor']} s of processor time"
        )
    print(f"{f'segments, s, {count} streams':28}{'values':>8}" + "".join(f"{f'{width} wide':>12}" for width in widths))
    for name, family in families.items():
        cells = "".join(f"{taken[name]:12.2f}" for taken in segments.values())
        print(f"{name:28}{len(family['values']):8}{cells}")
    figures = {
        "bench": "selective",
        "numpy": np.__version__,
        "gate": gate,
        "ward": wards,
        "values": sum(len(family["values"]) for family in families.values()),
        "streams": count,
        "steps": STEPS,
        "processes": processes,
        "report_sweep_seconds": reports,
        "segment_seconds": {width: round(sum(taken.values()), 2) for width, taken in segments.items()},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
