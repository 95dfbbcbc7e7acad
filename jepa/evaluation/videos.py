"""`evaluate` of a VL-JEPA: its scores, and the latents of its streams for the report."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from jepa import checkpoint
from jepa.config import build
from jepa.data.timelines import excerpt, read_timeline, video_of
from jepa.data.video import VideoStream, find_video
from jepa.data.world import Stream, World
from jepa.errors import InputError
from jepa.evaluation.record import EVALUATION, code_version, describe_device, device_of, library_versions
from jepa.evaluation.streams import SPLITS, encode_streams, make_streams, save_streams, thumbnails
from jepa.evaluation.tasks import cost_line, score_tasks
from jepa.models.vl_jepa import VLJEPA


@torch.no_grad()
def evaluate_videos(folder: Path, output: Path, config: Mapping[str, Any]) -> Path:
    """Scores the checkpoint `folder` by a validated `EvaluateConfig` and writes the folder `output`, which it returns.

    It holds `evaluation.json` and, for each setting and split, latents, times, annotations and ledgers.
    """
    trained, device = checkpoint.read_config(folder), device_of(config["accelerator"])
    model: VLJEPA = checkpoint.load(folder).to(device)
    world = build(trained["world"])
    output.mkdir(parents=True, exist_ok=True)

    scores = score_tasks(model, world, config["seed"], config["candidates"], config["batch_size"])
    print(_score_lines(scores), flush=True)
    if config["videos"] is not None:
        settings = {"videos": _save_videos(model, config["videos"], output / "videos")}
    else:
        settings = {
            name: _save_made(model, world, name, setting, config["seed"], output / name)
            for name, setting in config["streams"].items()
        }
    record = {
        "format": EVALUATION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "checkpoint": os.path.relpath(folder.resolve(), output.resolve()),
        "name": trained["name"],
        "seed": trained["seed"],
        "config": {"train": trained, "evaluate": config},
        "latent_delay": model.window / 2,
        "code": code_version(),
        "libraries": library_versions(),
        "device": describe_device(device),
        "parameters": model.parameters_by_role(),
        "training": _training(folder),
        "scores": scores,
        "settings": settings,
    }
    (output / "evaluation.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    print(f"evaluation: {output}", flush=True)
    return output


def _save_made(
    model: VLJEPA, world: World, name: str, setting: dict[str, Any], seed: int, folder: Path
) -> dict[str, Any]:
    """Latents of the embedded streams of a setting; its entry in the record."""
    style = build(setting["style"])
    made = {
        split: make_streams(world, name, split, setting[split], setting["seconds"], style, seed) for split in SPLITS
    }
    return _save_streams(model, made, setting, setting["seconds"], name, folder)


def _save_videos(model: VLJEPA, setting: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Latents of the annotated videos of a folder; their entry in the record."""
    source = {key: value for key, value in setting["timeline"].items() if key != "split_by"}
    timeline = read_timeline(**source)
    files = {r.video_id: find_video(Path(setting["folder"]), video_of(r.video_id)) for r in timeline.records}
    there = [record for record in timeline.records if files[record.video_id] is not None]
    print(f"{len(there)} of {len(files)} annotated videos are in {setting['folder']}", flush=True)
    if not there:
        raise InputError(f"videos.folder must hold annotated videos, got none of {len(files)} in {setting['folder']}")
    taken = excerpt(
        replace(timeline, records=tuple(there)),
        0,
        setting["minutes"],
        setting["calibration_share"],
        setting["timeline"]["split_by"],
    )
    size, fps = model.x_encoder.size, model.fps
    found = {
        split: [VideoStream(files[r.video_id] or Path(), r, size, fps) for r in taken.splits[split]] for split in SPLITS
    }
    seconds = [stream.record.duration for stream in found["test"]]
    return _save_streams(model, found, setting, sum(seconds) / len(seconds), "videos", folder)


def _save_streams(
    model: VLJEPA,
    streams: Mapping[str, Sequence[Stream | VideoStream]],
    setting: dict[str, Any],
    seconds: float,
    name: str,
    folder: Path,
) -> dict[str, Any]:
    for split, each in streams.items():
        encoded = encode_streams(model, each, setting["step_rate_hz"], f"{name} {split}")
        save_streams(encoded, folder / split)
    pictures = thumbnails(streams["test"][0])
    (folder / "thumbnails.json").write_text(json.dumps(pictures), encoding="utf-8")
    return {
        "description": setting["description"],
        "step_rate_hz": setting["step_rate_hz"],
        "seconds_each": seconds,
    }


def _score_lines(scores: dict[str, Any]) -> str:
    retrieval, captioning = scores["retrieval"], scores["captioning"]
    at_one = (retrieval["r@1"], retrieval["chance"], retrieval["cost"]["r@1"])
    rows = [(f"retrieval R@1 of {retrieval['candidates']}", *at_one)]
    parts = {"classification": scores["classification"]}
    parts |= {f"question: {kind}": part for kind, part in scores["question_answering"]["by_question"].items()}
    rows += [(name, part["accuracy"], part["chance"], part["cost"]) for name, part in parts.items()]
    lines = [
        f"{name:28} {value:6.3f}   (chance {chance:.3f})   {cost_line(cost)}" for name, value, chance, cost in rows
    ]
    lines.append(f"{'caption CIDEr-D (0-10)':28} {captioning['cider_d']:6.3f}")
    lines.append(f"{'caption exact match':28} {captioning['exact_match']:6.3f}   {cost_line(captioning['cost'])}")
    return "\n".join(["held-out compositions", *lines])


def _training(folder: Path) -> dict[str, Any]:
    """What training left beside the weights: steps, seconds and operations of the stages, the first stage's curve."""
    path = folder / "training.json"
    if not path.is_file():
        raise InputError(f"training record not found: {path}")
    stages = json.loads(path.read_text(encoding="utf-8"))["stages"]
    return {
        "steps": sum(stage["steps"] for stage in stages),
        "samples": sum(stage["samples"] for stage in stages),
        "seconds": sum(stage["seconds"] for stage in stages),
        "stages": [
            {**{key: stage[key] for key in ("name", "steps", "seconds")}, "operations": stage.get("operations")}
            for stage in stages
        ],
        "curve": stages[0]["curve"],
    }
