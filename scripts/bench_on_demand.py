"""From frames to texts: uniform decoding against prediction on demand with a cache, FLOPs and seconds by the wall.

    python scripts/bench_on_demand.py [--quick] [--report outputs/demo] [--setting dense] [--streams 4] [--seconds 60]
        [--threads 2]

`--report` is the folder of a checkpoint, its evaluation and its report. The policies stand where the report put them,
chosen on the calibration streams, and so do the thresholds of their caches. The beginning of each of the first test
streams is decoded live by each policy in turn, frame by frame, and everything is timed but the drawing of the frames.
Without a report a small model with random weights takes streams of 20 s. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from jepa import checkpoint
from jepa.build import build
from jepa.checkpoint import build_model
from jepa.cli import compose
from jepa.config import PolicyConfig, ReportConfig, StreamConfig, validate
from jepa.data.tokenizer import Tokenizer
from jepa.data.world import CAPTION_QUERIES, Stream, corpus
from jepa.evaluation.streams import EncodedStream, encode_stream, load_streams
from jepa.evaluation.sweep import make_policy
from jepa.evaluation.videos import made_streams
from jepa.models.vl_jepa import VLJEPA, PredictorOnDemand
from jepa.operations import OperationLedger
from jepa.results import StreamResults, read_document
from jepa.selective import (
    ColourChange,
    LatentCache,
    OnDemand,
    Readout,
    SelectiveDecoder,
    SelectiveEncoding,
    StepSelection,
)
from jepa.training.configs import TrainConfig

BASELINE = "uniform"
POLICIES = (BASELINE, "gate_cache", "on_demand_cache", "on_demand_once_cache")


class Point(NamedTuple):
    """A policy where it is measured."""

    config: PolicyConfig
    value: float
    cache: LatentCache | None


class Measured(NamedTuple):
    model: VLJEPA
    readout: Readout
    streams: list[Stream]
    points: dict[str, Point]
    step_rate: float


def fit(encoded: Sequence[EncodedStream]) -> Readout:
    parts = ([getattr(each, part) for each in encoded] for part in ("states", "latents"))
    return Readout.fit(*map(np.concatenate, parts))


def of_report(folder: Path, setting: str, count: int) -> Measured:
    """A model, its first test streams, and where the report put the policies."""
    results = read_document(folder / StreamResults.file_name, StreamResults)
    found, config = results.settings[setting], results.config
    given = validate(config["evaluate"]["streams"][setting], StreamConfig)
    streams = made_streams(build(config["train"]["world"]), setting, given, config["evaluate"]["seed"])
    points = {}
    for row in found.operations:
        if row.policy in POLICIES:
            curve = found.curves[row.policy]
            point = next(each for each in curve.test if each.value == row.value)
            cache = point.cache and curve.cache and LatentCache(point.cache.threshold, curve.cache.capacity)
            points[row.policy] = Point(
                validate(config["report"]["policies"][row.policy], PolicyConfig), row.value, cache
            )
    readout = fit(load_streams(folder / "evaluation" / setting / "calibration"))
    model = checkpoint.load(folder / "checkpoint").eval()
    return Measured(model, readout, streams["test"][:count], points, found.step_rate_hz)


def of_random_weights() -> Measured:
    config = validate(compose("train", ["experiment=scratch"]), TrainConfig)
    tokenizer = Tokenizer.train(corpus(), config.tokenizer.vocab_size)
    model = build_model({"variant": "vl_jepa", "model": config.model}, tokenizer).eval()
    setting = validate(compose("evaluate", ["checkpoint=none"]).streams.dense, StreamConfig)
    short = setting.model_copy(update={"calibration": 2, "test": 2, "seconds": 20.0})
    streams = made_streams(build(config.world), "dense", short, seed=0)
    policies = validate(compose("report"), ReportConfig).policies
    caches = {name: LatentCache(1e-4, 64) if policies[name].cache else None for name in POLICIES}
    readout = fit([encode_stream(model, stream, setting.step_rate_hz) for stream in streams["calibration"]])
    points = {name: Point(policies[name], 1.0, caches[name]) for name in POLICIES}
    return Measured(model, readout, streams["test"], points, setting.step_rate_hz)


def decode(measured: Measured, point: Point, frames: Sequence[np.ndarray]) -> tuple[OperationLedger, float, int]:
    """A stream decoded live: what it took, the seconds by the wall, and the texts."""
    policy, ledger = make_policy(point.config, point.value), OperationLedger()
    start, texts = time.perf_counter(), 0
    if isinstance(policy, OnDemand):
        demand = PredictorOnDemand(measured.model, CAPTION_QUERIES[0], measured.readout, ledger)
        policy.predict, steps = demand.predict, demand.stream(frames, measured.step_rate)
    else:
        every = max(1, round(measured.step_rate / point.value))  # uniform decoding needs no step but those it decodes
        selection = None if policy.reads_latents else SelectiveEncoding(ColourChange(), StepSelection(None, hold=every))
        steps = measured.model.stream(frames, measured.step_rate, CAPTION_QUERIES[0], ledger, selection)
    cache = None if point.cache is None else point.cache.fresh()
    selective = SelectiveDecoder(policy, measured.model, ledger, cache=cache)
    for rows, times in steps:
        for row, at in zip(rows, times.tolist(), strict=True):
            texts += len(selective.step(row, at))
    texts += len(selective.finish())
    return ledger, time.perf_counter() - start, texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one stream; under 50 s with a small model")
    parser.add_argument("--report", type=Path, help="folder of a checkpoint, its evaluation and its report")
    parser.add_argument("--setting", default="dense")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each stream")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    count = 1 if arguments.quick else arguments.streams
    report = arguments.report
    measured = of_random_weights() if report is None else of_report(report, arguments.setting, count)
    flops, seconds, texts, calls = (dict.fromkeys(measured.points, 0.0) for _ in range(4))
    streams = measured.streams[:count]
    for stream in tqdm(streams, desc="streams", unit="stream"):
        chunk = round(measured.model.fps / measured.step_rate)  # the frames of a step, as they would arrive
        frames = [part for block in stream.frames() for part in np.split(block, range(chunk, len(block), chunk))]
        frames = frames[: round(arguments.seconds * measured.step_rate)]
        if stream is streams[0]:
            for point in measured.points.values():
                decode(measured, point, frames[:12])  # what is counted once and kept, and kernels
        for name, point in measured.points.items():
            ledger, taken, said = decode(measured, point, frames)
            parts = ("detector", "encoder", "predictor", "decoder")
            flops[name] += sum(getattr(ledger, part).flops for part in parts) + ledger.cache.flops
            calls[name] += ledger.decoder.calls
            seconds[name], texts[name] = seconds[name] + taken, texts[name] + said
    print(
        f"{'':28}{'value':>8}{'texts':>8}{'calls':>8}{'GFLOPs':>10}{'seconds':>10}{'fewer FLOPs':>13}{'less time':>11}"
    )
    rows = {}
    for name, point in measured.points.items():
        ratios = flops[BASELINE] / flops[name], seconds[BASELINE] / seconds[name]
        numbers = f"{point.value:12.2f}{texts[name]:12.0f}{calls[name]:12.0f}{flops[name] / 1e9:12.1f}"
        print(f"{name:18}{numbers}{seconds[name]:12.1f}{ratios[0]:11.2f}x{ratios[1]:11.2f}x")
        rows[name] = {"flops_ratio": round(ratios[0], 3), "seconds_ratio": round(ratios[1], 3), "texts": texts[name]}
    print(json.dumps({"bench": "on_demand", "streams": len(streams), "threads": arguments.threads, "policies": rows}))


if __name__ == "__main__":
    main()
