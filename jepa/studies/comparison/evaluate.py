"""Scores of one arm and seed: captions of held-out clips, their ranks, FLOPs, latency, and streams."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from jepa import checkpoint
from jepa.build import build
from jepa.data.records import StreamRecord
from jepa.data.tokenizer import Tokenizer
from jepa.data.world import CAPTION_QUERIES, World, corpus
from jepa.errors import InputError
from jepa.evaluation import provenance
from jepa.kept import held
from jepa.metrics import cider_d, match_nearest
from jepa.models.token_vlm import TokenVLM, WindowDecoder, candidate_scores, ranks_of_own
from jepa.models.vl_jepa import VLJEPA
from jepa.operations import OperationLedger
from jepa.results import read_document
from jepa.results.documents import RoleParameters
from jepa.selective import Decoded, Emission, SelectiveDecoder, Uniform
from jepa.studies.comparison import results, train
from jepa.studies.configs import ComparisonStreamConfig, ComparisonTrainConfig
from jepa.training.configs import FREE

_STREAM_SEED = 9_001
_In = TypeVar("_In")
_Out = TypeVar("_Out")


def run(config: ComparisonTrainConfig, output: Path) -> Path:
    """Train and score one arm with one seed. Returns the path of its `comparison.json` in `output`.

    Every learning rate is tried over the whole schedule. The best by mean reciprocal rank of the right caption on the
    validation clips is kept. Each of the points leaves a checkpoint `samples_<n>`. A VL-JEPA gets a new decoder there,
    trained on its predictions for samples it has seen. Nothing is done again with `resume`. Raises InputError for
    points that do not increase up to the last step, or a model of neither arm.
    """
    path, free = output / results.ArmEvaluation.file_name, dict.fromkeys(FREE)
    with held(output):
        done = read_document(path, results.ArmEvaluation).config if config.resume and path.is_file() else {}
        return path if done | free == config.model_dump() | free else _run(config, output)


def _run(config: ComparisonTrainConfig, output: Path) -> Path:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # tips and device lists
    plain, stage = train.arm_config(config), config.stage
    if sorted(set(config.points)) != config.points or config.points[-1] != stage.steps:
        raise InputError(f"points must increase up to stage.steps = {stage.steps}, got {config.points}")
    tokenizer, world = Tokenizer.train(corpus(), config.tokenizer.vocab_size), build(config.world)
    validation, test = train.held_out_clips(world, config.held_out, config.model["frames"], config.data_seed)
    rates = [factor * stage.learning_rate for factor in config.learning_rate_factors]
    stages = [stage.model_copy(update={"learning_rate": rate}) for rate in rates]
    states = train.frozen_states(config, tokenizer)
    tried = [train.fit_arm(config, each, tokenizer, states, validation, output) for each in stages]
    module, best = max(tried, key=lambda each: each[1].validation_mrr)
    model = module.model
    flops = train.step_flops(module, train.StateBatches(states, config.seed, stage.batch_size, 1)[0])
    points = []
    for point in config.points:
        model.load_state_dict(module.kept[point])
        decoder = train.train_decoder(config, model, states, point, output) if isinstance(model, VLJEPA) else None
        seen = point * stage.batch_size
        checkpoint.save(model.cpu(), plain, output / f"samples_{seen}")
        saved = checkpoint.load(output / f"samples_{seen}")
        points.append(results.ScoredPoint(samples=seen, steps=point, decoder=decoder, **_scores(saved, test)))
    saved.x_encoder.requires_grad_(False)
    document = results.ArmEvaluation(
        created=provenance.now(),
        name=config.name,
        run=results.ArmRun(
            arm=plain["variant"],
            encoder_states=states.name,
            learning_rate=best.learning_rate,
            tried=tuple(trial for _, trial in tried),
            step_flops=flops,
            points=tuple(points),
            seed=config.seed,
            parameters=tuple(RoleParameters.model_validate(role) for role in saved.parameters_by_role()),
            answers=_answers(saved, test, config.answers),
            streams=_streams(saved, world, config.stream, config.data_seed),
        ),
        config=config.model_dump(),
        code=provenance.code_version(),
        libraries=provenance.library_versions(),
        device=provenance.describe_device("cpu"),
    )
    path, last = document.save(output), points[-1]
    scores = f"CIDEr-D {last.cider_d:.3f}, top-5 {last.top5:.3f}"
    print(f"{plain['variant']}, seed {config.seed}: {scores}: {path}", flush=True)
    return path


@torch.no_grad()
def _scores(model: VLJEPA | TokenVLM, clips: train.HeldOutClips) -> dict[str, Any]:
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


@torch.no_grad()
def _answers(model: VLJEPA | TokenVLM, clips: train.HeldOutClips, count: int) -> results.SingleAnswers:
    """Answers to single clips, one after the other."""
    query = [CAPTION_QUERIES[0]]
    states, encode = _timed(model.encode, clips.frames[:count].split(1))
    decoded, answer = _timed(lambda state: _answer(model, state, query), states)
    predict = None
    if isinstance(model, VLJEPA):
        _, predict = _timed(lambda state: model.predict(state, query), states)
    return results.SingleAnswers(
        encode_ms=encode, answer_ms=answer, tokens=float(np.mean([one.tokens for [one] in decoded])), predict_ms=predict
    )


def _timed(run: Callable[[_In], _Out], items: Sequence[_In]) -> tuple[list[_Out], float]:
    """The results, and the median milliseconds of a call. One untimed call comes first."""
    run(items[0])
    found, seconds = [], []
    for item in items:
        started = time.perf_counter()
        found.append(run(item))
        seconds.append(time.perf_counter() - started)
    return found, 1000 * float(np.median(seconds))


@torch.no_grad()
def _streams(
    model: VLJEPA | TokenVLM, world: World, config: ComparisonStreamConfig, seed: int
) -> dict[str, results.StreamStep]:
    """The same streams answered at every step; by VL-JEPA selectively, too."""
    style, rate, query = build(config.style), config.step_rate_hz, CAPTION_QUERIES[0]
    streams = [
        world.stream(f"comparison-{i}", (seed, _STREAM_SEED, i), config.seconds, style) for i in range(config.streams)
    ]
    frames = [stream.frames(chunk=int(world.fps / rate)) for stream in streams]
    records = [stream.record for stream in streams]
    encoding = OperationLedger()
    if isinstance(model, TokenVLM):
        emissions = []
        decoder = SelectiveDecoder(Uniform(rate), WindowDecoder(model, query), encoding)
        for chunks in frames:
            found: list[Emission] = []
            for windows, times in model.windows(chunks, rate, encoding):
                for window, at in zip(windows, times.tolist(), strict=True):
                    found += decoder.step(None, at, payload=window)
            emissions.append(found + decoder.finish())
        return {results.EVERY_STEP: _stream_step(encoding, emissions, records)}
    latents = []
    for chunks in frames:
        parts, times = zip(*model.stream(chunks, rate, query, encoding), strict=True)
        latents.append((np.concatenate(parts), np.concatenate(times)))
    steps = {}
    for name, policy in ((results.EVERY_STEP, Uniform(rate)), (results.SELECTIVELY, build(config.policy))):
        ledger = OperationLedger()
        selective = SelectiveDecoder(policy, model, ledger, batch_size=1)
        emissions = [selective.run(*each) for each in latents]
        steps[name] = _stream_step(encoding + ledger, emissions, records)
    return steps


def _stream_step(
    ledger: OperationLedger, emissions: Sequence[Sequence[Emission]], records: Sequence[StreamRecord]
) -> results.StreamStep:
    steps = ledger.step_count
    texts, references = [], []
    for record, found in zip(records, emissions, strict=True):
        nearest = match_nearest([event.midpoint for event in record.events], [emission.time for emission in found])
        texts += [found[i].text for i in nearest]
        references += [[event.text] for event in record.events]
    return results.StreamStep(
        answers_per_step=ledger.decoder.calls / steps,
        flops_per_step=ledger.total_flops / steps,
        ms_per_step=1000 * ledger.total_seconds / steps,
        cider_d=float(cider_d(texts, references).mean()),
    )
