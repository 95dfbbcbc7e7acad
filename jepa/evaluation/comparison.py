"""The controlled comparison's scores: captions and candidate captions on held-out clips, FLOPs, latency, streams.

`evaluate_arm` scores one arm and seed; `report_comparison` puts all of them side by side.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa import checkpoint
from jepa.build import build
from jepa.data.comparison import HeldOutClips, held_out_clips
from jepa.data.records import StreamRecord
from jepa.data.world import CAPTION_QUERIES, World
from jepa.errors import InputError
from jepa.evaluation.record import announce, code_version, describe_device, library_versions
from jepa.metrics import cider_d, match_nearest
from jepa.metrics.paired import paired_test
from jepa.models.token_baseline import TokenVLM, candidate_scores, ranks_of_own
from jepa.models.vl_jepa import VLJEPA
from jepa.operations import OperationLedger
from jepa.report.comparison import FIGURES, SCHEMA, summary, write_report
from jepa.selective import Decoded, Emission, SelectiveDecoder, Uniform

FORMAT = "jepa.comparison/1"
RECORD = "comparison.json"
_STREAM_SEED = 9_001
_ALIKE = ("states", "data_seed", "held_out", "points", "stage", "learning_rate_factors", "precision", "stream")


@torch.no_grad()
def evaluate_arm(folder: Path, config: Mapping[str, Any]) -> Path:
    """Scores the checkpoints that `jepa.training.comparison.train` left in `folder`; writes `comparison.json` there."""
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    world = build(config["world"])
    _, test = held_out_clips(world, config["held_out"], config["model"]["frames"], config["data_seed"])
    points = []
    for point in training["points"]:
        model = checkpoint.load(folder / f"samples_{point['samples']}")
        model.x_encoder.requires_grad_(False)
        points.append(point | _scores(model, test))
    record = {
        "format": FORMAT,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "name": config["name"],
        "seed": config["seed"],
        **{key: training[key] for key in ("arm", "learning_rate", "tried", "step_flops")},
        "encoder_states": training["states"],
        "points": points,
        "parameters": model.parameters_by_role(),
        "answers": _answers(model, test, config["answers"]),
        "streams": _streams(model, world, config["stream"], config["data_seed"]),
        "config": config,
        "code": code_version(),
        "libraries": library_versions(),
        "device": describe_device("cpu"),
    }
    path = folder / RECORD
    path.write_text(json.dumps(record, indent=1), encoding="utf-8")
    last = points[-1]
    print(f"{training['arm']}, seed {config['seed']}: CIDEr-D {last['cider_d']:.3f}, top-5 {last['top5']:.3f}: {path}")
    return path


def _scores(model: VLJEPA | TokenVLM, clips: HeldOutClips) -> dict[str, float]:
    """Captions of the clips, and where each clip's canonical caption ranks among those of all clips."""
    states = torch.cat([model.encode(part) for part in clips.frames.split(64)])
    queries = [CAPTION_QUERIES[0]] * len(clips.scenes)
    ranks = ranks_of_own(candidate_scores(model, states, queries, clips.names))
    texts = [decoded.text for decoded in _answer(model, states, queries)]
    return {
        "cider_d": float(cider_d(texts, clips.references).mean()),
        "exact": float(np.mean([text in own for text, own in zip(texts, clips.references, strict=True)])),
        "top1": float((ranks <= 1).double().mean()),
        "top5": float((ranks <= 5).double().mean()),
        "chance5": min(1.0, 5 / len(clips.scenes)),
    }


def _answer(model: VLJEPA | TokenVLM, states: Tensor, queries: Sequence[str]) -> list[Decoded]:
    if isinstance(model, TokenVLM):
        return model.answer(states, queries)
    return model.decode(model.predict(states, queries))


def _answers(model: VLJEPA | TokenVLM, clips: HeldOutClips, count: int) -> dict[str, float]:
    """Answers to single clips, one after the other: mean milliseconds of the parts, tokens and decoder FLOPs."""
    query = [CAPTION_QUERIES[0]]
    frames = clips.frames[:count].split(1)
    states, encode = _timed(lambda clip: model.encode(clip), frames)
    decoded, answer = _timed(lambda state: _answer(model, state, query), states)
    found = [one for [one] in decoded]
    record = {
        "count": len(found),
        "encode_ms": encode,
        "answer_ms": answer,
        "tokens": float(np.mean([one.tokens for one in found])),
        "decoder_flops": float(np.mean([one.flops for one in found])),
    }
    if isinstance(model, VLJEPA):
        record["predict_ms"] = _timed(lambda state: model.predict(state, query), states)[1]
    return record


def _timed(run: Callable[[Any], Any], items: Sequence[Any]) -> tuple[list[Any], float]:
    """The results, and the median milliseconds of a call, one not timed before them."""
    run(items[0])
    results, seconds = [], []
    for item in items:
        started = time.perf_counter()
        results.append(run(item))
        seconds.append(time.perf_counter() - started)
    return results, 1000 * float(np.median(seconds))


def _streams(model: VLJEPA | TokenVLM, world: World, config: Mapping[str, Any], seed: int) -> dict[str, dict[str, Any]]:
    """The same streams of held-out and other compositions, answered at every step; by VL-JEPA selectively, too."""
    style, rate = build(config["style"]), config["step_rate_hz"]
    streams = [
        world.stream(f"comparison-{i}", (seed, _STREAM_SEED, i), config["seconds"], style)
        for i in range(config["streams"])
    ]
    records = [stream.record for stream in streams]
    if isinstance(model, TokenVLM):
        ledger, emissions = OperationLedger(), []
        for stream in streams:
            found = list(model.stream(stream.frames(), rate, CAPTION_QUERIES[0], ledger))
            ledger.steps(len(found))
            emissions.append([Emission(one.text, at, at, at, at, "decoder") for one, at in found])
        return {"every step": _stream_record(ledger, emissions, records)}
    latents = []
    encoding = OperationLedger()
    for stream in streams:
        parts = list(model.stream(stream.frames(chunk=int(world.fps / rate)), rate, CAPTION_QUERIES[0], encoding))
        latents.append((np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])))
    results = {}
    for name, policy in (("every step", Uniform(rate)), ("selectively", build(config["policy"]))):
        ledger = OperationLedger()
        decoder = SelectiveDecoder(policy, model, ledger, batch_size=1)
        emissions = [decoder.run(*each) for each in latents]
        results[name] = _stream_record(encoding + ledger, emissions, records)
    return results


def _stream_record(
    ledger: OperationLedger, emissions: Sequence[Sequence[Emission]], records: Sequence[StreamRecord]
) -> dict[str, Any]:
    """Per step: answers, tokens, FLOPs and milliseconds, of all parts and of the decoder; CIDEr-D of the streams."""
    steps = ledger.step_count
    texts, references = [], []
    for record, found in zip(records, emissions, strict=True):
        nearest = match_nearest([event.midpoint for event in record.events], [emission.time for emission in found])
        texts += [found[i].text for i in nearest]
        references += [[event.text] for event in record.events]
    return {
        "steps": steps,
        "answers_per_step": ledger.decoder.calls / steps,
        "tokens_per_step": ledger.decoder.tokens / steps,
        "flops_per_step": ledger.total_flops / steps,
        "ms_per_step": 1000 * ledger.total_seconds / steps,
        "decoder_ms_per_step": 1000 * ledger.decoder.seconds / steps,
        "cider_d": float(cider_d(texts, references).mean()),
    }


# --- All arms and seeds.


def report_comparison(config: Mapping[str, Any], paths: Sequence[Path]) -> dict[str, Path]:
    """The report of all arms and seeds below the evaluation's folder; prints a summary, returns the files written.

    Raises:
        InputError: a record is broken or of another format, or was made on other states, clips or schedules; an arm or
            a seed is missing.
    """
    folder = Path(config["evaluation"])
    results = comparison_results([_read(path) for path in paths], folder)
    written = write_report(results, Path(config["output"] or folder))
    announce(summary(results), written)
    return written


def comparison_results(records: Sequence[Mapping[str, Any]], root: Path) -> dict[str, Any]:
    """The document `jepa.comparison-results/1`: means over seeds with their 95 % t intervals, and paired differences.

    Raises:
        InputError: as `report_comparison`.
    """
    arms: dict[str, dict[int, Mapping[str, Any]]] = {"vl_jepa": {}, "token_vlm": {}}
    for record in records:
        _check_alike(record, records[0], root)
        if record["seed"] in arms[record["arm"]]:
            raise InputError(f"{root}: arm {record['arm']} and seed {record['seed']} must occur once")
        arms[record["arm"]][record["seed"]] = record
    seeds = sorted(arms["vl_jepa"])
    if not seeds or seeds != sorted(arms["token_vlm"]):
        raise InputError(
            f"{root}: both arms must have the same seeds, got vl_jepa {seeds} and token_vlm {sorted(arms['token_vlm'])}"
        )
    ordered = {arm: [found[seed] for seed in seeds] for arm, found in arms.items()}
    first = records[0]
    return {
        "schema": SCHEMA,
        "created": max(record["created"] for record in records),
        "name": first["name"],
        "seeds": seeds,
        "samples": [point["samples"] for point in first["points"]],
        "held_out": first["config"]["held_out"],
        "chance5": first["points"][0]["chance5"],
        "arms": {arm: _arm(found) for arm, found in ordered.items()},
        "difference": {
            key: [
                _interval([a["points"][i][key] - b["points"][i][key] for a, b in zip(*ordered.values(), strict=True)])
                for i in range(len(first["points"]))
            ]
            for key in FIGURES
        },
        "config": dict(first["config"]),
        **{key: _distinct([record[key] for record in records]) for key in ("code", "libraries", "device")},
    }


def _arm(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One arm over its seeds."""
    count = len(records[0]["points"])
    decoders = [[point["decoder"] for point in record["points"]] for record in records]
    return {
        "curves": {key: [_interval([r["points"][i][key] for r in records]) for i in range(count)] for key in FIGURES},
        "learning_rates": [record["learning_rate"] for record in records],
        "tried": [
            [{key: one[key] for key in ("learning_rate", "validation_mrr")} for one in record["tried"]]
            for record in records
        ],
        "step_flops": dict(records[0]["step_flops"]),
        "training_seconds": _interval([sum(one["seconds"] for one in record["tried"]) for record in records]),
        "decoder_training": None
        if decoders[0][0] is None
        else {key: float(np.mean([[d[key] for d in each] for each in decoders])) for key in ("flops", "seconds")},
        "parameters": list(records[0]["parameters"]),
        "answers": _means([record["answers"] for record in records]),
        "streams": {name: _means([record["streams"][name] for record in records]) for name in records[0]["streams"]},
    }


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {key: _interval([row[key] for row in rows]) for key in rows[0]}


def _interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds with its 95 % t interval (null for one seed), and the values."""
    found = paired_test(values)
    return {"value": found.mean, "low": found.low, "high": found.high, "p": found.p, "seeds": list(values)}


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a record of the comparison: {error}") from None
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT:
        raise InputError(f"{path}: format must be {FORMAT!r}, got {found!r}")
    return record


def _check_alike(record: Mapping[str, Any], first: Mapping[str, Any], root: Path) -> None:
    pairs = [("encoder_states", record["encoder_states"], first["encoder_states"])]
    pairs += [(key, record["config"][key], first["config"][key]) for key in _ALIKE]
    for key, mine, theirs in pairs:
        if mine != theirs:
            raise InputError(f"{root}: {key} must be the same in all runs, got {mine!r} and {theirs!r}")


def _distinct(values: Sequence[Any]) -> list[Any]:
    return [value for index, value in enumerate(values) if value not in values[:index]]
