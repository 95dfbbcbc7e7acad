"""Made streams whose latents hold their words, the decoder that reads them, and results of the real sweep over both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from jepa.config import CacheConfig, PolicyConfig, ReferenceConfig, ReportConfig
from jepa.data.records import Event, StreamRecord
from jepa.data.world import StreamStyle, World
from jepa.evaluation.provenance import code_version, describe_device, library_versions
from jepa.evaluation.streams import EncodedStream, save_streams, thumbnails
from jepa.evaluation.sweep import sweep_evaluation
from jepa.evaluation.tasks import score_tasks
from jepa.models.vl_jepa import VLJEPA
from jepa.operations import TRAINING_PARTS, OperationLedger, PartCount
from jepa.results import StreamEvaluation, StreamResults
from jepa.results.documents import EncodedStreams, RoleParameters, Stage, Training, TrainingOperations
from jepa.selective import Decoded

WORDS = ["red circle grows", "blue star spins", "green ring blinks", "white cross shakes", "cyan bar bounces"]
GATE = {"_target_": "jepa.selective.Gate"}
SELECTION = {"_target_": "jepa.selective.StepSelection", "threshold": 0.5, "burst": 2, "hold": 4}
CACHE = {"capacity": 8, "shared": False, "error_rate": 0.05}


class NearestWord:
    """Says the word that a latent is nearest to, three tokens each, and counts its calls."""

    def __init__(self) -> None:
        self.decoded = 0

    def decode(self, latents: torch.Tensor, payloads: object = None) -> list[Decoded]:
        self.decoded += len(latents)
        return [Decoded(WORDS[i], 3, 3, flops=3_000) for i in latents[:, : len(WORDS)].argmax(-1).tolist()]


WATCHING = PartCount(calls=120, flops=1_200, seconds=0.001)  # what the states of a stream take to summarise


def stream_set(split: str, seed: int, noise: float = 0.25, streams: int = 6, event: float = 6.0) -> list[EncodedStream]:
    """Streams of 60 s at 2 Hz; an event lasts `event` seconds. Latents are noisy one-hot vectors over `WORDS`."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(streams):
        order = [int(rng.integers(len(WORDS)))]
        while len(order) < 60 / event:
            word = int(rng.integers(len(WORDS)))
            if word != order[-1]:
                order.append(word)
        times = 0.25 + 0.5 * np.arange(120)
        latents = np.eye(16, dtype=np.float32)[[order[int(t // event)] for t in times]]
        latents += noise * rng.normal(size=latents.shape).astype(np.float32)
        latents /= np.linalg.norm(latents, axis=1, keepdims=True)
        events = tuple(Event(event * i, event * (i + 1), WORDS[word]) for i, word in enumerate(order))
        ledger = OperationLedger()
        ledger.count("detector", calls=120, flops=120, seconds=0.01)
        ledger.count("encoder", calls=240, forward_passes=240, flops=24_000, seconds=2.0)
        ledger.count("predictor", calls=120, forward_passes=120, flops=12_000, seconds=1.0)
        ledger.stream(60.0)
        changes = np.append(0.0, 1 - (latents[1:] * latents[:-1]).sum(1)).astype(np.float32)
        record, states = StreamRecord(f"{split}-{number}", 60.0, events), latents[:, ::-1].copy()
        made.append(EncodedStream(record, latents, times, ledger, changes, states, watching=WATCHING))
    return made


def family(
    policy: dict[str, Any], parameter: str, values: list[float], cache: dict[str, Any] | None = None, steps: Any = None
) -> PolicyConfig:
    """The configuration of a policy family."""
    label = policy["_target_"].rpartition(".")[2] + (" + cache" if cache else "") + (", some steps" if steps else "")
    known = None if cache is None else CacheConfig(**cache)
    return PolicyConfig(label=label, policy=policy, parameter=parameter, values=values, cache=known, steps=steps)


ON_DEMAND = {"_target_": "jepa.selective.OnDemand", "policy": GATE | {"threshold": 1.0}}
UNIFORM = {"_target_": "jepa.selective.Uniform"}
POLICIES = {
    "uniform": family(UNIFORM, "rate_hz", [2.0, 1.0, 0.5, 0.25, 0.1]),
    "gate": family(GATE, "threshold", [0.5, 1.0, 1.5, 2.0]),
    "gate_cache": family(GATE, "threshold", [0.5, 1.0, 1.5, 2.0], CACHE),
    "selective_encoding": family(GATE | {"pending": 1}, "threshold", [0.25, 0.5, 1.0], None, SELECTION),
    "on_demand": family(ON_DEMAND, "threshold", [0.5, 1.0]),
    "ward_mean": family({"_target_": "jepa.selective.Ward", "representative": "mean"}, "rate_hz", [0.5, 0.25, 0.1]),
    "oracle": family({"_target_": "jepa.selective.Oracle", "representative": "mean"}, "none", [0.0]),
}


def made_results(model: VLJEPA, folder: Path) -> StreamResults:
    """The real sweep over saved streams of two settings: events of 6 s, and of 2 s. The scores are those of `model`."""
    settings = {}
    for number, (name, event) in enumerate({"everyday": 6.0, "dense": 2.0}.items()):
        for seed, split in enumerate(("calibration", "test")):
            save_streams(stream_set(split, 10 * number + seed, streams=4, event=event), folder / name / split)
        settings[name] = EncodedStreams(
            description=f"an event every {event:g} s",
            step_rate_hz=2.0,
            seconds_each=60.0,
            broken={},
            thumbnails=thumbnails(World().stream("test-0", (0,), 10.0, StreamStyle(6.0)), 4),
        )
    trained = PartCount(calls=80, forward_passes=10, flops=10**9, seconds=1.5, weight_bytes=10**6)
    operations = TrainingOperations(steps=10, parts=dict.fromkeys(TRAINING_PARTS, trained))
    stages = tuple(Stage(name=name, steps=10, seconds=9.0, operations=operations) for name in ("jepa", "decoder"))
    curve = ({"step": 4, "loss": 3.5, "retrieval@1": None}, {"step": 9, "loss": 3.25, "retrieval@1": 0.25})
    evaluation = StreamEvaluation(
        created="2026-01-01T00:00:00+00:00",
        name="tiny",
        seed=0,
        checkpoint="../checkpoint",
        config={"train": {"name": "tiny"}, "evaluate": {"candidates": 12}},
        code=code_version(),
        libraries=library_versions(),
        device=describe_device("cpu"),
        parameters=tuple(RoleParameters.model_validate(row) for row in model.parameters_by_role()),
        latent_delay=0.5,
        processes=1,
        training=Training(steps=20, samples=160, seconds=18.0, stages=stages, curve=curve),
        scores=score_tasks(model, World(), 0, 12, 12),
        settings=settings,
    )
    references = [ReferenceConfig(policy="uniform", rate_hz=rate) for rate in (1.0, 0.5)]
    config = ReportConfig(policies=POLICIES, references=references, tolerances=[0.0, 0.1], workers=0)
    return sweep_evaluation(evaluation, folder, NearestWord(), config)


def with_savings(setting, change):
    """The setting with `change(saving)` as updates of each headline saving."""
    savings = [row.model_copy(update=change(row)) if row.headline else row for row in setting.savings]
    return setting.model_copy(update={"savings": tuple(savings)})


def with_contrast(results):
    """The document with references that keep their quality at their own rate only."""

    def change(row):
        one = {"value": 1.0, "low": 1.0, "high": 1.0}
        return {"ratio": row.ratio.model_copy(update=one)} if row.policy == row.reference.policy else {}

    settings = {name: with_savings(setting, change) for name, setting in results.settings.items()}
    return results.model_copy(update={"settings": settings})
