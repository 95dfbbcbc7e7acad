"""Scores of one arm and seed: captions of held-out clips, their ranks, FLOPs, latency, and streams."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from jepa import checkpoint
from jepa.build import build
from jepa.data.records import StreamRecord
from jepa.data.world import CAPTION_QUERIES, World
from jepa.evaluation.provenance import code_version, describe_device, library_versions, now
from jepa.metrics import cider_d, match_nearest
from jepa.models.token_vlm import TokenVLM, WindowDecoder, candidate_scores, ranks_of_own
from jepa.models.vl_jepa import VLJEPA
from jepa.operations import OperationLedger
from jepa.results.documents import RoleParameters
from jepa.selective import Decoded, Emission, SelectiveDecoder, Uniform
from jepa.studies.comparison.data import HeldOutClips, held_out_clips
from jepa.studies.comparison.results import (
    EVERY_STEP,
    SELECTIVELY,
    ArmEvaluation,
    ArmRun,
    ArmTraining,
    ScoredPoint,
    SingleAnswers,
    StreamStep,
)
from jepa.studies.comparison.train import train_arm
from jepa.studies.configs import ComparisonStreamConfig, ComparisonTrainConfig

_STREAM_SEED = 9_001
_In = TypeVar("_In")
_Out = TypeVar("_Out")


def run(config: ComparisonTrainConfig, output: Path) -> Path:
    """Train and score one arm with one seed. Returns the path of its `comparison.json` in `output`.

    Raises:
        InputError: as `train_arm`.
    """
    found = evaluate_arm(train_arm(config, output), config, output)
    document = ArmEvaluation(
        created=now(),
        name=config.name,
        run=found,
        config=config.model_dump(),
        code=code_version(),
        libraries=library_versions(),
        device=describe_device("cpu"),
    )
    path, last = document.save(output), found.points[-1]
    scores = f"CIDEr-D {last.cider_d:.3f}, top-5 {last.top5:.3f}"
    print(f"{found.arm}, seed {found.seed}: {scores}: {path}", flush=True)
    return path


@torch.no_grad()
def evaluate_arm(training: ArmTraining, config: ComparisonTrainConfig, folder: Path) -> ArmRun:
    """Score the checkpoints that `train_arm` left in `folder`."""
    world = build(config.world)
    _, test = held_out_clips(world, config.held_out, config.model["frames"], config.data_seed)
    points = []
    for point in training.points:
        model = checkpoint.load(folder / f"samples_{point.samples}")
        model.x_encoder.requires_grad_(False)
        points.append(ScoredPoint.model_validate({**dict(point), **_scores(model, test)}))
    return ArmRun(
        seed=config.seed,
        **{**dict(training), "points": tuple(points)},
        parameters=tuple(RoleParameters.model_validate(role) for role in model.parameters_by_role()),
        answers=_answers(model, test, config.answers),
        streams=_streams(model, world, config.stream, config.data_seed),
    )


def _scores(model: VLJEPA | TokenVLM, clips: HeldOutClips) -> Mapping[str, float]:
    """Captions of the clips, and the rank of each clip's canonical caption among those of all clips."""
    states = clips.states(model.encode)
    queries = [CAPTION_QUERIES[0]] * len(clips.scenes)
    ranks = ranks_of_own(candidate_scores(model, states, queries, clips.names))
    texts = [decoded.text for decoded in _answer(model, states, queries)]
    return {
        "clips": len(clips.scenes),
        "cider_d": float(cider_d(texts, clips.references).mean()),
        "exact": float(np.mean([text in own for text, own in zip(texts, clips.references, strict=True)])),
        "top1": float((ranks <= 1).double().mean()),
        "top5": float((ranks <= 5).double().mean()),
    }


def _answer(model: VLJEPA | TokenVLM, states: Tensor, queries: Sequence[str]) -> list[Decoded]:
    if isinstance(model, TokenVLM):
        return model.answer(states, queries)
    return model.decode(model.predict(states, queries))


def _answers(model: VLJEPA | TokenVLM, clips: HeldOutClips, count: int) -> SingleAnswers:
    """Answers to single clips, one after the other."""
    query = [CAPTION_QUERIES[0]]
    states, encode = _timed(model.encode, clips.frames[:count].split(1))
    decoded, answer = _timed(lambda state: _answer(model, state, query), states)
    predict = None
    if isinstance(model, VLJEPA):
        _, predict = _timed(lambda state: model.predict(state, query), states)
    found = [one for [one] in decoded]
    return SingleAnswers(
        count=len(found),
        encode_ms=encode,
        answer_ms=answer,
        tokens=float(np.mean([one.tokens for one in found])),
        decoder_flops=float(np.mean([one.flops for one in found])),
        predict_ms=predict,
    )


def _timed(run: Callable[[_In], _Out], items: Sequence[_In]) -> tuple[list[_Out], float]:
    """The results, and the median milliseconds of a call. One untimed call comes first."""
    run(items[0])
    results, seconds = [], []
    for item in items:
        started = time.perf_counter()
        results.append(run(item))
        seconds.append(time.perf_counter() - started)
    return results, 1000 * float(np.median(seconds))


def _streams(
    model: VLJEPA | TokenVLM, world: World, config: ComparisonStreamConfig, seed: int
) -> dict[str, StreamStep]:
    """The same streams answered at every step; by VL-JEPA selectively, too."""
    style, rate = build(config.style), config.step_rate_hz
    streams = [
        world.stream(f"comparison-{i}", (seed, _STREAM_SEED, i), config.seconds, style) for i in range(config.streams)
    ]
    records = [stream.record for stream in streams]
    if isinstance(model, TokenVLM):
        ledger, emissions = OperationLedger(), []
        decoder = SelectiveDecoder(Uniform(rate), WindowDecoder(model, CAPTION_QUERIES[0]), ledger)
        for stream in streams:
            found: list[Emission] = []
            for windows, times in model.windows(stream.frames(chunk=int(world.fps / rate)), rate, ledger):
                for window, at in zip(windows, times.tolist(), strict=True):
                    found += decoder.step(None, at, payload=window)
            emissions.append(found + decoder.finish())
        return {EVERY_STEP: _stream_step(ledger, emissions, records)}
    latents = []
    encoding = OperationLedger()
    for stream in streams:
        parts = list(model.stream(stream.frames(chunk=int(world.fps / rate)), rate, CAPTION_QUERIES[0], encoding))
        latents.append((np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])))
    results = {}
    for name, policy in ((EVERY_STEP, Uniform(rate)), (SELECTIVELY, build(config.policy))):
        ledger = OperationLedger()
        decoder = SelectiveDecoder(policy, model, ledger, batch_size=1)
        emissions = [decoder.run(*each) for each in latents]
        results[name] = _stream_step(encoding + ledger, emissions, records)
    return results


def _stream_step(
    ledger: OperationLedger, emissions: Sequence[Sequence[Emission]], records: Sequence[StreamRecord]
) -> StreamStep:
    steps = ledger.step_count
    texts, references = [], []
    for record, found in zip(records, emissions, strict=True):
        nearest = match_nearest([event.midpoint for event in record.events], [emission.time for emission in found])
        texts += [found[i].text for i in nearest]
        references += [[event.text] for event in record.events]
    return StreamStep(
        steps=steps,
        answers_per_step=ledger.decoder.calls / steps,
        tokens_per_step=ledger.decoder.tokens / steps,
        flops_per_step=ledger.total_flops / steps,
        ms_per_step=1000 * ledger.total_seconds / steps,
        decoder_ms_per_step=1000 * ledger.decoder.seconds / steps,
        cider_d=float(cider_d(texts, references).mean()),
    )
